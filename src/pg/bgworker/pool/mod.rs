//! Pools: the books of many workers, in shared memory. The model is replication/logical/launcher.c.
//!
//! A pool is an array of [`Slot`]s under a lock. Whoever wants a worker ([`Owner::launch`]) reserves a slot first and hands the
//! worker a [`Ticket`]; the worker takes its slot with it ([`Member::attach`]), says when it is ready to work
//! ([`Member::ready`]), and leaves when it exits, however it does. What is stored with the slot, the payload, is the extension's.
//!
//! ```text
//!            reserve              attach            ready             exit
//!   Free ───────────▶ Registered ───────▶ Attached ───────▶ (ready) ───────▶ Ended ──▶ Free
//!                         │                   │                                ▲
//!                         └── never came ─────┴── gone, never ready ───────────┘
//! ```
//!
//! The owner looks after its workers with [`Owner::tend`], whenever its latch was set, and hears of each life, exactly once, that it
//! failed to begin, or that it started and then that it exited or died ([`Watch`]). A slot is not given to another before
//! its end was told. Nothing is concluded from process ids alone, which the kernel gives again: a worker says under the lock that it goes,
//! and what it cannot say, the postmaster knows ([`Handle`](super::Handle)).
//!
//! An owner is a backend, a dynamic worker or a static one. With it go its workers ([`Owner::new`]), or they stay for its
//! successor ([`Owner::take_over`]).

mod exit;
mod member;
mod owner;
mod shared;
mod slots;

pub use member::Member;
pub use owner::{Life, Owner, Watch};
pub use shared::Shared;
pub use slots::{End, Failure, Slot, SlotState, Ticket, bury, find, free_slot, position, release};

use super::super::condition::Condition;
use super::super::error::Result;

/// Where a pool's slots are, and under which lock. [`Shared`] is one that is complete; an extension that keeps more under the
/// same lock makes its own.
pub trait Pool: Sync {
    /// Which worker a slot is for; plain data without references.
    type Key: Copy + PartialEq + 'static;
    /// What else is stored with a worker; plain data without references.
    type Payload: Copy + 'static;

    /// Calls `f` with the slots, locked.
    ///
    /// # Errors
    /// The library was not preloaded.
    fn with<R>(&self, f: impl FnOnce(&mut [Slot<Self::Key, Self::Payload>]) -> R) -> Result<R>;

    /// Whether a worker that ended with this payload has left something to clear away. Its slot is then kept, as
    /// [`SlotState::Orphaned`], until somebody [`release`]s it.
    fn leaves_something(_payload: &Self::Payload) -> bool {
        false
    }

    /// What is broadcast when a worker has ended, if somebody waits for that who is not its owner.
    fn ended(&self) -> Option<Condition> {
        None
    }
}

/// What [`Shared::signal`] does to a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Sets its latch.
    Wake,
    /// Cancels what it does, as `pg_cancel_backend`.
    Cancel,
    /// Ends it, as `pg_terminate_backend`. One that has not come yet never will.
    Terminate,
}
