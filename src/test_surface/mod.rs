//! Functions and processes that only the test suite uses, to look at the safe layer from inside a server
//! (cargo feature `pg_test`; the tests are in tests/server/safe_layer.rs).
//!
//! A server that loads this build finds it under the name of the installed library, by its
//! `dynamic_library_path`.

mod errors;
mod mainloop;
pub mod proof;
mod registry;
mod transactions;
mod worker;

use std::ffi::{CString, c_char, c_void};

use crate::pg::fmgr::Call;
use crate::pg::local::ProcessLocal;
use crate::pg::lwlock::LwLock;
use crate::pg::spi::Spi;
use crate::pg::{Result, guard, xact};
use crate::pg_function;
use crate::pg_sys;

// Of the server; src/pg has no use for them itself.
unsafe extern "C-unwind" {
    static InterruptHoldoffCount: u32;
    static QueryCancelHoldoffCount: u32;
    fn AllocateFile(name: *const c_char, mode: *const c_char) -> *mut c_void;
    fn MemoryContextMemAllocated(context: pg_sys::MemoryContext, recurse: bool) -> usize;
}

/// Values of [`Counted`] that are there now.
static LIVE: ProcessLocal<i32> = ProcessLocal::new(0);

/// A value that owns memory and must be dropped.
struct Counted(#[expect(dead_code, reason = "only there to be freed")] String);

impl Counted {
    fn new(text: &str) -> Self {
        LIVE.set(LIVE.get() + 1);
        Self(text.to_owned())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        LIVE.set(LIVE.get() - 1);
    }
}

/// The only lock that this build has: the queue's own.
const LOCK: &std::ffi::CStr = c"pg_background_queue";

fn lock() -> Result<LwLock> {
    LwLock::named(LOCK)
}

/// Whether this process holds it.
fn holds_lock() -> Result<bool> {
    let name = LOCK.as_ptr();
    // SAFETY: a terminated static.
    let padded = guard(|| unsafe { pg_sys::GetNamedLWLockTranche(name) })?;
    // SAFETY: only looks at this process's list of held locks.
    guard(|| unsafe { pg_sys::LWLockHeldByMe(padded.cast()) })
}

/// An ERROR of the server that leaves nothing half done, so that a test may go on after it.
fn harmless_error() -> Result<()> {
    LwLock::named(c"pgbq_test: there is no such tranche").map(|_| ())
}

/// Runs SQL through SPI.
fn spi(sql: &str) -> Result<u64> {
    let sql = CString::new(sql).unwrap_or_default();
    Spi::connect()?.execute(&sql, &[])
}

fn text(call: &Call, n: i32) -> Result<String> {
    Ok(String::from_utf8_lossy(&call.text(n)?.unwrap_or_default()).into_owned())
}

fn int(call: &Call, n: i32) -> i32 {
    call.argument(n).map_or(0, |value| value as i32)
}

/// InterruptHoldoffCount and QueryCancelHoldoffCount.
fn holdoff() -> (u32, u32) {
    // SAFETY: C variables of this process, read.
    unsafe { (InterruptHoldoffCount, QueryCancelHoldoffCount) }
}

fn current_context() -> pg_sys::MemoryContext {
    // SAFETY: a C variable of this process, read.
    unsafe { pg_sys::CurrentMemoryContext }
}

fn in_transaction() -> bool {
    xact::is_open()
}

/// Opens a file by the server's means, and forgets it.
fn leave_file_open() -> Result<()> {
    let (name, mode) = (c"postgresql.conf".as_ptr(), c"r".as_ptr());
    // SAFETY: terminated statics; the stream is the server's to close.
    guard(|| unsafe {
        let _ = AllocateFile(name, mode);
    })
}

/// All memory of this process's contexts, as the server has got it from the system.
fn allocated_memory() -> usize {
    // SAFETY: only counts.
    unsafe { MemoryContextMemAllocated(pg_sys::TopMemoryContext, true) }
}

/// The file descriptors that this process has open.
fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// What [`remember`] was last called with.
static REMEMBERED: ProcessLocal<i32> = ProcessLocal::new(0);

/// SPI gives no results back; a query that a test runs can leave a number here.
fn remember(call: &Call) -> Result<()> {
    REMEMBERED.set(int(call, 0));
    Ok(())
}
pg_function!(pgbq_test_remember, pg_finfo_pgbq_test_remember, remember);

/// A number from a query.
fn ask(expression: &str) -> Result<i32> {
    spi(&format!(
        "SELECT public.pgbq_test_remember(({expression})::int)"
    ))?;
    Ok(REMEMBERED.get())
}
