//! How tasks are committed: whether that waits for the disk, and several at once.

use crate::harness::{
    PATIENCE, Server, enqueue_topic, run, scalar, states, wait_all_closed, wait_state, wait_until,
};

const TOPICS: &str = "pg_background_queue.topic_config";
const DURABILITY: &str = "pg_background_queue.durability";

/// What a task of this topic finds `synchronous_commit` to be.
fn commit_of(client: &mut postgres::Client, topic: &str) -> String {
    let id = enqueue_topic(
        client,
        "INSERT INTO seen SELECT current_setting('synchronous_commit')",
        topic,
    );
    wait_state(client, id, "finished");
    scalar(
        client,
        "WITH gone AS (DELETE FROM seen RETURNING what) SELECT what FROM gone",
        &[],
    )
}

#[test]
fn durability_is_set_for_all_and_for_topics_and_by_the_task() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "1")
        .conf(
            TOPICS,
            r#"{"fast": {"durability": "relaxed"}, "safe": {"durability": "strict"}}"#,
        )
        .start();
    let mut client = server.superuser();
    run(&mut client, "CREATE TABLE seen (what text)");
    // one worker serves all of them: nothing of one is left to the next
    for _ in 0..2 {
        for (topic, commit) in [("fast", "off"), ("safe", "on"), ("other", "on")] {
            assert_eq!(commit_of(&mut client, topic), commit, "{topic}");
        }
    }
    server.set_and_reload(DURABILITY, "relaxed");
    for (topic, commit) in [("fast", "off"), ("safe", "on"), ("other", "off")] {
        assert_eq!(commit_of(&mut client, topic), commit, "{topic}");
    }
    server.set_and_reload(TOPICS, "{}");
    assert_eq!(commit_of(&mut client, "safe"), "off");
    let id = enqueue_topic(
        &mut client,
        "SET synchronous_commit = on; INSERT INTO seen SELECT current_setting('synchronous_commit')",
        "fast",
    );
    wait_state(&mut client, id, "finished");
    assert_eq!(
        scalar::<String>(&mut client, "SELECT string_agg(what, ' ') FROM seen", &[]),
        "on"
    );
    let values: String = scalar(
        &mut client,
        "SELECT enumvals::text || ' ' || context FROM pg_settings WHERE name = 'pg_background_queue.durability'",
        &[],
    );
    assert_eq!(values, "{strict,relaxed} sighup");
}

#[test]
fn with_synchronous_commit_off_a_crash_takes_task_and_effect_together() {
    a_crash_takes_task_and_effect_together("synchronous_commit", "off");
}

#[test]
fn with_relaxed_durability_a_crash_takes_task_and_effect_together() {
    a_crash_takes_task_and_effect_together("pg_background_queue.durability", "relaxed");
}

fn a_crash_takes_task_and_effect_together(setting: &str, value: &str) {
    let mut server = Server::builder()
        .conf("max_worker_processes", "16")
        .conf("pg_background_queue.max_parallel_running_tasks_count", "3")
        .conf(setting, value)
        .conf("wal_writer_delay", "10s")
        .expect_crash()
        .start();
    let mut client = server.superuser();
    run(&mut client, "CREATE TABLE effects (n int)");
    for round in 0..3 {
        // This session's tasks are on disk when they are there; what becomes of them is not.
        run(&mut client, "SET synchronous_commit = on");
        run(
            &mut client,
            &format!(
                "SELECT count(pg_background_queue_enqueue('INSERT INTO effects VALUES (' || n || '); SELECT pg_sleep(0.002)', \
                 'round {round}')) FROM generate_series({round} * 1000 + 1, {round} * 1000 + 1000) AS n"
            ),
        );
        wait_until("a part of them to be finished", || {
            let finished: i64 = scalar(
                &mut client,
                "SELECT count(*) FROM pg_background_tasks WHERE state = 'finished' AND topic = $1",
                &[&format!("round {round}")],
            );
            finished > 100
        });
        drop(client);
        server.kill9_all();
        server.start();
        client = server.superuser();
    }
    wait_all_closed(&mut client, 2 * PATIENCE);
    assert_eq!(states(&mut client), "finished: 3000");
    let wrong: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks \
         FULL JOIN (SELECT n, count(*) AS times FROM effects GROUP BY n) AS counts \
         ON n = substring(sql_statement FROM 'VALUES .([0-9]+)')::int WHERE times IS DISTINCT FROM 1 OR id IS NULL",
        &[],
    );
    assert_eq!(wrong, 0, "effects that are not there exactly once");
    // The limit holds after a crash as before it.
    let most: i64 = scalar(
        &mut client,
        "SELECT max(n) FROM (SELECT count(*) AS n FROM pg_background_tasks AS a \
         JOIN pg_background_tasks AS b ON b.started_at <= a.started_at AND a.started_at < b.closed_at \
         GROUP BY a.id) AS others",
        &[],
    );
    assert!(most <= 3, "{most} tasks at once");
}
