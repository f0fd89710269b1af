-- What the benchmark needs beside the extension.
CREATE EXTENSION pg_background_queue;

CREATE TABLE sink (x integer);

-- The floor for enqueueing: the same columns, a primary key and one partial index.
CREATE TABLE lean (LIKE pg_background_tasks INCLUDING DEFAULTS, PRIMARY KEY (id));
CREATE INDEX ON lean (priority, id) WHERE state IN ('pending', 'retrying');

-- Latencies: when a wake-up was sent, when the text of the task began to run, and when its INSERT was executed.
CREATE TABLE sent (n integer, at timestamptz);
CREATE TABLE seen (n integer, at timestamptz, begun timestamptz);
GRANT INSERT ON seen TO PUBLIC;
GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO PUBLIC;

-- Enqueues tasks, one a transaction, with a pause before each. With a prefix each is that of a role of its own.
CREATE PROCEDURE send_tasks(tasks integer, pause float8, role_prefix text) LANGUAGE plpgsql AS $$
DECLARE
    committed timestamptz;
BEGIN
    FOR n IN 1 .. tasks LOOP
        PERFORM pg_sleep(pause * (0.5 + random()));
        COMMIT;
        IF role_prefix <> '' THEN
            EXECUTE format('SET LOCAL ROLE %I', role_prefix || n);
        END IF;
        PERFORM pg_background_queue_enqueue(
            format('INSERT INTO seen VALUES (%s, clock_timestamp(), statement_timestamp())', n));
        COMMIT;
        committed := clock_timestamp();
        INSERT INTO sent VALUES (n, committed);
    END LOOP;
END $$;

-- The floor for that: wakes a backend that waits for advisory locks one after the other.
CREATE PROCEDURE send_unlocks(tasks integer, pause float8) LANGUAGE plpgsql AS $$
DECLARE
    unlocked record;
BEGIN
    PERFORM pg_advisory_lock(4711, n) FROM generate_series(1, tasks) AS n;
    COMMIT;
    PERFORM pg_sleep(1);
    FOR n IN 1 .. tasks LOOP
        PERFORM pg_sleep(pause * (0.5 + random()));
        COMMIT;
        SELECT clock_timestamp() AS at, pg_advisory_unlock(4711, n) INTO unlocked;
        INSERT INTO sent VALUES (n, unlocked.at);
    END LOOP;
END $$;
