//! A look into the table: which of a role's tasks could start now, in which order.

use std::collections::{HashMap, HashSet};

use super::registry::{self, Key, MayStart, Sight, UNTIL_TOLD};
use super::store::{Candidate, Seen, Step, Store};
use super::topics::{Configuration, Rules, TopicId};
use crate::core::ready::{self, Place, Queued};
use crate::pg::Result;
use crate::pg::bgworker::pool::Ticket;

/// Tasks of one topic that are taken at once, while there are others.
const MOST_OF_ONE: usize = 64;

/// Tasks of a topic that is at its limit, which are kept for when one of its tasks ends.
const MOST_IN_RESERVE: usize = 8;

/// Of all such topics together.
const MOST_IN_ALL_RESERVES: usize = 64;

/// Who looks, and for what.
pub struct Question<'a> {
    /// Whose tasks.
    pub key: Key,
    /// Of which worker.
    pub ticket: Ticket,
    /// What is set.
    pub configuration: &'a Configuration,
    /// Tasks whose rows somebody holds, and until when they are left alone.
    pub held_rows: &'a [(i64, i64)],
    /// Where to begin, if all tasks are without a topic.
    pub from: Place,
    /// The time.
    pub now: i64,
}

/// What was found.
pub struct Answer {
    /// The tasks, in order.
    pub tasks: Vec<Candidate>,
    /// What else was seen; `ends` and `bumps` are the caller's business.
    pub sight: Sight,
    /// No others could start which stand before the last of them, or at all if there is none.
    pub complete: bool,
    /// One of them could start now.
    pub can_start: bool,
}

impl Answer {
    /// Of a database without a table.
    pub fn nothing() -> Self {
        Self {
            tasks: Vec::new(),
            sight: Sight::NOTHING,
            complete: false,
            can_start: false,
        }
    }
}

/// A topic in the course of a look.
struct Topic {
    name: Option<Vec<u8>>,
    id: TopicId,
    rules: Rules,
    /// It is at its limit.
    full: bool,
    quota: usize,
    /// Its tasks among those that were found.
    first: usize,
    found: usize,
    last: Place,
    /// There is more of it.
    cut: bool,
}

struct Look<'a> {
    question: Question<'a>,
    store: &'a Store,
    topics: Vec<Topic>,
    tasks: Vec<Candidate>,
    sight: Sight,
    complete: bool,
    suspect_turn: Option<i64>,
}

/// Looks. In a transaction.
///
/// # Errors
/// I/O.
pub fn look(store: &Store, question: Question<'_>) -> Result<Answer> {
    let suspect_turn = registry::lock()?.suspect_turn(question.ticket, question.now);
    let mut look = Look {
        question,
        store,
        topics: Vec::new(),
        tasks: Vec::new(),
        sight: Sight::NOTHING,
        complete: true,
        suspect_turn,
    };
    let role = look.question.key.role;
    if store.has_topics(role)? {
        store.waiting(role, |seen| look.see(seen))?;
        look.settle_delay()?;
        look.fetch_more()?;
    } else {
        // they are one sequence, of which the beginning is known to be done
        let from = look.question.from;
        look.begin_topic(None, TopicId::of(None))?;
        if let Some(all) = look.topics.last_mut()
            && !all.rules.limited
        {
            all.quota = ready::MOST;
        }
        if look.topics.last().is_some_and(|all| all.quota > 0) {
            store.waiting_in(role, None, from, |seen| look.see(seen))?;
        }
        look.settle_delay()?;
    }
    Ok(look.answer())
}

impl Look<'_> {
    fn see(&mut self, seen: Seen<'_>) -> Result<Step> {
        match seen {
            Seen::Topic(name, id) => {
                if self.topics.last().is_none_or(|topic| topic.id != id) {
                    self.settle_delay()?;
                    self.begin_topic(name, id)?;
                }
                let goes_on = self.topics.last().is_some_and(|topic| topic.quota > 0);
                Ok(if goes_on { Step::Next } else { Step::NextTopic })
            }
            Seen::Task(task, due) => Ok(self.see_task(task, due)),
        }
    }

    /// Finds out how many tasks of this topic are wanted.
    fn begin_topic(&mut self, name: Option<&[u8]>, id: TopicId) -> Result<()> {
        let Question {
            key,
            configuration,
            now,
            ..
        } = self.question;
        let rules = configuration.rules(id);
        // the more topics, the fewer tasks of each
        let fair = (2 * ready::MOST / (self.topics.len() + 1)).clamp(1, MOST_OF_ONE);
        let may_start = registry::lock()?.may_start(key.database, id, rules, 0, now);
        let (full, quota) = match may_start {
            MayStart::Blocked if rules.limit == 0 || rules.delay > 0 => (true, 0),
            MayStart::Blocked => (true, fair.min(MOST_IN_RESERVE)),
            // how many of a topic with a delay is settled at its end
            MayStart::Yes(_) | MayStart::NotBefore(_) => (false, fair),
        };
        if full {
            self.sight.blocked = true;
            self.sight.passed_over |= quota == 0;
        }
        if full || rules.delay > 0 {
            self.complete = false;
        }
        self.topics.push(Topic {
            name: name.map(<[u8]>::to_vec),
            id,
            rules,
            full,
            quota,
            first: self.tasks.len(),
            found: 0,
            last: Place::FIRST,
            cut: false,
        });
        Ok(())
    }

    /// If the topic that was gone over has a delay: as many of its slots begin to wait as it has tasks, and as many tasks
    /// may start as have waited. The others are found again when it is their time.
    fn settle_delay(&mut self) -> Result<()> {
        let Question { key, now, .. } = self.question;
        let Some(topic) = self.topics.last_mut() else {
            return Ok(());
        };
        let rules = topic.rules;
        if rules.delay == 0 || topic.found == 0 {
            return Ok(());
        }
        let may_start =
            registry::lock()?.may_start(key.database, topic.id, rules, topic.found, now);
        let (ready, next_due) = match may_start {
            MayStart::Yes(count) if topic.found <= count && !topic.cut => (topic.found, UNTIL_TOLD),
            MayStart::Yes(count) => (count, now + rules.delay),
            MayStart::NotBefore(time) => (0, time),
            MayStart::Blocked => {
                self.sight.blocked = true;
                self.sight.passed_over = true;
                (0, UNTIL_TOLD)
            }
        };
        self.sight.next_due = self.sight.next_due.min(next_due);
        topic.found = topic.found.min(ready);
        topic.cut = false;
        self.tasks.truncate(topic.first + topic.found);
        Ok(())
    }

    fn see_task(&mut self, task: Candidate, due: i64) -> Step {
        let Some(topic) = self.topics.last_mut() else {
            return Step::Stop;
        };
        if topic.found == topic.quota {
            topic.cut = true;
            self.sight.more = true;
            return Step::NextTopic;
        }
        let held = self
            .question
            .held_rows
            .iter()
            .find(|&&(id, _)| id == task.id);
        let due = held.map_or(due, |&(_, until)| until);
        let turn = self.suspect_turn.filter(|_| task.interruptions > 0);
        if due > self.question.now || turn.is_some() {
            if !topic.full {
                self.sight.next_due = self.sight.next_due.min(turn.unwrap_or(due));
            }
            self.sight.blocked |= turn.is_some();
            self.sight.passed_over |= turn.is_some();
            self.complete = false;
            return Step::Next;
        }
        topic.found += 1;
        topic.last = task.place();
        self.tasks.push(task);
        Step::Next
    }

    /// Up to where nothing is missing: the first of the last known tasks of topics that have more. Limited topics do not
    /// count: their last known task says so itself.
    fn bound(&self) -> Option<usize> {
        let cut = |topic: &Topic| topic.cut && !topic.rules.limited;
        (0..self.topics.len())
            .filter(|&i| cut(&self.topics[i]))
            .min_by_key(|&i| self.topics[i].last)
    }

    /// Where topics have unlike numbers of tasks, or unlike priorities, the first tasks may all be of a few of them.
    fn fetch_more(&mut self) -> Result<()> {
        for _ in 0..MOST_OF_ONE {
            let Some(i) = self.bound() else { break };
            let bound = self.topics[i].last;
            let known = self.tasks.iter().filter(|task| task.place() <= bound);
            if known.count() >= MOST_OF_ONE {
                break;
            }
            let last = self.topics.len() - 1;
            self.topics.swap(i, last);
            let topic = &mut self.topics[last];
            topic.quota += MOST_OF_ONE;
            topic.cut = false;
            let (name, role) = (topic.name.clone(), self.question.key.role);
            let after = Place {
                id: bound.id.saturating_add(1),
                ..bound
            };
            let store = self.store;
            store.waiting_in(role, name.as_deref(), after, |seen| match seen {
                Seen::Topic(..) => Ok(Step::Next),
                Seen::Task(task, due) => Ok(self.see_task(task, due)),
            })?;
        }
        Ok(())
    }

    fn answer(mut self) -> Answer {
        if let Some(i) = self.bound() {
            let bound = self.topics[i].last;
            self.tasks.retain(|task| task.place() <= bound);
        }
        self.tasks.sort_unstable_by_key(Queued::place);
        let topics: HashMap<TopicId, &Topic> =
            self.topics.iter().map(|topic| (topic.id, topic)).collect();
        let is_full = |task: &Candidate| topics.get(&task.topic).is_some_and(|topic| topic.full);
        // those that cannot start yet must not take the place of those that can
        let (mut free, mut in_reserve) = (0, 0);
        let before = self.tasks.len();
        self.tasks.retain(|task| {
            let (count, most) = if is_full(task) {
                (&mut in_reserve, MOST_IN_ALL_RESERVES)
            } else {
                (&mut free, ready::MOST - MOST_IN_ALL_RESERVES)
            };
            *count += 1;
            *count <= most
        });
        if before > self.tasks.len() {
            self.sight.more = true;
        }
        self.sight.passed_over |= in_reserve > MOST_IN_ALL_RESERVES;
        // a worker that takes the last known task of a limited topic looks again: others of it may be the next in order
        let mut kept: HashMap<TopicId, usize> = HashMap::new();
        for task in &self.tasks {
            *kept.entry(task.topic).or_insert(0) += 1;
        }
        let mut ended = HashSet::new();
        for task in self.tasks.iter_mut().rev() {
            if let Some(topic) = topics.get(&task.topic).filter(|topic| topic.rules.limited)
                && ended.insert(task.topic)
            {
                task.last_known = topic.cut || kept[&task.topic] < topic.found;
            }
        }
        for topic in self.topics.iter().filter(|topic| topic.rules.limited) {
            self.sight.passed_over |= topic.found > 0 && !kept.contains_key(&topic.id);
        }
        let can_start = self.tasks.iter().any(|task| !is_full(task));
        Answer {
            sight: self.sight,
            complete: self.complete,
            can_start,
            tasks: self.tasks,
        }
    }
}
