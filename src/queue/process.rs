//! What workers and keepers have in common.

use super::registry::{Key, Registry};
use super::store::{Row, State, Store};
use super::{settings, topics};
use crate::core::outcome::{self, AfterFailure};
use crate::pg::Result;
use crate::pg::bgworker::Definition;

/// The process for a key.
pub fn definition(key: Key) -> Definition {
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
    Definition::new(kind, super::NAME, function).name(name)
}

/// The longest wait, in milliseconds, of work whose process has failed to start.
pub const LONGEST_WAIT_MS: i64 = 100 << 9;

/// A process ended before it could do anything, or never began: its work waits a little longer each time, and a keeper
/// looks whether the role can connect at all. (The launcher spaces the keepers.)
pub fn failed_start(registry: &mut Registry, key: Key) {
    registry.want_keeper(key.database);
    if let Some(demand) = registry.demand(key) {
        demand.failures = demand.failures.saturating_add(1);
        let wait_ms = (100_i64 << demand.failures.min(9)).min(LONGEST_WAIT_MS);
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
