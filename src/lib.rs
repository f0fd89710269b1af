//! A task queue inside PostgreSQL. The rooms, and which way they depend on each other, are in docs/README.md.

// `pg_alone`: scripts/lint asks whether the safe layer can do without the rest.
#[cfg(not(pg_alone))]
mod core;
#[cfg(not(pg_alone))]
mod ext;
pub mod pg;
mod pg_sys;
#[cfg(not(pg_alone))]
mod queue;
#[cfg(all(feature = "pg_test", not(pg_alone)))]
mod test_surface;
