//! What a role can do through the queue: what it can do by itself, and no more; and what others can learn of its
//! tasks: nothing.

use std::thread;

use postgres::Client;
use postgres::error::SqlState;

use crate::harness::{
    PATIENCE, Server, create_role, enqueue, enqueue_topic, launcher_pid, run, scalar, task, tasks,
    wait_all_closed, wait_closed, wait_for, wait_state, wait_until, workers,
};

/// A table in which tasks say who they are.
#[track_caller]
fn prepare_witness(client: &mut Client) {
    run(
        client,
        "CREATE TABLE public.witness (what text, session text, role text, is_superuser text); \
         GRANT SELECT, INSERT ON public.witness TO PUBLIC",
    );
}

/// The statement that does so.
fn testify(what: &str) -> String {
    format!(
        "INSERT INTO public.witness VALUES ('{}', session_user, current_user, \
         pg_catalog.current_setting('is_superuser'))",
        what.replace('\'', "''")
    )
}

/// What has been testified, one line each, in no particular order.
#[track_caller]
fn testimony(client: &mut Client) -> Vec<String> {
    let mut lines: Vec<String> = client
        .query(
            "SELECT concat_ws(' ', session, role, is_superuser) FROM public.witness",
            &[],
        )
        .expect("the witness table")
        .iter()
        .map(|row| row.get(0))
        .collect();
    lines.sort();
    lines.dedup();
    lines
}

/// The SQLSTATE of a statement that must be refused.
#[track_caller]
fn refusal(client: &mut Client, sql: &str) -> SqlState {
    match client.batch_execute(sql) {
        Ok(()) => panic!("{sql}: was not refused"),
        Err(error) => error
            .code()
            .unwrap_or_else(|| panic!("{sql}: {error}"))
            .clone(),
    }
}

/// Ways to become somebody else that end without an error, each followed by a testimony.
const IN_VAIN: &[&str] = &[
    "RESET ROLE",
    "SET ROLE NONE",
    "SET LOCAL ROLE NONE",
    "SET ROLE alice; RESET ROLE",
    "SET ROLE alice; RESET ALL",
    "RESET SESSION AUTHORIZATION",
    "SET SESSION AUTHORIZATION DEFAULT",
    "SET SESSION AUTHORIZATION alice; RESET SESSION AUTHORIZATION",
    "SET LOCAL SESSION AUTHORIZATION DEFAULT",
    "DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES; RESET ROLE",
    "SELECT set_config('role', 'none', false)",
    "SELECT set_config('role', 'alice', false), set_config('session_authorization', 'alice', false)",
    "SELECT set_config('session_authorization', session_user::text, true)",
    "DO $$BEGIN SET ROLE postgres; EXCEPTION WHEN OTHERS THEN NULL; END$$",
    "DO $$BEGIN SET SESSION AUTHORIZATION postgres; EXCEPTION WHEN OTHERS THEN RESET ROLE; END$$",
    "DO $$BEGIN PERFORM set_config('role', 'postgres', false); EXCEPTION WHEN OTHERS THEN RESET SESSION AUTHORIZATION; END$$",
    "DO $$BEGIN COMMIT; RESET ROLE; COMMIT; RESET SESSION AUTHORIZATION; ROLLBACK; END$$",
];

/// Ways that are refused, with the SQLSTATE.
const REFUSED: &[(&str, &str)] = &[
    ("SET ROLE postgres", "42501"),
    ("SET LOCAL ROLE postgres", "42501"),
    ("SET ROLE bob", "42501"),
    ("SET SESSION AUTHORIZATION postgres", "42501"),
    ("SET SESSION AUTHORIZATION bob", "42501"),
    ("SELECT set_config('role', 'postgres', false)", "42501"),
    ("SELECT set_config('role', 'bob', true)", "42501"),
    (
        "SELECT set_config('session_authorization', 'postgres', false)",
        "42501",
    ),
    ("SET is_superuser = on", "55P02"),
    ("SET session_replication_role = replica", "42501"),
    ("SET log_statement = 'none'", "42501"),
    ("SET dynamic_library_path = '/tmp'", "42501"),
    (
        "SET pg_background_queue.max_parallel_running_tasks_count = 0",
        "55P02",
    ),
    ("LOAD 'pg_background_queue'", "42501"),
    ("ALTER SYSTEM SET work_mem = '1MB'", "42501"),
    ("ALTER ROLE alice SUPERUSER", "42501"),
    ("ALTER ROLE postgres NOLOGIN", "42501"),
    ("CREATE ROLE mallory SUPERUSER", "42501"),
    ("GRANT postgres TO alice", "42501"),
    ("GRANT bob TO alice", "42501"),
    ("CREATE DATABASE mallory", "42501"),
    ("COPY public.witness TO PROGRAM 'cat'", "42501"),
    ("COPY public.witness FROM '/etc/passwd'", "42501"),
    ("SELECT pg_read_file('postgresql.conf')", "42501"),
    ("SELECT rolpassword FROM pg_authid", "42501"),
    (
        "CREATE FUNCTION public.c() RETURNS void LANGUAGE c AS 'pg_background_queue', 'pg_background_queue_launcher_main'",
        "42501",
    ),
    (
        "UPDATE public.pg_background_tasks SET role_oid = 10, role_name = 'postgres'",
        "42501",
    ),
    (
        "UPDATE public.pg_background_tasks SET state = 'finished'",
        "42501",
    ),
    (
        "INSERT INTO public.pg_background_tasks (sql_statement, role_oid, role_name, origin, search_path) \
      VALUES ('ALTER ROLE alice SUPERUSER', 10, 'postgres', '', '')",
        "42501",
    ),
    ("DELETE FROM public.pg_background_tasks", "42501"),
    ("TRUNCATE public.pg_background_tasks", "42501"),
    (
        "LOCK TABLE public.pg_background_tasks IN ACCESS EXCLUSIVE MODE; SELECT 1",
        "42501",
    ),
    (
        "SELECT 1 FROM public.pg_background_tasks FOR UPDATE",
        "42501",
    ),
    (
        "SELECT nextval('public.pg_background_tasks_id_seq')",
        "42501",
    ),
    (
        "SELECT setval('public.pg_background_tasks_id_seq', 1)",
        "42501",
    ),
    ("SELECT public.pg_background_queue_release()", "42501"),
    (
        "SELECT public.pg_background_queue_calibrate_workers_count()",
        "42501",
    ),
    ("DROP EXTENSION pg_background_queue", "42501"),
    ("ALTER EXTENSION pg_background_queue UPDATE", "42501"),
    (
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres' AND pid <> pg_backend_pid()",
        "42501",
    ),
];

#[test]
fn a_task_cannot_become_anybody_else() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "2")
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    create_role(&mut client, "bob");
    prepare_witness(&mut client);
    let mut alice = server.connect("alice", "postgres");

    let mut in_vain = Vec::new();
    for way in IN_VAIN {
        // alone, where it may commit inside, and with what comes after it in the same task
        in_vain.push(enqueue(&mut alice, way));
        in_vain.push(enqueue(&mut alice, &testify(way)));
        if !way.contains("COMMIT") {
            in_vain.push(enqueue(&mut alice, &format!("{way}; {}", testify(way))));
        }
    }
    let refused: Vec<_> = REFUSED
        .iter()
        .map(|(way, state)| (enqueue(&mut alice, way), *way, *state))
        .collect();
    let last = enqueue(&mut alice, &testify("after all of it"));

    for id in in_vain {
        wait_state(&mut alice, id, "finished");
    }
    for (id, way, state) in refused {
        let task = wait_closed(&mut alice, id);
        assert_eq!(task.state, "failed", "{way}");
        assert!(task.errors().starts_with(state), "{way}: {}", task.errors());
    }
    wait_state(&mut alice, last, "finished");
    assert_eq!(testimony(&mut client), ["alice alice off"]);

    // nothing of all that has hurt the next ones to come
    let bobs = enqueue(&mut server.connect("bob", "postgres"), &testify("bob"));
    let mine = enqueue(&mut client, &testify("the superuser"));
    wait_state(&mut client, bobs, "finished");
    wait_state(&mut client, mine, "finished");
    assert_eq!(
        testimony(&mut client),
        ["alice alice off", "bob bob off", "postgres postgres on"]
    );
    let superusers: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_roles WHERE rolsuper",
        &[],
    );
    assert_eq!(superusers, 1);
    assert!(launcher_pid(&mut client).is_some());
}

/// What somebody may put in the way of names that the queue could use, in his schema `trap`. All of it reports to a
/// table as whoever springs it.
const TRAPS: &str = "
    CREATE TABLE trap.sprung (what text);
    GRANT INSERT, SELECT ON trap.sprung TO PUBLIC;
    GRANT USAGE ON SCHEMA trap TO PUBLIC;
    CREATE FUNCTION trap.spring(what text) RETURNS void LANGUAGE sql AS
        'INSERT INTO trap.sprung VALUES (pg_catalog.format(''%s as %s'', what, current_user))';
    CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE plpgsql AS
        $$BEGIN PERFORM trap.spring('now'); RETURN '-infinity'; END$$;
    CREATE FUNCTION trap.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
        $$BEGIN PERFORM trap.spring('clock_timestamp'); RETURN 'infinity'; END$$;
    CREATE FUNCTION trap.nextval(regclass) RETURNS bigint LANGUAGE plpgsql AS
        $$BEGIN PERFORM trap.spring('nextval'); RETURN 1; END$$;
    CREATE FUNCTION trap.set_config(text, text, boolean) RETURNS text LANGUAGE plpgsql AS
        $$BEGIN PERFORM trap.spring('set_config'); RETURN ''; END$$;
    CREATE FUNCTION trap.pg_background_queue_enqueue(text, text DEFAULT NULL) RETURNS bigint LANGUAGE plpgsql AS
        $$BEGIN PERFORM trap.spring('enqueue'); RETURN -1; END$$;
    CREATE TYPE trap.pg_background_queue_task_state AS ENUM ('finished', 'failed', 'running', 'pending');
    CREATE TABLE trap.pg_background_tasks (LIKE public.pg_background_tasks);
    CREATE SEQUENCE trap.pg_background_tasks_id_seq;
    CREATE INDEX pg_background_tasks_pkey ON trap.pg_background_tasks (id);
    CREATE INDEX pg_background_tasks_queue_idx ON trap.pg_background_tasks (id);
    CREATE INDEX pg_background_tasks_state_idx ON trap.pg_background_tasks (id);
    CREATE FUNCTION trap.on_write() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN PERFORM trap.spring('write'); RETURN NULL; END$$;
    CREATE TRIGGER on_write BEFORE INSERT OR UPDATE OR DELETE ON trap.pg_background_tasks
        EXECUTE FUNCTION trap.on_write();
    CREATE VIEW trap.pg_roles AS SELECT 10::oid AS oid, trap.spring('pg_roles') IS NULL AS sprung, 'alice'::name AS rolname;
    DO $do$
    DECLARE kind text;
    BEGIN
        FOREACH kind IN ARRAY '{bigint,oid,name,text,int,boolean,timestamptz,public.pg_background_queue_task_state}'::text[] LOOP
            EXECUTE format('CREATE FUNCTION trap.compare(%1$s, %1$s) RETURNS boolean LANGUAGE plpgsql AS '
                '$$BEGIN PERFORM trap.spring(''operator''); RETURN true; END$$', kind);
            EXECUTE format('CREATE OPERATOR trap.= (FUNCTION = trap.compare, LEFTARG = %1$s, RIGHTARG = %1$s)', kind);
            EXECUTE format('CREATE OPERATOR trap.<> (FUNCTION = trap.compare, LEFTARG = %1$s, RIGHTARG = %1$s)', kind);
        END LOOP;
    END$do$;
    CREATE FUNCTION trap.compare(bigint, bigint[]) RETURNS boolean LANGUAGE plpgsql AS
        $$BEGIN PERFORM trap.spring('array operator'); RETURN true; END$$;
    CREATE OPERATOR trap.= (FUNCTION = trap.compare, LEFTARG = bigint, RIGHTARG = bigint[]);
";

const TRAPPED: &str = "trap, pg_temp, pg_catalog, public";

#[test]
fn planted_objects_are_not_met_by_the_queue() {
    let server = Server::start_default();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    prepare_witness(&mut client);
    run(&mut client, "CREATE SCHEMA trap AUTHORIZATION alice");
    let mut alice = server.connect("alice", "postgres");
    run(&mut alice, TRAPS);
    // they do work
    run(&mut alice, &format!("SET search_path = {TRAPPED}"));
    let sprung: Vec<String> = alice
        .query(
            "SELECT 1::bigint = 2::bigint, now(), 'a'::name = 'b'::name",
            &[],
        )
        .and_then(|_| alice.query("SELECT what FROM trap.sprung ORDER BY what", &[]))
        .expect("trapped")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(sprung.len() >= 3, "{sprung:?}");
    run(&mut alice, "DELETE FROM trap.sprung; RESET search_path");

    // as a setting of her role, for new sessions; as the superuser's, who should not, but whom it must not cost the server
    run(
        &mut alice,
        &format!("ALTER ROLE alice SET search_path = {TRAPPED}"),
    );
    run(&mut client, &format!("SET search_path = {TRAPPED}"));
    let mut alice = server.connect("alice", "postgres");
    let mut ids = Vec::new();
    for client in [&mut alice, &mut client] {
        for sql in [
            testify("trapped"),
            "SELECT pg_catalog.int4div(1, 0)".to_owned(),
            "no syntax".to_owned(),
            "DO $$BEGIN COMMIT; ROLLBACK; END$$".to_owned(),
            "CREATE TEMP TABLE pg_background_tasks (LIKE public.pg_background_tasks); \
             CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT NULL::timestamptz'; \
             SET search_path = pg_temp"
                .to_owned(),
        ] {
            let id: i64 = scalar(client, "SELECT public.pg_background_queue_enqueue($1)", &[&sql]);
            ids.push(id);
        }
    }
    // looked at from a session without traps
    let mut observer = server.superuser();
    wait_all_closed(&mut observer, PATIENCE);
    let states: Vec<String> = ids
        .iter()
        .map(|&id| task(&mut observer, id).state)
        .collect();
    let expected = ["finished", "failed", "failed", "finished", "finished"];
    assert_eq!(states, [expected, expected].concat());
    let paths: i64 = scalar(
        &mut observer,
        "SELECT count(*) FROM pg_background_tasks WHERE search_path = $1",
        &[&TRAPPED],
    );
    assert_eq!(paths, 10);

    // the functions that write in SQL
    run(
        &mut observer,
        "UPDATE pg_background_tasks SET held = true, state = 'pending', closed_at = NULL WHERE sql_statement = 'no syntax'",
    );
    let released: i64 = scalar(
        &mut client,
        "SELECT public.pg_background_queue_release()",
        &[],
    );
    assert_eq!(released, 2);
    wait_all_closed(&mut observer, PATIENCE);
    run(
        &mut client,
        "SELECT public.pg_background_queue_ensure_workers()",
    );
    let deleted: i64 = scalar(
        &mut alice,
        "SELECT public.pg_background_queue_delete($1)",
        &[&ids],
    );
    assert_eq!(deleted, 5, "alice's, no more");
    let deleted: i64 = scalar(
        &mut client,
        "SELECT public.pg_background_queue_delete($1)",
        &[&ids],
    );
    assert_eq!(deleted, 5);

    let sprung: Option<String> = scalar(
        &mut observer,
        "SELECT string_agg(DISTINCT what, ', ') FROM trap.sprung",
        &[],
    );
    assert_eq!(sprung, None);
    assert_eq!(
        testimony(&mut observer),
        ["alice alice off", "postgres postgres on"]
    );
}

/// Settings that a role can give itself, and that a query of the queue's own would trip over. Those that not every
/// version has are set where they are known.
const SETTINGS: &[(&str, &str)] = &[
    ("search_path", "''"),
    ("search_path", "nowhere, pg_temp"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_isolation", "'serializable'"),
    ("default_transaction_isolation", "'repeatable read'"),
    ("default_transaction_deferrable", "on"),
    ("row_security", "off"),
    ("lock_timeout", "1"),
    ("idle_in_transaction_session_timeout", "1"),
    ("idle_session_timeout", "1"),
    ("DateStyle", "'SQL, DMY'"),
    ("IntervalStyle", "'sql_standard'"),
    ("TimeZone", "'Pacific/Chatham'"),
    ("bytea_output", "'escape'"),
    ("extra_float_digits", "-15"),
    ("standard_conforming_strings", "off"),
    ("backslash_quote", "on"),
    ("escape_string_warning", "off"),
    ("quote_all_identifiers", "on"),
    ("transform_null_equals", "on"),
    ("array_nulls", "off"),
    ("default_tablespace", "'nowhere'"),
    ("temp_tablespaces", "'nowhere'"),
    ("client_encoding", "'LATIN1'"),
    ("client_min_messages", "'debug5'"),
    ("application_name", "'not the queue'"),
    ("work_mem", "64"),
    ("temp_buffers", "100"),
    ("max_stack_depth", "100"),
    ("synchronous_commit", "off"),
    ("commit_siblings", "0"),
    ("enable_indexscan", "off"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("force_parallel_mode", "on"),
    ("debug_parallel_query", "on"),
    ("jit_above_cost", "0"),
    ("cursor_tuple_fraction", "0"),
    ("gin_fuzzy_search_limit", "1"),
    ("constraint_exclusion", "on"),
    ("xmloption", "'document'"),
    ("check_function_bodies", "off"),
    ("session_authorization", "alice"),
    ("role", "alice"),
    ("role", "postgres"),
    ("role", "bob"),
];

#[test]
fn settings_of_the_role_do_not_reach_the_bookkeeping() {
    let server = Server::start_default();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    create_role(&mut client, "bob");
    let mut alice = server.connect("alice", "postgres");
    for (name, value) in SETTINGS {
        let known: bool = scalar(
            &mut client,
            "SELECT EXISTS (SELECT FROM pg_settings WHERE name = $1) OR $1 IN ('role', 'session_authorization')",
            &[name],
        );
        if !known {
            continue;
        }
        run(&mut alice, "ALTER ROLE alice RESET ALL");
        let set = alice.batch_execute(&format!("ALTER ROLE alice SET {name} = {value}"));
        if let Err(error) = set {
            // what cannot be set does no harm either
            assert_eq!(
                error.code(),
                Some(&SqlState::INSUFFICIENT_PRIVILEGE),
                "{name} = {value}: {error:?}"
            );
            continue;
        }
        let good = enqueue_topic(&mut alice, "SELECT 1", name);
        let bad = enqueue_topic(&mut alice, "SELECT 1; SELECT 1/0", name);
        wait_state(&mut client, good, "finished");
        let bad = wait_state(&mut client, bad, "failed");
        assert_eq!(bad.errors(), "22012: division by zero", "{name} = {value}");
    }
}

/// A limit of a millisecond may hit the task; never its bookkeeping.
#[test]
fn a_statement_timeout_of_a_millisecond_reaches_the_task_alone() {
    let server = Server::start_default();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    // her own session's calls are statements, too: it is opened before
    let mut alice = server.connect("alice", "postgres");
    run(&mut client, "ALTER ROLE alice SET statement_timeout = 1");
    let quick: Vec<i64> = (0..50).map(|_| enqueue(&mut alice, "SELECT 1")).collect();
    let slow: Vec<i64> = (0..5)
        .map(|_| enqueue(&mut alice, "SELECT pg_sleep(1)"))
        .collect();
    for id in quick {
        let task = wait_closed(&mut alice, id);
        assert!(
            task.state == "finished" || task.errors().starts_with("57014"),
            "{task:?}"
        );
    }
    for id in slow {
        let task = wait_closed(&mut alice, id);
        assert!(task.errors().starts_with("57014"), "{task:?}");
    }
}

/// `session_replication_role` is a superuser's to set, and silences triggers: of the task, as in any session of the
/// role.
#[test]
fn what_a_superuser_sets_for_a_role_counts() {
    let server = Server::start_default();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    prepare_witness(&mut client);
    run(
        &mut client,
        "ALTER ROLE alice SET session_replication_role = replica; \
         CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER nothing BEFORE INSERT ON witness FOR EACH ROW EXECUTE FUNCTION nothing()",
    );
    let mut alice = server.connect("alice", "postgres");
    let id = enqueue(&mut alice, &testify("replica"));
    wait_state(&mut alice, id, "finished");
    assert_eq!(testimony(&mut client), ["alice alice off"]);
}

#[test]
fn a_superusers_task_runs_as_that_superuser() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "1")
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    run(&mut client, "CREATE ROLE root LOGIN SUPERUSER");
    prepare_witness(&mut client);
    let mut root = server.connect("root", "postgres");
    for sql in [
        &testify("root"),
        &format!("SET ROLE alice; {}", testify("root as alice")),
        &testify("root again"),
        &format!(
            "SET SESSION AUTHORIZATION alice; {}",
            testify("root turned alice")
        ),
        &testify("root for the last time"),
        "COPY (SELECT 1) TO PROGRAM 'cat > /dev/null'",
    ] {
        let id = enqueue(&mut root, sql);
        wait_state(&mut root, id, "finished");
    }
    let said: Vec<String> = client
        .query(
            "SELECT concat_ws(' ', what, session, role, is_superuser) FROM witness",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(
        said,
        [
            "root root root on",
            "root as alice root alice off",
            "root again root root on",
            "root turned alice alice alice off",
            "root for the last time root root on",
        ]
    );

    // no superuser any more: not its next task either, though its worker is still there
    run(
        &mut client,
        "ALTER ROLE root NOSUPERUSER; GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO root",
    );
    let id = enqueue(&mut root, "ALTER ROLE alice SUPERUSER");
    assert!(wait_closed(&mut root, id).errors().starts_with("42501"));
    let id = enqueue(&mut root, &testify("mere root"));
    wait_state(&mut root, id, "finished");
    let last: String = scalar(
        &mut client,
        "SELECT is_superuser FROM witness WHERE what = 'mere root'",
        &[],
    );
    assert_eq!(last, "off");
}

#[test]
fn a_definers_function_enqueues_as_its_owner() {
    let server = Server::start_default();
    let mut client = server.superuser();
    create_role(&mut client, "owner");
    run(
        &mut client,
        "CREATE ROLE alice LOGIN; CREATE SCHEMA app AUTHORIZATION owner; GRANT USAGE ON SCHEMA app TO alice",
    );
    prepare_witness(&mut client);
    let mut owner = server.connect("owner", "postgres");
    let task = testify("definer").replace('\'', "''");
    run(
        &mut owner,
        &format!(
            "CREATE FUNCTION app.ask() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp \
             AS $$SELECT public.pg_background_queue_enqueue('{task}')$$"
        ),
    );
    let mut alice = server.connect("alice", "postgres");
    // neither what she may call nor what she has planted gets into it
    assert_eq!(
        refusal(&mut alice, "SELECT pg_background_queue_enqueue('SELECT 1')"),
        SqlState::INSUFFICIENT_PRIVILEGE
    );
    run(
        &mut alice,
        "CREATE TEMP TABLE witness (n int); SET search_path = pg_temp",
    );
    let id: i64 = scalar(&mut alice, "SELECT app.ask()", &[]);
    let done = wait_state(&mut client, id, "finished");
    assert_eq!(done.role_name.as_deref(), Some("owner"));
    assert_eq!(done.search_path.as_deref(), Some("pg_catalog, pg_temp"));
    assert_eq!(testimony(&mut client), ["owner owner off"]);
    // it is the owner's task, not hers
    let hers: i64 = scalar(
        &mut alice,
        "SELECT count(*) FROM public.pg_background_tasks",
        &[],
    );
    assert_eq!(hers, 0);
    let deleted: i64 = scalar(
        &mut alice,
        "SELECT public.pg_background_queue_delete($1)",
        &[&vec![id]],
    );
    assert_eq!(deleted, 0);
    let deleted: i64 = scalar(
        &mut owner,
        "SELECT public.pg_background_queue_delete($1)",
        &[&vec![id]],
    );
    assert_eq!(deleted, 1);
}

/// A superuser's maintenance of somebody's table calls functions of his, as him: so what they enqueue is his, too.
#[test]
fn what_maintenance_enqueues_is_the_table_owners() {
    let server = Server::builder().conf("autovacuum", "off").start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    prepare_witness(&mut client);
    run(&mut client, "CREATE SCHEMA hers AUTHORIZATION alice");
    let mut alice = server.connect("alice", "postgres");
    let task = testify("index").replace('\'', "''");
    run(
        &mut alice,
        &format!(
            "CREATE TABLE hers.t AS SELECT n FROM generate_series(1, 3) AS n; \
             CREATE FUNCTION hers.f(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS \
                $$BEGIN PERFORM public.pg_background_queue_enqueue('{task}'); RETURN n; END$$; \
             CREATE INDEX ON hers.t (hers.f(n)); \
             CREATE MATERIALIZED VIEW hers.v AS SELECT hers.f(n) FROM hers.t WITH NO DATA"
        ),
    );
    let mut before = tasks(&mut client).len();
    for command in [
        "ANALYZE hers.t",
        "REINDEX TABLE hers.t",
        "VACUUM FULL hers.t",
        "REFRESH MATERIALIZED VIEW hers.v",
    ] {
        run(&mut client, command);
        let after = tasks(&mut client).len();
        assert!(after > before, "{command}");
        before = after;
    }
    wait_all_closed(&mut client, PATIENCE);
    assert!(
        tasks(&mut client)
            .iter()
            .all(|task| task.role_name.as_deref() == Some("alice"))
    );
    assert_eq!(testimony(&mut client), ["alice alice off"]);
}

#[test]
fn a_task_enqueued_under_set_role_is_that_roles() {
    let server = Server::start_default();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    create_role(&mut client, "team");
    create_role(&mut client, "nologin_team");
    prepare_witness(&mut client);
    run(
        &mut client,
        "GRANT team, nologin_team TO alice; ALTER ROLE nologin_team NOLOGIN",
    );
    let mut alice = server.connect("alice", "postgres");
    run(&mut alice, "SET ROLE team");
    let id = enqueue(&mut alice, &testify("team"));
    let done = wait_state(&mut alice, id, "finished");
    assert_eq!(done.role_name.as_deref(), Some("team"));
    assert_eq!(testimony(&mut client), ["team team off"]);
    // in it there is no way back to who called
    let id = enqueue(&mut alice, "SET ROLE alice");
    assert!(wait_closed(&mut alice, id).errors().starts_with("42501"));

    let version: i32 = scalar(
        &mut client,
        "SELECT current_setting('server_version_num')::int",
        &[],
    );
    run(&mut alice, "SET ROLE nologin_team");
    if version < 170_000 {
        let error = alice
            .query("SELECT pg_background_queue_enqueue('SELECT 1')", &[])
            .expect_err("no worker can log in as it");
        let error = error.as_db_error().unwrap();
        assert!(
            error
                .message()
                .contains("\"nologin_team\" is not permitted to log in"),
            "{error:?}"
        );
        assert!(
            error.hint().is_some_and(|hint| hint.contains("LOGIN")),
            "{error:?}"
        );
    } else {
        let id = enqueue(&mut alice, &testify("nologin team"));
        wait_state(&mut alice, id, "finished");
    }
    run(&mut alice, "RESET ROLE");
    let id = enqueue(&mut alice, &testify("alice"));
    wait_state(&mut alice, id, "finished");
}

/// `ALTER ROLE … SET role` makes every login another role, and the owner of a database can do it to all who log in there:
/// a task is still run as who enqueued it.
#[test]
fn a_role_that_is_set_to_another_at_login_is_not_so_in_its_tasks() {
    let server = Server::start_default();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    create_role(&mut client, "team");
    prepare_witness(&mut client);
    run(
        &mut client,
        "GRANT team TO alice; ALTER ROLE alice SET role = 'team'",
    );
    let mut alice = server.connect("alice", "postgres");
    let now: String = scalar(
        &mut alice,
        "SELECT session_user || ' ' || current_user",
        &[],
    );
    assert_eq!(now, "alice team");
    // enqueued as the role that is in force
    let id = enqueue(&mut alice, &testify("team"));
    assert_eq!(
        wait_state(&mut client, id, "finished").role_name.as_deref(),
        Some("team")
    );
    assert_eq!(testimony(&mut client), ["team team off"]);
    run(&mut client, "TRUNCATE witness");
    run(&mut alice, "SET ROLE alice");
    for _ in 0..2 {
        let id = enqueue(&mut alice, &testify("alice"));
        assert_eq!(
            wait_state(&mut client, id, "finished").role_name.as_deref(),
            Some("alice")
        );
    }
    assert_eq!(testimony(&mut client), ["alice alice off"]);

    run(
        &mut client,
        "TRUNCATE witness; ALTER DATABASE postgres SET role = 'team'",
    );
    let mut root = server.superuser();
    run(&mut root, "SET ROLE NONE");
    for _ in 0..2 {
        let id = enqueue(&mut root, &testify("postgres"));
        wait_state(&mut client, id, "finished");
    }
    assert_eq!(testimony(&mut client), ["postgres postgres on"]);
}

/// Deleting is done with the rights of the table's owner. A trigger that he has put there, to archive what is deleted,
/// must not run with his rights and the caller's search_path.
#[test]
fn deleting_runs_nothing_of_the_callers_with_the_owners_rights() {
    let server = Server::start_default();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    run(
        &mut client,
        "CREATE TABLE archive (id bigint); \
         CREATE FUNCTION archive() RETURNS trigger LANGUAGE plpgsql AS \
            $$BEGIN INSERT INTO archive VALUES (OLD.id); RETURN OLD; END$$; \
         CREATE TRIGGER archive AFTER DELETE ON pg_background_tasks FOR EACH ROW EXECUTE FUNCTION archive(); \
         CREATE SCHEMA trap AUTHORIZATION alice",
    );
    let mut alice = server.connect("alice", "postgres");
    run(
        &mut alice,
        "CREATE TABLE trap.archive (id bigint); \
         CREATE FUNCTION trap.spring() RETURNS trigger LANGUAGE plpgsql AS \
            $$BEGIN ALTER ROLE alice SUPERUSER; RETURN NULL; END$$; \
         CREATE TRIGGER spring BEFORE INSERT ON trap.archive FOR EACH ROW EXECUTE FUNCTION trap.spring(); \
         CREATE TEMP TABLE archive (id bigint); \
         CREATE FUNCTION pg_temp.spring() RETURNS trigger LANGUAGE plpgsql AS \
            $$BEGIN ALTER ROLE alice SUPERUSER; RETURN NULL; END$$; \
         CREATE TRIGGER spring BEFORE INSERT ON pg_temp.archive FOR EACH ROW EXECUTE FUNCTION pg_temp.spring()",
    );
    for path in ["trap, public", "pg_temp, public", "public"] {
        let id = enqueue(&mut alice, "SELECT 1");
        wait_state(&mut alice, id, "finished");
        // an error of the trigger is none of ours
        let _ = alice.batch_execute(&format!(
            "SET search_path = {path}; SELECT public.pg_background_queue_delete(ARRAY[{id}])"
        ));
        let said: String = scalar(
            &mut alice,
            "SELECT session_user || ' ' || current_user",
            &[],
        );
        assert_eq!(said, "alice alice");
        run(&mut alice, "RESET search_path");
        let superuser: bool = scalar(
            &mut client,
            "SELECT rolsuper FROM pg_roles WHERE rolname = 'alice'",
            &[],
        );
        assert!(
            !superuser,
            "alice made herself a superuser with search_path {path}"
        );
    }
}

/// OIDs of roles mean nothing in another cluster: a dump's closed tasks are not those of whoever has the OID here.
#[test]
fn the_closed_tasks_of_a_dump_are_not_anothers_to_delete() {
    let server = Server::start_default();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    run(
        &mut client,
        "INSERT INTO pg_background_tasks (sql_statement, role_oid, role_name, origin, search_path, state, closed_at) \
         VALUES ('SELECT 1', 'alice'::regrole, 'carol', '1/1', '', 'finished', now())",
    );
    let id: i64 = scalar(&mut client, "SELECT id FROM pg_background_tasks", &[]);
    let mut alice = server.connect("alice", "postgres");
    let seen: i64 = scalar(&mut alice, "SELECT count(*) FROM pg_background_tasks", &[]);
    let deleted: i64 = scalar(
        &mut alice,
        "SELECT pg_background_queue_delete($1)",
        &[&vec![id]],
    );
    assert_eq!((seen, deleted), (0, 0));
}

#[test]
fn a_role_that_is_renamed_keeps_its_tasks_and_its_namesake_gets_none() {
    let server = Server::start_default();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    let id = enqueue(&mut server.connect("alice", "postgres"), "SELECT 1");
    wait_state(&mut client, id, "finished");
    run(&mut client, "ALTER ROLE alice RENAME TO alison");
    create_role(&mut client, "alice");
    for (role, wanted) in [("alice", 0), ("alison", 1)] {
        let mut session = server.connect(role, "postgres");
        let seen: i64 = scalar(
            &mut session,
            "SELECT count(*) FROM pg_background_tasks",
            &[],
        );
        assert_eq!(seen, wanted, "{role}");
        let deleted: i64 = scalar(
            &mut session,
            "SELECT pg_background_queue_delete($1)",
            &[&vec![id]],
        );
        assert_eq!(deleted, wanted, "{role}");
    }
    // and goes on as itself
    let id = enqueue(
        &mut server.connect("alison", "postgres"),
        "SELECT 1/(current_user = 'alison')::int",
    );
    wait_state(&mut client, id, "finished");
}

/// The owner of a database decides on its settings, and so on those of all who log in there. The keeper, a superuser, is
/// one of them.
#[test]
fn the_settings_of_a_database_do_not_reach_the_keeper() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "0")
        .start();
    let mut client = server.superuser();
    run(&mut client, "CREATE ROLE alice LOGIN");
    run(&mut client, "CREATE DATABASE hers OWNER alice");
    let mut there = server.connect("postgres", "hers");
    run(&mut there, "CREATE EXTENSION pg_background_queue");
    create_role(&mut there, "mallory");
    create_role(&mut there, "bob");
    let dropped = enqueue(&mut server.connect("mallory", "hers"), "SELECT 1");
    let fine = enqueue(&mut server.connect("bob", "hers"), "SELECT 1");
    let mut alice = server.connect("alice", "hers");
    for setting in [
        "role = 'alice'",
        "search_path = 'nowhere'",
        "default_transaction_read_only = on",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_deferrable = on",
        "lock_timeout = 1",
        "idle_in_transaction_session_timeout = 1",
        "synchronous_commit = off",
        "row_security = off",
        "enable_indexscan = off",
    ] {
        run(&mut alice, &format!("ALTER DATABASE hers SET {setting}"));
    }
    run(&mut there, "DROP OWNED BY mallory; DROP ROLE mallory");
    server.set_and_reload("pg_background_queue.max_parallel_running_tasks_count", "2");
    let task = wait_closed(&mut there, dropped);
    assert!(
        task.errors().contains("does not exist any more"),
        "{task:?}"
    );
    wait_state(&mut there, fine, "finished");
}

#[test]
fn triggers_rules_and_policies_on_the_table_do_not_break_the_queue() {
    let server = Server::builder()
        .conf("pg_background_queue.retry_count", "1")
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    prepare_witness(&mut client);
    run(
        &mut client,
        "CREATE TABLE fired (what text); GRANT INSERT ON fired TO PUBLIC; \
         CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS \
            $$BEGIN INSERT INTO fired VALUES (TG_OP || current_user); RAISE 'fired'; END$$; \
         CREATE TRIGGER each_row BEFORE INSERT OR UPDATE OR DELETE ON pg_background_tasks FOR EACH ROW EXECUTE FUNCTION fire(); \
         CREATE TRIGGER each_row_after AFTER INSERT OR UPDATE OR DELETE ON pg_background_tasks FOR EACH ROW EXECUTE FUNCTION fire(); \
         CREATE TRIGGER each_statement BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON pg_background_tasks FOR EACH STATEMENT EXECUTE FUNCTION fire(); \
         CREATE CONSTRAINT TRIGGER later AFTER INSERT OR UPDATE ON pg_background_tasks DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fire(); \
         ALTER TABLE pg_background_tasks ENABLE ALWAYS TRIGGER each_row, ENABLE ALWAYS TRIGGER later; \
         CREATE RULE on_insert AS ON INSERT TO pg_background_tasks DO INSTEAD NOTHING; \
         CREATE RULE on_update AS ON UPDATE TO pg_background_tasks DO INSTEAD NOTHING; \
         CREATE POLICY none ON pg_background_tasks AS RESTRICTIVE USING (false) WITH CHECK (false); \
         ALTER TABLE pg_background_tasks FORCE ROW LEVEL SECURITY",
    );
    let mut alice = server.connect("alice", "postgres");
    for client in [&mut alice, &mut client] {
        enqueue(client, &testify("planted"));
        enqueue(client, "SELECT 1/0");
    }
    wait_all_closed(&mut client, PATIENCE);
    let states: Vec<String> = tasks(&mut client)
        .iter()
        .map(|task| format!("{} {}", task.state, task.attempt))
        .collect();
    assert_eq!(states, ["finished 1", "failed 2", "finished 1", "failed 2"]);
    let fired: i64 = scalar(&mut client, "SELECT count(*) FROM fired", &[]);
    assert_eq!(fired, 0);
    assert_eq!(
        testimony(&mut client),
        ["alice alice off", "postgres postgres on"]
    );
}

/// The text, the topic, and the errors of a task that waits at the gate.
const SECRET: &str = "dragon";

#[test]
fn nobody_else_learns_of_a_task_or_gets_at_it() {
    let server = Server::builder()
        .conf("track_activity_query_size", "1000")
        .start();
    let mut client = server.superuser();
    for role in ["alice", "bob", "reader", "writer"] {
        create_role(&mut client, role);
    }
    let version: i32 = scalar(
        &mut client,
        "SELECT current_setting('server_version_num')::int",
        &[],
    );
    if version >= 140_000 {
        run(
            &mut client,
            "GRANT pg_read_all_data TO reader; GRANT pg_write_all_data TO writer, reader",
        );
    }
    run(&mut client, "GRANT pg_signal_backend TO reader");
    run(&mut client, "SELECT pg_advisory_lock(1)");
    let mut alice = server.connect("alice", "postgres");
    let failed = enqueue_topic(&mut alice, &format!("SELECT '{SECRET}'::int"), SECRET);
    let id = enqueue_topic(
        &mut alice,
        &format!("SELECT '{SECRET}', pg_advisory_xact_lock(1)"),
        SECRET,
    );
    let waiting = enqueue_topic(
        &mut alice,
        &format!("SELECT '{SECRET}' || pg_advisory_xact_lock(1)"),
        SECRET,
    );
    wait_closed(&mut alice, failed);
    wait_state(&mut alice, id, "running");
    let worker = wait_for("the worker at the gate", PATIENCE, || {
        workers(&mut client)
            .into_iter()
            .find(|worker| worker.wait_event.as_deref() == Some("advisory"))
    });
    assert!(worker.query.is_some_and(|query| query.contains(SECRET)));
    run(&mut client, "ANALYZE pg_background_tasks");

    // to its owner all is there
    let seen: i64 = scalar(
        &mut alice,
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%dragon%' AND pid <> pg_backend_pid()",
        &[],
    );
    assert!(seen >= 1);
    let number: bool = scalar(
        &mut alice,
        "SELECT bool_and(application_name ~ '^pg_background_queue( task [0-9]+)?$') FROM pg_stat_activity \
         WHERE backend_type = 'pg_background_queue worker'",
        &[],
    );
    assert!(number);

    for role in ["bob", "reader", "writer"] {
        let mut other = server.connect(role, "postgres");
        for view in [
            "pg_stat_activity",
            "pg_locks",
            "pg_stats",
            "pg_stat_user_tables",
            "pg_stat_progress_vacuum",
            "pg_settings",
            "pg_prepared_statements",
            "pg_cursors",
            "pg_background_tasks",
        ] {
            let leaks: i64 = scalar(
                &mut other,
                &format!(
                    "SELECT count(*) FROM {view} AS v WHERE strpos(v::text, 'dra' || 'gon') > 0"
                ),
                &[],
            );
            assert_eq!(leaks, 0, "{role} learns something from {view}");
        }
        // by an operator, an estimate or an error that tells of the rows that it meets
        run(
            &mut other,
            "CREATE FUNCTION pg_temp.look(t text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS \
             $$BEGIN RAISE 'looked at %', t; END$$",
        );
        run(
            &mut other,
            "SELECT * FROM pg_background_tasks WHERE pg_temp.look(sql_statement) OR pg_temp.look(topic)",
        );
        run(
            &mut other,
            "SELECT * FROM pg_background_tasks WHERE 1 / (id - id) = 1",
        );

        let none: i64 = scalar(
            &mut other,
            "SELECT pg_background_queue_delete($1)",
            &[&vec![failed, id, waiting]],
        );
        assert_eq!(none, 0, "{role}");
        let pid = worker.pid;
        if role != "reader" {
            for function in ["pg_cancel_backend", "pg_terminate_backend"] {
                assert_eq!(
                    refusal(&mut other, &format!("SELECT {function}({pid})")),
                    SqlState::INSUFFICIENT_PRIVILEGE,
                    "{role}"
                );
            }
        }
        // the queue's own processes are not even for pg_signal_backend
        let launcher = launcher_pid(&mut client).expect("a launcher");
        assert_eq!(
            refusal(
                &mut other,
                &format!("SELECT pg_terminate_backend({launcher})")
            ),
            SqlState::INSUFFICIENT_PRIVILEGE,
            "{role}"
        );
        for sql in [
            "SELECT nextval('pg_background_tasks_id_seq')",
            "SELECT * FROM pg_background_tasks FOR UPDATE",
        ] {
            if role == "bob" {
                assert_eq!(
                    refusal(&mut other, sql),
                    SqlState::INSUFFICIENT_PRIVILEGE,
                    "{sql}"
                );
            }
        }
        // also a role that may write to every table writes to no row of this one
        let forged = other.batch_execute(
            "INSERT INTO pg_background_tasks (sql_statement, role_oid, role_name, origin, search_path) \
             SELECT 'ALTER ROLE bob SUPERUSER', 10, 'postgres', '', ''",
        );
        assert_eq!(
            forged.expect_err("forged").code(),
            Some(&SqlState::INSUFFICIENT_PRIVILEGE),
            "{role}"
        );
        for sql in [
            "UPDATE pg_background_tasks SET role_oid = 10",
            "DELETE FROM pg_background_tasks",
        ] {
            match other.execute(sql, &[]) {
                Ok(rows) => assert_eq!(rows, 0, "{role}: {sql}"),
                Err(error) => assert_eq!(
                    error.code(),
                    Some(&SqlState::INSUFFICIENT_PRIVILEGE),
                    "{role}: {sql}"
                ),
            }
        }
    }
    // the log of a monitor's member says so much
    run(&mut client, "GRANT pg_monitor TO bob");
    let seen: i64 = scalar(
        &mut server.connect("bob", "postgres"),
        "SELECT count(*) FROM pg_background_tasks",
        &[],
    );
    assert_eq!(seen, 3);

    run(&mut client, "SELECT pg_advisory_unlock(1)");
    wait_state(&mut alice, id, "finished");
    wait_closed(&mut alice, waiting);
}

/// One may end what one runs, in the ways that PostgreSQL has.
#[test]
fn the_owner_may_cancel_a_task_by_its_worker() {
    let server = Server::start_default();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    run(&mut client, "SELECT pg_advisory_lock(1)");
    let mut alice = server.connect("alice", "postgres");
    let id = enqueue(&mut alice, "SELECT pg_advisory_xact_lock(1)");
    let canceled = wait_for("the worker at the gate", PATIENCE, || {
        alice
            .query_opt(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'advisory' AND usename = 'alice'",
                &[],
            )
            .expect("one's own worker")
    });
    assert!(canceled.get::<_, bool>(0));
    assert!(wait_closed(&mut alice, id).errors().starts_with("57014"));
}

#[test]
fn a_role_that_cannot_connect_any_more_fails_and_says_why() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "0")
        .start();
    let mut client = server.superuser();
    for role in ["dropped", "nologin", "unconnected", "fine"] {
        create_role(&mut client, role);
    }
    prepare_witness(&mut client);
    run(&mut client, "GRANT CONNECT ON DATABASE postgres TO fine");
    let ids = ["dropped", "nologin", "unconnected", "fine"].map(|role| {
        let mut session = server.connect(role, "postgres");
        enqueue(&mut session, &testify(role))
    });
    run(
        &mut client,
        "DROP OWNED BY dropped; DROP ROLE dropped; ALTER ROLE nologin NOLOGIN; \
         REVOKE CONNECT ON DATABASE postgres FROM PUBLIC",
    );
    server.set_and_reload("pg_background_queue.max_parallel_running_tasks_count", "2");

    let [dropped, nologin, unconnected, fine] = ids;
    let task = wait_closed(&mut client, dropped);
    assert_eq!(task.state, "failed");
    assert!(
        task.errors().contains("does not exist any more"),
        "{}",
        task.errors()
    );
    let version: i32 = scalar(
        &mut client,
        "SELECT current_setting('server_version_num')::int",
        &[],
    );
    let task = wait_closed(&mut client, nologin);
    assert_eq!(task.state, "failed");
    // from 17 on NOLOGIN is no hindrance, but CONNECT is still missing
    let why = if version < 170_000 {
        "\"nologin\" is not permitted to log in"
    } else {
        "CONNECT"
    };
    assert!(task.errors().contains(why), "{}", task.errors());
    let task = wait_closed(&mut client, unconnected);
    assert_eq!(task.state, "failed");
    assert!(
        task.errors()
            .contains("\"unconnected\" does not have the CONNECT privilege"),
        "{}",
        task.errors()
    );
    wait_state(&mut client, fine, "finished");
    assert_eq!(testimony(&mut client), ["fine fine off"]);
}

/// The same with a worker of the role that is there, idle.
#[test]
fn rights_that_are_taken_away_are_gone_for_the_next_task() {
    let server = Server::builder()
        .conf("pg_background_queue.worker_idle_timeout", "10min")
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    run(
        &mut client,
        "CREATE ROLE group_of_alice; GRANT group_of_alice TO alice",
    );
    let mut alice = server.connect("alice", "postgres");
    let id = enqueue(&mut alice, "SET ROLE group_of_alice");
    wait_state(&mut alice, id, "finished");
    wait_until("the worker to be idle", || {
        workers(&mut client)
            .iter()
            .any(|worker| worker.kind == "worker" && worker.state.as_deref() == Some("idle"))
    });

    run(&mut client, "REVOKE group_of_alice FROM alice");
    let id = enqueue(&mut alice, "SET ROLE group_of_alice");
    assert!(wait_closed(&mut client, id).errors().starts_with("42501"));

    run(
        &mut client,
        "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC",
    );
    // her session is there, and may enqueue
    let id = enqueue(&mut alice, "SELECT 1");
    let task = wait_closed(&mut client, id);
    assert!(task.errors().contains("CONNECT privilege"), "{task:?}");

    run(&mut client, "GRANT CONNECT ON DATABASE postgres TO PUBLIC");
    let id = enqueue(&mut alice, "SELECT 1");
    wait_state(&mut client, id, "finished");

    run(
        &mut client,
        "REVOKE EXECUTE ON FUNCTION pg_background_queue_enqueue FROM alice",
    );
    assert_eq!(
        refusal(&mut alice, "SELECT pg_background_queue_enqueue('SELECT 1')"),
        SqlState::INSUFFICIENT_PRIVILEGE
    );
    // DROP ROLE with a worker that is idle
    drop(alice);
    run(&mut client, "DROP OWNED BY alice; DROP ROLE alice");
}

/// A role can spoil its own login. Its tasks wait then, and nobody else's.
#[test]
fn a_role_that_spoils_its_own_login_harms_nobody_else() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "1")
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    create_role(&mut client, "bob");
    let mut alice = server.connect("alice", "postgres");
    run(
        &mut alice,
        "ALTER ROLE alice SET local_preload_libraries = 'no_such_library'",
    );
    let stuck = enqueue(&mut alice, "SELECT 1");
    let mut bob = server.connect("bob", "postgres");
    for _ in 0..3 {
        let id = enqueue(&mut bob, "SELECT 1");
        wait_state(&mut bob, id, "finished");
    }
    assert_eq!(task(&mut alice, stuck).state, "pending");
    run(&mut alice, "ALTER ROLE alice RESET local_preload_libraries");
    wait_state(&mut alice, stuck, "finished");
}

/// Who owns a database can keep everybody from entering it, by ALTER DATABASE … RENAME in a transaction that he leaves open; so
/// does, for a while, a CREATE DATABASE that copies it. Work that waits in there takes no place from the others.
#[test]
fn a_database_that_cannot_be_entered_keeps_no_other_waiting() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "1")
        .conf("pg_background_queue.worker_idle_timeout", "1ms")
        .conf("pg_background_queue.retry_count", "5")
        .start();
    let mut client = server.superuser();
    run(&mut client, "CREATE ROLE alice LOGIN CREATEDB");
    run(&mut client, "CREATE DATABASE hers OWNER alice");
    let mut there = server.connect("postgres", "hers");
    run(&mut there, "CREATE EXTENSION pg_background_queue");
    run(
        &mut there,
        "GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO alice",
    );
    drop(there);
    let mut inside = server.connect("alice", "hers");
    let id = enqueue(&mut inside, "SELECT 1/0");
    wait_state(&mut inside, id, "retrying");
    drop(inside);
    // its retry is due in two seconds
    let mut alice = server.connect("alice", "postgres");
    wait_for("nobody to be in the database", PATIENCE, || {
        alice
            .batch_execute("ROLLBACK; BEGIN; ALTER DATABASE hers RENAME TO closed")
            .ok()
    });
    wait_for("a worker to knock at the door", PATIENCE, || {
        client
            .query_opt(
                "SELECT FROM pg_locks WHERE classid = 'pg_database'::regclass AND NOT granted",
                &[],
            )
            .expect("pg_locks")
    });
    let id = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, id, "finished");
    run(&mut alice, "ROLLBACK");
    let mut inside = server.connect("alice", "hers");
    wait_for("the retry to be made", PATIENCE, || {
        (tasks(&mut inside)[0].attempt > 1).then_some(())
    });
}

#[test]
fn several_databases_and_schemas_at_once() {
    let server = Server::builder()
        .conf("max_worker_processes", "16")
        .conf("pg_background_queue.max_parallel_running_tasks_count", "4")
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN",
    );
    let schemas = [
        ("one", "public"),
        ("two", "\"The Queue\""),
        ("three", "x"),
        ("four", "\"pg.background,queue\""),
    ];
    for (database, schema) in schemas {
        run(&mut client, &format!("CREATE DATABASE {database}"));
        let mut there = server.connect("postgres", database);
        if schema != "public" {
            run(&mut there, &format!("CREATE SCHEMA {schema}"));
        }
        run(
            &mut there,
            &format!(
                "CREATE EXTENSION pg_background_queue SCHEMA {schema}; \
                 GRANT USAGE ON SCHEMA {schema} TO PUBLIC; \
                 GRANT EXECUTE ON FUNCTION {schema}.pg_background_queue_enqueue TO alice, bob"
            ),
        );
        prepare_witness(&mut there);
    }
    let threads: Vec<_> = schemas
        .iter()
        .flat_map(|&(database, schema)| ["alice", "bob", "postgres"].map(|role| (database, schema, role)))
        .map(|(database, schema, role)| {
            let connector = server.connector();
            thread::spawn(move || {
                let mut session = connector.connect(role, database);
                for _ in 0..20 {
                    let sql = "INSERT INTO public.witness SELECT current_database(), session_user, current_user";
                    let _: i64 = scalar(
                        &mut session,
                        &format!("SELECT {schema}.pg_background_queue_enqueue($1)"),
                        &[&sql],
                    );
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("enqueued");
    }
    for (database, schema) in schemas {
        let mut there = server.connect("postgres", database);
        run(&mut there, &format!("SET search_path = {schema}, public"));
        wait_all_closed(&mut there, PATIENCE);
        let said: Vec<String> = there
            .query(
                "SELECT concat_ws(' ', role, what, count(*)) FROM witness GROUP BY role, what ORDER BY role",
                &[],
            )
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect();
        let expected = ["alice", "bob", "postgres"].map(|role| format!("{role} {database} 20"));
        assert_eq!(
            said,
            expected,
            "{:?}",
            tasks(&mut there).iter().find(|task| task.state == "failed")
        );
    }
    // of the database without any of it, too
    assert!(tasks(&mut client).is_empty());
}
