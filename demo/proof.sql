SELECT 'finished tasks: 9 of 10, and 1 failed' AS what,
       count(*) FILTER (WHERE state = 'finished') = 9 AND count(*) FILTER (WHERE state = 'failed') = 1 AS ok
FROM pg_background_tasks
UNION ALL
SELECT 'the failed one divided by zero', count(*) = 1
FROM pg_background_tasks WHERE state = 'failed' AND errors LIKE '%division by zero%'
UNION ALL
SELECT 'and its DELETE never happened: 10000 customers', count(*) = 10000
FROM customers
UNION ALL
SELECT 'orders paid: 100000, unpaid: 20000', count(*) FILTER (WHERE paid) = 100000 AND count(*) FILTER (WHERE NOT paid) = 20000
FROM orders
UNION ALL
SELECT 'report: 10000 customers, made by app', count(*) = 1
FROM report WHERE customers = 10000 AND made_by = 'app'
UNION ALL
SELECT 'customers: vacuumed and analyzed',
       (SELECT relallvisible > 0 FROM pg_class WHERE oid = 'customers'::regclass)
       AND EXISTS (SELECT FROM pg_stats WHERE tablename = 'customers')
UNION ALL
SELECT 'index orders_by_customer: valid', count(*) = 1
FROM pg_index WHERE indexrelid = to_regclass('orders_by_customer') AND indisvalid
UNION ALL
SELECT 'it ran as app, in a worker of the queue', count(*) = 1
FROM journal WHERE ran_as = 'app' AND process LIKE 'pg_background_queue%'
UNION ALL
SELECT 'never more than 4 tasks at a time',
       max((SELECT count(*) FROM pg_background_tasks b
            WHERE b.started_at <= a.started_at AND b.closed_at > a.started_at)) <= 4
FROM pg_background_tasks a;
