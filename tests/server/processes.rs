//! Processes of the extension are cancelled and ended, and the table is locked, changed and dropped
//! under them, while the server lives on.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use postgres::Client;

use crate::harness::{
    PATIENCE, Server, Stop, create_role, enqueue, enqueue_topic, is_alive, kill, launcher_pid, run,
    scalar, states, task, tasks, wait_all_closed, wait_closed, wait_for, wait_for_launcher,
    wait_state, wait_until, workers,
};

const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";
const IDLE_TIMEOUT: &str = "pg_background_queue.worker_idle_timeout";

/// How long "promptly" may be on a shared machine; what was waited for comes in about a second at
/// most.
const PROMPTLY: Duration = Duration::from_secs(15);

/// A server whose workers stay, with the roles alice and bob, and a table `runs` in which
/// `work(n, seconds)` notes its number, process and times. A number may come as often as it likes.
fn server(limit: u32) -> Server {
    let server = Server::builder()
        .conf(LIMIT, &limit.to_string())
        .conf("max_worker_processes", "16")
        .conf("max_prepared_transactions", "5")
        .conf(IDLE_TIMEOUT, "10min")
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE public.runs (n int, pid int, began timestamptz, ended timestamptz); \
         GRANT SELECT, INSERT ON public.runs TO PUBLIC; \
         CREATE FUNCTION public.work(n int, seconds float8 DEFAULT 0) RETURNS void LANGUAGE plpgsql AS $$ \
         DECLARE began timestamptz := clock_timestamp(); BEGIN \
           PERFORM pg_sleep(seconds); \
           INSERT INTO public.runs VALUES (n, pg_backend_pid(), began, clock_timestamp()); \
         END $$",
    );
    create_role(&mut client, "alice");
    create_role(&mut client, "bob");
    server
}

/// Enqueues `work(n, seconds)`.
#[track_caller]
fn enqueue_work(client: &mut Client, n: i32, seconds: f64) -> i64 {
    enqueue(client, &format!("SELECT public.work({n}, {seconds})"))
}

/// Work that waits, when it is done, until the test lets go of this advisory lock.
fn gated(n: i32, lock: i32) -> String {
    format!("SELECT public.work({n}); SELECT pg_advisory_xact_lock_shared({lock})")
}

/// How many sessions wait at that gate.
fn at_the_gate(client: &mut Client, lock: i32) -> i64 {
    scalar(
        client,
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid::int8 = $1 AND NOT granted",
        &[&i64::from(lock)],
    )
}

#[track_caller]
fn wait_at_the_gate(client: &mut Client, lock: i32, count: i64) {
    wait_until(&format!("{count} tasks to wait at gate {lock}"), || {
        at_the_gate(client, lock) == count
    });
}

/// How many runs with this number are there to stay.
fn runs_of(client: &mut Client, n: i32) -> i64 {
    scalar(client, "SELECT count(*) FROM runs WHERE n = $1", &[&n])
}

/// The process that ran this number, once.
#[track_caller]
fn pid_of(client: &mut Client, n: i32) -> i32 {
    scalar(client, "SELECT pid FROM runs WHERE n = $1", &[&n])
}

/// Numbers that are not there exactly once, of those up to `count`.
fn not_once(client: &mut Client, count: i32) -> String {
    scalar(
        client,
        "SELECT coalesce(string_agg(number || ': ' || times, ', '), '') FROM \
         (SELECT number, count(n) AS times FROM generate_series(0, $1::int - 1) AS number \
         LEFT JOIN runs ON n = number GROUP BY number) AS counts WHERE times <> 1",
        &[&count],
    )
}

/// The most runs that were under way at one moment.
fn most_at_once(client: &mut Client) -> usize {
    let runs: Vec<(SystemTime, SystemTime)> = client
        .query("SELECT began, ended FROM runs", &[])
        .expect("runs")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    runs.iter()
        .map(|(moment, _)| {
            runs.iter()
                .filter(|(began, ended)| began <= moment && moment < ended)
                .count()
        })
        .max()
        .unwrap_or(0)
}

/// The process that runs this task, once it does.
#[track_caller]
fn wait_worker_of(client: &mut Client, id: i64) -> i32 {
    let name = format!("pg_background_queue task {id}");
    wait_for(&format!("a worker at work on task {id}"), PATIENCE, || {
        workers(client)
            .iter()
            .find(|worker| {
                worker.application_name == name && worker.state.as_deref() == Some("active")
            })
            .map(|worker| worker.pid)
    })
}

/// The processes of this kind.
fn pids(client: &mut Client, kind: &str) -> BTreeSet<i32> {
    workers(client)
        .iter()
        .filter(|worker| worker.kind == kind)
        .map(|worker| worker.pid)
        .collect()
}

/// The only worker there is, once it has nothing to do.
#[track_caller]
fn wait_idle_worker(client: &mut Client) -> i32 {
    wait_for("one idle worker", PATIENCE, || {
        let workers = workers(client);
        let mut all = workers.iter().filter(|worker| worker.kind == "worker");
        let only = all.next()?;
        (all.next().is_none() && only.state.as_deref() == Some("idle") && only.wait_event.is_some())
            .then_some(only.pid)
    })
}

#[track_caller]
fn cancel(client: &mut Client, pid: i32) {
    assert!(scalar::<bool>(
        client,
        "SELECT pg_cancel_backend($1)",
        &[&pid]
    ));
}

#[track_caller]
fn terminate(client: &mut Client, pid: i32) {
    assert!(scalar::<bool>(
        client,
        "SELECT pg_terminate_backend($1)",
        &[&pid]
    ));
}

#[track_caller]
fn assert_promptly(since: SystemTime, done: Option<SystemTime>) {
    let took = done
        .expect("a time")
        .duration_since(since)
        .unwrap_or_default();
    assert!(took < PROMPTLY, "it took {took:?}");
}

#[test]
fn a_terminated_worker_fails_its_task_and_the_others_go_on() {
    let server = server(3);
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    let mut bob = server.connect("bob", "postgres");
    let long = enqueue(&mut alice, "SELECT public.work(0); SELECT pg_sleep(3600)");
    let slow = enqueue_work(&mut bob, 1, 1.0);
    let pid = wait_worker_of(&mut client, long);
    terminate(&mut client, pid);
    let next = enqueue_work(&mut alice, 2, 0.0);
    let ended = wait_closed(&mut client, long);
    assert_eq!(ended.state, "failed");
    assert!(ended.errors().contains("57P01"), "{}", ended.errors());
    assert_eq!(ended.interruptions, 0);
    wait_state(&mut client, slow, "finished");
    wait_state(&mut client, next, "finished");
    assert_ne!(pid_of(&mut client, 2), pid);
    assert_eq!(runs_of(&mut client, 0), 0);
    assert!(!is_alive(pid));
}

#[test]
fn a_terminated_worker_leaves_its_tasks_retries() {
    let server = server(3);
    server.set_and_reload("pg_background_queue.retry_count", "1");
    let mut client = server.superuser();
    let id = enqueue(&mut client, "SELECT pg_sleep(3600)");
    let pid = wait_worker_of(&mut client, id);
    terminate(&mut client, pid);
    let waiting = wait_state(&mut client, id, "retrying");
    assert!(waiting.errors().contains("57P01"), "{}", waiting.errors());
    assert_eq!(waiting.retry_count, 1);
    // It runs again, and a second end is the last.
    let again = wait_worker_of(&mut client, id);
    assert_ne!(again, pid);
    terminate(&mut client, again);
    let done = wait_state(&mut client, id, "failed");
    assert_eq!(done.errors().matches("57P01").count(), 2);
    assert_eq!(done.attempt, 2);
}

#[test]
fn a_cancelled_task_fails_and_its_worker_goes_on() {
    let server = server(1);
    let mut client = server.superuser();
    let mut worker = None;
    for round in 0..3 {
        let long = enqueue(
            &mut client,
            &format!("SELECT public.work({round}); SELECT pg_sleep(3600)"),
        );
        let next = enqueue_work(&mut client, 10 + round, 0.0);
        let pid = wait_worker_of(&mut client, long);
        assert_eq!(*worker.get_or_insert(pid), pid);
        cancel(&mut client, pid);
        let ended = wait_closed(&mut client, long);
        assert_eq!(ended.state, "failed");
        assert!(ended.errors().contains("57014"), "{}", ended.errors());
        wait_state(&mut client, next, "finished");
        assert_eq!(pid_of(&mut client, 10 + round), pid);
        assert_eq!(runs_of(&mut client, round), 0);
    }
}

#[test]
fn a_cancel_of_an_idle_worker_harms_nothing() {
    let server = server(1);
    let mut client = server.superuser();
    let first = enqueue_work(&mut client, 0, 0.0);
    wait_state(&mut client, first, "finished");
    for n in 1..10 {
        let pid = wait_idle_worker(&mut client);
        cancel(&mut client, pid);
        let id = enqueue_work(&mut client, n, 0.0);
        wait_state(&mut client, id, "finished");
        assert_eq!(pid_of(&mut client, n), pid);
    }
    assert_eq!(not_once(&mut client, 10), "");
}

#[test]
fn an_idle_worker_that_is_terminated_is_replaced() {
    let server = server(1);
    let mut client = server.superuser();
    let mut seen = BTreeSet::new();
    for n in 0..5 {
        let id = enqueue_work(&mut client, n, 0.0);
        wait_state(&mut client, id, "finished");
        assert!(seen.insert(pid_of(&mut client, n)));
        let pid = wait_idle_worker(&mut client);
        terminate(&mut client, pid);
    }
    assert_eq!(states(&mut client), "finished: 5");
}

/// Does `harm` to one of the workers that run a task just now (which may have ended it meanwhile),
/// again and again, until `what` is over.
fn while_harming(server: &Server, harm: &str, what: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut session = server.superuser();
        let over = &over;
        scope.spawn(move || {
            let query = format!(
                "SELECT pg_sleep(0.005), {harm}(pid) FROM \
                 (SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_background_queue worker' \
                  AND state = 'active' ORDER BY random() LIMIT 1) AS victim"
            );
            while !over.load(Ordering::Relaxed) {
                session.query(&query, &[]).expect("harm");
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Tasks end as they should while something is done to their workers all the time: each has
/// finished and its effect is there once, or has failed with this SQLSTATE and it is not.
fn harmed(harm: &str, sqlstate: &str) -> Server {
    let server = server(3);
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    let mut number_of = Vec::new();
    while_harming(&server, harm, || {
        for n in 0..200 {
            let session = if n % 2 == 0 { &mut client } else { &mut alice };
            number_of.push((enqueue_work(session, n, 0.003), n));
        }
        wait_all_closed(&mut client, PATIENCE);
    });
    let mut ends = [0, 0];
    for (id, n) in number_of {
        let task = task(&mut client, id);
        let times = runs_of(&mut client, n);
        if task.state == "finished" {
            assert_eq!((times, task.errors), (1, None), "task {id}");
            ends[0] += 1;
        } else {
            assert_eq!((task.state.as_str(), times), ("failed", 0), "{task:?}");
            assert!(task.errors().contains(sqlstate), "{task:?}");
            ends[1] += 1;
        }
        assert_eq!(task.interruptions, 0, "task {id}");
    }
    assert!(ends[0] > 0 && ends[1] > 0, "{ends:?}");
    let most = most_at_once(&mut client);
    assert!(most <= 3, "{most} tasks at once");
    // And all is well afterwards.
    for n in 1000..1003 {
        let id = enqueue_work(&mut client, n, 0.0);
        wait_state(&mut client, id, "finished");
    }
    server
}

#[test]
fn a_storm_of_cancels_ends_tasks_and_no_worker() {
    // A cancel that comes a moment too late finds the worker between two tasks.
    let server = harmed("pg_cancel_backend", "57014");
    let log = server.log();
    let ended: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("pg_background_queue worker") && line.contains("exited with"))
        .collect();
    assert_eq!(ended, [] as [&str; 0], "workers ended by a cancel");
}

#[test]
fn a_storm_of_terminations_loses_nothing() {
    harmed("pg_terminate_backend", "57P01");
}

#[test]
fn a_quick_task_does_not_wait_for_a_long_one_of_its_role_while_there_is_room() {
    let server = server(3);
    let mut client = server.superuser();
    let first = enqueue_work(&mut client, 0, 0.0);
    wait_state(&mut client, first, "finished");
    wait_idle_worker(&mut client);
    run(&mut client, "SELECT pg_advisory_lock(1)");
    // Taken by the idle worker at once, which thus sees none of the others.
    let long = enqueue(&mut client, &gated(1, 1));
    wait_at_the_gate(&mut client, 1, 1);
    for n in 2..5 {
        let quick = enqueue_work(&mut client, n, 0.0);
        wait_state(&mut client, quick, "finished");
    }
    assert_eq!(task(&mut client, long).state, "running");
    run(&mut client, "SELECT pg_advisory_unlock(1)");
    wait_state(&mut client, long, "finished");
}

#[test]
fn a_retry_does_not_wait_for_a_long_task_of_its_role_while_there_is_room() {
    let server = server(3);
    server.set_and_reload("pg_background_queue.retry_count", "1");
    let mut client = server.superuser();
    run(&mut client, "SELECT pg_advisory_lock(1)");
    let failing = enqueue(&mut client, "SELECT 1/0");
    let waiting = wait_state(&mut client, failing, "retrying");
    wait_idle_worker(&mut client);
    // Takes the worker that knew when the retry is due.
    let long = enqueue(&mut client, &gated(0, 1));
    wait_at_the_gate(&mut client, 1, 1);
    let done = wait_state(&mut client, failing, "failed");
    assert_promptly(waiting.due_at.expect("a time"), done.started_at);
    assert_eq!(done.attempt, 2);
    assert_eq!(task(&mut client, long).state, "running");
    run(&mut client, "SELECT pg_advisory_unlock(1)");
    wait_state(&mut client, long, "finished");
}

#[test]
fn a_commit_prepared_starts_its_task_beside_a_long_one_of_its_role() {
    let server = server(3);
    let mut client = server.superuser();
    run(
        &mut client,
        "BEGIN; SELECT pg_background_queue_enqueue('SELECT public.work(1)'); PREPARE TRANSACTION 'task'; \
         SELECT pg_advisory_lock(1)",
    );
    let long = enqueue(&mut client, &gated(0, 1));
    wait_at_the_gate(&mut client, 1, 1);
    run(&mut client, "COMMIT PREPARED 'task'");
    wait_until("the task to have run", || runs_of(&mut client, 1) == 1);
    assert_eq!(task(&mut client, long).state, "running");
    run(&mut client, "SELECT pg_advisory_unlock(1)");
    wait_state(&mut client, long, "finished");
}

#[test]
fn workers_that_fail_again_and_again_do_not_flood_the_log() {
    let server = server(3);
    server.set_and_reload(LIMIT, "0");
    let mut client = server.superuser();
    let id = enqueue_work(&mut client, 0, 0.0);
    run(
        &mut client,
        "ALTER INDEX pg_background_tasks_queue_idx RENAME TO renamed",
    );
    let mark = server.log_mark();
    server.set_and_reload(LIMIT, "3");
    wait_until("a worker or keeper to fail", || {
        server.log_since(mark).contains("ERROR")
    });
    // No synchronisation: the length of the observation.
    std::thread::sleep(Duration::from_secs(3));
    let lines = server.log_since(mark).lines().count();
    assert!(lines < 60, "{lines} lines of log in three seconds");
    run(
        &mut client,
        "ALTER INDEX renamed RENAME TO pg_background_tasks_queue_idx",
    );
    wait_state(&mut client, id, "finished");
}

/// The launcher is ended in the middle of long tasks; they go on, and so do their processes.
fn adopted(mut end_launcher: impl FnMut(&mut Client, i32)) {
    let server = server(3);
    let mut client = server.superuser();
    let mut sessions = ["postgres", "alice", "bob"].map(|role| server.connect(role, "postgres"));
    run(&mut client, "SELECT pg_advisory_lock(1)");
    let mut long = Vec::new();
    for (n, session) in (0..).zip(&mut sessions) {
        long.push(enqueue(session, &gated(n, 1)));
    }
    wait_at_the_gate(&mut client, 1, 3);
    let living = pids(&mut client, "worker");
    assert_eq!(living.len(), 3);
    let old = launcher_pid(&mut client).expect("a launcher");
    end_launcher(&mut client, old);
    let new = wait_for_launcher(&mut client, old);
    assert_ne!(new, old);
    assert_eq!(pids(&mut client, "worker"), living);
    // It takes care of their ends, although the postmaster does not tell it of them; and it gives
    // away the places that they leave, not more.
    let pid = wait_worker_of(&mut client, long[0]);
    terminate(&mut client, pid);
    let ended = wait_closed(&mut client, long[0]);
    assert_eq!(ended.state, "failed");
    assert!(ended.errors().contains("57P01"), "{}", ended.errors());
    enqueue(&mut sessions[0], &gated(3, 1));
    enqueue_work(&mut sessions[0], 4, 0.0);
    wait_at_the_gate(&mut client, 1, 3);
    assert_eq!(pids(&mut client, "worker").len(), 3);

    run(&mut client, "SELECT pg_advisory_unlock(1)");
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(states(&mut client), "finished: 4, failed: 1");
    assert_eq!(not_once(&mut client, 5), "0: 0");
    for n in [1, 2] {
        assert_eq!(task(&mut client, long[n]).attempt, 1);
        let pid = pid_of(&mut client, i32::try_from(n).expect("small"));
        assert!(living.contains(&pid), "another process took the task over");
    }
}

#[test]
fn a_new_launcher_adopts_the_workers_of_a_terminated_one() {
    adopted(terminate);
}

#[test]
fn a_new_launcher_adopts_the_workers_of_a_killed_one() {
    adopted(|_, pid| assert!(kill(pid, libc::SIGTERM)));
}

#[test]
fn launchers_ended_under_load_break_no_limit_and_no_task() {
    const COUNT: i32 = 1200;
    let server = server(3);
    let mut client = server.superuser();
    std::thread::scope(|scope| {
        for (i, role) in (0..).zip(["postgres", "alice", "bob"]) {
            let connector = server.connector();
            scope.spawn(move || {
                let mut session = connector.connect(role, "postgres");
                for n in (i..COUNT).step_by(3) {
                    enqueue_work(&mut session, n, if n % 20 == 0 { 0.2 } else { 0.002 });
                }
            });
        }
        let mut launcher = 0;
        for round in 0..4 {
            launcher = wait_for_launcher(&mut client, launcher);
            if round % 2 == 0 {
                terminate(&mut client, launcher);
            } else {
                kill(launcher, libc::SIGTERM);
            }
        }
    });
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(states(&mut client), format!("finished: {COUNT}"));
    assert_eq!(not_once(&mut client, COUNT), "");
    let attempts: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE attempt <> 1",
        &[],
    );
    assert_eq!(attempts, 0);
    let most = most_at_once(&mut client);
    assert!(most <= 3, "{most} tasks at once");
}

#[test]
fn a_cancel_of_the_launcher_harms_nothing() {
    let server = server(3);
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    let launcher = wait_for_launcher(&mut client, 0);
    for n in 0..5 {
        cancel(&mut client, launcher);
        enqueue_work(&mut client, 2 * n, 0.0);
        enqueue_work(&mut alice, 2 * n + 1, 0.0);
    }
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(states(&mut client), "finished: 10");
    assert_eq!(not_once(&mut client, 10), "");
}

/// Waits for a keeper that waits for a lock.
#[track_caller]
fn wait_blocked_keeper(client: &mut Client) -> i32 {
    wait_for("a keeper that waits for a lock", PATIENCE, || {
        client
            .query_opt(
                "SELECT pid FROM pg_stat_activity \
                 WHERE backend_type = 'pg_background_queue keeper' AND wait_event_type = 'Lock'",
                &[],
            )
            .expect("pg_stat_activity")
            .map(|row| row.get(0))
    })
}

#[test]
fn a_keeper_terminated_at_the_servers_start_is_replaced() {
    let mut server = server(3);
    let mut client = server.superuser();
    let long = enqueue(&mut client, "SELECT pg_sleep(3600)");
    wait_worker_of(&mut client, long);
    enqueue_work(&mut client, 0, 0.0);
    drop(client);
    server.stop(Stop::Fast);
    // Paused for a moment, to take a lock that is there at the next start already.
    server.set_conf(LIMIT, "0");
    server.start();
    let mut client = server.superuser();
    run(
        &mut client,
        "BEGIN; LOCK TABLE pg_background_tasks IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'lock'",
    );
    drop(client);
    server.set_conf(LIMIT, "3");
    server.restart();
    let mut client = server.superuser();
    let keeper = wait_blocked_keeper(&mut client);
    terminate(&mut client, keeper);
    wait_until("the keeper to be gone", || !is_alive(keeper));
    run(&mut client, "ROLLBACK PREPARED 'lock'");
    // Nobody asks for anything.
    wait_until("the pending task to have run", || {
        runs_of(&mut client, 0) == 1
    });
    wait_worker_of(&mut client, long);
    assert_eq!(task(&mut client, long).errors, None);
}

#[test]
fn a_keeper_cancelled_at_the_servers_start_is_replaced() {
    let mut server = server(3);
    server.set_and_reload(LIMIT, "0");
    let mut client = server.superuser();
    enqueue_work(&mut client, 0, 0.0);
    run(
        &mut client,
        "BEGIN; LOCK TABLE pg_background_tasks IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'lock'",
    );
    drop(client);
    server.set_conf(LIMIT, "3");
    server.restart();
    let mut client = server.superuser();
    let keeper = wait_blocked_keeper(&mut client);
    cancel(&mut client, keeper);
    wait_until("the keeper to be gone", || !is_alive(keeper));
    run(&mut client, "ROLLBACK PREPARED 'lock'");
    wait_until("the pending task to have run", || {
        runs_of(&mut client, 0) == 1
    });
}

#[test]
fn a_keeper_terminated_after_a_commit_prepared_is_replaced() {
    let server = server(3);
    let mut client = server.superuser();
    run(
        &mut client,
        "BEGIN; SELECT pg_background_queue_enqueue('SELECT public.work(0)'); PREPARE TRANSACTION 'task'",
    );
    let mut locker = server.superuser();
    std::thread::scope(|scope| {
        let locked = scope.spawn(move || {
            run(
                &mut locker,
                "BEGIN; LOCK TABLE pg_background_tasks IN ACCESS EXCLUSIVE MODE",
            );
            locker
        });
        // It is the first in line for the table, before any keeper.
        wait_until("the lock to be asked for", || {
            scalar(
                &mut client,
                "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock')",
                &[],
            )
        });
        run(&mut client, "COMMIT PREPARED 'task'");
        let mut locker = locked.join().expect("no panic");
        let keeper = wait_blocked_keeper(&mut client);
        terminate(&mut client, keeper);
        wait_until("the keeper to be gone", || !is_alive(keeper));
        run(&mut locker, "ROLLBACK");
    });
    wait_until("the task to have run", || runs_of(&mut client, 0) == 1);
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(states(&mut client), "finished: 1");
}

/// Changes the row of a task that is done and about to commit, and lets it go on; returns the
/// client and the task's id once the worker has ended it.
fn changed_while_it_runs(server: &Server, change: &str) -> (Client, i64) {
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    run(&mut client, "SELECT pg_advisory_lock(1)");
    let id = enqueue(&mut alice, &gated(0, 1));
    wait_at_the_gate(&mut client, 1, 1);
    let pid = wait_worker_of(&mut client, id);
    let changed = client
        .execute(&change.replace("{id}", &id.to_string()), &[])
        .expect("change the row");
    assert_eq!(changed, 1);
    run(&mut client, "SELECT pg_advisory_unlock(1)");
    // The next one comes after it and is served by the same process.
    let next = enqueue_work(&mut alice, 1, 0.0);
    wait_state(&mut client, next, "finished");
    assert_eq!(pid_of(&mut client, 1), pid);
    (client, id)
}

#[test]
fn a_task_deleted_while_it_runs_has_no_effect() {
    let server = server(1);
    let (mut client, _) =
        changed_while_it_runs(&server, "DELETE FROM pg_background_tasks WHERE id = {id}");
    assert_eq!(runs_of(&mut client, 0), 0);
    assert_eq!(tasks(&mut client).len(), 1);
}

#[test]
fn a_task_closed_by_somebody_else_while_it_runs_has_no_effect() {
    for state in ["cancelled", "failed", "finished"] {
        let server = server(1);
        let change = format!(
            "UPDATE pg_background_tasks SET state = '{state}', closed_at = '2001-01-01' WHERE id = {{id}}"
        );
        let (mut client, id) = changed_while_it_runs(&server, &change);
        assert_eq!(runs_of(&mut client, 0), 0, "{state}");
        let task = task(&mut client, id);
        assert_eq!((task.state.as_str(), task.attempt), (state, 1));
        assert_eq!(task.errors, None, "{state}");
        let untouched: bool = scalar(
            &mut client,
            "SELECT closed_at = '2001-01-01' FROM pg_background_tasks WHERE id = $1",
            &[&id],
        );
        assert!(untouched, "{state}");
    }
}

#[test]
fn a_task_reopened_by_somebody_else_while_it_runs_has_its_effect_once() {
    let server = server(1);
    let (mut client, id) = changed_while_it_runs(
        &server,
        "UPDATE pg_background_tasks SET state = 'pending' WHERE id = {id}",
    );
    let done = wait_state(&mut client, id, "finished");
    assert_eq!(done.attempt, 2);
    assert_eq!(runs_of(&mut client, 0), 1);
}

#[test]
fn prepared_transactions_start_nothing_before_they_commit() {
    let server = server(3);
    let mut client = server.superuser();
    for (n, name) in (0..).zip(["kept", "lost", "later"]) {
        run(
            &mut client,
            &format!(
                "BEGIN; SELECT pg_background_queue_enqueue('SELECT public.work({n})'); \
                 PREPARE TRANSACTION '{name}'"
            ),
        );
    }
    // Whoever looks for work now finds none of it: an idle worker of the same role, a keeper, a new
    // launcher.
    let id = enqueue_work(&mut client, 10, 0.0);
    wait_state(&mut client, id, "finished");
    run(&mut client, "SELECT pg_background_queue_ensure_workers()");
    let old = launcher_pid(&mut client).expect("a launcher");
    terminate(&mut client, old);
    wait_for_launcher(&mut client, old);
    let id = enqueue_work(&mut client, 11, 0.0);
    wait_state(&mut client, id, "finished");
    assert_eq!(states(&mut client), "finished: 2");
    run(&mut client, "ROLLBACK PREPARED 'lost'");

    let since = SystemTime::now();
    run(&mut client, "COMMIT PREPARED 'kept'");
    wait_until("the task to have run", || runs_of(&mut client, 0) == 1);
    assert_promptly(since, Some(SystemTime::now()));
    // From another session of another role, when no worker is there.
    for pid in pids(&mut client, "worker") {
        terminate(&mut client, pid);
    }
    wait_until("the workers to be gone", || {
        pids(&mut client, "worker").is_empty()
    });
    let mut other = server.superuser();
    let since = SystemTime::now();
    run(&mut other, "COMMIT PREPARED 'later'");
    wait_until("the task to have run", || runs_of(&mut client, 2) == 1);
    assert_promptly(since, Some(SystemTime::now()));
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(states(&mut client), "finished: 4");
    assert_eq!(runs_of(&mut client, 1), 0);
}

#[test]
fn drop_extension_while_workers_are_idle() {
    let server = server(3);
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    for round in 0..3 {
        let mine = enqueue_work(&mut client, 2 * round, 0.0);
        let hers = enqueue_work(&mut alice, 2 * round + 1, 0.0);
        wait_state(&mut client, mine, "finished");
        wait_state(&mut client, hers, "finished");
        assert_eq!((mine, hers), (1, 2));
        run(
            &mut client,
            "SET statement_timeout = '15s'; DROP EXTENSION pg_background_queue; \
             CREATE EXTENSION pg_background_queue; RESET statement_timeout; \
             GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO alice",
        );
        assert_eq!(tasks(&mut client).len(), 0);
    }
    assert_eq!(not_once(&mut client, 6), "");
}

#[test]
fn drop_extension_while_a_task_runs_rolls_the_task_back() {
    let server = server(3);
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    let mut bob = server.connect("bob", "postgres");
    run(
        &mut client,
        "SELECT pg_advisory_lock(1), pg_advisory_lock(2)",
    );
    let old = enqueue(&mut alice, &gated(0, 1));
    assert_eq!(old, 1);
    wait_at_the_gate(&mut client, 1, 1);
    let pid = wait_worker_of(&mut client, old);
    // Nobody will ever ask for this one.
    run(
        &mut client,
        "SET statement_timeout = '15s'; DROP EXTENSION pg_background_queue; \
         CREATE EXTENSION pg_background_queue; RESET statement_timeout; \
         GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO alice, bob",
    );
    assert_eq!(tasks(&mut client).len(), 0);

    // A task with the same id and attempt, which runs when the old one wants to make its mark.
    let new = enqueue(&mut bob, &gated(1, 2));
    assert_eq!(new, old);
    wait_at_the_gate(&mut client, 2, 1);
    let running = wait_state(&mut client, new, "running");
    assert_eq!(running.attempt, 1);
    run(&mut client, "SELECT pg_advisory_unlock(1)");
    let next = enqueue_work(&mut alice, 2, 0.0);
    wait_state(&mut client, next, "finished");
    assert_eq!(pid_of(&mut client, 2), pid);
    let still = task(&mut client, new);
    assert_eq!((still.state.as_str(), still.errors), ("running", None));
    run(&mut client, "SELECT pg_advisory_unlock(2)");
    wait_state(&mut client, new, "finished");
    assert_eq!(runs_of(&mut client, 0), 0);
    assert_eq!(runs_of(&mut client, 1), 1);
    assert_eq!(states(&mut client), "finished: 2");
}

#[test]
fn a_worker_terminated_after_drop_extension_marks_nothing() {
    let server = server(3);
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    let old = enqueue(&mut alice, "SELECT pg_sleep(3600)");
    let pid = wait_worker_of(&mut client, old);
    run(
        &mut client,
        "DROP EXTENSION pg_background_queue; CREATE EXTENSION pg_background_queue; \
         SELECT pg_advisory_lock(1)",
    );
    let new = enqueue(&mut client, &gated(0, 1));
    assert_eq!(new, old);
    wait_at_the_gate(&mut client, 1, 1);
    terminate(&mut client, pid);
    wait_until("the worker to be gone", || !is_alive(pid));
    run(&mut client, "SELECT pg_background_queue_ensure_workers()");
    run(&mut client, "SELECT pg_advisory_unlock(1)");
    let done = wait_state(&mut client, new, "finished");
    assert_eq!((done.attempt, done.errors), (1, None));
    // The place of the old task is free again.
    run(&mut client, "SELECT pg_advisory_lock(1)");
    for n in 1..4 {
        enqueue(&mut client, &gated(n, 1));
    }
    wait_at_the_gate(&mut client, 1, 3);
    run(&mut client, "SELECT pg_advisory_unlock(1)");
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(not_once(&mut client, 4), "");
}

/// Makes database `other` with the extension in it, and connects to it.
fn other_database(server: &Server, client: &mut Client) -> Client {
    run(client, "CREATE DATABASE other");
    let mut other = server.connect("postgres", "other");
    run(&mut other, "CREATE EXTENSION pg_background_queue");
    other
}

#[test]
fn a_database_dropped_with_tasks_in_it_is_forgotten() {
    let server = server(3);
    server.set_and_reload(LIMIT, "0");
    let mut client = server.superuser();
    let mut other = other_database(&server, &mut client);
    enqueue(&mut other, "SELECT 1");
    drop(other);
    wait_until("the database to be dropped", || {
        client.batch_execute("DROP DATABASE other").is_ok()
    });
    let mark = server.log_mark();
    server.set_and_reload(LIMIT, "3");
    let id = enqueue_work(&mut client, 0, 0.0);
    wait_state(&mut client, id, "finished");
    // No synchronisation: the length of the observation.
    std::thread::sleep(Duration::from_secs(6));
    let log = server.log_since(mark);
    let failures = log.matches("does not exist").count();
    assert!(
        failures <= 3,
        "{failures} processes were sent there in six seconds"
    );
}

#[test]
fn drop_database_with_force_while_a_task_runs_frees_its_place() {
    let server = server(1);
    let mut client = server.superuser();
    let mut other = other_database(&server, &mut client);
    let long = enqueue(&mut other, "SELECT pg_sleep(3600)");
    wait_worker_of(&mut client, long);
    drop(other);
    run(&mut client, "DROP DATABASE other WITH (FORCE)");
    let id = enqueue_work(&mut client, 0, 0.0);
    wait_state(&mut client, id, "finished");
}

#[test]
fn a_pending_row_that_somebody_locks_waits_alone() {
    let server = server(1);
    let mut client = server.superuser();
    let mut holder = server.superuser();
    run(&mut client, "SELECT pg_advisory_lock(1)");
    let gate = enqueue(&mut client, &gated(0, 1));
    let locked = enqueue_work(&mut client, 1, 0.0);
    let other = enqueue_work(&mut client, 2, 0.0);
    wait_at_the_gate(&mut client, 1, 1);
    run(
        &mut holder,
        &format!("BEGIN; SELECT FROM pg_background_tasks WHERE id = {locked} FOR UPDATE"),
    );
    run(&mut client, "SELECT pg_advisory_unlock(1)");
    wait_state(&mut client, gate, "finished");
    wait_state(&mut client, other, "finished");
    let another = enqueue_work(&mut client, 3, 0.0);
    wait_state(&mut client, another, "finished");
    assert_eq!(task(&mut client, locked).state, "pending");
    let since = SystemTime::now();
    run(&mut holder, "COMMIT");
    let done = wait_state(&mut client, locked, "finished");
    assert_promptly(since, done.started_at);
    assert_eq!(done.attempt, 1);
    assert_eq!(not_once(&mut client, 4), "");
}

#[test]
fn a_pending_row_deleted_by_the_one_who_locked_it_is_gone() {
    let server = server(1);
    server.set_and_reload(LIMIT, "0");
    let mut client = server.superuser();
    let mut holder = server.superuser();
    let deleted = enqueue_work(&mut client, 0, 0.0);
    let other = enqueue_work(&mut client, 1, 0.0);
    run(
        &mut holder,
        &format!("BEGIN; DELETE FROM pg_background_tasks WHERE id = {deleted}"),
    );
    server.set_and_reload(LIMIT, "1");
    wait_state(&mut client, other, "finished");
    run(&mut holder, "COMMIT");
    let next = enqueue_work(&mut client, 2, 0.0);
    wait_state(&mut client, next, "finished");
    assert_eq!(runs_of(&mut client, 0), 0);
    assert_eq!(states(&mut client), "finished: 2");
}

#[test]
fn a_running_row_that_somebody_locks_delays_its_commit_only() {
    let server = server(3);
    let mut client = server.superuser();
    let mut holder = server.superuser();
    run(&mut client, "SELECT pg_advisory_lock(1)");
    let id = enqueue(&mut client, &gated(0, 1));
    wait_at_the_gate(&mut client, 1, 1);
    run(
        &mut holder,
        &format!("BEGIN; SELECT FROM pg_background_tasks WHERE id = {id} FOR UPDATE"),
    );
    run(&mut client, "SELECT pg_advisory_unlock(1)");
    wait_at_the_gate(&mut client, 1, 0);
    let mut alice = server.connect("alice", "postgres");
    let other = enqueue_work(&mut alice, 1, 0.0);
    wait_state(&mut client, other, "finished");
    assert_eq!(task(&mut client, id).state, "running");
    assert_eq!(runs_of(&mut client, 0), 0);
    let since = SystemTime::now();
    run(&mut holder, "COMMIT");
    let done = wait_state(&mut client, id, "finished");
    assert_promptly(since, done.closed_at);
    assert_eq!(done.attempt, 1);
    assert_eq!(runs_of(&mut client, 0), 1);
}

#[test]
fn a_locked_table_delays_everything_and_fails_nothing() {
    const COUNT: i32 = 300;
    let server = server(3);
    let mut client = server.superuser();
    let mut holder = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    for n in 0..COUNT {
        let session = if n % 2 == 0 { &mut client } else { &mut alice };
        enqueue_work(session, n, 0.005);
        if n % 100 == 99 {
            run(
                &mut holder,
                "BEGIN; LOCK TABLE pg_background_tasks IN ACCESS EXCLUSIVE MODE; \
                 SELECT pg_sleep(2); COMMIT",
            );
        }
    }
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(states(&mut client), format!("finished: {COUNT}"));
    assert_eq!(not_once(&mut client, COUNT), "");
    let odd: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE attempt <> 1 OR errors IS NOT NULL OR interruptions <> 0",
        &[],
    );
    assert_eq!(odd, 0);
}

#[test]
fn a_rewritten_table_goes_on_working() {
    let server = server(3);
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    for n in 0..90 {
        let session = if n % 2 == 0 { &mut client } else { &mut alice };
        enqueue_work(session, n, 0.005);
        if n % 30 == 29 {
            run(
                &mut client,
                "VACUUM FULL pg_background_tasks; \
                 REINDEX TABLE pg_background_tasks; \
                 REINDEX TABLE CONCURRENTLY pg_background_tasks"
                    .split("; ")
                    .nth(usize::try_from(n / 30).expect("small"))
                    .expect("three"),
            );
        }
    }
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(states(&mut client), "finished: 90");
    assert_eq!(not_once(&mut client, 90), "");
}

#[test]
fn tasks_wait_while_other_extensions_have_all_worker_slots() {
    // The launcher and PostgreSQL's logical replication launcher take two of the four.
    let server = Server::builder()
        .conf("max_worker_processes", "4")
        .conf(LIMIT, "3")
        .conf(IDLE_TIMEOUT, "10min")
        .start();
    let mut client = server.superuser();
    wait_until("the keepers of the start to be gone", || {
        pids(&mut client, "keeper").is_empty()
    });
    let version: i32 = scalar(
        &mut client,
        "SELECT current_setting('server_version_num')::int",
        &[],
    );
    let force = if version < 160_000 {
        "force_parallel_mode"
    } else {
        "debug_parallel_query"
    };
    let mut enough = Vec::new();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut session = server.superuser();
            run(&mut session, &format!("SET {force} = on"));
            let pid: i32 = scalar(&mut session, "SELECT pg_backend_pid()", &[]);
            enough.push(pid);
            let over = &over;
            scope.spawn(move || {
                let ended = session.query("SELECT pg_sleep(3600)", &[]);
                assert!(ended.is_err());
                assert!(over.load(Ordering::Relaxed), "{ended:?}");
            });
        }
        wait_until("parallel workers to have both slots", || {
            scalar::<i64>(
                &mut client,
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel worker'",
                &[],
            ) == 2
        });
        let mark = server.log_mark();
        for _ in 0..5 {
            enqueue_topic(&mut client, "SELECT 1", "waits");
        }
        wait_until("the server to say that no slot is free", || {
            server.log_since(mark).contains("no worker slot free")
        });
        assert_eq!(states(&mut client), "pending: 5");
        over.store(true, Ordering::Relaxed);
        let since = SystemTime::now();
        cancel(&mut client, enough[0]);
        wait_all_closed(&mut client, PATIENCE);
        assert_promptly(since, Some(SystemTime::now()));
        cancel(&mut client, enough[1]);
    });
    assert_eq!(states(&mut client), "finished: 5");
}
