//! Latches: how one process wakes another.

use super::error::Result;
use super::guard;
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

/// Waits until this process's latch is set, and resets it, or until so many milliseconds are over (`None`:
/// for ever). True if it was the latch. The process exits if the postmaster dies.
///
/// # Errors
/// An interrupt that is served meanwhile.
pub fn wait(timeout_ms: Option<i64>) -> Result<bool> {
    let timeout = timeout_ms.map_or(-1, |ms| ms.clamp(0, i64::from(i32::MAX)));
    // SAFETY: no pointers.
    guard(|| unsafe { pg_sys::pgbq_wait(timeout as _, pg_sys::PG_WAIT_EXTENSION) })
        .map(|set| set != 0)
}
