//! A worker process that goes through one of several scenarios and logs how it went.

use super::pool;
use super::{int, mainloop, transactions};
use crate::pg::bgworker::{self, Definition, Handle, Restart, Session, Started};
use crate::pg::datum::Datum;
use crate::pg::fmgr::Call;
use crate::pg::{Error, Result, boundary, callback, catalog, log, sqlstate};
use crate::pg_function;

/// Starts the test worker of this main function.
pub(super) fn launch(function: &'static str, argument: Datum) -> Result<Option<Handle>> {
    Definition {
        name: "pgbq_test worker".to_owned(),
        kind: "pgbq_test worker",
        library: "pg_background_queue",
        function,
        restart: Restart::Never,
        database: true,
        argument,
        notify: true,
    }
    .launch()
}

/// Starts a scenario in this database; returns the worker's pid, or 0 if it has ended already.
fn start(call: &Call) -> Result<i32> {
    let scenario = int(call, 0).cast_unsigned() as Datum;
    let argument = scenario << 32 | catalog::current_database() as Datum;
    let Some(handle) = launch("pgbq_test_worker_main", argument)? else {
        return Err(Error::new(
            sqlstate::INSUFFICIENT_RESOURCES,
            "no worker slot is free",
        ));
    };
    Ok(match handle.wait_for_startup()? {
        Started::Running(pid) => pid,
        _ => 0,
    })
}
pg_function!(pgbq_test_start, pg_finfo_pgbq_test_start, start);

fn exit() {
    let _ = log::log("pgbq_test: exit callback");
}

fn exit_panicking() {
    exit();
    panic!("pgbq_test: a panic in the exit callback");
}

/// The main function of the test worker.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pgbq_test_worker_main(argument: Datum) {
    boundary(|| {
        bgworker::setup();
        let scenario = (argument >> 32) as i32;
        callback::at_exit(if scenario == 103 {
            exit_panicking
        } else {
            exit
        })?;
        bgworker::connect(Session::Superuser(argument as u32), c"pgbq_test")?;
        match scenario {
            0 => transactions::run()?,
            1..=99 => mainloop::run(scenario)?,
            100 => transactions::late_snapshot()?,
            101 => transactions::lock_around()?,
            102 => transactions::panic_at_end()?,
            103 => {}
            _ => return Err(Error::new(sqlstate::INTERNAL_ERROR, "no such scenario")),
        }
        log::log(format!("pgbq_test: scenario {scenario} has ended well"))
    });
}

/// The main function of a worker that only takes its slot.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pgbq_test_pool_main(argument: Datum) {
    boundary(|| {
        bgworker::setup();
        pool::take(argument)
    });
}
