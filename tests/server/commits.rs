//! How tasks are committed: whether that waits for the disk, and several at once.

use postgres::Client;

use crate::harness::{
    PATIENCE, Server, ends, enqueue_all, enqueue_topic, enqueue_with, kill, run, scalar, states,
    wait_all_closed, wait_closed, wait_state, wait_until,
};

const TOPICS: &str = "pg_background_queue.topic_config";
const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";
const DURABILITY: &str = "pg_background_queue.durability";

/// What a task of this topic finds `synchronous_commit` to be.
fn commit_of(client: &mut Client, topic: &str) -> String {
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

/// A server on which one worker at a time runs, with a topic `batch` whose tasks may share a commit.
fn batch_server(more: &str) -> (Server, Client) {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "1")
        .conf("pg_background_queue.worker_idle_timeout", "10min")
        .conf(
            TOPICS,
            &format!(r#"{{"batch": {{"commit_batch": 10{more}}}}}"#),
        )
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE effects (n int, xid bigint DEFAULT txid_current(), at timestamptz DEFAULT clock_timestamp(), what text); \
         GRANT ALL ON effects TO PUBLIC",
    );
    // the worker is there, and has learned that tasks go well together
    for _ in 0..10 {
        let id = enqueue_topic(&mut client, "SELECT 1", "batch");
        wait_state(&mut client, id, "finished");
    }
    (server, client)
}

fn insert(n: usize) -> String {
    format!("INSERT INTO effects (n) VALUES ({n})")
}

fn transactions(client: &mut Client) -> i64 {
    scalar(client, "SELECT count(DISTINCT xid) FROM effects", &[])
}

#[test]
fn tasks_of_a_batch_share_a_commit_and_keep_their_order() {
    let (_server, mut client) = batch_server("");
    let texts: Vec<String> = (0..100).map(insert).collect();
    let ids = enqueue_all(&mut client, "batch", &texts);
    assert!(
        ends(&mut client, &ids)
            .iter()
            .all(|state| state == "finished")
    );
    let transactions = transactions(&mut client);
    assert!(
        (10..40).contains(&transactions),
        "{transactions} transactions"
    );
    let most: i64 = scalar(
        &mut client,
        "SELECT max(c) FROM (SELECT count(*) AS c FROM effects GROUP BY xid) AS x",
        &[],
    );
    assert_eq!(most, 10);
    let unordered: bool = scalar(
        &mut client,
        "SELECT bool_or(n <> row) FROM (SELECT n, row_number() OVER (ORDER BY at) - 1 AS row FROM effects) AS x",
        &[],
    );
    assert!(!unordered);
    // started_at and closed_at are there, and the worker is the same
    let odd: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE started_at IS NULL OR closed_at < started_at OR attempt <> 1",
        &[],
    );
    assert_eq!(odd, 0);
    let done: i64 = scalar(
        &mut client,
        "SELECT tasks_done FROM pg_background_queue_workers",
        &[],
    );
    assert_eq!(done, 110);
}

#[test]
fn a_task_that_fails_in_a_batch_fails_alone() {
    let (server, mut client) = batch_server(r#", "retry_count": 1"#);
    let mut texts: Vec<String> = (0..20).map(insert).collect();
    texts[3] = format!("{}; SELECT 1/0", insert(3));
    texts[4] = "no SQL".to_owned();
    texts[11] = format!(
        "{}; DO $$ BEGIN RAISE EXCEPTION 'told' USING DETAIL = 'more', HINT = 'help'; END $$",
        insert(11)
    );
    let ids = enqueue_all(&mut client, "batch", &texts);
    let states = ends(&mut client, &ids);
    for (n, state) in states.iter().enumerate() {
        let expected = if [3, 4, 11].contains(&n) {
            "failed"
        } else {
            "finished"
        };
        assert_eq!(state, expected, "{n}");
    }
    let numbers: String = scalar(
        &mut client,
        "SELECT string_agg(n::text, ' ' ORDER BY n) FROM effects",
        &[],
    );
    assert_eq!(numbers, "0 1 2 5 6 7 8 9 10 12 13 14 15 16 17 18 19");
    assert!(transactions(&mut client) < 10);
    let failed = wait_state(&mut client, ids[11], "failed");
    // once, and again after its retry
    assert_eq!(failed.attempt, 2);
    let said = "P0001: told\nDETAIL:  more\nHINT:  help\n";
    assert_eq!(
        failed.errors().matches(said).count(),
        2,
        "{}",
        failed.errors()
    );
    assert_eq!(server.log().matches("ERROR:  division by zero").count(), 2);
}

#[test]
fn what_cannot_be_in_a_batch_runs_alone() {
    let (_server, mut client) = batch_server("");
    run(
        &mut client,
        "CREATE PROCEDURE steps(n int) LANGUAGE plpgsql AS $$ BEGIN INSERT INTO effects (n) VALUES (n); COMMIT; \
         INSERT INTO effects (n) VALUES (n + 1000); END $$",
    );
    let mut texts: Vec<String> = (0..30).map(insert).collect();
    texts[4] = "VACUUM effects".to_owned();
    texts[5] = "CREATE INDEX CONCURRENTLY ON effects (n)".to_owned();
    texts[14] = "CALL steps(14)".to_owned();
    texts[20] = format!(
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; {}",
        insert(20)
    );
    texts[21] = "CREATE DATABASE of_a_batch".to_owned();
    texts[22] = format!("{}; COMMIT", insert(22));
    let ids = enqueue_all(&mut client, "batch", &texts);
    for (n, state) in ends(&mut client, &ids).iter().enumerate() {
        assert_eq!(state, if n == 22 { "failed" } else { "finished" }, "{n}");
    }
    let numbers: String = scalar(
        &mut client,
        "SELECT string_agg(n::text, ' ' ORDER BY n) FROM effects",
        &[],
    );
    let expected: Vec<String> = (0..30)
        .filter(|n| ![4, 5, 21, 22].contains(n))
        .chain([1014])
        .map(|n: i32| n.to_string())
        .collect();
    assert_eq!(numbers, expected.join(" "));
}

#[test]
fn deferred_constraints_are_checked_at_the_end_of_each_task_of_a_batch() {
    let (_server, mut client) = batch_server("");
    run(
        &mut client,
        "CREATE TABLE parents (id int PRIMARY KEY); \
         CREATE TABLE children (id int, parent int REFERENCES parents DEFERRABLE INITIALLY DEFERRED, \
            later int UNIQUE DEFERRABLE INITIALLY IMMEDIATE)",
    );
    let texts: Vec<String> = [
        "INSERT INTO children VALUES (1, 1); INSERT INTO parents VALUES (1)",
        // what comes later does not make it right
        "INSERT INTO children VALUES (2, 2)",
        "INSERT INTO parents VALUES (2)",
        "INSERT INTO children VALUES (3, 2)",
        "SET CONSTRAINTS ALL DEFERRED; INSERT INTO children VALUES (4, 1, 4); INSERT INTO children VALUES (5, 1, 4); \
            UPDATE children SET later = id WHERE later = 4",
        // the mode that the last one has set is not this one's: it fails at once, so that what catches the error goes on
        "DO $$ BEGIN INSERT INTO children VALUES (6, 1, 4); EXCEPTION WHEN unique_violation THEN INSERT INTO effects (n) VALUES (6); END $$",
        "INSERT INTO children VALUES (7, 7); INSERT INTO effects (n) VALUES (7)",
        "INSERT INTO children VALUES (8, 2)",
    ]
    .map(str::to_owned)
    .into();
    let ids = enqueue_all(&mut client, "batch", &texts);
    let states = ends(&mut client, &ids);
    let expected = [
        "finished", "failed", "finished", "finished", "finished", "finished", "failed", "finished",
    ];
    assert_eq!(states, expected);
    let failed = wait_closed(&mut client, ids[1]);
    assert!(failed.errors().starts_with("23503"), "{}", failed.errors());
    let children: String = scalar(
        &mut client,
        "SELECT string_agg(id::text, ' ' ORDER BY id) FROM children",
        &[],
    );
    assert_eq!(children, "1 3 4 5 8");
    assert_eq!(
        scalar::<i64>(&mut client, "SELECT sum(n) FROM effects", &[]),
        6
    );
}

#[test]
fn nothing_of_a_task_of_a_batch_reaches_the_next() {
    let (_server, mut client) = batch_server("");
    run(
        &mut client,
        "CREATE SEQUENCE numbers; CREATE TABLE seen (n int, what text)",
    );
    let dirt = [
        "SELECT set_config('work_mem', '3MB', false), set_config('my.own', 'x', true), set_config('search_path', 'pg_catalog', false)",
        "SET work_mem = '3MB'",
        "SET LOCAL work_mem = '3MB'",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "CREATE TEMP TABLE temporary ON COMMIT DROP AS SELECT 1",
        "CREATE TEMP TABLE temporary AS SELECT 1",
        "PREPARE prepared AS SELECT 1",
        "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
        "DECLARE open CURSOR FOR SELECT 1",
        "SELECT pg_advisory_lock(7)",
        "SELECT pg_advisory_xact_lock(8)",
        "SELECT nextval('numbers')",
        "SELECT set_config('role', 'pg_monitor', false)",
        "SELECT set_config('synchronous_commit', 'off', false)",
        // and all that by one that fails in the end
        "SET work_mem = '3MB'; PREPARE prepared AS SELECT 1; SELECT pg_advisory_lock(7); SELECT 1/0",
    ];
    let trace = "DO $$ DECLARE number text = 'none'; BEGIN BEGIN number = currval('public.numbers'); \
            EXCEPTION WHEN object_not_in_prerequisite_state THEN END; \
        INSERT INTO public.seen SELECT 1, concat_ws(' ', current_setting('work_mem'), current_setting('search_path'), \
        coalesce(nullif(current_setting('my.own', true), ''), 'unset'), current_setting('default_transaction_isolation'), \
        current_setting('transaction_isolation'), current_setting('synchronous_commit'), current_user = session_user, \
        coalesce(to_regclass('pg_temp.temporary')::text, 'none'), (SELECT count(*) FROM pg_prepared_statements), \
        (SELECT count(*) FROM pg_cursors), \
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), number); END $$";
    let clean = "4MB \"$user\", public unset read committed read committed on t none 0 0 0 none";
    let texts: Vec<String> = dirt
        .iter()
        .flat_map(|dirt| [(*dirt).to_owned(), trace.to_owned()])
        .collect();
    let ids = enqueue_all(&mut client, "batch", &texts);
    let states = ends(&mut client, &ids);
    // besides that one, a cursor in a transaction that has no other statement
    assert_eq!(
        states.iter().filter(|state| *state == "failed").count(),
        2,
        "{states:?}"
    );
    let rows = client.query("SELECT what FROM seen", &[]).expect("seen");
    assert_eq!(rows.len(), dirt.len());
    for row in rows {
        assert_eq!(row.get::<_, String>(0), clean);
    }
    let done: i64 = scalar(
        &mut client,
        "SELECT tasks_done FROM pg_background_queue_workers",
        &[],
    );
    assert_eq!(done, 10 + 2 * dirt.len() as i64);
}

#[test]
fn the_claim_of_a_task_is_part_of_the_commit_before_it() {
    let server = Server::builder().start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE effects (n int, xid bigint DEFAULT txid_current())",
    );
    // also where all places are taken and there is more to do
    for workers in ["1", "3"] {
        run(&mut client, "TRUNCATE effects");
        server.set_and_reload(LIMIT, "0");
        let texts: Vec<String> = (0..400).map(insert).collect();
        enqueue_all(&mut client, "plain", &texts);
        server.set_and_reload(LIMIT, workers);
        wait_all_closed(&mut client, PATIENCE);
        let span: i64 = scalar(
            &mut client,
            "SELECT max(xid) - min(xid) FROM effects HAVING count(*) = 400",
            &[],
        );
        assert!(span < 500, "{workers} workers: {span}");
    }
}

#[test]
fn a_batch_holds_nothing_back_for_a_task_that_takes_long() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "2")
        .conf("pg_background_queue.worker_idle_timeout", "10min")
        .conf(TOPICS, r#"{"batch": {"commit_batch": 60}}"#)
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE effects (n int, xid bigint DEFAULT txid_current())",
    );
    for _ in 0..10 {
        let id = enqueue_topic(&mut client, "SELECT 1", "batch");
        wait_state(&mut client, id, "finished");
    }
    run(&mut client, "SELECT pg_advisory_lock(1)");
    let mut texts: Vec<String> = (0..40).map(insert).collect();
    texts[3] = format!("{}; SELECT pg_advisory_xact_lock(1)", insert(3));
    let ids = enqueue_all(&mut client, "batch", &texts);
    // all the others are done while that one waits: those before it in its batch, and those that were claimed with it
    wait_until("the others to be finished", || {
        scalar::<i64>(&mut client, "SELECT count(*) FROM effects", &[]) == 39
    });
    let slow = wait_state(&mut client, ids[3], "running");
    assert_eq!(slow.attempt, 1);
    run(&mut client, "SELECT pg_advisory_unlock(1)");
    wait_state(&mut client, ids[3], "finished");
    assert_eq!(
        scalar::<i64>(&mut client, "SELECT count(*) FROM effects", &[]),
        40
    );
    assert_eq!(
        scalar::<i64>(&mut client, "SELECT count(*) FROM effects WHERE n = 3", &[]),
        1
    );
}

#[test]
fn tasks_of_a_batch_can_be_cancelled_and_time_out() {
    let (_server, mut client) = batch_server("");
    run(&mut client, "SELECT pg_advisory_lock(1)");
    let mut texts: Vec<String> = (0..10).map(insert).collect();
    texts[1] = "SELECT pg_advisory_xact_lock(1)".to_owned();
    let ids = enqueue_all(&mut client, "batch", &texts);
    wait_state(&mut client, ids[1], "running");
    let mut other = _server.superuser();
    // those that wait behind it, whether they are put back by now or not; the one that runs
    for (n, expected) in [(4, true), (5, true), (1, true)] {
        let cancelled: bool = scalar(
            &mut other,
            "SELECT pg_background_queue_cancel($1)",
            &[&ids[n]],
        );
        assert_eq!(cancelled, expected, "{n}");
    }
    let states = ends(&mut client, &ids);
    for (n, state) in states.iter().enumerate() {
        assert_eq!(
            state,
            if [1, 4, 5].contains(&n) {
                "cancelled"
            } else {
                "finished"
            },
            "{n}"
        );
    }
    assert!(!scalar::<bool>(
        &mut other,
        "SELECT pg_background_queue_cancel($1)",
        &[&ids[0]]
    ));
    // a timeout that is shorter than a batch may take
    let mut transaction = client.transaction().expect("begin");
    let ids: Vec<i64> = (0..6)
        .map(|n| {
            let sql = if n == 2 {
                "SELECT pg_sleep(3600)".to_owned()
            } else {
                insert(20 + n)
            };
            enqueue_with(&mut transaction, &sql, "'batch', timeout => '20 ms'")
        })
        .collect();
    transaction.commit().expect("commit");
    let states = ends(&mut client, &ids);
    assert_eq!(states[2], "failed");
    let failed = wait_closed(&mut client, ids[2]);
    assert!(
        failed.errors().contains("timeout of 20 ms"),
        "{}",
        failed.errors()
    );
}

#[test]
fn roles_and_topics_that_are_no_good_for_batches_have_none() {
    let (server, mut client) = batch_server("");
    run(
        &mut client,
        "CREATE ROLE alice LOGIN; ALTER ROLE alice SET default_transaction_isolation = 'repeatable read'; \
         GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO alice",
    );
    let mut alice = server.connect("alice", "postgres");
    let texts: Vec<String> = (0..20).map(insert).collect();
    let ids = enqueue_all(&mut alice, "batch", &texts);
    assert!(
        ends(&mut client, &ids)
            .iter()
            .all(|state| state == "finished")
    );
    assert_eq!(transactions(&mut client), 20);
}

#[test]
fn a_batch_counts_as_one_and_its_tasks_are_seen_running() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "4")
        .conf(
            TOPICS,
            r#"{"batch": {"commit_batch": 10, "max_parallel_running_tasks_count": 1}}"#,
        )
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE effects (n int, xid bigint DEFAULT txid_current())",
    );
    for _ in 0..10 {
        let id = enqueue_topic(&mut client, "SELECT 1", "batch");
        wait_state(&mut client, id, "finished");
    }
    // each of them would see another one that runs beside it
    let texts: Vec<String> = (0..300)
        .map(|n| {
            format!(
                "DO $$ BEGIN IF NOT pg_try_advisory_xact_lock(5) THEN RAISE EXCEPTION 'two at once'; END IF; {}; END $$",
                insert(n)
            )
        })
        .collect();
    let ids = enqueue_all(&mut client, "batch", &texts);
    let mut most = 0_i64;
    wait_until("all to be closed", || {
        let row = client
            .query_one(
                "SELECT count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE closed_at IS NULL) FROM pg_background_tasks",
                &[],
            )
            .expect("counts");
        most = most.max(row.get(0));
        row.get::<_, i64>(1) == 0
    });
    assert!((1..=10).contains(&most), "{most} were seen running");
    assert!(
        ends(&mut client, &ids)
            .iter()
            .all(|state| state == "finished")
    );
}

/// Whatever ends the worker in the middle of a batch: the one that ran has failed, or runs again; the others run again; all have their effect once.
#[test]
fn a_worker_that_is_ended_in_a_batch_harms_only_the_task_that_ran() {
    let (server, mut client) = batch_server("");
    for (round, signal) in [libc::SIGTERM, libc::SIGKILL].into_iter().enumerate() {
        if signal == libc::SIGKILL {
            server.expect_crash();
        }
        run(&mut client, "TRUNCATE effects");
        let mut texts: Vec<String> = (0..10).map(insert).collect();
        // it says where it is by a sequence, which no rollback takes back
        run(&mut client, &format!("CREATE SEQUENCE there_{round}"));
        texts[4] = format!(
            "{}; SELECT nextval('there_{round}'), pg_sleep(0.05)",
            insert(4)
        );
        let ids = enqueue_all(&mut client, "batch", &texts);
        wait_until("the fifth to run", || {
            scalar::<bool>(
                &mut client,
                &format!("SELECT is_called FROM there_{round}"),
                &[],
            )
        });
        for pid in crate::harness::workers(&mut client)
            .iter()
            .map(|worker| worker.pid)
        {
            kill(pid, signal);
        }
        if signal == libc::SIGKILL {
            // a new session could come before the postmaster has noticed, and go with all the others
            wait_until("the crash to end all sessions", || {
                client.simple_query("SELECT 1").is_err()
            });
            client = crate::harness::wait_for("the server to be back", PATIENCE, || {
                server.connector().try_connect("postgres", "postgres").ok()
            });
        }
        let states = ends(&mut client, &ids);
        for (n, state) in states.iter().enumerate() {
            if n == 4 && signal == libc::SIGTERM {
                // it may have been done just before
                assert!(["failed", "finished"].contains(&state.as_str()), "{state}");
            } else {
                assert_eq!(state, "finished", "round {round}, task {n}");
            }
        }
        let wrong: i64 = scalar(
            &mut client,
            "SELECT count(*) FROM (SELECT n FROM effects GROUP BY n HAVING count(*) <> 1) AS x",
            &[],
        );
        assert_eq!(wrong, 0);
        let finished = states.iter().filter(|state| *state == "finished").count() as i64;
        assert_eq!(
            scalar::<i64>(&mut client, "SELECT count(*) FROM effects", &[]),
            finished
        );
    }
}
