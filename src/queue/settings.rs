//! The settings (GUCs). All are reloadable: SIGHUP.

use super::topics;
use crate::core::config::Durability;
use crate::pg::guc::{self, Choices, EnumSetting, IntDefinition, IntSetting};
use crate::pg::{Result, control};

static MAX_PARALLEL_RUNNING_TASKS: IntSetting = IntSetting::new();
static RETRY_COUNT: IntSetting = IntSetting::new();
static MAX_RETRY_DELAY: IntSetting = IntSetting::new();
static DELAY: IntSetting = IntSetting::new();
static DURABILITY: EnumSetting = EnumSetting::new();
static WORKER_IDLE_TIMEOUT: IntSetting = IntSetting::new();

/// Makes them known to the server. From `_PG_init`.
///
/// # Errors
/// A name is taken.
pub fn define() -> Result<()> {
    let default_limit = i32::try_from(control::max_worker_processes() / 2).unwrap_or(i32::MAX);
    MAX_PARALLEL_RUNNING_TASKS.define(IntDefinition {
        name: c"pg_background_queue.max_parallel_running_tasks_count",
        short: c"The most tasks that run at the same time, in all databases together.",
        long: c"0 pauses execution. Tasks that run already run to their end.",
        default: default_limit,
        min: 0,
        max: crate::queue::registry::MOST_WORKERS,
        unit: 0,
    })?;
    RETRY_COUNT.define(IntDefinition {
        name: c"pg_background_queue.retry_count",
        short: c"How often a task that fails is run again.",
        long: c"Before the n-th retry it waits 2^n seconds.",
        default: 0,
        min: 0,
        max: i32::MAX,
        unit: 0,
    })?;
    MAX_RETRY_DELAY.define(IntDefinition {
        name: c"pg_background_queue.max_retry_delay",
        short: c"The longest wait before a retry.",
        long: c"",
        default: 24 * 60 * 60,
        min: 1,
        max: i32::MAX,
        unit: guc::UNIT_S,
    })?;
    DELAY.define(IntDefinition {
        name: c"pg_background_queue.delay_in_sec",
        short: c"How long each of a topic's parallel slots waits before each start.",
        long: c"A topic with a limit of p then starts at most p tasks in so many seconds.",
        default: 0,
        min: 0,
        max: i32::MAX,
        unit: guc::UNIT_S,
    })?;
    static DURABILITIES: Choices<2> = Choices::new([c"strict", c"relaxed"]);
    DURABILITY.define(
        c"pg_background_queue.durability",
        c"Whether the commit of a task waits until it is on disk.",
        c"With \"relaxed\" a task that finished just before a crash of the server runs again, unless its effects are still there.",
        &DURABILITIES,
    )?;
    topics::define()?;
    WORKER_IDLE_TIMEOUT.define(IntDefinition {
        name: c"pg_background_queue.worker_idle_timeout",
        short: c"How long a worker waits for more tasks of its role before it exits.",
        long: c"A worker that is there starts a task at once; a new one takes some milliseconds to connect.",
        default: 10_000,
        min: 0,
        max: i32::MAX,
        unit: guc::UNIT_MS,
    })?;
    guc::reserve_prefix(c"pg_background_queue")
}

/// `max_parallel_running_tasks_count`
pub fn max_parallel_running_tasks() -> usize {
    usize::try_from(MAX_PARALLEL_RUNNING_TASKS.get()).unwrap_or(0)
}

/// `retry_count`
pub fn retry_count() -> i32 {
    RETRY_COUNT.get()
}

/// `max_retry_delay`, in seconds
pub fn max_retry_delay() -> i32 {
    MAX_RETRY_DELAY.get()
}

/// `delay_in_sec`
pub fn delay_in_sec() -> i32 {
    DELAY.get()
}

/// `durability`
pub fn durability() -> Durability {
    match DURABILITY.get() {
        0 => Durability::Strict,
        _ => Durability::Relaxed,
    }
}

/// `worker_idle_timeout`, in milliseconds
pub fn worker_idle_timeout() -> i64 {
    i64::from(WORKER_IDLE_TIMEOUT.get())
}
