//! The tasks that run, from the place that a worker takes for one to its end, or until it is cancelled.

use super::slots::{Batch, Claim, NextTask, WorkerSlot};
use super::{Key, MayStart, Registry, Work};
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
                batch: Batch::EMPTY,
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
    /// the place of that, or a free one of its topic. Only where nobody else has to be asked, or waits for such a place, and if it is of this
    /// priority or a better one. The stint is as in [`Registry::must_make_room`].
    pub fn begin_next(
        &mut self,
        ticket: Ticket,
        priority: i32,
        stint_is_over: bool,
        configuration: &Configuration,
        now: TimestampTz,
    ) -> Option<Candidate> {
        let slot = pool::find(self.slots, ticket)?;
        let (key, work) = (slot.key, slot.payload);
        let header = &self.header;
        let (unclean, booted) = (header.unclean, header.booted);
        if work.leaving || work.cancelled || work.suspect {
            return None;
        }
        if self.running() > self.header.limit as usize {
            return None;
        }
        if self.must_look_again(key, now) {
            return None;
        }
        let others_blocked = self.demands().iter().any(|demand| {
            demand.blocked && demand.key != key && demand.key.database == key.database
        });
        let (i, next) = self.first_known(key, |registry, task| {
            let rules = configuration.rules(task.topic);
            let room = if task.topic == work.topic {
                registry.running_of(key.database, task.topic) <= rules.limit
            } else {
                registry.has_room(key, task.topic, rules, 0, now)
            };
            task.interruptions == 0
                && task.priority <= priority
                && rules.commit_batch == 1
                && !(unclean && task.joined_at < booted)
                && (!rules.limited || rules.delay == 0 && !others_blocked && room)
        })?;
        if !self.may_go_on(key.database, next.priority, stint_is_over) {
            return None;
        }
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

    /// Leaves out of what a look has found the tasks that workers of this key are about to claim, or have: it has not seen that yet. If one of
    /// them does not get its task, it [arrives](Registry::arrive) again. What they are about to let go is there for others.
    pub fn leave_out_claimed(&self, key: Key, found: &mut Vec<Candidate>) {
        let workers = self
            .slots
            .iter()
            .filter(|slot| slot.state == SlotState::Attached && slot.key == key);
        let mut claimed: Vec<i64> = workers
            .flat_map(|slot| slot.payload.claimed())
            .filter_map(|(task, ending)| (!ending).then_some(task))
            .collect();
        claimed.sort_unstable();
        found.retain(|task| claimed.binary_search(&task.id).is_err());
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
            batch: Batch::EMPTY,
            done: done + u64::from(has_run),
            changed: time::now(),
            ..slot.payload
        };
        if next.task != 0 && next.topic == topic {
            return false;
        }
        self.unblock((!suspect).then_some(database))
    }

    /// Cancels the task that a worker runs: interrupts it, while the lock keeps it from going on to another. A worker that is about to find
    /// out that another was faster has that attempt in its slot, too: all who have it are told.
    pub fn cancel(&mut self, database: Oid, relation: Oid, task: i64, attempt: i32) -> Cancelled {
        let mut answer = Cancelled::NotThere;
        let slots = self.slots.iter_mut().filter(|slot| {
            slot.state != SlotState::Free
                && slot.key.database == database
                && slot.payload.relation == relation
        });
        for slot in slots {
            match Self::cancel_in(slot, task, attempt) {
                Cancelled::NotThere => {}
                Cancelled::TooLate if answer == Cancelled::Yes => {}
                told => answer = told,
            }
        }
        answer
    }

    fn cancel_in(slot: &mut WorkerSlot, task: i64, attempt: i32) -> Cancelled {
        let work = &mut slot.payload;
        let claims = work.batch.claims();
        let place = claims
            .iter()
            .position(|claim| (claim.task, claim.attempt) == (task, attempt));
        let current = claims.iter().position(|claim| claim.task == work.task);
        if (work.task, work.attempt) == (task, attempt) {
            let is_gone = matches!(slot.state, SlotState::Ended | SlotState::Orphaned);
            if work.ending && !is_gone {
                return Cancelled::TooLate;
            }
            work.cancelled = true;
            // else a keeper will see it
            if !is_gone {
                bgworker::interrupt(slot.pid);
            }
        } else if (work.next.task, work.next.attempt) == (task, attempt) {
            // it is told when it begins it
            work.next.cancelled = true;
        } else if place.is_none() {
            return Cancelled::NotThere;
        } else if place < current || place.is_some_and(|place| claims[place].ending) {
            return Cancelled::TooLate;
        }
        if let Some(place) = place {
            work.batch.claims_mut()[place].cancelled = true;
        }
        Cancelled::Yes
    }

    /// Whether a task of the worker of this ticket was cancelled.
    pub fn is_cancelled(&mut self, ticket: Ticket, task: i64) -> bool {
        pool::find(self.slots, ticket).is_some_and(|slot| {
            let work = &slot.payload;
            work.task == task && work.cancelled
                || work.next.task == task && work.next.cancelled
                || work
                    .batch
                    .claims()
                    .iter()
                    .any(|claim| claim.task == task && claim.cancelled)
        })
    }

    /// The task of the worker of this ticket has failed, and its row is marked; true if that is because it was cancelled.
    pub fn begin_ending(&mut self, ticket: Ticket) -> bool {
        pool::find(self.slots, ticket).is_some_and(|slot| {
            slot.payload.ending = true;
            slot.payload.cancelled
        })
    }

    /// Takes more tasks for the worker of this ticket, which has begun this one: those that follow it and are of its topic,
    /// up to `most` with it, and no more than leaves the other workers of the role theirs. They have its place.
    pub fn begin_batch(
        &mut self,
        ticket: Ticket,
        first: &Candidate,
        most: usize,
    ) -> Vec<Candidate> {
        let Some(key) = pool::find(self.slots, ticket).map(|slot| slot.key) else {
            return Vec::new();
        };
        let (unclean, booted) = (self.header.unclean, self.header.booted);
        let is_plain = |task: &Candidate| {
            task.topic == first.topic
                && task.interruptions == 0
                && !(unclean && task.joined_at < booted)
        };
        if !is_plain(first) {
            return Vec::new();
        }
        let workers = self
            .slots
            .iter()
            .filter(|slot| slot.state == SlotState::Attached && slot.key == key)
            .count();
        let known = self.shelf(key).map_or(0, |shelf| {
            let tasks = shelf.ready.tasks();
            tasks.iter().take_while(|task| is_plain(task)).count()
        });
        let most = most.min((known + 1).div_ceil(workers.max(1)));
        let mut more = Vec::new();
        while more.len() + 1 < most
            && self
                .shelf(key)
                .is_some_and(|shelf| shelf.ready.tasks().first().is_some_and(is_plain))
        {
            more.extend(self.take_known(key, 0));
        }
        if let Some(slot) = pool::find(self.slots, ticket).filter(|_| !more.is_empty()) {
            for task in std::iter::once(first).chain(&more) {
                slot.payload.batch.push(Claim {
                    task: task.id,
                    attempt: task.attempt.wrapping_add(1),
                    cancelled: false,
                    ending: false,
                });
            }
        }
        more
    }

    /// The worker of this ticket runs this task of its batch now.
    pub fn go_on(&mut self, ticket: Ticket, task: i64) {
        if let Some(slot) = pool::find(self.slots, ticket)
            && let Some(claim) = slot
                .payload
                .batch
                .claims()
                .iter()
                .find(|claim| claim.task == task)
        {
            slot.payload = Work {
                task,
                attempt: claim.attempt,
                cancelled: claim.cancelled,
                ending: false,
                changed: time::now(),
                ..slot.payload
            };
        }
    }

    /// The worker of this ticket is about to put these tasks back, which it has claimed: it is too late to cancel them here. Returns those that
    /// were cancelled before.
    pub fn begin_put_back(&mut self, ticket: Ticket, tasks: &[i64]) -> Vec<i64> {
        let mut cancelled = Vec::new();
        if let Some(slot) = pool::find(self.slots, ticket) {
            let work = &mut slot.payload;
            if tasks.contains(&work.task) {
                work.ending = true;
                cancelled.extend(work.cancelled.then_some(work.task));
            }
            for claim in work.batch.claims_mut() {
                if tasks.contains(&claim.task) {
                    claim.ending = true;
                    cancelled.extend(claim.cancelled.then_some(claim.task));
                }
            }
        }
        cancelled
    }

    /// Of its batch, the worker of this ticket keeps these tasks only, of which the first is the one that it runs now, and has
    /// ended `ended` of the others.
    pub fn keep_of_batch(&mut self, ticket: Ticket, tasks: &[i64], ended: u64) {
        if let Some(slot) = pool::find(self.slots, ticket) {
            slot.payload.done += ended;
            slot.payload
                .batch
                .retain(|claim| tasks.contains(&claim.task));
        }
        if let Some(&first) = tasks.first() {
            self.go_on(ticket, first);
        }
    }
}
