//! A main loop that fails, in every way and again and again.

use std::ffi::c_void;

use super::{
    LIVE, allocated_memory, current_context, harmless_error, holdoff, holds_lock, in_transaction,
    leave_file_open, lock, open_files, spi,
};
use crate::pg::bgworker::{self, MainLoop, Next, Worker};
use crate::pg::local::ProcessLocal;
use crate::pg::snapshot::ActiveSnapshot;
use crate::pg::table::{self, IndexScan};
use crate::pg::xact::{Durability, Transaction};
use crate::pg::{Error, Result, boundary, catalog, guard, interrupt, latch, log, sqlstate};
use crate::pg_sys;

/// Each kind of failure, three times.
const EACH_KIND: i32 = 1;
/// 100,000 failures; what is in use is told when there were some, and at the end.
const MANY: i32 = 2;
/// The recovery fails, by an error of ours.
const RECOVERY_ERROR: i32 = 3;
/// The recovery fails, by a panic.
const RECOVERY_PANIC: i32 = 4;
/// The recovery fails, by an error of the server in a transaction.
const RECOVERY_SQL_ERROR: i32 = 5;
/// Waits for its latch, and logs each round.
const WAIT: i32 = 6;
/// The kinds of failure that need no database, three times.
const WITHOUT_DATABASE: i32 = 7;
/// Leaves at once.
const LEAVE: i32 = 8;

/// Ends itself by a FATAL error in a transaction.
const FATAL: i32 = 9;
/// Is idle in a way that a cancel makes an error of.
const IDLE: i32 = 10;
/// As [`MANY`], with the kinds that need no database.
const MANY_WITHOUT_DATABASE: i32 = 11;

/// The abort of a failed transaction fails, and does not when the loop tries again.
const ABORT_FAILS_ONCE: i32 = 12;
/// It does.
const ABORT_FAILS_TWICE: i32 = 13;

/// So many failures show what each kind needs for the first time.
const FIRST_NOTE: u32 = 1399;

const KINDS: u32 = 14;
/// Those of them that need no database.
const SIMPLE: [u32; 6] = [1, 2, 4, 7, 10, 12];

struct Failing {
    scenario: i32,
    /// The first step's.
    context: Option<pg_sys::MemoryContext>,
    failures: u32,
    recoveries: u32,
}

/// Runs one of the scenarios above.
pub(super) fn run(worker: &Worker, scenario: i32) -> Result<()> {
    let before = current_context();
    worker.run(&mut Failing {
        scenario,
        context: None,
        failures: 0,
        recoveries: 0,
    });
    if scenario == LEAVE {
        assert!(
            current_context() == before,
            "the loop has left its memory context current"
        );
    }
    Ok(())
}

fn transaction() -> Result<Transaction> {
    Transaction::begin(Durability::Session)
}

fn error() -> Error {
    Error::new(sqlstate::INTERNAL_ERROR, "pgbq_test: an error of Rust")
}

/// How often an abort has still to fail.
static ABORT_FAILS: ProcessLocal<u32> = ProcessLocal::new(0);

fn make_abort_fail(times: u32) -> Result<()> {
    extern "C-unwind" fn call(event: pg_sys::XactEvent, _arg: *mut c_void) {
        let times = ABORT_FAILS.get();
        if event == pg_sys::XACT_EVENT_ABORT && times > 0 {
            ABORT_FAILS.set(times - 1);
            boundary(|| -> Result<()> {
                Err(Error::new(
                    sqlstate::INTERNAL_ERROR,
                    "pgbq_test: an error in the abort",
                ))
            });
        }
    }
    ABORT_FAILS.set(times);
    // SAFETY: a function of the right type, no argument.
    guard(|| unsafe { pg_sys::RegisterXactCallback(Some(call), std::ptr::null_mut()) })
}

fn fail(kind: u32) -> Result<()> {
    match kind {
        0 => {
            let _transaction = transaction()?;
            spi("SELECT 1/0")?;
        }
        1 => return Err(error()),
        2 => panic!("pgbq_test: a panic"),
        3 => {
            let transaction = transaction()?;
            spi("INSERT INTO public.deferred VALUES (1), (1)")?;
            transaction.commit()?;
        }
        4 => {
            let _held = lock()?.exclusive()?;
            harmless_error()?;
        }
        5 => {
            let _transaction = transaction()?;
            std::mem::forget(lock()?.exclusive()?);
            return Err(error());
        }
        6 => {
            let _transaction = transaction()?;
            let _held = lock()?.exclusive()?;
            panic!("pgbq_test: a panic with a lock");
        }
        7 => harmless_error()?,
        8 => {
            let _transaction = transaction()?;
            spi("SELECT public.pgbq_test_depth(3, 2, '')")?;
        }
        9 => {
            let _transaction = transaction()?;
            spi(
                "DO 'BEGIN PERFORM public.pgbq_test_error(); EXCEPTION WHEN OTHERS THEN RAISE; END'",
            )?;
        }
        10 => {
            std::mem::forget(lock()?.exclusive()?);
            return Err(error());
        }
        11 => {
            // pins, a relation that is open, and a snapshot, all left behind
            let _transaction = transaction()?;
            let (relation, index) = rows()?;
            let mut scan = IndexScan::begin(relation, index, &[])?;
            assert!(scan.next(&mut [table::null_column(1)])?);
            std::mem::forget(ActiveSnapshot::push()?);
            spi("SELECT 1/0")?;
        }
        12 => {
            leave_file_open()?;
            return Err(error());
        }
        13 => {
            let _transaction = transaction()?;
            spi("LOCK public.rows; SELECT pg_advisory_xact_lock(1)")?;
            std::mem::forget(ActiveSnapshot::push()?);
            return Err(error());
        }
        _ => {}
    }
    unreachable!("kind {kind} has not failed")
}

fn rows() -> Result<(crate::pg::Oid, crate::pg::Oid)> {
    let oid =
        |name: &str| super::ask(&format!("'public.{name}'::regclass::oid")).map(i32::cast_unsigned);
    Ok((oid("rows")?, oid("rows_pkey")?))
}

fn note(failures: u32) -> Result<()> {
    assert!(!ActiveSnapshot::is_set(), "a snapshot is active");
    log::log(format!(
        "pgbq_test: after {failures} failures {} bytes, {} files",
        allocated_memory(),
        open_files()
    ))?;
    if catalog::current_database() == crate::pg::INVALID_OID {
        return Ok(());
    }
    let transaction = transaction()?;
    if failures == FIRST_NOTE + 1 {
        spi("DELETE FROM public.memory")?;
    }
    spi(
        "INSERT INTO public.memory SELECT name, sum(used_bytes) FROM pg_backend_memory_contexts GROUP BY name",
    )?;
    transaction.commit()
}

impl MainLoop for Failing {
    fn step(&mut self) -> Result<Next> {
        // a cancel may come anywhere
        bgworker::turn().inspect_err(|_| self.failures += 1)?;
        assert_eq!(self.failures, self.recoveries, "recoveries");
        let context = *self.context.get_or_insert(current_context());
        assert!(current_context() == context, "another memory context");
        let simple = SIMPLE[self.failures as usize % SIMPLE.len()];
        let (kind, count) = match self.scenario {
            EACH_KIND => (self.failures % KINDS, 3 * KINDS),
            MANY => (self.failures % KINDS, 100_000),
            WITHOUT_DATABASE => (simple, 3 * SIMPLE.len() as u32),
            MANY_WITHOUT_DATABASE => (simple, 100_000),
            FATAL => {
                let _transaction = transaction()?;
                spi("SELECT pg_terminate_backend(pg_backend_pid())")?;
                interrupt::check()?;
                unreachable!("the process goes on");
            }
            IDLE => {
                let outcome = log::log("pgbq_test: idle")
                    .and_then(|()| latch::wait(None))
                    .and_then(|_| interrupt::check());
                outcome.inspect_err(|_| self.failures += 1)?;
                return Ok(Next::Again);
            }
            WAIT => {
                log::log("pgbq_test: waiting")?;
                latch::wait(None)?;
                return Ok(Next::Again);
            }
            LEAVE => return Ok(Next::Leave),
            ABORT_FAILS_ONCE | ABORT_FAILS_TWICE if self.failures > 0 => return Ok(Next::Leave),
            ABORT_FAILS_ONCE | ABORT_FAILS_TWICE => {
                self.failures += 1;
                let _transaction = transaction()?;
                make_abort_fail(if self.scenario == ABORT_FAILS_ONCE {
                    1
                } else {
                    2
                })?;
                spi("SELECT 1/0")?;
                unreachable!("there was no error");
            }
            _ => (0, 2),
        };
        let many = count > 10_000;
        // the first time only so that what noting itself needs is there the next time
        if many && [FIRST_NOTE, FIRST_NOTE + 1, count].contains(&self.failures) {
            note(self.failures)?;
        }
        if self.failures == count {
            log::log(format!(
                "pgbq_test: {count} failures, {} recoveries",
                self.recoveries
            ))?;
            if many {
                // for others to look at
                latch::wait(None)?;
                return Ok(Next::Again);
            }
            return Ok(Next::Leave);
        }
        self.failures += 1;
        fail(kind)?;
        Ok(Next::Again)
    }

    fn recovered(&mut self) -> Result<()> {
        self.recoveries += 1;
        assert_eq!(holdoff(), (0, 0), "holdoff counts");
        assert!(!in_transaction(), "a transaction is open");
        assert!(
            Some(current_context()) == self.context,
            "another memory context"
        );
        assert_eq!(LIVE.get(), 0, "values that were not dropped");
        assert!(!holds_lock()?, "the lock is held");
        match self.scenario {
            RECOVERY_ERROR => Err(error()),
            RECOVERY_PANIC => panic!("pgbq_test: a panic in the recovery"),
            RECOVERY_SQL_ERROR => {
                let _transaction = transaction()?;
                spi("SELECT 1/0").map(|_| ())
            }
            _ => Ok(()),
        }
    }
}
