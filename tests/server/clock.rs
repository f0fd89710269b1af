//! The machine's clock is set forth and back by hours; to one server, that is.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use postgres::Client;

use crate::harness::{
    Builder, PATIENCE, Server, create_role, enqueue, enqueue_topic, run, scalar, task,
    wait_all_closed, wait_for, wait_for_launcher, wait_no_workers, wait_quiet, wait_state,
};

const HOUR: i64 = 3600;

/// So long it may take until the launcher notices, with what a busy machine takes.
const NOTICED: Duration = Duration::from_secs(10 + 10);

/// The clock of a server.
struct Clock {
    file: fs::File,
    _dir: tempfile::TempDir,
}

impl Clock {
    /// By so many seconds it is wrong from now on.
    fn set(&self, seconds: i64) {
        self.file
            .write_all_at(&seconds.to_ne_bytes(), 0)
            .expect("set the clock");
    }
}

/// A server with a clock of its own: see clock.c.
fn start(builder: Builder) -> (Server, Clock) {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o", &path("clock.so")])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/clock.c"))
        .status()
        .expect("run cc");
    assert!(status.success(), "cc: {status}");
    let file = fs::File::create(path("clock")).expect("the clock");
    fs::set_permissions(path("clock"), fs::Permissions::from_mode(0o644)).expect("chmod");
    let (library, name) = (path("clock.so"), path("clock"));
    let clock = Clock { file, _dir: dir };
    clock.set(0);
    let server = builder
        .env("LD_PRELOAD", &library)
        .env("TEST_CLOCK", &name)
        .start();
    let is_set = || -> i64 {
        let now: SystemTime = scalar(&mut server.superuser(), "SELECT clock_timestamp()", &[]);
        now.duration_since(SystemTime::now())
            .map_or(0, |ahead| ahead.as_secs() as i64)
    };
    assert_eq!(is_set(), 0);
    clock.set(100);
    assert!(
        (99..=100).contains(&is_set()),
        "the clock is not the server's"
    );
    clock.set(0);
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    create_role(&mut client, "bob");
    run(
        &mut client,
        "CREATE FUNCTION seconds() RETURNS float LANGUAGE sql SECURITY DEFINER \
         AS $$SELECT split_part(pg_read_file('/proc/uptime', 0, 100), ' ', 1)::float$$; \
         CREATE TABLE effects (what text, at float DEFAULT seconds()); GRANT ALL ON effects TO PUBLIC",
    );
    (server, clock)
}

fn builder() -> Builder {
    Server::builder()
        .conf("max_worker_processes", "16")
        .conf("pg_background_queue.max_parallel_running_tasks_count", "4")
        .conf("pg_background_queue.worker_idle_timeout", "2s")
}

fn effect(what: &str) -> String {
    format!("INSERT INTO effects VALUES ('{what}')")
}

/// When it had that effect, in seconds of a clock that nobody sets.
fn at(client: &mut Client, what: &str) -> f64 {
    scalar(client, "SELECT at FROM effects WHERE what = $1", &[&what])
}

fn now(client: &mut Client) -> f64 {
    scalar(client, "SELECT seconds()", &[])
}

/// Two roles enqueue all the time, plain tasks and those of a topic with a delay; some fail, and are run again later; some are scheduled.
/// Meanwhile the clock is set back by an hour, and forth by two.
#[test]
fn nothing_is_lost_or_run_twice_when_the_clock_is_set_under_load() {
    let builder = builder().conf(
        "pg_background_queue.topic_config",
        r#"{"slow": {"max_parallel_running_tasks_count": 1, "delay_in_sec": 1}, "one": {"max_parallel_running_tasks_count": 1}}"#,
    );
    let (server, clock) = start(builder);
    let mut client = server.superuser();
    let stop = AtomicBool::new(false);
    let connector = server.connector();
    let enqueue_all_the_time = |role: &str| -> Vec<i64> {
        let mut session = connector.connect(role, "postgres");
        let mut ids = Vec::new();
        for n in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let mine = |kind: &str| effect(&format!("{kind} {role} {n}"));
            ids.push(enqueue(&mut session, &mine("plain")));
            ids.push(enqueue_topic(&mut session, &mine("one"), "one"));
            if n % 50 == 0 {
                ids.push(enqueue_topic(&mut session, &mine("slow"), "slow"));
                ids.push(scalar(
                    &mut session,
                    "SELECT pg_background_queue_enqueue($1, run_at => now() + interval '30 minutes')",
                    &[&mine("scheduled")],
                ));
                // it fails once, and its retry is due by the table's word
                let sql = format!(
                    "{}; SELECT 1/(retry_count > 0)::int FROM pg_background_tasks \
                     WHERE id = substring(current_setting('application_name') FROM '[0-9]+$')::bigint",
                    mine("retried")
                );
                ids.push(scalar(
                    &mut session,
                    "SELECT pg_background_queue_enqueue($1, retry_count => 3)",
                    &[&sql],
                ));
            }
            thread::sleep(Duration::from_millis(20));
        }
        ids
    };
    let prompt = |client: &mut Client, what: &str| {
        for role in ["alice", "bob"] {
            let mut session = server.connect(role, "postgres");
            let begin = Instant::now();
            let id = enqueue(&mut session, "SELECT 1");
            wait_state(client, id, "finished");
            let took = begin.elapsed();
            eprintln!("{what}, a task of {role}: {took:?}");
            assert!(took < NOTICED, "{what}: {took:?}");
        }
    };
    let ids: Vec<i64> = thread::scope(|scope| {
        let roles = ["alice", "bob"].map(|role| {
            let load = &enqueue_all_the_time;
            scope.spawn(move || load(role))
        });
        let pause = || thread::sleep(Duration::from_secs(4));
        pause();
        prompt(&mut client, "before");
        clock.set(-HOUR);
        prompt(&mut client, "set back");
        pause();
        clock.set(HOUR);
        prompt(&mut client, "set forth");
        pause();
        stop.store(true, Ordering::Relaxed);
        roles
            .into_iter()
            .flat_map(|role| role.join().expect("the load"))
            .collect()
    });
    // those that were scheduled after the last step, and those of the topic with a delay
    clock.set(2 * HOUR);
    wait_all_closed(&mut client, PATIENCE * 2);
    let finished: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE id = ANY ($1) AND state = 'finished'",
        &[&ids],
    );
    assert_eq!(finished as usize, ids.len());
    let mut counts: HashMap<String, usize> = HashMap::new();
    let effects = client
        .query("SELECT what FROM effects", &[])
        .expect("the effects");
    assert_eq!(effects.len(), ids.len());
    for row in &effects {
        *counts.entry(row.get(0)).or_default() += 1;
    }
    assert_eq!(counts.len(), ids.len(), "something was done twice");
    // a topic's delay was none of an hour
    let longest: f64 = scalar(
        &mut client,
        "SELECT max(gap) FROM (SELECT at - lag(at) OVER (ORDER BY at) AS gap FROM effects WHERE what LIKE 'slow%') AS gaps",
        &[],
    );
    assert!(longest < NOTICED.as_secs_f64(), "{longest} s");
    // and nobody is kept busy by it
    let launcher = wait_for_launcher(&mut client, 0);
    wait_no_workers(&mut client, PATIENCE);
    wait_quiet(launcher);
}

/// The launcher sleeps until the task is due, and nobody wakes it.
#[test]
fn what_is_due_after_the_clock_was_set_forth_starts_by_itself() {
    let (server, clock) = start(builder());
    let mut client = server.superuser();
    let id: i64 = scalar(
        &mut client,
        "SELECT pg_background_queue_enqueue($1, run_at => now() + interval '30 minutes')",
        &[&effect("scheduled")],
    );
    let launcher = wait_for_launcher(&mut client, 0);
    wait_no_workers(&mut client, PATIENCE);
    wait_quiet(launcher);
    assert_eq!(task(&mut client, id).state, "pending");
    let begin = now(&mut client);
    clock.set(HOUR);
    wait_state(&mut client, id, "finished");
    let took = at(&mut client, "scheduled") - begin;
    eprintln!("set forth: {took} s");
    assert!(took < NOTICED.as_secs_f64(), "{took} s");
    let log = server.log();
    assert!(log.contains("the clock was set forth by"), "{log}");
}

/// What was to be after a while is after that while, once again at most.
#[test]
fn a_clock_that_is_set_back_makes_nobody_wait_for_it() {
    let builder = builder()
        .conf(
            "pg_background_queue.topic_config",
            r#"{"slow": {"max_parallel_running_tasks_count": 1, "delay_in_sec": 3}}"#,
        )
        .conf("pg_background_queue.max_parallel_running_tasks_count", "2");
    let (server, clock) = start(builder);
    let mut client = server.superuser();
    create_role(&mut client, "carl");
    run(
        &mut client,
        "ALTER ROLE carl SET session_preload_libraries = 'no_such_library'",
    );
    let mut alice = server.connect("alice", "postgres");
    let mut bob = server.connect("bob", "postgres");
    let begin = now(&mut client);
    // a delay
    enqueue_topic(&mut alice, &effect("slow"), "slow");
    // a process that cannot start is started again after a while
    let failing: i64 = {
        run(&mut client, "SET ROLE carl");
        let id = enqueue(&mut client, &effect("failing"));
        run(&mut client, "RESET ROLE");
        id
    };
    wait_for("three starts that fail", PATIENCE, || {
        (server.log().matches("no_such_library").count() >= 3).then_some(())
    });
    clock.set(-HOUR);
    run(
        &mut client,
        "ALTER ROLE carl RESET session_preload_libraries",
    );
    wait_state(&mut client, failing, "finished");
    for what in ["slow", "failing"] {
        wait_for(what, PATIENCE, || {
            let done: bool = scalar(
                &mut client,
                "SELECT EXISTS (SELECT FROM effects WHERE what = $1)",
                &[&what],
            );
            done.then_some(())
        });
        let took = at(&mut client, what) - begin;
        eprintln!("set back, {what}: {took} s");
        assert!(took < 2.0 * 3.0 + NOTICED.as_secs_f64(), "{what}: {took} s");
    }

    // a role that is served has its turn, and no more
    run(
        &mut client,
        "ALTER SYSTEM SET pg_background_queue.max_parallel_running_tasks_count = 1",
    );
    server.reload();
    run(
        &mut alice,
        "SELECT count(pg_background_queue_enqueue('SELECT count(*) FROM generate_series(1, 20000)')) FROM generate_series(1, 20000)",
    );
    wait_for("alice's tasks to run", PATIENCE, || {
        let done: bool = scalar(
            &mut client,
            "SELECT count(*) > 10 FROM pg_background_tasks WHERE role_name = 'alice' AND state = 'finished'",
            &[],
        );
        done.then_some(())
    });
    clock.set(-3 * HOUR);
    let begin = Instant::now();
    let id = enqueue(&mut bob, "SELECT 1");
    wait_state(&mut client, id, "finished");
    let took = begin.elapsed();
    let left: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE state IN ('pending', 'running')",
        &[],
    );
    eprintln!("set back, another role's turn: {took:?}, {left} tasks of the first are left");
    assert!(left > 0 && took < NOTICED, "{took:?}, {left}");
}
