//! The table `pg_background_tasks`: every read and write of it, below SQL.
//!
//! A [`Store`] is the table as this process knows it (`lookup`). Tasks come in (`insert`); a role's workers look for those that wait
//! (`waiting`), after those whose time has come were let in (`schedule`), and have attempts of them, from the claim to its end (`attempts`). Operators, owners and keepers change other
//! rows (`change`), which they find by id (`rows`) or by going over all that are open (`open_rows`).

mod attempts;
mod change;
mod insert;
mod lookup;
mod open_rows;
mod rows;
mod schedule;
mod waiting;

pub use attempts::Task;
pub use insert::NewTask;
pub use open_rows::{Open, OpenRow, Roles};
pub use rows::{Row, State};
pub use schedule::Scheduled;
pub use waiting::{Candidate, Lane, Seen, Step};

use std::sync::OnceLock;

use rows::STATES;

use crate::pg::table::{Patience, Table};
use crate::pg::{Oid, catalog};

/// The table, as this process knows it until somebody changes its definition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Store {
    table: Table,
    patience: Patience,
    queue_index: Oid,
    schedule_index: Oid,
    state_index: Oid,
    sequence: Oid,
    states: [Oid; STATES.len()],
    columns: Columns,
}

/// The numbers of the columns, which an upgrade from 1.0 and a DBA's own columns can make differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Columns {
    id: i16,
    sql_statement: i16,
    topic: i16,
    joined_at: i16,
    started_at: i16,
    closed_at: i16,
    priority: i16,
    state: i16,
    retry_count: i16,
    retry_delay_in_sec: i16,
    errors: i16,
    role_oid: i16,
    role_name: i16,
    origin: i16,
    search_path: i16,
    attempt: i16,
    due_at: i16,
    max_retries: i16,
    interruptions: i16,
    held: i16,
    timeout_ms: i16,
    scheduled: i16,
    lane: i16,
}

impl Store {
    /// The same, which waits for others no longer than so many milliseconds: for rows of attempts.
    pub fn with_patience(self, milliseconds: i32) -> Self {
        let patience = Patience {
            table: milliseconds,
            row: milliseconds,
        };
        Self { patience, ..self }
    }

    /// The table's OID: another after DROP and CREATE EXTENSION.
    pub fn relation(&self) -> Oid {
        self.table.relation
    }
}

/// Where tasks of this database come from: a copy elsewhere has another. For a process that is connected to a database, and stays so until
/// it ends.
pub fn origin() -> &'static str {
    static ORIGIN: OnceLock<String> = OnceLock::new();
    ORIGIN.get_or_init(|| {
        format!(
            "{}/{}",
            catalog::system_identifier(),
            catalog::current_database()
        )
    })
}
