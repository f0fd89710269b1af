//! The queue: the decisions of `core`, made real with `pg`.
//!
//! The table is the truth ([`store`]); what is in shared memory ([`registry`]) is a hint that can be rebuilt from it.

pub mod enqueue;
pub mod keeper;
pub mod launcher;
mod look;
pub mod manage;
pub mod process;
pub mod registry;
mod schedule;
pub mod settings;
pub mod store;
pub mod topics;
pub mod wake;
pub mod worker;

/// The name of the extension, of its library and of its settings' prefix.
pub const NAME: &str = "pg_background_queue";
