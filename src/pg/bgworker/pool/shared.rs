//! A pool with memory and lock of its own.

use std::alloc::Layout;
use std::ffi::CStr;

use super::super::super::condition::{Condition, Room};
use super::super::super::error::{Error, Result, sqlstate};
use super::super::super::latch::WaitEvent;
use super::super::super::local::ProcessLocal;
use super::super::super::lwlock::LwLock;
use super::super::super::shmem;
use super::slots::{self, Slot, SlotState, Ticket};
use super::{Pool, Signal, exit};

/// A pool of so many slots, keyed by `K`, under an LWLock of its own; a `static`. An extension may have several.
pub struct Shared<K, P> {
    name: &'static CStr,
    count: usize,
    vacant: (K, P),
    addresses: ProcessLocal<Option<Addresses<K, P>>>,
}

struct Addresses<K, P> {
    lock: LwLock,
    ended: Condition,
    first: *mut Slot<K, P>,
}

impl<K, P> Clone for Addresses<K, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, P> Copy for Addresses<K, P> {}

/// What is known of a worker that was found by its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found<P> {
    /// Its slot.
    pub ticket: Ticket,
    /// Its process; 0 if that has not come yet.
    pub pid: i32,
    /// It can do its work.
    pub ready: bool,
    /// What it has stored.
    pub payload: P,
}

impl<K, P> Shared<K, P>
where
    K: Copy + PartialEq + Sync + 'static,
    P: Copy + Sync + 'static,
{
    /// Before it is there. The name is that of its memory and of its lock in the server; the key and payload are what a slot
    /// holds before its first use.
    pub const fn new(name: &'static CStr, count: usize, vacant: (K, P)) -> Self {
        Self {
            name,
            count,
            vacant,
            addresses: ProcessLocal::new(None),
        }
    }

    fn layout(&self) -> (Layout, usize) {
        let slots = Layout::array::<Slot<K, P>>(self.count).expect("a pool fits into memory");
        Layout::new::<Room>()
            .extend(slots)
            .expect("a pool fits into memory")
    }

    /// Asks for memory and lock: in the postmaster, where [`shmem::hooks`] says.
    ///
    /// # Errors
    /// Asked too late.
    pub fn request(&self) -> Result<()> {
        shmem::request(self.layout().0.size())?;
        LwLock::request(self.name)
    }

    /// Attaches, and fills the memory if it is new: in the postmaster, where [`shmem::hooks`] says.
    ///
    /// # Errors
    /// Not enough shared memory.
    pub fn startup(&self) -> Result<()> {
        let (layout, offset) = self.layout();
        let (address, found) = shmem::attach(self.name, layout.size())?;
        let lock = LwLock::named(self.name)?;
        let room: *mut Room = address.cast();
        // SAFETY: `layout` computed this offset within the memory attached, whose start is aligned to a cache line.
        let first: *mut Slot<K, P> = unsafe { address.add(offset) }.cast();
        if !found {
            // SAFETY: our memory, which no other process uses yet, and which is large enough for all of them.
            unsafe {
                Condition::initialize(room);
                for i in 0..self.count {
                    first
                        .add(i)
                        .write(slots::free_slot(self.vacant.0, self.vacant.1));
                }
            }
        }
        self.addresses.set(Some(Addresses {
            lock,
            // SAFETY: initialized above, or by whoever came first; there as long as the server.
            ended: unsafe { Condition::at(room) },
            first,
        }));
        Ok(())
    }

    /// The worker of this key that was asked for or is there.
    ///
    /// # Errors
    /// The library was not preloaded, as for all here.
    pub fn find(&self, key: K) -> Result<Option<Found<P>>> {
        self.with(|slots| {
            slots::position(slots, &key).map(|index| Found {
                ticket: Ticket::of(index, &slots[index]),
                pid: slots[index].pid,
                ready: slots[index].ready,
                payload: slots[index].payload,
            })
        })
    }

    /// Signals the workers of this key; how many there were.
    ///
    /// # Errors
    /// See [`Shared::find`].
    pub fn signal(&self, key: K, signal: Signal) -> Result<usize> {
        let count =
            self.with(|slots| slots::signal::<Self>(slots, signal, |slot| slot.key == key))?;
        // one that had not come is gone with this
        exit::broadcast(self);
        Ok(count)
    }

    /// Waits until no worker of this key is there or comes any more; false if so many milliseconds (`None`: for ever) are over
    /// before. For any process but the owner, which hears of failed starts itself ([`Owner::wait_for`](super::Owner::wait_for)).
    ///
    /// # Errors
    /// An interrupt that is served meanwhile.
    pub fn wait_for_exit(&self, key: K, timeout_ms: Option<i64>) -> Result<bool> {
        let Some(ended) = self.ended() else {
            return Err(not_there());
        };
        ended.wait(WaitEvent::EXTENSION, timeout_ms, || {
            self.with(|slots| slots::position(slots, &key).is_none())
        })
    }

    /// How many slots are in use.
    ///
    /// # Errors
    /// See [`Shared::find`].
    pub fn in_use(&self) -> Result<usize> {
        self.with(|slots| slots.iter().filter(|s| s.state != SlotState::Free).count())
    }
}

fn not_there() -> Error {
    Error::new(
        sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
        "a pool of background workers needs shared memory that is set up when the server starts",
    )
    .hint("Add the library to shared_preload_libraries in postgresql.conf and restart the server.")
}

impl<K, P> Pool for Shared<K, P>
where
    K: Copy + PartialEq + Sync + 'static,
    P: Copy + Sync + 'static,
{
    type Key = K;
    type Payload = P;

    fn with<R>(&self, f: impl FnOnce(&mut [Slot<K, P>]) -> R) -> Result<R> {
        let addresses = self.addresses.get().ok_or_else(not_there)?;
        let _held = addresses.lock.exclusive()?;
        // SAFETY: `count` slots, which belong to whoever holds the lock; `f` cannot keep them.
        Ok(f(unsafe {
            std::slice::from_raw_parts_mut(addresses.first, self.count)
        }))
    }

    fn ended(&self) -> Option<Condition> {
        self.addresses.get().map(|addresses| addresses.ended)
    }
}
