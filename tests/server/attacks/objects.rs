//! The queue's own objects: what a role may do to them (look), and what it may put beside them.

use super::{Attack, Either, Fails, Field, Finished};
use crate::harness::{run, scalar};

/// On the table, the sequence and the views; as tasks, which have no other rights than a session.
const ON_THEM: &[Attack] = &[
    (
        "lock, row share",
        "LOCK TABLE pg_background_tasks IN ROW SHARE MODE; SELECT 1",
        Fails("42501"),
    ),
    (
        "lock, row exclusive",
        "LOCK TABLE pg_background_tasks IN ROW EXCLUSIVE MODE; SELECT 1",
        Fails("42501"),
    ),
    (
        "lock, share update exclusive",
        "LOCK TABLE pg_background_tasks IN SHARE UPDATE EXCLUSIVE MODE; SELECT 1",
        Fails("42501"),
    ),
    (
        "lock, share",
        "LOCK TABLE pg_background_tasks IN SHARE MODE; SELECT 1",
        Fails("42501"),
    ),
    (
        "lock, share row exclusive",
        "LOCK TABLE pg_background_tasks IN SHARE ROW EXCLUSIVE MODE; SELECT 1",
        Fails("42501"),
    ),
    (
        "lock, exclusive",
        "LOCK TABLE pg_background_tasks IN EXCLUSIVE MODE; SELECT 1",
        Fails("42501"),
    ),
    (
        "lock, access share",
        "LOCK TABLE pg_background_tasks IN ACCESS SHARE MODE; SELECT 1",
        Finished,
    ),
    (
        "lock a view and what is under it",
        "LOCK TABLE pg_background_queue_stats IN EXCLUSIVE MODE; SELECT 1",
        Fails("42501"),
    ),
    (
        "lock the sequence",
        "LOCK TABLE pg_background_tasks_id_seq; SELECT 1",
        Either("42"),
    ),
    (
        "lock rows, for share",
        "SELECT 1 FROM pg_background_tasks FOR SHARE",
        Fails("42501"),
    ),
    (
        "lock rows, for key share",
        "SELECT 1 FROM pg_background_tasks FOR KEY SHARE",
        Fails("42501"),
    ),
    (
        "lock rows of the view",
        "SELECT 1 FROM pg_background_queue_workers FOR UPDATE",
        Fails("42501"),
    ),
    (
        "write to the view of workers",
        "DELETE FROM pg_background_queue_workers",
        Either("55000"),
    ),
    (
        "write to the view of counts",
        "UPDATE pg_background_queue_stats SET topic = 'x'",
        Either("55000"),
    ),
    (
        "merge",
        "MERGE INTO pg_background_tasks USING effects ON true WHEN MATCHED THEN DELETE",
        Either("42"),
    ),
    (
        "update one's own row",
        "UPDATE pg_background_tasks SET sql_statement = 'SELECT 2' WHERE role_name = current_user",
        Fails("42501"),
    ),
    (
        "update by a cursor",
        "DECLARE c CURSOR FOR SELECT 1 FROM pg_background_tasks; UPDATE pg_background_tasks SET held = true WHERE CURRENT OF c",
        Fails("42501"),
    ),
    (
        "insert with its own id",
        "INSERT INTO pg_background_tasks (id, sql_statement, role_oid, role_name, origin, search_path) SELECT 1, 'x', 10, 'postgres', '', ''",
        Fails("42501"),
    ),
    (
        "copy into it",
        "COPY pg_background_tasks FROM '/dev/null'",
        Fails("42501"),
    ),
    (
        "a trigger on it",
        "CREATE TRIGGER t BEFORE UPDATE ON pg_background_tasks FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        Fails("42501"),
    ),
    (
        "a rule on it",
        "CREATE RULE r AS ON UPDATE TO pg_background_tasks DO INSTEAD NOTHING",
        Fails("42501"),
    ),
    (
        "a policy on it",
        "CREATE POLICY p ON pg_background_tasks USING (true)",
        Fails("42501"),
    ),
    (
        "an index on it",
        "CREATE INDEX ON pg_background_tasks (topic)",
        Fails("42501"),
    ),
    (
        "statistics of it",
        "CREATE STATISTICS public.st ON topic, state FROM pg_background_tasks",
        Fails("42501"),
    ),
    (
        "a column for it",
        "ALTER TABLE pg_background_tasks ADD COLUMN x int",
        Fails("42501"),
    ),
    (
        "no row security for it",
        "ALTER TABLE pg_background_tasks DISABLE ROW LEVEL SECURITY",
        Fails("42501"),
    ),
    (
        "another owner for it",
        "ALTER TABLE pg_background_tasks OWNER TO alice",
        Fails("42501"),
    ),
    (
        "another schema for it",
        "ALTER TABLE pg_background_tasks SET SCHEMA pg_temp",
        Fails("42501"),
    ),
    (
        "a child of it",
        "CREATE TABLE public.child () INHERITS (pg_background_tasks)",
        Fails("42501"),
    ),
    (
        "a reference to it",
        "CREATE TABLE public.refers (id bigint REFERENCES pg_background_tasks)",
        Fails("42501"),
    ),
    (
        "a publication of it",
        "CREATE PUBLICATION p FOR TABLE pg_background_tasks",
        Fails("42501"),
    ),
    (
        "a comment on it",
        "COMMENT ON TABLE pg_background_tasks IS 'mine'",
        Fails("42501"),
    ),
    ("drop it", "DROP TABLE pg_background_tasks", Fails("42501")),
    (
        "drop its index",
        "DROP INDEX CONCURRENTLY pg_background_tasks_queue_idx",
        Fails("42501"),
    ),
    (
        "reindex it",
        "REINDEX TABLE pg_background_tasks",
        Fails("42501"),
    ),
    (
        "cluster it",
        "CLUSTER pg_background_tasks USING pg_background_tasks_pkey",
        Either("42501"),
    ),
    (
        "vacuum it, which is passed over",
        "VACUUM FULL pg_background_tasks",
        Finished,
    ),
    (
        "analyze it, which is passed over",
        "ANALYZE pg_background_tasks",
        Finished,
    ),
    (
        "grant what one does not have",
        "GRANT ALL ON pg_background_tasks TO alice",
        Either("42501"),
    ),
    (
        "revoke what others need",
        "REVOKE SELECT ON pg_background_tasks FROM PUBLIC",
        Either("42501"),
    ),
    (
        "a label for the enum",
        "ALTER TYPE pg_background_queue_task_state ADD VALUE 'mine'",
        Fails("42501"),
    ),
    (
        "another label of the enum",
        "ALTER TYPE pg_background_queue_task_state RENAME VALUE 'failed' TO 'x'",
        Fails("42501"),
    ),
    (
        "an operator class for the enum",
        "CREATE OPERATOR CLASS public.o DEFAULT FOR TYPE pg_background_queue_task_state USING btree AS FUNCTION 1 enum_cmp(anyenum, anyenum)",
        Fails("42501"),
    ),
    (
        "a cast of the enum",
        "CREATE CAST (pg_background_queue_task_state AS text) WITH INOUT AS IMPLICIT",
        Fails("42501"),
    ),
    (
        "a cast of the table's rows",
        "CREATE CAST (pg_background_tasks AS text) WITH INOUT AS IMPLICIT",
        Fails("42501"),
    ),
    (
        "the sequence back to the start",
        "ALTER SEQUENCE pg_background_tasks_id_seq RESTART",
        Fails("42501"),
    ),
    (
        "the sequence for oneself",
        "ALTER SEQUENCE pg_background_tasks_id_seq OWNED BY NONE",
        Fails("42501"),
    ),
    (
        "an object for the extension",
        "CREATE FUNCTION public.f() RETURNS int LANGUAGE sql AS 'SELECT 1'; ALTER EXTENSION pg_background_queue ADD FUNCTION public.f()",
        Fails("42501"),
    ),
    (
        "an object from the extension",
        "ALTER EXTENSION pg_background_queue DROP TABLE pg_background_tasks",
        Fails("42501"),
    ),
    (
        "a function that needs the extension, to drop both",
        "CREATE FUNCTION public.d() RETURNS int LANGUAGE sql AS 'SELECT 1'; ALTER FUNCTION public.d() DEPENDS ON EXTENSION pg_background_queue",
        Either("42501"),
    ),
    (
        "a subscription that writes to it",
        "CREATE SUBSCRIPTION s CONNECTION 'dbname=postgres' PUBLICATION p WITH (connect = false)",
        Fails("42501"),
    ),
    (
        "an event trigger",
        "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION public.f()",
        Fails("42"),
    ),
    (
        "a function of the server's",
        "CREATE FUNCTION public.i() RETURNS int LANGUAGE internal AS 'pg_backend_pid'",
        Fails("42501"),
    ),
    (
        "a foreign table of a server file",
        "CREATE EXTENSION file_fdw",
        Fails("42501"),
    ),
    (
        "drop what is one's own, and no more",
        "DROP OWNED BY bob",
        Fails("42501"),
    ),
    (
        "give away what is another's",
        "REASSIGN OWNED BY postgres TO alice",
        Fails("42501"),
    ),
];

#[test]
fn the_queues_objects_are_only_to_be_looked_at() {
    let mut field = Field::new(1);
    let acl = "SELECT string_agg(c.relname || ' ' || c.relowner::regrole || ' ' || coalesce(c.relacl::text, ''), E'\\n' ORDER BY c.relname) \
        FROM pg_class AS c WHERE c.relname LIKE 'pg_background%'";
    let before: String = scalar(&mut field.client, acl, &[]);
    field.attack(ON_THEM);
    let after: String = scalar(&mut field.client, acl, &[]);
    assert_eq!(after, before);
    field.end();
}

/// Types, casts, domains, operators and classes of the attacker's, first in the search_path, that fit what the queue compares
/// and converts. All of them tell of being used.
const PLANTED: &str = "
    CREATE SCHEMA planted;
    GRANT USAGE ON SCHEMA planted TO PUBLIC;
    CREATE TABLE planted.sprung (what text);
    GRANT SELECT, INSERT ON planted.sprung TO PUBLIC;
    CREATE FUNCTION planted.spring(what text) RETURNS boolean LANGUAGE plpgsql AS
        $$BEGIN INSERT INTO planted.sprung VALUES (what || ' as ' || current_user); RETURN true; END$$;
    CREATE DOMAIN planted.bigint AS pg_catalog.int8 CHECK (planted.spring('domain'));
    CREATE DOMAIN planted.int4 AS pg_catalog.int4 CHECK (planted.spring('domain'));
    CREATE DOMAIN planted.text AS pg_catalog.text CHECK (planted.spring('domain'));
    CREATE DOMAIN planted.name AS pg_catalog.name CHECK (planted.spring('domain'));
    CREATE DOMAIN planted.oid AS pg_catalog.oid CHECK (planted.spring('domain'));
    CREATE DOMAIN planted.interval AS pg_catalog.interval CHECK (planted.spring('domain'));
    CREATE DOMAIN planted.timestamptz AS pg_catalog.timestamptz CHECK (planted.spring('domain'));
    CREATE TYPE planted.bait AS (a pg_catalog.int4);
    CREATE FUNCTION planted.to_text(planted.bait) RETURNS pg_catalog.text LANGUAGE plpgsql AS
        $$BEGIN PERFORM planted.spring('cast'); RETURN 'SELECT 1'; END$$;
    CREATE CAST (planted.bait AS pg_catalog.text) WITH FUNCTION planted.to_text(planted.bait) AS IMPLICIT;
    CREATE FUNCTION planted.pg_has_role(name, text) RETURNS boolean LANGUAGE sql AS $$SELECT planted.spring('pg_has_role')$$;
    CREATE FUNCTION planted.current_setting(text) RETURNS text LANGUAGE sql AS $$SELECT planted.spring('current_setting')::text$$;
    CREATE FUNCTION planted.pg_background_queue_origin() RETURNS pg_catalog.text LANGUAGE sql AS $$SELECT planted.spring('origin')::pg_catalog.text$$;
    CREATE FUNCTION planted.pg_background_queue_worker_slots() RETURNS SETOF record LANGUAGE sql AS $$SELECT planted.spring('slots')$$;
    CREATE VIEW planted.pg_database AS SELECT planted.spring('pg_database') AS oid;
    CREATE VIEW planted.pg_authid AS SELECT planted.spring('pg_authid') AS oid;
    CREATE VIEW planted.pg_extension AS SELECT planted.spring('pg_extension') AS oid;
    CREATE VIEW planted.pg_class AS SELECT planted.spring('pg_class') AS oid;
    CREATE FUNCTION planted.minus(pg_catalog.timestamptz, pg_catalog.timestamptz) RETURNS pg_catalog.interval LANGUAGE plpgsql AS
        $$BEGIN PERFORM planted.spring('minus'); RETURN '0'; END$$;
    CREATE OPERATOR planted.- (FUNCTION = planted.minus, LEFTARG = pg_catalog.timestamptz, RIGHTARG = pg_catalog.timestamptz);
    CREATE FUNCTION planted.same(pg_background_queue_task_state, pg_background_queue_task_state) RETURNS boolean LANGUAGE plpgsql AS
        $$BEGIN RETURN planted.spring('enum'); END$$;
    CREATE OPERATOR planted.= (FUNCTION = planted.same, LEFTARG = pg_background_queue_task_state, RIGHTARG = pg_background_queue_task_state);
    CREATE COLLATION planted.\"C\" FROM \"POSIX\";
    CREATE COLLATION planted.\"default\" FROM \"POSIX\";
";

#[test]
fn planted_types_casts_domains_and_views_are_not_met_by_the_queue() {
    let mut field = Field::new(2);
    run(
        &mut field.client,
        "GRANT CREATE ON DATABASE postgres TO alice",
    );
    run(&mut field.alice, PLANTED);
    let path = "SET search_path = planted, pg_temp, pg_catalog, public";
    for client in [&mut field.alice, &mut field.client] {
        run(client, path);
        for sql in [
            "SELECT public.pg_background_queue_enqueue('SELECT 1', 'x', 1, '2000-01-01', 1, '1 hour')",
            "SELECT public.pg_background_queue_enqueue('SELECT pg_catalog.int4div(1, 0)', NULL)",
            "SELECT public.pg_background_queue_enqueue('SELECT 1', run_at => 'infinity')",
            "SELECT public.pg_background_queue_cancel(1000000), public.pg_background_queue_retry(1000000)",
            "SELECT * FROM public.pg_background_queue_stats",
            "SELECT * FROM public.pg_background_queue_workers",
            "SELECT id, topic, state, role_oid FROM public.pg_background_tasks",
            "SELECT public.pg_background_queue_ensure_workers()",
        ] {
            run(client, sql);
        }
        crate::harness::wait_until("the tasks to end", || {
            scalar(
                client,
                "SELECT pg_catalog.bool_and(closed_at IS NOT NULL OR due_at = 'infinity') \
                 FROM public.pg_background_tasks WHERE role_name OPERATOR(pg_catalog.=) current_user",
                &[],
            )
        });
    }
    let sprung: Option<String> = scalar(
        &mut field.client,
        "SELECT pg_catalog.string_agg(DISTINCT what, ', ') FROM planted.sprung",
        &[],
    );
    assert_eq!(sprung, None);
    // they do work: the cast is the caller's own doing, in his own name
    run(
        &mut field.alice,
        "SELECT public.pg_background_queue_enqueue(ROW(1)::planted.bait)",
    );
    run(&mut field.alice, "RESET search_path");
    run(&mut field.client, "RESET search_path");
    let sprung: String = scalar(
        &mut field.client,
        "SELECT string_agg(DISTINCT what, ', ') FROM planted.sprung",
        &[],
    );
    assert_eq!(sprung, "cast as alice");
    field.survive();
    field.end();
}
