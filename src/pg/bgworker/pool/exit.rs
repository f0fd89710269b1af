//! What a process owes its pools when it exits: its slot, if it is a worker; its workers, if it is their owner.

use super::super::super::error::{Error, Result, sqlstate};
use super::super::super::latch::LatchRef;
use super::super::super::local::ProcessLocal;
use super::super::super::{callback, crash_point};
use super::super::my_pid;
use super::slots::{self, SlotState, Ticket};
use super::{Pool, Signal};

/// More pools than the workers of one process ever are in.
const MOST_POOLS: usize = 8;

/// A pool whatever its types are.
trait AnyPool: Sync {
    /// The process of a ticket exits.
    fn leave(&self, ticket: Ticket, code: i32);
    /// An owner is gone.
    fn give_up(&self, owner: LatchRef);
}

impl<P: Pool> AnyPool for P {
    fn leave(&self, ticket: Ticket, code: i32) {
        // In an exit callback there is nobody to tell an error; without the pool there was no ticket.
        let _ = self.with(|slots| {
            if let Some(slot) = slots::held_by(slots, ticket, my_pid()) {
                let end = slots::end_of_process(slot, code);
                slots::end::<P>(slot, end);
            }
        });
        broadcast(self);
    }

    fn give_up(&self, owner: LatchRef) {
        let _ = self.with(|slots| {
            slots::signal::<P>(slots, Signal::Terminate, |slot| {
                slot.owner == owner && !slot.inherited
            });
            for slot in slots.iter_mut().filter(|slot| slot.owner == owner) {
                slot.owner = LatchRef::NOBODY;
                if slot.state == SlotState::Ended && !slot.inherited {
                    slots::settle::<P>(slot);
                }
            }
        });
        broadcast(self);
    }
}

/// Tells those who wait for the end of a worker that is not theirs.
pub(super) fn broadcast<P: Pool>(pool: &P) {
    if let Some(condition) = pool.ended() {
        // A wake-up that fails costs a waiter its time-out; there is nothing better to do.
        let _ = condition.broadcast();
    }
}

static MINE: ProcessLocal<Option<(&'static dyn AnyPool, Ticket)>> = ProcessLocal::new(None);
static OWNED: ProcessLocal<[Option<&'static dyn AnyPool>; MOST_POOLS]> =
    ProcessLocal::new([None; MOST_POOLS]);

fn at_exit(code: i32) {
    for pool in OWNED.get().into_iter().flatten() {
        pool.give_up(LatchRef::mine());
    }
    if let Some((pool, ticket)) = MINE.get() {
        MINE.set(None);
        crash_point("a process leaves");
        pool.leave(ticket, code);
    }
}

/// Promises that the slot of this worker will be left, if it is to have one: after [`prepare_to_leave`].
pub(super) fn promise_to_leave<P: Pool>(pool: &'static P, ticket: Ticket) {
    MINE.set(Some((pool, ticket)));
}

/// All of that promise that can fail: a process has one slot only.
pub(super) fn prepare_to_leave() -> Result<()> {
    if MINE.get().is_some() {
        return Err(Error::new(
            sqlstate::INTERNAL_ERROR,
            "this process has a slot in a pool already",
        ));
    }
    callback::at_exit(at_exit)
}

/// Promises that the workers of this process in a pool will be given up.
pub(super) fn promise_to_disown<P: Pool>(pool: &'static P) -> Result<()> {
    callback::at_exit(at_exit)?;
    let mut owned = OWNED.get();
    if owned.iter().any(|known| is(*known, pool)) {
        return Err(Error::new(
            sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "this process owns workers of this pool already",
        ));
    }
    let Some(place) = owned.iter_mut().find(|place| place.is_none()) else {
        return Err(Error::new(
            sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("a process cannot own workers of more than {MOST_POOLS} pools"),
        ));
    };
    *place = Some(pool);
    OWNED.set(owned);
    Ok(())
}

/// Keeps that promise, early.
pub(super) fn disown<P: Pool>(pool: &'static P) {
    pool.give_up(LatchRef::mine());
    let mut owned = OWNED.get();
    for place in &mut owned {
        if is(*place, pool) {
            *place = None;
        }
    }
    OWNED.set(owned);
}

fn is<P: Pool>(known: Option<&'static dyn AnyPool>, pool: &'static P) -> bool {
    known.is_some_and(|known| std::ptr::addr_eq(known, pool))
}
