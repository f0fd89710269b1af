//! The tasks that run, from the place that a worker takes for one to its end, or until it is cancelled.

use super::slots::NextTask;
use super::{MayStart, Registry, Sight, Work};
use crate::core::ready::Place;
use crate::pg::bgworker::pool::{self, SlotState, Ticket};
use crate::pg::time::{self, TimestampTz};
use crate::pg::{Oid, bgworker};
use crate::queue::store::Candidate;
use crate::queue::topics::{Configuration, Rules, TopicId};

/// What a worker wants to begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Beginning {
    /// The task.
    pub task: i64,
    /// Its table.
    pub relation: Oid,
    /// Its attempt.
    pub attempt: i32,
    /// Its topic.
    pub topic: TopicId,
    /// What is in force for that.
    pub rules: Rules,
    /// It was cut off by a crash.
    pub suspect: bool,
}

/// What became of the wish to begin a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begun {
    /// It has its place.
    Yes,
    /// Its topic is at its limit or waits, or it is the turn of another of the tasks that were cut off by a crash.
    TopicWaits,
    /// There are as many tasks as there may be.
    LimitReached,
}

/// What became of the wish to cancel a running task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cancelled {
    /// It is interrupted.
    Yes,
    /// That attempt has failed already, and will say so in a moment.
    TooLate,
    /// No worker runs that attempt.
    NotThere,
}

impl Registry {
    /// Takes a place among the running tasks for the worker of this ticket.
    pub fn begin_task(&mut self, ticket: Ticket, beginning: &Beginning, now: TimestampTz) -> Begun {
        if self.running() >= self.header.limit as usize {
            return Begun::LimitReached;
        }
        let Some(database) = pool::find(self.slots, ticket).map(|slot| slot.key.database) else {
            return Begun::LimitReached;
        };
        let Beginning {
            task,
            relation,
            attempt,
            topic,
            rules,
            suspect,
        } = *beginning;
        let may_start = self.may_start(database, topic, rules, 1, now);
        if !matches!(may_start, MayStart::Yes(_))
            || suspect && self.suspect_turn(ticket, now).is_some()
        {
            return Begun::TopicWaits;
        }
        if rules.delay > 0 {
            let ready = self.waits().iter().position(|wait| {
                wait.database == database && wait.topic == topic && wait.until <= now
            });
            if let Some(used) = ready {
                self.remove_wait(used);
            }
        }
        if let Some(slot) = pool::find(self.slots, ticket) {
            slot.payload = Work {
                relation,
                task,
                attempt,
                topic,
                suspect,
                cancelled: false,
                ending: false,
                changed: now,
                idle: false,
                ..slot.payload
            };
        }
        Begun::Yes
    }

    /// Takes the task that the worker of this ticket is to go on with when the one that it runs has finished: a known one that may have
    /// the place of that, or a free one of its topic. Only where nobody else has to be asked, or waits for such a place.
    pub fn begin_next(
        &mut self,
        ticket: Ticket,
        sight: &Sight,
        configuration: &Configuration,
        now: TimestampTz,
    ) -> Option<Candidate> {
        let slot = pool::find(self.slots, ticket)?;
        let (key, work) = (slot.key, slot.payload);
        let header = &self.header;
        let others_wait = header.surplus > 0 || header.room > 0 || header.better != (0, 0);
        let (unclean, booted) = (header.unclean, header.booted);
        if work.leaving || work.cancelled || work.suspect || others_wait {
            return None;
        }
        if self.running() > self.header.limit as usize {
            return None;
        }
        let first = *self.shelf(key)?.ready.tasks().first()?;
        if self.must_look_again(key, sight, first.priority, now) {
            return None;
        }
        let others_blocked = self.demands().iter().any(|demand| {
            demand.blocked && demand.key != key && demand.key.database == key.database
        });
        let i = self.first_known(key, |registry, task| {
            let rules = configuration.rules(task.topic);
            let room = if task.topic == work.topic {
                registry.running_of(key.database, task.topic) <= rules.limit
            } else {
                registry.has_room(key, task.topic, rules, 0, now)
            };
            task.interruptions == 0
                && !(unclean && task.joined_at < booted)
                && (!rules.limited || rules.delay == 0 && !others_blocked && room)
        })?;
        let candidate = self.take_known(key, i)?;
        if let Some(slot) = pool::find(self.slots, ticket) {
            slot.payload.next = NextTask {
                task: candidate.id,
                topic: candidate.topic,
                attempt: candidate.attempt.wrapping_add(1),
                cancelled: false,
            };
        }
        Some(candidate)
    }

    /// The worker of this ticket does not go on with the task that it has taken for that.
    pub fn drop_next(&mut self, ticket: Ticket, place: Place) {
        if let Some(slot) = pool::find(self.slots, ticket) {
            slot.payload.next = NextTask::NONE;
            let key = slot.key;
            self.arrive(key, place);
        }
    }

    /// Gives the place of a task back, or to the one that the worker goes on with. True if the launcher must be woken: somebody has
    /// waited for it.
    pub fn end_task(&mut self, ticket: Ticket, has_run: bool) -> bool {
        let Some(slot) = pool::find(self.slots, ticket) else {
            return false;
        };
        let Work {
            suspect,
            topic,
            next,
            done,
            ..
        } = slot.payload;
        let database = slot.key.database;
        slot.payload = Work {
            task: next.task,
            topic: next.topic,
            attempt: next.attempt,
            cancelled: next.cancelled,
            ending: false,
            suspect: false,
            next: NextTask::NONE,
            done: done + u64::from(has_run),
            changed: time::now(),
            ..slot.payload
        };
        if next.task != 0 && next.topic == topic {
            return false;
        }
        self.unblock((!suspect).then_some(database))
    }

    /// Cancels the task that a worker runs: interrupts it, while the lock keeps it from going on to another.
    pub fn cancel(&mut self, database: Oid, relation: Oid, task: i64, attempt: i32) -> Cancelled {
        let found = self.slots.iter_mut().find(|slot| {
            let Work {
                task: first,
                attempt: its,
                next,
                ..
            } = slot.payload;
            slot.state != SlotState::Free
                && slot.key.database == database
                && slot.payload.relation == relation
                && ((first, its) == (task, attempt) || (next.task, next.attempt) == (task, attempt))
        });
        match found {
            // it is told when it begins it
            Some(slot) if slot.payload.next.task == task => {
                slot.payload.next.cancelled = true;
                Cancelled::Yes
            }
            // its keeper will see it
            Some(slot) if matches!(slot.state, SlotState::Ended | SlotState::Orphaned) => {
                slot.payload.cancelled = true;
                Cancelled::Yes
            }
            Some(slot) if slot.payload.ending => Cancelled::TooLate,
            Some(slot) => {
                slot.payload.cancelled = true;
                bgworker::interrupt(slot.pid);
                Cancelled::Yes
            }
            None => Cancelled::NotThere,
        }
    }

    /// Whether a task of the worker of this ticket was cancelled.
    pub fn is_cancelled(&mut self, ticket: Ticket, task: i64) -> bool {
        pool::find(self.slots, ticket).is_some_and(|slot| {
            let Work {
                task: first,
                cancelled,
                next,
                ..
            } = slot.payload;
            first == task && cancelled || next.task == task && next.cancelled
        })
    }

    /// The task of the worker of this ticket has failed, and its row is marked; true if that is because it was cancelled.
    pub fn begin_ending(&mut self, ticket: Ticket) -> bool {
        pool::find(self.slots, ticket).is_some_and(|slot| {
            slot.payload.ending = true;
            slot.payload.cancelled
        })
    }
}
