//! Looking at, and ending, server processes from outside.

use super::wait::wait_until;
use std::fs;
use std::time::{Duration, Instant};

/// Sends `signal` to `pid`; false when there is no such process any more.
pub fn kill(pid: i32, signal: i32) -> bool {
    // SAFETY: kill(2) takes two integers and touches no memory of ours.
    let rc = unsafe { libc::kill(pid, signal) };
    if rc == 0 {
        return true;
    }
    let error = std::io::Error::last_os_error();
    assert_eq!(
        error.raw_os_error(),
        Some(libc::ESRCH),
        "kill({pid}, {signal}): {error}"
    );
    false
}

/// Whether `pid` still runs; a zombie that nobody has waited for yet does not.
pub fn is_alive(pid: i32) -> bool {
    match field(pid, "State:") {
        Some(state) => !state.starts_with('Z') && !state.starts_with('X'),
        None => false,
    }
}

/// The living processes whose parent is `parent`.
pub fn children(parent: i32) -> Vec<i32> {
    let wanted = parent.to_string();
    fs::read_dir("/proc")
        .expect("/proc is there")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| field(pid, "PPid:").is_some_and(|ppid| ppid == wanted))
        .filter(|&pid| is_alive(pid))
        .collect()
}

/// How often `pid` has been put on a processor so far: voluntary and involuntary context switches.
/// A process that sleeps without waking up keeps this number; one that is gone has none.
pub fn context_switches(pid: i32) -> Option<u64> {
    let count = |name: &str| -> Option<u64> {
        let text = field(pid, name)?;
        Some(text.parse().expect("the kernel writes numbers"))
    };
    Some(count("voluntary_ctxt_switches:")? + count("nonvoluntary_ctxt_switches:")?)
}

/// One line of `/proc/PID/status`.
fn field(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    Some(line[name.len()..].trim().to_owned())
}

/// Waits until the process sleeps: not put on a processor for a second. One that has ended is at rest, too.
pub fn wait_quiet(pid: i32) {
    let mut last = (context_switches(pid), Instant::now());
    wait_until(&format!("process {pid} to come to rest"), || {
        let now = context_switches(pid);
        if now != last.0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(1)
    });
}
