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

#[cfg(test)]
mod tests {
    use super::*;

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
