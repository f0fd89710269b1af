//! The books of a pool of workers: slots in shared memory, with generations.
//!
//! All functions are called with the lock held that guards the slots. The model is replication/logical/launcher.c:
//! whoever launches a worker reserves a slot first and hands the worker a [`Ticket`]; the worker attaches with it,
//! and finds out if somebody has given the slot up meanwhile: the generation is another.

use super::super::datum::Datum;
use super::super::latch::LatchRef;

/// What a slot holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SlotState {
    /// Nothing.
    Free,
    /// A worker was asked for.
    Registered,
    /// A worker is there.
    Attached,
    /// A worker was there and has left something that must be cleared away.
    Orphaned,
}

/// A place for one worker. `Key` says which worker it is, `Payload` what it does.
#[repr(C)]
pub struct Slot<Key, Payload> {
    /// What the slot holds.
    pub state: SlotState,
    /// Counts the slot's users.
    pub generation: u32,
    /// The worker's process, when attached.
    pub pid: i32,
    /// The worker's latch, when attached.
    pub latch: LatchRef,
    /// Which worker it is.
    pub key: Key,
    /// What it does.
    pub payload: Payload,
}

/// The right to attach to a slot, as it travels to the worker in its main function's argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// The slot's number.
    pub slot: u32,
    /// Its generation when it was reserved.
    pub generation: u32,
}

impl Ticket {
    /// As an argument of a main function.
    pub fn to_argument(self) -> Datum {
        (self.generation as Datum) << 32 | self.slot as Datum
    }

    /// From the argument of a main function.
    pub fn from_argument(argument: Datum) -> Self {
        Self {
            slot: argument as u32,
            generation: (argument >> 32) as u32,
        }
    }
}

/// Reserves a free slot.
pub fn reserve<K, P>(slots: &mut [Slot<K, P>], key: K, payload: P) -> Option<Ticket> {
    let index = slots
        .iter()
        .position(|slot| slot.state == SlotState::Free)?;
    let slot = &mut slots[index];
    slot.state = SlotState::Registered;
    slot.generation = slot.generation.wrapping_add(1);
    slot.pid = 0;
    slot.latch = LatchRef::NOBODY;
    slot.key = key;
    slot.payload = payload;
    Some(Ticket {
        slot: u32::try_from(index).ok()?,
        generation: slot.generation,
    })
}

/// The slot of a ticket, if it is still its.
pub fn find<K, P>(slots: &mut [Slot<K, P>], ticket: Ticket) -> Option<&mut Slot<K, P>> {
    slots
        .get_mut(ticket.slot as usize)
        .filter(|slot| slot.generation == ticket.generation && slot.state != SlotState::Free)
}

/// The worker of this process takes its slot; `None` if it was given up meanwhile: then the worker must exit.
pub fn attach<K, P>(
    slots: &mut [Slot<K, P>],
    ticket: Ticket,
    pid: i32,
    latch: LatchRef,
) -> Option<&mut Slot<K, P>> {
    let slot = find(slots, ticket).filter(|slot| slot.state == SlotState::Registered)?;
    slot.state = SlotState::Attached;
    slot.pid = pid;
    slot.latch = latch;
    Some(slot)
}

/// Gives a slot back; whoever still holds a ticket for it finds another generation.
pub fn release<K, P>(slot: &mut Slot<K, P>) {
    slot.state = SlotState::Free;
    slot.generation = slot.generation.wrapping_add(1);
    slot.pid = 0;
    slot.latch = LatchRef::NOBODY;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(n: usize) -> Vec<Slot<u32, ()>> {
        (0..n)
            .map(|_| Slot {
                state: SlotState::Free,
                generation: u32::MAX,
                pid: 0,
                latch: LatchRef::NOBODY,
                key: 0,
                payload: (),
            })
            .collect()
    }

    #[test]
    fn a_ticket_survives_the_journey() {
        let ticket = Ticket {
            slot: 7,
            generation: u32::MAX,
        };
        assert_eq!(Ticket::from_argument(ticket.to_argument()), ticket);
    }

    #[test]
    fn a_late_worker_finds_another_generation() {
        let mut slots = slots(1);
        let late = reserve(&mut slots, 1, ()).unwrap();
        assert_eq!(reserve(&mut slots, 2, ()), None);
        release(&mut slots[0]);
        let next = reserve(&mut slots, 2, ()).unwrap();
        assert!(attach(&mut slots, late, 10, LatchRef::NOBODY).is_none());
        assert_eq!(
            attach(&mut slots, next, 11, LatchRef::NOBODY).unwrap().key,
            2
        );
        assert!(attach(&mut slots, next, 12, LatchRef::NOBODY).is_none());
    }
}
