//! Cancels: which of a process's doings they may hit.

use crate::pg_sys;

/// Holds back cancels (`pg_cancel_backend`, statement timeouts) from now on; termination is not. An abort, too, lets them in
/// again: to be called at the beginning of each round of a main loop.
pub fn hold_cancels() {
    // SAFETY: this process's counter, which CHECK_FOR_INTERRUPTS reads.
    unsafe { pg_sys::QueryCancelHoldoffCount = 1 };
}

/// Whether the next round of a main loop has something to do first: to exit, or to read the configuration again.
pub fn wants_turn() -> bool {
    // SAFETY: reads flags.
    unsafe { pg_sys::pgbq_wants_turn() }
}

/// Lets cancels in again.
pub fn allow_cancels() {
    // SAFETY: as above.
    unsafe { pg_sys::QueryCancelHoldoffCount = 0 };
}
