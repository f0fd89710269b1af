//! Where Rust is called by the server, and where an [`Error`] or a panic becomes an ERROR again.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use super::error::{Error, Result, sqlstate};
use crate::pg_sys;

/// Where the last panic happened: the hook knows it, `catch_unwind` does not.
static PANIC_PLACE: Mutex<Option<(String, u32)>> = Mutex::new(None);

/// Makes a panic remember its place instead of writing to stderr. Once, from `_PG_init`.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        if let (Ok(mut place), Some(location)) = (PANIC_PLACE.lock(), info.location()) {
            *place = Some((location.file().to_owned(), location.line()));
        }
    }));
}

/// Runs the body of a function that the server calls. An `Err` is raised as the ERROR that it describes, a
/// panic as XX000, each only after every Rust value of the body has been dropped.
pub fn boundary<R>(body: impl FnOnce() -> Result<R>) -> R
where
    R: Copy,
{
    // An error is turned into the server's own memory before this frame is left by the throw: nothing that
    // needs Drop lives across it.
    let (error, has_context) = match outcome(body) {
        Ok(result) => return result,
        Err(error) => error.into_server(),
    };
    // SAFETY: a complete ErrorData; this frame and its callers up to the server own nothing.
    unsafe { pg_sys::pgbq_throw(error, has_context) }
}

fn outcome<R>(body: impl FnOnce() -> Result<R>) -> Result<R> {
    // The values that the body shares with others are in shared memory or in cells; locks are guards that
    // unwinding releases.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result,
        Err(panic) => Err(panic_error(&*panic)),
    }
}

fn panic_error(panic: &(dyn Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a value that is no text");
    let place = PANIC_PLACE.lock().ok().and_then(|mut place| place.take());
    let (file, line) = place.unwrap_or_default();
    Error::at(
        sqlstate::INTERNAL_ERROR,
        format!("panic: {text}"),
        &file,
        line,
    )
    .detail(format!("The panic was raised at {file}:{line}."))
    .hint("This is a bug in the extension; please report it.")
}
