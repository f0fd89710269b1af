//! From enqueue to finished: a task runs once its transaction has committed, at once, and ends in
//! the right state.

use std::time::{Duration, SystemTime};

use postgres::Client;

use crate::harness::{
    PATIENCE, Server, Task, create_role, enqueue, enqueue_topic, run, scalar, states, task, tasks,
    wait_all_closed, wait_closed, wait_for, wait_for_launcher, wait_quiet, wait_state, wait_until,
    worker_count, workers,
};

/// How long ago `earlier` was at `later`; nothing if the clock says that it came after.
fn between(earlier: SystemTime, later: SystemTime) -> Duration {
    later.duration_since(earlier).unwrap_or_default()
}

/// The middle value.
fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() / 2]
}

#[test]
fn a_task_runs_and_its_times_are_right() {
    let server = Server::start_default();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE effects (began timestamptz, ended timestamptz)",
    );

    let before = SystemTime::now();
    let id = enqueue_topic(
        &mut client,
        "INSERT INTO effects VALUES (clock_timestamp(), NULL); SELECT pg_sleep(0.3); \
         UPDATE effects SET ended = clock_timestamp()",
        "reports",
    );
    let after = SystemTime::now();
    let done = wait_state(&mut client, id, "finished");

    let row = client
        .query_one("SELECT began, ended FROM effects", &[])
        .expect("one effect");
    let (began, ended): (SystemTime, SystemTime) = (row.get(0), row.get(1));
    let (started_at, closed_at) = (done.started_at.unwrap(), done.closed_at.unwrap());
    assert!(before <= done.joined_at && done.joined_at <= after);
    assert!(done.joined_at <= started_at);
    assert!(started_at <= began);
    assert!(ended <= closed_at);
    assert!(between(began, closed_at) >= Duration::from_millis(300));
    assert!(closed_at <= SystemTime::now());
    assert_eq!(done.topic.as_deref(), Some("reports"));
    assert_eq!(done.errors, None);
    assert_eq!(done.role_name.as_deref(), Some("postgres"));
    assert_eq!(done.priority, 100);
    assert_eq!(done.interruptions, 0);
    assert!(!done.held);
}

#[test]
fn a_running_task_is_seen_running_by_others() {
    let server = Server::start_default();
    let mut client = server.superuser();
    run(&mut client, "SELECT pg_advisory_lock(1)");

    let id = enqueue(&mut client, "SELECT pg_advisory_xact_lock(1)");
    let running = wait_state(&mut client, id, "running");
    assert!(running.started_at.is_some());
    assert_eq!(running.closed_at, None);

    // The worker shows the SQL as soon as it runs it, which is a moment after the claim was
    // committed.
    let worker = wait_for(
        "the worker to wait for the lock",
        Duration::from_secs(30),
        || {
            workers(&mut client)
                .into_iter()
                .find(|worker| worker.wait_event.as_deref() == Some("advisory"))
        },
    );
    assert_eq!(worker.kind, "worker");
    assert_eq!(worker.database.as_deref(), Some("postgres"));
    assert_eq!(worker.role.as_deref(), Some("postgres"));
    assert_eq!(worker.state.as_deref(), Some("active"));
    assert_eq!(
        worker.query.as_deref(),
        Some("SELECT pg_advisory_xact_lock(1)")
    );
    assert!(worker.application_name.contains(&id.to_string()));

    run(&mut client, "SELECT pg_advisory_unlock(1)");
    wait_state(&mut client, id, "finished");
}

#[test]
fn both_names_work_also_in_functions_and_triggers() {
    let server = Server::start_default();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE effects (what text); \
         CREATE FUNCTION in_plpgsql() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN \
           RETURN pg_background_queue_enqueue('INSERT INTO effects VALUES (''plpgsql'')'); END $$; \
         CREATE FUNCTION in_sql() RETURNS bigint LANGUAGE sql AS $$ \
           SELECT pg_background_enqueue('INSERT INTO effects VALUES (''sql'')', 'topic') $$; \
         CREATE TABLE orders (n int); \
         CREATE FUNCTION on_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           PERFORM pg_background_queue_enqueue(format('INSERT INTO effects VALUES (%L)', 'order ' || NEW.n)); \
           RETURN NULL; END $$; \
         CREATE TRIGGER on_order AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION on_order()",
    );

    let first: i64 = scalar(
        &mut client,
        "SELECT pg_background_enqueue('INSERT INTO effects VALUES (''old name'')')",
        &[],
    );
    let second: i64 = scalar(
        &mut client,
        "SELECT pg_background_queue_enqueue(sql => 'INSERT INTO effects VALUES (''new name'')', topic => 't')",
        &[],
    );
    assert!(first < second);
    run(&mut client, "SELECT in_plpgsql()");
    run(&mut client, "SELECT in_sql()");
    run(&mut client, "INSERT INTO orders VALUES (1), (2)");
    wait_all_closed(&mut client, Duration::from_secs(60));

    let effects: String = scalar(
        &mut client,
        "SELECT string_agg(what, ', ' ORDER BY what) FROM effects",
        &[],
    );
    assert_eq!(
        effects,
        "new name, old name, order 1, order 2, plpgsql, sql"
    );
    assert_eq!(task(&mut client, second).topic.as_deref(), Some("t"));
    assert!(
        tasks(&mut client)
            .iter()
            .all(|task| task.state == "finished")
    );
}

#[test]
fn enqueueing_says_nothing_but_the_ids() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "0")
        .start();
    let (mut client, notices) = server.connector().connect_listening("postgres", "postgres");
    run(&mut client, "SET client_min_messages = debug1");
    notices.lock().unwrap().clear();

    let distinct: i64 = scalar(
        &mut client,
        "SELECT count(DISTINCT pg_background_queue_enqueue('SELECT 1')) FROM generate_series(1, 10000)",
        &[],
    );
    assert_eq!(distinct, 10_000);
    let said: Vec<String> = notices
        .lock()
        .unwrap()
        .iter()
        .filter(|line| !line.starts_with("DEBUG"))
        .cloned()
        .collect();
    assert_eq!(said, Vec::<String>::new());
}

#[test]
fn a_task_may_enqueue_a_task() {
    let server = Server::start_default();
    let mut client = server.superuser();
    run(&mut client, "CREATE TABLE effects (what text)");
    enqueue(
        &mut client,
        "SELECT pg_background_queue_enqueue('INSERT INTO effects VALUES (''from a task'')')",
    );
    // And one that fails takes its children with it.
    enqueue(
        &mut client,
        "SELECT pg_background_queue_enqueue('INSERT INTO effects VALUES (''never'')'); SELECT 1/0",
    );
    wait_for("the second task", Duration::from_secs(60), || {
        let n: i64 = scalar(&mut client, "SELECT count(*) FROM effects", &[]);
        (n > 0).then_some(())
    });
    wait_all_closed(&mut client, Duration::from_secs(60));
    let effects: String = scalar(
        &mut client,
        "SELECT string_agg(what, ', ') FROM effects",
        &[],
    );
    assert_eq!(effects, "from a task");
    assert_eq!(tasks(&mut client).len(), 3);
}

#[test]
fn a_task_starts_within_milliseconds_when_a_worker_is_idle() {
    let server = Server::builder()
        .conf("pg_background_queue.worker_idle_timeout", "10min")
        .start();
    let mut client = server.superuser();
    run(&mut client, "CREATE TABLE effects (began timestamptz)");
    let first = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, first, "finished");

    let mut latencies = Vec::new();
    for _ in 0..50 {
        run(&mut client, "TRUNCATE effects");
        let called = SystemTime::now();
        let id = enqueue(
            &mut client,
            "INSERT INTO effects VALUES (clock_timestamp())",
        );
        wait_state(&mut client, id, "finished");
        let began: SystemTime = scalar(&mut client, "SELECT began FROM effects", &[]);
        latencies.push(between(called, began));
    }
    let p50 = median(latencies);
    println!("p50 from the call to the first statement, idle worker: {p50:?}");
    assert!(p50 < Duration::from_millis(50), "p50 is {p50:?}");
}

#[test]
fn a_task_starts_promptly_when_a_worker_must_be_started() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "4")
        .conf("pg_background_queue.worker_idle_timeout", "10min")
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE effects (who name, began timestamptz); GRANT INSERT ON effects TO PUBLIC",
    );
    let mut latencies = Vec::new();
    // From the fifth role on, an idle worker of another role has to leave first.
    for n in 0..12 {
        let role = format!("role_{n}");
        create_role(&mut client, &role);
        let mut session = server.connect(&role, "postgres");
        let called = SystemTime::now();
        let id = enqueue(
            &mut session,
            "INSERT INTO effects VALUES (current_user, clock_timestamp())",
        );
        wait_state(&mut session, id, "finished");
        let began: SystemTime = scalar(
            &mut client,
            "SELECT began FROM effects WHERE who = $1::text::name",
            &[&role],
        );
        latencies.push(between(called, began));
    }
    let p50 = median(latencies.clone());
    println!("p50 from the call to the first statement, new worker: {p50:?} of {latencies:?}");
    assert!(p50 < Duration::from_millis(500), "p50 is {p50:?}");
    assert!(
        latencies.iter().all(|&one| one < Duration::from_secs(10)),
        "{latencies:?}"
    );
}

#[test]
fn what_is_rolled_back_never_existed() {
    let server = Server::start_default();
    let mut client = server.superuser();
    run(&mut client, "CREATE TABLE effects (what text)");

    let mut whole = client.transaction().unwrap();
    enqueue(&mut whole, "INSERT INTO effects VALUES ('rolled back')");
    whole.rollback().unwrap();

    let mut outer = client.transaction().unwrap();
    enqueue(&mut outer, "INSERT INTO effects VALUES ('outer')");
    let mut inner = outer.savepoint("first").unwrap();
    enqueue(&mut inner, "INSERT INTO effects VALUES ('inner')");
    inner.rollback().unwrap();
    let mut kept = outer.savepoint("second").unwrap();
    enqueue(&mut kept, "INSERT INTO effects VALUES ('kept')");
    kept.commit().unwrap();
    outer.commit().unwrap();

    // An error in the middle of a transaction, and one in an exception block.
    client
        .batch_execute(
            "BEGIN; SELECT pg_background_queue_enqueue('INSERT INTO effects VALUES (''failed'')'); \
             SELECT 1/0; COMMIT",
        )
        .expect_err("a division by zero");
    run(&mut client, "ROLLBACK");
    run(
        &mut client,
        "DO $$ BEGIN \
           PERFORM pg_background_queue_enqueue('INSERT INTO effects VALUES (''block'')'); PERFORM 1/0; \
         EXCEPTION WHEN division_by_zero THEN NULL; END $$",
    );

    // The last task: whatever was wrongly taken before it has run by then, on a queue with one
    // order.
    let last = enqueue(&mut client, "INSERT INTO effects VALUES ('last')");
    wait_state(&mut client, last, "finished");
    wait_all_closed(&mut client, Duration::from_secs(60));
    let effects: String = scalar(
        &mut client,
        "SELECT string_agg(what, ', ' ORDER BY what) FROM effects",
        &[],
    );
    assert_eq!(effects, "kept, last, outer");
    assert_eq!(tasks(&mut client).len(), 3);
}

#[test]
fn a_transaction_that_commits_late_starts_its_task_then() {
    let server = Server::start_default();
    let mut client = server.superuser();
    let mut other = server.superuser();
    run(&mut client, "CREATE TABLE effects (began timestamptz)");

    let mut transaction = client.transaction().unwrap();
    let id = enqueue(
        &mut transaction,
        "INSERT INTO effects VALUES (clock_timestamp())",
    );
    // The wait is what this is about: a worker that was started at the call has given up by the
    // commit.
    run(&mut transaction, "SELECT pg_sleep(5)");
    assert_eq!(tasks(&mut other).len(), 0);
    let about_to_commit = SystemTime::now();
    transaction.commit().unwrap();

    wait_state(&mut client, id, "finished");
    let began: SystemTime = scalar(&mut client, "SELECT began FROM effects", &[]);
    assert!(began >= about_to_commit);
    let latency = between(about_to_commit, began);
    assert!(latency < Duration::from_secs(5), "started {latency:?} late");
}

#[test]
fn null_and_blank_sql_are_errors_at_the_call() {
    let server = Server::start_default();
    let mut client = server.superuser();
    for call in [
        "SELECT pg_background_queue_enqueue(NULL)",
        "SELECT pg_background_queue_enqueue('')",
        "SELECT pg_background_queue_enqueue(E' \\n\\t ')",
        "SELECT pg_background_enqueue(NULL, 'topic')",
    ] {
        let error = client.batch_execute(call).expect_err(call);
        assert!(error.as_db_error().is_some(), "{call}: {error:?}");
    }
    assert_eq!(tasks(&mut client).len(), 0);
}

#[test]
fn a_read_only_transaction_cannot_enqueue() {
    let server = Server::start_default();
    let mut client = server.superuser();
    let error = client
        .batch_execute("BEGIN READ ONLY; SELECT pg_background_queue_enqueue('SELECT 1'); COMMIT")
        .expect_err("read only");
    let db = error.as_db_error().expect("the server's error");
    assert_eq!(db.code().code(), "25006", "{}", db.message());
    run(&mut client, "ROLLBACK");
    assert_eq!(tasks(&mut client).len(), 0);
}

#[test]
fn a_prepared_transaction_starts_its_tasks_when_it_commits() {
    let server = Server::builder()
        .conf("max_prepared_transactions", "5")
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE effects (what text); \
         BEGIN; SELECT pg_background_queue_enqueue('INSERT INTO effects VALUES (''kept'')'); \
         PREPARE TRANSACTION 'kept'; \
         BEGIN; SELECT pg_background_queue_enqueue('INSERT INTO effects VALUES (''lost'')'); \
         PREPARE TRANSACTION 'lost'",
    );
    assert_eq!(tasks(&mut client).len(), 0);
    run(&mut client, "ROLLBACK PREPARED 'lost'");
    run(&mut client, "COMMIT PREPARED 'kept'");
    wait_until("the task to have run", || {
        scalar::<i64>(&mut client, "SELECT count(*) FROM effects", &[]) == 1
    });
    wait_all_closed(&mut client, Duration::from_secs(60));
    let effects: String = scalar(&mut client, "SELECT what FROM effects", &[]);
    assert_eq!(effects, "kept");
}

/// What a kind of task must come to.
enum Ends {
    Finished,
    /// With this SQLSTATE and these words in `errors`.
    Failed(&'static str, &'static [&'static str]),
}

/// One kind of task. In `sql`, `{p}` stands for the pass, `{e}` for a statement that leaves a row
/// in `effects`, and `{once}` for one that leaves a trace even when it is rolled back.
struct Kind {
    what: &'static str,
    sql: String,
    ends: Ends,
    /// How many rows it must have left in `effects`.
    effects: i64,
    /// A query that must then return true.
    then: Option<&'static str>,
}

impl Kind {
    fn effects(mut self, count: i64) -> Self {
        self.effects = count;
        self
    }

    fn then(mut self, query: &'static str) -> Self {
        self.then = Some(query);
        self
    }

    fn fill(&self, text: &str, pass: u32) -> String {
        let effect = format!(
            "INSERT INTO effects VALUES ({pass}, '{}', pg_backend_pid())",
            self.what
        );
        text.replace("{e}", &effect)
            .replace("{once}", "SELECT nextval('untouched')")
            .replace("{p}", &pass.to_string())
            .replace("{what}", self.what)
    }

    fn check(&self, client: &mut Client, done: &Task, pass: u32) {
        let what = self.what;
        match self.ends {
            Ends::Finished => {
                assert_eq!(done.state, "finished", "{what}: {}", done.errors());
                assert_eq!(done.errors, None, "{what}");
            }
            Ends::Failed(sqlstate, words) => {
                assert_eq!(done.state, "failed", "{what}");
                for word in words.iter().chain([&sqlstate]) {
                    assert!(
                        done.errors().contains(word),
                        "{what}: {word:?} is not in {:?}",
                        done.errors()
                    );
                }
            }
        }
        assert!(done.started_at.is_some(), "{what}");
        assert!(done.closed_at.is_some(), "{what}");
        assert_eq!(done.interruptions, 0, "{what}");
        let effects: i64 = scalar(
            client,
            "SELECT count(*) FROM effects WHERE pass = $1 AND what = $2",
            &[&i64::from(pass), &what],
        );
        assert_eq!(effects, self.effects, "{what}");
        let untouched: bool = scalar(client, "SELECT NOT is_called FROM untouched", &[]);
        assert!(
            untouched,
            "{what}: a statement ran before the task was refused"
        );
        // With every task at once, a later one may have undone what this one did.
        if let (1, Some(query)) = (pass, self.then) {
            let holds: bool = scalar(client, &self.fill(query, pass), &[]);
            assert!(holds, "{what}: {query}");
        }
    }
}

fn finishes(what: &'static str, sql: &str) -> Kind {
    Kind {
        what,
        sql: sql.to_owned(),
        ends: Ends::Finished,
        effects: 0,
        then: None,
    }
}

fn fails(
    what: &'static str,
    sql: &str,
    sqlstate: &'static str,
    words: &'static [&'static str],
) -> Kind {
    Kind {
        ends: Ends::Failed(sqlstate, words),
        ..finishes(what, sql)
    }
}

/// Refused before its first statement runs.
fn refused(what: &'static str, sql: &str, words: &'static [&'static str]) -> Kind {
    fails(what, sql, "0A000", words)
}

fn kinds() -> Vec<Kind> {
    let twenty_megabytes = format!(
        "INSERT INTO effects SELECT {{p}}, '{{what}}', pg_backend_pid() WHERE length('{}') = 20971520",
        "x".repeat(20 << 20)
    );
    vec![
        finishes("insert", "{e}").effects(1),
        finishes("several statements", "{e}; {e}; SELECT count(*) FROM effects").effects(2),
        fails(
            "several statements, the last fails",
            "{e}; {e}; SELECT 1/0",
            "22012",
            &["division by zero"],
        ),
        finishes("VACUUM ANALYZE", "VACUUM ANALYZE items")
            .then("SELECT reltuples = 1000 FROM pg_class WHERE relname = 'items'"),
        fails(
            "VACUUM among others",
            "{e}; VACUUM items",
            "25001",
            &["VACUUM cannot run inside a transaction block"],
        ),
        finishes("VACUUM FULL", "VACUUM FULL items"),
        finishes("ANALYZE", "ANALYZE items"),
        finishes("CLUSTER", "CLUSTER items USING items_pkey"),
        finishes(
            "CREATE INDEX CONCURRENTLY",
            "CREATE INDEX CONCURRENTLY items_n_{p} ON items (n)",
        )
        .then("SELECT indisvalid FROM pg_index WHERE indexrelid = 'items_n_{p}'::regclass"),
        finishes("REINDEX INDEX CONCURRENTLY", "REINDEX INDEX CONCURRENTLY items_n_{p}"),
        finishes("REINDEX TABLE CONCURRENTLY", "REINDEX TABLE CONCURRENTLY items").then(
            "SELECT bool_and(indisvalid) AND count(*) = 2 FROM pg_index \
             WHERE indrelid = 'items'::regclass",
        ),
        finishes("DROP INDEX CONCURRENTLY", "DROP INDEX CONCURRENTLY items_n_{p}"),
        fails(
            "CREATE UNIQUE INDEX CONCURRENTLY that cannot be",
            "CREATE UNIQUE INDEX CONCURRENTLY twins_{p} ON twins (n)",
            "23505",
            &["could not create unique index"],
        ),
        finishes("DROP of the invalid index", "DROP INDEX twins_{p}"),
        finishes("CREATE DATABASE", "CREATE DATABASE made_{p}")
            .then("SELECT count(*) = 1 FROM pg_database WHERE datname = 'made_{p}'"),
        fails("CREATE DATABASE again", "CREATE DATABASE made_{p}", "42P04", &[]),
        finishes("DROP DATABASE", "DROP DATABASE made_{p}")
            .then("SELECT count(*) = 0 FROM pg_database WHERE datname = 'made_{p}'"),
        fails(
            "CREATE DATABASE among others",
            "{e}; CREATE DATABASE never",
            "25001",
            &["CREATE DATABASE cannot run inside a transaction block"],
        ),
        finishes("ALTER SYSTEM", "ALTER SYSTEM SET work_mem = '5MB'").then(
            "SELECT count(*) = 1 FROM pg_file_settings WHERE name = 'work_mem' AND setting = '5MB'",
        ),
        finishes("ALTER SYSTEM RESET", "ALTER SYSTEM RESET work_mem")
            .then("SELECT count(*) = 0 FROM pg_file_settings WHERE name = 'work_mem'"),
        finishes("CALL that commits and rolls back", "CALL commits({p}, '{what}', 'goes on')")
            .effects(2),
        finishes("CALL that ends with COMMIT", "CALL commits({p}, '{what}', 'commit')").effects(2),
        finishes("CALL that ends with ROLLBACK", "CALL commits({p}, '{what}', 'rollback')")
            .effects(1),
        fails(
            "CALL that fails after a COMMIT",
            "CALL commits({p}, '{what}', 'fail')",
            "P0001",
            &["after the commit", "PL/pgSQL function commits"],
        )
        .effects(1),
        finishes(
            "DO that commits and rolls back",
            "DO $$ BEGIN {e}; COMMIT; {e}; ROLLBACK; {e}; END $$",
        )
        .effects(2),
        finishes("DO that ends with COMMIT", "DO $$ BEGIN {e}; COMMIT; END $$").effects(1),
        fails(
            "DO that commits, among others",
            "{e}; DO $$ BEGIN COMMIT; END $$",
            "2D000",
            &["invalid transaction termination"],
        ),
        finishes(
            "DO with an exception block",
            "DO $$ BEGIN {e}; BEGIN PERFORM 1/0; EXCEPTION WHEN division_by_zero THEN {e}; END; END $$",
        )
        .effects(2),
        finishes("EXPLAIN", "EXPLAIN {e}"),
        finishes("EXPLAIN ANALYZE", "EXPLAIN ANALYZE {e}").effects(1),
        finishes("rows that nobody reads", "SELECT * FROM items; TABLE items; VALUES (1), (2)"),
        finishes("no statement at all", ";"),
        finishes("a comment", "/* nothing */ -- at all"),
        fails("division by zero", "SELECT 1/0", "22012", &["division by zero"]),
        fails(
            "syntax error",
            "{once}; SELEC 1",
            "42601",
            &["syntax error at or near \"SELEC\""],
        ),
        fails(
            "no such table",
            "SELECT * FROM nowhere",
            "42P01",
            &["relation \"nowhere\" does not exist"],
        ),
        fails(
            "RAISE",
            "DO $$ BEGIN RAISE EXCEPTION 'the message' USING ERRCODE = 'P7777', DETAIL = 'the detail', \
             HINT = 'the hint'; END $$",
            "P7777",
            &[
                "the message",
                "the detail",
                "the hint",
                "PL/pgSQL function inline_code_block line 1 at RAISE",
            ],
        ),
        fails(
            "an endless error message",
            "DO $$ BEGIN RAISE EXCEPTION 'long %', repeat('x', 3000000); END $$",
            "P0001",
            &["long xxx"],
        ),
        fails("endless recursion", "SELECT deep(1)", "54001", &["stack depth limit exceeded"]),
        finishes("a warning", "DO $$ BEGIN RAISE WARNING 'said by a task'; END $$"),
        fails(
            "a deferred constraint that fails at commit",
            "INSERT INTO children VALUES (-1)",
            "23503",
            &["violates foreign key constraint"],
        ),
        fails(
            "a deferred constraint that fails at commit, among others",
            "{e}; INSERT INTO children VALUES (-1); {e}",
            "23503",
            &["violates foreign key constraint"],
        ),
        finishes("a deferred constraint that holds", "{e}; INSERT INTO children VALUES (1)")
            .effects(1),
        fails(
            "a serialization failure",
            "{e}; DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$",
            "40001",
            &[],
        ),
        refused("COPY FROM STDIN", "{once}; COPY items FROM STDIN", &["COPY"]),
        refused("COPY TO STDOUT", "{once}; COPY items TO STDOUT", &["COPY"]),
        refused(
            "COPY of a query TO STDOUT",
            "COPY (SELECT nextval('untouched')) TO STDOUT",
            &["COPY"],
        ),
        finishes("COPY TO PROGRAM", "COPY items TO PROGRAM 'cat > /dev/null'"),
        refused("LISTEN", "{once}; LISTEN channel", &["LISTEN"]),
        finishes("NOTIFY", "NOTIFY channel"),
        finishes("UNLISTEN", "UNLISTEN *"),
        refused("BEGIN without end", "{once}; BEGIN; {e}", &["BEGIN"]),
        refused("BEGIN and COMMIT", "{once}; BEGIN; {e}; COMMIT", &["BEGIN"]),
        refused("START TRANSACTION", "START TRANSACTION; {once}", &["START TRANSACTION"]),
        refused("COMMIT", "{once}; {e}; COMMIT", &["COMMIT"]),
        refused("COMMIT AND CHAIN", "{once}; {e}; COMMIT AND CHAIN", &["COMMIT"]),
        refused("ROLLBACK", "{once}; {e}; ROLLBACK; {e}", &["ROLLBACK"]),
        refused("SAVEPOINT", "{once}; SAVEPOINT here", &["SAVEPOINT"]),
        refused(
            "PREPARE TRANSACTION",
            "{once}; {e}; PREPARE TRANSACTION 'away'",
            &["PREPARE TRANSACTION"],
        )
        .then("SELECT count(*) = 0 FROM pg_prepared_xacts"),
        refused("COMMIT PREPARED", "COMMIT PREPARED 'away'", &["COMMIT PREPARED"]),
        finishes("a statement of 20 MB", &twenty_megabytes).effects(1),
        finishes(
            "CREATE TABLE and more",
            "CREATE TABLE made (a int); INSERT INTO made VALUES (1); ALTER TABLE made ADD b int; \
             TRUNCATE made; DROP TABLE made; {e}",
        )
        .effects(1),
        finishes(
            "a parallel query",
            "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; \
             SET min_parallel_table_scan_size = 0; SELECT count(*) FROM items; {e}",
        )
        .effects(1),
        fails(
            "LOCK alone",
            "LOCK TABLE items",
            "25P01",
            &["LOCK TABLE can only be used in transaction blocks"],
        ),
        finishes("LOCK among others", "LOCK TABLE items; {e}").effects(1),
        fails(
            "writing in a read-only transaction",
            "SET TRANSACTION READ ONLY; {e}",
            "25006",
            &["cannot execute INSERT in a read-only transaction"],
        ),
        fails(
            "cancelling itself",
            "SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(30)",
            "57014",
            &["canceling statement due to user request"],
        ),
        finishes("DISCARD ALL", "DISCARD ALL"),
        finishes("RESET ALL", "RESET ALL; RESET SESSION AUTHORIZATION; {e}").effects(1),
        finishes(
            "all that a session may leave behind",
            "SET work_mem = '3MB'; CREATE TEMP TABLE temporary AS SELECT * FROM items; \
             PREPARE prepared AS SELECT 1; DECLARE held CURSOR WITH HOLD FOR SELECT * FROM items; \
             SELECT pg_advisory_lock(99); {e}",
        )
        .effects(1),
        finishes("CHECKPOINT", "CHECKPOINT"),
        finishes("VACUUM FULL of the queue", "VACUUM FULL pg_background_tasks"),
        finishes("REINDEX of the queue", "REINDEX TABLE CONCURRENTLY pg_background_tasks"),
        finishes("insert at the end", "{e}").effects(1),
    ]
}

/// The one worker there is.
#[track_caller]
fn only_worker(client: &mut Client, after: &str) -> i32 {
    let all: Vec<_> = workers(client)
        .into_iter()
        .filter(|worker| worker.kind == "worker")
        .collect();
    assert_eq!(all.len(), 1, "after {after}: {all:?}");
    all[0].pid
}

#[test]
fn one_worker_serves_every_kind_of_task() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "1")
        .conf("pg_background_queue.worker_idle_timeout", "10min")
        .conf("max_prepared_transactions", "5")
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE effects (pass bigint, what text, pid int); \
         CREATE TABLE items (id int PRIMARY KEY, n int); \
         INSERT INTO items SELECT i, i FROM generate_series(1, 1000) AS i; \
         CREATE TABLE twins (n int); INSERT INTO twins VALUES (1), (1); \
         CREATE TABLE parents (id int PRIMARY KEY); INSERT INTO parents VALUES (1); \
         CREATE TABLE children (id int REFERENCES parents DEFERRABLE INITIALLY DEFERRED); \
         CREATE SEQUENCE untouched; \
         CREATE FUNCTION deep(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN deep(n + 1); END $$; \
         CREATE PROCEDURE commits(pass bigint, what text, how text) LANGUAGE plpgsql AS $$ BEGIN \
           INSERT INTO effects VALUES (pass, what, pg_backend_pid()); \
           COMMIT; \
           INSERT INTO effects VALUES (pass, what, pg_backend_pid()); \
           IF how = 'commit' THEN COMMIT; RETURN; END IF; \
           IF how = 'fail' THEN RAISE EXCEPTION 'after the commit'; END IF; \
           ROLLBACK; \
           IF how = 'goes on' THEN INSERT INTO effects VALUES (pass, what, pg_backend_pid()); END IF; \
         END $$",
    );
    let kinds = kinds();

    // One by one, so that a failure names its kind.
    let mut pid = None;
    for kind in &kinds {
        let id = enqueue(&mut client, &kind.fill(&kind.sql, 1));
        let done = wait_closed(&mut client, id);
        kind.check(&mut client, &done, 1);
        let now = only_worker(&mut client, kind.what);
        assert_eq!(
            *pid.get_or_insert(now),
            now,
            "another worker after: {}",
            kind.what
        );
    }

    // A true serialization failure needs somebody to lose against.
    let mut rival = server.superuser();
    run(&mut rival, "SELECT pg_advisory_lock(42)");
    let id = enqueue(
        &mut client,
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM items; \
         SELECT pg_advisory_xact_lock(42); UPDATE items SET n = n + 1 WHERE id = 1",
    );
    wait_until("the task to wait for the rival", || {
        scalar(
            &mut rival,
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)",
            &[],
        )
    });
    run(&mut rival, "UPDATE items SET n = 0 WHERE id = 1");
    run(&mut rival, "SELECT pg_advisory_unlock(42)");
    let lost = wait_closed(&mut client, id);
    assert_eq!(lost.state, "failed");
    assert!(lost.errors().contains("40001"), "{}", lost.errors());
    assert!(
        lost.errors().contains("could not serialize access"),
        "{}",
        lost.errors()
    );

    // All at once: each claim is made in the commit of the task before.
    let ids: Vec<i64> = kinds
        .iter()
        .map(|kind| enqueue(&mut client, &kind.fill(&kind.sql, 2)))
        .collect();
    wait_all_closed(&mut client, Duration::from_secs(180));
    for (kind, id) in kinds.iter().zip(ids) {
        let done = task(&mut client, id);
        kind.check(&mut client, &done, 2);
    }
    assert_eq!(only_worker(&mut client, "all at once"), pid.unwrap());
    let pids: i64 = scalar(&mut client, "SELECT count(DISTINCT pid) FROM effects", &[]);
    assert_eq!(pids, 1);
    let longest: i32 = scalar(
        &mut client,
        "SELECT max(octet_length(errors)) FROM pg_background_tasks",
        &[],
    );
    assert!(longest < 100_000, "errors of {longest} bytes");
}

#[test]
fn vacuum_and_analyze_of_the_whole_database() {
    // One at a time: two of them at once may well deadlock, in any sessions.
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "1")
        .start();
    let mut client = server.superuser();
    run(&mut client, "CREATE TABLE effects (what text)");
    let mut ids = Vec::new();
    for sql in ["VACUUM", "ANALYZE", "VACUUM ANALYZE", "VACUUM FULL"] {
        ids.push(enqueue(&mut client, sql));
        ids.push(enqueue(
            &mut client,
            "INSERT INTO effects VALUES ('between')",
        ));
    }
    for id in ids {
        wait_state(&mut client, id, "finished");
    }
    let effects: i64 = scalar(&mut client, "SELECT count(*) FROM effects", &[]);
    assert_eq!(effects, 4);
}

/// What commits inside is not undone by the end of the server, and is done again.
#[test]
fn what_commits_inside_runs_again_from_its_beginning_when_it_is_cut_off() {
    let mut server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "2")
        .conf("max_prepared_transactions", "1")
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE effects (n int); CREATE TABLE items (n int); \
         CREATE PROCEDURE slow() LANGUAGE plpgsql AS $$ BEGIN \
           INSERT INTO effects VALUES (1); COMMIT; PERFORM pg_advisory_xact_lock(1); INSERT INTO effects VALUES (2); END $$",
    );
    // A gate that outlasts the server. CREATE INDEX CONCURRENTLY commits its index, and waits for this writer then.
    run(
        &mut client,
        "BEGIN; SELECT pg_advisory_xact_lock(1); INSERT INTO items VALUES (1); PREPARE TRANSACTION 'gate'",
    );
    let call = enqueue(&mut client, "CALL slow()");
    let index = enqueue(
        &mut client,
        "CREATE INDEX CONCURRENTLY items_n ON items (n)",
    );
    wait_until("both to have committed a part", || {
        scalar(
            &mut client,
            "SELECT EXISTS (SELECT FROM effects) AND to_regclass('items_n') IS NOT NULL",
            &[],
        )
    });
    drop(client);
    server.restart();

    let mut client = server.superuser();
    run(&mut client, "ROLLBACK PREPARED 'gate'");
    let done = wait_state(&mut client, call, "finished");
    assert_eq!((done.attempt, done.interruptions), (2, 0));
    let effects: String = scalar(
        &mut client,
        "SELECT string_agg(n::text, ' ' ORDER BY n) FROM effects",
        &[],
    );
    assert_eq!(effects, "1 1 2");
    // The index that is left is in the way of the second attempt, as of anybody's.
    let done = wait_closed(&mut client, index);
    assert_eq!((done.state.as_str(), done.attempt), ("failed", 2));
    assert!(done.errors().starts_with("42P07"), "{}", done.errors());
    let valid: bool = scalar(
        &mut client,
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'items_n'::regclass",
        &[],
    );
    assert!(!valid);
}

#[test]
fn no_process_ever_serves_two_roles() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "1")
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE seen (pid int, since timestamptz, who name); GRANT INSERT ON seen TO PUBLIC",
    );
    let mut sessions = vec![server.superuser()];
    for role in ["alice", "bob"] {
        create_role(&mut client, role);
        sessions.push(server.connect(role, "postgres"));
    }
    for _ in 0..10 {
        for session in &mut sessions {
            enqueue(
                session,
                "INSERT INTO seen SELECT pid, backend_start, session_user FROM pg_stat_activity WHERE pid = pg_backend_pid()",
            );
        }
    }
    wait_all_closed(&mut client, PATIENCE);
    let (tasks, most): (i64, i64) = {
        let row = client
            .query_one(
                "SELECT sum(n)::int8, max(roles) FROM \
                 (SELECT count(*) AS n, count(DISTINCT who) AS roles FROM seen GROUP BY pid, since) AS processes",
                &[],
            )
            .expect("who was seen");
        (row.get(0), row.get(1))
    };
    assert_eq!((tasks, most), (30, 1));
}

/// Also the owner who is no superuser, and who sees all tasks, too.
#[test]
fn superusers_and_the_owner_may_archive_tasks() {
    const ARCHIVE: &str = "WITH gone AS (DELETE FROM pg_background_tasks WHERE closed_at IS NOT NULL RETURNING *) \
         INSERT INTO archive SELECT * FROM gone";
    let server = Server::start_default();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    run(
        &mut client,
        "CREATE ROLE keeper LOGIN; CREATE TABLE archive (LIKE pg_background_tasks); ALTER TABLE archive OWNER TO keeper",
    );
    let mut alice = server.connect("alice", "postgres");
    for owner in ["postgres", "keeper"] {
        run(
            &mut client,
            &format!("ALTER TABLE pg_background_tasks OWNER TO {owner}"),
        );
        for session in [&mut client, &mut alice] {
            let id = enqueue(session, "SELECT 1");
            wait_state(session, id, "finished");
        }
        run(&mut server.connect(owner, "postgres"), ARCHIVE);
        assert_eq!(states(&mut client), "");
    }
    let archived: i64 = scalar(&mut client, "SELECT count(*) FROM archive", &[]);
    assert_eq!(archived, 4);
    let refused = alice
        .batch_execute("DELETE FROM pg_background_tasks")
        .expect_err("not hers");
    assert_eq!(refused.code().map(|code| code.code()), Some("42501"));
}

#[test]
fn ensure_workers_finds_a_task_that_nobody_was_told_of() {
    let server = Server::start_default();
    let mut client = server.superuser();
    // Past the function that would have told somebody.
    let id: i64 = scalar(
        &mut client,
        "INSERT INTO pg_background_tasks (sql_statement, role_oid, role_name, origin, search_path) \
         VALUES ('SELECT 1', current_user::regrole, current_user, pg_background_queue_origin(), 'public') RETURNING id",
        &[],
    );
    let launcher = wait_for_launcher(&mut client, 0);
    wait_quiet(launcher);
    assert_eq!(task(&mut client, id).state, "pending");
    assert_eq!(worker_count(&mut client), 0);
    run(&mut client, "SELECT pg_background_queue_ensure_workers()");
    wait_state(&mut client, id, "finished");
}
