//! The table `pg_background_tasks`: every read and write of it, below SQL.

use std::ffi::CStr;

use super::topics::TopicId;
use crate::core::errors;
use crate::core::ready::{Place, Queued};
use crate::pg::datum::{self, Datum, IntoDatum};
use crate::pg::local::ProcessLocal;
use crate::pg::table::{
    self, Change, Column, IndexScan, Patience, ScanKey, Table, Updated, column, null_column,
};
use crate::pg::time::{self, TimestampTz};
use crate::pg::{Error, Oid, Result, callback, catalog, sqlstate};

/// A claim leaves a row that somebody else holds for later, at once.
const CLAIM: Patience = Patience { table: 0, row: 0 };

/// Everything else waits so long at most and is an error then, 55P03: a finish mark is made in the task's transaction,
/// which holds locks that the one who is waited for may want; a keeper is wanted elsewhere, too.
const MINUTE: Patience = Patience {
    table: 60_000,
    row: 60_000,
};

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

const STATES: [(State, &CStr); 6] = [
    (State::Pending, c"pending"),
    (State::Running, c"running"),
    (State::Retrying, c"retrying"),
    (State::Failed, c"failed"),
    (State::Finished, c"finished"),
    (State::Cancelled, c"cancelled"),
];

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
}

/// The table, as this process knows it until somebody changes its definition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Store {
    table: Table,
    queue_index: Oid,
    state_index: Oid,
    sequence: Oid,
    state_type: Oid,
    states: [Oid; STATES.len()],
    columns: Columns,
}

/// The columns of the index pg_background_tasks_queue_idx: the tasks that wait.
const QUEUE_HELD: i32 = 1;
const QUEUE_ROLE: i32 = 2;
const QUEUE_TOPIC: i32 = 3;
const QUEUE_PRIORITY: i32 = 4;
const QUEUE_ID: i32 = 5;

/// Of pg_background_tasks_state_idx.
const STATE_STATE: i32 = 1;

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

/// What is to be known of a task when an attempt has ended or somebody wants to change it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The task.
    pub id: i64,
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

/// A new task.
pub struct NewTask<'a> {
    /// What to run.
    pub sql: &'a [u8],
    /// Its topic.
    pub topic: Option<&'a [u8]>,
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
    /// Retries allowed.
    pub max_retries: Option<i32>,
    /// For how long at most, in milliseconds.
    pub timeout_ms: Option<i32>,
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

/// What is kept in the column `errors` after another one.
fn append_error(kept: Option<&[u8]>, error: &[u8]) -> Result<Vec<u8>> {
    let error = datum::clip(error, errors::MOST_BYTES_OF_ONE)?;
    Ok(errors::append(kept, error, errors::MOST_BYTES))
}

fn microseconds(column: &Column) -> TimestampTz {
    if column.isnull {
        TimestampTz::MIN
    } else {
        column.value as i64
    }
}

fn integer(column: &Column) -> i32 {
    column.value as i32
}

/// Whether a change was made; false if the row was not there or not as it should be.
fn was_changed(id: i64, updated: Updated) -> Result<bool> {
    if updated == Updated::Locked {
        let message = format!("could not change task {id}: another session holds its row");
        return Err(Error::new(sqlstate::LOCK_NOT_AVAILABLE, message));
    }
    Ok(updated == Updated::Done)
}

fn optional_integer(column: &Column) -> Option<i32> {
    (!column.isnull).then(|| integer(column))
}

fn optional_text(column: &Column) -> Result<Option<Vec<u8>>> {
    // SAFETY: the caller passes a column that was asked for and is a text.
    (!column.isnull)
        .then(|| unsafe { datum::text_bytes(column.value) })
        .transpose()
}

/// Where tasks of this database come from: a copy elsewhere has another.
pub fn origin() -> String {
    format!(
        "{}/{}",
        catalog::system_identifier(),
        catalog::current_database()
    )
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
            queue_index: index(c"pg_background_tasks_queue_idx")?,
            state_index: index(c"pg_background_tasks_state_idx")?,
            sequence: catalog::owned_sequence(relation)?.ok_or_else(|| damaged(c"its sequence"))?,
            state_type,
            states,
            columns,
        }))
    }

    /// The table's OID: another after DROP and CREATE EXTENSION.
    pub fn relation(&self) -> Oid {
        self.table.relation
    }

    fn state_column(&self, state: State) -> Column {
        column(self.columns.state, self.states[state as usize] as Datum)
    }

    fn state_of(&self, value: &Column) -> Option<State> {
        let oid = value.value as Oid;
        self.states
            .iter()
            .position(|&known| known == oid)
            .map(|i| STATES[i].0)
    }

    /// Inserts a task; returns its id.
    ///
    /// # Errors
    /// I/O; the sequence's end.
    pub fn insert(&self, task: &NewTask<'_>, joined_at: TimestampTz) -> Result<i64> {
        let c = &self.columns;
        // the sequence before its table, as DROP EXTENSION locks them
        let id = catalog::next_value(self.sequence)?;
        let topic = match task.topic {
            Some(topic) => column(c.topic, topic.into_datum()?),
            None => null_column(c.topic),
        };
        let optional = |attnum, value: Option<i64>| match value {
            Some(value) => column(attnum, value as Datum),
            None => null_column(attnum),
        };
        let zero = |attnum| column(attnum, 0);
        table::insert(
            self.table.relation,
            &[
                column(c.id, id.into_datum()?),
                column(c.sql_statement, task.sql.into_datum()?),
                topic,
                column(c.joined_at, joined_at.into_datum()?),
                column(c.priority, task.priority.into_datum()?),
                self.state_column(State::Pending),
                zero(c.retry_count),
                zero(c.retry_delay_in_sec),
                column(c.role_oid, task.role.into_datum()?),
                column(c.role_name, datum::name(task.role_name)?),
                column(c.origin, origin().as_str().into_datum()?),
                column(c.search_path, task.search_path.into_datum()?),
                zero(c.attempt),
                zero(c.interruptions),
                zero(c.held),
                optional(c.due_at, task.run_at),
                optional(c.max_retries, task.max_retries.map(i64::from)),
                optional(c.timeout_ms, task.timeout_ms.map(i64::from)),
            ],
        )?;
        Ok(id)
    }

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

    /// The columns that make a [`Row`].
    fn row_columns(&self) -> [Column; 12] {
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
    fn row(&self, id: i64, columns: &[Column]) -> Result<Option<Row>> {
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
        let fence = [
            self.state_column(candidate.state),
            column(c.attempt, candidate.attempt.into_datum()?),
            column(c.role_oid, role.into_datum()?),
            column(c.held, 0),
        ];
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
        let change = Change {
            fence: &fence,
            get: &mut get,
            set: &set,
        };
        let updated = table::update(self.table, candidate.id, change, CLAIM)?;
        if updated != Updated::Done {
            return Ok(Err(updated));
        }
        let (own, of_row) = get.split_at(3);
        // the fence has seen its state
        let Some(before) = self.row(candidate.id, of_row)? else {
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

    /// Changes a row that must still be as `fence` says; false if it is not.
    fn change(
        &self,
        id: i64,
        fence: &[Column],
        set: &[Column],
        patience: Patience,
    ) -> Result<bool> {
        let change = Change {
            fence,
            get: &mut [],
            set,
        };
        was_changed(id, table::update(self.table, id, change, patience)?)
    }

    /// A row as it was read.
    fn as_read(&self, row: &Row) -> Result<[Column; 4]> {
        Ok([
            self.state_column(row.state),
            column(self.columns.attempt, row.attempt.into_datum()?),
            column(self.columns.role_oid, row.role.into_datum()?),
            // TRUNCATE … RESTART IDENTITY gives the same id to another task
            column(self.columns.joined_at, row.joined_at.into_datum()?),
        ])
    }

    /// The end of an attempt, if the task is still running it; false if not.
    fn end_attempt(&self, row: &Row, set: &[Column]) -> Result<bool> {
        let running = Row {
            state: State::Running,
            ..row.clone()
        };
        self.change(row.id, &self.as_read(&running)?, set, MINUTE)
    }

    /// Marks a task as finished, in the caller's transaction.
    ///
    /// # Errors
    /// 55000 if another has taken the task over: the caller's transaction must not commit. 55P03 if somebody holds the
    /// row or the table for a minute.
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

    /// Closes a task that waits as failed or cancelled; false if it has changed meanwhile.
    ///
    /// # Errors
    /// I/O.
    pub fn close_waiting(&self, row: &Row, state: State, error: Option<&[u8]>) -> Result<bool> {
        let c = &self.columns;
        let mut set = vec![
            self.state_column(state),
            column(c.closed_at, time::now().into_datum()?),
        ];
        if let Some(error) = error {
            let text = append_error(row.errors.as_deref(), error)?;
            set.push(column(c.errors, text.as_slice().into_datum()?));
        }
        self.change(row.id, &self.as_read(row)?, &set, Patience::SESSION)
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
            null_column(c.closed_at),
        ];
        self.change(row.id, &self.as_read(row)?, &set, Patience::SESSION)
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
        self.change(row.id, &fence, &set, MINUTE)
    }

    /// Makes a task that was enqueued elsewhere one of this database, as the role given.
    ///
    /// # Errors
    /// I/O.
    pub fn release(&self, row: &Row, role: Oid) -> Result<bool> {
        let c = &self.columns;
        let mut set = vec![
            column(c.held, 0),
            column(c.origin, origin().as_str().into_datum()?),
            column(c.role_oid, role.into_datum()?),
        ];
        if row.state == State::Running {
            // it ran where it came from
            set.push(self.state_column(State::Pending));
        }
        self.change(row.id, &self.as_read(row)?, &set, Patience::SESSION)
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

    /// One task, by its id.
    ///
    /// # Errors
    /// I/O.
    pub fn find(&self, id: i64) -> Result<Option<Row>> {
        let mut columns = self.row_columns();
        let keys = [table::equals(1, id.into_datum()?)];
        let mut scan = IndexScan::begin(self.table.relation, self.table.primary_key, &keys)?;
        let row = if scan.next(&mut columns)? {
            self.row(id, &columns)?
        } else {
            None
        };
        scan.end()?;
        Ok(row)
    }

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
