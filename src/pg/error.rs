//! Errors as values: what `ereport(ERROR)` says, owned by Rust.

use std::ffi::{CStr, CString, c_char};
use std::fmt;
use std::panic::Location;

use crate::pg_sys;

/// What every fallible function of the safe layer returns.
pub type Result<T> = std::result::Result<T, Error>;

/// A SQLSTATE, packed as the server packs it (`MAKE_SQLSTATE`, utils/elog.h): five characters of six bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SqlState(pub i32);

impl SqlState {
    /// From its five characters, e.g. `SqlState::new(b"22012")`.
    pub const fn new(code: &[u8; 5]) -> Self {
        let mut packed = 0;
        let mut i = 0;
        while i < 5 {
            packed |= (((code[i] - b'0') & 0x3F) as i32) << (6 * i);
            i += 1;
        }
        Self(packed)
    }

    /// Its five characters.
    pub fn code(self) -> String {
        (0..5)
            .map(|i| char::from((((self.0 >> (6 * i)) & 0x3F) as u8) + b'0'))
            .collect()
    }
}

/// The SQLSTATEs that we raise or look for (utils/errcodes.txt).
pub mod sqlstate {
    use super::SqlState;

    /// An error class 00: the report carries none.
    pub const NONE: SqlState = SqlState(0);
    /// `invalid_parameter_value`
    pub const INVALID_PARAMETER_VALUE: SqlState = SqlState::new(b"22023");
    /// `null_value_not_allowed`
    pub const NULL_VALUE_NOT_ALLOWED: SqlState = SqlState::new(b"22004");
    /// `invalid_authorization_specification`
    pub const INVALID_AUTHORIZATION: SqlState = SqlState::new(b"28000");
    /// `active_sql_transaction`
    pub const ACTIVE_SQL_TRANSACTION: SqlState = SqlState::new(b"25001");
    /// `in_failed_sql_transaction`
    pub const IN_FAILED_SQL_TRANSACTION: SqlState = SqlState::new(b"25P02");
    /// `insufficient_privilege`
    pub const INSUFFICIENT_PRIVILEGE: SqlState = SqlState::new(b"42501");
    /// `datatype_mismatch`
    pub const DATATYPE_MISMATCH: SqlState = SqlState::new(b"42804");
    /// `undefined_object`
    pub const UNDEFINED_OBJECT: SqlState = SqlState::new(b"42704");
    /// `undefined_table`
    pub const UNDEFINED_TABLE: SqlState = SqlState::new(b"42P01");
    /// `object_not_in_prerequisite_state`
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: SqlState = SqlState::new(b"55000");
    /// `admin_shutdown`
    pub const ADMIN_SHUTDOWN: SqlState = SqlState::new(b"57P01");
    /// `crash_shutdown`
    pub const CRASH_SHUTDOWN: SqlState = SqlState::new(b"57P02");
    /// `insufficient_resources`
    pub const INSUFFICIENT_RESOURCES: SqlState = SqlState::new(b"53000");
    /// `serialization_failure`
    pub const SERIALIZATION_FAILURE: SqlState = SqlState::new(b"40001");
    /// `program_limit_exceeded`
    pub const PROGRAM_LIMIT_EXCEEDED: SqlState = SqlState::new(b"54000");
    /// `query_canceled`
    pub const QUERY_CANCELED: SqlState = SqlState::new(b"57014");
    /// `lock_not_available`
    pub const LOCK_NOT_AVAILABLE: SqlState = SqlState::new(b"55P03");
    /// `internal_error`
    pub const INTERNAL_ERROR: SqlState = SqlState::new(b"XX000");
}

/// An ERROR. Made by [`Error::new`] or taken from the server by the guard.
///
/// It must not be swallowed: return it to the boundary or abort the transaction (see the module `pg`).
#[must_use]
pub struct Error(Box<Report>);

struct Report {
    sqlstate: SqlState,
    message: CString,
    detail: Option<CString>,
    hint: Option<CString>,
    context: Option<CString>,
    file: Option<CString>,
    function: Option<CString>,
    line: i32,
    from_server: bool,
}

impl Error {
    /// An error of our own; it remembers the caller's file and line, as `ereport` does.
    #[track_caller]
    pub fn new(sqlstate: SqlState, message: impl Into<Vec<u8>>) -> Self {
        let place = Location::caller();
        Self::at(sqlstate, message, place.file(), place.line())
    }

    /// As [`Error::new`], for a place that is known otherwise: where a panic happened.
    pub(super) fn at(
        sqlstate: SqlState,
        message: impl Into<Vec<u8>>,
        file: &str,
        line: u32,
    ) -> Self {
        Self(Box::new(Report {
            sqlstate,
            message: c_string(message),
            detail: None,
            hint: None,
            context: None,
            file: Some(c_string(file)),
            function: None,
            line: i32::try_from(line).unwrap_or(0),
            from_server: false,
        }))
    }

    /// Adds the DETAIL: full sentences.
    pub fn detail(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.0.detail = Some(c_string(text));
        self
    }

    /// Adds the HINT: full sentences that say what to do.
    pub fn hint(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.0.hint = Some(c_string(text));
        self
    }

    /// The SQLSTATE.
    pub fn sqlstate(&self) -> SqlState {
        self.0.sqlstate
    }

    /// The primary message, in the server's encoding.
    pub fn message(&self) -> &[u8] {
        self.0.message.to_bytes()
    }

    /// DETAIL, HINT and CONTEXT, as far as they are there, in the server's encoding.
    pub fn fields(&self) -> [(&'static str, Option<&[u8]>); 3] {
        fn bytes(field: &Option<CString>) -> Option<&[u8]> {
            field.as_deref().map(CStr::to_bytes)
        }
        [
            ("DETAIL", bytes(&self.0.detail)),
            ("HINT", bytes(&self.0.hint)),
            ("CONTEXT", bytes(&self.0.context)),
        ]
    }

    /// Takes over an error that the shim has caught.
    ///
    /// # Safety
    /// `error` comes from `pgbq_take_error` and is used by nobody else.
    pub(super) unsafe fn take(error: *mut pg_sys::ErrorData) -> Self {
        // SAFETY: the caller's promise.
        let data = unsafe { &*error };
        let field = |text: *const c_char| {
            // SAFETY: the fields of an ErrorData are null or terminated strings.
            (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_owned())
        };
        let report = Report {
            sqlstate: SqlState(data.sqlerrcode),
            message: field(data.message).unwrap_or_default(),
            detail: field(data.detail),
            hint: field(data.hint),
            context: field(data.context),
            file: field(data.filename),
            function: field(data.funcname),
            line: data.lineno,
            from_server: true,
        };
        // SAFETY: freed once, by its only owner; pfree of a live chunk does not raise.
        unsafe { pg_sys::pgbq_free_error(error) };
        Self(Box::new(report))
    }

    /// The server's form of this error, in memory that the server reclaims; nothing of Rust's is left of it.
    pub(super) fn into_server(self) -> (*mut pg_sys::ErrorData, bool) {
        let report = &self.0;
        let data = allocate_zeroed::<pg_sys::ErrorData>();
        if data.is_null() {
            return (emergency(), report.from_server);
        }
        // SAFETY: freshly allocated and zeroed, which is a valid ErrorData.
        let fields = unsafe { &mut *data };
        fields.elevel = pg_sys::ERROR as i32;
        fields.sqlerrcode = report.sqlstate.0;
        fields.message = duplicate(Some(&report.message));
        fields.detail = duplicate(report.detail.as_deref());
        fields.hint = duplicate(report.hint.as_deref());
        fields.context = duplicate(report.context.as_deref());
        fields.filename = duplicate(report.file.as_deref());
        fields.funcname = duplicate(report.function.as_deref());
        fields.lineno = report.line;
        // SAFETY: the global always points to a context.
        fields.assoc_context = unsafe { pg_sys::CurrentMemoryContext };
        (data, report.from_server)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}",
            self.0.sqlstate.code(),
            String::from_utf8_lossy(self.message())
        )
    }
}

/// Bytes as a C string: cut at a NUL, which server text never holds.
pub(super) fn c_string(text: impl Into<Vec<u8>>) -> CString {
    let mut bytes: Vec<u8> = text.into();
    if let Some(nul) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(nul);
    }
    CString::new(bytes).unwrap_or_default()
}

fn allocate(size: usize) -> *mut u8 {
    let flags =
        (pg_sys::MCXT_ALLOC_NO_OOM | pg_sys::MCXT_ALLOC_ZERO | pg_sys::MCXT_ALLOC_HUGE) as i32;
    // SAFETY: with NO_OOM it answers null instead of raising, with HUGE it does not refuse a size.
    unsafe { pg_sys::MemoryContextAllocExtended(pg_sys::CurrentMemoryContext, size, flags) }.cast()
}

fn allocate_zeroed<T>() -> *mut T {
    allocate(size_of::<T>()).cast()
}

fn duplicate(text: Option<&CStr>) -> *mut c_char {
    let Some(text) = text else {
        return std::ptr::null_mut();
    };
    let bytes = text.to_bytes_with_nul();
    let copy = allocate(bytes.len());
    if !copy.is_null() {
        // SAFETY: `copy` has room for all of `bytes`, and is new.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy, bytes.len()) };
    }
    copy.cast()
}

/// The report of last resort, when there is no memory for another.
fn emergency() -> *mut pg_sys::ErrorData {
    // SAFETY: the shim's static is only read, by ThrowErrorData.
    unsafe { pg_sys::pgbq_out_of_memory() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstate_goes_there_and_back() {
        for code in [b"22012", b"XX000", b"57P01", b"0A000"] {
            assert_eq!(SqlState::new(code).code().as_bytes(), code);
        }
        // ERRCODE_DIVISION_BY_ZERO as the C macro packs it
        assert_eq!(SqlState::new(b"22012").0, 33816706);
    }
}
