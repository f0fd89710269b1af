//! What a task finds around it: the session of a fresh login as its role, and nothing of the task
//! before.

use std::time::{Duration, SystemTime};

use postgres::Client;

use crate::harness::{
    Server, create_role, enqueue, run, scalar, task, tasks, wait_all_closed, wait_closed,
    wait_state, wait_until, workers,
};

/// A server on which one worker at a time runs, and stays.
fn one_worker() -> Server {
    Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "1")
        .conf("pg_background_queue.worker_idle_timeout", "10min")
        .start()
}

/// Runs `sql` as a task of `client`, which must succeed.
#[track_caller]
fn run_task(client: &mut Client, sql: &str) -> i64 {
    let id = enqueue(client, sql);
    wait_state(client, id, "finished");
    id
}

/// What `expression` is inside a task of `client`; needs a table `seen (what text)` that it may
/// write.
#[track_caller]
fn seen(client: &mut Client, expression: &str) -> Option<String> {
    let id = enqueue(
        client,
        &format!("INSERT INTO public.seen SELECT pg_backend_pid(), ({expression})::text"),
    );
    wait_state(client, id, "finished");
    scalar(
        client,
        "SELECT what FROM public.seen ORDER BY n DESC LIMIT 1",
        &[],
    )
}

#[track_caller]
fn prepare_seen(client: &mut Client) {
    run(
        client,
        "CREATE TABLE public.seen (pid int, what text, n int GENERATED ALWAYS AS IDENTITY); \
         GRANT SELECT, INSERT ON public.seen TO PUBLIC",
    );
}

/// What a task may leave behind in its session.
const DIRT: &str = "SET work_mem = '3MB'; SET TimeZone = 'Pacific/Chatham'; SET search_path = pg_catalog; \
     SET application_name = 'mine'; SET my.variable = 'set'; SET statement_timeout = '1h'; SET synchronous_commit = off; \
     SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE READ ONLY; \
     SELECT set_config('lock_timeout', '1h', false); \
     SELECT pg_catalog.pg_advisory_lock(7), pg_catalog.pg_advisory_lock_shared(8); \
     PREPARE prepared AS SELECT 1; \
     DECLARE held CURSOR WITH HOLD FOR SELECT 1";

/// One line that tells whether a session is clean; everything that [`DIRT`] soils, and a temporary
/// table.
const TRACES: &str = "concat_ws(' ', current_setting('work_mem'), current_setting('TimeZone') = 'Pacific/Chatham', \
     current_setting('search_path'), coalesce(nullif(current_setting('my.variable', true), ''), 'unset'), \
     current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('synchronous_commit'), \
     current_setting('default_transaction_isolation'), current_setting('default_transaction_read_only'), \
     (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), \
     (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_cursors), \
     coalesce(to_regclass('pg_temp.temporary')::text, 'none'))";

const CLEAN: &str = "4MB f \"$user\", public unset 0 0 on read committed off 0 0 0 none";

#[test]
fn nothing_of_a_session_reaches_the_next_task() {
    let server = one_worker();
    let mut client = server.superuser();
    prepare_seen(&mut client);
    run(&mut client, "CREATE SEQUENCE numbers");
    assert_eq!(seen(&mut client, TRACES).as_deref(), Some(CLEAN));

    run_task(&mut client, DIRT);
    assert_eq!(
        seen(&mut client, TRACES).as_deref(),
        Some(CLEAN),
        "settings"
    );

    run_task(
        &mut client,
        "CREATE TEMP TABLE temporary AS SELECT 1; CREATE TEMP SEQUENCE temporary_too; \
         CREATE FUNCTION pg_temp.hidden() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    );
    assert_eq!(
        seen(&mut client, TRACES).as_deref(),
        Some(CLEAN),
        "temporary objects"
    );
    let hidden = enqueue(&mut client, "SELECT pg_temp.hidden()");
    let hidden = wait_closed(&mut client, hidden);
    assert_eq!(hidden.state, "failed");

    // Sequence caches.
    run_task(&mut client, "SELECT nextval('numbers')");
    for (sql, says) in [
        (
            "SELECT currval('numbers')",
            "currval of sequence \"numbers\" is not yet defined",
        ),
        ("SELECT lastval()", "lastval is not yet defined"),
    ] {
        let id = enqueue(&mut client, sql);
        let done = wait_closed(&mut client, id);
        assert_eq!(done.state, "failed", "{sql}");
        assert!(done.errors().contains("55000"), "{}", done.errors());
        assert!(done.errors().contains(says), "{}", done.errors());
    }

    // All that happened in one process, or it would say nothing.
    let pids: i64 = scalar(&mut client, "SELECT count(DISTINCT pid) FROM seen", &[]);
    assert_eq!(pids, 1);
}

#[test]
fn nothing_of_a_failed_task_reaches_the_next_one() {
    let server = one_worker();
    let mut client = server.superuser();
    prepare_seen(&mut client);
    assert_eq!(seen(&mut client, TRACES).as_deref(), Some(CLEAN));

    // A failing task rolls its settings back, but not its advisory locks and prepared statements;
    // and what a procedure has committed stays.
    for dirt in [
        format!("{DIRT}; SELECT 1/0"),
        "DO $$ BEGIN PERFORM set_config('work_mem', '3MB', false); PERFORM pg_advisory_lock(7); \
         CREATE TEMP TABLE temporary (n int); COMMIT; PERFORM 1/0; END $$"
            .to_owned(),
    ] {
        let id = enqueue(&mut client, &dirt);
        let done = wait_closed(&mut client, id);
        assert_eq!(done.state, "failed");
        assert!(done.errors().contains("22012"), "{}", done.errors());
        assert_eq!(seen(&mut client, TRACES).as_deref(), Some(CLEAN), "{dirt}");
    }
    let pids: i64 = scalar(&mut client, "SELECT count(DISTINCT pid) FROM seen", &[]);
    assert_eq!(pids, 1);
}

#[test]
fn nothing_reaches_the_next_task_of_a_full_queue() {
    let server = one_worker();
    let mut client = server.superuser();
    prepare_seen(&mut client);
    // In one transaction, so that the worker goes from each to the next without a pause.
    let mut transaction = client.transaction().unwrap();
    for _ in 0..20 {
        enqueue(&mut transaction, DIRT);
        enqueue(&mut transaction, "CREATE TEMP TABLE temporary AS SELECT 1");
        enqueue(
            &mut transaction,
            &format!("INSERT INTO public.seen SELECT pg_backend_pid(), {TRACES}"),
        );
    }
    transaction.commit().unwrap();
    wait_all_closed(&mut client, Duration::from_secs(60));
    for task in tasks(&mut client) {
        assert_eq!(task.state, "finished", "{}", task.errors());
    }
    let rows = client
        .query("SELECT what, count(*) FROM seen GROUP BY what", &[])
        .unwrap();
    let found: Vec<(String, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(found, [(CLEAN.to_owned(), 20)]);
}

#[test]
fn a_task_carries_its_id_in_the_application_name() {
    let server = one_worker();
    let mut client = server.superuser();
    prepare_seen(&mut client);
    run_task(&mut client, "SET application_name = 'a name of its own'");
    for _ in 0..2 {
        let name = seen(&mut client, "current_setting('application_name')").unwrap();
        let id: i64 = scalar(&mut client, "SELECT max(id) FROM pg_background_tasks", &[]);
        assert!(name.contains(&id.to_string()), "{name} is not of task {id}");
    }
}

#[test]
fn a_task_is_its_role_and_nobody_else() {
    let server = one_worker();
    let mut client = server.superuser();
    prepare_seen(&mut client);
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    let who = "concat_ws(' ', session_user, current_user, current_setting('role'), \
               current_setting('is_superuser'), current_database())";
    assert_eq!(
        seen(&mut alice, who).as_deref(),
        Some("alice alice none off postgres")
    );
    assert_eq!(
        seen(&mut client, who).as_deref(),
        Some("postgres postgres none on postgres")
    );
    // After SET ROLE, current_user counts.
    run(&mut client, "SET ROLE alice");
    assert_eq!(
        seen(&mut client, who).as_deref(),
        Some("alice alice none off postgres")
    );
}

#[test]
fn names_mean_what_they_meant_at_the_call() {
    let server = Server::start_default();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    run(
        &mut client,
        "CREATE SCHEMA alice AUTHORIZATION alice; CREATE SCHEMA app; CREATE SCHEMA other; \
         CREATE SCHEMA \"Odd \"\"one\"\"\"; \
         CREATE TABLE public.effects (what text); CREATE TABLE alice.effects (what text); \
         CREATE TABLE app.effects (what text); CREATE TABLE other.effects (what text); \
         CREATE TABLE \"Odd \"\"one\"\"\".effects (what text); \
         GRANT USAGE ON SCHEMA app, other, \"Odd \"\"one\"\"\" TO alice; \
         GRANT INSERT ON public.effects, alice.effects, app.effects, other.effects, \
           \"Odd \"\"one\"\"\".effects TO alice; \
         CREATE FUNCTION public.enqueue_in_app() RETURNS bigint LANGUAGE plpgsql \
           SET search_path = app, public AS $$ BEGIN \
           RETURN public.pg_background_queue_enqueue('INSERT INTO effects VALUES (''clause'')'); END $$; \
         ALTER ROLE alice SET search_path = other, public",
    );

    let enqueue_marked = |session: &mut Client, mark: &str| -> i64 {
        scalar(
            session,
            "SELECT public.pg_background_queue_enqueue($1)",
            &[&format!("INSERT INTO effects VALUES ('{mark}')")],
        )
    };
    let mut alice = server.connect("alice", "postgres");
    enqueue_marked(&mut alice, "by role");
    run(&mut alice, "SET search_path = app");
    enqueue_marked(&mut alice, "by SET");
    run(&mut alice, "SET search_path = \"$user\", public");
    let dollar = enqueue_marked(&mut alice, "by user");
    run(&mut alice, "SET search_path = nowhere, \"Odd \"\"one\"\"\"");
    enqueue_marked(&mut alice, "odd");
    run(&mut alice, "SET search_path = public");
    run(&mut alice, "BEGIN; SET LOCAL search_path = app");
    enqueue_marked(&mut alice, "by SET LOCAL");
    run(&mut alice, "COMMIT");
    run(&mut alice, "SELECT public.enqueue_in_app()");
    enqueue_marked(&mut alice, "public");
    run(&mut alice, "SET search_path = ''");
    let none = enqueue_marked(&mut alice, "nowhere");

    let none = wait_closed(&mut client, none);
    assert!(none.errors().contains("42P01"), "{}", none.errors());
    wait_all_closed(&mut client, Duration::from_secs(60));
    assert_eq!(
        task(&mut client, dollar).search_path.as_deref(),
        Some("\"$user\", public")
    );
    let found: String = scalar(
        &mut client,
        "SELECT string_agg(place || ': ' || what, ', ' ORDER BY place, what) FROM ( \
           SELECT 'alice' AS place, what FROM alice.effects UNION ALL SELECT 'app', what FROM app.effects \
           UNION ALL SELECT 'odd', what FROM \"Odd \"\"one\"\"\".effects \
           UNION ALL SELECT 'other', what FROM other.effects \
           UNION ALL SELECT 'public', what FROM public.effects) AS effects",
        &[],
    );
    assert_eq!(
        found,
        "alice: by user, app: by SET, app: by SET LOCAL, app: clause, odd: odd, other: by role, public: public"
    );
}

#[test]
fn temporary_objects_of_the_caller_are_not_there() {
    let server = Server::start_default();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE effects (what text); CREATE TEMP TABLE effects (what text)",
    );
    run_task(&mut client, "INSERT INTO effects VALUES ('the real one')");
    let there: i64 = scalar(&mut client, "SELECT count(*) FROM public.effects", &[]);
    assert_eq!(there, 1);
}

#[test]
fn settings_of_role_and_database_are_those_of_a_fresh_login() {
    let server = one_worker();
    let mut client = server.superuser();
    prepare_seen(&mut client);
    create_role(&mut client, "alice");
    run(&mut client, "CREATE DATABASE elsewhere");
    let mut elsewhere = server.connect("postgres", "elsewhere");
    let mut alice = server.connect("alice", "postgres");
    let work_mem = "current_setting('work_mem')";

    assert_eq!(seen(&mut alice, work_mem).as_deref(), Some("4MB"));
    // Each change is seen by the next task, from weak to strong, and back.
    for (change, value) in [
        ("ALTER ROLE ALL SET work_mem = '11MB'", "11MB"),
        ("ALTER DATABASE postgres SET work_mem = '12MB'", "12MB"),
        ("ALTER ROLE alice SET work_mem = '13MB'", "13MB"),
        (
            "ALTER ROLE alice IN DATABASE postgres SET work_mem = '14MB'",
            "14MB",
        ),
        (
            "ALTER ROLE alice IN DATABASE postgres RESET work_mem",
            "13MB",
        ),
        (
            "DO $$ BEGIN EXECUTE 'ALTER ROLE alice SET work_mem = ''15MB'''; END $$",
            "15MB",
        ),
        ("ALTER USER alice RESET ALL", "12MB"),
        (
            "BEGIN; ALTER DATABASE postgres SET work_mem = '16MB'; COMMIT",
            "16MB",
        ),
        (
            "BEGIN; ALTER DATABASE postgres SET work_mem = '17MB'; ROLLBACK",
            "16MB",
        ),
        ("ALTER DATABASE postgres RESET ALL", "11MB"),
        ("ALTER ROLE ALL RESET work_mem", "4MB"),
    ] {
        run(&mut client, change);
        assert_eq!(
            seen(&mut alice, work_mem).as_deref(),
            Some(value),
            "{change}"
        );
    }
    // Also from a database without the extension.
    run(&mut elsewhere, "ALTER ROLE alice SET work_mem = '18MB'");
    assert_eq!(seen(&mut alice, work_mem).as_deref(), Some("18MB"));
    run(
        &mut elsewhere,
        "DO $$ BEGIN EXECUTE 'ALTER ROLE alice SET work_mem = ''19MB'''; END $$",
    );
    assert_eq!(seen(&mut alice, work_mem).as_deref(), Some("19MB"));
    run(
        &mut elsewhere,
        "ALTER DATABASE postgres SET work_mem = '20MB'",
    );
    run(&mut elsewhere, "ALTER ROLE alice RESET work_mem");
    assert_eq!(seen(&mut alice, work_mem).as_deref(), Some("20MB"));

    // And of the configuration files.
    run(&mut client, "ALTER DATABASE postgres RESET work_mem");
    server.set_and_reload("work_mem", "21MB");
    wait_until("the reload to reach a task", || {
        seen(&mut alice, work_mem).as_deref() == Some("21MB")
    });
}

#[test]
fn a_setting_changed_by_the_enqueueing_transaction_counts() {
    let server = one_worker();
    let mut client = server.superuser();
    prepare_seen(&mut client);
    seen(&mut client, "1");
    for value in ["11MB", "12MB", "13MB"] {
        let mut transaction = client.transaction().unwrap();
        run(
            &mut transaction,
            &format!("ALTER ROLE postgres SET work_mem = '{value}'"),
        );
        let id = enqueue(
            &mut transaction,
            "INSERT INTO seen SELECT pg_backend_pid(), current_setting('work_mem')",
        );
        transaction.commit().unwrap();
        wait_state(&mut client, id, "finished");
        let what: String = scalar(
            &mut client,
            "SELECT what FROM seen ORDER BY n DESC LIMIT 1",
            &[],
        );
        assert_eq!(what, value);
    }
}

#[test]
fn a_membership_taken_away_is_gone_for_the_next_task() {
    let server = one_worker();
    let mut client = server.superuser();
    prepare_seen(&mut client);
    create_role(&mut client, "alice");
    run(
        &mut client,
        "CREATE ROLE team; CREATE TABLE secrets (what text); GRANT SELECT ON secrets TO team; \
         GRANT team TO alice",
    );
    let mut alice = server.connect("alice", "postgres");
    run_task(&mut alice, "SELECT * FROM secrets");
    run(&mut client, "REVOKE team FROM alice");
    let id = enqueue(&mut alice, "SELECT * FROM secrets");
    let done = wait_closed(&mut alice, id);
    assert_eq!(done.state, "failed");
    assert!(done.errors().contains("42501"), "{}", done.errors());

    // A superuser who is none any more.
    run(&mut client, "ALTER ROLE alice SUPERUSER");
    assert_eq!(
        seen(&mut alice, "current_setting('is_superuser')").as_deref(),
        Some("on")
    );
    run(&mut client, "ALTER ROLE alice NOSUPERUSER");
    assert_eq!(
        seen(&mut alice, "current_setting('is_superuser')").as_deref(),
        Some("off")
    );
    let id = enqueue(&mut alice, "SELECT * FROM secrets");
    assert_eq!(wait_closed(&mut alice, id).state, "failed");
}

#[test]
fn session_preload_libraries_are_loaded() {
    let server = one_worker();
    let mut client = server.superuser();
    if client.batch_execute("LOAD 'auto_explain'").is_err() {
        println!("skipped: no auto_explain here");
        return;
    }
    create_role(&mut client, "alice");
    run(
        &mut client,
        "ALTER ROLE alice SET session_preload_libraries = 'auto_explain'; \
         ALTER ROLE alice SET auto_explain.log_min_duration = 0",
    );
    let mut alice = server.connect("alice", "postgres");
    let mark = server.log_mark();
    run_task(
        &mut alice,
        "SELECT count(*) AS explained FROM generate_series(1, 10)",
    );
    let log = server.log_since(mark);
    assert!(log.contains("plan:"), "{log}");
    assert!(
        log.contains("Query Text: SELECT count(*) AS explained FROM generate_series(1, 10)"),
        "{log}"
    );
}

#[test]
fn statement_timeout_of_the_role_and_of_the_task_works() {
    let server = one_worker();
    let mut client = server.superuser();
    prepare_seen(&mut client);
    create_role(&mut client, "alice");
    run(
        &mut client,
        "ALTER ROLE alice SET statement_timeout = '300ms'",
    );
    let mut alice = server.connect("alice", "postgres");
    run(&mut alice, "SET statement_timeout = 0");

    let cut_off = |session: &mut Client, sql: &str| {
        let id = enqueue(session, sql);
        let done = wait_closed(session, id);
        assert_eq!(done.state, "failed", "{sql}");
        assert!(done.errors().contains("57014"), "{}", done.errors());
        assert!(
            done.errors()
                .contains("canceling statement due to statement timeout"),
            "{}",
            done.errors()
        );
        let took = done
            .closed_at
            .unwrap()
            .duration_since(done.started_at.unwrap())
            .unwrap();
        assert!(took < Duration::from_secs(15), "{sql}: {took:?}");
    };
    cut_off(&mut alice, "SELECT pg_sleep(30)");
    cut_off(&mut alice, "SELECT 1; SELECT pg_sleep(30)");
    // Nothing of it hits the next task, which is quick.
    let first = seen(&mut alice, "current_setting('statement_timeout')");
    assert_eq!(first.as_deref(), Some("300ms"));

    // Several quick tasks one after the other take longer together than the timeout.
    let ids: Vec<i64> = (0..10)
        .map(|_| enqueue(&mut alice, "SELECT pg_sleep(0.1)"))
        .collect();
    for id in ids {
        wait_state(&mut alice, id, "finished");
    }

    // Set by the task itself, and by the database.
    cut_off(
        &mut client,
        "SET statement_timeout = '200ms'; SELECT pg_sleep(30)",
    );
    run_task(&mut client, "SELECT pg_sleep(0.5)");
    run(
        &mut client,
        "ALTER DATABASE postgres SET statement_timeout = '300ms'",
    );
    run(&mut client, "SET statement_timeout = 0");
    cut_off(&mut client, "SELECT pg_sleep(30)");
    run_task(
        &mut client,
        "SET statement_timeout = 0; SELECT pg_sleep(0.5)",
    );

    // An idle worker does not run into it either.
    let idle_since = SystemTime::now();
    let before: Vec<i32> = workers(&mut client)
        .iter()
        .map(|worker| worker.pid)
        .collect();
    wait_until("the timeout to have passed", || {
        idle_since.elapsed().unwrap_or_default() > Duration::from_secs(1)
    });
    let after: Vec<i32> = workers(&mut client)
        .iter()
        .map(|worker| worker.pid)
        .collect();
    assert_eq!(before, after);
}

#[test]
fn timeouts_of_the_role_do_not_reach_the_bookkeeping() {
    let server = one_worker();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    // her own session is none of those that this concerns
    let mut alice = server.connect("alice", "postgres");
    run(
        &mut client,
        "CREATE TABLE effects (what text); GRANT INSERT ON effects TO alice; \
         ALTER ROLE alice SET statement_timeout = '1ms'; \
         ALTER ROLE alice SET lock_timeout = '1ms'; \
         ALTER ROLE alice SET idle_in_transaction_session_timeout = '1ms'; \
         ALTER ROLE alice SET default_transaction_read_only = on; \
         ALTER ROLE alice SET default_transaction_isolation = serializable; \
         ALTER ROLE alice SET row_security = off; \
         ALTER ROLE alice SET enable_indexscan = off; \
         ALTER ROLE alice SET search_path = nowhere; \
         ALTER ROLE alice SET synchronous_commit = off",
    );
    // These end in their own way; what counts is that each ends, and that the worker lives.
    for sql in [
        "SELECT pg_sleep(5)",
        "SELECT 1/0",
        "INSERT INTO effects VALUES ('read only')",
        "SELECT nonsense",
    ] {
        let id = enqueue(&mut alice, sql);
        let done = wait_closed(&mut alice, id);
        assert_eq!(done.state, "failed", "{sql}");
        assert_eq!(done.interruptions, 0, "{sql}");
    }
    let id = enqueue(
        &mut alice,
        "SET TRANSACTION READ WRITE; INSERT INTO effects VALUES ('written')",
    );
    let done = wait_closed(&mut alice, id);
    // Within a millisecond or not: either way both or neither.
    let there: i64 = scalar(&mut client, "SELECT count(*) FROM effects", &[]);
    assert_eq!(
        there,
        i64::from(done.state == "finished"),
        "{}",
        done.errors()
    );
}

/// From 17 on; it ends the process, so a worker would be gone with a task that had finished.
#[test]
fn the_transaction_timeout_of_a_task_does_not_reach_the_bookkeeping() {
    let server = one_worker();
    let mut client = server.superuser();
    let version: i32 = scalar(
        &mut client,
        "SELECT current_setting('server_version_num')::int",
        &[],
    );
    if version < 170_000 {
        println!("skipped: no transaction_timeout before 17");
        return;
    }
    let mut holder = server.superuser();
    for (last, state) in [
        ("SET transaction_timeout = '1s'", "finished"),
        // set and committed, and not in force in the transaction that fails
        (
            "DO $$ BEGIN SET transaction_timeout = '1s'; COMMIT; SET LOCAL transaction_timeout = 0; PERFORM 1/0; END $$",
            "failed",
        ),
    ] {
        run(&mut holder, "SELECT pg_advisory_lock(77)");
        let gate =
            "DO $$ BEGIN PERFORM pg_advisory_lock(77); PERFORM pg_advisory_unlock(77); END $$";
        // a DO block that commits must be alone
        let sql = if state == "failed" {
            last.replace(
                "BEGIN",
                "BEGIN PERFORM pg_advisory_lock(77); PERFORM pg_advisory_unlock(77);",
            )
        } else {
            format!("{gate}; {last}")
        };
        let id = enqueue(&mut client, &sql);
        let waits_for = |client: &mut Client, what: &str| {
            workers(client)
                .iter()
                .find(|worker| worker.wait_event.as_deref() == Some(what))
                .map(|worker| worker.pid)
        };
        wait_until("the task to wait for the gate", || {
            waits_for(&mut client, "advisory").is_some()
        });
        let pid = waits_for(&mut client, "advisory");
        run(
            &mut holder,
            &format!("BEGIN; SELECT FROM pg_background_tasks WHERE id = {id} FOR UPDATE"),
        );
        run(&mut holder, "SELECT pg_advisory_unlock(77)");
        wait_until("the worker to wait for the row", || {
            waits_for(&mut client, "tuple").is_some()
        });
        run(&mut holder, "SELECT pg_sleep(1.5); COMMIT");
        let done = wait_closed(&mut client, id);
        assert_eq!(done.state, state, "{}", done.errors());
        assert_eq!(state == "failed", done.errors().starts_with("22012"));
        assert_eq!(
            pid,
            workers(&mut client)
                .iter()
                .find(|w| w.kind == "worker")
                .map(|w| w.pid)
        );
    }
}

#[test]
fn the_log_names_role_database_and_application() {
    let server = Server::builder()
        .conf("log_line_prefix", "%m [%p] %b %u@%d [%a] ")
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    let mark = server.log_mark();
    let id = run_task(
        &mut alice,
        "DO $$ BEGIN RAISE LOG 'said by the task'; END $$",
    );
    let log = server.log_since(mark);
    let line = log
        .lines()
        .find(|line| line.contains("LOG:  said by the task"))
        .unwrap_or_else(|| panic!("no such line in {log}"));
    assert!(
        line.contains("pg_background_queue worker alice@postgres ["),
        "{line}"
    );
    let application = line
        .split('[')
        .nth(2)
        .and_then(|rest| rest.split(']').next());
    assert!(
        application.is_some_and(|name| name.contains(&id.to_string())),
        "{line}"
    );
}

#[test]
fn a_failure_is_logged_as_for_any_session() {
    let server = one_worker();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    let mark = server.log_mark();
    let failing = enqueue(&mut alice, "SELECT 1/0 AS fails");
    wait_closed(&mut alice, failing);
    let log = server.log_since(mark);
    assert!(
        log.contains("alice@postgres ERROR:  division by zero"),
        "{log}"
    );
    assert!(
        log.contains("alice@postgres STATEMENT:  SELECT 1/0 AS fails"),
        "{log}"
    );
}

#[test]
fn sslinfo_and_the_keepalive_settings_do_no_harm() {
    let server = one_worker();
    let mut client = server.superuser();
    prepare_seen(&mut client);
    create_role(&mut client, "alice");
    let mut alice = server.connect("alice", "postgres");
    run_task(
        &mut alice,
        "SET tcp_keepalives_idle = 10; SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'client_connection_check_interval'; SHOW tcp_keepalives_idle; \
         SELECT inet_client_addr(), inet_server_port(); SELECT * FROM pg_stat_ssl; \
         SELECT * FROM pg_stat_gssapi; DO $$ BEGIN RAISE NOTICE 'to nobody'; END $$",
    );
    let available: bool = scalar(
        &mut client,
        "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'sslinfo')",
        &[],
    );
    if !available {
        println!("skipped: no sslinfo here");
        return;
    }
    run(&mut client, "CREATE EXTENSION sslinfo");
    assert_eq!(seen(&mut alice, "ssl_is_used()").as_deref(), Some("false"));
    run_task(
        &mut alice,
        "SELECT ssl_version(), ssl_cipher(), ssl_client_cert_present(), ssl_client_dn(), ssl_issuer_dn(), \
         ssl_client_serial()",
    );
    run_task(&mut alice, "SELECT * FROM ssl_extension_info()");
}

#[test]
fn log_statement_logs_what_a_task_runs_and_nothing_of_ours() {
    let server = one_worker();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    run(&mut client, "ALTER ROLE alice SET log_statement = 'all'");
    let mut alice = server.connect("alice", "postgres");
    run(
        &mut client,
        "ALTER ROLE alice SET log_min_duration_statement = 0",
    );
    let mark = server.log_mark();
    let sql = "SELECT 'logged' AS first; SELECT 'too' AS second";
    run_task(&mut alice, sql);
    let log = server.log_since(mark);
    let of_worker: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("pg_background_queue worker"))
        .filter(|line| line.contains("statement: "))
        .collect();
    let logged = format!("LOG:  statement: {sql}");
    assert_eq!(
        of_worker
            .iter()
            .filter(|line| line.ends_with(&logged))
            .count(),
        1,
        "{log}"
    );
    assert_eq!(of_worker.len(), 1, "{log}");
    assert!(
        log.lines()
            .any(|line| line.contains("pg_background_queue worker")
                && line.contains("LOG:  duration: ")),
        "{log}"
    );
}
