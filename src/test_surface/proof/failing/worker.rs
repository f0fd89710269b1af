//! The workers.

use super::{
    ERROR, ERROR_BEFORE_READY, FAILING, INHERITED, NEVER_READY, NO_SUCH_DATABASE, PANIC, WAIT,
    WAIT_WITHOUT_SESSION, Way, error,
};
use crate::pg::bgworker::pool::{Member, Shared};
use crate::pg::bgworker::{self, MainLoop, Next, Session, Setup};
use crate::pg::datum::Datum;
use crate::pg::{Result, latch, log};
use crate::worker_main;

/// Gone before anything.
fn fail_at_once(_argument: Datum) -> Result<()> {
    Err(error())
}
worker_main!(pgbq_test_fail_at_once_main, fail_at_once);

fn exit_at_once(_argument: Datum) -> Result<()> {
    Ok(())
}
worker_main!(pgbq_test_exit_at_once_main, exit_at_once);

fn failing(argument: Datum) -> Result<()> {
    work(&FAILING, argument)
}
worker_main!(pgbq_test_failing_main, failing);

fn inherited(argument: Datum) -> Result<()> {
    work(&INHERITED, argument)
}
worker_main!(pgbq_test_inherited_main, inherited);

fn work(pool: &'static Shared<Way, u32>, argument: Datum) -> Result<()> {
    let Some(member) = Member::attach(pool, argument)? else {
        return log::log("pgbq_test: a late worker leaves");
    };
    let Way { way, database } = member.key();
    let session = match way {
        NO_SUCH_DATABASE => Session::Superuser(4_000_000_000),
        WAIT_WITHOUT_SESSION => Session::Nothing,
        _ => Session::Superuser(database),
    };
    let worker = Setup::new(session).begin()?;
    if way == ERROR_BEFORE_READY {
        return Err(error());
    }
    if way != NEVER_READY {
        member.ready()?;
    }
    member.update(|stored| *stored = 42)?;
    match way {
        ERROR => Err(error()),
        PANIC => panic!("pgbq_test: a worker panics"),
        WAIT | WAIT_WITHOUT_SESSION | NEVER_READY => {
            worker.run(&mut Wait);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Waits for ever.
pub(super) struct Wait;

impl MainLoop for Wait {
    fn step(&mut self) -> Result<Next> {
        bgworker::turn()?;
        latch::wait(None)?;
        log::log("pgbq_test: a worker was woken")?;
        Ok(Next::Again)
    }

    fn recovered(&mut self) -> Result<()> {
        Ok(())
    }
}
