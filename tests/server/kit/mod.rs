//! The worker kit (src/pg/bgworker), by workers that have nothing to do with the queue: src/test_surface/proof.

mod counter;
mod handles;
mod lives;
mod owners;
mod sums;

use std::fs;
use std::path::{Path, PathBuf};

use postgres::Client;

use crate::harness::{children, kill, run, scalar, wait_until};
use crate::safe_layer::Fixture;

const FUNCTIONS: &[&str] = &[
    "pgbq_test_start_counter() RETURNS int",
    "pgbq_test_sum(bigint, bigint) RETURNS bigint",
    "pgbq_test_fail(int, int) RETURNS text",
    "pgbq_test_hear_with_errors() RETURNS text",
    "pgbq_test_hear_late() RETURNS int",
    "pgbq_test_find(int) RETURNS int",
    "pgbq_test_signal(int, text) RETURNS int",
    "pgbq_test_wait_for_exit(int, int) RETURNS bool",
    "pgbq_test_in_use() RETURNS int",
    "pgbq_test_supervise(int) RETURNS int",
    "pgbq_test_handle(int, int, int) RETURNS text",
];

fn prepare(fixture: &Fixture) -> Client {
    let mut client = fixture.client();
    for function in FUNCTIONS {
        run(
            &mut client,
            &format!("CREATE FUNCTION {function} LANGUAGE c AS 'pg_background_queue'"),
        );
    }
    client
}

fn start() -> (Fixture, Client) {
    let fixture = Fixture::start();
    let client = prepare(&fixture);
    (fixture, client)
}

fn source(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The processes of the server with such a title: those without a session are not in pg_stat_activity.
fn processes(fixture: &Fixture, title: &str) -> Vec<i32> {
    children(fixture.server.postmaster_pid())
        .into_iter()
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.contains(title))
        })
        .collect()
}

#[track_caller]
fn assert_nothing_is_left(client: &mut Client) {
    wait_until("all slots to be free", || {
        scalar::<i32>(client, "SELECT pgbq_test_in_use()", &[]) == 0
    });
}

/// A postmaster that stands still, and so starts and reaps nobody, until this is dropped.
struct StandsStill(i32);

impl StandsStill {
    fn begin(fixture: &Fixture) -> Self {
        let pid = fixture.server.postmaster_pid();
        assert!(kill(pid, libc::SIGSTOP));
        Self(pid)
    }
}

impl Drop for StandsStill {
    fn drop(&mut self) {
        kill(self.0, libc::SIGCONT);
    }
}

/// The files of a directory and of those in it.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_proof_workers_are_pages_of_safe_rust() {
    let proof = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/test_surface/proof");
    let files = files(&proof);
    assert!(files.len() > 3, "{files:?}");
    for file in files {
        let text = source(file.to_str().expect("its name"));
        assert!(text.lines().count() < 120, "{} is no page", file.display());
        for line in text.lines().filter(|line| !line.starts_with("//")) {
            assert!(
                !line.contains("unsafe") && !line.contains("pg_sys"),
                "{}: {line}",
                file.display()
            );
        }
    }
}
