//! Background workers that behave like backends.
//!
//! The order in a worker's life, and the helper for each step:
//!
//! 1. [`Definition`]: registered from `_PG_init` or launched at run time, the same way.
//! 2. [`setup`]: signal handlers, signals unblocked.
//! 3. [`callback::at_exit`](super::callback::at_exit), before the connection, so that it also runs when the connection fails.
//! 4. [`connect`]: database and role, or none; a session as after a login.
//! 5. [`run`]: the main loop, with PostgresMain's error recovery around it, and [`turn`] in each round.
//!
//! [`pool`] keeps the books of many of them in shared memory.

mod handle;
mod mainloop;
pub mod pool;
mod recover;

use std::ffi::{CStr, c_char};

pub use handle::{Handle, Started};
pub use mainloop::turn;
pub use recover::{MainLoop, Next, run};

use super::datum::Datum;
use super::error::Result;
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

/// What the postmaster must know to start a worker (`BackgroundWorker`, postmaster/bgworker.h).
pub struct Definition {
    /// Shown in `ps` and in the server's messages.
    pub name: String,
    /// `backend_type` in pg_stat_activity.
    pub kind: &'static str,
    /// The file name of the library, without its suffix.
    pub library: &'static str,
    /// The exported main function.
    pub function: &'static str,
    /// When it is restarted.
    pub restart: Restart,
    /// Whether a session may connect to a database with it.
    pub database: bool,
    /// The main function's argument.
    pub argument: Datum,
    /// Whether this process gets SIGUSR1, which sets its latch, when the worker starts and ends.
    pub notify: bool,
}

impl Definition {
    /// Registers it from `_PG_init` in the postmaster: it starts when the server is up and writable.
    ///
    /// # Errors
    /// Out of memory. With too many workers the server only logs that.
    pub fn register(&self) -> Result<()> {
        let mut worker = self.worker();
        let worker = &raw mut worker;
        // SAFETY: a complete definition, copied by the callee.
        guard(|| unsafe { pg_sys::RegisterBackgroundWorker(worker) })
    }

    /// Starts it now; `None` if no worker slot is free.
    ///
    /// # Errors
    /// Out of memory.
    pub fn launch(&self) -> Result<Option<Handle>> {
        let mut worker = self.worker();
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

    fn worker(&self) -> pg_sys::BackgroundWorker {
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
        worker.bgw_notify_pid = if self.notify { my_pid() } else { 0 };
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

/// The first step of a worker's main function: a backend's signal handlers, signals unblocked.
pub fn setup() {
    // SAFETY: in a background worker's main function; does not raise.
    unsafe { pg_sys::pgbq_worker_signals() }
}

/// Which session [`connect`] opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Session {
    /// No database: only the shared catalogs can be read.
    Shared,
    /// A database as the bootstrap superuser, whatever its name is now.
    Superuser(Oid),
    /// A database as a role, with that role's rights and settings.
    Role(Oid, Oid),
}

/// Connects this worker. A failure (no such database, no right to connect) is FATAL: the process exits.
/// `application_name` is what pg_stat_activity shows from then on.
///
/// # Errors
/// A preload library fails; out of memory.
pub fn connect(session: Session, application_name: &CStr) -> Result<()> {
    let (database, role) = match session {
        Session::Shared => (super::INVALID_OID, super::INVALID_OID),
        Session::Superuser(database) => (database, super::INVALID_OID),
        Session::Role(database, role) => (database, role),
    };
    // SAFETY: no pointers that are not null.
    guard(|| unsafe {
        let flags = pg_sys::PGBQ_CONNECT_FLAGS;
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, role, flags)
    })?;
    guc::set_default(c"application_name", application_name.to_bytes())?;
    if database != super::INVALID_OID {
        let transaction = super::xact::Transaction::begin(super::xact::Durability::Session)?;
        let user = catalog::role_name(super::security::current_role())?.unwrap_or_default();
        let name = catalog::database_name(database)?.unwrap_or_default();
        transaction.commit()?;
        session::set_port(&user, &name)?;
    }
    if role != super::INVALID_OID {
        session::load_preload_libraries()?;
    }
    Ok(())
}

/// This process's id.
pub fn my_pid() -> i32 {
    // SAFETY: reads a global.
    unsafe { pg_sys::MyProcPid }
}

/// Whether a server process of this id is attached to shared memory.
///
/// # Errors
/// None known; the call is guarded like all.
pub fn is_alive(pid: i32) -> Result<bool> {
    // SAFETY: only looks.
    guard(|| unsafe { !pg_sys::BackendPidGetProc(pid).is_null() })
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
