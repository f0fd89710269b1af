//! Condition variables: waiting until something in shared memory has changed (storage/condition_variable.h).

use super::error::Result;
use super::guard;
use super::latch::WaitEvent;
use super::time::Deadline;
use crate::pg_sys;

/// Room for a condition variable in shared memory.
pub type Room = pg_sys::ConditionVariable;

/// A condition variable in shared memory.
#[derive(Clone, Copy)]
pub struct Condition(*mut Room);

impl Condition {
    /// The one at an address.
    ///
    /// # Safety
    /// `room` is in shared memory, as long as the server, and was initialized by [`Condition::initialize`].
    pub unsafe fn at(room: *mut Room) -> Self {
        Self(room)
    }

    /// Makes one, in memory that no other process uses yet.
    ///
    /// # Safety
    /// `room` is aligned, and there for writing.
    pub unsafe fn initialize(room: *mut Room) {
        // SAFETY: the caller's promise; does not raise.
        unsafe { pg_sys::ConditionVariableInit(room) }
    }

    /// Wakes all who wait.
    ///
    /// # Errors
    /// None known; the call is guarded like all.
    pub fn broadcast(self) -> Result<()> {
        let room = self.0;
        // SAFETY: the promise of `at`.
        guard(|| unsafe { pg_sys::ConditionVariableBroadcast(room) })
    }

    /// Waits until `holds` answers true, asked now and after each broadcast; false if so many milliseconds (`None`: for ever)
    /// are over before. The process exits if the postmaster dies.
    ///
    /// # Errors
    /// Of `holds`; an interrupt that is served meanwhile.
    pub fn wait(
        self,
        event: WaitEvent,
        timeout_ms: Option<i64>,
        mut holds: impl FnMut() -> Result<bool>,
    ) -> Result<bool> {
        let deadline = Deadline::after(timeout_ms);
        let room = self.0;
        // SAFETY: the promise of `at`.
        guard(|| unsafe { pg_sys::ConditionVariablePrepareToSleep(room) })?;
        let _sleep = Sleep;
        while !holds()? {
            if deadline.is_over() {
                return Ok(false);
            }
            let left = deadline.left_ms().unwrap_or(-1).min(i64::from(i32::MAX));
            let event = event.number();
            // SAFETY: as above. Whether it timed out does not matter: the deadline is asked.
            guard(|| unsafe {
                let _ = pg_sys::ConditionVariableTimedSleep(room, left as _, event);
            })?;
        }
        Ok(true)
    }
}

/// Takes this process off the list of those who wait, however the wait ends.
struct Sleep;

impl Drop for Sleep {
    fn drop(&mut self) {
        // SAFETY: no arguments; harmless where nobody sleeps.
        let _ = guard(|| unsafe {
            #[allow(clippy::let_unit_value, reason = "a bool from 17 on")]
            let _ = pg_sys::ConditionVariableCancelSleep();
        });
    }
}
