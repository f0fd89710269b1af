//! Values as the server passes them.

use super::error::Result;
use super::guard;
use crate::pg_sys;

pub use crate::pg_sys::Datum;

/// A Rust value that has a by-value or palloc'ed [`Datum`].
pub trait IntoDatum {
    /// The datum; allocates in the current memory context where the type is not by value.
    ///
    /// # Errors
    /// Out of memory.
    fn into_datum(self) -> Result<Datum>;
}

macro_rules! by_value {
    ($($type:ty),*) => {$(
        impl IntoDatum for $type {
            fn into_datum(self) -> Result<Datum> {
                Ok(self as Datum)
            }
        }
    )*};
}
by_value!(i64, i32, i16, u32, bool);

impl IntoDatum for &[u8] {
    /// A `text` of these bytes, which are in the server's encoding.
    fn into_datum(self) -> Result<Datum> {
        let length = i32::try_from(self.len()).unwrap_or(i32::MAX);
        // SAFETY: the pointer and the length describe a live slice.
        guard(|| unsafe { pg_sys::cstring_to_text_with_len(self.as_ptr().cast(), length) } as Datum)
    }
}

impl IntoDatum for &str {
    fn into_datum(self) -> Result<Datum> {
        self.as_bytes().into_datum()
    }
}

/// A `name` of these bytes.
///
/// # Errors
/// Out of memory.
pub fn name(bytes: &[u8]) -> Result<Datum> {
    // SAFETY: as above.
    guard(|| unsafe { pg_sys::pgbq_make_name(bytes.as_ptr().cast(), bytes.len()) })
}

/// The bytes of a `name`.
///
/// # Safety
/// `datum` is a live `name`.
pub unsafe fn name_bytes(datum: Datum) -> Vec<u8> {
    // SAFETY: the caller's promise; a name is terminated.
    unsafe { std::ffi::CStr::from_ptr(pg_sys::pgbq_name_bytes(datum)) }
        .to_bytes()
        .to_vec()
}

/// The bytes of a `text`.
///
/// # Safety
/// `datum` is a live `text` (or another varlena without an inner structure).
///
/// # Errors
/// What detoasting raises.
pub unsafe fn text_bytes(datum: Datum) -> Result<Vec<u8>> {
    let mut length = 0;
    let out = &raw mut length;
    // SAFETY: the caller's promise; `out` is a live local.
    let bytes = guard(|| unsafe { pg_sys::pgbq_text_bytes(datum, out) })?;
    // SAFETY: the shim returned this many bytes.
    Ok(unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), length) }.to_vec())
}

/// The longest beginning of a text, in the database's encoding, that has at most so many bytes and ends with a whole
/// character (`pg_mbcliplen`, mb/mbutils.c).
///
/// # Errors
/// None known; the call is guarded like all.
pub fn clip(text: &[u8], most: usize) -> Result<&[u8]> {
    let length = i32::try_from(text.len()).unwrap_or(i32::MAX);
    let limit = i32::try_from(most).unwrap_or(i32::MAX);
    // SAFETY: the pointer and the length describe a live slice.
    let clipped = guard(|| unsafe { pg_sys::pg_mbcliplen(text.as_ptr().cast(), length, limit) })?;
    Ok(&text[..usize::try_from(clipped).unwrap_or(0).min(text.len())])
}

/// A UTF-8 text in the database's encoding; `None` if it cannot be said in that. See shim/encoding.c.
///
/// # Errors
/// Out of memory; a failing catalog lookup.
pub fn from_utf8(text: &str) -> Result<Option<Vec<u8>>> {
    let length = i32::try_from(text.len()).unwrap_or(i32::MAX);
    let from = text.as_ptr().cast();
    // SAFETY: the pointer and the length describe a live string.
    let converted = guard(|| unsafe { pg_sys::pgbq_utf8_to_server(from, length) })?;
    if converted.is_null() {
        return Ok(None);
    }
    // SAFETY: a terminated, palloc'ed string.
    let text = unsafe { std::ffi::CStr::from_ptr(converted) };
    Ok(Some(text.to_bytes().to_vec()))
}

/// The elements of a `bigint[]`, NULLs left out.
///
/// # Safety
/// `datum` is a live `bigint[]`.
///
/// # Errors
/// What detoasting raises.
pub unsafe fn int8_array(datum: Datum) -> Result<Vec<i64>> {
    let mut count = 0;
    let out = &raw mut count;
    // SAFETY: the caller's promise; `out` is a live local.
    let elements = guard(|| unsafe { pg_sys::pgbq_int8_array(datum, out) })?;
    let length = usize::try_from(count).unwrap_or(0);
    // SAFETY: the shim returned the address of this many int64.
    Ok(unsafe { std::slice::from_raw_parts(elements, length) }.to_vec())
}
