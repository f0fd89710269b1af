//! How a row reads: from columns to Rust values and back.

use std::ffi::CStr;

use super::{Store, origin};
use crate::core::ready::Place;
use crate::pg::datum::{self, Datum, IntoDatum};
use crate::pg::table::{self, Column, IndexScan, Tid, column, null_column};
use crate::pg::time::TimestampTz;
use crate::pg::{Oid, Result};

/// The states, in the order of the enum's labels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub enum State {
    /// Waits for its first attempt, or was interrupted.
    Pending,
    /// Runs.
    Running,
    /// Waits for another attempt.
    Retrying,
    /// Has failed for good.
    Failed,
    /// Is done.
    Finished,
    /// Was cancelled.
    Cancelled,
}

pub(super) const STATES: [(State, &CStr); 6] = [
    (State::Pending, c"pending"),
    (State::Running, c"running"),
    (State::Retrying, c"retrying"),
    (State::Failed, c"failed"),
    (State::Finished, c"finished"),
    (State::Cancelled, c"cancelled"),
];

/// What is to be known of a task when an attempt has ended or somebody wants to change it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The task.
    pub id: i64,
    /// Where it is in the table.
    pub at: Tid,
    /// The latest attempt: with the id, what fences off everybody else.
    pub attempt: i32,
    /// Its state.
    pub state: State,
    /// When it was enqueued.
    pub joined_at: TimestampTz,
    /// As which role it runs.
    pub role: Oid,
    /// The name that the role had when the task was enqueued.
    pub role_name: Vec<u8>,
    /// It was enqueued in this database of this cluster.
    pub ours: bool,
    /// Its topic.
    pub topic: Option<Vec<u8>>,
    /// Its priority.
    pub priority: i32,
    /// Crashes that it was part of.
    pub interruptions: i32,
    /// Retries used.
    pub retry_count: i32,
    /// Retries allowed; `None` is what the settings say.
    pub max_retries: Option<i32>,
    /// Errors of earlier attempts.
    pub errors: Option<Vec<u8>>,
}

impl Row {
    /// Its place in the queue.
    pub fn place(&self) -> Place {
        Place {
            priority: self.priority,
            id: self.id,
        }
    }
}

pub(super) fn microseconds(column: &Column) -> TimestampTz {
    if column.isnull {
        TimestampTz::MIN
    } else {
        column.value as i64
    }
}

pub(super) fn integer(column: &Column) -> i32 {
    column.value as i32
}

pub(super) fn optional_integer(column: &Column) -> Option<i32> {
    (!column.isnull).then(|| integer(column))
}

pub(super) fn optional_text(column: &Column) -> Result<Option<Vec<u8>>> {
    // SAFETY: the caller passes a column that was asked for and is a text.
    (!column.isnull)
        .then(|| unsafe { datum::text_bytes(column.value) })
        .transpose()
}

/// A text column with a value, or NULL.
pub(super) fn text_or_null(attnum: i16, value: Option<&[u8]>) -> Result<Column> {
    Ok(match value {
        Some(value) => column(attnum, value.into_datum()?),
        None => null_column(attnum),
    })
}

impl Store {
    pub(super) fn state_column(&self, state: State) -> Column {
        column(self.columns.state, self.states[state as usize] as Datum)
    }

    pub(super) fn state_of(&self, value: &Column) -> Option<State> {
        let oid = value.value as Oid;
        self.states
            .iter()
            .position(|&known| known == oid)
            .map(|i| STATES[i].0)
    }

    /// The columns that make a [`Row`].
    pub(super) fn row_columns(&self) -> [Column; 12] {
        let c = &self.columns;
        [
            c.attempt,
            c.state,
            c.joined_at,
            c.role_oid,
            c.role_name,
            c.origin,
            c.topic,
            c.priority,
            c.interruptions,
            c.retry_count,
            c.max_retries,
            c.errors,
        ]
        .map(null_column)
    }

    /// The [`Row`] of these columns; `None` for a state that is none of ours.
    pub(super) fn row(&self, id: i64, at: Tid, columns: &[Column]) -> Result<Option<Row>> {
        let [
            attempt,
            state,
            joined_at,
            role,
            role_name,
            from,
            topic,
            priority,
            interruptions,
            retry_count,
            max_retries,
            errors,
        ] = columns
        else {
            return Ok(None);
        };
        let Some(state) = self.state_of(state) else {
            return Ok(None);
        };
        Ok(Some(Row {
            id,
            at,
            attempt: integer(attempt),
            state,
            joined_at: microseconds(joined_at),
            role: role.value as Oid,
            // SAFETY: the column is a name and never NULL.
            role_name: unsafe { datum::name_bytes(role_name.value) },
            ours: optional_text(from)?.as_deref() == Some(origin().as_bytes()),
            topic: optional_text(topic)?,
            priority: integer(priority),
            interruptions: integer(interruptions),
            retry_count: integer(retry_count),
            max_retries: optional_integer(max_retries),
            errors: optional_text(errors)?,
        }))
    }

    /// One task, by its id.
    ///
    /// # Errors
    /// I/O.
    pub fn find(&self, id: i64) -> Result<Option<Row>> {
        let mut columns = self.row_columns();
        let keys = [table::equals(1, id.into_datum()?)];
        let mut scan = IndexScan::begin(self.table.relation, self.table.primary_key, &keys)?;
        let row = if scan.next(&mut columns)? {
            self.row(id, scan.tid(), &columns)?
        } else {
            None
        };
        scan.end()?;
        Ok(row)
    }
}
