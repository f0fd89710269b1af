//! A worker that nobody has launched for the pool: registered when the server starts, it takes a slot by itself.

use super::worker::Wait;
use super::{FAILING, JOINED, Way, error};
use crate::pg::bgworker::pool::Member;
use crate::pg::bgworker::{Definition, Session, Setup};
use crate::pg::datum::Datum;
use crate::pg::{Result, catalog, log};
use crate::worker_main;

fn main(_argument: Datum) -> Result<()> {
    let worker = Setup::new(Session::Named(c"postgres", None)).begin()?;
    let key = Way {
        way: JOINED,
        database: catalog::current_database(),
    };
    let Some(member) = Member::join(&FAILING, key, 42)? else {
        return Err(error());
    };
    if Member::join(&FAILING, key, 42).is_err() {
        log::log("pgbq_test: a process has one slot only")?;
    }
    member.ready()?;
    worker.run(&mut Wait);
    Ok(())
}
worker_main!(pgbq_test_joining_main, main);

/// The definition of it.
pub fn static_member() -> Definition {
    Definition::new(
        "pgbq_test joining",
        "pg_background_queue",
        "pgbq_test_joining_main",
    )
}
