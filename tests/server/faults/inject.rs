//! Makes the faults.

use std::fs;
use std::thread;
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use postgres::Client;

use super::kinds::Fault;
use super::ledger::Ledger;
use super::load::{Kind, Loader, prepare_database};
use crate::harness::{PATIENCE, Server, Stop, is_alive, kill, run, wait_for, wait_until};

pub const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";
pub const IDLE_TIMEOUT: &str = "pg_background_queue.worker_idle_timeout";
pub const TOPIC_CONFIG: &str = "pg_background_queue.topic_config";

/// The most tasks that any configuration allows at a time.
pub const MOST_RUNNING: usize = 4;

/// What `topic_config` says in all configurations that differ in what else they say.
pub const TOPICS: &str = r#""one": {"max_parallel_running_tasks_count": 1}, "two": {"max_parallel_running_tasks_count": 2}, "delayed": {"max_parallel_running_tasks_count": 2, "delay_in_sec": 1}, "relaxed": {"durability": "relaxed"}"#;

/// The databases whose tasks nobody takes away.
pub const STEADY: [&str; 2] = ["postgres", "shop"];

/// The one that is dropped again and again.
pub const SCRATCH: &str = "scratch";

pub struct Injector<'a> {
    pub server: &'a mut Server,
    pub ledger: &'a Ledger,
    pub random: Rng,
}

impl Injector<'_> {
    /// Makes a fault, and waits until the server takes connections again. What finds nothing to hit is not counted.
    pub fn make(&mut self, fault: Fault) {
        let began = SystemTime::now();
        if self.try_make(fault) {
            self.ledger.count(fault.name());
        }
        self.ledger.disturbed(began);
    }

    fn try_make(&mut self, fault: Fault) -> bool {
        const WORKER: &str = "pg_background_queue worker";
        const LAUNCHER: &str = "pg_background_queue launcher";
        match fault {
            Fault::KillWorker => self.kill(WORKER, libc::SIGKILL),
            Fault::SegvWorker => self.kill(WORKER, libc::SIGSEGV),
            Fault::KillLauncher => self.kill(LAUNCHER, libc::SIGKILL),
            Fault::KillCheckpointer => self.kill("checkpointer", libc::SIGKILL),
            Fault::KillWalWriter => self.kill("walwriter", libc::SIGKILL),
            Fault::KillClient => self.kill("client backend", libc::SIGKILL),
            Fault::KillKeeper => self.with_keeper(|injector, _, pid| {
                let session = injector.server.superuser();
                injector.end(session, pid, libc::SIGKILL)
            }),
            Fault::KillPostmaster => {
                self.server.kill9_postmaster();
                self.start()
            }
            Fault::PowerLoss => {
                self.server.kill9_all();
                self.start()
            }
            Fault::StopImmediate => {
                self.server.stop(Stop::Immediate);
                self.start()
            }
            Fault::StopFast => {
                self.server.stop(Stop::Fast);
                self.start()
            }
            Fault::TerminateWorker => self.signal("pg_terminate_backend", WORKER),
            Fault::TerminateLauncher => self.signal("pg_terminate_backend", LAUNCHER),
            Fault::TerminateClient => self.signal("pg_terminate_backend", "client backend"),
            Fault::CancelWorker => self.signal("pg_cancel_backend", WORKER),
            Fault::CancelLauncher => self.signal("pg_cancel_backend", LAUNCHER),
            Fault::TerminateKeeper => self.with_keeper(|_, client, pid| {
                run(client, &format!("SELECT pg_terminate_backend({pid})"));
                true
            }),
            Fault::CancelKeeper => self.with_keeper(|_, client, pid| {
                run(client, &format!("SELECT pg_cancel_backend({pid})"));
                true
            }),
            Fault::WorkerSlots => self.take_worker_slots(),
            Fault::Connections => self.take_connections(),
            Fault::Reload => self.reload(),
            Fault::BadReload => {
                self.server.set_conf(TOPIC_CONFIG, "{\"one\": 1");
                self.server.reload();
                self.moment();
                self.reload()
            }
            Fault::Pause => {
                self.server.set_conf(LIMIT, "0");
                self.server.reload();
                self.moment();
                self.reload()
            }
            Fault::AlterRole => {
                let kilobytes = self.random.u32(100..1000);
                self.by_dba(&[&format!("ALTER ROLE alice SET work_mem = {kilobytes}")])
            }
            Fault::LockTable => self.by_dba(&["BEGIN; LOCK TABLE pg_background_tasks", "COMMIT"]),
            Fault::LockRows => self.by_dba(&[
                "BEGIN; SELECT FROM pg_background_tasks WHERE closed_at IS NULL ORDER BY random() LIMIT 5 FOR UPDATE",
                "COMMIT",
            ]),
            Fault::VacuumFull => self.by_dba(&["VACUUM FULL pg_background_tasks"]),
            Fault::Reindex => self.by_dba(&["REINDEX TABLE CONCURRENTLY pg_background_tasks"]),
            Fault::Checkpoint => self.by_dba(&["CHECKPOINT"]),
            Fault::Calibrate => self.by_dba(&[
                "SELECT pg_background_queue_calibrate_workers_count(), pg_background_queue_ensure_workers()",
            ]),
            Fault::Truncate => self.in_scratch(&["TRUNCATE pg_background_tasks RESTART IDENTITY"]),
            Fault::DropExtension => {
                let dropped = self.in_scratch(&["DROP EXTENSION pg_background_queue CASCADE"]);
                self.mend_scratch();
                dropped
            }
            Fault::DropDatabase => self.drop_database(),
            Fault::DropRole => self.drop_role(),
        }
    }

    /// Some time in which things go on; how much is the server's business, as the moment of a fault is.
    fn moment(&mut self) {
        thread::sleep(Duration::from_millis(self.random.u64(10..500)));
    }

    fn start(&mut self) -> bool {
        self.moment();
        self.server.start();
        true
    }

    /// A process of this kind, any but the one of `client`.
    fn pid_of(&mut self, client: &mut Client, kind: &str) -> Option<i32> {
        let rows = client
            .query(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = $1 AND pid <> pg_backend_pid() ORDER BY pid",
                &[&kind],
            )
            .expect("pg_stat_activity");
        let row = rows.get(self.random.usize(..rows.len().max(1)))?;
        Some(row.get(0))
    }

    fn kill(&mut self, kind: &str, signal: i32) -> bool {
        let mut client = self.server.superuser();
        match self.pid_of(&mut client, kind) {
            Some(pid) => self.end(client, pid, signal),
            None => false,
        }
    }

    /// Kills a process, and waits until the server has noticed, which ends the session, and is back.
    fn end(&mut self, mut session: Client, pid: i32, signal: i32) -> bool {
        // stopped first: one that is about to exit by itself would be no crash
        kill(pid, libc::SIGSTOP);
        wait_until("the process to stop", || {
            !is_alive(pid) || state(pid) == Some('T')
        });
        if !is_alive(pid) {
            return false;
        }
        self.ledger.killed(pid);
        kill(pid, signal);
        kill(pid, libc::SIGCONT);
        wait_until("the crash to end the session", || {
            session.query("SELECT 1", &[]).is_err()
        });
        self.server.wait_ready();
        true
    }

    fn signal(&mut self, function: &str, kind: &str) -> bool {
        let mut client = self.server.superuser();
        let Some(pid) = self.pid_of(&mut client, kind) else {
            return false;
        };
        run(&mut client, &format!("SELECT {function}({pid})"));
        true
    }

    /// Keepers live for milliseconds: has one wait for a locked table.
    fn with_keeper(&mut self, what: impl FnOnce(&mut Self, &mut Client, i32) -> bool) -> bool {
        let database = STEADY[self.random.usize(..STEADY.len())];
        let mut locker = self.server.connect("postgres", database);
        let mut client = self.server.connect("postgres", database);
        run(&mut locker, "BEGIN; LOCK TABLE pg_background_tasks");
        run(&mut client, "SELECT pg_background_queue_ensure_workers()");
        let deadline = SystemTime::now() + Duration::from_secs(3);
        let pid = wait_for("a keeper", PATIENCE, || {
            // it may have been turned away for want of a slot, and is asked for again later
            let late = SystemTime::now() > deadline;
            let pid = self.pid_of(&mut client, "pg_background_queue keeper");
            (pid.is_some() || late).then_some(pid)
        });
        match pid {
            Some(pid) => what(self, &mut client, pid),
            None => false,
        }
    }

    fn take_worker_slots(&mut self) -> bool {
        let connector = self.server.connector();
        let seconds = self.random.f64();
        let mut client = self.server.superuser();
        let version: i32 = client
            .query_one("SELECT current_setting('server_version_num')::int", &[])
            .expect("a version")
            .get(0);
        let force = if version < 160_000 {
            "force_parallel_mode"
        } else {
            "debug_parallel_query"
        };
        thread::scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| {
                    if let Ok(mut client) = connector.try_connect("postgres", "postgres") {
                        run(
                            &mut client,
                            &format!("SET {force} = on; SELECT pg_sleep({seconds})"),
                        );
                    }
                });
            }
        });
        true
    }

    fn take_connections(&mut self) -> bool {
        let connector = self.server.connector();
        let mut taken = Vec::new();
        while let Ok(client) = connector.try_connect("alice", "postgres") {
            taken.push(client);
        }
        self.moment();
        !taken.is_empty()
    }

    /// A configuration at random. The topics of the load keep their limits.
    fn reload(&mut self) -> bool {
        let limit = self.random.usize(1..=MOST_RUNNING);
        let timeout = self.random.u32(0..3000);
        let other = self.random.u32(1..100);
        self.server.set_conf(LIMIT, &limit.to_string());
        self.server.set_conf(IDLE_TIMEOUT, &format!("{timeout}ms"));
        self.server.set_conf(
            TOPIC_CONFIG,
            &format!("{{{TOPICS}, \"other\": {{\"priority\": {other}}}}}"),
        );
        self.server.reload();
        true
    }

    /// The configuration in which a run begins and ends.
    pub fn restore_configuration(&mut self) {
        self.server.set_conf(LIMIT, &MOST_RUNNING.to_string());
        self.server.set_conf(IDLE_TIMEOUT, "500ms");
        self.server.set_conf(TOPIC_CONFIG, &format!("{{{TOPICS}}}"));
        self.server.reload();
    }

    /// Statements in a session to one of the steady databases, with a moment between them.
    fn by_dba(&mut self, statements: &[&str]) -> bool {
        let database = STEADY[self.random.usize(..STEADY.len())];
        let mut client = self.server.connect("postgres", database);
        for (i, statement) in statements.iter().enumerate() {
            if i > 0 {
                self.moment();
            }
            if let Err(error) = client.batch_execute(statement) {
                self.ledger
                    .complain(format!("{statement} in {database}: {error:?}"));
                return false;
            }
        }
        true
    }

    /// The same in the scratch database, where it may fail: e.g. as the victim of a deadlock with a task.
    fn in_scratch(&mut self, statements: &[&str]) -> bool {
        let Ok(mut client) = self.server.connector().try_connect("postgres", SCRATCH) else {
            return false;
        };
        statements
            .iter()
            .all(|statement| client.batch_execute(statement).is_ok())
    }

    /// Sees to it that there is an extension.
    pub fn mend_scratch(&mut self) {
        wait_until("CREATE EXTENSION", || {
            self.in_scratch(&[
                "CREATE EXTENSION IF NOT EXISTS pg_background_queue",
                "GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO PUBLIC",
            ])
        });
    }

    fn drop_database(&mut self) -> bool {
        let mut client = self.server.superuser();
        // sessions of the load come again and again
        wait_until("DROP DATABASE", || {
            client
                .batch_execute(&format!("DROP DATABASE IF EXISTS {SCRATCH} WITH (FORCE)"))
                .is_ok()
        });
        self.moment();
        self.create_scratch();
        true
    }

    pub fn create_scratch(&mut self) {
        let mut client = self.server.superuser();
        // a keeper may be visiting the template
        wait_until("CREATE DATABASE", || {
            client
                .batch_execute(&format!("CREATE DATABASE {SCRATCH}"))
                .is_ok()
        });
        prepare_database(&mut self.server.connect("postgres", SCRATCH));
    }

    /// A role is dropped while it has tasks.
    fn drop_role(&mut self) -> bool {
        let name = format!("passing_{}", self.ledger.marker());
        let mut admin = self.server.superuser();
        run(&mut admin, &format!("CREATE ROLE {name} LOGIN"));
        let connector = self.server.connector();
        if let Ok(mut client) = connector.try_connect(&name, SCRATCH) {
            let mut loader = Loader {
                connector,
                role: &name,
                database: SCRATCH,
                is_scratch: true,
                ledger: self.ledger,
                random: self.random.fork(),
            };
            for _ in 0..6 {
                // it may be without its extension
                let _ = loader.enqueue(&mut client, false, Kind::Slow);
            }
            self.moment();
        }
        // the session of a worker is no dependency
        run(&mut admin, &format!("DROP ROLE {name}"));
        true
    }
}

/// The state of a process, as the kernel has it.
fn state(pid: i32) -> Option<char> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("State:"))?;
    line["State:".len()..].trim().chars().next()
}
