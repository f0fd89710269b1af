//! A worker in its slot.

use super::super::super::datum::Datum;
use super::super::super::error::{Error, Result, sqlstate};
use super::super::super::latch::LatchRef;
use super::super::my_pid;
use super::{Pool, Slot, SlotState, Ticket, exit, slots};

/// The worker of this process, with its slot. It leaves the slot when the process exits, not before, however that comes about;
/// the exit code tells how it ended.
pub struct Member<P: Pool + 'static> {
    pool: &'static P,
    ticket: Ticket,
    key: P::Key,
}

impl<P: Pool> Member<P> {
    /// Takes the slot that the argument of the main function names. `None` if it was given up meanwhile: nobody waits for this
    /// worker any more, and it must exit. To be called before the session is opened, so that its failure is noticed, too.
    ///
    /// # Errors
    /// The library was not preloaded; this process has a slot already.
    pub fn attach(pool: &'static P, argument: Datum) -> Result<Option<Self>> {
        exit::prepare_to_leave()?;
        Self::enter(pool, Ticket::from_argument(argument))
    }

    /// Takes a free slot for a worker that nobody has launched for the pool, a static one for example; `None` if there is
    /// none. It can be found, signalled and waited for like all, but has no owner.
    ///
    /// # Errors
    /// As [`Member::attach`].
    pub fn join(pool: &'static P, key: P::Key, payload: P::Payload) -> Result<Option<Self>> {
        // first: nobody would give up what is reserved when this fails
        exit::prepare_to_leave()?;
        let reserved =
            pool.with(|slots| slots::reserve(slots, key, payload, LatchRef::NOBODY, false))?;
        match reserved {
            Some(ticket) => Self::enter(pool, ticket),
            None => Ok(None),
        }
    }

    fn enter(pool: &'static P, ticket: Ticket) -> Result<Option<Self>> {
        // Promised first: between the two the process cannot end without having left.
        exit::promise_to_leave(pool, ticket);
        let attached = pool.with(|slots| {
            slots::attach(slots, ticket, my_pid(), LatchRef::mine()).map(|slot| slot.key)
        })?;
        Ok(attached.map(|key| Self { pool, ticket, key }))
    }

    /// Which worker it is.
    pub fn key(&self) -> P::Key {
        self.key
    }

    /// Its ticket, as its owner knows it.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// It can do its work now: its start has not failed. To be called after the session was opened.
    ///
    /// # Errors
    /// As [`Member::update`].
    pub fn ready(&self) -> Result<()> {
        self.slot(|slot| {
            slot.ready = true;
            slot.owner.set();
        })
    }

    /// Calls `f` with its payload, locked: nothing slow, and nothing that raises.
    ///
    /// # Errors
    /// The slot was taken away, because this process was taken for dead.
    pub fn update<R>(&self, f: impl FnOnce(&mut P::Payload) -> R) -> Result<R> {
        self.slot(|slot| f(&mut slot.payload))
    }

    fn slot<R>(&self, f: impl FnOnce(&mut Slot<P::Key, P::Payload>) -> R) -> Result<R> {
        let done = self.pool.with(|slots| {
            slots::find(slots, self.ticket)
                .filter(|slot| slot.state == SlotState::Attached)
                .map(f)
        })?;
        done.ok_or_else(|| {
            Error::new(
                sqlstate::INTERNAL_ERROR,
                "the slot of this worker was taken away",
            )
        })
    }
}
