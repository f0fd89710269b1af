//! Workers that fail, each in its way, and owners that tell what they hear of them.

use crate::pg::bgworker::pool::{Failure, Life, Member, Owner, Shared, Signal, Watch};
use crate::pg::bgworker::{self, Definition, MainLoop, Next, Session, Setup};
use crate::pg::datum::Datum;
use crate::pg::fmgr::Call;
use crate::pg::{Error, Result, catalog, latch, log, sqlstate};
use crate::{pg_function, worker_main};

/// In which way a worker fails, in which database.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Way {
    way: i32,
    database: u32,
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

/// A worker that is gone before anything.
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

/// The worker.
fn work(pool: &'static Shared<Way, u32>, argument: Datum) -> Result<()> {
    let Some(member) = Member::attach(pool, argument)? else {
        return log::log("pgbq_test: a late worker leaves");
    };
    let Way { way, database } = member.key();
    let session = match way {
        NO_SUCH_DATABASE => Session::Superuser(4_000_000_000),
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
        WAIT | NEVER_READY => {
            worker.run(&mut Wait);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Waits for ever.
struct Wait;

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

fn int(call: &Call, n: i32) -> i32 {
    call.int4(n).unwrap_or(0)
}

fn key(call: &Call) -> Way {
    Way {
        way: int(call, 0),
        database: catalog::current_database(),
    }
}

/// `fail(way, patience)`: starts a worker, and tells what became of it when it is gone, or after so many milliseconds.
fn fail(call: &Call) -> Result<String> {
    let mut owner = Owner::new(&FAILING)?;
    if int(call, 0) == NEVER_READY {
        owner = owner.start_timeout(200_000);
    }
    let mut heard = Heard::default();
    if owner
        .launch(definition(int(call, 0)), key(call), 0)?
        .is_none()
    {
        return Ok("full".into());
    }
    let all = owner.wait_for(|_| true, call.int4(1).map(i64::from), &mut heard)?;
    if !all {
        heard.0.push("is still there".into());
    }
    Ok(heard.0.join(", "))
}
pg_function!(pgbq_test_fail, pg_finfo_pgbq_test_fail, fail);

/// Of the worker that fails in this way: its pid, or NULL.
fn find(call: &Call) -> Result<i32> {
    Ok(FAILING
        .find(key(call))?
        .filter(|found| found.ready)
        .map_or(0, |found| found.pid))
}
pg_function!(pgbq_test_find, pg_finfo_pgbq_test_find, find);

/// `signal(way, 'w' | 'c' | 't')`: signals them; how many.
fn signal(call: &Call) -> Result<i32> {
    let signal = match call.text(1)?.as_deref() {
        Some(b"w") => Signal::Wake,
        Some(b"c") => Signal::Cancel,
        _ => Signal::Terminate,
    };
    Ok(i32::try_from(FAILING.signal(key(call), signal)?).unwrap_or(i32::MAX))
}
pg_function!(pgbq_test_signal, pg_finfo_pgbq_test_signal, signal);

/// `wait_for_exit(way, milliseconds)`
fn wait_for_exit(call: &Call) -> Result<bool> {
    FAILING.wait_for_exit(key(call), call.int4(1).map(i64::from))
}
pg_function!(
    pgbq_test_wait_for_exit,
    pg_finfo_pgbq_test_wait_for_exit,
    wait_for_exit
);

/// How many slots of both pools are in use.
fn in_use(_call: &Call) -> Result<i32> {
    let count = FAILING.in_use()? + INHERITED.in_use()?;
    Ok(i32::try_from(count).unwrap_or(i32::MAX))
}
pg_function!(pgbq_test_in_use, pg_finfo_pgbq_test_in_use, in_use);

/// A dynamic worker without a session that owns workers, and takes over those of its predecessor.
fn supervisor(argument: Datum) -> Result<()> {
    let worker = Setup::new(Session::Nothing).begin()?;
    let mut owner = Owner::take_over(&INHERITED)?;
    let way = Way {
        way: (argument >> 32) as i32,
        database: argument as u32,
    };
    if way.way != 0 {
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
worker_main!(pgbq_test_supervisor_main, supervisor);

struct Supervisor(Owner<Shared<Way, u32>>);

impl MainLoop for Supervisor {
    fn step(&mut self) -> Result<Next> {
        bgworker::turn()?;
        let mut heard = Heard::default();
        self.0.tend(&mut heard)?;
        for event in heard.0 {
            log::log(format!(
                "pgbq_test supervisor {}: {event}",
                bgworker::my_pid()
            ))?;
        }
        latch::wait(None)?;
        Ok(Next::Again)
    }

    fn recovered(&mut self) -> Result<()> {
        Ok(())
    }
}

/// `supervise(way)`: launches a supervisor whose worker fails in that way (0: it has none); its pid.
fn supervise(call: &Call) -> Result<i32> {
    let Way { way, database } = key(call);
    let argument = (way as Datum) << 32 | database as Datum;
    let definition = Definition::new(
        "pgbq_test supervisor",
        "pg_background_queue",
        "pgbq_test_supervisor_main",
    );
    let launched = definition.without_session().argument(argument).launch()?;
    let handle = launched.ok_or_else(error)?;
    match handle.wait_for_startup(None)? {
        bgworker::Started::Running(pid) => Ok(pid),
        _ => Err(error()),
    }
}
pg_function!(pgbq_test_supervise, pg_finfo_pgbq_test_supervise, supervise);

/// A worker that nobody has launched for the pool: registered when the server starts, it takes a slot by itself.
fn joining(_argument: Datum) -> Result<()> {
    let worker = Setup::new(Session::Named(c"postgres", None)).begin()?;
    let key = Way {
        way: JOINED,
        database: catalog::current_database(),
    };
    let Some(member) = Member::join(&FAILING, key, 42)? else {
        return Err(error());
    };
    member.ready()?;
    worker.run(&mut Wait);
    Ok(())
}
worker_main!(pgbq_test_joining_main, joining);

/// The definition of it.
pub fn static_member() -> Definition {
    Definition::new(
        "pgbq_test joining",
        "pg_background_queue",
        "pgbq_test_joining_main",
    )
}

/// Without a pool, a plain worker that waits for ever.
fn plain(_argument: Datum) -> Result<()> {
    Setup::new(Session::Nothing).begin()?.run(&mut Wait);
    Ok(())
}
worker_main!(pgbq_test_plain_main, plain);

/// `handle(function, start, end)`: what a worker's handle says after so many milliseconds at most (NULL: for ever), and when it
/// was terminated.
fn handle(call: &Call) -> Result<String> {
    let function = match int(call, 0) {
        WAIT => "pgbq_test_plain_main",
        EXIT => "pgbq_test_exit_at_once_main",
        _ => "pgbq_test_no_such_function",
    };
    let ms = |n| call.int4(n).map(i64::from);
    let definition = Definition::new("pgbq_test plain", "pg_background_queue", function);
    let handle = definition.without_session().launch()?.ok_or_else(error)?;
    let waited = handle
        .wait_for_startup(ms(1))
        .and_then(|started| Ok((started, handle.wait_for_shutdown(ms(2))?)));
    // also if a cancel has ended the wait
    handle.terminate()?;
    let (started, waited) = waited?;
    log::log(format!("pgbq_test: the handle says {}", words(waited)))?;
    let ended = handle.wait_for_shutdown(None)?;
    Ok(format!(
        "{}, {}, {}",
        words(started),
        words(waited),
        words(ended)
    ))
}
pg_function!(pgbq_test_handle, pg_finfo_pgbq_test_handle, handle);

fn words(state: bgworker::Started) -> &'static str {
    match state {
        bgworker::Started::NotYet => "not yet",
        bgworker::Started::Running(_) => "running",
        bgworker::Started::Stopped => "stopped",
        bgworker::Started::PostmasterDied => "postmaster died",
    }
}
