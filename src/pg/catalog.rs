//! Questions to the system catalogs. All need a transaction.

use std::ffi::{CStr, c_char};

use super::Oid;
use super::error::{Result, c_string};
use super::guard;
use crate::pg_sys;

fn existing(oid: Oid) -> Option<Oid> {
    (oid != super::INVALID_OID).then_some(oid)
}

/// Copies a palloc'ed string; `None` for a null pointer.
fn copied(text: *const c_char) -> Option<Vec<u8>> {
    // SAFETY: the callers pass null or a live terminated string.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_bytes().to_vec())
}

/// The relation of this name that belongs to the extension.
///
/// # Errors
/// A failing catalog lookup, as for all here.
pub fn extension_relation(
    extension: &'static CStr,
    relation: &'static CStr,
) -> Result<Option<Oid>> {
    // SAFETY: terminated statics.
    guard(|| unsafe { pg_sys::pgbq_extension_relation(extension.as_ptr(), relation.as_ptr()) })
        .map(existing)
}

/// The index of this name on a relation.
///
/// # Errors
/// See [`extension_relation`].
pub fn index_of(relation: Oid, name: &'static CStr) -> Result<Option<Oid>> {
    // SAFETY: a terminated static.
    guard(|| unsafe { pg_sys::pgbq_index_of(relation, name.as_ptr()) }).map(existing)
}

/// The sequence that a column of the relation owns.
///
/// # Errors
/// See [`extension_relation`].
pub fn owned_sequence(relation: Oid) -> Result<Option<Oid>> {
    // SAFETY: no pointers.
    guard(|| unsafe { pg_sys::pgbq_owned_sequence(relation) }).map(existing)
}

/// The number of a column.
///
/// # Errors
/// See [`extension_relation`].
pub fn column_number(relation: Oid, name: &'static CStr) -> Result<Option<i16>> {
    // SAFETY: a terminated static.
    let number = guard(|| unsafe { pg_sys::get_attnum(relation, name.as_ptr()) })?;
    Ok((number > 0).then_some(number))
}

/// The type of a column.
///
/// # Errors
/// See [`extension_relation`].
pub fn column_type(relation: Oid, column: i16) -> Result<Option<Oid>> {
    // SAFETY: no pointers.
    guard(|| unsafe { pg_sys::pgbq_column_type(relation, column) }).map(existing)
}

/// The value of an enum's label.
///
/// # Errors
/// See [`extension_relation`].
pub fn enum_label(kind: Oid, label: &'static CStr) -> Result<Option<Oid>> {
    // SAFETY: a terminated static.
    guard(|| unsafe { pg_sys::pgbq_enum_label(kind, label.as_ptr()) }).map(existing)
}

/// The name of a database.
///
/// # Errors
/// See [`extension_relation`].
pub fn database_name(database: Oid) -> Result<Option<Vec<u8>>> {
    // SAFETY: no pointers.
    Ok(copied(guard(|| unsafe {
        pg_sys::get_database_name(database)
    })?))
}

/// Whether a database exists. Works without a database, too.
///
/// # Errors
/// See [`extension_relation`].
pub fn database_exists(database: Oid) -> Result<bool> {
    // SAFETY: no pointers.
    guard(|| unsafe { pg_sys::pgbq_database_exists(database) })
}

/// The name of a role.
///
/// # Errors
/// See [`extension_relation`].
pub fn role_name(role: Oid) -> Result<Option<Vec<u8>>> {
    // SAFETY: no pointers.
    Ok(copied(guard(|| unsafe { pg_sys::pgbq_role_name(role) })?))
}

/// The role of this name.
///
/// # Errors
/// See [`extension_relation`].
pub fn role_by_name(name: &[u8]) -> Result<Option<Oid>> {
    let name = c_string(name);
    let text = name.as_ptr();
    // SAFETY: a terminated string that outlives the call.
    guard(|| unsafe { pg_sys::get_role_oid(text, true) }).map(existing)
}

/// Whether a worker of that role would be let in by its LOGIN attribute, which is not asked for from 17 on.
///
/// # Errors
/// See [`extension_relation`].
pub fn may_log_in(role: Oid) -> Result<bool> {
    // SAFETY: no pointers.
    guard(|| unsafe { pg_sys::pgbq_may_log_in(role) })
}

/// Whether, and if not why not, a worker of some role can connect to some database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MayConnect {
    /// It can.
    Yes,
    /// The role does not exist.
    NoSuchRole,
    /// The role is NOLOGIN, and the server is older than 17.
    NoLogin,
    /// The role lacks CONNECT on the database.
    NoConnectPrivilege,
}

/// See [`MayConnect`].
///
/// # Errors
/// See [`extension_relation`].
pub fn may_connect(role: Oid, database: Oid) -> Result<MayConnect> {
    // SAFETY: no pointers.
    let answer = guard(|| unsafe { pg_sys::pgbq_may_connect(role, database) })?;
    Ok(match answer {
        pg_sys::PGBQ_MAY_CONNECT => MayConnect::Yes,
        pg_sys::PGBQ_NO_SUCH_ROLE => MayConnect::NoSuchRole,
        pg_sys::PGBQ_MAY_NOT_LOG_IN => MayConnect::NoLogin,
        _ => MayConnect::NoConnectPrivilege,
    })
}

/// Text that changes when a session of this role in this database is no longer as after a fresh login; `None` if one
/// of them is gone. See shim/catalog_shim.c.
///
/// # Errors
/// See [`extension_relation`].
pub fn session_fingerprint(role: Oid, database: Oid) -> Result<Option<Vec<u8>>> {
    // SAFETY: no pointers.
    Ok(copied(guard(|| unsafe {
        pg_sys::pgbq_session_fingerprint(role, database)
    })?))
}

/// A database of the cluster.
pub struct Database {
    /// Its OID.
    pub oid: Oid,
    /// Its name.
    pub name: Vec<u8>,
    /// Anybody may connect to it who has the right to: neither `datallowconn = false` nor what an interrupted
    /// DROP DATABASE has left.
    pub connectable: bool,
    /// `datistemplate`
    pub is_template: bool,
}

/// The databases of the cluster.
///
/// # Errors
/// See [`extension_relation`].
pub fn databases() -> Result<Vec<Database>> {
    let mut count = 0;
    let out = &raw mut count;
    // SAFETY: a live local.
    let first = guard(|| unsafe { pg_sys::pgbq_databases(out) })?;
    let length = usize::try_from(count).unwrap_or(0);
    // SAFETY: the shim returned the address of this many of them.
    let found = unsafe { std::slice::from_raw_parts(first, length) };
    let database = |found: &pg_sys::PgbqDatabase| Database {
        oid: found.oid,
        // SAFETY: a name ends with a zero byte.
        name: unsafe { CStr::from_ptr(found.name.data.as_ptr()) }
            .to_bytes()
            .to_vec(),
        connectable: found.connectable,
        is_template: found.is_template,
    };
    Ok(found.iter().map(database).collect())
}

/// The number of the next value of a sequence; the caller's rights are not asked for.
///
/// # Errors
/// The sequence is gone or at its end.
pub fn next_value(sequence: Oid) -> Result<i64> {
    // SAFETY: no pointers.
    guard(|| unsafe { pg_sys::nextval_internal(sequence, false) })
}

/// The database that this process is connected to.
pub fn current_database() -> Oid {
    // SAFETY: reads a global.
    unsafe { pg_sys::MyDatabaseId }
}

/// The identifier of this cluster (pg_control), which clones share and new clusters do not.
pub fn system_identifier() -> u64 {
    // SAFETY: reads a copy of the control file in memory.
    unsafe { pg_sys::GetSystemIdentifier() }
}
