//! The one place where tests wait by looking again and again.
//!
//! A test may never sleep for a time and hope that something has happened by then. It names a
//! condition and asks until it holds; the pause between two looks only keeps the test from eating
//! the processor that the server needs.

use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for something that should come at once. Generous, because the machines
/// that run these tests are shared and slow; it only costs time when the test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(10);

/// Asks `probe` until it answers, and returns the answer.
///
/// # Panics
/// When `deadline` has passed without an answer; the message names `what`.
#[track_caller]
pub fn wait_for<T>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(
            begin.elapsed() < deadline,
            "waited {deadline:?} in vain for {what}"
        );
        thread::sleep(PAUSE);
    }
}

/// [`wait_for`] with a condition instead of an answer, and the usual patience.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, PATIENCE, || condition().then_some(()));
}
