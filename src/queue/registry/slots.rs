//! The processes, each with a slot that says what it runs: who is there, and which tasks have a worker.

use super::{Registry, lock};
use crate::core::config::MOST_IN_BATCH;
use crate::pg::bgworker::pool::{self, Pool, Slot, SlotState, Ticket};
use crate::pg::time::TimestampTz;
use crate::pg::{self, Oid, Result};
use crate::queue::topics::TopicId;

/// Which process a slot is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Key {
    /// Its database.
    pub database: Oid,
    /// The role of a worker; 0 is a keeper.
    pub role: Oid,
}

impl Key {
    /// Nobody.
    pub const NONE: Self = Self {
        database: 0,
        role: 0,
    };

    /// Whether it is a keeper.
    pub fn is_keeper(self) -> bool {
        self.role == pg::INVALID_OID
    }
}

/// What the process of a slot does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Work {
    /// It waits for work.
    pub idle: bool,
    /// It waits for what another worker of its role finds in the table.
    pub waits_for_look: bool,
    /// It has been told to leave.
    pub leaving: bool,
    /// It holds the turn of the tasks that were cut off by a crash.
    pub suspect: bool,
    /// It gave up because it could not write the task's row.
    pub broken: bool,
    /// Its task was cancelled.
    pub cancelled: bool,
    /// Its task has failed, and is about to be marked: it is too late to cancel that attempt.
    pub ending: bool,
    /// The task that it claims or runs; 0 is none.
    pub task: i64,
    /// The task's topic.
    pub topic: TopicId,
    /// The attempt of that task.
    pub attempt: i32,
    /// The task's table.
    pub relation: Oid,
    /// The task that it goes on with, claimed in the transaction in which the first one finishes.
    pub next: NextTask,
    /// The tasks that it has claimed together, that one among them; empty if it has claimed one.
    pub batch: Batch,
    /// Since when it does what it does.
    pub changed: TimestampTz,
    /// Tasks that it has ended.
    pub done: u64,
}

impl Work {
    /// Of a process that does nothing yet.
    pub const fn new() -> Self {
        Self {
            idle: false,
            waits_for_look: false,
            leaving: false,
            suspect: false,
            broken: false,
            cancelled: false,
            ending: false,
            task: 0,
            topic: TopicId::NONE,
            attempt: 0,
            relation: 0,
            next: NextTask::NONE,
            batch: Batch::EMPTY,
            changed: 0,
            done: 0,
        }
    }
}

impl Work {
    /// The tasks that the process has claimed, or is about to; and whether it is about to let go of them.
    pub(super) fn claimed(&self) -> impl Iterator<Item = (i64, bool)> {
        let batch = self.batch.claims().iter();
        [(self.task, self.ending), (self.next.task, false)]
            .into_iter()
            .chain(batch.map(|claim| (claim.task, claim.ending)))
    }

    /// Whether the task is one of those.
    fn has_claimed(&self, task: i64) -> bool {
        self.claimed().any(|(claimed, _)| claimed == task)
    }
}

/// See [`Work::next`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct NextTask {
    /// The task; 0 is none.
    pub task: i64,
    /// Its topic.
    pub topic: TopicId,
    /// The attempt of it.
    pub attempt: i32,
    /// It was cancelled.
    pub cancelled: bool,
}

impl NextTask {
    /// None.
    pub const NONE: Self = Self {
        task: 0,
        topic: TopicId::NONE,
        attempt: 0,
        cancelled: false,
    };
}

/// Tasks of one topic that share a commit, in the order in which they run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Batch {
    count: u32,
    claims: [Claim; MOST_IN_BATCH as usize],
}

/// A task of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Claim {
    /// Which.
    pub task: i64,
    /// The attempt of it.
    pub attempt: i32,
    /// It was cancelled.
    pub cancelled: bool,
    /// It is about to be put back, and waits again in a moment.
    pub ending: bool,
}

impl Batch {
    /// Of nobody.
    pub const EMPTY: Self = Self {
        count: 0,
        claims: [Claim {
            task: 0,
            attempt: 0,
            cancelled: false,
            ending: false,
        }; MOST_IN_BATCH as usize],
    };

    /// The tasks.
    pub fn claims(&self) -> &[Claim] {
        &self.claims[..self.count as usize]
    }

    pub(super) fn claims_mut(&mut self) -> &mut [Claim] {
        &mut self.claims[..self.count as usize]
    }

    /// Adds one, if there is room.
    pub(super) fn push(&mut self, claim: Claim) {
        if let Some(place) = self.claims.get_mut(self.count as usize) {
            *place = claim;
            self.count += 1;
        }
    }

    /// Keeps those for which `wanted` holds; a batch of one is none.
    pub(super) fn retain(&mut self, wanted: impl Fn(&Claim) -> bool) {
        let all = *self;
        self.count = 0;
        for claim in all.claims().iter().filter(|claim| wanted(claim)) {
            self.push(*claim);
        }
    }
}

/// A slot of ours.
pub type WorkerSlot = Slot<Key, Work>;

/// The processes, as a pool of the worker kit; the launcher owns them.
pub struct Processes;

/// See [`Processes`].
pub static PROCESSES: Processes = Processes;

impl Pool for Processes {
    type Key = Key;
    type Payload = Work;

    fn with<R>(&self, f: impl FnOnce(&mut [WorkerSlot]) -> R) -> Result<R> {
        Ok(f(lock()?.slots))
    }

    /// A task, which stands as `running` in the table, for a keeper to clear away.
    fn leaves_something(work: &Work) -> bool {
        work.task != 0
    }
}

impl Registry {
    /// Gives up the slots whose processes are gone without having said so.
    ///
    /// # Errors
    /// None known.
    pub fn calibrate(&mut self) -> Result<()> {
        pool::bury::<Processes>(self.slots)
    }

    /// Workers that are there or asked for, with the orphans that still take a place.
    pub fn occupied(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| slot.state != SlotState::Free && !slot.key.is_keeper())
            .count()
    }

    /// Live workers.
    pub fn live_workers(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| slot.state == SlotState::Attached && !slot.key.is_keeper())
            .count()
    }

    /// Tasks that run, with the orphans among them, which still stand as `running` in the table.
    pub(super) fn running(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| slot.payload.task != 0 && slot.state != SlotState::Free)
            .count()
    }

    /// Whether somebody runs this task, or has left it; other than who has this ticket.
    pub fn has_task(&self, database: Oid, relation: Oid, task: i64, but: Option<Ticket>) -> bool {
        self.slots.iter().enumerate().any(|(i, slot)| {
            slot.state != SlotState::Free
                && but.is_none_or(|but| but.slot as usize != i)
                && slot.key.database == database
                && slot.payload.relation == relation
                && slot.payload.has_claimed(task)
        })
    }

    /// Places of a topic that are taken. A worker that goes on with another task of the same topic needs no second one.
    pub(super) fn running_of(&self, database: Oid, topic: TopicId) -> usize {
        let takes = |work: &Work| {
            work.task != 0 && work.topic == topic || work.next.task != 0 && work.next.topic == topic
        };
        self.slots
            .iter()
            .filter(|slot| {
                slot.state != SlotState::Free
                    && slot.key.database == database
                    && takes(&slot.payload)
            })
            .count()
    }

    /// Wakes up to `count` idle workers of this key; true if there were as many.
    pub(super) fn wake_idle(&mut self, key: Key, count: u32) -> bool {
        let mut woken = 0;
        for slot in self
            .slots
            .iter_mut()
            .filter(|slot| slot.state == SlotState::Attached)
        {
            if woken < count && slot.key == key && slot.payload.idle && !slot.payload.leaving {
                slot.payload.idle = false;
                slot.latch.set();
                woken += 1;
            }
        }
        woken == count
    }

    /// Wakes the workers of this key that wait for a look: it is over, or whoever looked has ended.
    pub(super) fn wake_waiting(&mut self, key: Key) {
        let waiting = self.slots.iter_mut().filter(|slot| {
            slot.state == SlotState::Attached && slot.key == key && slot.payload.waits_for_look
        });
        for slot in waiting {
            slot.payload.waits_for_look = false;
            slot.latch.set();
        }
    }
}
