//! A new task.

use super::rows::text_or_null;
use super::{Lane, State, Store, origin};
use crate::pg::datum::{self, Datum, IntoDatum};
use crate::pg::table::{self, Tid, column, null_column};
use crate::pg::time::TimestampTz;
use crate::pg::{Oid, Result, catalog};

/// A new task.
pub struct NewTask<'a> {
    /// What to run.
    pub sql: &'a [u8],
    /// Its topic.
    pub topic: Option<&'a [u8]>,
    /// Where it stands apart, if it does.
    pub lane: Option<Lane>,
    /// Its priority.
    pub priority: i32,
    /// As which role.
    pub role: Oid,
    /// That role's name.
    pub role_name: &'a [u8],
    /// With which search_path.
    pub search_path: &'a [u8],
    /// Not before.
    pub run_at: Option<TimestampTz>,
    /// That is yet to come.
    pub scheduled: bool,
    /// Retries allowed.
    pub max_retries: Option<i32>,
    /// For how long at most, in milliseconds.
    pub timeout_ms: Option<i32>,
}

impl Store {
    /// Inserts a task; returns its id, and where it is.
    ///
    /// # Errors
    /// I/O; the sequence's end.
    pub fn insert(&self, task: &NewTask<'_>, joined_at: TimestampTz) -> Result<(i64, Tid)> {
        let c = &self.columns;
        // the sequence before its table, as DROP EXTENSION locks them
        let id = catalog::next_value(self.sequence)?;
        let optional = |attnum, value: Option<i64>| match value {
            Some(value) => column(attnum, value as Datum),
            None => null_column(attnum),
        };
        let zero = |attnum| column(attnum, 0);
        let at = table::insert(
            self.table.relation,
            &[
                column(c.id, id.into_datum()?),
                column(c.sql_statement, task.sql.into_datum()?),
                text_or_null(c.topic, task.topic)?,
                text_or_null(c.lane, task.lane.as_ref().map(Lane::text))?,
                column(c.joined_at, joined_at.into_datum()?),
                column(c.priority, task.priority.into_datum()?),
                self.state_column(State::Pending),
                zero(c.retry_count),
                zero(c.retry_delay_in_sec),
                column(c.role_oid, task.role.into_datum()?),
                column(c.role_name, datum::name(task.role_name)?),
                column(c.origin, origin().into_datum()?),
                column(c.search_path, task.search_path.into_datum()?),
                zero(c.attempt),
                zero(c.interruptions),
                zero(c.held),
                optional(c.due_at, task.run_at),
                column(c.scheduled, Datum::from(task.scheduled)),
                optional(c.max_retries, task.max_retries.map(i64::from)),
                optional(c.timeout_ms, task.timeout_ms.map(i64::from)),
            ],
        )?;
        Ok((id, at))
    }
}
