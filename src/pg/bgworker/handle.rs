//! What the process that launched a worker knows of it (postmaster/bgworker.c).

use super::super::error::Result;
use super::super::latch::{self, WaitEvent, Woken};
use super::super::time::Deadline;
use super::super::{guard, interrupt};
use crate::pg_sys;

/// A launched worker (`BackgroundWorkerHandle`). Dropping it does nothing to the worker.
pub struct Handle(*mut pg_sys::BackgroundWorkerHandle);

/// How far a launched worker is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Started {
    /// The postmaster has not started it yet.
    NotYet,
    /// It runs under this process id.
    Running(i32),
    /// It has ended, or could not be started. One that is restarted ([`Restart`](super::Restart)) may come again.
    Stopped,
    /// The postmaster has died; an answer of the functions that wait.
    PostmasterDied,
}

impl Handle {
    /// # Safety
    /// `handle` is a palloc'ed handle that nobody else frees, in a context that outlives this value.
    pub(super) unsafe fn new(handle: *mut pg_sys::BackgroundWorkerHandle) -> Self {
        Self(handle)
    }

    /// How far it is (`GetBackgroundWorkerPid`).
    ///
    /// # Errors
    /// None known; the call is guarded like all.
    pub fn state(&self) -> Result<Started> {
        let handle = self.0;
        let mut pid = 0;
        let out = &raw mut pid;
        // SAFETY: a live handle and a live local.
        let status = guard(|| unsafe { pg_sys::GetBackgroundWorkerPid(handle, out) })?;
        Ok(started(status, pid))
    }

    /// Waits until it has started or could not be, which is told at once; at most so many milliseconds (`None`: for ever), then
    /// the answer is [`Started::NotYet`]. As `WaitForBackgroundWorkerStartup` (postmaster/bgworker.c), which knows no time-out.
    ///
    /// # Errors
    /// An interrupt that is served meanwhile.
    pub fn wait_for_startup(&self, timeout_ms: Option<i64>) -> Result<Started> {
        self.wait_while(timeout_ms, |state| state == Started::NotYet)
    }

    /// Waits until it has ended, at most so many milliseconds (`None`: for ever); then the answer is what it is instead. As
    /// `WaitForBackgroundWorkerShutdown` (postmaster/bgworker.c), which knows no time-out.
    ///
    /// # Errors
    /// An interrupt that is served meanwhile.
    pub fn wait_for_shutdown(&self, timeout_ms: Option<i64>) -> Result<Started> {
        self.wait_while(timeout_ms, |state| {
            matches!(state, Started::NotYet | Started::Running(_))
        })
    }

    /// The postmaster sets our latch at each change.
    fn wait_while(&self, timeout_ms: Option<i64>, waits: fn(Started) -> bool) -> Result<Started> {
        let deadline = Deadline::after(timeout_ms);
        loop {
            interrupt::check()?;
            let state = self.state()?;
            if !waits(state) {
                return Ok(state);
            }
            match latch::wait_or_death(WaitEvent::EXTENSION, deadline.left_ms())? {
                Woken::PostmasterDied => return Ok(Started::PostmasterDied),
                Woken::TimedOut if deadline.is_over() => return self.state(),
                _ => {}
            }
        }
    }

    /// Asks the postmaster to end it, and not to start it any more.
    ///
    /// # Errors
    /// None known; the call is guarded like all.
    pub fn terminate(&self) -> Result<()> {
        let handle = self.0;
        // SAFETY: a live handle.
        guard(|| unsafe { pg_sys::TerminateBackgroundWorker(handle) })
    }
}

fn started(status: pg_sys::BgwHandleStatus, pid: i32) -> Started {
    match status {
        pg_sys::BGWH_STARTED => Started::Running(pid),
        pg_sys::BGWH_NOT_YET_STARTED => Started::NotYet,
        pg_sys::BGWH_POSTMASTER_DIED => Started::PostmasterDied,
        _ => Started::Stopped,
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let handle = self.0;
        // SAFETY: ours, freed once. The worker itself does not mind.
        let _ = guard(|| unsafe { pg_sys::pfree(handle.cast()) });
    }
}
