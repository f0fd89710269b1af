//! A worker: runs the tasks of one role in one database, one after the other.

use std::collections::VecDeque;

use super::registry::{self, Beginning, Begun, Key, MayStart, PROCESSES, Registry, UNTIL_TOLD};
use super::store::{Candidate, Place, State, Store, Task};
use super::topics::{self, Rules, TopicId};
use super::{process, settings};
use crate::core::{errors, outcome};
use crate::pg::bgworker::pool::{self, Member, Ticket};
use crate::pg::bgworker::{self, MainLoop, Next, Session, Setup};
use crate::pg::callback::{self, Catalog};
use crate::pg::datum::Datum;
use crate::pg::latch::{self, WaitEvent};
use crate::pg::local::ProcessLocal;
use crate::pg::mem::MemoryContext;
use crate::pg::session::{self, Activity};
use crate::pg::table::Updated;
use crate::pg::time;
use crate::pg::xact::{Durability, Transaction};
use crate::pg::{Error, Result, catalog, guc, interrupt, sqlstate, statement};

/// Candidates that one look into the table brings.
const BATCH: usize = 32;

/// Tasks after which a worker makes room for a fresh process: whatever leaks in a session leaks no further.
const MOST_TASKS: u64 = 100_000;

/// How long a row that somebody else holds is left alone, in microseconds.
const LOCKED_ROW_MICROSECONDS: i64 = 1_000_000;

/// The main function of a worker process.
///
/// # Errors
/// End the process; what it held is found by a keeper.
pub fn main(argument: Datum) -> Result<()> {
    let Some(member) = Member::attach(&PROCESSES, argument)? else {
        return Ok(());
    };
    let (ticket, key) = (member.ticket(), member.key());
    let generation = registry::lock()?.header.generations.of(key);
    let process = Setup::new(Session::Role(key.database, key.role))
        .application_name(super::NAME)
        .begin()?;
    let fingerprint = watch_session(key)?;
    member.ready()?;

    let mut worker = Worker {
        ticket,
        key,
        generation,
        fingerprint,
        stale: false,
        memory: MemoryContext::new("pg_background_queue errors")?,
        candidates: VecDeque::new(),
        batch_is_full: false,
        ends: 0,
        bumps: 0,
        next_due: UNTIL_TOLD,
        blocked: false,
        held_rows: Vec::new(),
        done: 0,
        since: time::now(),
        idle_since: None,
    };
    worker.announce()?;
    process.run(&mut worker);
    Ok(())
}

struct Worker {
    ticket: Ticket,
    key: Key,
    /// Of the settings that the session has from its login.
    generation: (u32, u32),
    /// What role and database were like at the login.
    fingerprint: Vec<u8>,
    /// They have changed.
    stale: bool,
    /// For errors, which outlive the transaction that raised them.
    memory: MemoryContext,
    /// What the last look into the table found, in order.
    candidates: VecDeque<Waiting>,
    /// It found more than it kept.
    batch_is_full: bool,
    /// [`registry::Header::ends`] before that look.
    ends: u64,
    /// The demand's count before that look.
    bumps: u64,
    /// When the next task that is not due yet will be.
    next_due: i64,
    /// A task waits for the end of another: see [`registry::Demand::blocked`].
    blocked: bool,
    /// Tasks whose rows somebody else holds, and until when they are left alone.
    held_rows: Vec<(i64, i64)>,
    done: u64,
    /// When it began to serve its role.
    since: i64,
    /// Since when it has had nothing to do.
    idle_since: Option<i64>,
}

/// A task that waits, and what is in force for its topic.
#[derive(Clone, Copy)]
struct Waiting {
    candidate: Candidate,
    rules: Rules,
}

/// What the registry says before a task is begun.
enum Permission {
    Granted,
    /// The tasks of its topic have to wait.
    TopicWaits,
    /// A task of better priority has come.
    LookAgain,
    Leave,
}

impl MainLoop for Worker {
    fn step(&mut self) -> Result<Next> {
        // only what a task runs is there to be cancelled
        interrupt::hold_cancels();
        if bgworker::turn()? {
            // the topics' rules may be others now
            self.candidates.clear();
        }
        if self.candidates.is_empty() {
            self.look()?;
        }
        match self.candidates.pop_front() {
            Some(waiting) => self.attempt(&waiting),
            None => self.wait(),
        }
    }

    fn recovered(&mut self) -> Result<()> {
        // An error that is no task's: what was half done is cleared away by a keeper, once this process is gone.
        process::failed_start(&mut registry::lock()?, self.key);
        bgworker::exit(1)
    }
}

impl Worker {
    /// Says in the slot that it serves its role now.
    fn announce(&self) -> Result<()> {
        if let Some(slot) = pool::find(registry::lock()?.slots, self.ticket) {
            slot.payload.changed = self.since;
        }
        Ok(())
    }

    /// Looks for work in the table.
    fn look(&mut self) -> Result<()> {
        {
            let mut registry = registry::lock()?;
            self.bumps = 0;
            self.ends = registry.header.ends;
            if let Some(demand) = registry.demand(self.key) {
                self.bumps = demand.bumps;
            }
        }
        let now = time::now();
        self.next_due = UNTIL_TOLD;
        self.blocked = false;
        self.held_rows.retain(|&(_, until)| until > now);
        let mut found = Vec::new();
        let transaction = Transaction::begin(Durability::Asynchronous)?;
        self.notice_changes()?;
        if let Some(store) = Store::open()? {
            let mut place = store.next_topic(self.key.role, &Place::Start)?;
            while let Place::At(topic) = &place {
                found.extend(self.look_at_topic(&store, topic.as_deref(), now)?);
                place = store.next_topic(self.key.role, &place)?;
            }
        }
        transaction.commit()?;
        found.sort_by_key(|waiting| (waiting.candidate.priority, waiting.candidate.id));
        self.batch_is_full = found.len() > BATCH;
        found.truncate(BATCH);
        if let Some(best) = found.first()
            && let Some(demand) = registry::lock()?.demand(self.key)
        {
            let best = best.candidate.priority;
            demand.priority = if demand.bumps == self.bumps {
                best
            } else {
                // something came that this look may not have seen
                best.min(demand.priority)
            };
        }
        self.candidates = found.into();
        Ok(())
    }

    /// The tasks of one topic that could start now; why others cannot is noted.
    fn look_at_topic(
        &mut self,
        store: &Store,
        topic: Option<&[u8]>,
        now: i64,
    ) -> Result<Vec<Waiting>> {
        let rules = topics::rules(topic)?;
        let id = TopicId::of(topic);
        let database = self.key.database;
        let suspect_turn = {
            let mut registry = registry::lock()?;
            if registry.may_start(database, id, rules, 0, now) == MayStart::Blocked {
                self.blocked = true;
                return Ok(Vec::new());
            }
            registry.suspect_turn(self.ticket, now)
        };
        let (next_due, blocked, held_rows) =
            (&mut self.next_due, &mut self.blocked, &self.held_rows);
        let mut found = store.candidates(self.key.role, topic, BATCH, |candidate| {
            let held = held_rows.iter().find(|&&(id, _)| id == candidate.id);
            let due = held.map_or(candidate.due, |&(_, until)| until);
            if due > now {
                *next_due = due.min(*next_due);
                false
            } else if candidate.interruptions > 0
                && let Some(until) = suspect_turn
            {
                *next_due = until.min(*next_due);
                *blocked = true;
                false
            } else {
                true
            }
        })?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        match registry::lock()?.may_start(database, id, rules, found.len(), now) {
            // only as many as could start, or a full topic would leave no room for the others in the batch
            MayStart::Yes(count) if found.len() > count && rules.limited => {
                if rules.delay > 0 {
                    *next_due = (*next_due).min(now + rules.delay);
                } else {
                    *blocked = true;
                }
                found.truncate(count);
            }
            MayStart::Yes(_) => {}
            MayStart::Blocked => {
                *blocked = true;
                found.clear();
            }
            MayStart::NotBefore(time) => {
                *next_due = time.min(*next_due);
                found.clear();
            }
        }
        Ok(found
            .into_iter()
            .map(|candidate| Waiting { candidate, rules })
            .collect())
    }

    /// Finds out whether the session is still as after a fresh login. In a transaction, whose beginning took in what
    /// others have changed.
    fn notice_changes(&mut self) -> Result<()> {
        if MAY_BE_STALE.get() {
            MAY_BE_STALE.set(false);
            let now = catalog::session_fingerprint(self.key.role, self.key.database)?;
            self.stale |= now.as_ref() != Some(&self.fingerprint);
        }
        Ok(())
    }

    /// Claims a candidate and runs it.
    fn attempt(&mut self, waiting: &Waiting) -> Result<Next> {
        let candidate = &waiting.candidate;
        let transaction = Transaction::begin(self.claim_durability(candidate)?)?;
        self.notice_changes()?;
        let Some(store) = Store::open()? else {
            transaction.commit()?;
            self.candidates.clear();
            return Ok(Next::Again);
        };
        match self.permission(&store, waiting)? {
            Permission::Granted => {}
            Permission::TopicWaits => {
                transaction.commit()?;
                self.candidates
                    .retain(|other| other.candidate.topic != candidate.topic);
                return Ok(Next::Again);
            }
            Permission::LookAgain => {
                transaction.commit()?;
                self.candidates.clear();
                return Ok(Next::Again);
            }
            Permission::Leave => {
                transaction.commit()?;
                return Ok(Next::Leave);
            }
        }
        let claimed = store.claim(candidate, self.key.role)?;
        transaction.commit()?;
        let has_run = claimed.is_ok();
        match claimed {
            // An error that is not the task's leaves the slot as it is: this process ends, and the orphan is a keeper's.
            Ok(task) => self.run(&store, &task, &waiting.rules)?,
            Err(Updated::Locked) => self
                .held_rows
                .push((candidate.id, time::now() + LOCKED_ROW_MICROSECONDS)),
            // somebody else was faster
            Err(_) => {}
        }
        self.idle_since = None;
        let mut registry = registry::lock()?;
        if let Some(demand) = registry.demand(self.key) {
            demand.failures = 0;
        }
        if registry.end_task(self.ticket, has_run) {
            registry.wake_launcher();
        }
        Ok(Next::Again)
    }

    /// The claim may be lost in a crash (the task is then still pending), unless that would hide a task that
    /// crashes the server as soon as it is claimed: after an unclean start the claims of what was there before it are flushed.
    fn claim_durability(&self, candidate: &Candidate) -> Result<Durability> {
        let registry = registry::lock()?;
        let flush = registry.header.unclean && candidate.joined_at < registry.header.booted;
        Ok(if flush {
            Durability::Flushed
        } else {
            Durability::Asynchronous
        })
    }

    /// Takes a place among the running tasks, unless this worker has to leave.
    fn permission(&mut self, store: &Store, waiting: &Waiting) -> Result<Permission> {
        let Waiting { candidate, rules } = waiting;
        let now = time::now();
        let mut registry = registry::lock()?;
        let stale = self.stale
            || registry.header.generations.of(self.key) != self.generation
            || self.done >= MOST_TASKS;
        let stint_over = now - self.since > crate::core::plan::STINT_MICROSECONDS;
        let make_room = registry.must_make_room(self.key.database, candidate.priority, stint_over);
        let leaving =
            pool::find(registry.slots, self.ticket).is_none_or(|slot| slot.payload.leaving);
        if stale || make_room || leaving {
            self.hand_over(&mut registry, candidate.priority);
            return Ok(Permission::Leave);
        }
        let better_has_come = registry.demand(self.key).is_some_and(|demand| {
            demand.bumps != self.bumps && demand.priority < candidate.priority
        });
        if better_has_come {
            return Ok(Permission::LookAgain);
        }
        let beginning = Beginning {
            task: candidate.id,
            relation: store.relation(),
            attempt: candidate.attempt.wrapping_add(1),
            topic: candidate.topic,
            rules: *rules,
            suspect: candidate.interruptions > 0,
        };
        match registry.begin_task(self.ticket, &beginning, now) {
            Begun::Yes => {}
            Begun::TopicWaits => return Ok(Permission::TopicWaits),
            Begun::LimitReached => {
                // it was lowered, or is taken up by what others have left
                self.hand_over(&mut registry, candidate.priority);
                return Ok(Permission::Leave);
            }
        }
        self.leave_to_others(&mut registry, now);
        Ok(Permission::Granted)
    }

    /// What this worker leaves undone while it runs a task, for hours maybe, is others'.
    fn leave_to_others(&self, registry: &mut Registry, now: i64) {
        let more = self.batch_is_full || self.others_could_help(registry, now);
        let missed = self.has_missed(registry);
        let Some(demand) = registry.demand(self.key) else {
            return;
        };
        if more || missed {
            if std::mem::replace(&mut demand.more, true) {
                return;
            }
        } else if self.next_due != UNTIL_TOLD || self.blocked || !self.candidates.is_empty() {
            // what this worker knows beside what others of the role have found
            demand.due = if demand.due > now {
                demand.due.min(self.next_due)
            } else {
                self.next_due
            };
            demand.blocked |= self.blocked || !self.candidates.is_empty();
            demand.more = true;
        } else {
            return;
        }
        registry.wake_launcher();
    }

    /// Whether one of the tasks that this worker knows could start now in another.
    fn others_could_help(&self, registry: &mut Registry, now: i64) -> bool {
        let mut known = None;
        self.candidates.iter().any(|Waiting { candidate, rules }| {
            // most often the next one's topic is the same
            if known == Some(candidate.topic) {
                return false;
            }
            known = Some(candidate.topic);
            // the limit of all is the launcher's business: others may make room
            !rules.limited
                || matches!(
                    registry.may_start(self.key.database, candidate.topic, *rules, 0, now),
                    MayStart::Yes(_)
                )
        })
    }

    /// Leaves its role's work to another worker, behind all who wait already.
    fn hand_over(&self, registry: &mut Registry, priority: i32) {
        registry.add_demand(self.key, priority);
        registry.requeue(self.key);
        if let Some(slot) = pool::find(registry.slots, self.ticket) {
            slot.payload.leaving = true;
        }
    }

    /// Runs a claimed task to its end, whatever that is.
    ///
    /// # Errors
    /// What is not the task's: its row cannot be written.
    fn run(&mut self, store: &Store, task: &Task, rules: &Rules) -> Result<()> {
        let mut at_the_mark = false;
        let result = self.execute(store, task, rules, &mut at_the_mark);
        if let Err(error) = result {
            // a conflict over the queue's own row is none of the task's doing
            let blameless = at_the_mark && error.sqlstate() == sqlstate::SERIALIZATION_FAILURE;
            self.record_failure(task, &error, blameless)?;
        }
        self.done += 1;
        let transaction = Transaction::begin(Durability::Asynchronous)?;
        session::reset()?;
        transaction.commit()?;
        guc::set_for_session(c"application_name", b"pg_background_queue")?;
        session::report_activity(Activity::Idle)?;
        session::report_statistics(false)
    }

    /// `at_the_mark` is set if it is the finish mark that fails.
    fn execute(
        &self,
        store: &Store,
        task: &Task,
        rules: &Rules,
        at_the_mark: &mut bool,
    ) -> Result<()> {
        let name = format!("pg_background_queue task {}", task.row.id);
        guc::set_for_session(c"application_name", name.as_bytes())?;
        // what ALTER ROLE … SET may have made of the session at its login: an error is the task's end, not the process's
        guc::set_for_session(c"exit_on_error", b"off")?;
        guc::set_for_session(c"role", b"none")?;
        guc::set_for_session(c"search_path", &task.search_path)?;
        let timeout_ms = task.timeout_ms.unwrap_or(rules.timeout_ms);
        interrupt::allow_cancels();
        let result = statement::run(&task.sql, &self.memory, timeout_ms, || {
            store.finish(task).inspect_err(|_| *at_the_mark = true)
        });
        interrupt::hold_cancels();
        result
    }

    fn record_failure(&self, task: &Task, error: &Error, blameless: bool) -> Result<()> {
        let cancelled = registry::lock()?.is_cancelled(self.ticket);
        let transaction = Transaction::begin(Durability::Session)?;
        // Only in the table in which it was claimed: after DROP and CREATE EXTENSION the id is another task's.
        if let Some(store) = Store::open()?.filter(|store| store.relation() == task.relation) {
            let text = errors::entry(&error.sqlstate().code(), error.message(), &error.fields());
            let row = &task.row;
            if blameless
                && !cancelled
                && outcome::may_run_again_at_once(row.attempt, row.retry_count)
            {
                store.reopen(row, row.interruptions)?;
            } else {
                process::attempt_failed(&store, row, &text, cancelled)?;
            }
            // it may have been cancelled while the row was waited for
            if registry::lock()?.begin_ending(self.ticket)
                && !cancelled
                && let Some(row) = store.find(row.id)?
            {
                store.close_waiting(&row, State::Cancelled, None)?;
            }
        }
        transaction.commit()
    }

    /// Waits for work, unless some has come meanwhile, or leaves.
    fn wait(&mut self) -> Result<Next> {
        let now = time::now();
        let idle_since = *self.idle_since.get_or_insert(now);
        let timeout_ms = settings::worker_idle_timeout() - (now - idle_since) / 1000;
        {
            let mut registry = registry::lock()?;
            let stale = self.stale || registry.header.generations.of(self.key) != self.generation;
            let missed = self.has_missed(&mut registry);
            if missed && !stale {
                return Ok(Next::Again);
            }
            if !missed {
                self.note_next_work(&mut registry);
            }
            // others wait for a place: an idle worker does not keep it
            let make_room = registry.must_not_idle(self.key);
            let Some(slot) = pool::find(registry.slots, self.ticket) else {
                return Ok(Next::Leave);
            };
            if stale || make_room || slot.payload.leaving || timeout_ms <= 0 {
                slot.payload.leaving = true;
                return Ok(Next::Leave);
            }
            slot.payload.idle = true;
            slot.payload.changed = idle_since;
        }
        session::report_statistics(true)?;
        let event = WaitEvent::named(c"BackgroundQueueWorkerIdle")?;
        if latch::wait_for(event, Some(timeout_ms))? {
            let registry = registry::lock()?;
            if let Some(slot) = pool::find(registry.slots, self.ticket) {
                slot.payload.idle = false;
            }
        }
        Ok(Next::Again)
    }

    /// Whether something has come, or what tasks waited for has happened, since the last look.
    fn has_missed(&self, registry: &mut Registry) -> bool {
        self.blocked && registry.header.ends != self.ends
            || registry
                .demand(self.key)
                .is_some_and(|demand| demand.bumps != self.bumps)
    }

    /// There is nothing to do now: says when there will be, or takes the demand away.
    fn note_next_work(&self, registry: &mut Registry) {
        let key = self.key;
        if self.next_due == UNTIL_TOLD && !self.blocked {
            registry.remove_demands(|demand| demand.key == key);
            return;
        }
        if registry.demand(key).is_none() {
            registry.add_demand(key, i32::MAX);
        }
        if let Some(demand) = registry.demand(key) {
            demand.due = self.next_due;
            demand.blocked = self.blocked;
            // nobody may be idle any more by then
            demand.more = true;
        }
        // it sets its alarm
        registry.wake_launcher();
    }
}

static MAY_BE_STALE: ProcessLocal<bool> = ProcessLocal::new(false);
static ROLE_HASH: ProcessLocal<u32> = ProcessLocal::new(0);
static DATABASE_HASH: ProcessLocal<u32> = ProcessLocal::new(0);

/// What the session was like when it was opened. From then on [`MAY_BE_STALE`] says when to compare.
fn watch_session(key: Key) -> Result<Vec<u8>> {
    let transaction = Transaction::begin(Durability::Asynchronous)?;
    ROLE_HASH.set(callback::role_hash(key.role)?);
    DATABASE_HASH.set(callback::database_hash(key.database)?);
    callback::on_catalog_change(|catalog, hash| {
        let ours = match catalog {
            Catalog::Roles => hash == ROLE_HASH.get(),
            Catalog::Databases => hash == DATABASE_HASH.get(),
            // the hash is one of both sides: it is cheaper to look than to guess
            Catalog::Memberships => true,
        };
        if ours || hash == 0 {
            MAY_BE_STALE.set(true);
        }
    })?;
    let fingerprint = catalog::session_fingerprint(key.role, key.database)?;
    transaction.commit()?;
    Ok(fingerprint.unwrap_or_default())
}
