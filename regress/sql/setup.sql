-- What the other tests need: the extension, roles, and the one way to wait.
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_alice, regress_bob, regress_monitor, regress_nologin;
RESET client_min_messages;

CREATE EXTENSION pg_background_queue;

-- The only place where the SQL tests wait: a condition, looked at again and again, with a deadline.
CREATE PROCEDURE wait_until(condition text) LANGUAGE plpgsql AS $$
DECLARE
    deadline timestamptz := clock_timestamp() + interval '60 s';
    holds boolean;
BEGIN
    LOOP
        EXECUTE 'SELECT ' || condition INTO holds;
        EXIT WHEN holds;
        IF clock_timestamp() > deadline THEN
            RAISE EXCEPTION 'waited in vain until %', condition;
        END IF;
        COMMIT;
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;

-- All tasks that one may see have ended.
CREATE PROCEDURE wait_for_tasks() LANGUAGE plpgsql AS $$
BEGIN
    CALL wait_until('NOT EXISTS (SELECT FROM pg_background_tasks WHERE closed_at IS NULL)');
END $$;

-- Enqueues a task and waits for it: for what must not run at the same time.
CREATE PROCEDURE run_task(sql text, topic text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_background_queue_enqueue(sql, topic);
    CALL wait_for_tasks();
END $$;

-- As it was before 15
GRANT CREATE ON SCHEMA public TO PUBLIC;
