//! Without a pool: a plain worker, and who launches it.

use super::worker::Wait;
use super::{EXIT, WAIT, error, int, milliseconds};
use crate::pg::bgworker::{Definition, Session, Setup, Started};
use crate::pg::datum::Datum;
use crate::pg::fmgr::Call;
use crate::pg::{Result, log};
use crate::{pg_function, worker_main};

/// Waits for ever.
fn main(_argument: Datum) -> Result<()> {
    Setup::new(Session::Nothing).begin()?.run(&mut Wait);
    Ok(())
}
worker_main!(pgbq_test_plain_main, main);

/// `handle(function, start, end)`: what a worker's handle says after so many milliseconds at most (NULL: for ever), and when it
/// was terminated.
fn handle(call: &Call) -> Result<String> {
    let function = match int(call, 0) {
        WAIT => "pgbq_test_plain_main",
        EXIT => "pgbq_test_exit_at_once_main",
        _ => "pgbq_test_no_such_function",
    };
    let definition = Definition::new("pgbq_test plain", "pg_background_queue", function);
    let handle = definition.without_session().launch()?.ok_or_else(error)?;
    let waited = handle
        .wait_for_startup(milliseconds(call, 1))
        .and_then(|started| Ok((started, handle.wait_for_shutdown(milliseconds(call, 2))?)));
    // also if a cancel has ended the wait
    handle.terminate()?;
    let (started, waited) = waited?;
    let said = format!("{}, {}", words(started), words(waited));
    log::log(format!("pgbq_test: the handle says {said}"))?;
    let ended = handle.wait_for_shutdown(None)?;
    Ok(format!("{said}, {}", words(ended)))
}
pg_function!(pgbq_test_handle, pg_finfo_pgbq_test_handle, handle);

fn words(state: Started) -> &'static str {
    match state {
        Started::NotYet => "not yet",
        Started::Running(_) => "running",
        Started::Stopped => "stopped",
        Started::PostmasterDied => "postmaster died",
    }
}
