//! Tasks that come, from whoever enqueues them or back from a worker: who learns of them. And what is forgotten when their table is gone.

use super::{Key, Registry, UNTIL_TOLD};
use crate::core::ready::{Place, Queued};
use crate::pg::Oid;
use crate::pg::bgworker::pool::{self, SlotState};
use crate::pg::time::TimestampTz;
use crate::queue::store::Candidate;

impl Registry {
    /// There is work for this key: remembers it, and wakes up to `count` idle workers. True if the launcher has to do
    /// the rest: the workers that are there may be busy for hours.
    pub fn offer(&mut self, key: Key, place: Place, count: u32) -> bool {
        if let Some(shelf) = self.shelf(key) {
            shelf.ready.arrive(place);
        }
        self.announce(key, place.priority, count)
    }

    /// The same for a single new task of the main line.
    pub fn offer_one(&mut self, key: Key, task: Candidate) -> bool {
        if !self.shelf(key).is_some_and(|shelf| shelf.ready.put(task)) {
            return self.offer(key, task.place(), 1);
        }
        let before = self.demand(key).map(|demand| demand.bumps);
        let launcher = self.announce(key, task.priority, 1);
        let bumps = self.demand(key).map(|demand| demand.bumps);
        // whoever takes it has missed no more than whoever looked last
        if let (Some(bumps), Some(shelf)) = (bumps, self.shelf(key))
            && before.is_none_or(|before| before == shelf.sight.bumps)
        {
            shelf.sight.bumps = bumps;
        }
        launcher
    }

    /// A task of this key waits for this time, or a later one: has a worker look then. True if the launcher has to know.
    pub fn offer_later(
        &mut self,
        key: Key,
        priority: i32,
        due: TimestampTz,
        now: TimestampTz,
    ) -> bool {
        if let Some(shelf) = self.shelf(key) {
            shelf.schedule.arrive(due);
            shelf.sight.next_due = shelf.sight.next_due.min(due);
        }
        if due == UNTIL_TOLD {
            return false;
        }
        let before = match self.demand(key) {
            // it is looked for anyway: who does that finds out when to come again
            Some(demand) if demand.due <= now || demand.failures > 0 => 0,
            Some(demand) => demand.due,
            None => UNTIL_TOLD,
        };
        if before == 0 || due <= now {
            return self.announce(key, priority, 1);
        }
        if self.demand(key).is_none() {
            self.add_demand(key, priority);
        }
        let order = self.next_order();
        if let Some(demand) = self.demand(key) {
            demand.bumps = order;
            demand.priority = demand.priority.min(priority);
            demand.due = before.min(due);
            // nobody may be idle any more by then
            demand.more = true;
        }
        due < before
    }

    /// Tasks of this key, none before this place, were let in from its schedule by a worker that is about to look. Before that
    /// [`Demand::bumps`](super::Demand::bumps) was `seen`; returns what it has to be compared with after the look.
    pub fn let_in(&mut self, key: Key, place: Place, seen: u64) -> u64 {
        let bumps = |registry: &mut Self| registry.demand(key).map_or(0, |demand| demand.bumps);
        let missed = bumps(self) != seen;
        if let Some(shelf) = self.shelf(key) {
            shelf.ready.arrive(place);
        }
        self.add_demand(key, place.priority);
        if missed { seen } else { bumps(self) }
    }

    fn announce(&mut self, key: Key, priority: i32, count: u32) -> bool {
        self.add_demand(key, priority);
        if self.wake_idle(key, count) {
            return false;
        }
        let busy = self
            .slots
            .iter()
            .any(|slot| slot.state == SlotState::Attached && slot.key == key);
        let Some(demand) = self.demand(key) else {
            return true;
        };
        demand.more |= busy;
        !demand.is_planned()
    }

    /// A task of this key that was taken waits (again).
    pub fn arrive(&mut self, key: Key, place: Place) {
        if let Some(shelf) = self.shelf(key) {
            shelf.ready.arrive(place);
            shelf.sight.passed_over = true;
        }
        self.add_demand(key, place.priority);
    }

    /// A worker of this key has ended: what it may have been woken for is another's.
    pub fn inherit(&mut self, key: Key) {
        if let Some(demand) = self.demand(key) {
            demand.more = true;
        }
        // it may have been looking
        self.wake_waiting(key);
    }

    /// A task of this key may wait from now on for this time, or a later one.
    pub fn schedule(&mut self, key: Key, due: TimestampTz) {
        if let Some(shelf) = self.shelf(key) {
            shelf.schedule.arrive(due);
        }
    }

    /// Something may have come for this key, anywhere in its queue and its schedule.
    pub fn look_everywhere(&mut self, key: Key) {
        if let Some(shelf) = self.shelf(key) {
            shelf.ready.arrive(Place::FIRST);
            shelf.schedule.arrive(TimestampTz::MIN);
        }
    }

    /// Forgets what there was to do in a database when [`Header::order`](super::Header::order) was `seen`, with what its workers have left: its
    /// table is gone.
    pub fn forget_work(&mut self, database: Oid, seen: u64) {
        self.remove_demands(|demand| demand.key.database == database && demand.bumps <= seen);
        for (key, shelf) in self.shelf_keys.iter().zip(self.shelves.iter_mut()) {
            if key.database == database {
                shelf.ready.reset();
            }
        }
        for slot in self.slots.iter_mut() {
            if slot.state == SlotState::Orphaned && slot.key.database == database {
                pool::release(slot);
            }
        }
    }
}
