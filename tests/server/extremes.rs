//! Extremes of numbers, times and sizes. What the suite does is small; `PGBQ_EXTREMES=full` does what stands behind each `or`.

use std::time::{Duration, Instant};

use postgres::Client;

use crate::harness::{
    PATIENCE, Server, create_role, enqueue, run, scalar, task, wait_all_closed, wait_closed,
    wait_for, wait_state,
};

/// The first number in the suite, the second in the long form.
fn size(small: usize, full: usize) -> usize {
    if std::env::var("PGBQ_EXTREMES").is_ok_and(|value| value == "full") {
        full
    } else {
        small
    }
}

/// How long it may all take.
fn deadline() -> Duration {
    PATIENCE * size(2, 30) as u32
}

fn open_tasks(client: &mut Client) -> i64 {
    scalar(
        client,
        "SELECT count(*) FROM pg_background_tasks WHERE state IN ('pending', 'running', 'retrying')",
        &[],
    )
}

#[test]
fn times_without_end_and_before_all_time() {
    let server = Server::start_default();
    let mut client = server.superuser();
    let enqueue_at = |client: &mut Client, time: &str| -> i64 {
        scalar(
            client,
            &format!("SELECT pg_background_queue_enqueue('SELECT 1', run_at => '{time}')"),
            &[],
        )
    };
    let never: Vec<i64> = [
        "infinity",
        "294276-12-31 23:59:59.999999+00",
        "294276-12-31",
        "10000-01-01",
    ]
    .iter()
    .map(|time| enqueue_at(&mut client, time))
    .collect();
    for time in [
        "-infinity",
        "4713-01-01 BC",
        "epoch",
        "1999-12-31",
        "2000-01-01",
    ] {
        let id = enqueue_at(&mut client, time);
        wait_state(&mut client, id, "finished");
    }
    // they wait, are seen, and can be cancelled; and nobody else waits for them
    for &id in &never {
        assert_eq!(task(&mut client, id).state, "pending");
        let cancelled: bool = scalar(&mut client, "SELECT pg_background_queue_cancel($1)", &[&id]);
        assert!(cancelled);
        let again: bool = scalar(&mut client, "SELECT pg_background_queue_retry($1)", &[&id]);
        assert!(again, "put back, it runs at once");
        wait_state(&mut client, id, "finished");
    }
    // what a DBA writes into the row
    let id = enqueue_at(&mut client, "infinity");
    run(
        &mut client,
        &format!(
            "UPDATE pg_background_tasks SET joined_at = '-infinity', due_at = '-infinity', started_at = 'infinity' WHERE id = {id}; \
             SELECT pg_background_queue_ensure_workers()"
        ),
    );
    wait_state(&mut client, id, "finished");
    run(&mut client, "SELECT * FROM pg_background_queue_workers");
}

/// The counters of a row at their ends: no overflow, no crash, no endless retries.
#[test]
fn counters_at_their_limits() {
    let server = Server::builder()
        .conf("pg_background_queue.retry_count", "0")
        .start();
    let mut client = server.superuser();
    for (columns, state) in [
        ("attempt = 2147483647", "finished"),
        ("attempt = -2147483648", "finished"),
        (
            "retry_count = 2147483647, max_retries = 2147483647",
            "failed",
        ),
        (
            "retry_count = 2147483646, max_retries = 2147483647",
            "retrying",
        ),
        (
            "retry_count = -2147483648, max_retries = -2147483648",
            "failed",
        ),
        (
            "retry_count = 40, max_retries = 100, attempt = 2147483647",
            "retrying",
        ),
        ("interruptions = 2147483647", "finished"),
        ("interruptions = -1, retry_delay_in_sec = -1", "finished"),
        ("priority = 2147483647, timeout_ms = 2147483647", "finished"),
        ("priority = -2147483648, timeout_ms = 0", "finished"),
        ("timeout_ms = -1", "finished"),
    ] {
        let id: i64 = scalar(
            &mut client,
            "SELECT pg_background_queue_enqueue('SELECT 1', run_at => 'infinity')",
            &[],
        );
        if state != "finished" {
            run(
                &mut client,
                &format!(
                    "UPDATE pg_background_tasks SET sql_statement = 'SELECT 1/0' WHERE id = {id}"
                ),
            );
        }
        run(
            &mut client,
            &format!(
                "UPDATE pg_background_tasks SET {columns}, due_at = NULL WHERE id = {id}; SELECT pg_background_queue_ensure_workers()"
            ),
        );
        let task = wait_for(&format!("{columns} to be {state}"), PATIENCE, || {
            let task = task(&mut client, id);
            (task.state == state).then_some(task)
        });
        if state == "retrying" {
            assert!(task.retry_count > 40, "{task:?}");
            assert!(
                task.retry_delay_in_sec.is_some_and(|delay| delay > 0),
                "{task:?}"
            );
        }
    }
}

#[test]
fn ids_up_to_the_greatest() {
    let server = Server::start_default();
    let mut client = server.superuser();
    run(
        &mut client,
        "SELECT setval('pg_background_tasks_id_seq', 9223372036854775804)",
    );
    let ids: Vec<i64> = (0..3).map(|_| enqueue(&mut client, "SELECT 1")).collect();
    assert_eq!(ids, [i64::MAX - 2, i64::MAX - 1, i64::MAX]);
    for id in ids {
        wait_state(&mut client, id, "finished");
    }
    let error = client
        .query("SELECT pg_background_queue_enqueue('SELECT 1')", &[])
        .expect_err("there are no more");
    assert_eq!(error.code().map(|code| code.code()), Some("2200H"));
    let failed: i64 = scalar(
        &mut client,
        "SELECT setval('pg_background_tasks_id_seq', 9223372036854775000)",
        &[],
    );
    assert_eq!(failed, i64::MAX - 807);
    let id = enqueue(&mut client, "SELECT 1/0");
    wait_closed(&mut client, id);
    let again: bool = scalar(&mut client, "SELECT pg_background_queue_retry($1)", &[&id]);
    assert!(again);
    wait_for("the second attempt", PATIENCE, || {
        let task = task(&mut client, id);
        (task.attempt == 2 && task.is_closed()).then_some(())
    });
    let deleted: i64 = scalar(
        &mut client,
        "SELECT pg_background_queue_delete($1)",
        &[&vec![id, i64::MAX, i64::MIN]],
    );
    assert_eq!(deleted, 2);
    // below zero, and zero itself, as a sequence of a DBA's making may be
    run(
        &mut client,
        "ALTER SEQUENCE pg_background_tasks_id_seq MINVALUE -9223372036854775808 RESTART -2",
    );
    for id in [-2, -1, 0, 1] {
        assert_eq!(enqueue(&mut client, "SELECT 1"), id);
        wait_state(&mut client, id, "finished");
    }
}

/// 300 topics, or 100,000: each task in one of its own.
#[test]
fn as_many_topics_as_tasks() {
    let count = size(300, 100_000);
    let server = Server::start_default();
    let mut client = server.superuser();
    create_role(&mut client, "bob");
    let begin = Instant::now();
    run(
        &mut client,
        &format!(
            "SELECT pg_background_queue_enqueue('SELECT 1', 'topic ' || n) FROM generate_series(1, {count}) AS n"
        ),
    );
    // somebody else's task is not behind all of them
    let mut bob = server.connect("bob", "postgres");
    let id = enqueue(&mut bob, "SELECT 1");
    wait_state(&mut bob, id, "finished");
    eprintln!("another role's task: {:?}", begin.elapsed());
    wait_all_closed(&mut client, deadline());
    eprintln!("{count} topics: {:?}", begin.elapsed());
    let finished: i64 = scalar(
        &mut client,
        "SELECT sum(finished)::bigint FROM pg_background_queue_stats",
        &[],
    );
    assert_eq!(finished, count as i64 + 1);
}

/// 40 roles, or 1,000, with work at the same time.
#[test]
fn as_many_roles_as_tasks() {
    let count = size(40, 1000);
    let server = Server::start_default();
    let mut client = server.superuser();
    run(
        &mut client,
        &format!(
            "DO $$BEGIN FOR n IN 1..{count} LOOP \
                EXECUTE format('CREATE ROLE r%s LOGIN; GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO r%s', n, n); \
             END LOOP; END$$"
        ),
    );
    let begin = Instant::now();
    // a function of one statement for each role; SET ROLE inside a loop is one transaction of many roles
    run(
        &mut client,
        &format!(
            "DO $$BEGIN FOR n IN 1..{count} LOOP \
                EXECUTE format('SET LOCAL ROLE r%s', n); \
                PERFORM pg_background_queue_enqueue(format('SELECT 1/(current_user = %L)::int', 'r' || n)); \
                RESET ROLE; \
             END LOOP; END$$"
        ),
    );
    wait_all_closed(&mut client, deadline());
    eprintln!("{count} roles: {:?}", begin.elapsed());
    let finished: i64 = scalar(
        &mut client,
        "SELECT count(DISTINCT role_oid) FROM pg_background_tasks WHERE state = 'finished'",
        &[],
    );
    assert_eq!(finished, count as i64);
}

/// 4 databases, or 200.
#[test]
fn as_many_databases_as_tasks() {
    let count = size(4, 200);
    let server = Server::start_default();
    let mut client = server.superuser();
    run(&mut client, "CREATE DATABASE template_of_all");
    run(
        &mut server.connect("postgres", "template_of_all"),
        "CREATE EXTENSION pg_background_queue",
    );
    for n in 1..=count {
        wait_for("the template to be free", PATIENCE, || {
            client
                .batch_execute(&format!("CREATE DATABASE d{n} TEMPLATE template_of_all"))
                .ok()
        });
    }
    let begin = Instant::now();
    for n in 1..=count {
        let mut there = server.connect("postgres", &format!("d{n}"));
        enqueue(&mut there, "SELECT 1");
    }
    for n in 1..=count {
        let mut there = server.connect("postgres", &format!("d{n}"));
        wait_all_closed(&mut there, deadline());
    }
    eprintln!("{count} databases: {:?}", begin.elapsed());
}

/// 20,000 open tasks that cannot run yet, or a million: what can, does, and at once.
#[test]
fn many_open_tasks_that_are_not_due() {
    let count = size(20_000, 1_000_000);
    let server = Server::start_default();
    let mut client = server.superuser();
    create_role(&mut client, "bob");
    run(
        &mut client,
        &format!(
            "SELECT count(pg_background_queue_enqueue('SELECT 1', 'x', run_at => '2100-01-01')) FROM generate_series(1, {count})"
        ),
    );
    let mut bob = server.connect("bob", "postgres");
    let mut slowest = Duration::ZERO;
    for n in 0..10 {
        let session = if n % 2 == 0 { &mut bob } else { &mut client };
        let begin = Instant::now();
        let id = enqueue(session, "SELECT 1");
        wait_state(session, id, "finished");
        slowest = slowest.max(begin.elapsed());
    }
    eprintln!("{count} open tasks: the slowest of 10 took {slowest:?}");
    assert_eq!(open_tasks(&mut client), count as i64);
}

/// How long `what` takes, told.
fn timed<T>(what: &str, f: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let result = f();
    let took = begin.elapsed();
    eprintln!("{what}: {took:?}");
    (result, took)
}

/// 50,000 finished tasks and 5,000 open ones, or ten million and one: enqueueing, claiming, watching and starting.
#[test]
fn many_finished_tasks_and_many_open_ones() {
    let (finished, open) = (size(50_000, 10_000_000), size(5_000, 1_000_000));
    // what a person, or a client's time limit, still waits for
    let soon = Duration::from_secs(2);
    const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";
    let mut server = Server::builder()
        .conf(LIMIT, "0")
        .conf("maintenance_work_mem", "512MB")
        .conf("max_wal_size", "8GB")
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "bob");
    timed(&format!("{finished} finished tasks are written"), || {
        run(
            &mut client,
            &format!(
                "INSERT INTO pg_background_tasks (sql_statement, topic, state, started_at, closed_at, attempt, role_oid, role_name, origin, search_path) \
                 SELECT 'SELECT ' || n, CASE WHEN n % 3 = 0 THEN 'topic ' || n % 10 END, \
                 CASE WHEN n % 1000 = 0 THEN 'failed' ELSE 'finished' END::pg_background_queue_task_state, \
                 now(), now() + n * interval '1 ms', 1, 10, 'postgres', pg_background_queue_origin(), '\"$user\", public' \
                 FROM generate_series(1, {finished}) AS n"
            ),
        );
    });
    timed(&format!("{open} tasks are enqueued"), || {
        run(
            &mut client,
            &format!(
                "SELECT count(pg_background_queue_enqueue('SELECT 1')) FROM generate_series(1, {open})"
            ),
        );
    });
    timed("VACUUM ANALYZE", || {
        run(&mut client, "VACUUM ANALYZE pg_background_tasks");
    });
    let enqueue_some = |client: &mut Client| {
        let (_, took) = timed("100 tasks are enqueued, one after the other", || {
            for _ in 0..100 {
                enqueue(client, "SELECT 1");
            }
        });
        assert!(took < 10 * soon, "{took:?}");
    };
    enqueue_some(&mut client);

    for (query, is_quick) in [
        (
            "SELECT id, state, sql_statement, joined_at, started_at, closed_at, errors FROM pg_background_tasks ORDER BY id DESC LIMIT 10",
            true,
        ),
        (
            "SELECT id, sql_statement, errors, closed_at FROM pg_background_tasks WHERE state = 'failed' ORDER BY closed_at DESC LIMIT 10",
            true,
        ),
        (
            "SELECT count(*) FROM pg_background_tasks WHERE state = 'running'",
            true,
        ),
        (
            "SELECT count(*) FROM pg_background_tasks WHERE state = 'retrying'",
            true,
        ),
        (
            "SELECT count(*) FROM pg_background_tasks WHERE state = 'pending'",
            false,
        ),
        (
            "SELECT min(joined_at) FROM pg_background_tasks WHERE state = 'pending' AND NOT held AND coalesce(due_at <= now(), true)",
            false,
        ),
        ("SELECT * FROM pg_background_queue_workers", true),
        ("SELECT * FROM pg_background_queue_stats", false),
        (
            "SELECT state, count(*) FROM pg_background_tasks GROUP BY state",
            false,
        ),
    ] {
        let mut worst = Duration::ZERO;
        for _ in 0..2 {
            worst = timed(query, || run(&mut client, query)).1;
        }
        assert!(!is_quick || worst < soon, "{query}: {worst:?}");
    }

    // a start: a keeper goes over what is open, and then its tasks run
    let next: i64 = scalar(
        &mut client,
        "SELECT min(id) FROM pg_background_tasks WHERE state = 'pending'",
        &[],
    );
    drop(client);
    server.set_conf(LIMIT, "2");
    let mut client = timed("the server is restarted", || {
        server.restart();
        server.superuser()
    })
    .0;
    let first = wait_for("the first task after the start", PATIENCE, || {
        task(&mut client, next).started_at
    });
    let started: std::time::SystemTime =
        scalar(&mut client, "SELECT pg_postmaster_start_time()", &[]);
    let took = first.duration_since(started).expect("after the start");
    eprintln!("from the start to the first task: {took:?}");
    assert!(took < PATIENCE / 2, "{took:?}");

    // while they run, in the order of their numbers
    let mut bob = server.connect("bob", "postgres");
    let some = open.min(100_000) as i64 - 1;
    let begin = Instant::now();
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let begin = Instant::now();
        let id = enqueue(&mut bob, "SELECT 1");
        wait_state(&mut bob, id, "finished");
        slowest = slowest.max(begin.elapsed());
    }
    eprintln!("the slowest of 10 tasks of another role meanwhile: {slowest:?}");
    assert!(slowest < PATIENCE / 2, "{slowest:?}");
    enqueue_some(&mut client);
    // by its number, for counting what is open would take as long as running it
    wait_for("the open tasks to run", deadline(), || {
        task(&mut client, next + some).is_closed().then_some(())
    });
    eprintln!("{} tasks: {:?}", some + 1, begin.elapsed());
}
