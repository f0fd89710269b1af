//! A main loop that fails, in every way and again and again.

use super::{
    LIVE, current_context, harmless_error, holdoff, holds_lock, in_transaction, lock, spi,
};
use crate::pg::bgworker::{self, MainLoop, Next};
use crate::pg::mem::MemoryContext;
use crate::pg::xact::{Durability, Transaction};
use crate::pg::{Error, Result, latch, log, sqlstate};
use crate::pg_sys;

/// Each kind of failure, three times.
const EACH_KIND: i32 = 1;
/// 10,000 failures; what memory is in use is written down when there were a few hundred, and at the end.
const MANY: i32 = 2;
/// The recovery fails, by an error of ours.
const RECOVERY_ERROR: i32 = 3;
/// The recovery fails, by a panic.
const RECOVERY_PANIC: i32 = 4;
/// The recovery fails, by an error of the server in a transaction.
const RECOVERY_SQL_ERROR: i32 = 5;
/// Waits for its latch, and logs each round.
const WAIT: i32 = 6;
/// A lock is forgotten outside a transaction.
const FORGOTTEN_LOCK: i32 = 7;
/// Leaves at once.
const LEAVE: i32 = 8;

const KINDS: u32 = 10;

struct Failing {
    scenario: i32,
    context: pg_sys::MemoryContext,
    failures: u32,
    recoveries: u32,
}

/// Runs one of the scenarios above.
pub(super) fn run(scenario: i32) -> Result<()> {
    let before = current_context();
    let memory = MemoryContext::new("pgbq_test main loop")?;
    let context = memory.as_ptr();
    bgworker::run(
        &memory,
        &mut Failing {
            scenario,
            context,
            failures: 0,
            recoveries: 0,
        },
    );
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
        _ => {}
    }
    unreachable!("kind {kind} has not failed")
}

fn note_memory() -> Result<()> {
    let transaction = transaction()?;
    spi(
        "INSERT INTO public.memory SELECT name, sum(used_bytes) FROM pg_backend_memory_contexts GROUP BY name",
    )?;
    transaction.commit()
}

impl MainLoop for Failing {
    fn step(&mut self) -> Result<Next> {
        bgworker::turn()?;
        assert_eq!(self.failures, self.recoveries, "recoveries");
        let (kind, count) = match self.scenario {
            EACH_KIND => (self.failures % KINDS, 3 * KINDS),
            MANY => (self.failures % KINDS, 10_000),
            WAIT => {
                log::log("pgbq_test: waiting")?;
                latch::wait(None)?;
                return Ok(Next::Again);
            }
            FORGOTTEN_LOCK => (10, 1),
            LEAVE => return Ok(Next::Leave),
            _ => (0, 2),
        };
        if self.scenario == MANY && (self.failures == 500 || self.failures == count) {
            note_memory()?;
        }
        if self.failures == count {
            log::log(format!(
                "pgbq_test: {count} failures, {} recoveries",
                self.recoveries
            ))?;
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
        assert!(current_context() == self.context, "another memory context");
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
