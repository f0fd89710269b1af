//! Who may have work: what the launcher starts workers for.

use super::{Key, Registry};
use crate::pg::Oid;
use crate::pg::time::TimestampTz;

/// Pairs of database and role with work that are kept in mind; the rest is found by keepers when there is room.
pub(super) const MOST_DEMANDS: usize = 4096;

/// A role that may have work in a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Demand {
    /// Whose.
    pub key: Key,
    /// Another number after each enqueueing commit: a worker that saw the same before and after it looked knows
    /// that it has seen everything.
    pub bumps: u64,
    /// The best priority that is waiting, as far as known.
    pub priority: i32,
    /// Its place among those who wait.
    pub order: u64,
    /// Not before.
    pub due: TimestampTz,
    /// There is more than its workers can do.
    pub more: bool,
    /// It waits for the end of a task that runs: one of a topic that is at its limit, or of those that were cut off
    /// by a crash.
    pub blocked: bool,
    /// Starts of a worker that have failed in a row.
    pub failures: u16,
    /// What the launcher went by when it planned last.
    pub planned: Planned,
}

/// What the launcher plans by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Planned {
    priority: i32,
    due: TimestampTz,
    more: bool,
}

impl Planned {
    /// Nothing yet.
    const NEVER: Self = Self {
        priority: i32::MAX,
        due: TimestampTz::MIN,
        more: false,
    };
}

impl Demand {
    fn as_it_is(&self) -> Planned {
        Planned {
            priority: self.priority,
            due: self.due,
            more: self.more,
        }
    }

    /// The launcher has planned with this.
    pub fn note_planned(&mut self) {
        self.planned = self.as_it_is();
    }

    /// Whether the launcher would plan as it has planned, as far as this demand goes: then it need not be woken. What workers do it hears
    /// from them.
    pub fn is_planned(&self) -> bool {
        self.planned == self.as_it_is()
    }
}

impl Registry {
    /// The demands.
    pub fn demands(&mut self) -> &mut [Demand] {
        &mut self.demands[..self.header.demand_count as usize]
    }

    /// The demand of this key.
    pub fn demand(&mut self, key: Key) -> Option<&mut Demand> {
        self.demands().iter_mut().find(|demand| demand.key == key)
    }

    /// There may be work for this key, of this priority: remembers it, due at once.
    pub fn add_demand(&mut self, key: Key, priority: i32) {
        let order = self.next_order();
        if let Some(demand) = self.demand(key) {
            demand.bumps = order;
            demand.priority = demand.priority.min(priority);
            demand.blocked = false;
            // a role whose workers fail waits its time
            if demand.failures == 0 {
                demand.due = 0;
            }
            return;
        }
        let count = self.header.demand_count as usize;
        if count == MOST_DEMANDS {
            self.header.overflow = true;
            return;
        }
        self.demands[count] = Demand {
            key,
            bumps: order,
            priority,
            order,
            due: 0,
            more: false,
            blocked: false,
            failures: 0,
            planned: Planned::NEVER,
        };
        self.header.demand_count += 1;
    }

    /// Forgets the demands for which `gone` holds.
    pub fn remove_demands(&mut self, gone: impl Fn(&Demand) -> bool) {
        let mut i = 0;
        while i < self.header.demand_count as usize {
            if gone(&self.demands[i]) {
                self.header.demand_count -= 1;
                self.demands[i] = self.demands[self.header.demand_count as usize];
            } else {
                i += 1;
            }
        }
    }

    /// Whether there is room for many more demands.
    pub fn demands_have_room(&self) -> bool {
        (self.header.demand_count as usize) < MOST_DEMANDS / 2
    }

    pub(super) fn next_order(&mut self) -> u64 {
        self.header.order += 1;
        self.header.order
    }

    /// A worker leaves what there is to do for this key, the first of it of this priority, to another one: behind all
    /// who wait already.
    pub fn hand_over(&mut self, key: Key, priority: i32) {
        if self.demand(key).is_none() {
            self.add_demand(key, priority);
        }
        let order = self.next_order();
        if let Some(demand) = self.demand(key) {
            demand.order = order;
            demand.priority = priority;
            demand.blocked = false;
            // the others of its workers may be busy for hours
            demand.more = true;
            if demand.failures == 0 {
                demand.due = 0;
            }
        }
    }

    /// The settings have changed: all who wait for a time or for an end look again.
    pub fn look_again(&mut self) {
        self.unblock(None);
        for demand in self
            .demands()
            .iter_mut()
            .filter(|demand| demand.failures == 0)
        {
            demand.due = 0;
            demand.more = true;
        }
    }

    /// A task has ended: those who have waited for that, in one database or in all, try again; true if there are any.
    pub fn unblock(&mut self, database: Option<Oid>) -> bool {
        let mut any = false;
        self.header.ends += 1;
        for demand in self.demands() {
            if demand.blocked && database.is_none_or(|oid| oid == demand.key.database) {
                demand.blocked = false;
                demand.due = 0;
                demand.more = true;
                any = true;
            }
        }
        any
    }
}
