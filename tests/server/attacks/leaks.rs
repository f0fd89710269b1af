//! What one may learn of others' tasks: that there are some, and nothing of what is in them.

use postgres::SimpleQueryMessage;

use super::{Field, SECRET};
use crate::harness::run;

/// Functions that tell what they are given: cheap, and so called first; and immutable, so that the planner may move them.
const LEAKY: &str = "
    CREATE SCHEMA leaky;
    CREATE FUNCTION leaky.look(t text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE COST 0.0000001 AS
        $$BEGIN RAISE NOTICE 'looked at %', t; RETURN true; END$$;
    CREATE FUNCTION leaky.look(a text, b text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE COST 0.0000001 AS
        $$BEGIN RAISE NOTICE 'looked at %', a; RETURN true; END$$;
    CREATE OPERATOR leaky.= (FUNCTION = leaky.look, LEFTARG = text, RIGHTARG = text);
    CREATE OPERATOR leaky.<<< (FUNCTION = leaky.look, LEFTARG = text, RIGHTARG = text, RESTRICT = eqsel, JOIN = eqjoinsel);
    CREATE FUNCTION leaky.state(text, text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
        $$BEGIN RAISE NOTICE 'looked at %', $2; RETURN $2; END$$;
    CREATE AGGREGATE leaky.agg(text) (SFUNC = leaky.state, STYPE = text);
    CREATE VIEW leaky.tasks AS SELECT * FROM pg_background_tasks WHERE leaky.look(sql_statement);
    CREATE FUNCTION leaky.definer() RETURNS SETOF pg_background_tasks LANGUAGE sql SECURITY DEFINER AS
        'SELECT * FROM pg_background_tasks';
    CREATE TABLE leaky.copy (t text, u text);
";

const QUESTIONS: &[&str] = &[
    "SELECT * FROM pg_background_tasks WHERE leaky.look(sql_statement)",
    "SELECT * FROM pg_background_tasks WHERE leaky.look(topic) OR leaky.look(errors)",
    "SELECT * FROM pg_background_tasks AS t WHERE leaky.look(t::text)",
    "SELECT * FROM pg_background_tasks WHERE topic OPERATOR(leaky.=) 'x'",
    "SELECT * FROM pg_background_tasks WHERE topic OPERATOR(leaky.<<<) 'x'",
    "SELECT * FROM pg_background_tasks AS a JOIN pg_background_tasks AS b ON a.topic OPERATOR(leaky.<<<) b.sql_statement",
    "SELECT * FROM pg_background_tasks AS t, LATERAL (SELECT leaky.look(t.topic)) AS l",
    "SELECT * FROM pg_background_tasks TABLESAMPLE system (100) WHERE leaky.look(sql_statement)",
    "SELECT * FROM pg_background_tasks WHERE ctid = '(0,1)' AND leaky.look(topic)",
    "SELECT * FROM pg_background_tasks WHERE id = 1 AND leaky.look(topic)",
    "SELECT * FROM pg_background_tasks WHERE state = 'running' AND leaky.look(topic)",
    "SELECT * FROM pg_background_tasks ORDER BY leaky.look(topic)",
    "SELECT leaky.agg(topic) FROM pg_background_tasks",
    "SELECT count(*) FILTER (WHERE leaky.look(topic)) FROM pg_background_tasks",
    "SELECT * FROM pg_background_tasks WHERE sql_statement::int > 0",
    "SELECT * FROM pg_background_tasks WHERE topic::xid8 IS NULL",
    "SELECT * FROM pg_background_tasks WHERE topic ~ ('(' || topic)",
    "SELECT * FROM pg_background_tasks WHERE 1/(length(topic) - length(topic)) = 1",
    "SELECT * FROM leaky.tasks",
    "SELECT * FROM leaky.definer()",
    "SET row_security = off; SELECT * FROM pg_background_tasks",
    "SET row_security = off; SELECT * FROM leaky.tasks",
    "COPY pg_background_tasks TO STDOUT",
    "INSERT INTO leaky.copy SELECT sql_statement, topic FROM pg_background_tasks; TABLE leaky.copy",
    "WITH t AS NOT MATERIALIZED (SELECT * FROM pg_background_tasks) SELECT * FROM t WHERE leaky.look(topic)",
    "BEGIN; DECLARE c CURSOR FOR SELECT * FROM pg_background_tasks WHERE leaky.look(topic); FETCH ALL FROM c",
    "PREPARE p AS SELECT * FROM pg_background_tasks WHERE leaky.look(topic); EXECUTE p",
    "EXPLAIN (ANALYZE, VERBOSE) SELECT * FROM pg_background_tasks WHERE leaky.look(topic)",
    "SET force_parallel_mode = on; SELECT * FROM pg_background_tasks WHERE leaky.look(topic)",
    "SET debug_parallel_query = on; SELECT * FROM pg_background_tasks WHERE leaky.look(topic)",
    "SET enable_seqscan = off; SELECT * FROM pg_background_tasks WHERE leaky.look(topic) AND id > 0",
    // the views, which run as their owner
    "SELECT * FROM pg_background_queue_stats WHERE leaky.look(topic)",
    "SELECT * FROM pg_background_queue_stats AS s WHERE leaky.look(s::text)",
    "SELECT * FROM pg_background_queue_stats WHERE topic OPERATOR(leaky.<<<) 'x'",
    "SELECT * FROM pg_background_queue_stats WHERE topic::int > 0",
    "SELECT * FROM (SELECT topic FROM pg_background_queue_stats) AS s WHERE leaky.look(topic)",
    "SELECT * FROM pg_background_queue_stats AS a JOIN pg_background_queue_stats AS b ON a.topic OPERATOR(leaky.<<<) b.topic",
    "SELECT * FROM pg_background_queue_workers WHERE leaky.look(topic)",
    "SELECT * FROM pg_background_queue_workers AS w WHERE leaky.look(w::text)",
    "SELECT * FROM pg_background_queue_workers WHERE topic::int > 0",
    "SELECT * FROM pg_background_queue_worker_slots()",
    // the server's own
    "SELECT * FROM pg_stat_activity",
    "SELECT pg_stat_get_backend_activity(b) FROM pg_stat_get_backend_idset() AS b",
    "SELECT * FROM pg_stats WHERE tablename LIKE 'pg_background%'",
    "SELECT * FROM pg_statistic",
    "SELECT * FROM pg_locks",
    "SELECT query_to_xml('SELECT * FROM pg_background_tasks', true, true, '')",
    "SELECT table_to_xml('pg_background_tasks', true, true, '')",
    "SELECT database_to_xml(true, true, '')",
    "SELECT ts_stat('SELECT to_tsvector(sql_statement) FROM pg_background_tasks')",
    "SELECT pg_read_binary_file(pg_relation_filepath('pg_background_tasks'))",
    "SELECT * FROM pg_sequences",
    "SELECT last_value FROM pg_background_tasks_id_seq",
    "SELECT currval('pg_background_tasks_id_seq')",
    "SELECT * FROM pg_sequence_parameters('pg_background_tasks_id_seq'::regclass)",
];

#[test]
fn no_question_is_answered_with_what_is_in_anothers_task() {
    let mut field = Field::new(1);
    run(&mut field.client, "ANALYZE pg_background_tasks");
    run(
        &mut field.client,
        "GRANT CREATE ON DATABASE postgres TO alice",
    );
    run(&mut field.alice, LEAKY);
    for question in QUESTIONS {
        let (mut alice, notices) = field
            .server
            .connector()
            .connect_listening("alice", "postgres");
        let mut told = match alice.simple_query(question) {
            Ok(messages) => messages
                .iter()
                .filter_map(|message| match message {
                    SimpleQueryMessage::Row(row) => Some(
                        (0..row.len())
                            .filter_map(|i| row.get(i))
                            .collect::<Vec<_>>()
                            .join(" "),
                    ),
                    _ => None,
                })
                .collect::<Vec<_>>()
                .join("\n"),
            Err(error) => format!("{error:?}"),
        };
        told.push_str(&notices.lock().expect("no panic under this lock").join("\n"));
        assert!(!told.contains(SECRET), "{question}\n{told}");
    }
    // the same as tasks: what they say would be in `errors`
    for question in QUESTIONS {
        let sql = format!("{question}; DO $$BEGIN RAISE 'x'; END$$");
        field
            .alice
            .execute("SELECT pg_background_queue_enqueue($1)", &[&sql])
            .expect("enqueued");
    }
    let leaks: i64 = {
        crate::harness::wait_until("the attacker's tasks to end", || {
            crate::harness::scalar(
                &mut field.client,
                "SELECT count(*) = 0 FROM pg_background_tasks WHERE role_name = 'alice' AND closed_at IS NULL",
                &[],
            )
        });
        crate::harness::scalar(
            &mut field.client,
            "SELECT count(*) FROM pg_background_tasks WHERE role_name = 'alice' AND strpos(errors, $1) > 0",
            &[&SECRET],
        )
    };
    assert_eq!(leaks, 0);
    // the questions work: of her own tasks they do tell
    let (mut alice, notices) = field
        .server
        .connector()
        .connect_listening("alice", "postgres");
    run(
        &mut alice,
        "SELECT pg_background_queue_enqueue('SELECT 1', 'her own')",
    );
    for view in ["pg_background_tasks", "pg_background_queue_stats"] {
        notices.lock().expect("no panic").clear();
        run(
            &mut alice,
            &format!("SELECT * FROM {view} WHERE leaky.look(topic)"),
        );
        let told = notices.lock().expect("no panic").join("\n");
        assert!(told.contains("looked at her own"), "{view}: {told}");
    }
    field.survive();
    field.end();
}
