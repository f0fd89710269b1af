//! Being called by the server when something happens.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::boundary;
use super::error::{Error, Result, sqlstate};
use super::guard;
use super::local::ProcessLocal;
use crate::pg_sys::{self, Datum, Oid};

/// Runs what the server calls where nothing may be raised. A panic must not pass the server's frames: it ends here, and is
/// told to whoever reads stderr, which is the log.
fn contained(f: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(f)).is_err() {
        eprintln!("pg_background_queue: a panic in a callback was ignored");
    }
}

/// What may happen to a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It is committed and visible to others. Nothing may raise or allocate now.
    Committed,
    /// It is aborted.
    Aborted,
    /// It is prepared: others will end it.
    Prepared,
}

static AT_END: ProcessLocal<Option<fn(Ended)>> = ProcessLocal::new(None);

/// Calls `f` at the end of each transaction of this process, and of those forked from it.
///
/// # Errors
/// Out of memory.
pub fn at_transaction_end(f: fn(Ended)) -> Result<()> {
    extern "C-unwind" fn call(event: pg_sys::XactEvent, _arg: *mut c_void) {
        let ended = match event {
            pg_sys::XACT_EVENT_COMMIT => Ended::Committed,
            pg_sys::XACT_EVENT_ABORT => Ended::Aborted,
            pg_sys::XACT_EVENT_PREPARE => Ended::Prepared,
            _ => return,
        };
        if let Some(f) = AT_END.get() {
            contained(|| f(ended));
        }
    }
    AT_END.set(Some(f));
    // SAFETY: a function of the right type, no argument.
    guard(|| unsafe { pg_sys::RegisterXactCallback(Some(call), std::ptr::null_mut()) })
}

/// More than one extension's layers ever ask for.
const MOST_AT_EXIT: usize = 4;

type AtExit = [Option<fn(i32)>; MOST_AT_EXIT];
static AT_EXIT: ProcessLocal<AtExit> = ProcessLocal::new([None; MOST_AT_EXIT]);

/// Calls `f` with the exit code when this process exits, with shared memory still attached and, if it connects to a database after the
/// first call of this function, its transaction already aborted (`before_shmem_exit`: the last registered is called first).
/// Asking twice for the same is asking once.
///
/// # Errors
/// Too many callbacks.
pub fn at_exit(f: fn(i32)) -> Result<()> {
    extern "C-unwind" fn call(code: i32, _arg: Datum) {
        for f in AT_EXIT.get().into_iter().rev().flatten() {
            contained(|| f(code));
        }
    }
    let mut wanted = AT_EXIT.get();
    if wanted
        .iter()
        .flatten()
        .any(|known| std::ptr::fn_addr_eq(*known, f))
    {
        return Ok(());
    }
    let Some(i) = wanted.iter().position(Option::is_none) else {
        return Err(Error::new(
            sqlstate::INTERNAL_ERROR,
            "too many exit callbacks",
        ));
    };
    wanted[i] = Some(f);
    AT_EXIT.set(wanted);
    if i > 0 {
        return Ok(());
    }
    // SAFETY: a function of the right type.
    guard(|| unsafe { pg_sys::before_shmem_exit(Some(call), 0) })
}

static ON_RELATION: ProcessLocal<Option<fn(Oid)>> = ProcessLocal::new(None);

/// Calls `f` with the OID of each relation whose definition changes; 0 means any.
///
/// # Errors
/// Too many callbacks.
pub fn on_relation_change(f: fn(Oid)) -> Result<()> {
    extern "C-unwind" fn call(_arg: Datum, relation: Oid) {
        if let Some(f) = ON_RELATION.get() {
            contained(|| f(relation));
        }
    }
    ON_RELATION.set(Some(f));
    // SAFETY: a function of the right type.
    guard(|| unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(call), 0) })
}

/// The catalogs that say what a session is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Catalog {
    /// pg_authid, by OID
    Roles,
    /// pg_database, by OID
    Databases,
    /// pg_auth_members, by role and member
    Memberships,
}

/// Caches by their numbers (utils/syscache.h); from 19 on their enum has a negative value, too.
const ROLES: i32 = pg_sys::AUTHOID as _;
const DATABASES: i32 = pg_sys::DATABASEOID as _;
const MEMBERSHIPS: i32 = pg_sys::AUTHMEMROLEMEM as _;

type OnCatalog = fn(Catalog, u32);
static ON_CATALOG: ProcessLocal<Option<OnCatalog>> = ProcessLocal::new(None);

/// Calls `f` with a hash value (0: any) for each changed row of these catalogs; see
/// [`role_hash`] and [`database_hash`].
///
/// # Errors
/// Too many callbacks.
pub fn on_catalog_change(f: fn(Catalog, u32)) -> Result<()> {
    extern "C-unwind" fn call(_arg: Datum, cache: i32, hash: u32) {
        let catalog = match cache {
            ROLES => Catalog::Roles,
            DATABASES => Catalog::Databases,
            _ => Catalog::Memberships,
        };
        if let Some(f) = ON_CATALOG.get() {
            contained(|| f(catalog, hash));
        }
    }
    ON_CATALOG.set(Some(f));
    for cache in [ROLES, DATABASES, MEMBERSHIPS] {
        // SAFETY: a function of the right type.
        guard(|| unsafe { pg_sys::CacheRegisterSyscacheCallback(cache, Some(call), 0) })?;
    }
    Ok(())
}

/// The hash value by which [`on_catalog_change`] names a role.
///
/// # Errors
/// A failing catalog lookup.
pub fn role_hash(role: Oid) -> Result<u32> {
    // SAFETY: no pointers.
    guard(|| unsafe { pg_sys::pgbq_syscache_hash(ROLES, role) })
}

/// The hash value by which [`on_catalog_change`] names a database.
///
/// # Errors
/// A failing catalog lookup.
pub fn database_hash(database: Oid) -> Result<u32> {
    // SAFETY: no pointers.
    guard(|| unsafe { pg_sys::pgbq_syscache_hash(DATABASES, database) })
}

/// Utility commands that somebody may want to hear of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Utility {
    /// `ALTER ROLE … SET`, `ALTER DATABASE … SET`: sessions of this role in this database (0: all) that have begun before do
    /// not have it.
    SessionSettings {
        /// The role.
        role: Oid,
        /// The database.
        database: Oid,
    },
    /// `COMMIT PREPARED`
    CommitPrepared,
}

/// Commands that want a database without sessions: DROP, RENAME, SET TABLESPACE, CREATE … TEMPLATE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Empty {
    /// Before the command, which the caller may give. It fails if sessions are still there after some seconds.
    Wanted(Oid),
    /// After the command, whether it succeeded or not.
    NoLonger(Oid),
}

static ON_UTILITY: ProcessLocal<Option<fn(Utility)>> = ProcessLocal::new(None);
static ON_EMPTY: ProcessLocal<Option<fn(Empty)>> = ProcessLocal::new(None);

/// Calls `done` after each [`Utility`] command, in its transaction, and `empty` around those of [`Empty`], where it
/// must not raise. From `_PG_init`.
pub fn on_utility(done: fn(Utility), empty: fn(Empty)) {
    extern "C-unwind" fn call(what: pg_sys::PgbqUtility, role: Oid, database: Oid) {
        let utility = if what == pg_sys::PGBQ_COMMIT_PREPARED {
            Utility::CommitPrepared
        } else {
            Utility::SessionSettings { role, database }
        };
        if let Some(f) = ON_UTILITY.get() {
            boundary(|| {
                f(utility);
                Ok(())
            });
        }
    }
    extern "C-unwind" fn want_empty(database: Oid) {
        if let Some(f) = ON_EMPTY.get() {
            contained(|| f(Empty::Wanted(database)));
        }
    }
    extern "C-unwind" fn no_longer(database: Oid) {
        if let Some(f) = ON_EMPTY.get() {
            contained(|| f(Empty::NoLonger(database)));
        }
    }
    ON_UTILITY.set(Some(done));
    ON_EMPTY.set(Some(empty));
    let watch = pg_sys::PgbqUtilityWatch {
        done: Some(call),
        want_empty: Some(want_empty),
        no_longer: Some(no_longer),
    };
    // SAFETY: functions of the right types, in a struct that is copied; in _PG_init nothing else runs.
    unsafe { pg_sys::pgbq_watch_utility(&raw const watch) };
}
