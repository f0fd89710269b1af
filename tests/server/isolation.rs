//! Exactly once at every isolation level, read-only or not, deferrable or not, whoever set it.

use std::time::Duration;

use crate::harness::{
    Server, create_role, enqueue, run, scalar, tasks, wait_all_closed, wait_state, wait_until,
};

const LEVELS: [&str; 3] = ["read committed", "repeatable read", "serializable"];

/// One cell of the matrix.
#[derive(Debug, Clone, Copy)]
struct Mode {
    level: &'static str,
    read_only: bool,
    deferrable: bool,
}

fn matrix() -> Vec<Mode> {
    let mut modes = Vec::new();
    for level in LEVELS {
        for read_only in [false, true] {
            for deferrable in [false, true] {
                modes.push(Mode {
                    level,
                    read_only,
                    deferrable,
                });
            }
        }
    }
    modes
}

fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

impl Mode {
    /// As `says` below writes it.
    fn name(self) -> String {
        format!(
            "{} {} {}",
            self.level,
            on_off(self.read_only),
            on_off(self.deferrable)
        )
    }

    /// ALTER ROLE or DATABASE …: the defaults of its sessions.
    fn defaults(self, whose: &str) -> String {
        format!(
            "ALTER {whose} SET default_transaction_isolation = '{}'; \
             ALTER {whose} SET default_transaction_read_only = {}; \
             ALTER {whose} SET default_transaction_deferrable = {}",
            self.level, self.read_only, self.deferrable
        )
    }
}

/// A statement that leaves a line in the log, even when the transaction is read-only, with the mode
/// in force.
fn says(mark: &str) -> String {
    format!(
        "DO $$ BEGIN RAISE LOG 'mark {mark} % % %', current_setting('transaction_isolation'), \
         current_setting('transaction_read_only'), current_setting('transaction_deferrable'); END $$"
    )
}

/// Each mark must be there once, with its mode.
fn check_log(log: &str, mark: &str, mode: Mode) {
    let begin = format!("LOG:  mark {mark} ");
    let found: Vec<&str> = log
        .lines()
        .filter_map(|line| line.split_once(&begin).map(|(_, rest)| rest))
        .collect();
    assert_eq!(found, [mode.name()], "{mark}");
}

#[test]
fn set_by_the_task() {
    let server = Server::start_default();
    let mut client = server.superuser();
    run(&mut client, "CREATE TABLE effects (mark text)");
    let mark = server.log_mark();
    for (n, mode) in matrix().into_iter().enumerate() {
        let Mode {
            level, deferrable, ..
        } = mode;
        let deferrable = if deferrable {
            "DEFERRABLE"
        } else {
            "NOT DEFERRABLE"
        };
        let set = format!("SET TRANSACTION ISOLATION LEVEL {level}, {deferrable}");
        if mode.read_only {
            // Read-only from the start, and written first: effect and mark must go together all the
            // same.
            enqueue(
                &mut client,
                &format!("{set}, READ ONLY; {}", says(&format!("t{n}"))),
            );
            enqueue(
                &mut client,
                &format!(
                    "{set}; INSERT INTO effects VALUES ('t{n}'); SET TRANSACTION READ ONLY; {}",
                    says(&format!("u{n}"))
                ),
            );
        } else {
            enqueue(
                &mut client,
                &format!(
                    "{set}, READ WRITE; INSERT INTO effects VALUES ('t{n}'); {}",
                    says(&format!("t{n}"))
                ),
            );
        }
    }
    wait_all_closed(&mut client, Duration::from_secs(60));
    for task in tasks(&mut client) {
        assert_eq!(task.state, "finished", "{}", task.errors());
    }
    let log = server.log_since(mark);
    for (n, mode) in matrix().into_iter().enumerate() {
        check_log(&log, &format!("t{n}"), mode);
        if mode.read_only {
            check_log(&log, &format!("u{n}"), mode);
        }
        let effects: i64 = scalar(
            &mut client,
            "SELECT count(*) FROM effects WHERE mark = $1",
            &[&format!("t{n}")],
        );
        assert_eq!(effects, 1, "{mode:?}");
    }
}

#[test]
fn set_by_the_role() {
    let server = Server::start_default();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE effects (mark text); GRANT INSERT ON effects TO PUBLIC",
    );
    let mark = server.log_mark();
    let mut failing = Vec::new();
    for (n, mode) in matrix().into_iter().enumerate() {
        let role = format!("role_{n}");
        create_role(&mut client, &role);
        run(&mut client, &mode.defaults(&format!("ROLE {role}")));
        let mut session = server.connect(&role, "postgres");
        run(&mut session, "SET default_transaction_read_only = off");
        let sql = if mode.read_only {
            says(&format!("r{n}"))
        } else {
            format!(
                "INSERT INTO effects VALUES ('r{n}'); {}",
                says(&format!("r{n}"))
            )
        };
        enqueue(&mut session, &sql);
        failing.push(enqueue(&mut session, "SELECT 1/0"));
    }
    wait_all_closed(&mut client, Duration::from_secs(60));
    for task in tasks(&mut client) {
        if failing.contains(&task.id) {
            assert_eq!(task.state, "failed");
            assert!(task.errors().contains("22012"), "{}", task.errors());
        } else {
            assert_eq!(task.state, "finished", "{}", task.errors());
        }
    }
    let log = server.log_since(mark);
    for (n, mode) in matrix().into_iter().enumerate() {
        check_log(&log, &format!("r{n}"), mode);
        let effects: i64 = scalar(
            &mut client,
            "SELECT count(*) FROM effects WHERE mark = $1",
            &[&format!("r{n}")],
        );
        assert_eq!(effects, i64::from(!mode.read_only), "{mode:?}");
    }
}

#[test]
fn set_by_the_database() {
    let server = Server::start_default();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE effects (mark text); SET default_transaction_read_only = off; \
         SET default_transaction_isolation = 'read committed'",
    );
    for (n, mode) in matrix().into_iter().enumerate() {
        run(&mut client, &mode.defaults("DATABASE postgres"));
        let mark = server.log_mark();
        let sql = if mode.read_only {
            says(&format!("d{n}"))
        } else {
            format!(
                "INSERT INTO effects VALUES ('d{n}'); {}",
                says(&format!("d{n}"))
            )
        };
        let id = enqueue(&mut client, &sql);
        wait_state(&mut client, id, "finished");
        check_log(&server.log_since(mark), &format!("d{n}"), mode);
        let effects: i64 = scalar(
            &mut client,
            "SELECT count(*) FROM effects WHERE mark = $1",
            &[&format!("d{n}")],
        );
        assert_eq!(effects, i64::from(!mode.read_only), "{mode:?}");
    }
}

#[test]
fn set_by_postgresql_conf() {
    let server = Server::builder()
        .conf("default_transaction_isolation", "serializable")
        .conf("default_transaction_read_only", "on")
        .conf("default_transaction_deferrable", "on")
        .no_extension()
        .start();
    let mut client = server.superuser();
    run(&mut client, "SET default_transaction_read_only = off");
    run(&mut client, "CREATE EXTENSION pg_background_queue");
    let mark = server.log_mark();
    let id = enqueue(&mut client, &says("conf"));
    wait_state(&mut client, id, "finished");
    check_log(
        &server.log_since(mark),
        "conf",
        Mode {
            level: "serializable",
            read_only: true,
            deferrable: true,
        },
    );
}

#[test]
fn serializable_tasks_do_not_fail_for_the_sake_of_the_bookkeeping() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "4")
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE effects (n int); \
         ALTER DATABASE postgres SET default_transaction_isolation = serializable",
    );
    // They write and read nothing of each other: whatever fails, fails because of us.
    let mut transaction = client.transaction().unwrap();
    for n in 0..400 {
        enqueue(
            &mut transaction,
            &format!("INSERT INTO effects VALUES ({n}); SELECT pg_sleep(0.002)"),
        );
    }
    transaction.commit().unwrap();
    wait_all_closed(&mut client, Duration::from_secs(120));
    for task in tasks(&mut client) {
        assert_eq!(task.state, "finished", "{}", task.errors());
    }
    let effects: String = scalar(
        &mut client,
        "SELECT count(*) || ' ' || count(DISTINCT n) FROM effects",
        &[],
    );
    assert_eq!(effects, "400 400");
}

#[test]
fn a_conflict_over_the_queues_own_row_is_not_the_tasks_failure() {
    let server = Server::start_default();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE seen (n int); INSERT INTO seen VALUES (1); CREATE TABLE effects (n int)",
    );
    let mut gate = server.superuser();
    run(&mut gate, "SELECT pg_advisory_lock(1)");
    // it reads what another changes, who has read the queue: a cycle, found when the task is marked
    let id = enqueue(
        &mut client,
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; \
         INSERT INTO effects SELECT n FROM seen; \
         SELECT pg_advisory_xact_lock(1)",
    );
    wait_until("the task to wait at the gate", || {
        scalar::<bool>(
            &mut client,
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)",
            &[],
        )
    });
    let mut other = server.superuser();
    run(
        &mut other,
        "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM pg_background_tasks; \
         UPDATE seen SET n = 2; COMMIT",
    );
    run(&mut gate, "SELECT pg_advisory_unlock(1)");

    let task = wait_state(&mut client, id, "finished");
    assert_eq!((task.attempt, task.retry_count), (2, 0));
    assert_eq!(task.errors(), "");
    let effects: String = scalar(
        &mut client,
        "SELECT string_agg(n::text, ' ') FROM effects",
        &[],
    );
    assert_eq!(effects, "2");
}
