//! Transactions: what a task may do to the one that it runs in, and what runs when that commits, after the row was marked.

use std::time::{Duration, Instant};

use super::{Attack, Either, Fails, FailsEither, Field, Finished};
use crate::harness::{enqueue, run, scalar, wait_closed, wait_until};

const TRANSACTIONS: &[Attack] = &[
    (
        "commit in EXECUTE",
        "DO $$BEGIN EXECUTE 'COMMIT'; END$$",
        Fails("0A000"),
    ),
    (
        "begin in EXECUTE",
        "DO $$BEGIN EXECUTE 'BEGIN'; END$$",
        Fails("0A000"),
    ),
    (
        "commit in a function",
        "CREATE FUNCTION public.commits() RETURNS void LANGUAGE plpgsql AS 'BEGIN COMMIT; END'; SELECT public.commits()",
        Fails("2D000"),
    ),
    (
        "commit in a function of SQL",
        "CREATE FUNCTION public.commits() RETURNS void LANGUAGE sql AS 'COMMIT'",
        Either("0A000"),
    ),
    (
        "commit in a text of several statements",
        "INSERT INTO effects VALUES ('lost'); DO $$BEGIN COMMIT; END$$",
        Fails("2D000"),
    ),
    (
        "procedures that commit, called by others that do",
        "CREATE PROCEDURE public.inner() LANGUAGE plpgsql AS 'BEGIN COMMIT; ROLLBACK; COMMIT; END'",
        Finished,
    ),
    (
        "the same, called",
        "DO $$BEGIN FOR i IN 1..50 LOOP CALL public.inner(); ROLLBACK; CALL public.inner(); END LOOP; END$$",
        Finished,
    ),
    (
        "a rollback as the last act",
        "DO $$BEGIN INSERT INTO effects VALUES ('rolled back'); ROLLBACK; END$$",
        Finished,
    ),
    (
        "a chain of transactions",
        "DO $$BEGIN COMMIT AND CHAIN; ROLLBACK AND CHAIN; COMMIT; END$$",
        Finished,
    ),
    (
        "a cursor loop over commits",
        "DO $$DECLARE r record; BEGIN FOR r IN SELECT n FROM generate_series(1, 100) AS n LOOP COMMIT; END LOOP; END$$",
        Finished,
    ),
    ("a savepoint", "SAVEPOINT s", Fails("0A000")),
    (
        "the end of a block that is none",
        "SELECT 1; END; SELECT 2",
        Fails("0A000"),
    ),
    (
        "a snapshot that waits for others",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
        Finished,
    ),
    (
        "read only, serializable, with many rows read",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE READ ONLY; SELECT count(*) FROM pg_background_tasks",
        Finished,
    ),
    (
        "read only after it has written",
        "INSERT INTO effects VALUES ('read only'); SET TRANSACTION READ ONLY",
        Finished,
    ),
    (
        "a snapshot of somebody else's that is not there",
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '00000003-00000001-1'",
        FailsEither("22023", "42704"),
    ),
    (
        "the index that a failed CREATE INDEX CONCURRENTLY leaves",
        "CREATE UNIQUE INDEX CONCURRENTLY ON public.twins (a)",
        Fails("23505"),
    ),
    (
        "maintenance of a table with a function that fails",
        "ANALYZE public.poisoned",
        Either("22012"),
    ),
    (
        "a deferred constraint that fails",
        "INSERT INTO public.deferred VALUES (1); INSERT INTO public.deferred VALUES (1)",
        Fails("23505"),
    ),
    (
        "a deferred trigger that cancels, retries and enqueues",
        "INSERT INTO public.late VALUES ('SELECT pg_background_queue_cancel(max(id)), pg_background_queue_retry(max(id)) FROM pg_background_tasks WHERE state = ''finished''')",
        Finished,
    ),
    (
        "a deferred trigger that enqueues",
        "INSERT INTO public.late VALUES ('SELECT pg_background_queue_enqueue(''SELECT 1'')')",
        Finished,
    ),
    (
        "a deferred trigger that takes all settings away",
        "INSERT INTO public.late VALUES ('SET search_path = pg_temp'), ('SET LOCAL statement_timeout = 1'), ('SET ROLE NONE'), ('SET client_min_messages = error')",
        Finished,
    ),
    (
        "a deferred trigger that makes another",
        "INSERT INTO public.late VALUES ('INSERT INTO public.late VALUES (''INSERT INTO public.late VALUES (''''SELECT 1'''')'')')",
        Finished,
    ),
    (
        "a deferred trigger that uses up the stack",
        "INSERT INTO public.late VALUES ('SELECT public.down(0)')",
        Fails("54001"),
    ),
    (
        "a deferred trigger that cancels its own process",
        "INSERT INTO public.late VALUES ('SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(60)')",
        Fails("57014"),
    ),
    (
        "deferred triggers made immediate in the middle",
        "INSERT INTO public.late VALUES ('SELECT 1/0'); SET CONSTRAINTS ALL IMMEDIATE",
        Fails("22012"),
    ),
    (
        "work that is held over the commit, and fails",
        "DECLARE c CURSOR WITH HOLD FOR SELECT public.down(0)",
        Fails("54001"),
    ),
    (
        "what is dropped at the commit",
        "CREATE TEMP TABLE t (a int) ON COMMIT DROP; INSERT INTO t VALUES (1)",
        Finished,
    ),
    (
        "what is emptied at the commit, and refers to another",
        "CREATE TEMP TABLE a (a int PRIMARY KEY) ON COMMIT DELETE ROWS; CREATE TEMP TABLE b (a int REFERENCES a)",
        Either("0A000"),
    ),
];

const PREPARE: &str = "
    CREATE TABLE public.twins AS SELECT 1 AS a FROM generate_series(1, 2);
    CREATE TABLE public.deferred (a int UNIQUE DEFERRABLE INITIALLY DEFERRED);
    CREATE FUNCTION public.down(n int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN public.down(n + 1); END';
    CREATE FUNCTION public.poison(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
        $$BEGIN IF current_setting('poison.yes', true) = 'on' THEN RETURN n; END IF; RETURN 1/0; END$$;
    SET poison.yes = 'on';
    CREATE TABLE public.poisoned AS SELECT n FROM generate_series(1, 10) AS n;
    CREATE INDEX ON public.poisoned (public.poison(n));
    CREATE TABLE public.late (what text);
    CREATE FUNCTION public.late() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN EXECUTE NEW.what; RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER late AFTER INSERT ON public.late DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION public.late();
";

#[test]
fn no_game_with_transactions_breaks_the_queue() {
    let mut field = Field::new(1);
    run(&mut field.alice, PREPARE);
    field.attack(TRANSACTIONS);
    let lost: i64 = scalar(
        &mut field.client,
        "SELECT count(*) FROM effects WHERE what IN ('lost', 'rolled back')",
        &[],
    );
    assert_eq!(lost, 0);
    field.end();
}

/// What runs at the commit is part of the task: its time limit, and cancelling it, reach it there.
#[test]
fn what_runs_at_the_commit_has_no_more_time_than_the_rest() {
    let mut field = Field::new(1);
    run(&mut field.alice, PREPARE);
    for sql in [
        "INSERT INTO public.late VALUES ('SELECT pg_sleep(600)')",
        "DECLARE c CURSOR WITH HOLD FOR SELECT pg_sleep(600)",
    ] {
        let begin = Instant::now();
        let id: i64 = scalar(
            &mut field.alice,
            "SELECT pg_background_queue_enqueue($1, timeout => '500ms')",
            &[&sql],
        );
        let done = wait_closed(&mut field.client, id);
        assert!(
            done.errors()
                .starts_with("57014: canceling statement due to the timeout of 500 ms"),
            "{done:?}"
        );
        assert!(begin.elapsed() > Duration::from_millis(500));
        let id = enqueue(&mut field.alice, sql);
        let at_the_commit = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE usename = 'alice' AND wait_event = 'PgSleep')";
        wait_until("the work at the commit", || {
            scalar(&mut field.client, at_the_commit, &[])
        });
        let cancelled: bool = scalar(
            &mut field.alice,
            "SELECT pg_background_queue_cancel($1)",
            &[&id],
        );
        assert!(cancelled);
        assert_eq!(wait_closed(&mut field.client, id).state, "cancelled");
    }
    // one that is quick enough is not hit later on
    let id: i64 = scalar(
        &mut field.alice,
        "SELECT pg_background_queue_enqueue($$INSERT INTO public.late VALUES ('SELECT 1')$$, timeout => '10s')",
        &[],
    );
    assert_eq!(wait_closed(&mut field.client, id).state, "finished");
    field.survive();
    field.end();
}

/// Deferred triggers run before the task's own row is `finished`.
#[test]
fn a_task_can_do_no_more_to_its_own_row_than_its_role_can() {
    let mut field = Field::new(1);
    run(&mut field.alice, PREPARE);
    let own = "(SELECT max(id) FROM pg_background_tasks WHERE started_at IS NOT NULL)";
    for (sql, state) in [
        (
            format!("SELECT 1/(NOT pg_background_queue_retry({own}))::int"),
            "finished",
        ),
        (
            format!("SELECT 1/(pg_background_queue_delete(ARRAY[{own}]) = 0)::int"),
            "finished",
        ),
        (
            format!("SELECT pg_background_queue_cancel({own}), pg_sleep(60)"),
            "cancelled",
        ),
        (
            format!("SELECT pg_background_queue_cancel({own}); SELECT 1/0"),
            "cancelled",
        ),
        (
            format!(
                "DO $$BEGIN PERFORM pg_background_queue_cancel({own}), pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END$$"
            ),
            "finished",
        ),
    ] {
        let id = enqueue(&mut field.alice, &sql);
        let task = wait_closed(&mut field.client, id);
        assert_eq!(task.state, state, "{sql}: {}", task.errors());
        assert_eq!(task.attempt, 1, "{sql}");
    }
    let id = enqueue(
        &mut field.alice,
        "INSERT INTO effects VALUES ('deletes itself'); \
         INSERT INTO public.late VALUES ('SELECT pg_background_queue_delete(array_agg(id)) FROM pg_background_tasks')",
    );
    let task = wait_closed(&mut field.client, id);
    assert_eq!(task.state, "finished", "{}", task.errors());
    let effects: i64 = scalar(
        &mut field.client,
        "SELECT count(*) FROM effects WHERE what = 'deletes itself'",
        &[],
    );
    assert_eq!(effects, 1);
    field.survive();
    let victim = field.victims[0];
    assert_eq!(
        crate::harness::task(&mut field.client, victim).state,
        "finished"
    );
    field.end();
}
