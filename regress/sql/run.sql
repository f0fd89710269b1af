-- What becomes of a task.
CREATE TABLE effects (n int PRIMARY KEY);

-- Finished, and failed with what the error said
SELECT pg_background_queue_enqueue(sql, 'run') > 0 AS enqueued
FROM unnest(ARRAY[
    'INSERT INTO effects VALUES (1)',
    'INSERT INTO effects VALUES (2); INSERT INTO effects VALUES (3)',
    'SELECT 1/0',
    'SELEC 1',
    'SELECT * FROM no_such_table',
    $task$DO $$BEGIN RAISE 'mine' USING ERRCODE = 'PT001', DETAIL = 'the detail', HINT = 'the hint'; END$$ $task$
]) AS sql;
CALL wait_for_tasks();
SELECT sql_statement, state, errors, retry_count, attempt, closed_at IS NOT NULL AS closed
FROM pg_background_tasks WHERE topic = 'run' ORDER BY id;
SELECT n FROM effects ORDER BY n;
TRUNCATE effects;

-- Several statements: all or nothing, wherever the error is
SELECT pg_background_queue_enqueue(sql, 'several') > 0 AS enqueued
FROM unnest(ARRAY[
    'INSERT INTO effects VALUES (1); SELECT 1/0; INSERT INTO effects VALUES (2)',
    'INSERT INTO effects VALUES (3); INSERT INTO effects VALUES (4); no syntax at all',
    'INSERT INTO effects VALUES (5); INSERT INTO effects VALUES (5)'
]) AS sql;
CALL wait_for_tasks();
SELECT sql_statement, state, errors FROM pg_background_tasks WHERE topic = 'several' ORDER BY id;
SELECT n FROM effects ORDER BY n;

-- A constraint that fails at the commit
CREATE TABLE deferred (n int REFERENCES effects DEFERRABLE INITIALLY DEFERRED);
SELECT pg_background_queue_enqueue('INSERT INTO deferred VALUES (7)', 'deferred') > 0 AS enqueued;
SELECT pg_background_queue_enqueue('INSERT INTO deferred VALUES (8); INSERT INTO effects VALUES (8)', 'deferred') > 0 AS enqueued;
CALL wait_for_tasks();
SELECT sql_statement, state, errors FROM pg_background_tasks WHERE topic = 'deferred' ORDER BY id;
SELECT n FROM deferred;
DROP TABLE deferred;
TRUNCATE effects;

-- Refused, before the first statement runs
SELECT pg_background_queue_enqueue('INSERT INTO effects VALUES (9); ' || sql, 'refused') > 0 AS enqueued
FROM unnest(ARRAY[
    'BEGIN', 'START TRANSACTION', 'COMMIT', 'END', 'ROLLBACK', 'ABORT', 'SAVEPOINT s', 'RELEASE s', 'ROLLBACK TO s',
    'COMMIT AND CHAIN', 'PREPARE TRANSACTION ''t''', 'COMMIT PREPARED ''t''', 'ROLLBACK PREPARED ''t''',
    'COPY effects FROM STDIN', 'COPY effects TO STDOUT', 'COPY (SELECT 1) TO STDOUT', 'LISTEN channel'
]) AS sql;
CALL wait_for_tasks();
SELECT sql_statement, state, errors FROM pg_background_tasks WHERE topic = 'refused' ORDER BY id;
SELECT n FROM effects;

-- What commits inside, or cannot be in a transaction block
CREATE PROCEDURE committing() LANGUAGE plpgsql AS
    $$BEGIN INSERT INTO effects VALUES (1); COMMIT; INSERT INTO effects VALUES (2); ROLLBACK; INSERT INTO effects VALUES (3); END$$;
CALL run_task('CALL committing()', 'utility');
CALL run_task('DO $$BEGIN INSERT INTO effects VALUES (11); COMMIT; INSERT INTO effects VALUES (12); END$$', 'utility');
CALL run_task('VACUUM ANALYZE effects', 'utility');
CALL run_task('CREATE INDEX CONCURRENTLY effects_idx ON effects ((n + 1))', 'utility');
CALL run_task('REINDEX INDEX CONCURRENTLY effects_idx', 'utility');
CALL run_task('EXPLAIN ANALYZE INSERT INTO effects VALUES (21)', 'utility');
CALL run_task('SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; INSERT INTO effects VALUES (31); SET TRANSACTION READ ONLY', 'utility');
CALL run_task('NOTIFY channel', 'utility');
CALL run_task('VACUUM effects; SELECT 1', 'utility');
SELECT sql_statement, state, errors FROM pg_background_tasks WHERE topic = 'utility' ORDER BY id;
SELECT n FROM effects ORDER BY n;
SELECT indexrelid::regclass, indisvalid FROM pg_index WHERE indrelid = 'effects'::regclass ORDER BY indexrelid::regclass::text;

-- A task's session: who it is, and what it does not leave behind
SELECT pg_background_queue_enqueue(
    'CREATE TABLE session AS SELECT session_user::text = current_user::text AS same, current_user AS name, '
    'current_schemas(false) AS schemas, current_setting(''application_name'') ~ ''^pg_background_queue task [0-9]+$'' AS named') > 0 AS enqueued;
CALL wait_for_tasks();
SELECT same, name = current_user AS mine, schemas, named FROM session;

DROP TABLE session, effects;
DROP PROCEDURE committing;
