//! What a transaction has enqueued, and the wake-up when it commits.

use super::registry::{self, Generations, Key, UNTIL_TOLD};
use super::store::Candidate;
use crate::core::ready::Place;
use crate::pg::bgworker;
use crate::pg::callback::{self, Empty, Ended, Utility};
use crate::pg::local::{ProcessLocal, ProcessState};
use crate::pg::time::{self, TimestampTz};
use crate::pg::{Oid, Result, catalog, crash_point};

/// Roles that one transaction enqueues as; a transaction that uses more asks for a keeper to look.
const MOST_ROLES: usize = 8;

/// What a transaction has enqueued as one role.
#[derive(Clone, Copy)]
struct OfRole {
    role: Oid,
    /// Tasks that may run at once.
    tasks: u32,
    /// Before all of those.
    place: Place,
    /// The last of them that was enqueued, if that stands in the main line. It may have been rolled back since: who claims it finds out.
    last: Option<Candidate>,
    /// The time of the first of the others.
    due: TimestampTz,
    /// The best priority of the others.
    due_priority: i32,
}

impl OfRole {
    const NOTHING: Self = Self {
        role: 0,
        tasks: 0,
        place: Place::LAST,
        last: None,
        due: UNTIL_TOLD,
        due_priority: i32::MAX,
    };
}

struct Pending {
    roles: [OfRole; MOST_ROLES],
    count: usize,
    look: bool,
    /// Buckets of the settings that it has changed: see [`registry::Generations`].
    settings: u64,
}

const NOTHING: Pending = Pending {
    roles: [OfRole::NOTHING; MOST_ROLES],
    count: 0,
    look: false,
    settings: 0,
};

impl Pending {
    fn roles(&self) -> &[OfRole] {
        &self.roles[..self.count]
    }

    fn is_nothing(&self) -> bool {
        self.count == 0 && !self.look && self.settings == 0
    }

    /// What is noted of a role; `None` if there are too many.
    fn of_role(&mut self, role: Oid) -> Option<&mut OfRole> {
        let i = match self.roles().iter().position(|known| known.role == role) {
            Some(i) => i,
            None if self.count < MOST_ROLES => {
                self.roles[self.count] = OfRole {
                    role,
                    ..OfRole::NOTHING
                };
                self.count += 1;
                self.count - 1
            }
            None => return None,
        };
        Some(&mut self.roles[i])
    }
}

static PENDING: ProcessState<Pending> = ProcessState::new(NOTHING);
static WATCHED: ProcessLocal<bool> = ProcessLocal::new(false);

/// Notes that the current transaction has made a task of a role ready to run, `new` if it has just been enqueued and stands in the main line.
/// A savepoint that is rolled back leaves a note for nothing, which wakes a worker for nothing.
///
/// # Errors
/// Out of memory.
pub fn task_enqueued(role: Oid, place: Place, new: Option<Candidate>) -> Result<()> {
    note(role, |of_role| {
        of_role.last = new;
        let best = &mut of_role.place;
        best.priority = best.priority.min(place.priority);
        best.id = best.id.min(place.id);
        of_role.tasks = of_role.tasks.saturating_add(1);
    })
}

/// The same for a task that waits for its time.
///
/// # Errors
/// Out of memory.
pub fn task_scheduled(role: Oid, priority: i32, due: TimestampTz) -> Result<()> {
    note(role, |of_role| {
        of_role.due = of_role.due.min(due);
        of_role.due_priority = of_role.due_priority.min(priority);
    })
}

fn note(role: Oid, change: impl FnOnce(&mut OfRole)) -> Result<()> {
    watch()?;
    PENDING.with(|pending| match pending.of_role(role) {
        Some(of_role) => change(of_role),
        None => pending.look = true,
    });
    Ok(())
}

/// The worst priority that may go on with the work of this role at the commit of the current transaction without a look at what
/// that brings; `None` if none may.
pub fn priority_after_commit(role: Oid) -> Option<i32> {
    PENDING.with(|pending| {
        if pending.look || pending.settings != 0 {
            return None;
        }
        let of_role = pending.roles().iter().find(|known| known.role == role);
        Some(of_role.map_or(i32::MAX, |of_role| of_role.place.priority))
    })
}

/// Asks for a keeper to look at this database, once the current transaction commits.
///
/// # Errors
/// Out of memory.
pub fn look_at_commit() -> Result<()> {
    watch()?;
    PENDING.with(|pending| pending.look = true);
    Ok(())
}

/// From the utility hook: role or database settings changed, or a prepared transaction was committed.
pub fn utility_done(what: Utility) {
    if !registry::is_there() {
        return;
    }
    match what {
        // COMMIT PREPARED has committed already; the transaction it ran in ends later, with nothing of its own.
        Utility::CommitPrepared => drop(wake_keeper()),
        Utility::SessionSettings { role, database } => {
            if watch().is_ok() {
                PENDING.with(|pending| pending.settings |= Generations::buckets(role, database));
            }
        }
    }
}

/// From the utility hook: a command wants a database without sessions. Ours leave as soon as they have nothing to
/// do, and no others come before the command has ended.
pub fn empty_database(what: Empty) {
    // A session that is ended in the middle of its command does not come to the command's end.
    if callback::at_exit(open_databases).is_err() {
        return;
    }
    // Without a registry there are no sessions of ours.
    let Ok(mut registry) = registry::lock() else {
        return;
    };
    match what {
        Empty::Wanted(database) => registry.close_database(database, bgworker::my_pid()),
        Empty::NoLonger(database) => registry.open_database(database, bgworker::my_pid()),
    }
    registry.wake_launcher();
}

/// The exit callback of a session that has closed a database.
fn open_databases(_code: i32) {
    if let Ok(mut registry) = registry::lock()
        && registry.open_databases_of(bgworker::my_pid())
    {
        registry.wake_launcher();
    }
}

fn wake_keeper() -> Result<()> {
    let mut registry = registry::lock()?;
    registry.want_keeper(catalog::current_database());
    registry.wake_launcher();
    Ok(())
}

fn watch() -> Result<()> {
    if !WATCHED.get() {
        callback::at_transaction_end(ended)?;
        WATCHED.set(true);
    }
    Ok(())
}

fn ended(how: Ended) {
    if PENDING.with(|pending| pending.is_nothing()) {
        return;
    }
    let pending = PENDING.with(|pending| std::mem::replace(pending, NOTHING));
    if how == Ended::Committed {
        crash_point("an enqueueing is committed");
        // Nothing may raise now. The lock can only be refused where there is no registry, and then nothing was noted.
        let _ = tell(&pending);
    }
}

fn tell(pending: &Pending) -> Result<()> {
    let database = catalog::current_database();
    let mut registry = registry::lock()?;
    let mut launcher = pending.look;
    registry.header.generations.advance(pending.settings);
    if pending.look {
        registry.want_keeper(database);
    }
    for of_role in pending.roles() {
        let key = Key {
            database,
            role: of_role.role,
        };
        match (of_role.tasks, of_role.last) {
            (0, _) => {}
            (1, Some(task)) => launcher |= registry.offer_one(key, task),
            (tasks, _) => launcher |= registry.offer(key, of_role.place, tasks),
        }
        if of_role.due_priority != i32::MAX || of_role.due != UNTIL_TOLD {
            launcher |= registry.offer_later(key, of_role.due_priority, of_role.due, time::now());
        }
    }
    if launcher {
        registry.wake_launcher();
    }
    Ok(())
}
