//! The slots. All functions are called with the lock held that guards them.

use super::super::super::datum::Datum;
use super::super::super::error::Result;
use super::super::super::latch::LatchRef;
use super::super::is_alive;
use super::{Pool, Signal};

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
    /// A worker's life is over, and its owner has not heard of it yet.
    Ended,
    /// A worker was there and has left something that must be cleared away.
    Orphaned,
}

/// Why a life never began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// PostgreSQL had no worker slot free (`max_worker_processes`).
    NoWorkerSlot,
    /// The process ended before it took its slot, or there never was one: the fork failed, or the library could not be loaded.
    NeverCame,
    /// The process ended before it was ready: its session was refused, say.
    NotReady,
    /// It was not ready in time ([`Owner::start_timeout`](super::Owner::start_timeout)), and was terminated for that.
    TooSlow,
    /// It was terminated before it came, or its owner was gone.
    Withdrawn,
}

/// How a life ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It never began.
    Failed(Failure),
    /// With exit code 0.
    Exited,
    /// In another way.
    Died,
}

/// The exit code of a process that nobody has heard.
const GONE: i32 = -1;

/// A place for one worker. `Key` says which worker it is, `Payload` what it does.
#[repr(C)]
pub struct Slot<Key, Payload> {
    /// What the slot holds.
    pub state: SlotState,
    /// Its worker can do its work.
    pub ready: bool,
    /// Counts the slot's users.
    pub generation: u32,
    /// The worker's process, when attached.
    pub pid: i32,
    /// The worker's latch, when attached.
    pub latch: LatchRef,
    /// Who is told what becomes of the worker, when that is not over.
    pub(super) owner: LatchRef,
    /// Without an owner it waits for the next.
    pub(super) inherited: bool,
    /// It was not ready in time, and is terminated.
    pub(super) late: bool,
    /// The owner has heard of the start.
    pub(super) told: bool,
    /// How it ended, when it has.
    pub(super) end: End,
    /// Which worker it is.
    pub key: Key,
    /// What it does.
    pub payload: Payload,
}

/// A slot that holds nothing, for new shared memory.
pub fn free_slot<K, P>(key: K, payload: P) -> Slot<K, P> {
    Slot {
        state: SlotState::Free,
        ready: false,
        generation: 0,
        pid: 0,
        latch: LatchRef::NOBODY,
        owner: LatchRef::NOBODY,
        inherited: false,
        late: false,
        told: false,
        end: End::Exited,
        key,
        payload,
    }
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

    /// Of a slot's present user.
    pub(super) fn of<K, P>(index: usize, slot: &Slot<K, P>) -> Self {
        Self {
            slot: index as u32,
            generation: slot.generation,
        }
    }
}

/// Reserves a free slot for a worker of this owner.
pub(super) fn reserve<K, P>(
    slots: &mut [Slot<K, P>],
    key: K,
    payload: P,
    owner: LatchRef,
    inherited: bool,
) -> Option<Ticket> {
    let free = |slot: &Slot<K, P>| slot.state == SlotState::Free;
    let index = slots.iter().position(free)?;
    let slot = &mut slots[index];
    *slot = Slot {
        state: SlotState::Registered,
        generation: slot.generation.wrapping_add(1),
        owner,
        inherited,
        ..free_slot(key, payload)
    };
    Some(Ticket::of(index, slot))
}

/// The slot of a ticket, if it is still its.
pub fn find<K, P>(slots: &mut [Slot<K, P>], ticket: Ticket) -> Option<&mut Slot<K, P>> {
    slots
        .get_mut(ticket.slot as usize)
        .filter(|slot| slot.generation == ticket.generation && slot.state != SlotState::Free)
}

/// The slot of a worker of this key that was asked for or is there.
pub fn position<K: PartialEq, P>(slots: &[Slot<K, P>], key: &K) -> Option<usize> {
    slots
        .iter()
        .position(|slot| lives(slot) && slot.key == *key)
}

/// Whether a slot has a worker, or waits for one.
fn lives<K, P>(slot: &Slot<K, P>) -> bool {
    matches!(slot.state, SlotState::Registered | SlotState::Attached)
}

/// The worker of this process takes its slot; `None` if it was given up meanwhile: then the worker must exit.
pub(super) fn attach<K, P>(
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
    slot.owner = LatchRef::NOBODY;
    slot.inherited = false;
    vacate(slot);
}

fn vacate<K, P>(slot: &mut Slot<K, P>) {
    slot.ready = false;
    slot.pid = 0;
    slot.latch = LatchRef::NOBODY;
}

/// A life is over. Its owner is told, and hears the rest in its next round; without one, and without one to come, that is all.
pub(super) fn end<P: Pool>(slot: &mut Slot<P::Key, P::Payload>, end: End) {
    slot.owner.set();
    close::<P>(slot, end);
}

/// What [`end`] does to the slot.
fn close<P: Pool>(slot: &mut Slot<P::Key, P::Payload>, end: End) {
    slot.state = SlotState::Ended;
    slot.end = end;
    vacate(slot);
    if slot.owner == LatchRef::NOBODY && !slot.inherited {
        settle::<P>(slot);
    }
}

/// The end of a life has been told.
pub(super) fn settle<P: Pool>(slot: &mut Slot<P::Key, P::Payload>) {
    if P::leaves_something(&slot.payload) {
        slot.state = SlotState::Orphaned;
    } else {
        release(slot);
    }
}

/// A worker that was asked for is not wanted any more: it gets another generation, and one that comes all the same finds that out.
pub(super) fn withdraw<P: Pool>(slot: &mut Slot<P::Key, P::Payload>, why: Failure) {
    slot.owner.set();
    revoke::<P>(slot, why);
}

/// What [`withdraw`] does to the slot.
fn revoke<P: Pool>(slot: &mut Slot<P::Key, P::Payload>, why: Failure) {
    slot.generation = slot.generation.wrapping_add(1);
    close::<P>(slot, End::Failed(why));
}

/// The slot that the process of a ticket leaves: none if it was given up before the process came, and never another's, even if that has
/// the same process id.
pub(super) fn held_by<K, P>(
    slots: &mut [Slot<K, P>],
    ticket: Ticket,
    pid: i32,
) -> Option<&mut Slot<K, P>> {
    find(slots, ticket).filter(|slot| slot.state == SlotState::Attached && slot.pid == pid)
}

/// The end of a process that has left its slot: what its exit code and its state say.
pub(super) fn end_of_process<K, P>(slot: &Slot<K, P>, code: i32) -> End {
    match code {
        _ if !slot.ready && slot.late => End::Failed(Failure::TooSlow),
        _ if !slot.ready => End::Failed(Failure::NotReady),
        0 => End::Exited,
        _ => End::Died,
    }
}

/// Ends the lives of those whose process is gone without having said so, should that ever be.
///
/// # Errors
/// None; the callers of others that have some do not mind.
pub fn bury<P: Pool>(slots: &mut [Slot<P::Key, P::Payload>]) -> Result<()> {
    for slot in slots {
        if slot.state == SlotState::Attached && !is_alive(slot.pid, slot.latch) {
            let how = end_of_process(slot, GONE);
            end::<P>(slot, how);
        }
    }
    Ok(())
}

/// Signals the workers for which `which` holds; how many. While the lock is held none of their pids can be another's: a process leaves
/// its slot under it.
pub(super) fn signal<P: Pool>(
    slots: &mut [Slot<P::Key, P::Payload>],
    signal: Signal,
    which: impl Fn(&Slot<P::Key, P::Payload>) -> bool,
) -> usize {
    let mut count = 0;
    for slot in slots.iter_mut().filter(|slot| lives(slot) && which(slot)) {
        count += 1;
        match signal {
            Signal::Terminate if slot.state == SlotState::Registered => {
                withdraw::<P>(slot, Failure::Withdrawn);
            }
            Signal::Terminate => super::super::terminate(slot.pid),
            Signal::Cancel => super::super::interrupt(slot.pid),
            Signal::Wake => slot.latch.set(),
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain;

    impl Pool for Plain {
        type Key = u32;
        type Payload = bool;

        fn with<R>(&self, _f: impl FnOnce(&mut [Slot<u32, bool>]) -> R) -> Result<R> {
            unreachable!("the tests hold the slots themselves")
        }

        fn leaves_something(payload: &bool) -> bool {
            *payload
        }
    }

    fn slots(n: usize) -> Vec<Slot<u32, bool>> {
        (0..n)
            .map(|_| Slot {
                generation: u32::MAX,
                ..free_slot(0, false)
            })
            .collect()
    }

    fn ask(slots: &mut [Slot<u32, bool>], key: u32, inherited: bool) -> Option<Ticket> {
        reserve(slots, key, false, LatchRef::NOBODY, inherited)
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
        let late = ask(&mut slots, 1, false).unwrap();
        assert_eq!(ask(&mut slots, 2, false), None);
        release(&mut slots[0]);
        let next = ask(&mut slots, 2, false).unwrap();
        assert!(attach(&mut slots, late, 10, LatchRef::NOBODY).is_none());
        assert_eq!(
            attach(&mut slots, next, 11, LatchRef::NOBODY).unwrap().key,
            2
        );
        assert!(attach(&mut slots, next, 12, LatchRef::NOBODY).is_none());
    }

    #[test]
    fn a_withdrawn_worker_may_come_and_finds_nothing() {
        let mut slots = slots(1);
        let ticket = ask(&mut slots, 1, true).unwrap();
        revoke::<Plain>(&mut slots[0], Failure::Withdrawn);
        assert_eq!(slots[0].end, End::Failed(Failure::Withdrawn));
        assert!(attach(&mut slots, ticket, 10, LatchRef::NOBODY).is_none());
        // its successor has not heard of it: the slot is not free
        assert_eq!(ask(&mut slots, 2, true), None);
        assert_eq!(position(&slots, &1), None);
    }

    #[test]
    fn a_life_without_an_owner_leaves_a_free_slot_or_an_orphan() {
        let mut slots = slots(1);
        let ticket = ask(&mut slots, 1, false).unwrap();
        attach(&mut slots, ticket, 10, LatchRef::NOBODY).unwrap();
        assert_eq!(position(&slots, &1), Some(0));
        close::<Plain>(&mut slots[0], End::Died);
        assert_eq!(slots[0].state, SlotState::Free);

        let ticket = ask(&mut slots, 1, false).unwrap();
        let slot = attach(&mut slots, ticket, 10, LatchRef::NOBODY).unwrap();
        slot.payload = true;
        close::<Plain>(slot, End::Died);
        assert_eq!((slot.state, slot.pid), (SlotState::Orphaned, 0));
        assert!(find(&mut slots, ticket).is_some());
    }

    #[test]
    fn a_process_leaves_no_slot_but_its_own() {
        let mut slots = slots(1);
        let first = ask(&mut slots, 1, false).unwrap();
        attach(&mut slots, first, 10, LatchRef::NOBODY).unwrap();
        close::<Plain>(held_by(&mut slots, first, 10).unwrap(), End::Exited);
        // the next process in the slot has the same id: the kernel gives it again
        let second = ask(&mut slots, 2, false).unwrap();
        assert!(held_by(&mut slots, second, 10).is_none());
        attach(&mut slots, second, 10, LatchRef::NOBODY).unwrap();
        assert!(held_by(&mut slots, first, 10).is_none());
        // nor does one that came too late
        assert!(held_by(&mut slots, second, 11).is_none());
        assert_eq!(held_by(&mut slots, second, 10).unwrap().key, 2);
    }

    #[test]
    fn the_exit_code_tells_how_a_ready_worker_ended() {
        let mut slot = free_slot(1, false);
        assert_eq!(end_of_process(&slot, 0), End::Failed(Failure::NotReady));
        slot.late = true;
        assert_eq!(end_of_process(&slot, 1), End::Failed(Failure::TooSlow));
        // it was late, but then it was ready before it was terminated
        slot.ready = true;
        assert_eq!(end_of_process(&slot, 0), End::Exited);
        assert_eq!(end_of_process(&slot, 1), End::Died);
    }
}
