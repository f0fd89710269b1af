//! The worker kit (src/pg/bgworker), by workers that have nothing to do with the queue: src/test_surface/proof.

use std::fs;
use std::path::Path;
use std::thread;

use postgres::Client;
use postgres::error::SqlState;

use crate::harness::{PATIENCE, Server, is_alive, kill, run, scalar, wait_for, wait_until};
use crate::safe_layer::Fixture;

const FUNCTIONS: &[&str] = &[
    "pgbq_test_start_counter() RETURNS int",
    "pgbq_test_sum(bigint, bigint) RETURNS bigint",
    "pgbq_test_fail(int, int) RETURNS text",
    "pgbq_test_find(int) RETURNS int",
    "pgbq_test_signal(int, text) RETURNS int",
    "pgbq_test_wait_for_exit(int, int) RETURNS bool",
    "pgbq_test_in_use() RETURNS int",
    "pgbq_test_supervise(int) RETURNS int",
    "pgbq_test_handle(int, int, int) RETURNS text",
];

fn prepare(fixture: &Fixture) -> Client {
    let mut client = fixture.client();
    for function in FUNCTIONS {
        run(
            &mut client,
            &format!("CREATE FUNCTION {function} LANGUAGE c AS 'pg_background_queue'"),
        );
    }
    client
}

fn start() -> (Fixture, Client) {
    let fixture = Fixture::start();
    let client = prepare(&fixture);
    (fixture, client)
}

fn source(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_proof_workers_are_safe_rust() {
    for file in ["counter", "sums", "failing", "mod"] {
        let text = source(&format!("src/test_surface/proof/{file}.rs"));
        let code = text.lines().filter(|line| !line.starts_with("//"));
        for line in code {
            assert!(
                !line.contains("unsafe") && !line.contains("pg_sys"),
                "{file}: {line}"
            );
        }
    }
}

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
fn counters(client: &mut Client) -> Vec<(i32, String, Option<String>, String)> {
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
        let ready = name == "counter" && state.as_deref() == Some("idle") && database == "postgres";
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
    // a static worker is in a pool, too, if it wants to be
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

#[test]
fn a_backend_collects_what_its_workers_have_found() {
    // the postmaster gives the place of a worker free when it gets to it, so some more than three are in use
    let fixture = Fixture::start_with(Server::builder().conf("max_worker_processes", "40"));
    let mut client = prepare(&fixture);
    for (last, size) in [(10_i64, 10_i64), (1000, 100), (7, 1), (0, 1)] {
        let sum: i64 = scalar(&mut client, "SELECT pgbq_test_sum($1, $2)", &[&last, &size]);
        assert_eq!(sum, last * (last + 1) / 2);
    }
    // two backends at once do not get each other's
    let threads: Vec<_> = (0..2)
        .map(|i| {
            let mut client = fixture.client();
            thread::spawn(move || {
                for last in [10 + i, 20 + i, 30 + i] {
                    // there may be no slot left, which is told; no sum is wrong
                    match client.query_one("SELECT pgbq_test_sum($1, 10)", &[&last]) {
                        Ok(row) => assert_eq!(row.get::<_, i64>(0), last * (last + 1) / 2),
                        Err(error) => {
                            let error = error.as_db_error().expect("an error of the server");
                            assert_eq!(
                                error.message(),
                                "a worker could not be started: NoWorkerSlot"
                            );
                        }
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("a backend");
    }
}

/// What an owner hears of a worker that fails in this way.
fn heard(client: &mut Client, way: i32) -> String {
    scalar(client, "SELECT pgbq_test_fail($1, NULL)", &[&way])
}

#[track_caller]
fn assert_nothing_is_left(client: &mut Client) {
    wait_until("all slots to be free", || {
        scalar::<i32>(client, "SELECT pgbq_test_in_use()", &[]) == 0
    });
}

#[test]
fn each_life_is_told_exactly_once() {
    let (_fixture, mut client) = start();
    for (way, told) in [
        (1, "failed: NeverCame"), // no such function in the library
        (2, "failed: NeverCame"), // no such library
        (3, "failed: NeverCame"), // an error before it has its slot
        (4, "failed: NeverCame"), // and an exit
        (5, "failed: NotReady"),  // no such database
        (6, "failed: NotReady"),  // an error before it is ready
        (7, "started, exited with 42"),
        (8, "started, died with 42"), // an error
        (9, "started, died with 42"), // a panic
        (10, "failed: NotReady"),     // never ready, and terminated for that
    ] {
        for _ in 0..3 {
            assert_eq!(heard(&mut client, way), told, "{way}");
        }
    }
    assert_nothing_is_left(&mut client);
}

/// A backend that owns a worker that waits; its pid.
fn waiting(fixture: &Fixture, client: &mut Client) -> (thread::JoinHandle<(Client, String)>, i32) {
    let mut owner = fixture.client();
    let thread = thread::spawn(move || {
        let told = heard(&mut owner, 11);
        (owner, told)
    });
    let pid = wait_for("the worker to be found by its key", PATIENCE, || {
        let pid: i32 = scalar(client, "SELECT pgbq_test_find(11)", &[]);
        (pid != 0).then_some(pid)
    });
    (thread, pid)
}

#[test]
fn workers_are_found_signalled_and_waited_for_by_key() {
    let (fixture, mut client) = start();
    let (owner, pid) = waiting(&fixture, &mut client);
    let mark = fixture.server.log_mark();
    assert_eq!(
        scalar::<i32>(&mut client, "SELECT pgbq_test_signal(11, 'w')", &[]),
        1
    );
    wait_until("it to be woken", || {
        fixture
            .server
            .log_since(mark)
            .contains("pgbq_test: a worker was woken")
    });
    // a cancel that finds nothing to cancel
    assert_eq!(
        scalar::<i32>(&mut client, "SELECT pgbq_test_signal(11, 'c')", &[]),
        1
    );
    assert!(!scalar::<bool>(
        &mut client,
        "SELECT pgbq_test_wait_for_exit(11, 50)",
        &[]
    ));
    assert!(is_alive(pid));
    // another one waits for the end, without a time-out
    let mut other = fixture.client();
    let waiter = thread::spawn(move || {
        scalar::<bool>(&mut other, "SELECT pgbq_test_wait_for_exit(11, NULL)", &[])
    });
    wait_until("somebody to wait", || {
        scalar::<i64>(
            &mut client,
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%wait_for_exit(11, NULL)%' AND pid <> pg_backend_pid()",
            &[],
        ) == 1
    });
    assert_eq!(
        scalar::<i32>(&mut client, "SELECT pgbq_test_signal(11, 't')", &[]),
        1
    );
    assert!(waiter.join().expect("the waiting backend"));
    let (_, told) = owner.join().expect("the owner");
    assert_eq!(told, "started, died with 42");
    assert!(scalar::<bool>(
        &mut client,
        "SELECT pgbq_test_wait_for_exit(11, 0)",
        &[]
    ));
    assert_eq!(
        scalar::<i32>(&mut client, "SELECT pgbq_test_signal(11, 't')", &[]),
        0
    );
    assert_nothing_is_left(&mut client);
}

#[test]
fn workers_go_with_their_owner() {
    let (fixture, mut client) = start();
    // its time is over
    let told: String = scalar(&mut client, "SELECT pgbq_test_fail(11, 0)", &[]);
    assert!(told.ends_with("is still there"), "{told}");
    assert_nothing_is_left(&mut client);
    // it is cancelled, and terminated
    for act in ["pg_cancel_backend", "pg_terminate_backend"] {
        let mut owner = fixture.client();
        let owner_pid: i32 = scalar(&mut owner, "SELECT pg_backend_pid()", &[]);
        let thread = thread::spawn(move || {
            owner
                .query_one("SELECT pgbq_test_fail(11, NULL)", &[])
                .map(|_| ())
        });
        let worker = wait_for("the worker", PATIENCE, || {
            let pid: i32 = scalar(&mut client, "SELECT pgbq_test_find(11)", &[]);
            (pid != 0).then_some(pid)
        });
        run(&mut client, &format!("SELECT {act}({owner_pid})"));
        let error = thread.join().expect("the owner").expect_err("an interrupt");
        assert!(
            error.is_closed()
                || [
                    Some(&SqlState::QUERY_CANCELED),
                    Some(&SqlState::ADMIN_SHUTDOWN)
                ]
                .contains(&error.code()),
            "{error:?}"
        );
        wait_until("the worker to end", || !is_alive(worker));
        assert_nothing_is_left(&mut client);
    }
}

#[test]
fn a_worker_slot_that_is_not_there_is_told_at_once() {
    let fixture = Fixture::start_with(Server::builder().conf("max_worker_processes", "2"));
    let mut client = prepare(&fixture);
    // the two are the launchers of the queue and of logical replication
    wait_until("both to be there", || {
        scalar::<i64>(
            &mut client,
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE '%launcher' AND backend_type NOT LIKE 'auto%'",
            &[],
        ) == 2
    });
    for _ in 0..3 {
        assert_eq!(heard(&mut client, 7), "failed: NoWorkerSlot");
    }
    assert_eq!(
        scalar::<i32>(&mut client, "SELECT pgbq_test_in_use()", &[]),
        0
    );
}

#[test]
fn a_fork_that_fails_is_told_at_once() {
    let (fixture, mut client) = start();
    let postmaster = fixture.server.postmaster_pid().to_string();
    // as the server's user, who may
    let limit = |processes: &str| {
        let status = fixture
            .server
            .tool("/usr/bin/prlimit")
            .args(["--pid", &postmaster, processes])
            .status();
        assert!(status.expect("run prlimit").success());
    };
    let limits = fs::read_to_string(format!("/proc/{postmaster}/limits")).expect("its limits");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max processes"));
    let before = line
        .and_then(|line| line.split_whitespace().nth(2))
        .expect("its soft limit");
    limit("--nproc=1:");
    let told = heard(&mut client, 7);
    limit(&format!("--nproc={before}:"));
    assert_eq!(told, "failed: NeverCame");
    assert!(fixture.server.log().contains("could not fork"));
    assert_eq!(heard(&mut client, 7), "started, exited with 42");
    assert_nothing_is_left(&mut client);
}

/// What supervisors have heard, in order, without their pids.
fn told(log: &str) -> Vec<&str> {
    log.lines()
        .filter_map(|line| {
            line.split_once("LOG:  pgbq_test supervisor ")?
                .1
                .split_once(": ")
        })
        .map(|(_, event)| event)
        .collect()
}

#[test]
fn a_successor_takes_over_the_workers_of_a_dynamic_owner() {
    let (fixture, mut client) = start();
    let mark = fixture.server.log_mark();
    let inherited = |client: &mut Client| -> Option<i32> {
        let row = client
            .query_opt(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pgbq_test inherited'",
                &[],
            )
            .expect("pg_stat_activity");
        row.map(|row| row.get(0))
    };
    // it hears of the start, and goes; the worker stays
    let first: i32 = scalar(&mut client, "SELECT pgbq_test_supervise(11)", &[]);
    wait_until("the first to hear", || {
        told(&fixture.server.log_since(mark)) == ["started"]
    });
    let worker = inherited(&mut client).expect("the worker");
    kill(first, libc::SIGTERM);
    wait_until("the first to end", || !is_alive(first));
    assert!(is_alive(worker));
    // the next hears only the rest
    let second: i32 = scalar(&mut client, "SELECT pgbq_test_supervise(0)", &[]);
    wait_until("the second to be at work", || {
        let title = fs::read_to_string(format!("/proc/{second}/cmdline")).unwrap_or_default();
        title.contains("idle")
    });
    kill(worker, libc::SIGTERM);
    wait_until("the second to hear", || {
        told(&fixture.server.log_since(mark)) == ["started", "died with 42"]
    });
    // what ends while there is nobody is told to the third
    kill(second, libc::SIGTERM);
    wait_until("the second to end", || !is_alive(second));
    let third: i32 = scalar(&mut client, "SELECT pgbq_test_supervise(11)", &[]);
    let all = ["started", "died with 42", "started", "died with 42"];
    wait_until("the third to hear", || {
        told(&fixture.server.log_since(mark)) == all[..3]
    });
    let worker = inherited(&mut client).expect("the worker");
    kill(third, libc::SIGTERM);
    wait_until("the third to end", || !is_alive(third));
    kill(worker, libc::SIGTERM);
    wait_until("the worker to end", || !is_alive(worker));
    let fourth: i32 = scalar(&mut client, "SELECT pgbq_test_supervise(0)", &[]);
    wait_until("the fourth to hear", || {
        told(&fixture.server.log_since(mark)) == all
    });
    assert!(is_alive(fourth));
    assert_nothing_is_left(&mut client);
}

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
        !plain_workers(&fixture).is_empty()
    });
    run(&mut other, &format!("SELECT pg_cancel_backend({victim})"));
    let (mut client, error) = thread.join().expect("the waiting backend");
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
    assert_eq!(
        scalar::<i32>(&mut client, "SELECT pg_backend_pid()", &[]),
        victim
    );
    wait_until("the worker to end", || plain_workers(&fixture).is_empty());
}

/// Processes without a session are not in pg_stat_activity.
fn plain_workers(fixture: &Fixture) -> Vec<i32> {
    crate::harness::children(fixture.server.postmaster_pid())
        .into_iter()
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|title| title.contains("pgbq_test plain"))
        })
        .collect()
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
        !plain_workers(&fixture).is_empty()
    });
    let mark = fixture.server.log_mark();
    fixture.server.kill9_postmaster();
    thread.join().expect("the client");
    let log = fixture.server.log_since(mark);
    assert!(
        log.contains("pgbq_test: the handle says postmaster died"),
        "{log}"
    );
}
