//! Memory that all processes of the server share.

use super::error::Result;
use super::guard;
use crate::pg_sys;

/// Asks for so many bytes; in the shmem request phase of the postmaster.
///
/// # Errors
/// Asked too late.
pub fn request(bytes: usize) -> Result<()> {
    // SAFETY: no pointers.
    guard(|| unsafe { pg_sys::RequestAddinShmemSpace(bytes) })
}

/// The memory of this name: its address, and whether it was there before. New memory is zeroed by the system.
///
/// # Errors
/// There is not enough.
pub fn attach(name: &'static std::ffi::CStr, bytes: usize) -> Result<(*mut u8, bool)> {
    let mut found = false;
    let out = &raw mut found;
    let label = name.as_ptr();
    // SAFETY: a terminated string and a live local.
    let address = guard(|| unsafe { pg_sys::ShmemInitStruct(label, bytes, out) })?;
    Ok((address.cast(), found))
}

/// Calls `request` where the server wants shared memory to be asked for, and `startup` where it is there.
/// From `_PG_init` in the postmaster.
pub fn hooks(request: fn(), startup: fn()) {
    REQUEST.set(Some(request));
    STARTUP.set(Some(startup));
    #[cfg(any(pg13, pg14))]
    request();
    // SAFETY: in _PG_init nothing else runs; the previous hooks are kept and called.
    unsafe {
        #[cfg(not(any(pg13, pg14)))]
        {
            NEXT_REQUEST.set(pg_sys::shmem_request_hook);
            pg_sys::shmem_request_hook = Some(on_request);
        }
        NEXT_STARTUP.set(pg_sys::shmem_startup_hook);
        pg_sys::shmem_startup_hook = Some(on_startup);
    }
}

type Hook = Option<unsafe extern "C-unwind" fn()>;
static REQUEST: super::local::ProcessLocal<Option<fn()>> = super::local::ProcessLocal::new(None);
static STARTUP: super::local::ProcessLocal<Option<fn()>> = super::local::ProcessLocal::new(None);
#[cfg(not(any(pg13, pg14)))]
static NEXT_REQUEST: super::local::ProcessLocal<Hook> = super::local::ProcessLocal::new(None);
static NEXT_STARTUP: super::local::ProcessLocal<Hook> = super::local::ProcessLocal::new(None);

#[cfg(not(any(pg13, pg14)))]
extern "C-unwind" fn on_request() {
    if let Some(next) = NEXT_REQUEST.get() {
        // SAFETY: the hook that was there before ours; this frame owns nothing.
        unsafe { next() };
    }
    if let Some(request) = REQUEST.get() {
        request();
    }
}

extern "C-unwind" fn on_startup() {
    if let Some(next) = NEXT_STARTUP.get() {
        // SAFETY: as above.
        unsafe { next() };
    }
    if let Some(startup) = STARTUP.get() {
        startup();
    }
}
