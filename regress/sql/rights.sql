-- Who may do what.
CREATE ROLE regress_alice LOGIN;
CREATE ROLE regress_bob LOGIN;
CREATE ROLE regress_monitor LOGIN IN ROLE pg_monitor;
CREATE ROLE regress_nologin NOLOGIN;
GRANT regress_nologin TO regress_alice;

-- Enqueueing must be granted
SET ROLE regress_alice;
SELECT pg_background_queue_enqueue('SELECT 1');
SELECT pg_background_enqueue('SELECT 1');
SELECT pg_background_queue_calibrate_workers_count();
RESET ROLE;
GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue, pg_background_enqueue TO regress_alice, regress_bob, regress_nologin;

-- Then it works, as that role
SET ROLE regress_alice;
SELECT pg_background_queue_enqueue('SELECT 1/(session_user = current_user AND current_user = ''regress_alice'')::int', 'of alice') > 0 AS enqueued;
RESET ROLE;
SET ROLE regress_bob;
SELECT pg_background_enqueue('SELECT ''secret of bob''', 'of bob') > 0 AS enqueued;
RESET ROLE;
SELECT pg_background_queue_enqueue('SELECT 1', 'of the superuser') > 0 AS enqueued;
CALL wait_for_tasks();

-- Each sees its own; monitors and superusers see all
SET ROLE regress_alice;
SELECT topic, state, role_name FROM pg_background_tasks WHERE topic LIKE 'of %' ORDER BY id;
SET ROLE regress_bob;
SELECT topic, state, role_name FROM pg_background_tasks WHERE topic LIKE 'of %' ORDER BY id;
SET ROLE regress_monitor;
SELECT topic, state, replace(role_name, session_user, 'superuser') AS role_name
FROM pg_background_tasks WHERE topic LIKE 'of %' ORDER BY id;
RESET ROLE;
SELECT topic, state, replace(role_name, session_user, 'superuser') AS role_name
FROM pg_background_tasks WHERE topic LIKE 'of %' ORDER BY id;
-- nor does a cheap function in the WHERE clause look behind the policy
SET ROLE regress_alice;
CREATE FUNCTION leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
    $$BEGIN RAISE NOTICE 'seen: %', $1; RETURN true; END$$;
SELECT count(*) FROM pg_background_tasks WHERE topic LIKE 'of %' AND leak(topic);
SET row_security = off;
SELECT count(*) FROM pg_background_tasks;
RESET row_security;

-- Nothing but SELECT
INSERT INTO pg_background_tasks (sql_statement, role_oid, role_name, origin, search_path)
    VALUES ('SELECT 1', 10, 'postgres', '', '');
UPDATE pg_background_tasks SET role_oid = 10;
DELETE FROM pg_background_tasks;
TRUNCATE pg_background_tasks;
SELECT id FROM pg_background_tasks FOR UPDATE;
SELECT id FROM pg_background_tasks FOR KEY SHARE;
SELECT nextval('pg_background_tasks_id_seq');
SELECT setval('pg_background_tasks_id_seq', 1);
SELECT last_value FROM pg_background_tasks_id_seq;
CREATE TRIGGER t BEFORE INSERT ON pg_background_tasks FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
CREATE RULE r AS ON INSERT TO pg_background_tasks DO NOTHING;
CREATE INDEX ON pg_background_tasks (topic);
CREATE POLICY p ON pg_background_tasks USING (true);
CREATE TABLE child () INHERITS (pg_background_tasks);
CREATE TABLE referencing (id bigint REFERENCES pg_background_tasks);
ALTER TABLE pg_background_tasks DISABLE ROW LEVEL SECURITY;
ALTER TYPE pg_background_queue_task_state ADD VALUE 'mine';
ALTER FUNCTION pg_background_queue_enqueue SECURITY DEFINER;
DROP EXTENSION pg_background_queue;
BEGIN; LOCK TABLE pg_background_tasks IN ROW SHARE MODE; ROLLBACK;
BEGIN; LOCK TABLE pg_background_tasks IN ROW EXCLUSIVE MODE; ROLLBACK;
BEGIN; LOCK TABLE pg_background_tasks IN SHARE MODE; ROLLBACK;
BEGIN; LOCK TABLE pg_background_tasks IN ACCESS EXCLUSIVE MODE; ROLLBACK;
DROP FUNCTION leak;
RESET ROLE;

-- Members of pg_monitor see, and do nothing
SET ROLE regress_monitor;
DELETE FROM pg_background_tasks;
SELECT pg_background_queue_enqueue('SELECT 1');
SELECT pg_background_queue_delete(array_agg(id)) FROM pg_background_tasks;
RESET ROLE;

-- Deleting: one's own
SELECT array_agg(id) AS all_ids FROM pg_background_tasks WHERE topic LIKE 'of %' \gset
SET ROLE regress_alice;
SELECT pg_background_queue_delete(NULL);
SELECT pg_background_queue_delete('{}');
SELECT pg_background_queue_delete('{NULL, -1, 0, 9223372036854775807}');
SELECT pg_background_queue_delete(:'all_ids');
SELECT pg_background_queue_delete(:'all_ids');
RESET ROLE;
SELECT topic FROM pg_background_tasks WHERE topic LIKE 'of %' ORDER BY id;
-- operators and a table of one's own are not asked
CREATE SCHEMA regress_mine AUTHORIZATION regress_alice;
SET ROLE regress_alice;
CREATE FUNCTION regress_mine.yes(oid, oid) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR regress_mine.= (FUNCTION = regress_mine.yes, LEFTARG = oid, RIGHTARG = oid);
CREATE FUNCTION regress_mine.yes(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR regress_mine.= (FUNCTION = regress_mine.yes, LEFTARG = bigint, RIGHTARG = bigint);
CREATE TEMP TABLE pg_background_tasks (LIKE public.pg_background_tasks);
SET search_path = pg_temp, regress_mine, pg_catalog, public;
SELECT 1::oid = 2::oid AS planted;
SELECT public.pg_background_queue_delete(:'all_ids');
RESET search_path;
DROP TABLE pg_temp.pg_background_tasks;
RESET ROLE;
SET client_min_messages = warning;
DROP SCHEMA regress_mine CASCADE;
RESET client_min_messages;
SELECT topic FROM pg_background_tasks WHERE topic LIKE 'of %' ORDER BY id;

-- Not what is still open
SELECT pg_advisory_lock(1);
SET ROLE regress_alice;
SELECT pg_background_queue_enqueue('SELECT pg_advisory_xact_lock(1)', 'open') AS open \gset
RESET ROLE;
CALL wait_until($$(SELECT state = 'running' FROM pg_background_tasks WHERE topic = 'open')$$);
SET ROLE regress_alice;
SELECT pg_background_queue_delete(ARRAY[:open]);
RESET ROLE;
SELECT pg_background_queue_delete(ARRAY[:open]);
SELECT pg_advisory_unlock(1);
CALL wait_for_tasks();
SET ROLE regress_alice;
SELECT pg_background_queue_delete(ARRAY[:open]);
RESET ROLE;

-- A superuser deletes anybody's
SELECT pg_background_queue_delete(:'all_ids');
SELECT topic FROM pg_background_tasks WHERE topic LIKE 'of %' ORDER BY id;

-- Releasing is for superusers
SET ROLE regress_alice;
SELECT pg_background_queue_release();
SELECT pg_background_queue_release('{1}');
SET ROLE regress_monitor;
SELECT pg_background_queue_release();
RESET ROLE;
-- what is held, by the column or because it comes from elsewhere, does not run until then: first one of them,
INSERT INTO pg_background_tasks (sql_statement, topic, role_oid, role_name, origin, search_path, held)
SELECT 'SELECT ' || n, 'held', 1, CASE n WHEN 3 THEN 'regress_alice' WHEN 4 THEN 'regress_nobody' ELSE CURRENT_USER END, 'elsewhere/1', 'public', n <> 2
FROM generate_series(1, 4) AS n;
SELECT pg_background_queue_ensure_workers();
SELECT pg_background_queue_release(ARRAY[id]) FROM pg_background_tasks WHERE sql_statement = 'SELECT 1' AND topic = 'held';
CALL wait_until($$(SELECT closed_at IS NOT NULL FROM pg_background_tasks WHERE sql_statement = 'SELECT 1' AND topic = 'held')$$);
SELECT sql_statement, state, replace(role_name, CURRENT_USER, 'superuser') AS role_name, role_oid = role_name::text::regrole AS right_oid, origin ~ '^elsewhere/' AS elsewhere
FROM pg_background_tasks WHERE topic = 'held' AND role_name <> 'regress_nobody' ORDER BY id;
-- then all, but for a role that is not here
SELECT pg_background_queue_release();
CALL wait_until($$(SELECT count(*) = 3 FROM pg_background_tasks WHERE topic = 'held' AND closed_at IS NOT NULL)$$);
SELECT sql_statement, state, role_oid = 'regress_alice'::regrole AS of_alice, held FROM pg_background_tasks WHERE topic = 'held' ORDER BY id;
SELECT pg_background_queue_release();
DELETE FROM pg_background_tasks WHERE topic = 'held';

-- A group role that cannot log in can have no task before PostgreSQL 17
SET ROLE regress_alice;
SET ROLE regress_nologin;
DO $$
BEGIN
    IF current_setting('server_version_num')::int < 170000 THEN
        PERFORM pg_background_queue_enqueue('SELECT 1');
    ELSE
        RAISE invalid_authorization_specification USING MESSAGE = 'role "regress_nologin" is not permitted to log in, so no task can run as it';
    END IF;
EXCEPTION WHEN invalid_authorization_specification THEN
    RAISE NOTICE '%', SQLERRM;
END$$;
RESET ROLE;

REVOKE ALL ON FUNCTION pg_background_queue_enqueue, pg_background_enqueue FROM regress_alice, regress_bob, regress_nologin;
DROP ROLE regress_alice, regress_bob, regress_monitor, regress_nologin;
