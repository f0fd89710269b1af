//! A process dies at each named place between the enqueueing of a task and its end (src/pg/crash_point.rs, in the build for
//! tests): the server goes down there, and each transactional task has had its effect exactly once.

use std::fs;

use tempfile::TempDir;

use crate::faults::{Kind, Ledger, Loader, account, judge, prepare_database};
use crate::harness::{
    PATIENCE, Server, Stop, enqueue, kill, run, scalar, wait_all_closed, wait_no_workers,
    wait_state, wait_until, workers,
};
use crate::safe_layer::library_dir;

const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";
const TOPIC_CONFIG: &str = "pg_background_queue.topic_config";
const IDLE_TIMEOUT: &str = "pg_background_queue.worker_idle_timeout";

/// What it takes to come by a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Tasks are enqueued and do what they must.
    Succeed,
    /// So many are there at once that a worker goes from one to the next.
    Queue,
    /// The same of a topic whose tasks share commits, some of which fail or must be alone.
    Batch,
    /// Tasks are enqueued and fail.
    Fail,
    /// A worker has been terminated in the middle of its task.
    Terminate,
    /// The server went down before, in the middle of a task.
    Crash,
}

const ENQUEUEING: &[(&str, Way)] = &[
    ("an enqueueing is committed", Way::Succeed),
    ("a slot is reserved", Way::Succeed),
    ("a process is asked for", Way::Succeed),
    ("a process is connected", Way::Succeed),
    ("a process leaves", Way::Succeed),
];

const CLAIMING: &[(&str, Way)] = &[
    // those that are run again wait for their time
    ("due tasks are let in", Way::Fail),
    ("a letting in is committed", Way::Fail),
    ("a slot is taken", Way::Succeed),
    ("a claim is made", Way::Succeed),
    ("a claim is committed", Way::Succeed),
    ("a text is about to run", Way::Succeed),
];

const ENDING: &[(&str, Way)] = &[
    ("a text has run", Way::Succeed),
    ("a finish mark is made", Way::Succeed),
    ("a next claim is made", Way::Queue),
    ("a next task is begun", Way::Queue),
    ("a text is over", Way::Succeed),
    ("a text has failed", Way::Fail),
    ("a failure mark is made", Way::Fail),
    ("a failure mark is committed", Way::Fail),
    ("a session is reset", Way::Succeed),
    ("a slot is about to be given back", Way::Succeed),
];

const BATCHES: &[(&str, Way)] = &[
    ("a text of a batch is about to run", Way::Batch),
    ("a text of a batch has run", Way::Batch),
    ("a text of a batch has failed", Way::Batch),
    ("a batch is about to commit", Way::Batch),
    ("a batch is over", Way::Batch),
    ("what is left of a batch is put back", Way::Batch),
];

const RECOVERY: &[(&str, Way)] = &[
    ("tasks are reopened", Way::Crash),
    ("a reopening is committed", Way::Crash),
    ("an orphan is marked", Way::Terminate),
    ("an orphan's mark is committed", Way::Terminate),
];

/// A server that runs the build for tests.
struct Fixture {
    server: Server,
    /// After the server.
    _library: TempDir,
}

impl Fixture {
    fn start() -> Self {
        let mut server = Server::builder()
            .conf(LIMIT, "3")
            .conf(IDLE_TIMEOUT, "200ms")
            .conf("pg_background_queue.max_retry_delay", "1s")
            .conf(TOPIC_CONFIG, r#"{"batch": {"commit_batch": 5}}"#)
            .expect_crash()
            .start();
        let mut client = server.superuser();
        prepare_database(&mut client);
        run(
            &mut client,
            "CREATE ROLE bob LOGIN; ALTER ROLE bob SET synchronous_commit = off; \
             CREATE TABLE enough (); GRANT SELECT ON enough TO bob",
        );
        // CREATE EXTENSION names the installed library by its path; from here on the server loads what it finds by its name
        run(
            &mut client,
            "UPDATE pg_proc SET probin = 'pg_background_queue' WHERE probin = '$libdir/pg_background_queue'",
        );
        drop(client);
        server.stop(Stop::Fast);
        let library = library_dir();
        let path = library.path().to_str().expect("a path in UTF-8").to_owned();
        // from 18 on it is where plpgsql is found, too
        server.set_conf("dynamic_library_path", &format!("{path}:$libdir"));
        server.start();
        Self {
            server,
            _library: library,
        }
    }

    fn file(&self) -> std::path::PathBuf {
        self.server.data_dir().join("pgbq_crash_point")
    }

    /// From now on the first process that comes by dies.
    fn arm(&self, point: &str) {
        // the server's user removes it, which is a matter of its directory
        let ready = self.file().with_extension("new");
        fs::write(&ready, point).expect("write the file");
        fs::rename(&ready, self.file()).expect("rename the file");
    }

    /// Waits until somebody has died there, as the last of so many, and the server is back.
    fn wait_crashed(&mut self, point: &str, mark: usize, deaths: usize) {
        wait_until(&format!("a process to come to where {point}"), || {
            !self.file().exists()
        });
        // from then on it takes no connections until it is back
        wait_until("the server to notice", || {
            let log = self.server.log_since(mark);
            log.matches("was terminated by signal 9").count() == deaths
        });
        self.server.wait_ready();
    }
}

/// A task that is there to be cut off, and ends when it runs again.
const LONG: &str = "SELECT pg_sleep(3600) WHERE NOT EXISTS (SELECT FROM enough)";

/// Brings processes by the place, with tasks of the loader's role.
fn come_by(fixture: &mut Fixture, point: &str, way: Way, loader: &mut Loader<'_>) {
    let mut client = fixture.server.connect(loader.role, "postgres");
    let mut admin = fixture.server.superuser();
    // what is acknowledged is durable, whatever the role's tasks are
    run(&mut client, "SET synchronous_commit = on");
    // the last tasks' workers would be of use to the next ones
    wait_no_workers(&mut admin, PATIENCE);
    let mark = fixture.server.log_mark();
    match way {
        Way::Succeed | Way::Fail => {
            fixture.arm(point);
            // what matters comes by first: it is a commit that may be torn
            let kinds = if way == Way::Succeed {
                [Kind::Insert, Kind::Slow, Kind::Parent, Kind::Steps]
            } else {
                [Kind::Fails, Kind::Flaky, Kind::Flaky, Kind::Fails]
            };
            for kind in kinds {
                // the session ends with the server
                if loader.enqueue(&mut client, true, kind).is_err() {
                    break;
                }
            }
        }
        Way::Queue | Way::Batch => {
            fixture.arm(point);
            let kinds = if way == Way::Queue {
                [Kind::Insert; 5]
            } else {
                [
                    Kind::Batch,
                    Kind::Batch,
                    Kind::Fails,
                    Kind::Batch,
                    Kind::Vacuum,
                ]
            };
            run(&mut client, "BEGIN");
            for kind in kinds.into_iter().cycle().take(40) {
                let enqueued = loader.enqueue(&mut client, true, kind);
                enqueued.expect("enqueue");
            }
            // from then on they are there, whether the session lives to hear of it or not
            let _ = client.batch_execute("COMMIT");
        }
        Way::Terminate | Way::Crash => {
            run(&mut admin, "TRUNCATE enough");
            let id = enqueue(&mut client, LONG);
            let name = format!("pg_background_queue task {id}");
            wait_state(&mut client, id, "running");
            for kind in [Kind::Insert, Kind::Parent, Kind::Slow] {
                loader.enqueue(&mut client, true, kind).expect("enqueue");
            }
            let mut pid = 0;
            wait_until("the task to be at work", || {
                pid = workers(&mut admin)
                    .iter()
                    .find(|worker| worker.application_name == name)
                    .map_or(0, |worker| worker.pid);
                pid != 0
            });
            // what runs again must come to an end; and this commit makes the claim durable
            run(&mut admin, "INSERT INTO enough DEFAULT VALUES");
            fixture.arm(point);
            if way == Way::Terminate {
                // the server can be down before it answers
                let _ = admin.batch_execute(&format!("SELECT pg_terminate_backend({pid})"));
            } else {
                kill(pid, libc::SIGKILL);
            }
        }
    }
    let deaths = if way == Way::Crash { 2 } else { 1 };
    fixture.wait_crashed(point, mark, deaths);
}

/// Has the server go down at each of these places: with tasks whose commits are flushed, and with such that do not wait for that.
fn crash_at(points: &[(&str, Way)]) {
    let mut fixture = Fixture::start();
    let ledger = Ledger::default();
    let mut loader = Loader {
        connector: fixture.server.connector(),
        role: "postgres",
        database: "postgres",
        is_scratch: false,
        ledger: &ledger,
        random: fastrand::Rng::with_seed(7),
    };
    let mut crashes = 0;
    let both =
        ["postgres", "bob"].map(|role| points.iter().map(move |&(point, way)| (role, point, way)));
    for (role, point, way) in both.into_iter().flatten() {
        loader.role = role;
        come_by(&mut fixture, point, way, &mut loader);
        crashes += 1;
        let mut client = fixture.server.superuser();
        wait_all_closed(&mut client, PATIENCE);
        run(
            &mut client,
            "DELETE FROM pg_background_tasks WHERE sql_statement LIKE '%enough%'",
        );
        let mut account = account(&fixture.server, &ledger, &["postgres"]);
        account.crashes = crashes;
        let verdict = judge(&account);
        assert_eq!(verdict.complaints, [""; 0], "where {point}, as {role}");
    }
    let finished: i64 = scalar(
        &mut fixture.server.superuser(),
        "SELECT count(*) FROM pg_background_tasks WHERE state = 'finished'",
        &[],
    );
    assert!(finished > 0);
}

#[test]
fn the_server_goes_down_while_tasks_are_enqueued_and_workers_start() {
    crash_at(ENQUEUEING);
}

#[test]
fn the_server_goes_down_while_tasks_are_claimed() {
    crash_at(CLAIMING);
}

#[test]
fn the_server_goes_down_while_tasks_end() {
    crash_at(ENDING);
}

#[test]
fn the_server_goes_down_while_tasks_share_a_commit() {
    crash_at(BATCHES);
}

#[test]
fn the_server_goes_down_while_keepers_clear_away_what_is_left() {
    crash_at(RECOVERY);
}

/// A place that is in the source and in no test, or the other way round, is a mistake.
#[test]
fn all_places_are_tested() {
    let mut named = Vec::new();
    let mut left = ["src/queue", "src/pg/bgworker/pool"]
        .map(|place| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(place))
        .to_vec();
    while let Some(directory) = left.pop() {
        for file in fs::read_dir(directory).expect("a directory") {
            let path = file.expect("a file").path();
            if path.is_dir() {
                left.push(path);
                continue;
            }
            let text = fs::read_to_string(path).expect("a text");
            let places = text.split("crash_point(\"").skip(1);
            named.extend(places.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
        }
    }
    named.sort_unstable();
    named.dedup();
    let mut tested: Vec<String> = [ENQUEUEING, CLAIMING, ENDING, BATCHES, RECOVERY]
        .concat()
        .iter()
        .map(|(point, _)| (*point).to_owned())
        .collect();
    tested.sort_unstable();
    assert_eq!(named, tested);
}
