//! The example of docs/background-workers.md, as a static worker and as a dynamic one.

use std::fs;

use postgres::Client;

use super::{assert_nothing_is_left, prepare, source, start};
use crate::harness::{PATIENCE, Server, is_alive, kill, run, scalar, wait_for, wait_until};
use crate::safe_layer::Fixture;

#[test]
fn the_example_of_the_documentation_is_what_is_compiled() {
    let text = source("src/test_surface/proof/counter.rs");
    assert!(text.lines().count() < 40);
    let document = source("docs/background-workers.md");
    assert!(
        document.contains(&format!("```rust\n{text}```\n")),
        "docs/background-workers.md has another text than src/test_surface/proof/counter.rs"
    );
}

/// The counters that run: pid, application_name, state, database.
fn counters(client: &mut Client) -> Vec<(i32, String, Option<String>, Option<String>)> {
    client
        .query(
            "SELECT pid, application_name, state, datname FROM pg_stat_activity WHERE backend_type = 'counter'",
            &[],
        )
        .expect("pg_stat_activity")
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
        .collect()
}

#[track_caller]
fn the_counter(client: &mut Client) -> i32 {
    let pid = wait_for("the counter to have opened its session", PATIENCE, || {
        let all = counters(client);
        let [(pid, name, state, database)] = all.as_slice() else {
            return None;
        };
        let ready = name == "counter"
            && state.as_deref() == Some("idle")
            && database.as_deref() == Some("postgres");
        ready.then_some(*pid)
    });
    let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("its title");
    assert!(
        title.contains("counter") && title.contains("idle"),
        "{title}"
    );
    pid
}

fn rounds(client: &mut Client) -> i64 {
    scalar(client, "SELECT rounds FROM counter", &[])
}

#[track_caller]
fn wait_rounds(client: &mut Client) {
    let before = rounds(client);
    wait_until("the counter to count", || rounds(client) > before);
}

#[test]
fn a_static_and_a_dynamic_worker_are_the_same() {
    let fixture = Fixture::start_with(Server::builder().conf("pgbq_test.static_workers", "1"));
    let mut client = prepare(&fixture);
    let first = the_counter(&mut client);
    // each round fails until there is a table; the process lives on
    let missing = "ERROR:  relation \"public.counter\" does not exist";
    wait_until("two failing rounds", || {
        fixture.server.log().matches(missing).count() >= 2
    });
    run(
        &mut client,
        "CREATE TABLE counter (rounds bigint); INSERT INTO counter VALUES (0)",
    );
    wait_rounds(&mut client);
    assert_eq!(the_counter(&mut client), first);
    // autovacuum would see what it does
    wait_until("its statistics", || {
        scalar::<bool>(
            &mut client,
            "SELECT n_tup_upd > 0 FROM pg_stat_user_tables WHERE relname = 'counter'",
            &[],
        )
    });
    // a static worker is in a pool, too, if it wants to be; in one slot, however often it asks
    wait_until("its second attempt", || {
        let log = fixture.server.log();
        log.contains("pgbq_test: a process has one slot only")
    });
    let joined = wait_for(
        "the other static worker to be found by key",
        PATIENCE,
        || {
            let pid: i32 = scalar(&mut client, "SELECT pgbq_test_find(12)", &[]);
            (pid != 0).then_some(pid)
        },
    );
    assert!(is_alive(joined));
    assert_eq!(
        scalar::<i32>(&mut client, "SELECT pgbq_test_signal(12, 't')", &[]),
        1
    );
    assert!(scalar::<bool>(
        &mut client,
        "SELECT pgbq_test_wait_for_exit(12, NULL)",
        &[]
    ));
    assert_nothing_is_left(&mut client);

    // terminated, it comes again; and the dynamic one counts beside it
    kill(first, libc::SIGTERM);
    wait_until("the counter to be restarted", || {
        let all = counters(&mut client);
        !is_alive(first) && all.len() == 1 && all[0].0 != first
    });
    let dynamic: i32 = scalar(&mut client, "SELECT pgbq_test_start_counter()", &[]);
    wait_until("both to run", || {
        let all = counters(&mut client);
        all.len() == 2 && all.iter().any(|counter| counter.0 == dynamic)
    });
    wait_rounds(&mut client);
}

/// Whether it waits for a lock.
fn is_blocked(client: &mut Client, pid: i32) -> bool {
    scalar(
        client,
        "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)",
        &[&pid],
    )
}

#[test]
fn the_example_does_what_the_documentation_says_of_it() {
    let (mut fixture, mut client) = start();
    run(
        &mut client,
        "CREATE TABLE counter (rounds bigint, memory text, timeout text); INSERT INTO counter VALUES (0);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_sleep(0.01); NEW.memory = current_setting(''work_mem'');
                    NEW.timeout = current_setting(''statement_timeout''); RETURN NEW; END';
         CREATE TRIGGER note BEFORE UPDATE ON counter FOR EACH ROW EXECUTE FUNCTION note()",
    );
    // statement_timeout does nothing in a worker
    run(
        &mut client,
        "ALTER DATABASE postgres SET statement_timeout = '1ms'",
    );
    let first: i32 = scalar(&mut client, "SELECT pgbq_test_start_counter()", &[]);
    wait_rounds(&mut client);
    run(
        &mut client,
        "ALTER DATABASE postgres RESET statement_timeout",
    );
    assert_eq!(
        scalar::<String>(&mut client, "SELECT timeout FROM counter", &[]),
        "1ms"
    );
    // pg_reload_conf()
    fixture.server.set_and_reload("work_mem", "5MB");
    wait_until("a round with the new settings", || {
        scalar(&mut client, "SELECT memory = '5MB' FROM counter", &[])
    });
    // in the middle of a statement: a cancel is an error, and the next round follows
    let mut other = fixture.client();
    run(&mut other, "BEGIN; LOCK TABLE counter");
    wait_until("a statement that waits", || is_blocked(&mut client, first));
    let mark = fixture.server.log_mark();
    run(&mut client, &format!("SELECT pg_cancel_backend({first})"));
    wait_until("the cancel", || {
        let log = fixture.server.log_since(mark);
        log.contains("ERROR:  canceling statement due to user request")
    });
    wait_until("the next round", || is_blocked(&mut client, first));
    // a termination ends it, and it is restarted
    run(
        &mut client,
        &format!("SELECT pg_terminate_backend({first})"),
    );
    wait_until("it to end", || !is_alive(first));
    assert_eq!(
        scalar::<i64>(&mut other, "SELECT count(*) FROM counter", &[]),
        1
    );
    run(&mut other, "COMMIT");
    wait_rounds(&mut client);
    let second = the_counter(&mut client);
    assert_ne!(first, second);
    // and the death of the postmaster ends it
    fixture.server.kill9_postmaster();
    assert!(!is_alive(second));
}

#[test]
fn a_session_by_name_is_a_login_of_that_role() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    run(
        &mut client,
        "CREATE ROLE somebody LOGIN; ALTER ROLE somebody SET work_mem = '5MB'",
    );
    let mark = fixture.server.log_mark();
    run(&mut client, "SELECT pgbq_test_start(6, 3)");
    wait_until("the worker's line", || {
        let log = fixture.server.log_since(mark);
        // the log's prefix knows user and database
        log.lines().any(|line| {
            line.contains("pgbq_test worker somebody@postgres")
                && line.contains("pgbq_test: waiting")
        })
    });
    let shown: String = scalar(
        &mut client,
        "SELECT usename || ' ' || application_name || ' ' || state FROM pg_stat_activity \
         WHERE backend_type = 'pgbq_test worker'",
        &[],
    );
    assert_eq!(shown, "somebody pgbq_test idle");
}
