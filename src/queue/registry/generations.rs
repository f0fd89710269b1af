//! Whether a session would be another after a new login: `ALTER ROLE … SET` and `ALTER DATABASE … SET` count for sessions that begin
//! later, and a worker's session lasts for many tasks.

use super::Key;
use crate::pg::Oid;

/// Counters of changes by `ALTER ROLE … SET` and `ALTER DATABASE … SET`, in buckets by role and by database, so
/// that a role that changes its own settings does not send everybody's workers away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Generations([u32; 64]);

impl Generations {
    /// No change yet.
    pub(super) const fn new() -> Self {
        Self([0; 64])
    }

    fn bucket(oid: Oid, of_database: bool) -> usize {
        (oid % 32) as usize + if of_database { 32 } else { 0 }
    }

    /// The buckets, as bits, that a change for this role in this database (0: all) belongs to.
    pub fn buckets(role: Oid, database: Oid) -> u64 {
        match (role, database) {
            (0, 0) => u64::MAX,
            (0, database) => 1 << Self::bucket(database, true),
            (role, _) => 1 << Self::bucket(role, false),
        }
    }

    /// Counts a change in these buckets.
    pub fn advance(&mut self, buckets: u64) {
        for (i, counter) in self.0.iter_mut().enumerate() {
            if buckets & (1 << i) != 0 {
                *counter = counter.wrapping_add(1);
            }
        }
    }

    /// What changes whenever a session of this role in this database would be another after a new login.
    pub fn of(&self, key: Key) -> (u32, u32) {
        (
            self.0[Self::bucket(key.role, false)],
            self.0[Self::bucket(key.database, true)],
        )
    }
}
