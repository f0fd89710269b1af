//! Memory contexts.

use super::error::{Result, c_string};
use super::guard;
use crate::pg_sys;

/// A memory context of our own; deleted, with all that was allocated in it, when dropped.
#[must_use = "dropping it deletes the context"]
pub struct MemoryContext {
    context: pg_sys::MemoryContext,
    /// The server keeps the pointer: the name lives as long as the context.
    _name: std::ffi::CString,
}

impl MemoryContext {
    /// A new context under `TopMemoryContext`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(name: &str) -> Result<Self> {
        let name = c_string(name);
        let label = name.as_ptr();
        // SAFETY: the parent always exists; the name outlives the context. The sizes are
        // ALLOCSET_DEFAULT_SIZES (utils/memutils.h).
        let context = guard(|| unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                label,
                0,
                8 * 1024,
                8 * 1024 * 1024,
            )
        })?;
        Ok(Self {
            context,
            _name: name,
        })
    }

    /// The server's handle of it.
    pub fn as_ptr(&self) -> pg_sys::MemoryContext {
        self.context
    }

    /// Makes it the current one until the result is dropped.
    pub fn enter(&self) -> Entered<'_> {
        // SAFETY: reading and writing the global is what MemoryContextSwitchTo does.
        let previous = unsafe {
            let previous = pg_sys::CurrentMemoryContext;
            pg_sys::CurrentMemoryContext = self.context;
            previous
        };
        Entered {
            previous,
            _context: self,
        }
    }
}

impl Drop for MemoryContext {
    fn drop(&mut self) {
        let context = self.context;
        // An error here would leave the context to the server: a leak, nothing worse.
        // SAFETY: ours, and not current: `Entered` borrows it.
        let _ = guard(|| unsafe { pg_sys::MemoryContextDelete(context) });
    }
}

/// See [`MemoryContext::enter`]. Dropping it makes the previous context current again.
#[must_use = "dropping it leaves the context at once"]
pub struct Entered<'a> {
    previous: pg_sys::MemoryContext,
    _context: &'a MemoryContext,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // SAFETY: the previous context was current when this one was entered and outlives it.
        unsafe { pg_sys::CurrentMemoryContext = self.previous };
    }
}
