//! One run: a server, the load, the faults, the judgement.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use postgres::Client;

use super::inject::{
    IDLE_TIMEOUT, Injector, LIMIT, MOST_RUNNING, SCRATCH, STEADY, TOPIC_CONFIG, TOPICS,
};
use super::judge::{Account, Found, Verdict, judge, judge_log};
use super::kinds::Mix;
use super::ledger::Ledger;
use super::load::{Kind, Loader, prepare_database};
use crate::harness::{
    Connector, PATIENCE, Server, run, scalar, wait_no_workers, wait_until, worker_count,
};

/// How long after the last fault all tasks must have come to their end. There is a backlog, on a shared machine.
const DEADLINE: Duration = Duration::from_secs(180);

/// What a run is made of.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    pub mix: Mix,
    pub faults: usize,
}

/// What it came to.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    pub runs: u64,
    pub faults: BTreeMap<&'static str, u64>,
    pub states: BTreeMap<String, u64>,
    pub acknowledged: u64,
    pub interruptions: u64,
    pub verdict: Verdict,
}

impl Totals {
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        for (name, count) in &other.faults {
            *self.faults.entry(name).or_default() += count;
        }
        for (name, count) in &other.states {
            *self.states.entry(name.clone()).or_default() += count;
        }
        self.acknowledged += other.acknowledged;
        self.interruptions += other.interruptions;
        let (mine, theirs) = (&mut self.verdict, &other.verdict);
        mine.complaints.extend_from_slice(&theirs.complaints);
        mine.lost_tasks += theirs.lost_tasks;
        mine.lost_effects += theirs.lost_effects;
        mine.doubled_effects += theirs.doubled_effects;
        mine.ordered += theirs.ordered;
        mine.delayed += theirs.delayed;
        mine.at_once = mine.at_once.max(theirs.at_once);
    }

    /// For people.
    pub fn print(&self) {
        println!("runs: {}", self.runs);
        println!("faults: {}", self.faults.values().sum::<u64>());
        for (name, count) in &self.faults {
            println!("    {name}: {count}");
        }
        println!("tasks: {}", self.states.values().sum::<u64>());
        for (state, count) in &self.states {
            println!("    {state}: {count}");
        }
        println!("enqueueings acknowledged: {}", self.acknowledged);
        println!("interruptions of tasks by crashes: {}", self.interruptions);
        let verdict = &self.verdict;
        println!("pairs whose order was checked: {}", verdict.ordered);
        println!("delayed starts checked: {}", verdict.delayed);
        println!("most tasks at a time: {}", verdict.at_once);
        println!("tasks lost: {}", verdict.lost_tasks);
        println!("effects lost: {}", verdict.lost_effects);
        println!("effects doubled: {}", verdict.doubled_effects);
    }
}

/// A server for a run, with roles and databases.
pub fn server() -> Server {
    let server = Server::builder()
        .conf(LIMIT, &MOST_RUNNING.to_string())
        .conf(IDLE_TIMEOUT, "500ms")
        .conf(TOPIC_CONFIG, &format!("{{{TOPICS}}}"))
        .conf("pg_background_queue.max_retry_delay", "1s")
        .conf("max_worker_processes", "8")
        .conf("max_connections", "25")
        .conf("max_stack_depth", "1MB")
        .conf("work_mem", "64kB")
        .conf("temp_file_limit", "1MB")
        .conf("autovacuum_naptime", "1s")
        .conf("log_line_prefix", "%m [%p] %b %u@%d %e ")
        .expect_crash()
        .start();
    let mut client = server.superuser();
    // bob's tasks do not wait for their commits to be flushed
    run(
        &mut client,
        "CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; ALTER ROLE bob SET synchronous_commit = off",
    );
    run(&mut client, "CREATE DATABASE shop");
    prepare_database(&mut client);
    prepare_database(&mut server.connect("postgres", "shop"));
    server
}

/// Makes a run, adds what it came to to the totals, and panics if anything was wrong.
pub fn make(plan: Plan, totals: &mut Totals) {
    let Plan { seed, mix, faults } = plan;
    eprintln!("PGBQ_SEED={seed} ({mix:?}, {faults} faults)");
    let mut server = server();
    let ledger = Ledger::default();
    let mut random = Rng::with_seed(seed);
    let with_scratch = mix != Mix::WalCuts;
    let mut sessions = vec![
        ("postgres", "postgres"),
        ("alice", "postgres"),
        ("bob", "postgres"),
        ("alice", "shop"),
        ("bob", "shop"),
    ];
    if with_scratch {
        sessions.push(("bob", SCRATCH));
    }
    under_load(
        &server.connector(),
        &sessions,
        &ledger,
        random.fork(),
        || {
            let mut injector = Injector {
                server: &mut server,
                ledger: &ledger,
                random: random.fork(),
            };
            if with_scratch {
                injector.create_scratch();
            }
            for _ in 0..faults {
                // the moment is what is at random here
                thread::sleep(Duration::from_millis(random.u64(0..1500)));
                injector.make(mix.choose(&mut random));
            }
            injector.restore_configuration();
            if with_scratch {
                injector.mend_scratch();
            }
        },
    );

    let complaints = wait_for_the_end(&server, with_scratch);
    let account = account(&server, &ledger, &databases(with_scratch));
    let mut verdict = judge(&account);
    verdict.complaints.extend(complaints);
    verdict.complaints.extend(ledger.complaints());
    verdict
        .complaints
        .extend(judge_log(&server.log(), &ledger.all_killed(), SCRATCH));
    let mut mine = Totals {
        runs: 1,
        faults: ledger.faults(),
        acknowledged: u64::try_from(account.sent.len()).expect("few"),
        verdict,
        ..Totals::default()
    };
    for task in &account.found {
        *mine.states.entry(task.state.clone()).or_default() += 1;
        mine.interruptions += u64::try_from(task.interruptions).expect("not negative");
    }
    totals.add(&mine);
    assert!(
        mine.verdict.complaints.is_empty(),
        "PGBQ_SEED={seed}:\n{}",
        mine.verdict.complaints.join("\n")
    );
    check_counts(&mut server.superuser());
}

/// Does something while sessions of these roles to these databases enqueue tasks.
pub fn under_load<T>(
    connector: &Connector,
    sessions: &[(&str, &str)],
    ledger: &Ledger,
    mut random: Rng,
    what: impl FnOnce() -> T,
) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for &(role, database) in sessions {
            let loader = Loader {
                connector: connector.clone(),
                role,
                database,
                is_scratch: database == SCRATCH,
                ledger,
                random: random.fork(),
            };
            scope.spawn(|| loader.run(&stop));
        }
        // also if it panics, or the load would go on for ever
        let _stop = StopAtEnd(&stop);
        what()
    })
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn databases(with_scratch: bool) -> Vec<&'static str> {
    let mut databases = STEADY.to_vec();
    if with_scratch {
        databases.push(SCRATCH);
    }
    databases
}

/// Waits until all tasks have ended; complains if they do not.
fn wait_for_the_end(server: &Server, with_scratch: bool) -> Vec<String> {
    let begin = Instant::now();
    let mut complaints = Vec::new();
    for database in databases(with_scratch) {
        let mut client = server.connect("postgres", database);
        let mut open = -1_i64;
        wait_until_or(DEADLINE.saturating_sub(begin.elapsed()), || {
            open = scalar(
                &mut client,
                "SELECT count(*) FROM pg_background_tasks WHERE closed_at IS NULL",
                &[],
            );
            open == 0
        });
        if open != 0 {
            complaints.push(format!("{open} tasks of {database} are stuck"));
        }
    }
    complaints
}

fn wait_until_or(deadline: Duration, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    crate::harness::wait_for("an end", deadline + PATIENCE, || {
        (condition() || begin.elapsed() > deadline).then_some(())
    });
}

/// The counts are true, and nobody is left over when there is nothing to do.
fn check_counts(client: &mut Client) {
    let counts = |client: &mut Client| -> (i32, i32) {
        (
            scalar(
                client,
                "SELECT pg_background_queue_active_workers_count()",
                &[],
            ),
            scalar(
                client,
                "SELECT pg_background_queue_calibrate_workers_count()",
                &[],
            ),
        )
    };
    wait_until("the counts to be those of the processes", || {
        let processes = i32::try_from(worker_count(client)).expect("few");
        counts(client) == (processes, processes)
    });
    wait_no_workers(client, PATIENCE);
    assert_eq!(counts(client), (0, 0));
}

/// All that is known in the end.
pub fn account(server: &Server, ledger: &Ledger, databases: &[&str]) -> Account {
    let faults = ledger.faults();
    let count = |names: &[&str]| -> u64 { names.iter().filter_map(|name| faults.get(name)).sum() };
    let mut account = Account {
        sent: ledger.all_sent(),
        disturbances: ledger.disturbances(),
        scratch: SCRATCH.to_owned(),
        most_running: MOST_RUNNING,
        crashes: faults
            .iter()
            .filter(|(name, _)| {
                name.starts_with("kill") || name.starts_with("SIG") || name.contains("stop")
            })
            .map(|(_, count)| count)
            .sum(),
        terminations: count(&["pg_terminate_backend of a worker"]),
        cancels: count(&["pg_cancel_backend of a worker"]),
        ..Account::default()
    };
    for &database in databases {
        let mut client = server.connect("postgres", database);
        account.found.extend(found(&mut client, database));
        let rows = client
            .query(
                "SELECT n, count(*) FROM effects WHERE n NOT IN \
                 (SELECT substring(sql_statement FROM '^/\\* ([0-9]+)')::bigint FROM pg_background_tasks) GROUP BY n",
                &[],
            )
            .expect("effects");
        let strays = rows
            .iter()
            .map(|row| (database.to_owned(), row.get(0), row.get(1)));
        account.strays.extend(strays);
    }
    account
}

fn found(client: &mut Client, database: &str) -> Vec<Found> {
    let micros = |column: &str| format!("(extract(epoch FROM {column}) * 1000000)::bigint");
    let query = format!(
        "SELECT id, marker::bigint, kind, role_name::text, state::text, priority, attempt, interruptions, \
           {}, {}, {}, coalesce(errors, ''), \
           (SELECT count(*) FROM effects WHERE n = marker::bigint), \
           (SELECT count(*) FROM steps_begun WHERE n = marker::bigint) \
         FROM pg_background_tasks, regexp_match(sql_statement, '^/\\* ([0-9]+) ([a-z]+) ') AS head, \
           LATERAL (SELECT head[1] AS marker, head[2] AS kind) AS parts ORDER BY id",
        micros("joined_at"),
        micros("started_at"),
        micros("closed_at")
    );
    run(
        client,
        "CREATE INDEX IF NOT EXISTS effects_n ON effects (n); \
         CREATE INDEX IF NOT EXISTS steps_n ON steps_begun (n); ANALYZE effects, steps_begun",
    );
    let rows = client.query(&query, &[]).expect("the tasks");
    rows.iter()
        .map(|row| Found {
            database: database.to_owned(),
            id: row.get(0),
            marker: row.get(1),
            kind: Kind::of_name(row.get(2)).expect("a kind of ours"),
            role: row.get(3),
            state: row.get(4),
            priority: row.get(5),
            attempt: row.get(6),
            interruptions: row.get(7),
            joined: row.get(8),
            started: row.get(9),
            closed: row.get(10),
            errors: row.get(11),
            effects: row.get(12),
            begun: row.get(13),
        })
        .collect()
}
