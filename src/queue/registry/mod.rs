//! What the processes tell each other, in shared memory, under one lock: taken by [`lock`], which gives the [`Registry`].
//!
//! Each room keeps one part of it, and has what [`Registry`] does with that:
//!
//! - **slots**: one for each worker and keeper, with the task that it runs. A worker writes its task here before
//!   it claims it in the table, so that whoever finds the row `running` and no slot with it knows that its worker is gone.
//! - **demands**: (database, role) pairs that may have work. Enqueueing adds them at commit; a worker that finds
//!   nothing more takes its own away. Losing one loses no task: a keeper finds it in the table again.
//! - **waits**: parallel slots of topics with a delay that wait before their next start.
//! - **databases**: those whose keeper has been there since the server's start. Workers start in no other.
//! - **shelves**: for each (database, role) with workers, the tasks that a look into the table has found.
//!
//! - **generations**: counters of the changes that a session sees only from its login.
//!
//! What goes through several parts has rooms of its own: how tasks arrive (`arrivals`), how they begin and end (`tasks`), and
//! between the launcher and the workers (`planning`). They call each other along these arrows only, and any of them calls
//! `demands` and `slots`, which call none:
//!
//! ```text
//! tasks → arrivals → shelves → waits
//! planning → databases
//! ```
//!
//! `memory` is where all of it lies; it alone knows addresses.

mod arrivals;
mod databases;
mod demands;
mod generations;
mod memory;
mod planning;
mod shelves;
mod slots;
mod tasks;
mod waits;

pub use generations::Generations;
pub use memory::{is_there, lock, not_preloaded, request, startup};
pub use shelves::Sight;
pub use slots::{Key, PROCESSES, Processes, Work, WorkerSlot};
pub use tasks::{Beginning, Begun, Cancelled};
pub use waits::MayStart;

use databases::Database;
use demands::Demand;
use shelves::Shelf;
use waits::Wait;

use crate::pg::Oid;
use crate::pg::latch::LatchRef;
use crate::pg::lwlock::Held;
use crate::pg::time::TimestampTz;

/// The greatest limit: as many as the server can have worker processes (MAX_BACKENDS, postmaster.h).
pub const MOST_WORKERS: i32 = 0x3FFFF;

/// Waits for something that has no time: not due until somebody says so.
pub const UNTIL_TOLD: TimestampTz = TimestampTz::MAX;

/// The single values.
#[repr(C)]
pub struct Header {
    /// The launcher's latch.
    pub launcher: LatchRef,
    /// The launcher's process; 0 if there is none.
    pub launcher_pid: i32,
    /// This server start, also the one after a crash of a backend, was not preceded by an orderly shutdown.
    pub unclean: bool,
    /// `topic_config` was refused at this start, and has not been corrected yet: nothing runs.
    pub paused: bool,
    /// There were more demands or databases than fit: look into the tables.
    pub overflow: bool,
    /// When this start was.
    pub booted: TimestampTz,
    /// Counts the changes of settings that sessions have only from their login.
    pub generations: Generations,
    /// The next place among those who wait.
    pub order: u64,
    /// Counts the ends of tasks that others may have waited for.
    pub ends: u64,
    /// The most tasks that may run: as the launcher has read it, so that all go by the same number during a reload.
    pub limit: u32,
    /// Busy workers that should leave after their task and their stint.
    pub room: u32,
    /// Of those who wait for room, the best: its database and priority.
    pub room_for: (Oid, i32),
    /// Of those who have more to do than their workers can, the best; (0, 0) is none.
    pub better: (Oid, i32),
    /// Busy workers that must leave after their task.
    pub surplus: u32,
    /// Workers that should leave instead of becoming idle.
    pub idle_room: u32,
    demand_count: u32,
    wait_count: u32,
    database_count: u32,
}

/// The registry, locked: see [`lock`].
pub struct Registry {
    /// The single values.
    pub header: &'static mut Header,
    /// The processes.
    pub slots: &'static mut [WorkerSlot],
    demands: &'static mut [Demand],
    waits: &'static mut [Wait],
    databases: &'static mut [Database],
    shelf_keys: &'static mut [Key],
    shelves: &'static mut [Shelf],
    _held: Held,
}

impl Drop for Registry {
    /// The lock is released by its guard. That there is a `drop` keeps the parts from being moved out, and what is
    /// borrowed from them from outliving the lock.
    fn drop(&mut self) {}
}

impl Registry {
    /// Wakes the launcher.
    pub fn wake_launcher(&self) {
        self.header.launcher.set();
    }
}
