//! Copies do not act: a dump restored, a template copied, a cluster upgraded carry tasks of somewhere else, which wait until a superuser
//! releases them. A standby that is promoted is no copy but the same server.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use postgres::Client;
use postgres::error::SqlState;

use crate::harness::{
    PATIENCE, Server, Stop, enqueue, run, running_count, scalar, task, tasks, wait_for_launcher,
    wait_no_workers, wait_state, wait_until, workers,
};

const LIMIT: &str = "pg_background_queue.max_parallel_running_tasks_count";
const IDLE: &str = "pg_background_queue.worker_idle_timeout";

#[track_caller]
fn succeed(command: &mut Command) {
    let output = command.output().expect("run the program");
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A file next to the server's data, which its user may write.
fn beside(server: &Server, name: &str) -> PathBuf {
    server.data_dir().with_file_name(name)
}

/// What has been done, by whom and how often.
#[track_caller]
fn done(client: &mut Client) -> String {
    scalar(
        client,
        "SELECT coalesce(string_agg(what || ' ' || who, ', ' ORDER BY what, who), '') FROM done",
        &[],
    )
}

/// The state of each task, by id.
#[track_caller]
fn summary(client: &mut Client) -> String {
    let tasks = tasks(client);
    let states: Vec<&str> = tasks.iter().map(|task| task.state.as_str()).collect();
    states.join(" ")
}

/// Roles alice and bob.
#[track_caller]
fn create_roles(client: &mut Client) {
    run(client, "CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN");
}

/// Leaves tasks in all states in `database`: 1 to 7 as in [`SUMMARY`]; 5 is alice's and 6 is bob's. Then the queue is paused.
#[track_caller]
fn fill(server: &Server, database: &str) {
    let mut client = server.connect("postgres", database);
    run(
        &mut client,
        "CREATE TABLE done (what text, who text DEFAULT current_user); GRANT ALL ON done TO PUBLIC; \
         CREATE TABLE ready (); CREATE TABLE slow (); INSERT INTO slow DEFAULT VALUES; \
         GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO alice, bob",
    );
    let id = enqueue(&mut client, "INSERT INTO done VALUES ('finished')");
    wait_state(&mut client, id, "finished");
    let id = enqueue(&mut client, "SELECT 1/0");
    wait_state(&mut client, id, "failed");
    let id = enqueue(
        &mut client,
        "INSERT INTO done VALUES ('running'); SELECT pg_sleep(3600) FROM slow",
    );
    wait_state(&mut client, id, "running");
    let id: i64 = scalar(
        &mut client,
        "SELECT pg_background_queue_enqueue( \
         'SELECT 1 / count(*) FROM ready; INSERT INTO done VALUES (''retrying'')', retry_count => 30)",
        &[],
    );
    wait_state(&mut client, id, "retrying");
    server.set_and_reload(LIMIT, "0");
    for role in ["alice", "bob"] {
        enqueue(
            &mut server.connect(role, database),
            "INSERT INTO done VALUES ('pending')",
        );
    }
    let id = enqueue(&mut client, "INSERT INTO done VALUES ('cancelled')");
    let was_cancelled: bool = scalar(&mut client, "SELECT pg_background_queue_cancel($1)", &[&id]);
    assert!(was_cancelled);
    assert_eq!(summary(&mut client), SUMMARY);
}

const SUMMARY: &str = "finished failed running retrying pending pending cancelled";

/// What [`fill`] has done itself, and what it leaves to be done.
const BEFORE: &str = "finished postgres";
const AFTER: &str =
    "finished postgres, pending alice, pending bob, retrying postgres, running postgres";

/// In the copy: nothing of the original has run, and new tasks do; released, each runs once.
#[track_caller]
fn check_copy(client: &mut Client) {
    run(client, "TRUNCATE slow; INSERT INTO ready DEFAULT VALUES");
    let new = enqueue(client, "SELECT 1");
    assert_eq!(new, 8);
    wait_state(client, new, "finished");
    // a worker of each role has been there, and has passed the others by
    for role in ["alice", "bob"] {
        run(client, &format!("SET ROLE {role}"));
        let id = enqueue(client, "SELECT 1");
        run(client, "RESET ROLE");
        wait_state(client, id, "finished");
    }
    assert_eq!(done(client), BEFORE);
    let before = tasks(client);
    for task in &before {
        assert!(task.is_closed() || (1..=7).contains(&task.id), "{task:?}");
    }

    let released: i64 = scalar(client, "SELECT pg_background_queue_release()", &[]);
    assert_eq!(released, 4);
    for id in [3, 4, 5, 6] {
        let task = wait_state(client, id, "finished");
        assert!(!task.held, "{task:?}");
    }
    assert_eq!(done(client), AFTER);
    assert_eq!(task(client, 2).state, "failed");
    assert_eq!(task(client, 7).state, "cancelled");
    let released: i64 = scalar(client, "SELECT pg_background_queue_release()", &[]);
    assert_eq!(released, 0);
}

/// A server of another initdb: all others are copies of one, and so the same to themselves.
#[track_caller]
pub fn elsewhere() -> Server {
    Server::builder()
        .no_extension()
        .initdb_arg("--no-clean")
        .start()
}

#[track_caller]
fn dump(server: &Server, database: &str) -> PathBuf {
    let file = beside(server, "dump");
    succeed(
        server
            .tool("pg_dump")
            .arg("-Fc")
            .arg("-f")
            .arg(&file)
            .arg(database),
    );
    file
}

#[test]
fn a_dump_restored_beside_the_original_waits_for_its_release() {
    let server = Server::start_default();
    let mut client = server.superuser();
    create_roles(&mut client);
    fill(&server, "postgres");
    let dump = dump(&server, "postgres");
    run(&mut client, "CREATE DATABASE copy");
    succeed(server.tool("pg_restore").args(["-d", "copy"]).arg(&dump));
    let mut copy = server.connect("postgres", "copy");
    assert_eq!(summary(&mut copy), SUMMARY);
    let of = |client: &mut Client| -> String {
        scalar(
            client,
            "SELECT string_agg(t::text, E'\n' ORDER BY id) FROM pg_background_tasks AS t",
            &[],
        )
    };
    assert_eq!(of(&mut client), of(&mut copy));
    // the running one is not in its way
    server.set_and_reload(LIMIT, "6");
    check_copy(&mut copy);
    for id in [5, 6] {
        wait_state(&mut client, id, "finished");
    }
    assert_eq!(
        done(&mut client),
        "finished postgres, pending alice, pending bob"
    );
}

#[test]
fn held_tasks_of_a_restored_dump_show_it() {
    let mut server = Server::start_default();
    let mut client = server.superuser();
    create_roles(&mut client);
    fill(&server, "postgres");
    let dump = dump(&server, "postgres");
    run(&mut client, "CREATE DATABASE copy");
    succeed(server.tool("pg_restore").args(["-d", "copy"]).arg(&dump));
    server.restart();
    let mut copy = server.connect("postgres", "copy");
    wait_until("tasks to be held", || {
        tasks(&mut copy).iter().filter(|task| task.held).count() == 4
    });
    assert_eq!(summary(&mut copy), SUMMARY.replace("running", "pending"));
    server.set_and_reload(LIMIT, "6");
    check_copy(&mut copy);
}

#[test]
fn roles_of_a_dump_are_found_by_name_in_another_server() {
    let server = Server::builder().no_extension().start();
    let mut client = server.superuser();
    create_roles(&mut client);
    run(&mut client, "CREATE EXTENSION pg_background_queue");
    fill(&server, "postgres");
    let dump = dump(&server, "postgres");

    let other = elsewhere();
    let mut there = other.superuser();
    // mallory gets the OID that alice has in the other server
    run(
        &mut there,
        "CREATE ROLE mallory LOGIN; CREATE ROLE filler; DROP ROLE filler; CREATE ROLE alice LOGIN",
    );
    let oid = |client: &mut Client, role: &str| -> u32 {
        scalar(
            client,
            "SELECT oid FROM pg_roles WHERE rolname = $1::text",
            &[&role],
        )
    };
    assert_eq!(oid(&mut client, "alice"), oid(&mut there, "mallory"));
    // without bob: his grant fails, as with any table
    let dump_there = beside(&other, "dump");
    fs::copy(&dump, &dump_there).unwrap();
    let _ = other
        .tool("pg_restore")
        .args(["-d", "postgres"])
        .arg(&dump_there)
        .output()
        .unwrap();
    assert_eq!(summary(&mut there), SUMMARY);
    run(
        &mut there,
        "TRUNCATE slow; INSERT INTO ready DEFAULT VALUES; \
        GRANT EXECUTE ON FUNCTION pg_background_queue_enqueue TO mallory, alice",
    );

    let mut mallory = other.connect("mallory", "postgres");
    let id = enqueue(&mut mallory, "INSERT INTO done VALUES ('new')");
    assert_eq!(id, 8);
    wait_state(&mut mallory, id, "finished");
    let seen: Vec<i64> = tasks(&mut mallory).iter().map(|task| task.id).collect();
    assert_eq!(seen, [id]);
    let cancelled: bool = scalar(&mut mallory, "SELECT pg_background_queue_cancel(5)", &[]);
    assert!(!cancelled);
    assert_eq!(done(&mut there), "finished postgres, new mallory");

    let released: i64 = scalar(&mut there, "SELECT pg_background_queue_release()", &[]);
    assert_eq!(released, 3);
    for id in [3, 4, 5] {
        wait_state(&mut there, id, "finished");
    }
    assert_eq!(task(&mut there, 5).role_oid, Some(oid(&mut there, "alice")));
    let rest = "finished postgres, new mallory, pending alice, retrying postgres, running postgres";
    assert_eq!(done(&mut there), rest);
    // bob's waits until there is a bob
    assert_eq!(task(&mut there, 6).state, "pending");
    run(&mut there, "CREATE ROLE bob LOGIN");
    let released: i64 = scalar(&mut there, "SELECT pg_background_queue_release('{6}')", &[]);
    assert_eq!(released, 1);
    wait_state(&mut there, 6, "finished");
    let bobs: i64 = scalar(
        &mut there,
        "SELECT count(*) FROM done WHERE who = 'bob'",
        &[],
    );
    assert_eq!(bobs, 1);
}

/// Also the one that was running as the dump was made, in a server whose queue has been looked at before.
#[test]
fn tasks_of_a_copy_can_be_cancelled_instead() {
    let server = Server::start_default();
    create_roles(&mut server.superuser());
    fill(&server, "postgres");
    let dump = dump(&server, "postgres");

    let other = elsewhere();
    let mut there = other.superuser();
    create_roles(&mut there);
    run(&mut there, "CREATE EXTENSION pg_background_queue");
    let first = enqueue(&mut there, "SELECT 1");
    wait_state(&mut there, first, "finished");
    run(&mut there, "DROP EXTENSION pg_background_queue");
    let dump_there = beside(&other, "dump");
    fs::copy(&dump, &dump_there).unwrap();
    succeed(
        other
            .tool("pg_restore")
            .args(["-d", "postgres"])
            .arg(&dump_there),
    );
    for id in [3_i64, 4, 5] {
        let cancelled: bool = scalar(&mut there, "SELECT pg_background_queue_cancel($1)", &[&id]);
        assert!(cancelled, "{id}");
    }
    let states = "finished failed cancelled cancelled cancelled pending cancelled";
    assert_eq!(summary(&mut there), states);
    let released: i64 = scalar(&mut there, "SELECT pg_background_queue_release()", &[]);
    assert_eq!(released, 1);
    wait_state(&mut there, 6, "finished");
    assert_eq!(done(&mut there), "finished postgres, pending bob");
}

/// A schema of its own, text format, data apart from the schema, and a database that is dropped and restored under its name.
#[test]
fn a_dropped_database_that_is_restored_is_another_one() {
    let server = Server::builder().no_extension().conf(IDLE, "0").start();
    let mut client = server.superuser();
    create_roles(&mut client);
    run(&mut client, "CREATE DATABASE shop");
    let mut shop = server.connect("postgres", "shop");
    run(
        &mut shop,
        "CREATE SCHEMA \"my queue\"; CREATE EXTENSION pg_background_queue SCHEMA \"my queue\"; \
         ALTER DATABASE shop SET search_path = \"my queue\", public",
    );
    drop(shop);
    server.set_and_reload(LIMIT, "0");
    let mut shop = server.connect("postgres", "shop");
    run(
        &mut shop,
        "CREATE TABLE public.done (what text, who text DEFAULT current_user)",
    );
    for _ in 0..3 {
        enqueue(&mut shop, "INSERT INTO public.done VALUES ('pending')");
    }
    drop(shop);
    let file = beside(&server, "shop.sql");
    succeed(
        server
            .tool("pg_dump")
            .args(["-C", "-f"])
            .arg(&file)
            .arg("shop"),
    );
    run(&mut client, "DROP DATABASE shop");
    succeed(
        server
            .tool("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"])
            .arg(&file),
    );
    server.set_and_reload(LIMIT, "4");
    let mut shop = server.connect("postgres", "shop");
    let id = enqueue(&mut shop, "INSERT INTO public.done VALUES ('new')");
    assert_eq!(id, 4);
    wait_state(&mut shop, id, "finished");
    assert_eq!(done(&mut shop), "new postgres");
    let released: i64 = scalar(
        &mut shop,
        "SELECT pg_background_queue_release('{2, 3, 99}')",
        &[],
    );
    assert_eq!(released, 2);
    for id in [2, 3] {
        wait_state(&mut shop, id, "finished");
    }
    assert_eq!(task(&mut shop, 1).state, "pending");
    assert_eq!(
        done(&mut shop),
        "new postgres, pending postgres, pending postgres"
    );
}

#[test]
fn a_database_made_from_a_template_with_tasks_does_not_run_them() {
    let server = Server::builder().conf(IDLE, "0").start();
    let mut client = server.superuser();
    create_roles(&mut client);
    run(&mut client, "CREATE DATABASE original");
    let mut original = server.connect("postgres", "original");
    run(&mut original, "CREATE EXTENSION pg_background_queue");
    fill(&server, "original");
    // nobody may be connected to a template: the task that runs becomes a pending one
    run(
        &mut original,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE backend_type = 'pg_background_queue worker' AND datname = 'original'",
    );
    wait_state_of(&mut original, 3, "failed");
    let retried: bool = scalar(&mut original, "SELECT pg_background_queue_retry(3)", &[]);
    assert!(retried);
    drop(original);
    wait_no_workers(&mut client, PATIENCE);
    wait_until("CREATE DATABASE", || {
        client
            .batch_execute("CREATE DATABASE copy TEMPLATE original")
            .is_ok()
    });
    server.set_and_reload(LIMIT, "6");
    let mut original = server.connect("postgres", "original");
    for id in [5, 6] {
        wait_state(&mut original, id, "finished");
    }
    let mut copy = server.connect("postgres", "copy");
    check_copy(&mut copy);
    assert_eq!(
        done(&mut original),
        "finished postgres, pending alice, pending bob"
    );
}

/// As `wait_state`, for a task that has an end behind it already.
#[track_caller]
fn wait_state_of(client: &mut Client, id: i64, state: &str) {
    wait_until(&format!("task {id} to be {state}"), || {
        task(client, id).state == state
    });
}

/// A stopped server whose data directory is a physical copy of another's, under a cluster_name of its own.
#[track_caller]
pub fn physical_copy(of: &Server, arguments: &[&str]) -> Server {
    let mut copy = Server::builder().no_extension().start();
    copy.stop(Stop::Fast);
    let data = copy.data_dir().to_owned();
    fs::remove_dir_all(&data).expect("remove the data directory");
    succeed(
        of.tool("pg_basebackup")
            .args(["--checkpoint=fast", "--no-sync", "-D"])
            .arg(&data)
            .args(arguments),
    );
    let sockets = data
        .parent()
        .and_then(|dir| dir.to_str())
        .expect("a path in UTF-8")
        .to_owned();
    copy.set_conf("unix_socket_directories", &sockets);
    copy.set_conf("cluster_name", "copy");
    copy
}

/// A task that takes an hour in the original, and no time in the copy.
const INTERRUPTED: &str = "INSERT INTO done VALUES ('interrupted'); \
    SELECT pg_sleep(3600) WHERE current_setting('cluster_name') <> 'copy'";

#[test]
fn on_a_standby_nothing_runs_and_when_it_is_promoted_all_goes_on() {
    let mut primary = Server::builder().expect_crash().conf(LIMIT, "3").start();
    let mut client = primary.superuser();
    run(
        &mut client,
        "CREATE TABLE done (what text, who text DEFAULT current_user)",
    );
    let first = enqueue(&mut client, "INSERT INTO done VALUES ('first')");
    wait_state(&mut client, first, "finished");
    let mut standby = physical_copy(&primary, &["-R"]);
    standby.start();
    let mut there = standby.superuser();

    let interrupted = enqueue(&mut client, INTERRUPTED);
    wait_state(&mut client, interrupted, "running");
    let late: i64 = scalar(
        &mut client,
        "SELECT pg_background_queue_enqueue('INSERT INTO done VALUES (''later'')', run_at => now() + '4 s')",
        &[],
    );
    // the running mark is not flushed by itself at once
    run(&mut client, "CREATE TABLE marker ()");
    wait_until("the standby to have caught up", || {
        scalar::<bool>(&mut there, "SELECT to_regclass('marker') IS NOT NULL", &[])
    });
    assert_eq!(summary(&mut there), "finished running pending");
    assert!(workers(&mut there).is_empty(), "{:?}", workers(&mut there));
    for (call, arguments) in [
        ("pg_background_queue_enqueue", "'SELECT 1'"),
        ("pg_background_enqueue", "'SELECT 1'"),
        ("pg_background_queue_cancel", "1"),
        ("pg_background_queue_retry", "1"),
        ("pg_background_queue_release", ""),
        ("pg_background_queue_delete", "'{1}'"),
    ] {
        let call = format!("SELECT {call}({arguments})");
        let error = there.batch_execute(&call).expect_err(&call);
        assert_eq!(
            error.code(),
            Some(&SqlState::READ_ONLY_SQL_TRANSACTION),
            "{call}: {error:?}"
        );
    }
    let count: i32 = scalar(
        &mut there,
        "SELECT pg_background_queue_active_workers_count()",
        &[],
    );
    assert_eq!(count, 0);
    let count: i32 = scalar(
        &mut there,
        "SELECT pg_background_queue_calibrate_workers_count()",
        &[],
    );
    assert_eq!(count, 0);
    run(&mut there, "SELECT pg_background_queue_ensure_workers()");
    assert!(workers(&mut there).is_empty());

    primary.kill9_all();
    let promoted: bool = scalar(&mut there, "SELECT pg_promote()", &[]);
    assert!(promoted);
    wait_for_launcher(&mut there, 0);
    for id in [interrupted, late] {
        let task = wait_state(&mut there, id, "finished");
        assert!(!task.held, "{task:?}");
    }
    assert_eq!(task(&mut there, interrupted).retry_count, 0);
    assert_eq!(
        done(&mut there),
        "first postgres, interrupted postgres, later postgres"
    );
    let new = enqueue(&mut there, "INSERT INTO done VALUES ('new')");
    assert!(new > late);
    wait_state(&mut there, new, "finished");
    assert_eq!(running_count(&mut there), 0);
}

/// The files say nothing of where they are: a physical copy that is started is the same server, and goes on with its tasks. Whoever
/// wants it to do nothing sets the limit to 0 before its start.
#[test]
fn a_physical_copy_goes_on_unless_it_is_paused() {
    let server = Server::builder().conf(LIMIT, "2").start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE done (what text, who text DEFAULT current_user)",
    );
    let interrupted = enqueue(&mut client, INTERRUPTED);
    wait_state(&mut client, interrupted, "running");
    let mut copy = physical_copy(&server, &[]);
    copy.set_conf(LIMIT, "0");
    copy.start();
    let mut there = copy.superuser();
    wait_state_of(&mut there, interrupted, "pending");
    let new = enqueue(&mut there, "INSERT INTO done VALUES ('new')");
    wait_no_workers(&mut there, PATIENCE);
    assert_eq!(done(&mut there), "");
    copy.set_and_reload(LIMIT, "2");
    for id in [interrupted, new] {
        wait_state(&mut there, id, "finished");
    }
    assert_eq!(done(&mut there), "interrupted postgres, new postgres");
    // neither knows of the other
    assert_eq!(task(&mut client, interrupted).state, "running");
    assert_eq!(done(&mut client), "");
}

#[test]
fn a_logical_subscriber_sees_tasks_and_runs_none() {
    let publisher = Server::builder().conf("wal_level", "logical").start();
    let mut client = publisher.superuser();
    let subscriber = elsewhere();
    let mut there = subscriber.superuser();
    let table = "CREATE TABLE done (what text, who text DEFAULT current_user)";
    run(&mut client, table);
    run(
        &mut there,
        &format!("{table}; CREATE EXTENSION pg_background_queue"),
    );
    publisher.set_and_reload(LIMIT, "0");
    let mut client = publisher.superuser();
    let before = enqueue(&mut client, "INSERT INTO done VALUES ('before')");
    run(
        &mut client,
        "CREATE PUBLICATION tasks FOR TABLE pg_background_tasks",
    );
    let host = publisher
        .data_dir()
        .parent()
        .and_then(|dir| dir.to_str())
        .expect("a path in UTF-8")
        .to_owned();
    run(
        &mut there,
        &format!(
            "CREATE SUBSCRIPTION tasks CONNECTION 'host={host} port=5432 user=postgres dbname=postgres' PUBLICATION tasks"
        ),
    );
    let after = enqueue(&mut client, "INSERT INTO done VALUES ('after')");
    wait_until("both tasks to arrive", || tasks(&mut there).len() == 2);
    // a worker of the role looks and goes by
    for _ in 0..2 {
        run(&mut there, "SELECT pg_background_queue_ensure_workers()");
        run(
            &mut there,
            "SELECT setval('pg_background_tasks_id_seq', 1000)",
        );
        let own = enqueue(&mut there, "SELECT 1");
        wait_state(&mut there, own, "finished");
        run(
            &mut there,
            &format!("DELETE FROM pg_background_tasks WHERE id = {own}"),
        );
    }
    assert_eq!(summary(&mut there), "pending pending");
    publisher.set_and_reload(LIMIT, "2");
    for id in [before, after] {
        wait_state(&mut client, id, "finished");
        wait_state_of(&mut there, id, "finished");
    }
    assert_eq!(done(&mut client), "after postgres, before postgres");
    assert_eq!(done(&mut there), "");
    run(&mut there, "DROP SUBSCRIPTION tasks");
}

#[test]
fn after_pg_upgrade_open_tasks_are_held_and_nothing_has_run_during_it() {
    let mut old = Server::start_default();
    let mut client = old.superuser();
    create_roles(&mut client);
    fill(&old, "postgres");
    drop(client);
    old.stop(Stop::Fast);
    let mut new = elsewhere();
    let mark = new.log_mark();
    new.stop(Stop::Fast);

    let bin = old.tool("pg_upgrade").get_program().to_owned();
    let bin = PathBuf::from(bin).parent().expect("a directory").to_owned();
    succeed(
        new.tool("pg_upgrade")
            .env_remove("PGHOST")
            .env_remove("PGPORT")
            .args(["--retain", "-U", "postgres", "-b"])
            .arg(&bin)
            .arg("-B")
            .arg(&bin)
            .arg("-d")
            .arg(old.data_dir())
            .arg("-D")
            .arg(new.data_dir())
            .arg("-s")
            .arg(new.data_dir().parent().expect("a directory")),
    );
    let logs = Command::new("grep")
        .args(["-r", "launcher started"])
        .arg(new.data_dir().join("pg_upgrade_output.d"))
        .output()
        .expect("run grep");
    assert_eq!(String::from_utf8_lossy(&logs.stdout), "");

    new.set_conf(LIMIT, "6");
    new.start();
    let mut client = new.superuser();
    let launcher = wait_for_launcher(&mut client, 0);
    assert_ne!(launcher, 0);
    wait_until("tasks to be held", || {
        tasks(&mut client).iter().filter(|task| task.held).count() == 4
    });
    assert_eq!(summary(&mut client), SUMMARY.replace("running", "pending"));
    assert!(
        new.log_since(mark)
            .contains("4 tasks were enqueued elsewhere and are held"),
        "{}",
        new.log_since(mark)
    );
    check_copy(&mut client);
}
