//! The tasks that wait, in the order in which they are to run: the scans of `pg_background_tasks_queue_idx` that a look consists of.

use super::rows::{integer, microseconds, optional_text};
use super::{State, Store, origin};
use crate::core::ready::{Place, Queued};
use crate::pg::datum::IntoDatum;
use crate::pg::table::{self, IndexScan, ScanKey, null_column};
use crate::pg::time::TimestampTz;
use crate::pg::{Oid, Result};
use crate::queue::topics::TopicId;

/// The columns of the index pg_background_tasks_queue_idx: the tasks that wait.
pub(super) const QUEUE_HELD: i32 = 1;
pub(super) const QUEUE_ROLE: i32 = 2;
const QUEUE_TOPIC: i32 = 3;
const QUEUE_PRIORITY: i32 = 4;
const QUEUE_ID: i32 = 5;

/// What a scan for work tells of a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Candidate {
    /// The task.
    pub id: i64,
    /// Its topic.
    pub topic: TopicId,
    /// Its priority.
    pub priority: i32,
    /// `pending` or `retrying`.
    pub state: State,
    /// More tasks of its topic wait, which the look that found it has left.
    pub last_known: bool,
    /// Attempts so far.
    pub attempt: i32,
    /// Crashes that it was part of.
    pub interruptions: i32,
    /// When it was enqueued.
    pub joined_at: TimestampTz,
}

impl Candidate {
    /// None at all.
    pub const NONE: Self = Self {
        id: 0,
        topic: TopicId::NONE,
        priority: 0,
        state: State::Pending,
        last_known: false,
        attempt: 0,
        interruptions: 0,
        joined_at: 0,
    };
}

impl Queued for Candidate {
    fn place(&self) -> Place {
        Place {
            priority: self.priority,
            id: self.id,
        }
    }
}

/// What [`Store::waiting`] meets.
pub enum Seen<'a> {
    /// Another topic, whose tasks come next.
    Topic(Option<&'a [u8]>, TopicId),
    /// A task, and the time before which it must not run.
    Task(Candidate, TimestampTz),
}

/// How [`Store::waiting`] goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// With what comes next.
    Next,
    /// With the next topic.
    NextTopic,
    /// Not at all.
    Stop,
}

/// How a scan was left.
enum Left {
    End,
    /// For the topic after this one.
    Topic(Option<Vec<u8>>),
    All,
}

impl Store {
    /// Goes over the tasks of a role that wait to run: topic by topic in the order of their bytes, those without a topic last,
    /// and each topic's in order. `see` is told the topic when it is another than before.
    ///
    /// # Errors
    /// I/O, and what `see` raises.
    pub fn waiting(&self, role: Oid, mut see: impl FnMut(Seen<'_>) -> Result<Step>) -> Result<()> {
        let mut topic_key = None;
        loop {
            let passed_over = topic_key.is_some();
            let keys = self.queue_keys(role, topic_key)?;
            match self.scan_waiting(&keys, &mut see)? {
                Left::Topic(Some(topic)) => {
                    let after = topic.as_slice().into_datum()?;
                    topic_key = Some(table::greater(QUEUE_TOPIC, after));
                }
                // a scan of what is greater does not see NULLs
                Left::End if passed_over => {
                    let keys = self.queue_keys(role, Some(table::is_null(QUEUE_TOPIC)))?;
                    self.scan_waiting(&keys, &mut see)?;
                    return Ok(());
                }
                Left::End | Left::Topic(None) | Left::All => return Ok(()),
            }
        }
    }

    /// The same for one topic, from a place on.
    ///
    /// # Errors
    /// I/O, and what `see` raises.
    pub fn waiting_in(
        &self,
        role: Oid,
        topic: Option<&[u8]>,
        from: Place,
        mut see: impl FnMut(Seen<'_>) -> Result<Step>,
    ) -> Result<()> {
        let topic = match topic {
            Some(topic) => table::equals(QUEUE_TOPIC, topic.into_datum()?),
            None => table::is_null(QUEUE_TOPIC),
        };
        let topic = self.queue_keys(role, Some(topic))?;
        let priority = from.priority.into_datum()?;
        // two scans, each of which begins where it should: a row comparison
        let same = [
            table::equals(QUEUE_PRIORITY, priority),
            table::at_least(QUEUE_ID, from.id.into_datum()?),
        ];
        let worse = [table::greater(QUEUE_PRIORITY, priority)];
        for rest in [same.as_slice(), &worse] {
            let keys = [topic.as_slice(), rest].concat();
            if !matches!(self.scan_waiting(&keys, &mut see)?, Left::End) {
                break;
            }
        }
        Ok(())
    }

    /// Whether a task of the role waits that has a topic.
    ///
    /// # Errors
    /// I/O.
    pub fn has_topics(&self, role: Oid) -> Result<bool> {
        let keys = self.queue_keys(role, Some(table::is_not_null(QUEUE_TOPIC)))?;
        let mut scan = IndexScan::begin(self.table.relation, self.queue_index, &keys)?;
        let found = scan.next(&mut [])?;
        scan.end()?;
        Ok(found)
    }

    fn queue_keys(&self, role: Oid, topic: Option<ScanKey>) -> Result<Vec<ScanKey>> {
        let mut keys = vec![
            table::equals(QUEUE_HELD, 0),
            table::equals(QUEUE_ROLE, role.into_datum()?),
        ];
        keys.extend(topic);
        Ok(keys)
    }

    fn scan_waiting(
        &self,
        keys: &[ScanKey],
        see: &mut impl FnMut(Seen<'_>) -> Result<Step>,
    ) -> Result<Left> {
        let c = &self.columns;
        let origin = origin();
        let mut row = [
            c.id,
            c.topic,
            c.priority,
            c.state,
            c.attempt,
            c.interruptions,
            c.joined_at,
            c.due_at,
            c.origin,
        ]
        .map(null_column);
        let mut topic: Option<Option<Vec<u8>>> = None;
        let mut topic_id = TopicId::NONE;
        let mut left = Left::End;
        let mut scan = IndexScan::begin(self.table.relation, self.queue_index, keys)?;
        while scan.next(&mut row)? {
            let [
                id,
                of,
                priority,
                state,
                attempt,
                interruptions,
                joined_at,
                due_at,
                from,
            ] = &row;
            let of = optional_text(of)?;
            let is_new = topic.as_ref() != Some(&of);
            if is_new {
                topic_id = TopicId::of(of.as_deref());
                if matches!(see(Seen::Topic(of.as_deref(), topic_id))?, Step::NextTopic) {
                    left = Left::Topic(of);
                    break;
                }
                topic = Some(of);
            }
            let Some(state @ (State::Pending | State::Retrying)) = self.state_of(state) else {
                continue;
            };
            if optional_text(from)?.as_deref() != Some(origin.as_bytes()) {
                continue;
            }
            let candidate = Candidate {
                id: id.value as i64,
                topic: topic_id,
                priority: integer(priority),
                state,
                last_known: false,
                attempt: integer(attempt),
                interruptions: integer(interruptions),
                joined_at: microseconds(joined_at),
            };
            match see(Seen::Task(candidate, microseconds(due_at)))? {
                Step::Next => {}
                Step::NextTopic => {
                    left = Left::Topic(topic.flatten());
                    break;
                }
                Step::Stop => {
                    left = Left::All;
                    break;
                }
            }
        }
        scan.end()?;
        Ok(left)
    }
}
