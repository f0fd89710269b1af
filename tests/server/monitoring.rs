//! What an operator sees: the views, the counts, `pg_stat_activity` and the log.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use postgres::Client;

use crate::harness::{
    PATIENCE, Server, Stop, create_role, enqueue, enqueue_topic, kill, launcher_pid, run,
    running_count, scalar, states, wait_all_closed, wait_closed, wait_for, wait_no_workers,
    wait_state, wait_until, workers,
};

const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";
const IDLE_TIMEOUT: &str = "pg_background_queue.worker_idle_timeout";

/// A task that waits until the test lets go of advisory lock 1.
const GATE: &str = "SELECT pg_advisory_xact_lock_shared(1)";

/// A server with the roles alice, bob and, a member of pg_monitor, watch.
fn server(limit: u32) -> Server {
    let server = Server::builder()
        .conf(LIMIT, &limit.to_string())
        .conf("max_worker_processes", "16")
        .conf(IDLE_TIMEOUT, "10min")
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    create_role(&mut client, "bob");
    create_role(&mut client, "watch");
    run(&mut client, "GRANT pg_monitor TO watch");
    server
}

/// A row of the view of workers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    pid: i32,
    database: Option<String>,
    role: Option<String>,
    state: String,
    task: Option<i64>,
    topic: Option<String>,
    since: Option<SystemTime>,
    done: i64,
}

fn shown(client: &mut Client) -> Vec<Shown> {
    client
        .query(
            "SELECT pid, database::text, role::text, state, task, topic, since, tasks_done \
             FROM pg_background_queue_workers ORDER BY pid",
            &[],
        )
        .expect("the view of workers")
        .iter()
        .map(|row| Shown {
            pid: row.get(0),
            database: row.get(1),
            role: row.get(2),
            state: row.get(3),
            task: row.get(4),
            topic: row.get(5),
            since: row.get(6),
            done: row.get(7),
        })
        .collect()
}

/// What the view says of the worker of this task, once it runs.
#[track_caller]
fn wait_shown(client: &mut Client, id: i64) -> Shown {
    wait_for(&format!("task {id} to be shown"), PATIENCE, || {
        shown(client)
            .into_iter()
            .find(|worker| worker.task == Some(id) && worker.state == "running")
    })
}

/// The worker processes that there are: pid, database and role.
fn processes(client: &mut Client) -> BTreeSet<(i32, Option<String>, Option<String>)> {
    workers(client)
        .into_iter()
        .filter(|worker| worker.kind == "worker")
        .map(|worker| (worker.pid, worker.database, worker.role))
        .collect()
}

fn active_count(client: &mut Client) -> i32 {
    scalar(
        client,
        "SELECT pg_background_queue_active_workers_count()",
        &[],
    )
}

fn calibrated_count(client: &mut Client) -> i32 {
    scalar(
        client,
        "SELECT pg_background_queue_calibrate_workers_count()",
        &[],
    )
}

/// Waits until there are `count` workers for both the registry and `pg_stat_activity`.
#[track_caller]
fn wait_count(client: &mut Client, count: usize) {
    let wanted = i32::try_from(count).expect("small");
    wait_until(&format!("{count} workers"), || {
        processes(client).len() == count && active_count(client) == wanted
    });
    assert_eq!(calibrated_count(client), wanted);
}

/// Whether the registry and `pg_stat_activity` know the same number of workers.
fn counts_agree(client: &mut Client) -> bool {
    let count = i32::try_from(processes(client).len()).expect("small");
    active_count(client) == count && calibrated_count(client) == count
}

#[track_caller]
fn lock_gate(client: &mut Client) {
    run(client, "SELECT pg_advisory_lock(1)");
}

#[track_caller]
fn unlock_gate(client: &mut Client) {
    run(client, "SELECT pg_advisory_unlock(1)");
}

#[test]
fn the_view_of_workers_shows_what_each_does() {
    let server = server(2);
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    assert_eq!(shown(&mut client), []);
    lock_gate(&mut client);
    let before = SystemTime::now() - Duration::from_secs(1);
    let id = enqueue_topic(&mut alice, GATE, "mine");
    let running = wait_shown(&mut client, id);
    let process = processes(&mut client);
    assert_eq!(
        process.iter().map(|p| p.0).collect::<Vec<_>>(),
        [running.pid]
    );
    assert_eq!(running.database.as_deref(), Some("postgres"));
    assert_eq!(running.role.as_deref(), Some("alice"));
    assert_eq!(running.topic.as_deref(), Some("mine"));
    assert_eq!(running.done, 0);
    let since = running.since.expect("since");
    assert!(since > before && since < SystemTime::now() + Duration::from_secs(1));

    unlock_gate(&mut client);
    wait_state(&mut client, id, "finished");
    let idle = wait_for("an idle worker", PATIENCE, || {
        shown(&mut client)
            .into_iter()
            .find(|worker| worker.state == "idle")
    });
    assert_eq!(
        (idle.pid, idle.task, idle.topic, idle.done),
        (running.pid, None, None, 1)
    );
    assert!(idle.since.expect("since") >= since);

    for _ in 0..9 {
        enqueue(&mut alice, "SELECT 1");
    }
    enqueue(&mut alice, "SELECT 1/0");
    wait_all_closed(&mut client, PATIENCE);
    wait_until("11 tasks to be counted", || {
        shown(&mut client)
            .iter()
            .map(|worker| worker.done)
            .sum::<i64>()
            == 11
    });
}

#[test]
fn the_view_of_workers_agrees_with_pg_stat_activity() {
    let server = server(6);
    let mut client = server.superuser();
    run(&mut client, "CREATE DATABASE other");
    let mut other = server.connect("postgres", "other");
    run(&mut other, "CREATE EXTENSION pg_background_queue");
    let mut alice = server.connect("alice", "postgres");
    let mut bob = server.connect("bob", "postgres");
    lock_gate(&mut client);
    run(&mut other, "SELECT pg_advisory_lock(1)");
    for session in [&mut client, &mut alice, &mut bob, &mut other] {
        enqueue(session, GATE);
    }
    enqueue(&mut alice, GATE);
    wait_until("five tasks to run", || {
        shown(&mut client)
            .iter()
            .filter(|worker| worker.state == "running")
            .count()
            == 5
    });
    // a process that has given its place back is seen for a moment longer
    wait_until(
        "both to show the same workers, five of them at work",
        || {
            let row = client
            .query_one(
                "SELECT count(*) FILTER (WHERE w.state IS NULL OR a.datname IS NULL), count(*) FILTER (WHERE a.datname = w.database AND a.usename = w.role \
                 AND a.application_name = 'pg_background_queue task ' || w.task AND a.backend_start <= w.since) \
                 FROM pg_background_queue_workers AS w FULL JOIN \
                 (SELECT * FROM pg_stat_activity WHERE backend_type = 'pg_background_queue worker') AS a USING (pid)",
                &[],
            )
            .expect("both");
            (row.get::<_, i64>(0), row.get::<_, i64>(1)) == (0, 5)
        },
    );
    unlock_gate(&mut client);
    run(&mut other, "SELECT pg_advisory_unlock(1)");
    wait_all_closed(&mut client, PATIENCE);
    wait_all_closed(&mut other, PATIENCE);
    wait_until("the idle ones to agree, too", || {
        let shown = shown(&mut client);
        let view: BTreeSet<_> = shown
            .iter()
            .map(|w| (w.pid, w.database.clone(), w.role.clone()))
            .collect();
        shown.iter().all(|w| w.task.is_none()) && view == processes(&mut client)
    });
}

#[test]
fn the_topic_of_a_task_is_shown_to_its_role_and_to_monitors_only() {
    let server = server(2);
    let mut client = server.superuser();
    run(&mut client, "CREATE DATABASE other");
    let mut other = server.connect("postgres", "other");
    run(
        &mut other,
        "CREATE EXTENSION pg_background_queue; \
         GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO alice",
    );
    // In the other database the id is another's.
    run(
        &mut other,
        "SELECT pg_background_queue_enqueue('SELECT 1', 'another')",
    );
    wait_all_closed(&mut other, PATIENCE);
    let mut alice = server.connect("alice", "postgres");
    lock_gate(&mut client);
    let id = enqueue_topic(&mut alice, GATE, "confidential");
    assert_eq!(id, 1);
    wait_shown(&mut client, id);
    for (user, database, topic) in [
        ("postgres", "postgres", Some("confidential")),
        ("alice", "postgres", Some("confidential")),
        ("watch", "postgres", Some("confidential")),
        ("bob", "postgres", None),
        ("postgres", "other", None),
        ("alice", "other", None),
    ] {
        let mut session = server.connect(user, database);
        let seen = wait_shown(&mut session, id);
        assert_eq!(seen.topic.as_deref(), topic, "{user} in {database}");
        assert_eq!(seen.role.as_deref(), Some("alice"));
    }
    // Nor anywhere else.
    let mut bob = server.connect("bob", "postgres");
    let all: String = scalar(
        &mut bob,
        "SELECT string_agg(a::text, ' ') FROM pg_stat_activity AS a",
        &[],
    );
    assert!(!all.contains("confidential"), "{all}");
    unlock_gate(&mut client);
    wait_state(&mut client, id, "finished");
}

#[test]
fn the_counts_of_each_topic_are_right() {
    let server = server(1);
    let mut client = server.superuser();
    for sql in [
        "'SELECT pg_sleep(0.2)', 'a'",
        "'SELECT pg_sleep(0.2)', 'a'",
        "'SELECT 1/0', 'a'",
        "'SELECT 1/0', 'b', retry_count => 20",
        "'SELECT 1', NULL",
        "'SELECT 1', ''",
    ] {
        run(
            &mut client,
            &format!("SELECT pg_background_queue_enqueue({sql})"),
        );
    }
    wait_until("the tasks to have run", || {
        states(&mut client) == "finished: 4, failed: 1, retrying: 1"
    });
    lock_gate(&mut client);
    let running = enqueue_topic(&mut client, GATE, "a");
    wait_shown(&mut client, running);
    for _ in 0..3 {
        enqueue_topic(&mut client, "SELECT 1", "b");
    }
    let gone = enqueue_topic(&mut client, "SELECT 1", "b");
    assert!(scalar::<bool>(
        &mut client,
        "SELECT pg_background_queue_cancel($1)",
        &[&gone]
    ));
    let counts: Vec<String> = client
        .query(
            "SELECT concat_ws(' ', coalesce(quote_literal(topic), '-'), pending, running, retrying, failed, finished, cancelled, \
             total) FROM pg_background_queue_stats ORDER BY topic",
            &[],
        )
        .expect("stats")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(
        counts,
        [
            "'' 0 0 0 0 1 0 1",
            "'a' 0 1 0 1 2 0 4",
            "'b' 3 0 1 0 0 1 5",
            "- 0 0 0 0 1 0 1"
        ]
    );
    let times: bool = scalar(
        &mut client,
        "SELECT bool_and(CASE topic \
           WHEN 'a' THEN oldest_waiting IS NULL AND mean_run BETWEEN '0.2 s' AND '30 s' AND mean_wait BETWEEN '0' AND '60 s' \
           WHEN 'b' THEN mean_run IS NULL AND mean_wait IS NULL AND oldest_waiting = \
             (SELECT min(joined_at) FROM pg_background_tasks WHERE topic = 'b' AND state = 'pending') \
           ELSE mean_run IS NOT NULL AND mean_wait IS NOT NULL AND oldest_waiting IS NULL END) \
         FROM pg_background_queue_stats",
        &[],
    );
    assert!(times);
    unlock_gate(&mut client);
    wait_state(&mut client, running, "finished");
}

#[test]
fn the_counts_are_of_the_tasks_that_one_may_see() {
    let server = server(0);
    let mut client = server.superuser();
    run(&mut client, "CREATE ROLE carol LOGIN");
    let mut alice = server.connect("alice", "postgres");
    let mut bob = server.connect("bob", "postgres");
    for _ in 0..2 {
        enqueue_topic(&mut alice, "SELECT 1", "hers");
    }
    enqueue_topic(&mut bob, "SELECT 1", "his");
    enqueue_topic(&mut client, "SELECT 1", "ours");
    for (user, seen) in [
        ("postgres", "hers 2, his 1, ours 1"),
        ("watch", "hers 2, his 1, ours 1"),
        ("alice", "hers 2"),
        ("bob", "his 1"),
        ("carol", ""),
    ] {
        let mut session = server.connect(user, "postgres");
        let text: String = scalar(
            &mut session,
            "SELECT coalesce(string_agg(topic || ' ' || total, ', ' ORDER BY topic), '') FROM pg_background_queue_stats",
            &[],
        );
        assert_eq!(text, seen, "{user}");
    }
    // As the role that one has taken on.
    run(&mut client, "SET ROLE alice");
    let text: String = scalar(
        &mut client,
        "SELECT string_agg(topic, ', ') FROM pg_background_queue_stats",
        &[],
    );
    assert_eq!(text, "hers");
}

#[test]
fn the_count_of_workers_is_true_at_all_times() {
    let server = server(4);
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    wait_count(&mut client, 0);
    lock_gate(&mut client);
    for n in 1..=3 {
        enqueue(&mut alice, GATE);
        // a worker more may have been started for a task that another one took
        wait_until("a worker for each task", || {
            running_count(&mut client) == n && counts_agree(&mut client)
        });
    }
    enqueue(&mut client, GATE);
    wait_until("a task of another role", || running_count(&mut client) == 4);
    wait_count(&mut client, 4);
    // There is no more.
    enqueue(&mut client, GATE);
    let one = processes(&mut client).first().cloned().expect("a worker").0;
    run(
        &mut client,
        &format!("SELECT pg_advisory_unlock(1); SELECT pg_terminate_backend({one})"),
    );
    wait_all_closed(&mut client, PATIENCE);
    let left = processes(&mut client).len();
    assert!((1..=4).contains(&left), "{left}");
    wait_until("both counts to agree", || counts_agree(&mut client));
    // Those of all databases, seen from any; and nobody has to be anybody for that.
    wait_until("the same count from any database", || {
        active_count(&mut alice) == active_count(&mut client)
    });
    let refused = alice
        .query_one("SELECT pg_background_queue_calibrate_workers_count()", &[])
        .expect_err("not for all");
    assert_eq!(refused.code().map(|c| c.code()), Some("42501"));
    server.set_and_reload(IDLE_TIMEOUT, "0");
    wait_count(&mut client, 0);
}

#[test]
fn the_count_of_workers_is_true_after_a_crash() {
    let server = server(3);
    let mut client = server.superuser();
    lock_gate(&mut client);
    for _ in 0..3 {
        enqueue(&mut client, GATE);
    }
    wait_count(&mut client, 3);
    let one = processes(&mut client).first().cloned().expect("a worker").0;
    server.expect_crash();
    kill(one, libc::SIGKILL);
    wait_until("this session to end", || {
        client.batch_execute("SELECT 1").is_err()
    });
    let mut client = wait_for("the server to be back", PATIENCE, || {
        server.connector().try_connect("postgres", "postgres").ok()
    });
    wait_all_closed(&mut client, PATIENCE);
    wait_until("both counts to agree", || counts_agree(&mut client));
    assert_eq!(states(&mut client), "finished: 3");
}

#[test]
fn pg_stat_activity_shows_the_query_to_those_who_may_see_it() {
    let server = server(2);
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    lock_gate(&mut client);
    let sql = format!("{GATE} /* a secret */");
    let id = enqueue_topic(&mut alice, &sql, "another secret");
    let running = wait_shown(&mut client, id);
    for (user, may) in [
        ("postgres", true),
        ("alice", true),
        ("watch", true),
        ("bob", false),
    ] {
        let mut session = server.connect(user, "postgres");
        let row = session
            .query_one(
                "SELECT query, application_name, usename::text, datname::text, coalesce(backend_type, ''), \
                 coalesce(state, ''), coalesce(wait_event, '') FROM pg_stat_activity WHERE pid = $1",
                &[&running.pid],
            )
            .expect("the worker");
        let text = |i: usize| row.get::<_, String>(i);
        assert_eq!(text(1), format!("pg_background_queue task {id}"), "{user}");
        assert_eq!((text(2), text(3)), ("alice".into(), "postgres".into()));
        if may {
            assert_eq!(text(0), sql);
            assert_eq!(text(4), "pg_background_queue worker");
            assert_eq!((text(5), text(6)), ("active".into(), "advisory".into()));
        } else {
            assert!(!text(0).contains("secret"), "{}", text(0));
        }
    }
    let launcher = launcher_pid(&mut client).expect("a launcher");
    let row = client
        .query_one(
            "SELECT backend_type, wait_event_type FROM pg_stat_activity WHERE pid = $1",
            &[&launcher],
        )
        .expect("the launcher");
    assert_eq!(row.get::<_, &str>(0), "pg_background_queue launcher");
    assert_eq!(row.get::<_, &str>(1), "Extension");
    unlock_gate(&mut client);
    wait_state(&mut client, id, "finished");
    wait_until("the worker to have no task in its name", || {
        workers(&mut client).iter().any(|worker| {
            worker.pid == running.pid
                && worker.application_name == "pg_background_queue"
                && worker.state.as_deref() == Some("idle")
        })
    });
}

#[test]
fn processes_that_wait_say_for_what() {
    let server = server(2);
    let mut client = server.superuser();
    let id = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, id, "finished");
    let version: i32 = scalar(
        &mut client,
        "SELECT current_setting('server_version_num')::int",
        &[],
    );
    let (launcher, worker) = if version < 170_000 {
        // extensions have no names of their own
        ("Extension", "Extension")
    } else {
        (
            "PgBackgroundQueueLauncherMain",
            "PgBackgroundQueueWorkerMain",
        )
    };
    wait_until("launcher and worker to wait", || {
        let waiting: String = scalar(
            &mut client,
            "SELECT coalesce(string_agg(concat_ws(' ', backend_type, wait_event_type, wait_event), ', ' ORDER BY backend_type), '') \
             FROM pg_stat_activity WHERE backend_type LIKE 'pg_background_queue%'",
            &[],
        );
        waiting
            == format!(
                "pg_background_queue launcher Extension {launcher}, pg_background_queue worker Extension {worker}"
            )
    });
}

#[test]
fn a_shortage_of_worker_slots_is_logged_when_it_begins_and_when_it_ends() {
    const BEGIN: &str = "no worker slot free";
    const END: &str = "has worker slots again";
    // The launcher and PostgreSQL's logical replication launcher take two of the three.
    let server = Server::builder()
        .conf("max_worker_processes", "3")
        .conf(LIMIT, "2")
        .conf(IDLE_TIMEOUT, "100ms")
        .start();
    let mut client = server.superuser();
    wait_no_workers(&mut client, PATIENCE);
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
    for round in 1..=2 {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mut session = server.superuser();
            run(&mut session, &format!("SET {force} = on"));
            let pid: i32 = scalar(&mut session, "SELECT pg_backend_pid()", &[]);
            let over = &over;
            scope.spawn(move || {
                let ended = session.query("SELECT pg_sleep(3600)", &[]);
                assert!(ended.is_err() && over.load(Ordering::Relaxed), "{ended:?}");
            });
            wait_until("a parallel worker to have the slot", || {
                scalar(
                    &mut client,
                    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'parallel worker')",
                    &[],
                )
            });
            let mark = server.log_mark();
            for _ in 0..5 {
                enqueue(&mut client, "SELECT 1");
            }
            wait_until("the server to say so", || {
                server.log_since(mark).contains(BEGIN)
            });
            // No synchronisation: the length of the observation.
            std::thread::sleep(Duration::from_secs(3));
            enqueue(&mut client, "SELECT 1");
            let log = server.log_since(mark);
            assert_eq!(log.matches(BEGIN).count(), 1, "{log}");
            assert_eq!(log.matches(END).count(), 0, "{log}");
            assert!(log.contains("max_worker_processes"), "{log}");
            assert_eq!(
                states(&mut client).contains("finished"),
                round > 1,
                "tasks ran without a slot"
            );
            over.store(true, Ordering::Relaxed);
            run(&mut client, &format!("SELECT pg_cancel_backend({pid})"));
            wait_all_closed(&mut client, PATIENCE);
            wait_until("the server to say that it is over", || {
                server.log_since(mark).contains(END)
            });
        });
        wait_no_workers(&mut client, PATIENCE);
        assert_eq!(server.log().matches(BEGIN).count(), round);
        assert_eq!(server.log().matches(END).count(), round);
    }
    assert_eq!(states(&mut client), "finished: 12");
}

#[test]
fn the_log_says_what_an_operator_wants_to_know() {
    let mut server = server(2);
    server.expect_crash();
    let mut client = server.superuser();
    assert_eq!(
        server
            .log()
            .matches("pg_background_queue launcher started")
            .count(),
        1
    );
    lock_gate(&mut client);
    let mark = server.log_mark();
    for _ in 0..2 {
        let id = enqueue_topic(&mut client, &format!("{GATE} /* a secret */"), "a secret");
        wait_shown(&mut client, id);
    }
    // What goes well is not worth a line.
    let log = server.log_since(mark);
    assert!(!log.contains("pg_background_queue"), "{log}");
    // Else the crash may have the claims, too.
    run(&mut client, "CHECKPOINT");
    let mark = server.log_mark();
    server.kill9_all();
    server.start();
    let mut client = server.superuser();
    wait_all_closed(&mut client, PATIENCE);
    let log = server.log_since(mark);
    assert!(
        log.contains("pg_background_queue launcher started"),
        "{log}"
    );
    assert!(log.contains("2 tasks were cut off"), "{log}");
    assert!(!log.contains("a secret"), "{log}");
    // A failure is logged as any session's is, with the statement that the task's owner wrote.
    let mark = server.log_mark();
    let id = enqueue(&mut client, "SELECT 1/0");
    wait_closed(&mut client, id);
    let log = server.log_since(mark);
    assert_eq!(log.matches("ERROR:  division by zero").count(), 1, "{log}");
    drop(client);
    let mark = server.log_mark();
    server.stop(Stop::Fast);
    let log = server.log_since(mark);
    assert!(!log.contains("ERROR"), "{log}");
}

/// The queries about one state that operators ask again and again, and what answers them in a table of any size.
#[test]
fn an_index_answers_the_documented_queries_for_one_state() {
    let queries = [
        (
            "SELECT id, state FROM pg_background_tasks ORDER BY id DESC LIMIT 10",
            "pkey",
        ),
        (
            "SELECT count(*) FROM pg_background_tasks WHERE state = 'pending'",
            "queue_idx",
        ),
        (
            "SELECT count(*) FROM pg_background_tasks WHERE state = 'retrying'",
            "state_idx",
        ),
        (
            "SELECT count(*) FROM pg_background_tasks WHERE state = 'running'",
            "state_idx",
        ),
        (
            "SELECT id, sql_statement, errors, closed_at FROM pg_background_tasks WHERE state = 'failed' \
             ORDER BY closed_at DESC LIMIT 10",
            "state_idx",
        ),
    ];
    let server = server(0);
    let mut client = server.superuser();
    run(
        &mut client,
        "INSERT INTO pg_background_tasks (sql_statement, state, started_at, closed_at, role_oid, role_name, origin, search_path) \
         SELECT 'SELECT 1', CASE WHEN n % 1000 = 0 THEN 'failed' ELSE 'finished' END::pg_background_queue_task_state, \
         now(), now() + n * interval '1 ms', 10, 'postgres', pg_background_queue_origin(), '' \
         FROM generate_series(1, 100000) AS n",
    );
    for _ in 0..10 {
        enqueue(&mut client, "SELECT 1");
    }
    run(&mut client, "VACUUM ANALYZE pg_background_tasks");
    for (query, index) in queries {
        let plan: Vec<String> = client
            .query(&format!("EXPLAIN (COSTS OFF) {query}"), &[])
            .expect("a plan")
            .iter()
            .map(|row| row.get(0))
            .collect();
        let plan = plan.join("\n");
        assert!(
            plan.contains(&format!("pg_background_tasks_{index}")) && !plan.contains("Sort"),
            "{query}:\n{plan}"
        );
    }
}

#[test]
fn the_log_says_which_databases_are_skipped() {
    let mut server = server(1);
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE DATABASE closed ALLOW_CONNECTIONS false",
    );
    drop(client);
    let mark = server.log_mark();
    server.restart();
    let mut client = server.superuser();
    let id = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, id, "finished");
    let log = server.log_since(mark);
    let skipped = log.matches("is skipped").count();
    assert!(
        log.contains("database \"closed\" is skipped, because it does not allow connections")
            && skipped == 1,
        "{log}"
    );
}

#[test]
fn the_log_says_what_a_start_has_done_with_the_tasks_that_were_there() {
    let mut server = server(2);
    server.expect_crash();
    let mut client = server.superuser();
    lock_gate(&mut client);
    for _ in 0..2 {
        let id = enqueue(&mut client, GATE);
        wait_shown(&mut client, id);
    }
    // The next crash is one too many for the first of them; and two tasks come from somewhere else.
    run(
        &mut client,
        "UPDATE pg_background_tasks SET interruptions = 4 WHERE id = 1; \
         INSERT INTO pg_background_tasks (sql_statement, role_oid, role_name, origin, search_path) \
         SELECT 'SELECT 1', current_user::regrole, current_user, 'elsewhere/1', 'public' FROM generate_series(1, 2)",
    );
    let mark = server.log_mark();
    server.kill9_all();
    server.start();
    let mut client = server.superuser();
    wait_until("the task that is not given up to run", || {
        states(&mut client) == "pending: 2, failed: 1, finished: 1"
    });
    for said in [
        "2 tasks were cut off",
        "1 of them are given up",
        "2 tasks were enqueued elsewhere and are held",
    ] {
        wait_until(said, || server.log_since(mark).contains(said));
        assert_eq!(server.log_since(mark).matches(said).count(), 1, "{said}");
    }
    // An orderly stop with nothing in the middle is not worth a line about tasks.
    drop(client);
    let mark = server.log_mark();
    server.restart();
    let mut client = server.superuser();
    let id = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, id, "finished");
    let log = server.log_since(mark);
    assert!(!log.contains("cut off"), "{log}");
}

#[test]
fn the_log_says_that_nothing_runs_and_when_it_does_again() {
    const CONFIG: &str = "pg_background_queue.topic_config";
    const CORRECTED: &str = "topic_config was corrected, tasks run again";
    let server = Server::builder().conf(CONFIG, "{").start();
    let mut client = server.superuser();
    wait_until("a warning with a hint", || {
        let log = server.log();
        log.contains("WARNING:  pg_background_queue: no tasks run")
            && log.contains("HINT:  Correct the setting and reload the configuration.")
    });
    let id = enqueue(&mut client, "SELECT 1");
    assert!(!server.log().contains(CORRECTED));
    server.set_and_reload(CONFIG, "{}");
    wait_state(&mut client, id, "finished");
    server.set_and_reload(CONFIG, "");
    let id = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, id, "finished");
    assert_eq!(server.log().matches(CORRECTED).count(), 1);
}

#[test]
fn processes_that_wait_for_work_say_so() {
    let server = server(1);
    let mut client = server.superuser();
    let id = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, id, "finished");
    // The event has a name of its own from 17 on.
    wait_until("launcher and worker to wait", || {
        let waiting: Vec<String> = client
            .query(
                "SELECT backend_type FROM pg_stat_activity WHERE backend_type LIKE 'pg_background_queue%' \
                 AND wait_event_type = 'Extension' AND wait_event IS NOT NULL ORDER BY backend_type",
                &[],
            )
            .expect("pg_stat_activity")
            .iter()
            .map(|row| row.get(0))
            .collect();
        waiting == ["pg_background_queue launcher", "pg_background_queue worker"]
    });
}
