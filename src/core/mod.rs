//! The decisions of the queue in plain Rust: no server, no clock (`now` is an argument), no I/O.

pub mod batch;
pub mod config;
pub mod errors;
pub mod outcome;
pub mod plan;
pub mod ready;
pub mod schedule;
