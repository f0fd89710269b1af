//! Interrupts, and which of a process's doings a cancel may hit.

use super::error::Result;
use super::guard;
use crate::pg_sys;

/// Serves interrupts (`CHECK_FOR_INTERRUPTS`, miscadmin.h): in code that waits or takes long, below a main loop or in a backend.
///
/// # Errors
/// A cancel; a termination ends the process.
pub fn check() -> Result<()> {
    // SAFETY: no arguments.
    guard(|| unsafe { pg_sys::pgbq_check() })
}

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

/// Forgets a cancel that has come and was not served: it was for something that is over.
pub fn forget_cancel() {
    // SAFETY: sets a flag.
    unsafe { pg_sys::pgbq_forget_cancel() };
}
