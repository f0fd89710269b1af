//! Between the launcher and the workers: what it plans with (`core::plan`), and who leaves for others as it has planned.

use std::collections::HashSet;

use super::{Key, Registry};
use crate::core::plan;
use crate::pg::Oid;
use crate::pg::bgworker::pool::SlotState;

/// What a busy worker's place is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    /// For nothing: the limit has been lowered.
    FewerWorkers,
    /// For a role that has no worker.
    ForRole,
    /// For a role with work of better priority than its workers can do.
    ForBetter,
}

impl Registry {
    /// What the launcher plans with.
    pub fn view(&mut self) -> (Vec<plan::Worker>, Vec<plan::Demand>, usize) {
        let workers = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| !slot.key.is_keeper())
            .filter_map(|(i, slot)| {
                let phase = match slot.state {
                    SlotState::Registered => plan::Phase::Starting,
                    SlotState::Attached if slot.payload.idle => plan::Phase::Idle,
                    SlotState::Attached => plan::Phase::Busy,
                    SlotState::Free | SlotState::Ended | SlotState::Orphaned => return None,
                };
                Some(plan::Worker {
                    slot: i,
                    database: slot.key.database,
                    role: slot.key.role,
                    phase,
                    leaving: slot.payload.leaving,
                    stuck_from: (slot.payload.task != 0)
                        .then_some(slot.payload.changed + plan::STINT_MICROSECONDS),
                })
            })
            .collect();
        let orphans = self
            .slots
            .iter()
            .filter(|slot| slot.state == SlotState::Orphaned)
            .count();
        let mut open: HashSet<Oid> = self
            .databases()
            .iter()
            .filter(|database| database.recovered)
            .map(|database| database.oid)
            .collect();
        open.retain(|&oid| self.is_open(oid));
        let demands = self
            .demands()
            .iter()
            .enumerate()
            .filter(|(_, demand)| open.contains(&demand.key.database))
            .map(|(index, demand)| plan::Demand {
                index,
                database: demand.key.database,
                role: demand.key.role,
                priority: demand.priority,
                order: demand.order,
                due: demand.due,
                more: demand.more,
            })
            .collect();
        (workers, demands, orphans)
    }

    /// Why a busy worker has to leave its place to others before its next task, if it has to: there are too many workers; a role has none, and
    /// its priority is better or as good and the worker's `stint` is over; or others of better priority have more to do. Priorities count
    /// within a database; databases take turns.
    fn room_wanted(&self, database: Oid, priority: i32, stint_is_over: bool) -> Option<Wanted> {
        let header = &self.header;
        if header.surplus > 0 {
            return Some(Wanted::FewerWorkers);
        }
        let (for_database, for_priority) = header.room_for;
        let equal = for_database != database || priority == for_priority;
        let better = for_database == database && priority > for_priority;
        if header.room > 0 && (better || equal && stint_is_over) {
            return Some(Wanted::ForRole);
        }
        let (for_database, for_priority) = header.better;
        (for_database == database && priority > for_priority).then_some(Wanted::ForBetter)
    }

    /// Whether [`must_make_room`](Registry::must_make_room) would say no; counts nothing.
    pub fn may_go_on(&self, database: Oid, priority: i32, stint_is_over: bool) -> bool {
        self.room_wanted(database, priority, stint_is_over)
            .is_none()
    }

    /// Whether a busy worker has to leave its place to others before its next task. Each call that says yes counts.
    pub fn must_make_room(&mut self, database: Oid, priority: i32, stint_is_over: bool) -> bool {
        let wanted = self.room_wanted(database, priority, stint_is_over);
        let header = &mut *self.header;
        match wanted {
            None => return false,
            Some(Wanted::FewerWorkers) => header.surplus -= 1,
            Some(Wanted::ForRole) => header.room -= 1,
            Some(Wanted::ForBetter) => header.better = (0, 0),
        }
        true
    }

    /// Whether a worker has to leave instead of becoming idle, because others than its own `key` could use the place.
    /// Each call that says yes counts.
    pub fn must_not_idle(&mut self, key: Key) -> bool {
        let for_more = self.header.idle_room > 0
            && self
                .demands()
                .iter()
                .any(|demand| demand.more && demand.key != key);
        let asked = if self.header.surplus > 0 {
            &mut self.header.surplus
        } else if self.header.room > 0 {
            &mut self.header.room
        } else if for_more {
            &mut self.header.idle_room
        } else {
            return false;
        };
        *asked -= 1;
        true
    }
}
