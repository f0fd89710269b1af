-- Putting tasks into the queue.
CREATE TABLE effects (what text);
CREATE FUNCTION inserting(what text) RETURNS text LANGUAGE sql AS
    $$SELECT format('INSERT INTO effects VALUES (%L)', what)$$;

-- Both names give the id; ids go up
SELECT pg_background_queue_enqueue(inserting('first')) AS first \gset
SELECT pg_background_enqueue(inserting('second')) AS second \gset
SELECT :first > 0 AS positive, :second > :first AS ascending;
SELECT pg_typeof(pg_background_queue_enqueue(inserting('third'))), pg_typeof(pg_background_enqueue(inserting('fourth')));

-- The parameters have names
SELECT pg_background_queue_enqueue(topic => 'named', sql => inserting('named')) > 0 AS named,
       pg_background_enqueue(topic => 'named too', sql => inserting('named too')) > 0 AS named_too;

-- A topic is kept as it is given; without one there is none
SELECT pg_background_queue_enqueue(inserting(topic || ' topic'), topic) > 0 AS enqueued
FROM unnest(ARRAY['', ' ', 'mail', 'Ünï "quoted" ''topic''', repeat('x', 70)]) AS topic;
SELECT pg_background_queue_enqueue(inserting('null topic'), NULL) > 0 AS enqueued;

CALL wait_for_tasks();
SELECT sql_statement, topic, state, priority, retry_count, retry_delay_in_sec, errors,
       role_oid = CURRENT_USER::regrole AS own, role_name = CURRENT_USER AS own_name,
       attempt, due_at, max_retries, interruptions, held,
       origin ~ ('^[0-9]+/' || (SELECT oid FROM pg_database WHERE datname = current_database()) || '$') AS here,
       joined_at <= started_at AND started_at <= closed_at AS times
FROM pg_background_tasks ORDER BY id;
SELECT what FROM effects ORDER BY what COLLATE "C";
TRUNCATE effects;

-- What is no task
SELECT pg_background_queue_enqueue(NULL);
SELECT pg_background_enqueue(NULL);
SELECT pg_background_queue_enqueue('');
SELECT pg_background_enqueue(E' \t\r\n');
SELECT pg_background_queue_enqueue(NULL, 'topic');
-- (what else it says depends on the version)
\set VERBOSITY terse
SELECT pg_background_queue_enqueue();
\set VERBOSITY default

-- A comment, a semicolon, bad syntax are tasks
SELECT pg_background_queue_enqueue(sql, 'odd') > 0 AS enqueued
FROM unnest(ARRAY['-- nothing', ';', 'no such syntax']) AS sql;
CALL wait_for_tasks();
SELECT sql_statement, state FROM pg_background_tasks WHERE topic = 'odd' ORDER BY id;

-- In functions, also one with a search_path of its own, and in a trigger
CREATE FUNCTION in_sql() RETURNS bigint LANGUAGE sql AS
    $$SELECT pg_background_queue_enqueue(inserting('sql'), 'function')$$;
CREATE FUNCTION in_plpgsql() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, public AS
    $$BEGIN PERFORM public.pg_background_enqueue(public.inserting('plpgsql'), 'function'); END$$;
CREATE TABLE orders (id int);
CREATE FUNCTION on_order() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN PERFORM pg_background_queue_enqueue(inserting('order ' || NEW.id), 'function'); RETURN NEW; END$$;
CREATE TRIGGER on_order BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION on_order();
SELECT in_sql() > 0 AS enqueued;
SELECT in_plpgsql();
INSERT INTO orders SELECT generate_series(1, 3);
DO $$BEGIN PERFORM pg_background_queue_enqueue(inserting('do'), 'function'); END$$;
CALL wait_for_tasks();
SELECT state, search_path, count(*) FROM pg_background_tasks WHERE topic = 'function' GROUP BY 1, 2 ORDER BY 3;
SELECT what FROM effects ORDER BY what COLLATE "C";
TRUNCATE effects;

-- Rolled back: never existed
BEGIN;
SELECT pg_background_queue_enqueue(inserting('rolled back'), 'transaction') > 0 AS enqueued;
ROLLBACK;
BEGIN;
SELECT pg_background_queue_enqueue(inserting('before'), 'transaction') > 0 AS enqueued;
SAVEPOINT s;
SELECT pg_background_queue_enqueue(inserting('in the savepoint'), 'transaction') > 0 AS enqueued;
-- not before the commit, and seen by its own transaction
SELECT sql_statement, state FROM pg_background_tasks WHERE topic = 'transaction' ORDER BY id;
ROLLBACK TO s;
SELECT pg_background_queue_enqueue(inserting('after'), 'transaction') > 0 AS enqueued;
COMMIT;
DO $$
BEGIN
    PERFORM pg_background_queue_enqueue(inserting('in the block'), 'transaction');
    RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN NULL;
END$$;
CALL wait_for_tasks();
SELECT sql_statement, state FROM pg_background_tasks WHERE topic = 'transaction' ORDER BY id;
SELECT what FROM effects ORDER BY what COLLATE "C";

-- Not in a transaction that cannot write
BEGIN READ ONLY;
SELECT pg_background_queue_enqueue('SELECT 1');
ROLLBACK;
BEGIN READ ONLY;
SELECT pg_background_enqueue('SELECT 1');
ROLLBACK;
BEGIN READ ONLY;
SELECT pg_background_queue_delete('{1}');
ROLLBACK;
BEGIN READ ONLY;
SELECT pg_background_queue_release();
ROLLBACK;
-- these write nothing
BEGIN READ ONLY;
SELECT pg_background_queue_active_workers_count() >= 0 AS counted;
SELECT pg_background_queue_ensure_workers();
COMMIT;

-- Many at once say nothing but their ids
SET client_min_messages = debug1;
SELECT count(pg_background_queue_enqueue('SELECT 1', 'many')) FROM generate_series(1, 1000);
RESET client_min_messages;
CALL wait_for_tasks();
SELECT state, count(*) FROM pg_background_tasks WHERE topic = 'many' GROUP BY 1;

SELECT pg_background_queue_calibrate_workers_count() = pg_background_queue_active_workers_count() AS as_counted;

DROP TABLE effects, orders;
DROP FUNCTION in_sql, in_plpgsql, on_order, inserting;
