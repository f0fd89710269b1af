//! Single rows of a table, read and written below SQL: no triggers, rules, row security or permissions, and
//! nothing of a session's settings. See shim/row.c.

use super::datum::Datum;
use super::error::Result;
use super::guard;
use crate::pg_sys::{self, Oid};

/// A column's number and value.
pub type Column = pg_sys::PgbqColumn;

/// A column with a value.
pub fn column(attnum: i16, value: Datum) -> Column {
    Column {
        attnum,
        isnull: false,
        value,
    }
}

/// A column that is NULL, or one whose value is asked for.
pub fn null_column(attnum: i16) -> Column {
    Column {
        attnum,
        isnull: true,
        value: 0,
    }
}

/// What became of an [`update`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Updated {
    /// Done.
    Done,
    /// There is no such row.
    Missing,
    /// The row's newest version differs in a fence column.
    Fenced,
    /// Somebody else holds the row.
    Locked,
}

/// A table with a `bigint` primary key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table {
    /// The table.
    pub relation: Oid,
    /// Its primary key.
    pub primary_key: Oid,
}

/// Where a row is, or was: a hint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Tid(i64);

impl Tid {
    /// Nobody knows.
    pub const UNKNOWN: Self = Self(0);
}

/// How an update finds out that it may: `fence` must equal the newest version, `get` is filled from it.
pub struct Change<'a> {
    /// Where the row is looked for first, before the primary key is asked. Where it is now, once it is done and if that commits.
    pub at: &'a mut Tid,
    /// Wanted values.
    pub fence: &'a [Column],
    /// Asked for; varlenas are copied into the current memory context.
    pub get: &'a mut [Column],
    /// New values.
    pub set: &'a [Column],
}

/// How long an update waits for others, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// For a lock on the table; then it is an error, 55P03. 0 is for ever.
    pub table: i32,
    /// For the row; then the answer is [`Updated::Locked`]. The deadlock detector does not see this wait.
    pub row: i32,
}

impl Patience {
    /// As for any statement of the session, deadlock detector and `lock_timeout` included.
    pub const SESSION: Self = Self { table: -1, row: -1 };
}

/// Updates one row.
///
/// # Errors
/// 42P01 if the table is gone; 55P03; I/O.
pub fn update(table: Table, id: i64, change: Change<'_>, patience: Patience) -> Result<Updated> {
    let count = |columns: usize| i32::try_from(columns).unwrap_or(0);
    let (fence, fences) = (change.fence.as_ptr(), count(change.fence.len()));
    let (get, gets) = (change.get.as_mut_ptr(), count(change.get.len()));
    let (set, sets) = (change.set.as_ptr(), count(change.set.len()));
    let at: *mut i64 = &raw mut change.at.0;
    // SAFETY: pointers and lengths describe live slices.
    let result = guard(|| unsafe {
        pg_sys::pgbq_row_update(
            table.relation,
            table.primary_key,
            id,
            at,
            fence,
            fences,
            get,
            gets,
            set,
            sets,
            patience.table,
            patience.row,
        )
    })?;
    Ok(outcome(result))
}

fn outcome(result: pg_sys::PgbqRowResult) -> Updated {
    match result {
        pg_sys::PGBQ_ROW_DONE => Updated::Done,
        pg_sys::PGBQ_ROW_MISSING => Updated::Missing,
        pg_sys::PGBQ_ROW_FENCED => Updated::Fenced,
        _ => Updated::Locked,
    }
}

/// Deletes one row whose newest version equals `fence`.
///
/// # Errors
/// As [`update`].
pub fn delete(table: Table, id: i64, fence: &[Column], patience: Patience) -> Result<Updated> {
    let (first, count) = (fence.as_ptr(), i32::try_from(fence.len()).unwrap_or(0));
    // SAFETY: pointer and length describe a live slice.
    let result = guard(|| unsafe {
        pg_sys::pgbq_row_delete(
            table.relation,
            table.primary_key,
            id,
            first,
            count,
            patience.table,
            patience.row,
        )
    })?;
    Ok(outcome(result))
}

/// Inserts one row; columns that are not named are NULL. Returns where it is.
///
/// # Errors
/// A violated constraint; I/O.
pub fn insert(relation: Oid, columns: &[Column]) -> Result<Tid> {
    let (first, count) = (columns.as_ptr(), i32::try_from(columns.len()).unwrap_or(0));
    // SAFETY: pointer and length describe a live slice.
    guard(|| unsafe { pg_sys::pgbq_row_insert(relation, first, count) }).map(Tid)
}

/// A forward scan of an index, in its order.
pub struct IndexScan(*mut pg_sys::PgbqScan);

/// One condition of a scan: index column (from 1), B-tree strategy, value.
pub type ScanKey = pg_sys::PgbqScanKey;

/// `column = value`.
pub fn equals(index_column: i32, value: Datum) -> ScanKey {
    ScanKey {
        index_column,
        strategy: pg_sys::BTEqualStrategyNumber as i32,
        value,
    }
}

/// `column >= value`.
pub fn at_least(index_column: i32, value: Datum) -> ScanKey {
    ScanKey {
        index_column,
        strategy: pg_sys::BTGreaterEqualStrategyNumber as i32,
        value,
    }
}

/// `column > value`.
pub fn greater(index_column: i32, value: Datum) -> ScanKey {
    ScanKey {
        index_column,
        strategy: pg_sys::BTGreaterStrategyNumber as i32,
        value,
    }
}

/// `column IS NULL`.
pub fn is_null(index_column: i32) -> ScanKey {
    ScanKey {
        index_column,
        strategy: pg_sys::PGBQ_IS_NULL,
        value: 0,
    }
}

/// `column IS NOT NULL`.
pub fn is_not_null(index_column: i32) -> ScanKey {
    ScanKey {
        index_column,
        strategy: pg_sys::PGBQ_IS_NOT_NULL,
        value: 0,
    }
}

impl IndexScan {
    /// Begins it; it sees what was committed before.
    ///
    /// # Errors
    /// The index is gone.
    pub fn begin(relation: Oid, index: Oid, keys: &[ScanKey]) -> Result<Self> {
        let (first, count) = (keys.as_ptr(), i32::try_from(keys.len()).unwrap_or(0));
        // SAFETY: pointer and length describe a live slice, copied by the callee.
        guard(|| unsafe { pg_sys::pgbq_scan_begin(relation, index, first, count) }).map(Self)
    }

    /// Fills `get` from the next row, with values that last until the next call; false at the end.
    ///
    /// # Errors
    /// I/O, interrupts.
    pub fn next(&mut self, get: &mut [Column]) -> Result<bool> {
        let scan = self.0;
        let (first, count) = (get.as_mut_ptr(), i32::try_from(get.len()).unwrap_or(0));
        // SAFETY: the scan is open, the slice live.
        guard(|| unsafe { pg_sys::pgbq_scan_next(scan, first, count) })
    }

    /// Where the row is that [`next`](Self::next) has brought.
    pub fn tid(&self) -> Tid {
        // SAFETY: the scan is open; the call reads its slot and raises nothing.
        Tid(unsafe { pg_sys::pgbq_scan_tid(self.0) })
    }

    /// Ends it. A scan that is dropped instead is cleaned up by the abort of its transaction: only on errors.
    ///
    /// # Errors
    /// None known; the call is guarded like all.
    pub fn end(self) -> Result<()> {
        let scan = self.0;
        // SAFETY: open, and used no more.
        guard(|| unsafe { pg_sys::pgbq_scan_end(scan) })
    }
}
