//! The session of a worker that is connected to a database.

use super::error::{Result, c_string};
use super::guard;
use crate::pg_sys;

/// Gives the process a `MyProcPort`: see shim/client_port.c. After the connection.
///
/// # Errors
/// Out of memory.
pub fn set_port(user: &[u8], database: &[u8]) -> Result<()> {
    let (user, database) = (c_string(user), c_string(database));
    let (user, database) = (user.as_ptr(), database.as_ptr());
    // SAFETY: terminated strings, copied by the callee.
    guard(|| unsafe { pg_sys::pgbq_set_port(user, database) })
}

/// Loads `session_preload_libraries` and `local_preload_libraries`, which workers do not do by themselves.
///
/// # Errors
/// A library is missing or fails.
pub fn load_preload_libraries() -> Result<()> {
    // SAFETY: no arguments.
    guard(|| unsafe { pg_sys::process_session_preload_libraries() })
}

/// As `DISCARD ALL`, but the plans stay: see shim/session.c. In a transaction.
///
/// # Errors
/// E.g. dropping a temporary table fails.
pub fn reset() -> Result<()> {
    // SAFETY: no arguments.
    guard(|| unsafe { pg_sys::pgbq_reset_session() })
}

/// The part of [`reset`] that can be done in the middle of a transaction, or without one, and that is enough for a session that is not
/// [soiled](is_soiled).
///
/// # Errors
/// None known.
pub fn reset_settings() -> Result<()> {
    // SAFETY: no arguments.
    guard(|| unsafe { pg_sys::pgbq_reset_settings() })
}

/// From here on [`is_soiled`] and [`utility_ran`] count.
pub fn watch_soil() {
    // SAFETY: no arguments; sets a variable.
    unsafe { pg_sys::pgbq_forget_utility() }
}

/// Whether something may be left of what was run since [`watch_soil`] that only the end of the transaction, or a [`reset`] after
/// it, takes away: a utility command has run (temporary tables, prepared statements, LISTEN, SET CONSTRAINTS ...), an
/// advisory lock is held, or it is settled where temporary files go.
///
/// # Errors
/// None known.
pub fn is_soiled() -> Result<bool> {
    // SAFETY: no arguments.
    guard(|| unsafe {
        pg_sys::pgbq_utility_ran()
            || pg_sys::pgbq_holds_temp_tablespaces()
            || pg_sys::pgbq_holds_advisory_locks()
    })
}

/// Whether it is settled until the end of the transaction where temporary files go: a text has had some, or [`reset_settings`] has taken back what
/// it had set.
pub fn holds_temp_tablespaces() -> bool {
    // SAFETY: reads a variable.
    unsafe { pg_sys::pgbq_holds_temp_tablespaces() }
}

/// Whether a utility command has run since [`watch_soil`], other than those that only run others (DO, CALL, EXPLAIN).
pub fn utility_ran() -> bool {
    // SAFETY: reads a variable.
    unsafe { pg_sys::pgbq_utility_ran() }
}

/// Whether this session's transactions are such, by its settings, that several pieces of work may share one: READ COMMITTED, and
/// without a transaction_timeout.
pub fn may_share_transactions() -> bool {
    // SAFETY: reads variables.
    unsafe { pg_sys::pgbq_may_share_transactions() }
}

/// What pg_stat_activity shows as the state of this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activity {
    /// Waiting for work. (A worker is that after its [`Setup`](super::bgworker::Setup) and after each error.)
    Idle,
    /// At work, with a text for the column `query`.
    Running(&'static std::ffi::CStr),
}

/// Reports it (`pgstat_report_activity`), and shows it in `ps`.
///
/// # Errors
/// None known; the call is guarded like all.
pub fn report_activity(activity: Activity) -> Result<()> {
    let (state, text) = match activity {
        Activity::Idle => (pg_sys::STATE_IDLE, std::ptr::null()),
        Activity::Running(text) => (pg_sys::STATE_RUNNING, text.as_ptr()),
    };
    // SAFETY: null or a terminated static.
    guard(|| unsafe { pg_sys::pgbq_report_activity(state, text) })
}

/// Sends what this process has counted, or autovacuum would not see its work: always if `forced`, as before a time without work, else
/// if some time has passed.
///
/// # Errors
/// None known; the call is guarded like all.
pub fn report_statistics(forced: bool) -> Result<()> {
    // SAFETY: no pointers; its result, the time to wait before the next, is for callers that do not force it.
    guard(|| unsafe {
        let _ = pg_sys::pgstat_report_stat(forced);
    })
}
