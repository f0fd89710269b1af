\echo Use "CREATE EXTENSION pg_background_queue" to load this file. \quit

-- Until the end of this script: names and operators without a schema are pg_catalog's, whatever the extension's schema holds.
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

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

-- id, the sequence and the key have the names that version 1.0 gave them.
--
-- fillfactor: the versions that a claim and a finish make find room on the page of the first; that costs the least WAL. What
-- they change stands together, from started_at to attempt: an update writes all that is in between to the WAL. The primary key
-- has room for the entries of these versions, too: split pages are as large in the end, and workers wait for each other meanwhile.
CREATE TABLE @extschema@.pg_background_tasks (
    id bigserial PRIMARY KEY WITH (fillfactor = 45),
    sql_statement text NOT NULL,
    topic text,
    joined_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    started_at timestamptz,
    closed_at timestamptz,
    priority integer NOT NULL DEFAULT 100,
    state @extschema@.pg_background_queue_task_state NOT NULL DEFAULT 'pending',
    retry_count integer NOT NULL DEFAULT 0,
    retry_delay_in_sec integer NOT NULL DEFAULT 0,
    errors text,
    attempt integer NOT NULL DEFAULT 0,
    role_oid oid NOT NULL,
    role_name name NOT NULL,
    origin text NOT NULL,
    search_path text NOT NULL,
    due_at timestamptz,
    max_retries integer,
    interruptions integer NOT NULL DEFAULT 0,
    held boolean NOT NULL DEFAULT false,
    timeout_ms integer,
    scheduled boolean NOT NULL DEFAULT false,
    lane text
) WITH (fillfactor = 70);

-- Two are named by state, so that queries for one state find them. Finished tasks are in none of the three.
--
-- scheduled: tasks that are not due stand apart, so that who looks for one that could start does not go over them. lane: so do
-- those whose topic has a limit or a delay, each topic's by themselves; with NULL they are one sequence. No two entries are alike: the
-- id is in them.
CREATE INDEX pg_background_tasks_queue_idx
    ON @extschema@.pg_background_tasks (held, role_oid, scheduled, lane COLLATE pg_catalog."C", priority, id)
    WITH (deduplicate_items = off) WHERE state IN ('pending', 'retrying');
-- Those that are to be let into the queue at their time. NULL is at once: nobody but a superuser makes that.
CREATE INDEX pg_background_tasks_schedule_idx
    ON @extschema@.pg_background_tasks (role_oid, due_at NULLS FIRST, priority, id)
    WITH (deduplicate_items = off) WHERE scheduled AND NOT held AND state IN ('pending', 'retrying');
CREATE INDEX pg_background_tasks_state_idx ON @extschema@.pg_background_tasks (state, closed_at DESC)
    WHERE state IN ('running', 'retrying', 'failed', 'cancelled');

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

CREATE FUNCTION @extschema@.pg_background_enqueue(sql text, topic text DEFAULT NULL) RETURNS bigint
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

CREATE FUNCTION @extschema@.pg_background_queue_ensure_workers() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_background_queue_ensure_workers';
COMMENT ON FUNCTION @extschema@.pg_background_queue_ensure_workers() IS
    'Starts workers if there is work for them; never needed in normal running';

CREATE FUNCTION @extschema@.pg_background_queue_active_workers_count() RETURNS integer
    LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_background_queue_active_workers_count';
COMMENT ON FUNCTION @extschema@.pg_background_queue_active_workers_count() IS
    'Number of live workers in the cluster';

CREATE FUNCTION @extschema@.pg_background_queue_calibrate_workers_count() RETURNS integer
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
