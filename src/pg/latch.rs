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

    /// The process whose latch it is now; 0 if it is nobody's. (A process gives its latch up when it has run its exit callbacks; one that
    /// could not takes the server through a crash restart.)
    pub(super) fn owner(self) -> i32 {
        if self.0.is_null() {
            return 0;
        }
        // SAFETY: the invariant; a number that the owner writes when it begins and when it ends.
        unsafe { (&raw const (*self.0).owner_pid).read_volatile() }
    }

    /// Wakes the owner. Does not raise: it may be called after a commit and from exit callbacks.
    pub fn set(self) {
        if !self.0.is_null() {
            // SAFETY: the invariant.
            unsafe { pg_sys::SetLatch(self.0) };
        }
    }
}

/// What a process waits for, as pg_stat_activity shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WaitEvent(u32);

impl WaitEvent {
    /// What extensions wait for: `Extension`.
    pub const EXTENSION: Self = Self(pg_sys::PG_WAIT_EXTENSION);

    /// An event of this name, as far as the server knows such (17 and later); else [`EXTENSION`](Self::EXTENSION).
    ///
    /// # Errors
    /// Too many names.
    pub fn named(name: &'static std::ffi::CStr) -> Result<Self> {
        let name = name.as_ptr();
        // SAFETY: a terminated static.
        guard(|| unsafe { pg_sys::pgbq_wait_event(name) }).map(Self)
    }

    pub(super) fn number(self) -> u32 {
        self.0
    }
}

/// Why [`wait_or_death`] has returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// The latch was set.
    Latch,
    /// The time is over.
    TimedOut,
    /// The postmaster is gone.
    PostmasterDied,
}

/// Waits until this process's latch is set, and resets it, or until so many milliseconds are over (`None`:
/// for ever). True if it was the latch. The process exits if the postmaster dies.
///
/// There is one latch for all that this process waits for: who waits for a lock, a handle or a condition resets it, too. So look what
/// there is to do after all of those, right before the wait.
///
/// # Errors
/// None known: interrupts set the latch, and are served by [`interrupt::check`](super::interrupt::check).
pub fn wait(timeout_ms: Option<i64>) -> Result<bool> {
    wait_for(WaitEvent::EXTENSION, timeout_ms)
}

/// As [`wait`], for something that has a name.
///
/// # Errors
/// As [`wait`].
pub fn wait_for(event: WaitEvent, timeout_ms: Option<i64>) -> Result<bool> {
    let timeout = timeout_of(timeout_ms);
    // SAFETY: no pointers.
    guard(|| unsafe { pg_sys::pgbq_wait(timeout as _, event.0) }).map(|set| set != 0)
}

/// As [`wait`], but the postmaster's death is an answer (`WL_POSTMASTER_DEATH`, storage/latch.h).
///
/// # Errors
/// As [`wait`].
pub fn wait_or_death(event: WaitEvent, timeout_ms: Option<i64>) -> Result<Woken> {
    let timeout = timeout_of(timeout_ms);
    // SAFETY: no pointers.
    let woken = guard(|| unsafe { pg_sys::pgbq_wait_or_death(timeout as _, event.0) })?;
    Ok(match woken {
        pg_sys::PGBQ_POSTMASTER_DIED => Woken::PostmasterDied,
        pg_sys::PGBQ_TIMED_OUT => Woken::TimedOut,
        _ => Woken::Latch,
    })
}

fn timeout_of(timeout_ms: Option<i64>) -> i64 {
    timeout_ms.map_or(-1, |ms| ms.clamp(0, i64::from(i32::MAX)))
}
