\echo Use "ALTER EXTENSION pg_background_queue UPDATE" to load this file. \quit

-- Takes over the table, sequence, enum and functions of version 1.0 (a C extension of the same name), with its tasks.
-- The first part turns the old objects into those of 2.0; what follows "from here on" is the text of
-- pg_background_queue--2.0.sql after its table and index, and is kept the same as that.
--
-- The table is rewritten once, under an ACCESS EXCLUSIVE lock. Stamps of 1.0 have no time zone: they are read in the
-- session's TimeZone, which should be the one that the old server's sessions used.

-- Until the end of this script: names without a schema are pg_catalog's, whatever the extension's schema holds.
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

-- What depends on the columns and the type that change cannot be changed with them, and a wrapper of the name that the
-- README of 1.0 had for pg_background_enqueue would make calls ambiguous: say so before anything is done.
DO $$
DECLARE
    tasks CONSTANT regclass := '@extschema@.pg_background_tasks';
    state record;
    in_the_way text;
BEGIN
    SELECT a.attnum AS number, a.atttypid AS type INTO STRICT state
    FROM pg_attribute AS a WHERE a.attrelid = tasks AND a.attname = 'state' AND NOT a.attisdropped;

    WITH changing AS (
        SELECT 'pg_class'::regclass AS class, tasks::oid AS object, a.attnum::integer AS part
        FROM pg_attribute AS a
        WHERE a.attrelid = tasks AND a.attname IN ('joined_at', 'started_at', 'closed_at', 'state')
        UNION ALL
        SELECT 'pg_type'::regclass, t.oid, 0 FROM pg_type AS t WHERE t.oid = state.type OR t.typelem = state.type
    ), dependent AS (
        SELECT d.classid, d.objid, d.objsubid
        FROM changing AS c
        JOIN pg_depend AS d ON d.refclassid = c.class AND d.refobjid = c.object AND d.refobjsubid = c.part
        WHERE CASE d.classid
            -- Indexes on the columns are rebuilt; columns of the type, and indexes with a predicate that names it, are not.
            WHEN 'pg_class'::regclass THEN
                d.refclassid = 'pg_type'::regclass
                AND NOT (d.objid = tasks AND d.objsubid = state.number)
                AND d.objid IS DISTINCT FROM to_regclass('@extschema@.idx_pg_background_tasks_queue')
            -- So are constraints.
            WHEN 'pg_constraint'::regclass THEN d.refclassid = 'pg_type'::regclass
            WHEN 'pg_statistic_ext'::regclass THEN false
            -- The columns have defaults themselves.
            WHEN 'pg_attrdef'::regclass THEN NOT EXISTS (
                SELECT FROM pg_attrdef AS e JOIN changing AS own ON own.object = e.adrelid AND own.part = e.adnum
                WHERE e.oid = d.objid
            )
            -- An enum has an array type.
            WHEN 'pg_type'::regclass THEN d.objid NOT IN (SELECT own.object FROM changing AS own)
            ELSE true
        END
    ), blocking AS (
        -- the view rather than its rule or columns, the column rather than its expression
        SELECT DISTINCT
            CASE WHEN r.oid IS NOT NULL OR e.oid IS NOT NULL THEN 'pg_class'::regclass ELSE d.classid END AS classid,
            coalesce(r.ev_class, e.adrelid, d.objid) AS objid,
            CASE WHEN r.oid IS NOT NULL OR v.oid IS NOT NULL THEN 0 ELSE coalesce(e.adnum, d.objsubid) END AS objsubid
        FROM dependent AS d
        LEFT JOIN pg_rewrite AS r
            ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid AND r.rulename = '_RETURN'
        LEFT JOIN pg_attrdef AS e ON d.classid = 'pg_attrdef'::regclass AND e.oid = d.objid
        LEFT JOIN pg_class AS v ON d.classid = 'pg_class'::regclass AND v.oid = d.objid AND v.relkind IN ('v', 'm')
        UNION
        SELECT 'pg_proc'::regclass, p.oid, 0
        FROM pg_proc AS p
        WHERE p.pronamespace = (SELECT c.relnamespace FROM pg_class AS c WHERE c.oid = tasks)
            AND starts_with(p.proname, 'pg_background_queue_')
            AND NOT EXISTS (
                SELECT FROM pg_depend AS d
                WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                    AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
            )
    )
    SELECT string_agg(n.name, ', ' ORDER BY n.name) INTO in_the_way
    FROM blocking AS b, pg_describe_object(b.classid, b.objid, b.objsubid) AS n(name);

    IF in_the_way IS NOT NULL THEN
        RAISE EXCEPTION 'cannot update extension "pg_background_queue" because other objects are in the way'
            USING ERRCODE = 'dependent_objects_still_exist',
                DETAIL = format('Types of columns of %s change, type %s is replaced, and functions pg_background_queue_... are added.',
                    tasks, format_type(state.type, NULL)),
                HINT = format('Drop these, update the extension, and create them again: %s.', in_the_way);
    END IF;
END
$$;

-- Rights on the table were what it took to enqueue, and let their holders forge and lock. Now functions are granted.
DO $$
DECLARE
    held record;
    lost text[] := '{}';
BEGIN
    FOR held IN
        SELECT DISTINCT o.kind, o.name, a.grantee, pg_get_userbyid(a.grantee) AS role
        FROM (
            SELECT 'TABLE' AS kind, c.oid::regclass::text AS name, c.relowner AS owner, c.relacl AS acl
            FROM pg_class AS c WHERE c.oid = '@extschema@.pg_background_tasks'::regclass
            UNION ALL
            SELECT 'SEQUENCE', c.oid::regclass::text, c.relowner, c.relacl
            FROM pg_class AS c WHERE c.oid = '@extschema@.pg_background_tasks_id_seq'::regclass
            UNION ALL
            SELECT 'TABLE', c.oid::regclass::text, c.relowner, t.attacl
            FROM pg_attribute AS t JOIN pg_class AS c ON c.oid = t.attrelid
            WHERE c.oid = '@extschema@.pg_background_tasks'::regclass
            UNION ALL
            SELECT 'FUNCTION', p.oid::regprocedure::text, p.proowner, p.proacl
            FROM pg_proc AS p WHERE p.oid IN (
                '@extschema@.pg_background_enqueue(text, text)'::regprocedure,
                '@extschema@.pg_background_queue_calibrate_workers_count()'::regprocedure
            )
        ) AS o, aclexplode(o.acl) AS a
        WHERE a.grantee <> o.owner AND a.grantee <> 0
        ORDER BY 1, 2, 3
    LOOP
        EXECUTE format('REVOKE ALL ON %s %s FROM %I CASCADE', held.kind, held.name, held.role);
        lost := array_append(lost, format('%I', held.role));
    END LOOP;
    IF lost <> '{}' THEN
        RAISE WARNING 'rights on objects of "pg_background_queue" 1.0 have been taken back'
            USING DETAIL = format('These roles had some: %s.',
                    (SELECT string_agg(DISTINCT r, ', ') FROM unnest(lost) AS r)),
                HINT = 'Use GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue, pg_background_enqueue for roles that may enqueue.';
    END IF;
END
$$;

DROP INDEX IF EXISTS @extschema@.idx_pg_background_tasks_queue;
DROP INDEX IF EXISTS @extschema@.idx_pg_background_tasks_state;
DROP INDEX IF EXISTS @extschema@.idx_pg_background_tasks_topic;

-- A new type: a label that is added to an enum cannot be used in the same transaction.
DO $$
BEGIN
    EXECUTE format('ALTER TYPE %s RENAME TO pg_background_queue_task_state_1_0', (
        SELECT format_type(a.atttypid, NULL) FROM pg_attribute AS a
        WHERE a.attrelid = '@extschema@.pg_background_tasks'::regclass AND a.attname = 'state' AND NOT a.attisdropped
    ));
END
$$;
CREATE TYPE @extschema@.pg_background_queue_task_state AS ENUM (
    'pending',
    'running',
    'retrying',
    'failed',
    'finished',
    'cancelled'
);
COMMENT ON TYPE @extschema@.pg_background_queue_task_state IS
    'State of a task: pending -> running -> finished | retrying -> running | failed | cancelled';

-- Tasks of 1.0 name no role, no database and no search_path: they get the extension's owner, this database and the
-- owner's search_path. Those that are open are held, for they come from anyone who could write to the table.
DO $$
DECLARE
    role record;
    own_path text;
BEGIN
    SELECT r.oid, r.rolname INTO STRICT role
    FROM pg_extension AS e JOIN pg_authid AS r ON r.oid = e.extowner
    WHERE e.extname = 'pg_background_queue';

    SELECT substr(c.setting, length('search_path=') + 1) INTO own_path
    FROM pg_db_role_setting AS s, unnest(s.setconfig) AS c(setting)
    WHERE s.setrole IN (0, role.oid)
        AND s.setdatabase IN (0, (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database()))
        AND starts_with(c.setting, 'search_path=')
    ORDER BY s.setrole <> 0 AND s.setdatabase <> 0 DESC, s.setrole <> 0 DESC, s.setdatabase <> 0 DESC
    LIMIT 1;

    EXECUTE format(
        $alter$
        ALTER TABLE @extschema@.pg_background_tasks
            ADD COLUMN attempt integer NOT NULL DEFAULT 0,
            ADD COLUMN role_oid oid NOT NULL DEFAULT %s,
            ADD COLUMN role_name name NOT NULL DEFAULT %L,
            ADD COLUMN origin text NOT NULL DEFAULT %L,
            ADD COLUMN search_path text NOT NULL DEFAULT %L,
            ADD COLUMN due_at timestamptz,
            ADD COLUMN max_retries integer,
            ADD COLUMN interruptions integer NOT NULL DEFAULT 0,
            ADD COLUMN held boolean NOT NULL DEFAULT false,
            ADD COLUMN timeout_ms integer,
            ADD COLUMN scheduled boolean NOT NULL DEFAULT false,
            ADD COLUMN lane text
        $alter$,
        role.oid,
        role.rolname,
        (SELECT c.system_identifier FROM pg_control_system() AS c)
            || '/' || (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database()),
        coalesce(own_path, '"$user", public')
    );
END
$$;
ALTER INDEX @extschema@.pg_background_tasks_pkey SET (fillfactor = 45);
-- One rewrite does it all. No UPDATE: it would fire triggers that somebody has put on the table, as the superuser.
ALTER TABLE @extschema@.pg_background_tasks
    SET (fillfactor = 70),
    ALTER COLUMN joined_at DROP DEFAULT,
    ALTER COLUMN joined_at TYPE timestamptz USING joined_at::timestamptz,
    ALTER COLUMN joined_at SET DEFAULT now(),
    ALTER COLUMN started_at TYPE timestamptz USING started_at::timestamptz,
    ALTER COLUMN closed_at TYPE timestamptz USING CASE
        WHEN state::text IN ('failed', 'finished') THEN coalesce(closed_at, started_at, joined_at)::timestamptz
    END,
    ALTER COLUMN priority SET DEFAULT 100,
    ALTER COLUMN state DROP DEFAULT,
    ALTER COLUMN state TYPE @extschema@.pg_background_queue_task_state USING (
        CASE WHEN state::text IN ('failed', 'finished') THEN state::text ELSE 'pending' END
    )::@extschema@.pg_background_queue_task_state,
    ALTER COLUMN state SET DEFAULT 'pending',
    ALTER COLUMN role_oid DROP DEFAULT,
    ALTER COLUMN role_name DROP DEFAULT,
    ALTER COLUMN origin DROP DEFAULT,
    ALTER COLUMN search_path DROP DEFAULT,
    ALTER COLUMN held TYPE boolean USING state::text NOT IN ('failed', 'finished');
DROP TYPE @extschema@.pg_background_queue_task_state_1_0;

CREATE INDEX pg_background_tasks_queue_idx
    ON @extschema@.pg_background_tasks (held, role_oid, scheduled, lane COLLATE pg_catalog."C", priority, id)
    WITH (deduplicate_items = off) WHERE state IN ('pending', 'retrying');
-- Those that are to be let into the queue at their time. NULL is at once: nobody but a superuser makes that.
CREATE INDEX pg_background_tasks_schedule_idx
    ON @extschema@.pg_background_tasks (role_oid, due_at NULLS FIRST, priority, id)
    WITH (deduplicate_items = off) WHERE scheduled AND NOT held AND state IN ('pending', 'retrying');
CREATE INDEX pg_background_tasks_state_idx ON @extschema@.pg_background_tasks (state, closed_at DESC)
    WHERE state IN ('running', 'retrying', 'failed', 'cancelled');

-- From here on as in pg_background_queue--2.0.sql, but that the functions of 1.0 are there.

COMMENT ON TABLE @extschema@.pg_background_tasks IS
    'Tasks of pg_background_queue, open and closed. Ordinary roles see their own; only the queue writes to it (below SQL: triggers and rules on it do not fire).';
COMMENT ON COLUMN @extschema@.pg_background_tasks.id IS 'Number of the task, as returned by pg_background_queue_enqueue()';
COMMENT ON COLUMN @extschema@.pg_background_tasks.sql_statement IS 'What the task runs: one or more SQL statements';
COMMENT ON COLUMN @extschema@.pg_background_tasks.topic IS 'Topic given when it was enqueued';
COMMENT ON COLUMN @extschema@.pg_background_tasks.joined_at IS 'Start of the transaction that enqueued it';
COMMENT ON COLUMN @extschema@.pg_background_tasks.started_at IS 'Start of its latest attempt';
COMMENT ON COLUMN @extschema@.pg_background_tasks.closed_at IS 'When it reached its final state';
COMMENT ON COLUMN @extschema@.pg_background_tasks.priority IS 'Lower runs first; then the order of ids';
COMMENT ON COLUMN @extschema@.pg_background_tasks.state IS 'pending, running, retrying, or the final failed, finished, cancelled';
COMMENT ON COLUMN @extschema@.pg_background_tasks.retry_count IS 'Retries used so far';
COMMENT ON COLUMN @extschema@.pg_background_tasks.retry_delay_in_sec IS 'Wait before the latest retry';
COMMENT ON COLUMN @extschema@.pg_background_tasks.errors IS 'SQLSTATE, message, detail, hint and context of each failed attempt, the oldest cut first';
COMMENT ON COLUMN @extschema@.pg_background_tasks.attempt IS 'How often it was begun';
COMMENT ON COLUMN @extschema@.pg_background_tasks.role_oid IS 'OID of the role that enqueued it and as which it runs';
COMMENT ON COLUMN @extschema@.pg_background_tasks.role_name IS 'Name of that role when the task was enqueued';
COMMENT ON COLUMN @extschema@.pg_background_tasks.origin IS 'System identifier of the server and OID of the database in which it was enqueued: it runs nowhere else by itself';
COMMENT ON COLUMN @extschema@.pg_background_tasks.search_path IS 'search_path in force when it was enqueued, and while it runs';
COMMENT ON COLUMN @extschema@.pg_background_tasks.due_at IS 'It does not run before';
COMMENT ON COLUMN @extschema@.pg_background_tasks.max_retries IS 'Its own limit of retries; NULL: pg_background_queue.retry_count when it fails';
COMMENT ON COLUMN @extschema@.pg_background_tasks.interruptions IS 'Crashes of the server that it was running in';
COMMENT ON COLUMN @extschema@.pg_background_tasks.held IS 'It waits for pg_background_queue_release(): it was enqueued in another database or server';
COMMENT ON COLUMN @extschema@.pg_background_tasks.timeout_ms IS 'Milliseconds after which an attempt is cancelled; NULL: what topic_config says';
COMMENT ON COLUMN @extschema@.pg_background_tasks.scheduled IS 'It waits for due_at, and is let into the queue then';
COMMENT ON COLUMN @extschema@.pg_background_tasks.lane IS 'Where it stands apart if its topic has a limit or a delay: the name of the topic after a colon; NULL is always right';
COMMENT ON INDEX @extschema@.pg_background_tasks_queue_idx IS 'Waiting tasks of each role in the order in which they run, those of topics with a limit or a delay apart';
COMMENT ON INDEX @extschema@.pg_background_tasks_schedule_idx IS 'Tasks that are not due yet in the order in which they will be';
COMMENT ON INDEX @extschema@.pg_background_tasks_state_idx IS 'Running and retrying tasks, and the latest failed and cancelled ones';
COMMENT ON SEQUENCE @extschema@.pg_background_tasks_id_seq IS 'Numbers of tasks';

SELECT pg_catalog.pg_extension_config_dump('@extschema@.pg_background_tasks', '');
SELECT pg_catalog.pg_extension_config_dump('@extschema@.pg_background_tasks_id_seq', '');

CREATE FUNCTION @extschema@.pg_background_queue_origin() RETURNS text
    LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'pg_background_queue_origin';
COMMENT ON FUNCTION @extschema@.pg_background_queue_origin() IS
    'System identifier of this server and OID of this database: the origin of tasks that are enqueued here';

ALTER TABLE @extschema@.pg_background_tasks ENABLE ROW LEVEL SECURITY;
-- Of a task from another server (a restored dump) the OID may be anybody's here: then the name decides, too.
CREATE POLICY pg_background_tasks_own ON @extschema@.pg_background_tasks FOR SELECT
    USING (
        role_oid = (SELECT r.oid FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user)
        AND (role_name = current_user OR origin = (SELECT @extschema@.pg_background_queue_origin()))
    );
CREATE POLICY pg_background_tasks_monitor ON @extschema@.pg_background_tasks FOR SELECT
    TO pg_monitor USING (true);
COMMENT ON POLICY pg_background_tasks_own ON @extschema@.pg_background_tasks IS 'A role sees its own tasks';
COMMENT ON POLICY pg_background_tasks_monitor ON @extschema@.pg_background_tasks IS 'Members of pg_monitor see all tasks';
REVOKE ALL ON @extschema@.pg_background_tasks FROM PUBLIC;
REVOKE ALL ON SEQUENCE @extschema@.pg_background_tasks_id_seq FROM PUBLIC;
GRANT SELECT ON @extschema@.pg_background_tasks TO PUBLIC;

CREATE FUNCTION @extschema@.pg_background_queue_enqueue(
    sql text,
    topic text DEFAULT NULL,
    priority integer DEFAULT NULL,
    run_at timestamptz DEFAULT NULL,
    retry_count integer DEFAULT NULL,
    timeout interval DEFAULT NULL
) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_background_queue_enqueue';
COMMENT ON FUNCTION @extschema@.pg_background_queue_enqueue(text, text, integer, timestamptz, integer, interval) IS
    'Enqueues SQL text to be run in the background as the current role; returns the id of the task';

CREATE OR REPLACE FUNCTION @extschema@.pg_background_enqueue(sql text, topic text DEFAULT NULL) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_background_enqueue';
COMMENT ON FUNCTION @extschema@.pg_background_enqueue(text, text) IS
    'The same as pg_background_queue_enqueue(sql, topic), under the name that version 1.0 had';

CREATE FUNCTION @extschema@.pg_background_queue_delete(ids bigint[]) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_background_queue_delete';
COMMENT ON FUNCTION @extschema@.pg_background_queue_delete(bigint[]) IS
    'Deletes closed tasks of the current role (a superuser: of any role); returns how many';

CREATE FUNCTION @extschema@.pg_background_queue_release(ids bigint[] DEFAULT NULL) RETURNS bigint
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_background_queue_release';
COMMENT ON FUNCTION @extschema@.pg_background_queue_release(bigint[]) IS
    'Lets tasks run that are held because they were enqueued elsewhere (NULL: all); returns how many. Superusers only';

CREATE FUNCTION @extschema@.pg_background_queue_cancel(id bigint) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_background_queue_cancel';
COMMENT ON FUNCTION @extschema@.pg_background_queue_cancel(bigint) IS
    'Cancels a task of the current role (a superuser: of any role), also while it runs; false if it is closed already';

CREATE FUNCTION @extschema@.pg_background_queue_retry(id bigint) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_background_queue_retry';
COMMENT ON FUNCTION @extschema@.pg_background_queue_retry(bigint) IS
    'Puts a failed or cancelled task of the current role (a superuser: of any role) back into the queue';

CREATE OR REPLACE FUNCTION @extschema@.pg_background_queue_ensure_workers() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_background_queue_ensure_workers';
COMMENT ON FUNCTION @extschema@.pg_background_queue_ensure_workers() IS
    'Starts workers if there is work for them; never needed in normal running';

CREATE OR REPLACE FUNCTION @extschema@.pg_background_queue_active_workers_count() RETURNS integer
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_background_queue_active_workers_count';
COMMENT ON FUNCTION @extschema@.pg_background_queue_active_workers_count() IS
    'Number of live workers in the cluster';

CREATE OR REPLACE FUNCTION @extschema@.pg_background_queue_calibrate_workers_count() RETURNS integer
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_background_queue_calibrate_workers_count';
COMMENT ON FUNCTION @extschema@.pg_background_queue_calibrate_workers_count() IS
    'Checks the registry of workers against the processes that are there, repairs it, and returns their number';

CREATE FUNCTION @extschema@.pg_background_queue_worker_slots(
    OUT pid integer,
    OUT database oid,
    OUT role oid,
    OUT state text,
    OUT task bigint,
    OUT since timestamptz,
    OUT tasks_done bigint
) RETURNS SETOF record
    LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'pg_background_queue_worker_slots';
COMMENT ON FUNCTION @extschema@.pg_background_queue_worker_slots() IS
    'The live workers, from shared memory; see the view pg_background_queue_workers';

-- Who may see a task's topic is decided as for the table: a view runs with its owner's rights. Barriers, or a function in
-- somebody's WHERE would be called with what is then filtered out.
CREATE VIEW @extschema@.pg_background_queue_workers WITH (security_barrier) AS
    SELECT
        w.pid,
        d.datname AS database,
        r.rolname AS role,
        w.state,
        w.task,
        CASE WHEN r.rolname = current_user OR pg_catalog.pg_has_role('pg_monitor', 'USAGE') THEN t.topic END AS topic,
        w.since,
        w.tasks_done
    FROM @extschema@.pg_background_queue_worker_slots() AS w
    LEFT JOIN pg_catalog.pg_database AS d ON d.oid = w.database
    LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = w.role
    LEFT JOIN @extschema@.pg_background_tasks AS t ON t.id = w.task AND d.datname = pg_catalog.current_database();
COMMENT ON VIEW @extschema@.pg_background_queue_workers IS
    'The workers of the cluster, and what they do';
COMMENT ON COLUMN @extschema@.pg_background_queue_workers.pid IS 'Process id, as in pg_stat_activity';
COMMENT ON COLUMN @extschema@.pg_background_queue_workers.database IS 'Database that it is connected to';
COMMENT ON COLUMN @extschema@.pg_background_queue_workers.role IS 'Role whose tasks it runs';
COMMENT ON COLUMN @extschema@.pg_background_queue_workers.state IS 'running a task, active between tasks, idle, or leaving';
COMMENT ON COLUMN @extschema@.pg_background_queue_workers.task IS 'Task that it runs';
COMMENT ON COLUMN @extschema@.pg_background_queue_workers.topic IS 'Topic of that task, if it is in this database and may be seen';
COMMENT ON COLUMN @extschema@.pg_background_queue_workers.since IS 'Start of the task, or of the time without one';
COMMENT ON COLUMN @extschema@.pg_background_queue_workers.tasks_done IS 'Tasks that it has ended';

CREATE VIEW @extschema@.pg_background_queue_stats WITH (security_barrier) AS
    SELECT
        t.topic,
        pg_catalog.count(*) FILTER (WHERE t.state = 'pending') AS pending,
        pg_catalog.count(*) FILTER (WHERE t.state = 'running') AS running,
        pg_catalog.count(*) FILTER (WHERE t.state = 'retrying') AS retrying,
        pg_catalog.count(*) FILTER (WHERE t.state = 'failed') AS failed,
        pg_catalog.count(*) FILTER (WHERE t.state = 'finished') AS finished,
        pg_catalog.count(*) FILTER (WHERE t.state = 'cancelled') AS cancelled,
        pg_catalog.count(*) AS total,
        pg_catalog.min(t.joined_at) FILTER (WHERE t.state = 'pending') AS oldest_waiting,
        pg_catalog.avg(t.started_at - t.joined_at) FILTER (WHERE t.state = 'finished') AS mean_wait,
        pg_catalog.avg(t.closed_at - t.started_at) FILTER (WHERE t.state = 'finished') AS mean_run
    FROM @extschema@.pg_background_tasks AS t
    WHERE pg_catalog.pg_has_role('pg_monitor', 'USAGE')
        OR t.role_oid = (SELECT r.oid FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user)
        AND (t.role_name = current_user OR t.origin = (SELECT @extschema@.pg_background_queue_origin()))
    GROUP BY t.topic;
COMMENT ON VIEW @extschema@.pg_background_queue_stats IS
    'Counts and times of the tasks of each topic that the current role may see';
COMMENT ON COLUMN @extschema@.pg_background_queue_stats.topic IS 'Topic; NULL is tasks without one';
COMMENT ON COLUMN @extschema@.pg_background_queue_stats.pending IS 'Tasks that wait to run';
COMMENT ON COLUMN @extschema@.pg_background_queue_stats.running IS 'Tasks that run';
COMMENT ON COLUMN @extschema@.pg_background_queue_stats.retrying IS 'Tasks that failed and wait for another attempt';
COMMENT ON COLUMN @extschema@.pg_background_queue_stats.failed IS 'Tasks that failed for good';
COMMENT ON COLUMN @extschema@.pg_background_queue_stats.finished IS 'Tasks that are done';
COMMENT ON COLUMN @extschema@.pg_background_queue_stats.cancelled IS 'Tasks that were cancelled';
COMMENT ON COLUMN @extschema@.pg_background_queue_stats.total IS 'Tasks in the table';
COMMENT ON COLUMN @extschema@.pg_background_queue_stats.oldest_waiting IS 'joined_at of the pending task that has waited longest';
COMMENT ON COLUMN @extschema@.pg_background_queue_stats.mean_wait IS 'Mean time from joined_at to the last start, of finished tasks';
COMMENT ON COLUMN @extschema@.pg_background_queue_stats.mean_run IS 'Mean run time of the last attempt, of finished tasks';
GRANT SELECT ON @extschema@.pg_background_queue_workers, @extschema@.pg_background_queue_stats TO PUBLIC;

-- Who may enqueue is decided by GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO ...
REVOKE ALL ON FUNCTION @extschema@.pg_background_queue_enqueue FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.pg_background_enqueue(text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.pg_background_queue_calibrate_workers_count() FROM PUBLIC;
