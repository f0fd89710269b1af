//! Tasks that wait for their time: they keep nobody waiting, come into the queue when it has come, and stand there in order.

use std::time::{Duration, SystemTime};

use postgres::Client;

use crate::harness::{
    PATIENCE, Server, Task, enqueue, index_reads, old_snapshot, run, scalar, task, wait_all_closed,
    wait_for, wait_state,
};

const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";
const IDLE_TIMEOUT: &str = "pg_background_queue.worker_idle_timeout";

/// How long "promptly" may be on a shared machine.
const PROMPTLY: Duration = Duration::from_secs(15);

fn server(limit: u32) -> Server {
    let server = Server::builder()
        .conf(LIMIT, &limit.to_string())
        .conf("max_worker_processes", "16")
        .conf(IDLE_TIMEOUT, "10min")
        // what is counted here is not to be vacuumed away
        .conf("autovacuum", "off")
        .start();
    run(
        &mut server.superuser(),
        "CREATE TABLE runs (place bigserial, n int)",
    );
    server
}

#[track_caller]
fn enqueue_at(client: &mut Client, sql: &str, run_at: &str) -> i64 {
    scalar(
        client,
        &format!("SELECT pg_background_queue_enqueue($1, run_at => {run_at})"),
        &[&sql],
    )
}

fn is_scheduled(client: &mut Client, id: i64) -> bool {
    scalar(
        client,
        "SELECT scheduled FROM pg_background_tasks WHERE id = $1",
        &[&id],
    )
}

#[track_caller]
fn assert_began_promptly(done: &Task) {
    let (due, began) = (
        done.due_at.expect("its time"),
        done.started_at.expect("a start"),
    );
    let late = began.duration_since(due).expect("not before its time");
    assert!(late < PROMPTLY, "{late:?} late: {done:?}");
}

fn order(client: &mut Client) -> Vec<i32> {
    scalar(
        client,
        "SELECT coalesce(array_agg(n ORDER BY place), '{}') FROM runs",
        &[],
    )
}

/// Entries of these indexes that are read while so many plain tasks run, one after the other.
fn entries_read(client: &mut Client, tasks: i64) -> i64 {
    let (scans, before) = index_reads(client, 0);
    for _ in 0..tasks {
        let id = enqueue(client, "SELECT 1");
        wait_state(client, id, "finished");
    }
    index_reads(client, scans + tasks).1 - before
}

/// 100,000 of them, with a topic and without, and some that wait for a retry.
#[test]
fn tasks_that_are_not_due_cost_other_tasks_of_their_role_nothing() {
    let server = server(2);
    let mut client = server.superuser();
    let alone = entries_read(&mut client, 20);
    run(
        &mut client,
        "SELECT count(pg_background_queue_enqueue('SELECT 1', CASE WHEN n % 2 = 0 THEN 'later' END, run_at => now() + n * interval '1 hour')) \
         FROM generate_series(1, 100000) AS n; \
         UPDATE pg_background_tasks SET state = 'retrying' WHERE id % 10 = 0 AND scheduled",
    );
    let beside = entries_read(&mut client, 20);
    eprintln!("entries read for 20 tasks: {alone} alone, {beside} beside 100,000");
    assert!(beside < alone + 20 * 50, "{alone} alone, {beside} beside");
}

/// The index entries of tasks that were let in are there as long as anybody has an old snapshot.
#[test]
fn tasks_that_were_due_cost_later_looks_nothing() {
    let server = server(1);
    let mut client = server.superuser();
    let old = old_snapshot(&server);
    run(
        &mut client,
        "SELECT count(pg_background_queue_enqueue('SELECT 1', run_at => clock_timestamp() + '2 s')) FROM generate_series(1, 2000); \
         SELECT count(pg_background_queue_enqueue('SELECT 1', run_at => clock_timestamp() + '1 hour')) FROM generate_series(1, 2000)",
    );
    wait_for("those that are due", PATIENCE, || {
        let left: i64 = scalar(
            &mut client,
            "SELECT count(*) FROM pg_background_tasks WHERE closed_at IS NULL",
            &[],
        );
        (left == 2000).then_some(())
    });
    let read = entries_read(&mut client, 20);
    assert!(read < 20 * 50, "{read} entries read for 20 tasks");
    drop(old);
}

#[test]
fn tasks_that_become_due_together_run_in_their_order() {
    let server = server(1);
    let mut client = server.superuser();
    run(
        &mut client,
        "SELECT count(pg_background_queue_enqueue(format('INSERT INTO runs (n) VALUES (%s)', n), \
             priority => 100 - n % 3, run_at => now() + '1.5 s')) \
         FROM generate_series(1, 300) AS n",
    );
    wait_all_closed(&mut client, PATIENCE);
    let mut expected: Vec<i32> = (1..=300).collect();
    expected.sort_by_key(|n| (100 - n % 3, *n));
    assert_eq!(order(&mut client), expected);
    let early: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE started_at < due_at OR scheduled",
        &[],
    );
    assert_eq!(early, 0);
}

#[test]
fn a_task_that_becomes_due_goes_before_those_of_worse_priority_that_wait() {
    let server = server(1);
    let mut client = server.superuser();
    let best: i64 = scalar(
        &mut client,
        "SELECT pg_background_queue_enqueue('SELECT 1', priority => 1, run_at => clock_timestamp() + '1 s')",
        &[],
    );
    run(
        &mut client,
        "SELECT count(pg_background_queue_enqueue('SELECT pg_sleep(0.02)')) FROM generate_series(1, 2000)",
    );
    let done = wait_state(&mut client, best, "finished");
    assert_began_promptly(&done);
    let left: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE state = 'pending'",
        &[],
    );
    assert!(left > 0, "it came after all the others");
}

/// More than are let in at once, with the best of them as the last to become due.
#[test]
fn a_better_priority_is_not_behind_a_crowd_that_became_due_before() {
    let mut server = server(1);
    let mut client = server.superuser();
    run(
        &mut client,
        "SELECT count(pg_background_queue_enqueue('SELECT pg_sleep(0.02)', run_at => clock_timestamp() + '2 s')) \
         FROM generate_series(1, 5000)",
    );
    let best: i64 = scalar(
        &mut client,
        "SELECT pg_background_queue_enqueue('SELECT 1', priority => 1, run_at => clock_timestamp() + '2.1 s')",
        &[],
    );
    drop(client);
    // their time comes while the server is down
    server.stop(crate::harness::Stop::Fast);
    std::thread::sleep(Duration::from_millis(2500));
    server.start();
    let mut client = server.superuser();
    wait_state(&mut client, best, "finished");
    let before: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks \
         WHERE started_at < (SELECT started_at FROM pg_background_tasks WHERE id = $1)",
        &[&best],
    );
    assert!(before < 500, "{before} were begun before it");
    run(
        &mut client,
        "SELECT count(pg_background_queue_cancel(id)) FROM pg_background_tasks WHERE state = 'pending'",
    );
}

#[test]
fn what_became_due_while_the_server_was_down_runs_when_it_is_back() {
    let mut server = server(3);
    let mut client = server.superuser();
    run(
        &mut client,
        "SELECT count(pg_background_queue_enqueue(format('INSERT INTO runs (n) VALUES (%s)', n), run_at => clock_timestamp() + '1 s')) \
         FROM generate_series(1, 2000) AS n",
    );
    drop(client);
    server.stop(crate::harness::Stop::Immediate);
    std::thread::sleep(Duration::from_millis(1200));
    server.start();
    let mut client = server.superuser();
    wait_all_closed(&mut client, PATIENCE * 2);
    let mut ran = order(&mut client);
    ran.sort_unstable();
    assert_eq!(ran, (1..=2000).collect::<Vec<i32>>());
}

#[test]
fn scheduled_tasks_can_be_cancelled_put_back_and_deleted() {
    let server = server(1);
    let mut client = server.superuser();
    let id = enqueue_at(&mut client, "SELECT 1", "now() + interval '1 hour'");
    assert!(is_scheduled(&mut client, id));
    let deleted: i64 = scalar(
        &mut client,
        "SELECT pg_background_queue_delete($1)",
        &[&vec![id]],
    );
    assert_eq!(deleted, 0, "it is open");
    let cancelled: bool = scalar(&mut client, "SELECT pg_background_queue_cancel($1)", &[&id]);
    assert!(cancelled && !is_scheduled(&mut client, id));
    let again: bool = scalar(&mut client, "SELECT pg_background_queue_retry($1)", &[&id]);
    assert!(again);
    wait_state(&mut client, id, "finished");
    let deleted: i64 = scalar(
        &mut client,
        "SELECT pg_background_queue_delete($1)",
        &[&vec![id]],
    );
    assert_eq!(deleted, 1);
    // a past time is no time to wait for
    let id = enqueue_at(&mut client, "SELECT 1", "now() - interval '1 hour'");
    assert!(!is_scheduled(&mut client, id));
}

#[test]
fn a_retry_is_scheduled_until_it_is_due() {
    let server = server(1);
    let mut client = server.superuser();
    let id: i64 = scalar(
        &mut client,
        "SELECT pg_background_queue_enqueue('SELECT 1/0', retry_count => 1)",
        &[],
    );
    wait_state(&mut client, id, "retrying");
    assert!(is_scheduled(&mut client, id));
    let done = wait_state(&mut client, id, "failed");
    assert!(!is_scheduled(&mut client, id));
    assert_began_promptly(&done);
    assert_eq!(done.attempt, 2);
}

#[test]
fn a_scheduled_task_from_elsewhere_is_held_and_keeps_its_time_when_it_is_released() {
    let mut server = server(1);
    let mut client = server.superuser();
    let past = enqueue_at(
        &mut client,
        "SELECT 1",
        "clock_timestamp() + interval '1 s'",
    );
    let future = enqueue_at(&mut client, "SELECT 1", "now() + interval '1 hour'");
    run(
        &mut client,
        "UPDATE pg_background_tasks SET origin = 'elsewhere/1'",
    );
    drop(client);
    server.restart();
    let mut client = server.superuser();
    wait_for("them to be held", PATIENCE, || {
        let held: i64 = scalar(
            &mut client,
            "SELECT count(*) FROM pg_background_tasks WHERE held",
            &[],
        );
        (held == 2).then_some(())
    });
    std::thread::sleep(Duration::from_millis(1500));
    // a look of the same role passes it over
    let id = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, id, "finished");
    assert_eq!(task(&mut client, past).state, "pending");
    let released: i64 = scalar(&mut client, "SELECT pg_background_queue_release()", &[]);
    assert_eq!(released, 2);
    wait_state(&mut client, past, "finished");
    assert!(is_scheduled(&mut client, future));
    assert_eq!(task(&mut client, future).state, "pending");
}

#[test]
fn a_due_task_whose_row_somebody_holds_keeps_no_other_waiting() {
    let server = server(2);
    let mut client = server.superuser();
    let mut holder = server.superuser();
    let run_at = "clock_timestamp() + interval '1 s'";
    let held: Vec<i64> = (0..3)
        .map(|_| enqueue_at(&mut client, "SELECT 1", run_at))
        .collect();
    let free = enqueue_at(&mut client, "SELECT 1", run_at);
    run(&mut holder, "BEGIN");
    holder
        .execute(
            "SELECT FROM pg_background_tasks WHERE id = ANY ($1) FOR UPDATE",
            &[&held],
        )
        .expect("lock");
    wait_state(&mut client, free, "finished");
    let next = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, next, "finished");
    for &id in &held {
        assert_eq!(task(&mut client, id).state, "pending");
    }
    run(&mut holder, "ROLLBACK");
    for &id in &held {
        wait_state(&mut client, id, "finished");
    }
}

/// With a worker that has looked already, and knows a later time; and with none.
#[test]
fn an_earlier_time_counts_though_a_later_one_is_known() {
    for idle_timeout in ["10min", "100ms"] {
        let server = server(1);
        server.set_and_reload(IDLE_TIMEOUT, idle_timeout);
        let mut client = server.superuser();
        let id = enqueue(&mut client, "SELECT 1");
        wait_state(&mut client, id, "finished");
        let later = enqueue_at(
            &mut client,
            "SELECT 1",
            "clock_timestamp() + interval '3 s'",
        );
        std::thread::sleep(Duration::from_millis(500));
        let sooner = enqueue_at(
            &mut client,
            "SELECT 1",
            "clock_timestamp() + interval '1 s'",
        );
        // its commit comes after its time
        run(&mut client, "BEGIN");
        let late = enqueue_at(
            &mut client,
            "SELECT 1",
            "clock_timestamp() + interval '0.3 s'",
        );
        std::thread::sleep(Duration::from_millis(1500));
        run(&mut client, "COMMIT");
        for id in [sooner, late, later] {
            assert_began_promptly(&wait_state(&mut client, id, "finished"));
        }
    }
}

/// What a superuser has changed by hand, and somebody asks for.
#[test]
fn a_time_that_was_changed_by_hand_counts_when_workers_are_asked_for() {
    let server = server(1);
    let mut client = server.superuser();
    let first = enqueue_at(&mut client, "SELECT 1", "'infinity'");
    let second = enqueue_at(&mut client, "SELECT 1", "now() + interval '1 day'");
    let id = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, id, "finished");
    for (id, due_at) in [(first, "NULL"), (second, "'2020-01-01'")] {
        run(
            &mut client,
            &format!(
                "UPDATE pg_background_tasks SET due_at = {due_at} WHERE id = {id}; SELECT pg_background_queue_ensure_workers()"
            ),
        );
        wait_state(&mut client, id, "finished");
    }
    // the other way round: in the queue, and not due
    let third = enqueue_at(
        &mut client,
        "SELECT 1",
        "clock_timestamp() + interval '1 day'",
    );
    run(
        &mut client,
        &format!(
            "UPDATE pg_background_tasks SET scheduled = false, due_at = clock_timestamp() + '1 s' WHERE id = {third}; \
             SELECT pg_background_queue_ensure_workers()"
        ),
    );
    assert_began_promptly(&wait_state(&mut client, third, "finished"));
}

/// Enqueueing for later starts no process before that.
#[test]
fn no_worker_comes_before_something_is_due() {
    let server = server(2);
    let mut client = server.superuser();
    let begin = SystemTime::now();
    let id = enqueue_at(
        &mut client,
        "SELECT 1",
        "clock_timestamp() + interval '3 s'",
    );
    std::thread::sleep(Duration::from_millis(1000));
    let early = crate::harness::worker_count(&mut client);
    let in_time = begin.elapsed().expect("a time") < Duration::from_millis(2500);
    assert!(early == 0 || !in_time, "{early} workers");
    assert_began_promptly(&wait_state(&mut client, id, "finished"));
}
