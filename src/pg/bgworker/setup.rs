//! The first steps of a worker's main function.

use std::ffi::{CStr, CString};

use super::super::callback;
use super::super::error::{Error, Result, c_string, sqlstate};
use super::super::local::ProcessLocal;
use super::super::mem::MemoryContext;
use super::super::session::{self, Activity};
use super::{MainLoop, Session, connect, recover};
use crate::pg_sys;

static BEGUN: ProcessLocal<bool> = ProcessLocal::new(false);

/// What a worker is to be before it does anything else; [`begin`](Setup::begin) does it all.
#[must_use = "nothing is done before begin()"]
pub struct Setup {
    session: Session,
    application_name: Option<CString>,
    at_exit: Option<fn(i32)>,
}

impl Setup {
    /// A worker with this session, whose `application_name` is its own name.
    pub fn new(session: Session) -> Self {
        Self {
            session,
            application_name: None,
            at_exit: None,
        }
    }

    /// Another `application_name`: what pg_stat_activity and the log show.
    pub fn application_name(mut self, name: &str) -> Self {
        self.application_name = Some(c_string(name));
        self
    }

    /// Has `f` called with the exit code when the process exits, also if that is because the session is refused; its
    /// transaction is aborted by then.
    pub fn at_exit(mut self, f: fn(i32)) -> Self {
        self.at_exit = Some(f);
        self
    }

    /// In this order: the signal handlers of a backend, and signals unblocked; the exit callback; the session, with
    /// `application_name`, `MyProcPort` and the preload libraries of a login; the state "idle" in pg_stat_activity and `ps`; a
    /// memory context with the worker's name.
    ///
    /// A session that is refused (no such database or role, no right to connect) is FATAL: the process exits with code 1.
    ///
    /// # Errors
    /// A preload library fails; out of memory; this process is no background worker, or is set up already.
    pub fn begin(self) -> Result<Worker> {
        let wrong = |message| {
            Err(Error::new(
                sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
                message,
            ))
        };
        // SAFETY: reads a global.
        if unsafe { pg_sys::MyBgworkerEntry }.is_null() {
            return wrong("this process is no background worker");
        }
        if BEGUN.get() {
            return wrong("this background worker is set up already");
        }
        BEGUN.set(true);
        // SAFETY: in a background worker's main function; does not raise.
        unsafe { pg_sys::pgbq_worker_signals() }
        if let Some(f) = self.at_exit {
            callback::at_exit(f)?;
        }
        let name = my_name();
        connect(
            self.session,
            self.application_name.as_deref().unwrap_or(&name),
        )?;
        session::report_activity(Activity::Idle)?;
        Ok(Worker {
            context: MemoryContext::new(&name.to_string_lossy())?,
        })
    }
}

/// The name that this worker was registered under.
fn my_name() -> CString {
    // SAFETY: a worker's, as its setup has made sure; the name is terminated.
    unsafe { CStr::from_ptr((*pg_sys::MyBgworkerEntry).bgw_name.as_ptr()) }.to_owned()
}

/// A worker that is set up.
pub struct Worker {
    context: MemoryContext,
}

impl Worker {
    /// Runs the main loop until a round says [`Next::Leave`](super::Next::Leave). A round and what it calls allocate in the worker's memory
    /// context, which is emptied before each.
    ///
    /// An error that leaves a round is logged, everything that it left is given back as PostgresMain does (tcop/postgres.c; see
    /// shim/error_loop.c), and the next round follows.
    pub fn run<M: MainLoop>(&self, main: &mut M) {
        recover::run(&self.context, main);
    }
}
