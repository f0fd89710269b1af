//! A look into the table: which of a role's tasks could start now, in which order.

use std::collections::{HashMap, HashSet};

use super::registry::{self, Key, MayStart, Sight, UNTIL_TOLD};
use super::store::{Candidate, Lane, Seen, Step, Store};
use super::topics::{Configuration, Rules, TopicId};
use crate::core::ready::{self, Place, Queued};
use crate::pg::Result;
use crate::pg::bgworker::pool::Ticket;
use crate::pg::table::Updated;

/// Tasks of one lane that are taken at once, while there are others.
const MOST_OF_ONE: usize = 64;

/// Tasks of a topic that is at its limit, which are kept for when one of its tasks ends.
const MOST_IN_RESERVE: usize = 8;

/// Of all such topics together.
const MOST_IN_ALL_RESERVES: usize = 64;

/// All others.
const MOST_FREE: usize = ready::MOST - MOST_IN_ALL_RESERVES;

/// Tasks that one look moves to where they belong.
const MOST_STRAYS: usize = 512;

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
    /// The same of those that are to be moved.
    pub held_strays: &'a [(i64, i64)],
    /// Where to begin in the main line.
    pub from: Place,
    /// Tasks that are not where they belong are moved; else they are passed over.
    pub moves: bool,
    /// The time.
    pub now: i64,
}

/// What was found.
pub struct Answer {
    /// The tasks, in order.
    pub tasks: Vec<Candidate>,
    /// What else was seen; `ends` and `bumps` are the caller's business.
    pub sight: Sight,
    /// No others of the main line could start which stand before the last of them, or at all if there is none.
    pub complete: bool,
    /// One of them could start now.
    pub can_start: bool,
    /// Tasks were moved to where they belong: it has to be looked again, from which nothing else is known.
    pub moved: bool,
    /// Those that were not, because somebody holds their rows.
    pub held: Vec<i64>,
}

impl Answer {
    /// Of a database without a table.
    pub fn nothing() -> Self {
        Self {
            tasks: Vec::new(),
            sight: Sight::NOTHING,
            complete: false,
            can_start: false,
            moved: false,
            held: Vec::new(),
        }
    }
}

/// A lane in the course of a look.
struct Topic {
    lane: Lane,
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

/// A task that is not where it belongs: its topic has, or had, no limit when it was enqueued.
struct Stray {
    task: Candidate,
    lane: Option<Lane>,
}

struct Look<'a> {
    question: Question<'a>,
    store: &'a Store,
    /// The lanes.
    topics: Vec<Topic>,
    tasks: Vec<Candidate>,
    strays: Vec<Stray>,
    /// The topic of the last task, and what is in force for it.
    latest: Option<(TopicId, Rules)>,
    /// The last task of the main line, if there is more.
    line_cut: Option<Place>,
    sight: Sight,
    complete: bool,
    suspect_turn: Option<i64>,
}

/// Looks. In a transaction that must be committed.
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
        strays: Vec::new(),
        latest: None,
        line_cut: None,
        sight: Sight::NOTHING,
        complete: true,
        suspect_turn,
    };
    let (role, from) = (look.question.key.role, look.question.from);
    store.main_line(role, from, |seen| look.see_in_line(&seen))?;
    // else all is looked at again after they have been moved
    if look.strays.is_empty() {
        store.lanes(role, |seen| look.see(&seen))?;
        look.settle_delay()?;
        look.fetch_more()?;
    }
    if look.strays.is_empty() {
        Ok(look.answer())
    } else {
        look.move_strays()
    }
}

impl Look<'_> {
    /// A task of the main line: nothing keeps it from starting.
    fn see_in_line(&mut self, seen: &Seen<'_>) -> Result<Step> {
        let task = seen.task;
        if self.rules_of(task.topic).apart {
            self.complete = false;
            return Ok(self.see_stray(task, Some(Lane::of(seen.topic)?)));
        }
        if let Some(until) = self.waits_until(&task, seen.due) {
            self.sight.next_due = self.sight.next_due.min(until);
            self.complete = false;
            return Ok(Step::Next);
        }
        if self.tasks.len() == MOST_FREE {
            self.line_cut = self.tasks.last().map(Queued::place);
            self.sight.more = true;
            return Ok(Step::Stop);
        }
        self.tasks.push(task);
        Ok(Step::Next)
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<Step> {
        let home = Lane::of(seen.topic)?;
        if seen.lane != Some(&home) {
            // somebody has changed the row
            let lane = self.rules_of(seen.task.topic).apart.then_some(home);
            return Ok(self.see_stray(seen.task, lane));
        }
        if self.topics.last().is_none_or(|topic| topic.lane != home) {
            self.settle_delay()?;
            self.begin_lane(home, seen.task.topic)?;
        }
        if self.topics.last().is_some_and(|topic| topic.quota == 0) {
            return Ok(Step::NextLane);
        }
        Ok(self.see_in_lane(seen.task, seen.due))
    }

    fn rules_of(&mut self, topic: TopicId) -> Rules {
        match self.latest {
            Some((latest, rules)) if latest == topic => rules,
            _ => {
                let rules = self.question.configuration.rules(topic);
                self.latest = Some((topic, rules));
                rules
            }
        }
    }

    /// A task that stands where it is in the way of others, or they in its: it is moved.
    fn see_stray(&mut self, task: Candidate, lane: Option<Lane>) -> Step {
        if !self.question.moves {
            return Step::Next;
        }
        if let Some(until) = held_until(self.question.held_strays, &task) {
            self.sight.next_due = self.sight.next_due.min(until);
            return Step::Next;
        }
        self.strays.push(Stray { task, lane });
        if self.strays.len() == MOST_STRAYS {
            Step::Stop
        } else {
            Step::Next
        }
    }

    /// Until when a task has to wait, whatever its topic says.
    fn waits_until(&mut self, task: &Candidate, due: i64) -> Option<i64> {
        if let Some(turn) = self.suspect_turn.filter(|_| task.interruptions > 0) {
            self.sight.blocked = true;
            self.sight.passed_over = true;
            return Some(turn);
        }
        let due = held_until(self.question.held_rows, task).unwrap_or(due);
        (due > self.question.now).then_some(due)
    }

    /// Finds out how many tasks of this lane are wanted.
    fn begin_lane(&mut self, lane: Lane, id: TopicId) -> Result<()> {
        let Question { key, now, .. } = self.question;
        let rules = self.rules_of(id);
        // the more lanes, the fewer tasks of each
        let fair = (2 * ready::MOST / (self.topics.len() + 1)).clamp(1, MOST_OF_ONE);
        let may_start = if rules.limited {
            registry::lock()?.may_start(key.database, id, rules, 0, now)
        } else {
            MayStart::Yes(rules.limit)
        };
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
        self.topics.push(Topic {
            lane,
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

    fn see_in_lane(&mut self, task: Candidate, due: i64) -> Step {
        let Some(topic) = self.topics.last() else {
            return Step::Stop;
        };
        let (full, is_enough) = (topic.full, topic.found == topic.quota);
        if !is_enough && let Some(until) = self.waits_until(&task, due) {
            if !full {
                self.sight.next_due = self.sight.next_due.min(until);
            }
            return Step::Next;
        }
        let Some(topic) = self.topics.last_mut() else {
            return Step::Stop;
        };
        if is_enough {
            topic.cut = true;
            self.sight.more = true;
            return Step::NextLane;
        }
        topic.found += 1;
        topic.last = task.place();
        self.tasks.push(task);
        Step::Next
    }

    /// Up to where nothing is missing: the first of the last known tasks of the main line and of lanes that have more. Limited topics do
    /// not count: their last known task says so itself.
    fn bound(&self) -> Option<Bound> {
        let cut = |topic: &Topic| topic.cut && !topic.rules.limited;
        let lanes = (0..self.topics.len())
            .filter(|&i| cut(&self.topics[i]))
            .map(|i| Bound {
                place: self.topics[i].last,
                lane: Some(i),
            });
        let line = self.line_cut.map(|place| Bound { place, lane: None });
        lanes.chain(line).min_by_key(|bound| bound.place)
    }

    /// Where lanes have unlike numbers of tasks, or unlike priorities, the first tasks may all be of a few of them.
    fn fetch_more(&mut self) -> Result<()> {
        for _ in 0..MOST_OF_ONE {
            let Some(Bound {
                place,
                lane: Some(i),
            }) = self.bound()
            else {
                break;
            };
            let known = self.tasks.iter().filter(|task| task.place() <= place);
            if known.count() >= MOST_OF_ONE {
                break;
            }
            let last = self.topics.len() - 1;
            self.topics.swap(i, last);
            let topic = &mut self.topics[last];
            topic.quota += MOST_OF_ONE;
            topic.cut = false;
            let lane = topic.lane.clone();
            let after = Place {
                id: place.id.saturating_add(1),
                ..place
            };
            let (store, role) = (self.store, self.question.key.role);
            store.lane(role, &lane, after, |seen| self.see(&seen))?;
        }
        Ok(())
    }

    /// Moves the strays to where they belong.
    fn move_strays(&self) -> Result<Answer> {
        let mut held = Vec::new();
        for Stray { task, lane } in &self.strays {
            let role = self.question.key.role;
            if self.store.put_into(lane.as_ref(), task, role)? == Updated::Locked {
                held.push(task.id);
            }
        }
        Ok(Answer {
            moved: true,
            held,
            ..Answer::nothing()
        })
    }

    fn answer(mut self) -> Answer {
        if let Some(Bound { place, .. }) = self.bound() {
            self.tasks.retain(|task| task.place() <= place);
        }
        self.tasks.sort_unstable_by_key(Queued::place);
        let topics: HashMap<TopicId, &Topic> =
            self.topics.iter().map(|topic| (topic.id, topic)).collect();
        let is_full = |task: &Candidate| {
            task.apart && topics.get(&task.topic).is_some_and(|topic| topic.full)
        };
        // those that cannot start yet must not take the place of those that can
        let (mut free, mut in_reserve) = (0, 0);
        let before = self.tasks.len();
        self.tasks.retain(|task| {
            let (count, most) = if is_full(task) {
                (&mut in_reserve, MOST_IN_ALL_RESERVES)
            } else {
                (&mut free, MOST_FREE)
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
        for task in self.tasks.iter().filter(|task| task.apart) {
            *kept.entry(task.topic).or_insert(0) += 1;
        }
        let mut ended = HashSet::new();
        for task in self.tasks.iter_mut().rev().filter(|task| task.apart) {
            if let Some(topic) = topics.get(&task.topic).filter(|topic| topic.rules.limited)
                && ended.insert(task.topic)
            {
                task.last_known = topic.cut || kept[&task.topic] < topic.found;
            }
        }
        for topic in self.topics.iter().filter(|topic| topic.rules.limited) {
            self.sight.passed_over |= topic.found > 0 && !kept.contains_key(&topic.id);
        }
        Answer {
            sight: self.sight,
            complete: self.complete,
            can_start: self.tasks.iter().any(|task| !is_full(task)),
            tasks: self.tasks,
            ..Answer::nothing()
        }
    }
}

/// Until when a task is left alone, if somebody holds its row.
fn held_until(held: &[(i64, i64)], task: &Candidate) -> Option<i64> {
    let held = held.iter().find(|&&(id, _)| id == task.id);
    held.map(|&(_, until)| until)
}

/// See [`Look::bound`].
struct Bound {
    place: Place,
    /// Which lane's last task that is; `None` is the main line's.
    lane: Option<usize>,
}
