//! Whether a task may start now: its topic's limit and delay, and the turn of those that were cut off by a crash.
//!
//! In a topic with a delay each of its parallel slots waits before each start. Such a wait belongs to nobody: the next task of the
//! topic takes it, in whichever worker.

use std::collections::HashMap;

use super::Registry;
use crate::pg::Oid;
use crate::pg::bgworker::pool::{SlotState, Ticket};
use crate::pg::time::TimestampTz;
use crate::queue::topics::{Rules, TopicId};

/// Slots of topics with a delay that can wait at the same time.
pub(super) const MOST_WAITS: usize = 4096;

/// A slot that has waited and found no task for so long, in microseconds, is forgotten if there is no room for others.
const WAIT_FORGOTTEN: i64 = 1_000_000;

/// How long one of the tasks that were cut off by a crash keeps the others of them waiting, in microseconds.
const SUSPECT_TURN: TimestampTz = 60_000_000;

/// A parallel slot of a topic that waits before its next start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub(super) struct Wait {
    /// The topic's database.
    pub database: Oid,
    /// The topic.
    pub topic: TopicId,
    /// Until when.
    pub until: TimestampTz,
}

/// Whether tasks of a topic may start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MayStart {
    /// So many.
    Yes(usize),
    /// None until one that runs has ended.
    Blocked,
    /// None before that time.
    NotBefore(TimestampTz),
}

impl Registry {
    /// Until when a worker other than that of this slot has the turn of the cut-off tasks, if one has it. A task that
    /// has run for so long is taken not to be one that brings the server down.
    pub fn suspect_turn(&self, but: Ticket, now: TimestampTz) -> Option<TimestampTz> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(i, slot)| {
                slot.payload.suspect && slot.state != SlotState::Free && *i != but.slot as usize
            })
            .map(|(_, slot)| slot.payload.changed + SUSPECT_TURN)
            .filter(|&until| until > now)
            .max()
    }

    /// How many tasks of a topic may start now. With a delay, up to `wanted` slots of the topic begin to wait, if
    /// they do not wait already.
    pub fn may_start(
        &mut self,
        database: Oid,
        topic: TopicId,
        rules: Rules,
        wanted: usize,
        now: TimestampTz,
    ) -> MayStart {
        let free = rules.limit.saturating_sub(self.running_of(database, topic));
        if rules.delay > 0 {
            // as many slots as the topic has now: the limit may have been lowered
            self.trim_waits(database, topic, free);
        }
        if free == 0 {
            return MayStart::Blocked;
        }
        if rules.delay == 0 {
            return MayStart::Yes(free);
        }
        // a delay that was shortened by a reload counts at once
        let latest = now + rules.delay;
        let is_ours = |wait: &&mut Wait| wait.database == database && wait.topic == topic;
        let mut waiting = 0;
        let mut ready = 0;
        let mut next = latest;
        for wait in self.waits().iter_mut().filter(is_ours) {
            wait.until = wait.until.min(latest);
            next = next.min(wait.until);
            ready += usize::from(wait.until <= now);
            waiting += 1;
        }
        for _ in waiting..wanted.min(free) {
            self.add_wait(
                Wait {
                    database,
                    topic,
                    until: latest,
                },
                now,
            );
        }
        if ready > 0 {
            MayStart::Yes(ready.min(free))
        } else {
            MayStart::NotBefore(next)
        }
    }

    pub(super) fn waits(&mut self) -> &mut [Wait] {
        &mut self.waits[..self.header.wait_count as usize]
    }

    /// Keeps the earliest `most` waits of a topic.
    fn trim_waits(&mut self, database: Oid, topic: TopicId, most: usize) {
        loop {
            let ours =
                |(_, wait): &(usize, &Wait)| wait.database == database && wait.topic == topic;
            let waits = self.waits();
            if waits.iter().enumerate().filter(ours).count() <= most {
                return;
            }
            let last = waits
                .iter()
                .enumerate()
                .filter(ours)
                .max_by_key(|(_, wait)| wait.until)
                .map(|(i, _)| i);
            if let Some(i) = last {
                self.remove_wait(i);
            }
        }
    }

    pub(super) fn remove_wait(&mut self, i: usize) {
        self.header.wait_count -= 1;
        self.waits[i] = self.waits[self.header.wait_count as usize];
    }

    fn add_wait(&mut self, wait: Wait, now: TimestampTz) {
        if self.header.wait_count as usize == MOST_WAITS {
            self.make_room_for(&wait, now);
        }
        let count = self.header.wait_count as usize;
        // without room the topic waits for another one's slots to start
        if count < MOST_WAITS {
            self.waits[count] = wait;
            self.header.wait_count += 1;
        }
    }

    /// Forgets the waits that found no task, or else one of the topic that has the most, if that are more than this one's: nobody's many
    /// slots shall keep another topic from its first.
    fn make_room_for(&mut self, wait: &Wait, now: TimestampTz) {
        let mut i = 0;
        while i < self.header.wait_count as usize {
            if self.waits[i].until < now - WAIT_FORGOTTEN {
                self.remove_wait(i);
            } else {
                i += 1;
            }
        }
        if (self.header.wait_count as usize) < MOST_WAITS {
            return;
        }
        let mut counts: HashMap<(Oid, TopicId), usize> = HashMap::new();
        for wait in self.waits().iter() {
            *counts.entry((wait.database, wait.topic)).or_insert(0) += 1;
        }
        let own = counts
            .get(&(wait.database, wait.topic))
            .copied()
            .unwrap_or(0);
        let most = counts.into_iter().max_by_key(|&(_, count)| count);
        if let Some(((database, topic), count)) = most.filter(|&(_, count)| count > own + 1) {
            self.trim_waits(database, topic, count - 1);
        }
    }
}
