//! A task queue inside PostgreSQL. The rooms, and which way they depend on each other, are in docs/README.md.

mod core;
mod ext;
pub mod pg;
mod pg_sys;
mod queue;
#[cfg(feature = "pg_test")]
mod test_surface;
