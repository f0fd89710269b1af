//! What may be said of a single task: its priority, time, retries and time limit, and that it is cancelled or put back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use postgres::Client;

use crate::harness::{
    PATIENCE, Server, Task, create_role, enqueue, enqueue_topic, enqueue_with, run, scalar, states,
    task, wait_all_closed, wait_closed, wait_for, wait_no_workers, wait_state, wait_until, workers,
};

const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";
const IDLE_TIMEOUT: &str = "pg_background_queue.worker_idle_timeout";
const RETRIES: &str = "pg_background_queue.retry_count";
const TOPICS: &str = "pg_background_queue.topic_config";

/// How long "promptly" may be on a shared machine.
const PROMPTLY: Duration = Duration::from_secs(15);

/// A server with the roles alice and bob and a function `work(n)` that notes in `runs` that it ran.
fn server(limit: u32) -> Server {
    let server = Server::builder()
        .conf(LIMIT, &limit.to_string())
        .conf("max_worker_processes", "16")
        .conf(IDLE_TIMEOUT, "10min")
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE public.runs (place bigserial, n int, pid int); \
         GRANT SELECT, INSERT ON public.runs TO PUBLIC; \
         GRANT USAGE ON SEQUENCE public.runs_place_seq TO PUBLIC; \
         CREATE FUNCTION public.work(n int) RETURNS void LANGUAGE sql AS \
         'INSERT INTO public.runs (n, pid) VALUES (n, pg_backend_pid())'",
    );
    create_role(&mut client, "alice");
    create_role(&mut client, "bob");
    server
}

/// The SQLSTATE with which enqueueing with these parameters is refused.
#[track_caller]
fn refusal(client: &mut Client, options: &str) -> String {
    let sql = format!("SELECT pg_background_queue_enqueue('SELECT 1', {options})");
    let error = client
        .query_one(&sql, &[])
        .err()
        .unwrap_or_else(|| panic!("{options} was accepted"));
    error
        .code()
        .unwrap_or_else(|| panic!("{error:?}"))
        .code()
        .to_owned()
}

#[track_caller]
fn cancel(client: &mut Client, id: i64) -> bool {
    scalar(client, "SELECT pg_background_queue_cancel($1)", &[&id])
}

#[track_caller]
fn retry(client: &mut Client, id: i64) -> bool {
    scalar(client, "SELECT pg_background_queue_retry($1)", &[&id])
}

/// How many runs with this number are there to stay.
fn runs_of(client: &mut Client, n: i32) -> i64 {
    scalar(client, "SELECT count(*) FROM runs WHERE n = $1", &[&n])
}

/// The numbers in the order in which they ran.
fn order(client: &mut Client) -> Vec<i32> {
    scalar(
        client,
        "SELECT coalesce(array_agg(n ORDER BY place), '{}') FROM runs",
        &[],
    )
}

/// A task that waits until the test lets go of advisory lock 1.
const GATE: &str = "SELECT pg_advisory_xact_lock_shared(1)";

fn close_gate(client: &mut Client) {
    run(client, "SELECT pg_advisory_lock(1)");
}

fn open_gate(client: &mut Client) {
    run(client, "SELECT pg_advisory_unlock(1)");
}

/// The process that runs this task, once it does.
#[track_caller]
fn wait_worker_of(client: &mut Client, id: i64) -> i32 {
    let name = format!("pg_background_queue task {id}");
    wait_for(&format!("a worker at work on task {id}"), PATIENCE, || {
        workers(client)
            .iter()
            .find(|w| w.application_name == name && w.state.as_deref() == Some("active"))
            .map(|worker| worker.pid)
    })
}

#[track_caller]
fn assert_began_promptly(task: &Task, due: SystemTime) {
    let began = task.started_at.expect("it has started");
    let after = began
        .duration_since(due)
        .unwrap_or_else(|early| panic!("it began {:?} too early: {task:?}", early.duration()));
    assert!(after < PROMPTLY, "it began {after:?} too late: {task:?}");
}

// Parameters of enqueue

#[test]
fn a_better_priority_runs_first_whatever_came_first() {
    let server = server(1);
    server.set_and_reload(TOPICS, r#"{"low": {"priority": 150}}"#);
    let mut client = server.superuser();
    close_gate(&mut client);
    let gate = enqueue(&mut client, GATE);
    wait_worker_of(&mut client, gate);
    for (n, options) in [
        (7, "topic => 'low'"),
        (3, "priority => 99"),
        (4, "priority => NULL"),
        (6, "priority => 101"),
        (5, "topic => 'other'"),
        (1, "priority => -2147483648"),
        (2, "priority => 99 - 1, topic => 'low'"),
        (8, "priority => 2147483647"),
    ] {
        enqueue_with(&mut client, &format!("SELECT public.work({n})"), options);
    }
    open_gate(&mut client);
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(order(&mut client), [1, 2, 3, 4, 5, 6, 7, 8]);
}

fn runs_at_its_time(idle_timeout: &str) {
    let server = server(2);
    server.set_and_reload(IDLE_TIMEOUT, idle_timeout);
    let mut client = server.superuser();
    let far = enqueue_with(
        &mut client,
        "SELECT 1",
        "run_at => clock_timestamp() + '1 hour'",
    );
    let never = enqueue_with(&mut client, "SELECT 1", "run_at => 'infinity'");
    let second = enqueue_with(
        &mut client,
        "SELECT public.work(2)",
        "run_at => clock_timestamp() + '2.5 s'",
    );
    let first = enqueue_with(
        &mut client,
        "SELECT public.work(1)",
        "run_at => clock_timestamp() + '1.5 s'",
    );
    let waiting = task(&mut client, first);
    assert_eq!((waiting.state.as_str(), waiting.attempt), ("pending", 0));
    for id in [first, second] {
        let done = wait_state(&mut client, id, "finished");
        assert_began_promptly(&done, done.due_at.expect("its time"));
        assert_eq!(done.attempt, 1);
    }
    assert_eq!(order(&mut client), [1, 2]);
    for id in [far, never] {
        let waiting = task(&mut client, id);
        assert_eq!((waiting.state.as_str(), waiting.attempt), ("pending", 0));
    }
    // Those that wait keep no other waiting.
    let next = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, next, "finished");
}

#[test]
fn a_task_runs_at_its_time_and_not_before_with_a_worker_there() {
    runs_at_its_time("10min");
}

#[test]
fn a_task_runs_at_its_time_and_not_before_with_no_worker_there() {
    runs_at_its_time("100ms");
}

#[test]
fn a_time_that_is_past_or_null_means_now() {
    let server = server(2);
    let mut client = server.superuser();
    for run_at in ["NULL", "now() - interval '1 year'", "'-infinity'", "now()"] {
        let since = SystemTime::now();
        let id = enqueue_with(&mut client, "SELECT 1", &format!("run_at => {run_at}"));
        let done = wait_state(&mut client, id, "finished");
        assert_began_promptly(&done, since - Duration::from_secs(1));
    }
}

#[test]
fn a_tasks_time_survives_a_restart() {
    let mut server = server(2);
    let mut client = server.superuser();
    let id = enqueue_with(
        &mut client,
        "SELECT 1",
        "run_at => clock_timestamp() + '4 s'",
    );
    drop(client);
    server.restart();
    let mut client = server.superuser();
    let done = wait_state(&mut client, id, "finished");
    assert_began_promptly(&done, done.due_at.expect("its time"));
}

#[test]
fn a_tasks_own_retry_count_goes_before_the_settings() {
    let server = server(3);
    server.set_conf(TOPICS, r#"{"three": {"retry_count": 3}}"#);
    server.set_and_reload(RETRIES, "2");
    let mut client = server.superuser();
    let none = enqueue_with(&mut client, "SELECT 1/0", "retry_count => 0");
    let none_of_topic = enqueue_with(
        &mut client,
        "SELECT 1/0",
        "topic => 'three', retry_count => 0",
    );
    let setting = enqueue_with(&mut client, "SELECT 1/0", "retry_count => NULL");
    let one = enqueue_with(&mut client, "SELECT 1/0", "'three', retry_count => 1");
    for id in [none, none_of_topic] {
        let done = wait_state(&mut client, id, "failed");
        assert_eq!((done.attempt, done.retry_count), (1, 0));
    }
    let waiting = wait_state(&mut client, one, "retrying");
    assert_eq!(
        (waiting.retry_count, waiting.retry_delay_in_sec),
        (1, Some(2))
    );
    let done = wait_state(&mut client, one, "failed");
    assert_eq!((done.attempt, done.retry_count), (2, 1));
    assert_eq!(done.errors().matches("22012").count(), 2);
    let done = wait_state(&mut client, setting, "failed");
    assert_eq!((done.attempt, done.retry_count), (3, 2));
}

#[test]
fn parameters_out_of_range_are_refused() {
    let server = server(1);
    let mut client = server.superuser();
    for options in [
        "retry_count => -1",
        "timeout => '0'",
        "timeout => '-1 s'",
        "timeout => '25 days'",
        "timeout => '1 month'",
        "timeout => '300000000 h'",
        "timeout => '100 microseconds'",
    ] {
        assert_eq!(refusal(&mut client, options), "22023", "{options}");
    }
    assert_eq!(states(&mut client), "");
    for options in [
        "timeout => NULL",
        "timeout => '24 days'",
        "timeout => '1 ms'",
    ] {
        enqueue_with(&mut client, ";", options);
    }
    wait_all_closed(&mut client, PATIENCE);
}

// Time limits

#[test]
fn a_timeout_cancels_the_attempt_which_has_failed() {
    let server = server(2);
    let mut client = server.superuser();
    let once = enqueue_with(
        &mut client,
        "SELECT public.work(1); SELECT pg_sleep(3600)",
        "timeout => '300 ms'",
    );
    let twice = enqueue_with(
        &mut client,
        "SELECT pg_sleep(3600)",
        "timeout => '300 ms', retry_count => 1",
    );
    let failed = wait_state(&mut client, once, "failed");
    assert!(failed.errors().contains("57014"), "{}", failed.errors());
    assert!(failed.errors().contains("timeout"), "{}", failed.errors());
    let ran = failed
        .closed_at
        .expect("closed")
        .duration_since(failed.started_at.expect("started"))
        .expect("in order");
    assert!(ran >= Duration::from_millis(300), "{ran:?}");
    assert!(ran < PROMPTLY, "{ran:?}");
    let waiting = wait_state(&mut client, twice, "retrying");
    assert_eq!(waiting.retry_count, 1);
    let failed = wait_state(&mut client, twice, "failed");
    assert_eq!(failed.attempt, 2);
    assert_eq!(failed.errors().matches("57014").count(), 2);
    assert_eq!(runs_of(&mut client, 1), 0);
}

#[test]
fn a_timeout_holds_for_all_of_a_task_whatever_it_does() {
    let server = server(6);
    let mut client = server.superuser();
    let long = [
        // many short statements
        "SELECT pg_sleep(0.1);".repeat(36_000),
        // transactions of its own
        "DO $$ BEGIN LOOP PERFORM pg_sleep(0.01); COMMIT; END LOOP; END $$".to_owned(),
        // subtransactions that are rolled back
        "DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(0.01), 1/0; EXCEPTION WHEN division_by_zero THEN NULL; END; \
         END LOOP; END $$"
            .to_owned(),
        // time limits of its own, which are reset again and again
        "SET statement_timeout = '1h'; DO $$ BEGIN LOOP PERFORM pg_sleep(0.01); END LOOP; END $$".to_owned(),
        // a wait for a lock
        "SELECT pg_advisory_lock(1)".to_owned(),
        // a query
        "SELECT count(*) FROM generate_series(1, 1000000000000) AS a".to_owned(),
    ];
    close_gate(&mut client);
    let ids = long.map(|sql| enqueue_with(&mut client, &sql, "timeout => '1 s'"));
    for id in ids {
        let failed = wait_state(&mut client, id, "failed");
        assert!(failed.errors().contains("57014"), "{}", failed.errors());
    }
}

#[test]
fn a_topics_timeout_holds_unless_the_task_has_its_own() {
    let server = server(3);
    server.set_and_reload(TOPICS, r#"{"hurry": {"timeout_in_sec": 1}}"#);
    let mut client = server.superuser();
    let of_topic = enqueue_topic(&mut client, "SELECT pg_sleep(3600)", "hurry");
    let longer = enqueue_with(
        &mut client,
        "SELECT pg_sleep(2)",
        "'hurry', timeout => '1 h'",
    );
    let other = enqueue_topic(&mut client, "SELECT pg_sleep(2)", "leisure");
    let failed = wait_state(&mut client, of_topic, "failed");
    assert!(failed.errors().contains("57014"), "{}", failed.errors());
    wait_state(&mut client, longer, "finished");
    wait_state(&mut client, other, "finished");
    // Also one that a reload sets.
    server.set_and_reload(TOPICS, r#"{"leisure": {"timeout_in_sec": 1}}"#);
    let hurry = enqueue_topic(&mut client, "SELECT pg_sleep(2)", "hurry");
    let leisure = enqueue_topic(&mut client, "SELECT pg_sleep(3600)", "leisure");
    wait_state(&mut client, hurry, "finished");
    wait_state(&mut client, leisure, "failed");
}

#[test]
fn a_tasks_statement_timeout_works_besides_its_timeout() {
    let server = server(2);
    let mut client = server.superuser();
    let own = enqueue_with(
        &mut client,
        "SET statement_timeout = '200 ms'; SELECT pg_sleep(3600)",
        "timeout => '1 h'",
    );
    let failed = wait_state(&mut client, own, "failed");
    assert!(
        failed.errors().contains("due to statement timeout"),
        "{}",
        failed.errors()
    );
    let shorter = enqueue_with(
        &mut client,
        "SET statement_timeout = '1 h'; SELECT pg_sleep(3600)",
        "timeout => '200 ms'",
    );
    let failed = wait_state(&mut client, shorter, "failed");
    assert!(
        !failed.errors().contains("due to statement timeout"),
        "{}",
        failed.errors()
    );
    assert!(failed.errors().contains("57014"), "{}", failed.errors());
}

#[test]
fn a_timeout_does_not_hit_the_next_task() {
    const ROUNDS: i32 = 100;
    let server = server(1);
    let mut client = server.superuser();
    close_gate(&mut client);
    let gate = enqueue(&mut client, GATE);
    // Those that end in time, in vain, and just so.
    let mut next = Vec::new();
    for n in 0..ROUNDS {
        let (sleep, timeout) = match n % 4 {
            0 => (0, "1 s"),
            1 => (3600, "5 ms"),
            _ => (5, "5 ms"),
        };
        enqueue_with(
            &mut client,
            &format!("SELECT pg_sleep({sleep} / 1000.0)"),
            &format!("timeout => '{timeout}'"),
        );
        let sleep = if n == 0 { 1.5 } else { 0.01 };
        let sql = format!("SELECT pg_sleep({sleep}); SELECT public.work({n})");
        next.push(enqueue(&mut client, &sql));
    }
    open_gate(&mut client);
    for id in next {
        wait_state(&mut client, id, "finished");
    }
    wait_state(&mut client, gate, "finished");
    let pids: i64 = scalar(&mut client, "SELECT count(DISTINCT pid) FROM runs", &[]);
    assert_eq!(pids, 1);
    assert_eq!(order(&mut client).len(), ROUNDS as usize);
}

// Cancel

#[test]
fn a_waiting_task_is_cancelled_with_its_transaction() {
    let server = server(0);
    let mut client = server.superuser();
    let mut other = server.superuser();
    let kept = enqueue(&mut client, "SELECT public.work(1)");
    let gone = enqueue(&mut client, "SELECT public.work(2)");
    run(&mut client, "BEGIN");
    assert!(cancel(&mut client, kept));
    assert!(!cancel(&mut client, kept));
    assert_eq!(task(&mut other, kept).state, "pending");
    run(&mut client, "ROLLBACK");
    assert_eq!(task(&mut client, kept).state, "pending");
    let since = SystemTime::now() - Duration::from_secs(1);
    assert!(cancel(&mut client, gone));
    let cancelled = task(&mut other, gone);
    assert_eq!(cancelled.state, "cancelled");
    assert_eq!((cancelled.attempt, cancelled.started_at), (0, None));
    assert!(cancelled.closed_at.expect("closed") >= since);
    server.set_and_reload(LIMIT, "2");
    wait_state(&mut client, kept, "finished");
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(order(&mut client), [1]);
}

#[test]
fn a_task_waits_for_the_transaction_that_is_about_to_cancel_it() {
    let server = server(0);
    let mut client = server.superuser();
    let mut canceller = server.superuser();
    let kept = enqueue(&mut client, "SELECT public.work(1)");
    let gone = enqueue(&mut client, "SELECT public.work(2)");
    run(&mut canceller, "BEGIN");
    assert!(cancel(&mut canceller, gone));
    assert!({
        run(&mut canceller, "SAVEPOINT s");
        cancel(&mut canceller, kept)
    });
    server.set_and_reload(LIMIT, "2");
    let other = enqueue(&mut client, "SELECT public.work(3)");
    wait_state(&mut client, other, "finished");
    assert_eq!(order(&mut client), [3]);
    run(&mut canceller, "ROLLBACK TO s; COMMIT");
    wait_state(&mut client, kept, "finished");
    assert_eq!(task(&mut client, gone).state, "cancelled");
    assert_eq!(order(&mut client), [3, 1]);
}

#[test]
fn a_running_task_is_cancelled_at_once_and_for_good() {
    let server = server(1);
    let mut client = server.superuser();
    let long = enqueue_with(
        &mut client,
        "SELECT public.work(1); SELECT pg_sleep(3600)",
        "retry_count => 5",
    );
    let next = enqueue(&mut client, "SELECT public.work(2)");
    let pid = wait_worker_of(&mut client, long);
    // Even if its transaction is rolled back: what has been interrupted is.
    run(&mut client, "BEGIN");
    assert!(cancel(&mut client, long));
    run(&mut client, "ROLLBACK");
    let done = wait_state(&mut client, long, "cancelled");
    assert_eq!((done.attempt, done.retry_count), (1, 0));
    assert!(done.errors().contains("57014"), "{}", done.errors());
    assert!(!cancel(&mut client, long));
    wait_state(&mut client, next, "finished");
    assert_eq!(order(&mut client), [2]);
    let same: i32 = scalar(&mut client, "SELECT pid FROM runs", &[]);
    assert_eq!(same, pid);
}

#[test]
fn a_task_that_runs_again_can_be_cancelled() {
    let server = server(1);
    let mut client = server.superuser();
    run(&mut client, "CREATE SEQUENCE public.attempts");
    let id = enqueue_with(
        &mut client,
        "SELECT 1 / (nextval('public.attempts') - 1); SELECT pg_sleep(3600)",
        "retry_count => 5",
    );
    wait_for("the second attempt", PATIENCE, || {
        let task = task(&mut client, id);
        (task.attempt == 2 && task.state == "running").then_some(())
    });
    assert!(cancel(&mut client, id));
    let done = wait_state(&mut client, id, "cancelled");
    assert_eq!((done.attempt, done.retry_count), (2, 1));
    assert!(done.errors().contains("22012"), "{}", done.errors());
    assert!(done.errors().contains("57014"), "{}", done.errors());
}

#[test]
fn there_is_nothing_to_cancel_in_what_is_closed_or_not_there() {
    let server = server(1);
    let mut client = server.superuser();
    let finished = enqueue(&mut client, "SELECT 1");
    let failed = enqueue(&mut client, "SELECT 1/0");
    wait_all_closed(&mut client, PATIENCE);
    for id in [finished, failed, failed + 1, 0, -1, i64::MAX] {
        assert!(!cancel(&mut client, id), "{id}");
    }
    let null: bool = scalar(
        &mut client,
        "SELECT pg_background_queue_cancel(NULL) IS NOT TRUE",
        &[],
    );
    assert!(null);
    assert_eq!(states(&mut client), "failed: 1, finished: 1");
}

#[test]
fn only_ones_own_tasks_can_be_cancelled_or_put_back_except_by_superusers() {
    let server = server(2);
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    let mut bob = server.connect("bob", "postgres");
    run(
        &mut client,
        "CREATE ROLE monitor LOGIN; GRANT pg_monitor TO monitor",
    );
    let mut monitor = server.connect("monitor", "postgres");
    let long = enqueue(&mut alice, "SELECT pg_sleep(3600)");
    let longer = enqueue(&mut alice, "SELECT pg_sleep(3600)");
    wait_worker_of(&mut client, long);
    wait_worker_of(&mut client, longer);
    let waiting = enqueue(&mut alice, "SELECT 1");
    for id in [long, waiting] {
        assert!(!cancel(&mut bob, id));
        assert!(!cancel(&mut monitor, id));
    }
    // As a role within a session, too.
    run(&mut client, "SET ROLE bob");
    assert!(!cancel(&mut client, long));
    run(&mut client, "RESET ROLE");
    assert_eq!(task(&mut client, long).state, "running");
    assert_eq!(task(&mut client, waiting).state, "pending");
    assert!(cancel(&mut client, waiting));
    assert!(cancel(&mut client, long));
    wait_state(&mut client, long, "cancelled");
    assert!(cancel(&mut alice, longer));
    wait_state(&mut client, longer, "cancelled");
    assert!(!retry(&mut bob, waiting));
    assert!(!retry(&mut monitor, waiting));
    assert_eq!(task(&mut client, waiting).state, "cancelled");
    assert!(retry(&mut client, waiting));
    let done = wait_state(&mut client, waiting, "finished");
    assert_eq!(done.role_name.as_deref(), Some("alice"));
}

#[test]
fn a_task_that_retries_or_is_delayed_or_held_can_be_cancelled() {
    let server = server(3);
    server.set_and_reload(TOPICS, r#"{"slow": {"delay_in_sec": 3}}"#);
    let mut client = server.superuser();
    let mut other = server.superuser();
    let retrying = enqueue_with(
        &mut client,
        "SELECT nextval('public.runs_place_seq'); SELECT 1/0",
        "retry_count => 3",
    );
    let timed = enqueue_with(
        &mut client,
        "SELECT public.work(2)",
        "run_at => clock_timestamp() + '3 s'",
    );
    let delayed = enqueue_topic(&mut client, "SELECT public.work(3)", "slow");
    run(&mut client, "BEGIN");
    let held = enqueue(&mut client, "SELECT public.work(4)");
    run(
        &mut client,
        &format!("UPDATE pg_background_tasks SET held = true WHERE id = {held}; COMMIT"),
    );
    wait_state(&mut other, retrying, "retrying");
    for id in [retrying, timed, delayed, held] {
        assert!(cancel(&mut client, id), "{:?}", task(&mut client, id));
        assert_eq!(task(&mut other, id).state, "cancelled");
    }
    // Their times pass.
    let later = enqueue_with(
        &mut client,
        "SELECT public.work(5)",
        "run_at => clock_timestamp() + '4.5 s'",
    );
    wait_state(&mut client, later, "finished");
    assert_eq!(order(&mut client), [5]);
    assert_eq!(states(&mut client), "cancelled: 4, finished: 1");
    let last: i64 = scalar(&mut client, "SELECT max(place) FROM runs", &[]);
    assert_eq!(last, 2, "its sequence says how often it ran");
}

/// Cancels what is seen running, again and again, until `over`; returns which cancels were acknowledged.
fn cancel_what_runs(mut client: Client, over: &AtomicBool) -> BTreeMap<i64, u32> {
    let mut acknowledged = BTreeMap::new();
    while !over.load(Ordering::Relaxed) {
        // A subquery, so that not each task dies
        let rows = client
            .query(
                "SELECT id, pg_background_queue_cancel(id) FROM (SELECT id FROM pg_background_tasks \
                 WHERE state = 'running' AND id % 2 = 0 ORDER BY random() LIMIT 1) AS chosen",
                &[],
            )
            .expect("cancel");
        for row in rows {
            if row.get(1) {
                *acknowledged.entry(row.get(0)).or_default() += 1;
            }
        }
    }
    acknowledged
}

#[test]
fn a_storm_of_cancels_hits_no_other_task() {
    const COUNT: i32 = 3000;
    let server = server(4);
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    let over = AtomicBool::new(false);
    let mut acknowledged = BTreeMap::new();
    std::thread::scope(|scope| {
        let cancellers: Vec<_> = (0..3)
            .map(|_| {
                let session = server.superuser();
                let over = &over;
                scope.spawn(move || cancel_what_runs(session, over))
            })
            .collect();
        for session in [&mut client, &mut alice] {
            run(
                session,
                &format!(
                    "SELECT count(pg_background_queue_enqueue(format('SELECT public.work(%s); SELECT pg_sleep(%s)', \
                     n, CASE WHEN n % 3 = 0 THEN 0.003 ELSE 0 END), retry_count => 3)) \
                     FROM generate_series(1, {}) AS n",
                    COUNT / 2
                ),
            );
        }
        // patience in the main thread must not keep the others for ever
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_all_closed(&mut client, PATIENCE);
        }));
        over.store(true, Ordering::Relaxed);
        for canceller in cancellers {
            for (id, times) in canceller.join().expect("the canceller") {
                *acknowledged.entry(id).or_insert(0) += times;
            }
        }
        outcome.expect("all tasks end");
    });
    let asked: Vec<i64> = acknowledged.keys().copied().collect();
    let strange: Option<String> = scalar(
        &mut client,
        "SELECT string_agg(format('%s %s %s', id, state, errors), E'\\n') FROM pg_background_tasks \
         WHERE state NOT IN ('finished', 'cancelled') OR attempt <> 1 OR (state = 'cancelled' AND id <> ALL ($1))",
        &[&asked],
    );
    assert_eq!(strange, None);
    // The effect is there if and only if the task is finished.
    let finished: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE state = 'finished'",
        &[],
    );
    let wrong: Option<String> = scalar(
        &mut client,
        "SELECT string_agg(n::text, ', ') FROM \
         (SELECT substring(sql_statement FROM 'work\\((\\d+)\\)')::int AS n, count(*) FILTER (WHERE state = 'finished') AS f \
          FROM pg_background_tasks GROUP BY 1) AS said \
         WHERE f <> (SELECT count(*) FROM runs WHERE runs.n = said.n)",
        &[],
    );
    assert_eq!(wrong, None);
    let cancelled = i64::from(COUNT) - finished;
    assert!(cancelled > 0, "the storm has cancelled nothing");
}

#[test]
fn what_was_cancelled_while_it_failed_is_not_retried() {
    const COUNT: i32 = 400;
    let server = server(4);
    let mut client = server.superuser();
    let over = AtomicBool::new(false);
    let mut acknowledged = BTreeMap::new();
    std::thread::scope(|scope| {
        let cancellers: Vec<_> = (0..3)
            .map(|_| {
                let session = server.superuser();
                let over = &over;
                scope.spawn(move || cancel_what_runs(session, over))
            })
            .collect();
        run(
            &mut client,
            &format!(
                "SELECT count(pg_background_queue_enqueue('SELECT pg_sleep(0.002); SELECT 1/0', retry_count => 1)) \
                 FROM generate_series(1, {COUNT})"
            ),
        );
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_all_closed(&mut client, PATIENCE);
        }));
        over.store(true, Ordering::Relaxed);
        for canceller in cancellers {
            for (id, times) in canceller.join().expect("the canceller") {
                *acknowledged.entry(id).or_insert(0) += times;
            }
        }
        outcome.expect("all tasks end");
    });
    let asked: Vec<i64> = acknowledged.keys().copied().collect();
    assert!(!asked.is_empty());
    let wrong: Option<String> = scalar(
        &mut client,
        "SELECT string_agg(format('%s %s attempt %s: %s', id, state, attempt, errors), E'\\n') FROM pg_background_tasks \
         WHERE (state = 'cancelled') <> (id = ANY ($1))",
        &[&asked],
    );
    assert_eq!(wrong, None);
}

/// A task that comes to its end while somebody holds its row; then it is cancelled, and the row let go.
fn cancelled_at_its_end(end: &str) {
    let server = server(1);
    let mut client = server.superuser();
    let mut holder = server.superuser();
    close_gate(&mut client);
    let id = enqueue_with(
        &mut client,
        &format!("SELECT public.work(1); {GATE}; {end}"),
        "retry_count => 1",
    );
    let pid = wait_worker_of(&mut client, id);
    wait_state(&mut client, id, "running");
    run(
        &mut holder,
        &format!("BEGIN; SELECT FROM pg_background_tasks WHERE id = {id} FOR UPDATE"),
    );
    open_gate(&mut client);
    wait_until("the worker to wait for the row", || {
        workers(&mut client)
            .iter()
            .any(|worker| worker.pid == pid && worker.wait_event.as_deref() == Some("tuple"))
    });
    let acknowledged = std::thread::scope(|scope| {
        let mut canceller = server.superuser();
        let asks: i32 = scalar(&mut canceller, "SELECT pg_backend_pid()", &[]);
        let answer = scope.spawn(move || cancel(&mut canceller, id));
        // It may have to wait for the row itself.
        wait_until("the cancel to be under way", || {
            answer.is_finished()
                || scalar(
                    &mut client,
                    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND state = 'active' \
                     AND query LIKE '%queue_cancel%' AND query_start < clock_timestamp() - interval '50 ms')",
                    &[&asks],
                )
        });
        run(&mut holder, "COMMIT");
        answer.join().expect("the canceller")
    });
    let done = wait_closed(&mut client, id);
    assert_eq!(done.attempt, 1, "{acknowledged} {done:?}");
    assert_eq!(acknowledged, done.state == "cancelled", "{done:?}");
    assert_eq!(runs_of(&mut client, 1), i64::from(done.state == "finished"));
}

#[test]
fn a_cancel_that_comes_while_the_failure_is_noted_is_the_end() {
    cancelled_at_its_end("SELECT 1/0");
}

#[test]
fn a_cancel_that_comes_while_the_end_is_noted_is_the_end() {
    cancelled_at_its_end("SELECT 1");
}

#[test]
fn a_cancel_that_has_to_wait_can_be_cancelled_itself() {
    let server = server(1);
    let mut client = server.superuser();
    let mut holder = server.superuser();
    close_gate(&mut client);
    let id = enqueue(&mut client, &format!("{GATE}; SELECT 1/0"));
    let pid = wait_worker_of(&mut client, id);
    run(
        &mut holder,
        &format!("BEGIN; SELECT FROM pg_background_tasks WHERE id = {id} FOR UPDATE"),
    );
    open_gate(&mut client);
    wait_until("the worker to wait for the row", || {
        workers(&mut client)
            .iter()
            .any(|worker| worker.pid == pid && worker.wait_event.as_deref() == Some("tuple"))
    });
    let since = Instant::now();
    run(&mut client, "SET statement_timeout = '500 ms'");
    let answer = client.query_one("SELECT pg_background_queue_cancel($1)", &[&id]);
    if let Err(error) = answer {
        assert_eq!(error.code().map(|c| c.code()), Some("57014"), "{error:?}");
    }
    assert!(since.elapsed() < PROMPTLY, "{:?}", since.elapsed());
    run(&mut holder, "COMMIT");
    wait_closed(&mut client, id);
}

#[test]
fn a_cancelled_task_whose_worker_is_ended_is_cancelled_all_the_same() {
    let server = server(1);
    let mut client = server.superuser();
    let id = enqueue_with(
        &mut client,
        "DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$",
        "retry_count => 3",
    );
    let pid = wait_worker_of(&mut client, id);
    assert!(cancel(&mut client, id));
    run(&mut client, &format!("SELECT pg_terminate_backend({pid})"));
    let done = wait_closed(&mut client, id);
    assert_eq!((done.state.as_str(), done.attempt), ("cancelled", 1));
}

#[test]
fn cancel_and_retry_are_refused_in_a_read_only_transaction() {
    let server = server(0);
    let mut client = server.superuser();
    let id = enqueue(&mut client, "SELECT 1");
    for function in ["cancel", "retry"] {
        let error = client
            .batch_execute(&format!(
                "BEGIN READ ONLY; SELECT pg_background_queue_{function}({id})"
            ))
            .expect_err("read only");
        assert_eq!(error.code().map(|c| c.code()), Some("25006"), "{error:?}");
        run(&mut client, "ROLLBACK");
    }
}

// Retry

#[test]
fn a_failed_task_put_back_has_all_its_retries_and_keeps_its_errors() {
    let server = server(2);
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE public.fixed (); CREATE VIEW public.broken AS SELECT 1/count(*) AS n FROM public.fixed",
    );
    let id = enqueue_with(
        &mut client,
        "SELECT public.work(1); SELECT n FROM public.broken",
        "retry_count => 1",
    );
    let failed = wait_state(&mut client, id, "failed");
    assert_eq!((failed.attempt, failed.retry_count), (2, 1));
    assert!(retry(&mut client, id));
    let waiting = wait_state_after_failure(&mut client, id, 3, "retrying");
    assert_eq!((waiting.attempt, waiting.retry_count), (3, 1));
    assert_eq!(waiting.errors().matches("22012").count(), 3);
    assert_eq!(waiting.closed_at, None);
    run(&mut client, "INSERT INTO public.fixed DEFAULT VALUES");
    let done = wait_state(&mut client, id, "finished");
    assert_eq!(done.errors().matches("22012").count(), 3);
    assert_eq!(order(&mut client), [1]);
}

/// Waits for a state of a task that was closed before this attempt.
#[track_caller]
fn wait_state_after_failure(client: &mut Client, id: i64, attempt: i32, state: &str) -> Task {
    wait_for(
        &format!("attempt {attempt} to be {state}"),
        PATIENCE,
        || {
            let task = task(client, id);
            (task.attempt == attempt && task.state == state).then_some(task)
        },
    )
}

#[test]
fn a_cancelled_task_put_back_runs_at_once() {
    let server = server(0);
    let mut client = server.superuser();
    let never = enqueue_with(&mut client, "SELECT public.work(1)", "run_at => 'infinity'");
    let waiting = enqueue(&mut client, "SELECT public.work(2)");
    assert!(cancel(&mut client, never));
    assert!(cancel(&mut client, waiting));
    server.set_and_reload(LIMIT, "1");
    run(&mut client, "BEGIN");
    assert!(retry(&mut client, never));
    assert!(!retry(&mut client, never));
    run(&mut client, "ROLLBACK");
    assert_eq!(task(&mut client, never).state, "cancelled");
    let since = SystemTime::now() - Duration::from_secs(1);
    assert!(retry(&mut client, never));
    let done = wait_closed(&mut client, never);
    assert_eq!(done.state, "finished");
    assert_began_promptly(&done, since);
    assert!(retry(&mut client, waiting));
    assert_eq!(wait_closed(&mut client, waiting).state, "finished");
    assert_eq!(order(&mut client), [1, 2]);
    // Also when no worker is there.
    let failed = enqueue(&mut client, "SELECT 1/0");
    wait_state(&mut client, failed, "failed");
    server.set_and_reload(IDLE_TIMEOUT, "0");
    let last = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, last, "finished");
    wait_no_workers(&mut client, PATIENCE);
    assert!(retry(&mut client, failed));
    wait_state_after_failure(&mut client, failed, 2, "failed");
}

#[test]
fn what_is_finished_or_open_cannot_be_put_back() {
    let server = server(1);
    let mut client = server.superuser();
    let finished = enqueue(&mut client, "SELECT public.work(1)");
    wait_state(&mut client, finished, "finished");
    let retrying = enqueue_with(&mut client, "SELECT 1/0", "retry_count => 20");
    wait_state(&mut client, retrying, "retrying");
    let running = enqueue(&mut client, "SELECT pg_sleep(3600)");
    wait_worker_of(&mut client, running);
    let pending = enqueue(&mut client, "SELECT 1");
    for id in [finished, retrying, running, pending, pending + 1, 0] {
        assert!(!retry(&mut client, id), "{id}");
    }
    let null: bool = scalar(
        &mut client,
        "SELECT pg_background_queue_retry(NULL) IS NOT TRUE",
        &[],
    );
    assert!(null);
    assert!(cancel(&mut client, running));
    wait_state(&mut client, pending, "finished");
    wait_until("one run", || runs_of(&mut client, 1) == 1);
}
