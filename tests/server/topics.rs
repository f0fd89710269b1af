//! Topics: their configuration, limits, order, delays and retries.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use postgres::Client;

use crate::harness::{
    PATIENCE, Server, Stop, Task, context_switches, create_role, enqueue, enqueue_topic, kill,
    launcher_pid, run, running_count, scalar, states, task, tasks, wait_all_closed, wait_closed,
    wait_for, wait_for_launcher, wait_no_workers, wait_quiet, wait_state, wait_until, worker_count,
    workers,
};

const CONFIG: &str = "pg_background_queue.topic_config";
const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";
const DELAY: &str = "pg_background_queue.delay_in_sec";
const RETRIES: &str = "pg_background_queue.retry_count";
const IDLE_TIMEOUT: &str = "pg_background_queue.worker_idle_timeout";

/// How much later than due something may come on a slow machine.
const LATE: Duration = Duration::from_secs(3);

/// Gives the database a table `runs` and functions that note there when they began and ended:
/// `work(what, seconds)`, `gated(what)`, which waits until nobody holds advisory lock 1 alone, and
/// `alone(seconds)`, which fails if another of its kind is at work.
fn prepare_work(client: &mut Client) {
    run(
        client,
        "CREATE TABLE public.runs (what text, began timestamptz, ended timestamptz); \
         GRANT SELECT, INSERT ON public.runs TO PUBLIC; \
         CREATE FUNCTION public.work(what text, seconds float8) RETURNS void LANGUAGE plpgsql AS $$ \
         DECLARE began timestamptz := clock_timestamp(); BEGIN \
           PERFORM pg_sleep(seconds); \
           INSERT INTO public.runs VALUES (what, began, clock_timestamp()); \
         END $$; \
         CREATE FUNCTION public.gated(what text) RETURNS void LANGUAGE plpgsql AS $$ \
         DECLARE began timestamptz := clock_timestamp(); BEGIN \
           PERFORM pg_advisory_lock_shared(1); \
           INSERT INTO public.runs VALUES (what, began, clock_timestamp()); \
         END $$; \
         CREATE FUNCTION public.alone(seconds float8) RETURNS void LANGUAGE plpgsql AS $$ \
         BEGIN \
           IF NOT pg_try_advisory_xact_lock(2) THEN RAISE 'two at once'; END IF; \
           PERFORM pg_sleep(seconds); \
         END $$",
    );
}

/// A session that holds the gate of `gated` shut.
fn shut_gate(server: &Server) -> Client {
    let mut gate = server.superuser();
    run(&mut gate, "SELECT pg_advisory_lock(1)");
    gate
}

fn open_gate(gate: &mut Client) {
    run(gate, "SELECT pg_advisory_unlock(1)");
}

/// Begin and end of the runs of one kind, by begin.
fn runs(client: &mut Client, what: &str) -> Vec<(SystemTime, SystemTime)> {
    client
        .query(
            "SELECT began, ended FROM runs WHERE what LIKE $1 ORDER BY began",
            &[&what],
        )
        .expect("runs")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

/// What ran, in order, as `a b c`.
fn order(client: &mut Client) -> String {
    scalar(
        client,
        "SELECT coalesce(string_agg(what, ' ' ORDER BY began), '') FROM runs",
        &[],
    )
}

/// The most of `runs` that were under way at the same time.
fn most_at_once(runs: &[(SystemTime, SystemTime)]) -> usize {
    runs.iter()
        .map(|(moment, _)| {
            runs.iter()
                .filter(|(began, ended)| began <= moment && moment < ended)
                .count()
        })
        .max()
        .unwrap_or(0)
}

/// How many tasks of a topic are marked running now.
fn running_in(client: &mut Client, topic: &str) -> i64 {
    scalar(
        client,
        "SELECT count(*) FROM pg_background_tasks WHERE state = 'running' AND topic = $1",
        &[&topic],
    )
}

/// Waits until the launcher and all workers sleep, and no other has come meanwhile.
fn wait_all_quiet(client: &mut Client) {
    let pids = |client: &mut Client| {
        let mut pids: Vec<i32> = workers(client).iter().map(|process| process.pid).collect();
        pids.sort_unstable();
        pids
    };
    wait_for("all processes to come to rest", PATIENCE, || {
        let before = pids(client);
        before.iter().for_each(|&pid| wait_quiet(pid));
        (pids(client) == before).then_some(())
    });
}

/// Changes a setting, and waits until the launcher and the workers have woken up for it.
fn configure(server: &Server, client: &mut Client, name: &str, value: &str) {
    wait_for_launcher(client, 0);
    let before: Vec<(i32, Option<u64>)> = workers(client)
        .iter()
        .map(|process| (process.pid, context_switches(process.pid)))
        .collect();
    server.set_and_reload(name, value);
    for (pid, before) in before {
        wait_until("a process to notice the reload", || {
            workers(client).iter().all(|process| process.pid != pid)
                || context_switches(pid) != before
        });
    }
    wait_all_quiet(client);
}

/// Asks for all of these in one transaction: (what to run, topic, priority).
fn enqueue_together(client: &mut Client, all: &[(&str, Option<&str>, Option<i32>)]) -> Vec<i64> {
    let mut transaction = client.transaction().unwrap();
    let ids = all
        .iter()
        .map(|(sql, topic, priority)| {
            scalar(
                &mut transaction,
                "SELECT pg_background_queue_enqueue($1, $2, priority => $3)",
                &[sql, topic, priority],
            )
        })
        .collect();
    transaction.commit().unwrap();
    ids
}

/// Enqueues with `retry_count`.
fn enqueue_retried(client: &mut Client, sql: &str, topic: Option<&str>, retries: i32) -> i64 {
    scalar(
        client,
        "SELECT pg_background_queue_enqueue($1, $2, retry_count => $3)",
        &[&sql, &topic, &retries],
    )
}

fn since(later: SystemTime, earlier: SystemTime) -> f64 {
    match later.duration_since(earlier) {
        Ok(time) => time.as_secs_f64(),
        Err(error) => -error.duration().as_secs_f64(),
    }
}

// ---------------------------------------------------------------- configuration

/// Wrong values, and what the error says of them.
const WRONG: &[(&str, &[&str])] = &[
    ("{", &["JSON"]),
    (r#"{"mail": {}} {}"#, &["JSON"]),
    ("mail", &["JSON"]),
    ("[]", &["object", "array"]),
    ("7", &["object"]),
    (r#"{"mail": 1}"#, &["\"mail\"", "object"]),
    (r#"{"mail": {"prio": 1}}"#, &["\"mail\"", "\"prio\""]),
    (r#"{"mail": {}, "mail": {}}"#, &["\"mail\""]),
    (
        r#"{"mail": {"priority": 1, "priority": 2}}"#,
        &["\"mail\"", "\"priority\""],
    ),
    (
        r#"{"mail": {"priority": "1"}}"#,
        &["\"mail\"", "\"priority\"", "string"],
    ),
    (
        r#"{"mail": {"delay_in_sec": 1.5}}"#,
        &["\"mail\"", "\"delay_in_sec\"", "fraction"],
    ),
    (
        r#"{"mail": {"retry_count": -1}}"#,
        &["\"mail\"", "\"retry_count\"", "-1"],
    ),
    (
        r#"{"ok": {}, "mail": {"max_parallel_running_tasks_count": 2147483648}}"#,
        &[
            "\"mail\"",
            "\"max_parallel_running_tasks_count\"",
            "2147483648",
        ],
    ),
    (
        r#"{"mail": {"max_parallel_running_tasks_count": 99999999999999999999999999}}"#,
        &["\"mail\"", "\"max_parallel_running_tasks_count\""],
    ),
    (
        r#"{"mail": {"retry_count": null}}"#,
        &["\"mail\"", "\"retry_count\"", "null"],
    ),
];

const RIGHT: &str = r#"{"mail": {"priority": 7}}"#;

#[test]
fn a_wrong_topic_config_is_refused_by_alter_system() {
    let server = Server::builder().conf(CONFIG, RIGHT).start();
    let mut client = server.superuser();
    for (wrong, said) in WRONG {
        let sql = format!("ALTER SYSTEM SET {CONFIG} = '{wrong}'");
        let error = client.batch_execute(&sql).expect_err(wrong);
        let error = error.as_db_error().expect("the server's word");
        assert_eq!(error.code().code(), "22023", "{wrong}: {error:?}");
        let text = format!("{} {}", error.message(), error.detail().unwrap_or(""));
        assert!(text.contains(CONFIG), "{wrong}: {text}");
        for part in *said {
            assert!(text.contains(part), "{wrong}: {text}");
        }
    }
    server.reload();
    let value: String = scalar(
        &mut server.superuser(),
        "SELECT current_setting($1)",
        &[&CONFIG],
    );
    assert_eq!(value, RIGHT);
    let id = enqueue_topic(&mut client, "SELECT 1", "mail");
    assert_eq!(task(&mut client, id).priority, 7);
    wait_state(&mut client, id, "finished");

    // And what is right is taken.
    run(
        &mut client,
        &format!("ALTER SYSTEM SET {CONFIG} = '{{\"mail\": {{\"priority\": 8}}}}'"),
    );
    server.reload();
    wait_until("the new value", || {
        let mut session = server.superuser();
        let id = enqueue_topic(&mut session, "SELECT 1", "mail");
        task(&mut session, id).priority == 8
    });
}

#[test]
fn a_wrong_topic_config_is_logged_by_a_reload_and_the_old_one_stays() {
    let server = Server::builder()
        .conf(
            CONFIG,
            r#"{"mail": {"priority": 7, "max_parallel_running_tasks_count": 1}}"#,
        )
        .conf(LIMIT, "4")
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    let mark = server.log_mark();
    server.set_conf(CONFIG, r#"{"mail": {"priority": "low"}}"#);
    server.reload();
    wait_until("a line about it in the log", || {
        let log = server.log_since(mark);
        log.contains(CONFIG) && log.contains("\"mail\"") && log.contains("\"priority\"")
    });
    // In a new session, too, and for the limit.
    let mut client = server.superuser();
    let ids: Vec<i64> = (0..10)
        .map(|_| enqueue_topic(&mut client, "SELECT alone(0.02)", "mail"))
        .collect();
    for id in ids {
        let done = wait_state(&mut client, id, "finished");
        assert_eq!(done.priority, 7);
    }
}

/// A server whose configuration was refused when it started, with a task in it.
fn paused_server() -> (Server, Client, i64) {
    let mut server = Server::builder().conf(LIMIT, "0").start();
    let mut client = server.superuser();
    let waiting = enqueue_topic(&mut client, "SELECT 1", "mail");
    drop(client);
    server.stop(Stop::Fast);
    server.set_conf(LIMIT, "4");
    let mark = server.log_mark();
    server.set_conf(CONFIG, r#"{"mail": {"retry_count": "many"}}"#);
    server.start();
    let mut client = server.superuser();
    let launcher = wait_for_launcher(&mut client, 0);
    let topicless = enqueue(&mut client, "SELECT 1");
    wait_until("a line that says that nothing runs", || {
        let log = server.log_since(mark);
        log.contains("no tasks run") && log.contains("\"mail\"") && log.contains("\"retry_count\"")
    });
    run(&mut client, "SELECT pg_background_queue_ensure_workers()");
    wait_quiet(launcher);
    // A reload that changes nothing of it does not help.
    server.reload();
    wait_quiet(launcher);
    assert_eq!(states(&mut client), "pending: 2");
    assert_eq!(worker_count(&mut client), 0);
    assert!(waiting < topicless);
    (server, client, waiting)
}

#[test]
fn a_wrong_topic_config_at_the_start_pauses_until_it_is_corrected() {
    let (server, mut client, _) = paused_server();
    server.set_and_reload(CONFIG, RIGHT);
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(states(&mut client), "finished: 2");
    let mut session = server.superuser();
    let id = enqueue_topic(&mut session, "SELECT 1", "mail");
    assert_eq!(wait_state(&mut session, id, "finished").priority, 7);
}

#[test]
fn a_wrong_topic_config_at_the_start_pauses_until_it_is_removed() {
    let (server, mut client, _) = paused_server();
    let conf = server.data_dir().join("postgresql.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with(CONFIG))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(&conf, text).unwrap();
    server.reload();
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(states(&mut client), "finished: 2");
}

/// Kills the backend of `client`, and returns a session after the crash.
fn crash(server: &Server, mut client: Client) -> Client {
    server.expect_crash();
    let mark = server.log_mark();
    let pid: i32 = scalar(&mut client, "SELECT pg_backend_pid()", &[]);
    kill(pid, libc::SIGKILL);
    // a session opened before that would be cut, too
    wait_until("the postmaster to start anew", || {
        server.log_since(mark).contains("reinitializing")
    });
    wait_for("the server", PATIENCE, || {
        server.connector().try_connect("postgres", "postgres").ok()
    })
}

#[test]
fn a_crash_after_the_correction_does_not_pause_again() {
    let (server, mut client, _) = paused_server();
    server.set_and_reload(CONFIG, RIGHT);
    wait_all_closed(&mut client, PATIENCE);
    let mut client = crash(&server, client);
    let id = enqueue_topic(&mut client, "SELECT 1", "mail");
    assert_eq!(wait_state(&mut client, id, "finished").priority, 7);
}

#[test]
fn a_crash_after_a_refused_reload_leaves_the_old_value_in_force() {
    let server = Server::builder().conf(CONFIG, RIGHT).start();
    let client = server.superuser();
    let mark = server.log_mark();
    server.set_conf(CONFIG, "{");
    server.reload();
    wait_until("a line about it in the log", || {
        server.log_since(mark).contains(CONFIG)
    });
    let mut client = crash(&server, client);
    let id = enqueue_topic(&mut client, "SELECT 1", "mail");
    assert_eq!(wait_state(&mut client, id, "finished").priority, 7);
}

#[test]
fn a_topic_with_letters_beyond_ascii_is_found_in_a_latin1_database() {
    let server = Server::builder()
        .conf(
            CONFIG,
            r#"{"Aufträge": {"priority": 3}, "日本": {"priority": 4}}"#,
        )
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    );
    let mut latin = server.connect("postgres", "latin");
    run(&mut latin, "CREATE EXTENSION pg_background_queue");
    for session in [&mut client, &mut latin] {
        let id = enqueue_topic(session, "SELECT 1", "Aufträge");
        let done = wait_state(session, id, "finished");
        assert_eq!(done.priority, 3);
        assert_eq!(done.topic.as_deref(), Some("Aufträge"));
    }
}

// ---------------------------------------------------------------- limits

#[test]
fn the_limits_of_topics_and_cluster_hold_among_many_workers() {
    let server = Server::builder()
        .conf("max_worker_processes", "20")
        .conf(LIMIT, "5")
        .conf(
            CONFIG,
            r#"{"one": {"max_parallel_running_tasks_count": 1},
                "two": {"max_parallel_running_tasks_count": 2},
                "ten": {"max_parallel_running_tasks_count": 10}}"#
                .replace('\n', " ")
                .as_str(),
        )
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    create_role(&mut client, "alice");
    create_role(&mut client, "bob");
    std::thread::scope(|scope| {
        for user in ["postgres", "alice", "bob"] {
            let connector = server.connector();
            scope.spawn(move || {
                let mut session = connector.connect(user, "postgres");
                for _ in 0..30 {
                    for topic in ["one", "two", "ten"] {
                        let sql = format!("SELECT work('{topic}', 0.02)");
                        enqueue_topic(&mut session, &sql, topic);
                    }
                }
            });
        }
    });
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(states(&mut client), "finished: 270");
    let most: Vec<usize> = ["one", "two", "ten", "%"]
        .into_iter()
        .map(|topic| most_at_once(&runs(&mut client, topic)))
        .collect();
    assert_eq!(most[..2], [1, 2], "{most:?}");
    assert!(most[3] <= 5, "{most:?}");
    assert!(most[3] >= 4, "the room is not used: {most:?}");
}

#[test]
fn a_topics_limit_follows_a_reload_while_its_tasks_run() {
    let config =
        |limit: u32| format!(r#"{{"t": {{"max_parallel_running_tasks_count": {limit}}}}}"#);
    let server = Server::builder()
        .conf("max_worker_processes", "20")
        .conf(LIMIT, "8")
        .conf(CONFIG, &config(1))
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    let mut gate = shut_gate(&server);
    let all: Vec<_> = (0..10)
        .map(|_| ("SELECT gated('t')", Some("t"), None))
        .collect();
    enqueue_together(&mut client, &all);
    wait_until("one to run", || running_count(&mut client) == 1);
    wait_all_quiet(&mut client);
    assert_eq!(running_count(&mut client), 1);

    configure(&server, &mut client, CONFIG, &config(4));
    wait_until("four to run", || running_count(&mut client) == 4);
    wait_all_quiet(&mut client);
    assert_eq!(running_count(&mut client), 4);

    configure(&server, &mut client, CONFIG, &config(1));
    assert_eq!(running_count(&mut client), 4);
    // What is not of the topic has nothing to wait for.
    let other = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, other, "finished");
    let opened = SystemTime::now();
    open_gate(&mut gate);
    wait_all_closed(&mut client, PATIENCE);
    let late: i64 = scalar(
        &mut client,
        "SELECT coalesce(max(n), 0) FROM (SELECT a.id, count(*) AS n FROM pg_background_tasks AS a \
         JOIN pg_background_tasks AS b ON b.started_at <= a.started_at AND a.started_at < b.closed_at \
         WHERE a.started_at >= $1 GROUP BY a.id) AS others",
        &[&opened],
    );
    assert_eq!(late, 1, "tasks at once after the limit was lowered to 1");
}

#[test]
fn a_topics_limit_of_zero_pauses_that_topic_alone() {
    let config =
        |limit: u32| format!(r#"{{"t": {{"max_parallel_running_tasks_count": {limit}}}}}"#);
    let server = Server::builder()
        .conf(LIMIT, "3")
        .conf(IDLE_TIMEOUT, "100ms")
        .conf(CONFIG, &config(0))
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    let mut all = vec![("SELECT work('t', 0)", Some("t"), Some(1)); 50];
    all.extend([("SELECT 1", Some("other"), None); 20]);
    all.extend([("SELECT 1", None, None); 20]);
    let ids = enqueue_together(&mut client, &all);
    for &id in &ids[50..] {
        wait_state(&mut client, id, "finished");
    }
    // Nobody is left who would look again by himself, and nobody comes to look in vain.
    wait_no_workers(&mut client, PATIENCE);
    wait_all_quiet(&mut client);
    assert_eq!(worker_count(&mut client), 0);
    assert_eq!(states(&mut client), "pending: 50, finished: 40");
    server.set_and_reload(CONFIG, &config(2));
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(states(&mut client), "finished: 90");
    assert!(most_at_once(&runs(&mut client, "t")) <= 2);
}

#[test]
fn a_topic_of_another_database_is_another_topic() {
    let server = Server::builder()
        .conf("max_worker_processes", "20")
        .conf(LIMIT, "6")
        .conf(CONFIG, r#"{"t": {"max_parallel_running_tasks_count": 2}}"#)
        .start();
    let mut client = server.superuser();
    run(&mut client, "CREATE DATABASE other");
    let mut other = server.connect("postgres", "other");
    run(&mut other, "CREATE EXTENSION pg_background_queue");
    // The gate is of one database, too.
    let mut gates = Vec::new();
    for (session, name) in [(&mut client, "postgres"), (&mut other, "other")] {
        prepare_work(session);
        let mut gate = server.connect("postgres", name);
        run(&mut gate, "SELECT pg_advisory_lock(1)");
        gates.push(gate);
        for _ in 0..5 {
            enqueue_topic(session, "SELECT gated('t')", "t");
        }
    }
    for session in [&mut client, &mut other] {
        wait_until("two to run in each", || running_count(session) == 2);
    }
    wait_all_quiet(&mut client);
    for (session, gate) in [&mut client, &mut other].into_iter().zip(&mut gates) {
        assert_eq!(running_count(session), 2);
        open_gate(gate);
    }
    for session in [&mut client, &mut other] {
        wait_all_closed(session, PATIENCE);
    }
}

#[test]
fn a_topics_limit_holds_when_workers_are_terminated() {
    let server = Server::builder()
        .conf("max_worker_processes", "20")
        .conf(LIMIT, "4")
        .conf(CONFIG, r#"{"t": {"max_parallel_running_tasks_count": 1}}"#)
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    for _ in 0..15 {
        for session in [&mut client, &mut alice] {
            enqueue_topic(session, "SELECT alone(0.1)", "t");
        }
    }
    let mut killed = Vec::new();
    for _ in 0..4 {
        wait_until("a worker to run a task, and to be terminated", || {
            let hit: Option<i32> = scalar(
                &mut client,
                "SELECT max(pid) FROM pg_stat_activity \
                 WHERE query LIKE 'SELECT alone%' AND wait_event = 'PgSleep'",
                &[],
            );
            hit.is_some_and(|pid| {
                run(&mut client, &format!("SELECT pg_terminate_backend({pid})"));
                killed.push(pid);
                true
            })
        });
    }
    wait_all_closed(&mut client, PATIENCE);
    let all = tasks(&mut client);
    for task in &all {
        assert!(!task.errors().contains("two at once"), "{task:?}");
    }
    let failed = all.iter().filter(|task| task.state == "failed").count();
    assert!((1..=4).contains(&failed), "{}", states(&mut client));
    assert_eq!(all.len(), 30);
}

#[test]
fn a_topics_limit_holds_after_a_crash() {
    let server = Server::builder()
        .conf("max_worker_processes", "20")
        .conf(LIMIT, "4")
        .conf(CONFIG, r#"{"t": {"max_parallel_running_tasks_count": 1}}"#)
        .expect_crash()
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    let mut ids = Vec::new();
    for _ in 0..10 {
        for session in [&mut client, &mut alice] {
            ids.push(enqueue_topic(session, "SELECT alone(0.1)", "t"));
        }
    }
    let victim: i32 = wait_for("a worker at work", PATIENCE, || {
        scalar(
            &mut client,
            "SELECT max(pid) FROM pg_stat_activity \
             WHERE query LIKE 'SELECT alone%' AND wait_event = 'PgSleep'",
            &[],
        )
    });
    kill(victim, libc::SIGKILL);
    wait_until("the sessions to be cut", || {
        client.batch_execute("SELECT 1").is_err()
    });
    let mut client = wait_for("the server", PATIENCE, || {
        server.connector().try_connect("postgres", "postgres").ok()
    });
    wait_all_closed(&mut client, PATIENCE);
    for id in ids {
        let done = task(&mut client, id);
        assert_eq!(done.state, "finished", "{done:?}");
        assert_eq!(done.retry_count, 0);
    }
}

const ONE_EACH: &str = r#"{"a": {"max_parallel_running_tasks_count": 1}, "b": {"max_parallel_running_tasks_count": 1}, "c": {"max_parallel_running_tasks_count": 1}}"#;

#[test]
fn three_topics_of_limit_one_fill_three_places() {
    // The workers start anew each time, of which each start must lead to the next one.
    let server = Server::builder()
        .conf(LIMIT, "3")
        .conf(IDLE_TIMEOUT, "0")
        .conf(CONFIG, ONE_EACH)
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    for round in 0..20 {
        let mut gate = shut_gate(&server);
        let mut all = Vec::new();
        for topic in ["a", "b", "c"] {
            all.extend([("SELECT gated('x')", Some(topic), None); 3]);
        }
        enqueue_together(&mut client, &all);
        for topic in ["a", "b", "c"] {
            wait_until(&format!("one of {topic} to run in round {round}"), || {
                running_in(&mut client, topic) == 1
            });
        }
        if round == 0 {
            wait_all_quiet(&mut client);
        }
        assert_eq!(running_count(&mut client), 3);
        open_gate(&mut gate);
        wait_all_closed(&mut client, PATIENCE);
        wait_no_workers(&mut client, PATIENCE);
    }
}

#[test]
fn a_long_queue_in_one_full_topic_leaves_no_place_empty() {
    let server = Server::builder()
        .conf(LIMIT, "3")
        .conf(CONFIG, ONE_EACH)
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    let mut gate = shut_gate(&server);
    // In one commit: nothing comes later that would make anybody look again.
    let mut all = vec![("SELECT gated('x')", Some("a"), None); 200];
    all.extend([("SELECT gated('x')", Some("b"), None); 2]);
    all.extend([("SELECT gated('x')", Some("c"), None); 2]);
    enqueue_together(&mut client, &all);
    for topic in ["a", "b", "c"] {
        wait_until(&format!("one of {topic} to run"), || {
            running_in(&mut client, topic) == 1
        });
    }
    open_gate(&mut gate);
    wait_all_closed(&mut client, PATIENCE);
}

#[test]
fn a_free_place_is_used_although_the_roles_worker_is_busy_for_long() {
    for topic in [None, Some("a")] {
        let server = Server::builder()
            .conf("max_worker_processes", "20")
            .conf(LIMIT, "2")
            .conf(CONFIG, r#"{"a": {"max_parallel_running_tasks_count": 1}}"#)
            .start();
        let mut client = server.superuser();
        prepare_work(&mut client);
        create_role(&mut client, "alice");
        let mut alice = server.connect("alice", "postgres");
        let mut gate = shut_gate(&server);
        let mut long = server.superuser();
        run(&mut long, "SELECT pg_advisory_lock(3)");
        enqueue_together(&mut alice, &[("SELECT gated('x')", topic, None)]);
        wait_until("the other role's task to run", || {
            running_count(&mut client) == 1
        });
        let ids = enqueue_together(
            &mut client,
            &[
                ("SELECT pg_advisory_xact_lock(3)", None, None),
                ("SELECT 1", topic, None),
            ],
        );
        wait_until("both places to be taken", || {
            running_count(&mut client) == 2
        });
        wait_quiet(launcher_pid(&mut client).unwrap());
        open_gate(&mut gate);
        wait_state(&mut client, ids[1], "finished");
        assert_eq!(task(&mut client, ids[0]).state, "running");
        run(&mut long, "SELECT pg_advisory_unlock(3)");
        wait_all_closed(&mut client, PATIENCE);
    }
}

/// Waits until every process goes by what the last reload brought, however busy it is: each has begun a turn after it.
fn wait_noticed(client: &mut Client) {
    // The launcher has done with what it was at, and with one turn more.
    let launcher = wait_for_launcher(client, 0);
    for _ in 0..2 {
        let before = context_switches(launcher);
        run(client, "SELECT pg_background_queue_ensure_workers()");
        wait_until("a turn of the launcher", || {
            context_switches(launcher) != before
                && workers(client)
                    .iter()
                    .any(|process| process.pid == launcher && process.wait_event.is_some())
        });
    }
    // A worker begins one task a turn at most.
    let busy = |client: &mut Client| -> HashSet<(i32, i64)> {
        client
            .query(
                "SELECT pid, tasks_done FROM pg_background_queue_workers WHERE state <> 'idle'",
                &[],
            )
            .expect("the workers")
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect()
    };
    let before = busy(client);
    wait_until("each worker to end a task, to be idle or to leave", || {
        busy(client).is_disjoint(&before)
    });
}

#[test]
fn limits_hold_exactly_while_reloads_change_them_under_load() {
    let config =
        |limit: usize| format!(r#"{{"t": {{"max_parallel_running_tasks_count": {limit}}}}}"#);
    let server = Server::builder()
        .conf("max_worker_processes", "20")
        .conf(LIMIT, "6")
        .conf(CONFIG, &config(3))
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    for session in [&mut client, &mut alice] {
        run(
            session,
            "SELECT count(pg_background_queue_enqueue('SELECT pg_sleep(0.1)', topic)) \
             FROM generate_series(1, 1000), unnest(ARRAY['t', NULL]) AS topic",
        );
    }
    // What was in force from when to when, for certain.
    let mut windows = Vec::new();
    for (limit, of_topic) in [(6, 3), (2, 1), (6, 1), (2, 2), (6, 3), (2, 1), (6, 3)] {
        server.set_conf(LIMIT, &limit.to_string());
        server.set_and_reload(CONFIG, &config(of_topic));
        wait_noticed(&mut client);
        let begin = SystemTime::now();
        let mut most = (0, 0);
        wait_until("both limits to be reached, and ten tasks to end", || {
            let row = client
                .query_one(
                    "SELECT count(*) FILTER (WHERE state = 'running'), \
                     count(*) FILTER (WHERE state = 'running' AND topic = 't'), \
                     count(*) FILTER (WHERE state = 'finished' AND started_at > $1) \
                     FROM pg_background_tasks",
                    &[&begin],
                )
                .expect("counts");
            most.0 = row.get::<_, i64>(0).max(most.0);
            most.1 = row.get::<_, i64>(1).max(most.1);
            most >= (limit, 0) && most.1 >= of_topic as i64 && row.get::<_, i64>(2) >= 10
        });
        windows.push((begin, SystemTime::now(), limit as usize, of_topic));
    }
    run(
        &mut client,
        "DELETE FROM pg_background_tasks WHERE state = 'pending'",
    );
    wait_all_closed(&mut client, PATIENCE);
    // A task holds its place from before `started_at` until after `closed_at`.
    let all: Vec<_> = tasks(&mut client)
        .into_iter()
        .map(|task| {
            (
                task.started_at.unwrap(),
                task.closed_at.unwrap(),
                task.topic,
            )
        })
        .collect();
    for (start, _, topic) in &all {
        let running = all
            .iter()
            .filter(|(from, until, _)| from <= start && start < until);
        let of_topic = running.clone().filter(|(_, _, other)| other.is_some());
        let now = (running.count(), of_topic.count());
        let window = windows
            .iter()
            .find(|(begin, end, ..)| begin < start && start < end);
        let (most, most_of_topic) = window.map_or((6, 3), |&(_, _, all, topic)| (all, topic));
        assert!(now.0 <= most, "{now:?} run at a start in {window:?}");
        assert!(
            topic.is_none() || now.1 <= most_of_topic,
            "{now:?} run at a start in {window:?}"
        );
    }
}

// ---------------------------------------------------------------- order

#[test]
fn better_priorities_run_first_then_lower_ids_over_all_topics() {
    let server = Server::builder()
        .conf(LIMIT, "0")
        .conf(
            CONFIG,
            r#"{"urgent": {"priority": 10}, "late": {"priority": 200}}"#,
        )
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    for (name, topic, priority) in [
        ("l1", Some("late"), None),
        ("n1", None, None),
        ("u1", Some("urgent"), None),
        ("n2", Some("unknown"), None),
        ("first", Some("late"), Some(-1)),
        ("last", Some("urgent"), Some(i32::MAX)),
        ("u2", Some("urgent"), None),
        ("l2", None, Some(200)),
        ("n3", None, Some(100)),
        ("very-first", None, Some(i32::MIN)),
    ] {
        let sql = format!("SELECT work('{name}', 0)");
        enqueue_together(&mut client, &[(&sql, topic, priority)]);
    }
    server.set_and_reload(LIMIT, "1");
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(
        order(&mut client),
        "very-first first u1 u2 n1 n2 n3 l1 l2 last"
    );
}

#[test]
fn a_better_priority_overtakes_what_waits_already() {
    let server = Server::builder().conf(LIMIT, "1").start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    let mut gate = shut_gate(&server);
    let mut all = vec![("SELECT gated('gate')", None, None)];
    all.extend([("SELECT work('n', 0)", None, None); 50]);
    enqueue_together(&mut client, &all);
    wait_until("the first to run", || running_count(&mut client) == 1);
    enqueue_together(
        &mut client,
        &[("SELECT work('b2', 0)", Some("t"), Some(50))],
    );
    enqueue_together(&mut client, &[("SELECT work('b1', 0)", None, Some(1))]);
    open_gate(&mut gate);
    wait_all_closed(&mut client, PATIENCE);
    let order = order(&mut client);
    assert!(order.starts_with("gate b1 b2 n n "), "{order}");
    assert!(order.ends_with(" n n"), "{order}");
}

#[test]
fn a_better_priority_of_another_role_is_not_passed_over() {
    let server = Server::builder().conf(LIMIT, "1").start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    for role in ["alice", "bob"] {
        create_role(&mut client, role);
    }
    let mut alice = server.connect("alice", "postgres");
    let mut bob = server.connect("bob", "postgres");
    let mut gate = shut_gate(&server);
    let mut all = vec![("SELECT gated('gate')", None, None)];
    all.extend([("SELECT work('a', 0)", None, None); 60]);
    all.extend([("SELECT work('a-late', 0)", None, Some(500)); 2]);
    enqueue_together(&mut alice, &all);
    wait_until("the first to run", || running_count(&mut client) == 1);
    enqueue_together(
        &mut bob,
        &[
            ("SELECT work('b2', 0)", Some("t"), Some(2)),
            ("SELECT work('b1', 0)", None, Some(1)),
            ("SELECT work('b-mid', 0)", None, Some(400)),
        ],
    );
    wait_quiet(launcher_pid(&mut client).unwrap());
    open_gate(&mut gate);
    wait_all_closed(&mut client, PATIENCE);
    let order = order(&mut client);
    assert!(order.starts_with("gate b1 b2 a a "), "{order}");
    assert!(order.ends_with("a a b-mid a-late a-late"), "{order}");
}

#[test]
fn every_worker_of_a_role_takes_what_is_better_first() {
    let server = Server::builder().conf(LIMIT, "2").start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    let mut gate = shut_gate(&server);
    let mut all = vec![("SELECT gated('gate')", None, None); 2];
    all.extend([("SELECT work('n', 0.1)", None, None); 10]);
    enqueue_together(&mut client, &all);
    wait_until("two to run", || running_count(&mut client) == 2);
    enqueue_together(
        &mut client,
        &[("SELECT work('b', 0.1)", Some("t"), Some(1)); 4],
    );
    open_gate(&mut gate);
    wait_all_closed(&mut client, PATIENCE);
    let order = order(&mut client);
    assert!(order.starts_with("gate gate b b b b n n "), "{order}");
}

/// One role has begun with many tasks of priority 100 when another one asks for `other`; returns the order in which
/// all of them began. The tasks together take longer than any worker's stint with its role.
fn order_of_two_roles(limit: usize, other: i32) -> String {
    let server = Server::builder()
        .conf("max_worker_processes", "20")
        .conf(LIMIT, &limit.to_string())
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    for role in ["alice", "bob"] {
        create_role(&mut client, role);
    }
    let mut alice = server.connect("alice", "postgres");
    let mut bob = server.connect("bob", "postgres");
    let mut gate = shut_gate(&server);
    let mut all = vec![("SELECT gated('gate')", None, None); limit];
    all.extend([("SELECT work('a', 0.1)", None, None); 20]);
    enqueue_together(&mut alice, &all);
    wait_until("the first to run", || {
        running_count(&mut client) == i64::try_from(limit).unwrap()
    });
    let other = [("SELECT work('b', 0.1)", None, Some(other)); 6];
    enqueue_together(&mut bob, &other);
    wait_quiet(launcher_pid(&mut client).unwrap());
    open_gate(&mut gate);
    wait_all_closed(&mut client, PATIENCE);
    order(&mut client)
}

#[test]
fn a_worse_priority_of_another_role_waits_for_the_better_ones() {
    let order = order_of_two_roles(1, 400);
    let expected = format!("gate{}{}", " a".repeat(20), " b".repeat(6));
    assert_eq!(order, expected);
}

#[test]
fn several_better_tasks_of_another_role_are_not_passed_over() {
    let order = order_of_two_roles(2, 1);
    let last = order.rfind('b').unwrap();
    let passed_over = order[..last].matches(" a").count();
    // One may begin in the moment while the other role's workers start.
    assert!(passed_over <= 1, "{order}");
}

#[test]
fn a_priority_changed_by_a_reload_counts_for_later_tasks() {
    let config = |priority: i32| format!(r#"{{"t": {{"priority": {priority}}}}}"#);
    let server = Server::builder()
        .conf(LIMIT, "0")
        .conf(CONFIG, &config(300))
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    let before = enqueue_topic(&mut client, "SELECT work('before', 0)", "t");
    enqueue(&mut client, "SELECT work('plain', 0)");
    server.set_and_reload(CONFIG, &config(5));
    let mut session = server.superuser();
    let after = enqueue_topic(&mut session, "SELECT work('after', 0)", "t");
    assert_eq!(task(&mut client, before).priority, 300);
    assert_eq!(task(&mut client, after).priority, 5);
    server.set_and_reload(LIMIT, "1");
    wait_all_closed(&mut client, PATIENCE);
    assert_eq!(order(&mut client), "after plain before");
}

#[test]
fn full_paused_delayed_and_retrying_topics_block_no_other() {
    let server = Server::builder()
        .conf("max_worker_processes", "20")
        .conf(LIMIT, "0")
        .conf(
            CONFIG,
            r#"{"full": {"max_parallel_running_tasks_count": 1, "priority": 1}, "paused": {"max_parallel_running_tasks_count": 0, "priority": 1}, "delayed": {"delay_in_sec": 1000, "priority": 1}, "broken": {"retry_count": 20, "priority": 1}}"#,
        )
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    let mut gate = shut_gate(&server);
    let mut transaction = client.transaction().unwrap();
    for (sql, topic, count) in [
        ("SELECT gated('x')", "full", 1000),
        ("SELECT 1", "paused", 1000),
        ("SELECT 1", "delayed", 1000),
        ("SELECT 1/0", "broken", 20),
        ("SELECT 1", "free", 20),
    ] {
        run(
            &mut transaction,
            &format!(
                "SELECT count(pg_background_queue_enqueue('{}', '{topic}')) FROM generate_series(1, {count})",
                sql.replace('\'', "''")
            ),
        );
    }
    transaction.commit().unwrap();
    server.set_and_reload(LIMIT, "2");
    let free = |client: &mut Client| -> i64 {
        scalar(
            client,
            "SELECT count(*) FROM pg_background_tasks WHERE topic = 'free' AND state = 'finished'",
            &[],
        )
    };
    let open = |client: &mut Client| -> i64 {
        scalar(
            client,
            "SELECT count(*) FROM pg_background_tasks WHERE topic IN ('full', 'paused', 'delayed') AND closed_at IS NULL",
            &[],
        )
    };
    wait_until("the tasks of the free topic to end", || {
        free(&mut client) == 20
    });
    assert_eq!(open(&mut client), 3000);
    // And those that come later.
    let id = enqueue_topic(&mut client, "SELECT 1", "other");
    wait_state(&mut client, id, "finished");
    assert_eq!(running_in(&mut client, "full"), 1);
    run(
        &mut client,
        "DELETE FROM pg_background_tasks WHERE state IN ('pending', 'retrying')",
    );
    open_gate(&mut gate);
}

// ---------------------------------------------------------------- delay

#[test]
fn a_topic_with_a_delay_starts_no_more_than_its_limit_in_that_time() {
    let server = Server::builder()
        .conf("max_worker_processes", "20")
        .conf(LIMIT, "4")
        .conf(
            CONFIG,
            r#"{"mail": {"max_parallel_running_tasks_count": 2, "delay_in_sec": 1}}"#,
        )
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    let asked = SystemTime::now();
    for _ in 0..4 {
        for session in [&mut client, &mut alice] {
            enqueue_topic(session, "SELECT work('mail', 0.01)", "mail");
        }
    }
    // What has no delay does not wait for it.
    let quick = enqueue(&mut client, "SELECT 1");
    let done = wait_state(&mut client, quick, "finished");
    assert!(since(done.started_at.unwrap(), done.joined_at) < 3.0);
    wait_all_closed(&mut client, PATIENCE);
    let runs = runs(&mut client, "mail");
    assert_eq!(runs.len(), 8);
    let first = since(runs[0].0, asked);
    assert!(first > 0.98, "the first began after {first} s");
    for three in runs.windows(3) {
        let time = since(three[2].0, three[0].0);
        assert!(time > 0.98, "three starts within {time} s: {runs:?}");
    }
    // Four times two, with a second before each.
    let last = since(runs[7].0, asked);
    assert!(
        last < 4.0 + 2.0 * LATE.as_secs_f64(),
        "the last began after {last} s"
    );
    assert!(most_at_once(&runs) <= 2);
}

#[test]
fn no_process_is_held_by_a_delay() {
    let server = Server::builder()
        .conf(LIMIT, "4")
        .conf(IDLE_TIMEOUT, "100ms")
        .conf(CONFIG, r#"{"mail": {"delay_in_sec": 5}}"#)
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    let id = enqueue_topic(&mut client, "SELECT work('mail', 0)", "mail");
    // once somebody has looked at it
    wait_until("a worker", || {
        worker_count(&mut client) > 0 || task(&mut client, id).is_closed()
    });
    wait_no_workers(&mut client, PATIENCE);
    let count: i32 = scalar(
        &mut client,
        "SELECT pg_background_queue_active_workers_count()",
        &[],
    );
    let now = task(&mut client, id);
    assert_eq!((now.state.as_str(), count), ("pending", 0));
    let done = wait_state(&mut client, id, "finished");
    let waited = since(done.started_at.unwrap(), done.joined_at);
    assert!(waited > 4.98, "{waited}");
    assert!(waited < 5.0 + LATE.as_secs_f64(), "{waited}");
}

#[test]
fn the_global_delay_counts_where_a_topic_has_none_of_its_own() {
    let server = Server::builder()
        .conf(LIMIT, "4")
        .conf(DELAY, "2")
        .conf(CONFIG, r#"{"quick": {"delay_in_sec": 0}, "named": {}}"#)
        .start();
    let mut client = server.superuser();
    let quick = enqueue_topic(&mut client, "SELECT 1", "quick");
    let plain = enqueue(&mut client, "SELECT 1");
    let named = enqueue_topic(&mut client, "SELECT 1", "named");
    let done = wait_state(&mut client, quick, "finished");
    assert!(since(done.started_at.unwrap(), done.joined_at) < 1.9);
    for id in [plain, named] {
        let done = wait_state(&mut client, id, "finished");
        let waited = since(done.started_at.unwrap(), done.joined_at);
        assert!(waited > 1.98, "{waited}");
        assert!(waited < 2.0 + LATE.as_secs_f64(), "{waited}");
    }
}

#[test]
fn a_delay_changed_by_a_reload_counts_for_tasks_that_wait() {
    let config = |delay: u32| format!(r#"{{"mail": {{"delay_in_sec": {delay}}}}}"#);
    let server = Server::builder()
        .conf(LIMIT, "4")
        .conf(IDLE_TIMEOUT, "100ms")
        .conf(CONFIG, &config(1000))
        .start();
    let mut client = server.superuser();
    let id = enqueue_topic(&mut client, "SELECT 1", "mail");
    wait_all_quiet(&mut client);
    assert_eq!(task(&mut client, id).state, "pending");
    let changed = SystemTime::now();
    server.set_and_reload(CONFIG, &config(1));
    let done = wait_state(&mut client, id, "finished");
    let waited = since(done.started_at.unwrap(), changed);
    assert!(waited < 1.0 + 2.0 * LATE.as_secs_f64(), "{waited}");

    let mut session = server.superuser();
    server.set_and_reload(CONFIG, &config(1000));
    let id = enqueue_topic(&mut session, "SELECT 1", "mail");
    wait_all_quiet(&mut session);
    server.set_and_reload(CONFIG, &config(0));
    wait_state(&mut session, id, "finished");
}

#[test]
fn a_limit_lowered_during_a_delay_counts_for_the_slots_that_wait() {
    let config = |limit: u32| {
        format!(r#"{{"mail": {{"max_parallel_running_tasks_count": {limit}, "delay_in_sec": 5}}}}"#)
    };
    let server = Server::builder()
        .conf(LIMIT, "4")
        .conf(CONFIG, &config(4))
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    enqueue_together(
        &mut client,
        &[("SELECT work('mail', 0)", Some("mail"), None); 8],
    );
    wait_all_quiet(&mut client);
    server.set_and_reload(CONFIG, &config(1));
    wait_until("two to have run", || runs(&mut client, "mail").len() >= 2);
    let runs = runs(&mut client, "mail");
    let time = since(runs[1].0, runs[0].0);
    assert!(time > 4.98, "two starts within {time} s at a limit of 1");
    run(
        &mut client,
        "DELETE FROM pg_background_tasks WHERE state = 'pending'",
    );
}

#[test]
fn each_slot_waits_its_own_delay() {
    let server = Server::builder()
        .conf(LIMIT, "4")
        .conf(
            CONFIG,
            r#"{"mail": {"max_parallel_running_tasks_count": 2, "delay_in_sec": 7}}"#,
        )
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    let mut gate = shut_gate(&server);
    enqueue_topic(&mut client, "SELECT gated('first')", "mail");
    wait_all_quiet(&mut client);
    let second = enqueue_topic(&mut client, "SELECT 1", "mail");
    // The first one runs on and on.
    let done = wait_state(&mut client, second, "finished");
    let waited = since(done.started_at.unwrap(), done.joined_at);
    assert!(waited > 6.98, "{waited}");
    assert!(waited < 7.0 + LATE.as_secs_f64(), "{waited}");
    open_gate(&mut gate);
}

#[test]
fn a_delay_does_not_hold_up_a_shutdown() {
    let mut server = Server::builder()
        .conf(LIMIT, "4")
        .conf(IDLE_TIMEOUT, "10min")
        .conf(CONFIG, r#"{"mail": {"delay_in_sec": 1000}}"#)
        .start();
    let mut client = server.superuser();
    let id = enqueue_topic(&mut client, "SELECT 1", "mail");
    wait_all_quiet(&mut client);
    drop(client);
    let begin = Instant::now();
    server.stop(Stop::Fast);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    server.start();
    let mut client = server.superuser();
    assert_eq!(task(&mut client, id).state, "pending");
}

#[test]
fn a_delay_is_kept_although_workers_of_its_topic_are_terminated() {
    let server = Server::builder()
        .conf(LIMIT, "4")
        .conf(IDLE_TIMEOUT, "10min")
        .conf(
            CONFIG,
            r#"{"mail": {"max_parallel_running_tasks_count": 1, "delay_in_sec": 3}}"#,
        )
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    let mut gate = shut_gate(&server);
    let first = enqueue_topic(&mut client, "SELECT gated('first')", "mail");
    for _ in 0..3 {
        enqueue_topic(&mut client, "SELECT work('mail', 0)", "mail");
    }
    let pid = wait_for("the first to be at work", PATIENCE, || {
        workers(&mut client)
            .into_iter()
            .find(|process| process.wait_event.as_deref() == Some("advisory"))
            .map(|process| process.pid)
    });
    let terminated = SystemTime::now();
    run(&mut client, &format!("SELECT pg_terminate_backend({pid})"));
    assert_eq!(wait_closed(&mut client, first).state, "failed");
    open_gate(&mut gate);
    // And each worker that waits with the others, as long as any of them has not run; but none that may be beginning a task
    // by the time it is terminated.
    let mut ended = HashSet::from([pid]);
    let mut last = (String::new(), Instant::now());
    wait_until("all to have run", || {
        let now = states(&mut client);
        if now != last.0 {
            last = (now, Instant::now());
        }
        for process in workers(&mut client) {
            let waits = process.kind == "worker"
                && process.state.as_deref() == Some("idle")
                && last.1.elapsed() < Duration::from_secs(2);
            if waits && ended.insert(process.pid) {
                let pid = process.pid;
                run(&mut client, &format!("SELECT pg_terminate_backend({pid})"));
            }
        }
        tasks(&mut client).iter().all(Task::is_closed)
    });
    assert!(ended.len() > 1, "nobody was terminated during the delay");
    let mut last = terminated;
    // one may have begun just when its worker was terminated: it has failed, and the next one has waited for that
    for task in tasks(&mut client).iter().filter(|task| task.id != first) {
        let (began, ended) = (task.started_at.unwrap(), task.closed_at.unwrap());
        let waited = since(began, last);
        assert!(waited > 2.98, "{waited} s instead of 3");
        assert!(waited < 3.0 + 2.0 * LATE.as_secs_f64(), "{waited}");
        last = ended;
    }
}

/// More slots with a delay wait than the server keeps in mind: the others get their turn after those.
#[test]
fn more_waiting_slots_than_are_kept_in_mind_lose_no_task() {
    let server = Server::builder()
        .conf("max_worker_processes", "8")
        .conf(LIMIT, "32")
        .conf(IDLE_TIMEOUT, "10min")
        .conf(DELAY, "2")
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    // 130 topics with 32 slots each are more than 4096.
    run(
        &mut client,
        "SELECT count(pg_background_queue_enqueue('SELECT 1', 'topic ' || n)) \
         FROM generate_series(1, 130) AS n, generate_series(1, 32)",
    );
    wait_until("a worker to have looked at all of them", || {
        scalar(
            &mut client,
            "SELECT EXISTS (SELECT FROM pg_background_queue_workers WHERE state = 'idle')",
            &[],
        )
    });
    // Nobody but herself looks after her only task.
    let hers = enqueue_topic(&mut alice, "SELECT 1", "hers");
    wait_state(&mut alice, hers, "finished");
    wait_all_closed(&mut client, 2 * PATIENCE);
    assert_eq!(states(&mut client), "finished: 4161");
}

/// A server with more waiting slots than are kept in mind, in many topics that have a delay, and alice.
fn server_full_of_waits(delay: &str, config: &str) -> (Server, Client) {
    let server = Server::builder()
        .conf("max_worker_processes", "8")
        .conf(LIMIT, "32")
        .conf(DELAY, delay)
        .conf(CONFIG, config)
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    run(
        &mut client,
        "SELECT count(pg_background_queue_enqueue('SELECT 1', 'topic ' || n)) \
         FROM generate_series(1, 130) AS n, generate_series(1, 32)",
    );
    wait_all_quiet(&mut client);
    (server, client)
}

#[test]
fn long_delays_of_many_slots_do_not_hold_up_a_short_one() {
    let (server, _client) = server_full_of_waits("3600", r#"{"new": {"delay_in_sec": 1}}"#);
    let mut alice = server.connect("alice", "postgres");
    let id = enqueue_topic(&mut alice, "SELECT 1", "new");
    wait_state(&mut alice, id, "finished");
}

#[test]
fn the_slots_that_waited_for_cancelled_tasks_are_given_away() {
    let (server, mut client) = server_full_of_waits("5", "");
    run(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE pg_background_queue_cancel(id)",
    );
    let mut alice = server.connect("alice", "postgres");
    let id = enqueue_topic(&mut alice, "SELECT 1", "new");
    wait_state(&mut alice, id, "finished");
}

// ---------------------------------------------------------------- retries

/// Gives the database a table `attempts` and a procedure `attempt` that notes the moment and fails.
fn prepare_attempts(client: &mut Client) {
    run(
        client,
        "CREATE TABLE attempts (n serial, at timestamptz); CREATE SEQUENCE calls",
    );
}

/// Notes the moment, whatever becomes of the task, and fails.
const FAIL: &str = "DO $$ DECLARE n int; BEGIN \
    INSERT INTO attempts (at) VALUES (clock_timestamp()) RETURNING attempts.n INTO n; \
    COMMIT; \
    RAISE 'attempt no. %', n USING ERRCODE = 'ABCDE', DETAIL = 'why'; END $$";

fn attempts(client: &mut Client) -> Vec<SystemTime> {
    client
        .query("SELECT at FROM attempts ORDER BY at", &[])
        .expect("attempts")
        .iter()
        .map(|row| row.get(0))
        .collect()
}

#[test]
fn retries_come_after_two_and_four_seconds_and_keep_all_errors() {
    // No worker is there any more when a retry is due.
    let server = Server::builder()
        .conf(RETRIES, "2")
        .conf(IDLE_TIMEOUT, "0")
        .start();
    let mut client = server.superuser();
    prepare_attempts(&mut client);
    let id = enqueue(&mut client, FAIL);
    let mut due = Vec::new();
    for (retry, delay) in [(1, 2), (2, 4)] {
        let mut seen = None;
        wait_until(&format!("retry {retry}"), || {
            let now = task(&mut client, id);
            let there = now.state == "retrying" && now.retry_count == retry;
            seen = Some(now);
            there
        });
        let seen = seen.unwrap();
        assert_eq!(seen.retry_delay_in_sec, Some(delay));
        assert!(seen.closed_at.is_none());
        let failed = *attempts(&mut client).last().unwrap();
        let due_at = seen.due_at.expect("a due time");
        let wait = since(due_at, failed);
        let delay = f64::from(delay);
        assert!((delay..delay + 1.5).contains(&wait), "{wait} for {delay}");
        due.push(due_at);
    }
    let done = wait_closed(&mut client, id);
    assert_eq!(done.state, "failed");
    assert_eq!((done.retry_count, done.attempt), (2, 3));
    let attempts = attempts(&mut client);
    assert_eq!(attempts.len(), 3);
    for (due, at) in due.iter().zip(&attempts[1..]) {
        let late = since(*at, *due);
        assert!(late >= 0.0, "{late} s before it was due");
        assert!(late < LATE.as_secs_f64(), "{late} s after it was due");
    }
    let errors = done.errors();
    let places: Vec<_> = (1..=3)
        .map(|n| errors.find(&format!("attempt no. {n}")))
        .collect();
    assert!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "{errors}"
    );
    assert!(
        errors.contains("ABCDE") && errors.contains("why"),
        "{errors}"
    );
}

#[test]
fn a_tasks_own_retries_count_before_its_topics_and_those_before_all() {
    let server = Server::builder()
        .conf(RETRIES, "1")
        .conf(
            CONFIG,
            r#"{"never": {"retry_count": 0}, "twice": {"retry_count": 2}}"#,
        )
        .start();
    let mut client = server.superuser();
    let mut ask = |topic: Option<&str>, own: Option<i32>| -> i64 {
        scalar(
            &mut client,
            "SELECT pg_background_queue_enqueue('SELECT 1/0', $1, retry_count => $2)",
            &[&topic, &own],
        )
    };
    let expected = [
        (ask(None, None), 1),
        (ask(None, Some(0)), 0),
        (ask(Some("never"), None), 0),
        (ask(Some("never"), Some(1)), 1),
        (ask(Some("twice"), None), 2),
        (ask(Some("twice"), Some(0)), 0),
        (ask(Some("other"), None), 1),
    ];
    for (id, retries) in expected {
        let done = wait_closed(&mut client, id);
        assert_eq!(done.state, "failed");
        assert_eq!(done.retry_count, retries, "{done:?}");
        assert_eq!(
            done.errors().matches("division by zero").count() as i32,
            retries + 1
        );
    }
}

#[test]
fn a_retry_that_succeeds_ends_finished_while_another_task_runs_on() {
    let server = Server::builder()
        .conf(LIMIT, "2")
        .conf(IDLE_TIMEOUT, "100ms")
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    prepare_attempts(&mut client);
    let mut gate = shut_gate(&server);
    let long = enqueue(&mut client, "SELECT gated('long')");
    wait_state(&mut client, long, "running");
    let sql = "DO $$ BEGIN IF nextval('calls') = 1 THEN RAISE 'not yet'; END IF; END $$";
    let id = enqueue_retried(&mut client, sql, None, 3);
    let done = wait_state(&mut client, id, "finished");
    assert_eq!((done.retry_count, done.attempt), (1, 2));
    assert!(done.errors().contains("not yet"));
    let late = since(done.started_at.unwrap(), done.due_at.unwrap());
    assert!((0.0..LATE.as_secs_f64()).contains(&late), "{late}");
    assert_eq!(task(&mut client, long).state, "running");
    open_gate(&mut gate);
    assert!(done.closed_at.is_some());
}

#[test]
fn a_shutdown_uses_up_no_retry_and_keeps_the_due_time() {
    let mut server = Server::builder().conf(LIMIT, "4").start();
    let mut client = server.superuser();
    prepare_attempts(&mut client);
    // Fails, is cut off, and runs through with its only retry.
    let cut = enqueue_retried(
        &mut client,
        "DO $$ DECLARE n int := nextval('calls'); BEGIN \
         IF n = 1 THEN RAISE 'first'; ELSIF n = 2 THEN PERFORM pg_sleep(1000); END IF; END $$",
        None,
        1,
    );
    wait_until("the retry to run", || {
        let now = task(&mut client, cut);
        now.state == "running" && now.retry_count == 1
    });
    wait_until("its sleep", || {
        let calls: i64 = scalar(&mut client, "SELECT last_value FROM calls", &[]);
        calls == 2
    });
    let waiting = enqueue_retried(&mut client, FAIL, None, 2);
    wait_until("the other one's second retry", || {
        let now = task(&mut client, waiting);
        now.state == "retrying" && now.retry_count == 2
    });
    let before = task(&mut client, waiting);
    drop(client);
    server.restart();
    let mut client = server.superuser();
    let after = task(&mut client, waiting);
    assert_eq!(after.due_at, before.due_at);
    assert_eq!(after.max_retries, Some(2));

    let done = wait_closed(&mut client, cut);
    assert_eq!(done.state, "finished", "{done:?}");
    assert_eq!(
        (done.retry_count, done.interruptions, done.attempt),
        (1, 0, 3)
    );
    let done = wait_closed(&mut client, waiting);
    assert_eq!((done.state.as_str(), done.retry_count), ("failed", 2));
    let attempts = attempts(&mut client);
    assert_eq!(attempts.len(), 3);
    let late = since(attempts[2], before.due_at.unwrap());
    assert!(late >= 0.0, "{late} s before it was due");
}

#[test]
fn the_settings_for_all_topics_follow_a_reload() {
    let server = Server::builder().conf(LIMIT, "2").start();
    let mut client = server.superuser();
    let id = enqueue(&mut client, "SELECT 1/0");
    assert_eq!(wait_closed(&mut client, id).retry_count, 0);
    // The longest wait is shorter than the first one would be.
    server.set_conf("pg_background_queue.max_retry_delay", "1s");
    server.set_and_reload(RETRIES, "1");
    let id = enqueue(&mut client, "SELECT 1/0");
    let done = wait_closed(&mut client, id);
    assert_eq!(
        (done.retry_count, done.retry_delay_in_sec, done.attempt),
        (1, Some(1), 2)
    );
    assert!(done.started_at >= done.due_at, "{done:?}");
    server.set_and_reload(DELAY, "2s");
    let id = enqueue(&mut client, "SELECT 1");
    let done = wait_state(&mut client, id, "finished");
    let waited = since(done.started_at.unwrap(), done.joined_at);
    assert!(waited > 1.98, "{waited}");
    server.set_and_reload(DELAY, "1000s");
    let id = enqueue(&mut client, "SELECT 1");
    server.set_and_reload(DELAY, "0");
    wait_state(&mut client, id, "finished");
}
