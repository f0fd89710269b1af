//! Putting a task into the queue.

use super::store::{Candidate, Lane, NewTask, Store};
use super::topics::TopicId;
use super::{registry, topics, wake};
use crate::core::ready::Place;
use crate::pg::catalog;
use crate::pg::time::{self, TimestampTz};
use crate::pg::{Error, Result, guc, security, sqlstate, xact};

/// What a caller may say of a task; what is not said is as the settings say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Lower runs first.
    pub priority: Option<i32>,
    /// Not before.
    pub run_at: Option<TimestampTz>,
    /// How often it is run again if it fails.
    pub retry_count: Option<i32>,
    /// For how long an attempt may run, in milliseconds.
    pub timeout_ms: Option<i64>,
}

/// Inserts a task of the current role; returns its id.
///
/// # Errors
/// NULL or blank SQL; options out of range; a transaction that cannot write; a role that no worker can log in as.
pub fn enqueue(sql: Option<&[u8]>, topic: Option<&[u8]>, options: Options) -> Result<i64> {
    if !registry::is_there() {
        return Err(registry::not_preloaded());
    }
    let sql = sql.ok_or_else(|| {
        Error::new(
            sqlstate::NULL_VALUE_NOT_ALLOWED,
            "the SQL text of a task must not be null",
        )
    })?;
    if sql.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::new(
            sqlstate::INVALID_PARAMETER_VALUE,
            "the SQL text of a task must not be empty",
        ));
    }
    if topic.is_some_and(|topic| topic.len() > topics::MOST_TOPIC_BYTES) {
        let most = topics::MOST_TOPIC_BYTES;
        return Err(Error::new(
            sqlstate::PROGRAM_LIMIT_EXCEEDED,
            "the topic of a task is too long",
        )
        .detail(format!("It must not have more than {most} bytes.")));
    }
    let out_of_range = |what: &str| Error::new(sqlstate::INVALID_PARAMETER_VALUE, what);
    if options.retry_count.is_some_and(|count| count < 0) {
        return Err(out_of_range("retry_count must not be negative"));
    }
    let timeout_ms = match options.timeout_ms.map(i32::try_from) {
        None => None,
        Some(Ok(timeout)) if timeout > 0 => Some(timeout),
        Some(_) => {
            return Err(out_of_range(
                "timeout must be between 1 millisecond and 24 days",
            ));
        }
    };
    xact::require_writable(c"pg_background_queue_enqueue()")?;

    let store = Store::require()?;
    let role = security::current_role();
    let role_name = catalog::role_name(role)?.unwrap_or_default();
    refuse_without_login(role, &role_name)?;
    let topic_id = TopicId::of(topic);
    let rules = topics::configuration()?.rules(topic_id);
    let task = NewTask {
        sql,
        topic,
        lane: if rules.apart {
            Some(Lane::of(topic)?)
        } else {
            None
        },
        priority: options.priority.unwrap_or(rules.priority),
        role,
        role_name: &role_name,
        search_path: &guc::search_path(),
        run_at: options.run_at,
        scheduled: options.run_at.is_some_and(|run_at| run_at > time::now()),
        max_retries: options.retry_count,
        timeout_ms,
    };
    let joined_at = xact::start_timestamp();
    let (id, at) = store.insert(&task, joined_at)?;
    let place = Place {
        priority: task.priority,
        id,
    };
    match task.run_at.filter(|_| task.scheduled) {
        Some(due) => wake::task_scheduled(role, place.priority, due)?,
        None => {
            let new = Candidate {
                id,
                at,
                topic: topic_id,
                priority: task.priority,
                joined_at,
                ..Candidate::NONE
            };
            wake::task_enqueued(role, place, task.lane.is_none().then_some(new))?;
        }
    }
    Ok(id)
}

/// A task of a role that may not log in could only fail; its caller is still there to be told.
fn refuse_without_login(role: crate::pg::Oid, name: &[u8]) -> Result<()> {
    if catalog::may_log_in(role)? {
        return Ok(());
    }
    let mut message = b"role \"".to_vec();
    message.extend_from_slice(name);
    message.extend_from_slice(b"\" is not permitted to log in, so no task can run as it");
    Err(Error::new(sqlstate::INVALID_AUTHORIZATION, message)
        .detail("Before PostgreSQL 17 a background worker can connect only as a role with the LOGIN attribute.")
        .hint("Enqueue as a role that can log in, or use ALTER ROLE ... LOGIN."))
}
