//! Messages below ERROR.

use super::error::{Result, SqlState, c_string, sqlstate};
use super::guard;
use crate::pg_sys;

/// `ereport(LOG)`: for the operator, in the server's log. ASCII or the server's encoding.
///
/// # Errors
/// A report can raise: `errfinish` serves interrupts.
pub fn log(message: impl Into<Vec<u8>>) -> Result<()> {
    report(pg_sys::LOG, sqlstate::NONE, message, None)
}

/// `ereport(WARNING)` with a HINT.
///
/// # Errors
/// As [`log`].
pub fn warning(state: SqlState, message: impl Into<Vec<u8>>, hint: &str) -> Result<()> {
    report(pg_sys::WARNING, state, message, Some(hint))
}

/// `ereport(DEBUG1)`.
///
/// # Errors
/// As [`log`].
pub fn debug(message: impl Into<Vec<u8>>) -> Result<()> {
    report(pg_sys::DEBUG1, sqlstate::NONE, message, None)
}

fn report(
    level: u32,
    state: SqlState,
    message: impl Into<Vec<u8>>,
    hint: Option<&str>,
) -> Result<()> {
    let message = c_string(message);
    let hint = hint.map(c_string);
    let message = message.as_ptr();
    let hint = hint.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: terminated strings that outlive the call; the guard catches what the report raises.
    guard(|| unsafe { pg_sys::pgbq_report(level as i32, state.0, message, std::ptr::null(), hint) })
}
