//! The safe layer over the server's C interface. It knows nothing of tasks: any extension could stand on it.
//!
//! Two rules hold everywhere:
//!
//! - A call that can raise an ERROR goes through [`guard`], one call at a time, and comes back as [`Result`].
//! - A caught [`Error`] ends in exactly one of two ways: it is returned to the [`boundary`], which raises it
//!   again, or the transaction is aborted ([`xact::Transaction`] does so when it is dropped).
//!
//! Server text is bytes in the database's encoding; `str` only where it is known to be ASCII or UTF-8.

pub mod bgworker;
mod boundary;
pub mod callback;
pub mod catalog;
pub mod condition;
pub mod control;
mod crash_point;
pub mod datum;
mod error;
pub mod fmgr;
mod guard;
pub mod guc;
pub mod interrupt;
pub mod latch;
pub mod local;
pub mod log;
pub mod lwlock;
pub mod mem;
mod plain;
pub mod security;
pub mod session;
pub mod shmem;
pub mod snapshot;
pub mod spi;
pub mod statement;
pub mod table;
pub mod time;
pub mod xact;

pub use boundary::{boundary, install_panic_hook};
pub use crash_point::crash_point;
pub use error::{Error, Result, SqlState, sqlstate};
pub use guard::guard;

/// An object identifier, as the server defines it.
pub type Oid = crate::pg_sys::Oid;

/// The OID that names nothing.
pub const INVALID_OID: Oid = 0;
