//! What an owner hears of its workers, and who else finds them.

use std::fs;
use std::path::Path;
use std::thread;

use postgres::Client;
use postgres::error::SqlState;

use super::{StandsStill, assert_nothing_is_left, prepare, start};
use crate::harness::{PATIENCE, Server, is_alive, run, scalar, wait_for, wait_until};
use crate::safe_layer::Fixture;

/// What an owner hears of a worker that fails in this way.
fn heard(client: &mut Client, way: i32) -> String {
    scalar(client, "SELECT pgbq_test_fail($1, NULL)", &[&way])
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
        (10, "failed: TooSlow"),      // never ready, and terminated for that
    ] {
        for _ in 0..3 {
            assert_eq!(heard(&mut client, way), told, "{way}");
        }
    }
    assert_nothing_is_left(&mut client);
}

/// The process of the worker that waits, if it is ready.
fn found(client: &mut Client) -> Option<i32> {
    let pid: i32 = scalar(client, "SELECT pgbq_test_find(11)", &[]);
    (pid != 0).then_some(pid)
}

/// A backend that owns a worker that waits; its pid.
fn waiting(fixture: &Fixture, client: &mut Client) -> (thread::JoinHandle<(Client, String)>, i32) {
    let mut owner = fixture.client();
    let thread = thread::spawn(move || {
        let told = heard(&mut owner, 11);
        (owner, told)
    });
    let pid = wait_for("the worker to be found by its key", PATIENCE, || {
        found(client)
    });
    (thread, pid)
}

fn terminate(client: &mut Client) -> i32 {
    scalar(client, "SELECT pgbq_test_signal(11, 't')", &[])
}

#[test]
fn a_worker_that_does_not_come_in_time_is_too_slow() {
    let (fixture, mut client) = start();
    for _ in 0..2 {
        let still = StandsStill::begin(&fixture);
        assert_eq!(heard(&mut client, 10), "failed: TooSlow");
        assert_nothing_is_left(&mut client);
        drop(still);
        // the postmaster does not start it any more
        assert_eq!(heard(&mut client, 7), "started, exited with 42");
        assert_nothing_is_left(&mut client);
    }
    let log = fixture.server.log();
    assert!(!log.contains("FATAL:  terminating"), "{log}");
}

#[test]
fn a_worker_that_comes_but_is_not_ready_in_time_is_too_slow_and_terminated() {
    let (fixture, mut client) = start();
    assert_eq!(heard(&mut client, 10), "failed: TooSlow");
    let log = fixture.server.log();
    assert!(log.contains("FATAL:  terminating"), "{log}");
    assert_nothing_is_left(&mut client);
}

#[test]
fn a_worker_that_was_withdrawn_leaves_when_it_comes() {
    let (fixture, mut client) = start();
    let mut owner = fixture.client();
    let mut waiter = fixture.client();
    let still = StandsStill::begin(&fixture);
    let owner = thread::spawn(move || heard(&mut owner, 11));
    wait_until("it to be asked for", || {
        scalar::<i32>(&mut client, "SELECT pgbq_test_in_use()", &[]) == 1
    });
    let waiter = thread::spawn(move || {
        scalar::<bool>(&mut waiter, "SELECT pgbq_test_wait_for_exit(11, NULL)", &[])
    });
    assert_eq!(terminate(&mut client), 1);
    assert_eq!(owner.join().expect("the owner"), "failed: Withdrawn");
    assert!(waiter.join().expect("who waits for it"));
    assert_nothing_is_left(&mut client);
    drop(still);
    wait_until("it to come and to leave", || {
        let log = fixture.server.log();
        log.contains("LOG:  pgbq_test: a late worker leaves")
    });
    assert_nothing_is_left(&mut client);
}

#[test]
fn a_callback_that_fails_is_not_called_again() {
    let (_fixture, mut client) = start();
    for _ in 0..3 {
        assert_eq!(
            scalar::<String>(&mut client, "SELECT pgbq_test_hear_with_errors()", &[]),
            "died with 42, exited with 42, started, started"
        );
    }
    assert_nothing_is_left(&mut client);
}

#[test]
fn an_owner_does_not_sleep_over_what_happens_during_a_callback() {
    let (_fixture, mut client) = start();
    for _ in 0..3 {
        assert_eq!(
            scalar::<i32>(&mut client, "SELECT pgbq_test_hear_late()", &[]),
            2
        );
        assert_nothing_is_left(&mut client);
    }
}

#[test]
fn a_process_id_that_is_used_again_is_another_life() {
    // the kernel's last process id, where it lets it be set
    const LAST: &str = "/proc/sys/kernel/ns_last_pid";
    if fs::OpenOptions::new().write(true).open(LAST).is_err() {
        eprintln!("{LAST} cannot be written: process ids cannot be brought back");
        return;
    }
    let (fixture, mut client) = start();
    let (thread, pid) = waiting(&fixture, &mut client);
    assert_eq!(terminate(&mut client), 1);
    let (mut owner, told) = thread.join().expect("the owner");
    assert_eq!(told, "started, died with 42");
    // others begin processes, too: until it is that one
    for _ in 0..500 {
        wait_until("the process id to be free", || {
            !Path::new(&format!("/proc/{pid}")).exists()
        });
        let thread = thread::spawn(move || {
            // not earlier: a thread takes a number of these, too
            fs::write(LAST, (pid - 1).to_string()).expect("set the last process id");
            let told = heard(&mut owner, 11);
            (owner, told)
        });
        let next = wait_for("the next worker", PATIENCE, || found(&mut client));
        assert_eq!(terminate(&mut client), 1);
        let (back, told) = thread.join().expect("the owner");
        assert_eq!(told, "started, died with 42");
        assert_eq!(found(&mut client), None);
        assert_nothing_is_left(&mut client);
        if next == pid {
            return;
        }
        owner = back;
    }
    panic!("process id {pid} did not come again");
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
