//! The launcher: starts workers and keepers, and writes to no table.

use std::collections::{HashMap, VecDeque};

use super::registry::{self, Key, PROCESSES, Processes, Registry, Work};
use super::{process, settings, topics};
use crate::core::plan::{self, Limits};
use crate::pg::bgworker::pool::{self, Failure, Life, Owner, SlotState, Ticket, Watch};
use crate::pg::bgworker::{self, Definition, MainLoop, Next, Restart, Session, Setup};
use crate::pg::datum::Datum;
use crate::pg::latch::{self, LatchRef, WaitEvent};
use crate::pg::time::{self, ClockWatch};
use crate::pg::xact::{Durability, Transaction};
use crate::pg::{Error, Oid, Result, catalog, control, crash_point, log, sqlstate};

/// Keepers at the same time: they are short, and must leave room for workers.
const MOST_KEEPERS: usize = 2;

/// When to ask again, in microseconds, after PostgreSQL had no worker slot free for us: workers of other extensions
/// come and go without telling us.
const ASK_AGAIN_MICROSECONDS: i64 = 500_000;

/// For how long that must last before the operator is told, in microseconds: our own workers take turns faster.
const SHORTAGE_MICROSECONDS: i64 = 2_000_000;

/// How long a process may take to open its session, in microseconds: it can be blocked by a lock on its database for ever,
/// and holds a place meanwhile.
const CONNECT_MICROSECONDS: i64 = 10_000_000;

/// The least time between two visits of a database, in microseconds: anybody can ask for one.
const VISIT_MICROSECONDS: i64 = 100_000;

/// How long a database is left alone, in microseconds, after its keeper has failed; doubled each time.
const KEEPER_FAILED_MICROSECONDS: i64 = 500_000;

/// How long the launcher sleeps at most, in microseconds, while there is work that waits: then it looks whether the clock was
/// set, or the machine was asleep, for which nobody wakes it. (Without such work it sleeps until it is woken.)
const CLOCK_MICROSECONDS: i64 = 10_000_000;

/// Registers the launcher with the postmaster. From `_PG_init`.
///
/// # Errors
/// Out of memory.
pub fn register() -> Result<()> {
    Definition::new(
        "pg_background_queue launcher",
        super::NAME,
        "pg_background_queue_launcher_main",
    )
    .restart(Restart::After(1))
    .register()
}

/// The main function of the launcher.
///
/// # Errors
/// End the process; the postmaster starts another.
pub fn main(_argument: Datum) -> Result<()> {
    let process = Setup::new(Session::Shared)
        .application_name("")
        .at_exit(leave)
        .begin()?;
    let mut launcher = Launcher::take_over()?;
    log::log("pg_background_queue launcher started")?;
    let paused = registry::lock()?.header.paused;
    if paused {
        log::warning(
            sqlstate::INVALID_PARAMETER_VALUE,
            "pg_background_queue: no tasks run, because pg_background_queue.topic_config was refused at the server's start",
            "Correct the setting and reload the configuration.",
        )?;
    }
    process.run(&mut launcher);
    // 0 would unregister it for ever
    bgworker::exit(1)
}

fn leave(_code: i32) {
    if let Ok(registry) = registry::lock()
        && registry.header.launcher_pid == bgworker::my_pid()
    {
        registry.header.launcher = LatchRef::NOBODY;
        registry.header.launcher_pid = 0;
    }
}

struct Launcher {
    /// Of the workers and keepers.
    owner: Owner<Processes>,
    /// Databases that no keeper has visited since the server's start.
    to_visit: VecDeque<Oid>,
    /// Keepers that failed in a row, and before when the database is not visited again.
    keeper_failures: HashMap<Oid, (u32, i64)>,
    /// PostgreSQL has no worker slot free.
    shortage: Option<Shortage>,
    clock: ClockWatch,
}

struct Shortage {
    since: i64,
    /// In this round, too.
    lasts: bool,
    /// The operator knows of it.
    told: bool,
}

impl MainLoop for Launcher {
    fn step(&mut self) -> Result<Next> {
        topics::forget_refusal();
        if bgworker::turn()? {
            self.settings_changed()?;
        }
        if let Some(step) = self.clock.step() {
            self.clock_was_set(step)?;
        }
        let now = time::now();
        let starts_next = self.owner.tend(&mut Bookkeeper)?;
        if let Some(shortage) = &mut self.shortage {
            shortage.lasts = false;
        }
        self.forget_dropped()?;
        let keepers_next = self.send_keepers(now)?;
        let (plan_next, starts) = self.plan(now, false)?;
        self.start_workers(&starts, now)?;
        let mut again = None;
        if self.lacks_slots()? {
            // what we need comes from our own workers, if from nobody else
            self.plan(now, true)?;
            again = Some(now + ASK_AGAIN_MICROSECONDS);
        }

        let look_at_the_clock = self.work_waits()?.then_some(now + CLOCK_MICROSECONDS);

        let next = [
            plan_next,
            keepers_next,
            starts_next,
            again,
            look_at_the_clock,
        ]
        .into_iter()
        .flatten()
        .min();
        // rounded up: a millisecond too early would be a turn for nothing
        let timeout_ms = next.map(|next| (next - now).max(0).saturating_add(999) / 1000);
        latch::wait_for(
            WaitEvent::named(c"PgBackgroundQueueLauncherMain")?,
            timeout_ms,
        )?;
        Ok(Next::Again)
    }

    fn recovered(&mut self) -> Result<()> {
        // A fresh one adopts what is there: simpler to get right than going on with half a step done.
        bgworker::exit(1)
    }
}

impl Launcher {
    /// Makes this process the launcher. Workers of its predecessor that live are adopted; slots of those that were asked
    /// for and never came are given up, so that a late one finds another generation.
    fn take_over() -> Result<Self> {
        let transaction = Transaction::begin(Durability::Asynchronous)?;
        let (databases, skipped): (Vec<_>, Vec<_>) = catalog::databases()?
            .into_iter()
            .partition(|database| database.connectable);
        transaction.commit()?;
        for database in skipped.iter().filter(|database| !database.is_template) {
            let message = [
                b"pg_background_queue: database \"",
                database.name.as_slice(),
                b"\" is skipped, because it does not allow connections",
            ];
            log::log(message.concat())?;
        }

        let mut registry = registry::lock()?;
        let (pid, latch) = (registry.header.launcher_pid, registry.header.launcher);
        if bgworker::is_alive(pid, latch) {
            drop(registry);
            return Err(Error::new(
                sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
                "another pg_background_queue launcher is running",
            ));
        }
        registry.header.launcher = LatchRef::mine();
        registry.header.launcher_pid = bgworker::my_pid();
        let recovered: Vec<Oid> = registry
            .databases()
            .iter()
            .filter(|d| d.recovered)
            .map(|d| d.oid)
            .collect();
        drop(registry);
        Ok(Self {
            owner: Owner::take_over(&PROCESSES)?.start_timeout(CONNECT_MICROSECONDS),
            to_visit: databases
                .iter()
                .map(|database| database.oid)
                .filter(|database| !recovered.contains(database))
                .collect(),
            keeper_failures: HashMap::new(),
            shortage: None,
            clock: ClockWatch::begin(),
        })
    }

    /// The configuration was read again.
    fn settings_changed(&self) -> Result<()> {
        let goes_on = {
            let mut registry = registry::lock()?;
            registry.look_again();
            registry.header.paused && !topics::was_refused()
        };
        if goes_on {
            registry::lock()?.header.paused = false;
            log::log("pg_background_queue: topic_config was corrected, tasks run again")?;
        }
        Ok(())
    }

    /// The clock was set forth or back by so many microseconds. What was to be after a while is after that while, by the new
    /// clock; for what the table names a time, all look again. Workers remember times, too: they leave after their task.
    fn clock_was_set(&mut self, step: i64) -> Result<()> {
        for (_, until) in self.keeper_failures.values_mut() {
            *until = until.saturating_add(step);
        }
        if let Some(shortage) = &mut self.shortage {
            shortage.since = shortage.since.saturating_add(step);
        }
        let mut registry = registry::lock()?;
        for slot in registry.slots.iter_mut() {
            let has_process = matches!(slot.state, SlotState::Registered | SlotState::Attached);
            if has_process && !slot.key.is_keeper() {
                slot.payload.leaving = true;
                slot.latch.set();
            }
            slot.payload.changed = slot.payload.changed.saturating_add(step);
        }
        let latest = time::now() + process::LONGEST_WAIT_MS * 1000;
        let waiting: Vec<(Key, i32)> = registry
            .demands()
            .iter_mut()
            .map(|demand| {
                if demand.failures > 0 {
                    demand.due = demand.due.saturating_add(step).min(latest);
                }
                (demand.key, demand.priority)
            })
            .collect();
        // also for those who are about to wait for a time that they have from a look before
        for (key, priority) in waiting {
            registry.add_demand(key, priority);
        }
        registry.look_again();
        drop(registry);
        let seconds = step / 1_000_000;
        let direction = if step > 0 { "forth" } else { "back" };
        log::log(format!(
            "pg_background_queue: the clock was set {direction} by {} s",
            seconds.abs()
        ))
    }

    /// Whether there is work that nobody has done yet, for whatever reason.
    fn work_waits(&self) -> Result<bool> {
        Ok(!registry::lock()?.demands().is_empty())
    }

    /// Forgets databases that a keeper could not enter because they are gone.
    fn forget_dropped(&mut self) -> Result<()> {
        let failed = |oid: &Oid| {
            self.keeper_failures
                .get(oid)
                .is_some_and(|&(failures, _)| failures > 0)
        };
        let suspects: Vec<Oid> = self.to_visit.iter().copied().filter(failed).collect();
        if suspects.is_empty() {
            return Ok(());
        }
        let mut gone = Vec::new();
        let transaction = Transaction::begin(Durability::Asynchronous)?;
        for oid in suspects {
            if !catalog::database_exists(oid)? {
                gone.push(oid);
            }
        }
        transaction.commit()?;
        for oid in gone {
            self.to_visit.retain(|&other| other != oid);
            self.keeper_failures.remove(&oid);
            let mut registry = registry::lock()?;
            registry.forget_work(oid, u64::MAX);
            registry.remove_database(oid);
        }
        Ok(())
    }

    /// Sends keepers where they are wanted; returns when to look again.
    fn send_keepers(&mut self, now: i64) -> Result<Option<i64>> {
        let mut next: Option<i64> = None;
        loop {
            if !self.to_visit.is_empty() && control::postmaster_is_stopping() {
                return Ok(None);
            }
            let (key, ticket) = {
                let mut registry = registry::lock()?;
                self.note_wanted(&mut registry, now);
                let busy: Vec<Oid> = registry
                    .slots
                    .iter()
                    .filter(|slot| slot.state != SlotState::Free && slot.key.is_keeper())
                    .map(|slot| slot.key.database)
                    .collect();
                if busy.len() >= MOST_KEEPERS {
                    return Ok(next);
                }
                let ready = self.to_visit.iter().position(|database| {
                    let wait = self
                        .keeper_failures
                        .get(database)
                        .map_or(0, |&(_, until)| until);
                    if wait > now {
                        next = Some(next.map_or(wait, |next| next.min(wait)));
                    }
                    wait <= now && !busy.contains(database) && registry.is_open(*database)
                });
                let Some(database) = ready.and_then(|i| self.to_visit.remove(i)) else {
                    return Ok(next);
                };
                let key = Key { database, role: 0 };
                match self.owner.reserve(registry.slots, key, Work::new()) {
                    Some(ticket) => {
                        if let Some(known) = registry.database(database) {
                            known.wants_keeper = false;
                        }
                        (key, ticket)
                    }
                    None => {
                        self.to_visit.push_front(database);
                        return Ok(next);
                    }
                }
            };
            if !self.launch(key, ticket, now)? {
                registry::lock()?.want_keeper(key.database);
                self.to_visit.push_front(key.database);
                return Ok(next);
            }
            // This counts as a failure until the keeper says that it has been there.
            let (failures, until) = self.keeper_failures.entry(key.database).or_default();
            *until = now + (KEEPER_FAILED_MICROSECONDS << (*failures).min(7));
            *failures += 1;
        }
    }

    /// Takes up the wishes for keepers.
    fn note_wanted(&mut self, registry: &mut Registry, now: i64) {
        let mut wanted: Vec<Oid> = Vec::new();
        for database in registry.databases().iter_mut() {
            // the wish stays where it is, for the next launcher, should this one end
            if database.wants_keeper {
                wanted.push(database.oid);
            }
            if std::mem::take(&mut database.visited)
                && let Some((failures, until)) = self.keeper_failures.get_mut(&database.oid)
            {
                *failures = 0;
                *until = (*until).min(now + VISIT_MICROSECONDS);
            }
        }
        // what workers have left, and work where no keeper has been; a keeper that is on its way will see it
        let orphaned = registry
            .slots
            .iter()
            .filter(|slot| slot.state == SlotState::Orphaned);
        let mut needed: Vec<Oid> = orphaned.map(|slot| slot.key.database).collect();
        needed.extend(registry.demands().iter().map(|demand| demand.key.database));
        needed.sort_unstable();
        needed.dedup();
        for oid in needed {
            let has_orphans = registry
                .slots
                .iter()
                .any(|slot| slot.state == SlotState::Orphaned && slot.key.database == oid);
            let recovered = registry
                .database(oid)
                .is_some_and(|database| database.recovered);
            let key = Key {
                database: oid,
                role: 0,
            };
            let on_its_way = registry
                .slots
                .iter()
                .any(|slot| slot.state != SlotState::Free && slot.key == key);
            if (has_orphans || !recovered) && !on_its_way {
                wanted.push(oid);
            }
        }
        // what did not fit is found in the tables, once there is room
        if registry.header.overflow && registry.demands_have_room() {
            registry.header.overflow = false;
            wanted.extend(registry.databases().iter().map(|database| database.oid));
        }
        for oid in wanted {
            if !self.to_visit.contains(&oid) {
                self.to_visit.push_back(oid);
            }
        }
    }

    /// Decides, and tells those who are there. Returns when to decide again, and which workers to start. With a
    /// `shortage` of PostgreSQL's worker slots there can be no more workers than there are.
    fn plan(&self, now: i64, shortage: bool) -> Result<(Option<i64>, Vec<Key>)> {
        let mut registry = registry::lock()?;
        let (workers, demands, orphans) = registry.view();
        let limit = if registry.header.paused {
            0
        } else {
            settings::max_parallel_running_tasks()
        };
        registry.header.limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let limits = if shortage {
            let waiting = self.to_visit.len().min(1);
            Limits {
                workers: limit.min(workers.len() + orphans),
                orphans,
                waiting,
            }
        } else {
            Limits {
                workers: limit,
                orphans,
                waiting: 0,
            }
        };
        let plan = plan::plan(now, limits, &workers, &demands);
        registry.header.room = u32::try_from(plan.room).unwrap_or(u32::MAX);
        registry.header.room_for = plan.room_for.unwrap_or_default();
        registry.header.better = plan.better.unwrap_or_default();
        registry.header.surplus = u32::try_from(plan.surplus).unwrap_or(u32::MAX);
        registry.header.idle_room = u32::try_from(plan.idle_room).unwrap_or(u32::MAX);
        for &index in &plan.leave {
            let slot = &mut registry.slots[index];
            slot.payload.leaving = true;
            slot.latch.set();
        }
        for &index in &plan.wake {
            let slot = &mut registry.slots[index];
            slot.payload.idle = false;
            slot.latch.set();
        }
        let demands = registry.demands();
        demands.iter_mut().for_each(|demand| demand.note_planned());
        Ok((
            plan.next,
            plan.start.iter().map(|&index| demands[index].key).collect(),
        ))
    }

    fn start_workers(&mut self, keys: &[Key], now: i64) -> Result<()> {
        for &key in keys {
            let ticket = {
                let registry = registry::lock()?;
                if registry.occupied() >= registry.header.limit as usize {
                    return Ok(());
                }
                self.owner.reserve(registry.slots, key, Work::new())
            };
            let Some(ticket) = ticket else { return Ok(()) };
            // before the start: the new worker may find more again
            let set_more = |more| -> Result<()> {
                if let Some(demand) = registry::lock()?.demand(key) {
                    demand.more = more;
                    demand.note_planned();
                }
                Ok(())
            };
            set_more(false)?;
            if !self.launch(key, ticket, now)? {
                return set_more(true);
            }
        }
        Ok(())
    }

    /// Asks the postmaster for the process of a reserved slot; false if there is no worker slot free.
    fn launch(&mut self, key: Key, ticket: Ticket, now: i64) -> Result<bool> {
        crash_point("a slot is reserved");
        if self.owner.start(ticket, process::definition(key))? {
            crash_point("a process is asked for");
            return Ok(true);
        }
        let shortage = self.shortage.get_or_insert(Shortage {
            since: now,
            lasts: true,
            told: false,
        });
        shortage.lasts = true;
        if now - shortage.since > SHORTAGE_MICROSECONDS
            && !std::mem::replace(&mut shortage.told, true)
            && !control::postmaster_is_stopping()
        {
            log::warning(
                sqlstate::INSUFFICIENT_RESOURCES,
                "pg_background_queue: PostgreSQL has no worker slot free, tasks have to wait",
                "Consider increasing max_worker_processes.",
            )?;
        }
        Ok(false)
    }

    /// Whether a process could not be started in this round for want of a slot.
    fn lacks_slots(&mut self) -> Result<bool> {
        let Some(over) = self.shortage.take_if(|shortage| !shortage.lasts) else {
            return Ok(self.shortage.is_some());
        };
        if over.told {
            log::log("pg_background_queue: PostgreSQL has worker slots again")?;
        }
        Ok(false)
    }
}

/// What the ends of processes mean for the work that waits.
struct Bookkeeper;

impl Bookkeeper {
    /// What a process had to do is others'. So is the turn of the tasks that were cut off by a crash, should it have been its.
    fn has_ended(life: &Life<Processes>) -> Result<()> {
        let mut registry = registry::lock()?;
        registry.inherit(life.key);
        if life.payload.suspect {
            if let Some(orphan) = pool::find(registry.slots, life.ticket) {
                orphan.payload.suspect = false;
            }
            registry.unblock(None);
        }
        Ok(())
    }
}

impl Watch<Processes> for Bookkeeper {
    fn failed(&mut self, life: &Life<Processes>, why: Failure) -> Result<()> {
        // that there was no worker slot is nothing that its role could change
        if why != Failure::NoWorkerSlot {
            process::failed_start(&mut registry::lock()?, life.key);
        }
        Ok(())
    }

    fn exited(&mut self, life: &Life<Processes>) -> Result<()> {
        Self::has_ended(life)
    }

    fn died(&mut self, life: &Life<Processes>) -> Result<()> {
        if life.key.is_keeper() {
            // its visit is still to be made
            process::failed_start(&mut registry::lock()?, life.key);
        }
        Self::has_ended(life)
    }
}
