//! Running SQL text as a client's message would.

use std::ffi::{CString, c_int, c_void};

use super::boundary::boundary;
use super::error::{Error, Result, c_string};
use super::mem::MemoryContext;
use crate::pg_sys;

/// Runs `sql` as `psql -c` would, in transactions of its own; `before_commit` is called in the last of them,
/// right before it commits. After `timeout_ms` (0: never) it is cancelled. The process is in no transaction before and after, whatever happens.
/// See shim/statement.c for what is refused and how transactions end.
///
/// # Errors
/// What the text, `before_commit`, or the commit raised; all of the last transaction is rolled back.
pub fn run<F>(
    sql: &[u8],
    memory: &MemoryContext,
    timeout_ms: i32,
    mut before_commit: F,
) -> Result<()>
where
    F: FnMut() -> Result<()>,
{
    extern "C-unwind" fn call<F: FnMut() -> Result<()>>(arg: *mut c_void) {
        // SAFETY: `arg` is the closure below, which outlives the call.
        let hook = unsafe { &mut *arg.cast::<F>() };
        boundary(hook);
    }
    let text = c_string(sql);
    // SAFETY: terminated text and a live closure; the verb itself catches every ERROR, so no guard is needed.
    let error = unsafe {
        pg_sys::pgbq_run_statements(
            text.as_ptr(),
            memory.as_ptr(),
            timeout_ms,
            Some(call::<F>),
            (&raw mut before_commit).cast(),
        )
    };
    if error.is_null() {
        Ok(())
    } else {
        // SAFETY: an error that is now ours.
        Err(unsafe { Error::take(error) })
    }
}

/// A text of a batch.
pub struct Text<'a> {
    /// What to run.
    pub sql: &'a [u8],
    /// Milliseconds after which it is cancelled; 0 is never.
    pub timeout_ms: i32,
}

/// Who is asked at each step of a batch; `index` says of which text.
pub trait Watch {
    /// It is about to run, in its subtransaction. False if it must be alone: the batch ends before it.
    ///
    /// # Errors
    /// As if the text had raised them.
    fn begin(&mut self, index: usize) -> Result<bool>;

    /// It has run; its subtransaction is still open. False if the batch must end with it.
    ///
    /// # Errors
    /// As if the text had raised them.
    fn done(&mut self, index: usize) -> Result<bool>;

    /// It has failed, and its subtransaction is rolled back. False if the batch must end with it.
    ///
    /// # Errors
    /// All of the batch is rolled back.
    fn failed(&mut self, index: usize, error: &Error) -> Result<bool>;

    /// The transaction is about to commit, if the batch has settled any.
    ///
    /// # Errors
    /// All of the batch is rolled back.
    fn before_commit(&mut self) -> Result<()>;
}

/// What a batch has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchEnd {
    /// So many of its texts, from the first on, are done or have failed, and that is committed.
    pub settled: usize,
    /// The next one is to be [run] alone.
    pub alone: bool,
}

/// Runs texts in one transaction, a subtransaction each, for `most_ms` milliseconds at most: see shim/batch.c.
pub fn run_batch<W: Watch>(
    texts: &[Text<'_>],
    most_ms: i32,
    memory: &MemoryContext,
    watch: &mut W,
) -> BatchEnd {
    extern "C-unwind" fn call<W: Watch>(
        arg: *mut c_void,
        step: pg_sys::PgbqBatchStep,
        index: c_int,
        error: *mut pg_sys::ErrorData,
    ) -> bool {
        // SAFETY: `arg` is the watch below, which outlives the call.
        let watch = unsafe { &mut *arg.cast::<W>() };
        let index = usize::try_from(index).unwrap_or(0);
        boundary(|| match step {
            pg_sys::PGBQ_BATCH_BEGIN => watch.begin(index),
            pg_sys::PGBQ_BATCH_DONE => watch.done(index),
            pg_sys::PGBQ_BATCH_FAILED => {
                // SAFETY: with this step it is an error that is now ours.
                let error = unsafe { Error::take(error) };
                watch.failed(index, &error)
            }
            _ => watch.before_commit().map(|()| true),
        })
    }
    let sqls: Vec<CString> = texts.iter().map(|text| c_string(text.sql)).collect();
    let list: Vec<pg_sys::PgbqText> = texts
        .iter()
        .zip(&sqls)
        .map(|(text, sql)| pg_sys::PgbqText {
            sql: sql.as_ptr(),
            timeout_ms: text.timeout_ms,
        })
        .collect();
    let mut alone = false;
    // SAFETY: terminated texts, as many as said, and a live watch; the verb itself catches every ERROR, so no guard is needed.
    let settled = unsafe {
        pg_sys::pgbq_run_batch(
            list.as_ptr(),
            c_int::try_from(list.len()).unwrap_or(0),
            most_ms,
            memory.as_ptr(),
            Some(call::<W>),
            std::ptr::from_mut(watch).cast(),
            &raw mut alone,
        )
    };
    BatchEnd {
        settled: usize::try_from(settled).unwrap_or(0),
        alone,
    }
}
