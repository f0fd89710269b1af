//! The queue as its users see it: enqueue, look at a task, wait for it, see the processes.

use std::time::{Duration, Instant, SystemTime};

use postgres::types::{FromSqlOwned, ToSql};
use postgres::{Client, GenericClient, Row};

use super::server::Server;
use super::wait::{PATIENCE, wait_for};

/// A row of `pg_background_tasks`, without the statement.
#[derive(Debug, Clone)]
pub struct Task {
    pub id: i64,
    pub topic: Option<String>,
    pub joined_at: SystemTime,
    pub started_at: Option<SystemTime>,
    pub closed_at: Option<SystemTime>,
    pub priority: i32,
    pub state: String,
    pub retry_count: i32,
    pub retry_delay_in_sec: Option<i32>,
    pub errors: Option<String>,
    pub role_oid: Option<u32>,
    pub role_name: Option<String>,
    pub origin: Option<String>,
    pub search_path: Option<String>,
    pub attempt: i32,
    pub due_at: Option<SystemTime>,
    pub max_retries: Option<i32>,
    pub interruptions: i32,
    pub held: bool,
}

impl Task {
    /// What stands in `errors`, "" for nothing.
    pub fn errors(&self) -> &str {
        self.errors.as_deref().unwrap_or("")
    }

    /// Whether the state is a final one.
    pub fn is_closed(&self) -> bool {
        matches!(self.state.as_str(), "failed" | "finished" | "cancelled")
    }
}

/// Text columns travel as bytes: the odd bytes that a SQL_ASCII database may hold would make the
/// server refuse to send them as text to a client that speaks UTF-8.
const TASK: &str = "SELECT id, joined_at, started_at, closed_at, priority, state::text, \
     coalesce(retry_count, 0) AS retry_count, retry_delay_in_sec, role_oid, role_name::text, origin, \
     search_path, coalesce(attempt, 0) AS attempt, due_at, max_retries, \
     coalesce(interruptions, 0) AS interruptions, coalesce(held, false) AS held, \
     convert_to(topic, e) AS topic, convert_to(errors, e) AS errors \
     FROM pg_background_tasks, \
     (SELECT CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END AS e) AS encoding";

fn from_row(row: &Row) -> Task {
    let text = |name: &str| {
        row.get::<_, Option<Vec<u8>>>(name)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    Task {
        id: row.get("id"),
        topic: text("topic"),
        joined_at: row.get("joined_at"),
        started_at: row.get("started_at"),
        closed_at: row.get("closed_at"),
        priority: row.get("priority"),
        state: row.get("state"),
        retry_count: row.get("retry_count"),
        retry_delay_in_sec: row.get("retry_delay_in_sec"),
        errors: text("errors"),
        role_oid: row.get("role_oid"),
        role_name: row.get("role_name"),
        origin: row.get("origin"),
        search_path: row.get("search_path"),
        attempt: row.get("attempt"),
        due_at: row.get("due_at"),
        max_retries: row.get("max_retries"),
        interruptions: row.get("interruptions"),
        held: row.get("held"),
    }
}

/// One value from a query of one row.
#[track_caller]
pub fn scalar<T: FromSqlOwned>(
    client: &mut impl GenericClient,
    query: &str,
    params: &[&(dyn ToSql + Sync)],
) -> T {
    match client.query_one(query, params) {
        Ok(row) => row.get(0),
        Err(error) => panic!("{query}: {}", explain(&error)),
    }
}

/// Runs statements whose results nobody wants.
#[track_caller]
pub fn run(client: &mut impl GenericClient, sql: &str) {
    if let Err(error) = client.batch_execute(sql) {
        panic!("{sql}: {}", explain(&error));
    }
}

/// An error with what the server said; `Display` of the crate's error hides it.
fn explain(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} {}", db.code().code(), db.message()),
        None => error.to_string(),
    }
}

/// Enqueues `sql` and returns the task's id. Works on a client and inside a transaction.
#[track_caller]
pub fn enqueue(client: &mut impl GenericClient, sql: &str) -> i64 {
    scalar(client, "SELECT pg_background_queue_enqueue($1)", &[&sql])
}

/// Enqueues `sql` under a topic.
#[track_caller]
pub fn enqueue_topic(client: &mut impl GenericClient, sql: &str, topic: &str) -> i64 {
    scalar(
        client,
        "SELECT pg_background_queue_enqueue($1, $2)",
        &[&sql, &topic],
    )
}

/// Enqueues `sql` with these further arguments, as they stand in the call.
#[track_caller]
pub fn enqueue_with(client: &mut impl GenericClient, sql: &str, arguments: &str) -> i64 {
    let query = format!("SELECT pg_background_queue_enqueue($1, {arguments})");
    scalar(client, &query, &[&sql])
}

/// The task's row.
///
/// # Panics
/// When there is none that this client may see.
#[track_caller]
pub fn task(client: &mut impl GenericClient, id: i64) -> Task {
    match client.query_opt(&format!("{TASK} WHERE id = $1"), &[&id]) {
        Ok(Some(row)) => from_row(&row),
        Ok(None) => panic!("there is no task {id}"),
        Err(error) => panic!("task {id}: {}", explain(&error)),
    }
}

/// All tasks that this client may see, by id.
#[track_caller]
pub fn tasks(client: &mut impl GenericClient) -> Vec<Task> {
    match client.query(&format!("{TASK} ORDER BY id"), &[]) {
        Ok(rows) => rows.iter().map(from_row).collect(),
        Err(error) => panic!("tasks: {}", explain(&error)),
    }
}

/// How many tasks are in each state, by state, e.g. `finished: 3, failed: 1`; "" for no task.
pub fn states(client: &mut impl GenericClient) -> String {
    scalar(
        client,
        "SELECT coalesce(string_agg(state || ': ' || n, ', ' ORDER BY n DESC, state), '') \
         FROM (SELECT state::text, count(*) AS n FROM pg_background_tasks GROUP BY 1) AS counts",
        &[],
    )
}

/// How many tasks of this database are marked running now.
pub fn running_count(client: &mut impl GenericClient) -> i64 {
    scalar(
        client,
        "SELECT count(*) FROM pg_background_tasks WHERE state = 'running'",
        &[],
    )
}

/// Waits until the task is in `state`, and returns it.
///
/// # Panics
/// As soon as the task has ended in another state, with its errors; or when patience is out.
#[track_caller]
pub fn wait_state(client: &mut impl GenericClient, id: i64, state: &str) -> Task {
    let what = format!("task {id} to be {state}");
    let begin = Instant::now();
    wait_for(&what, PATIENCE * 2, || {
        let task = task(client, id);
        if task.state == state {
            return Some(task);
        }
        assert!(
            !task.is_closed(),
            "task {id} is {} instead of {state}; errors: {}",
            task.state,
            task.errors()
        );
        // Here rather than by wait_for, to say more.
        assert!(
            begin.elapsed() < PATIENCE,
            "waited in vain for {what}: {task:?}"
        );
        None
    })
}

/// Waits until the task has ended, in whatever state, and returns it.
#[track_caller]
pub fn wait_closed(client: &mut impl GenericClient, id: i64) -> Task {
    wait_for(&format!("task {id} to end"), PATIENCE, || {
        let task = task(client, id);
        task.is_closed().then_some(task)
    })
}

/// Waits until every task of this database has ended.
///
/// # Panics
/// When `deadline` has passed, with the number of tasks in each state.
#[track_caller]
pub fn wait_all_closed(client: &mut impl GenericClient, deadline: Duration) {
    let begin = Instant::now();
    wait_for("all tasks to end", deadline * 2, || {
        let open: i64 = scalar(
            client,
            "SELECT count(*) FROM pg_background_tasks WHERE state IN ('pending', 'running', 'retrying')",
            &[],
        );
        if open == 0 {
            return Some(());
        }
        assert!(
            begin.elapsed() < deadline,
            "{open} tasks still open after {deadline:?} ({})",
            states(client)
        );
        None
    });
}

/// A process of the extension, from `pg_stat_activity`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    pub pid: i32,
    /// `launcher`, `worker` or `keeper`.
    pub kind: String,
    pub database: Option<String>,
    pub role: Option<String>,
    pub application_name: String,
    pub state: Option<String>,
    pub query: Option<String>,
    pub wait_event: Option<String>,
}

/// How many worker processes (not launcher or keeper) there are now.
pub fn worker_count(client: &mut impl GenericClient) -> usize {
    workers(client)
        .iter()
        .filter(|worker| worker.kind == "worker")
        .count()
}

/// All processes of the extension, by pid; ask as a superuser.
pub fn workers(client: &mut impl GenericClient) -> Vec<Worker> {
    client
        .query(
            "SELECT pid, replace(backend_type, 'pg_background_queue ', ''), datname::text, usename::text, \
             coalesce(application_name, ''), state, query, wait_event \
             FROM pg_stat_activity WHERE backend_type LIKE 'pg_background_queue%' ORDER BY pid",
            &[],
        )
        .expect("pg_stat_activity")
        .iter()
        .map(|row| Worker {
            pid: row.get(0),
            kind: row.get(1),
            database: row.get(2),
            role: row.get(3),
            application_name: row.get(4),
            state: row.get(5),
            query: row.get(6),
            wait_event: row.get(7),
        })
        .collect()
}

/// The launcher's pid, if there is one now.
pub fn launcher_pid(client: &mut impl GenericClient) -> Option<i32> {
    workers(client)
        .into_iter()
        .find(|worker| worker.kind == "launcher")
        .map(|worker| worker.pid)
}

/// Waits for a launcher other than `old` (0: any), and returns its pid.
#[track_caller]
pub fn wait_for_launcher(client: &mut impl GenericClient, old: i32) -> i32 {
    wait_for("a launcher", PATIENCE, || {
        launcher_pid(client).filter(|&pid| pid != old)
    })
}

/// Waits until there is no worker or keeper process.
#[track_caller]
pub fn wait_no_workers(client: &mut impl GenericClient, deadline: Duration) {
    wait_for("the workers to leave", deadline, || {
        workers(client)
            .iter()
            .all(|worker| worker.kind == "launcher")
            .then_some(())
    });
}

/// Creates a role that may log in and enqueue, and nothing else.
#[track_caller]
pub fn create_role(client: &mut impl GenericClient, name: &str) {
    run(
        client,
        &format!(
            "CREATE ROLE {name} LOGIN; \
             GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue, \
             pg_background_enqueue TO {name};"
        ),
    );
}

/// Scans and entries read of the two indexes that looks go through, when at least so many scans were told of.
pub fn index_reads(client: &mut impl GenericClient, least: i64) -> (i64, i64) {
    let mut last = (-1, -1);
    wait_for("the statistics", PATIENCE, || {
        // a worker tells when it becomes idle, and before 15 a process collects that
        std::thread::sleep(Duration::from_millis(1500));
        let row = client
            .query_one(
                "SELECT sum(idx_scan)::bigint, sum(idx_tup_read)::bigint FROM pg_stat_user_indexes \
                 WHERE indexrelname IN ('pg_background_tasks_queue_idx', 'pg_background_tasks_schedule_idx')",
                &[],
            )
            .expect("statistics");
        let now = (row.get(0), row.get(1));
        let settled = now == last && now.0 >= least;
        last = now;
        settled.then_some(now)
    })
}

/// Enqueues these texts in one transaction, so that a worker finds all of them.
#[track_caller]
pub fn enqueue_all(client: &mut Client, topic: &str, texts: &[impl AsRef<str>]) -> Vec<i64> {
    let mut transaction = client.transaction().expect("begin");
    let ids = texts
        .iter()
        .map(|text| enqueue_topic(&mut transaction, text.as_ref(), topic))
        .collect();
    transaction.commit().expect("commit");
    ids
}

/// Waits for the ends of these tasks; returns their states, in this order.
#[track_caller]
pub fn ends(client: &mut impl GenericClient, ids: &[i64]) -> Vec<String> {
    ids.iter()
        .map(|&id| wait_closed(client, id).state)
        .collect()
}

/// A session with a snapshot that keeps all that is deleted from now on.
pub fn old_snapshot(server: &Server) -> Client {
    let mut old = server.superuser();
    run(
        &mut old,
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class LIMIT 1",
    );
    old
}
