//! Which task a worker claims next, when its queue is not what it was a moment ago.

use postgres::Client;

use crate::harness::{
    Server, create_role, enqueue, enqueue_with, index_reads, kill, run, scalar, task, wait_closed,
    wait_for_launcher, wait_state, wait_until, worker_count, workers,
};

const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";
const IDLE_TIMEOUT: &str = "pg_background_queue.worker_idle_timeout";

fn start(limit: u32) -> (Server, Client) {
    let server = Server::builder()
        .conf(LIMIT, &limit.to_string())
        .conf(IDLE_TIMEOUT, "10min")
        .conf("max_prepared_transactions", "2")
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE seen (n int GENERATED ALWAYS AS IDENTITY, what text); GRANT ALL ON seen TO PUBLIC",
    );
    (server, client)
}

/// A text that waits as long as the session that has called [`shut`] keeps it waiting.
const GATE: &str = "SELECT pg_advisory_xact_lock_shared(1)";

fn shut(client: &mut Client) {
    run(client, "SELECT pg_advisory_lock(1)");
}

fn open(client: &mut Client) {
    run(client, "SELECT pg_advisory_unlock(1)");
}

fn seen(client: &mut Client) -> String {
    scalar(
        client,
        "SELECT coalesce(string_agg(what, ' ' ORDER BY n), '') FROM seen",
        &[],
    )
}

/// The idle worker that is woken for a task finds that it is not up to date, and leaves: the one that is busy does not count as its heir.
#[test]
fn what_a_stale_worker_leaves_does_not_wait_for_a_busy_one() {
    let (server, mut client) = start(3);
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    shut(&mut client);
    let long = enqueue(&mut alice, GATE);
    wait_state(&mut client, long, "running");
    let short = enqueue(&mut alice, "SELECT 1");
    wait_state(&mut client, short, "finished");
    wait_until("the other one to be idle", || {
        workers(&mut client)
            .iter()
            .any(|worker| worker.state.as_deref() == Some("idle"))
    });
    run(&mut client, "ALTER ROLE alice SET work_mem = '3MB'");
    let next = enqueue(
        &mut alice,
        "INSERT INTO seen (what) SELECT current_setting('work_mem')",
    );
    wait_state(&mut client, next, "finished");
    assert_eq!(seen(&mut client), "3MB");
    // a worker that is ended when it has been woken has an heir, too
    for process in workers(&mut client) {
        if process.state.as_deref() == Some("idle") {
            kill(process.pid, libc::SIGTERM);
        }
    }
    let next = enqueue(&mut alice, "SELECT 1");
    wait_state(&mut client, next, "finished");
    assert_eq!(task(&mut client, long).state, "running");
    open(&mut client);
    wait_state(&mut client, long, "finished");
}

/// A keeper tells of what a prepared transaction has brought; the workers know already what comes after that.
#[test]
fn a_task_of_a_prepared_transaction_is_not_passed_over() {
    let (server, mut client) = start(1);
    let mut other = server.superuser();
    run(&mut client, "BEGIN");
    let best = enqueue_with(
        &mut client,
        "INSERT INTO seen (what) VALUES ('best')",
        "priority => 10",
    );
    run(&mut client, "PREPARE TRANSACTION 'best'");
    shut(&mut client);
    let mut transaction = other.transaction().expect("begin");
    let gate = enqueue_with(&mut transaction, GATE, "'a'");
    for what in ["second", "third"] {
        enqueue_with(
            &mut transaction,
            &format!("INSERT INTO seen (what) VALUES ('{what}')"),
            "'a'",
        );
    }
    transaction.commit().expect("commit");
    wait_state(&mut client, gate, "running");
    run(&mut client, "COMMIT PREPARED 'best'");
    // the keeper has been there
    wait_until("a keeper to have come and gone", || {
        let waits: bool = scalar(
            &mut client,
            "SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE '%keeper'",
            &[],
        );
        waits
            && scalar::<i64>(
                &mut client,
                "SELECT count(*) FROM pg_background_tasks WHERE state = 'pending'",
                &[],
            ) == 3
    });
    open(&mut client);
    wait_state(&mut client, best, "finished");
    wait_until("all to have run", || {
        seen(&mut client).split(' ').count() == 3
    });
}

#[test]
fn what_a_task_changes_counts_for_the_next_one() {
    let (server, mut client) = start(1);
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    // all that a look finds at once
    let mut transaction = alice.transaction().expect("begin");
    for sql in [
        "DO $$ BEGIN ALTER ROLE alice SET work_mem = '3MB'; END $$",
        "INSERT INTO seen (what) SELECT current_setting('work_mem')",
        "SELECT pg_background_queue_enqueue($$INSERT INTO seen (what) VALUES ('better')$$, priority => 1)",
    ] {
        enqueue(&mut transaction, sql);
    }
    let last = enqueue(&mut transaction, "INSERT INTO seen (what) VALUES ('last')");
    transaction.commit().expect("commit");
    wait_state(&mut client, last, "finished");
    assert_eq!(seen(&mut client), "3MB better last");
}

/// A task that another one has the id of now does not run in its place.
#[test]
fn a_truncated_table_gives_its_ids_to_others() {
    let (server, mut client) = start(1);
    let mut other = server.superuser();
    shut(&mut client);
    // all that a look finds at once
    let mut transaction = other.transaction().expect("begin");
    let gate = enqueue(&mut transaction, GATE);
    for _ in 0..5 {
        enqueue(&mut transaction, "INSERT INTO seen (what) VALUES ('old')");
    }
    transaction.commit().expect("commit");
    wait_state(&mut client, gate, "running");
    run(&mut other, "TRUNCATE pg_background_tasks RESTART IDENTITY");
    for _ in 0..8 {
        enqueue_with(
            &mut other,
            "INSERT INTO seen (what) VALUES ('too early')",
            "run_at => now() + interval '1 day'",
        );
    }
    open(&mut client);
    let last = enqueue_with(
        &mut other,
        "INSERT INTO seen (what) VALUES ('last')",
        "priority => 200",
    );
    wait_state(&mut client, last, "finished");
    assert_eq!(seen(&mut client), "last");
    let early: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE attempt > 0 AND due_at > now()",
        &[],
    );
    assert_eq!(early, 0);
}

/// A cursor WITH HOLD runs at the commit, and may take its time: the next task is not claimed with it.
#[test]
fn a_commit_that_takes_long_keeps_no_other_task() {
    let (server, mut client) = start(2);
    shut(&mut client);
    let mut other = server.superuser();
    let mut transaction = other.transaction().expect("begin");
    let long = enqueue(
        &mut transaction,
        "DECLARE c CURSOR WITH HOLD FOR SELECT pg_advisory_xact_lock_shared(1)",
    );
    let ids: Vec<i64> = (0..5)
        .map(|_| enqueue(&mut transaction, "SELECT 1"))
        .collect();
    transaction.commit().expect("commit");
    for id in ids {
        wait_state(&mut client, id, "finished");
    }
    assert_eq!(task(&mut client, long).state, "running");
    open(&mut client);
    assert_eq!(wait_closed(&mut client, long).state, "finished");
}

/// What has come is told to a keeper, which cannot come while a command wants the database without sessions. The launcher ends meanwhile.
#[test]
fn a_wish_for_a_keeper_survives_the_launcher() {
    let (server, mut client) = start(2);
    run(&mut client, "CREATE DATABASE shop");
    let mut shop = server.connect("postgres", "shop");
    run(&mut shop, "CREATE EXTENSION pg_background_queue");
    let first = enqueue(&mut shop, "SELECT 1");
    wait_state(&mut shop, first, "finished");
    run(&mut shop, "BEGIN");
    let task = enqueue(&mut shop, "SELECT 1");
    run(&mut shop, "PREPARE TRANSACTION 'later'");
    // it waits for this session to leave, in vain, for 5 seconds
    let mut other = server.superuser();
    let copying =
        std::thread::spawn(move || other.batch_execute("CREATE DATABASE copy TEMPLATE shop"));
    wait_until("the command to run", || {
        scalar(
            &mut client,
            "SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'CREATE DATABASE copy%' AND state = 'active'",
            &[],
        )
    });
    run(&mut shop, "COMMIT PREPARED 'later'");
    let old = wait_for_launcher(&mut client, 0);
    run(&mut client, &format!("SELECT pg_terminate_backend({old})"));
    wait_for_launcher(&mut client, old);
    assert_eq!(wait_closed(&mut shop, task).state, "finished");
    copying
        .join()
        .expect("the session")
        .expect_err("its database is in use");
}

/// Whoever enqueues it when all is done puts it where the workers take from: the one that is woken need not look for it, and no other is.
#[test]
fn a_task_that_comes_when_all_is_done_is_not_looked_for() {
    let server = Server::builder()
        .conf(LIMIT, "4")
        .conf(IDLE_TIMEOUT, "10min")
        .conf("autovacuum", "off")
        .start();
    let mut client = server.superuser();
    let first = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, first, "finished");
    let (before, _) = index_reads(&mut client, 1);
    for _ in 0..20 {
        let id = enqueue(&mut client, "SELECT 1");
        wait_state(&mut client, id, "finished");
    }
    let (after, _) = index_reads(&mut client, before + 20);
    eprintln!("{} scans for 20 tasks", after - before);
    // a look is four scans: there is one after each of them, and none before
    assert!(after - before <= 20 * 4 + 20, "{}", after - before);
    assert_eq!(worker_count(&mut client), 1);
}

/// Whoever looks remembers where the rows of what comes next are, and whoever has claimed one where that is: the primary key is asked only for those
/// that are elsewhere by then, or where the table ends before that place.
#[test]
fn a_row_is_looked_up_by_its_key_only_if_it_is_not_where_it_was_seen() {
    let (server, mut client) = start(1);
    server.set_and_reload("autovacuum", "off");
    let lookups = |client: &mut Client, ended: i64| -> i64 {
        wait_until("the statistics", || {
            let sql = "SELECT n_tup_upd >= 2 * $1::bigint FROM pg_stat_user_tables WHERE relname = 'pg_background_tasks'";
            scalar(client, sql, &[&ended])
        });
        let sql = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'pg_background_tasks_pkey'";
        scalar(client, sql, &[])
    };
    let enqueue_some = |client: &mut Client, tasks: i32| {
        let sql = "SELECT pg_background_queue_enqueue('INSERT INTO seen (what) VALUES (' || n || ')') FROM generate_series(1, $1::int) AS n";
        client.execute(sql, &[&tasks]).expect("to enqueue");
    };
    let wait_seen = |client: &mut Client, tasks: i64| {
        wait_until("all to have run", || {
            scalar(client, "SELECT count(*) = $1 FROM seen", &[&tasks])
        });
    };

    enqueue_some(&mut client, 2000);
    wait_seen(&mut client, 2000);
    let before = lookups(&mut client, 2000);
    assert_eq!(before, 0, "of 2000 tasks");

    shut(&mut client);
    let mut enqueuing = server.superuser();
    let mut transaction = enqueuing.transaction().expect("begin");
    enqueue(&mut transaction, GATE);
    let sql = "SELECT count(pg_background_queue_enqueue('INSERT INTO seen (what) VALUES (' || n || ')')) FROM generate_series(1, 20) AS n";
    transaction.execute(sql, &[]).expect("to enqueue");
    transaction.commit().expect("commit");
    wait_until("the first one to run", || {
        let sql = "SELECT count(*) = 1 FROM pg_background_tasks WHERE state = 'running'";
        scalar(&mut client, sql, &[])
    });
    // the table ends before those rows were
    run(
        &mut client,
        "DELETE FROM pg_background_tasks WHERE state = 'finished'",
    );
    run(&mut client, "VACUUM FULL pg_background_tasks");
    open(&mut client);
    wait_seen(&mut client, 2020);
    assert_eq!(
        scalar::<String>(
            &mut client,
            "SELECT string_agg(state::text || attempt, ' ') FROM (SELECT DISTINCT state, attempt FROM pg_background_tasks) AS t",
            &[]
        ),
        "finished1"
    );
    let after = lookups(&mut client, 2021);
    assert!((21..=60).contains(&(after - before)), "{}", after - before);
}
