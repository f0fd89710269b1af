//! Disk and memory run out.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;

use super::ledger::Ledger;
use super::load::{Kind, Loader};
use super::run::{account, server, under_load};
use super::{inject::STEADY, judge::judge};
use crate::harness::{
    PATIENCE, Server, Stop, enqueue, is_alive, run, scalar, task, wait_all_closed, wait_closed,
    wait_for, wait_state, wait_until,
};

/// Long enough for a backlog on a slow machine, with waits that double.
const DEADLINE: Duration = Duration::from_secs(180);

const SESSIONS: &[(&str, &str)] = &[
    ("postgres", "postgres"),
    ("alice", "postgres"),
    ("bob", "shop"),
];

/// A small file system in memory, unmounted with this value: make it before the server that uses it.
struct Disk {
    dir: TempDir,
}

impl Disk {
    /// `None`, with a word to the reader, for who may not mount.
    fn mount(megabytes: u32) -> Option<Self> {
        let dir = tempfile::Builder::new()
            .prefix("pgbq-disk-")
            .tempdir()
            .expect("a directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(dir.path())
            .output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            println!("skipped: only root can mount a small disk");
            return None;
        }
        Some(Self { dir })
    }

    /// A directory on it for the server's user.
    fn directory(&self, name: &str, server: &Server) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir(&path).expect("a directory");
        give(&path, server);
        // the way to it, too
        give(self.dir.path(), server);
        path
    }

    fn ballast(&self) -> PathBuf {
        self.dir.path().join("ballast")
    }

    /// Takes all the room that there is.
    fn fill(&self) {
        let mut bytes = 1 << 20;
        let mut size = 0;
        let file = fs::File::create(self.ballast()).expect("a file");
        while bytes >= 4096 {
            use std::os::unix::fs::FileExt;
            // written, for a hole would take no room
            match file.write_at(&vec![1; bytes], size) {
                Ok(written) if written > 0 => size += written as u64,
                _ => bytes /= 2,
            }
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("remove the file");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // lazily: also if a process has not let go of it yet
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.dir.path())
            .status();
    }
}

fn give(path: &Path, server: &Server) {
    let owner = fs::metadata(server.data_dir()).expect("the data directory");
    std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid())).expect("chown");
}

#[track_caller]
fn assert_good(server: &Server, ledger: &Ledger, excuse: &str) -> usize {
    let mut account = account(server, ledger, &STEADY);
    account.crashes = 1;
    let mut excused = 0;
    // what fails for want of room fails for a reason: only the effects count then
    for task in &mut account.found {
        if task.state == "failed" && task.errors.contains(excuse) {
            assert_eq!(task.effects, 0, "{task:?}");
            task.kind = Kind::Cancelled;
            task.state = "cancelled".to_owned();
            excused += 1;
        }
    }
    assert_eq!(judge(&account).complaints, [""; 0]);
    excused
}

#[test]
fn a_task_that_fills_the_disk_fails_and_no_other() {
    let Some(disk) = Disk::mount(8) else { return };
    let server = server();
    let mut client = server.superuser();
    let small = disk.directory("small", &server);
    run(
        &mut client,
        &format!("CREATE TABLESPACE small LOCATION '{}'", small.display()),
    );
    run(
        &mut client,
        "CREATE TABLE public.big (x text) TABLESPACE small; ALTER TABLE big ALTER x SET STORAGE EXTERNAL",
    );
    let ledger = Ledger::default();
    let marker = ledger.marker();
    let id = under_load(
        &server.connector(),
        SESSIONS,
        &ledger,
        Rng::with_seed(21),
        || {
            let id = enqueue(
                &mut client,
                &format!(
                    "/* {marker} fails */ INSERT INTO effects VALUES ({marker}); \
                 INSERT INTO big SELECT repeat('x', 7000) FROM generate_series(1, 2000)"
                ),
            );
            wait_closed(&mut client, id);
            id
        },
    );
    let failed = task(&mut client, id);
    assert!(failed.errors().contains("53100"), "{failed:?}");
    for database in STEADY {
        wait_all_closed(&mut server.connect("postgres", database), DEADLINE);
    }
    assert_eq!(assert_good(&server, &ledger, "53100"), 1);
}

#[test]
fn when_the_disk_of_the_queue_is_full_tasks_wait_and_none_is_lost() {
    let Some(disk) = Disk::mount(8) else { return };
    let server = server();
    let mut client = server.superuser();
    let small = disk.directory("small", &server);
    run(
        &mut client,
        &format!("CREATE TABLESPACE small LOCATION '{}'", small.display()),
    );
    run(
        &mut client,
        "ALTER TABLE pg_background_tasks SET TABLESPACE small",
    );
    let ledger = Ledger::default();
    let mut loader = Loader {
        connector: server.connector(),
        role: "postgres",
        database: "postgres",
        is_scratch: false,
        ledger: &ledger,
        random: Rng::with_seed(22),
    };
    let first = loader
        .enqueue(&mut client, true, Kind::Insert)
        .expect("enqueue");
    wait_state(&mut client, first, "finished");
    // Nothing starts before all is there.
    run(&mut client, "BEGIN");
    for _ in 0..100 {
        loader
            .enqueue(&mut client, true, Kind::Insert)
            .expect("enqueue");
    }
    disk.fill();
    run(&mut client, "COMMIT");
    // There is some room on the pages of the table, and then there is none.
    wait_until("the server to say so", || {
        server.log().contains("No space left on device")
    });
    let refused = wait_for("an enqueueing to be refused", PATIENCE, || {
        loader.enqueue(&mut client, true, Kind::Insert).err()
    });
    let code = refused
        .as_db_error()
        .map(|error| error.code().code().to_owned());
    assert_eq!(code.as_deref(), Some("53100"), "{refused:?}");
    disk.make_room();
    wait_all_closed(&mut client, DEADLINE);
    let excused = assert_good(&server, &ledger, "53100");
    let lines = server.log().matches("No space left on device").count();
    println!("{excused} tasks failed for want of room, which the log says {lines} times");
    assert!(lines < 200, "{lines}");
}

#[test]
fn when_the_disk_of_the_wal_is_full_all_goes_on_after_the_restart() {
    let Some(disk) = Disk::mount(48) else { return };
    let mut server = server();
    server.expect_full_disk();
    // checkpoints are far apart, so that the WAL grows
    server.set_conf("max_wal_size", "40MB");
    server.stop(Stop::Fast);
    let wal = disk.directory("wal", &server);
    let old = server.data_dir().join("pg_wal");
    let copied = Command::new("cp")
        .arg("-a")
        .arg(old.join("."))
        .arg(&wal)
        .status();
    assert!(copied.is_ok_and(|status| status.success()));
    fs::remove_dir_all(&old).expect("remove the old pg_wal");
    symlink(&wal, &old).expect("a symbolic link");
    server.start();
    let ledger = Ledger::default();
    let mut client = server.superuser();
    let connector = server.connector();
    under_load(&connector, SESSIONS, &ledger, Rng::with_seed(23), || {
        wait_until("some tasks", || {
            scalar::<i64>(&mut client, "SELECT count(*) FROM effects", &[]) > 20
        });
        disk.fill();
        // WAL, until it has no place any more
        run(&mut client, "CREATE TABLE eater (x text)");
        while client
            .batch_execute(
                "INSERT INTO eater SELECT repeat('x', 1000) FROM generate_series(1, 1000)",
            )
            .is_ok()
        {}
        wait_until("the server to say so", || {
            let log = server.log();
            log.lines()
                .any(|line| line.contains("PANIC") && line.contains("No space left"))
        });
        disk.make_room();
    });
    // it comes back by itself, unless its recovery found no room either
    wait_until("an end, or a new beginning", || {
        !is_alive(server.postmaster_pid()) || connector.try_connect("postgres", "postgres").is_ok()
    });
    if !is_alive(server.postmaster_pid()) {
        assert!(!server.wait_exit());
        server.start();
    }
    for database in STEADY {
        wait_all_closed(&mut server.connect("postgres", database), DEADLINE);
    }
    assert_eq!(assert_good(&server, &ledger, "no excuse"), 0);
}

#[test]
fn a_task_that_eats_all_memory_fails_alone_and_its_process_goes_on() {
    let server = Server::builder()
        .conf("pg_background_queue.max_parallel_running_tasks_count", "1")
        .conf("shared_buffers", "16MB")
        .start();
    let mut client = server.superuser();
    run(
        &mut client,
        "CREATE TABLE effects (n int, pid int DEFAULT pg_backend_pid(), at timestamptz DEFAULT now())",
    );
    run(&mut client, "BEGIN");
    // its worker has no more than this from here on
    let before = enqueue(
        &mut client,
        "INSERT INTO effects VALUES (1); DO $$ BEGIN EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', \
         'cat > /dev/null; prlimit --as=400000000 --pid ' || pg_backend_pid()); END $$",
    );
    let greedy = enqueue(
        &mut client,
        "INSERT INTO effects VALUES (2); SELECT array_agg(repeat('x', 1000000) || i) FROM generate_series(1, 1000) AS i",
    );
    let after = enqueue(&mut client, "INSERT INTO effects VALUES (3)");
    run(&mut client, "COMMIT");
    wait_all_closed(&mut client, PATIENCE);
    let failed = task(&mut client, greedy);
    assert_eq!(failed.state, "failed");
    assert!(failed.errors().starts_with("53200"), "{failed:?}");
    for id in [before, after] {
        assert_eq!(task(&mut client, id).state, "finished");
    }
    let (numbers, processes): (String, i64) = {
        let row = client
            .query_one(
                "SELECT string_agg(n::text, ' ' ORDER BY n), count(DISTINCT pid) FROM effects",
                &[],
            )
            .expect("effects");
        (row.get(0), row.get(1))
    };
    assert_eq!((numbers.as_str(), processes), ("1 3", 1));
}
