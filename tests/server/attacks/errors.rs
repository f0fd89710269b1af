//! Errors that mean something to the queue, raised by a task; and errors of odd shapes.

use super::{Attack, Either, Fails, FailsEither, Field, Finished};
use crate::harness::{enqueue, wait_closed};

/// SQLSTATEs of conflicts, cancels, shutdowns and missing tables. Raised by a task they are that task's failure, once.
const STATES: &[&str] = &[
    "40001", "40P01", "57014", "57P01", "57P02", "57P03", "57P04", "57P05", "55P03", "42P01",
    "55000", "25P02", "25P04", "53000", "53100", "53200", "53300", "54001", "08006", "28000",
    "3D000", "42704", "42703", "P0004", "XX000", "XX001", "XX002", "02000", "01000",
];

#[test]
fn no_error_that_a_task_raises_is_taken_for_the_queues_own() {
    let mut field = Field::new(1);
    // raised while it runs, and when it commits, after the row was marked
    let prepare = enqueue(
        &mut field.alice,
        "CREATE TABLE public.late (state text); \
         CREATE FUNCTION public.late() RETURNS trigger LANGUAGE plpgsql AS \
            $$BEGIN RAISE EXCEPTION USING ERRCODE = NEW.state, MESSAGE = 'late'; END$$; \
         CREATE CONSTRAINT TRIGGER late AFTER INSERT ON public.late DEFERRABLE INITIALLY DEFERRED \
            FOR EACH ROW EXECUTE FUNCTION public.late()",
    );
    let task = wait_closed(&mut field.client, prepare);
    assert_eq!(task.state, "finished", "{}", task.errors());
    let ids: Vec<(i64, &str)> = STATES
        .iter()
        .flat_map(|state| {
            [
                format!(
                    "DO $$BEGIN RAISE EXCEPTION USING ERRCODE = '{state}', MESSAGE = 'early'; END$$"
                ),
                format!("INSERT INTO public.late VALUES ('{state}')"),
            ]
            .map(|sql| (enqueue(&mut field.alice, &sql), *state))
        })
        .collect();
    for (id, state) in ids {
        let task = wait_closed(&mut field.client, id);
        assert_eq!(
            (task.state.as_str(), task.attempt, task.interruptions),
            ("failed", 1, 0),
            "{state}"
        );
        let expected = [format!("{state}: early"), format!("{state}: late")];
        assert!(
            expected
                .iter()
                .any(|start| task.errors().starts_with(start)),
            "{state}: {}",
            task.errors()
        );
    }
    field.survive();
    field.end();
}

const ODD: &[Attack] = &[
    (
        "a state that means success",
        "DO $$BEGIN RAISE EXCEPTION USING ERRCODE = '00000', MESSAGE = 'x'; END$$",
        Fails(""),
    ),
    (
        "no message",
        "DO $$BEGIN RAISE EXCEPTION USING MESSAGE = NULL; END$$",
        Fails("22004"),
    ),
    (
        "an empty message",
        "DO $$BEGIN RAISE EXCEPTION USING MESSAGE = '', DETAIL = '', HINT = ''; END$$",
        Fails("P0001"),
    ),
    (
        "directives of printf",
        "DO $$BEGIN RAISE EXCEPTION USING MESSAGE = '%s%n%x', DETAIL = '%n', HINT = '%s', COLUMN = '%n', TABLE = '%s'; END$$",
        Fails("P0001: %s%n%x"),
    ),
    (
        "a message like the queue's own entries",
        r"DO $$BEGIN RAISE EXCEPTION USING MESSAGE = E'x\n57P01: the background worker that ran this task was terminated'; END$$",
        Fails("P0001: x"),
    ),
    (
        "an error in the handler of an error in the handler of an error",
        "DO $$BEGIN RAISE 'a'; EXCEPTION WHEN OTHERS THEN BEGIN RAISE 'b'; EXCEPTION WHEN OTHERS THEN RAISE SQLSTATE '22012'; END; END$$",
        Fails("22012"),
    ),
    (
        "thirty thousand subtransactions with errors",
        "DO $$BEGIN FOR i IN 1..30000 LOOP BEGIN PERFORM 1/0; EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END$$",
        Finished,
    ),
    (
        "errors until the stack is full",
        "CREATE FUNCTION public.down(n int) RETURNS int LANGUAGE plpgsql AS \
            $$BEGIN BEGIN RETURN public.down(n + 1); EXCEPTION WHEN division_by_zero THEN RETURN n; END; END$$; \
         SELECT public.down(0)",
        Fails("54001"),
    ),
    (
        "more memory than there may be in one piece",
        "SELECT repeat('x', 1 << 30)",
        // in 13 repeat() itself sees only half of it
        FailsEither("54000", "XX000"),
    ),
    (
        "warnings by the thousand",
        "DO $$BEGIN FOR i IN 1..2000 LOOP RAISE NOTICE 'x'; RAISE INFO 'x'; END LOOP; END$$",
        Finished,
    ),
    (
        "an error that is caught after it was cancelled",
        "DO $$BEGIN PERFORM pg_cancel_backend(pg_backend_pid()), pg_sleep(10); EXCEPTION WHEN query_canceled THEN NULL; END$$",
        Finished,
    ),
    (
        "a cancel request that nothing has taken yet",
        "SELECT pg_cancel_backend(pg_backend_pid())",
        Either("57014"),
    ),
];

#[test]
fn errors_of_odd_shapes_are_noted_as_any() {
    let mut field = Field::new(1);
    field.attack(ODD);
    // bounded, whatever part of it is long
    for part in ["MESSAGE", "DETAIL", "HINT"] {
        let sql = format!(
            "DO $$BEGIN RAISE EXCEPTION USING MESSAGE = 'x', {part} = repeat('y', 20000000); END$$"
        );
        let sql = sql.replace("MESSAGE = 'x', MESSAGE", "MESSAGE");
        let id = enqueue(&mut field.alice, &sql);
        let task = wait_closed(&mut field.client, id);
        assert_eq!(task.state, "failed");
        assert!(
            (1000..40_000).contains(&task.errors().len()),
            "{part}: {} bytes",
            task.errors().len()
        );
    }
    field.survive();
    field.end();
}
