//! Processes: their own that tasks may end, and floods that would keep the others busy.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use postgres::Client;

use super::Field;
use crate::harness::{
    PATIENCE, create_role, enqueue, launcher_pid, run, scalar, wait_closed, wait_for, wait_state,
};

#[test]
fn a_task_may_end_its_own_process_and_those_of_its_role_and_no_other() {
    let mut field = Field::new(2);
    let launcher = launcher_pid(&mut field.client);
    for _ in 0..5 {
        let id = enqueue(
            &mut field.alice,
            "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(60)",
        );
        let next = enqueue(&mut field.alice, "SELECT 1");
        let task = wait_closed(&mut field.client, id);
        assert_eq!((task.state.as_str(), task.attempt), ("failed", 1));
        assert!(task.errors().starts_with("57P01"), "{task:?}");
        wait_state(&mut field.client, next, "finished");
    }
    // all that it may end, its sessions included: so she enqueues by one that she does not own
    let mut other = field.server.superuser();
    run(&mut other, "SET ROLE alice");
    for function in ["pg_cancel_backend", "pg_terminate_backend"] {
        let id = enqueue(
            &mut other,
            &format!(
                "DO $$DECLARE p int; BEGIN FOR p IN SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() LOOP \
                 BEGIN PERFORM {function}(p); EXCEPTION WHEN insufficient_privilege THEN NULL; END; END LOOP; END$$"
            ),
        );
        wait_state(&mut field.client, id, "finished");
    }
    field.alice = field.server.connect("alice", "postgres");
    assert_eq!(launcher_pid(&mut field.client), launcher);
    field.survive();
    field.end();
}

/// Has the attacker's tasks enqueue themselves twice each, with the best priority that there is, until there are many.
fn multiply(field: &mut Field) {
    run(
        &mut field.client,
        "CREATE FUNCTION public.multiply() RETURNS void LANGUAGE plpgsql AS \
            $$BEGIN PERFORM pg_background_queue_enqueue('SELECT public.multiply()', priority => -2147483648) \
                FROM generate_series(1, 2); END$$",
    );
    enqueue(&mut field.alice, "SELECT public.multiply()");
    wait_for("a crowd", PATIENCE, || {
        let crowd: i64 = scalar(
            &mut field.client,
            "SELECT count(*) FROM pg_background_tasks",
            &[],
        );
        (crowd > 200).then_some(())
    });
}

/// Tasks of the same priority run; one that is worse waits, as documented.
fn tasks_run_beside_the_crowd(session: &mut Client) {
    for _ in 0..3 {
        let id: i64 = scalar(
            session,
            "SELECT pg_background_queue_enqueue('SELECT 1', priority => -2147483648)",
            &[],
        );
        wait_state(session, id, "finished");
    }
}

/// To take the right to enqueue away ends it.
fn end_the_crowd(mut field: Field) {
    let right = "EXECUTE ON FUNCTION pg_background_queue_enqueue";
    run(&mut field.client, &format!("REVOKE {right} FROM alice"));
    wait_for("the crowd to be gone", PATIENCE * 2, || {
        let open: i64 = scalar(
            &mut field.client,
            "SELECT count(*) FROM pg_background_tasks WHERE role_name = 'alice' AND closed_at IS NULL",
            &[],
        );
        (open == 0).then_some(())
    });
    let others: i64 = scalar(
        &mut field.client,
        "SELECT count(*) FROM pg_background_tasks WHERE role_name = 'alice' AND state = 'failed' AND errors NOT LIKE '42501%'",
        &[],
    );
    assert_eq!(others, 0);
    run(&mut field.client, &format!("GRANT {right} TO alice"));
    field.survive();
    field.end();
}

#[test]
fn a_task_that_multiplies_keeps_no_other_role_waiting() {
    let mut field = Field::new(2);
    multiply(&mut field);
    create_role(&mut field.client, "carol");
    tasks_run_beside_the_crowd(&mut field.server.connect("carol", "postgres"));
    end_the_crowd(field);
}

/// The victim has a worker already, which is busy for long: that one does not make its other tasks wait for the crowd's end.
#[test]
fn a_task_that_multiplies_keeps_no_role_with_a_long_task_waiting() {
    let mut field = Field::new(2);
    multiply(&mut field);
    tasks_run_beside_the_crowd(&mut field.bob);
    end_the_crowd(field);
}

/// Functions that anybody may call have the launcher and keepers at work. The victim's tasks still run.
#[test]
fn a_flood_of_calls_that_anybody_may_make_keeps_nobody_waiting() {
    let mut field = Field::new(2);
    run(&mut field.client, "CREATE ROLE carol LOGIN");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for call in [
            "pg_background_queue_ensure_workers()",
            "pg_background_queue_active_workers_count()",
            "count(*) FROM pg_background_queue_workers",
            "pg_background_queue_delete('{1,2,3,4}')",
            "pg_background_queue_cancel(4)",
        ] {
            let connector = field.server.connector();
            let over = &over;
            scope.spawn(move || {
                let mut carol = connector.connect("carol", "postgres");
                while !over.load(Ordering::Relaxed) {
                    run(&mut carol, &format!("SELECT {call}"));
                }
            });
        }
        let done = thread::scope(|inner| {
            // a panic must end the flood, too
            inner
                .spawn(|| {
                    for _ in 0..20 {
                        let id = enqueue(&mut field.bob, "SELECT 1");
                        wait_state(&mut field.bob, id, "finished");
                    }
                })
                .join()
        });
        over.store(true, Ordering::Relaxed);
        done.expect("the victim's tasks run");
    });
    field.survive();
    field.end();
}

#[test]
fn a_flood_of_notifications_and_messages_is_the_tasks_own() {
    let mut field = Field::new(1);
    let id = enqueue(
        &mut field.alice,
        "SELECT pg_notify('channel' || n % 100, repeat('x', 1000) || n) FROM generate_series(1, 5000) AS n",
    );
    wait_state(&mut field.client, id, "finished");
    let id = enqueue(
        &mut field.alice,
        "DO $$BEGIN FOR i IN 1..50 LOOP NOTIFY x; COMMIT; PERFORM txid_current(); COMMIT; END LOOP; END$$",
    );
    wait_state(&mut field.client, id, "finished");
    field.survive();
    field.end();
}
