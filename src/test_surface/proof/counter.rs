//! A worker that counts its rounds in a table.

use crate::pg::bgworker::{self, Definition, MainLoop, Next, Restart, Session, Setup};
use crate::pg::datum::Datum;
use crate::pg::spi::Spi;
use crate::pg::xact::{Durability, Transaction};
use crate::pg::{Result, latch, session};

struct Counter;

impl MainLoop for Counter {
    fn step(&mut self) -> Result<Next> {
        bgworker::turn()?;
        let transaction = Transaction::begin(Durability::Session)?;
        Spi::connect()?.execute(c"UPDATE public.counter SET rounds = rounds + 1", &[])?;
        transaction.commit()?;
        session::report_statistics(false)?;
        latch::wait(Some(1000))?;
        Ok(Next::Again)
    }

    fn recovered(&mut self) -> Result<()> {
        // What has failed may fail again: not at once.
        latch::wait(Some(1000)).map(drop)
    }
}

fn main(_argument: Datum) -> Result<()> {
    let worker = Setup::new(Session::Named(c"postgres", None)).begin()?;
    worker.run(&mut Counter);
    Ok(())
}
crate::worker_main!(counter_main, main);

pub fn counter() -> Definition {
    Definition::new("counter", "pg_background_queue", "counter_main").restart(Restart::After(1))
}
