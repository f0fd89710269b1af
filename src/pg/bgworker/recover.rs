//! The main loop with PostgresMain's error recovery around it.

use std::ffi::c_void;

use super::super::boundary;
use super::super::error::Result;
use super::super::mem::MemoryContext;
use crate::pg_sys;

/// What a round of the main loop says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Go on.
    Again,
    /// Leave the loop.
    Leave,
}

/// A worker's own part of the main loop.
pub trait MainLoop {
    /// One round. Its memory context is emptied before each.
    ///
    /// # Errors
    /// Are logged; the transaction is aborted, and after [`recovered`](Self::recovered) the loop goes on.
    fn step(&mut self) -> Result<Next>;

    /// After an error that left `step`: the worker's own part of the recovery.
    ///
    /// # Errors
    /// End the process.
    fn recovered(&mut self) -> Result<()>;
}

/// See [`Worker::run`](super::Worker::run).
pub(super) fn run<M: MainLoop>(context: &MemoryContext, main: &mut M) {
    extern "C-unwind" fn step<M: MainLoop>(arg: *mut c_void) -> bool {
        // SAFETY: `arg` is `main` below, which outlives the loop and is used by one callback at a time.
        let main = unsafe { &mut *arg.cast::<M>() };
        boundary(|| Ok(main.step()? == Next::Again))
    }
    extern "C-unwind" fn recovered<M: MainLoop>(arg: *mut c_void) {
        // SAFETY: as above.
        let main = unsafe { &mut *arg.cast::<M>() };
        boundary(|| main.recovered());
    }
    // SAFETY: callbacks of the right types; an error in them jumps to the loop's own handler, over frames that own nothing.
    unsafe {
        pg_sys::pgbq_error_loop(
            context.as_ptr(),
            Some(step::<M>),
            Some(recovered::<M>),
            std::ptr::from_mut(main).cast(),
        );
    }
}
