//! Without `shared_preload_libraries` there is no queue, and each function says what is missing.

use postgres::error::SqlState;

use crate::harness::{Server, create_role, enqueue, run, scalar, tasks, wait_state, workers};

/// A call of each function, with and without arguments that would be errors.
const CALLS: &[&str] = &[
    "SELECT pg_background_queue_enqueue('SELECT 1')",
    "SELECT pg_background_queue_enqueue('SELECT 1', 'topic')",
    "SELECT pg_background_queue_enqueue(NULL)",
    "SELECT pg_background_enqueue('SELECT 1')",
    "SELECT pg_background_enqueue('')",
    "SELECT pg_background_queue_delete('{1}')",
    "SELECT pg_background_queue_delete(NULL)",
    "SELECT pg_background_queue_release()",
    "SELECT pg_background_queue_release('{1}')",
    "SELECT pg_background_queue_cancel(1)",
    "SELECT pg_background_queue_cancel(NULL)",
    "SELECT pg_background_queue_retry(1)",
    "SELECT pg_background_queue_retry(NULL)",
    "SELECT * FROM pg_background_queue_worker_slots()",
    "SELECT * FROM pg_background_queue_workers",
    "SELECT pg_background_queue_ensure_workers()",
    "SELECT pg_background_queue_active_workers_count()",
    "SELECT pg_background_queue_calibrate_workers_count()",
];

#[test]
fn every_function_names_the_setting_that_is_missing() {
    // starts it with CREATE EXTENSION
    let server = Server::builder().preload(false).start();
    let mut client = server.superuser();
    let functions: i64 = scalar(
        &mut client,
        "SELECT count(*) FROM pg_proc WHERE probin LIKE '%pg_background_queue'",
        &[],
    );
    let called = |name: &str| CALLS.iter().any(|call| call.contains(&format!("{name}(")));
    for row in client
        .query(
            "SELECT proname::text FROM pg_proc WHERE probin LIKE '%pg_background_queue'",
            &[],
        )
        .unwrap()
    {
        // what the table's policy asks works without the queue, too
        let name: String = row.get(0);
        assert!(
            called(&name) || name == "pg_background_queue_origin",
            "{name}"
        );
    }
    assert_eq!(functions, 11);

    // also of a session that has not loaded the library before
    for call in CALLS {
        for client in [&mut server.superuser(), &mut client] {
            let error = client.query(*call, &[]).expect_err(call);
            let error = error.as_db_error().expect(call);
            assert_eq!(
                error.code(),
                &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                "{call}: {error:?}"
            );
            let hint = error.hint().unwrap_or("");
            assert!(
                hint.contains("shared_preload_libraries"),
                "{call}: {error:?}"
            );
        }
    }
    assert!(tasks(&mut client).is_empty());
    assert!(workers(&mut client).is_empty());
}

#[test]
fn once_it_is_preloaded_what_was_created_before_works() {
    let mut server = Server::builder().preload(false).start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    run(
        &mut client,
        "CREATE SCHEMA x; DROP EXTENSION pg_background_queue; CREATE EXTENSION pg_background_queue SCHEMA x",
    );
    run(
        &mut client,
        "DROP EXTENSION pg_background_queue; CREATE EXTENSION pg_background_queue",
    );
    let refused = client.query("SELECT pg_background_queue_enqueue('SELECT 1')", &[]);
    assert!(refused.is_err());
    drop(client);

    server.set_conf("shared_preload_libraries", "pg_background_queue");
    server.restart();
    let mut client = server.superuser();
    let id = enqueue(&mut client, "CREATE TABLE effects ()");
    wait_state(&mut client, id, "finished");
}

#[test]
fn loading_the_library_later_changes_nothing() {
    let server = Server::builder().preload(false).start();
    let mut client = server.superuser();
    run(&mut client, "LOAD 'pg_background_queue'");
    let call = "SELECT pg_background_queue_enqueue('SELECT 1')";
    let error = client.query(call, &[]).expect_err(call);
    let hint = error.as_db_error().unwrap().hint().unwrap_or("");
    assert!(hint.contains("shared_preload_libraries"), "{error:?}");
    // the settings are known from then on, and still nobody's but the configuration file's
    let setting: String = scalar(
        &mut client,
        "SELECT current_setting('pg_background_queue.retry_count')",
        &[],
    );
    assert_eq!(setting, "0");
    let set = client.batch_execute("SET pg_background_queue.retry_count = 1");
    assert!(set.is_err());
    // an ALTER ROLE SET that could be made before it was loaded does not take the session down
    let mut client = server.superuser();
    run(
        &mut client,
        "SET pg_background_queue.retry_count = 'not a number'",
    );
    let error = client.query(call, &[]).expect_err(call);
    assert!(error.as_db_error().is_some(), "{error:?}");
    let alive: i32 = scalar(&mut client, "SELECT 1", &[]);
    assert_eq!(alive, 1);
}
