//! How far the schedule of a role is done with: the tasks that are not due yet stand apart from those that are, in the order of their
//! times, and those whose time has come are let into the queue. Whoever does that begins where the last one has been: the index entries of
//! those that were let in are there until a vacuum, or as long as anybody has an old snapshot.

use super::ready::Place;

/// Where a task stands in the schedule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct Position {
    /// When it is due, in microseconds.
    pub due: i64,
    /// Where it will stand in the queue.
    pub place: Place,
}

impl Position {
    /// Before all.
    pub const FIRST: Self = Self::at(i64::MIN);

    /// Before all that are due at this time or later.
    pub const fn at(due: i64) -> Self {
        Self {
            due,
            place: Place::FIRST,
        }
    }
}

/// What a visit has to be compared with, when it is over, to know whether it missed something.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    arrivals: u64,
    /// The visit may begin here: no task stands before it.
    pub from: Position,
}

/// In shared memory, under a lock of its owner's.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Schedule {
    /// No task stands before this.
    from: Position,
    /// Counts what has come.
    arrivals: u64,
}

impl Schedule {
    /// Nothing is known of it.
    pub const fn new() -> Self {
        Self {
            from: Position::FIRST,
            arrivals: 0,
        }
    }

    /// Begins a visit.
    pub fn begin_visit(&self) -> Visit {
        Visit {
            arrivals: self.arrivals,
            from: self.from,
        }
    }

    /// Ends it: all that it saw before this is in the queue, for good.
    pub fn end_visit(&mut self, visit: Visit, reached: Position) {
        // what has come meanwhile may not have been seen
        if self.arrivals == visit.arrivals {
            self.from = reached;
        }
    }

    /// A task has come that is due at this time, or later.
    pub fn arrive(&mut self, due: i64) {
        self.arrivals += 1;
        self.from = self.from.min(Position::at(due));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn task(due: i64, id: i64) -> Position {
        Position {
            due,
            place: Place { priority: 0, id },
        }
    }

    #[test]
    fn a_visit_begins_where_the_last_one_ended() {
        let mut schedule = Schedule::new();
        let visit = schedule.begin_visit();
        assert_eq!(visit.from, Position::FIRST);
        schedule.end_visit(visit, task(7, 3));
        assert_eq!(schedule.begin_visit().from, task(7, 3));
        schedule.arrive(9);
        assert_eq!(schedule.begin_visit().from, task(7, 3));
        schedule.arrive(7);
        assert_eq!(schedule.begin_visit().from, Position::at(7));
    }

    #[test]
    fn what_comes_during_a_visit_is_not_passed_over() {
        let mut schedule = Schedule::new();
        let visit = schedule.begin_visit();
        schedule.arrive(3);
        schedule.end_visit(visit, task(7, 1));
        assert!(schedule.begin_visit().from <= Position::at(3));
    }

    /// What may happen. A task is in the table before its arrival is told.
    #[derive(Clone, Debug)]
    enum Event {
        Insert(i64),
        Tell,
        Tick,
        /// At most so many are let in; whether it is undone at the end; in between these happen.
        Visit(usize, bool, Vec<Event>),
    }

    fn event() -> impl Strategy<Value = Event> {
        let simple = prop_oneof![
            3 => (0..6_i64).prop_map(Event::Insert),
            3 => Just(Event::Tell),
            2 => Just(Event::Tick),
        ];
        let visit = |inner: BoxedStrategy<Event>| {
            let inside = prop::collection::vec(inner, 0..5);
            (1..4_usize, prop::bool::weighted(0.2), inside)
                .prop_map(|(most, fails, inside)| Event::Visit(most, fails, inside))
        };
        let nested = prop_oneof![3 => simple.clone(), 1 => visit(simple.clone().boxed())].boxed();
        prop_oneof![3 => simple, 2 => visit(nested)]
    }

    #[derive(Default)]
    struct Table {
        waiting: BTreeSet<Position>,
        /// Held by a visit that has not ended.
        locked: BTreeSet<Position>,
        untold: Vec<i64>,
        next: i64,
        now: i64,
    }

    fn happen(event: &Event, schedule: &mut Schedule, table: &mut Table) {
        match event {
            Event::Insert(later) => {
                table.next += 1;
                table.waiting.insert(task(table.now + later, table.next));
                table.untold.push(table.now + later);
            }
            Event::Tell => table.untold.drain(..).for_each(|due| schedule.arrive(due)),
            Event::Tick => table.now += 1,
            Event::Visit(most, fails, inside) => {
                let (visit, now) = (schedule.begin_visit(), table.now);
                let due = |task: &&Position| **task >= visit.from && task.due <= now;
                let seen: Vec<_> = table.waiting.iter().filter(due).copied().collect();
                let free = seen.iter().filter(|task| !table.locked.contains(task));
                let mine: Vec<_> = free.take(*most).copied().collect();
                let passed_over = seen.iter().find(|task| !mine.contains(task));
                let reached = passed_over.copied().unwrap_or(Position::at(now));
                table.locked.extend(mine.iter());
                for event in inside {
                    happen(event, schedule, table);
                }
                for task in &mine {
                    table.locked.remove(task);
                    if !fails {
                        table.waiting.remove(task);
                    }
                }
                if !fails {
                    schedule.end_visit(visit, reached);
                }
            }
        }
    }

    proptest! {
        /// Whatever happens, each task is let in when its time has come.
        #[test]
        fn nothing_is_lost(events in prop::collection::vec(event(), 0..60)) {
            let (mut schedule, mut table) = (Schedule::new(), Table::default());
            for event in &events {
                happen(event, &mut schedule, &mut table);
            }
            happen(&Event::Tell, &mut schedule, &mut table);
            table.now += 100;
            for _ in 0..200 {
                happen(&Event::Visit(4, false, Vec::new()), &mut schedule, &mut table);
            }
            prop_assert!(table.waiting.is_empty(), "{:?}", table.waiting);
        }
    }
}
