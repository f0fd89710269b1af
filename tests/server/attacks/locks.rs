//! Locks: what one may hold with the rights that one has, and whom that keeps waiting.

use std::time::Duration;

use super::Field;
use crate::harness::{
    Server, create_role, enqueue, run, scalar, task, wait_closed, wait_for, wait_state, wait_until,
};

/// Transactions of a session that stay open. None of them keeps the victim's tasks from running.
const HELD: &[&str] = &[
    "LOCK TABLE pg_background_tasks IN ACCESS SHARE MODE",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM pg_background_tasks",
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_background_tasks; SELECT * FROM pg_background_queue_stats",
    "DECLARE c CURSOR FOR SELECT * FROM pg_background_tasks; FETCH 1 FROM c",
    "SELECT pg_background_queue_cancel(@); SELECT pg_background_queue_cancel(@)",
    "SAVEPOINT s; SELECT pg_background_queue_cancel(@); ROLLBACK TO s; SELECT pg_background_queue_cancel(@)",
    "SELECT pg_background_queue_enqueue('SELECT 1') FROM generate_series(1, 1000)",
    "SELECT pg_background_queue_delete(array_agg(id)) FROM pg_background_tasks",
    "SELECT pg_advisory_lock(2, n) FROM generate_series(1, 500) AS n",
    "CREATE TABLE public.busy (a int); LOCK TABLE public.busy; NOTIFY x",
    "SELECT pg_background_queue_ensure_workers()",
    "ALTER ROLE alice SET work_mem = '1MB'",
];

#[test]
fn no_transaction_that_is_left_open_keeps_others_waiting() {
    let mut field = Field::new(2);
    for held in HELD {
        let waiting: i64 = scalar(
            &mut field.alice,
            "SELECT pg_background_queue_enqueue('SELECT 1', run_at => '2100-01-01')",
            &[],
        );
        let mut holder = field.server.connect("alice", "postgres");
        let held = held.replace('@', &waiting.to_string());
        run(&mut holder, &format!("BEGIN; {held}"));
        // her other tasks, and the victim's
        field.survive();
        let state = task(&mut field.client, waiting).state;
        assert_eq!(state, "pending", "{held}");
        drop(holder);
        wait_until("the transaction to be gone", || {
            scalar(
                &mut field.alice,
                "SELECT pg_background_queue_cancel($1)",
                &[&waiting],
            )
        });
    }
    field.end();
}

/// A row that its own role holds is left alone for a while, and then runs.
#[test]
fn a_role_that_holds_its_own_rows_keeps_only_those() {
    let mut field = Field::new(1);
    let ids: Vec<i64> = {
        let mut holder = field.alice.transaction().expect("a transaction");
        let ids = (0..40)
            .map(|_| enqueue(&mut holder, "SELECT 1/0"))
            .collect();
        holder.commit().expect("committed");
        ids
    };
    for &id in &ids {
        wait_closed(&mut field.client, id);
    }
    let mut holder = field.server.connect("alice", "postgres");
    // put back, by a transaction that does not end: to all others the rows are still failed, and locked
    run(&mut holder, "BEGIN");
    for id in &ids {
        let done: bool = scalar(&mut holder, "SELECT pg_background_queue_retry($1)", &[id]);
        assert!(done);
    }
    field.survive();
    let cancelled: bool = scalar(
        &mut field.bob,
        "SELECT pg_background_queue_cancel($1)",
        &[&ids[0]],
    );
    assert!(!cancelled, "the victim has nothing to wait for");
    run(&mut holder, "COMMIT");
    for &id in &ids {
        wait_until("the second attempt", || {
            let task = task(&mut field.client, id);
            task.is_closed() && task.attempt == 2
        });
    }
    field.survive();
    field.end();
}

/// A role that may not log in any more has its waiting tasks failed. A session of it that is still there can hold their rows: that keeps
/// nobody from what else a keeper is needed for.
#[test]
fn a_role_that_is_shut_out_cannot_keep_the_keeper_from_its_work() {
    let mut field = Field::on(
        Server::builder()
            .conf("max_worker_processes", "8")
            .conf("max_prepared_transactions", "2")
            .conf("pg_background_queue.max_parallel_running_tasks_count", "3")
            .start(),
    );
    create_role(&mut field.client, "mallory");
    let mut mallory = field.server.connect("mallory", "postgres");
    let held: i64 = scalar(
        &mut mallory,
        "SELECT pg_background_queue_enqueue('SELECT 1', run_at => '2100-01-01')",
        &[],
    );
    run(
        &mut mallory,
        &format!("BEGIN; SELECT pg_background_queue_cancel({held})"),
    );
    run(
        &mut field.client,
        "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC; GRANT CONNECT ON DATABASE postgres TO alice, bob",
    );
    // a keeper finds what a prepared transaction has enqueued
    run(
        &mut field.bob,
        "BEGIN; SELECT pg_background_queue_enqueue('INSERT INTO effects VALUES (''prepared'')'); PREPARE TRANSACTION 'x'",
    );
    run(&mut field.bob, "COMMIT PREPARED 'x'");
    wait_until("the task of the prepared transaction", || {
        scalar(
            &mut field.client,
            "SELECT EXISTS (SELECT FROM effects)",
            &[],
        )
    });
    assert_eq!(task(&mut field.client, held).state, "pending");
    run(&mut mallory, "ROLLBACK");
    let failed = wait_closed(&mut field.client, held);
    assert!(failed.errors().contains("CONNECT privilege"), "{failed:?}");
    field.survive();
    field.end();
}

/// Any role can use up the server's table of locks, and then nobody gets far. When it is over the queue goes on by itself.
#[test]
fn a_full_table_of_locks_is_survived() {
    let mut field = Field::on(
        Server::builder()
            .conf("max_worker_processes", "8")
            .conf("max_connections", "15")
            .conf("max_locks_per_transaction", "10")
            .conf("pg_background_queue.max_parallel_running_tasks_count", "3")
            .conf("log_min_error_statement", "panic")
            .start(),
    );
    let mut hog = field.server.connect("alice", "postgres");
    let sql = "DO $$BEGIN FOR i IN 1..1000000 LOOP PERFORM pg_advisory_lock(1, i); END LOOP; END$$";
    let full = hog.batch_execute(sql).expect_err("there is an end to it");
    assert_eq!(full.code().map(|code| code.code()), Some("53200"));
    // who comes now is refused, or gets what little is left; a session that knows all tables already may enqueue
    let mut enqueued = Vec::new();
    for _ in 0..20 {
        if let Ok(row) = field
            .bob
            .query_one("SELECT pg_background_queue_enqueue('SELECT 1')", &[])
        {
            enqueued.push(row.get::<_, i64>(0));
        }
    }
    run(&mut hog, "SELECT pg_advisory_unlock_all()");
    for id in enqueued {
        // a task may have failed for want of locks, as any statement would
        let task = wait_closed(&mut field.client, id);
        assert!(
            task.state == "finished" || task.errors().starts_with("53200"),
            "{task:?}"
        );
    }
    field.survive();
    field.end();
}

/// The same by a task, which gives its locks back when it ends.
#[test]
fn a_task_that_takes_all_locks_fails_alone() {
    let mut field = Field::on(
        Server::builder()
            .conf("max_worker_processes", "8")
            .conf("max_connections", "15")
            .conf("max_locks_per_transaction", "10")
            .conf("pg_background_queue.max_parallel_running_tasks_count", "3")
            .conf("log_min_error_statement", "panic")
            .start(),
    );
    let sql = "DO $$BEGIN FOR i IN 1..1000000 LOOP PERFORM pg_advisory_lock(1, i); END LOOP; END$$";
    for _ in 0..3 {
        let id = enqueue(&mut field.alice, sql);
        let task = wait_for("the task to end", Duration::from_secs(60), || {
            let task = task(&mut field.client, id);
            task.is_closed().then_some(task)
        });
        assert!(task.errors().starts_with("53200"), "{task:?}");
    }
    let id = enqueue(&mut field.alice, "SELECT 1");
    wait_state(&mut field.client, id, "finished");
    field.survive();
    field.end();
}
