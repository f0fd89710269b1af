//! Transactions of our own.

use super::error::Result;
use super::guard;
use super::snapshot::ActiveSnapshot;
use crate::pg_sys;

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
/// It is READ COMMITTED and read-write whatever the role's or database's settings say, and it has an active
/// snapshot: it is meant for bookkeeping that must not depend on who is logged in.
#[must_use = "dropping it aborts the transaction"]
pub struct Transaction {
    snapshot: Option<ActiveSnapshot>,
    memory: pg_sys::MemoryContext,
    synchronous_commit: i32,
}

impl Transaction {
    /// Begins it.
    ///
    /// # Errors
    /// Out of memory.
    pub fn begin(durability: Durability) -> Result<Self> {
        // SAFETY: a global that always points to a context.
        let memory = unsafe { pg_sys::CurrentMemoryContext };
        // SAFETY: a plain C variable, read.
        let synchronous_commit = unsafe { pg_sys::synchronous_commit };
        // SAFETY: no arguments.
        guard(|| unsafe { pg_sys::SetCurrentStatementStartTimestamp() })?;
        // SAFETY: no transaction is open: asserted by the server.
        guard(|| unsafe { pg_sys::pgbq_start_transaction() })?;
        let mut transaction = Self {
            snapshot: None,
            memory,
            synchronous_commit,
        };
        // SAFETY: C variables that StartTransaction has just set from default_transaction_*; before the first
        // snapshot they may still be changed, which is what SET TRANSACTION does.
        unsafe {
            pg_sys::XactIsoLevel = pg_sys::XACT_READ_COMMITTED as i32;
            pg_sys::XactReadOnly = false;
            pg_sys::XactDeferrable = false;
            let flushed = pg_sys::SYNCHRONOUS_COMMIT_LOCAL_FLUSH as i32;
            pg_sys::synchronous_commit = match durability {
                Durability::Session => synchronous_commit,
                Durability::Flushed => synchronous_commit.max(flushed),
                Durability::Asynchronous => pg_sys::SYNCHRONOUS_COMMIT_OFF as i32,
            };
        }
        transaction.snapshot = Some(ActiveSnapshot::push()?);
        Ok(transaction)
    }

    /// Commits it; the caller's memory context is current again.
    ///
    /// # Errors
    /// What the commit raises; the transaction is then aborted.
    pub fn commit(mut self) -> Result<()> {
        self.snapshot = None;
        // SAFETY: the transaction is open.
        guard(|| unsafe { pg_sys::CommitTransactionCommand() })?;
        self.restore();
        // Nothing is open any more: an abort would take interrupts for not held off, though a lock of the caller's may be held.
        std::mem::forget(self);
        Ok(())
    }

    fn restore(&mut self) {
        // SAFETY: both are this process's variables; the context existed before the transaction.
        unsafe {
            pg_sys::synchronous_commit = self.synchronous_commit;
            pg_sys::CurrentMemoryContext = self.memory;
        }
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        // The abort pops it; popping it ourselves could raise in a half-broken transaction.
        std::mem::forget(self.snapshot.take());
        // An abort that fails is retried by the error loop's own.
        // SAFETY: harmless where no transaction is open.
        let _ = guard(|| unsafe { pg_sys::pgbq_abort() });
        self.restore();
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
