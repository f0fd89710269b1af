//! Whoever wants to know of such workers, by their key.

use super::{FAILING, INHERITED, key, milliseconds};
use crate::pg::Result;
use crate::pg::bgworker::pool::Signal;
use crate::pg::fmgr::Call;
use crate::pg_function;

/// Of the worker that fails in this way: its pid, or 0.
fn find(call: &Call) -> Result<i32> {
    Ok(FAILING
        .find(key(call))?
        .filter(|found| found.ready)
        .map_or(0, |found| found.pid))
}
pg_function!(pgbq_test_find, pg_finfo_pgbq_test_find, find);

/// `signal(way, 'w' | 'c' | 't')`: signals them; how many.
fn signal(call: &Call) -> Result<i32> {
    let signal = match call.text(1)?.as_deref() {
        Some(b"w") => Signal::Wake,
        Some(b"c") => Signal::Cancel,
        _ => Signal::Terminate,
    };
    Ok(i32::try_from(FAILING.signal(key(call), signal)?).unwrap_or(i32::MAX))
}
pg_function!(pgbq_test_signal, pg_finfo_pgbq_test_signal, signal);

/// `wait_for_exit(way, milliseconds)`
fn wait_for_exit(call: &Call) -> Result<bool> {
    FAILING.wait_for_exit(key(call), milliseconds(call, 1))
}
pg_function!(
    pgbq_test_wait_for_exit,
    pg_finfo_pgbq_test_wait_for_exit,
    wait_for_exit
);

/// How many slots of both pools are in use.
fn in_use(_call: &Call) -> Result<i32> {
    let count = FAILING.in_use()? + INHERITED.in_use()?;
    Ok(i32::try_from(count).unwrap_or(i32::MAX))
}
pg_function!(pgbq_test_in_use, pg_finfo_pgbq_test_in_use, in_use);
