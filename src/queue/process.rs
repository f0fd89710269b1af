//! What workers and keepers have in common: a slot in the registry from their first step to their last.

use super::registry::{self, Key, Registry};
use super::store::{Row, State, Store};
use super::{settings, topics};
use crate::core::outcome::{self, AfterFailure};
use crate::pg::bgworker::pool::{self, Ticket};
use crate::pg::bgworker::{self, Definition, Handle, Restart};
use crate::pg::datum::Datum;
use crate::pg::latch::LatchRef;
use crate::pg::local::ProcessLocal;
use crate::pg::{Result, callback, crash_point};

static TICKET: ProcessLocal<Option<Ticket>> = ProcessLocal::new(None);

/// Asks for the process of a reserved slot; `None` if PostgreSQL has no worker slot free.
///
/// # Errors
/// Out of memory.
pub fn launch(key: Key, ticket: Ticket) -> Result<Option<Handle>> {
    let (kind, name, function) = if key.is_keeper() {
        (
            "pg_background_queue keeper",
            format!("pg_background_queue keeper for database {}", key.database),
            "pg_background_queue_keeper_main",
        )
    } else {
        (
            "pg_background_queue worker",
            format!(
                "pg_background_queue worker for database {} and role {}",
                key.database, key.role
            ),
            "pg_background_queue_worker_main",
        )
    };
    Definition {
        name,
        kind,
        library: super::NAME,
        function,
        restart: Restart::Never,
        database: true,
        argument: ticket.to_argument(),
        notify: true,
    }
    .launch()
}

/// The first steps of a launched process: signals, its slot, and the promise to leave the slot when it exits,
/// made before the connection so that it is kept even if that fails. `None` if nobody waits for it any more.
///
/// # Errors
/// Out of memory.
pub fn begin(argument: Datum) -> Result<Option<(Ticket, Key)>> {
    bgworker::setup();
    let ticket = Ticket::from_argument(argument);
    let key = {
        let registry = registry::lock()?;
        let (pid, latch) = (bgworker::my_pid(), LatchRef::mine());
        match pool::attach(registry.slots, ticket, pid, latch) {
            Some(slot) => slot.key,
            None => return Ok(None),
        }
    };
    TICKET.set(Some(ticket));
    callback::at_exit(leave)?;
    Ok(Some((ticket, key)))
}

/// The session is open.
///
/// # Errors
/// None known.
pub fn connected(ticket: Ticket) -> Result<()> {
    let registry = registry::lock()?;
    if let Some(slot) = pool::find(registry.slots, ticket) {
        slot.payload.connected = true;
    }
    crash_point("a process is connected");
    // it has looked after the start
    registry.wake_launcher();
    Ok(())
}

/// A keeper has come to the end of its visit.
///
/// # Errors
/// None known.
pub fn over(ticket: Ticket) -> Result<()> {
    if let Some(slot) = pool::find(registry::lock()?.slots, ticket) {
        slot.payload.over = true;
    }
    Ok(())
}

/// The exit callback. Its transaction has been aborted by now. A worker that still has a task leaves an orphan, for a keeper to clear away.
fn leave() {
    let Some(ticket) = TICKET.get() else { return };
    TICKET.set(None);
    crash_point("a process leaves");
    // Without a registry there is no ticket.
    let Ok(mut registry) = registry::lock() else {
        return;
    };
    let Some(slot) = pool::find(registry.slots, ticket) else {
        return;
    };
    let key = slot.key;
    let served = if key.is_keeper() {
        slot.payload.over
    } else {
        slot.payload.connected
    };
    let had_the_turn = slot.payload.suspect;
    Registry::abandon(slot);
    if had_the_turn {
        registry.unblock(None);
    }
    if !served {
        failed_start(&mut registry, key);
    }
    registry.wake_launcher();
}

/// A process ended before it could do anything, or never began: its work waits a little longer each time, and a keeper
/// looks whether the role can connect at all. (The launcher spaces the keepers.)
pub fn failed_start(registry: &mut Registry, key: Key) {
    registry.want_keeper(key.database);
    if let Some(demand) = registry.demand(key) {
        demand.failures = demand.failures.saturating_add(1);
        let wait_ms = 100_i64 << demand.failures.min(9);
        demand.due = crate::pg::time::now() + wait_ms * 1000;
    }
}

/// An attempt has failed, or was cancelled: marks the task in the caller's transaction.
///
/// # Errors
/// I/O.
pub fn attempt_failed(store: &Store, row: &Row, error: &[u8], cancelled: bool) -> Result<()> {
    if cancelled {
        store.close(row, State::Cancelled, error)?;
        return Ok(());
    }
    let max_retries = match row.max_retries {
        Some(own) => own,
        None => topics::rules(row.topic.as_deref())?.retry_count,
    };
    match outcome::after_failure(row.retry_count, max_retries, settings::max_retry_delay()) {
        AfterFailure::Fail => store.close(row, State::Failed, error)?,
        AfterFailure::Retry {
            retry_count,
            delay_seconds,
        } => store.retry_later(row, error, retry_count, delay_seconds)?,
    };
    Ok(())
}
