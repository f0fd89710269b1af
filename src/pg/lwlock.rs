//! Lightweight locks.

use std::marker::PhantomData;

use super::error::Result;
use super::guard;
use crate::pg_sys;

/// A lock in shared memory.
#[derive(Clone, Copy)]
pub struct LwLock(*mut pg_sys::LWLock);

impl LwLock {
    /// Asks for one lock under this name; in the shmem request phase of the postmaster.
    ///
    /// # Errors
    /// Asked too late.
    pub fn request(name: &'static std::ffi::CStr) -> Result<()> {
        let name = name.as_ptr();
        // SAFETY: a terminated string that lives for ever.
        guard(|| unsafe { pg_sys::RequestNamedLWLockTranche(name, 1) })
    }

    /// The lock that was asked for.
    ///
    /// # Errors
    /// It was not.
    pub fn named(name: &'static std::ffi::CStr) -> Result<Self> {
        let name = name.as_ptr();
        // SAFETY: a terminated string that lives for ever.
        let padded = guard(|| unsafe { pg_sys::GetNamedLWLockTranche(name) })?;
        Ok(Self(padded.cast()))
    }

    /// Takes the lock exclusively; interrupts are held off until the guard is dropped.
    ///
    /// # Errors
    /// Too many locks held.
    pub fn exclusive(self) -> Result<Held> {
        let lock = self.0;
        // SAFETY: a lock of the tranche, which lives as long as the server.
        guard(|| unsafe { pg_sys::LWLockAcquire(lock, pg_sys::LW_EXCLUSIVE) })?;
        Ok(Held {
            lock,
            _not_send: PhantomData,
        })
    }
}

/// See [`LwLock::exclusive`]. Dropping it releases the lock.
#[must_use = "dropping it releases the lock"]
pub struct Held {
    lock: *mut pg_sys::LWLock,
    _not_send: PhantomData<*mut ()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let lock = self.lock;
        // An abort in between (LWLockReleaseAll) has released it already.
        // SAFETY: only looks at this process's list of held locks.
        if unsafe { pg_sys::LWLockHeldByMe(lock) } {
            // SAFETY: held by us, so it does not raise.
            unsafe { pg_sys::LWLockRelease(lock) };
        }
    }
}
