-- The extension in a schema of the user's choice, and in several databases at once.
SELECT current_database() AS first_database, pg_get_functiondef('wait_until'::regproc) AS wait_until \gset
CREATE DATABASE regress_other;
\c regress_other
-- the same procedure here
:wait_until;


CREATE SCHEMA "My schema, at.last";
CREATE EXTENSION pg_background_queue SCHEMA "My schema, at.last";
SHOW search_path;
SELECT count(*) AS outside FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE relname LIKE 'pg\_background%' AND nspname <> 'My schema, at.last';

CREATE TABLE effects (what text);
SELECT "My schema, at.last".pg_background_queue_enqueue('INSERT INTO effects SELECT current_database()', 'here') AS id \gset
SELECT "My schema, at.last".pg_background_enqueue('SELECT 1/0', 'here') > 0 AS enqueued;
SELECT "My schema, at.last".pg_background_queue_ensure_workers();
CALL wait_until('NOT EXISTS (SELECT FROM "My schema, at.last".pg_background_tasks WHERE closed_at IS NULL)');
SELECT sql_statement, state, errors, search_path FROM "My schema, at.last".pg_background_tasks ORDER BY id;
SELECT what FROM effects;

-- A role with its grants there
CREATE ROLE regress_alice LOGIN;
GRANT USAGE ON SCHEMA "My schema, at.last" TO regress_alice;
GRANT EXECUTE ON FUNCTION "My schema, at.last".pg_background_queue_enqueue TO regress_alice;
SET ROLE regress_alice;
SELECT "My schema, at.last".pg_background_queue_delete(ARRAY[:id]);
SELECT "My schema, at.last".pg_background_queue_enqueue('SELECT 1', 'of alice') > 0 AS enqueued;
CALL wait_until('NOT EXISTS (SELECT FROM "My schema, at.last".pg_background_tasks WHERE closed_at IS NULL)');
SELECT topic, state FROM "My schema, at.last".pg_background_tasks;
RESET ROLE;
SELECT "My schema, at.last".pg_background_queue_delete(ARRAY[:id]);

-- It stays where it was created
ALTER EXTENSION pg_background_queue SET SCHEMA public;

-- Each database has its own queue
\c :first_database
SELECT count(*) FROM pg_background_tasks WHERE topic IN ('here', 'of alice');
SELECT pg_background_queue_enqueue('CREATE TABLE database AS SELECT current_database() = ' || quote_literal(current_database()) || ' AS first') > 0 AS enqueued;
CALL wait_for_tasks();
TABLE database;
DROP TABLE database;

-- Gone, and there again in another schema
\c regress_other
DROP EXTENSION pg_background_queue;
SELECT count(*) AS left_behind FROM pg_class WHERE relname LIKE 'pg\_background%';
DROP SCHEMA "My schema, at.last";
CREATE SCHEMA x;
CREATE EXTENSION pg_background_queue SCHEMA x;
SELECT x.pg_background_queue_enqueue('INSERT INTO effects VALUES (''again'')') AS id;
CALL wait_until('NOT EXISTS (SELECT FROM x.pg_background_tasks WHERE closed_at IS NULL)');
SELECT sql_statement, state FROM x.pg_background_tasks;
SELECT what FROM effects ORDER BY what;
-- names are found where the caller's search_path leads
SET search_path = x, public;
SELECT pg_background_queue_enqueue('INSERT INTO effects SELECT current_schema()') AS id;
CALL wait_until('NOT EXISTS (SELECT FROM x.pg_background_tasks WHERE closed_at IS NULL)');
SELECT sql_statement, state, search_path FROM pg_background_tasks ORDER BY id;
SELECT what FROM effects ORDER BY what;

\c :first_database
DROP DATABASE regress_other WITH (FORCE);
DROP ROLE regress_alice;
