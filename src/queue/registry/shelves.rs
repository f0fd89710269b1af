//! What the workers of one role in one database have in common: the tasks that one of them has found in the table, from
//! which all of them take.

use super::{Key, MayStart, Registry, UNTIL_TOLD};
use crate::core::ready::{Look, Ready};
use crate::core::schedule::Schedule;
use crate::pg::bgworker::pool::{self, SlotState, Ticket};
use crate::pg::time::TimestampTz;
use crate::queue::store::Candidate;
use crate::queue::topics::{Configuration, Rules, TopicId};

/// What a look into the table has seen, beside the tasks that it found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Sight {
    /// [`Header::ends`](super::Header::ends) before it.
    pub ends: u64,
    /// The demand's count before it.
    pub bumps: u64,
    /// When the next task that is not due yet will be.
    pub next_due: TimestampTz,
    /// A task waits for the end of another: see [`Demand::blocked`](super::Demand::blocked).
    pub blocked: bool,
    /// One of these is not among the tasks that were found.
    pub passed_over: bool,
    /// There are more tasks than were found.
    pub more: bool,
}

impl Sight {
    /// Before any look.
    pub const NOTHING: Self = Self {
        ends: 0,
        bumps: 0,
        next_due: UNTIL_TOLD,
        blocked: false,
        passed_over: false,
        more: false,
    };
}

/// What the workers of a key have in common.
#[repr(C)]
pub struct Shelf {
    /// What the look that filled it has seen.
    pub sight: Sight,
    /// How far its schedule is done with.
    pub schedule: Schedule,
    /// The tasks that they take from.
    pub ready: Ready<Candidate>,
    /// When the main line was last looked at from its head.
    whole_look: TimestampTz,
    /// Who is looking into the table for all of them.
    looker: Option<Ticket>,
}

/// After how many microseconds a look goes over the whole main line again: somebody may have changed the priority of a task by hand.
const WHOLE_LOOK: TimestampTz = 60_000_000;

impl Shelf {
    /// Before any look.
    pub(super) const fn new() -> Self {
        Self {
            sight: Sight::NOTHING,
            schedule: Schedule::new(),
            ready: Ready::new(Candidate::NONE),
            whole_look: 0,
            looker: None,
        }
    }

    /// Begins a look into the table.
    pub fn begin_look(&mut self, now: TimestampTz) -> Look {
        let whole = !(self.whole_look..self.whole_look + WHOLE_LOOK).contains(&now);
        if whole {
            self.whole_look = now;
        }
        self.ready.begin_look(whole)
    }
}

impl Registry {
    /// What the workers of this key have in common; `None` if there is no room, as where they have none.
    pub fn shelf(&mut self, key: Key) -> Option<&mut Shelf> {
        let i = self.shelf_keys.iter().position(|&known| known == key)?;
        Some(&mut self.shelves[i])
    }

    /// The same, made if it was not there. For a worker of this key.
    fn make_shelf(&mut self, key: Key) -> Option<&mut Shelf> {
        if self.shelf(key).is_none() {
            let in_use = |key: Key| {
                key != Key::NONE
                    && self
                        .slots
                        .iter()
                        .any(|slot| slot.state != SlotState::Free && slot.key == key)
            };
            // there are as many as slots
            let free = self.shelf_keys.iter().position(|&key| !in_use(key))?;
            self.shelf_keys[free] = key;
            self.shelves[free] = Shelf::new();
        }
        self.shelf(key)
    }

    /// Whether a worker of this key other than that of this ticket is looking into the table. One that ends meanwhile is not.
    pub fn another_looks(&mut self, ticket: Ticket, key: Key) -> bool {
        let looker = self.shelf(key).and_then(|shelf| shelf.looker);
        looker
            .filter(|&looker| looker != ticket)
            .and_then(|looker| pool::find(self.slots, looker))
            .is_some_and(|slot| slot.state == SlotState::Attached)
    }

    /// The worker of this ticket looks into the table for all of this key; false if there is no room for what it would find. If several
    /// did that they would find the same, and what one of them takes would make what the others have seen worth nothing.
    pub fn begin_looking(&mut self, ticket: Ticket, key: Key) -> bool {
        self.make_shelf(key)
            .map(|shelf| shelf.looker = Some(ticket))
            .is_some()
    }

    /// It has looked. Those who have waited for that go on: they take from what was found, or look for themselves.
    pub fn end_looking(&mut self, key: Key) {
        if let Some(shelf) = self.shelf(key) {
            shelf.looker = None;
        }
        self.wake_waiting(key);
    }

    /// Whether the workers of this key know a task.
    pub fn has_ready(&mut self, key: Key) -> bool {
        self.shelf(key)
            .is_some_and(|shelf| !shelf.ready.tasks().is_empty())
    }

    /// Has the workers of this key look into the table again.
    pub fn forget_ready(&mut self, key: Key) {
        if let Some(shelf) = self.shelf(key) {
            shelf.ready.clear();
        }
    }

    /// Whether something may have to go before what the workers of this key know.
    pub fn must_look_again(&mut self, key: Key, now: TimestampTz) -> bool {
        let ends = self.header.ends;
        self.shelf(key).is_some_and(|shelf| {
            let Shelf { sight, ready, .. } = shelf;
            let may_have_room = sight.passed_over && ends != sight.ends;
            // each look is good for a task at least
            ready.is_passed_over() || ready.has_begun() && (sight.next_due <= now || may_have_room)
        })
    }

    /// The first known task of this key that may start now, and its index for [`take_known`](Self::take_known).
    pub fn next_task(
        &mut self,
        ticket: Ticket,
        key: Key,
        configuration: &Configuration,
        now: TimestampTz,
    ) -> Option<(usize, Candidate)> {
        let others_turn = self.suspect_turn(ticket, now).is_some();
        self.first_known(key, |registry, task| {
            let rules = configuration.rules(task.topic);
            !(others_turn && task.interruptions > 0)
                && registry.has_room(key, task.topic, rules, 1, now)
        })
    }

    /// Takes a known task of this key.
    pub fn take_known(&mut self, key: Key, index: usize) -> Option<Candidate> {
        let shelf = self.shelf(key)?;
        let candidate = shelf.ready.take(index)?;
        if candidate.last_known {
            shelf.ready.clear();
        }
        Some(candidate)
    }

    /// Whether one of the tasks that the workers of this key know could start now in another worker. The limit of all is
    /// the launcher's business: others may make room.
    pub fn others_could_help(
        &mut self,
        key: Key,
        configuration: &Configuration,
        now: TimestampTz,
    ) -> bool {
        self.first_known(key, |registry, task| {
            let rules = configuration.rules(task.topic);
            registry.has_room(key, task.topic, rules, 0, now)
        })
        .is_some()
    }

    /// Whether one more task of a topic may start; with a delay, up to `wanted` slots of it begin to wait.
    pub(super) fn has_room(
        &mut self,
        key: Key,
        topic: TopicId,
        rules: Rules,
        wanted: usize,
        now: TimestampTz,
    ) -> bool {
        if !rules.limited {
            return true;
        }
        let may_start = self.may_start(key.database, topic, rules, wanted, now);
        matches!(may_start, MayStart::Yes(_))
    }

    /// The first of the tasks that the workers of this key know for which `wanted` holds. It is asked once for tasks of one topic that
    /// follow each other, the cut-off ones among them apart.
    pub(super) fn first_known(
        &mut self,
        key: Key,
        mut wanted: impl FnMut(&mut Self, &Candidate) -> bool,
    ) -> Option<(usize, Candidate)> {
        let shelf = self.shelf_keys.iter().position(|&known| known == key)?;
        let mut refused = None;
        let mut i = 0;
        loop {
            let task = *self.shelves[shelf].ready.tasks().get(i)?;
            let kind = (task.topic, task.interruptions > 0);
            if refused != Some(kind) {
                if wanted(self, &task) {
                    return Some((i, task));
                }
                refused = Some(kind);
            }
            i += 1;
        }
    }
}
