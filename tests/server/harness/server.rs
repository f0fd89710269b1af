//! A private PostgreSQL for one test.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use tempfile::TempDir;

use super::log;
use super::proc;
use super::wait::{PATIENCE, wait_for};

/// The port in the socket's name; no server listens on TCP.
const PORT: u16 = 5432;

/// The bootstrap superuser of every server.
const SUPERUSER: &str = "postgres";

/// How many lines of the log a failing test shows.
const TAIL: usize = 60;

/// How to stop a server, as in `pg_ctl stop -m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Smart,
    Fast,
    Immediate,
}

/// What a client was told besides its results: severity and message of each NOTICE and its like.
pub type Notices = Arc<Mutex<Vec<String>>>;

/// Opens connections; `Clone` and `Send`, for the threads of a test.
#[derive(Debug, Clone)]
pub struct Connector {
    socket_dir: PathBuf,
}

impl Connector {
    fn config(&self, user: &str, database: &str) -> postgres::Config {
        let mut config = postgres::Config::new();
        config
            .host_path(&self.socket_dir)
            .port(PORT)
            .user(user)
            .dbname(database)
            .application_name("test");
        config
    }

    /// A connection, or why there is none.
    pub fn try_connect(&self, user: &str, database: &str) -> Result<Client, postgres::Error> {
        self.config(user, database).connect(NoTls)
    }

    /// A connection.
    ///
    /// # Panics
    /// When the server refuses it.
    #[track_caller]
    pub fn connect(&self, user: &str, database: &str) -> Client {
        self.try_connect(user, database).unwrap_or_else(|error| {
            panic!("cannot connect as {user} to database {database}: {error:?}")
        })
    }

    /// A connection that collects the server's notices.
    #[track_caller]
    pub fn connect_listening(&self, user: &str, database: &str) -> (Client, Notices) {
        let notices = Notices::default();
        let sink = Arc::clone(&notices);
        let mut config = self.config(user, database);
        config.notice_callback(move |notice| {
            let line = format!("{}: {}", notice.severity(), notice.message());
            sink.lock().expect("no panic under this lock").push(line);
        });
        let client = config
            .connect(NoTls)
            .unwrap_or_else(|error| panic!("cannot connect as {user} to {database}: {error:?}"));
        (client, notices)
    }
}

/// What a server is made of; see [`Server::builder`].
#[derive(Debug, Default)]
pub struct Builder {
    conf: Vec<(String, String)>,
    initdb_args: Vec<String>,
    no_preload: bool,
    preload_library: Option<String>,
    no_extension: bool,
    crash_expected: bool,
    env: Vec<(String, String)>,
}

impl Builder {
    /// A line of postgresql.conf; a later one for the same setting wins.
    pub fn conf(mut self, name: &str, value: &str) -> Self {
        self.conf.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Whether the extension is in shared_preload_libraries (it is, unless told otherwise).
    pub fn preload(mut self, yes: bool) -> Self {
        self.no_preload = !yes;
        self
    }

    /// What to preload instead of the installed `pg_background_queue`: a list as in the setting
    /// itself.
    pub fn preload_library(mut self, library: &str) -> Self {
        self.preload_library = Some(library.to_owned());
        self
    }

    /// Leaves CREATE EXTENSION to the test.
    pub fn no_extension(mut self) -> Self {
        self.no_extension = true;
        self
    }

    /// An argument more for initdb, e.g. `--data-checksums`.
    pub fn initdb_arg(mut self, arg: &str) -> Self {
        self.initdb_args.push(arg.to_owned());
        self
    }

    /// The test kills server processes: their deaths in the log do not fail it.
    pub fn expect_crash(mut self) -> Self {
        self.crash_expected = true;
        self
    }

    /// A variable in the environment of the server's processes.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the server, and creates the extension in database `postgres`.
    #[track_caller]
    pub fn start(self) -> Server {
        let dir = fresh_dir("pgbq-");
        let data = dir.path().join("data");
        copy(&template(&self.initdb_args), &data);

        let preload = match (&self.preload_library, self.no_preload) {
            (_, true) => "",
            (Some(library), false) => library,
            (None, false) => "pg_background_queue",
        };
        let socket_dir = dir.path().to_str().expect("a path in UTF-8");
        let mut lines = String::from("\n# the harness\n");
        let mut add = |name: &str, value: &str| {
            let quoted = value.replace('\\', "\\\\").replace('\'', "''");
            lines.push_str(&format!("{name} = '{quoted}'\n"));
        };
        add("listen_addresses", "");
        add("unix_socket_directories", socket_dir);
        add("port", &PORT.to_string());
        add("shared_preload_libraries", preload);
        add("logging_collector", "off");
        add("log_destination", "stderr");
        add("log_line_prefix", "%m [%p] %b %u@%d ");
        add("restart_after_crash", "on");
        // The tests end processes, not machines: what was written to the kernel stays.
        add("fsync", "off");
        for (name, value) in &self.conf {
            add(name, value);
        }
        let conf = data.join("postgresql.conf");
        let mut text = fs::read_to_string(&conf).expect("postgresql.conf of the template");
        text.push_str(&lines);
        fs::write(&conf, text).expect("write postgresql.conf");

        let mut server = Server {
            connector: Connector {
                socket_dir: dir.path().to_owned(),
            },
            data,
            log: dir.path().join("log"),
            dir: Some(dir),
            postmaster: None,
            crash_expected: AtomicBool::new(self.crash_expected),
            full_disk_expected: AtomicBool::new(false),
            env: self.env,
        };
        server.start();
        if !self.no_extension {
            server
                .superuser()
                .batch_execute("CREATE EXTENSION pg_background_queue")
                .unwrap_or_else(|error| panic!("CREATE EXTENSION: {error:?}"));
        }
        server
    }
}

/// A private server; it ends with this value, and its log is then read for what must not be in it.
#[derive(Debug)]
pub struct Server {
    connector: Connector,
    data: PathBuf,
    log: PathBuf,
    /// None once the directory is to be kept.
    dir: Option<TempDir>,
    /// The running postmaster; None while the server is stopped.
    postmaster: Option<Child>,
    crash_expected: AtomicBool,
    full_disk_expected: AtomicBool,
    env: Vec<(String, String)>,
}

impl Server {
    /// Describes a server that differs from the default one.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A default server: preloaded, with the extension in database `postgres`.
    #[track_caller]
    pub fn start_default() -> Server {
        Server::builder().start()
    }

    /// Opens connections from other threads.
    pub fn connector(&self) -> Connector {
        self.connector.clone()
    }

    /// A connection as `user` to `database`.
    #[track_caller]
    pub fn connect(&self, user: &str, database: &str) -> Client {
        self.connector.connect(user, database)
    }

    /// A superuser's connection to database `postgres`.
    #[track_caller]
    pub fn superuser(&self) -> Client {
        self.connect(SUPERUSER, "postgres")
    }

    /// A client program of the same installation (`pg_dump`, `psql` …) that will talk to this
    /// server as its superuser.
    pub fn tool(&self, program: &str) -> Command {
        let mut command = as_server_user(&bin_dir().join(program));
        command
            .env("PGHOST", &self.connector.socket_dir)
            .env("PGPORT", PORT.to_string())
            .env("PGUSER", SUPERUSER)
            .env("PGDATABASE", "postgres")
            .current_dir(&self.connector.socket_dir);
        command
    }

    /// The test fills the disk of the WAL: the PANIC in the log does not fail it.
    pub fn expect_full_disk(&self) {
        self.full_disk_expected.store(true, Ordering::Relaxed);
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// The postmaster's pid.
    ///
    /// # Panics
    /// When the server is stopped.
    #[track_caller]
    pub fn postmaster_pid(&self) -> i32 {
        let child = self.postmaster.as_ref().expect("the server is running");
        i32::try_from(child.id()).expect("a pid")
    }

    /// From now on the deaths of server processes do not fail the test.
    pub fn expect_crash(&self) {
        self.crash_expected.store(true, Ordering::Relaxed);
    }

    /// Starts a stopped server and waits until it takes connections.
    #[track_caller]
    pub fn start(&mut self) {
        self.start_unready();
        self.wait_ready();
    }

    /// Starts a stopped server without waiting for it.
    #[track_caller]
    pub fn start_unready(&mut self) {
        assert!(self.postmaster.is_none(), "the server is running already");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("open the log");
        let mut command = as_server_user(&bin_dir().join("postgres"));
        command
            .arg("-D")
            .arg(&self.data)
            .current_dir(&self.connector.socket_dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log);
        // what is built with a sanitizer needs its library from the beginning
        if let Ok(library) = std::env::var("PGBQ_SERVER_PRELOAD") {
            command.env("LD_PRELOAD", library);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        self.postmaster = Some(spawn_to_die_with_us(command).expect("start postgres"));
    }

    /// Waits until the server takes connections.
    ///
    /// # Panics
    /// When the postmaster ends instead.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        wait_for("the server to take connections", PATIENCE, || {
            let child = self.postmaster.as_mut().expect("the server was started");
            if let Some(status) = child.try_wait().expect("wait for the postmaster") {
                self.postmaster = None;
                panic!("the server did not start: {status}\n{}", self.log_tail());
            }
            self.connector.try_connect(SUPERUSER, "postgres").ok()
        });
    }

    /// Waits for the postmaster to end by itself (e.g. a start that must fail), and returns whether
    /// it ended well.
    #[track_caller]
    pub fn wait_exit(&mut self) -> bool {
        let child = self.postmaster.as_mut().expect("the server was started");
        let status = wait_for("the postmaster to end", PATIENCE, || {
            child.try_wait().expect("wait for the postmaster")
        });
        self.postmaster = None;
        status.success()
    }

    /// Stops the server as `pg_ctl stop -m` does, and waits until it is gone.
    #[track_caller]
    pub fn stop(&mut self, how: Stop) {
        assert!(
            self.try_stop(how, PATIENCE),
            "the server is still there {PATIENCE:?} after a stop -m {how:?}"
        );
    }

    fn try_stop(&mut self, how: Stop, deadline: Duration) -> bool {
        let signal = match how {
            Stop::Smart => libc::SIGTERM,
            Stop::Fast => libc::SIGINT,
            Stop::Immediate => libc::SIGQUIT,
        };
        proc::kill(self.postmaster_pid(), signal);
        let child = self.postmaster.as_mut().expect("the server is running");
        let begin = Instant::now();
        let gone = wait_for(
            "the postmaster to end",
            deadline + Duration::from_secs(5),
            || {
                if child.try_wait().expect("wait for the postmaster").is_some() {
                    return Some(true);
                }
                (begin.elapsed() > deadline).then_some(false)
            },
        );
        if gone {
            self.postmaster = None;
        }
        gone
    }

    /// Stop (fast) and start.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop(Stop::Fast);
        self.start();
    }

    /// kill -9 of the postmaster. Its children notice by themselves; this waits until all of them
    /// are gone, for no new server starts on the directory before.
    #[track_caller]
    pub fn kill9_postmaster(&mut self) {
        let orphans = self.reap_postmaster();
        for pid in orphans {
            wait_for("a child of the killed postmaster to end", PATIENCE, || {
                (!proc::is_alive(pid)).then_some(())
            });
        }
    }

    /// kill -9 of everything at once, as when the machine loses its power.
    #[track_caller]
    pub fn kill9_all(&mut self) {
        let orphans = self.reap_postmaster();
        for &pid in &orphans {
            proc::kill(pid, libc::SIGKILL);
        }
        for pid in orphans {
            wait_for("a killed process to end", PATIENCE, || {
                (!proc::is_alive(pid)).then_some(())
            });
        }
    }

    /// Kills the postmaster, and returns the children it had. It is stopped first, so that no child
    /// is missed that it forks meanwhile.
    fn reap_postmaster(&mut self) -> Vec<i32> {
        let pid = self.postmaster_pid();
        proc::kill(pid, libc::SIGSTOP);
        let children = proc::children(pid);
        proc::kill(pid, libc::SIGKILL);
        let mut child = self.postmaster.take().expect("the server is running");
        child.wait().expect("wait for the killed postmaster");
        children
    }

    /// Sets a line of postgresql.conf; it counts after [`Server::reload`] or a restart.
    pub fn set_conf(&self, name: &str, value: &str) {
        let quoted = value.replace('\\', "\\\\").replace('\'', "''");
        // a server that is reading it because of a change before must not find half of it
        OpenOptions::new()
            .append(true)
            .open(self.data.join("postgresql.conf"))
            .and_then(|mut conf| conf.write_all(format!("{name} = '{quoted}'\n").as_bytes()))
            .expect("write postgresql.conf");
    }

    /// SIGHUP. The server's processes read the files a moment later.
    pub fn reload(&self) {
        proc::kill(self.postmaster_pid(), libc::SIGHUP);
    }

    /// [`Server::set_conf`], reload, and wait until new sessions see the value.
    #[track_caller]
    pub fn set_and_reload(&self, name: &str, value: &str) {
        self.set_conf(name, value);
        self.reload();
        wait_for(&format!("{name} to become {value}"), PATIENCE, || {
            let mut client = self.superuser();
            let now: String = client
                .query_one("SELECT current_setting($1)", &[&name])
                .expect("current_setting")
                .get(0);
            (now == value).then_some(())
        });
    }

    /// All that the server has logged so far.
    pub fn log(&self) -> String {
        match fs::read(&self.log) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => panic!("read {}: {error}", self.log.display()),
        }
    }

    /// How long the log is, for [`Server::log_since`].
    pub fn log_mark(&self) -> usize {
        self.log().len()
    }

    /// What has been logged since `mark`.
    pub fn log_since(&self, mark: usize) -> String {
        self.log().split_off(mark)
    }

    fn log_tail(&self) -> String {
        log::tail(&self.log(), TAIL)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let failing = thread::panicking();
        let mut complaint = None;
        if self.postmaster.is_some() {
            // An orderly end first: it is one more chance for a leak or a TRAP to show, and a
            // worker that does not let the server go is a fault in itself. A test that failed
            // already gets the quick one.
            if failing || !self.try_stop(Stop::Fast, PATIENCE) {
                if !failing {
                    complaint =
                        Some("the server did not end within a minute of a fast stop".to_owned());
                }
                if !self.try_stop(Stop::Immediate, PATIENCE) {
                    for pid in self.reap_postmaster() {
                        proc::kill(pid, libc::SIGKILL);
                    }
                }
            }
        }
        let log = self.log();
        let crash_expected = self.crash_expected.load(Ordering::Relaxed);
        let full_disk_expected = self.full_disk_expected.load(Ordering::Relaxed);
        if let Some(line) = log::complaint(&log, crash_expected, full_disk_expected) {
            complaint.get_or_insert_with(|| format!("the server's log says: {line}"));
        }
        if !failing && complaint.is_none() {
            return;
        }
        if let Some(dir) = self.dir.take() {
            let kept = dir.keep();
            eprintln!(
                "--- server kept in {}; the end of its log:\n{}\n--- end of the log",
                kept.display(),
                self.log_tail()
            );
        }
        if let Some(complaint) = complaint {
            if failing {
                eprintln!("--- besides: {complaint}");
            } else {
                panic!("{complaint}");
            }
        }
    }
}

/// What `pg_config` of the PostgreSQL under test answers: `$PG_CONFIG`, else the one in the path, else that of Debian's 15.
fn pg_config(question: &str) -> PathBuf {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    let ask = |program: &str, question: &str| -> Option<PathBuf> {
        let output = Command::new(program).arg(question).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output
            .status
            .success()
            .then(|| PathBuf::from(text.trim_end()))
    };
    let program = PROGRAM.get_or_init(|| {
        if let Ok(program) = std::env::var("PG_CONFIG") {
            return program;
        }
        let has_server = |program: &str| {
            ask(program, "--bindir").is_some_and(|dir| dir.join("postgres").exists())
        };
        ["pg_config", "/usr/lib/postgresql/15/bin/pg_config"]
            .into_iter()
            .find(|program| has_server(program))
            .expect("pg_config, in PATH or named by PG_CONFIG")
            .to_owned()
    });
    ask(program, question)
        .unwrap_or_else(|| panic!("PG_CONFIG={program} does not tell where PostgreSQL is"))
}

/// Where the programs of the PostgreSQL under test are.
fn bin_dir() -> &'static Path {
    static BIN_DIR: OnceLock<PathBuf> = OnceLock::new();
    BIN_DIR.get_or_init(|| pg_config("--bindir"))
}

/// Where its client library is.
fn lib_dir() -> &'static Path {
    static LIB_DIR: OnceLock<PathBuf> = OnceLock::new();
    LIB_DIR.get_or_init(|| pg_config("--libdir"))
}

/// The user and group that run the server when we are root, which PostgreSQL refuses to be.
fn server_user() -> Option<(u32, u32)> {
    static USER: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *USER.get_or_init(|| {
        // SAFETY: geteuid(2) has no preconditions.
        if unsafe { libc::geteuid() } != 0 {
            return None;
        }
        let name = std::env::var("PGBQ_TEST_USER").unwrap_or_else(|_| "postgres".to_owned());
        let c_name = CString::new(name.as_str()).expect("a user name");
        // SAFETY: c_name is a C string; nobody else in this process calls getpwnam, and the result
        // is copied before anything else can.
        let ids = unsafe {
            let entry = libc::getpwnam(c_name.as_ptr());
            (!entry.is_null()).then(|| ((*entry).pw_uid, (*entry).pw_gid))
        };
        Some(ids.unwrap_or_else(|| {
            panic!("root cannot run PostgreSQL and there is no user {name}; set PGBQ_TEST_USER")
        }))
    })
}

/// A command that will run as the server's user, without this process's PG* variables and locale.
fn as_server_user(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.as_bytes().starts_with(b"PG") {
            command.env_remove(&name);
        }
    }
    command.env("LC_ALL", "C");
    // Modules such as libpqwalreceiver, in builds that can be moved, else take the machine's own libpq. Not where there is a C library, too:
    // that is not for the other programs that run.
    if !lib_dir().join("libc.so.6").exists() {
        command.env("LD_LIBRARY_PATH", lib_dir());
    }
    if let Some((uid, gid)) = server_user() {
        command.uid(uid).gid(gid);
    }
    command
}

/// Starts `command` so that the kernel ends it (SIGQUIT, an immediate stop) when this process dies,
/// however that happens: no test that is killed leaves a server behind.
///
/// The kernel means the parent *thread*, and a test's thread may end before its server does (a
/// server shared by several tests); so one thread that never ends starts them all.
fn spawn_to_die_with_us(mut command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static PARENT: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();

    #[cfg(target_os = "linux")]
    // SAFETY: the closure runs between fork and exec and makes one system call, which allocates
    // nothing.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let parent = PARENT.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("parent of the postmasters".to_owned())
            .spawn(move || {
                for (mut command, answer) in inbox {
                    // The asking thread waits for the answer; it cannot be gone.
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("start a thread");
        Mutex::new(jobs)
    });
    let (answer, outcome) = mpsc::channel();
    parent
        .lock()
        .expect("no panic under this lock")
        .send((command, answer))
        .expect("the parent thread never ends");
    outcome.recv().expect("the parent thread answers")
}

/// A new directory that the server's user owns.
fn fresh_dir(prefix: &str) -> TempDir {
    let dir = tempfile::Builder::new()
        .prefix(prefix)
        .tempdir()
        .expect("a temporary directory");
    // The socket in it is for us, too.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    if let Some((uid, gid)) = server_user() {
        std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).expect("chown");
    }
    dir
}

/// A data directory fresh from initdb, made once per process and set of arguments, to be copied.
fn template(args: &[String]) -> PathBuf {
    static TEMPLATES: Mutex<Vec<(Vec<String>, PathBuf)>> = Mutex::new(Vec::new());
    let mut templates = match TEMPLATES.lock() {
        Ok(guard) => guard,
        // Another test's initdb failed and said so; try again.
        Err(poisoned) => poisoned.into_inner(),
    };
    if let Some((_, data)) = templates.iter().find(|(known, _)| known == args) {
        return data.clone();
    }
    let dir = fresh_dir("pgbq-template-");
    let data = dir.path().join("data");
    let output = as_server_user(&bin_dir().join("initdb"))
        .arg("-D")
        .arg(&data)
        .args(["-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-locale"])
        .args(["--no-sync", "--wal-segsize=1"])
        .args(args)
        .current_dir(dir.path())
        .output()
        .expect("run initdb");
    assert!(
        output.status.success(),
        "initdb: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    remove_at_exit(dir.keep());
    templates.push((args.to_vec(), data.clone()));
    data
}

/// Removes `dir` when the process ends; statics are never dropped, so somebody has to.
fn remove_at_exit(dir: PathBuf) {
    static DIRS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

    extern "C" fn remove_all() {
        if let Ok(dirs) = DIRS.lock() {
            for dir in dirs.iter() {
                // Nobody is left to tell of a failure.
                let _ = fs::remove_dir_all(dir);
            }
        }
    }

    let mut dirs = DIRS.lock().expect("no panic under this lock");
    if dirs.is_empty() {
        // SAFETY: remove_all is a plain function that does not unwind.
        unsafe { libc::atexit(remove_all) };
    }
    dirs.push(dir);
}

/// Copies a data directory with owners and modes.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .expect("run cp");
    assert!(
        status.success(),
        "cp -a {} {}",
        from.display(),
        to.display()
    );
}
