//! Transactions and what lives in them, in a worker. Needs the tables that the test makes.

use super::{ask, current_context, harmless_error, holdoff, holds_lock, in_transaction, lock, spi};
use crate::pg::local::ProcessLocal;
use crate::pg::mem::MemoryContext;
use crate::pg::security::{self, AsRole};
use crate::pg::snapshot::ActiveSnapshot;
use crate::pg::spi::Spi;
use crate::pg::table::{self, Change, IndexScan, Patience, Table, Tid, Updated};
use crate::pg::xact::{Durability, Scope, Snapshot, Transaction};
use crate::pg::{Error, Oid, Result, SqlState, callback, catalog, sqlstate};
use crate::{pg_function, pg_sys};

/// All of it; a failed assertion ends the worker with an error in the log.
pub(super) fn run() -> Result<()> {
    ends_of_transactions()?;
    scopes()?;
    misuse()?;
    nested_memory()?;
    durability()?;
    locks()?;
    roles()?;
    rows()
}

/// A snapshot that is dropped when its transaction is over already.
pub(super) fn late_snapshot() -> Result<()> {
    let transaction = begin()?;
    let snapshot = ActiveSnapshot::push()?;
    drop(transaction);
    drop(snapshot);
    clean("a snapshot dropped after the abort")
}

/// A lock that is held over a whole transaction.
pub(super) fn lock_around() -> Result<()> {
    let held = lock()?.exclusive()?;
    begin()?.commit()?;
    assert_eq!(holdoff(), (1, 0), "committed under a lock");
    drop(held);
    clean("a lock around a transaction")
}

/// A callback at the end of a transaction panics.
pub(super) fn panic_at_end() -> Result<()> {
    callback::at_transaction_end(|ended| panic!("pgbq_test: a panic at the end: {ended:?}"))?;
    let transaction = begin()?;
    note("committed before the panic")?;
    transaction.commit()?;
    clean("a panic at the end of a transaction")?;
    drop(begin()?);
    clean("a panic at the abort of a transaction")
}

fn begin() -> Result<Transaction> {
    Transaction::begin(Durability::Session)
}

/// Nothing of a transaction is left.
fn clean(what: &str) -> Result<()> {
    assert!(!in_transaction(), "{what}: a transaction is open");
    assert_eq!(holdoff(), (0, 0), "{what}: holdoff counts");
    assert!(!holds_lock()?, "{what}: the lock is held");
    Ok(())
}

fn expect<T>(result: Result<T>, state: &[u8; 5]) {
    let error = result.err().expect("an error");
    assert_eq!(
        error.sqlstate().code(),
        SqlState::new(state).code(),
        "{error:?}"
    );
}

fn note(text: &str) -> Result<u64> {
    spi(&format!("INSERT INTO public.notes VALUES ('{text}')"))
}

fn ends_of_transactions() -> Result<()> {
    let before = current_context();
    let same_context = |what: &str| {
        assert!(
            current_context() == before,
            "{what}: another memory context"
        );
        clean(what)
    };

    let transaction = begin()?;
    note("committed")?;
    transaction.commit()?;
    same_context("commit")?;

    let transaction = begin()?;
    note("dropped")?;
    drop(transaction);
    same_context("drop")?;

    let transaction = begin()?;
    note("failed")?;
    expect(spi("SELECT 1/0"), b"22012");
    drop(transaction);
    same_context("error")?;

    let transaction = begin()?;
    note("failed in Rust")?;
    let body = || -> Result<()> {
        let _transaction = transaction;
        Err(Error::new(sqlstate::INVALID_PARAMETER_VALUE, "pgbq_test"))
    };
    expect(body(), b"22023");
    same_context("error of Rust")?;

    let transaction = begin()?;
    note("failed at commit")?;
    spi("INSERT INTO public.deferred VALUES (1), (1)")?;
    expect(transaction.commit(), b"23505");
    same_context("error at commit")?;

    // an SPI connection, a snapshot and one more connection inside it, all open when the error comes
    let transaction = begin()?;
    let outer = Spi::connect()?;
    let snapshot = ActiveSnapshot::push()?;
    let inner = Spi::connect()?;
    expect(
        inner.execute(
            c"SELECT public.pgbq_test_spi('DO ''BEGIN PERFORM 1/0; END''')",
            &[],
        ),
        b"22012",
    );
    drop(inner);
    drop(snapshot);
    drop(outer);
    drop(transaction);
    same_context("nested connections")?;

    // what an abort has ended already is dropped after it
    let transaction = begin()?;
    let connection = Spi::connect()?;
    expect(connection.execute(c"SELECT 1/0", &[]), b"22012");
    drop(transaction);
    drop(connection);
    same_context("connection dropped after the abort")?;

    let transaction = begin()?;
    note("afterwards")?;
    transaction.commit()?;
    same_context("the last one")
}

/// Work that is done in a transaction of its own or in its caller's.
fn noted(text: &str) -> Result<()> {
    let scope = Scope::begin(Snapshot::Active)?;
    assert!(in_transaction() && ActiveSnapshot::is_set());
    note(text)?;
    scope.commit()
}

fn scopes() -> Result<()> {
    let before = current_context();
    let same_context = |what: &str| {
        assert!(
            current_context() == before,
            "{what}: another memory context"
        );
        assert!(!ActiveSnapshot::is_set(), "{what}: a snapshot is active");
        clean(what)
    };
    noted("in a scope")?;
    same_context("a scope by itself")?;

    // a snapshot only where it is asked for, and in a transaction that is open already, too
    let scope = Scope::begin(Snapshot::None)?;
    assert!(in_transaction() && !ActiveSnapshot::is_set());
    noted("in a scope inside")?;
    assert!(in_transaction() && !ActiveSnapshot::is_set());
    scope.commit()?;
    same_context("a scope in a scope")?;

    let transaction = begin()?;
    let inside = current_context();
    noted("in a transaction")?;
    noted("and again")?;
    assert!(current_context() == inside && in_transaction());
    transaction.commit()?;
    same_context("scopes in a transaction")?;

    let transaction = begin()?;
    noted("rolled back with its transaction")?;
    drop(transaction);
    same_context("a scope in a transaction that is dropped")?;

    let scope = Scope::begin(Snapshot::Active)?;
    note("a scope that is dropped")?;
    drop(scope);
    same_context("a scope that is dropped")?;

    let scope = Scope::begin(Snapshot::Active)?;
    spi("INSERT INTO public.deferred VALUES (1), (1)")?;
    expect(scope.commit(), b"23505");
    same_context("a scope that fails at commit")?;

    let failing = || -> Result<()> {
        let _scope = Scope::begin(Snapshot::Active)?;
        note("failed in a scope")?;
        spi("SELECT 1/0").map(drop)
    };
    expect(failing(), b"22012");
    same_context("a scope that fails")?;
    noted("after the scopes")?;
    same_context("the last scope")
}

/// A panic is an error where it leaves our frames.
fn panics(body: impl FnOnce() -> Result<()>) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
    assert!(outcome.is_err(), "no panic");
}

fn misuse() -> Result<()> {
    // a transaction in a transaction
    let transaction = begin()?;
    expect(begin().map(drop), b"25001");
    assert!(in_transaction());
    transaction.commit()?;
    clean("a transaction in a transaction")?;

    // half of the work was given up, and nobody minded
    let transaction = begin()?;
    note("half of it")?;
    drop(Scope::begin(Snapshot::Active)?);
    expect(transaction.commit(), b"25P02");
    clean("a scope that was given up")?;
    begin()?.commit()?;
    clean("the next transaction")?;

    // the outer is committed before the inner
    let transaction = begin()?;
    note("the outer before the inner")?;
    let scope = Scope::begin(Snapshot::None)?;
    panics(|| transaction.commit());
    clean("a commit with a scope open inside")?;
    drop(scope);
    clean("the scope that was open")?;

    // another memory context
    let memory = MemoryContext::new("pgbq_test other")?;
    let transaction = begin()?;
    note("in another context")?;
    {
        let scope = Scope::begin(Snapshot::None)?;
        let _entered = memory.enter();
        panics(|| scope.commit());
    }
    expect(transaction.commit(), b"25P02");
    clean("a scope that ends in another memory context")
}

/// `scope(how)`: in a backend, whose transaction is its own.
fn scope(call: &crate::pg::fmgr::Call) -> Result<bool> {
    let scope = Scope::begin(Snapshot::Active)?;
    note("in a backend")?;
    match super::int(call, 0) {
        0 => scope.commit()?,
        1 => drop(scope),
        _ => spi("SELECT 1/0").map(drop)?,
    }
    Ok(in_transaction())
}
pg_function!(pgbq_test_scope, pg_finfo_pgbq_test_scope, scope);

fn nested_memory() -> Result<()> {
    let start = current_context();
    let (a, b) = (
        MemoryContext::new("pgbq_test a")?,
        MemoryContext::new("pgbq_test b")?,
    );
    {
        let _in_a = a.enter();
        assert!(current_context() == a.as_ptr());
        let transaction = begin()?;
        let inside = current_context();
        assert!(inside != a.as_ptr());
        {
            let _in_b = b.enter();
            assert!(current_context() == b.as_ptr());
            // the guard brings it back, wherever the error left it
            expect(spi("SELECT 1/0"), b"22012");
        }
        drop(transaction);
        assert!(current_context() == a.as_ptr());
        {
            let _in_b = b.enter();
            assert!(harmless_error().is_err());
            assert!(current_context() == b.as_ptr());
            begin()?.commit()?;
            assert!(current_context() == b.as_ptr());
        }
        assert!(current_context() == a.as_ptr());
    }
    drop(a);
    drop(b);
    assert!(current_context() == start);
    clean("nested memory contexts")
}

/// `synchronous_commit` when the last transaction was committed.
static COMMITTED: ProcessLocal<i32> = ProcessLocal::new(-1);

fn durability() -> Result<()> {
    // SAFETY: a C variable of this process, read.
    let now = || unsafe { pg_sys::synchronous_commit };
    // called before the one of src/pg/xact.rs: the last registered is the first
    callback::at_transaction_end(|ended| {
        if ended == callback::Ended::Committed {
            // SAFETY: as above.
            COMMITTED.set(unsafe { pg_sys::synchronous_commit });
        }
    })?;
    let (off, on) = (
        pg_sys::SYNCHRONOUS_COMMIT_OFF as i32,
        pg_sys::SYNCHRONOUS_COMMIT_REMOTE_FLUSH as i32,
    );
    let local = pg_sys::SYNCHRONOUS_COMMIT_LOCAL_FLUSH as i32;
    assert_eq!(now(), on);
    use Durability::{Asynchronous, Flushed, Session};
    for (durability, sql, commits_with, leaves) in [
        (Session, "SELECT", on, on),
        (Flushed, "SELECT", on, on),
        (Asynchronous, "SELECT", off, on),
        // what was SET LOCAL is no longer there, whatever the commit had
        (Session, "SET LOCAL synchronous_commit = off", off, on),
        (Flushed, "SET LOCAL synchronous_commit = off", local, on),
        (
            Asynchronous,
            "SET LOCAL synchronous_commit = local",
            off,
            on,
        ),
        // and what was SET stays
        (Session, "SET synchronous_commit = off", off, off),
        (Flushed, "SELECT", local, off),
        (Asynchronous, "SET synchronous_commit = local", off, local),
        (Flushed, "RESET synchronous_commit", on, on),
    ] {
        let transaction = Transaction::begin(durability)?;
        spi(sql)?;
        transaction.commit()?;
        assert_eq!(
            (COMMITTED.get(), now()),
            (commits_with, leaves),
            "{durability:?}, {sql}"
        );
    }
    drop(Transaction::begin(Asynchronous)?);
    assert_eq!(now(), on);
    let transaction = Transaction::begin(Asynchronous)?;
    spi("INSERT INTO public.deferred VALUES (1), (1)")?;
    expect(transaction.commit(), b"23505");
    assert_eq!(now(), on);
    begin()?.commit()?;
    assert_eq!((COMMITTED.get(), now()), (on, on));

    // the database's settings say SERIALIZABLE READ ONLY DEFERRABLE
    let transaction = begin()?;
    // SAFETY: as above.
    let (level, read_only, deferrable) = unsafe {
        (
            pg_sys::XactIsoLevel,
            pg_sys::XactReadOnly,
            pg_sys::XactDeferrable,
        )
    };
    assert_eq!(
        (level, read_only, deferrable),
        (pg_sys::XACT_READ_COMMITTED as i32, false, false)
    );
    transaction.commit()?;
    clean("durability")
}

fn locks() -> Result<()> {
    let transaction = begin()?;
    let held = lock()?.exclusive()?;
    assert!(harmless_error().is_err());
    drop(transaction);
    assert_eq!(holdoff(), (0, 0), "aborted with the lock held");
    drop(held);
    clean("a lock dropped after the abort")?;

    let transaction = begin()?;
    std::mem::forget(lock()?.exclusive()?);
    drop(transaction);
    clean("a lock forgotten in a transaction")?;

    let held = lock()?.exclusive()?;
    drop(held);
    clean("a lock without a transaction")
}

fn roles() -> Result<()> {
    let transaction = begin()?;
    let me = security::current_role();
    let other = catalog::role_by_name(b"somebody")?.expect("the test's role");
    {
        let _as_other = AsRole::enter(other);
        assert_eq!(security::current_role(), other);
        expect(note("as somebody"), b"42501");
    }
    assert_eq!(security::current_role(), me);
    drop(transaction);
    assert_eq!(security::current_role(), me);

    // left after the abort, and by the abort itself
    let transaction = begin()?;
    let as_other = AsRole::enter(other);
    expect(spi("SET ROLE somebody"), b"42501");
    drop(transaction);
    assert_eq!(security::current_role(), me);
    drop(as_other);
    assert_eq!(security::current_role(), me);

    let transaction = begin()?;
    std::mem::forget(AsRole::enter(other));
    drop(transaction);
    assert_eq!(security::current_role(), me);
    clean("roles")
}

fn relation(name: &str) -> Result<Oid> {
    ask(&format!("'public.{name}'::regclass::oid")).map(i32::cast_unsigned)
}

const PATIENCE: Patience = Patience {
    table: 100,
    row: 100,
};

/// What fails, with which SQLSTATE, and how.
type Failure = (&'static str, &'static [u8; 5], Box<dyn Fn() -> Result<()>>);

fn rows() -> Result<()> {
    let transaction = begin()?;
    let table = Table {
        relation: relation("rows")?,
        primary_key: relation("rows_pkey")?,
    };
    transaction.commit()?;
    let nothing = Table {
        relation: 1,
        primary_key: 1,
    };
    let update = |table: Table, id: i64, column: i16, value: i64| {
        let set = [table::column(column, value as crate::pg::datum::Datum)];
        table::update(
            table,
            id,
            Change {
                at: &mut { Tid::UNKNOWN },
                fence: &[],
                get: &mut [],
                set: &set,
            },
            PATIENCE,
        )
    };
    let mut failures: Vec<Failure> = vec![
        (
            "no table",
            b"42P01",
            Box::new(move || update(nothing, 1, 2, 1).map(|_| ())),
        ),
        (
            "no column",
            b"42703",
            Box::new(move || update(table, 1, 9, 1).map(|_| ())),
        ),
        (
            "a duplicate",
            b"23505",
            Box::new(move || update(table, 1, 2, 20).map(|_| ())),
        ),
        (
            "a duplicate, inserted",
            b"23505",
            Box::new(move || {
                table::insert(table.relation, &[table::column(1, 1), table::column(2, 77)])
                    .map(drop)
            }),
        ),
    ];
    // an error while a scan is open, which is then dropped without its end
    failures.push((
        "an open scan",
        b"22012",
        Box::new(move || {
            let mut scan = IndexScan::begin(table.relation, table.primary_key, &[])?;
            let mut row = [table::null_column(1)];
            assert!(scan.next(&mut row)?);
            assert_eq!(row[0].value, 1);
            spi("SELECT 1/0").map(|_| ())
        }),
    ));
    for (what, state, failure) in &failures {
        let transaction = begin()?;
        expect(failure(), state);
        drop(transaction);
        clean(what)?;
    }
    let transaction = begin()?;
    assert!(
        IndexScan::begin(table.relation, 1, &[]).is_err(),
        "no index"
    );
    drop(transaction);
    clean("no index")?;

    // and it works
    let transaction = begin()?;
    assert_eq!(update(table, 1, 2, 30)?, Updated::Done);
    assert_eq!(update(table, 99, 2, 40)?, Updated::Missing);
    let mut scan = IndexScan::begin(table.relation, table.primary_key, &[])?;
    let mut count = 0;
    let mut row = [table::null_column(2)];
    while scan.next(&mut row)? {
        count += 1;
    }
    scan.end()?;
    assert_eq!(count, 2);
    transaction.commit()?;
    clean("rows")
}
