//! The safe layer (src/pg) in a real server: errors and panics on their way to the client, locks, memory,
//! transactions, and the worker kit. Through the functions of src/test_surface, which only the build with the cargo
//! feature `pg_test` has: `PGBQ_TEST_LIBRARY` names it; without it the tests build it themselves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;

use postgres::Client;
use postgres::error::{DbError, SqlState};
use tempfile::TempDir;

use crate::harness::{Builder, PATIENCE, Server, is_alive, run, scalar, wait_for, wait_until};

/// A server with the test build of the library in the place of the installed one.
pub struct Fixture {
    pub server: Server,
    /// After the server.
    _library: TempDir,
}

/// The session of a scenario's worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Session {
    Database,
    Shared,
    Nothing,
}

const FUNCTIONS: &[&str] = &[
    "pgbq_test_spi(text) RETURNS void",
    "pgbq_test_error() RETURNS void",
    "pgbq_test_panic(int) RETURNS void",
    "pgbq_test_live() RETURNS int",
    "pgbq_test_depth(int, int, text) RETURNS int",
    "pgbq_test_holdoff() RETURNS bigint",
    "pgbq_test_holds_lock() RETURNS bool",
    "pgbq_test_under_lock(int) RETURNS void",
    "pgbq_test_report(int) RETURNS void",
    "pgbq_test_caught() RETURNS int",
    "pgbq_test_catch_errors(int, text) RETURNS void",
    "pgbq_test_remember(int) RETURNS void",
    "pgbq_test_start(int, int) RETURNS int",
    "pgbq_test_setup_here() RETURNS void",
    "pgbq_test_scope(int) RETURNS bool",
    "pgbq_test_damage_registry(int) RETURNS void",
];

impl Fixture {
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(Server::builder())
    }

    /// A server that is more than that.
    #[track_caller]
    pub fn start_with(builder: Builder) -> Self {
        let library = library_dir();
        let server = builder
            .conf(
                "dynamic_library_path",
                // from 18 on $libdir is where other extensions are looked for
                &format!("{}:$libdir", library.path().display()),
            )
            .no_extension()
            .start();
        create_functions(&mut server.superuser());
        Self {
            server,
            _library: library,
        }
    }

    pub fn client(&self) -> Client {
        self.server.superuser()
    }

    /// Starts a scenario of src/test_surface/worker.rs in the database of `client`; the worker's pid.
    #[track_caller]
    fn scenario(&self, client: &mut Client, number: i32) -> i32 {
        self.scenario_in(client, number, Session::Database)
    }

    /// The same with another kind of session.
    #[track_caller]
    fn scenario_in(&self, client: &mut Client, number: i32, session: Session) -> i32 {
        let session = session as i32;
        // 0: on a busy machine it can have ended before it was seen to start, and then nobody knows its pid
        wait_for("a worker to be seen", PATIENCE, || {
            let sql = "SELECT pgbq_test_start($1, $2)";
            let pid: i32 = scalar(client, sql, &[&number, &session]);
            (pid != 0).then_some(pid)
        })
    }

    /// Waits until the log has `line`, or the process has ended without it.
    #[track_caller]
    fn wait_log(&self, mark: usize, pid: i32, line: &str) -> String {
        wait_for(&format!("the log line {line:?}"), PATIENCE, || {
            let alive = is_alive(pid);
            let log = self.server.log_since(mark);
            if log.contains(line) {
                return Some(log);
            }
            assert!(alive, "process {pid} has ended without {line:?}:\n{log}");
            None
        })
    }

    /// Waits until the postmaster has noticed the end of a worker.
    #[track_caller]
    fn wait_end(&self, mark: usize, pid: i32) -> String {
        wait_until("the worker to end", || !is_alive(pid));
        self.server.log_since(mark)
    }
}

fn create_functions(client: &mut Client) {
    for function in FUNCTIONS {
        // not STRICT: NULL is for the function to see
        run(
            client,
            &format!("CREATE FUNCTION {function} LANGUAGE c AS 'pg_background_queue'"),
        );
    }
}

/// The library, where the server's user can read it, under the name of the installed one.
pub fn library_dir() -> TempDir {
    let dir = tempfile::Builder::new()
        .prefix("pgbq-library-")
        .tempdir()
        .expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let library = dir.path().join("pg_background_queue.so");
    fs::copy(built_library(), &library).expect("copy the library");
    fs::set_permissions(&library, fs::Permissions::from_mode(0o755)).expect("chmod");
    dir
}

fn built_library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("PGBQ_TEST_LIBRARY") {
            return path.into();
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let target = root.join("target/pg_test");
        let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--features", "pg_test", "--target-dir"])
            .arg(&target)
            .current_dir(root)
            .status()
            .expect("run cargo");
        assert!(status.success(), "cargo build --features pg_test failed");
        target.join("debug/libpg_background_queue.so")
    })
}

/// The server's error of a query that must fail.
#[track_caller]
fn error(client: &mut Client, sql: &str) -> DbError {
    match client.batch_execute(sql) {
        Ok(()) => panic!("{sql}: no error"),
        Err(error) => match error.as_db_error() {
            Some(error) => error.clone(),
            None => panic!("{sql}: {error:?}"),
        },
    }
}

/// What the brief calls the five fields, but for the context.
fn fields(error: &DbError) -> (&str, &str, Option<&str>, Option<&str>) {
    (
        error.code().code(),
        error.message(),
        error.detail(),
        error.hint(),
    )
}

fn place(error: &DbError) -> (Option<&str>, Option<u32>, Option<&str>) {
    (error.file(), error.line(), error.routine())
}

/// After an error: values dropped, locks released, interrupts not held off.
#[track_caller]
fn assert_clean(client: &mut Client, what: &str) {
    assert_eq!(
        scalar::<i32>(client, "SELECT pgbq_test_live()", &[]),
        0,
        "{what}: live values"
    );
    assert_eq!(
        scalar::<i64>(client, "SELECT pgbq_test_holdoff()", &[]),
        0,
        "{what}: holdoff"
    );
    assert!(
        !scalar::<bool>(client, "SELECT pgbq_test_holds_lock()", &[]),
        "{what}: lock"
    );
}

fn pid(client: &mut Client) -> i32 {
    scalar(client, "SELECT pg_backend_pid()", &[])
}

#[test]
fn an_error_of_the_server_passes_unchanged() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    run(
        &mut client,
        "CREATE FUNCTION inner_one() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
             RAISE EXCEPTION 'the message %', 'é'
             USING ERRCODE = 'P7777', DETAIL = 'the detail', HINT = 'the hint'; END $$;
         CREATE FUNCTION outer_one() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
             RETURN inner_one(); END $$;
         CREATE TABLE keyed (id int PRIMARY KEY); INSERT INTO keyed VALUES (1)",
    );
    for sql in [
        "SELECT outer_one()",
        "SELECT 1/0",
        "INSERT INTO keyed VALUES (1)",
        "SELECT pgbq_test_error()",
        "SELECT pgbq_test_panic(0)",
    ] {
        let direct = error(&mut client, sql);
        let line = |sql: &str| format!("SQL statement \"{sql}\"");
        let quoted = |sql: &str| sql.replace('\'', "''");
        let once = format!("SELECT pgbq_test_spi('{}')", quoted(sql));
        let twice = format!("SELECT pgbq_test_spi('{}')", quoted(&once));
        // a frame of SPI adds its own line, and nothing else is different
        let mut lines: Vec<String> = direct.where_().map(str::to_owned).into_iter().collect();
        for (outer, inner) in [(&once, sql), (&twice, once.as_str())] {
            let through = error(&mut client, outer);
            assert_eq!(fields(&through), fields(&direct), "{outer}");
            assert_eq!(place(&through), place(&direct), "{outer}");
            lines.push(line(inner));
            assert_eq!(through.where_(), Some(lines.join("\n").as_str()), "{outer}");
            assert_clean(&mut client, outer);
        }
        // from PL/pgSQL, caught there and raised again
        let again = error(
            &mut client,
            &format!(
                "DO $$ BEGIN PERFORM pgbq_test_spi('{}');
                 EXCEPTION WHEN OTHERS THEN
                     PERFORM repeat('x', i) FROM generate_series(1, 3000) i; RAISE; END $$",
                quoted(sql)
            ),
        );
        assert_eq!(fields(&again), fields(&direct), "{sql}, raised again");
        assert_eq!(place(&again), place(&direct), "{sql}, raised again");
        lines.truncate(lines.len() - 1);
        lines.push(line(&format!("SELECT pgbq_test_spi('{}')", quoted(sql))));
        lines.push("PL/pgSQL function inline_code_block line 1 at PERFORM".to_owned());
        assert_eq!(
            again.where_(),
            Some(lines.join("\n").as_str()),
            "{sql}, raised again"
        );
    }
}

#[test]
fn an_error_of_rust_has_its_fields_and_place() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    let error = error(&mut client, "SELECT pgbq_test_error()");
    assert_eq!(
        fields(&error),
        (
            "22P99",
            "an error of Rust",
            Some("A detail of Rust."),
            Some("A hint of Rust.")
        )
    );
    assert_eq!(error.where_(), None);
    assert_eq!(error.file(), Some("errors.rs"));
    assert!(error.line().is_some_and(|line| line > 0));
    assert_eq!(error.severity(), "ERROR");
}

#[test]
fn a_panic_is_an_error_and_the_session_goes_on() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    let before = pid(&mut client);
    for (how, text) in ["a static text", "a text with 1", "a value that is no text"]
        .iter()
        .enumerate()
    {
        let error = error(&mut client, &format!("SELECT pgbq_test_panic({how})"));
        assert_eq!(error.code(), &SqlState::INTERNAL_ERROR);
        assert_eq!(error.message(), format!("panic: {text}"));
        let detail = error.detail().expect("a detail");
        assert!(detail.contains("src/test_surface/errors.rs:"), "{detail}");
        assert_eq!(error.file(), Some("errors.rs"));
        assert_clean(&mut client, text);
    }
    // in the middle of a transaction
    let mut transaction = client.transaction().expect("BEGIN");
    run(&mut transaction, "CREATE TABLE gone (id int)");
    let error = transaction
        .batch_execute("SELECT pgbq_test_panic(0)")
        .expect_err("a panic");
    assert_eq!(error.code(), Some(&SqlState::INTERNAL_ERROR));
    let error = transaction
        .batch_execute("SELECT 1")
        .expect_err("an aborted transaction");
    assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    drop(transaction);
    assert!(scalar::<bool>(
        &mut client,
        "SELECT to_regclass('gone') IS NULL",
        &[]
    ));
    assert_eq!(pid(&mut client), before);
    // a panic says nothing on stderr by itself
    assert!(!fixture.server.log().contains("thread '"));
}

/// What is wrong with `sql` when it runs, from another thread, and `act` is done to its process.
#[track_caller]
fn interrupted(
    fixture: &Fixture,
    mut client: Client,
    sql: &str,
    act: &str,
) -> (Client, postgres::Error) {
    let victim = pid(&mut client);
    let text = sql.to_owned();
    let job = thread::spawn(move || {
        let error = client.batch_execute(&text).expect_err("an interrupt");
        (client, error)
    });
    let mut other = fixture.client();
    wait_until("the statement to run", || {
        scalar::<bool>(
            &mut other,
            "SELECT state = 'active' AND query = $2 FROM pg_stat_activity WHERE pid = $1",
            &[&victim, &sql],
        )
    });
    run(&mut other, &format!("SELECT {act}({victim})"));
    wait_until("the interrupt to be served", || job.is_finished());
    job.join().expect("the statement's thread")
}

#[test]
fn a_process_that_erred_under_a_lock_can_still_be_interrupted() {
    let fixture = Fixture::start();
    for how in 0..=7 {
        let mut client = fixture.client();
        let sql = format!("SELECT pgbq_test_under_lock({how})");
        if how == 0 {
            run(&mut client, &sql);
        } else {
            let error = error(&mut client, &sql);
            let expected = match how {
                1 | 2 | 5 => "XX000",
                3 | 6 => "22P99",
                _ => "XX000",
            };
            assert_eq!(error.code().code(), expected, "{how}: {error:?}");
        }
        assert_clean(&mut client, &sql);
        // also where a subtransaction ends it
        run(
            &mut client,
            &format!(
                "DO $$ BEGIN PERFORM pgbq_test_under_lock({how});
                 EXCEPTION WHEN OTHERS THEN
                     IF pgbq_test_holds_lock() THEN RAISE 'the lock is held'; END IF;
                     IF pgbq_test_holdoff() <> 0 THEN RAISE 'held off: %', pgbq_test_holdoff(); END IF;
                 END $$"
            ),
        );
        assert_clean(&mut client, &sql);
        let (client, error) = interrupted(
            &fixture,
            client,
            "SELECT pg_sleep(600)",
            "pg_cancel_backend",
        );
        assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED), "{how}");
        let (_, error) = interrupted(
            &fixture,
            client,
            "SELECT pg_sleep(601)",
            "pg_terminate_backend",
        );
        assert!(
            error.is_closed() || error.code() == Some(&SqlState::ADMIN_SHUTDOWN),
            "{how}: {error:?}"
        );
    }
}

#[test]
fn every_value_is_dropped_at_every_depth() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    let nest = |depth: u32, sql: &str| {
        format!(
            "SELECT pgbq_test_depth({depth}, 0, '{}')",
            sql.replace('\'', "''")
        )
    };
    let bottoms = [
        "SELECT 1/0".to_owned(),
        "SELECT pgbq_test_depth(3, 1, '')".to_owned(),
        "SELECT pgbq_test_depth(3, 2, '')".to_owned(),
        "SELECT pgbq_test_under_lock(6)".to_owned(),
    ];
    for bottom in &bottoms {
        for depth in [0, 1, 7, 200] {
            let once = nest(depth, bottom);
            let thrice = nest(depth, &nest(1, &once));
            for sql in [once, thrice] {
                error(&mut client, &sql);
                assert_clean(&mut client, &sql);
                run(
                    &mut client,
                    &format!("DO $do$ BEGIN {}; EXCEPTION WHEN OTHERS THEN
                         IF pgbq_test_live() <> 0 THEN RAISE 'live: %', pgbq_test_live(); END IF; END $do$",
                        sql.replacen("SELECT", "PERFORM", 1)),
                );
            }
        }
    }
    // the counter counts, and what returns drops, too
    assert_eq!(
        scalar::<i32>(&mut client, "SELECT pgbq_test_depth(2, 3, '')", &[]),
        12 + 8
    );
    assert_clean(&mut client, "a return");
}

#[test]
fn an_interrupt_during_a_report_is_an_error() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    for (caught, warn) in [(1, 0), (2, 1)] {
        let sql = format!("SELECT pgbq_test_report({warn})");
        let (back, error) = interrupted(&fixture, client, &sql, "pg_cancel_backend");
        client = back;
        assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
        assert_eq!(
            scalar::<i32>(&mut client, "SELECT pgbq_test_caught()", &[]),
            caught
        );
        assert_clean(&mut client, &sql);
    }
}

/// For the memory of the process that runs it: by context.
const NOTE_MEMORY: &str =
    "INSERT INTO memory SELECT name, sum(used_bytes) FROM pg_backend_memory_contexts GROUP BY name";

/// Before 14 a session cannot see its memory.
fn shows_memory(client: &mut Client) -> bool {
    scalar(
        client,
        "SELECT current_setting('server_version_num')::int >= 140000",
        &[],
    )
}

fn create_memory_table(client: &mut Client) {
    if !shows_memory(client) {
        run(
            client,
            "CREATE OR REPLACE VIEW pg_backend_memory_contexts AS SELECT ''::text AS name, 0::bigint AS used_bytes WHERE false",
        );
    }
    run(
        client,
        "CREATE TABLE memory (context text, bytes bigint, n int GENERATED ALWAYS AS IDENTITY)",
    );
}

/// Compares the first and the last time that memory was noted.
#[track_caller]
fn assert_flat(client: &mut Client, watched: &[&str]) {
    if !shows_memory(client) {
        println!("skipped: what memory is in use, before 14");
        return;
    }
    let rows = client
        .query(
            "SELECT context, min(first), min(last) FROM (SELECT context,
                 first_value(bytes) OVER (PARTITION BY context ORDER BY n)::bigint AS first,
                 first_value(bytes) OVER (PARTITION BY context ORDER BY n DESC)::bigint AS last
                 FROM memory) AS m GROUP BY context",
            &[],
        )
        .expect("the memory table");
    let (mut before, mut after) = (0, 0);
    let mut seen = Vec::new();
    for row in &rows {
        let (context, first, last): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        before += first;
        after += last;
        if watched.contains(&context.as_str()) {
            assert!(last - first < 4096, "{context}: {first} bytes, then {last}");
            seen.push(context);
        }
    }
    assert_eq!(
        seen.len(),
        watched.len(),
        "of {watched:?} there are {seen:?}"
    );
    assert!(
        after - before < 64 * 1024,
        "{before} bytes in all, then {after}"
    );
}

#[test]
fn a_hundred_thousand_caught_errors_leave_no_memory_behind() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    create_memory_table(&mut client);
    client
        .execute("SELECT pgbq_test_catch_errors(100000, $1)", &[&NOTE_MEMORY])
        .expect("caught errors");
    assert_flat(
        &mut client,
        &[
            "TopMemoryContext",
            "ErrorContext",
            "pgbq_test caught errors",
        ],
    );
    // the context of its own has gone with the value
    let left: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_backend_memory_contexts WHERE name LIKE 'pgbq_test%'",
        &[],
    );
    assert_eq!(left, 0);
}

#[test]
fn ten_thousand_errors_through_the_boundary_leave_no_memory_behind() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    for failing in [
        "pgbq_test_error()",
        "pgbq_test_panic(1)",
        "pgbq_test_spi('SELECT 1/0')",
        "pgbq_test_under_lock(5)",
    ] {
        run(&mut client, "DROP TABLE IF EXISTS memory");
        create_memory_table(&mut client);
        run(
            &mut client,
            &format!(
                "DO $$ BEGIN FOR i IN 1 .. 10000 LOOP
                     BEGIN PERFORM {failing}; EXCEPTION WHEN OTHERS THEN NULL; END;
                     IF i IN (1000, 10000) THEN {NOTE_MEMORY}; END IF;
                 END LOOP; END $$"
            ),
        );
        assert_flat(&mut client, &["TopMemoryContext", "ErrorContext"]);
        assert_clean(&mut client, failing);
    }
}

#[test]
fn transactions_of_a_worker_leave_nothing_behind() {
    let fixture = Fixture::start();
    run(&mut fixture.client(), "CREATE ROLE somebody");
    run(&mut fixture.client(), "CREATE DATABASE work");
    let mut client = fixture.server.connect("postgres", "work");
    create_functions(&mut client);
    run(
        &mut client,
        "CREATE TABLE notes (what text, n int GENERATED ALWAYS AS IDENTITY);
         CREATE TABLE deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED);
         CREATE TABLE rows (id bigint PRIMARY KEY, value bigint UNIQUE);
         INSERT INTO rows VALUES (1, 10), (2, 20)",
    );
    run(
        &mut client,
        "ALTER DATABASE work SET default_transaction_isolation = 'serializable';
         ALTER DATABASE work SET default_transaction_read_only = on;
         ALTER DATABASE work SET default_transaction_deferrable = on",
    );
    let mark = fixture.server.log_mark();
    let worker = fixture.scenario(&mut client, 0);
    fixture.wait_log(mark, worker, "pgbq_test: scenario 0 has ended well");
    let log = fixture.wait_end(mark, worker);
    assert!(log.contains("pgbq_test: exit callback, code"), "{log}");
    assert!(!log.contains("WARNING:"), "{log}");
    let notes: String = scalar(
        &mut client,
        "SELECT string_agg(what, ', ' ORDER BY n) FROM notes",
        &[],
    );
    assert_eq!(
        notes,
        "committed, afterwards, in a scope, in a scope inside, in a transaction, and again, after the scopes"
    );
    let row: String = scalar(
        &mut client,
        "SELECT string_agg(r::text, ' ' ORDER BY id) FROM rows r",
        &[],
    );
    assert_eq!(row, "(1,30) (2,20)");
}

fn prepare_loop(client: &mut Client) {
    create_memory_table(client);
    run(
        client,
        "CREATE TABLE deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED);
         CREATE TABLE rows (id bigint PRIMARY KEY); INSERT INTO rows VALUES (1), (2)",
    );
}

fn count(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn the_error_loop_survives_every_kind_of_failure() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    prepare_loop(&mut client);
    let mark = fixture.server.log_mark();
    let worker = fixture.scenario(&mut client, 1);
    fixture.wait_log(mark, worker, "pgbq_test: scenario 1 has ended well");
    let log = fixture.wait_end(mark, worker);
    assert!(
        log.contains("pgbq_test: 42 failures, 42 recoveries"),
        "{log}"
    );
    assert!(log.contains("pgbq_test: exit callback, code"), "{log}");
    assert!(!log.contains("WARNING:"), "{log}");
    let of_worker: String = log
        .lines()
        .filter(|line| line.contains(&format!("[{worker}]")))
        .collect::<Vec<_>>()
        .join("\n");
    assert_eq!(count(&of_worker, "ERROR:"), 42, "{of_worker}");
    for (times, text) in [
        (6, "ERROR:  division by zero"),
        (15, "ERROR:  pgbq_test: an error of Rust"),
        (3, "ERROR:  panic: pgbq_test: a panic with a lock"),
        (3, "ERROR:  panic: a text with 1"),
        (
            3,
            "ERROR:  duplicate key value violates unique constraint \"deferred_id_key\"",
        ),
        (6, "ERROR:  requested tranche is not registered"),
        (3, "ERROR:  an error of Rust"),
    ] {
        assert_eq!(count(&of_worker, text), times, "{text}:\n{of_worker}");
    }
    // the server has noticed nothing: same postmaster child, same data
    assert_eq!(
        scalar::<i64>(&mut client, "SELECT count(*) FROM deferred", &[]),
        0
    );
}

#[test]
fn the_error_loop_is_the_same_without_a_database() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    for session in [Session::Shared, Session::Nothing] {
        let mark = fixture.server.log_mark();
        let worker = fixture.scenario_in(&mut client, 7, session);
        fixture.wait_log(mark, worker, "pgbq_test: scenario 7 has ended well");
        let log = fixture.wait_end(mark, worker);
        assert!(
            log.contains("pgbq_test: 18 failures, 18 recoveries"),
            "{session:?}: {log}"
        );
        assert!(log.contains("pgbq_test: exit callback, code 0"), "{log}");
        assert!(!log.contains("WARNING:"), "{log}");
    }
}

/// What the worker of a scenario says it has after so many failures: bytes of memory, open files.
#[track_caller]
fn noted(log: &str, failures: u32) -> (i64, i64) {
    let start = format!("pgbq_test: after {failures} failures ");
    let line = log.lines().find_map(|line| line.split_once(&start));
    let numbers: Vec<i64> = line
        .unwrap_or_else(|| panic!("no {start:?} in {log}"))
        .1
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    (numbers[0], numbers[1])
}

/// 100,000 failures in a worker that then waits: nothing is left of any of them.
fn a_hundred_thousand_failures(session: Session) {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    prepare_loop(&mut client);
    // a log with that many errors would be all that this test measures
    fixture.server.set_and_reload("log_min_messages", "log");
    let scenario = if session == Session::Database { 2 } else { 11 };
    let mark = fixture.server.log_mark();
    let worker = fixture.scenario_in(&mut client, scenario, session);
    let end = "pgbq_test: 100000 failures, 100000 recoveries";
    let log = wait_for("100,000 failures", 10 * PATIENCE, || {
        assert!(is_alive(worker), "{}", fixture.server.log_since(mark));
        Some(fixture.server.log_since(mark)).filter(|log| log.contains(end))
    });
    let (memory, files) = noted(&log, 1400);
    let (memory_after, files_after) = noted(&log, 100_000);
    eprintln!(
        "{session:?}: {memory} bytes and {files} files, then {memory_after} and {files_after}"
    );
    assert!(
        memory_after - memory < 64 * 1024,
        "{memory} bytes, then {memory_after}"
    );
    // A leak would be 7,000 files. The server keeps those of tables open that it has used, and finds some more of them meanwhile.
    assert!(
        files_after - files < 50,
        "{files} files, then {files_after}"
    );
    // locks and snapshots, as others see them
    let locks = "SELECT count(*) FROM pg_locks WHERE pid = $1";
    // it says how far it is before it is done with saying so
    wait_until("the locks to be released", || {
        scalar::<i64>(&mut client, locks, &[&worker]) == 0
    });
    let idle = "SELECT backend_xmin IS NULL AND backend_xid IS NULL AND state IS NOT DISTINCT FROM $2 \
                FROM pg_stat_activity WHERE pid = $1";
    let state = (session != Session::Nothing).then_some("idle");
    if session != Session::Nothing {
        wait_until("the worker to be idle", || {
            scalar::<bool>(&mut client, idle, &[&worker, &state])
        });
    }
    if session == Session::Database {
        assert_flat(
            &mut client,
            &["TopMemoryContext", "ErrorContext", "pgbq_test worker"],
        );
        // pins: this waits for whoever holds one
        run(&mut client, "DELETE FROM rows");
        run(&mut client, "SET statement_timeout = '60s'");
        run(&mut client, "VACUUM (FREEZE) rows");
    }
    // pg_terminate_backend does not know a process without a session
    crate::harness::kill(worker, libc::SIGTERM);
    let log = fixture.wait_end(mark, worker);
    assert!(!log.contains("WARNING:"), "{log}");
}

#[test]
fn a_hundred_thousand_failures_of_a_main_loop_leave_nothing_behind() {
    a_hundred_thousand_failures(Session::Database);
}

#[test]
fn a_hundred_thousand_failures_without_a_database_leave_nothing_behind() {
    a_hundred_thousand_failures(Session::Shared);
    a_hundred_thousand_failures(Session::Nothing);
}

#[test]
fn an_error_while_idle_and_a_fatal_one() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    for session in [Session::Database, Session::Shared, Session::Nothing] {
        let mark = fixture.server.log_mark();
        let worker = fixture.scenario_in(&mut client, 10, session);
        fixture.wait_log(mark, worker, "pgbq_test: idle");
        for _ in 0..5 {
            let mark = fixture.server.log_mark();
            // as pg_cancel_backend, which does not know a process without a session; one that comes between two steps is forgotten
            wait_until("a cancel to be an error", || {
                crate::harness::kill(worker, libc::SIGINT);
                let log = fixture.server.log_since(mark);
                log.contains("ERROR:  canceling statement due to user request")
            });
            fixture.wait_log(mark, worker, "pgbq_test: idle");
        }
        crate::harness::kill(worker, libc::SIGTERM);
        let log = fixture.wait_end(mark, worker);
        assert_eq!(count(&log, "FATAL:"), 1, "{log}");
        assert!(log.contains("pgbq_test: exit callback, code 1"), "{log}");
    }
    let mark = fixture.server.log_mark();
    let worker = fixture.scenario(&mut client, 9);
    let end = format!("(PID {worker}) exited with exit code 1");
    let log = wait_for("the worker's end", PATIENCE, || {
        Some(fixture.server.log_since(mark)).filter(|log| log.contains(&end))
    });
    // one that ended before it was seen to start may have been there before
    let own = log
        .lines()
        .filter(|line| line.contains(&format!("[{worker}]")));
    assert_eq!(
        own.filter(|line| line.contains("FATAL:")).count(),
        1,
        "{log}"
    );
    assert!(log.contains("pgbq_test: exit callback, code 1"), "{log}");
}

#[test]
fn a_failing_recovery_ends_the_process() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    for (scenario, text) in [
        (3, "ERROR:  pgbq_test: an error of Rust"),
        (4, "ERROR:  panic: pgbq_test: a panic in the recovery"),
        (5, "ERROR:  division by zero"),
    ] {
        let mark = fixture.server.log_mark();
        let worker = fixture.scenario(&mut client, scenario);
        let end = format!("(PID {worker}) exited with exit code 1");
        let log = wait_for("the worker's end", PATIENCE, || {
            Some(fixture.server.log_since(mark)).filter(|log| log.contains(&end))
        });
        let errors: Vec<&str> = log
            .lines()
            .filter(|line| line.contains(&format!("[{worker}]")) && line.contains("ERROR:"))
            .collect();
        assert_eq!(errors.len(), 2, "{log}");
        assert!(errors[0].contains("ERROR:  division by zero"), "{log}");
        assert!(errors[1].contains(text), "{log}");
        assert!(log.contains("pgbq_test: exit callback, code"), "{log}");
        assert!(!log.contains("WARNING:"), "{log}");
        assert!(!is_alive(worker));
    }
}

#[test]
fn an_abort_that_fails_is_tried_again_and_then_ends_the_process() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    let errors_of = |log: &str, worker: i32| -> Vec<String> {
        log.lines()
            .filter(|line| line.contains(&format!("[{worker}]")))
            .filter_map(|line| Some(line.split_once("ERROR:  ")?.1.to_owned()))
            .collect()
    };
    let mark = fixture.server.log_mark();
    let worker = fixture.scenario(&mut client, 12);
    fixture.wait_log(mark, worker, "pgbq_test: scenario 12 has ended well");
    let log = fixture.wait_end(mark, worker);
    assert_eq!(errors_of(&log, worker), ["division by zero"]);
    assert!(log.contains("pgbq_test: exit callback, code 0"), "{log}");

    let mark = fixture.server.log_mark();
    let worker = fixture.scenario(&mut client, 13);
    let end = format!("(PID {worker}) exited with exit code 1");
    let log = wait_for("the worker's end", PATIENCE, || {
        Some(fixture.server.log_since(mark)).filter(|log| log.contains(&end))
    });
    assert_eq!(
        errors_of(&log, worker),
        ["division by zero", "pgbq_test: an error in the abort"]
    );
    assert!(log.contains("pgbq_test: exit callback, code 1"), "{log}");
    // the others have noticed nothing
    assert!(scalar::<bool>(&mut client, "SELECT true", &[]));
}

#[test]
fn a_cancel_between_steps_is_harmless_and_a_terminate_ends_the_loop() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    let mark = fixture.server.log_mark();
    let worker = fixture.scenario(&mut client, 6);
    fixture.wait_log(mark, worker, "pgbq_test: waiting");
    for _ in 0..50 {
        let mark = fixture.server.log_mark();
        run(&mut client, &format!("SELECT pg_cancel_backend({worker})"));
        fixture.wait_log(mark, worker, "pgbq_test: waiting");
    }
    let log = fixture.server.log_since(mark);
    assert!(!log.contains("ERROR:"), "{log}");
    run(
        &mut client,
        &format!("SELECT pg_terminate_backend({worker})"),
    );
    let log = fixture.wait_end(mark, worker);
    assert_eq!(count(&log, "FATAL:"), 1, "{log}");
    assert!(log.contains("pgbq_test: exit callback, code"), "{log}");
}

#[test]
fn a_scope_in_a_backend_leaves_its_transaction_open() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    run(&mut client, "CREATE TABLE notes (what text)");
    run(&mut client, "BEGIN");
    assert!(scalar::<bool>(
        &mut client,
        "SELECT pgbq_test_scope(0)",
        &[]
    ));
    run(&mut client, "ROLLBACK");
    let notes = "SELECT count(*) FROM notes";
    assert_eq!(scalar::<i64>(&mut client, notes, &[]), 0);
    assert!(scalar::<bool>(
        &mut client,
        "SELECT pgbq_test_scope(0)",
        &[]
    ));
    assert_eq!(scalar::<i64>(&mut client, notes, &[]), 1);
    let failed = error(&mut client, "SELECT pgbq_test_scope(2)");
    assert_eq!(failed.code().code(), "22012");
    assert_eq!(scalar::<i64>(&mut client, notes, &[]), 1);
    assert_clean(&mut client, "scopes");
}

/// Runs a scenario in which something is used in an order or a way that the compiler does not forbid.
#[track_caller]
fn ends_well(scenario: i32) -> String {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    run(&mut client, "CREATE TABLE notes (what text)");
    let mark = fixture.server.log_mark();
    let worker = fixture.scenario(&mut client, scenario);
    fixture.wait_log(
        mark,
        worker,
        &format!("pgbq_test: scenario {scenario} has ended well"),
    );
    let log = fixture.wait_end(mark, worker);
    assert!(log.contains("pgbq_test: exit callback, code"), "{log}");
    assert!(!log.contains("WARNING:"), "{log}");
    // nobody has crashed
    assert!(scalar::<bool>(&mut client, "SELECT true", &[]));
    log
}

#[test]
fn what_a_worker_must_not_do_is_an_error() {
    let fixture = Fixture::start();
    let mut client = fixture.client();
    let mark = fixture.server.log_mark();
    let worker = fixture.scenario_in(&mut client, 104, Session::Nothing);
    fixture.wait_log(mark, worker, "pgbq_test: scenario 104 has ended well");
    fixture.wait_end(mark, worker);
    let refused = error(&mut client, "SELECT pgbq_test_setup_here()");
    assert_eq!(refused.message(), "this process is no background worker");
    // which has not lost its signal handlers
    let (_, error) = interrupted(
        &fixture,
        client,
        "SELECT pg_sleep(3600)",
        "pg_cancel_backend",
    );
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
}

#[test]
fn the_main_loop_gives_its_caller_the_memory_context_back() {
    ends_well(8);
}

#[test]
fn a_snapshot_may_be_dropped_after_its_transaction() {
    ends_well(100);
}

#[test]
fn a_lock_may_be_held_over_a_transaction() {
    ends_well(101);
}

#[test]
fn a_panic_at_the_end_of_a_transaction_changes_nothing() {
    ends_well(102);
}

#[test]
fn a_panic_in_the_exit_callback_changes_nothing() {
    ends_well(103);
}
