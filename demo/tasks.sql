SELECT id, state, started_at::time(3) AS started, left(sql_statement, 60) AS sql
FROM pg_background_tasks ORDER BY id;
