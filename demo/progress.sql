-- How many tasks are still open, and something that changes when any task's state does.
SELECT count(*) FILTER (WHERE state IN ('pending', 'running', 'retrying')),
       md5(string_agg(id || state::text, ',' ORDER BY id))
FROM pg_background_tasks;
