//! A pool of short-lived workers, started by a backend that collects what they have found out.

use crate::pg::bgworker::pool::{Failure, Life, Member, Owner, Shared, Watch};
use crate::pg::bgworker::{Definition, Session, Setup};
use crate::pg::datum::{Datum, IntoDatum};
use crate::pg::fmgr::Call;
use crate::pg::spi::{Parameter, Spi, types};
use crate::pg::xact::{Durability, Transaction};
use crate::pg::{Error, Oid, Result, catalog, sqlstate};
use crate::{pg_function, worker_main};

/// Which numbers a worker adds up, in which database.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Chunk {
    database: Oid,
    first: i64,
    last: i64,
}

const NONE: Chunk = Chunk {
    database: 0,
    first: 0,
    last: 0,
};

/// Three workers at a time; each stores its sum.
pub static SUMS: Shared<Chunk, i64> = Shared::new(c"pgbq_test sums", 3, (NONE, 0));

/// The worker: adds up, and stores the sum.
fn main(argument: Datum) -> Result<()> {
    let Some(member) = Member::attach(&SUMS, argument)? else {
        return Ok(());
    };
    let chunk = member.key();
    let _worker = Setup::new(Session::Superuser(chunk.database)).begin()?;
    member.ready()?;
    let bound = |value: i64| -> Result<Parameter> {
        Ok(Parameter {
            kind: types::INT8,
            value: Some(value.into_datum()?),
        })
    };
    let transaction = Transaction::begin(Durability::Session)?;
    let sum = Spi::connect()?.first_int8(
        c"SELECT pg_catalog.sum(n)::bigint FROM pg_catalog.generate_series($1, $2) AS n",
        &[bound(chunk.first)?, bound(chunk.last)?],
    )?;
    transaction.commit()?;
    member.update(|stored| *stored = sum.unwrap_or(0))
}
worker_main!(pgbq_test_sum_main, main);

/// The backend: hears of each worker.
struct Total(i64);

impl Watch<Shared<Chunk, i64>> for Total {
    fn failed(&mut self, _life: &Life<Shared<Chunk, i64>>, why: Failure) -> Result<()> {
        Err(Error::new(
            sqlstate::INSUFFICIENT_RESOURCES,
            format!("a worker could not be started: {why:?}"),
        ))
    }

    fn exited(&mut self, life: &Life<Shared<Chunk, i64>>) -> Result<()> {
        self.0 += life.payload;
        Ok(())
    }

    fn died(&mut self, _life: &Life<Shared<Chunk, i64>>) -> Result<()> {
        Err(Error::new(sqlstate::INTERNAL_ERROR, "a worker has died"))
    }
}

/// `sum(last bigint, size bigint)`: the sum of the numbers from 1, each worker adding up `size` of them.
fn sum(call: &Call) -> Result<i64> {
    let (last, size) = (call.int8(0).unwrap_or(0), call.int8(1).unwrap_or(1));
    let mut owner = Owner::new(&SUMS)?;
    let mut total = Total(0);
    let mut first = 1;
    while first <= last {
        let definition =
            Definition::new("pgbq_test sum", "pg_background_queue", "pgbq_test_sum_main");
        let chunk = Chunk {
            database: catalog::current_database(),
            first,
            last: last.min(first + size - 1),
        };
        if owner.launch(definition, chunk, 0)?.is_some() {
            first += size;
        } else {
            // all slots are taken: there will be some
            owner.wait_for(|_| true, None, &mut total)?;
        }
    }
    owner.wait_for(|_| true, None, &mut total)?;
    Ok(total.0)
}
pg_function!(pgbq_test_sum, pg_finfo_pgbq_test_sum, sum);
