//! Who launches the workers of a pool, and hears what becomes of them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::super::error::Result;
use super::super::super::interrupt;
use super::super::super::latch::{self, LatchRef};
use super::super::super::time::{self, Deadline, TimestampTz};
use super::super::{Definition, Handle, Restart, Started};
use super::slots::{self, End, Failure, Slot, SlotState, Ticket};
use super::{Pool, exit};

/// The life of a worker, as its owner hears of it.
pub struct Life<P: Pool> {
    /// Its slot; free for others already when the life is over, unless something was left in it.
    pub ticket: Ticket,
    /// Which worker it was.
    pub key: P::Key,
    /// What it has stored last.
    pub payload: P::Payload,
}

/// What becomes of an owner's workers: of each life [`failed`](Self::failed), or [`started`](Self::started) and then one of the
/// others. Each is called exactly once, outside the lock. An error that one returns leaves [`Owner::tend`]; the next round
/// goes on after it.
#[expect(unused_variables, reason = "names for implementors")]
pub trait Watch<P: Pool> {
    /// It never was ready.
    ///
    /// # Errors
    /// The implementor's.
    fn failed(&mut self, life: &Life<P>, why: Failure) -> Result<()>;

    /// It is ready, or has been.
    ///
    /// # Errors
    /// The implementor's.
    fn started(&mut self, life: &Life<P>) -> Result<()> {
        Ok(())
    }

    /// It has ended with exit code 0.
    ///
    /// # Errors
    /// The implementor's.
    fn exited(&mut self, life: &Life<P>) -> Result<()>;

    /// It has ended in another way.
    ///
    /// # Errors
    /// The implementor's.
    fn died(&mut self, life: &Life<P>) -> Result<()>;
}

enum Event {
    Started,
    Ended(End),
}

/// A worker that is not ready yet.
struct Start {
    ticket: Ticket,
    handle: Handle,
    /// By the clock that nobody sets.
    asked: Instant,
}

/// What becomes of a start.
#[derive(PartialEq, Eq)]
enum Verdict {
    Starting,
    TooSlow,
    /// The worker is ready, or its life is over.
    Over,
}

/// The owner of workers of a pool: a process has one for each pool at most.
pub struct Owner<P: Pool + 'static> {
    pool: &'static P,
    inherited: bool,
    start_timeout: Option<i64>,
    starts: Vec<Start>,
    events: VecDeque<(Life<P>, Event)>,
    _not_send: std::marker::PhantomData<*mut ()>,
}

impl<P: Pool> Owner<P> {
    /// An owner with whom its workers go: when it is dropped, or its process exits, they are terminated.
    ///
    /// # Errors
    /// This process owns workers of this pool already, or of too many pools; the library was not preloaded.
    pub fn new(pool: &'static P) -> Result<Self> {
        Self::begin(pool, false)
    }

    /// The one owner that a pool has at a time, which is restarted when it ends, as a static worker is: it takes over the workers that
    /// its predecessor has left. Those that were asked for and have not come are withdrawn.
    ///
    /// # Errors
    /// As [`Owner::new`].
    pub fn take_over(pool: &'static P) -> Result<Self> {
        let owner = Self::begin(pool, true)?;
        pool.with(|slots| -> Result<()> {
            slots::bury::<P>(slots)?;
            let left = |slot: &&mut Slot<_, _>| slot.inherited && slot.owner == LatchRef::NOBODY;
            for slot in slots.iter_mut().filter(left) {
                slot.owner = LatchRef::mine();
                if slot.state == SlotState::Registered {
                    slots::withdraw::<P>(slot, Failure::Withdrawn);
                }
            }
            Ok(())
        })??;
        exit::broadcast(pool);
        Ok(owner)
    }

    fn begin(pool: &'static P, inherited: bool) -> Result<Self> {
        exit::promise_to_disown(pool)?;
        Ok(Self {
            pool,
            inherited,
            start_timeout: None,
            starts: Vec::new(),
            events: VecDeque::new(),
            _not_send: std::marker::PhantomData,
        })
    }

    /// From now on a worker that is not ready after so many microseconds is terminated. That it has failed is told when it is gone, for
    /// it may have become ready in the last moment.
    pub fn start_timeout(mut self, microseconds: i64) -> Self {
        self.start_timeout = Some(microseconds);
        self
    }

    /// Launches a worker: reserves a slot and asks the postmaster for a process, with the slot's ticket as argument and without
    /// restart, whatever the definition says. `None` if the pool has no free slot. That PostgreSQL has none is told by
    /// [`Watch::failed`].
    ///
    /// # Errors
    /// Out of memory.
    pub fn launch(
        &mut self,
        definition: Definition,
        key: P::Key,
        payload: P::Payload,
    ) -> Result<Option<Ticket>> {
        let pool = self.pool;
        let Some(ticket) = pool.with(|slots| self.reserve(slots, key, payload))? else {
            return Ok(None);
        };
        self.start(ticket, definition)?;
        Ok(Some(ticket))
    }

    /// The first half of [`launch`](Self::launch), for callers that hold the pool's lock anyway.
    pub fn reserve(
        &self,
        slots: &mut [Slot<P::Key, P::Payload>],
        key: P::Key,
        payload: P::Payload,
    ) -> Option<Ticket> {
        slots::reserve(slots, key, payload, LatchRef::mine(), self.inherited)
    }

    /// The second half of [`launch`](Self::launch); false if PostgreSQL has no worker slot free.
    ///
    /// # Errors
    /// Out of memory.
    pub fn start(&mut self, ticket: Ticket, definition: Definition) -> Result<bool> {
        let definition = definition
            .restart(Restart::Never)
            .argument(ticket.to_argument());
        let launched = definition.launch();
        if let Ok(Some(handle)) = launched {
            self.starts.push(Start {
                ticket,
                handle,
                asked: Instant::now(),
            });
            return Ok(true);
        }
        // Nobody else will ever say anything about this one.
        let life = self.pool.with(|slots| {
            slots::find(slots, ticket).map(|slot| {
                let life = life::<P>(ticket, slot);
                slots::release(slot);
                life
            })
        })?;
        exit::broadcast(self.pool);
        let end = End::Failed(Failure::NoWorkerSlot);
        self.events
            .extend(life.map(|life| (life, Event::Ended(end))));
        launched.map(|_| false)
    }

    /// Looks what has become of the workers, and tells. To be called whenever the latch was set, and again after whatever has
    /// waited for something meanwhile; the callbacks may do so. Returns when to call it even if it was not: when the next start takes too
    /// long.
    ///
    /// # Errors
    /// Of the callbacks.
    pub fn tend(&mut self, watch: &mut impl Watch<P>) -> Result<Option<TimestampTz>> {
        loop {
            let next = self.look_after_starts()?;
            self.collect()?;
            if self.events.is_empty() {
                return Ok(next);
            }
            // A callback that waits for something, as a statement may, takes what the latch was set for meanwhile: look again, or
            // the caller would sleep over it.
            while let Some((life, event)) = self.events.pop_front() {
                match event {
                    Event::Started => watch.started(&life)?,
                    Event::Ended(End::Failed(why)) => watch.failed(&life, why)?,
                    Event::Ended(End::Exited) => watch.exited(&life)?,
                    Event::Ended(End::Died) => watch.died(&life)?,
                }
            }
        }
    }

    /// Ends the lives that never began: the postmaster says so, or they take too long.
    fn look_after_starts(&mut self) -> Result<Option<TimestampTz>> {
        let now = time::now();
        let pool = self.pool;
        let mut next: Option<TimestampTz> = None;
        let mut done = Vec::new();
        for start in &self.starts {
            // Asked before the slot is looked at: a process that is gone by now has left its slot as it stays.
            let gone = start.handle.state()? == Started::Stopped;
            let left = self
                .start_timeout
                .map(|patience| patience.saturating_sub_unsigned(micros(start.asked.elapsed())));
            let late = left.is_some_and(|left| left <= 0);
            let until = left.map(|left| now.saturating_add(left));
            let verdict = pool.with(|slots| {
                let Some(slot) = slots::find(slots, start.ticket) else {
                    return Verdict::Over;
                };
                match slot.state {
                    SlotState::Registered if gone => {
                        slots::withdraw::<P>(slot, Failure::NeverCame);
                        Verdict::Over
                    }
                    SlotState::Registered if late => {
                        slots::withdraw::<P>(slot, Failure::TooSlow);
                        Verdict::TooSlow
                    }
                    // it leaves its slot when it ends, not before
                    SlotState::Attached if late && !slot.ready => {
                        slot.late = true;
                        Verdict::TooSlow
                    }
                    SlotState::Registered => Verdict::Starting,
                    SlotState::Attached if !slot.ready => Verdict::Starting,
                    _ => Verdict::Over,
                }
            })?;
            match verdict {
                Verdict::Starting => next = [next, until].into_iter().flatten().min(),
                Verdict::TooSlow => start.handle.terminate()?,
                Verdict::Over => {}
            }
            done.push(verdict != Verdict::Starting);
        }
        let mut done = done.into_iter();
        self.starts.retain(|_| !done.next().unwrap_or(false));
        Ok(next)
    }

    /// Takes what is new from the slots; from then on only this owner knows of it.
    fn collect(&mut self) -> Result<()> {
        let pool = self.pool;
        let events = &mut self.events;
        let ended = pool.with(|slots| {
            let mut ended = false;
            for (index, slot) in slots.iter_mut().enumerate() {
                if slot.owner != LatchRef::mine() {
                    continue;
                }
                let life = |slot: &Slot<_, _>| life::<P>(Ticket::of(index, slot), slot);
                let (over, started) = match slot.state {
                    SlotState::Ended => (true, !matches!(slot.end, End::Failed(_))),
                    SlotState::Attached => (false, slot.ready),
                    _ => continue,
                };
                if started && !slot.told {
                    events.push_back((life(slot), Event::Started));
                    slot.told = true;
                }
                if over {
                    events.push_back((life(slot), Event::Ended(slot.end)));
                    slots::settle::<P>(slot);
                    ended = true;
                }
            }
            ended
        })?;
        if ended {
            exit::broadcast(pool);
        }
        Ok(())
    }

    /// Waits until none of this owner's workers of some keys is there or comes any more, and tells what happens meanwhile; false if so
    /// many milliseconds (`None`: for ever) are over before.
    ///
    /// # Errors
    /// Of the callbacks; an interrupt that is served meanwhile.
    pub fn wait_for(
        &mut self,
        which: impl Fn(&P::Key) -> bool,
        timeout_ms: Option<i64>,
        watch: &mut impl Watch<P>,
    ) -> Result<bool> {
        let deadline = Deadline::after(timeout_ms);
        loop {
            interrupt::check()?;
            let next = self.tend(watch)?;
            let waits = self.pool.with(|slots| {
                slots.iter().any(|slot| {
                    slot.owner == LatchRef::mine()
                        && matches!(
                            slot.state,
                            SlotState::Registered | SlotState::Attached | SlotState::Ended
                        )
                        && which(&slot.key)
                })
            })?;
            if !waits {
                return Ok(true);
            }
            if deadline.is_over() {
                return Ok(false);
            }
            let start = next.map(|next| (next - time::now()).max(0) / 1000 + 1);
            let timeout = [deadline.left_ms(), start].into_iter().flatten().min();
            latch::wait(timeout)?;
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn life<P: Pool>(ticket: Ticket, slot: &Slot<P::Key, P::Payload>) -> Life<P> {
    Life {
        ticket,
        key: slot.key,
        payload: slot.payload,
    }
}

impl<P: Pool> Drop for Owner<P> {
    fn drop(&mut self) {
        exit::disown(self.pool);
    }
}
