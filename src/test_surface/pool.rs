//! A pool of two slots.

use super::worker;
use super::{int, lock};
use crate::pg::bgworker::pool::{self, Slot, SlotState, Ticket};
use crate::pg::bgworker::{self, Started};
use crate::pg::datum::Datum;
use crate::pg::fmgr::Call;
use crate::pg::latch::LatchRef;
use crate::pg::lwlock::Held;
use crate::pg::{Error, Result, latch, log, shmem, sqlstate};
use crate::pg_function;

/// The key of a worker that is to end.
const LEAVE: u32 = 0;

type Slots = &'static mut [Slot<u32, ()>];

/// The slots, and the lock that guards them.
fn slots() -> Result<(Slots, Held)> {
    const COUNT: usize = 2;
    let held = lock()?.exclusive()?;
    // There is room to spare for what was not asked for in time.
    let (address, found) = shmem::attach(c"pgbq_test pool", size_of::<[Slot<u32, ()>; COUNT]>())?;
    let first = address.cast::<Slot<u32, ()>>();
    if !found {
        for i in 0..COUNT {
            let free = Slot {
                state: SlotState::Free,
                generation: u32::MAX,
                pid: 0,
                latch: LatchRef::NOBODY,
                key: 0,
                payload: (),
            };
            // SAFETY: within the memory attached, which is aligned to a cache line; we hold the lock.
            unsafe { first.add(i).write(free) };
        }
    }
    // SAFETY: COUNT slots, which belong to whoever holds the lock.
    Ok((
        unsafe { std::slice::from_raw_parts_mut(first, COUNT) },
        held,
    ))
}

fn reserve(key: u32) -> Result<Ticket> {
    let (slots, _held) = slots()?;
    pool::reserve(slots, key, ())
        .ok_or_else(|| Error::new(sqlstate::INSUFFICIENT_RESOURCES, "the pool is full"))
}

/// Starts a worker with a ticket; if `late`, after its slot has been given to another. Returns the worker's pid once it
/// has its slot, and 0 when it has ended.
fn start(call: &Call) -> Result<i32> {
    let late = int(call, 0) != 0;
    let ticket = reserve(1)?;
    let argument = ticket.to_argument();
    if late {
        let (slots, held) = slots()?;
        if let Some(slot) = pool::find(slots, ticket) {
            pool::release(slot);
        }
        drop(held);
        let other = reserve(2)?;
        assert_eq!(other.slot, ticket.slot);
        assert_ne!(other.generation, ticket.generation);
    }
    let Some(handle) = worker::launch("pgbq_test_pool_main", argument)? else {
        return Err(Error::new(
            sqlstate::INSUFFICIENT_RESOURCES,
            "no worker slot is free",
        ));
    };
    if late {
        let ended = handle.wait_for_shutdown()?;
        assert_eq!(ended, Started::Stopped);
        let (slots, _held) = slots()?;
        // it has left the other's slot alone
        assert!(slots[ticket.slot as usize].state == SlotState::Registered);
        assert_eq!(slots[ticket.slot as usize].key, 2);
        pool::release(&mut slots[ticket.slot as usize]);
        return Ok(0);
    }
    loop {
        bgworker::turn()?;
        {
            let (slots, _held) = slots()?;
            if let Some(slot) = pool::find(slots, ticket).filter(|slot| slot.pid != 0) {
                return Ok(slot.pid);
            }
        }
        latch::wait(Some(10))?;
    }
}
pg_function!(pgbq_test_pool, pg_finfo_pgbq_test_pool, start);

/// Wakes the worker that has this pid, which then gives its slot back and ends.
fn wake(call: &Call) -> Result<bool> {
    let (slots, _held) = slots()?;
    let pid = int(call, 0);
    let mine = |slot: &&mut Slot<u32, ()>| slot.state == SlotState::Attached && slot.pid == pid;
    let Some(slot) = slots.iter_mut().find(mine) else {
        return Ok(false);
    };
    slot.key = LEAVE;
    slot.latch.set();
    Ok(true)
}
pg_function!(pgbq_test_pool_wake, pg_finfo_pgbq_test_pool_wake, wake);

/// A worker with a ticket.
pub(super) fn take(argument: Datum) -> Result<()> {
    let ticket = Ticket::from_argument(argument);
    let attached = {
        let (slots, _held) = slots()?;
        pool::attach(slots, ticket, bgworker::my_pid(), LatchRef::mine()).is_some()
    };
    if !attached {
        return log::log("pgbq_test: a late worker leaves");
    }
    loop {
        bgworker::turn()?;
        {
            let (slots, _held) = slots()?;
            match pool::find(slots, ticket) {
                Some(slot) if slot.key != LEAVE => {}
                Some(slot) => {
                    pool::release(slot);
                    return Ok(());
                }
                None => {
                    return Err(Error::new(
                        sqlstate::INTERNAL_ERROR,
                        "the slot was taken away",
                    ));
                }
            }
        }
        latch::wait(None)?;
    }
}
