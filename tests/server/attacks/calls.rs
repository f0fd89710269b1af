//! Calls of the queue's functions: with NULLs, extremes, others' ids, and from places where nobody expects them.

use postgres::{Client, SimpleQueryMessage};

use super::Field;
use crate::harness::{run, scalar, task, wait_closed};

/// The first value of the last statement that returns rows, "" for NULL or none; or the SQLSTATE of its error.
fn answer(client: &mut Client, sql: &str) -> String {
    match client.simple_query(sql) {
        Ok(messages) => messages
            .iter()
            .rev()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("").to_owned()),
                _ => None,
            })
            .unwrap_or_default(),
        Err(error) => error
            .code()
            .unwrap_or_else(|| panic!("{sql}: {error:?}"))
            .code()
            .to_owned(),
    }
}

/// A call by the attacker, and what it answers. `@` are the victim's ids, as an array.
const CALLS: &[(&str, &str)] = &[
    // NULLs
    ("SELECT pg_background_queue_enqueue(NULL)", "22004"),
    (
        "SELECT pg_background_queue_enqueue(NULL, NULL, NULL, NULL, NULL, NULL)",
        "22004",
    ),
    ("SELECT pg_background_enqueue(NULL, 'x')", "22004"),
    ("SELECT pg_background_queue_delete(NULL)", "22004"),
    ("SELECT pg_background_queue_cancel(NULL)", "f"),
    ("SELECT pg_background_queue_retry(NULL)", "f"),
    ("SELECT pg_background_queue_release(NULL)", "42501"),
    // extremes
    (
        "SELECT pg_background_queue_enqueue(' \t\r\n\x0c ')",
        "22023",
    ),
    (
        "SELECT pg_background_queue_enqueue('x', timeout => '0')",
        "22023",
    ),
    (
        "SELECT pg_background_queue_enqueue('x', timeout => '-1 month')",
        "22023",
    ),
    (
        "SELECT pg_background_queue_enqueue('x', timeout => '1 microsecond')",
        "22023",
    ),
    (
        "SELECT pg_background_queue_enqueue('x', timeout => '25 days')",
        "22023",
    ),
    (
        "SELECT pg_background_queue_enqueue('x', timeout => '178000000 years')",
        "22023",
    ),
    (
        "SELECT pg_background_queue_enqueue('x', timeout => '-178000000 years')",
        "22023",
    ),
    (
        "SELECT pg_background_queue_enqueue('x', timeout => '2147483647 months 2147483647 days 999999999 hours'::interval)",
        "22023",
    ),
    (
        "SELECT pg_background_queue_enqueue('x', retry_count => -2147483648)",
        "22023",
    ),
    ("SELECT pg_background_queue_cancel(0)", "f"),
    ("SELECT pg_background_queue_cancel(-1)", "f"),
    (
        "SELECT pg_background_queue_cancel(9223372036854775807)",
        "f",
    ),
    (
        "SELECT pg_background_queue_cancel(-9223372036854775808)",
        "f",
    ),
    (
        "SELECT pg_background_queue_retry(-9223372036854775808)",
        "f",
    ),
    ("SELECT pg_background_queue_delete('{}')", "0"),
    (
        "SELECT pg_background_queue_delete('{NULL,NULL,0,-1,9223372036854775807}')",
        "0",
    ),
    (
        "SELECT pg_background_queue_delete(ARRAY[[1,2],[NULL,4]]::bigint[])",
        "0",
    ),
    ("SELECT pg_background_queue_delete('[-5:-4]={1,2}')", "0"),
    (
        "SELECT pg_background_queue_delete(array_agg(n)) FROM generate_series(-100000, 0) AS n",
        "0",
    ),
    // others' ids
    (
        "SELECT count(*) FROM unnest(@) AS id WHERE pg_background_queue_cancel(id)",
        "0",
    ),
    (
        "SELECT count(*) FROM unnest(@) AS id WHERE pg_background_queue_retry(id)",
        "0",
    ),
    ("SELECT pg_background_queue_delete(@)", "0"),
    ("SELECT pg_background_queue_release(@)", "42501"),
    (
        "SELECT count(*) FROM pg_background_tasks WHERE id = ANY (@)",
        "0",
    ),
    // as another's
    (
        "SELECT pg_background_queue_calibrate_workers_count()",
        "42501",
    ),
    (
        "GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO carol; SET ROLE carol",
        "42501",
    ),
    (
        "CREATE OR REPLACE FUNCTION public.pg_background_queue_enqueue(sql text, topic text DEFAULT NULL, priority integer DEFAULT NULL, \
      run_at timestamptz DEFAULT NULL, retry_count integer DEFAULT NULL, timeout interval DEFAULT NULL) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'",
        "42501",
    ),
    (
        "ALTER FUNCTION pg_background_queue_enqueue SECURITY DEFINER",
        "42501",
    ),
    (
        "ALTER FUNCTION pg_background_queue_cancel OWNER TO alice",
        "42501",
    ),
    ("DROP FUNCTION pg_background_queue_cancel", "42501"),
    // from odd places
    (
        "BEGIN READ ONLY; SELECT pg_background_queue_enqueue('x')",
        "25006",
    ),
    (
        "BEGIN READ ONLY; SELECT pg_background_queue_cancel(1)",
        "25006",
    ),
    (
        "BEGIN READ ONLY; SELECT pg_background_queue_delete('{}')",
        "25006",
    ),
    (
        "CREATE TABLE g (a int, b bigint GENERATED ALWAYS AS (pg_background_queue_enqueue('SELECT 1')) STORED)",
        "42P17",
    ),
    (
        "CREATE TABLE g (a int); CREATE INDEX ON g (pg_background_queue_enqueue(a::text))",
        "42P17",
    ),
    (
        "CREATE FUNCTION t() RETURNS trigger LANGUAGE internal AS 'pg_background_queue_enqueue'",
        "42501",
    ),
    (
        "CREATE TRIGGER t BEFORE INSERT ON effects EXECUTE FUNCTION pg_background_queue_ensure_workers()",
        "42501",
    ),
    (
        "SELECT * FROM generate_series(1, 3) LIMIT pg_background_queue_active_workers_count() * 0",
        "",
    ),
    (
        "SELECT count(*) > 0 FROM (SELECT pg_background_queue_worker_slots()) AS s",
        "t",
    ),
    (
        "SELECT count(*) FROM (SELECT pg_background_queue_worker_slots(), pg_background_queue_worker_slots(), generate_series(1, 5)) AS s",
        "5",
    ),
    (
        "SELECT CASE WHEN true THEN pg_background_queue_worker_slots() END",
        "0A000",
    ),
    (
        "SELECT coalesce(pg_background_queue_worker_slots())",
        "0A000",
    ),
    (
        "SELECT count(*) FROM ROWS FROM (pg_background_queue_worker_slots(), generate_series(1, 3)) WITH ORDINALITY",
        "3",
    ),
    (
        "SELECT count(*) > 2 FROM generate_series(1, 3), LATERAL pg_background_queue_worker_slots()",
        "t",
    ),
    (
        "SELECT count(*) > 0 FROM pg_background_queue_worker_slots() AS s(a, b, c, d, e, f, g)",
        "t",
    ),
    (
        "SELECT count(*) FROM pg_background_queue_worker_slots() AS s(a int)",
        "42601",
    ),
    (
        "DO $$BEGIN PERFORM pg_background_queue_worker_slots(); END$$",
        "",
    ),
    ("DECLARE c CURSOR FOR SELECT 1", "25P01"),
    (
        "BEGIN; DECLARE c SCROLL CURSOR FOR SELECT pid FROM pg_background_queue_worker_slots(); FETCH ALL FROM c; FETCH BACKWARD ALL FROM c; CLOSE c; SELECT 'ok'",
        "ok",
    ),
    (
        "SELECT count(*) FROM pg_background_queue_workers TABLESAMPLE system (100)",
        "0A000",
    ),
    (
        "CREATE AGGREGATE public.cancels(bigint) (SFUNC = pg_background_queue_cancel, STYPE = boolean)",
        "42883",
    ),
    (
        "CREATE OPERATOR public.#! (FUNCTION = pg_background_queue_cancel, RIGHTARG = bigint); SELECT #! 1::bigint",
        "f",
    ),
    (
        "CREATE CAST (text AS bigint) WITH FUNCTION pg_background_enqueue(text, text)",
        "42501",
    ),
    (
        "EXPLAIN ANALYZE SELECT pg_background_queue_cancel(1); SELECT 'ok'",
        "ok",
    ),
    (
        "COPY (SELECT pg_background_queue_retry(1)) TO PROGRAM 'cat'",
        "42501",
    ),
    ("SELECT pg_background_queue_cancel(id := 1)", "f"),
    (
        "SELECT pg_background_queue_cancel('1; DROP TABLE x')",
        "22P02",
    ),
    (
        "SELECT pg_background_queue_cancel(VARIADIC ARRAY[1])",
        "42883",
    ),
    (
        "PREPARE p(bigint) AS SELECT pg_background_queue_cancel($1); EXECUTE p(1); EXECUTE p(NULL); EXECUTE p(2)",
        "f",
    ),
];

#[test]
fn no_call_does_more_than_it_may() {
    let mut field = Field::new(1);
    run(&mut field.client, "CREATE ROLE carol LOGIN");
    let ids: Vec<String> = field.victims.iter().map(ToString::to_string).collect();
    let ids = format!("'{{{}}}'::bigint[]", ids.join(","));
    let mut wrong = Vec::new();
    for (sql, expected) in CALLS {
        let got = answer(&mut field.alice, &sql.replace('@', &ids));
        run(&mut field.alice, "ROLLBACK; DEALLOCATE ALL");
        if got != *expected {
            wrong.push(format!("{sql}: {got} instead of {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // a grant that one may not give is none
    run(
        &mut field.alice,
        "GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO PUBLIC",
    );
    let mut carol = field.server.connect("carol", "postgres");
    assert_eq!(
        answer(&mut carol, "SELECT pg_background_queue_enqueue('x')"),
        "42501"
    );
    assert_eq!(
        answer(&mut carol, "SELECT pg_background_enqueue('x')"),
        "42501"
    );
    field.survive();
    field.end();
}

/// Every function of the extension, whatever it will have: called with nothing but NULLs it says something.
#[test]
fn every_function_can_be_called_with_nulls() {
    let mut field = Field::new(1);
    let calls: Vec<String> = field
        .client
        .query(
            "SELECT format('SELECT %s(%s)', p.oid::regproc, \
                 (SELECT string_agg('NULL::' || format_type(t, NULL), ', ') FROM unnest(p.proargtypes) AS t)) \
             FROM pg_proc AS p JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e' \
             JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'pg_background_queue'",
            &[],
        )
        .expect("the functions")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(calls.len() >= 11, "{calls:?}");
    for call in &calls {
        let rights = format!("{call} /* by the attacker */");
        let got = answer(&mut field.alice, &rights);
        assert!(!got.starts_with("XX"), "{call}: {got}");
        let got = answer(&mut field.client, call);
        assert!(!got.starts_with("XX"), "{call}: {got}");
    }
    field.survive();
    field.end();
}

/// What a function that runs enqueues is of the role that it runs as; a default, a check or a policy is no way around that.
#[test]
fn a_task_is_of_the_role_that_calls_wherever_the_call_stands() {
    let mut field = Field::new(1);
    run(
        &mut field.alice,
        "CREATE TABLE public.bait (a int DEFAULT 1, b bigint DEFAULT pg_background_queue_enqueue('SELECT ''default''')); \
         CREATE DOMAIN public.bait_domain AS text CHECK (pg_background_queue_enqueue('SELECT ''domain''') > 0); \
         CREATE TABLE public.bait_policy (a int); INSERT INTO public.bait_policy VALUES (1); \
         ALTER TABLE public.bait_policy ENABLE ROW LEVEL SECURITY; \
         CREATE POLICY p ON public.bait_policy USING (pg_background_queue_enqueue('SELECT ''policy''') > 0); \
         CREATE VIEW public.bait_view AS SELECT pg_background_queue_enqueue('SELECT ''view'''); \
         CREATE FUNCTION public.bait() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS \
            $$SELECT pg_background_queue_enqueue('SELECT ''definer''')$$; \
         GRANT ALL ON public.bait, public.bait_policy, public.bait_view TO bob",
    );
    let before: i64 = scalar(
        &mut field.client,
        "SELECT max(id) FROM pg_background_tasks",
        &[],
    );
    for bait in [
        "INSERT INTO public.bait DEFAULT VALUES",
        "SELECT 'x'::public.bait_domain",
        "SELECT * FROM public.bait_policy",
        "SELECT * FROM public.bait_view",
        "SELECT public.bait()",
    ] {
        run(&mut field.bob, bait);
    }
    let ids: Vec<i64> = field
        .client
        .query(
            "SELECT id FROM pg_background_tasks WHERE id > $1 ORDER BY id",
            &[&before],
        )
        .expect("the tasks")
        .iter()
        .map(|row| row.get(0))
        .collect();
    let roles: Vec<String> = ids
        .iter()
        .map(|&id| {
            wait_closed(&mut field.client, id);
            task(&mut field.client, id).role_name.unwrap_or_default()
        })
        .collect();
    assert_eq!(roles, ["bob", "bob", "bob", "bob", "alice"]);
    field.survive();
    field.end();
}
