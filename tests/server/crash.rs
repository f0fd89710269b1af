//! The server goes down in the middle of work, in every way it can: afterwards everything runs to
//! its end by itself, and each effect is there exactly once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use postgres::Client;

use crate::harness::{
    Connector, PATIENCE, Server, Stop, Task, create_role, enqueue, enqueue_topic, kill, run,
    running_count, scalar, states, task, tasks, wait_all_closed, wait_for, wait_for_launcher,
    wait_state, wait_until, workers,
};

const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";

/// Who enqueues the load.
const ROLES: [&str; 3] = ["postgres", "alice", "bob"];

/// Long enough for a backlog on a slow machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// A server with a table `effects` that takes a number as often as it is given, and three roles.
fn server() -> Server {
    let server = Server::builder()
        .conf(LIMIT, "3")
        .conf("max_worker_processes", "16")
        .expect_crash()
        .start();
    let mut client = server.superuser();
    prepare(&mut client);
    create_role(&mut client, "alice");
    create_role(&mut client, "bob");
    server
}

fn prepare(client: &mut Client) {
    run(
        client,
        "CREATE TABLE public.effects (n int); GRANT INSERT ON public.effects TO PUBLIC",
    );
}

/// Enqueues task number `n` of the load, one of several kinds. Its topic is `ok:N` or `bad:N`: what
/// it must come to.
fn enqueue_load(client: &mut Client, n: i32) -> Result<(), postgres::Error> {
    let insert = format!("INSERT INTO public.effects VALUES ({n})");
    let (sql, expected) = match n % 5 {
        0 => (format!("SELECT pg_sleep(0.15); {insert}"), "ok"),
        1 => (format!("{insert}; SELECT pg_sleep(0.1)"), "ok"),
        2 => (format!("{insert}; SELECT 1/0"), "bad"),
        _ => (insert, "ok"),
    };
    let topic = format!("{expected}:{n}");
    client
        .query(
            "SELECT pg_background_queue_enqueue($1, $2)",
            &[&sql, &topic],
        )
        .map(drop)
}

/// A session that enqueues the numbers from `first` on until the server is gone; returns those
/// whose commit it was told of.
fn enqueue_until_gone(connector: &Connector, role: &str, first: i32) -> Vec<i32> {
    let mut client = connector.connect(role, "postgres");
    (first..)
        .take(300)
        .take_while(|&n| enqueue_load(&mut client, n).is_ok())
        .collect()
}

/// Whether each task of the load came to what it must, and has its effect once or never.
#[track_caller]
fn check_load(client: &mut Client, acknowledged: &[i32]) {
    let tasks = tasks(client);
    let mut numbers = BTreeSet::new();
    for task in &tasks {
        let Some((expected, n)) = task
            .topic
            .as_deref()
            .and_then(|topic| topic.split_once(':'))
        else {
            continue;
        };
        let n: i32 = n.parse().expect("a number");
        assert!(numbers.insert(n), "{n} is there twice");
        let state = if expected == "ok" {
            "finished"
        } else {
            "failed"
        };
        assert_eq!(task.state, state, "{task:?}");
        if expected == "ok" {
            assert_eq!(task.errors, None, "{task:?}");
        } else {
            assert!(task.errors().contains("22012"), "{task:?}");
        }
        assert_eq!(task.retry_count, 0, "{task:?}");
    }
    for n in acknowledged {
        assert!(numbers.contains(n), "task {n} was committed and is lost");
    }
    assert_eq!(wrong_effects(client), "");
}

/// Numbers whose effect is not there as often as it must be.
fn wrong_effects(client: &mut Client) -> String {
    scalar(
        client,
        "SELECT coalesce(string_agg(topic || ' ' || coalesce(n, 0) || ' times', ', '), '') \
         FROM pg_background_tasks LEFT JOIN (SELECT n AS number, count(*) AS n FROM effects GROUP BY 1) AS counts \
         ON number = split_part(topic, ':', 2)::int \
         WHERE topic LIKE '%:%' AND coalesce(n, 0) <> (state = 'finished')::int",
        &[],
    )
}

/// The workers that are in the middle of a task.
fn busy_workers(client: &mut Client) -> Vec<i32> {
    workers(client)
        .iter()
        .filter(|worker| {
            worker.kind == "worker"
                && worker.state.as_deref() == Some("active")
                && worker.application_name.contains("task")
        })
        .map(|worker| worker.pid)
        .collect()
}

/// Waits until the server has noticed a crash, which ends this session, and takes connections
/// again.
#[track_caller]
fn wait_crashed_and_back(server: &mut Server, mut session: Client) {
    wait_until("the crash to end the session", || {
        session.query("SELECT 1", &[]).is_err()
    });
    server.wait_ready();
}

/// Takes the server down `rounds` times in the middle of the load, with more load each time and
/// without waiting for the old one, and lets all of it come to its end then.
fn rounds(rounds: i32, mut go_down: impl FnMut(&mut Server, Client)) -> (Server, Vec<Task>) {
    let mut server = server();
    let mut acknowledged = Vec::new();
    for round in 0..rounds {
        let mut client = server.superuser();
        let connector = server.connector();
        // A number of its own for each task: 10,000 a round, 1,000 a session.
        let first = round * 10_000;
        for (i, role) in (1..).zip(ROLES) {
            let mut session = server.connect(role, "postgres");
            for n in first + i * 1000..first + i * 1000 + 15 {
                enqueue_load(&mut session, n).expect("enqueue");
                acknowledged.push(n);
            }
        }
        // on a slow machine all that was enqueued may be done by now
        let mut more = first + 9000..first + 10_000;
        wait_until("tasks to run", || {
            if running_count(&mut client) > 0 {
                return true;
            }
            let n = more.next().expect("not so many");
            enqueue_load(&mut client, n).expect("enqueue");
            acknowledged.push(n);
            false
        });
        let while_going_down = std::thread::scope(|scope| {
            let session =
                scope.spawn(|| enqueue_until_gone(&connector, "alice", round * 10_000 + 5000));
            wait_until("more tasks", || {
                let n: i64 = scalar(
                    &mut client,
                    "SELECT count(*) FROM pg_background_tasks WHERE split_part(topic, ':', 2)::int >= $1",
                    &[&(round * 10_000 + 5000)],
                );
                n > 5 && running_count(&mut client) > 0
            });
            go_down(&mut server, client);
            session.join().expect("no panic")
        });
        acknowledged.extend(while_going_down);
    }
    // From here on nobody does anything but look.
    let mut client = server.superuser();
    wait_all_closed(&mut client, DEADLINE);
    check_load(&mut client, &acknowledged);
    assert_eq!(running_count(&mut client), 0);
    let all = tasks(&mut client);
    drop(client);
    (server, all)
}

#[test]
fn a_worker_killed_in_the_middle_of_a_task() {
    rounds(4, |server, mut client| {
        wait_until("a worker to be killed", || {
            busy_workers(&mut client)
                .first()
                .is_some_and(|&pid| kill(pid, libc::SIGKILL))
        });
        wait_crashed_and_back(server, client);
    });
}

#[test]
fn an_immediate_stop_under_load() {
    rounds(4, |server, _| {
        server.stop(Stop::Immediate);
        server.start();
    });
}

#[test]
fn a_killed_postmaster_under_load() {
    rounds(4, |server, _| {
        server.kill9_postmaster();
        server.start();
    });
}

#[test]
fn everything_killed_at_once_under_load() {
    rounds(4, |server, _| {
        server.kill9_all();
        server.start();
    });
}

#[test]
fn fast_stops_under_load_are_never_held_against_a_task() {
    // More than the crashes after which a task is given up.
    let (_server, tasks) = rounds(7, |server, _| {
        server.stop(Stop::Fast);
        server.start();
    });
    for task in tasks {
        assert_eq!(task.interruptions, 0, "{task:?}");
    }
}

/// What a stop must not wait for.
const LONG: &str = "SELECT pg_sleep(3600)";

/// Stops the server so while a long task runs, and starts it again.
fn stop_and_start_with_a_long_task(how: Stop) {
    let mut server = Server::builder().conf(LIMIT, "3").start();
    let mut client = server.superuser();
    let id = enqueue(&mut client, LONG);
    let first = wait_state(&mut client, id, "running");
    let mut old = 0;
    wait_until("the task to be at work", || {
        old = busy_workers(&mut client).first().copied().unwrap_or(0);
        old != 0
    });
    drop(client);
    let begin = Instant::now();
    server.stop(how);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(30), "{how:?} took {took:?}");

    server.start();
    let mut client = server.superuser();
    wait_until("the task to be at work again", || {
        !busy_workers(&mut client).is_empty()
    });
    let again = task(&mut client, id);
    assert_eq!(again.state, "running");
    assert_eq!(again.errors, None);
    assert_eq!(
        (again.interruptions, again.retry_count, again.attempt),
        (0, 0, first.attempt + 1)
    );
    assert!(again.started_at > first.started_at);
    assert_ne!(busy_workers(&mut client), [old]);
}

#[test]
fn a_fast_stop_does_not_wait_for_a_long_task_which_runs_again() {
    stop_and_start_with_a_long_task(Stop::Fast);
}

#[test]
fn a_smart_stop_does_not_wait_for_a_long_task_which_runs_again() {
    stop_and_start_with_a_long_task(Stop::Smart);
}

#[test]
fn an_immediate_stop_cuts_a_long_task_off_and_it_runs_again() {
    let mut server = server();
    let mut client = server.superuser();
    let id = enqueue(&mut client, LONG);
    wait_state(&mut client, id, "running");
    // Makes the claim durable: commits are flushed in order.
    run(&mut client, "CREATE TABLE flushed ()");
    drop(client);
    server.stop(Stop::Immediate);
    server.start();
    let mut client = server.superuser();
    wait_until("the task to run again", || {
        task(&mut client, id).attempt == 2
    });
    let again = wait_state(&mut client, id, "running");
    assert_eq!((again.interruptions, again.retry_count), (1, 0));
    assert_eq!(again.errors, None);
}

/// A task that kills the server, after so many seconds, whenever it runs.
fn killer(seconds: f64) -> String {
    format!(
        "DO $$ BEGIN PERFORM pg_sleep({seconds}); \
         EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'kill -9 ' || pg_backend_pid()); \
         PERFORM pg_sleep(60); END $$"
    )
}

/// Waits until all tasks are closed on a server that crashes again and again meanwhile.
#[track_caller]
fn wait_all_closed_through_crashes(server: &Server) -> Client {
    let connector = server.connector();
    let mut session: Option<Client> = None;
    wait_for("all tasks to end", DEADLINE, || {
        let client = match &mut session {
            Some(client) => client,
            None => session.insert(connector.try_connect("postgres", "postgres").ok()?),
        };
        match client.query_one(
            "SELECT count(*) FROM pg_background_tasks WHERE closed_at IS NULL",
            &[],
        ) {
            Ok(row) => (row.get::<_, i64>(0) == 0).then_some(()),
            Err(_) => {
                session = None;
                None
            }
        }
    });
    session.expect("it has just answered")
}

/// Enqueues these killers between other tasks, and checks that they are given up and the others
/// come to their end.
fn give_up(killers: &[&str]) {
    let server = server();
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    // Nothing starts before all is there.
    run(&mut client, "BEGIN");
    let mut bad = Vec::new();
    for n in 0..6 {
        enqueue_load(&mut client, n).expect("enqueue");
    }
    for sql in killers {
        bad.push(enqueue(&mut client, sql));
    }
    for n in 6..12 {
        enqueue_load(&mut client, n).expect("enqueue");
    }
    for n in 100..112 {
        enqueue_load(&mut alice, n).expect("enqueue");
    }
    run(&mut client, "COMMIT");
    drop((client, alice));

    let mut client = wait_all_closed_through_crashes(&server);
    for task in tasks(&mut client) {
        if bad.contains(&task.id) {
            assert_eq!(task.state, "failed", "{task:?}");
            assert!(task.errors().contains("57P02"), "{task:?}");
            assert_eq!(task.interruptions, 5, "{task:?}");
            assert!(task.closed_at.is_some(), "{task:?}");
        } else {
            // It can have been there when a killer ran for its first time, and no more.
            let most = i32::try_from(killers.len()).expect("few") + 1;
            assert!(task.interruptions <= most, "{task:?}");
        }
    }
    let acknowledged: Vec<i32> = (0..12).chain(100..112).collect();
    check_load(&mut client, &acknowledged);
    // A crash is not counted while the claim was not yet on disk: the first of each at most. And one
    // crash counts against all killers that were there for the first time.
    let crashes = server
        .log()
        .lines()
        .filter(|line| line.contains("pg_background_queue worker") && line.contains("signal 9"))
        .count();
    let (least, most) = (4 * killers.len() + 1, 6 * killers.len());
    assert!(
        (least..=most).contains(&crashes),
        "{crashes} crashes for {} killers",
        killers.len()
    );
    // The server is as good as before.
    let id = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, id, "finished");
}

#[test]
fn a_task_that_kills_the_server_every_time_is_given_up() {
    give_up(&[&killer(0.2)]);
}

#[test]
fn a_task_that_kills_the_server_at_once_is_given_up() {
    give_up(&[&killer(0.0)]);
}

#[test]
fn two_tasks_that_kill_the_server_are_given_up() {
    give_up(&[&killer(0.05), &killer(0.0)]);
}

#[test]
fn both_of_two_databases_recover() {
    let mut server = server();
    let mut client = server.superuser();
    run(&mut client, "CREATE DATABASE other");
    let mut other = server.connect("postgres", "other");
    run(&mut other, "CREATE EXTENSION pg_background_queue");
    prepare(&mut other);
    for n in 0..20 {
        enqueue_load(&mut client, n).expect("enqueue");
        enqueue_load(&mut other, n).expect("enqueue");
    }
    wait_until("tasks of both to run", || {
        let databases: BTreeSet<_> = workers(&mut client)
            .into_iter()
            .filter(|worker| worker.state.as_deref() == Some("active") && worker.kind == "worker")
            .map(|worker| worker.database)
            .collect();
        databases.len() == 2
    });
    drop((client, other));
    server.kill9_postmaster();
    server.start();
    let numbers: Vec<i32> = (0..20).collect();
    for database in ["postgres", "other"] {
        let mut client = server.connect("postgres", database);
        wait_all_closed(&mut client, DEADLINE);
        check_load(&mut client, &numbers);
    }
}

#[test]
fn a_task_that_waits_for_its_retry_still_does_after_a_crash() {
    let mut server = server();
    server.set_and_reload("pg_background_queue.retry_count", "1");
    let mut client = server.superuser();
    let id = enqueue(&mut client, "SELECT 1/0");
    let waiting = wait_state(&mut client, id, "retrying");
    assert_eq!(waiting.retry_count, 1);
    drop(client);
    server.stop(Stop::Immediate);
    server.start();
    let mut client = server.superuser();
    let done = wait_state(&mut client, id, "failed");
    assert_eq!(done.attempt, 2, "{done:?}");
    assert_eq!(done.interruptions, 0, "{done:?}");
    assert!(done.started_at >= waiting.due_at, "{done:?}");
    assert_eq!(done.errors().matches("22012").count(), 2, "{done:?}");
}

#[test]
fn tasks_left_pending_by_a_pause_survive_a_crash_and_run_when_it_ends() {
    let mut server = server();
    server.set_and_reload(LIMIT, "0");
    let mut client = server.superuser();
    for n in 0..10 {
        enqueue_load(&mut client, n).expect("enqueue");
    }
    drop(client);
    server.kill9_postmaster();
    server.start();
    let mut client = server.superuser();
    wait_for_launcher(&mut client, 0);
    assert_eq!(states(&mut client), "pending: 10");
    server.set_and_reload(LIMIT, "3");
    wait_all_closed(&mut client, PATIENCE);
    check_load(&mut client, &(0..10).collect::<Vec<_>>());
}

#[test]
fn a_prepared_transaction_survives_a_crash_and_starts_its_task_when_it_commits() {
    let mut server = Server::builder()
        .conf(LIMIT, "3")
        .conf("max_prepared_transactions", "5")
        .expect_crash()
        .start();
    let mut client = server.superuser();
    prepare(&mut client);
    for name in ["kept", "lost"] {
        run(&mut client, "BEGIN");
        let n = i32::from(name == "lost");
        enqueue_topic(
            &mut client,
            &format!("INSERT INTO effects VALUES ({n})"),
            &format!("ok:{n}"),
        );
        run(&mut client, &format!("PREPARE TRANSACTION '{name}'"));
    }
    drop(client);
    server.kill9_all();
    server.start();
    let mut client = server.superuser();
    // What is enqueued now runs, and what is prepared does not.
    let id = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, id, "finished");
    assert_eq!(tasks(&mut client).len(), 1);
    let effects = "SELECT coalesce(string_agg(n::text, ' '), '') FROM effects";
    assert_eq!(scalar::<String>(&mut client, effects, &[]), "");
    run(&mut client, "ROLLBACK PREPARED 'lost'");
    run(&mut client, "COMMIT PREPARED 'kept'");
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(states(&mut client), "finished: 2");
    assert_eq!(scalar::<String>(&mut client, effects, &[]), "0");
}
