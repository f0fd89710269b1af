//! What tasks of a batch must not do to each other, and what a batch must not do to others.

use postgres::Client;

use crate::harness::{
    PATIENCE, Server, create_role, ends, enqueue, enqueue_all, enqueue_topic, enqueue_with, run,
    scalar, task, wait_all_closed, wait_closed, wait_for, wait_state, wait_until, workers,
};

/// A server with one worker at a time, topic `b` with batches, and a worker that has made some already.
fn start(more: &str) -> (Server, Client) {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "1")
        .conf("pg_background_queue.worker_idle_timeout", "10min")
        .conf(
            "pg_background_queue.topic_config",
            &format!(r#"{{"b": {{"commit_batch": 60}}{more}}}"#),
        )
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE log (n int GENERATED ALWAYS AS IDENTITY, what text, xid xid8 DEFAULT pg_current_xact_id()); \
         GRANT ALL ON log TO PUBLIC",
    );
    warm_up(&mut client, "b");
    (server, client)
}

/// Many that are good for batches, so that the next one is a large one.
fn warm_up(client: &mut Client, topic: &str) {
    together(client, topic, &["SELECT 1"; 30]);
}

fn log(what: &str) -> String {
    format!("INSERT INTO log (what) VALUES ('{what}')")
}

/// Enqueues all of them in one transaction and waits for their ends; returns their states.
fn together(client: &mut Client, topic: &str, texts: &[&str]) -> Vec<String> {
    let ids = enqueue_all(client, topic, texts);
    ends(client, &ids)
}

fn logged(client: &mut Client) -> String {
    scalar(
        client,
        "SELECT coalesce(string_agg(what, ' ' ORDER BY n), '') FROM log",
        &[],
    )
}

/// How many transactions those had that are in the log.
fn transactions(client: &mut Client) -> i64 {
    scalar(client, "SELECT count(DISTINCT xid) FROM log", &[])
}

#[test]
fn large_objects_that_a_task_has_open_are_closed_before_the_next() {
    let (_server, mut client) = start("");
    run(
        &mut client,
        "SELECT lo_create(80001), lo_create(80002), lo_create(80003)",
    );
    let states = together(
        &mut client,
        "b",
        &[
            &log("A"),
            "SELECT lo_open(80001, 131072)",
            "SELECT lo_open(80002, 131072); SELECT lowrite(0, 'B')",
            "SELECT lo_open(80003, 262144)",
            &log("D"),
        ],
    );
    assert_eq!(states, ["finished"; 5]);
    assert_eq!(transactions(&mut client), 1);
    let contents: String = scalar(
        &mut client,
        "SELECT convert_from(lo_get(80001), 'UTF8') || ',' || convert_from(lo_get(80002), 'UTF8')",
        &[],
    );
    assert_eq!(contents, ",B");
}

/// Nobody has cancelled it: it runs alone, to its end.
#[test]
fn a_task_that_catches_the_end_of_the_batchs_time_has_not_been_cancelled() {
    let (_server, mut client) = start("");
    let slow = "DO $$ BEGIN PERFORM pg_sleep(0.3); INSERT INTO log (what) VALUES ('slept'); \
                EXCEPTION WHEN query_canceled THEN \
                  INSERT INTO log (what) VALUES ('cancelled'); PERFORM pg_sleep(3); \
                END $$";
    let states = together(&mut client, "b", &[&log("A"), slow, &log("C")]);
    assert_eq!(states, ["finished"; 3]);
    assert_eq!(logged(&mut client), "A slept C");
    let held: f64 = scalar(
        &mut client,
        "SELECT extract(epoch FROM max(closed_at) - min(started_at))::float8 FROM pg_background_tasks \
         WHERE sql_statement LIKE '%slept%'",
        &[],
    );
    assert!(held < 3.0, "it has sat out its handler: {held}");
}

/// Alone, too: a handler does not sit out the timeout.
#[test]
fn a_task_that_catches_its_timeout_is_cancelled_again() {
    let (_server, mut client) = start("");
    let stubborn = "DO $$ BEGIN PERFORM pg_sleep(600); \
                    EXCEPTION WHEN query_canceled THEN PERFORM pg_sleep(600); END $$";
    let id = enqueue_with(&mut client, stubborn, "timeout => '200 ms'");
    let done = wait_closed(&mut client, id);
    assert_eq!(done.state, "failed");
    assert!(done.errors().contains("57014"), "{}", done.errors());
}

#[test]
fn a_cursor_that_runs_at_the_commit_is_not_in_a_batch() {
    let (_server, mut client) = start("");
    let mut transaction = client.transaction().expect("a transaction");
    let first = enqueue_topic(&mut transaction, &log("A"), "b");
    let cursor = enqueue_with(
        &mut transaction,
        "DECLARE c CURSOR WITH HOLD FOR SELECT pg_sleep(600)",
        "'b', timeout => '300 ms'",
    );
    transaction.commit().expect("a commit");
    assert_eq!(wait_closed(&mut client, first).state, "finished");
    let done = wait_closed(&mut client, cursor);
    assert_eq!(done.state, "failed");
    assert!(done.errors().contains("57014"), "{}", done.errors());
}

/// After each task that ends its batch others have their turn: a better priority, another role, whoever may no longer log in.
#[test]
fn what_is_left_of_a_batch_goes_before_nobody() {
    let (server, mut client) = start("");
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    let text = format!("SET work_mem = '1MB'; {}; SELECT pg_sleep(0.05)", log("w"));
    let many: Vec<&str> = vec![&text; 40];
    enqueue_all(&mut client, "b", &many);
    wait_until("some to have run", || {
        logged(&mut client).matches('w').count() >= 3
    });
    let urgent = enqueue_with(&mut client, &log("urgent"), "priority => 1");
    wait_closed(&mut client, urgent);
    let place = logged(&mut client)
        .split(' ')
        .position(|what| what == "urgent")
        .expect("it has run");
    assert!(place < 20, "behind {place}");
    let other = enqueue(&mut alice, &log("other"));
    wait_closed(&mut client, other);
    let after = logged(&mut client);
    assert!(after.split(' ').count() < 40, "{after}");
    wait_all_closed(&mut client, PATIENCE);
}

#[test]
fn settings_of_the_role_that_change_during_a_batch_count_for_its_next_task() {
    let (_server, mut client) = start("");
    run(&mut client, "SELECT pg_advisory_lock(1)");
    let ids = enqueue_all(
        &mut client,
        "b",
        &[
            "SELECT pg_sleep(0.04)",
            "SELECT pg_sleep(0.04)",
            "INSERT INTO log (what) SELECT current_setting('work_mem')",
        ],
    );
    wait_state(&mut client, ids[0], "running");
    run(&mut client, "ALTER ROLE postgres SET work_mem = '7MB'");
    wait_all_closed(&mut client, PATIENCE);
    // that it was set before the last one began is what counts
    assert_eq!(logged(&mut client), "7MB");
}

/// Whichever task of them wants the most: so long the commit waits.
#[test]
fn a_task_that_does_not_wait_for_the_disk_does_not_keep_others_from_it() {
    for (topic, texts) in [
        ("b", ["A", "SET synchronous_commit = off; B"]),
        (
            "r",
            [
                "A",
                "SELECT set_config('synchronous_commit', 'on', false); B",
            ],
        ),
        (
            "r",
            [
                "SELECT set_config('synchronous_commit', 'on', true); A",
                "B",
            ],
        ),
    ] {
        let mut server = Server::builder()
            .conf("pg_background_queue.max_parallel_running_tasks_count", "1")
            .conf("wal_writer_delay", "10s")
            .conf(
                "pg_background_queue.topic_config",
                r#"{"b": {"commit_batch": 60}, "r": {"commit_batch": 60, "durability": "relaxed"}}"#,
            )
            .expect_crash()
            .start();
        let mut client = server.superuser();
        run(
            &mut client,
            "CREATE TABLE log (n int GENERATED ALWAYS AS IDENTITY, what text, xid xid8 DEFAULT pg_current_xact_id())",
        );
        warm_up(&mut client, topic);
        let texts: Vec<String> = texts
            .iter()
            .map(|text| text.replace('A', &log("A")).replace('B', &log("B")))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(together(&mut client, topic, &texts), ["finished"; 2]);
        assert_eq!(transactions(&mut client), 1, "{texts:?}");
        let before: String = scalar(&mut client, "SELECT min(xid::text) FROM log", &[]);
        drop(client);
        server.kill9_all();
        server.start();
        let mut client = server.superuser();
        wait_all_closed(&mut client, PATIENCE);
        let after: String = scalar(&mut client, "SELECT min(xid::text) FROM log", &[]);
        assert_eq!(before, after, "they had to run again: {texts:?}");
    }
}

/// Each is tried in a batch now and then, not each time.
#[test]
fn tasks_that_take_long_are_seldom_begun_twice() {
    let (_server, mut client) = start("");
    run(&mut client, "CREATE SEQUENCE tries");
    let texts = ["SELECT nextval('tries'); SELECT pg_sleep(0.12)"; 30];
    assert_eq!(together(&mut client, "b", &texts), ["finished"; 30]);
    let tries: i64 = scalar(&mut client, "SELECT last_value FROM tries", &[]);
    assert!(tries <= 40, "{tries} for 30 tasks");
}

/// Tasks that end their batch: what is put back is not claimed over and over.
#[test]
fn tasks_that_end_their_batches_are_seldom_claimed_in_vain() {
    let (_server, mut client) = start("");
    let texts = ["SELECT pg_reload_conf(); SET work_mem = '1MB'"; 60];
    assert_eq!(together(&mut client, "b", &texts), ["finished"; 60]);
    let attempts: i64 = scalar(
        &mut client,
        "SELECT sum(attempt) FROM pg_background_tasks WHERE sql_statement LIKE '%reload%'",
        &[],
    );
    assert!(attempts < 150, "{attempts} attempts for 60 tasks");
}

#[test]
fn who_holds_the_row_of_a_task_does_not_hold_its_batch() {
    let (server, mut client) = start("");
    run(
        &mut client,
        "CREATE TABLE acct (id int PRIMARY KEY, n int); INSERT INTO acct VALUES (1, 0)",
    );
    let mut holder = server.superuser();
    let ids = enqueue_all(
        &mut client,
        "b",
        &[
            "UPDATE acct SET n = n + 1; SELECT pg_sleep(0.05)",
            "SELECT 1",
            "SELECT 1",
        ],
    );
    wait_state(&mut holder, ids[1], "running");
    run(
        &mut holder,
        &format!(
            "BEGIN; SELECT FROM pg_background_tasks WHERE id = {} FOR UPDATE",
            ids[1]
        ),
    );
    // nobody waits for the holder but that one task
    wait_state(&mut client, ids[0], "finished");
    run(
        &mut client,
        "SET lock_timeout = '20s'; UPDATE acct SET n = n + 1; RESET lock_timeout",
    );
    run(&mut holder, "COMMIT");
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(scalar::<i32>(&mut client, "SELECT n FROM acct", &[]), 2);
}

#[test]
fn a_task_of_a_batch_that_is_cancelled_by_its_process_has_failed() {
    let (server, mut client) = start("");
    let mut other = server.superuser();
    let texts = [
        log("A"),
        format!(
            "SELECT pg_notify('here', ''); {}; SELECT pg_sleep(0.09)",
            log("B")
        ),
        log("C"),
    ];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    // it may be too late for the second one: then once more
    wait_for("one that was cancelled", PATIENCE, || {
        run(&mut client, "TRUNCATE log");
        let ids = enqueue_all(&mut client, "b", &texts);
        wait_until("it to sleep", || {
            scalar::<i64>(
                &mut other,
                "SELECT count(*) FROM (SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep') AS told",
                &[],
            ) > 0
        });
        wait_all_closed(&mut other, PATIENCE);
        (task(&mut client, ids[1]).state == "failed").then_some(())
    });
    assert_eq!(logged(&mut client), "A C");
}

/// The time of the transaction is the same for all: a key made of that is none of a task's faults.
#[test]
fn keys_made_of_the_transactions_time_make_no_failures() {
    let (_server, mut client) = start("");
    run(
        &mut client,
        "CREATE TABLE ev (at timestamptz PRIMARY KEY DEFAULT now())",
    );
    let states = together(&mut client, "b", &["INSERT INTO ev DEFAULT VALUES"; 5]);
    assert_eq!(states, ["finished"; 5]);
    // one that is at fault fails
    let states = together(
        &mut client,
        "b",
        &[
            "SELECT 1",
            "INSERT INTO ev SELECT at FROM ev LIMIT 1",
            "SELECT 1",
        ],
    );
    assert_eq!(states, ["finished", "failed", "finished"]);
}

/// Cancels that come while the statistics of a text are logged.
#[test]
fn a_text_that_is_done_is_not_taken_for_one_that_failed() {
    let (server, mut client) = start("");
    run(
        &mut client,
        "ALTER ROLE postgres SET log_statement_stats = on; CREATE SEQUENCE tries",
    );
    warm_up(&mut client, "b");
    run(
        &mut client,
        "SELECT count(pg_background_queue_enqueue('SELECT nextval(''tries'')', 'b')) FROM generate_series(1, 1500)",
    );
    let mut other = server.superuser();
    while scalar::<bool>(
        &mut client,
        "SELECT EXISTS (SELECT FROM pg_background_tasks WHERE closed_at IS NULL)",
        &[],
    ) {
        for worker in workers(&mut other) {
            run(
                &mut other,
                &format!("SELECT pg_cancel_backend({})", worker.pid),
            );
        }
    }
    let doubled = server.log().contains("is no longer attempt");
    assert!(!doubled, "a text that was done was run again");
}

/// It is settled for a transaction where temporary files go; and what a text has set is taken back between two.
#[test]
fn where_temporary_tables_go_is_not_left_to_the_next_task() {
    let (server, mut client) = start("");
    let place = server.data_dir().join("temporary");
    let place = place.to_str().expect("a path in UTF-8");
    run(
        &mut client,
        &format!("COPY (SELECT 1) TO PROGRAM 'mkdir {place}'"),
    );
    run(
        &mut client,
        &format!("CREATE TABLESPACE temporary LOCATION '{place}'"),
    );
    server.set_and_reload("temp_tablespaces", "temporary");
    let look = "CREATE TEMPORARY TABLE t (); \
                INSERT INTO log (what) SELECT coalesce(spcname, 'default') \
                FROM pg_class AS c LEFT JOIN pg_tablespace AS s ON s.oid = c.reltablespace WHERE c.relname = 't'";
    let change = "SELECT set_config('temp_tablespaces', '', false)";
    for topic in ["alone", "b"] {
        run(&mut client, "TRUNCATE log");
        let states = together(
            &mut client,
            topic,
            &[look, change, look, change, look, look],
        );
        assert_eq!(states.join(" "), ["finished"; 6].join(" "), "{topic}");
        assert_eq!(logged(&mut client), ["temporary"; 4].join(" "), "{topic}");
    }
}

/// They are seen by who looks while the worker that lets go of them still has them in its slot.
#[test]
fn what_is_put_back_is_not_left_lying_beside_an_idle_worker() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "2")
        .conf("pg_background_queue.worker_idle_timeout", "10min")
        .conf(
            "pg_background_queue.topic_config",
            r#"{"b": {"commit_batch": 20}}"#,
        )
        .start();
    let mut client = server.superuser();
    let mut gate = server.superuser();
    for _ in 0..15 {
        run(&mut gate, "SELECT pg_advisory_lock(1)");
        let mut texts = vec!["SELECT 1"; 20];
        texts[0] = "SELECT pg_advisory_xact_lock_shared(1)";
        let ids = enqueue_all(&mut client, "b", &texts);
        wait_until("all but the first to be done", || {
            scalar::<i64>(
                &mut client,
                "SELECT count(*) FROM pg_background_tasks WHERE id = ANY($1) AND state = 'finished'",
                &[&ids],
            ) == 19
        });
        run(&mut gate, "SELECT pg_advisory_unlock(1)");
        wait_closed(&mut client, ids[0]);
    }
}
