//! All tasks that are open, for whoever goes over them: keepers, and functions for operators.

use super::rows::{integer, optional_text};
use super::waiting::{QUEUE_HELD, QUEUE_ROLE};
use super::{State, Store, origin};
use crate::pg::datum::{self, Datum, IntoDatum};
use crate::pg::table::{self, IndexScan, null_column};
use crate::pg::{Oid, Result};

/// Of pg_background_tasks_state_idx.
const STATE_STATE: i32 = 1;

/// Which open tasks: see [`Store::open_rows`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    /// Those that wait to run.
    Waiting(Roles),
    /// Those that are held.
    Held,
    /// Those that run, or did when their server ended.
    Running,
}

/// Whose tasks: see [`Open`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Roles {
    /// Everybody's.
    All,
    /// Those of roles with a greater OID.
    After(Oid),
    /// One role's.
    Only(Oid),
}

/// What an open row of a role says, for whoever goes over all of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenRow {
    /// The task.
    pub id: i64,
    /// Its role.
    pub role: Oid,
    /// The name that the role had when the task was enqueued.
    pub role_name: Vec<u8>,
    /// Its priority.
    pub priority: i32,
    /// Its state.
    pub state: Option<State>,
    /// Its attempt.
    pub attempt: i32,
    /// Whether it was enqueued in this database of this cluster.
    pub ours: bool,
}

impl Store {
    /// Goes over these open tasks until `see` says no; in the order of their roles.
    ///
    /// # Errors
    /// I/O, and what `see` raises.
    pub fn open_rows(
        &self,
        open: Open,
        mut see: impl FnMut(&OpenRow) -> Result<bool>,
    ) -> Result<()> {
        let c = &self.columns;
        let origin = origin();
        let running = self.states[State::Running as usize] as Datum;
        let mut keys = match open {
            Open::Running => vec![table::equals(STATE_STATE, running)],
            Open::Held => vec![table::equals(QUEUE_HELD, 1)],
            Open::Waiting(_) => vec![table::equals(QUEUE_HELD, 0)],
        };
        match open {
            Open::Waiting(Roles::After(role)) => {
                keys.push(table::greater(QUEUE_ROLE, role.into_datum()?));
            }
            Open::Waiting(Roles::Only(role)) => {
                keys.push(table::equals(QUEUE_ROLE, role.into_datum()?));
            }
            _ => {}
        }
        let index = if open == Open::Running {
            self.state_index
        } else {
            self.queue_index
        };
        let mut row = [
            c.id,
            c.role_oid,
            c.role_name,
            c.priority,
            c.state,
            c.attempt,
            c.origin,
        ]
        .map(null_column);
        let mut scan = IndexScan::begin(self.table.relation, index, &keys)?;
        while scan.next(&mut row)? {
            let [id, role, role_name, priority, state, attempt, from] = &row;
            let open = OpenRow {
                id: id.value as i64,
                role: role.value as Oid,
                // SAFETY: the column is a name and never NULL.
                role_name: unsafe { datum::name_bytes(role_name.value) },
                priority: integer(priority),
                state: self.state_of(state),
                attempt: integer(attempt),
                ours: optional_text(from)?.as_deref() == Some(origin.as_bytes()),
            };
            if !see(&open)? {
                break;
            }
        }
        scan.end()
    }

    /// The ids of the open tasks that are held or were enqueued elsewhere, in their order.
    ///
    /// # Errors
    /// I/O.
    pub fn strangers(&self) -> Result<Vec<i64>> {
        let mut found = Vec::new();
        self.open_rows(Open::Held, |row| {
            found.push(row.id);
            Ok(true)
        })?;
        for open in [Open::Waiting(Roles::All), Open::Running] {
            self.open_rows(open, |row| {
                if !row.ours {
                    found.push(row.id);
                }
                Ok(true)
            })?;
        }
        // one can have changed from one state to another meanwhile
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}
