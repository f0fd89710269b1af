//! Errors and panics in a backend, on their way from wherever they arise to the client.

use super::{Counted, LIVE, harmless_error, holdoff, holds_lock, int, lock, spi, text};
use crate::pg::fmgr::Call;
use crate::pg::local::ProcessLocal;
use crate::pg::mem::MemoryContext;
use crate::pg::{Error, Result, SqlState, log, sqlstate};
use crate::pg_function;

fn run_sql(call: &Call) -> Result<()> {
    let _value = Counted::new("beside an SPI connection");
    spi(&text(call, 0)?).map(|_| ())
}
pg_function!(pgbq_test_spi, pg_finfo_pgbq_test_spi, run_sql);

fn own_error() -> Error {
    Error::new(SqlState::new(b"22P99"), "an error of Rust")
        .detail("A detail of Rust.")
        .hint("A hint of Rust.")
}

fn raise(_call: &Call) -> Result<()> {
    Err(own_error())
}
pg_function!(pgbq_test_error, pg_finfo_pgbq_test_error, raise);

fn panic_with(how: i32) -> Result<()> {
    match how {
        0 => panic!("a static text"),
        1 => panic!("a text with {how}"),
        _ => std::panic::panic_any(how),
    }
}

fn panic(call: &Call) -> Result<()> {
    let _value = Counted::new("beside a panic");
    panic_with(int(call, 0))
}
pg_function!(pgbq_test_panic, pg_finfo_pgbq_test_panic, panic);

fn live(_call: &Call) -> Result<i32> {
    Ok(LIVE.get())
}
pg_function!(pgbq_test_live, pg_finfo_pgbq_test_live, live);

/// Values at each of so many depths; at the bottom SQL, an error of ours, a panic, or nothing.
fn descend(depth: i32, how: i32, sql: &str) -> Result<i32> {
    let _one = Counted::new("one");
    let many: Vec<_> = (0..3).map(|_| Box::new(Counted::new("many"))).collect();
    if depth > 0 {
        let below = descend(depth - 1, how, sql)?;
        return Ok(below + 1 + i32::try_from(many.len()).unwrap_or(0));
    }
    match how {
        0 => spi(sql).map(|_| 4),
        1 => Err(own_error()),
        2 => panic_with(1).map(|()| 0),
        _ => Ok(LIVE.get()),
    }
}

fn depth(call: &Call) -> Result<i32> {
    descend(int(call, 0), int(call, 1), &text(call, 2)?)
}
pg_function!(pgbq_test_depth, pg_finfo_pgbq_test_depth, depth);

fn holdoff_counts(_call: &Call) -> Result<i64> {
    let (interrupts, cancels) = holdoff();
    // As signed numbers: a count that went below zero shows as such.
    Ok(i64::from(interrupts.cast_signed()) * 1000 + i64::from(cancels.cast_signed()))
}
pg_function!(
    pgbq_test_holdoff,
    pg_finfo_pgbq_test_holdoff,
    holdoff_counts
);

fn lock_is_held(_call: &Call) -> Result<bool> {
    holds_lock()
}
pg_function!(
    pgbq_test_holds_lock,
    pg_finfo_pgbq_test_holds_lock,
    lock_is_held
);

/// An error under a lock, by how it goes on from there.
fn under_lock(call: &Call) -> Result<()> {
    let held = lock()?.exclusive()?;
    assert_eq!(holdoff(), (1, 0));
    match int(call, 0) {
        // caught, and released later; nothing is to be cleaned up after this one
        0 => {
            assert!(harmless_error().is_err());
            assert_eq!(holdoff(), (1, 0), "after the error");
            drop(held);
            assert_eq!(holdoff(), (0, 0), "after the release");
            Ok(())
        }
        // caught, released, returned
        1 => {
            let error = harmless_error();
            drop(held);
            assert_eq!(holdoff(), (0, 0));
            error
        }
        // released by the drop on the way
        2 => harmless_error(),
        3 => Err(own_error()),
        4 => panic_with(0),
        // held until the transaction is aborted
        5 => {
            std::mem::forget(held);
            harmless_error()
        }
        6 => {
            std::mem::forget(held);
            Err(own_error())
        }
        _ => {
            std::mem::forget(held);
            panic_with(1)
        }
    }
}
pg_function!(
    pgbq_test_under_lock,
    pg_finfo_pgbq_test_under_lock,
    under_lock
);

static CAUGHT: ProcessLocal<i32> = ProcessLocal::new(0);

/// Reports until a report comes back as an error, for half a minute at most.
fn report(call: &Call) -> Result<()> {
    let warn = int(call, 0) != 0;
    let _value = Counted::new("beside a report");
    for _ in 0..10_000 {
        let reported = if warn {
            log::warning(sqlstate::INTERNAL_ERROR, "pgbq_test: a warning", "None.")
        } else {
            log::log("pgbq_test: a log line")
        };
        if reported.is_err() {
            CAUGHT.set(CAUGHT.get() + 1);
            return reported;
        }
        // The signal ends it early; what was sent by it is served by the next report alone.
        std::thread::sleep(std::time::Duration::from_millis(3));
    }
    Ok(())
}
pg_function!(pgbq_test_report, pg_finfo_pgbq_test_report, report);

fn caught(_call: &Call) -> Result<i32> {
    Ok(CAUGHT.get())
}
pg_function!(pgbq_test_caught, pg_finfo_pgbq_test_caught, caught);

/// Catches so many errors in a memory context of its own, and runs the SQL when a hundred and when all are done.
fn catch_errors(call: &Call) -> Result<()> {
    let sql = text(call, 1)?;
    let memory = MemoryContext::new("pgbq_test caught errors")?;
    let entered = memory.enter();
    for i in 1..=int(call, 0) {
        assert!(harmless_error().is_err());
        if i == 100 {
            spi(&sql)?;
        }
    }
    spi(&sql)?;
    drop(entered);
    Ok(())
}
pg_function!(
    pgbq_test_catch_errors,
    pg_finfo_pgbq_test_catch_errors,
    catch_errors
);
