//! What the processes tell each other, in shared memory, under one lock.
//!
//! - **slots**: one for each worker and keeper, with the task that it runs. A worker writes its task here before
//!   it claims it in the table, so that whoever finds the row `running` and no slot with it knows that its worker is gone.
//! - **demands**: (database, role) pairs that may have work. Enqueueing adds them at commit; a worker that finds
//!   nothing more takes its own away. Losing one loses no task: a keeper finds it in the table again.
//! - **waits**: parallel slots of topics with a delay that wait before their next start.
//! - **databases**: those whose keeper has been there since the server's start. Workers start in no other.

use std::alloc::Layout;

use super::topics::{self, Rules, TopicId};
use crate::core::plan;
use crate::pg::bgworker;
use crate::pg::bgworker::pool::{self, Pool, Slot, SlotState, Ticket};
use crate::pg::latch::LatchRef;
use crate::pg::local::ProcessLocal;
use crate::pg::lwlock::{Held, LwLock};
use crate::pg::time::{self, TimestampTz};
use crate::pg::{self, Error, Oid, Result, control, shmem, sqlstate};

/// The greatest limit: as many as the server can have worker processes (MAX_BACKENDS, postmaster.h).
pub const MOST_WORKERS: i32 = 0x3FFFF;

/// Pairs of database and role with work that are kept in mind; the rest is found by keepers when there is room.
const MOST_DEMANDS: usize = 4096;

/// Slots of topics with a delay that can wait at the same time.
const MOST_WAITS: usize = 4096;

/// A slot that has waited and found no task for so long, in microseconds, is forgotten.
const WAIT_FORGOTTEN: i64 = 3_600_000_000;

/// Databases that are kept in mind; the others are visited by a keeper again when they have work.
const MOST_DATABASES: usize = 512;

/// How long one of the tasks that were cut off by a crash keeps the others of them waiting, in microseconds.
const SUSPECT_TURN: TimestampTz = 60_000_000;

/// Waits for something that has no time: not due until somebody says so.
pub const UNTIL_TOLD: TimestampTz = TimestampTz::MAX;

/// Which process a slot is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Key {
    /// Its database.
    pub database: Oid,
    /// The role of a worker; 0 is a keeper.
    pub role: Oid,
}

impl Key {
    /// Whether it is a keeper.
    pub fn is_keeper(self) -> bool {
        self.role == pg::INVALID_OID
    }
}

/// What the process of a slot does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Work {
    /// It waits for work.
    pub idle: bool,
    /// It has been told to leave.
    pub leaving: bool,
    /// It holds the turn of the tasks that were cut off by a crash.
    pub suspect: bool,
    /// Its task was cancelled.
    pub cancelled: bool,
    /// Its task has failed, and is about to be marked: it is too late to cancel that attempt.
    pub ending: bool,
    /// The task that it claims or runs; 0 is none.
    pub task: i64,
    /// The task's topic.
    pub topic: TopicId,
    /// The attempt of that task.
    pub attempt: i32,
    /// The task's table.
    pub relation: Oid,
    /// Since when it does what it does.
    pub changed: TimestampTz,
    /// Tasks that it has ended.
    pub done: u64,
}

/// A slot of ours.
pub type WorkerSlot = Slot<Key, Work>;

/// A role that may have work in a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Demand {
    /// Whose.
    pub key: Key,
    /// Another number after each enqueueing commit: a worker that saw the same before and after it looked knows
    /// that it has seen everything.
    pub bumps: u64,
    /// The best priority that is waiting, as far as known.
    pub priority: i32,
    /// Its place among those who wait.
    pub order: u64,
    /// Not before.
    pub due: TimestampTz,
    /// There is more than its workers can do.
    pub more: bool,
    /// It waits for the end of a task that runs: one of a topic that is at its limit, or of those that were cut off
    /// by a crash.
    pub blocked: bool,
    /// Starts of a worker that have failed in a row.
    pub failures: u16,
}

/// A parallel slot of a topic that waits before its next start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Wait {
    /// The topic's database.
    pub database: Oid,
    /// The topic.
    pub topic: TopicId,
    /// Until when.
    pub until: TimestampTz,
}

/// What a worker wants to begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Beginning {
    /// The task.
    pub task: i64,
    /// Its table.
    pub relation: Oid,
    /// Its attempt.
    pub attempt: i32,
    /// Its topic.
    pub topic: TopicId,
    /// What is in force for that.
    pub rules: Rules,
    /// It was cut off by a crash.
    pub suspect: bool,
}

/// What became of the wish to cancel a running task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cancelled {
    /// It is interrupted.
    Yes,
    /// That attempt has failed already, and will say so in a moment.
    TooLate,
    /// No worker runs that attempt.
    NotThere,
}

/// What became of the wish to begin a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begun {
    /// It has its place.
    Yes,
    /// Its topic is at its limit or waits, or it is the turn of another of the tasks that were cut off by a crash.
    TopicWaits,
    /// There are as many tasks as there may be.
    LimitReached,
}

/// Whether tasks of a topic may start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MayStart {
    /// So many.
    Yes(usize),
    /// None until one that runs has ended.
    Blocked,
    /// None before that time.
    NotBefore(TimestampTz),
}

/// A database in which a keeper has been.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Database {
    /// Which.
    pub oid: Oid,
    /// What the last server's tasks left `running` has been dealt with.
    pub recovered: bool,
    /// A keeper shall look at it.
    pub wants_keeper: bool,
    /// A keeper has come to its end since the launcher looked last.
    pub visited: bool,
    /// The process that wants it without sessions; 0 is nobody.
    closed_by: i32,
}

/// Counters of changes by `ALTER ROLE … SET` and `ALTER DATABASE … SET`, in buckets by role and by database, so
/// that a role that changes its own settings does not send everybody's workers away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Generations([u32; 64]);

impl Generations {
    fn bucket(oid: Oid, of_database: bool) -> usize {
        (oid % 32) as usize + if of_database { 32 } else { 0 }
    }

    /// The buckets, as bits, that a change for this role in this database (0: all) belongs to.
    pub fn buckets(role: Oid, database: Oid) -> u64 {
        match (role, database) {
            (0, 0) => u64::MAX,
            (0, database) => 1 << Self::bucket(database, true),
            (role, _) => 1 << Self::bucket(role, false),
        }
    }

    /// Counts a change in these buckets.
    pub fn advance(&mut self, buckets: u64) {
        for (i, counter) in self.0.iter_mut().enumerate() {
            if buckets & (1 << i) != 0 {
                *counter = counter.wrapping_add(1);
            }
        }
    }

    /// What changes whenever a session of this role in this database would be another after a new login.
    pub fn of(&self, key: Key) -> (u32, u32) {
        (
            self.0[Self::bucket(key.role, false)],
            self.0[Self::bucket(key.database, true)],
        )
    }
}

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

#[derive(Clone, Copy)]
struct Addresses {
    lock: LwLock,
    header: *mut Header,
    slots: *mut WorkerSlot,
    slot_count: usize,
    demands: *mut Demand,
    waits: *mut Wait,
    databases: *mut Database,
}

static ADDRESSES: ProcessLocal<Option<Addresses>> = ProcessLocal::new(None);

const NAME: &std::ffi::CStr = c"pg_background_queue";

/// Every worker process of the server can be ours, and keepers and orphans want some more.
fn slot_count() -> usize {
    control::max_worker_processes() + 16
}

/// The places of the parts after the header, and the whole.
fn layout() -> (Layout, [usize; 4]) {
    let header = Layout::new::<Header>();
    let part = |whole: Layout, next: std::result::Result<Layout, _>| {
        whole.extend(next.expect("small")).expect("small")
    };
    let (whole, slots) = part(header, Layout::array::<WorkerSlot>(slot_count()));
    let (whole, demands) = part(whole, Layout::array::<Demand>(MOST_DEMANDS));
    let (whole, waits) = part(whole, Layout::array::<Wait>(MOST_WAITS));
    let (whole, databases) = part(whole, Layout::array::<Database>(MOST_DATABASES));
    (whole, [slots, demands, waits, databases])
}

/// Asks for the memory and the lock. In the postmaster.
///
/// # Errors
/// Asked too late.
pub fn request() -> Result<()> {
    shmem::request(layout().0.size())?;
    LwLock::request(NAME)
}

/// Attaches, and fills the memory if it is new. In the postmaster, before recovery.
///
/// # Errors
/// Not enough shared memory.
pub fn startup() -> Result<()> {
    let (whole, [slots, demands, waits, databases]) = layout();
    let (address, found) = shmem::attach(NAME, whole.size())?;
    let lock = LwLock::named(NAME)?;
    // SAFETY: `layout` computed these offsets for parts of these types within the memory attached, whose start
    // is aligned to a cache line.
    let addresses = unsafe {
        Addresses {
            lock,
            header: address.cast(),
            slots: address.add(slots).cast(),
            slot_count: slot_count(),
            demands: address.add(demands).cast(),
            waits: address.add(waits).cast(),
            databases: address.add(databases).cast(),
        }
    };
    if !found {
        let unclean = !control::was_shut_down_cleanly()?;
        // SAFETY: our memory, which no other process uses yet.
        unsafe {
            addresses.header.write(Header {
                launcher: LatchRef::NOBODY,
                launcher_pid: 0,
                unclean,
                paused: topics::were_refused_at_start(),
                overflow: false,
                booted: time::now(),
                generations: Generations([0; 64]),
                order: 1,
                ends: 0,
                limit: 0,
                room: 0,
                room_for: (0, 0),
                better: (0, 0),
                surplus: 0,
                idle_room: 0,
                demand_count: 0,
                wait_count: 0,
                database_count: 0,
            });
            for i in 0..addresses.slot_count {
                let nobody = Key {
                    database: 0,
                    role: 0,
                };
                addresses
                    .slots
                    .add(i)
                    .write(pool::free_slot(nobody, Work::new()));
            }
        }
    }
    ADDRESSES.set(Some(addresses));
    Ok(())
}

impl Work {
    /// Of a process that does nothing yet.
    pub const fn new() -> Self {
        Self {
            idle: false,
            leaving: false,
            suspect: false,
            cancelled: false,
            ending: false,
            task: 0,
            topic: TopicId::NONE,
            attempt: 0,
            relation: 0,
            changed: 0,
            done: 0,
        }
    }
}

/// Whether the library was preloaded, so that there is a registry.
pub fn is_there() -> bool {
    ADDRESSES.get().is_some()
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
    _held: Held,
}

/// Locks the registry until the result is dropped. Nothing slow, and nothing that raises, may be done meanwhile.
///
/// # Errors
/// The library was not preloaded.
pub fn lock() -> Result<Registry> {
    let Some(addresses) = ADDRESSES.get() else {
        return Err(not_preloaded());
    };
    let held = addresses.lock.exclusive()?;
    // SAFETY: the parts do not overlap, live as long as the server, and belong to whoever holds the lock.
    unsafe {
        Ok(Registry {
            header: &mut *addresses.header,
            slots: std::slice::from_raw_parts_mut(addresses.slots, addresses.slot_count),
            demands: std::slice::from_raw_parts_mut(addresses.demands, MOST_DEMANDS),
            waits: std::slice::from_raw_parts_mut(addresses.waits, MOST_WAITS),
            databases: std::slice::from_raw_parts_mut(addresses.databases, MOST_DATABASES),
            _held: held,
        })
    }
}

impl Drop for Registry {
    /// The lock is released by its guard. That there is a `drop` keeps the parts from being moved out, and what is
    /// borrowed from them from outliving the lock.
    fn drop(&mut self) {}
}

/// The processes, as a pool of the worker kit; the launcher owns them.
pub struct Processes;

/// See [`Processes`].
pub static PROCESSES: Processes = Processes;

impl Pool for Processes {
    type Key = Key;
    type Payload = Work;

    fn with<R>(&self, f: impl FnOnce(&mut [WorkerSlot]) -> R) -> Result<R> {
        Ok(f(lock()?.slots))
    }

    /// A task, which stands as `running` in the table, for a keeper to clear away.
    fn leaves_something(work: &Work) -> bool {
        work.task != 0
    }
}

/// The error of every function when there is no registry.
pub fn not_preloaded() -> Error {
    Error::new(
        sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
        "pg_background_queue must be loaded via shared_preload_libraries",
    )
    .hint("Add pg_background_queue to shared_preload_libraries in postgresql.conf and restart the server.")
}

impl Registry {
    /// The demands.
    pub fn demands(&mut self) -> &mut [Demand] {
        &mut self.demands[..self.header.demand_count as usize]
    }

    /// The demand of this key.
    pub fn demand(&mut self, key: Key) -> Option<&mut Demand> {
        self.demands().iter_mut().find(|demand| demand.key == key)
    }

    /// There may be work for this key, of this priority: remembers it, due at once.
    pub fn add_demand(&mut self, key: Key, priority: i32) {
        let order = self.next_order();
        if let Some(demand) = self.demand(key) {
            demand.bumps = order;
            demand.priority = demand.priority.min(priority);
            demand.blocked = false;
            // a role whose workers fail waits its time
            if demand.failures == 0 {
                demand.due = 0;
            }
            return;
        }
        let count = self.header.demand_count as usize;
        if count == MOST_DEMANDS {
            self.header.overflow = true;
            return;
        }
        self.demands[count] = Demand {
            key,
            bumps: order,
            priority,
            order,
            due: 0,
            more: false,
            blocked: false,
            failures: 0,
        };
        self.header.demand_count += 1;
    }

    /// Forgets the demands for which `gone` holds.
    pub fn remove_demands(&mut self, gone: impl Fn(&Demand) -> bool) {
        let mut i = 0;
        while i < self.header.demand_count as usize {
            if gone(&self.demands[i]) {
                self.header.demand_count -= 1;
                self.demands[i] = self.demands[self.header.demand_count as usize];
            } else {
                i += 1;
            }
        }
    }

    /// Whether there is room for many more demands.
    pub fn demands_have_room(&self) -> bool {
        (self.header.demand_count as usize) < MOST_DEMANDS / 2
    }

    fn next_order(&mut self) -> u64 {
        self.header.order += 1;
        self.header.order
    }

    /// Puts the demand of this key behind the others who wait.
    pub fn requeue(&mut self, key: Key) {
        let order = self.next_order();
        if let Some(demand) = self.demand(key) {
            demand.order = order;
        }
    }

    /// The databases.
    pub fn databases(&mut self) -> &mut [Database] {
        &mut self.databases[..self.header.database_count as usize]
    }

    /// The entry of a database.
    pub fn database(&mut self, oid: Oid) -> Option<&mut Database> {
        self.databases()
            .iter_mut()
            .find(|database| database.oid == oid)
    }

    /// The entry of a database, made if it was not there; `None` if there is no room.
    pub fn add_database(&mut self, oid: Oid) -> Option<&mut Database> {
        if self.database(oid).is_none() {
            if self.header.database_count as usize == MOST_DATABASES {
                self.forget_a_quiet_database();
            }
            let count = self.header.database_count as usize;
            if count == MOST_DATABASES {
                return None;
            }
            self.databases[count] = Database {
                oid,
                recovered: false,
                wants_keeper: false,
                visited: false,
                closed_by: 0,
            };
            self.header.database_count += 1;
        }
        self.database(oid)
    }

    /// A database that nobody works in and nobody waits for is visited by a keeper again should that change.
    fn forget_a_quiet_database(&mut self) {
        let quiet = self.databases().to_vec().into_iter().find(|database| {
            !database.wants_keeper
                && !self
                    .slots
                    .iter()
                    .any(|s| s.state != SlotState::Free && s.key.database == database.oid)
                && !self
                    .demands()
                    .iter()
                    .any(|demand| demand.key.database == database.oid)
        });
        if let Some(database) = quiet {
            self.remove_database(database.oid);
        }
    }

    /// Sends away who is in a database, and holds back others until that process has called
    /// [`open_database`](Self::open_database).
    pub fn close_database(&mut self, oid: Oid, pid: i32) {
        if let Some(database) = self.add_database(oid) {
            database.closed_by = pid;
        }
        for slot in self.slots.iter_mut() {
            if slot.state != SlotState::Free && slot.key.database == oid {
                slot.payload.leaving = true;
                slot.latch.set();
            }
        }
    }

    /// Takes [`close_database`](Self::close_database) back.
    pub fn open_database(&mut self, oid: Oid) {
        if let Some(database) = self.database(oid) {
            database.closed_by = 0;
        }
    }

    /// Takes back all that a process has closed; true if that was any.
    pub fn open_databases_of(&mut self, pid: i32) -> bool {
        let mut any = false;
        for database in self
            .databases()
            .iter_mut()
            .filter(|database| database.closed_by == pid)
        {
            database.closed_by = 0;
            any = true;
        }
        any
    }

    /// Whether processes may be started in a database.
    pub fn is_open(&mut self, oid: Oid) -> bool {
        self.database(oid)
            .is_none_or(|database| database.closed_by == 0)
    }

    /// Forgets a database.
    pub fn remove_database(&mut self, oid: Oid) {
        let count = self.header.database_count as usize;
        if let Some(i) = self
            .databases()
            .iter()
            .position(|database| database.oid == oid)
        {
            self.databases[i] = self.databases[count - 1];
            self.header.database_count -= 1;
        }
    }

    /// Asks for a keeper in a database. The caller wakes the launcher.
    pub fn want_keeper(&mut self, database: Oid) {
        match self.add_database(database) {
            Some(database) => database.wants_keeper = true,
            None => self.header.overflow = true,
        }
    }

    /// Gives up the slots whose processes are gone without having said so.
    ///
    /// # Errors
    /// None known.
    pub fn calibrate(&mut self) -> Result<()> {
        pool::bury::<Processes>(self.slots)
    }

    /// Workers that are there or asked for, with the orphans that still take a place.
    pub fn occupied(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| slot.state != SlotState::Free && !slot.key.is_keeper())
            .count()
    }

    /// Live workers.
    pub fn live_workers(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| slot.state == SlotState::Attached && !slot.key.is_keeper())
            .count()
    }

    /// Tasks that run, with the orphans among them, which still stand as `running` in the table.
    fn running(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| slot.payload.task != 0 && slot.state != SlotState::Free)
            .count()
    }

    /// Whether somebody runs this task, or has left it.
    pub fn has_task(&self, database: Oid, relation: Oid, task: i64) -> bool {
        self.slots.iter().any(|slot| {
            slot.state != SlotState::Free
                && slot.key.database == database
                && slot.payload.relation == relation
                && slot.payload.task == task
        })
    }

    /// Until when a worker other than that of this slot has the turn of the cut-off tasks, if one has it. A task that
    /// has run for so long is taken not to be one that brings the server down.
    pub fn suspect_turn(&self, but: Ticket, now: TimestampTz) -> Option<TimestampTz> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(i, slot)| {
                slot.payload.suspect && slot.state != SlotState::Free && *i != but.slot as usize
            })
            .map(|(_, slot)| slot.payload.changed + SUSPECT_TURN)
            .filter(|&until| until > now)
            .max()
    }

    /// How many tasks of a topic may start now. With a delay, up to `wanted` slots of the topic begin to wait, if
    /// they do not wait already.
    pub fn may_start(
        &mut self,
        database: Oid,
        topic: TopicId,
        rules: Rules,
        wanted: usize,
        now: TimestampTz,
    ) -> MayStart {
        let running = self
            .slots
            .iter()
            .filter(|slot| {
                slot.state != SlotState::Free
                    && slot.payload.task != 0
                    && slot.key.database == database
                    && slot.payload.topic == topic
            })
            .count();
        let free = rules.limit.saturating_sub(running);
        if rules.delay > 0 {
            // as many slots as the topic has now: the limit may have been lowered
            self.trim_waits(database, topic, free);
        }
        if free == 0 {
            return MayStart::Blocked;
        }
        if rules.delay == 0 {
            return MayStart::Yes(free);
        }
        // a delay that was shortened by a reload counts at once
        let latest = now + rules.delay;
        let is_ours = |wait: &&mut Wait| wait.database == database && wait.topic == topic;
        let mut waiting = 0;
        let mut ready = 0;
        let mut next = latest;
        for wait in self.waits().iter_mut().filter(is_ours) {
            wait.until = wait.until.min(latest);
            next = next.min(wait.until);
            ready += usize::from(wait.until <= now);
            waiting += 1;
        }
        for _ in waiting..wanted.min(free) {
            self.add_wait(
                Wait {
                    database,
                    topic,
                    until: latest,
                },
                now,
            );
        }
        if ready > 0 {
            MayStart::Yes(ready.min(free))
        } else {
            MayStart::NotBefore(next)
        }
    }

    fn waits(&mut self) -> &mut [Wait] {
        &mut self.waits[..self.header.wait_count as usize]
    }

    /// Keeps the earliest `most` waits of a topic.
    fn trim_waits(&mut self, database: Oid, topic: TopicId, most: usize) {
        loop {
            let ours =
                |(_, wait): &(usize, &Wait)| wait.database == database && wait.topic == topic;
            let waits = self.waits();
            if waits.iter().enumerate().filter(ours).count() <= most {
                return;
            }
            let last = waits
                .iter()
                .enumerate()
                .filter(ours)
                .max_by_key(|(_, wait)| wait.until)
                .map(|(i, _)| i);
            if let Some(i) = last {
                self.remove_wait(i);
            }
        }
    }

    fn remove_wait(&mut self, i: usize) {
        self.header.wait_count -= 1;
        self.waits[i] = self.waits[self.header.wait_count as usize];
    }

    fn add_wait(&mut self, wait: Wait, now: TimestampTz) {
        let mut count = self.header.wait_count as usize;
        if count == MOST_WAITS {
            let mut i = 0;
            while i < count {
                if self.waits[i].until < now - WAIT_FORGOTTEN {
                    count -= 1;
                    self.waits[i] = self.waits[count];
                } else {
                    i += 1;
                }
            }
        }
        // without room the topic waits for another one's slots to be forgotten
        if count < MOST_WAITS {
            self.waits[count] = wait;
            count += 1;
        }
        self.header.wait_count = u32::try_from(count).unwrap_or(0);
    }

    /// Takes a place among the running tasks for the worker of this ticket.
    pub fn begin_task(&mut self, ticket: Ticket, beginning: &Beginning, now: TimestampTz) -> Begun {
        if self.running() >= self.header.limit as usize {
            return Begun::LimitReached;
        }
        let Some(database) = pool::find(self.slots, ticket).map(|slot| slot.key.database) else {
            return Begun::LimitReached;
        };
        let Beginning {
            task,
            relation,
            attempt,
            topic,
            rules,
            suspect,
        } = *beginning;
        let may_start = self.may_start(database, topic, rules, 1, now);
        if !matches!(may_start, MayStart::Yes(_))
            || suspect && self.suspect_turn(ticket, now).is_some()
        {
            return Begun::TopicWaits;
        }
        if rules.delay > 0 {
            let ready = self.waits().iter().position(|wait| {
                wait.database == database && wait.topic == topic && wait.until <= now
            });
            if let Some(used) = ready {
                self.remove_wait(used);
            }
        }
        if let Some(slot) = pool::find(self.slots, ticket) {
            slot.payload = Work {
                relation,
                task,
                attempt,
                topic,
                suspect,
                cancelled: false,
                ending: false,
                changed: now,
                idle: false,
                ..slot.payload
            };
        }
        Begun::Yes
    }

    /// Whether a busy worker has to leave its place to others before its next task: because there are too many workers,
    /// because a role has none, and its priority is better or as good and the worker's `stint` is over, or because others
    /// of better priority have more to do. Priorities count within a database; databases take turns. Each call that says yes counts.
    pub fn must_make_room(&mut self, database: Oid, priority: i32, stint_is_over: bool) -> bool {
        let header = &mut *self.header;
        if header.surplus > 0 {
            header.surplus -= 1;
            return true;
        }
        let (for_database, for_priority) = header.room_for;
        let equal = for_database != database || priority == for_priority;
        let better = for_database == database && priority > for_priority;
        if header.room > 0 && (better || equal && stint_is_over) {
            header.room -= 1;
            return true;
        }
        if header.better.0 == database && priority > header.better.1 {
            header.better = (0, 0);
            return true;
        }
        false
    }

    /// Whether a worker has to leave instead of becoming idle, because others than its own `key` could use the place.
    /// Each call that says yes counts.
    pub fn must_not_idle(&mut self, key: Key) -> bool {
        let for_more = self.header.idle_room > 0
            && self
                .demands()
                .iter()
                .any(|demand| demand.more && demand.key != key);
        let asked = if self.header.surplus > 0 {
            &mut self.header.surplus
        } else if self.header.room > 0 {
            &mut self.header.room
        } else if for_more {
            &mut self.header.idle_room
        } else {
            return false;
        };
        *asked -= 1;
        true
    }

    /// Gives that place back. True if the launcher must be woken: somebody has waited for it.
    pub fn end_task(&mut self, ticket: Ticket, has_run: bool) -> bool {
        let Some(slot) = pool::find(self.slots, ticket) else {
            return false;
        };
        let suspect = slot.payload.suspect;
        let database = slot.key.database;
        slot.payload = Work {
            task: 0,
            topic: TopicId::NONE,
            suspect: false,
            done: slot.payload.done + u64::from(has_run),
            changed: time::now(),
            ..slot.payload
        };
        self.unblock((!suspect).then_some(database))
    }

    /// Cancels the task that a worker runs: interrupts it, while the lock keeps it from going on to another.
    pub fn cancel(&mut self, database: Oid, relation: Oid, task: i64, attempt: i32) -> Cancelled {
        let found = self.slots.iter_mut().find(|slot| {
            slot.state != SlotState::Free
                && slot.key.database == database
                && slot.payload.relation == relation
                && slot.payload.task == task
                && slot.payload.attempt == attempt
        });
        match found {
            // its keeper will see it
            Some(slot) if matches!(slot.state, SlotState::Ended | SlotState::Orphaned) => {
                slot.payload.cancelled = true;
                Cancelled::Yes
            }
            Some(slot) if slot.payload.ending => Cancelled::TooLate,
            Some(slot) => {
                slot.payload.cancelled = true;
                bgworker::interrupt(slot.pid);
                Cancelled::Yes
            }
            None => Cancelled::NotThere,
        }
    }

    /// Whether the task of the worker of this ticket was cancelled.
    pub fn is_cancelled(&mut self, ticket: Ticket) -> bool {
        pool::find(self.slots, ticket).is_some_and(|slot| slot.payload.cancelled)
    }

    /// The task of the worker of this ticket has failed, and its row is marked; true if that is because it was cancelled.
    pub fn begin_ending(&mut self, ticket: Ticket) -> bool {
        pool::find(self.slots, ticket).is_some_and(|slot| {
            slot.payload.ending = true;
            slot.payload.cancelled
        })
    }

    /// The settings have changed: all who wait for a time or for an end look again.
    pub fn look_again(&mut self) {
        self.unblock(None);
        for demand in self
            .demands()
            .iter_mut()
            .filter(|demand| demand.failures == 0)
        {
            demand.due = 0;
            demand.more = true;
        }
    }

    /// A task has ended: those who have waited for that, in one database or in all, try again; true if there are any.
    pub fn unblock(&mut self, database: Option<Oid>) -> bool {
        let mut any = false;
        self.header.ends += 1;
        for demand in self.demands() {
            if demand.blocked && database.is_none_or(|oid| oid == demand.key.database) {
                demand.blocked = false;
                demand.due = 0;
                demand.more = true;
                any = true;
            }
        }
        any
    }

    /// What the launcher plans with.
    pub fn view(&mut self) -> (Vec<plan::Worker>, Vec<plan::Demand>, usize) {
        let workers = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| !slot.key.is_keeper())
            .filter_map(|(i, slot)| {
                let phase = match slot.state {
                    SlotState::Registered => plan::Phase::Starting,
                    SlotState::Attached if slot.payload.idle => plan::Phase::Idle,
                    SlotState::Attached => plan::Phase::Busy,
                    SlotState::Free | SlotState::Ended | SlotState::Orphaned => return None,
                };
                Some(plan::Worker {
                    slot: i,
                    database: slot.key.database,
                    role: slot.key.role,
                    phase,
                    leaving: slot.payload.leaving,
                })
            })
            .collect();
        let orphans = self
            .slots
            .iter()
            .filter(|slot| slot.state == SlotState::Orphaned)
            .count();
        let mut open: Vec<Oid> = self
            .databases()
            .iter()
            .filter(|database| database.recovered)
            .map(|database| database.oid)
            .collect();
        open.retain(|&oid| self.is_open(oid));
        let demands = self
            .demands()
            .iter()
            .enumerate()
            .filter(|(_, demand)| open.contains(&demand.key.database))
            .map(|(index, demand)| plan::Demand {
                index,
                database: demand.key.database,
                role: demand.key.role,
                priority: demand.priority,
                order: demand.order,
                due: demand.due,
                more: demand.more,
            })
            .collect();
        (workers, demands, orphans)
    }

    /// There is work for this key: remembers it, and wakes up to `count` idle workers. True if the launcher has to do
    /// the rest: the workers that are there may be busy for hours.
    pub fn offer(&mut self, key: Key, priority: i32, count: u32) -> bool {
        self.add_demand(key, priority);
        if self.wake_idle(key, count) {
            return false;
        }
        let busy = self
            .slots
            .iter()
            .any(|slot| slot.state == SlotState::Attached && slot.key == key);
        if let Some(demand) = self.demand(key) {
            demand.more |= busy;
        }
        true
    }

    /// Forgets what there was to do in a database when [`Header::order`] was `seen`, with what its workers have left: its
    /// table is gone.
    pub fn forget_work(&mut self, database: Oid, seen: u64) {
        self.remove_demands(|demand| demand.key.database == database && demand.bumps <= seen);
        for slot in self.slots.iter_mut() {
            if slot.state == SlotState::Orphaned && slot.key.database == database {
                pool::release(slot);
            }
        }
    }

    /// Wakes up to `count` idle workers of this key; true if there were as many.
    pub fn wake_idle(&mut self, key: Key, count: u32) -> bool {
        let mut woken = 0;
        for slot in self
            .slots
            .iter_mut()
            .filter(|slot| slot.state == SlotState::Attached)
        {
            if woken < count && slot.key == key && slot.payload.idle && !slot.payload.leaving {
                slot.payload.idle = false;
                slot.latch.set();
                woken += 1;
            }
        }
        woken == count
    }

    /// Wakes the launcher.
    pub fn wake_launcher(&self) {
        self.header.launcher.set();
    }
}
