//! Changes of a row by somebody who has read it before: it must not have changed since.

use super::{Row, State, Store, origin};
use crate::core::errors;
use crate::pg::datum::{self, IntoDatum};
use crate::pg::table::{self, Change, Column, Patience, Updated, column, null_column};
use crate::pg::{Error, Oid, Result, sqlstate, time};

/// Everything else waits so long at most and is an error then, 55P03: a finish mark is made in the task's transaction,
/// which holds locks that the one who is waited for may want; a keeper is wanted elsewhere, too.
pub(super) const MINUTE: Patience = Patience {
    table: 60_000,
    row: 60_000,
};

/// Whether a change was made; false if the row was not there or not as it should be.
fn was_changed(id: i64, updated: Updated) -> Result<bool> {
    if updated == Updated::Locked {
        let message = format!("could not change task {id}: another session holds its row");
        return Err(Error::new(sqlstate::LOCK_NOT_AVAILABLE, message));
    }
    Ok(updated == Updated::Done)
}

/// What is kept in the column `errors` after another one.
pub(super) fn append_error(kept: Option<&[u8]>, error: &[u8]) -> Result<Vec<u8>> {
    let error = datum::clip(error, errors::MOST_BYTES_OF_ONE)?;
    Ok(errors::append(kept, error, errors::MOST_BYTES))
}

impl Store {
    /// Changes a row as it was read, which must still be as `fence` says; false if it is not.
    pub(super) fn change(
        &self,
        row: &Row,
        fence: &[Column],
        set: &[Column],
        patience: Patience,
    ) -> Result<bool> {
        let mut at = row.at;
        let change = Change {
            at: &mut at,
            fence,
            get: &mut [],
            set,
        };
        was_changed(row.id, table::update(self.table, row.id, change, patience)?)
    }

    /// A row as it was read.
    pub(super) fn as_read(&self, row: &Row) -> Result<[Column; 4]> {
        Ok([
            self.state_column(row.state),
            column(self.columns.attempt, row.attempt.into_datum()?),
            column(self.columns.role_oid, row.role.into_datum()?),
            // TRUNCATE … RESTART IDENTITY gives the same id to another task
            column(self.columns.joined_at, row.joined_at.into_datum()?),
        ])
    }

    /// Closes a task that waits as failed or cancelled; false if it has changed meanwhile.
    ///
    /// # Errors
    /// I/O.
    pub fn close_waiting(&self, row: &Row, state: State, error: Option<&[u8]>) -> Result<bool> {
        let c = &self.columns;
        let mut set = vec![
            self.state_column(state),
            column(c.scheduled, 0),
            column(c.closed_at, time::now().into_datum()?),
        ];
        if let Some(error) = error {
            let text = append_error(row.errors.as_deref(), error)?;
            set.push(column(c.errors, text.as_slice().into_datum()?));
        }
        self.change(row, &self.as_read(row)?, &set, Patience::SESSION)
    }

    /// Puts a closed task back among those that wait, with all its retries; false if it has changed meanwhile.
    ///
    /// # Errors
    /// I/O.
    pub fn put_back(&self, row: &Row) -> Result<bool> {
        let c = &self.columns;
        let set = [
            self.state_column(State::Pending),
            column(c.retry_count, 0),
            column(c.retry_delay_in_sec, 0),
            column(c.interruptions, 0),
            null_column(c.due_at),
            column(c.scheduled, 0),
            null_column(c.closed_at),
        ];
        self.change(row, &self.as_read(row)?, &set, Patience::SESSION)
    }

    /// Deletes a task; false if it has changed meanwhile.
    ///
    /// # Errors
    /// I/O.
    pub fn delete(&self, row: &Row) -> Result<bool> {
        was_changed(
            row.id,
            table::delete(self.table, row.id, &self.as_read(row)?, Patience::SESSION)?,
        )
    }

    /// Holds an open task that was enqueued elsewhere.
    ///
    /// # Errors
    /// I/O.
    pub fn hold(&self, row: &Row) -> Result<bool> {
        let mut fence = self.as_read(row)?.to_vec();
        fence.push(column(self.columns.held, 0));
        let mut set = vec![column(self.columns.held, 1)];
        if row.state == State::Running {
            // it ran where it came from
            set.push(self.state_column(State::Pending));
        }
        self.change(row, &fence, &set, MINUTE)
    }

    /// Makes a task that was enqueued elsewhere one of this database, as the role given.
    ///
    /// # Errors
    /// I/O.
    pub fn release(&self, row: &Row, role: Oid) -> Result<bool> {
        let c = &self.columns;
        let mut set = vec![
            column(c.held, 0),
            column(c.origin, origin().into_datum()?),
            column(c.role_oid, role.into_datum()?),
        ];
        if row.state == State::Running {
            // it ran where it came from
            set.push(self.state_column(State::Pending));
        }
        self.change(row, &self.as_read(row)?, &set, Patience::SESSION)
    }
}
