//! `pg_background_queue.topic_config`: what it may say, strictly.
//!
//! ```json
//! {"reports": {"max_parallel_running_tasks_count": 2, "priority": 50}, "mail": {"delay_in_sec": 1}}
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// What is set for one topic; what is not set is as the global setting says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Topic {
    /// The most tasks of the topic that run at the same time; 0 pauses it.
    pub limit: Option<i32>,
    /// Retries of a failing task.
    pub retry_count: Option<i32>,
    /// Seconds that each of its parallel slots waits before each start.
    pub delay_in_sec: Option<i32>,
    /// Priority of tasks enqueued from now on; lower runs first.
    pub priority: Option<i32>,
    /// Seconds after which a running attempt is cancelled.
    pub timeout_in_sec: Option<i32>,
    /// Whether what its tasks have done is on disk when they are finished.
    pub durability: Option<Durability>,
    /// The most of its tasks that share a commit.
    pub commit_batch: Option<i32>,
}

/// The most that [`Topic::commit_batch`] may be: beyond 64 subtransactions, other sessions have to look them up on disk
/// (PGPROC_MAX_CACHED_SUBXIDS, storage/proc.h).
pub const MOST_IN_BATCH: i32 = 60;

/// What a crash of the server may take back of a task that has finished.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Nothing, unless `synchronous_commit` allows it.
    Strict,
    /// Effect and mark together, if they are a moment old: the task runs again.
    Relaxed,
}

impl Durability {
    /// By its name, in the setting and in `topic_config`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "strict" => Some(Self::Strict),
            "relaxed" => Some(Self::Relaxed),
            _ => None,
        }
    }
}

/// The topics that have something of their own, by name.
pub type Topics = BTreeMap<String, Topic>;

/// Reads the setting; an empty one says nothing of any topic.
///
/// # Errors
/// A sentence that names the topic and the key.
pub fn parse(text: &str) -> Result<Topics, String> {
    if text.trim().is_empty() {
        return Ok(Topics::new());
    }
    let value: Json =
        serde_json::from_str(text).map_err(|error| format!("It is not valid JSON: {error}."))?;
    let Json::Object(entries) = value else {
        return Err(format!(
            "It must be a JSON object with a key for each topic, not {}.",
            value.kind()
        ));
    };
    let mut topics = Topics::new();
    for (name, value) in entries {
        let topic = topic(&name, value)?;
        if topics.insert(name.clone(), topic).is_some() {
            return Err(format!("Topic \"{name}\" is there more than once."));
        }
    }
    Ok(topics)
}

fn topic(name: &str, value: Json) -> Result<Topic, String> {
    let Json::Object(entries) = value else {
        return Err(format!(
            "Topic \"{name}\" must have a JSON object, not {}.",
            value.kind()
        ));
    };
    let mut topic = Topic::default();
    let mut seen = BTreeSet::new();
    for (key, value) in &entries {
        let read = match key.as_str() {
            "max_parallel_running_tasks_count" => {
                value.integer(0..=i32::MAX).map(|n| topic.limit = n)
            }
            "retry_count" => value.integer(0..=i32::MAX).map(|n| topic.retry_count = n),
            "delay_in_sec" => value.integer(0..=i32::MAX).map(|n| topic.delay_in_sec = n),
            "priority" => value
                .integer(i32::MIN..=i32::MAX)
                .map(|n| topic.priority = n),
            "timeout_in_sec" => value
                .integer(1..=i32::MAX)
                .map(|n| topic.timeout_in_sec = n),
            "commit_batch" => value
                .integer(1..=MOST_IN_BATCH)
                .map(|n| topic.commit_batch = n),
            "durability" => value.durability().map(|d| topic.durability = d),
            _ => return Err(format!("Topic \"{name}\" has the unknown key \"{key}\".")),
        };
        if !seen.insert(key) {
            return Err(format!(
                "Topic \"{name}\" has the key \"{key}\" more than once."
            ));
        }
        read.map_err(|wrong| format!("Topic \"{name}\", key \"{key}\": {wrong}."))?;
    }
    Ok(topic)
}

/// A JSON value that keeps what `serde_json::Value` loses: repeated keys, and whether a number was an integer.
#[derive(Debug)]
enum Json {
    Null,
    Bool,
    Integer(i128),
    Fraction,
    Text(String),
    Array,
    Object(Vec<(String, Json)>),
}

impl Json {
    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "a boolean",
            Self::Integer(_) => "a number",
            Self::Fraction => "a fraction",
            Self::Text(_) => "a string",
            Self::Array => "an array",
            Self::Object(_) => "an object",
        }
    }

    fn integer(&self, valid: RangeInclusive<i32>) -> Result<Option<i32>, String> {
        let Self::Integer(number) = *self else {
            return Err(format!("must be an integer, not {}", self.kind()));
        };
        let fits = i32::try_from(number)
            .ok()
            .filter(|number| valid.contains(number));
        fits.map(Some).ok_or_else(|| {
            let (least, most) = valid.into_inner();
            format!("{number} is outside the valid range ({least} .. {most})")
        })
    }

    fn durability(&self) -> Result<Option<Durability>, String> {
        let named = match self {
            Self::Text(text) => Durability::named(text).map(Some),
            _ => None,
        };
        named.ok_or_else(|| String::from("must be \"strict\" or \"relaxed\""))
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Bool)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Integer(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Integer(number.into()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Fraction)
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Json, A::Error> {
        while sequence.next_element::<Json>()?.is_some() {}
        Ok(Json::Array)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Json>()? {
            if key.contains('\0') {
                return Err(A::Error::custom("a name cannot contain the character NUL"));
            }
            entries.push((key, value));
        }
        Ok(Json::Object(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_said_by_an_empty_setting() {
        assert_eq!(parse(""), Ok(Topics::new()));
        assert_eq!(parse("  "), Ok(Topics::new()));
        assert_eq!(parse("{}"), Ok(Topics::new()));
    }

    #[test]
    fn every_key_is_read() {
        let topics = parse(
            r#"{"a b": {"max_parallel_running_tasks_count": 2, "retry_count": 3, "delay_in_sec": 4,
                "priority": -5, "timeout_in_sec": 6, "durability": "relaxed", "commit_batch": 7}, "": {}}"#,
        )
        .unwrap();
        let full = Topic {
            limit: Some(2),
            retry_count: Some(3),
            delay_in_sec: Some(4),
            priority: Some(-5),
            timeout_in_sec: Some(6),
            durability: Some(Durability::Relaxed),
            commit_batch: Some(7),
        };
        assert_eq!(topics["a b"], full);
        assert_eq!(topics[""], Topic::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, said) in [
            ("{", "It is not valid JSON"),
            ("{} {}", "It is not valid JSON"),
            ("[]", "must be a JSON object"),
            ("3", "must be a JSON object"),
            (
                r#"{"a": 1}"#,
                r#"Topic "a" must have a JSON object, not a number."#,
            ),
            (
                r#"{"a": {}, "a": {}}"#,
                r#"Topic "a" is there more than once."#,
            ),
            (
                r#"{"a": {"prio": 1}}"#,
                r#"Topic "a" has the unknown key "prio"."#,
            ),
            (
                r#"{"a": {"priority": 1, "priority": 1}}"#,
                r#"Topic "a" has the key "priority" more than once."#,
            ),
            (
                r#"{"a": {"priority": "1"}}"#,
                r#"Topic "a", key "priority": must be an integer, not a string."#,
            ),
            (r#"{"a": {"priority": 1.5}}"#, "not a fraction"),
            (r#"{"a": {"priority": 1e2}}"#, "not a fraction"),
            (r#"{"a": {"priority": null}}"#, "not null"),
            (
                r#"{"a": {"retry_count": -1}}"#,
                "-1 is outside the valid range (0 .. 2147483647)",
            ),
            (
                r#"{"a": {"delay_in_sec": 2147483648}}"#,
                "2147483648 is outside the valid range",
            ),
            (
                r#"{"a": {"delay_in_sec": 99999999999999999999999}}"#,
                "\"delay_in_sec\"",
            ),
            (
                r#"{"a": {"timeout_in_sec": 0}}"#,
                "0 is outside the valid range (1 .. 2147483647)",
            ),
            ("{\"a\\u0000\": {}}", "NUL"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn depth_is_refused_before_the_stack_is_full() {
        for open in ["[", "{\"a\":", "{\"a\":{\"priority\":["] {
            let error = parse(&open.repeat(200_000)).expect_err("too deep");
            assert!(error.contains("It is not valid JSON"), "{error}");
        }
    }

    /// Texts that are nearly right: pieces of what is, in any order.
    fn any_text() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            "\"",
            "\"a\"",
            "\"a\":",
            "{\"a\": {",
            "}}",
            "\"priority\": ",
            "\"retry_count\": ",
            "\"delay_in_sec\": ",
            "\"timeout_in_sec\": ",
            "\"max_parallel_running_tasks_count\": ",
            "1",
            "-1",
            "0",
            "2147483647",
            "-2147483648",
            "9223372036854775808",
            "1e400",
            "-0",
            "0.5",
            "null",
            "true",
            "\\u0000",
            "\\ud800",
            "\u{20ac}",
            " ",
            "\n",
            "//",
        ]);
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in ".{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_taken_is_in_range_and_what_is_not_is_explained(text in any_text()) {
            match parse(&text) {
                Ok(topics) => for (name, topic) in topics {
                    prop_assert!(!name.contains('\0'));
                    for value in [topic.limit, topic.retry_count, topic.delay_in_sec] {
                        prop_assert!(value.is_none_or(|value| value >= 0));
                    }
                    prop_assert!(topic.timeout_in_sec.is_none_or(|value| value >= 1));
                },
                Err(error) => prop_assert!(error.ends_with('.')),
            }
        }

        #[test]
        fn what_is_written_is_read(name in "[^\\x00]{0,20}", limit in 0..i32::MAX, priority: i32) {
            let text = serde_json::json!({name.clone(): {"max_parallel_running_tasks_count": limit, "priority": priority}});
            let topics = parse(&text.to_string()).unwrap();
            prop_assert_eq!(topics[&name].limit, Some(limit));
            prop_assert_eq!(topics[&name].priority, Some(priority));
        }
    }
}
