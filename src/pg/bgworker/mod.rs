//! Background workers that behave like backends: the worker kit. docs/background-workers.md is its introduction.
//!
//! The order in a worker's life, and the helper for each step:
//!
//! 1. [`Definition`]: registered from `_PG_init` or launched at run time, the same way; an exported main function
//!    ([`worker_main`](crate::worker_main)).
//! 2. [`pool::Member::attach`], if it belongs to a pool.
//! 3. [`Setup`]: signal handlers, exit callback, session, names: one call.
//! 4. [`Worker::run`]: the main loop, with PostgresMain's error recovery around it, and [`turn`] in each round.
//!
//! Whoever launches one holds its [`Handle`]; whoever launches many, a [`pool::Owner`].

mod handle;
mod mainloop;
pub mod pool;
mod recover;
mod setup;

use std::ffi::{CStr, c_char};

pub use handle::{Handle, Started};
pub use mainloop::turn;
pub use recover::{MainLoop, Next};
pub use setup::{Setup, Worker};

use super::datum::Datum;
use super::error::Result;
use super::latch::LatchRef;
use super::{Oid, catalog, guard, guc, session};
use crate::pg_sys;

/// When the postmaster restarts a worker that has ended with an exit code other than 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restart {
    /// Never.
    Never,
    /// After so many seconds.
    After(i32),
}

/// What the postmaster must know to start a worker (`BackgroundWorker`, postmaster/bgworker.h). It is registered from
/// `_PG_init` or launched at run time, the same way.
#[derive(Clone)]
#[must_use = "it is not started before register() or launch()"]
pub struct Definition {
    name: String,
    kind: &'static str,
    library: &'static str,
    function: &'static str,
    restart: Restart,
    database: bool,
    argument: Datum,
}

impl Definition {
    /// A worker of this kind (`backend_type` in pg_stat_activity, also its name in `ps` and in the server's messages), whose main
    /// function is in this library (the file's name without suffix). It is not restarted, and may open a session.
    pub fn new(kind: &'static str, library: &'static str, function: &'static str) -> Self {
        Self {
            name: kind.to_owned(),
            kind,
            library,
            function,
            restart: Restart::Never,
            database: true,
            argument: 0,
        }
    }

    /// Another name than its kind.
    pub fn name(mut self, name: String) -> Self {
        self.name = name;
        self
    }

    /// When it is restarted.
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// The main function's argument.
    pub fn argument(mut self, argument: Datum) -> Self {
        self.argument = argument;
        self
    }

    /// It never opens a session ([`Session::Nothing`]), and can do without what is needed for one.
    pub fn without_session(mut self) -> Self {
        self.database = false;
        self
    }

    /// Registers it from `_PG_init` in the postmaster: it starts when the server is up and writable, on a standby after its
    /// promotion.
    ///
    /// # Errors
    /// Out of memory. With too many workers, or if the library is not in `shared_preload_libraries`, the server only logs that.
    pub fn register(&self) -> Result<()> {
        let mut worker = self.worker(0);
        let worker = &raw mut worker;
        // SAFETY: a complete definition, copied by the callee.
        guard(|| unsafe { pg_sys::RegisterBackgroundWorker(worker) })
    }

    /// Starts it now (on a standby: after its promotion), from a backend or another worker; `None` if no worker slot is free. The latch
    /// of this process is set whenever the worker has started or ended (`bgw_notify_pid`).
    ///
    /// # Errors
    /// Out of memory.
    pub fn launch(&self) -> Result<Option<Handle>> {
        let mut worker = self.worker(my_pid());
        let worker = &raw mut worker;
        let mut handle = std::ptr::null_mut();
        let out = &raw mut handle;
        // The handle must outlive the caller's memory context.
        // SAFETY: switching and restoring the global as MemoryContextSwitchTo does; the guard restores it on errors.
        let launched = guard(|| unsafe {
            let context = pg_sys::CurrentMemoryContext;
            pg_sys::CurrentMemoryContext = pg_sys::TopMemoryContext;
            let launched = pg_sys::RegisterDynamicBackgroundWorker(worker, out);
            pg_sys::CurrentMemoryContext = context;
            launched
        })?;
        // SAFETY: a handle in TopMemoryContext that nobody else frees.
        Ok(launched.then(|| unsafe { Handle::new(handle) }))
    }

    fn worker(&self, notify: i32) -> pg_sys::BackgroundWorker {
        // SAFETY: all fields are numbers and arrays of them: zero is valid.
        let mut worker: pg_sys::BackgroundWorker = unsafe { std::mem::zeroed() };
        fill(&mut worker.bgw_name, &self.name);
        fill(&mut worker.bgw_type, self.kind);
        fill(&mut worker.bgw_library_name, self.library);
        fill(&mut worker.bgw_function_name, self.function);
        let database = if self.database {
            pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION
        } else {
            0
        };
        worker.bgw_flags = (pg_sys::BGWORKER_SHMEM_ACCESS | database) as i32;
        worker.bgw_start_time = pg_sys::BgWorkerStart_RecoveryFinished;
        worker.bgw_restart_time = match self.restart {
            Restart::Never => pg_sys::BGW_NEVER_RESTART,
            Restart::After(seconds) => seconds,
        };
        worker.bgw_main_arg = self.argument;
        worker.bgw_notify_pid = notify;
        worker
    }
}

/// Copies a text into a fixed field, cut to leave room for the terminator that is there already.
fn fill(field: &mut [c_char], text: &str) {
    let room = field.len() - 1;
    for (to, from) in field[..room].iter_mut().zip(text.bytes()) {
        *to = from as c_char;
    }
}

/// Exports `$body`, a `fn(Datum) -> Result<()>`, as the main function of a worker under the C symbol `$symbol`. An
/// error ends the process with exit code 1; without one it is 0, which unregisters a static worker for ever.
#[macro_export]
macro_rules! worker_main {
    ($symbol:ident, $body:path) => {
        #[doc = concat!("The main function `", stringify!($symbol), "` of a background worker.")]
        #[unsafe(no_mangle)]
        pub extern "C-unwind" fn $symbol(argument: $crate::pg::datum::Datum) {
            $crate::pg::boundary(|| $body(argument));
        }
    };
}

/// Which session a [`Setup`] opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Session {
    /// None: shared memory, and nothing for which a transaction is needed.
    Nothing,
    /// No database: only the shared catalogs can be read.
    Shared,
    /// A database as the bootstrap superuser, whatever its name is now.
    Superuser(Oid),
    /// A database as a role, with that role's rights and settings. From PostgreSQL 17 on the role need not have LOGIN: what is done
    /// here was asked for by that role, which may be one that others take on by SET ROLE.
    Role(Oid, Oid),
    /// A database, and a role that may log in or else the bootstrap superuser, by name.
    Named(&'static CStr, Option<&'static CStr>),
}

/// Connects this worker. A failure (no such database, no right to connect) is FATAL: the process exits.
/// `application_name` is what pg_stat_activity shows from then on.
fn connect(session: Session, application_name: &CStr) -> Result<()> {
    let by_oid = |database, role| {
        let flags = pg_sys::PGBQ_CONNECT_FLAGS;
        // SAFETY: no pointers.
        guard(|| unsafe {
            pg_sys::BackgroundWorkerInitializeConnectionByOid(database, role, flags)
        })
    };
    let as_role = match session {
        // nor a user, without whom nothing can be set
        Session::Nothing => return Ok(()),
        Session::Shared => {
            by_oid(super::INVALID_OID, super::INVALID_OID)?;
            false
        }
        Session::Superuser(database) => {
            by_oid(database, super::INVALID_OID)?;
            false
        }
        Session::Role(database, role) => {
            by_oid(database, role)?;
            true
        }
        Session::Named(database, role) => {
            let (database, name) = (
                database.as_ptr(),
                role.map_or(std::ptr::null(), CStr::as_ptr),
            );
            // SAFETY: terminated statics, or null for the bootstrap superuser.
            guard(|| unsafe { pg_sys::BackgroundWorkerInitializeConnection(database, name, 0) })?;
            role.is_some()
        }
    };
    guc::set_default(c"application_name", application_name.to_bytes())?;
    let database = catalog::current_database();
    if database != super::INVALID_OID {
        let transaction = super::xact::Transaction::begin(super::xact::Durability::Session)?;
        let user = catalog::role_name(super::security::current_role())?.unwrap_or_default();
        let name = catalog::database_name(database)?.unwrap_or_default();
        transaction.commit()?;
        session::set_port(&user, &name)?;
    }
    if as_role {
        session::load_preload_libraries()?;
    }
    Ok(())
}

/// This process's id.
pub fn my_pid() -> i32 {
    // SAFETY: reads a global.
    unsafe { pg_sys::MyProcPid }
}

/// Whether the server process of this id and latch is there, with a session or without. (The latch tells it from a later process with the
/// same id: that has another one.)
pub fn is_alive(pid: i32, latch: LatchRef) -> bool {
    pid != 0 && latch.owner() == pid
}

/// Asks another process to end, as `pg_terminate_backend` does. That the process is still there is the caller's to know.
pub fn terminate(pid: i32) {
    if pid > 0 {
        // SAFETY: sends a signal that every server process handles.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

/// Interrupts what another process runs, as `pg_cancel_backend` does. That the process is still there is the caller's to know.
pub fn interrupt(pid: i32) {
    if pid > 0 {
        // SAFETY: sends a signal that every server process handles.
        unsafe { libc::kill(pid, libc::SIGINT) };
    }
}

/// Ends this process with an exit code: 1 is restarted as the definition says, 0 unregisters the worker.
pub fn exit(code: i32) -> ! {
    // SAFETY: runs the exit callbacks and ends the process; frames below own nothing that must be dropped for others.
    unsafe { pg_sys::proc_exit(code) }
}
