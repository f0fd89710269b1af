//! What operators and owners of tasks ask of the queue.

use super::registry::{self, Cancelled};
use super::store::{Row, State, Store};
use super::wake;
use crate::pg::bgworker::pool::SlotState;
use crate::pg::datum::{Datum, IntoDatum};
use crate::pg::latch::{self, WaitEvent};
use crate::pg::{Error, Oid, Result, catalog, security, sqlstate, xact};

/// Has the launcher look whether there is work in this database, once the transaction commits.
///
/// # Errors
/// Not preloaded; not installed.
pub fn ensure_workers() -> Result<()> {
    if !registry::is_there() {
        return Err(registry::not_preloaded());
    }
    Store::require()?;
    wake::look_at_commit()
}

/// The number of live workers in the cluster.
///
/// # Errors
/// Not preloaded.
pub fn active_workers() -> Result<i32> {
    let registry = registry::lock()?;
    Ok(i32::try_from(registry.live_workers()).unwrap_or(i32::MAX))
}

/// One row for each live worker: pid, database, role, state, task, since, tasks done.
///
/// # Errors
/// Not preloaded; out of memory.
pub fn workers() -> Result<Vec<[Option<Datum>; 7]>> {
    let shown: Vec<_> = {
        let registry = registry::lock()?;
        let live = |slot: &&registry::WorkerSlot| {
            slot.state == SlotState::Attached && !slot.key.is_keeper()
        };
        registry
            .slots
            .iter()
            .filter(live)
            .map(|slot| (slot.pid, slot.key, slot.payload))
            .collect()
    };
    let row = |(pid, key, work): (i32, registry::Key, registry::Work)| {
        let state = match work {
            registry::Work { leaving: true, .. } => "leaving",
            registry::Work { idle: true, .. } => "idle",
            registry::Work { task: 0, .. } => "active",
            _ => "running",
        };
        let task = (work.task != 0).then_some(work.task);
        let since = if work.changed == 0 {
            None
        } else {
            Some(work.changed.into_datum()?)
        };
        Ok([
            Some(pid.into_datum()?),
            Some(key.database.into_datum()?),
            Some(key.role.into_datum()?),
            Some(state.into_datum()?),
            task.map(IntoDatum::into_datum).transpose()?,
            since,
            Some((work.done as i64).into_datum()?),
        ])
    };
    shown.into_iter().map(row).collect()
}

/// Compares the registry with the processes that are really there, repairs it, and returns the number of live workers.
///
/// # Errors
/// Not preloaded.
pub fn calibrate_workers() -> Result<i32> {
    {
        let mut registry = registry::lock()?;
        registry.calibrate()?;
        registry.wake_launcher();
    }
    active_workers()
}

/// Who asks for a change.
struct Asker {
    all: bool,
    role: Oid,
    name: Vec<u8>,
}

impl Asker {
    fn current() -> Result<Self> {
        let role = security::current_role();
        Ok(Self {
            all: security::is_superuser()?,
            role,
            name: catalog::role_name(role)?.unwrap_or_default(),
        })
    }

    /// Whether the task is its own, or it is a superuser. As the table's policy: the OID of a role of another server (a restored dump)
    /// may be anybody's here.
    fn may_change(&self, row: &Row) -> bool {
        self.all || row.role == self.role && (row.ours || row.role_name == self.name)
    }
}

/// Cancels a task: one that waits at once, when the transaction commits; one that runs by interrupting it, now. False if there is
/// nothing to cancel: the task is closed, or no task of the current role.
///
/// # Errors
/// Not preloaded; a transaction that cannot write.
pub fn cancel(id: Option<i64>) -> Result<bool> {
    let (store, Some(id)) = (start(c"pg_background_queue_cancel()")?, id) else {
        return Ok(false);
    };
    // each round sees a newer state of the row; an attempt that is seen running twice and is no worker's is nobody's
    let mut nobodys = None;
    let asker = Asker::current()?;
    while let Some(row) = store.find(id)?.filter(|row| asker.may_change(row)) {
        let cancelled = match row.state {
            State::Pending | State::Retrying => {
                store.close_waiting(&row, State::Cancelled, None)?
            }
            // it runs, or ran, where it came from
            State::Running if !row.ours => store.close_waiting(&row, State::Cancelled, None)?,
            State::Running => {
                let database = catalog::current_database();
                let cancelled =
                    registry::lock()?.cancel(database, store.relation(), id, row.attempt);
                match cancelled {
                    Cancelled::Yes => true,
                    Cancelled::NotThere if nobodys == Some(row.attempt) => return Ok(false),
                    Cancelled::NotThere => {
                        nobodys = Some(row.attempt);
                        false
                    }
                    Cancelled::TooLate => {
                        // its worker is about to write the row; then there is a newer state
                        let event = WaitEvent::named(c"PgBackgroundQueueCancelTask")?;
                        latch::wait_for(event, Some(1))?;
                        false
                    }
                }
            }
            State::Failed | State::Finished | State::Cancelled => return Ok(false),
        };
        if cancelled {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Puts a failed or cancelled task back among those that wait. False if it is neither, or no task of the current role.
///
/// # Errors
/// Not preloaded; a transaction that cannot write.
pub fn retry(id: Option<i64>) -> Result<bool> {
    let (store, Some(id)) = (start(c"pg_background_queue_retry()")?, id) else {
        return Ok(false);
    };
    let asker = Asker::current()?;
    let wanted =
        |row: &Row| matches!(row.state, State::Failed | State::Cancelled) && asker.may_change(row);
    let Some(row) = store.find(id)?.filter(wanted) else {
        return Ok(false);
    };
    let done = store.put_back(&row)?;
    if done {
        wake::task_enqueued(row.role, row.place(), None)?;
    }
    Ok(done)
}

/// The table, for a function that writes to it.
fn start(function: &'static std::ffi::CStr) -> Result<Store> {
    if !registry::is_there() {
        return Err(registry::not_preloaded());
    }
    xact::require_writable(function)?;
    Store::require()
}

/// Deletes closed tasks of the current role, or of anybody if it is a superuser; returns how many.
///
/// # Errors
/// NULL ids; not preloaded; a transaction that cannot write.
pub fn delete(ids: Option<&[i64]>) -> Result<i64> {
    let store = start(c"pg_background_queue_delete()")?;
    let Some(ids) = ids else {
        return Err(Error::new(
            sqlstate::NULL_VALUE_NOT_ALLOWED,
            "the ids of the tasks to delete must not be null",
        ));
    };
    let asker = Asker::current()?;
    let wanted = |row: &Row| {
        matches!(
            row.state,
            State::Failed | State::Finished | State::Cancelled
        ) && asker.may_change(row)
    };
    let mut deleted = 0;
    for &id in ids {
        if let Some(row) = store.find(id)?.filter(wanted)
            && store.delete(&row)?
        {
            deleted += 1;
        }
    }
    Ok(deleted)
}

/// Lets held tasks run, here and as the role of the name that they carry; returns how many. Those of a role that is
/// not there stay held.
///
/// # Errors
/// Not a superuser; not preloaded; a transaction that cannot write.
pub fn release(ids: Option<&[i64]>) -> Result<i64> {
    let store = start(c"pg_background_queue_release()")?;
    if !security::is_superuser()? {
        return Err(Error::new(
            sqlstate::INSUFFICIENT_PRIVILEGE,
            "permission denied to release held tasks",
        )
        .detail(
            "Only superusers may let tasks run that were enqueued in another database or server.",
        ));
    }
    let mut released = 0;
    for id in store.strangers()? {
        if ids.is_some_and(|ids| !ids.contains(&id)) {
            continue;
        }
        let Some(row) = store.find(id)? else { continue };
        if let Some(role) = catalog::role_by_name(&row.role_name)?
            && store.release(&row, role)?
        {
            released += 1;
        }
    }
    wake::look_at_commit()?;
    Ok(released)
}
