//! Points in time.

use std::time::{Duration, Instant};

use crate::pg_sys;

/// Microseconds since 2000-01-01 00:00 UTC (`TimestampTz`, datatype/timestamp.h).
pub type TimestampTz = i64;

/// The wall clock now.
pub fn now() -> TimestampTz {
    // SAFETY: reads the clock; does not raise.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// Until when something may take; a clock that is set back or forth does not matter.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// In so many milliseconds from now; `None` is never.
    pub fn after(timeout_ms: Option<i64>) -> Self {
        let ms = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        Self(timeout_ms.and_then(|timeout| Instant::now().checked_add(ms(timeout))))
    }

    /// The milliseconds that are left, rounded up; `None` is for ever.
    pub fn left_ms(self) -> Option<i64> {
        let left = self.0?.saturating_duration_since(Instant::now());
        Some(i64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i64::MAX))
    }

    /// Whether it has passed.
    pub fn is_over(self) -> bool {
        self.left_ms() == Some(0)
    }
}

/// Notices that the wall clock was set. Points in time that were computed from it, "in ten seconds" say, are then wrong by
/// as much; those that somebody named, "at noon", are not.
#[derive(Clone, Copy, Debug)]
pub struct ClockWatch {
    wall: TimestampTz,
    steady: Instant,
}

/// Less is taken for the adjustments that keep a clock right, and for the pauses of a busy machine.
const STEP_MICROSECONDS: i64 = 1_000_000;

impl ClockWatch {
    /// From now on.
    pub fn begin() -> Self {
        let (wall, steady) = both_clocks();
        Self { wall, steady }
    }

    /// By how many microseconds the clock was set forth (or back, if negative) since this was asked last; `None` if it was not.
    pub fn step(&mut self) -> Option<i64> {
        let before = std::mem::replace(self, Self::begin());
        let passed = self.steady.duration_since(before.steady);
        step_of(self.wall - before.wall, passed)
    }
}

fn step_of(passed_on_the_wall: i64, passed: Duration) -> Option<i64> {
    let passed = i64::try_from(passed.as_micros()).unwrap_or(i64::MAX);
    let step = passed_on_the_wall.saturating_sub(passed);
    (step.saturating_abs() > STEP_MICROSECONDS).then_some(step)
}

/// What they show at the same moment: asked again, a few times, if this process was kept waiting in between.
fn both_clocks() -> (TimestampTz, Instant) {
    let mut before = Instant::now();
    for _ in 0..10 {
        let wall = now();
        let after = Instant::now();
        if after.duration_since(before) < Duration::from_millis(100) {
            return (wall, after);
        }
        before = after;
    }
    (now(), before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_what_the_wall_clock_is_ahead_or_behind() {
        let minute = Duration::from_secs(60);
        assert_eq!(step_of(60_000_000, minute), None);
        assert_eq!(step_of(60_900_000, minute), None);
        assert_eq!(step_of(59_100_000, minute), None);
        assert_eq!(step_of(3_660_000_000, minute), Some(3_600_000_000));
        assert_eq!(step_of(-3_540_000_000, minute), Some(-3_600_000_000));
        assert!(step_of(i64::MIN, minute).is_some() && step_of(i64::MAX, minute).is_some());
    }

    #[test]
    fn a_deadline_passes_once_and_never_is_never() {
        assert!(Deadline::after(Some(0)).is_over());
        assert!(Deadline::after(Some(-1)).is_over());
        let later = Deadline::after(Some(60_000));
        assert!(!later.is_over() && later.left_ms().is_some_and(|ms| ms > 50_000));
        assert_eq!(Deadline::after(None).left_ms(), None);
        assert!(!Deadline::after(None).is_over());
    }
}
