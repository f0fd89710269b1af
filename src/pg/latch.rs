//! Latches: how one process wakes another.

use std::ffi::CStr;

use super::error::Result;
use super::guard;
use super::local::ProcessLocal;
use crate::pg_sys;

/// The latch of some process, as an address in shared memory; null is nobody's.
///
/// # Invariants
/// It is null or the `procLatch` of a PGPROC, which is there as long as the server: setting it after its owner
/// has gone wakes nobody or a stranger, which must cope with that anyway.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct LatchRef(*mut pg_sys::Latch);

impl LatchRef {
    /// Nobody's.
    pub const NOBODY: Self = Self(std::ptr::null_mut());

    /// This process's own, once it has its PGPROC.
    pub fn mine() -> Self {
        // SAFETY: reads a global.
        Self(unsafe { pg_sys::MyLatch })
    }

    /// Wakes the owner. Does not raise: it may be called after a commit and from exit callbacks.
    pub fn set(self) {
        if !self.0.is_null() {
            // SAFETY: the invariant.
            unsafe { pg_sys::SetLatch(self.0) };
        }
    }
}

/// What pg_stat_activity shows while a process waits; before PostgreSQL 17 all are `Extension`.
pub struct WaitEvent {
    name: &'static CStr,
    /// 0 until this process has asked for it.
    number: ProcessLocal<u32>,
}

impl WaitEvent {
    /// One of this name, which should be CamelCase, as the server's own.
    pub const fn new(name: &'static CStr) -> Self {
        Self {
            name,
            number: ProcessLocal::new(0),
        }
    }

    /// [`wait`], shown as this.
    ///
    /// # Errors
    /// An interrupt that is served meanwhile; the server has too many wait events.
    pub fn wait(&self, timeout_ms: Option<i64>) -> Result<bool> {
        if self.number.get() == 0 {
            let name = self.name.as_ptr();
            // SAFETY: a terminated static.
            self.number
                .set(guard(|| unsafe { pg_sys::pgbq_wait_event(name) })?);
        }
        wait_as(timeout_ms, self.number.get())
    }
}

/// Waits until this process's latch is set, and resets it, or until so many milliseconds are over (`None`:
/// for ever). True if it was the latch. The process exits if the postmaster dies.
///
/// # Errors
/// An interrupt that is served meanwhile.
pub fn wait(timeout_ms: Option<i64>) -> Result<bool> {
    wait_as(timeout_ms, pg_sys::PG_WAIT_EXTENSION)
}

fn wait_as(timeout_ms: Option<i64>, event: u32) -> Result<bool> {
    let timeout = timeout_ms.map_or(-1, |ms| ms.clamp(0, i64::from(i32::MAX)));
    // SAFETY: no pointers.
    guard(|| unsafe { pg_sys::pgbq_wait(timeout as _, event) }).map(|set| set != 0)
}
