//! Workers that fail, each in its way, and those who launch them and tell what they hear.

mod by_key;
mod ears;
mod handle;
pub mod joining;
mod owner;
pub mod supervisor;
mod worker;

use crate::pg::bgworker::Definition;
use crate::pg::bgworker::pool::{Failure, Life, Shared, Watch};
use crate::pg::fmgr::Call;
use crate::pg::{Error, Oid, Result, catalog, sqlstate};

/// In which way a worker fails, in which database.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Way {
    way: i32,
    database: Oid,
}

/// The pool of workers that go with their owner.
pub static FAILING: Shared<Way, u32> = Shared::new(c"pgbq_test failing", 6, (NONE, 0));

/// The pool of workers that a successor takes over.
pub static INHERITED: Shared<Way, u32> = Shared::new(c"pgbq_test inherited", 6, (NONE, 0));

const NONE: Way = Way {
    way: 0,
    database: 0,
};

const NO_SUCH_FUNCTION: i32 = 1;
const NO_SUCH_LIBRARY: i32 = 2;
const ERROR_BEFORE_ATTACHING: i32 = 3;
const EXIT_BEFORE_ATTACHING: i32 = 4;
const NO_SUCH_DATABASE: i32 = 5;
const ERROR_BEFORE_READY: i32 = 6;
const EXIT: i32 = 7;
const ERROR: i32 = 8;
const PANIC: i32 = 9;
const NEVER_READY: i32 = 10;
const WAIT: i32 = 11;
const JOINED: i32 = 12;
const WAIT_WITHOUT_SESSION: i32 = 13;

fn definition(way: i32) -> Definition {
    let library = if way == NO_SUCH_LIBRARY {
        "pgbq_test_no_such_library"
    } else {
        "pg_background_queue"
    };
    let function = match way {
        NO_SUCH_FUNCTION => "pgbq_test_no_such_function",
        ERROR_BEFORE_ATTACHING => "pgbq_test_fail_at_once_main",
        EXIT_BEFORE_ATTACHING => "pgbq_test_exit_at_once_main",
        _ => "pgbq_test_failing_main",
    };
    Definition::new("pgbq_test failing", library, function)
}

fn error() -> Error {
    Error::new(sqlstate::INTERNAL_ERROR, "pgbq_test: a worker fails")
}

fn int(call: &Call, n: i32) -> i32 {
    call.int4(n).unwrap_or(0)
}

/// The argument `n` as a number of milliseconds; NULL is for ever.
fn milliseconds(call: &Call, n: i32) -> Option<i64> {
    call.int4(n).map(i64::from)
}

fn key(call: &Call) -> Way {
    Way {
        way: int(call, 0),
        database: catalog::current_database(),
    }
}

/// An owner's ears.
#[derive(Default)]
struct Heard(Vec<String>);

type OfWay = Life<Shared<Way, u32>>;

impl Watch<Shared<Way, u32>> for Heard {
    fn failed(&mut self, _life: &OfWay, why: Failure) -> Result<()> {
        self.0.push(format!("failed: {why:?}"));
        Ok(())
    }

    fn started(&mut self, _life: &OfWay) -> Result<()> {
        self.0.push("started".into());
        Ok(())
    }

    fn exited(&mut self, life: &OfWay) -> Result<()> {
        self.0.push(format!("exited with {}", life.payload));
        Ok(())
    }

    fn died(&mut self, life: &OfWay) -> Result<()> {
        self.0.push(format!("died with {}", life.payload));
        Ok(())
    }
}
