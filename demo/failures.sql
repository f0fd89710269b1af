SELECT id, state, sql_statement, errors FROM pg_background_tasks WHERE errors <> '' ORDER BY id;
