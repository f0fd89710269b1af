//! A worker process that goes through one of several scenarios and logs how it went.

use super::{int, mainloop, transactions};
use crate::pg::bgworker::{Definition, Session, Setup, Started};
use crate::pg::datum::Datum;
use crate::pg::fmgr::Call;
use crate::pg::xact::{Durability, Scope, Snapshot, Transaction};
use crate::pg::{Error, Result, catalog, log, sqlstate};
use crate::{pg_function, worker_main};

/// Starts a scenario, in this database unless its kind of session says otherwise (0: that; 1: shared catalogs only; 2: none; 3: by
/// name); returns the worker's pid, or 0 if it has ended already.
fn start(call: &Call) -> Result<i32> {
    let (scenario, session) = (int(call, 0), int(call, 1));
    let packed = (scenario.cast_unsigned() | session.cast_unsigned() << 16) as Datum;
    let argument = packed << 32 | catalog::current_database() as Datum;
    let launched = Definition::new(
        "pgbq_test worker",
        "pg_background_queue",
        "pgbq_test_worker_main",
    )
    .argument(argument)
    .launch()?;
    let Some(handle) = launched else {
        return Err(Error::new(
            sqlstate::INSUFFICIENT_RESOURCES,
            "no worker slot is free",
        ));
    };
    Ok(match handle.wait_for_startup(None)? {
        Started::Running(pid) => pid,
        _ => 0,
    })
}
pg_function!(pgbq_test_start, pg_finfo_pgbq_test_start, start);

fn exit(code: i32) {
    let _ = log::log(format!("pgbq_test: exit callback, code {code}"));
}

fn exit_panicking(code: i32) {
    exit(code);
    panic!("pgbq_test: a panic in the exit callback");
}

/// What a worker without a session must not do, and one that is set up must not do again.
fn without_session(session: Session) -> Result<()> {
    let refused = |result: Result<()>, message: &str| {
        let error = result.expect_err(message);
        let said = String::from_utf8_lossy(error.message()).into_owned();
        assert!(said.contains(message), "{said}");
    };
    let begin = || Transaction::begin(Durability::Session).map(drop);
    refused(begin(), "this process has no session");
    refused(
        Scope::begin(Snapshot::None).map(drop),
        "this process has no session",
    );
    refused(Setup::new(session).begin().map(drop), "is set up already");
    Ok(())
}

/// No worker at all.
fn setup_here(_call: &Call) -> Result<()> {
    Setup::new(Session::Nothing).begin().map(drop)
}
pg_function!(
    pgbq_test_setup_here,
    pg_finfo_pgbq_test_setup_here,
    setup_here
);

fn main(argument: Datum) -> Result<()> {
    let scenario = (argument >> 32 & 0xFFFF) as i32;
    let session = match argument >> 48 {
        1 => Session::Shared,
        2 => Session::Nothing,
        3 => Session::Named(c"postgres", Some(c"somebody")),
        _ => Session::Superuser(argument as u32),
    };
    let worker = Setup::new(session)
        .application_name("pgbq_test")
        .at_exit(if scenario == 103 {
            exit_panicking
        } else {
            exit
        })
        .begin()?;
    match scenario {
        0 => transactions::run()?,
        1..=99 => mainloop::run(&worker, scenario)?,
        100 => transactions::late_snapshot()?,
        101 => transactions::lock_around()?,
        102 => transactions::panic_at_end()?,
        103 => {}
        104 => without_session(session)?,
        _ => return Err(Error::new(sqlstate::INTERNAL_ERROR, "no such scenario")),
    }
    log::log(format!("pgbq_test: scenario {scenario} has ended well"))
}
worker_main!(pgbq_test_worker_main, main);
