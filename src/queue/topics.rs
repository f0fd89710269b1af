//! What is in force for each topic: the setting `topic_config`, with the global settings where it says nothing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use super::settings;
use crate::core::config::{self, Durability, Topic};
use crate::pg::guc::{Check, TextSetting};
use crate::pg::local::ProcessLocal;
use crate::pg::{Result, control, datum};

static TOPIC_CONFIG: TextSetting<TopicConfig> = TextSetting::new();

/// A value was refused since [`forget_refusal`].
static REFUSED: ProcessLocal<bool> = ProcessLocal::new(false);

/// The value with which the postmaster started was refused, and none has been accepted since. (PostgreSQL checks nothing when
/// a line is removed whose value was never taken: after that it stays so until the next start.)
static REFUSED_AT_START: ProcessLocal<bool> = ProcessLocal::new(false);

/// Makes the setting known to the server. From `_PG_init`.
///
/// # Errors
/// The name is taken.
pub fn define() -> Result<()> {
    TOPIC_CONFIG.define(
        c"pg_background_queue.topic_config",
        c"What is set for single topics: a JSON object of objects.",
        c"Keys: max_parallel_running_tasks_count, retry_count, delay_in_sec, priority, timeout_in_sec, durability, commit_batch.",
    )
}

/// Whether a value was refused since [`forget_refusal`].
pub fn was_refused() -> bool {
    REFUSED.get()
}

/// Whether the value with which the server started was refused: there is no older one to stay in force, and no limit may vanish silently,
/// so that nothing may run.
pub fn were_refused_at_start() -> bool {
    REFUSED_AT_START.get()
}

/// Before the configuration is read again.
pub fn forget_refusal() {
    REFUSED.set(false);
}

/// A topic as shared memory knows it: 128 bits of hash, so that no two ever meet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct TopicId([u64; 2]);

impl TopicId {
    /// Of a task that is none of ours.
    pub const NONE: Self = Self([0; 2]);

    /// Of a topic; tasks without one are a topic, too.
    pub fn of(topic: Option<&[u8]>) -> Self {
        Self([1_u8, 2].map(|half| {
            let mut hasher = DefaultHasher::new();
            (half, topic).hash(&mut hasher);
            hasher.finish()
        }))
    }
}

struct TopicConfig;

impl Check for TopicConfig {
    fn check(value: &[u8]) -> std::result::Result<(), String> {
        let text = std::str::from_utf8(value).map_err(|_| String::from("It is not valid UTF-8."));
        let outcome = text.and_then(config::parse).map(drop);
        REFUSED.set(REFUSED.get() || outcome.is_err());
        let starting = control::is_preloading() || REFUSED_AT_START.get();
        REFUSED_AT_START.set(outcome.is_err() && starting);
        outcome
    }

    fn assigned() {
        TOPICS.set(None);
    }
}

/// What is set for each topic; names are taken in the database's encoding.
type Topics = Rc<HashMap<TopicId, Topic>>;

thread_local! {
    static TOPICS: RefCell<Option<Topics>> = const { RefCell::new(None) };
}

/// What is in force for one topic, the global settings filled in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// The most tasks of it that run at the same time.
    pub limit: usize,
    /// That is less than all may, or starts are delayed.
    pub limited: bool,
    /// Its tasks stand apart from others, because they may have to wait for each other. That does not depend on how many of all may run,
    /// which is lowered and raised more often than the limits of topics.
    pub apart: bool,
    /// Retries of a failing task.
    pub retry_count: i32,
    /// Microseconds that each of its parallel slots waits before each start.
    pub delay: i64,
    /// Priority of tasks that are enqueued now.
    pub priority: i32,
    /// Milliseconds after which an attempt is cancelled; 0 is never.
    pub timeout_ms: i32,
    /// Whether the commit of a task waits for the disk.
    pub durability: Durability,
    /// The most tasks that share a commit, at least 1.
    pub commit_batch: usize,
}

/// What is in force for a topic. In a transaction of a process that is connected to a database.
///
/// # Errors
/// A failing catalog lookup.
pub fn rules(topic: Option<&[u8]>) -> Result<Rules> {
    Ok(configuration()?.rules(TopicId::of(topic)))
}

/// What is set, of one process at one time.
pub struct Configuration(Topics);

/// What is set now. In a transaction of a process that is connected to a database.
///
/// # Errors
/// A failing catalog lookup.
pub fn configuration() -> Result<Configuration> {
    topics().map(Configuration)
}

impl Configuration {
    /// What is in force for a topic.
    pub fn rules(&self, topic: TopicId) -> Rules {
        combine(self.0.get(&topic).copied().unwrap_or_default())
    }
}

/// The settings of a topic, the global ones filled in.
fn combine(own: Topic) -> Rules {
    let all = settings::max_parallel_running_tasks();
    let delay = own.delay_in_sec.unwrap_or_else(settings::delay_in_sec);
    let limit = own
        .limit
        .map_or(all, |limit| usize::try_from(limit).unwrap_or(0).min(all));
    Rules {
        limit,
        limited: limit < all || delay > 0,
        apart: own.limit.is_some() || delay > 0,
        retry_count: own.retry_count.unwrap_or_else(settings::retry_count),
        delay: i64::from(delay) * 1_000_000,
        priority: own.priority.unwrap_or(DEFAULT_PRIORITY),
        timeout_ms: own
            .timeout_in_sec
            .map_or(0, |seconds| seconds.saturating_mul(1000)),
        durability: own.durability.unwrap_or_else(settings::durability),
        commit_batch: own
            .commit_batch
            .map_or(1, |most| usize::try_from(most).unwrap_or(1)),
    }
}

/// The longest name of a topic, in bytes: what an index entry has room for.
pub const MOST_TOPIC_BYTES: usize = 2048;

/// The priority of a task that nothing gives another.
const DEFAULT_PRIORITY: i32 = 100;

fn topics() -> Result<Topics> {
    if let Some(topics) = TOPICS.with_borrow(Clone::clone) {
        return Ok(topics);
    }
    let text = TOPIC_CONFIG.get();
    // The check hook has seen it.
    let parsed = config::parse(&String::from_utf8_lossy(&text)).unwrap_or_default();
    let mut topics = HashMap::new();
    for (name, topic) in parsed {
        // a name that cannot be said in this database is no topic of it
        if let Some(name) = datum::from_utf8(&name)? {
            topics.insert(TopicId::of(Some(&name)), topic);
        }
    }
    let topics = Rc::new(topics);
    TOPICS.set(Some(Rc::clone(&topics)));
    Ok(topics)
}
