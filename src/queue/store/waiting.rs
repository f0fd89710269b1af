//! The tasks that wait, in the order in which they are to run: the scans of `pg_background_tasks_queue_idx` that a look consists of.
//!
//! A role's tasks that may start whatever else runs are one sequence, the main line. Those whose topic has a limit or a delay stand apart,
//! each topic's in a lane of its own (the column `lane`): a million tasks that have to wait for each other are in nobody's way.

use super::attempts::CLAIM;
use super::rows::{integer, microseconds, optional_text, text_or_null};
use super::{State, Store, origin};
use crate::core::ready::{Place, Queued};
use crate::pg::datum::{self, IntoDatum};
use crate::pg::table::{self, Change, IndexScan, ScanKey, Tid, Updated, null_column};
use crate::pg::time::TimestampTz;
use crate::pg::{Oid, Result};
use crate::queue::topics::{MOST_TOPIC_BYTES, TopicId};

/// The columns of the index pg_background_tasks_queue_idx: the tasks that wait.
pub(super) const QUEUE_HELD: i32 = 1;
pub(super) const QUEUE_ROLE: i32 = 2;
const QUEUE_SCHEDULED: i32 = 3;
const QUEUE_LANE: i32 = 4;
const QUEUE_PRIORITY: i32 = 5;
const QUEUE_ID: i32 = 6;

/// Where the tasks of a topic stand apart; those without a topic can have to, too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lane(Vec<u8>);

impl Lane {
    /// That of a topic: its name after a colon, so that no topic's lane is that of the tasks without one. Longer names than can be enqueued,
    /// which somebody may have written into the table, share one: it must fit into the index.
    ///
    /// # Errors
    /// None known; the call is guarded like all.
    pub fn of(topic: Option<&[u8]>) -> Result<Self> {
        Ok(Self(match topic {
            Some(name) => [b":", datum::clip(name, MOST_TOPIC_BYTES)?].concat(),
            None => Vec::new(),
        }))
    }

    /// As it stands in the column `lane`.
    pub(super) fn text(&self) -> &[u8] {
        &self.0
    }
}

/// What a scan for work tells of a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Candidate {
    /// The task.
    pub id: i64,
    /// Where it is in the table.
    pub at: Tid,
    /// Its topic.
    pub topic: TopicId,
    /// Its priority.
    pub priority: i32,
    /// `pending` or `retrying`.
    pub state: State,
    /// It stands in a lane.
    pub apart: bool,
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
        at: Tid::UNKNOWN,
        topic: TopicId::NONE,
        priority: 0,
        state: State::Pending,
        apart: false,
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

    fn stands_apart(&self) -> bool {
        self.apart
    }
}

/// A task that a scan meets.
pub struct Seen<'a> {
    /// The task.
    pub task: Candidate,
    /// It must not run before.
    pub due: TimestampTz,
    /// The name of its topic.
    pub topic: Option<&'a [u8]>,
    /// Where it stands; `None` is the main line.
    pub lane: Option<&'a Lane>,
}

/// How it goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// With what comes next.
    Next,
    /// With the next lane.
    NextLane,
    /// Not at all.
    Stop,
}

/// How a scan was left.
enum Left {
    End,
    /// For the lane after this one.
    Lane(Lane),
    All,
}

impl Store {
    /// Goes over the tasks of a role that are in the queue and stand in no lane, in order, from a place on.
    ///
    /// # Errors
    /// I/O, and what `see` raises.
    pub fn main_line(
        &self,
        role: Oid,
        from: Place,
        mut see: impl FnMut(Seen<'_>) -> Result<Step>,
    ) -> Result<()> {
        self.scan_from(role, table::is_null(QUEUE_LANE), from, &mut see)
    }

    /// The same for one lane.
    ///
    /// # Errors
    /// I/O, and what `see` raises.
    pub fn lane(
        &self,
        role: Oid,
        lane: &Lane,
        from: Place,
        mut see: impl FnMut(Seen<'_>) -> Result<Step>,
    ) -> Result<()> {
        let lane = table::equals(QUEUE_LANE, lane.text().into_datum()?);
        self.scan_from(role, lane, from, &mut see)
    }

    /// Goes over all lanes of a role, each lane's tasks in order.
    ///
    /// # Errors
    /// I/O, and what `see` raises.
    pub fn lanes(&self, role: Oid, mut see: impl FnMut(Seen<'_>) -> Result<Step>) -> Result<()> {
        let mut next = table::is_not_null(QUEUE_LANE);
        loop {
            let keys = self.queue_keys(role, next)?;
            match self.scan_waiting(&keys, &mut see)? {
                Left::Lane(lane) => {
                    next = table::greater(QUEUE_LANE, lane.text().into_datum()?);
                }
                Left::End | Left::All => return Ok(()),
            }
        }
    }

    /// Puts a task that waits into a lane, or into the main line, unless it is no longer as it was seen.
    ///
    /// # Errors
    /// I/O.
    pub fn put_into(&self, lane: Option<&Lane>, task: &Candidate, role: Oid) -> Result<Updated> {
        let mut at = task.at;
        let change = Change {
            at: &mut at,
            fence: &self.as_seen(task, role)?,
            get: &mut [],
            set: &[text_or_null(self.columns.lane, lane.map(Lane::text))?],
        };
        table::update(self.table, task.id, change, CLAIM)
    }

    /// Two scans, each of which begins where it should: a row comparison.
    fn scan_from(
        &self,
        role: Oid,
        lane: ScanKey,
        from: Place,
        see: &mut impl FnMut(Seen<'_>) -> Result<Step>,
    ) -> Result<()> {
        let lane = self.queue_keys(role, lane)?;
        let priority = from.priority.into_datum()?;
        let same = [
            table::equals(QUEUE_PRIORITY, priority),
            table::at_least(QUEUE_ID, from.id.into_datum()?),
        ];
        let worse = [table::greater(QUEUE_PRIORITY, priority)];
        for rest in [same.as_slice(), &worse] {
            let keys = [lane.as_slice(), rest].concat();
            if !matches!(self.scan_waiting(&keys, see)?, Left::End) {
                break;
            }
        }
        Ok(())
    }

    fn queue_keys(&self, role: Oid, lane: ScanKey) -> Result<[ScanKey; 4]> {
        Ok([
            table::equals(QUEUE_HELD, 0),
            table::equals(QUEUE_ROLE, role.into_datum()?),
            table::equals(QUEUE_SCHEDULED, 0),
            lane,
        ])
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
            c.lane,
            c.priority,
            c.state,
            c.attempt,
            c.interruptions,
            c.joined_at,
            c.due_at,
            c.origin,
        ]
        .map(null_column);
        let mut topic: Option<Vec<u8>> = None;
        let mut topic_id = TopicId::of(None);
        let mut left = Left::End;
        let mut scan = IndexScan::begin(self.table.relation, self.queue_index, keys)?;
        while scan.next(&mut row)? {
            let [
                id,
                its_topic,
                lane,
                priority,
                state,
                attempt,
                interruptions,
                joined_at,
                due_at,
                from,
            ] = &row;
            let Some(state @ (State::Pending | State::Retrying)) = self.state_of(state) else {
                continue;
            };
            if optional_text(from)?.as_deref() != Some(origin.as_bytes()) {
                continue;
            }
            let its_topic = optional_text(its_topic)?;
            if its_topic != topic {
                topic_id = TopicId::of(its_topic.as_deref());
                topic = its_topic;
            }
            let lane = optional_text(lane)?.map(Lane);
            let task = Candidate {
                id: id.value as i64,
                at: scan.tid(),
                topic: topic_id,
                priority: integer(priority),
                state,
                apart: lane.is_some(),
                last_known: false,
                attempt: integer(attempt),
                interruptions: integer(interruptions),
                joined_at: microseconds(joined_at),
            };
            let step = see(Seen {
                task,
                due: microseconds(due_at),
                topic: topic.as_deref(),
                lane: lane.as_ref(),
            })?;
            match (step, lane) {
                (Step::Next, _) => {}
                (Step::NextLane, Some(lane)) => {
                    left = Left::Lane(lane);
                    break;
                }
                (Step::NextLane, None) | (Step::Stop, _) => {
                    left = Left::All;
                    break;
                }
            }
        }
        scan.end()?;
        Ok(left)
    }
}
