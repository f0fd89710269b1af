//! Statements at random as tasks: whatever they are, the server lives on, workers serve, and nothing leaks.
//!
//! [`snippets`] is what the suite runs, seeded; [`corpus`] runs files of SQL, when asked to.

mod corpus;
mod random;
mod snippets;

use std::time::Duration;

use postgres::Client;

use crate::harness::{Server, create_role, run, scalar, states, wait_for, wait_state};

/// A server on which an unprivileged role and a superuser may do their worst, each in a database of its own.
fn server() -> Server {
    let server = Server::builder()
        .conf("max_worker_processes", "16")
        .conf("pg_background_queue.max_parallel_running_tasks_count", "4")
        // the tasks' own errors would be most of the log
        .conf("log_min_messages", "warning")
        .conf("log_min_error_statement", "panic")
        .conf("max_prepared_transactions", "5")
        .conf("wal_level", "logical")
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    run(&mut client, "CREATE ROLE root LOGIN SUPERUSER");
    run(&mut client, "CREATE DATABASE plain OWNER alice");
    run(&mut client, "CREATE DATABASE super");
    for database in ["plain", "super"] {
        let mut there = server.connect("postgres", database);
        run(
            &mut there,
            "CREATE SCHEMA queue; CREATE EXTENSION pg_background_queue SCHEMA queue; \
             GRANT USAGE ON SCHEMA queue TO PUBLIC; GRANT CREATE ON SCHEMA public TO alice; \
             GRANT EXECUTE ON FUNCTION queue.pg_background_queue_enqueue TO alice",
        );
    }
    server
}

/// The role and the database that it has for itself.
const WHO: [(&str, &str); 2] = [("alice", "plain"), ("root", "super")];

/// Enqueues a text that must end within a few seconds; one topic's tasks run in order if its limit is 1.
fn enqueue(client: &mut Client, sql: &str, topic: &str) -> i64 {
    scalar(
        client,
        "SELECT queue.pg_background_queue_enqueue($1, $2, timeout => '5s')",
        &[&sql, &topic],
    )
}

/// Waits until all tasks of the session's database have ended, then that one more runs.
fn wait_all_served(client: &mut Client, deadline: Duration) {
    run(client, "SET search_path = queue");
    wait_for("all tasks to end", deadline, || {
        let open: i64 = scalar(
            client,
            "SELECT count(*) FROM pg_background_tasks WHERE state IN ('pending', 'running', 'retrying')",
            &[],
        );
        (open == 0).then_some(())
    });
    let id = enqueue(client, "SELECT 1", "last");
    wait_state(client, id, "finished");
    eprintln!("{}", states(client));
}

/// Errors that PostgreSQL has for what cannot happen, with how often.
fn internal_errors(client: &mut Client) -> Vec<String> {
    client
        .query(
            "SELECT count(*) || ' x ' || left(errors, 200) FROM queue.pg_background_tasks \
             WHERE errors ~ '^(XX|57P|55000: task)' GROUP BY left(errors, 200) ORDER BY 1",
            &[],
        )
        .expect("the table")
        .iter()
        .map(|row| row.get(0))
        .collect()
}
