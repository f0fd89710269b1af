//! Transactions of our own (access/transam/xact.c).
//!
//! [`Transaction`] begins one, and is for a process that has none: the main loop of a worker. [`Scope`] begins one only if none is open:
//! for code that is called from both sides. Both are values that are committed by being consumed, so that neither can be used after
//! its end, and that roll back when they are dropped instead, as `?` does. Who commits with an inner scope still open, or with another memory
//! context than it began with, gets an error, and the transaction is aborted.

use std::ffi::c_void;

use super::error::{Error, Result, sqlstate};
use super::guard;
use super::local::ProcessLocal;
use super::snapshot::ActiveSnapshot;
use crate::pg_sys;

/// Transactions and scopes that are open in this process.
static OPEN: ProcessLocal<u32> = ProcessLocal::new(0);

/// A scope inside the open transaction was dropped without commit: what it has half done must not be committed.
static HALF_DONE: ProcessLocal<bool> = ProcessLocal::new(false);

/// Whether a [`Transaction`] or [`Scope`] wants a snapshot, which most reading and writing needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Snapshot {
    /// One is active from its beginning to its end.
    Active,
    /// None; e.g. to read the system catalogs only.
    None,
}

/// Of the transaction that is about to commit.
static COMMITTING: ProcessLocal<Durability> = ProcessLocal::new(Durability::Session);

/// What the next commit that is not a [`Transaction`]'s has as its `synchronous_commit`.
static LEVEL: ProcessLocal<Option<i32>> = ProcessLocal::new(None);

/// `synchronous_commit` as the session has it, while a commit has another.
static SETTING: ProcessLocal<Option<i32>> = ProcessLocal::new(None);

/// `synchronous_commit` is another for the record of the commit alone: after the last trigger that could see or set it, and until the
/// server brings back what was SET LOCAL.
extern "C-unwind" fn at_event(event: pg_sys::XactEvent, _arg: *mut c_void) {
    // SAFETY: a plain C variable, here and below.
    let setting = unsafe { pg_sys::synchronous_commit };
    match event {
        pg_sys::XACT_EVENT_PRE_COMMIT => {
            let flushed = pg_sys::SYNCHRONOUS_COMMIT_LOCAL_FLUSH as i32;
            let wanted = match COMMITTING.get() {
                Durability::Session => match LEVEL.get() {
                    Some(level) => level,
                    None => return,
                },
                Durability::Flushed => setting.max(flushed),
                Durability::Asynchronous => pg_sys::SYNCHRONOUS_COMMIT_OFF as i32,
            };
            SETTING.set(Some(setting));
            // SAFETY: as above.
            unsafe { pg_sys::synchronous_commit = wanted };
        }
        pg_sys::XACT_EVENT_COMMIT | pg_sys::XACT_EVENT_ABORT => {
            if let Some(setting) = SETTING.get() {
                SETTING.set(None);
                // SAFETY: as above.
                unsafe { pg_sys::synchronous_commit = setting };
            }
        }
        _ => {}
    }
}

static LISTENS: ProcessLocal<bool> = ProcessLocal::new(false);

/// How long a commit waits for its WAL: the setting `synchronous_commit`, of which a greater one includes a lesser one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CommitLevel(i32);

impl CommitLevel {
    /// What is set now.
    pub fn now() -> Self {
        // SAFETY: reads a variable.
        Self(unsafe { pg_sys::synchronous_commit })
    }
}

/// The current transaction, which is none of ours, commits at this level, whatever is set then; `None`: as is set.
pub fn commit_at(level: Option<CommitLevel>) {
    LEVEL.set(level.map(|level| level.0));
}

/// Whether this process has a session: a worker without one has no user, and is not among those whose transactions others see.
fn has_session() -> bool {
    let (mut user, mut context) = (0, 0);
    // SAFETY: two live locals; does not raise.
    unsafe { pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context) };
    user != super::INVALID_OID
}

fn listen() -> Result<()> {
    if !LISTENS.get() {
        // SAFETY: a function of the right type, no argument.
        guard(|| unsafe { pg_sys::RegisterXactCallback(Some(at_event), std::ptr::null_mut()) })?;
        LISTENS.set(true);
    }
    Ok(())
}

/// A place among the open transactions and scopes.
struct Nesting(u32);

impl Nesting {
    fn enter() -> Self {
        OPEN.set(OPEN.get() + 1);
        Self(OPEN.get())
    }

    fn assert_innermost(&self) {
        assert!(
            self.0 == OPEN.get(),
            "a transaction is committed with a scope still open inside it"
        );
    }
}

impl Drop for Nesting {
    fn drop(&mut self) {
        OPEN.set(OPEN.get().saturating_sub(1));
    }
}

/// Whether a transaction is open that can be worked in (`IsTransactionState`).
pub fn is_open() -> bool {
    // SAFETY: reads a variable.
    unsafe { pg_sys::IsTransactionState() }
}

/// How the commit of a transaction is made durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// As `synchronous_commit` says.
    Session,
    /// The commit's WAL is flushed to disk, whatever `synchronous_commit` says.
    Flushed,
    /// The commit returns before its WAL is flushed: it may be lost in a crash, never torn.
    Asynchronous,
}

/// A transaction begun by a process that is in none; aborted when dropped without [`Transaction::commit`].
///
/// It is READ COMMITTED and read-write whatever the role's or database's settings say, and `transaction_timeout` (17 and later) is not
/// armed: it is meant for bookkeeping that must not depend on who is logged in.
#[must_use = "dropping it aborts the transaction"]
pub struct Transaction {
    nesting: Nesting,
    snapshot: Option<ActiveSnapshot>,
    memory: pg_sys::MemoryContext,
    durability: Durability,
    committed: bool,
}

impl Transaction {
    /// Begins it, with an active snapshot.
    ///
    /// # Errors
    /// A transaction is open already; this process has no session; out of memory.
    pub fn begin(durability: Durability) -> Result<Self> {
        Self::begin_with(durability, Snapshot::Active)
    }

    fn begin_with(durability: Durability, snapshot: Snapshot) -> Result<Self> {
        if is_open() {
            return Err(Error::new(
                sqlstate::ACTIVE_SQL_TRANSACTION,
                "cannot begin a transaction: one is open already",
            ));
        }
        if !has_session() {
            return Err(Error::new(
                sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
                "cannot begin a transaction: this process has no session",
            ));
        }
        listen()?;
        // SAFETY: a global that always points to a context.
        let memory = unsafe { pg_sys::CurrentMemoryContext };
        // SAFETY: no arguments.
        guard(|| unsafe { pg_sys::SetCurrentStatementStartTimestamp() })?;
        // SAFETY: no transaction is open: asserted by the server.
        guard(|| unsafe { pg_sys::pgbq_start_transaction() })?;
        HALF_DONE.set(false);
        let mut transaction = Self {
            nesting: Nesting::enter(),
            snapshot: None,
            memory,
            durability,
            committed: false,
        };
        // SAFETY: C variables that StartTransaction has just set from default_transaction_*; before the first
        // snapshot they may still be changed, which is what SET TRANSACTION does.
        unsafe {
            pg_sys::XactIsoLevel = pg_sys::XACT_READ_COMMITTED as i32;
            pg_sys::XactReadOnly = false;
            pg_sys::XactDeferrable = false;
        }
        if snapshot == Snapshot::Active {
            transaction.snapshot = Some(ActiveSnapshot::push()?);
        }
        Ok(transaction)
    }

    /// Commits it; the caller's memory context is current again.
    ///
    /// # Errors
    /// What the commit raises; a scope inside was dropped without commit. The transaction is then aborted.
    ///
    /// # Panics
    /// A scope inside is still open; the transaction is then aborted, too.
    pub fn commit(mut self) -> Result<()> {
        self.nesting.assert_innermost();
        if HALF_DONE.get() {
            return Err(Error::new(
                sqlstate::IN_FAILED_SQL_TRANSACTION,
                "cannot commit the transaction: a part of it was given up",
            ));
        }
        self.snapshot = None;
        COMMITTING.set(self.durability);
        // SAFETY: the transaction is open.
        let outcome = guard(|| unsafe { pg_sys::CommitTransactionCommand() });
        COMMITTING.set(Durability::Session);
        outcome?;
        self.restore_memory();
        self.committed = true;
        Ok(())
    }

    fn restore_memory(&self) {
        // SAFETY: this process's variable; the context existed before the transaction.
        unsafe { pg_sys::CurrentMemoryContext = self.memory };
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.committed {
            // Nothing is open any more: an abort would take interrupts for not held off, though a lock of the caller's may be held.
            return;
        }
        // The abort pops it; popping it ourselves could raise in a half-broken transaction.
        std::mem::forget(self.snapshot.take());
        // An abort that fails is retried by the error loop's own.
        // SAFETY: harmless where no transaction is open.
        let _ = guard(|| unsafe { pg_sys::pgbq_abort() });
        self.restore_memory();
    }
}

/// Work in a transaction that is begun for it if none is open: then this commits what it began, and in somebody else's
/// transaction it leaves that open. Scopes may be nested. Dropped without [`Scope::commit`] it rolls back what it began; in somebody
/// else's transaction that cannot be, so a [`Transaction`] refuses to commit after that, and a backend's is aborted by the error on its way.
#[must_use = "dropping it rolls back"]
pub struct Scope {
    nesting: Nesting,
    snapshot: Option<ActiveSnapshot>,
    own: Option<Transaction>,
    memory: pg_sys::MemoryContext,
    committed: bool,
}

impl Scope {
    /// Enters one. It gets the snapshot that it wants also in a transaction that is open already.
    ///
    /// # Errors
    /// This process has no session; out of memory.
    pub fn begin(snapshot: Snapshot) -> Result<Self> {
        // SAFETY: a global that always points to a context.
        let memory = unsafe { pg_sys::CurrentMemoryContext };
        let own = if is_open() {
            None
        } else {
            Some(Transaction::begin_with(
                Durability::Session,
                Snapshot::None,
            )?)
        };
        let mut scope = Self {
            nesting: Nesting::enter(),
            snapshot: None,
            own,
            memory,
            committed: false,
        };
        if snapshot == Snapshot::Active {
            scope.snapshot = Some(ActiveSnapshot::push()?);
        }
        Ok(scope)
    }

    /// Commits what it began, if it did; the memory context that was current at the beginning is current again.
    ///
    /// # Errors
    /// As [`Transaction::commit`].
    ///
    /// # Panics
    /// Another scope is open inside; or, in somebody else's transaction, another memory context is current. What encloses it cannot
    /// commit any more then.
    pub fn commit(mut self) -> Result<()> {
        self.nesting.assert_innermost();
        self.snapshot = None;
        let own = self.own.take();
        // SAFETY: a global that always points to a context.
        let memory = unsafe { pg_sys::CurrentMemoryContext };
        assert!(
            own.is_some() || memory == self.memory,
            "a transaction scope ends with another memory context than it began with"
        );
        self.committed = true;
        drop(self);
        own.map_or(Ok(()), Transaction::commit)
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        // The abort pops it, ours or that of whoever has begun the transaction.
        std::mem::forget(self.snapshot.take());
        if self.own.is_none() {
            HALF_DONE.set(true);
        }
    }
}

/// Refuses a call in a transaction that cannot write: read-only, parallel, or on a standby.
///
/// # Errors
/// 25006 or 25000, naming `command`.
pub fn require_writable(command: &'static std::ffi::CStr) -> Result<()> {
    let name = command.as_ptr();
    // SAFETY: a terminated string that lives for ever.
    guard(|| unsafe { pg_sys::PreventCommandDuringRecovery(name) })?;
    // SAFETY: as above.
    guard(|| unsafe { pg_sys::PreventCommandIfReadOnly(name) })?;
    // SAFETY: as above.
    guard(|| unsafe { pg_sys::PreventCommandIfParallelMode(name) })
}

/// Whether the current transaction is READ COMMITTED (or less, which is the same).
pub fn is_read_committed() -> bool {
    // SAFETY: reads a variable.
    unsafe { pg_sys::XactIsoLevel <= pg_sys::XACT_READ_COMMITTED as i32 }
}

/// When the current transaction began: what `now()` says in it.
pub fn start_timestamp() -> super::time::TimestampTz {
    // SAFETY: reads a variable.
    unsafe { pg_sys::GetCurrentTransactionStartTimestamp() }
}
