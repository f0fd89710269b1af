//! What every round of a main loop does.

use super::super::error::Result;
use super::super::{guard, guc};
use crate::pg_sys;

/// Exits if the postmaster is gone, serves interrupts and invalidation messages (a cancel that found nothing to cancel is forgotten,
/// as in a backend that waits for a command) and reads the configuration again after a SIGHUP. True if it did the latter.
///
/// The memory context is checked where assertions are on, by the loop itself; waiting is
/// [`latch::wait`](super::super::latch::wait). As the loop of PostgresMain, tcop/postgres.c.
///
/// # Errors
/// An interrupt raises; termination exits the process.
pub fn turn() -> Result<bool> {
    // SAFETY: writes a flag.
    unsafe { pg_sys::pgbq_forget_cancel() };
    // SAFETY: no arguments.
    guard(|| unsafe { pg_sys::pgbq_serve() })?;
    // SAFETY: reads and clears a flag.
    let reload = unsafe { pg_sys::pgbq_config_reload_wanted() };
    if reload {
        guc::reload()?;
    }
    Ok(reload)
}
