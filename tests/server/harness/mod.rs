//! What the integration tests stand on: private servers, waiting, the queue's table, processes.
//!
//! Each test starts its own [`Server`] (a copy of one initdb, so about a second), works through
//! ordinary connections, and lets the server go. The server's `Drop` reads the log: a TRAP, a
//! PANIC, a leak warning or a process killed by a signal fails the test even when its assertions
//! passed.
#![allow(
    dead_code,
    unused_imports,
    reason = "the harness offers more than the tests of any one day use"
)]

mod log;
mod proc;
mod queue;
mod server;
mod wait;

pub use proc::{children, context_switches, is_alive, kill, wait_quiet};
pub use queue::{
    Task, Worker, create_role, ends, enqueue, enqueue_all, enqueue_topic, enqueue_with,
    index_reads, launcher_pid, old_snapshot, run, running_count, scalar, states, task, tasks,
    wait_all_closed, wait_closed, wait_for_launcher, wait_no_workers, wait_state, worker_count,
    workers,
};
pub use server::{Builder, Connector, Notices, Server, Stop};
pub use wait::{PATIENCE, wait_for, wait_until};
