//! Tasks of topics with a limit or a delay stand apart, each topic's in a lane of its own; all others are one sequence, however many topics
//! they have. A task that is in the wrong place is moved.

use std::time::Duration;

use postgres::Client;

use crate::harness::{
    PATIENCE, Server, enqueue, enqueue_topic, index_reads, old_snapshot, run, scalar, task,
    wait_all_closed, wait_closed, wait_state, wait_until,
};

const CONFIG: &str = "pg_background_queue.topic_config";
const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";
const IDLE_TIMEOUT: &str = "pg_background_queue.worker_idle_timeout";

/// A server whose queue is stopped.
fn stopped_server() -> Server {
    let server = Server::builder()
        .conf(LIMIT, "0")
        .conf("max_worker_processes", "16")
        .conf(IDLE_TIMEOUT, "10min")
        // what is counted here is not to be vacuumed away
        .conf("autovacuum", "off")
        .start();
    run(
        &mut server.superuser(),
        "CREATE TABLE runs (place bigserial, what text)",
    );
    server
}

/// What has run, in order, as `a b c`.
fn order(client: &mut Client) -> String {
    scalar(
        client,
        "SELECT coalesce(string_agg(what, ' ' ORDER BY place), '') FROM runs",
        &[],
    )
}

fn count(client: &mut Client, condition: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM pg_background_tasks WHERE {condition}");
    scalar(client, &sql, &[])
}

/// Holds the gate that `SELECT pg_advisory_xact_lock_shared(1)` waits for.
fn shut_gate(server: &Server) -> Client {
    let mut gate = server.superuser();
    run(&mut gate, "SELECT pg_advisory_lock(1)");
    gate
}

const GATE: &str = "SELECT pg_advisory_xact_lock_shared(1)";

/// Scans and entries read of the queue's indexes while so many tasks run that `enqueue` brings.
fn reads(server: &Server, enqueue: &str, tasks: i64) -> (i64, i64) {
    let mut client = server.superuser();
    server.set_and_reload(LIMIT, "0");
    run(&mut client, enqueue);
    assert_eq!(count(&mut client, "state = 'pending'"), tasks);
    let before = index_reads(&mut client, 0);
    server.set_and_reload(LIMIT, "1");
    wait_all_closed(&mut client, PATIENCE);
    let after = index_reads(&mut client, before.0 + 1);
    (after.0 - before.0, after.1 - before.1)
}

/// An old snapshot keeps the index entries of those that have run.
#[test]
fn each_task_of_a_flood_in_one_topic_is_read_a_few_times() {
    let server = stopped_server();
    let _old = old_snapshot(&server);
    let flood = "SELECT count(pg_background_queue_enqueue('SELECT 1', 'flood')) FROM generate_series(1, 6000)";
    let (scans, entries) = reads(&server, flood, 6000);
    eprintln!("{scans} scans, {entries} entries for 6,000 tasks");
    assert!(entries < 4 * 6000, "{entries} entries for 6,000 tasks");
}

/// They come one by one, and several workers wait for them: one looks for all.
#[test]
fn each_task_of_a_trickle_is_read_a_few_times() {
    let server = stopped_server();
    let mut client = server.superuser();
    let _old = old_snapshot(&server);
    server.set_and_reload(LIMIT, "4");
    let before = index_reads(&mut client, 0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut session = server.superuser();
                for _ in 0..1000 {
                    enqueue(&mut session, "SELECT 1");
                }
            });
        }
    });
    wait_all_closed(&mut client, PATIENCE);
    let entries = index_reads(&mut client, before.0 + 1).1 - before.1;
    assert!(entries < 10 * 3000, "{entries} entries for 3,000 tasks");
    let slowest: f64 = scalar(
        &mut client,
        "SELECT max(extract(epoch FROM started_at - joined_at))::float8 FROM pg_background_tasks",
        &[],
    );
    assert!(slowest < 3.0, "one has waited for {slowest} s");
}

#[test]
fn a_thousand_topics_cost_no_more_than_one() {
    let server = stopped_server();
    let bring = |topics: i32| {
        format!(
            "SELECT count(pg_background_queue_enqueue('SELECT 1', 'topic ' || n % {topics})) FROM generate_series(1, 3000) AS n"
        )
    };
    let one = reads(&server, &bring(1), 3000);
    let many = reads(&server, &bring(1000), 3000);
    eprintln!("scans and entries for 3,000 tasks: {one:?} of 1 topic, {many:?} of 1,000");
    assert!(many.0 < one.0 + 100, "{one:?} {many:?}");
    assert!(many.1 < one.1 + 3000, "{one:?} {many:?}");
}

/// Tasks of it that were enqueued before it had one are moved, and nobody waits for that.
#[test]
fn a_topic_that_gets_a_limit_is_in_nobodys_way() {
    let server = stopped_server();
    let mut client = server.superuser();
    let mut gate = shut_gate(&server);
    run(
        &mut client,
        &format!(
            "SELECT count(pg_background_queue_enqueue('{GATE}; INSERT INTO runs (what) VALUES (''' || n || ''')', 'slow')) \
             FROM generate_series(1, 2000) AS n"
        ),
    );
    let last = enqueue(&mut client, "SELECT 1");
    assert_eq!(count(&mut client, "lane IS NOT NULL"), 0);
    server.set_and_reload(
        CONFIG,
        r#"{"slow": {"max_parallel_running_tasks_count": 1}}"#,
    );
    server.set_and_reload(LIMIT, "2");
    wait_state(&mut client, last, "finished");
    for _ in 0..10 {
        let id = enqueue(&mut client, "SELECT 1");
        wait_state(&mut client, id, "finished");
    }
    assert_eq!(count(&mut client, "state = 'running'"), 1);
    assert_eq!(count(&mut client, "lane = ':slow'"), 2000);

    // later ones come after them, and all in order
    let later = enqueue_topic(
        &mut client,
        "INSERT INTO runs (what) VALUES ('2001')",
        "slow",
    );
    assert_eq!(count(&mut client, "lane = ':slow'"), 2001);
    run(&mut gate, "SELECT pg_advisory_unlock(1)");
    wait_all_closed(&mut client, PATIENCE * 2);
    assert_eq!(task(&mut client, later).state, "finished");
    let in_order: bool = scalar(
        &mut client,
        "SELECT array_agg(what::int ORDER BY place) = array_agg(what::int ORDER BY what::int) AND count(*) = 2001 FROM runs",
        &[],
    );
    assert!(in_order);
}

#[test]
fn a_topic_that_loses_its_limit_runs_on_among_all_others() {
    let server = stopped_server();
    let mut client = server.superuser();
    let limited = r#"{"a": {"max_parallel_running_tasks_count": 1}, "b": {"max_parallel_running_tasks_count": 2}}"#;
    server.set_and_reload(CONFIG, limited);
    // another session, so that it has read that
    let mut client2 = server.superuser();
    for (what, topic, priority) in [
        ("8", "a", 300),
        ("1", "a", 100),
        ("2", "c", 100),
        ("3", "b", 100),
        ("4", "a", 100),
        ("5", "c", 100),
        ("6", "b", 200),
        ("7", "c", 200),
        ("0", "b", 50),
    ] {
        let sql = format!(
            "SELECT pg_background_queue_enqueue('INSERT INTO runs (what) VALUES (''{what}'')', '{topic}', {priority})"
        );
        run(&mut client2, &sql);
    }
    assert_eq!(count(&mut client, "lane IS NULL"), 3);
    server.set_and_reload(CONFIG, "");
    server.set_and_reload(LIMIT, "1");
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(order(&mut client), "0 1 2 3 4 5 6 7 8");
}

/// Without a topic, too: a delay for all tasks has those stand apart.
#[test]
fn tasks_without_a_topic_wait_for_each_other_and_for_nobody_else() {
    let server = stopped_server();
    let mut client = server.superuser();
    server.set_and_reload(CONFIG, r#"{"fast": {"delay_in_sec": 0}}"#);
    server.set_and_reload("pg_background_queue.delay_in_sec", "1h");
    let mut client2 = server.superuser();
    let none = enqueue(&mut client2, "SELECT 1");
    let named = enqueue_topic(&mut client2, "SELECT 1", "");
    let fast = enqueue_topic(&mut client2, "SELECT 1", "fast");
    assert_eq!(count(&mut client, "lane = '' AND topic IS NULL"), 1);
    assert_eq!(count(&mut client, "lane = ':' AND topic = ''"), 1);
    assert_eq!(count(&mut client, "lane IS NULL"), 1);
    server.set_and_reload(LIMIT, "2");
    wait_state(&mut client, fast, "finished");
    assert_eq!(task(&mut client, none).state, "pending");
    assert_eq!(task(&mut client, named).state, "pending");
    server.set_and_reload("pg_background_queue.delay_in_sec", "0");
    wait_all_closed(&mut client, PATIENCE);
}

/// What a DBA writes into the table counts; without a lane always, in another topic's as soon as that one's tasks may start.
#[test]
fn a_task_that_is_given_another_topic_waits_as_that_says() {
    let server = stopped_server();
    let mut client = server.superuser();
    let config = r#"{"one": {"max_parallel_running_tasks_count": 1}, "none": {"max_parallel_running_tasks_count": 0}}"#;
    server.set_and_reload(CONFIG, config);
    let mut client2 = server.superuser();
    let freed = enqueue_topic(&mut client2, "SELECT 1", "none");
    let moved = enqueue_topic(&mut client2, "SELECT 1", "none");
    let stopped = enqueue_topic(&mut client2, "SELECT 1", "one");
    let caught = enqueue(&mut client2, "SELECT 1");
    run(
        &mut client,
        &format!(
            "UPDATE pg_background_tasks SET topic = NULL, lane = NULL WHERE id = {freed}; \
             UPDATE pg_background_tasks SET topic = 'one', lane = NULL WHERE id = {moved}; \
             UPDATE pg_background_tasks SET topic = 'none' WHERE id IN ({stopped}, {caught})"
        ),
    );
    server.set_and_reload(LIMIT, "2");
    wait_closed(&mut client, freed);
    wait_closed(&mut client, moved);
    let last = enqueue(&mut client, "SELECT 1");
    wait_closed(&mut client, last);
    wait_until("all to be where they belong", || {
        count(&mut client, "lane = ':none' AND state = 'pending'") == 2
    });
    assert_eq!(task(&mut client, stopped).state, "pending");
    assert_eq!(task(&mut client, caught).state, "pending");
    assert_eq!(count(&mut client, "lane = ':one'"), 1);
}

#[test]
fn a_task_that_is_to_be_moved_and_is_held_by_somebody_is_in_nobodys_way() {
    let server = stopped_server();
    let mut client = server.superuser();
    run(
        &mut client,
        "SELECT count(pg_background_queue_enqueue('SELECT 1', 'slow')) FROM generate_series(1, 1500)",
    );
    let last = enqueue(&mut client, "SELECT 1");
    let mut holder = server.superuser();
    run(
        &mut holder,
        "BEGIN; SELECT count(*) FROM (SELECT FROM pg_background_tasks WHERE topic = 'slow' FOR UPDATE) AS held",
    );
    server.set_and_reload(
        CONFIG,
        r#"{"slow": {"max_parallel_running_tasks_count": 1}}"#,
    );
    server.set_and_reload(LIMIT, "2");
    wait_state(&mut client, last, "finished");
    assert_eq!(count(&mut client, "state = 'pending'"), 1500);
    run(&mut holder, "COMMIT");
    wait_all_closed(&mut client, PATIENCE.max(Duration::from_secs(60)));
    assert_eq!(count(&mut client, "state = 'finished'"), 1501);
}
