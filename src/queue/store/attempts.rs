//! An attempt of a task, from its claim to its end. Each of these writes has a fence: it changes the row only if that is still as its
//! writer saw it, so that of two who believe that an attempt is theirs, one is told.

use super::change::append_error;
use super::rows::{optional_integer, optional_text};
use super::{Candidate, Row, State, Store};
use crate::pg::datum::{Datum, IntoDatum};
use crate::pg::table::{self, Change, Column, Patience, Updated, column, null_column};
use crate::pg::{Error, Oid, Result, sqlstate, time};

/// A claim leaves a row that somebody else holds for later, at once.
pub(super) const CLAIM: Patience = Patience { table: 0, row: 0 };

/// A claimed task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Task {
    /// As it is now.
    pub row: Row,
    /// The table in which it was claimed.
    pub relation: Oid,
    /// What to run.
    pub sql: Vec<u8>,
    /// With which search_path.
    pub search_path: Vec<u8>,
    /// For how long at most, in milliseconds; `None` is what the settings say.
    pub timeout_ms: Option<i32>,
}

impl Store {
    /// Claims a candidate for its next attempt, unless it is no longer as it was seen.
    ///
    /// # Errors
    /// I/O.
    pub fn claim(
        &self,
        candidate: &Candidate,
        role: Oid,
    ) -> Result<std::result::Result<Task, Updated>> {
        let c = &self.columns;
        let attempt = candidate.attempt.wrapping_add(1);
        let of_row = self.row_columns();
        let mut get = [c.sql_statement, c.search_path, c.timeout_ms]
            .map(null_column)
            .to_vec();
        get.extend(of_row);
        let set = [
            self.state_column(State::Running),
            column(c.attempt, attempt.into_datum()?),
            column(c.started_at, time::now().into_datum()?),
        ];
        let mut at = candidate.at;
        let change = Change {
            at: &mut at,
            fence: &self.as_seen(candidate, role)?,
            get: &mut get,
            set: &set,
        };
        let updated = table::update(self.table, candidate.id, change, CLAIM)?;
        if updated != Updated::Done {
            return Ok(Err(updated));
        }
        let (own, of_row) = get.split_at(3);
        // the fence has seen its state
        let Some(before) = self.row(candidate.id, at, of_row)? else {
            return Ok(Err(Updated::Fenced));
        };
        Ok(Ok(Task {
            row: Row {
                attempt,
                state: State::Running,
                ..before
            },
            relation: self.table.relation,
            sql: optional_text(&own[0])?.unwrap_or_default(),
            search_path: optional_text(&own[1])?.unwrap_or_default(),
            timeout_ms: optional_integer(&own[2]),
        }))
    }

    /// What must still hold of a task that a look has seen. Its priority, topic and lane are not part of that: nobody but a superuser changes
    /// them, and who does so while it is about to run comes too late.
    pub(super) fn as_seen(&self, task: &Candidate, role: Oid) -> Result<[Column; 5]> {
        let c = &self.columns;
        Ok([
            self.state_column(task.state),
            column(c.attempt, task.attempt.into_datum()?),
            column(c.role_oid, role.into_datum()?),
            column(c.held, 0),
            // the id may be another task's by now: TRUNCATE … RESTART IDENTITY, or another table
            column(c.joined_at, task.joined_at.into_datum()?),
        ])
    }

    /// The end of an attempt, if the task is still running it; false if not.
    fn end_attempt(&self, row: &Row, set: &[Column]) -> Result<bool> {
        let mut fence = self.as_read(row)?;
        fence[0] = self.state_column(State::Running);
        self.change(row, &fence, set, self.patience)
    }

    /// Marks a task as finished, in the caller's transaction.
    ///
    /// # Errors
    /// 55000 if another has taken the task over: the caller's transaction must not commit. 55P03 if somebody holds the
    /// row or the table for longer than [the patience](Store::with_patience), a minute.
    pub fn finish(&self, task: &Task) -> Result<()> {
        let Row { id, attempt, .. } = task.row;
        let set = [
            self.state_column(State::Finished),
            column(self.columns.closed_at, time::now().into_datum()?),
        ];
        if self.end_attempt(&task.row, &set)? {
            return Ok(());
        }
        Err(Error::new(
            sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("task {id} is no longer attempt {attempt} of this worker"),
        )
        .detail("Its row was changed or deleted while it ran. Its effects are rolled back."))
    }

    /// Closes a running task as failed or cancelled; false if it is no longer running that attempt.
    ///
    /// # Errors
    /// I/O.
    pub fn close(&self, row: &Row, state: State, error: &[u8]) -> Result<bool> {
        let text = append_error(row.errors.as_deref(), error)?;
        let set = [
            self.state_column(state),
            column(self.columns.interruptions, row.interruptions.into_datum()?),
            column(self.columns.closed_at, time::now().into_datum()?),
            column(self.columns.errors, text.as_slice().into_datum()?),
        ];
        self.end_attempt(row, &set)
    }

    /// Has a running task run again after a while; false if it is no longer running that attempt.
    ///
    /// # Errors
    /// I/O.
    pub fn retry_later(
        &self,
        row: &Row,
        error: &[u8],
        retry_count: i32,
        delay_seconds: i32,
    ) -> Result<bool> {
        let c = &self.columns;
        let text = append_error(row.errors.as_deref(), error)?;
        let due = time::now() + i64::from(delay_seconds) * 1_000_000;
        let set = [
            self.state_column(State::Retrying),
            column(c.retry_count, retry_count.into_datum()?),
            column(c.retry_delay_in_sec, delay_seconds.into_datum()?),
            column(c.due_at, due.into_datum()?),
            column(c.scheduled, Datum::from(delay_seconds > 0)),
            column(c.errors, text.as_slice().into_datum()?),
        ];
        self.end_attempt(row, &set)
    }

    /// Lets a task whose attempt was cut off run again; false if it is no longer running that attempt.
    ///
    /// # Errors
    /// I/O.
    pub fn reopen(&self, row: &Row, interruptions: i32) -> Result<bool> {
        let set = [
            self.state_column(State::Pending),
            column(self.columns.interruptions, interruptions.into_datum()?),
        ];
        self.end_attempt(row, &set)
    }
}
