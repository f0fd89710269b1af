//! The shared memory behind the registry: how it is asked for, what stands in it at first, and how it is locked. All that
//! is unsafe about the registry is here.

use std::alloc::Layout;

use super::databases::{Database, MOST_DATABASES};
use super::demands::{Demand, MOST_DEMANDS};
use super::shelves::Shelf;
use super::waits::{MOST_WAITS, Wait};
use super::{Generations, Header, Key, Registry, Work, WorkerSlot};
use crate::pg::bgworker::pool;
use crate::pg::latch::LatchRef;
use crate::pg::local::ProcessLocal;
use crate::pg::lwlock::LwLock;
use crate::pg::{Error, Result, control, shmem, sqlstate, time};
use crate::queue::topics;

#[derive(Clone, Copy)]
struct Addresses {
    lock: LwLock,
    header: *mut Header,
    slots: *mut WorkerSlot,
    slot_count: usize,
    demands: *mut Demand,
    waits: *mut Wait,
    databases: *mut Database,
    shelf_keys: *mut Key,
    shelves: *mut Shelf,
}

static ADDRESSES: ProcessLocal<Option<Addresses>> = ProcessLocal::new(None);

const NAME: &std::ffi::CStr = c"pg_background_queue";

/// Every worker process of the server can be ours, and keepers and orphans want some more.
fn slot_count() -> usize {
    control::max_worker_processes() + 16
}

/// The places of the parts after the header, and the whole.
fn layout() -> (Layout, [usize; 6]) {
    let header = Layout::new::<Header>();
    let part = |whole: Layout, next: std::result::Result<Layout, _>| {
        whole.extend(next.expect("small")).expect("small")
    };
    let (whole, slots) = part(header, Layout::array::<WorkerSlot>(slot_count()));
    let (whole, demands) = part(whole, Layout::array::<Demand>(MOST_DEMANDS));
    let (whole, waits) = part(whole, Layout::array::<Wait>(MOST_WAITS));
    let (whole, databases) = part(whole, Layout::array::<Database>(MOST_DATABASES));
    let (whole, shelf_keys) = part(whole, Layout::array::<Key>(slot_count()));
    let (whole, shelves) = part(whole, Layout::array::<Shelf>(slot_count()));
    (
        whole,
        [slots, demands, waits, databases, shelf_keys, shelves],
    )
}

/// Asks for the memory and the lock. In the postmaster.
///
/// # Errors
/// Asked too late.
pub fn request() -> Result<()> {
    shmem::request(layout().0.size())?;
    LwLock::request(NAME)
}

/// Attaches, and fills the memory if it is new. In the postmaster, before recovery.
///
/// # Errors
/// Not enough shared memory.
pub fn startup() -> Result<()> {
    let (whole, [slots, demands, waits, databases, shelf_keys, shelves]) = layout();
    let (address, found) = shmem::attach(NAME, whole.size())?;
    let lock = LwLock::named(NAME)?;
    // SAFETY: `layout` computed these offsets for parts of these types within the memory attached, whose start
    // is aligned to a cache line.
    let addresses = unsafe {
        Addresses {
            lock,
            header: address.cast(),
            slots: address.add(slots).cast(),
            slot_count: slot_count(),
            demands: address.add(demands).cast(),
            waits: address.add(waits).cast(),
            databases: address.add(databases).cast(),
            shelf_keys: address.add(shelf_keys).cast(),
            shelves: address.add(shelves).cast(),
        }
    };
    if !found {
        let unclean = !control::was_shut_down_cleanly()?;
        // SAFETY: our memory, which no other process uses yet.
        unsafe {
            addresses.header.write(Header {
                launcher: LatchRef::NOBODY,
                launcher_pid: 0,
                unclean,
                paused: topics::were_refused_at_start(),
                overflow: false,
                booted: time::now(),
                generations: Generations::new(),
                order: 1,
                ends: 0,
                limit: 0,
                room: 0,
                room_for: (0, 0),
                better: (0, 0),
                surplus: 0,
                idle_room: 0,
                demand_count: 0,
                wait_count: 0,
                database_count: 0,
            });
            for i in 0..addresses.slot_count {
                addresses
                    .slots
                    .add(i)
                    .write(pool::free_slot(Key::NONE, Work::new()));
                addresses.shelf_keys.add(i).write(Key::NONE);
                addresses.shelves.add(i).write(Shelf::new());
            }
        }
    }
    ADDRESSES.set(Some(addresses));
    Ok(())
}

/// Whether the library was preloaded, so that there is a registry.
pub fn is_there() -> bool {
    ADDRESSES.get().is_some()
}

/// Locks the registry until the result is dropped. Nothing slow, and nothing that raises, may be done meanwhile.
///
/// # Errors
/// The library was not preloaded.
pub fn lock() -> Result<Registry> {
    let Some(addresses) = ADDRESSES.get() else {
        return Err(not_preloaded());
    };
    let held = addresses.lock.exclusive()?;
    // SAFETY: the parts do not overlap, live as long as the server, and belong to whoever holds the lock.
    unsafe {
        Ok(Registry {
            header: &mut *addresses.header,
            slots: std::slice::from_raw_parts_mut(addresses.slots, addresses.slot_count),
            demands: std::slice::from_raw_parts_mut(addresses.demands, MOST_DEMANDS),
            waits: std::slice::from_raw_parts_mut(addresses.waits, MOST_WAITS),
            databases: std::slice::from_raw_parts_mut(addresses.databases, MOST_DATABASES),
            shelf_keys: std::slice::from_raw_parts_mut(addresses.shelf_keys, addresses.slot_count),
            shelves: std::slice::from_raw_parts_mut(addresses.shelves, addresses.slot_count),
            _held: held,
        })
    }
}

/// The error of every function when there is no registry.
pub fn not_preloaded() -> Error {
    Error::new(
        sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
        "pg_background_queue must be loaded via shared_preload_libraries",
    )
    .hint("Add pg_background_queue to shared_preload_libraries in postgresql.conf and restart the server.")
}
