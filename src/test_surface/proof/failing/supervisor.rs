//! An owner that is a worker itself, and takes over the workers of its predecessor.

use super::{Heard, INHERITED, WAIT_WITHOUT_SESSION, Way, error, key};
use crate::pg::bgworker::pool::{Owner, Shared};
use crate::pg::bgworker::{self, Definition, MainLoop, Next, Restart, Session, Setup, Started};
use crate::pg::datum::Datum;
use crate::pg::fmgr::Call;
use crate::pg::{Result, latch, log};
use crate::{pg_function, worker_main};

/// Whatever its argument says is what fails in the worker that it launches, if there is none yet.
fn main(argument: Datum) -> Result<()> {
    let worker = Setup::new(Session::Nothing).begin()?;
    let mut owner = Owner::take_over(&INHERITED)?;
    let way = Way {
        way: (argument >> 32) as i32,
        database: argument as u32,
    };
    if way.way != 0 && INHERITED.find(way)?.is_none() {
        let definition = Definition::new(
            "pgbq_test inherited",
            "pg_background_queue",
            "pgbq_test_inherited_main",
        );
        owner.launch(definition, way, 0)?;
    }
    worker.run(&mut Supervisor(owner));
    Ok(())
}
worker_main!(pgbq_test_supervisor_main, main);

struct Supervisor(Owner<Shared<Way, u32>>);

impl MainLoop for Supervisor {
    fn step(&mut self) -> Result<Next> {
        bgworker::turn()?;
        let mut heard = Heard::default();
        self.0.tend(&mut heard)?;
        let me = bgworker::my_pid();
        for event in heard.0 {
            log::log(format!("pgbq_test supervisor {me}: {event}"))?;
        }
        latch::wait(None)?;
        Ok(Next::Again)
    }

    fn recovered(&mut self) -> Result<()> {
        Ok(())
    }
}

fn definition(way: Way) -> Definition {
    Definition::new(
        "pgbq_test supervisor",
        "pg_background_queue",
        "pgbq_test_supervisor_main",
    )
    .without_session()
    .argument((way.way as Datum) << 32 | way.database as Datum)
}

/// The same, started with the server.
pub fn static_owner() -> Definition {
    let way = Way {
        way: WAIT_WITHOUT_SESSION,
        database: 0,
    };
    definition(way).restart(Restart::After(0))
}

/// `supervise(way)`: launches a supervisor whose worker fails in that way (0: it has none); its pid.
fn supervise(call: &Call) -> Result<i32> {
    let handle = definition(key(call)).launch()?.ok_or_else(error)?;
    match handle.wait_for_startup(None)? {
        Started::Running(pid) => Ok(pid),
        _ => Err(error()),
    }
}
pg_function!(pgbq_test_supervise, pg_finfo_pgbq_test_supervise, supervise);
