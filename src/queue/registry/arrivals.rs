//! Tasks that come, from whoever enqueues them or back from a worker: who learns of them. And what is forgotten when their table is gone.

use super::{Key, Registry};
use crate::core::ready::Place;
use crate::pg::Oid;
use crate::pg::bgworker::pool::{self, SlotState};

impl Registry {
    /// There is work for this key: remembers it, and wakes up to `count` idle workers. True if the launcher has to do
    /// the rest: the workers that are there may be busy for hours.
    pub fn offer(&mut self, key: Key, place: Place, count: u32) -> bool {
        self.add_demand(key, place.priority);
        if let Some(shelf) = self.shelf(key) {
            shelf.ready.arrive(place);
        }
        if self.wake_idle(key, count) {
            return false;
        }
        let busy = self
            .slots
            .iter()
            .any(|slot| slot.state == SlotState::Attached && slot.key == key);
        if let Some(demand) = self.demand(key) {
            demand.more |= busy;
        }
        true
    }

    /// A task of this key that was taken waits (again).
    pub fn arrive(&mut self, key: Key, place: Place) {
        if let Some(shelf) = self.shelf(key) {
            shelf.ready.arrive(place);
            shelf.sight.passed_over = true;
        }
        let order = self.next_order();
        if let Some(demand) = self.demand(key) {
            demand.bumps = order;
        }
    }

    /// Forgets what there was to do in a database when [`Header::order`](super::Header::order) was `seen`, with what its workers have left: its
    /// table is gone.
    pub fn forget_work(&mut self, database: Oid, seen: u64) {
        self.remove_demands(|demand| demand.key.database == database && demand.bumps <= seen);
        for (key, shelf) in self.shelf_keys.iter().zip(self.shelves.iter_mut()) {
            if key.database == database {
                shelf.ready.clear();
            }
        }
        for slot in self.slots.iter_mut() {
            if slot.state == SlotState::Orphaned && slot.key.database == database {
                pool::release(slot);
            }
        }
    }
}
