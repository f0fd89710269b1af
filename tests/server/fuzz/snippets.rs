//! Texts put together at random from pieces, by an unprivileged role and a superuser.

use super::random::Random;
use super::{WHO, enqueue, internal_errors, server, wait_all_served};
use crate::harness::PATIENCE;

/// How many texts for each role; `PGBQ_FUZZ` gives another number.
const TEXTS: usize = 250;

/// Statements, most of them right; a text is one to four of them. `N` becomes a small number.
const SNIPPETS: &[&str] = &[
    // rows
    "SELECT 1",
    "",
    "SELECT",
    "VALUES (1), (2)",
    "TABLE tN",
    "CREATE TABLE tN (a int PRIMARY KEY, b text)",
    "CREATE TABLE IF NOT EXISTS tN (a int, b text)",
    "CREATE TEMP TABLE tN (a int, b text) ON COMMIT DELETE ROWS",
    "CREATE TEMP TABLE tempN ON COMMIT DROP AS SELECT 1 AS a",
    "CREATE UNLOGGED TABLE uN AS SELECT n AS a, 'x'::text AS b FROM generate_series(1, 100) AS n",
    "DROP TABLE tN",
    "DROP TABLE IF EXISTS tN, uN CASCADE",
    "TRUNCATE tN",
    "INSERT INTO tN SELECT n, repeat('x', n) FROM generate_series(1, 50) AS n",
    "INSERT INTO tN VALUES (1, 'x') ON CONFLICT DO NOTHING",
    "UPDATE tN SET b = b || 'y'",
    "DELETE FROM tN WHERE a % 2 = 0",
    "WITH x AS (DELETE FROM tN RETURNING *) SELECT count(*) FROM x",
    "SELECT * FROM tN FOR UPDATE",
    "SELECT * FROM tN FOR SHARE SKIP LOCKED",
    "SELECT count(*) FROM generate_series(1, 20000) AS a JOIN generate_series(1, 20000) AS b ON a = b",
    "SELECT * FROM queue.pg_background_tasks",
    "SELECT * FROM queue.pg_background_queue_stats, queue.pg_background_queue_workers",
    "SELECT nonsense FROM nowhere",
    "SELECT 1/0",
    "SELECT 1/(a - a) FROM tN",
    "SELEC",
    "SELECT '",
    "SELECT $1",
    "SELECT repeat('x', 1 << 28)",
    // definitions
    "CREATE INDEX ON tN (b)",
    "CREATE UNIQUE INDEX iN ON tN (b)",
    "CREATE INDEX CONCURRENTLY ON tN (b)",
    "DROP INDEX CONCURRENTLY IF EXISTS iN",
    "REINDEX TABLE tN",
    "REINDEX TABLE CONCURRENTLY tN",
    "ALTER TABLE tN ADD COLUMN cN int DEFAULT 7",
    "ALTER TABLE tN ALTER COLUMN a TYPE bigint",
    "CREATE VIEW vN AS SELECT * FROM tN",
    "CREATE MATERIALIZED VIEW mN AS SELECT 1 AS a",
    "REFRESH MATERIALIZED VIEW mN",
    "CREATE SCHEMA sN",
    "DROP SCHEMA IF EXISTS sN CASCADE",
    "CREATE TYPE eN AS ENUM ('a', 'b')",
    "ALTER TYPE eN ADD VALUE IF NOT EXISTS 'c'",
    "CREATE DOMAIN dN AS int CHECK (VALUE > 0)",
    "SELECT (-1)::dN",
    "CREATE SEQUENCE IF NOT EXISTS qN",
    "SELECT nextval('qN'), currval('qN'), lastval()",
    "COMMENT ON TABLE tN IS 'x'",
    "GRANT SELECT ON tN TO PUBLIC",
    "CREATE STATISTICS stN ON a, b FROM tN",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
    "CREATE POLICY pN ON tN USING (true)",
    "CREATE RULE rN AS ON INSERT TO tN DO ALSO NOTIFY x",
    "CREATE CAST (eN AS text) WITH INOUT AS IMPLICIT",
    // maintenance
    "VACUUM tN",
    "VACUUM (FULL, ANALYZE) tN",
    "ANALYZE",
    "CLUSTER tN USING tN_pkey",
    "CHECKPOINT",
    "DISCARD ALL",
    "DISCARD TEMP",
    "DISCARD PLANS",
    "RESET ALL",
    // session
    "SET search_path = nowhere, pg_temp",
    "SET statement_timeout = 1",
    "SET LOCAL lock_timeout = 1",
    "SET client_min_messages = error",
    "SET default_transaction_read_only = on",
    "SET TRANSACTION READ ONLY",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "SET CONSTRAINTS ALL DEFERRED",
    "SET ROLE NONE",
    "SET SESSION AUTHORIZATION DEFAULT",
    "SET debug_discard_caches = 1",
    "SHOW ALL",
    "PREPARE pN AS SELECT 1",
    "EXECUTE pN",
    "DEALLOCATE ALL",
    "DECLARE cN CURSOR FOR SELECT * FROM generate_series(1, 10)",
    "DECLARE cN CURSOR WITH HOLD FOR SELECT * FROM generate_series(1, 10)",
    "DECLARE cN SCROLL CURSOR WITH HOLD FOR SELECT 1/(5 - n) FROM generate_series(1, 10) AS n",
    "FETCH ALL FROM cN",
    "CLOSE ALL",
    "SELECT pg_advisory_lock(N)",
    "SELECT pg_try_advisory_xact_lock(N)",
    "LOCK TABLE tN",
    "LOCK TABLE tN NOWAIT",
    "NOTIFY x, 'y'",
    "LISTEN x",
    "UNLISTEN *",
    // transactions
    "BEGIN",
    "COMMIT",
    "COMMIT AND CHAIN",
    "ROLLBACK",
    "SAVEPOINT s",
    "PREPARE TRANSACTION 'N'",
    "DO $$BEGIN COMMIT; END$$",
    "DO $$BEGIN FOR i IN 1..20 LOOP COMMIT; PERFORM 1; ROLLBACK; END LOOP; END$$",
    "DO $$BEGIN PERFORM 1/0; EXCEPTION WHEN OTHERS THEN NULL; END$$",
    "DO $$BEGIN FOR i IN 1..100 LOOP BEGIN PERFORM 1/(i % 2); EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END$$",
    "DO $$BEGIN RAISE SQLSTATE '40001'; END$$",
    "DO $$BEGIN RAISE SQLSTATE '57014'; END$$",
    "DO $$BEGIN RAISE WARNING 'w'; RAISE 'e' USING DETAIL = repeat('d', 10000); END$$",
    "DO $$BEGIN EXECUTE 'CREATE TABLE tN (a int)'; COMMIT; RAISE 'too late'; END$$",
    "CREATE OR REPLACE PROCEDURE procN() LANGUAGE plpgsql AS $$BEGIN COMMIT; PERFORM pg_sleep(0.001); END$$",
    "CALL procN()",
    "CREATE OR REPLACE FUNCTION fN(int) RETURNS int LANGUAGE sql AS 'SELECT $1 + 1'",
    "SELECT fN(1)",
    "CREATE OR REPLACE FUNCTION fN(int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN fN($1 + 1); END'",
    "EXPLAIN SELECT * FROM tN",
    "EXPLAIN ANALYZE INSERT INTO tN VALUES (7, 'x')",
    // ends, and the queue from inside
    "SELECT pg_cancel_backend(pg_backend_pid())",
    "SELECT queue.pg_background_queue_enqueue('SELECT 1')",
    "SELECT queue.pg_background_queue_delete(array_agg(id)) FROM queue.pg_background_tasks WHERE id % 7 = N",
    "SELECT queue.pg_background_queue_cancel(id) FROM queue.pg_background_tasks WHERE state = 'running' AND N = 3",
    "SELECT queue.pg_background_queue_retry(id) FROM queue.pg_background_tasks WHERE state = 'failed' AND N = 3 LIMIT 1",
    "SELECT queue.pg_background_queue_ensure_workers()",
    "SELECT queue.pg_background_queue_calibrate_workers_count()",
    "COPY tN FROM STDIN",
    "COPY tN TO STDOUT",
    "COPY tN TO PROGRAM 'cat > /dev/null'",
    "CREATE DATABASE dbN",
    "DROP DATABASE IF EXISTS dbN",
    "ALTER ROLE CURRENT_USER SET work_mem = '1MB'",
    "LOAD 'pg_background_queue'",
    "SELECT pg_logical_slot_get_changes('none', NULL, NULL)",
    "SELECT lo_create(0)",
    "SELECT lo_open(lo_create(0), 131072)",
    "SELECT pg_export_snapshot()",
    "IMPORT FOREIGN SCHEMA x FROM SERVER y INTO z",
    "ALTER EXTENSION pg_background_queue UPDATE",
    "SECURITY LABEL ON TABLE tN IS 'x'",
];

fn text(random: &mut Random) -> String {
    let count = [1, 1, 2, 3, 4][random.below(5)];
    let statements: Vec<String> = (0..count)
        .map(|_| {
            let number = random.below(5).to_string();
            // the word N, and N at the end of a name
            random
                .pick(SNIPPETS)
                .split_inclusive('N')
                .map(|part| match part.strip_suffix('N') {
                    Some(rest) if !rest.ends_with(|c: char| c.is_ascii_uppercase()) => {
                        format!("{rest}{number}")
                    }
                    _ => part.to_owned(),
                })
                .collect()
        })
        .collect();
    let mut text = statements.join("; ");
    // sometimes cut off anywhere
    if random.below(20) == 0 && !text.is_empty() {
        text.truncate(random.below(text.len()));
    }
    if text.trim().is_empty() {
        "-- nothing".to_owned()
    } else {
        text
    }
}

#[test]
fn statements_at_random_do_no_harm() {
    let texts = std::env::var("PGBQ_FUZZ").map_or(TEXTS, |text| text.parse().expect("a number"));
    let server = server();
    let mut random = Random::new(20);
    for (role, database) in WHO {
        let mut client = server.connect(role, database);
        for _ in 0..texts {
            let topic = random.below(3).to_string();
            enqueue(&mut client, &text(&mut random), &topic);
        }
    }
    for (_, database) in WHO {
        let mut client = server.connect("postgres", database);
        wait_all_served(&mut client, PATIENCE * 2 + PATIENCE * (texts / 50) as u32);
        let errors = internal_errors(&mut client);
        assert!(
            errors
                .iter()
                .all(|line| EXPECTED.iter().any(|part| line.contains(part))),
            "{database}: {errors:#?}"
        );
    }
}

/// What concurrent changes of the same objects make PostgreSQL say.
const EXPECTED: &[&str] = &[
    "tuple concurrently",
    "cache lookup failed",
    "could not open relation with OID",
];
