//! Running SQL text as a client's message would.

use std::ffi::c_void;

use super::boundary::boundary;
use super::error::{Error, Result, c_string};
use super::mem::MemoryContext;
use crate::pg_sys;

/// Runs `sql` as `psql -c` would, in transactions of its own; `before_commit` is called in the last of them,
/// right before it commits. After `timeout_ms` (0: never) it is cancelled. The process is in no transaction before and after, whatever happens.
/// See shim/statement.c for what is refused and how transactions end.
///
/// # Errors
/// What the text, `before_commit`, or the commit raised; all of the last transaction is rolled back.
pub fn run<F>(
    sql: &[u8],
    memory: &MemoryContext,
    timeout_ms: i32,
    mut before_commit: F,
) -> Result<()>
where
    F: FnMut() -> Result<()>,
{
    extern "C-unwind" fn call<F: FnMut() -> Result<()>>(arg: *mut c_void) {
        // SAFETY: `arg` is the closure below, which outlives the call.
        let hook = unsafe { &mut *arg.cast::<F>() };
        boundary(hook);
    }
    let text = c_string(sql);
    // SAFETY: terminated text and a live closure; the verb itself catches every ERROR, so no guard is needed.
    let error = unsafe {
        pg_sys::pgbq_run_statements(
            text.as_ptr(),
            memory.as_ptr(),
            timeout_ms,
            Some(call::<F>),
            (&raw mut before_commit).cast(),
        )
    };
    if error.is_null() {
        Ok(())
    } else {
        // SAFETY: an error that is now ours.
        Err(unsafe { Error::take(error) })
    }
}
