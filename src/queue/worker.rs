//! A worker: runs the tasks of one role in one database, one after the other.

mod batch;
mod claim;
mod run;

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use super::look::{self, Answer, Question};
use super::registry::{self, Key, PROCESSES, Registry, Sight, UNTIL_TOLD};
use super::schedule::{LOCKED_ROW_MICROSECONDS, PAUSE_MICROSECONDS, TURN};
use super::store::{Store, Task};
use super::topics::{self, Rules};
use super::{process, schedule, settings};
use crate::core::batch::Experience;
use crate::core::ready::LookEnd;
use crate::pg::bgworker::pool::{self, Member, Ticket};
use crate::pg::bgworker::{self, MainLoop, Next, Session, Setup};
use crate::pg::callback::{self, Catalog};
use crate::pg::datum::Datum;
use crate::pg::latch::{self, WaitEvent};
use crate::pg::local::ProcessLocal;
use crate::pg::mem::MemoryContext;
use crate::pg::session;
use crate::pg::time;
use crate::pg::xact::{Durability, Transaction};
use crate::pg::{Result, catalog, crash_point, guc, interrupt};

/// Tasks after which a worker makes room for a fresh process: whatever leaks in a session leaks no further.
const MOST_TASKS: u64 = 100_000;

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
        held_moves: Vec::new(),
        moves_since: None,
        done: 0,
        since: Instant::now(),
        idle_since: None,
        claimed: VecDeque::new(),
        chains: true,
        batches: Experience::new(),
        search_path: Vec::new(),
    };
    worker.announce()?;
    process.run(&mut worker);
    Ok(())
}

/// What came of a look into the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Looked {
    /// There is something to do, here or there.
    Found,
    /// There is nothing that could start now.
    Nothing,
    /// Another worker of the role is looking.
    NotNow,
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
    /// The same of tasks that are to be moved, from the schedule or to their lanes. Often it is another worker that is moving them: this one
    /// does not pass over them then.
    held_moves: Vec<(i64, i64)>,
    /// Since when it has moved tasks to their lanes without having anything else to do.
    moves_since: Option<Instant>,
    done: u64,
    /// When it began to serve its role.
    since: Instant,
    /// Since when it has had nothing to do.
    idle_since: Option<Instant>,
    /// Tasks that are claimed and have not run: a batch, the one of a batch that must be alone, or the one that was claimed together with the
    /// end of the last one.
    claimed: VecDeque<Claimed>,
    /// It may claim the next task together with the end of this one.
    chains: bool,
    /// How many tasks it puts into a batch at most, whatever the topic allows.
    batches: Experience,
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
        match self.look()? {
            Looked::Found => Ok(Next::Again),
            Looked::Nothing => self.wait(),
            Looked::NotNow => self.wait_for_look(),
        }
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
            slot.payload.changed = time::now();
        }
        Ok(())
    }

    /// Looks for work in the table, for all workers of its role.
    fn look(&mut self) -> Result<Looked> {
        let (bumps, ends) = {
            let mut registry = registry::lock()?;
            let bumps = registry.demand(self.key).map_or(0, |demand| demand.bumps);
            let ends = registry.header.ends;
            if registry.another_looks(self.ticket, self.key) {
                return Ok(Looked::NotNow);
            }
            if !registry.begin_looking(self.ticket, self.key) {
                return Ok(Looked::Nothing);
            }
            (bumps, ends)
        };
        // after an error this process ends, and with it the look
        let found = self.look_alone(bumps, ends)?;
        registry::lock()?.end_looking(self.key);
        Ok(if found {
            Looked::Found
        } else {
            Looked::Nothing
        })
    }

    /// False if there is none that could start now.
    fn look_alone(&mut self, bumps: u64, ends: u64) -> Result<bool> {
        let now = time::now();
        self.held_rows.retain(|&(_, until)| until > now);
        // a topic that has got a limit while a million of its tasks wait does not keep others waiting until all are moved
        let moves = self.moves_since.is_none_or(|since| since.elapsed() < TURN);
        let transaction = Transaction::begin(Durability::Asynchronous)?;
        self.notice_changes()?;
        let held = &mut self.held_moves;
        let (transaction, due) = schedule::let_in_due(transaction, self.key, held, bumps, now)?;
        let bumps = due.bumps;
        let Some(begun) = registry::lock()?
            .shelf(self.key)
            .map(|shelf| shelf.begin_look(now))
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
                    held_strays: &self.held_moves,
                    moves,
                    from: begun.from,
                    now,
                },
            )?,
            None => Answer::nothing(),
        };
        transaction.commit()?;
        if answer.moved {
            self.moves_since.get_or_insert_with(Instant::now);
            let until = now + LOCKED_ROW_MICROSECONDS;
            self.held_moves
                .extend(answer.held.iter().map(|&id| (id, until)));
            return Ok(true);
        }
        self.moves_since = None;
        if !moves {
            answer.sight.next_due = answer.sight.next_due.min(now + PAUSE_MICROSECONDS);
        }
        answer.sight.bumps = bumps;
        answer.sight.ends = ends;
        answer.sight.next_due = answer.sight.next_due.min(due.next_due);
        answer.sight.more |= due.more;
        self.sight = answer.sight;

        let mut registry = registry::lock()?;
        registry.leave_out_claimed(self.key, &mut answer.tasks);
        answer.can_start &= !answer.tasks.is_empty();
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

    /// Runs what it has claimed.
    fn run_claimed(&mut self) -> Result<()> {
        if self.claimed.len() > 1 {
            return self.run_batch();
        }
        self.claimed.pop_front().map_or(Ok(()), |one| self.run(one))
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

    /// Whether its session is no longer what a fresh login of its role would be, as far as it knows.
    fn is_stale(&self, registry: &Registry) -> bool {
        self.stale || registry.header.generations.of(self.key) != self.generation
    }

    /// Waits for what another worker of its role finds. It is not idle meanwhile: what comes is that one's to find, or its own to look for.
    fn wait_for_look(&self) -> Result<Next> {
        {
            let mut registry = registry::lock()?;
            if !registry.another_looks(self.ticket, self.key) {
                return Ok(Next::Again);
            }
            let Some(slot) = pool::find(registry.slots, self.ticket) else {
                return Ok(Next::Leave);
            };
            slot.payload.waits_for_look = true;
        }
        let event = WaitEvent::named(c"PgBackgroundQueueWorkerMain")?;
        latch::wait_for(event, Some(settings::worker_idle_timeout()))?;
        Ok(Next::Again)
    }

    /// Waits for work, unless some has come meanwhile, or leaves.
    fn wait(&mut self) -> Result<Next> {
        let begins = self.idle_since.is_none();
        let idle_since = *self.idle_since.get_or_insert_with(Instant::now);
        let idle_ms = i64::try_from(idle_since.elapsed().as_millis()).unwrap_or(i64::MAX);
        let timeout_ms = settings::worker_idle_timeout().saturating_sub(idle_ms);
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
            if begins {
                slot.payload.changed = time::now();
            }
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
        if self.sight.next_due == UNTIL_TOLD && !self.sight.blocked && !self.sight.more {
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
