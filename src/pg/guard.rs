//! One call into the server, with an ERROR turned into a [`Result`].

use std::ffi::c_void;
use std::mem::{ManuallyDrop, MaybeUninit};

use super::error::{Error, Result};
use super::plain::assert_plain;
use crate::pg_sys;

struct Call<F, R> {
    body: ManuallyDrop<F>,
    result: MaybeUninit<R>,
}

/// Runs `body`, which holds a single call into the server; an ERROR that it raises becomes the `Err`.
///
/// `body` may neither own nor create anything that needs `Drop` (what it captures and returns is refused at
/// compile time): the error jumps over it. It must not panic: a panic cannot pass the C frame below it.
///
/// Mirrors `PG_TRY` (utils/elog.h). Cost: 9–14 ns, about 1 µs when an error is caught.
///
/// # Errors
/// What the server raised. The caller returns it up to the [`boundary`](super::boundary) or aborts the
/// transaction.
pub fn guard<F, R>(body: F) -> Result<R>
where
    F: FnOnce() -> R,
{
    const { assert_plain::<F, R>() };

    extern "C-unwind" fn run<F: FnOnce() -> R, R>(arg: *mut c_void) {
        // SAFETY: `arg` is the `Call` below, which outlives the call and which nothing else looks at meanwhile.
        let call = unsafe { &mut *arg.cast::<Call<F, R>>() };
        // SAFETY: taken once only, here.
        let body = unsafe { ManuallyDrop::take(&mut call.body) };
        call.result.write(body());
    }

    let mut call = Call::<F, R> {
        body: ManuallyDrop::new(body),
        result: MaybeUninit::uninit(),
    };
    // SAFETY: pgbq_guard calls `run` once with the pointer given, and catches every ERROR.
    let error = unsafe { pg_sys::pgbq_guard(Some(run::<F, R>), (&raw mut call).cast()) };
    if error.is_null() {
        // SAFETY: no error: `run` came to its end and wrote the result.
        Ok(unsafe { call.result.assume_init() })
    } else {
        // SAFETY: a non-null answer is an error that is now ours.
        Err(unsafe { Error::take(error) })
    }
}
