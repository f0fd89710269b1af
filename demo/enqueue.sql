SELECT pg_background_queue_enqueue('UPDATE orders SET paid = true WHERE id <= 25000; SELECT pg_sleep(1)');
SELECT pg_background_queue_enqueue('UPDATE orders SET paid = true WHERE id BETWEEN 25001 AND 50000; SELECT pg_sleep(1)');
SELECT pg_background_queue_enqueue('UPDATE orders SET paid = true WHERE id BETWEEN 50001 AND 75000; SELECT pg_sleep(1)');
SELECT pg_background_queue_enqueue('UPDATE orders SET paid = true WHERE id > 75000; SELECT pg_sleep(1)');
SELECT pg_background_queue_enqueue('INSERT INTO orders SELECT n, 1 + n % 10000, 1, false FROM generate_series(100001, 120000) n; SELECT pg_sleep(1)');
-- fails, and takes back what it did:
SELECT pg_background_queue_enqueue('DELETE FROM customers WHERE id <= 100; SELECT 1/0');
-- several statements, all or nothing:
SELECT pg_background_queue_enqueue('CREATE TABLE report AS SELECT count(*) AS customers FROM customers; ALTER TABLE report ADD made_by text DEFAULT current_user');
-- what runs in no transaction block:
SELECT pg_background_queue_enqueue('VACUUM (ANALYZE) customers');
SELECT pg_background_queue_enqueue('CREATE INDEX CONCURRENTLY orders_by_customer ON orders (customer)');
-- who runs a task, and where:
SELECT pg_background_queue_enqueue($$INSERT INTO journal SELECT 'who am I', session_user, backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid()$$);
