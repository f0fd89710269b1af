//! Points in time.

use crate::pg_sys;

/// Microseconds since 2000-01-01 00:00 UTC (`TimestampTz`, datatype/timestamp.h).
pub type TimestampTz = i64;

/// The wall clock now.
pub fn now() -> TimestampTz {
    // SAFETY: reads the clock; does not raise.
    unsafe { pg_sys::GetCurrentTimestamp() }
}
