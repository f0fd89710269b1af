//! A backend that owns such a worker.

use super::{FAILING, Heard, NEVER_READY, definition, int, key, milliseconds};
use crate::pg::Result;
use crate::pg::bgworker::pool::Owner;
use crate::pg::fmgr::Call;
use crate::pg_function;

/// `fail(way, patience)`: starts a worker, and tells what became of it when it is gone, or after so many milliseconds.
fn fail(call: &Call) -> Result<String> {
    let mut owner = Owner::new(&FAILING)?;
    if int(call, 0) == NEVER_READY {
        owner = owner.start_timeout(200_000);
    }
    let mut heard = Heard::default();
    if owner
        .launch(definition(int(call, 0)), key(call), 0)?
        .is_none()
    {
        return Ok("full".into());
    }
    if !owner.wait_for(|_| true, milliseconds(call, 1), &mut heard)? {
        heard.0.push("is still there".into());
    }
    Ok(heard.0.join(", "))
}
pg_function!(pgbq_test_fail, pg_finfo_pgbq_test_fail, fail);
