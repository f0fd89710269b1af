//! How the server came up and whether it goes down.

use super::error::Result;
use super::guard;
use crate::pg_sys;

/// Whether the cluster was shut down in an orderly way before this start. Meaningful only in a
/// `shmem_startup_hook` of the postmaster, before recovery overwrites what it reads.
///
/// # Errors
/// The control file cannot be read.
pub fn was_shut_down_cleanly() -> Result<bool> {
    // SAFETY: no arguments.
    guard(|| unsafe { pg_sys::pgbq_was_shut_down_cleanly() })
}

/// Whether the postmaster has been told to stop: true already when its children get their signals.
pub fn postmaster_is_stopping() -> bool {
    // SAFETY: reads a file; does not raise.
    unsafe { pg_sys::pgbq_postmaster_is_stopping() }
}

/// Whether pg_upgrade runs this server.
pub fn is_binary_upgrade() -> bool {
    // SAFETY: a global that is set before extensions are loaded.
    unsafe { pg_sys::IsBinaryUpgrade }
}

/// Whether this is the postmaster, loading `shared_preload_libraries`.
pub fn is_preloading() -> bool {
    // SAFETY: a global of this process.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// `max_worker_processes`, which is fixed while the server runs.
pub fn max_worker_processes() -> usize {
    // SAFETY: a setting of postmaster context.
    usize::try_from(unsafe { pg_sys::max_worker_processes }).unwrap_or(0)
}
