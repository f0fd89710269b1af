//! Backends whose ears are trouble.

use super::{
    ERROR, EXIT, FAILING, Heard, OfWay, WAIT, WAIT_WITHOUT_SESSION, Way, definition, error, key,
};
use crate::pg::bgworker::pool::{Failure, Owner, Shared, Watch};
use crate::pg::fmgr::Call;
use crate::pg::{Result, interrupt, latch};
use crate::pg_function;

/// Ears that fail whenever they hear something.
#[derive(Default)]
struct Sore(Heard);

impl Watch<Shared<Way, u32>> for Sore {
    fn failed(&mut self, life: &OfWay, why: Failure) -> Result<()> {
        self.0.failed(life, why).and(Err(error()))
    }

    fn started(&mut self, life: &OfWay) -> Result<()> {
        self.0.started(life).and(Err(error()))
    }

    fn exited(&mut self, life: &OfWay) -> Result<()> {
        self.0.exited(life).and(Err(error()))
    }

    fn died(&mut self, life: &OfWay) -> Result<()> {
        self.0.died(life).and(Err(error()))
    }
}

/// What an owner hears of a worker that exits and of one that fails if each of its callbacks fails.
fn hear_with_errors(call: &Call) -> Result<String> {
    let mut owner = Owner::new(&FAILING)?;
    for way in [EXIT, ERROR] {
        owner.launch(definition(way), Way { way, ..key(call) }, 0)?;
    }
    let mut sore = Sore::default();
    while owner.wait_for(|_| true, None, &mut sore).is_err() {
        interrupt::check()?;
    }
    let mut heard = sore.0.0;
    heard.sort();
    Ok(heard.join(", "))
}
pg_function!(
    pgbq_test_hear_with_errors,
    pg_finfo_pgbq_test_hear_with_errors,
    hear_with_errors
);

/// Ears of somebody who does something else when he hears of the first start: he waits until the other worker is there, and takes what
/// the latch was set for.
struct Busy {
    starts: i32,
    others: Vec<Way>,
}

impl Watch<Shared<Way, u32>> for Busy {
    fn started(&mut self, life: &OfWay) -> Result<()> {
        self.starts += 1;
        self.others.retain(|other| *other != life.key);
        for other in &self.others {
            while !FAILING.find(*other)?.is_some_and(|found| found.ready) {
                interrupt::check()?;
                latch::wait(Some(10))?;
            }
        }
        latch::wait(Some(0)).map(drop)
    }

    fn failed(&mut self, _life: &OfWay, _why: Failure) -> Result<()> {
        Err(error())
    }

    fn exited(&mut self, _life: &OfWay) -> Result<()> {
        Err(error())
    }

    fn died(&mut self, _life: &OfWay) -> Result<()> {
        Err(error())
    }
}

/// How many starts an owner has heard of when it is about to sleep.
fn hear_late(call: &Call) -> Result<i32> {
    let mut owner = Owner::new(&FAILING)?;
    let mut busy = Busy {
        starts: 0,
        others: Vec::new(),
    };
    for way in [WAIT, WAIT_WITHOUT_SESSION] {
        let way = Way { way, ..key(call) };
        owner.launch(definition(way.way), way, 0)?;
        busy.others.push(way);
    }
    while busy.starts == 0 {
        interrupt::check()?;
        owner.tend(&mut busy)?;
        latch::wait(Some(10))?;
    }
    Ok(busy.starts)
}
pg_function!(pgbq_test_hear_late, pg_finfo_pgbq_test_hear_late, hear_late);
