//! Where the table is, with its columns and indexes, which may be others in each database; remembered until somebody changes its definition.

use std::ffi::CStr;

use super::change::MINUTE;
use super::rows::STATES;
use super::{Columns, Store};
use crate::pg::local::ProcessLocal;
use crate::pg::table::Table;
use crate::pg::{Error, Oid, Result, callback, catalog, sqlstate};

static KNOWN: ProcessLocal<Option<Store>> = ProcessLocal::new(None);

/// Counts what may have made a lookup that was under way untrue.
static CHANGES: ProcessLocal<u32> = ProcessLocal::new(0);

static WATCHED: ProcessLocal<bool> = ProcessLocal::new(false);

fn forget(relation: Oid) {
    CHANGES.set(CHANGES.get().wrapping_add(1));
    if KNOWN
        .get()
        .is_some_and(|store| relation == 0 || relation == store.table.relation)
    {
        KNOWN.set(None);
    }
}

impl Store {
    /// The table of this database; `None` where the extension is not installed. In a transaction.
    ///
    /// # Errors
    /// Catalog lookups; XX000 if the table has been tampered with.
    pub fn open() -> Result<Option<Self>> {
        if let Some(store) = KNOWN.get() {
            return Ok(Some(store));
        }
        if !WATCHED.get() {
            callback::on_relation_change(forget)?;
            WATCHED.set(true);
        }
        let changes = CHANGES.get();
        let store = Self::look_up()?;
        if CHANGES.get() == changes {
            KNOWN.set(store);
        }
        Ok(store)
    }

    /// As [`open`](Self::open), where the extension must be there.
    ///
    /// # Errors
    /// 42P01 if it is not.
    pub fn require() -> Result<Self> {
        if let Some(store) = Self::open()? {
            return Ok(store);
        }
        if catalog::extension_relation(c"pg_background_queue", c"pg_background_tasks")?.is_some() {
            return Err(Error::new(
                sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
                "extension \"pg_background_queue\" is still of version 1.0 in this database",
            )
            .hint("Run ALTER EXTENSION pg_background_queue UPDATE in this database."));
        }
        Err(Error::new(
            sqlstate::UNDEFINED_TABLE,
            "extension \"pg_background_queue\" is not installed in this database",
        )
        .hint("Run CREATE EXTENSION pg_background_queue in this database."))
    }

    fn look_up() -> Result<Option<Self>> {
        let Some(relation) =
            catalog::extension_relation(c"pg_background_queue", c"pg_background_tasks")?
        else {
            return Ok(None);
        };
        // until it is updated, an installation of version 1.0 is none
        if catalog::column_number(relation, c"held")?.is_none() {
            return Ok(None);
        }
        let damaged = |what: &CStr| {
            Error::new(
                sqlstate::UNDEFINED_OBJECT,
                format!("table \"pg_background_tasks\" lacks {}", what.to_string_lossy()),
            )
            .hint("The extension may have been updated: reconnect. If that does not help, recreate the extension.")
        };
        let index = |name| catalog::index_of(relation, name)?.ok_or_else(|| damaged(name));
        let number = |name| catalog::column_number(relation, name)?.ok_or_else(|| damaged(name));
        let columns = Columns {
            id: number(c"id")?,
            sql_statement: number(c"sql_statement")?,
            topic: number(c"topic")?,
            joined_at: number(c"joined_at")?,
            started_at: number(c"started_at")?,
            closed_at: number(c"closed_at")?,
            priority: number(c"priority")?,
            state: number(c"state")?,
            retry_count: number(c"retry_count")?,
            retry_delay_in_sec: number(c"retry_delay_in_sec")?,
            errors: number(c"errors")?,
            role_oid: number(c"role_oid")?,
            role_name: number(c"role_name")?,
            origin: number(c"origin")?,
            search_path: number(c"search_path")?,
            attempt: number(c"attempt")?,
            due_at: number(c"due_at")?,
            max_retries: number(c"max_retries")?,
            interruptions: number(c"interruptions")?,
            held: number(c"held")?,
            timeout_ms: number(c"timeout_ms")?,
            scheduled: number(c"scheduled")?,
            lane: number(c"lane")?,
        };
        let state_type =
            catalog::column_type(relation, columns.state)?.ok_or_else(|| damaged(c"state"))?;
        let mut states = [0; STATES.len()];
        for (oid, (_, label)) in states.iter_mut().zip(STATES) {
            *oid = catalog::enum_label(state_type, label)?.ok_or_else(|| damaged(label))?;
        }
        Ok(Some(Self {
            table: Table {
                relation,
                primary_key: index(c"pg_background_tasks_pkey")?,
            },
            patience: MINUTE,
            queue_index: index(c"pg_background_tasks_queue_idx")?,
            schedule_index: index(c"pg_background_tasks_schedule_idx")?,
            state_index: index(c"pg_background_tasks_state_idx")?,
            sequence: catalog::owned_sequence(relation)?.ok_or_else(|| damaged(c"its sequence"))?,
            states,
            columns,
        }))
    }
}
