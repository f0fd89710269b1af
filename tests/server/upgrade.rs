//! `ALTER EXTENSION pg_background_queue UPDATE`: an installation of version 1.0, the earlier C extension, becomes one of 2.0.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use postgres::Client;
use postgres::error::{DbError, SqlState};

use crate::harness::{
    Server, enqueue, run, scalar, task, tasks, wait_closed, wait_for, wait_state, workers,
};

/// What `CREATE EXTENSION pg_background_queue VERSION '1.0'` made: in schema `{s}`, with `{enum}` as the name of the type.
const OLD_OBJECTS: &str = "
    CREATE TYPE {s}.{enum} AS ENUM ('pending', 'running', 'retrying', 'failed', 'finished');
    CREATE TABLE {s}.pg_background_tasks (
        id bigserial PRIMARY KEY,
        sql_statement text NOT NULL,
        topic text,
        joined_at timestamp NOT NULL DEFAULT now(),
        started_at timestamp,
        closed_at timestamp,
        priority integer NOT NULL DEFAULT 0,
        state {s}.{enum} NOT NULL DEFAULT 'pending',
        retry_count integer NOT NULL DEFAULT 0,
        retry_delay_in_sec integer NOT NULL DEFAULT 0,
        errors text
    );
    CREATE INDEX idx_pg_background_tasks_queue ON {s}.pg_background_tasks (joined_at, id)
        WHERE state IN ('pending', 'retrying');
    CREATE INDEX idx_pg_background_tasks_state ON {s}.pg_background_tasks (state, closed_at DESC);
    CREATE INDEX idx_pg_background_tasks_topic ON {s}.pg_background_tasks (topic);
    CREATE FUNCTION {s}.pg_background_enqueue(sql text, topic text DEFAULT NULL) RETURNS int8
        AS '$libdir/pg_background_queue' LANGUAGE C VOLATILE;
    CREATE FUNCTION {s}.pg_background_queue_ensure_workers() RETURNS void
        AS '$libdir/pg_background_queue' LANGUAGE C VOLATILE;
    CREATE FUNCTION {s}.pg_background_queue_active_workers_count() RETURNS integer
        AS '$libdir/pg_background_queue' LANGUAGE C VOLATILE;
    CREATE FUNCTION {s}.pg_background_queue_calibrate_workers_count() RETURNS integer
        AS '$libdir/pg_background_queue' LANGUAGE C VOLATILE;
    ALTER EXTENSION pg_background_queue ADD TYPE {s}.{enum};
    ALTER EXTENSION pg_background_queue ADD SEQUENCE {s}.pg_background_tasks_id_seq;
    ALTER EXTENSION pg_background_queue ADD TABLE {s}.pg_background_tasks;
    ALTER EXTENSION pg_background_queue ADD FUNCTION {s}.pg_background_enqueue(text, text);
    ALTER EXTENSION pg_background_queue ADD FUNCTION {s}.pg_background_queue_ensure_workers();
    ALTER EXTENSION pg_background_queue ADD FUNCTION {s}.pg_background_queue_active_workers_count();
    ALTER EXTENSION pg_background_queue ADD FUNCTION {s}.pg_background_queue_calibrate_workers_count();
";

/// The name of the type in 1.0 as installed by most; the first release had another.
const ENUM: &str = "pg_background_queue_task_state";
const FIRST_ENUM: &str = "pg_background_task_state";

/// Makes what 1.0 would have left, without a file of it: an extension of that version, with its objects.
#[track_caller]
fn install_old(client: &mut Client, schema: &str, enum_name: &str) {
    let objects = OLD_OBJECTS
        .replace("{s}", schema)
        .replace("{enum}", enum_name);
    run(
        client,
        &format!(
            "BEGIN;
             CREATE SCHEMA IF NOT EXISTS {schema};
             CREATE EXTENSION pg_background_queue SCHEMA {schema};
             DO $$
             DECLARE
                 members CONSTANT text[] := ARRAY(
                     SELECT i.type || ' ' || i.identity
                     FROM pg_depend AS d, pg_identify_object(d.classid, d.objid, 0) AS i
                     WHERE d.deptype = 'e'
                     AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_background_queue')
                     -- from 18 on these are members, too, and cannot be dropped for themselves
                     AND NOT EXISTS (
                         SELECT FROM pg_type AS t
                         WHERE d.classid = 'pg_type'::regclass AND t.oid = d.objid AND (t.typrelid <> 0 OR t.typelem <> 0)
                     )
                 );
                 member text;
             BEGIN
                 FOREACH member IN ARRAY members LOOP
                     EXECUTE 'ALTER EXTENSION pg_background_queue DROP ' || member;
                 END LOOP;
                 FOREACH member IN ARRAY members LOOP
                     EXECUTE 'DROP ' || regexp_replace(member, ' ', ' IF EXISTS ') || ' CASCADE';
                 END LOOP;
             END
             $$;
             {objects}
             UPDATE pg_extension SET extversion = '1.0', extrelocatable = true WHERE extname = 'pg_background_queue';
             COMMIT"
        ),
    );
}

#[track_caller]
fn update(client: &mut Client) {
    run(client, "ALTER EXTENSION pg_background_queue UPDATE");
}

#[track_caller]
fn refusal(client: &mut Client, sql: &str) -> DbError {
    let error = client.batch_execute(sql).expect_err(sql);
    error
        .as_db_error()
        .unwrap_or_else(|| panic!("{sql}: {error:?}"))
        .clone()
}

/// All that the catalogs say of the extension, line by line.
const CATALOG: &str = "
    WITH extension AS (
        SELECT * FROM pg_extension WHERE extname = 'pg_background_queue'
    ), member AS (
        SELECT d.classid, d.objid FROM pg_depend AS d, extension AS e WHERE d.deptype = 'e' AND d.refobjid = e.oid
    ), relation AS (
        SELECT c.* FROM pg_class AS c
        WHERE c.oid IN (SELECT objid FROM member)
        OR c.oid IN (SELECT indexrelid FROM pg_index WHERE indrelid IN (SELECT objid FROM member))
    ), object AS (
        SELECT classid, objid FROM member
        UNION SELECT 'pg_class'::regclass, oid FROM relation
        UNION SELECT 'pg_extension'::regclass, oid FROM extension
        UNION SELECT 'pg_policy'::regclass, oid FROM pg_policy WHERE polrelid IN (SELECT oid FROM relation)
        UNION SELECT 'pg_constraint'::regclass, oid FROM pg_constraint WHERE conrelid IN (SELECT oid FROM relation)
        UNION SELECT 'pg_attrdef'::regclass, oid FROM pg_attrdef WHERE adrelid IN (SELECT oid FROM relation)
        UNION SELECT 'pg_rewrite'::regclass, oid FROM pg_rewrite WHERE ev_class IN (SELECT oid FROM relation)
        UNION SELECT 'pg_type'::regclass, oid FROM pg_type
            WHERE typrelid IN (SELECT oid FROM relation WHERE relkind <> 'i') OR typelem IN (SELECT objid FROM member)
    ), line AS (
        SELECT concat_ws(' ', 'extension', e.extversion, e.extrelocatable, e.extnamespace::regnamespace,
            e.extowner::regrole,
            ARRAY(SELECT unnest(e.extconfig)::regclass::text || ' ' || unnest(e.extcondition) ORDER BY 1)) AS line
        FROM extension AS e
        UNION ALL
        SELECT concat_ws(' ', 'member', pg_describe_object(classid, objid, 0)) FROM member
        UNION ALL
        SELECT concat_ws(' ', 'in the schema', c.relname, c.relkind) FROM pg_class AS c, extension AS e
        WHERE c.relnamespace = e.extnamespace
        UNION ALL
        SELECT concat_ws(' ', 'in the schema', t.typname) FROM pg_type AS t, extension AS e
        WHERE t.typnamespace = e.extnamespace
        UNION ALL
        SELECT concat_ws(' ', 'in the schema', p.oid::regprocedure) FROM pg_proc AS p, extension AS e
        WHERE p.pronamespace = e.extnamespace
        UNION ALL
        SELECT concat_ws(' ', 'relation', r.oid::regclass, r.relkind, r.relpersistence, r.relowner::regrole, r.reloptions,
            'rls', r.relrowsecurity, r.relforcerowsecurity, 'identity', r.relreplident, 'columns', r.relnatts,
            'checks', r.relchecks, 'rules', r.relhasrules, 'acl', r.relacl, 'options', r.reloptions,
            'toast', r.reltoastrelid <> 0)
        FROM relation AS r
        UNION ALL
        SELECT concat_ws(' ', 'column', a.attrelid::regclass, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
            'not null', a.attnotnull, 'default', pg_get_expr(d.adbin, d.adrelid), 'missing', a.atthasmissing,
            a.attmissingval, 'dropped', a.attisdropped, 'storage', a.attstorage, 'kind', a.attidentity, a.attgenerated,
            'local', a.attislocal, a.attinhcount, 'collation', a.attcollation, 'acl', a.attacl,
            -- 15.20 stamps each column
            ARRAY(SELECT o FROM unnest(a.attoptions) AS o WHERE o !~ '^pg_attver='))
        FROM relation AS r JOIN pg_attribute AS a ON a.attrelid = r.oid
        LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attnum > 0
        UNION ALL
        SELECT concat_ws(' ', 'index', pg_get_indexdef(i.indexrelid), i.indisprimary, i.indisunique, i.indisvalid,
            i.indisready, i.indisclustered, i.indisreplident)
        FROM relation AS r JOIN pg_index AS i ON i.indexrelid = r.oid
        UNION ALL
        SELECT concat_ws(' ', 'constraint', c.conrelid::regclass, c.conname, pg_get_constraintdef(c.oid), c.convalidated)
        FROM relation AS r JOIN pg_constraint AS c ON c.conrelid = r.oid
        UNION ALL
        SELECT concat_ws(' ', 'policy', p::text) FROM pg_policies AS p, extension AS e
        WHERE p.schemaname = (SELECT nspname FROM pg_namespace WHERE oid = e.extnamespace)
        UNION ALL
        SELECT concat_ws(' ', 'trigger', pg_get_triggerdef(t.oid)) FROM pg_trigger AS t JOIN relation AS r ON t.tgrelid = r.oid
        UNION ALL
        SELECT concat_ws(' ', 'view', r.oid::regclass, pg_get_viewdef(r.oid)) FROM relation AS r WHERE r.relkind IN ('v', 'm')
        UNION ALL
        SELECT concat_ws(' ', 'sequence', s.seqrelid::regclass, s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmax,
            s.seqmin, s.seqcache, s.seqcycle)
        FROM pg_sequence AS s JOIN relation AS r ON r.oid = s.seqrelid
        UNION ALL
        SELECT concat_ws(' ', 'type', t.oid::regtype, t.typowner::regrole, t.typacl,
            (SELECT string_agg(e.enumlabel || e.enumsortorder, ' ' ORDER BY e.enumsortorder) FROM pg_enum AS e
             WHERE e.enumtypid = t.oid))
        FROM pg_type AS t WHERE t.oid IN (SELECT objid FROM member)
        UNION ALL
        SELECT concat_ws(' ', 'function', pg_get_functiondef(p.oid), p.proowner::regrole, p.proacl, p.probin)
        FROM pg_proc AS p WHERE p.oid IN (SELECT objid FROM member)
        UNION ALL
        SELECT concat_ws(' ', 'comment on', pg_describe_object(d.classoid, d.objoid, d.objsubid), d.description)
        FROM pg_description AS d JOIN object AS o ON o.classid = d.classoid AND o.objid = d.objoid
        UNION ALL
        SELECT concat_ws(' ', 'first rights on', pg_describe_object(p.classoid, p.objoid, p.objsubid), p.privtype, p.initprivs)
        FROM pg_init_privs AS p JOIN object AS o ON o.classid = p.classoid AND o.objid = p.objoid
        UNION ALL
        SELECT DISTINCT concat_ws(' ', pg_describe_object(d.classid, d.objid, d.objsubid), 'depends on',
            pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid), d.deptype)
        FROM pg_depend AS d JOIN object AS o
            ON o.classid = d.classid AND o.objid = d.objid OR o.classid = d.refclassid AND o.objid = d.refobjid
        UNION ALL
        SELECT DISTINCT concat_ws(' ', pg_describe_object(d.classid, d.objid, d.objsubid), 'depends on',
            pg_describe_object(d.refclassid, d.refobjid, 0), d.deptype)
        FROM pg_shdepend AS d JOIN object AS o ON o.classid = d.classid AND o.objid = d.objid
        WHERE d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    )
    SELECT regexp_replace(line, 'pg_toast_\\d+', 'pg_toast_N', 'g') AS line FROM line ORDER BY line COLLATE \"C\"";

#[track_caller]
fn catalog(client: &mut Client) -> Vec<String> {
    // so that names are written with their schema
    run(client, "SET search_path = pg_catalog");
    let lines: Vec<String> = client
        .query(CATALOG, &[])
        .expect("the catalogs")
        .iter()
        .map(|row| row.get(0))
        .collect();
    run(client, "RESET search_path");
    assert!(lines.len() > 50, "{lines:#?}");
    lines
}

/// Compares line by line, and shows only what differs.
#[track_caller]
fn assert_same(fresh: &[String], upgraded: &[String], what: &str) {
    let missing: Vec<_> = fresh
        .iter()
        .filter(|line| !upgraded.contains(line))
        .collect();
    let more: Vec<_> = upgraded
        .iter()
        .filter(|line| !fresh.contains(line))
        .collect();
    assert!(
        missing.is_empty() && more.is_empty(),
        "{what}: only after a fresh installation: {missing:#?}\nonly after the upgrade: {more:#?}"
    );
    assert_eq!(fresh.len(), upgraded.len(), "{what}");
}

#[test]
fn an_upgraded_installation_is_as_a_fresh_one() {
    let server = Server::builder().no_extension().start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE ROLE app; CREATE ROLE clerk; CREATE ROLE somebody",
    );
    for (i, (schema, enum_name, before)) in [
        ("public", ENUM, ""),
        ("\"My queue\"", FIRST_ENUM, ""),
        // with rows, deleted ones, and the rights that 1.0 needed
        (
            "q",
            ENUM,
            "INSERT INTO q.pg_background_tasks (sql_statement, state) \
             SELECT 'SELECT ' || n, (enum_range(NULL::q.pg_background_queue_task_state))[1 + n % 5] \
             FROM generate_series(1, 1000) AS n; \
             DELETE FROM q.pg_background_tasks WHERE id % 3 = 0; \
             GRANT USAGE ON SCHEMA q TO PUBLIC; \
             GRANT ALL ON q.pg_background_tasks TO app WITH GRANT OPTION; \
             GRANT USAGE ON SEQUENCE q.pg_background_tasks_id_seq TO app, PUBLIC; \
             GRANT INSERT (sql_statement, topic), UPDATE (state) ON q.pg_background_tasks TO clerk, PUBLIC; \
             GRANT EXECUTE ON FUNCTION q.pg_background_enqueue TO clerk; \
             REVOKE EXECUTE ON FUNCTION q.pg_background_enqueue FROM PUBLIC; \
             SET ROLE app; GRANT DELETE, TRUNCATE ON q.pg_background_tasks TO somebody; RESET ROLE",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        run(&mut client, &format!("CREATE DATABASE fresh{i}"));
        run(&mut client, &format!("CREATE DATABASE upgraded{i}"));
        let mut fresh = server.connect("postgres", &format!("fresh{i}"));
        run(
            &mut fresh,
            &format!("CREATE SCHEMA IF NOT EXISTS {schema}; CREATE EXTENSION pg_background_queue SCHEMA {schema}"),
        );
        let connector = server.connector();
        let (mut upgraded, notices) = connector.connect_listening("postgres", &format!("upgraded{i}"));
        install_old(&mut upgraded, schema, enum_name);
        run(&mut upgraded, before);
        notices.lock().unwrap().clear();
        update(&mut upgraded);
        let notices: Vec<String> = notices.lock().unwrap().clone();
        if before.is_empty() {
            assert!(notices.is_empty(), "{notices:?}");
        } else {
            assert!(notices.len() == 1 && notices[0].contains("taken back"), "{notices:?}");
        }
        assert_same(&catalog(&mut fresh), &catalog(&mut upgraded), schema);
        run(&mut upgraded, "DROP EXTENSION pg_background_queue");
        let left: i64 = scalar(
            &mut upgraded,
            "SELECT count(*) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
             WHERE n.nspname !~ '^(pg_|information_schema)'",
            &[],
        );
        assert_eq!(left, 0);
    }
}

/// The two scripts are kept in step by hand; here is who looks.
#[test]
fn the_script_ends_as_the_one_of_a_fresh_installation() {
    let read = |name: &str| {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("sql").join(name))
            .expect(name)
    };
    let fresh = read("pg_background_queue--2.0.sql");
    let upgrade = read("pg_background_queue--1.0--2.0.sql");
    let begin = fresh
        .find("COMMENT ON TABLE")
        .expect("a comment on the table");
    let mark = "-- From here on as in pg_background_queue--2.0.sql";
    let (_, end) = upgrade
        .split_once(mark)
        .expect("the line from which on it is the same");
    let (_, end) = end.split_once("\n\n").expect("an empty line after it");
    for (fresh, upgrade) in fresh[begin..].lines().zip(end.lines()) {
        assert_eq!(
            fresh,
            upgrade.replace("CREATE OR REPLACE FUNCTION", "CREATE FUNCTION")
        );
    }
    assert_eq!(fresh[begin..].lines().count(), end.lines().count());
    // and what stands before it there
    for part in ["CREATE TYPE", "COMMENT ON TYPE", "CREATE INDEX"] {
        let from = fresh.find(part).unwrap_or_else(|| panic!("{part}"));
        let length = fresh[from..].find(";\n").expect("an end");
        assert!(upgrade.contains(&fresh[from..from + length]), "{part}");
    }
}

/// Tasks in all states. 2024-01-15 is in winter, 2024-07-15 in summer.
const OLD_TASKS: &str = "
    INSERT INTO pg_background_tasks
        (sql_statement, topic, joined_at, started_at, closed_at, priority, state, retry_count, retry_delay_in_sec, errors)
    VALUES
        ('INSERT INTO done VALUES (''pending'')', NULL, '2024-01-15 12:00', NULL, NULL, 0, 'pending', 0, 0, NULL),
        ('INSERT INTO done VALUES (''running'')', 'a', '2024-07-15 12:00', '2024-07-15 12:01', NULL, 7, 'running', 0, 0, NULL),
        ('INSERT INTO done VALUES (''retrying'')', 'b', '2024-07-15 12:00', '2024-07-15 12:01', '2024-07-15 12:02', 3,
            'retrying', 2, 4, 'two errors'),
        ('INSERT INTO done VALUES (''failed'')', 'b', '2024-07-15 12:00', '2024-07-15 12:01', '2024-07-15 12:02', -1,
            'failed', 3, 8, 'three errors'),
        ('INSERT INTO done VALUES (''finished'')', '', '2024-01-15 12:00', '2024-01-15 12:01', NULL, 0, 'finished', 0, 0, NULL)";

#[test]
fn tasks_come_over_and_open_ones_are_held_until_they_are_released() {
    let server = Server::builder().no_extension().start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE ROLE old_owner SUPERUSER LOGIN; ALTER ROLE old_owner SET search_path = pg_catalog; \
         ALTER ROLE old_owner IN DATABASE postgres SET search_path = \"Effects\", public; \
         ALTER DATABASE postgres SET search_path = public; \
         CREATE SCHEMA \"Effects\"; CREATE TABLE \"Effects\".done (what text, who text DEFAULT current_user)",
    );
    let mut owner = server.connect("old_owner", "postgres");
    install_old(&mut owner, "public", ENUM);
    run(&mut owner, OLD_TASKS);
    drop(owner);

    run(&mut client, "SET TimeZone = 'Europe/Berlin'");
    update(&mut client);
    run(&mut client, "RESET TimeZone");
    let all = tasks(&mut client);
    let states: Vec<_> = all
        .iter()
        .map(|task| (task.id, task.state.as_str(), task.held))
        .collect();
    assert_eq!(
        states,
        [
            (1, "pending", true),
            (2, "pending", true),
            (3, "pending", true),
            (4, "failed", false),
            (5, "finished", false),
        ]
    );
    let rest: Vec<_> = all
        .iter()
        .map(|task| {
            (
                task.topic.as_deref(),
                task.priority,
                task.retry_count,
                task.retry_delay_in_sec,
                task.errors(),
            )
        })
        .collect();
    assert_eq!(
        rest,
        [
            (None, 0, 0, Some(0), ""),
            (Some("a"), 7, 0, Some(0), ""),
            (Some("b"), 3, 2, Some(4), "two errors"),
            (Some("b"), -1, 3, Some(8), "three errors"),
            (Some(""), 0, 0, Some(0), ""),
        ]
    );
    let stamps: Vec<String> = client
        .query(
            "SELECT concat_ws(' ', id, joined_at AT TIME ZONE 'UTC', started_at AT TIME ZONE 'UTC', \
             closed_at AT TIME ZONE 'UTC') FROM pg_background_tasks ORDER BY id",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(
        stamps,
        [
            "1 2024-01-15 11:00:00",
            "2 2024-07-15 10:00:00 2024-07-15 10:01:00",
            "3 2024-07-15 10:00:00 2024-07-15 10:01:00",
            "4 2024-07-15 10:00:00 2024-07-15 10:01:00 2024-07-15 10:02:00",
            // a closed task has the time, if only about
            "5 2024-01-15 11:00:00 2024-01-15 11:01:00 2024-01-15 11:01:00",
        ]
    );

    // a new task is an ordinary one, and runs past those that are held
    run(
        &mut client,
        "CREATE ROLE alice LOGIN; GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO alice",
    );
    let id = enqueue(&mut client, "INSERT INTO \"Effects\".done VALUES ('new')");
    assert_eq!(id, 6);
    let new = wait_state(&mut client, id, "finished");
    assert_eq!((new.priority, new.held), (100, false));
    let owner_oid: u32 = scalar(&mut client, "SELECT 'old_owner'::regrole::oid", &[]);
    for task in tasks(&mut client).iter().filter(|task| task.id != id) {
        assert_eq!(task.origin, new.origin, "{task:?}");
        assert_eq!(task.role_name.as_deref(), Some("old_owner"));
        assert_eq!(task.role_oid, Some(owner_oid));
        assert_eq!(task.search_path.as_deref(), Some("\"Effects\", public"));
        assert_eq!(
            (
                task.attempt,
                task.interruptions,
                task.due_at,
                task.max_retries
            ),
            (0, 0, None, None)
        );
        assert_eq!(task.held, !task.is_closed());
    }

    let mut alice = server.connect("alice", "postgres");
    let refused = refusal(&mut alice, "SELECT pg_background_queue_release()");
    assert_eq!(refused.code(), &SqlState::INSUFFICIENT_PRIVILEGE);
    assert!(tasks(&mut alice).is_empty());
    let released: i64 = scalar(
        &mut client,
        "SELECT pg_background_queue_release('{2}')",
        &[],
    );
    assert_eq!(released, 1);
    wait_state(&mut client, 2, "finished");
    assert!(task(&mut client, 1).held);
    let released: i64 = scalar(&mut client, "SELECT pg_background_queue_release()", &[]);
    assert_eq!(released, 2);
    for id in [1, 3] {
        wait_state(&mut client, id, "finished");
    }
    let done: String = scalar(
        &mut client,
        "SELECT string_agg(what || ' ' || who, ', ' ORDER BY what) FROM \"Effects\".done",
        &[],
    );
    assert_eq!(
        done,
        "new postgres, pending old_owner, retrying old_owner, running old_owner"
    );
    assert_eq!(task(&mut client, 4).state, "failed");
}

#[test]
fn a_closed_task_of_old_can_be_deleted_and_an_open_one_survives_a_restart() {
    let mut server = Server::builder().no_extension().start();
    let mut client = server.superuser();
    run(&mut client, "CREATE TABLE done (what text)");
    install_old(&mut client, "public", ENUM);
    run(&mut client, OLD_TASKS);
    update(&mut client);
    server.restart();
    let mut client = server.superuser();
    let deleted: i64 = scalar(
        &mut client,
        "SELECT pg_background_queue_delete('{1, 2, 3, 4, 5}')",
        &[],
    );
    assert_eq!(deleted, 2);
    let id = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, id, "finished");
    let held: Vec<_> = tasks(&mut client)
        .iter()
        .filter(|t| t.held && t.state == "pending")
        .map(|t| t.id)
        .collect();
    assert_eq!(held, [1, 2, 3]);
    let path: Option<String> = task(&mut client, 1).search_path;
    assert_eq!(path.as_deref(), Some("\"$user\", public"));
}

/// The four functions that 1.0 had.
const OLD_CALLS: [&str; 4] = [
    "SELECT pg_background_enqueue('INSERT INTO done VALUES (''called'')')",
    "SELECT pg_background_queue_ensure_workers()",
    "SELECT pg_background_queue_active_workers_count()",
    "SELECT pg_background_queue_calibrate_workers_count()",
];

#[test]
fn until_the_update_nothing_runs_and_the_functions_say_what_to_do() {
    let mut server = Server::builder().start();
    let mut client = server.superuser();
    // somebody else's queue goes on
    run(&mut client, "CREATE DATABASE old");
    let mut old = server.connect("postgres", "old");
    install_old(&mut old, "public", ENUM);
    run(&mut old, "CREATE TABLE done (what text, who text)");
    run(&mut old, OLD_TASKS);
    let check = |client: &mut Client| {
        for call in OLD_CALLS {
            match client.batch_execute(call) {
                Ok(()) => assert!(!call.contains("_enqueue"), "{call}"),
                Err(error) => {
                    let error = error
                        .as_db_error()
                        .unwrap_or_else(|| panic!("{call}: {error:?}"));
                    let hint = error.hint().unwrap_or("");
                    assert!(
                        hint.contains("ALTER EXTENSION pg_background_queue UPDATE"),
                        "{call}: {error:?}"
                    );
                }
            }
        }
    };
    check(&mut old);
    drop(old);

    server.restart();
    let mark = server.log_mark();
    let mut client = server.superuser();
    let id = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, id, "finished");
    let mut old = server.connect("postgres", "old");
    check(&mut old);
    // keepers come and go without a complaint
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(4) {
        std::thread::sleep(Duration::from_millis(100));
        let busy = workers(&mut client)
            .iter()
            .any(|w| w.database.as_deref() == Some("old") && w.kind == "worker");
        assert!(!busy, "{:?}", workers(&mut client));
    }
    let complaints: Vec<String> = server
        .log_since(mark)
        .lines()
        .filter(|line| {
            line.contains("pg_background_queue keeper")
                || line.contains("pg_background_queue launcher")
        })
        .filter(|line| {
            ["WARNING:", "ERROR:", "FATAL:"]
                .iter()
                .any(|level| line.contains(level))
        })
        .map(str::to_owned)
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    let states: String = scalar(
        &mut old,
        "SELECT string_agg(state::text, ' ' ORDER BY id) FROM pg_background_tasks",
        &[],
    );
    assert_eq!(states, "pending running retrying failed finished");

    // the session that was there before goes on with the new objects, and so do the processes
    update(&mut old);
    let id = enqueue(&mut old, "INSERT INTO done VALUES ('new')");
    wait_state(&mut old, id, "finished");
    let count: i64 = scalar(&mut old, "SELECT count(*) FROM done", &[]);
    assert_eq!(count, 1);
}

#[test]
fn objects_in_the_way_of_the_update_are_named() {
    let server = Server::builder().no_extension().start();
    let mut client = server.superuser();
    install_old(&mut client, "public", ENUM);
    run(&mut client, OLD_TASKS);
    for (create, drop, named) in [
        (
            "CREATE VIEW \"Open tasks\" AS SELECT id, state FROM pg_background_tasks",
            "DROP VIEW \"Open tasks\"",
            "view public.\"Open tasks\"",
        ),
        (
            "CREATE MATERIALIZED VIEW daily AS SELECT date(closed_at) AS day, count(*) AS n FROM pg_background_tasks GROUP BY 1",
            "DROP MATERIALIZED VIEW daily",
            "materialized view public.daily",
        ),
        (
            "CREATE FUNCTION label(pg_background_queue_task_state) RETURNS text LANGUAGE sql AS 'SELECT $1::text'",
            "DROP FUNCTION label",
            "function public.label(public.pg_background_queue_task_state)",
        ),
        (
            "CREATE TABLE archive (id bigint, state pg_background_queue_task_state, states pg_background_queue_task_state[])",
            "DROP TABLE archive",
            "column state of table public.archive, column states of table public.archive",
        ),
        (
            "CREATE INDEX failed_ones ON pg_background_tasks (topic) WHERE state = 'failed'",
            "DROP INDEX failed_ones",
            "index public.failed_ones",
        ),
        (
            "ALTER TABLE pg_background_tasks ADD CONSTRAINT sound CHECK (state <> 'failed' OR errors IS NOT NULL)",
            "ALTER TABLE pg_background_tasks DROP CONSTRAINT sound",
            "constraint sound on table public.pg_background_tasks",
        ),
        (
            "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'; \
             CREATE TRIGGER closed AFTER UPDATE OF state ON pg_background_tasks FOR EACH ROW EXECUTE FUNCTION nothing()",
            "DROP FUNCTION nothing CASCADE",
            "trigger closed on table public.pg_background_tasks",
        ),
        (
            "ALTER TABLE pg_background_tasks ADD day date GENERATED ALWAYS AS (joined_at::date) STORED",
            "ALTER TABLE pg_background_tasks DROP day",
            "column day of table public.pg_background_tasks",
        ),
        // what the README of 1.0 said that there was
        (
            "CREATE FUNCTION pg_background_queue_enqueue(sql text, topic text DEFAULT NULL) RETURNS bigint LANGUAGE sql \
             AS 'SELECT pg_background_enqueue(sql, topic)'",
            "DROP FUNCTION pg_background_queue_enqueue",
            "function public.pg_background_queue_enqueue(text,text)",
        ),
    ] {
        run(&mut client, create);
        let error = refusal(&mut client, "ALTER EXTENSION pg_background_queue UPDATE");
        // before 15 a generated column depends on others in another way, and the server itself refuses
        if error.message() == "cannot alter type of a column used by a generated column" {
            run(&mut client, drop);
            continue;
        }
        assert_eq!(
            error.code(),
            &SqlState::DEPENDENT_OBJECTS_STILL_EXIST,
            "{create}: {error:?}"
        );
        let hint = error.hint().unwrap_or("");
        assert!(
            hint.ends_with(&format!(": {named}.")),
            "{create}: {error:?}"
        );
        run(&mut client, drop);
    }

    // what stands on the other columns, or can be rebuilt, stays
    run(
        &mut client,
        "CREATE VIEW texts AS SELECT id, topic, sql_statement, priority, errors FROM pg_background_tasks; \
         CREATE VIEW processes AS SELECT pg_background_queue_active_workers_count() AS n; \
         CREATE INDEX by_end ON pg_background_tasks (closed_at); \
         ALTER TABLE pg_background_tasks ADD CHECK (closed_at >= started_at), ADD note text DEFAULT 'mine', ADD gone int; \
         ALTER TABLE pg_background_tasks DROP gone; \
         CREATE STATISTICS together ON state, topic FROM pg_background_tasks; \
         CREATE TABLE notes (task bigint REFERENCES pg_background_tasks ON DELETE CASCADE); \
         INSERT INTO notes VALUES (1); \
         CREATE TABLE fired (what text); \
         CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO fired VALUES (tg_op); RETURN new; END'; \
         CREATE TRIGGER planted BEFORE INSERT OR UPDATE ON pg_background_tasks FOR EACH ROW EXECUTE FUNCTION fire(); \
         ALTER TABLE pg_background_tasks ENABLE ALWAYS TRIGGER planted",
    );
    update(&mut client);
    let fired: i64 = scalar(&mut client, "SELECT count(*) FROM fired", &[]);
    assert_eq!(fired, 0);
    let id = enqueue(&mut client, "SELECT 1");
    wait_state(&mut client, id, "finished");
    let texts: i64 = scalar(&mut client, "SELECT count(*) FROM texts", &[]);
    assert_eq!(texts, 6);
    let processes: i32 = scalar(&mut client, "SELECT n FROM processes", &[]);
    assert!(processes > 0);
    let notes: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_background_tasks WHERE note = 'mine'",
        &[],
    );
    assert!(notes >= 5, "{notes}");
}

/// A failing update leaves all as it was.
#[test]
fn an_update_that_is_rolled_back_leaves_the_old_installation() {
    let server = Server::builder().no_extension().start();
    let mut client = server.superuser();
    install_old(&mut client, "public", ENUM);
    run(&mut client, OLD_TASKS);
    let before = catalog(&mut client);
    run(
        &mut client,
        "BEGIN; ALTER EXTENSION pg_background_queue UPDATE",
    );
    let id = enqueue(&mut client, "SELECT 1");
    assert_eq!(task(&mut client, id).state, "pending");
    run(&mut client, "ROLLBACK");
    assert_same(&before, &catalog(&mut client), "rolled back");
    update(&mut client);
    let id = enqueue(&mut client, "SELECT 1");
    assert_eq!(wait_closed(&mut client, id).state, "finished");
    wait_for("the launcher", Duration::from_secs(10), || {
        crate::harness::launcher_pid(&mut client)
    });
}
