//! The tasks that are not due yet: they stand apart from those that could start, in the order of their times
//! (`pg_background_tasks_schedule_idx`), and are let into the queue when their time has come.

use super::attempts::CLAIM;
use super::rows::{integer, microseconds, optional_text};
use super::{State, Store, origin};
use crate::core::ready::Place;
use crate::core::schedule::Position;
use crate::pg::datum::IntoDatum;
use crate::pg::table::{
    self, Change, Column, IndexScan, ScanKey, Tid, Updated, column, null_column,
};
use crate::pg::time::TimestampTz;
use crate::pg::{Oid, Result};

/// The columns of the index pg_background_tasks_schedule_idx.
const SCHEDULE_ROLE: i32 = 1;
const SCHEDULE_DUE: i32 = 2;
const SCHEDULE_PRIORITY: i32 = 3;
const SCHEDULE_ID: i32 = 4;

/// A task that waits for its time.
#[derive(Clone, Copy)]
pub struct Scheduled {
    /// The task.
    pub id: i64,
    /// Its priority.
    pub priority: i32,
    /// `pending` or `retrying`.
    state: State,
    /// The column `due_at` as it is.
    due_at: Column,
}

impl Scheduled {
    /// Its time; the earliest there is for one without.
    pub fn due(&self) -> TimestampTz {
        microseconds(&self.due_at)
    }

    /// Where it stands in the schedule.
    pub fn position(&self) -> Position {
        Position {
            due: self.due(),
            place: Place {
                priority: self.priority,
                id: self.id,
            },
        }
    }
}

impl Store {
    /// Goes over the tasks of a role that are scheduled, in the order of their positions from this one on, until `see` says no.
    ///
    /// # Errors
    /// I/O.
    pub fn scheduled(
        &self,
        role: Oid,
        from: Position,
        mut see: impl FnMut(Scheduled) -> bool,
    ) -> Result<()> {
        let role = table::equals(SCHEDULE_ROLE, role.into_datum()?);
        let due = from.due.into_datum()?;
        let priority = from.place.priority.into_datum()?;
        if from == Position::FIRST {
            // also those that, by somebody's hand, have no time
            self.scan_scheduled(&[role], &mut see)?;
        } else if from == Position::at(from.due) {
            self.scan_scheduled(&[role, table::at_least(SCHEDULE_DUE, due)], &mut see)?;
        } else {
            // three scans, each of which begins where it should: a row comparison
            let scans = [
                &[
                    role,
                    table::equals(SCHEDULE_DUE, due),
                    table::equals(SCHEDULE_PRIORITY, priority),
                    table::at_least(SCHEDULE_ID, from.place.id.into_datum()?),
                ][..],
                &[
                    role,
                    table::equals(SCHEDULE_DUE, due),
                    table::greater(SCHEDULE_PRIORITY, priority),
                ],
                &[role, table::greater(SCHEDULE_DUE, due)],
            ];
            for keys in scans {
                if !self.scan_scheduled(keys, &mut see)? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// False if `see` has said no.
    fn scan_scheduled(
        &self,
        keys: &[ScanKey],
        see: &mut impl FnMut(Scheduled) -> bool,
    ) -> Result<bool> {
        let c = &self.columns;
        let origin = origin();
        let mut goes_on = true;
        let mut row = [c.id, c.priority, c.state, c.due_at, c.origin].map(null_column);
        let mut scan = IndexScan::begin(self.table.relation, self.schedule_index, keys)?;
        while goes_on && scan.next(&mut row)? {
            let [id, priority, state, due_at, from] = &row;
            let Some(state) = self.state_of(state) else {
                continue;
            };
            if optional_text(from)?.as_deref() != Some(origin.as_bytes()) {
                continue;
            }
            goes_on = see(Scheduled {
                id: id.value as i64,
                priority: integer(priority),
                state,
                due_at: *due_at,
            });
        }
        scan.end()?;
        Ok(goes_on)
    }

    /// Lets a task whose time has come into the queue, unless it is no longer as it was seen.
    ///
    /// # Errors
    /// I/O.
    pub fn let_in(&self, task: &Scheduled, role: Oid) -> Result<Updated> {
        let c = &self.columns;
        let fence = [
            self.state_column(task.state),
            column(c.role_oid, role.into_datum()?),
            column(c.held, 0),
            column(c.scheduled, 1),
            task.due_at,
        ];
        let change = Change {
            at: &mut { Tid::UNKNOWN },
            fence: &fence,
            get: &mut [],
            set: &[column(c.scheduled, 0)],
        };
        table::update(self.table, task.id, change, CLAIM)
    }
}
