//! Active snapshots.

use super::error::Result;
use super::guard;
use crate::pg_sys;

/// An active snapshot; popped when dropped.
#[must_use = "dropping it pops the snapshot"]
pub struct ActiveSnapshot(());

impl ActiveSnapshot {
    /// Pushes the transaction's snapshot: a new one at READ COMMITTED.
    ///
    /// # Errors
    /// No transaction, out of memory.
    pub fn push() -> Result<Self> {
        // SAFETY: two calls, but the first only returns a static's address that the second copies.
        let snapshot = guard(|| unsafe { pg_sys::GetTransactionSnapshot() })?;
        // SAFETY: the snapshot just taken.
        guard(|| unsafe { pg_sys::PushActiveSnapshot(snapshot) })?;
        Ok(Self(()))
    }

    /// Whether any snapshot is active.
    pub fn is_set() -> bool {
        // SAFETY: reads a variable.
        unsafe { pg_sys::ActiveSnapshotSet() }
    }
}

impl Drop for ActiveSnapshot {
    fn drop(&mut self) {
        // After an error the abort pops it; popping does not raise while it is there.
        // SAFETY: pushed by us and, as guards are dropped in order, the topmost.
        let _ = guard(|| unsafe {
            if pg_sys::ActiveSnapshotSet() {
                pg_sys::PopActiveSnapshot();
            }
        });
    }
}
