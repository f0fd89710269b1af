//! What the processes tell each other, in shared memory, under one lock.
//!
//! - **slots**: one for each worker and keeper, with the task that it runs. A worker writes its task here before
//!   it claims it in the table, so that whoever finds the row `running` and no slot with it knows that its worker is gone.
//! - **demands**: (database, role) pairs that may have work. Enqueueing adds them at commit; a worker that finds
//!   nothing more takes its own away. Losing one loses no task: a keeper finds it in the table again.
//! - **waits**: parallel slots of topics with a delay that wait before their next start.
//! - **databases**: those whose keeper has been there since the server's start. Workers start in no other.

use std::alloc::Layout;
use std::collections::HashMap;

use super::store::Candidate;
use super::topics::{self, Configuration, Rules, TopicId};
use crate::core::plan;
use crate::core::ready::{Place, Ready};
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

/// Commands at the same time that want one database without sessions; for those beyond, nobody is held back.
const MOST_CLOSERS: usize = 8;

/// Slots of topics with a delay that can wait at the same time.
const MOST_WAITS: usize = 4096;

/// A slot that has waited and found no task for so long, in microseconds, is forgotten if there is no room for others.
const WAIT_FORGOTTEN: i64 = 1_000_000;

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
    /// Nobody.
    pub const NONE: Self = Self {
        database: 0,
        role: 0,
    };

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
    /// It gave up because it could not write the task's row.
    pub broken: bool,
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
    /// The task that it goes on with, claimed in the transaction in which the first one finishes.
    pub next: NextTask,
    /// Since when it does what it does.
    pub changed: TimestampTz,
    /// Tasks that it has ended.
    pub done: u64,
}

/// See [`Work::next`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct NextTask {
    /// The task; 0 is none.
    pub task: i64,
    /// Its topic.
    pub topic: TopicId,
    /// The attempt of it.
    pub attempt: i32,
    /// It was cancelled.
    pub cancelled: bool,
}

impl NextTask {
    /// None.
    pub const NONE: Self = Self {
        task: 0,
        topic: TopicId::NONE,
        attempt: 0,
        cancelled: false,
    };
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

/// What a look into the table has seen, beside the tasks that it found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Sight {
    /// [`Header::ends`] before it.
    pub ends: u64,
    /// The demand's count before it.
    pub bumps: u64,
    /// When the next task that is not due yet will be.
    pub next_due: TimestampTz,
    /// A task waits for the end of another: see [`Demand::blocked`].
    pub blocked: bool,
    /// One of these is not among the tasks that were found.
    pub passed_over: bool,
    /// There are more tasks than were found.
    pub more: bool,
}

impl Sight {
    /// Before any look.
    pub const NOTHING: Self = Self {
        ends: 0,
        bumps: 0,
        next_due: UNTIL_TOLD,
        blocked: false,
        passed_over: false,
        more: false,
    };
}

/// What the workers of a key have in common.
#[repr(C)]
pub struct Shelf {
    /// What the look that filled it has seen.
    pub sight: Sight,
    /// The tasks that they take from.
    pub ready: Ready<Candidate>,
}

impl Shelf {
    /// Before any look.
    const fn new() -> Self {
        Self {
            sight: Sight::NOTHING,
            ready: Ready::new(Candidate::NONE),
        }
    }
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
    /// The processes that want it without sessions; 0 is nobody.
    closed_by: [i32; MOST_CLOSERS],
}

impl Database {
    /// Takes back that a process has closed it; true if it had.
    fn reopen_for(&mut self, pid: i32) -> bool {
        let closer = self.closed_by.iter_mut().find(|closer| **closer == pid);
        closer.map(|closer| *closer = 0).is_some()
    }
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
    shelf_keys: *mut Key,
    shelves: *mut Shelf,
}

static ADDRESSES: ProcessLocal<Option<Addresses>> = ProcessLocal::new(None);

const NAME: &std::ffi::CStr = c"pg_background_queue";

/// Every worker process of the server can be ours, and keepers and orphans want some more.
fn slot_count() -> usize {
    control::max_worker_processes() + 16
}

/// The places of the parts after the header, and the whole.
fn layout() -> (Layout, [usize; 6]) {
    let header = Layout::new::<Header>();
    let part = |whole: Layout, next: std::result::Result<Layout, _>| {
        whole.extend(next.expect("small")).expect("small")
    };
    let (whole, slots) = part(header, Layout::array::<WorkerSlot>(slot_count()));
    let (whole, demands) = part(whole, Layout::array::<Demand>(MOST_DEMANDS));
    let (whole, waits) = part(whole, Layout::array::<Wait>(MOST_WAITS));
    let (whole, databases) = part(whole, Layout::array::<Database>(MOST_DATABASES));
    let (whole, shelf_keys) = part(whole, Layout::array::<Key>(slot_count()));
    let (whole, shelves) = part(whole, Layout::array::<Shelf>(slot_count()));
    (
        whole,
        [slots, demands, waits, databases, shelf_keys, shelves],
    )
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
    let (whole, [slots, demands, waits, databases, shelf_keys, shelves]) = layout();
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
            shelf_keys: address.add(shelf_keys).cast(),
            shelves: address.add(shelves).cast(),
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
                addresses
                    .slots
                    .add(i)
                    .write(pool::free_slot(Key::NONE, Work::new()));
                addresses.shelf_keys.add(i).write(Key::NONE);
                addresses.shelves.add(i).write(Shelf::new());
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
            broken: false,
            cancelled: false,
            ending: false,
            task: 0,
            topic: TopicId::NONE,
            attempt: 0,
            relation: 0,
            next: NextTask::NONE,
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
    shelf_keys: &'static mut [Key],
    shelves: &'static mut [Shelf],
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
            shelf_keys: std::slice::from_raw_parts_mut(addresses.shelf_keys, addresses.slot_count),
            shelves: std::slice::from_raw_parts_mut(addresses.shelves, addresses.slot_count),
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

    /// A worker leaves what there is to do for this key, the first of it of this priority, to another one: behind all
    /// who wait already.
    pub fn hand_over(&mut self, key: Key, priority: i32) {
        if self.demand(key).is_none() {
            self.add_demand(key, priority);
        }
        let order = self.next_order();
        if let Some(demand) = self.demand(key) {
            demand.order = order;
            demand.priority = priority;
            demand.blocked = false;
            if demand.failures == 0 {
                demand.due = 0;
            }
        }
    }

    /// What the workers of this key have in common; `None` if there is no room, as where they have none.
    pub fn shelf(&mut self, key: Key) -> Option<&mut Shelf> {
        let i = self.shelf_keys.iter().position(|&known| known == key)?;
        Some(&mut self.shelves[i])
    }

    /// The same, made if it was not there. For a worker of this key.
    pub fn make_shelf(&mut self, key: Key) -> Option<&mut Shelf> {
        if self.shelf(key).is_none() {
            let in_use = |key: Key| {
                key != Key::NONE
                    && self
                        .slots
                        .iter()
                        .any(|slot| slot.state != SlotState::Free && slot.key == key)
            };
            // there are as many as slots
            let free = self.shelf_keys.iter().position(|&key| !in_use(key))?;
            self.shelf_keys[free] = key;
            self.shelves[free] = Shelf::new();
        }
        self.shelf(key)
    }

    /// Whether the workers of this key know a task.
    pub fn has_ready(&mut self, key: Key) -> bool {
        self.shelf(key)
            .is_some_and(|shelf| !shelf.ready.tasks().is_empty())
    }

    /// Has the workers of this key look into the table again.
    pub fn forget_ready(&mut self, key: Key) {
        if let Some(shelf) = self.shelf(key) {
            shelf.ready.forget(|_| true);
        }
    }

    /// A task of this key that was taken waits (again).
    pub fn arrive(&mut self, key: Key, place: Place) {
        if let Some(shelf) = self.shelf(key) {
            shelf.ready.arrive(place);
            shelf.sight.passed_over = true;
        }
        let order = self.next_order();
        if let Some(demand) = self.demand(key) {
            demand.bumps = order;
        }
    }

    /// Whether something may have to go before what the workers of this key know, the first of which has this priority.
    pub fn must_look_again(
        &mut self,
        key: Key,
        sight: &Sight,
        priority: i32,
        now: TimestampTz,
    ) -> bool {
        let ended = self.header.ends != sight.ends;
        let better = self
            .demand(key)
            .is_some_and(|demand| demand.bumps != sight.bumps && demand.priority < priority);
        better || sight.next_due <= now || sight.passed_over && ended
    }

    /// Takes the first known task of this key that may start now.
    pub fn next_task(
        &mut self,
        ticket: Ticket,
        key: Key,
        configuration: &Configuration,
        now: TimestampTz,
    ) -> Option<Candidate> {
        let others_turn = self.suspect_turn(ticket, now).is_some();
        let i = self.first_known(key, |registry, task| {
            let rules = configuration.rules(task.topic);
            !(others_turn && task.interruptions > 0)
                && (!rules.limited || registry.has_room(key, task.topic, rules, 1, now))
        })?;
        self.take_known(key, i)
    }

    fn take_known(&mut self, key: Key, index: usize) -> Option<Candidate> {
        let shelf = self.shelf(key)?;
        let candidate = shelf.ready.take(index)?;
        if candidate.last_known {
            shelf.ready.forget(|_| true);
        }
        Some(candidate)
    }

    /// Whether one of the tasks that the workers of this key know could start now in another worker. The limit of all is
    /// the launcher's business: others may make room.
    pub fn others_could_help(
        &mut self,
        key: Key,
        configuration: &Configuration,
        now: TimestampTz,
    ) -> bool {
        self.first_known(key, |registry, task| {
            let rules = configuration.rules(task.topic);
            !rules.limited || registry.has_room(key, task.topic, rules, 0, now)
        })
        .is_some()
    }

    fn has_room(
        &mut self,
        key: Key,
        topic: TopicId,
        rules: Rules,
        wanted: usize,
        now: TimestampTz,
    ) -> bool {
        let may_start = self.may_start(key.database, topic, rules, wanted, now);
        matches!(may_start, MayStart::Yes(_))
    }

    /// The first of the tasks that the workers of this key know for which `wanted` holds. It is asked once for tasks of one topic that
    /// follow each other, the cut-off ones among them apart.
    fn first_known(
        &mut self,
        key: Key,
        mut wanted: impl FnMut(&mut Self, &Candidate) -> bool,
    ) -> Option<usize> {
        let shelf = self.shelf_keys.iter().position(|&known| known == key)?;
        let mut refused = None;
        let mut i = 0;
        loop {
            let task = *self.shelves[shelf].ready.tasks().get(i)?;
            let kind = (task.topic, task.interruptions > 0);
            if refused != Some(kind) {
                if wanted(self, &task) {
                    return Some(i);
                }
                refused = Some(kind);
            }
            i += 1;
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
                closed_by: [0; MOST_CLOSERS],
            };
            self.header.database_count += 1;
        }
        self.database(oid)
    }

    /// A database that nobody works in and nobody waits for is visited by a keeper again should that change.
    fn forget_a_quiet_database(&mut self) {
        let quiet = self.databases().to_vec().into_iter().find(|database| {
            !database.wants_keeper
                && database.closed_by == [0; MOST_CLOSERS]
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
        if let Some(database) = self.add_database(oid)
            && !database.closed_by.contains(&pid)
            && let Some(closer) = database.closed_by.iter_mut().find(|closer| **closer == 0)
        {
            *closer = pid;
        }
        for slot in self.slots.iter_mut() {
            if slot.state != SlotState::Free && slot.key.database == oid {
                slot.payload.leaving = true;
                slot.latch.set();
            }
        }
    }

    /// Takes [`close_database`](Self::close_database) back.
    pub fn open_database(&mut self, oid: Oid, pid: i32) {
        if let Some(database) = self.database(oid) {
            database.reopen_for(pid);
        }
    }

    /// Takes back all that a process has closed; true if that was any.
    pub fn open_databases_of(&mut self, pid: i32) -> bool {
        let mut any = false;
        for database in self.databases() {
            any |= database.reopen_for(pid);
        }
        any
    }

    /// Whether processes may be started in a database.
    pub fn is_open(&mut self, oid: Oid) -> bool {
        self.database(oid)
            .is_none_or(|database| database.closed_by == [0; MOST_CLOSERS])
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
                && (slot.payload.task == task || slot.payload.next.task == task)
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
        let free = rules.limit.saturating_sub(self.running_of(database, topic));
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

    /// Places of a topic that are taken. A worker that goes on with another task of the same topic needs no second one.
    fn running_of(&self, database: Oid, topic: TopicId) -> usize {
        let takes = |work: &Work| {
            work.task != 0 && work.topic == topic || work.next.task != 0 && work.next.topic == topic
        };
        self.slots
            .iter()
            .filter(|slot| {
                slot.state != SlotState::Free
                    && slot.key.database == database
                    && takes(&slot.payload)
            })
            .count()
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
        if self.header.wait_count as usize == MOST_WAITS {
            self.make_room_for(&wait, now);
        }
        let count = self.header.wait_count as usize;
        // without room the topic waits for another one's slots to start
        if count < MOST_WAITS {
            self.waits[count] = wait;
            self.header.wait_count += 1;
        }
    }

    /// Forgets the waits that found no task, or else one of the topic that has the most, if that are more than this one's: nobody's many
    /// slots shall keep another topic from its first.
    fn make_room_for(&mut self, wait: &Wait, now: TimestampTz) {
        let mut i = 0;
        while i < self.header.wait_count as usize {
            if self.waits[i].until < now - WAIT_FORGOTTEN {
                self.remove_wait(i);
            } else {
                i += 1;
            }
        }
        if (self.header.wait_count as usize) < MOST_WAITS {
            return;
        }
        let mut counts: HashMap<(Oid, TopicId), usize> = HashMap::new();
        for wait in self.waits().iter() {
            *counts.entry((wait.database, wait.topic)).or_insert(0) += 1;
        }
        let own = counts
            .get(&(wait.database, wait.topic))
            .copied()
            .unwrap_or(0);
        let most = counts.into_iter().max_by_key(|&(_, count)| count);
        if let Some(((database, topic), count)) = most.filter(|&(_, count)| count > own + 1) {
            self.trim_waits(database, topic, count - 1);
        }
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

    /// Takes the task that the worker of this ticket is to go on with when the one that it runs has finished: a known one that may have
    /// the place of that, or a free one of its topic. Only where nobody else has to be asked, or waits for such a place.
    pub fn begin_next(
        &mut self,
        ticket: Ticket,
        sight: &Sight,
        configuration: &Configuration,
        now: TimestampTz,
    ) -> Option<Candidate> {
        let slot = pool::find(self.slots, ticket)?;
        let (key, work) = (slot.key, slot.payload);
        let header = &self.header;
        let others_wait = header.surplus > 0 || header.room > 0 || header.better != (0, 0);
        let (unclean, booted) = (header.unclean, header.booted);
        if work.leaving || work.cancelled || work.suspect || others_wait {
            return None;
        }
        if self.running() > self.header.limit as usize {
            return None;
        }
        let first = *self.shelf(key)?.ready.tasks().first()?;
        if self.must_look_again(key, sight, first.priority, now) {
            return None;
        }
        let others_blocked = self.demands().iter().any(|demand| {
            demand.blocked && demand.key != key && demand.key.database == key.database
        });
        let i = self.first_known(key, |registry, task| {
            let rules = configuration.rules(task.topic);
            let room = if task.topic == work.topic {
                registry.running_of(key.database, task.topic) <= rules.limit
            } else {
                registry.has_room(key, task.topic, rules, 0, now)
            };
            task.interruptions == 0
                && !(unclean && task.joined_at < booted)
                && (!rules.limited || rules.delay == 0 && !others_blocked && room)
        })?;
        let candidate = self.take_known(key, i)?;
        if let Some(slot) = pool::find(self.slots, ticket) {
            slot.payload.next = NextTask {
                task: candidate.id,
                topic: candidate.topic,
                attempt: candidate.attempt.wrapping_add(1),
                cancelled: false,
            };
        }
        Some(candidate)
    }

    /// The worker of this ticket does not go on with the task that it has taken for that.
    pub fn drop_next(&mut self, ticket: Ticket, place: Place) {
        if let Some(slot) = pool::find(self.slots, ticket) {
            slot.payload.next = NextTask::NONE;
            let key = slot.key;
            self.arrive(key, place);
        }
    }

    /// Gives the place of a task back, or to the one that the worker goes on with. True if the launcher must be woken: somebody has
    /// waited for it.
    pub fn end_task(&mut self, ticket: Ticket, has_run: bool) -> bool {
        let Some(slot) = pool::find(self.slots, ticket) else {
            return false;
        };
        let Work {
            suspect,
            topic,
            next,
            done,
            ..
        } = slot.payload;
        let database = slot.key.database;
        slot.payload = Work {
            task: next.task,
            topic: next.topic,
            attempt: next.attempt,
            cancelled: next.cancelled,
            ending: false,
            suspect: false,
            next: NextTask::NONE,
            done: done + u64::from(has_run),
            changed: time::now(),
            ..slot.payload
        };
        if next.task != 0 && next.topic == topic {
            return false;
        }
        self.unblock((!suspect).then_some(database))
    }

    /// Cancels the task that a worker runs: interrupts it, while the lock keeps it from going on to another.
    pub fn cancel(&mut self, database: Oid, relation: Oid, task: i64, attempt: i32) -> Cancelled {
        let found = self.slots.iter_mut().find(|slot| {
            let Work {
                task: first,
                attempt: its,
                next,
                ..
            } = slot.payload;
            slot.state != SlotState::Free
                && slot.key.database == database
                && slot.payload.relation == relation
                && ((first, its) == (task, attempt) || (next.task, next.attempt) == (task, attempt))
        });
        match found {
            // it is told when it begins it
            Some(slot) if slot.payload.next.task == task => {
                slot.payload.next.cancelled = true;
                Cancelled::Yes
            }
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

    /// Whether a task of the worker of this ticket was cancelled.
    pub fn is_cancelled(&mut self, ticket: Ticket, task: i64) -> bool {
        pool::find(self.slots, ticket).is_some_and(|slot| {
            let Work {
                task: first,
                cancelled,
                next,
                ..
            } = slot.payload;
            first == task && cancelled || next.task == task && next.cancelled
        })
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
                    stuck_from: (slot.payload.task != 0)
                        .then_some(slot.payload.changed + plan::STINT_MICROSECONDS),
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
    pub fn offer(&mut self, key: Key, place: Place, count: u32) -> bool {
        self.add_demand(key, place.priority);
        if let Some(shelf) = self.shelf(key) {
            shelf.ready.arrive(place);
        }
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
        for (key, shelf) in self.shelf_keys.iter().zip(self.shelves.iter_mut()) {
            if key.database == database {
                shelf.ready.forget(|_| true);
            }
        }
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
