//! SQL from inside the server (SPI), for statements that are no hot path.

use std::ffi::{CStr, c_char};

use super::datum::Datum;
use super::error::{Error, Result, sqlstate};
use super::guard;
use crate::pg_sys::{self, Oid};

/// A connection to SPI; finished when dropped.
#[must_use = "dropping it finishes the connection"]
pub struct Spi(());

/// A parameter: its type and value.
#[derive(Clone, Copy)]
pub struct Parameter {
    /// OID of its type.
    pub kind: Oid,
    /// Its value; `None` is NULL.
    pub value: Option<Datum>,
}

/// OIDs of built-in types (catalog/pg_type.dat).
pub mod types {
    /// `oid`
    pub const OID: u32 = 26;
    /// `text`
    pub const TEXT: u32 = 25;
    /// `boolean`
    pub const BOOL: u32 = 16;
    /// `bigint`
    pub const INT8: u32 = 20;
    /// `bigint[]`
    pub const INT8_ARRAY: u32 = 1016;
}

impl Spi {
    /// Connects.
    ///
    /// # Errors
    /// Out of memory.
    pub fn connect() -> Result<Self> {
        // SAFETY: no arguments.
        guard(|| unsafe { pg_sys::SPI_connect() })?;
        Ok(Self(()))
    }

    /// Runs one statement; returns the number of rows it processed. Names in it must be qualified: the
    /// caller's search_path is in force.
    ///
    /// # Errors
    /// What the statement raises.
    pub fn execute(&self, statement: &CStr, parameters: &[Parameter]) -> Result<u64> {
        let mut kinds: Vec<Oid> = parameters.iter().map(|p| p.kind).collect();
        let mut values: Vec<Datum> = parameters.iter().map(|p| p.value.unwrap_or(0)).collect();
        let nulls: Vec<c_char> = parameters
            .iter()
            .map(|p| if p.value.is_some() { b' ' } else { b'n' } as c_char)
            .collect();
        let count = i32::try_from(parameters.len()).unwrap_or(0);
        let (text, kinds, values, nulls) = (
            statement.as_ptr(),
            kinds.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_ptr(),
        );
        // SAFETY: the pointers are of live vectors of `count` elements.
        let code = guard(|| unsafe {
            pg_sys::SPI_execute_with_args(text, count, kinds, values, nulls, false, 0)
        })?;
        if code < 0 {
            return Err(Error::new(
                sqlstate::INTERNAL_ERROR,
                format!("SPI_execute_with_args failed: {code}"),
            ));
        }
        // SAFETY: set by the call above.
        Ok(unsafe { pg_sys::SPI_processed })
    }

    /// Runs one statement as [`execute`](Self::execute); returns the first column, a `bigint`, of its first row. `None` if that is
    /// NULL or there is no row.
    ///
    /// # Errors
    /// What the statement raises; the column is missing or no `bigint`.
    pub fn first_int8(&self, statement: &CStr, parameters: &[Parameter]) -> Result<Option<i64>> {
        let rows = self.execute(statement, parameters)?;
        // SAFETY: set by the call above: null if the statement returns no rows, else the result.
        let table = unsafe { pg_sys::SPI_tuptable };
        if table.is_null() || rows == 0 {
            return Ok(None);
        }
        // SAFETY: a result with at least one row.
        let (row, description) = unsafe { (*(*table).vals, (*table).tupdesc) };
        // SAFETY: the result's description; a column that is not there answers 0.
        let kind = guard(|| unsafe { pg_sys::SPI_gettypeid(description, 1) })?;
        if kind != types::INT8 {
            return Err(Error::new(
                sqlstate::DATATYPE_MISMATCH,
                "the statement's first column is not of type bigint",
            ));
        }
        let mut is_null = false;
        let out = &raw mut is_null;
        // SAFETY: a row and its description, and a live local.
        let value = guard(|| unsafe { pg_sys::SPI_getbinval(row, description, 1, out) })?;
        Ok((!is_null).then_some(value as i64))
    }
}

impl Drop for Spi {
    fn drop(&mut self) {
        // After an error the abort finishes it (AtEOXact_SPI).
        // SAFETY: connected by us, and the innermost connection.
        let _ = guard(|| unsafe { pg_sys::SPI_finish() });
    }
}
