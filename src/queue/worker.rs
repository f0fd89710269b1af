//! A worker: runs the tasks of one role in one database, one after the other.

mod batch;

use std::collections::VecDeque;
use std::rc::Rc;

use super::look::{self, Answer, Question};
use super::registry::{self, Beginning, Begun, Key, PROCESSES, Registry, Sight, UNTIL_TOLD};
use super::store::{Candidate, State, Store, Task};
use super::topics::{self, Configuration, Rules};
use super::{process, schedule, settings, wake};
use crate::core::config;
use crate::core::ready::{LookEnd, Queued};
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
use crate::pg::xact::{self, Durability, Transaction};
use crate::pg::{Error, Result, catalog, crash_point, guc, interrupt, sqlstate, statement};

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
    // what ALTER ROLE … SET may have made of the session at its login: an error is the task's end, not the process's
    guc::set_default(c"exit_on_error", b"off")?;
    guc::set_default(c"role", b"none")?;
    let fingerprint = watch_session(key)?;
    member.ready()?;
    crash_point("a process is connected");

    let mut worker = Worker {
        ticket,
        key,
        generation,
        fingerprint,
        stale: false,
        memory: Rc::new(MemoryContext::new("pg_background_queue errors")?),
        sight: Sight::NOTHING,
        held_rows: Vec::new(),
        held_in_schedule: Vec::new(),
        done: 0,
        since: time::now(),
        idle_since: None,
        claimed: VecDeque::new(),
        chains: true,
        batch_size: 1,
        search_path: Vec::new(),
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
    memory: Rc<MemoryContext>,
    /// What its last look into the table has seen.
    sight: Sight,
    /// Tasks whose rows somebody else holds, and until when they are left alone.
    held_rows: Vec<(i64, i64)>,
    /// The same of tasks that are due but not in the queue. Often it is another worker that is letting them in: this one does not pass over them then.
    held_in_schedule: Vec<(i64, i64)>,
    done: u64,
    /// When it began to serve its role.
    since: i64,
    /// Since when it has had nothing to do.
    idle_since: Option<i64>,
    /// Tasks that are claimed and have not run: the one that was claimed together with the end of the last one, or what is left of a batch.
    claimed: VecDeque<Claimed>,
    /// It may claim the next task together with the end of this one.
    chains: bool,
    /// How many tasks it puts into a batch at most, whatever the topic allows: see [`batch`].
    batch_size: usize,
    /// The search_path that the session has by default: that of the last task.
    search_path: Vec<u8>,
}

/// A claimed task.
struct Claimed {
    task: Task,
    store: Store,
    rules: Rules,
}

impl Claimed {
    /// Milliseconds that it may take; 0 is as many as it wants.
    fn timeout_ms(&self) -> i32 {
        self.task.timeout_ms.unwrap_or(self.rules.timeout_ms)
    }
}

/// Where commits need not wait for the disk, they do not, until the session is reset: so for the mark of a failure, too. What a
/// task itself sets counts.
fn relax(rules: Rules) -> Result<()> {
    if rules.durability == config::Durability::Relaxed {
        guc::set_for_session(c"synchronous_commit", b"off")?;
    }
    Ok(())
}

/// How far a task came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It runs, or its transaction ends.
    Text,
    /// It is marked as finished.
    Mark,
    /// The one that comes next is claimed.
    NextClaim,
}

/// What the registry says before a task is begun.
enum Permission {
    /// To begin this one, and those that share its commit.
    Granted(Candidate, Vec<Candidate>, Rules),
    /// There is none that could start, as far as is known.
    Nothing,
    /// Others may have to go first.
    LookAgain,
    Leave,
}

impl MainLoop for Worker {
    fn step(&mut self) -> Result<Next> {
        // only what a task runs is there to be cancelled
        interrupt::hold_cancels();
        if bgworker::turn()? {
            // other tasks may start now
            registry::lock()?.forget_ready(self.key);
        }
        if !self.claimed.is_empty() && self.is_stale(&registry::lock()?) {
            // the task that claimed them may have made it so
            let claimed: Vec<Claimed> = self.claimed.drain(..).collect();
            self.put_back(&claimed)?;
            self.end_task(false)?;
        }
        if !self.claimed.is_empty() {
            crash_point("a next task is begun");
            self.run_claimed()?;
            return Ok(Next::Again);
        }
        if registry::lock()?.has_ready(self.key)
            && let Some(next) = self.attempt()?
        {
            return Ok(next);
        }
        if self.look()? {
            return Ok(Next::Again);
        }
        self.wait()
    }

    fn recovered(&mut self) -> Result<()> {
        // An error that is no task's: what was half done is cleared away by a keeper, once this process is gone.
        let mut registry = registry::lock()?;
        if let Some(slot) = pool::find(registry.slots, self.ticket) {
            slot.payload.broken = true;
        }
        process::failed_start(&mut registry, self.key);
        drop(registry);
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

    /// Looks for work in the table; false if there is none that could start now.
    fn look(&mut self) -> Result<bool> {
        let now = time::now();
        let (bumps, ends) = {
            let mut registry = registry::lock()?;
            let bumps = registry.demand(self.key).map_or(0, |demand| demand.bumps);
            let ends = registry.header.ends;
            if registry.make_shelf(self.key).is_none() {
                return Ok(false);
            }
            (bumps, ends)
        };
        self.held_rows.retain(|&(_, until)| until > now);
        let transaction = Transaction::begin(Durability::Asynchronous)?;
        self.notice_changes()?;
        let held = &mut self.held_in_schedule;
        let (transaction, due) = schedule::let_in_due(transaction, self.key, held, bumps, now)?;
        let bumps = due.bumps;
        let Some(begun) = registry::lock()?
            .shelf(self.key)
            .map(|shelf| shelf.ready.begin_look())
        else {
            return Ok(false);
        };
        let mut answer = match Store::open()? {
            Some(store) => look::look(
                &store,
                Question {
                    key: self.key,
                    ticket: self.ticket,
                    configuration: &topics::configuration()?,
                    held_rows: &self.held_rows,
                    from: begun.from,
                    now,
                },
            )?,
            None => Answer::nothing(),
        };
        transaction.commit()?;
        answer.sight.bumps = bumps;
        answer.sight.ends = ends;
        answer.sight.next_due = answer.sight.next_due.min(due.next_due);
        answer.sight.more |= due.more;
        self.sight = answer.sight;

        let mut registry = registry::lock()?;
        let Some(shelf) = registry.shelf(self.key) else {
            return Ok(true);
        };
        let end = shelf.ready.end_look(begun, &answer.tasks, answer.complete);
        if end == LookEnd::TooLate {
            // what the faster one has seen is what counts
            return Ok(true);
        }
        answer.sight.passed_over |= end == LookEnd::Overlapped;
        shelf.sight = answer.sight;
        // what has come meanwhile may be better
        let unseen = shelf.ready.unseen().priority;
        if let Some(best) = answer.tasks.first()
            && let Some(demand) = registry.demand(self.key)
        {
            demand.priority = best.priority.min(unseen);
        }
        Ok(answer.can_start || end == LookEnd::Overlapped || due.more)
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

    /// Claims the next task and runs it; `None` if there is none that could start.
    fn attempt(&mut self) -> Result<Option<Next>> {
        let transaction = Transaction::begin(self.claim_durability()?)?;
        self.notice_changes()?;
        let Some(store) = Store::open()? else {
            transaction.commit()?;
            registry::lock()?.forget_ready(self.key);
            return Ok(Some(Next::Again));
        };
        let configuration = topics::configuration()?;
        let (first, more, rules) = match self.permission(&store, &configuration)? {
            Permission::Granted(first, more, rules) => (first, more, rules),
            Permission::Nothing => {
                transaction.commit()?;
                return Ok(None);
            }
            Permission::LookAgain => {
                transaction.commit()?;
                registry::lock()?.forget_ready(self.key);
                return Ok(Some(Next::Again));
            }
            Permission::Leave => {
                transaction.commit()?;
                return Ok(Some(Next::Leave));
            }
        };
        crash_point("a slot is taken");
        let mut claimed = VecDeque::new();
        let mut locked = Vec::new();
        for candidate in std::iter::once(&first).chain(&more) {
            match store.claim(candidate, self.key.role)? {
                Ok(task) => claimed.push_back(Claimed { task, store, rules }),
                Err(Updated::Locked) => locked.push(*candidate),
                // somebody else was faster
                Err(_) => {}
            }
        }
        crash_point("a claim is made");
        transaction.commit()?;
        crash_point("a claim is committed");
        self.idle_since = None;
        for candidate in &locked {
            self.leave_alone(candidate)?;
        }
        if claimed.is_empty() {
            self.end_task(false)?;
            return Ok(Some(Next::Again));
        }
        if !more.is_empty() {
            let tasks: Vec<i64> = claimed.iter().map(|one| one.task.row.id).collect();
            registry::lock()?.keep_of_batch(self.ticket, &tasks, 0);
        }
        // An error that is not the task's leaves the slot as it is: this process ends, and the orphan is a keeper's.
        self.claimed = claimed;
        self.run_claimed()?;
        Ok(Some(Next::Again))
    }

    /// Runs what it has claimed.
    fn run_claimed(&mut self) -> Result<()> {
        if self.claimed.len() > 1 {
            return self.run_batch();
        }
        self.claimed.pop_front().map_or(Ok(()), |one| self.run(one))
    }

    /// Somebody holds the task's row: for a while it is passed over.
    fn leave_alone(&mut self, candidate: &Candidate) -> Result<()> {
        self.held_rows
            .push((candidate.id, time::now() + LOCKED_ROW_MICROSECONDS));
        registry::lock()?.arrive(self.key, candidate.place());
        Ok(())
    }

    /// The task that this worker had is over.
    fn end_task(&self, has_run: bool) -> Result<()> {
        crash_point("a slot is about to be given back");
        let mut registry = registry::lock()?;
        if let Some(demand) = registry.demand(self.key) {
            demand.failures = 0;
        }
        if registry.end_task(self.ticket, has_run) {
            registry.wake_launcher();
        }
        Ok(())
    }

    /// The claim may be lost in a crash (the task is then still pending), unless that would hide a task that
    /// crashes the server as soon as it is claimed: after an unclean start the claims of what was there before it are flushed.
    fn claim_durability(&self) -> Result<Durability> {
        let mut registry = registry::lock()?;
        let (unclean, booted) = (registry.header.unclean, registry.header.booted);
        let old = |task: &Candidate| task.joined_at < booted;
        let flush = unclean
            && registry
                .shelf(self.key)
                .is_some_and(|shelf| shelf.ready.tasks().iter().any(old));
        Ok(if flush {
            Durability::Flushed
        } else {
            Durability::Asynchronous
        })
    }

    /// Takes a task, and a place among those that run, unless this worker has to leave.
    fn permission(&mut self, store: &Store, configuration: &Configuration) -> Result<Permission> {
        let now = time::now();
        let key = self.key;
        let mut registry = registry::lock()?;
        let Some((first, sight)) = registry
            .shelf(key)
            .and_then(|shelf| Some((*shelf.ready.tasks().first()?, shelf.sight)))
        else {
            return Ok(Permission::Nothing);
        };
        if registry.must_look_again(key, now) {
            return Ok(Permission::LookAgain);
        }
        let stale = self.is_stale(&registry) || self.done >= MOST_TASKS;
        let stint_over = now - self.since > crate::core::plan::STINT_MICROSECONDS;
        let make_room = registry.must_make_room(key.database, first.priority, stint_over);
        let leaving =
            pool::find(registry.slots, self.ticket).is_none_or(|slot| slot.payload.leaving);
        if stale || make_room || leaving {
            self.hand_over(&mut registry, first.priority);
            return Ok(Permission::Leave);
        }
        let Some(candidate) = registry.next_task(self.ticket, key, configuration, now) else {
            return Ok(Permission::Nothing);
        };
        let rules = configuration.rules(candidate.topic);
        let beginning = Beginning {
            task: candidate.id,
            relation: store.relation(),
            attempt: candidate.attempt.wrapping_add(1),
            topic: candidate.topic,
            rules,
            suspect: candidate.interruptions > 0,
        };
        match registry.begin_task(self.ticket, &beginning, now) {
            Begun::Yes => {}
            Begun::TopicWaits => {
                registry.arrive(key, candidate.place());
                return Ok(Permission::LookAgain);
            }
            Begun::LimitReached => {
                // it was lowered, or is taken up by what others have left
                registry.arrive(key, candidate.place());
                self.hand_over(&mut registry, candidate.priority);
                return Ok(Permission::Leave);
            }
        }
        let most = self.batch_limit(rules);
        let more = if most > 1 {
            registry.begin_batch(self.ticket, &candidate, most)
        } else {
            Vec::new()
        };
        self.sight = sight;
        self.leave_to_others(&mut registry, configuration, now);
        Ok(Permission::Granted(candidate, more, rules))
    }

    /// What this worker leaves undone while it runs a task, for hours maybe, is others'.
    fn leave_to_others(&self, registry: &mut Registry, configuration: &Configuration, now: i64) {
        let Sight {
            next_due,
            blocked,
            more,
            ..
        } = self.sight;
        let more = more || registry.others_could_help(self.key, configuration, now);
        let missed = self.has_missed(registry);
        let known = registry.has_ready(self.key);
        let Some(demand) = registry.demand(self.key) else {
            return;
        };
        if more || missed {
            if std::mem::replace(&mut demand.more, true) {
                return;
            }
        } else if next_due != UNTIL_TOLD || blocked || known {
            // what this worker knows beside what others of the role have found
            demand.due = if demand.due > now {
                demand.due.min(next_due)
            } else {
                next_due
            };
            demand.blocked |= blocked || known;
            demand.more = true;
        } else {
            return;
        }
        registry.wake_launcher();
    }

    /// Leaves its role's work to another worker, behind all who wait already.
    fn hand_over(&self, registry: &mut Registry, priority: i32) {
        registry.hand_over(self.key, priority);
        if let Some(slot) = pool::find(registry.slots, self.ticket) {
            slot.payload.leaving = true;
        }
    }

    /// Runs a claimed task to its end, whatever that is.
    ///
    /// # Errors
    /// What is not the task's: its row cannot be written.
    fn run(&mut self, claimed: Claimed) -> Result<()> {
        let task = &claimed.task;
        let mut stage = Stage::Text;
        if let Err(error) = self.execute(&claimed, &mut stage) {
            if let Some(next) = self.claimed.pop_front() {
                // its claim was rolled back with all the rest
                registry::lock()?.drop_next(self.ticket, next.task.row.place());
            }
            // what the queue's own rows are up to is none of the task's doing
            let blameless = match stage {
                Stage::Text => false,
                Stage::Mark => error.sqlstate() == sqlstate::SERIALIZATION_FAILURE,
                Stage::NextClaim => error.sqlstate() != sqlstate::QUERY_CANCELED,
            };
            self.chains = stage != Stage::NextClaim;
            self.record_failure(task, &error, blameless)?;
        }
        self.done += 1;
        self.batch_size = self.batch_size.saturating_mul(2);
        let transaction = Transaction::begin(Durability::Asynchronous)?;
        session::reset()?;
        crash_point("a session is reset");
        transaction.commit()?;
        crash_point("a reset is committed");
        self.end_task(true)?;
        self.show_idle()?;
        session::report_statistics(false)
    }

    /// Shows in pg_stat_activity that it runs nothing, unless it is about to go on.
    fn show_idle(&self) -> Result<()> {
        if self.claimed.is_empty() {
            guc::set_default(c"application_name", b"pg_background_queue")?;
            session::report_activity(Activity::Idle)?;
        }
        Ok(())
    }

    /// `stage` says how far it came.
    fn execute(&mut self, claimed: &Claimed, stage: &mut Stage) -> Result<()> {
        let Claimed { task, store, rules } = claimed;
        self.prepare_session(task, *rules)?;
        let timeout_ms = claimed.timeout_ms();
        let memory = Rc::clone(&self.memory);
        if registry::lock()?.is_cancelled(self.ticket, task.row.id) {
            // before it could be interrupted; or that was taken for a cancel of nothing
            bgworker::interrupt(bgworker::my_pid());
        }
        session::watch_soil();
        interrupt::allow_cancels();
        crash_point("a text is about to run");
        let result = statement::run(&task.sql, &memory, timeout_ms, || {
            crash_point("a text has run");
            *stage = Stage::Mark;
            store.finish(task)?;
            crash_point("a finish mark is made");
            *stage = Stage::NextClaim;
            self.claim_next(store)?;
            *stage = Stage::Text;
            Ok(())
        });
        crash_point("a text is over");
        interrupt::hold_cancels();
        result
    }

    /// Makes the session what this task is to find.
    fn prepare_session(&mut self, task: &Task, rules: Rules) -> Result<()> {
        let name = format!("pg_background_queue task {}", task.row.id);
        guc::set_default(c"application_name", name.as_bytes())?;
        if self.search_path != task.search_path {
            guc::set_default(c"search_path", &task.search_path)?;
            self.search_path.clone_from(&task.search_path);
        }
        relax(rules)
    }

    /// Claims the task that comes next, if there is a plain one, in the transaction in which the last one finishes: one
    /// commit is both.
    fn claim_next(&mut self, store: &Store) -> Result<()> {
        // what others have changed counts for the next task: then that begins as the first one did
        let changed = MAY_BE_STALE.get() || interrupt::wants_turn();
        // a cursor WITH HOLD runs at the commit, and may take its time
        let plain = xact::is_read_committed() && !session::utility_ran();
        let chains = std::mem::replace(&mut self.chains, true);
        if changed || !plain || !chains || self.done + 1 >= MOST_TASKS {
            return Ok(());
        }
        let Some(priority) = wake::priority_after_commit(self.key.role) else {
            return Ok(());
        };
        let configuration = topics::configuration()?;
        let candidate = {
            let mut registry = registry::lock()?;
            if self.is_stale(&registry) {
                return Ok(());
            }
            let Some(sight) = registry.shelf(self.key).map(|shelf| shelf.sight) else {
                return Ok(());
            };
            let now = time::now();
            let Some(next) = registry.begin_next(self.ticket, priority, &configuration, now) else {
                return Ok(());
            };
            self.sight = sight;
            self.leave_to_others(&mut registry, &configuration, now);
            next
        };
        match store.claim(&candidate, self.key.role) {
            Ok(Ok(task)) => {
                crash_point("a next claim is made");
                self.claimed.push_back(Claimed {
                    task,
                    store: *store,
                    rules: configuration.rules(candidate.topic),
                });
            }
            Ok(Err(why)) => {
                registry::lock()?.drop_next(self.ticket, candidate.place());
                if why == Updated::Locked {
                    self.leave_alone(&candidate)?;
                }
            }
            Err(error) => {
                registry::lock()?.drop_next(self.ticket, candidate.place());
                return Err(error);
            }
        }
        Ok(())
    }

    fn record_failure(&self, task: &Task, error: &Error, blameless: bool) -> Result<()> {
        crash_point("a text has failed");
        let began = time::now();
        let cancelled = registry::lock()?.is_cancelled(self.ticket, task.row.id);
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
        crash_point("a failure mark is made");
        transaction.commit()?;
        crash_point("a failure mark is committed");
        // it may run again, now or later
        let mut registry = registry::lock()?;
        registry.schedule(self.key, began);
        registry.arrive(self.key, task.row.place());
        Ok(())
    }

    /// Whether its session is no longer what a fresh login of its role would be, as far as it knows.
    fn is_stale(&self, registry: &Registry) -> bool {
        self.stale || registry.header.generations.of(self.key) != self.generation
    }

    /// Waits for work, unless some has come meanwhile, or leaves.
    fn wait(&mut self) -> Result<Next> {
        let now = time::now();
        let idle_since = *self.idle_since.get_or_insert(now);
        let timeout_ms = settings::worker_idle_timeout() - (now - idle_since) / 1000;
        {
            let mut registry = registry::lock()?;
            let stale = self.is_stale(&registry);
            let missed = self.has_missed(&mut registry);
            if missed && !stale {
                return Ok(Next::Again);
            }
            if missed {
                registry.inherit(self.key);
            } else {
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
        let event = WaitEvent::named(c"PgBackgroundQueueWorkerMain")?;
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
        self.sight.blocked && registry.header.ends != self.sight.ends
            || registry
                .demand(self.key)
                .is_some_and(|demand| demand.bumps != self.sight.bumps)
    }

    /// There is nothing to do now: says when there will be, or takes the demand away.
    fn note_next_work(&self, registry: &mut Registry) {
        let key = self.key;
        if self.sight.next_due == UNTIL_TOLD && !self.sight.blocked {
            registry.remove_demands(|demand| demand.key == key);
            return;
        }
        if registry.demand(key).is_none() {
            registry.add_demand(key, i32::MAX);
        }
        if let Some(demand) = registry.demand(key) {
            demand.due = self.sight.next_due;
            demand.blocked = self.sight.blocked;
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
