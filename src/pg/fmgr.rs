//! SQL-callable functions.

use super::boundary::boundary;
use super::datum::{self, Datum, IntoDatum};
use super::error::Result;
use super::guard;
use crate::pg_sys;

/// The arguments of one call (`FunctionCallInfo`, fmgr.h).
pub struct Call(pg_sys::FunctionCallInfo);

impl Call {
    /// Argument `n` (from 0) as it was passed; `None` if NULL or not given.
    pub fn argument(&self, n: i32) -> Option<Datum> {
        // SAFETY: fmgr passes a valid call; `n` is checked against the number of arguments.
        unsafe {
            if n >= pg_sys::pgbq_arg_count(self.0) || pg_sys::pgbq_arg_is_null(self.0, n) {
                None
            } else {
                Some(pg_sys::pgbq_arg(self.0, n))
            }
        }
    }

    /// Argument `n` (from 0) as the bytes of a `text`; `None` if NULL or not given.
    ///
    /// # Errors
    /// What detoasting raises.
    pub fn text(&self, n: i32) -> Result<Option<Vec<u8>>> {
        // SAFETY: the function's SQL declaration says that this is a text.
        self.argument(n)
            .map(|value| unsafe { datum::text_bytes(value) })
            .transpose()
    }
}

impl Call {
    /// Argument `n` (from 0) as a `bigint[]`, NULLs left out; `None` if NULL or not given.
    ///
    /// # Errors
    /// What detoasting raises.
    pub fn int8_array(&self, n: i32) -> Result<Option<Vec<i64>>> {
        // SAFETY: the function's SQL declaration says that this is a bigint[].
        self.argument(n)
            .map(|value| unsafe { datum::int8_array(value) })
            .transpose()
    }

    /// Argument `n` (from 0) as an `integer`; `None` if NULL or not given.
    pub fn int4(&self, n: i32) -> Option<i32> {
        self.argument(n).map(|value| value as i32)
    }

    /// Argument `n` (from 0) as a `bigint`; `None` if NULL or not given.
    pub fn int8(&self, n: i32) -> Option<i64> {
        self.argument(n).map(|value| value as i64)
    }

    /// Argument `n` (from 0) as a `timestamptz`; `None` if NULL or not given.
    pub fn timestamptz(&self, n: i32) -> Option<super::time::TimestampTz> {
        self.int8(n)
    }

    /// Argument `n` (from 0), an `interval`, in milliseconds (a month has 30 days); `None` if NULL or not given.
    pub fn interval_ms(&self, n: i32) -> Option<i64> {
        // SAFETY: the function's SQL declaration says that this is an interval.
        self.argument(n)
            .map(|value| unsafe { pg_sys::pgbq_interval_ms(value) })
    }
}

impl Call {
    /// Returns these rows from a set-returning function, which returns `()` otherwise; `None` is NULL.
    ///
    /// # Errors
    /// The caller cannot take a set; out of memory.
    pub fn return_rows<const N: usize>(&self, rows: &[[Option<Datum>; N]]) -> Result<()> {
        let fcinfo = self.0;
        // SAFETY: fmgr passes a valid call.
        guard(|| unsafe { pg_sys::pgbq_begin_rows(fcinfo) })?;
        for row in rows {
            let values = row.map(|value| value.unwrap_or(0));
            let nulls = row.map(|value| value.is_none());
            let (values, nulls) = (values.as_ptr(), nulls.as_ptr());
            // SAFETY: as many values as the SQL declaration has columns, copied by the callee.
            guard(|| unsafe { pg_sys::pgbq_add_row(fcinfo, values, nulls) })?;
        }
        Ok(())
    }
}

/// What a function returns: nothing (`void`), or a value.
pub trait Returned {
    /// The datum of it.
    ///
    /// # Errors
    /// Out of memory.
    fn datum(self) -> Result<Datum>;
}

impl Returned for () {
    fn datum(self) -> Result<Datum> {
        Ok(0)
    }
}

impl Returned for i64 {
    fn datum(self) -> Result<Datum> {
        Ok(self as Datum)
    }
}

impl Returned for i32 {
    fn datum(self) -> Result<Datum> {
        Ok(self as Datum)
    }
}

impl Returned for bool {
    fn datum(self) -> Result<Datum> {
        Ok(Datum::from(self))
    }
}

impl Returned for String {
    fn datum(self) -> Result<Datum> {
        self.as_str().into_datum()
    }
}

/// The body of every exported SQL function: see [`pg_function`](crate::pg_function).
pub fn dispatch<R: Returned>(
    fcinfo: pg_sys::FunctionCallInfo,
    body: fn(&Call) -> Result<R>,
) -> Datum {
    boundary(|| body(&Call(fcinfo))?.datum())
}

/// Exports `$body`, a `fn(&Call) -> Result<R>`, to SQL under the C symbol `$symbol` (calling convention 1).
#[macro_export]
macro_rules! pg_function {
    ($symbol:ident, $info:ident, $body:path) => {
        #[doc = concat!("SQL function `", stringify!($symbol), "`.")]
        #[unsafe(no_mangle)]
        pub extern "C-unwind" fn $symbol(
            fcinfo: $crate::pg_sys::FunctionCallInfo,
        ) -> $crate::pg_sys::Datum {
            $crate::pg::fmgr::dispatch(fcinfo, $body)
        }

        #[doc = "What `PG_FUNCTION_INFO_V1` makes in C."]
        #[unsafe(no_mangle)]
        pub extern "C-unwind" fn $info() -> *const $crate::pg_sys::Pg_finfo_record {
            // SAFETY: returns the address of a constant.
            unsafe { $crate::pg_sys::pgbq_finfo() }
        }
    };
}
