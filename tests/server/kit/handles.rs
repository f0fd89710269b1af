//! Handles of single workers.

use std::thread;

use postgres::Client;
use postgres::error::SqlState;

use super::{StandsStill, processes, start};
use crate::copies::physical_copy;
use crate::harness::{run, scalar, wait_until};

/// The title of the workers.
const PLAIN: &str = "pgbq_test plain";

#[test]
fn a_handle_waits_so_long_and_can_be_interrupted() {
    let (fixture, mut client) = start();
    let handle =
        |client: &mut Client, function: i32, start: Option<i32>, end: Option<i32>| -> String {
            scalar(
                client,
                "SELECT pgbq_test_handle($1, $2, $3)",
                &[&function, &start, &end],
            )
        };
    // it waits on, and is terminated
    assert_eq!(
        handle(&mut client, 11, None, Some(50)),
        "running, running, stopped"
    );
    // it has gone, or never came; told without a time-out
    assert!(handle(&mut client, 7, None, None).ends_with("stopped, stopped"));
    assert!(handle(&mut client, 1, None, None).ends_with("stopped, stopped"));
    // a start that is not waited for
    assert!(handle(&mut client, 11, Some(0), Some(0)).ends_with("stopped"));

    let victim: i32 = scalar(&mut client, "SELECT pg_backend_pid()", &[]);
    let thread = thread::spawn(move || {
        let error = client
            .query_one("SELECT pgbq_test_handle(11, NULL, NULL)", &[])
            .expect_err("a cancel");
        (client, error)
    });
    let mut other = fixture.client();
    wait_until("the worker to be there", || {
        !processes(&fixture, PLAIN).is_empty()
    });
    run(&mut other, &format!("SELECT pg_cancel_backend({victim})"));
    let (mut client, error) = thread.join().expect("the waiting backend");
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
    assert_eq!(
        scalar::<i32>(&mut client, "SELECT pg_backend_pid()", &[]),
        victim
    );
    wait_until("the worker to end", || {
        processes(&fixture, PLAIN).is_empty()
    });
}

#[test]
fn the_death_of_the_postmaster_is_an_answer() {
    let (mut fixture, mut client) = start();
    let thread = thread::spawn(move || {
        client
            .query_one("SELECT pgbq_test_handle(11, NULL, NULL)", &[])
            .is_err()
    });
    wait_until("the worker to be there", || {
        !processes(&fixture, PLAIN).is_empty()
    });
    let mark = fixture.server.log_mark();
    fixture.server.kill9_postmaster();
    thread.join().expect("the client");
    let log = fixture.server.log_since(mark);
    assert!(
        log.contains("pgbq_test: the handle says running, postmaster died"),
        "{log}"
    );
}

/// A backend that waits for the start of a worker, which does not come.
fn waits_for_start(
    mut client: Client,
    other: &mut Client,
) -> thread::JoinHandle<(Client, Result<String, postgres::Error>)> {
    let pid: i32 = scalar(&mut client, "SELECT pg_backend_pid()", &[]);
    let thread = thread::spawn(move || {
        let row = client.query_one("SELECT pgbq_test_handle(11, NULL, NULL)", &[]);
        (client, row.map(|row| row.get(0)))
    });
    wait_until("it to wait", || {
        scalar(
            other,
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'Extension')",
            &[&pid],
        )
    });
    thread
}

#[test]
fn a_wait_for_the_start_has_an_end_too() {
    let (mut fixture, mut client) = start();
    let mut other = fixture.client();
    let still = StandsStill::begin(&fixture);
    // the time is over
    let thread = thread::spawn(move || {
        let said: String = scalar(&mut client, "SELECT pgbq_test_handle(11, 50, 50)", &[]);
        (client, said)
    });
    wait_until("both waits to be over", || {
        let log = fixture.server.log();
        log.contains("pgbq_test: the handle says not yet, not yet")
    });
    drop(still);
    let (client, said) = thread.join().expect("the waiting backend");
    assert_eq!(said, "not yet, not yet, stopped");

    // a cancel
    let still = StandsStill::begin(&fixture);
    let thread = waits_for_start(client, &mut other);
    run(
        &mut other,
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE '%handle(11, NULL, NULL)%' \
         AND pid <> pg_backend_pid()",
    );
    let (client, outcome) = thread.join().expect("the waiting backend");
    let error = outcome.expect_err("a cancel");
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
    drop(still);

    // the postmaster's death
    let _still = StandsStill::begin(&fixture);
    let thread = waits_for_start(client, &mut other);
    let mark = fixture.server.log_mark();
    fixture.server.kill9_postmaster();
    let (_, outcome) = thread.join().expect("the waiting backend");
    // what it says may arrive before it is gone
    if let Ok(said) = outcome {
        assert_eq!(said, "postmaster died, postmaster died, postmaster died");
    }
    let log = fixture.server.log_since(mark);
    assert!(
        log.contains("pgbq_test: the handle says postmaster died, postmaster died"),
        "{log}"
    );
}

#[test]
fn on_a_standby_nothing_starts() {
    let (fixture, _client) = start();
    let mut standby = physical_copy(&fixture.server, &["-R"]);
    standby.start();
    let said: String = scalar(
        &mut standby.superuser(),
        "SELECT pgbq_test_handle(11, 200, 0)",
        &[],
    );
    assert_eq!(said, "not yet, not yet, stopped");
}
