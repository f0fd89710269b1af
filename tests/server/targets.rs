//! What the queue remembers of its table from one row to the next must not outlive a change of the table: whoever changes it, in
//! whichever transaction, and whatever a DBA has put on it.

use std::sync::atomic::{AtomicBool, Ordering};

use postgres::Client;
use postgres::error::SqlState;

use crate::harness::{
    PATIENCE, Server, enqueue, enqueue_all, enqueue_topic, run, scalar, states, task,
    wait_all_closed, wait_closed, wait_until,
};

const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";

/// A server whose queue is stopped: nobody but the test writes to the table.
fn stopped() -> (Server, Client) {
    let server = Server::builder().conf(LIMIT, "0").start();
    let client = server.superuser();
    (server, client)
}

/// The tasks of a topic that an index finds, by this condition on what it is an index of.
#[track_caller]
fn found(client: &mut Client, condition: &str) -> i64 {
    run(
        client,
        "SET enable_seqscan = off; SET enable_bitmapscan = off",
    );
    let plan: String = client
        .query(
            &format!("EXPLAIN SELECT FROM pg_background_tasks WHERE {condition}"),
            &[],
        )
        .expect("a plan")
        .iter()
        .map(|row| row.get::<_, String>(0))
        .collect();
    assert!(plan.contains("Index"), "{plan}");
    scalar(
        client,
        &format!("SELECT count(*) FROM pg_background_tasks WHERE {condition}"),
        &[],
    )
}

fn cancel(client: &mut Client, task: i64) -> bool {
    scalar(client, "SELECT pg_background_queue_cancel($1)", &[&task])
}

/// Every entry that each index of the table should have is there.
#[track_caller]
fn check_indexes(client: &mut Client) {
    let checkable = "SELECT FROM pg_available_extensions WHERE name = 'amcheck'";
    if client.query_opt(checkable, &[]).expect("a query").is_none() {
        return;
    }
    run(
        client,
        "CREATE EXTENSION IF NOT EXISTS amcheck;
         SELECT bt_index_check(i.indexrelid, true)
         FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS a ON a.oid = c.relam
         WHERE i.indrelid = 'pg_background_tasks'::regclass AND i.indisvalid AND a.amname = 'btree'",
    );
}

#[track_caller]
fn refusal(client: &mut Client, topic: &str) -> SqlState {
    let error = client
        .query_one(
            "SELECT pg_background_queue_enqueue('SELECT 1', $1)",
            &[&topic],
        )
        .expect_err("it is refused");
    error.code().expect("an SQLSTATE").clone()
}

/// Each in turn, in one transaction, and each once more in a savepoint that is rolled back.
const CHANGES: &[&str] = &[
    "ALTER TABLE pg_background_tasks ADD COLUMN note text, ADD COLUMN n integer DEFAULT 7",
    "CREATE INDEX by_topic ON pg_background_tasks (topic)",
    "CREATE INDEX by_note ON pg_background_tasks (note, topic) INCLUDE (n) WHERE topic IS NOT NULL",
    "ALTER TABLE pg_background_tasks ALTER COLUMN n TYPE bigint",
    "REINDEX TABLE pg_background_tasks",
    "CLUSTER pg_background_tasks USING by_topic",
    "ALTER INDEX by_topic RENAME TO its_topic",
    "DROP INDEX by_note",
    "TRUNCATE pg_background_tasks",
    "ALTER TABLE pg_background_tasks DROP COLUMN note",
    "CREATE INDEX by_hash ON pg_background_tasks USING hash (topic)",
    "CREATE INDEX by_brin ON pg_background_tasks USING brin (topic)",
    "CREATE INDEX by_gin ON pg_background_tasks USING gin (to_tsvector('simple', topic))",
    "DROP INDEX by_hash, by_brin, by_gin",
    "ALTER TABLE pg_background_tasks ADD CHECK (topic <> 'never')",
    "DROP EXTENSION pg_background_queue; CREATE EXTENSION pg_background_queue",
    "CREATE INDEX by_topic ON pg_background_tasks (topic) WHERE priority > 0",
];

/// Two tasks of a topic after a change, by two commands, and both are there, in the table and in the index by topic if there is one.
#[track_caller]
fn enqueue_two(client: &mut Client, topic: &str, change: &str) {
    for _ in 0..2 {
        enqueue_topic(client, "SELECT 1", topic);
    }
    let indexes: i64 = scalar(
        client,
        "SELECT count(*) FROM pg_class WHERE relname IN ('by_topic', 'its_topic')",
        &[],
    );
    let condition = format!("topic = '{topic}' AND priority > 0");
    let there = if indexes > 0 {
        found(client, &condition)
    } else {
        scalar(
            client,
            &format!("SELECT count(*) FROM pg_background_tasks WHERE {condition}"),
            &[],
        )
    };
    assert_eq!(there, 2, "after {change}");
}

#[test]
fn a_transaction_may_change_the_table_between_its_tasks() {
    let (_server, mut client) = stopped();
    run(&mut client, "BEGIN");
    for (n, change) in CHANGES.iter().enumerate() {
        enqueue_topic(&mut client, "SELECT 1", "before");
        run(&mut client, &format!("SAVEPOINT s; {change}"));
        enqueue_two(&mut client, &format!("undone {n}"), change);
        run(&mut client, "ROLLBACK TO s");
        enqueue_two(&mut client, &format!("back {n}"), change);
        run(&mut client, &format!("SAVEPOINT s; {change}; RELEASE s"));
        enqueue_two(&mut client, &format!("done {n}"), change);
    }
    run(&mut client, "COMMIT");
    check_indexes(&mut client);
    let ids: i64 = scalar(
        &mut client,
        "SELECT count(*) - count(DISTINCT id) FROM pg_background_tasks",
        &[],
    );
    assert_eq!(ids, 0);
}

/// What depends on a function is not told when it is replaced. (Neither form can be compiled into its caller, which the relation cache
/// itself would not notice.)
#[test]
fn a_function_on_the_table_may_be_replaced() {
    /// What it is: name and parameter, what it returns; its body before and after.
    const FUNCTIONS: [[&str; 4]; 3] = [
        ["place(n integer)", "integer", "n", "n + 1000"],
        ["counts(n integer)", "boolean", "false", "true"],
        ["fits(t text)", "boolean", "true", "t <> 'four'"],
    ];
    let (_server, mut client) = stopped();
    for [function, kind, before, _] in FUNCTIONS {
        run(
            &mut client,
            &format!(
                "CREATE FUNCTION {function} RETURNS {kind} IMMUTABLE
                 LANGUAGE plpgsql AS $$BEGIN RETURN {before}; END$$"
            ),
        );
    }
    for use_of_it in [
        "CREATE INDEX ON pg_background_tasks (place(priority))",
        "CREATE INDEX ON pg_background_tasks (topic) WHERE counts(priority)",
        "ALTER TABLE pg_background_tasks ADD CONSTRAINT fits CHECK (fits(topic))",
    ] {
        // each by itself: one would hide what the others do
        run(&mut client, &format!("BEGIN; {use_of_it}"));
        enqueue_topic(&mut client, "SELECT 1", "one");
        enqueue_topic(&mut client, "SELECT 1", "two");
        for [function, kind, _, after] in FUNCTIONS {
            run(
                &mut client,
                &format!(
                    "CREATE OR REPLACE FUNCTION {function} RETURNS {kind} IMMUTABLE
                     LANGUAGE sql SET work_mem = '1MB' AS $$SELECT {after}$$"
                ),
            );
        }
        enqueue_topic(&mut client, "SELECT 1", "three");
        if use_of_it.contains("place") {
            assert_eq!(found(&mut client, "place(priority) = 1100"), 1);
        } else if use_of_it.contains("counts") {
            let condition = "topic = 'three' AND counts(priority)";
            assert_eq!(found(&mut client, condition), 1);
        } else {
            assert_eq!(refusal(&mut client, "four"), SqlState::CHECK_VIOLATION);
        }
        run(&mut client, "ROLLBACK");
    }
}

#[test]
fn an_error_while_a_row_is_written_leaves_nothing_behind() {
    let (_server, mut client) = stopped();
    run(
        &mut client,
        "CREATE UNIQUE INDEX ON pg_background_tasks (topic)",
    );
    // the first makes what the second finds when it fails, alone and in a savepoint
    enqueue_topic(&mut client, "SELECT 1", "one");
    assert_eq!(refusal(&mut client, "one"), SqlState::UNIQUE_VIOLATION);
    enqueue_topic(&mut client, "SELECT 1", "two");
    run(&mut client, "BEGIN");
    enqueue_topic(&mut client, "SELECT 1", "three");
    run(&mut client, "SAVEPOINT s");
    assert_eq!(refusal(&mut client, "three"), SqlState::UNIQUE_VIOLATION);
    run(&mut client, "ROLLBACK TO s");
    enqueue_topic(&mut client, "SELECT 1", "four");
    // nothing is open
    run(
        &mut client,
        "ALTER TABLE pg_background_tasks ADD CONSTRAINT fits CHECK (topic <> 'bad'); SAVEPOINT s",
    );
    assert_eq!(refusal(&mut client, "bad"), SqlState::CHECK_VIOLATION);
    run(&mut client, "ROLLBACK TO s");
    enqueue_topic(&mut client, "SELECT 1", "five");
    run(&mut client, "COMMIT");
    assert_eq!(found(&mut client, "topic > ''"), 5);
    // not by an index, but before there is a row
    run(
        &mut client,
        "ALTER TABLE pg_background_tasks ADD COLUMN must integer NOT NULL DEFAULT 1",
    );
    assert_eq!(refusal(&mut client, "six"), SqlState::NOT_NULL_VIOLATION);
    run(
        &mut client,
        "ALTER TABLE pg_background_tasks ALTER COLUMN must DROP NOT NULL",
    );
    enqueue_topic(&mut client, "SELECT 1", "seven");
    check_indexes(&mut client);
}

/// The inner task is written while the outer one is.
#[test]
fn a_function_in_an_index_may_enqueue() {
    let server = Server::start_default();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE seen (what text);
         CREATE FUNCTION echo(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$
         BEGIN
             IF $1 = 'outer' THEN
                 PERFORM pg_background_queue_enqueue('INSERT INTO seen VALUES (''inner'')', 'inner');
             ELSIF $1 = 'broken' THEN
                 PERFORM pg_background_queue_enqueue('INSERT INTO seen VALUES (''broken'')', 'inner');
                 RAISE EXCEPTION SQLSTATE 'XX123';
             END IF;
             RETURN $1;
         END $$;
         CREATE INDEX ON pg_background_tasks (echo(topic)) WHERE state = 'pending'",
    );
    run(&mut client, "BEGIN");
    for _ in 0..3 {
        enqueue_topic(&mut client, "INSERT INTO seen VALUES ('outer')", "outer");
        run(&mut client, "SAVEPOINT s");
        assert_eq!(refusal(&mut client, "broken").code(), "XX123");
        run(&mut client, "ROLLBACK TO s");
    }
    // with the index the function goes
    run(&mut client, "DROP FUNCTION echo CASCADE");
    enqueue_topic(&mut client, "INSERT INTO seen VALUES ('outer')", "outer");
    run(&mut client, "COMMIT");
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(states(&mut client), "finished: 7");
    let seen: String = scalar(
        &mut client,
        "SELECT string_agg(what || n, ' ' ORDER BY what) FROM (SELECT what, count(*) AS n FROM seen GROUP BY what) AS s",
        &[],
    );
    assert_eq!(seen, "inner3 outer4");
    check_indexes(&mut client);
}

/// Others change the table while workers claim and mark its rows, and sessions add to them.
#[test]
fn workers_go_on_while_others_change_the_indexes() {
    let server = Server::builder().conf(LIMIT, "2").start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE seen (n integer);
         CREATE INDEX by_attempt ON pg_background_tasks (attempt, started_at)",
    );
    let over = AtomicBool::new(false);
    let tasks = std::thread::scope(|scope| {
        let enqueueing = scope.spawn(|| {
            let mut session = server.superuser();
            let mut n = 0;
            while !over.load(Ordering::Relaxed) {
                enqueue(&mut session, &format!("INSERT INTO seen VALUES ({n})"));
                n += 1;
            }
            n
        });
        for _ in 0..8 {
            for change in [
                "REINDEX TABLE CONCURRENTLY pg_background_tasks",
                "CREATE INDEX CONCURRENTLY by_role ON pg_background_tasks (role_name, state)",
                "ALTER TABLE pg_background_tasks ADD COLUMN n integer DEFAULT 7",
                "CREATE INDEX by_n ON pg_background_tasks (n, state) WHERE state <> 'finished'",
                "REINDEX INDEX pg_background_tasks_pkey",
                "DROP INDEX CONCURRENTLY by_role",
                "ALTER TABLE pg_background_tasks DROP COLUMN n",
            ] {
                run(&mut client, change);
            }
        }
        over.store(true, Ordering::Relaxed);
        enqueueing.join().expect("it has enqueued")
    });
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(states(&mut client), format!("finished: {tasks}"));
    let odd: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE attempt <> 1 OR errors IS NOT NULL",
        &[],
    );
    assert_eq!(odd, 0);
    let seen: i64 = scalar(&mut client, "SELECT count(DISTINCT n) FROM seen", &[]);
    assert_eq!(seen, tasks);
    check_indexes(&mut client);
}

/// Who has written a row looks for it where he has put it.
#[test]
fn a_row_is_found_wherever_it_has_gone() {
    let (server, mut client) = stopped();
    let mut dba = server.superuser();
    let texts = vec!["SELECT 1"; 500];
    let ids = enqueue_all(&mut client, "many", &texts);
    let last = *ids.last().expect("500");
    // all the others are like it, and one of them comes to where it was
    let middle = ids[250];
    assert!(cancel(&mut client, middle));
    let place = "SELECT ctid::text FROM pg_background_tasks WHERE id = $1";
    let old: String = scalar(&mut dba, place, &[&middle]);
    run(
        &mut dba,
        "UPDATE pg_background_tasks SET state = 'pending', closed_at = NULL WHERE state = 'cancelled'",
    );
    run(
        &mut dba,
        "ALTER TABLE pg_background_tasks SET (fillfactor = 100)",
    );
    run(&mut dba, "VACUUM FULL pg_background_tasks");
    let there: i64 = scalar(
        &mut dba,
        &format!("SELECT id FROM pg_background_tasks WHERE ctid = '{old}'"),
        &[],
    );
    assert_ne!(there, middle);
    assert!(cancel(&mut client, middle));
    assert_eq!(task(&mut dba, middle).state, "cancelled");
    assert_eq!(task(&mut dba, there).state, "pending");

    for change in [
        "SELECT",
        "VACUUM pg_background_tasks",
        "VACUUM FULL pg_background_tasks",
        "CLUSTER pg_background_tasks USING pg_background_tasks_pkey",
        // the place is behind the end then
        "WITH gone AS (DELETE FROM pg_background_tasks WHERE id <> (SELECT max(id) FROM pg_background_tasks)) SELECT",
        "VACUUM FULL pg_background_tasks",
    ] {
        assert!(cancel(&mut client, last), "before {change}");
        assert!(!cancel(&mut client, last), "before {change}");
        run(
            &mut dba,
            "UPDATE pg_background_tasks SET state = 'pending', closed_at = NULL WHERE state = 'cancelled'",
        );
        run(&mut dba, change);
    }
    run(&mut client, "BEGIN");
    assert!(cancel(&mut client, last));
    run(&mut client, "ROLLBACK");
    assert!(cancel(&mut client, last));
    check_indexes(&mut client);
}

/// The key of a row that is updated is not looked for once more.
#[test]
fn nobody_gets_the_key_of_a_row_that_is_being_updated() {
    let (server, mut client) = stopped();
    let mut watcher = server.superuser();
    for end in ["ROLLBACK", "COMMIT"] {
        let task = enqueue(&mut client, "SELECT 1");
        run(&mut client, "BEGIN");
        assert!(cancel(&mut client, task));
        let thief = std::thread::scope(|scope| {
            let thief = scope.spawn(|| {
                let mut session = server.superuser();
                session.batch_execute(&format!(
                    "INSERT INTO pg_background_tasks SELECT (jsonb_populate_record(t, '{{\"topic\": \"thief\"}}')).*
                     FROM pg_background_tasks AS t WHERE id = {task}"
                ))
            });
            wait_until("the other to wait", || {
                scalar::<i64>(
                    &mut watcher,
                    "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'",
                    &[],
                ) == 1
            });
            run(&mut client, end);
            thief.join().expect("it ends")
        });
        let error = thief.expect_err("the key is taken");
        assert_eq!(error.code(), Some(&SqlState::UNIQUE_VIOLATION), "{end}");
        assert_eq!(cancel(&mut client, task), end == "ROLLBACK");
    }
    check_indexes(&mut client);
}

/// What is kept for the next row is kept once, and does not grow.
#[test]
fn many_rows_take_no_more_memory_than_some() {
    let (server, mut client) = stopped();
    let shows_memory: bool = scalar(
        &mut client,
        "SELECT current_setting('server_version_num')::int >= 140000",
        &[],
    );
    if !shows_memory {
        return;
    }
    // errors first: after one there is nothing that is kept
    let memory = |client: &mut Client, errors: i32, tasks: i32| -> i64 {
        run(
            client,
            &format!(
                "DO $$
                 BEGIN
                     FOR n IN 1 .. {errors} LOOP
                         BEGIN
                             PERFORM pg_background_queue_enqueue('SELECT 1', 'once');
                         EXCEPTION WHEN unique_violation THEN NULL;
                         END;
                     END LOOP;
                 END $$"
            ),
        );
        scalar::<i64>(
            client,
            "SELECT count(pg_background_queue_enqueue('SELECT 1')) FROM generate_series(1, $1)",
            &[&tasks],
        );
        scalar(
            client,
            "SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts",
            &[],
        )
    };
    run(
        &mut client,
        "CREATE UNIQUE INDEX ON pg_background_tasks (topic)",
    );
    memory(&mut client, 10, 1000);
    let before = memory(&mut client, 10, 1000);
    let after = memory(&mut client, 1000, 50_000);
    assert!(after - before < 32 << 10, "{before} bytes, then {after}");
    let kept: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_backend_memory_contexts WHERE ident = 'pg_background_queue target'",
        &[],
    );
    assert_eq!(kept, 1);
    // of the next task as well
    let task = enqueue(&mut client, "SELECT 1");
    server.set_and_reload(LIMIT, "1");
    wait_closed(&mut client, task);
}

/// The locks of a statement are its own: a cursor that is rolled back with a later savepoint than it was opened in takes them with it, so that the next
/// row of the same transaction takes them again.
#[test]
fn a_row_takes_its_locks_though_an_earlier_one_has_lost_them() {
    let (_server, mut client) = stopped();
    run(
        &mut client,
        "BEGIN;
         DECLARE c CURSOR FOR SELECT n, CASE WHEN n = 1 THEN pg_background_queue_enqueue('SELECT 1') ELSE 1 / (n - 2) END
             FROM generate_series(1, 2) AS n;
         FETCH 1 FROM c;
         SAVEPOINT s",
    );
    client
        .batch_execute("FETCH 1 FROM c")
        .expect_err("a division by zero");
    run(&mut client, "ROLLBACK TO s");
    // by name: to look at the table would lock its indexes
    let locked = |client: &mut Client| -> String {
        scalar(
            client,
            "SELECT coalesce(string_agg(relname, ' ' ORDER BY relname), '') FROM pg_locks JOIN pg_class ON pg_class.oid = relation
             WHERE pid = pg_backend_pid() AND mode = 'RowExclusiveLock' AND relname ~ '^pg_background_tasks' AND relkind <> 'S'",
            &[],
        )
    };
    assert_eq!(locked(&mut client), "");
    run(
        &mut client,
        "SELECT pg_background_queue_enqueue('SELECT 2')",
    );
    assert_eq!(
        locked(&mut client),
        "pg_background_tasks pg_background_tasks_pkey pg_background_tasks_queue_idx \
         pg_background_tasks_schedule_idx pg_background_tasks_state_idx"
    );
    run(&mut client, "COMMIT");
    assert_eq!(states(&mut client), "pending: 2");
}
