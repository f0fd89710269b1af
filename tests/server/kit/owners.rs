//! Owners that are workers themselves, dynamic and static, and their successors.

use std::fs;

use postgres::Client;

use super::{assert_nothing_is_left, prepare, processes, start};
use crate::harness::{PATIENCE, Server, is_alive, kill, scalar, wait_for, wait_quiet, wait_until};
use crate::safe_layer::Fixture;

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

/// The static owner that is set up, but for this one.
fn owner_but(fixture: &Fixture, gone: i32) -> i32 {
    wait_for("the owner to be set up", PATIENCE, || {
        let all = processes(fixture, "pgbq_test supervisor idle");
        all.into_iter().find(|pid| *pid != gone)
    })
}

/// Its worker has no session, which makes no difference.
#[test]
fn a_static_owner_that_is_restarted_takes_over_its_own_workers() {
    let fixture = Fixture::start_with(Server::builder().conf("pgbq_test.static_workers", "2"));
    let mut client = prepare(&fixture);
    let mut owner = owner_but(&fixture, 0);
    wait_until("it to hear of the start", || {
        told(&fixture.server.log()) == ["started"]
    });
    let workers = processes(&fixture, "pgbq_test inherited");
    let [worker] = workers[..] else {
        panic!("{workers:?}");
    };
    for _ in 0..3 {
        kill(owner, libc::SIGTERM);
        owner = owner_but(&fixture, owner);
        wait_quiet(owner);
        assert_eq!(processes(&fixture, "pgbq_test inherited"), [worker]);
        assert_eq!(told(&fixture.server.log()), ["started"]);
        assert_eq!(
            scalar::<i32>(&mut client, "SELECT pgbq_test_in_use()", &[]),
            1
        );
    }
    kill(worker, libc::SIGTERM);
    wait_until("the last one to hear of the end", || {
        told(&fixture.server.log()) == ["started", "died with 42"]
    });
    assert_nothing_is_left(&mut client);
}
