//! How many tasks and processes there are: the cluster-wide limit, several roles and databases,
//! idle processes.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use postgres::Client;

use crate::harness::{
    PATIENCE, Server, Worker, context_switches, create_role, enqueue, enqueue_all, enqueue_with,
    launcher_pid, run, running_count, scalar, states, task, tasks, wait_all_closed, wait_closed,
    wait_for, wait_for_launcher, wait_no_workers, wait_quiet, wait_state, wait_until, worker_count,
    workers,
};

const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";
const IDLE_TIMEOUT: &str = "pg_background_queue.worker_idle_timeout";

/// Gives the database a table `runs` and a function `work(seconds)` that notes there when it began
/// and ended. `began` is read after the task was claimed and `ended` before it is closed, so runs
/// that overlap here were running at the same time for certain.
fn prepare_work(client: &mut Client) {
    run(
        client,
        "CREATE TABLE public.runs (who name, pid int, began timestamptz, ended timestamptz); \
         GRANT SELECT, INSERT ON public.runs TO PUBLIC; \
         CREATE FUNCTION public.work(seconds float8) RETURNS void LANGUAGE plpgsql AS $$ \
         DECLARE began timestamptz := clock_timestamp(); BEGIN \
           PERFORM pg_sleep(seconds); \
           INSERT INTO public.runs VALUES (current_user, pg_backend_pid(), began, clock_timestamp()); \
         END $$",
    );
}

/// When the runs of this database began and ended.
fn runs(client: &mut Client) -> Vec<(SystemTime, SystemTime)> {
    client
        .query("SELECT began, ended FROM public.runs", &[])
        .expect("runs")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

/// How many of `runs` were under way at the moment when each of those that began after `since` did;
/// the most.
fn most_at_once(runs: &[(SystemTime, SystemTime)], since: SystemTime) -> usize {
    runs.iter()
        .filter(|(began, _)| *began >= since)
        .map(|(moment, _)| {
            runs.iter()
                .filter(|(began, ended)| began <= moment && moment < ended)
                .count()
        })
        .max()
        .unwrap_or(0)
}

/// Changes the limit, and waits until the launcher has woken up for it and sleeps again.
fn set_limit(server: &Server, client: &mut Client, limit: u32) {
    let launcher = wait_for_launcher(client, 0);
    let before = context_switches(launcher);
    server.set_and_reload(LIMIT, &limit.to_string());
    wait_until("the launcher to notice the reload", || {
        context_switches(launcher) != before
    });
    wait_quiet(launcher);
}

#[test]
fn the_limit_is_half_of_max_worker_processes_by_default() {
    let server = Server::builder().conf("max_worker_processes", "14").start();
    let mut client = server.superuser();
    let limit: String = scalar(&mut client, &format!("SHOW {LIMIT}"), &[]);
    assert_eq!(limit, "7");
}

#[test]
fn thirty_roles_share_four_workers() {
    let server = Server::builder()
        .conf("max_worker_processes", "20")
        .conf(LIMIT, "4")
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    let roles: Vec<String> = (0..30).map(|n| format!("role_{n}")).collect();
    for role in &roles {
        create_role(&mut client, role);
    }
    for _ in 0..5 {
        for role in &roles {
            run(
                &mut client,
                &format!(
                    "SET ROLE {role}; SELECT pg_background_queue_enqueue('SELECT work(0.05)'); RESET ROLE"
                ),
            );
        }
    }

    let mut most_running = 0;
    let mut most_workers: i32 = 0;
    wait_for("all tasks to end", Duration::from_secs(120), || {
        most_running = most_running.max(running_count(&mut client));
        // as the registry counts: a process that has given its place back is seen for a moment longer
        most_workers = most_workers.max(scalar(
            &mut client,
            "SELECT pg_background_queue_active_workers_count()",
            &[],
        ));
        let open: i64 = scalar(
            &mut client,
            "SELECT count(*) FROM pg_background_tasks WHERE closed_at IS NULL",
            &[],
        );
        (open == 0).then_some(())
    });
    assert!(
        most_running <= 4,
        "{most_running} tasks marked running at once"
    );
    assert!(most_workers <= 4, "{most_workers} workers at once");
    assert_eq!(states(&mut client), "finished: 150");
    let fair: String = scalar(
        &mut client,
        "SELECT count(DISTINCT who) || ' ' || min(n) || ' ' || max(n) \
         FROM (SELECT who, count(*) AS n FROM runs GROUP BY who) AS per_role",
        &[],
    );
    assert_eq!(fair, "30 5 5");
    let most = most_at_once(&runs(&mut client), SystemTime::UNIX_EPOCH);
    assert!(most <= 4, "{most} tasks at once");
    // And the room is used.
    assert!(most >= 3, "never more than {most} tasks at once");
}

#[test]
fn many_quick_tasks_never_exceed_the_limit() {
    let server = Server::builder()
        .conf("max_worker_processes", "20")
        .conf(LIMIT, "3")
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    create_role(&mut client, "alice");
    create_role(&mut client, "bob");
    // From three sessions at once, most of it while tasks are running already.
    std::thread::scope(|scope| {
        for user in ["postgres", "alice", "bob"] {
            let connector = server.connector();
            scope.spawn(move || {
                let mut session = connector.connect(user, "postgres");
                for _ in 0..300 {
                    enqueue(&mut session, "SELECT work(0.003)");
                }
            });
        }
    });
    wait_all_closed(&mut client, Duration::from_secs(120));
    assert_eq!(states(&mut client), "finished: 900");
    let runs = runs(&mut client);
    assert_eq!(runs.len(), 900);
    let most = most_at_once(&runs, SystemTime::UNIX_EPOCH);
    assert!(most <= 3, "{most} tasks at once");
}

/// Tasks that wait until the test lets go of advisory lock 1, and work a little then.
fn enqueue_gated(client: &mut Client, count: usize) {
    for _ in 0..count {
        enqueue(
            client,
            "DO $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); PERFORM work(0.05); END $$",
        );
    }
}

#[test]
fn the_limit_follows_a_reload() {
    let server = Server::builder()
        .conf("max_worker_processes", "20")
        .conf(LIMIT, "2")
        .conf(IDLE_TIMEOUT, "10min")
        .start();
    let mut client = server.superuser();
    let mut gate = server.superuser();
    prepare_work(&mut client);
    run(&mut gate, "SELECT pg_advisory_lock(1)");
    enqueue_gated(&mut client, 12);
    let waiting = |client: &mut Client| -> i64 {
        scalar(
            client,
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted",
            &[],
        )
    };
    wait_until("two tasks to run", || waiting(&mut client) == 2);
    assert_eq!(running_count(&mut client), 2);

    // Raised: more start at once, although nobody enqueues anything.
    set_limit(&server, &mut client, 4);
    wait_until("four tasks to run", || waiting(&mut client) == 4);
    wait_quiet(launcher_pid(&mut client).unwrap());
    assert_eq!(running_count(&mut client), 4);
    assert_eq!(worker_count(&mut client), 4);

    // Lowered: what runs may go on; then one at a time, and the workers that are too many leave.
    set_limit(&server, &mut client, 1);
    assert_eq!(running_count(&mut client), 4);
    let opened = SystemTime::now();
    run(&mut gate, "SELECT pg_advisory_unlock(1)");
    wait_all_closed(&mut client, Duration::from_secs(60));
    assert_eq!(states(&mut client), "finished: 12");
    // Tasks are compared by their rows here, for those that were held up at the gate began long
    // before.
    let late: i64 = scalar(
        &mut client,
        "SELECT coalesce(max(n), 0) FROM (SELECT a.id, count(*) AS n FROM pg_background_tasks AS a \
         JOIN pg_background_tasks AS b ON b.started_at <= a.started_at AND a.started_at < b.closed_at \
         WHERE a.started_at >= $1 GROUP BY a.id) AS others",
        &[&opened],
    );
    assert_eq!(late, 1, "tasks at once after the limit was lowered to 1");
    wait_until("the workers that are too many to leave", || {
        worker_count(&mut client) <= 1
    });
}

#[test]
fn a_limit_of_zero_pauses() {
    let server = Server::builder()
        .conf(LIMIT, "4")
        .conf(IDLE_TIMEOUT, "10min")
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    // An idle worker is there, which an enqueue would wake directly.
    let before = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, before, "finished");

    set_limit(&server, &mut client, 0);
    let paused: Vec<i64> = vec![
        enqueue(&mut client, "SELECT 1"),
        enqueue(&mut alice, "SELECT 1"),
        enqueue(&mut client, "SELECT 1"),
    ];
    run(&mut client, "SELECT pg_background_queue_ensure_workers()");
    wait_quiet(launcher_pid(&mut client).unwrap());
    for &id in &paused {
        assert_eq!(task(&mut client, id).state, "pending");
    }
    wait_until("the idle workers to leave", || {
        worker_count(&mut client) == 0
    });

    let resumed = SystemTime::now();
    server.set_and_reload(LIMIT, "4");
    for &id in &paused {
        let done = wait_state(&mut client, id, "finished");
        assert!(done.started_at.unwrap() >= resumed);
    }
}

#[test]
fn a_pause_lets_the_running_task_end() {
    let server = Server::builder().conf(LIMIT, "1").start();
    let mut client = server.superuser();
    let mut gate = server.superuser();
    prepare_work(&mut client);
    run(&mut gate, "SELECT pg_advisory_lock(1)");
    enqueue_gated(&mut client, 3);
    wait_until("a task to run", || running_count(&mut client) == 1);
    set_limit(&server, &mut client, 0);
    run(&mut gate, "SELECT pg_advisory_unlock(1)");
    wait_until("the running task to end", || {
        states(&mut client) == "pending: 2, finished: 1"
    });
    let resumed = SystemTime::now();
    server.set_and_reload(LIMIT, "1");
    wait_all_closed(&mut client, PATIENCE);
    let late: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE started_at >= $1",
        &[&resumed],
    );
    assert_eq!(late, 2);
}

#[test]
fn several_databases_share_the_limit() {
    let server = Server::builder()
        .conf("max_worker_processes", "20")
        .conf(LIMIT, "4")
        .start();
    let mut client = server.superuser();
    let names = ["one", "two", "three"];
    let mut databases: Vec<Client> = Vec::new();
    for name in names {
        run(&mut client, &format!("CREATE DATABASE {name}"));
        let mut database = server.connect("postgres", name);
        // In one of them in a schema of its own.
        if name == "two" {
            run(
                &mut database,
                "CREATE SCHEMA q; CREATE EXTENSION pg_background_queue SCHEMA q",
            );
            run(&mut database, "SET search_path = public, q");
        } else {
            run(&mut database, "CREATE EXTENSION pg_background_queue");
        }
        prepare_work(&mut database);
        databases.push(database);
    }
    for database in &mut databases {
        for _ in 0..20 {
            enqueue(database, "SELECT work(0.05)");
        }
        enqueue(
            database,
            "CREATE TABLE ran_in AS SELECT current_database() AS name",
        );
    }
    let mut all = Vec::new();
    for (database, name) in databases.iter_mut().zip(names) {
        wait_all_closed(database, Duration::from_secs(60));
        assert_eq!(states(database), "finished: 21", "{name}");
        let ran_in: String = scalar(database, "SELECT name::text FROM ran_in", &[]);
        assert_eq!(ran_in, name);
        all.extend(runs(database));
    }
    assert_eq!(all.len(), 60);
    let most = most_at_once(&all, SystemTime::UNIX_EPOCH);
    assert!(most <= 4, "{most} tasks at once");
    assert!(most >= 3, "never more than {most} tasks at once");
}

#[test]
fn databases_take_turns() {
    let server = Server::builder().conf(LIMIT, "2").start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    run(&mut client, "CREATE DATABASE small");
    let mut small = server.connect("postgres", "small");
    run(&mut small, "CREATE EXTENSION pg_background_queue");

    let mut transaction = client.transaction().unwrap();
    for _ in 0..1000 {
        enqueue(&mut transaction, "SELECT work(0.02)");
    }
    transaction.commit().unwrap();
    wait_until("the flood to run", || running_count(&mut client) == 2);
    for _ in 0..5 {
        enqueue(&mut small, "SELECT 1");
    }
    wait_all_closed(&mut small, Duration::from_secs(60));
    // By now the flood is not half done, or the small database has waited for its end.
    let open: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE closed_at IS NULL",
        &[],
    );
    assert!(open > 100, "{open} tasks of the flood are left");
    run(
        &mut client,
        "DELETE FROM pg_background_tasks WHERE state = 'pending'",
    );
}

#[test]
fn roles_with_equal_claims_do_not_wait_for_a_flood() {
    let server = Server::builder().conf(LIMIT, "2").start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    // Alice's tasks come in between those of the superuser, whose workers are there already.
    let mut ids = Vec::new();
    for n in 0..600 {
        enqueue(&mut client, "SELECT work(0.02)");
        if n % 100 == 50 {
            ids.push(enqueue(&mut alice, "SELECT 1"));
        }
    }
    for id in ids {
        wait_state(&mut alice, id, "finished");
    }
    let open: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE closed_at IS NULL",
        &[],
    );
    assert!(open > 0, "alice was served last");
    wait_all_closed(&mut client, PATIENCE);
}

#[test]
fn idle_processes_do_not_wake_up() {
    let server = Server::builder()
        .conf(LIMIT, "4")
        .conf(IDLE_TIMEOUT, "10min")
        .conf("autovacuum", "off")
        .start();
    let mut client = server.superuser();
    for role in ["alice", "bob", "carol"] {
        create_role(&mut client, role);
        let mut session = server.connect(role, "postgres");
        let id = enqueue(&mut session, "SELECT 1");
        wait_state(&mut session, id, "finished");
    }
    let failing = enqueue(&mut client, "SELECT 1/0");
    wait_closed(&mut client, failing);

    let processes: Vec<_> = wait_for("the keepers to leave", PATIENCE, || {
        let all = workers(&mut client);
        all.iter()
            .all(|process| process.kind != "keeper")
            .then_some(all)
    });
    assert_eq!(processes.len(), 5, "{processes:?}");
    for process in &processes {
        wait_quiet(process.pid);
    }
    let switches = |process: &Worker| {
        context_switches(process.pid).unwrap_or_else(|| panic!("{process:?} is gone"))
    };
    let before: Vec<u64> = processes.iter().map(switches).collect();
    // No synchronisation: the length of the measurement.
    std::thread::sleep(Duration::from_secs(5));
    for (process, before) in processes.iter().zip(before) {
        let woken = switches(process) - before;
        assert!(woken <= 2, "{woken} context switches of {process:?}");
    }
    assert_eq!(
        workers(&mut client)
            .iter()
            .map(|process| process.pid)
            .collect::<Vec<_>>(),
        processes
            .iter()
            .map(|process| process.pid)
            .collect::<Vec<_>>()
    );
}

/// Tasks that wait for their topic are known to all workers of the role, and are nothing to wake each other for.
#[test]
fn workers_rest_beside_tasks_that_wait_for_their_topic() {
    let server = Server::builder()
        .conf(LIMIT, "4")
        .conf(IDLE_TIMEOUT, "10min")
        .conf(
            "pg_background_queue.topic_config",
            r#"{"one": {"max_parallel_running_tasks_count": 1}}"#,
        )
        .start();
    let mut client = server.superuser();
    let mut gate = server.superuser();
    run(&mut gate, "SELECT pg_advisory_lock(1)");
    for _ in 0..4 {
        enqueue(&mut client, "SELECT pg_advisory_xact_lock_shared(1)");
    }
    wait_until("four workers", || running_count(&mut client) == 4);
    run(&mut gate, "SELECT pg_advisory_unlock(1)");
    wait_all_closed(&mut client, PATIENCE);
    for _ in 0..5 {
        run(&mut gate, "SELECT pg_advisory_lock(1)");
        let ids = enqueue_all(
            &mut client,
            "one",
            &["SELECT pg_advisory_xact_lock_shared(1)"; 10],
        );
        wait_state(&mut client, ids[0], "running");
        for process in workers(&mut client) {
            wait_quiet(process.pid);
        }
        run(&mut gate, "SELECT pg_advisory_unlock(1)");
        wait_all_closed(&mut client, PATIENCE);
    }
}

/// What a role's tasks of a full topic wait for is no reason to pass over others.
#[test]
fn tasks_of_a_full_topic_lend_their_priority_to_nobody() {
    let server = Server::builder()
        .conf(LIMIT, "2")
        .conf(
            "pg_background_queue.topic_config",
            r#"{"one": {"max_parallel_running_tasks_count": 1}}"#,
        )
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    let mut gate = server.superuser();
    run(&mut gate, "SELECT pg_advisory_lock(1)");
    run(
        &mut client,
        "SELECT count(pg_background_queue_enqueue('SELECT pg_advisory_xact_lock_shared(1)', 'one', 1)) FROM generate_series(1, 4)",
    );
    run(
        &mut client,
        "SELECT count(pg_background_queue_enqueue('SELECT work(0.02)', priority => 100)) FROM generate_series(1, 500)",
    );
    wait_until("the stream to run", || running_count(&mut client) == 2);
    for priority in [50, 100] {
        let id = enqueue_with(&mut alice, "SELECT 1", &format!("priority => {priority}"));
        wait_state(&mut alice, id, "finished");
        let open: i64 = scalar(
            &mut client,
            "SELECT count(*) FROM pg_background_tasks WHERE state = 'pending' AND priority = 100",
            &[],
        );
        assert!(open > 0, "priority {priority} has waited for all of 100");
    }
    run(&mut gate, "SELECT pg_advisory_unlock(1)");
    run(
        &mut client,
        "DELETE FROM pg_background_tasks WHERE state = 'pending'",
    );
}

/// They come one by one, each while the worker for the one before is about to start.
#[test]
fn long_tasks_get_a_worker_each_as_long_as_there_are_places() {
    let server = Server::builder()
        .conf(LIMIT, "6")
        .conf(IDLE_TIMEOUT, "50ms")
        .start();
    let mut client = server.superuser();
    let mut session = server.superuser();
    for round in 0..8 {
        run(&mut client, "SELECT pg_advisory_lock(1)");
        for n in 0..6 {
            enqueue(&mut session, "SELECT pg_advisory_xact_lock_shared(1)");
            // in some rounds it has started
            if round % 2 == 1 {
                wait_until("it to run", || running_count(&mut session) == n + 1);
            }
        }
        wait_until("all to run", || running_count(&mut session) == 6);
        run(&mut client, "SELECT pg_advisory_unlock(1)");
        wait_all_closed(&mut session, PATIENCE);
        wait_no_workers(&mut session, PATIENCE);
    }
}

/// Where no place is free, the launcher hears once that there is more to do.
#[test]
fn what_the_launcher_knows_does_not_wake_it() {
    let server = Server::builder().conf(LIMIT, "1").start();
    let mut client = server.superuser();
    let mut session = server.superuser();
    run(&mut client, "SELECT pg_advisory_lock(1)");
    let first = enqueue(&mut session, "SELECT pg_advisory_xact_lock(1)");
    wait_state(&mut session, first, "running");
    let launcher = wait_for_launcher(&mut client, 0);
    for limit in [1, 0] {
        set_limit(&server, &mut client, limit);
        let before = context_switches(launcher).expect("it lives");
        for _ in 0..300 {
            enqueue(&mut session, "SELECT 1");
        }
        let woken = context_switches(launcher).expect("it lives") - before;
        assert!(woken < 100, "{woken} context switches, limit {limit}");
    }
    set_limit(&server, &mut client, 2);
    // it is told of the places that there are now
    wait_until("all but the first to be done", || {
        scalar::<i64>(
            &mut session,
            "SELECT count(*) FROM pg_background_tasks WHERE state = 'finished'",
            &[],
        ) == 600
    });
    run(&mut client, "SELECT pg_advisory_unlock(1)");
    wait_state(&mut session, first, "finished");
}

#[test]
fn an_idle_installation_has_no_workers_after_the_idle_timeout() {
    let server = Server::builder().conf(IDLE_TIMEOUT, "1500ms").start();
    let mut client = server.superuser();
    let id = enqueue(&mut client, "SELECT 1");
    let done = wait_state(&mut client, id, "finished");
    wait_no_workers(&mut client, PATIENCE);
    let idle = done.closed_at.unwrap().elapsed().unwrap();
    assert!(idle >= Duration::from_millis(1400), "left after {idle:?}");
    assert!(idle < Duration::from_secs(30), "left after {idle:?}");
    let count: i32 = scalar(
        &mut client,
        "SELECT pg_background_queue_active_workers_count()",
        &[],
    );
    assert_eq!(count, 0);
    // And one comes back.
    let id = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, id, "finished");
}

#[test]
fn a_worker_stays_after_a_burst() {
    let server = Server::builder()
        .conf(LIMIT, "1")
        .conf(IDLE_TIMEOUT, "10min")
        .start();
    let mut client = server.superuser();
    let first = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, first, "finished");
    let before = workers(&mut client);
    for _ in 0..5 {
        let mut transaction = client.transaction().unwrap();
        for _ in 0..20 {
            enqueue(&mut transaction, "SELECT 1");
        }
        transaction.commit().unwrap();
        wait_all_closed(&mut client, PATIENCE);
        let idle: Vec<_> = wait_for("the worker to be idle", PATIENCE, || {
            let now = workers(&mut client);
            now.iter()
                .all(|process| process.state.as_deref() != Some("active"))
                .then_some(now)
        });
        for process in &idle {
            wait_quiet(process.pid);
        }
        let pids = |processes: &[_]| -> Vec<i32> {
            processes
                .iter()
                .map(|process: &Worker| process.pid)
                .collect()
        };
        assert_eq!(pids(&workers(&mut client)), pids(&before));
    }
}

#[test]
fn the_idle_timeout_follows_a_reload() {
    let server = Server::builder().conf(IDLE_TIMEOUT, "10min").start();
    let mut client = server.superuser();
    let id = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, id, "finished");
    assert_eq!(worker_count(&mut client), 1);
    let count: i32 = scalar(
        &mut client,
        "SELECT pg_background_queue_active_workers_count()",
        &[],
    );
    assert_eq!(count, 1);
    let calibrated: i32 = scalar(
        &mut client,
        "SELECT pg_background_queue_calibrate_workers_count()",
        &[],
    );
    assert_eq!(calibrated, 1);
    server.set_and_reload(IDLE_TIMEOUT, "200ms");
    wait_no_workers(&mut client, PATIENCE);
}

#[test]
fn one_free_worker_slot_is_enough() {
    // The launcher and PostgreSQL's logical replication launcher take the other two.
    let server = Server::builder()
        .conf("max_worker_processes", "3")
        .conf(LIMIT, "4")
        .conf(IDLE_TIMEOUT, "10min")
        .start();
    let mut client = server.superuser();
    prepare_work(&mut client);
    run(&mut client, "CREATE DATABASE other");
    let mut other = server.connect("postgres", "other");
    run(&mut other, "CREATE EXTENSION pg_background_queue");
    create_role(&mut client, "alice");
    create_role(&mut client, "bob");
    let mut alice = server.connect("alice", "postgres");
    let mut bob = server.connect("bob", "postgres");
    let mark = server.log_mark();
    for _ in 0..3 {
        for session in [&mut client, &mut alice, &mut bob, &mut other] {
            enqueue(session, "SELECT pg_sleep(0.05)");
        }
    }
    wait_all_closed(&mut client, Duration::from_secs(60));
    wait_all_closed(&mut other, Duration::from_secs(60));
    assert_eq!(states(&mut client), "finished: 9");
    assert_eq!(states(&mut other), "finished: 3");
    let log = server.log_since(mark);
    let lines = log.lines().count();
    assert!(lines < 50, "{lines} lines of log:\n{log}");
}

#[test]
fn an_idle_worker_gives_the_only_slot_to_another_role() {
    let server = Server::builder()
        .conf("max_worker_processes", "3")
        .conf(LIMIT, "4")
        .conf(IDLE_TIMEOUT, "10min")
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    for _ in 0..3 {
        for session in [&mut client, &mut alice] {
            let id = enqueue(session, "SELECT 1");
            let done = wait_state(session, id, "finished");
            let waited = done
                .started_at
                .unwrap()
                .duration_since(done.joined_at)
                .unwrap();
            assert!(waited < Duration::from_secs(10), "{waited:?}");
        }
    }
}

#[test]
fn without_a_free_worker_slot_tasks_wait_and_the_log_is_quiet() {
    // The two launchers take both slots.
    let mut server = Server::builder()
        .conf("max_worker_processes", "2")
        .conf(LIMIT, "4")
        .start();
    let mut client = server.superuser();
    run(&mut client, "CREATE TABLE effects (what text)");
    let mark = server.log_mark();
    let ids: Vec<i64> = (0..20)
        .map(|n| enqueue(&mut client, &format!("INSERT INTO effects VALUES ('{n}')")))
        .collect();
    // No synchronisation: the length of the observation.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(states(&mut client), "pending: 20");
    let log = server.log_since(mark);
    let lines = log.lines().count();
    assert!(lines < 20, "{lines} lines of log:\n{log}");

    drop(client);
    server.set_conf("max_worker_processes", "8");
    server.restart();
    let mut client = server.superuser();
    for id in ids {
        wait_state(&mut client, id, "finished");
    }
    let effects: i64 = scalar(&mut client, "SELECT count(*) FROM effects", &[]);
    assert_eq!(effects, 20);
}

#[test]
fn a_role_that_cannot_connect_any_more_fails_its_tasks_alone() {
    let server = Server::builder()
        .conf(LIMIT, "0")
        .conf("max_worker_processes", "20")
        .start();
    let mut client = server.superuser();
    let version: i32 = scalar(
        &mut client,
        "SELECT current_setting('server_version_num')::int",
        &[],
    );
    run(&mut client, "CREATE DATABASE closed");
    let mut closed = server.connect("postgres", "closed");
    run(&mut closed, "CREATE EXTENSION pg_background_queue");
    for role in ["dropped", "reborn", "barred", "healthy"] {
        create_role(&mut client, role);
    }
    run(
        &mut closed,
        "GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO healthy",
    );
    let ask = |role: &str, database: &str| -> i64 {
        enqueue(&mut server.connect(role, database), "SELECT current_user")
    };
    let dropped = ask("dropped", "postgres");
    let reborn = ask("reborn", "postgres");
    let barred = ask("barred", "postgres");
    let healthy = ask("healthy", "postgres");
    let shut_out = ask("healthy", "closed");

    run(
        &mut client,
        "DROP OWNED BY dropped; DROP ROLE dropped; \
         DROP OWNED BY reborn; DROP ROLE reborn; CREATE ROLE reborn LOGIN SUPERUSER; \
         ALTER ROLE barred NOLOGIN; \
         REVOKE CONNECT ON DATABASE closed FROM PUBLIC",
    );
    server.set_and_reload(LIMIT, "4");

    for (id, role) in [(dropped, "dropped"), (reborn, "reborn")] {
        let done = wait_closed(&mut client, id);
        assert_eq!(done.state, "failed", "{role}");
        assert!(done.errors().contains(role), "{}", done.errors());
        assert!(done.closed_at.is_some());
    }
    let done = wait_closed(&mut client, barred);
    if version < 170_000 {
        assert_eq!(done.state, "failed");
        assert!(done.errors().contains("barred"), "{}", done.errors());
        assert!(done.errors().contains("log in"), "{}", done.errors());
    } else {
        assert_eq!(done.state, "finished", "{}", done.errors());
    }
    let done = wait_closed(&mut closed, shut_out);
    assert_eq!(done.state, "failed");
    assert!(done.errors().contains("healthy"), "{}", done.errors());
    assert!(done.errors().contains("CONNECT"), "{}", done.errors());
    wait_state(&mut client, healthy, "finished");
}

#[test]
fn a_role_is_dropped_while_its_worker_is_idle() {
    let server = Server::builder().conf(IDLE_TIMEOUT, "10min").start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    create_role(&mut client, "bob");
    for role in ["alice", "bob"] {
        let mut session = server.connect(role, "postgres");
        let id = enqueue(&mut session, "SELECT 1");
        wait_state(&mut session, id, "finished");
    }
    assert_eq!(worker_count(&mut client), 2);
    run(&mut client, "DROP OWNED BY alice; DROP ROLE alice");
    // Her worker is of no use any more; at the latest the next one who needs room finds that out.
    let mut bob = server.connect("bob", "postgres");
    let id = enqueue(&mut bob, "SELECT 1");
    wait_state(&mut bob, id, "finished");
    let names: HashSet<Option<String>> = tasks(&mut client)
        .into_iter()
        .map(|task| task.role_name)
        .collect();
    assert!(names.contains(&Some("bob".to_owned())));
}
