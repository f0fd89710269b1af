//! Databases, roles and the extension itself are dropped, renamed, moved and copied while the queue is at work.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use postgres::Client;

use crate::harness::{
    PATIENCE, Server, create_role, enqueue, is_alive, run, scalar, states, task, tasks,
    wait_all_closed, wait_closed, wait_for, wait_state, wait_until, workers,
};

const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";
const IDLE_TIMEOUT: &str = "pg_background_queue.worker_idle_timeout";

/// How long "promptly" may be on a shared machine.
const PROMPTLY: Duration = Duration::from_secs(15);

/// A task that waits until the test lets go of advisory lock 1 of its database.
const GATE: &str = "SELECT pg_advisory_xact_lock_shared(1)";

/// A server whose workers stay, with the roles alice and bob.
fn server() -> Server {
    let server = Server::builder()
        .conf(LIMIT, "4")
        .conf("max_worker_processes", "16")
        .conf(IDLE_TIMEOUT, "10min")
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    create_role(&mut client, "bob");
    server
}

/// Makes database `other` with the extension in it, and connects to it.
fn other_database(server: &Server, client: &mut Client) -> Client {
    run(client, "CREATE DATABASE other");
    let mut other = server.connect("postgres", "other");
    run(
        &mut other,
        "CREATE EXTENSION pg_background_queue; \
         GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO alice, bob",
    );
    other
}

/// The workers in a database.
fn workers_in(client: &mut Client, database: &str) -> BTreeSet<i32> {
    workers(client)
        .into_iter()
        .filter(|w| w.kind == "worker" && w.database.as_deref() == Some(database))
        .map(|worker| worker.pid)
        .collect()
}

/// Has two roles run a task in database `other`; their workers are idle now, and no session is there.
#[track_caller]
fn idle_workers(server: &Server, client: &mut Client) -> BTreeSet<i32> {
    for user in ["postgres", "alice"] {
        let mut session = server.connect(user, "other");
        let id = enqueue(&mut session, "SELECT 1");
        wait_state(&mut session, id, "finished");
    }
    wait_for("two idle workers and nobody else", PATIENCE, || {
        let idle = workers(client)
            .iter()
            .filter(|w| {
                w.database.as_deref() == Some("other") && w.state.as_deref() == Some("idle")
            })
            .map(|worker| worker.pid)
            .collect::<BTreeSet<i32>>();
        let all: i64 = scalar(
            client,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = 'other'",
            &[],
        );
        (idle.len() == 2 && all == 2).then_some(idle)
    })
}

/// Has one role run a task in database `other` that lasts until [`GATE`] is opened by the session returned.
#[track_caller]
fn busy_worker(server: &Server, client: &mut Client) -> (Client, i64, i32) {
    let mut session = server.connect("postgres", "other");
    run(&mut session, "SELECT pg_advisory_lock(1)");
    let id = enqueue(&mut session, GATE);
    let name = format!("pg_background_queue task {id}");
    let pid = wait_for("the task to run", PATIENCE, || {
        workers(client)
            .into_iter()
            .find(|w| w.application_name == name && w.wait_event.as_deref() == Some("advisory"))
            .map(|worker| worker.pid)
    });
    (session, id, pid)
}

/// The SQLSTATE of a statement that must fail.
#[track_caller]
fn failure(client: &mut Client, sql: &str) -> String {
    match client.batch_execute(sql) {
        Ok(()) => panic!("{sql} succeeded"),
        Err(error) => error
            .code()
            .unwrap_or_else(|| panic!("{sql}: {error:?}"))
            .code()
            .to_owned(),
    }
}

/// A tablespace of its own.
fn create_tablespace(server: &Server, client: &mut Client) {
    use std::os::unix::fs::{MetadataExt, chown};
    let path = server.data_dir().parent().expect("a parent").join("space");
    std::fs::create_dir(&path).expect("a directory");
    let owner = std::fs::metadata(server.data_dir()).expect("the data directory");
    chown(&path, Some(owner.uid()), Some(owner.gid())).expect("chown");
    run(
        client,
        &format!("CREATE TABLESPACE space LOCATION '{}'", path.display()),
    );
}

/// A new task of either role runs promptly in this database.
#[track_caller]
fn assert_goes_on(server: &Server, database: &str) {
    for user in ["postgres", "alice"] {
        let mut session = server.connect(user, database);
        let since = Instant::now();
        let id = enqueue(&mut session, "SELECT 1");
        wait_state(&mut session, id, "finished");
        assert!(since.elapsed() < PROMPTLY, "{:?}", since.elapsed());
    }
}

// With idle workers

#[test]
fn a_database_with_idle_workers_is_dropped_at_once() {
    let server = server();
    let mut client = server.superuser();
    for _ in 0..2 {
        drop(other_database(&server, &mut client));
        idle_workers(&server, &mut client);
        run(&mut client, "DROP DATABASE other");
        assert_eq!(workers_in(&mut client, "other"), BTreeSet::new());
    }
    run(&mut client, "DROP DATABASE IF EXISTS other");
    assert_goes_on(&server, "postgres");
}

#[test]
fn a_database_with_idle_workers_is_renamed_at_once() {
    let server = server();
    let mut client = server.superuser();
    drop(other_database(&server, &mut client));
    idle_workers(&server, &mut client);
    run(&mut client, "ALTER DATABASE other RENAME TO renamed");
    assert_goes_on(&server, "renamed");
    assert_eq!(workers_in(&mut client, "renamed").len(), 2);
    run(&mut client, "ALTER DATABASE renamed RENAME TO other");
    assert_goes_on(&server, "other");
    // Its tasks are its own still.
    let mut other = server.connect("postgres", "other");
    assert_eq!(states(&mut other), "finished: 6");
}

#[test]
fn a_database_with_idle_workers_is_moved_at_once() {
    let server = server();
    let mut client = server.superuser();
    create_tablespace(&server, &mut client);
    drop(other_database(&server, &mut client));
    idle_workers(&server, &mut client);
    run(&mut client, "ALTER DATABASE other SET TABLESPACE space");
    assert_goes_on(&server, "other");
    let mut other = server.connect("postgres", "other");
    assert_eq!(states(&mut other), "finished: 4");
    drop(other);
    wait_until("the test's sessions to be gone", || {
        workers_in(&mut client, "other").len() == 2
    });
    run(
        &mut client,
        "ALTER DATABASE other SET TABLESPACE pg_default",
    );
    assert_goes_on(&server, "other");
}

#[test]
fn a_database_with_idle_workers_is_copied_at_once() {
    let server = server();
    let mut client = server.superuser();
    drop(other_database(&server, &mut client));
    idle_workers(&server, &mut client);
    run(&mut client, "CREATE DATABASE copy TEMPLATE other");
    assert_goes_on(&server, "other");
    assert_goes_on(&server, "copy");
    // Other commands leave workers alone.
    let pids = workers_in(&mut client, "other");
    for command in [
        "COMMENT ON DATABASE other IS 'the other'",
        "CREATE DATABASE unrelated",
        "DROP DATABASE unrelated",
        "ALTER ROLE bob RENAME TO robert",
    ] {
        run(&mut client, command);
        assert_goes_on(&server, "other");
        assert_eq!(workers_in(&mut client, "other"), pids, "{command}");
    }
}

#[test]
fn a_template_with_the_extension_serves_createdb() {
    let server = server();
    let mut client = server.superuser();
    let mut template = server.connect("postgres", "template1");
    run(&mut template, "CREATE EXTENSION pg_background_queue");
    let id = enqueue(&mut template, "SELECT 1");
    wait_state(&mut template, id, "finished");
    drop(template);
    run(&mut client, "CREATE DATABASE fresh");
    let mut fresh = server.connect("postgres", "fresh");
    let id = enqueue(&mut fresh, "SELECT 1");
    wait_state(&mut fresh, id, "finished");
}

#[test]
fn databases_come_and_go_while_workers_start() {
    let server = server();
    let mut client = server.superuser();
    for round in 0..10 {
        let mut other = other_database(&server, &mut client);
        let mut alice = server.connect("alice", "other");
        enqueue(&mut other, "SELECT 1");
        enqueue(&mut alice, "SELECT pg_sleep(0.1)");
        drop((other, alice));
        // while workers and keepers are on their way there
        let outcome = client.batch_execute("DROP DATABASE other");
        assert!(outcome.is_ok(), "round {round}: {outcome:?}");
    }
    assert_goes_on(&server, "postgres");
}

// With a running task

/// The command fails while a task runs, as it would with any session; then everything goes on.
fn refused_while_a_task_runs(command: &str) {
    let server = server();
    let mut client = server.superuser();
    create_tablespace(&server, &mut client);
    drop(other_database(&server, &mut client));
    idle_workers(&server, &mut client);
    let (mut session, id, pid) = busy_worker(&server, &mut client);
    assert_eq!(failure(&mut client, command), "55006");
    assert!(is_alive(pid));
    assert_eq!(task(&mut session, id).state, "running");
    // Others are served again, beside it.
    let mut alice = server.connect("alice", "other");
    let hers = enqueue(&mut alice, "SELECT 1");
    wait_state(&mut alice, hers, "finished");
    run(&mut session, "SELECT pg_advisory_unlock(1)");
    let done = wait_state(&mut session, id, "finished");
    assert_eq!((done.attempt, done.errors), (1, None));
    drop((session, alice));
    assert_goes_on(&server, "other");
    // And now it works.
    wait_until("nobody but our workers to be there", || {
        scalar(
            &mut client,
            "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = 'other' AND backend_type = 'client backend')",
            &[],
        )
    });
    run(&mut client, command);
}

#[test]
fn drop_database_is_refused_while_a_task_runs() {
    refused_while_a_task_runs("DROP DATABASE other");
}

#[test]
fn rename_is_refused_while_a_task_runs() {
    refused_while_a_task_runs("ALTER DATABASE other RENAME TO renamed");
}

#[test]
fn a_move_is_refused_while_a_task_runs() {
    refused_while_a_task_runs("ALTER DATABASE other SET TABLESPACE space");
}

#[test]
fn a_copy_is_refused_while_a_task_runs() {
    refused_while_a_task_runs("CREATE DATABASE copy TEMPLATE other");
}

#[test]
fn a_task_alone_is_in_the_way_and_one_that_ends_soon_is_waited_for() {
    let server = server();
    let mut client = server.superuser();
    let mut other = other_database(&server, &mut client);
    let long = enqueue(&mut other, "SELECT pg_sleep(3600)");
    wait_state(&mut other, long, "running");
    drop(other);
    wait_until("nobody but the worker to be there", || {
        scalar(
            &mut client,
            "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = 'other'",
            &[],
        )
    });
    assert_eq!(failure(&mut client, "DROP DATABASE other"), "55006");
    let mut other = server.connect("postgres", "other");
    assert!(scalar::<bool>(
        &mut other,
        "SELECT pg_background_queue_cancel($1)",
        &[&long]
    ));
    wait_state(&mut other, long, "cancelled");
    // Its worker, told to leave, does not begin the next one either.
    server.set_and_reload(LIMIT, "1");
    let short = enqueue(&mut other, "SELECT pg_sleep(1.5)");
    wait_state(&mut other, short, "running");
    enqueue(&mut other, "SELECT pg_sleep(3600)");
    drop(other);
    run(&mut client, "DROP DATABASE other");
    assert_goes_on(&server, "postgres");
}

// Who may

#[test]
fn who_may_not_give_the_command_sends_no_worker_away() {
    let server = server();
    let mut client = server.superuser();
    create_tablespace(&server, &mut client);
    drop(other_database(&server, &mut client));
    run(&mut client, "CREATE ROLE maker LOGIN CREATEDB");
    let pids = idle_workers(&server, &mut client);
    for user in ["bob", "maker"] {
        let mut session = server.connect(user, "postgres");
        for command in [
            "DROP DATABASE other",
            "DROP DATABASE IF EXISTS other WITH (FORCE)",
            "ALTER DATABASE other RENAME TO renamed",
            "ALTER DATABASE other SET TABLESPACE space",
            "CREATE DATABASE copy TEMPLATE other",
        ] {
            assert_eq!(failure(&mut session, command), "42501", "{user}: {command}");
        }
        assert_eq!(
            failure(&mut session, "DROP DATABASE nowhere"),
            "3D000",
            "{user}"
        );
    }
    // A worker that was told to leave would be gone by the time that it has run something.
    let mut other = server.connect("postgres", "other");
    let id = enqueue(&mut other, "SELECT 1");
    wait_state(&mut other, id, "finished");
    let now = workers_in(&mut client, "other");
    assert!(
        now.contains(pids.first().expect("two")) || now.contains(pids.last().expect("two")),
        "{pids:?} {now:?}"
    );
}

// After a failed command

#[test]
fn workers_start_again_after_a_failed_command() {
    let server = server();
    let mut client = server.superuser();
    let other = other_database(&server, &mut client);
    for command in [
        "ALTER DATABASE other RENAME TO postgres",
        "DROP DATABASE other",
    ] {
        for user in ["postgres", "alice"] {
            let mut session = server.connect(user, "other");
            let id = enqueue(&mut session, "SELECT 1");
            wait_state(&mut session, id, "finished");
        }
        let code = failure(&mut client, command);
        assert!(code == "55006" || code == "42P04", "{code}");
        assert_goes_on(&server, "other");
    }
    drop(other);
}

#[test]
fn a_task_enqueued_during_a_command_that_fails_runs_after_it() {
    let server = server();
    let mut client = server.superuser();
    let mut other = other_database(&server, &mut client);
    std::thread::scope(|scope| {
        let mut session = server.superuser();
        scope.spawn(move || assert_eq!(failure(&mut session, "DROP DATABASE other"), "55006"));
        wait_until("the command to wait", || {
            scalar(
                &mut client,
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE 'DROP DATABASE%' AND state = 'active' \
                 AND pid <> pg_backend_pid())",
                &[],
            )
        });
        let id = enqueue(&mut other, "SELECT 1");
        wait_state(&mut other, id, "finished");
    });
    assert_goes_on(&server, "other");
}

/// The second command waits for the first, and then as long again.
#[test]
fn the_end_of_one_command_lets_nobody_into_a_database_that_another_wants_empty() {
    let server = server();
    let mut client = server.superuser();
    let mut other = other_database(&server, &mut client);
    let dropping = |client: &mut Client| -> i64 {
        scalar(
            client,
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DROP DATABASE%' AND state = 'active' \
             AND pid <> pg_backend_pid()",
            &[],
        )
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut session = server.superuser();
            scope.spawn(move || assert_eq!(failure(&mut session, "DROP DATABASE other"), "55006"));
        }
        wait_until("both commands to wait", || dropping(&mut client) == 2);
        let id = enqueue(&mut other, "SELECT 1");
        wait_until("the first to fail", || dropping(&mut client) == 1);
        // No synchronisation: the length of the observation. The second has five seconds of its own.
        std::thread::sleep(Duration::from_secs(2));
        let started = scalar::<bool>(
            &mut other,
            "SELECT started_at IS NOT NULL FROM pg_background_tasks WHERE id = $1",
            &[&id],
        );
        assert!(!started || dropping(&mut client) == 0);
        wait_state(&mut other, id, "finished");
    });
}

/// A session dies in the middle of a command that waits for a session in database `other`.
fn dies_in_the_middle(cancel: &str) {
    let server = server();
    let mut client = server.superuser();
    let mut other = other_database(&server, &mut client);
    std::thread::scope(|scope| {
        let mut session = server.superuser();
        let pid: i32 = scalar(&mut session, "SELECT pg_backend_pid()", &[]);
        scope.spawn(move || {
            let _ = session.batch_execute("DROP DATABASE other");
        });
        wait_until("the command to wait", || {
            scalar(
                &mut client,
                "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND locktype = 'object' AND mode = 'AccessExclusiveLock' \
                 AND granted)",
                &[&pid],
            )
        });
        // Nobody wakes the launcher for it after that.
        let waiting = enqueue(&mut other, "SELECT 1");
        let since = SystemTime::now();
        assert!(scalar::<bool>(
            &mut client,
            &format!("SELECT {cancel}($1)"),
            &[&pid]
        ));
        let done = wait_state(&mut other, waiting, "finished");
        let took = done
            .started_at
            .expect("started")
            .duration_since(since)
            .unwrap_or_default();
        assert!(took < PROMPTLY, "{took:?}");
    });
    assert_goes_on(&server, "other");
}

#[test]
fn a_session_that_dies_in_the_middle_leaves_no_closed_database() {
    dies_in_the_middle("pg_terminate_backend");
}

#[test]
fn a_session_that_is_cancelled_in_the_middle_leaves_no_closed_database() {
    dies_in_the_middle("pg_cancel_backend");
}

// Roles

#[test]
fn the_tasks_of_a_dropped_role_fail() {
    let server = server();
    server.set_and_reload(LIMIT, "0");
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    let hers = enqueue(&mut alice, "SELECT 1");
    let timed: i64 = scalar(
        &mut alice,
        "SELECT pg_background_queue_enqueue('SELECT 1', run_at => 'infinity')",
        &[],
    );
    drop(alice);
    let mine = enqueue(&mut client, "SELECT 1");
    // The queue is nobody's property, and her tasks are no objects of hers.
    run(
        &mut client,
        "REASSIGN OWNED BY alice TO bob; DROP OWNED BY alice; DROP ROLE alice",
    );
    assert_eq!(states(&mut client), "pending: 3");
    server.set_and_reload(LIMIT, "4");
    wait_state(&mut client, mine, "finished");
    for id in [hers, timed] {
        let failed = wait_state(&mut client, id, "failed");
        assert_eq!(failed.role_name.as_deref(), Some("alice"));
        assert!(failed.errors().contains("does not exist"), "{failed:?}");
    }
    // Put back, it fails again; another alice is another role.
    create_role(&mut client, "alice");
    assert!(scalar::<bool>(
        &mut client,
        "SELECT pg_background_queue_retry($1)",
        &[&hers]
    ));
    let failed = wait_for("it to have failed again", PATIENCE, || {
        let task = task(&mut client, hers);
        (task.state == "failed" && task.errors().matches("does not exist").count() == 2)
            .then_some(task)
    });
    assert_eq!(failed.attempt, 0);
    let mut alice = server.connect("alice", "postgres");
    assert_eq!(tasks(&mut alice).len(), 0);
    assert_goes_on(&server, "postgres");
}

#[test]
fn a_role_whose_task_runs_is_dropped_as_one_with_any_session() {
    let server = server();
    let mut client = server.superuser();
    let mut alice = server.connect("alice", "postgres");
    run(&mut client, "SELECT pg_advisory_lock(1)");
    let running = enqueue(&mut alice, GATE);
    wait_state(&mut client, running, "running");
    drop(alice);
    run(&mut client, "DROP OWNED BY alice; DROP ROLE alice");
    run(&mut client, "SELECT pg_advisory_unlock(1)");
    let done = wait_closed(&mut client, running);
    assert_eq!((done.state.as_str(), done.attempt), ("finished", 1));
    create_role(&mut client, "alice");
    assert_goes_on(&server, "postgres");
}

// The extension

#[test]
fn the_extension_stays_in_its_schema() {
    let server = server();
    let mut client = server.superuser();
    run(&mut client, "CREATE SCHEMA elsewhere");
    let error = client
        .batch_execute("ALTER EXTENSION pg_background_queue SET SCHEMA elsewhere")
        .expect_err("a refusal");
    let error = error.as_db_error().expect("of the server");
    assert_eq!(error.code().code(), "0A000");
    assert!(
        error.message().contains("does not support SET SCHEMA"),
        "{}",
        error.message()
    );
    assert_goes_on(&server, "postgres");
}

#[test]
fn the_extension_is_dropped_and_created_under_load() {
    const ROUNDS: i32 = 10;
    let server = server();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE public.runs (n int); GRANT INSERT ON public.runs TO PUBLIC",
    );
    let over = AtomicBool::new(false);
    let next = AtomicI32::new(0);
    // Numbers and ids that were accepted since the last CREATE EXTENSION
    let accepted = Mutex::new(Vec::<(i32, i64)>::new());
    std::thread::scope(|scope| {
        for user in ["postgres", "alice", "bob"] {
            let mut session = server.connect(user, "postgres");
            let (over, next, accepted) = (&over, &next, &accepted);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let sql = format!("INSERT INTO public.runs VALUES ({n}) /* {user} */");
                    // It fails while there is no extension.
                    if let Ok(row) =
                        session.query_one("SELECT public.pg_background_queue_enqueue($1)", &[&sql])
                    {
                        accepted.lock().expect("no panic").push((n, row.get(0)));
                    }
                }
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..ROUNDS {
                // Some tasks of each generation run.
                let enough: i64 = scalar(&mut client, "SELECT count(*) + 20 FROM runs", &[]);
                wait_until(&format!("round {round} to be under way"), || {
                    scalar::<i64>(&mut client, "SELECT count(*) FROM runs", &[]) >= enough
                });
                run(
                    &mut client,
                    "BEGIN; SET LOCAL statement_timeout = '30 s'; \
                     DROP EXTENSION pg_background_queue; CREATE EXTENSION pg_background_queue; \
                     GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO alice, bob; COMMIT",
                );
            }
            let enough: i64 = scalar(&mut client, "SELECT count(*) + 20 FROM runs", &[]);
            wait_until("new tasks to run", || {
                scalar::<i64>(&mut client, "SELECT count(*) FROM runs", &[]) >= enough
            });
        }));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    wait_all_closed(&mut client, PATIENCE);
    let strange: Option<String> = scalar(
        &mut client,
        "SELECT string_agg(format('%s %s attempt %s %s', id, state, attempt, errors), E'\\n') FROM pg_background_tasks \
         WHERE state <> 'finished' OR attempt <> 1 OR errors IS NOT NULL OR interruptions <> 0",
        &[],
    );
    assert_eq!(strange, None);
    // What stands as finished has run, once; and nothing ran twice.
    let wrong: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE 1 <> \
         (SELECT count(*) FROM runs WHERE n = substring(sql_statement FROM '\\d+')::int)",
        &[],
    );
    let twice: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM (SELECT n FROM runs GROUP BY n HAVING count(*) > 1) AS more",
        &[],
    );
    assert_eq!((wrong, twice), (0, 0));
    // The last generation is complete: what was accepted since is there.
    let last: Vec<i32> = scalar(
        &mut client,
        "SELECT array_agg(substring(sql_statement FROM '\\d+')::int) FROM pg_background_tasks",
        &[],
    );
    let last: BTreeSet<i32> = last.into_iter().collect();
    let first = *last.first().expect("some");
    let accepted = accepted.into_inner().expect("no panic");
    // Three sessions: those that were in flight around CREATE EXTENSION aside.
    let missing: Vec<i32> = accepted
        .iter()
        .map(|&(n, _)| n)
        .filter(|n| *n > first + 3 && !last.contains(n))
        .collect();
    assert_eq!(missing, Vec::<i32>::new());
    assert_goes_on(&server, "postgres");
}

// Copies

#[test]
fn the_tasks_of_a_copied_database_do_nothing_by_themselves() {
    let mut server = server();
    server.set_and_reload(LIMIT, "0");
    let mut client = server.superuser();
    let mut other = other_database(&server, &mut client);
    run(
        &mut other,
        "CREATE TABLE public.runs (n int); GRANT INSERT ON public.runs TO PUBLIC",
    );
    let mut alice = server.connect("alice", "other");
    let hers = enqueue(&mut alice, "INSERT INTO public.runs VALUES (1)");
    let mine = enqueue(&mut other, "INSERT INTO public.runs VALUES (2)");
    let cancelled = enqueue(&mut other, "INSERT INTO public.runs VALUES (3)");
    run(
        &mut other,
        &format!("SELECT pg_background_queue_cancel({cancelled})"),
    );
    drop((other, alice));
    run(&mut client, "CREATE DATABASE copy TEMPLATE other");
    server.set_and_reload(LIMIT, "4");
    let mut other = server.connect("postgres", "other");
    wait_all_closed(&mut other, PATIENCE);
    let mut copy = server.connect("postgres", "copy");
    // Whatever makes the queue look there.
    run(&mut copy, "SELECT pg_background_queue_ensure_workers()");
    let mut alice = server.connect("alice", "copy");
    let new = enqueue(&mut alice, "INSERT INTO public.runs VALUES (4)");
    wait_state(&mut copy, new, "finished");
    let newer = enqueue(&mut copy, "INSERT INTO public.runs VALUES (5)");
    wait_state(&mut copy, newer, "finished");
    for id in [hers, mine] {
        assert_eq!(task(&mut copy, id).state, "pending");
    }
    // A closed one that is put back is no less a copy.
    let again: bool = scalar(
        &mut copy,
        "SELECT pg_background_queue_retry($1)",
        &[&cancelled],
    );
    drop((client, other, alice, copy));
    server.restart();
    let mut copy = server.connect("postgres", "copy");
    wait_until("the tasks to be held", || {
        scalar::<i64>(
            &mut copy,
            "SELECT count(*) FROM pg_background_tasks WHERE held AND state = 'pending'",
            &[],
        ) >= 2
    });
    let last = enqueue(&mut copy, "INSERT INTO public.runs VALUES (6)");
    wait_state(&mut copy, last, "finished");
    let ran: Vec<i32> = scalar(&mut copy, "SELECT array_agg(n ORDER BY n) FROM runs", &[]);
    assert_eq!(ran, [4, 5, 6], "put back: {again}");
    let released: i64 = scalar(
        &mut copy,
        "SELECT pg_background_queue_release(ARRAY[$1]::bigint[])",
        &[&hers],
    );
    assert_eq!(released, 1);
    let done = wait_state(&mut copy, hers, "finished");
    assert_eq!(done.role_name.as_deref(), Some("alice"));
    assert_eq!(task(&mut copy, mine).state, "pending");
    let ran: Vec<i32> = scalar(&mut copy, "SELECT array_agg(n ORDER BY n) FROM runs", &[]);
    assert_eq!(ran, [1, 4, 5, 6]);
    let mut other = server.connect("postgres", "other");
    let ran: Vec<i32> = scalar(&mut other, "SELECT array_agg(n ORDER BY n) FROM runs", &[]);
    assert_eq!(ran, [1, 2]);
}
