//! Replication under load: a standby that is promoted in the midst of it, a clone by point-in-time recovery, a logical
//! subscriber. (What becomes of copies at rest is in copies.rs.)

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use postgres::Client;

use crate::copies::{elsewhere, physical_copy};
use crate::faults::{Ledger, TOPICS, account, judge, prepare_database, under_load};
use crate::harness::{
    Server, enqueue, launcher_pid, run, running_count, scalar, states, task, wait_all_closed,
    wait_state, wait_until, workers,
};

const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";
const TOPIC_CONFIG: &str = "pg_background_queue.topic_config";

const SESSIONS: &[(&str, &str)] = &[
    ("postgres", "postgres"),
    ("alice", "postgres"),
    ("bob", "postgres"),
];

/// Long enough for a backlog on a slow machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// A server that can be copied, with what the load needs.
fn primary(conf: &[(&str, &str)]) -> Server {
    let mut builder = Server::builder()
        .conf(LIMIT, "3")
        .conf(TOPIC_CONFIG, &format!("{{{TOPICS}}}"))
        .conf("pg_background_queue.max_retry_delay", "1s")
        .conf("max_stack_depth", "1MB")
        .conf("work_mem", "64kB")
        .conf("temp_file_limit", "1MB")
        .expect_crash();
    for (name, value) in conf {
        builder = builder.conf(name, value);
    }
    let server = builder.start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; ALTER ROLE bob SET synchronous_commit = off",
    );
    prepare_database(&mut client);
    server
}

/// Waits until so many tasks are finished.
#[track_caller]
fn wait_finished(client: &mut Client, count: i64) {
    wait_until(&format!("{count} tasks to be finished"), || {
        scalar::<i64>(
            client,
            "SELECT count(*) FROM pg_background_tasks WHERE state = 'finished'",
            &[],
        ) >= count
    });
}

/// A task that is in the midst of its work here, and would not be in a copy; its claim is on disk.
fn leave_running(client: &mut Client) -> i64 {
    run(client, "SELECT pg_advisory_lock(1)");
    let id = enqueue(
        client,
        "/* 1 slow */ INSERT INTO effects VALUES (1); SELECT pg_advisory_xact_lock_shared(1)",
    );
    wait_until("the task to wait", || {
        scalar::<bool>(
            client,
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 1 AND NOT granted)",
            &[],
        )
    });
    run(client, "CREATE TABLE flushed ()");
    id
}

fn wait_writable(client: &mut Client) {
    wait_until("the copy to be writable", || {
        !scalar::<bool>(client, "SELECT pg_is_in_recovery()", &[])
    });
}

#[track_caller]
fn assert_good(server: &Server, ledger: &Ledger, crashes: u64) {
    let mut account = account(server, ledger, &["postgres"]);
    account.crashes = crashes;
    assert_eq!(judge(&account).complaints, [""; 0]);
}

#[test]
fn a_standby_promoted_under_load_goes_on_at_once_and_runs_what_was_left_once() {
    let mut primary = primary(&[]);
    let mut standby = physical_copy(&primary, &["-R"]);
    standby.start();
    // What is acknowledged is on the standby, too; that would be no promise without.
    primary.set_and_reload("synchronous_standby_names", "*");
    standby.set_conf("synchronous_standby_names", "");
    standby.reload();
    let mut client = primary.superuser();
    wait_until("the standby to be a synchronous one", || {
        scalar::<i64>(
            &mut client,
            "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'",
            &[],
        ) == 1
    });
    let ledger = Ledger::default();
    let mut there = standby.superuser();
    let mut left = 0;
    under_load(
        &primary.connector(),
        SESSIONS,
        &ledger,
        Rng::with_seed(11),
        || {
            for count in 1..=10 {
                wait_finished(&mut client, count * 10);
                assert_eq!(workers(&mut there), []);
                assert_eq!(launcher_pid(&mut there), None);
            }
            left = leave_running(&mut client);
            primary.kill9_all();
        },
    );
    assert_eq!(workers(&mut there), []);
    assert_eq!(task(&mut there, left).state, "running");
    run(&mut there, "SELECT pg_promote(false)");
    wait_writable(&mut there);
    let writable = SystemTime::now();
    let again = wait_state(&mut there, left, "finished");
    assert_eq!((again.attempt, again.retry_count), (2, 0), "{again:?}");
    let took = again
        .started_at
        .map(|at| at.duration_since(writable).unwrap_or_default());
    println!("what the old primary had left ran {took:?} after the new one was writable");
    // It takes a tenth of a second; the rest is for a busy machine.
    assert!(
        took.is_some_and(|took| took < Duration::from_secs(10)),
        "{took:?}"
    );
    wait_all_closed(&mut there, DEADLINE);
    assert_good(&standby, &ledger, 1);
}

#[test]
fn a_clone_by_point_in_time_recovery_goes_on_from_there() {
    let archive = tempfile::Builder::new()
        .prefix("pgbq-archive-")
        .tempdir()
        .expect("a directory");
    let path = archive.path().to_str().expect("a path in UTF-8").to_owned();
    let server = primary(&[("archive_mode", "on")]);
    // the server's user writes there
    let owner = fs::metadata(server.data_dir()).expect("the data directory");
    chown(archive.path(), Some(owner.uid()), Some(owner.gid())).expect("chown");
    server.set_and_reload("archive_command", &format!("cp %p {path}/%f"));
    let mut client = server.superuser();
    let ledger = Ledger::default();
    let (mut clone, at_the_point, left) = under_load(
        &server.connector(),
        SESSIONS,
        &ledger,
        Rng::with_seed(12),
        || {
            wait_finished(&mut client, 30);
            let clone = physical_copy(&server, &[]);
            wait_finished(&mut client, 60);
            let left = leave_running(&mut client);
            // commits before this are in the clone, and those that were not yet acknowledged may be
            let at_the_point = ledger.all_sent();
            run(
                &mut client,
                "BEGIN; CREATE TABLE here (); COMMIT; SELECT pg_create_restore_point('here')",
            );
            wait_finished(&mut client, 90);
            (clone, at_the_point, left)
        },
    );
    run(&mut client, "SELECT pg_advisory_unlock(1)");
    wait_all_closed(&mut client, DEADLINE);
    let last: String = scalar(&mut client, "SELECT pg_walfile_name(pg_switch_wal())", &[]);
    wait_until("the WAL to be archived", || {
        scalar::<bool>(
            &mut client,
            "SELECT last_archived_wal >= $1 FROM pg_stat_archiver",
            &[&last],
        )
    });

    clone.set_conf("restore_command", &format!("cp {path}/%f %p"));
    clone.set_conf("archive_mode", "off");
    clone.set_conf("recovery_target_name", "here");
    clone.set_conf("recovery_target_action", "promote");
    clone.set_conf(LIMIT, "0");
    fs::write(clone.data_dir().join("recovery.signal"), "").expect("recovery.signal");
    clone.start();
    let mut there = clone.superuser();
    wait_writable(&mut there);
    wait_until("what ran at that point to be open again", || {
        task(&mut there, left).state == "pending"
    });
    assert_eq!(running_count(&mut there), 0);
    clone.set_and_reload(LIMIT, "3");
    wait_all_closed(&mut there, DEADLINE);
    // the clone has what was acknowledged by then, the original all of it
    let of_the_clone = Ledger::default();
    for sent in at_the_point {
        of_the_clone.sent(sent);
    }
    assert_good(&clone, &of_the_clone, 1);
    assert_good(&server, &ledger, 0);
}

#[test]
fn a_logical_subscriber_under_load_runs_nothing() {
    let publisher = primary(&[("wal_level", "logical")]);
    let mut client = publisher.superuser();
    let subscriber = elsewhere();
    let mut there = subscriber.superuser();
    run(&mut there, "CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN");
    prepare_database(&mut there);
    let ledger = Ledger::default();
    under_load(
        &publisher.connector(),
        SESSIONS,
        &ledger,
        Rng::with_seed(13),
        || {
            wait_finished(&mut client, 20);
            run(
                &mut client,
                "CREATE PUBLICATION tasks FOR TABLE pg_background_tasks",
            );
            let host = publisher.data_dir().parent().and_then(|dir| dir.to_str());
            run(
                &mut there,
                &format!(
                    "CREATE SUBSCRIPTION tasks CONNECTION \
                     'host={} port=5432 user=postgres dbname=postgres' PUBLICATION tasks",
                    host.expect("a path in UTF-8")
                ),
            );
            wait_finished(&mut client, 120);
        },
    );
    wait_all_closed(&mut client, DEADLINE);
    let all: i64 = scalar(&mut client, "SELECT count(*) FROM pg_background_tasks", &[]);
    wait_until("all tasks to arrive, closed", || {
        run(&mut there, "SELECT pg_background_queue_ensure_workers()");
        scalar::<i64>(
            &mut there,
            "SELECT count(*) FROM pg_background_tasks WHERE closed_at IS NOT NULL",
            &[],
        ) == all
    });
    let effects: i64 = scalar(&mut there, "SELECT count(*) FROM effects", &[]);
    assert_eq!(effects, 0);
    assert_eq!(states(&mut client), states(&mut there));
    run(&mut there, "DROP SUBSCRIPTION tasks");
    assert_good(&publisher, &ledger, 0);
}
