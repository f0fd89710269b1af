//! Giant and odd inputs.

use std::time::Duration;

use super::{Attack, Either, Fails, Field, Finished};
use crate::harness::{enqueue, run, scalar, task, wait_closed, wait_for};

const ODD: &[Attack] = &[
    ("nothing but a semicolon", ";", Finished),
    ("nothing but a comment", "-- nothing", Finished),
    ("a comment that does not end", "/* SELECT 1", Fails("42601")),
    ("a quote that does not end", "SELECT 'x", Fails("42601")),
    (
        "a dollar quote that does not end",
        "SELECT $x$ $y$",
        Fails("42601"),
    ),
    ("a parameter", "SELECT $1", Fails("42P02")),
    ("a command of psql", "\\! rm -rf /", Fails("42601")),
    ("variables of psql", "SELECT :x, :'y'", Fails("42601")),
    ("a character NUL", r"SELECT E'\x00'", Fails("22021")),
    (
        "a character NUL of Unicode",
        r"SELECT U&'\0000'",
        Either("42601"),
    ),
    (
        "bytes that are no UTF-8",
        r"SELECT E'\xff\xfe'",
        Fails("22021"),
    ),
    ("half a surrogate pair", r"SELECT U&'\d800'", Fails("42601")),
    (
        "a name that is too long",
        "CREATE TABLE public.xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx (a int)",
        Finished,
    ),
    (
        "text from right to left, and no space at all",
        "SELECT\u{a0}1 AS \u{202e}x",
        Either("42"),
    ),
    ("a byte order mark", "\u{feff}SELECT 1", Either("42601")),
    (
        "two to the power of a lot",
        "SELECT 10::numeric ^ 100000",
        Finished,
    ),
    (
        "a recursive query with no end but a limit",
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT n FROM r LIMIT 10000",
        Finished,
    ),
    (
        "a deep regular expression",
        "SELECT 'x' ~ repeat('(', 20000)",
        Fails("2201B"),
    ),
    (
        "deep json",
        "SELECT repeat('[', 100000)::json",
        Fails("54001"),
    ),
    (
        "deep xml",
        "SELECT xmlparse(content repeat('<a>', 10000))",
        Either(""),
    ),
    (
        "a row of too many columns",
        "DO $$BEGIN EXECUTE 'SELECT ' || repeat('1,', 2000) || '1'; END$$",
        Fails("54011"),
    ),
];

#[test]
fn odd_texts_end_as_in_any_session() {
    let mut field = Field::new(1);
    field.attack(ODD);
    field.end();
}

/// An expression of SQL that makes a text, and how its task ends.
const LONG: &[(&str, &str)] = &[
    ("repeat('SELECT 1;', 100000)", ""),
    ("repeat(';', 1000000) || 'SELECT 1'", ""),
    ("'SELECT 1' || repeat(' ', 10000000)", ""),
    (
        "'SELECT ' || repeat('(', 100000) || '1' || repeat(')', 100000)",
        "42601",
    ),
    ("'SELECT ' || repeat('1+', 100000) || '1'", "54001"),
    (
        "'SELECT ' || repeat('-(', 5000) || '1' || repeat(')', 5000)",
        "42601",
    ),
    (
        "'SELECT ' || repeat('CASE WHEN true THEN ', 20000) || '1'",
        "42601",
    ),
    (
        "'SELECT * FROM ' || repeat('(SELECT * FROM ', 20000)",
        "42601",
    ),
    ("'SELECT 1 IN (' || repeat('1,', 200000) || '2)'", ""),
    ("'SELECT ''' || repeat('x', 30000000) || ''''", ""),
    ("'SELECT \"' || repeat('x', 1000000) || '\"'", "42703"),
    ("repeat('SELECT 1;', 20000) || 'SELECT 1/0'", "22012"),
    ("'SELECT 1/0 --' || repeat('x', 30000000)", "22012"),
];

#[test]
fn long_and_deep_texts_end_as_in_any_session() {
    let mut field = Field::new(1);
    let ids: Vec<(i64, &str, &str)> = LONG
        .iter()
        .map(|(text, end)| {
            let sql = format!("SELECT pg_background_queue_enqueue({text})");
            (scalar(&mut field.alice, &sql, &[]), *text, *end)
        })
        .collect();
    for (id, text, end) in ids {
        let task = wait_closed(&mut field.client, id);
        if end.is_empty() {
            assert_eq!(task.state, "finished", "{text}: {}", task.errors());
        } else {
            // where the stack ends depends on the build
            assert!(
                task.errors().starts_with(end) || task.errors().starts_with("54001"),
                "{text}: {}",
                task.errors()
            );
        }
        assert!(task.errors().len() < 40_000, "{text}");
    }
    field.survive();
    field.end();
}

/// 300 MB; with `PGBQ_GIANT=1`, for it takes a machine some gigabytes. Otherwise a tenth of it.
#[test]
fn a_giant_text_is_enqueued_and_run() {
    let mut field = Field::new(1);
    let size = if std::env::var_os("PGBQ_GIANT").is_some() {
        300
    } else {
        30
    } << 20;
    // incompressible, so that it is as large in the table
    run(
        &mut field.client,
        "CREATE FUNCTION giant(size int) RETURNS text LANGUAGE sql AS \
            $$SELECT 'SELECT length(''' || repeat((SELECT string_agg(md5(n::text), '') FROM generate_series(1, 32768) AS n), size >> 20) || ''')'$$",
    );
    for times in 1..=2 {
        let id: i64 = scalar(
            &mut field.alice,
            "SELECT pg_background_queue_enqueue(giant($1))",
            &[&size],
        );
        let task = wait_for("the giant to end", Duration::from_secs(300), || {
            let task = task(&mut field.client, id);
            task.is_closed().then_some(task)
        });
        assert_eq!(task.state, "finished", "{times}: {}", task.errors());
    }
    // more than a text can be is an error at the call
    let error = field
        .alice
        .query(
            "SELECT pg_background_queue_enqueue(repeat('x', 1 << 30))",
            &[],
        )
        .expect_err("too much");
    let state = error.code().map(|code| code.code());
    // in 13 repeat() itself sees only half of it
    assert!(matches!(state, Some("54000" | "XX000")), "{error:?}");
    field.survive();
    field.end();
}

/// A topic is a key of an index: what does not fit there is refused at the call, and what does is a topic.
#[test]
fn long_and_odd_topics_are_topics_or_refused_at_once() {
    let mut field = Field::new(1);
    for (topic, fits) in [
        ("''", true),
        ("' '", true),
        ("repeat('x', 2000)", true),
        ("repeat('\u{20ac}', 600)", true),
        ("repeat('\u{20ac}', 682) || 'xx'", true),
        ("repeat('\u{20ac}', 683)", false),
        ("repeat('x', 100000)", false),
        (
            "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 400) AS n)",
            false,
        ),
        ("E'a\\tb\\nc\\u0001'", true),
        ("'\u{202e}topic'", true),
        ("'{\"a\": 1}'", true),
        ("'''; DROP TABLE x; --'", true),
    ] {
        let sql = format!("SELECT pg_background_queue_enqueue('SELECT 1', {topic})");
        match field.alice.query_one(&sql, &[]) {
            Ok(row) => {
                assert!(fits, "{topic}");
                let id: i64 = row.get(0);
                let task = wait_closed(&mut field.client, id);
                assert_eq!(task.state, "finished", "{topic}");
                let same: bool = scalar(
                    &mut field.client,
                    &format!("SELECT topic = {topic} FROM pg_background_tasks WHERE id = $1"),
                    &[&id],
                );
                assert!(same, "{topic}");
            }
            Err(error) => {
                assert!(!fits, "{topic}: {error:?}");
                assert_eq!(
                    error.code().map(|code| code.code()),
                    Some("54000"),
                    "{topic}"
                );
            }
        }
    }
    field.survive();
    field.end();
}

#[test]
fn a_long_or_odd_search_path_is_the_tasks_own() {
    let mut field = Field::new(1);
    for path in [
        "repeat('x', 1000000)".to_owned(),
        "(SELECT string_agg('s' || n, ', ') FROM generate_series(1, 20000) AS n)".to_owned(),
        "''".to_owned(),
        "'\"\"'".to_owned(),
        "'\"a, b\", \"\"\"quoted\"\"\", \"$user\"'".to_owned(),
        "'pg_temp, pg_toast, information_schema'".to_owned(),
    ] {
        run(
            &mut field.alice,
            &format!("SELECT set_config('search_path', {path}, false)"),
        );
        let id: i64 = scalar(
            &mut field.alice,
            "SELECT public.pg_background_queue_enqueue('SELECT 1/(current_setting(''search_path'') = ' || quote_literal(current_setting('search_path')) || ')::int')",
            &[],
        );
        run(&mut field.alice, "RESET search_path");
        let task = wait_closed(&mut field.client, id);
        assert_eq!(task.state, "finished", "{path}: {}", task.errors());
    }
    let id = enqueue(&mut field.alice, "SELECT 1");
    assert_eq!(wait_closed(&mut field.client, id).state, "finished");
    field.survive();
    field.end();
}
