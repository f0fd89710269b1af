//! What a task may try to leave behind in its session, for the next task of its role, or to spoil it.

use super::{Attack, Either, Fails, Field, Finished};
use crate::harness::{enqueue, wait_closed, wait_state};

const LEFT_BEHIND: &[Attack] = &[
    (
        "listen in a block",
        "DO $$BEGIN EXECUTE 'LISTEN x'; END$$",
        Either("0A000"),
    ),
    (
        "listen and swallow the refusal",
        "DO $$BEGIN EXECUTE 'LISTEN x'; EXCEPTION WHEN OTHERS THEN NULL; END$$",
        Finished,
    ),
    (
        "a cursor that is held, by a block",
        "DO $$BEGIN EXECUTE 'DECLARE c CURSOR WITH HOLD FOR SELECT 1'; END$$",
        Finished,
    ),
    (
        "a cursor that is held, and fails when it is",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1/(5 - n) FROM generate_series(1, 10) AS n",
        Fails("22012"),
    ),
    (
        "a hundred cursors, one of them scrolled",
        "DO $$BEGIN FOR i IN 1..100 LOOP EXECUTE format('DECLARE c%s SCROLL CURSOR WITH HOLD FOR SELECT 1', i); END LOOP; END$$",
        Finished,
    ),
    (
        "advisory locks, then an error",
        "SELECT pg_advisory_lock(n) FROM generate_series(1000, 1200) AS n; SELECT 1/0",
        Fails("22012"),
    ),
    (
        "advisory locks of a session, kept over commits",
        "DO $$BEGIN PERFORM pg_advisory_lock(1); COMMIT; PERFORM pg_advisory_lock_shared(2); COMMIT; RAISE 'x'; END$$",
        Fails("P0001"),
    ),
    (
        "prepared statements from a block, then an error",
        "DO $$BEGIN EXECUTE 'PREPARE p AS SELECT 1'; COMMIT; RAISE 'x'; END$$",
        Fails("P0001"),
    ),
    (
        "temporary objects committed, then an error",
        "DO $$BEGIN CREATE TEMP TABLE pg_background_tasks (a int); CREATE TEMP SEQUENCE s; COMMIT; RAISE 'x'; END$$",
        Fails("P0001"),
    ),
    (
        "a temporary function, type and operator of a name that others use",
        "CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz'; \
         CREATE TYPE pg_temp.pg_background_queue_task_state AS ENUM ('finished'); \
         CREATE FUNCTION pg_temp.eq(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT true'; \
         CREATE OPERATOR pg_temp.= (FUNCTION = pg_temp.eq, LEFTARG = bigint, RIGHTARG = bigint)",
        Finished,
    ),
    (
        "settings of the session by a block that commits",
        "DO $$BEGIN PERFORM set_config('search_path', 'pg_temp', false); COMMIT; SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; COMMIT; END$$",
        Finished,
    ),
    (
        "settings of the session, then an error after a commit",
        "DO $$BEGIN PERFORM set_config('statement_timeout', '1', false), set_config('row_security', 'off', false); COMMIT; RAISE 'x'; END$$",
        Fails("P0001"),
    ),
    (
        "settings of a custom prefix, and of ours",
        "SET pg_background_queue.x = 1",
        Either("42602"),
    ),
    (
        "settings in a function's SET clause, left by an error",
        "CREATE FUNCTION public.set_clause() RETURNS void LANGUAGE plpgsql \
            SET search_path = pg_temp SET work_mem = '64kB' SET default_transaction_isolation = serializable AS \
            'BEGIN SET LOCAL statement_timeout = 7; RAISE SQLSTATE ''22000''; END'; \
         SELECT public.set_clause()",
        Fails("22000"),
    ),
    (
        "another task's name for the session",
        "SET application_name = 'pg_background_queue task 1'",
        Finished,
    ),
    (
        "a long name for the session, with odd characters",
        r"SELECT set_config('application_name', repeat(E'\n\t%s%n', 1000), false)",
        Finished,
    ),
    ("forget everything", "DISCARD ALL", Finished),
    (
        "forget everything in a function",
        "DO $$BEGIN EXECUTE 'DISCARD ALL'; END$$",
        Fails("25001"),
    ),
    (
        "forget everything in a text of several",
        "SELECT 1; DISCARD ALL",
        Fails("25001"),
    ),
    (
        "forget plans and sequences",
        "DISCARD PLANS; DISCARD SEQUENCES; CLOSE ALL; DEALLOCATE ALL; UNLISTEN *",
        Finished,
    ),
    (
        "an encoding of the client that does not fit",
        r"SET client_encoding = 'EUC_JP'; DO $$BEGIN RAISE WARNING 'ä'; RAISE 'ö'; END$$",
        Fails("P0001"),
    ),
    (
        "errors in the middle of a parallel query",
        // from 16 on it has another name
        "SELECT set_config(name, 'on', false) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query'); \
         SELECT 1/(n - 5) FROM generate_series(1, 10) AS n",
        Either("22012"),
    ),
    (
        "time limits of the session as short as can be",
        "SET idle_in_transaction_session_timeout = 1; SET lock_timeout = 1; SET deadlock_timeout = 1",
        // the last is a superuser's
        Fails("42501"),
    ),
    (
        "a time limit that strikes at the end",
        "SET statement_timeout = 1",
        Either("57014"),
    ),
    (
        "what a library does when it is loaded",
        "LOAD 'plpgsql'",
        Fails("42501"),
    ),
    (
        "a transaction that is prepared",
        "PREPARE TRANSACTION 'x'",
        Fails("0A000"),
    ),
    (
        "a transaction that is prepared in a block",
        "DO $$BEGIN EXECUTE 'PREPARE TRANSACTION ''x'''; END$$",
        Fails("0A000"),
    ),
    (
        "a large object that stays open",
        "SELECT lo_open(lo_create(0), 131072); DO $$BEGIN RAISE 'x'; END$$",
        Fails("P0001"),
    ),
    (
        "a snapshot exported and imported",
        "SELECT pg_export_snapshot()",
        Finished,
    ),
    (
        "the random seed, which may stay",
        "SELECT setseed(0.5)",
        Finished,
    ),
];

/// True in a session in which nothing has been left behind.
const CLEAN: &str = "SELECT 1/(
        (SELECT count(*) = 0 FROM pg_prepared_statements)
        AND (SELECT count(*) = 0 FROM pg_cursors)
        AND (SELECT count(*) = 0 FROM pg_listening_channels())
        AND (SELECT count(*) = 0 FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory')
        AND (SELECT count(*) = 0 FROM pg_class WHERE relnamespace = pg_my_temp_schema())
        AND (SELECT count(*) = 0 FROM pg_prepared_xacts)
        AND (SELECT count(*) = 0 FROM pg_settings WHERE source = 'session' AND name NOT IN
            ('application_name', 'search_path', 'exit_on_error', 'role', 'session_authorization', 'is_superuser'))
        AND current_setting('search_path') = '\"$user\", public'
        AND current_setting('application_name') ~ '^pg_background_queue task [0-9]+$'
        AND current_user = 'alice' AND session_user = 'alice'
        AND now() > '2020-01-01'
    )::int";

#[test]
fn what_a_task_leaves_in_its_session_is_gone_for_the_next() {
    let mut field = Field::new(1);
    for attack in LEFT_BEHIND {
        field.attack(&[*attack]);
        let id = enqueue(&mut field.alice, CLEAN);
        let task = wait_closed(&mut field.client, id);
        assert_eq!(
            task.state,
            "finished",
            "after {}: {}",
            attack.0,
            task.errors()
        );
    }
    field.end();
}

/// `exit_on_error` makes an error the end of the session: a role may do that to itself.
#[test]
fn a_task_that_ends_its_session_with_its_error_has_failed() {
    let mut field = Field::new(1);
    for sql in [
        "SET exit_on_error = on; SELECT 1/0",
        "DO $$BEGIN SET exit_on_error = on; COMMIT; RAISE 'x'; END$$",
    ] {
        let id = enqueue(&mut field.alice, sql);
        let next = enqueue(&mut field.alice, CLEAN);
        let task = wait_closed(&mut field.client, id);
        assert_eq!((task.state.as_str(), task.attempt), ("failed", 1), "{sql}");
        wait_state(&mut field.client, next, "finished");
        field.survive();
    }
    field.end();
}
