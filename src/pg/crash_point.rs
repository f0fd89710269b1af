//! Named places at which a test lets a process die, as if the machine had stopped there.

/// Nothing, except in the build for tests.
#[cfg(not(feature = "pg_test"))]
#[inline(always)]
pub const fn crash_point(_name: &str) {}

/// Kills the process if the file `pgbq_crash_point` in the data directory names this place: once, for the file is gone then.
#[cfg(feature = "pg_test")]
pub fn crash_point(name: &str) {
    // a server process works in its data directory
    const FILE: &str = "pgbq_crash_point";
    let is_meant = std::fs::read_to_string(FILE).is_ok_and(|wanted| wanted == name);
    // of several processes that come by at a time, the one that removes it
    if is_meant && std::fs::remove_file(FILE).is_ok() {
        // SAFETY: system calls without pointers.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}
