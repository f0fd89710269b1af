SELECT id, state, started_at::time(3) AS started, (closed_at - started_at)::interval(3) AS took,
       left(sql_statement, 60) AS sql
FROM pg_background_tasks ORDER BY id;
