//! Together with pg_cron, where the server has it.

use std::io::Write;
use std::time::{Duration, SystemTime};

use crate::harness::{
    Server, create_role, run, scalar, task, wait_for, wait_for_launcher, wait_quiet, worker_count,
};

/// Without intervals in seconds, which came with 1.5, a job runs at the next full minute.
const NEXT_MINUTE: Duration = Duration::from_secs(150);

#[test]
fn scheduled_calls_start_workers_and_enqueue_tasks() {
    let has_seconds: Option<bool> = Server::start_default()
        .superuser()
        .query_opt(
            "SELECT string_to_array(substring(default_version FROM '^[0-9]+[.][0-9]+'), '.')::int[] >= '{1,5}' \
             FROM pg_available_extensions WHERE name = 'pg_cron'",
            &[],
        )
        .expect("the extensions")
        .map(|row| row.get(0));
    let Some(has_seconds) = has_seconds else {
        // past the capture of a test's output
        let _ = writeln!(
            std::io::stderr(),
            "skipped, for this server has no pg_cron: pg_cron::scheduled_calls_start_workers_and_enqueue_tasks"
        );
        return;
    };
    let schedule = if has_seconds {
        "2 seconds"
    } else {
        "* * * * *"
    };

    let server = Server::builder()
        .preload_library("pg_cron, pg_background_queue")
        .conf("max_worker_processes", "16")
        .conf("pg_background_queue.max_parallel_running_tasks_count", "2")
        // The harness has no TCP port, which its jobs would connect to.
        .conf("cron.use_background_workers", "on")
        .start();
    let mut client = server.superuser();
    create_role(&mut client, "alice");
    run(
        &mut client,
        "CREATE EXTENSION pg_cron; GRANT USAGE ON SCHEMA cron TO alice; \
         CREATE TABLE visits (who name); GRANT INSERT ON visits TO alice",
    );
    // A task of which nobody has been told.
    let unannounced: i64 = scalar(
        &mut client,
        "INSERT INTO pg_background_tasks (sql_statement, role_oid, role_name, origin, search_path) \
         VALUES ('SELECT 1', current_user::regrole, current_user, pg_background_queue_origin(), 'public') \
         RETURNING id",
        &[],
    );
    let launcher = wait_for_launcher(&mut client, 0);
    wait_quiet(launcher);
    assert_eq!(task(&mut client, unannounced).state, "pending");
    assert_eq!(worker_count(&mut client), 0);

    let ensure: i64 = scalar(
        &mut client,
        "SELECT cron.schedule('ensure', $1, 'SELECT pg_background_queue_ensure_workers()')",
        &[&schedule],
    );
    let mut alice = server.connect("alice", "postgres");
    let enqueue: i64 = scalar(
        &mut alice,
        "SELECT cron.schedule('enqueue', $1, \
         $$SELECT pg_background_queue_enqueue('INSERT INTO visits VALUES (current_user)', 'scheduled')$$)",
        &[&schedule],
    );

    let mut ran = |job: i64| -> SystemTime {
        wait_for(&format!("job {job} to have run"), NEXT_MINUTE, || {
            let row = client
                .query_opt(
                    "SELECT status, return_message, start_time FROM cron.job_run_details \
                     WHERE jobid = $1 AND status IN ('succeeded', 'failed') ORDER BY runid LIMIT 1",
                    &[&job],
                )
                .expect("the job's runs")?;
            let (status, message): (String, Option<String>) = (row.get(0), row.get(1));
            assert_eq!(status, "succeeded", "{message:?}");
            Some(row.get(2))
        })
    };
    let ensured = ran(ensure);
    ran(enqueue);
    let started = wait_for("the task to start", NEXT_MINUTE, || {
        let now = task(&mut client, unannounced);
        now.closed_at.and(now.started_at)
    });
    assert!(started >= ensured, "it ran without the scheduled call");
    wait_for("alice's task to have run", NEXT_MINUTE, || {
        let done: bool = scalar(
            &mut client,
            "SELECT EXISTS (SELECT FROM visits WHERE who = 'alice') AND EXISTS (SELECT FROM pg_background_tasks \
             WHERE topic = 'scheduled' AND role_name = 'alice' AND state = 'finished')",
            &[],
        );
        done.then_some(())
    });
}
