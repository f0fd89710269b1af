//! Workers that have nothing to do with the queue, written on the worker kit alone: a counter with a database, a pool of short-lived
//! workers whose results a backend collects, and one that fails in every way. None of them has, or needs, any `unsafe`: a test
//! looks. `counter.rs` is the example of docs/background-workers.md.

mod counter;
mod failing;
mod sums;

use crate::pg::fmgr::Call;
use crate::pg::guc::{IntDefinition, IntSetting};
use crate::pg::{Error, Result, sqlstate};
use crate::pg_function;

static STATIC_WORKERS: IntSetting = IntSetting::new();

/// From `_PG_init` in the postmaster: static workers, if they are wanted: 1 two that work for themselves, 2 one that owns others.
pub fn preload() -> Result<()> {
    STATIC_WORKERS.define(IntDefinition {
        name: c"pgbq_test.static_workers",
        short: c"Registers workers when the server starts.",
        long: c"",
        default: 0,
        min: 0,
        max: 2,
        unit: 0,
    })?;
    match STATIC_WORKERS.get() {
        1 => {
            counter::counter().register()?;
            failing::joining::static_member().register()
        }
        2 => failing::supervisor::static_owner().register(),
        _ => Ok(()),
    }
}

/// Asks for the pools' shared memory.
pub fn request() -> Result<()> {
    sums::SUMS.request()?;
    failing::FAILING.request()?;
    failing::INHERITED.request()
}

/// Fills it.
pub fn startup() -> Result<()> {
    sums::SUMS.startup()?;
    failing::FAILING.startup()?;
    failing::INHERITED.startup()
}

/// The same counter as a dynamic worker; its pid.
fn start_counter(_call: &Call) -> Result<i32> {
    let failed = || Error::new(sqlstate::INSUFFICIENT_RESOURCES, "it could not be started");
    let handle = counter::counter().launch()?.ok_or_else(failed)?;
    match handle.wait_for_startup(None)? {
        crate::pg::bgworker::Started::Running(pid) => Ok(pid),
        _ => Err(failed()),
    }
}
pg_function!(
    pgbq_test_start_counter,
    pg_finfo_pgbq_test_start_counter,
    start_counter
);
