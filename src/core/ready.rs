//! The tasks of one role that are about to run, in order. One of the role's workers finds them in the table, and all of
//! its workers take from them: so they neither look twice nor meet at the same row, and the order is one.
//!
//! One that comes when all is known to be done is put here by whoever enqueues it, so that the worker that it wakes need not look first.
//!
//! It is a hint: what is taken is claimed in the table only if it still is as it was seen there.
//!
//! Besides, it remembers how far the main line of the queue is done with, so that a look begins there and not at its head: the
//! index entries of tasks that have run are there as long as anybody has an old snapshot. Tasks that stand apart have no part in that.

/// Most tasks that one look brings.
pub const MOST: usize = 512;

/// Where a task stands in its queue: lower runs first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct Place {
    /// Its priority.
    pub priority: i32,
    /// Its id.
    pub id: i64,
}

impl Place {
    /// Before all.
    pub const FIRST: Self = Self {
        priority: i32::MIN,
        id: i64::MIN,
    };
    /// After all.
    pub const LAST: Self = Self {
        priority: i32::MAX,
        id: i64::MAX,
    };
}

/// What has a place in a queue.
pub trait Queued: Copy {
    /// Its place.
    fn place(&self) -> Place;

    /// It is not in the main line.
    fn stands_apart(&self) -> bool;
}

/// What a look that has ended was good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LookEnd {
    /// It has brought what is here now.
    Filled,
    /// So, but without what others may have taken meanwhile: there may be more before what it has brought.
    Overlapped,
    /// Another look was faster.
    TooLate,
}

/// What a look has to be compared with, when it is over, to know whether it missed something.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    number: u64,
    fills: u64,
    takes: u64,
    /// The look may begin here in the main line: nothing that could start stands there before it.
    pub from: Place,
}

/// Tasks in the order of their places. In shared memory, under a lock of its owner's.
#[repr(C)]
pub struct Ready<T> {
    /// Counts the looks that brought something.
    fills: u64,
    /// Counts what was taken.
    takes: u64,
    /// Counts the looks that were begun.
    looks: u64,
    /// Something was taken since the last look that brought something.
    begun: bool,
    /// The place of what was taken last.
    taken: Place,
    /// Nothing that could start stands before this in the main line.
    floor: Place,
    /// Before all that has come and that no look is known to have seen.
    low: Place,
    /// Of that, before all that has come since the latest look began.
    recent: Place,
    /// What is here of the main line is all that could start, up to the last of it.
    complete: bool,
    /// The latest look is over and has found nothing, and nothing has come since it began.
    exhausted: bool,
    first: u32,
    end: u32,
    tasks: [T; MOST],
}

impl<T: Queued> Ready<T> {
    /// Without any tasks; `filler` stands in the unused places.
    pub const fn new(filler: T) -> Self {
        Self {
            fills: 0,
            takes: 0,
            looks: 0,
            begun: false,
            taken: Place::FIRST,
            floor: Place::FIRST,
            low: Place::LAST,
            recent: Place::LAST,
            complete: false,
            exhausted: false,
            first: 0,
            end: 0,
            tasks: [filler; MOST],
        }
    }

    /// The tasks, in order.
    pub fn tasks(&self) -> &[T] {
        &self.tasks[self.first as usize..self.end as usize]
    }

    /// Begins a look into the table; one that goes over the whole main line if what is known of that is not to be trusted any longer.
    pub fn begin_look(&mut self, whole: bool) -> Look {
        self.looks += 1;
        if whole {
            self.floor = Place::FIRST;
        }
        self.recent = Place::LAST;
        // a task that is put here while it goes on would make it too late
        self.exhausted = false;
        Look {
            number: self.looks,
            fills: self.fills,
            takes: self.takes,
            from: self.floor,
        }
    }

    /// Whether something has come that has to go before all that is here. Not before one of those was taken: or a look would follow
    /// the other for as long as things come.
    pub fn is_passed_over(&self) -> bool {
        self.begun
            && self
                .tasks()
                .first()
                .is_some_and(|first| self.low < first.place())
    }

    /// Before all that has come and that no look is known to have seen.
    pub fn unseen(&self) -> Place {
        self.low
    }

    /// Whether something was taken since the last look that brought something.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Ends it: these tasks were found, sorted; those beyond [`MOST`] are forgotten. `complete` says that no others of
    /// the main line could start which stand before the last of them (or at all, if there is none).
    pub fn end_look(&mut self, look: Look, found: &[T], complete: bool) -> LookEnd {
        if self.fills != look.fills && !self.tasks().is_empty() {
            return LookEnd::TooLate;
        }
        let overlapped = self.takes != look.takes;
        // it may have passed over something that came after this one began, and that counts as seen
        let overtaken = self.fills != look.fills;
        self.fills += 1;
        self.first = 0;
        self.end = 0;
        for task in found.iter().take(MOST) {
            // most are taken in order: it is likely one of those
            if !overlapped || task.place() > self.taken {
                self.tasks[self.end as usize] = *task;
                self.end += 1;
            }
        }
        self.complete = complete && !overlapped && !overtaken;
        self.begun = false;
        if self.looks == look.number && !overlapped {
            // it has seen all that had come before it began
            self.low = self.recent;
        }
        self.exhausted = self.complete && found.is_empty() && self.low == Place::LAST;
        let in_line = self.tasks().iter().find(|task| !task.stands_apart());
        self.floor = match (self.complete, in_line) {
            (true, Some(task)) => task.place().min(self.low),
            (true, None) => look.from.min(self.low),
            // what it has passed over stands after that
            (false, _) => look.from.min(self.floor),
        };
        if overlapped {
            LookEnd::Overlapped
        } else {
            LookEnd::Filled
        }
    }

    /// Takes the task at this index of [`tasks`](Self::tasks): 0, unless those before it may not start.
    pub fn take(&mut self, index: usize) -> Option<T> {
        if index >= self.tasks().len() {
            return None;
        }
        let (first, i) = (self.first as usize, self.first as usize + index);
        let task = self.tasks[i];
        self.tasks.copy_within(first..i, first + 1);
        self.first += 1;
        self.takes += 1;
        self.begun = true;
        self.taken = task.place();
        let passed_over = self.tasks()[..index]
            .iter()
            .any(|task| !task.stands_apart());
        self.complete &= !passed_over;
        if self.complete && !task.stands_apart() {
            self.floor = self.taken.min(self.low);
        }
        Some(task)
    }

    /// Puts a task here that has just come into the main line, if it is known to be the only one; else it is to
    /// [`arrive`](Self::arrive).
    pub fn put(&mut self, task: T) -> bool {
        if !self.exhausted || !self.tasks().is_empty() {
            return false;
        }
        self.exhausted = false;
        self.fills += 1;
        self.first = 0;
        self.end = 1;
        self.tasks[0] = task;
        self.complete = true;
        // as after a look that is a while ago: what has come due since then goes first
        self.begun = true;
        self.floor = self.floor.min(task.place());
        true
    }

    /// A task has come (again) that may stand before those that are known.
    pub fn arrive(&mut self, place: Place) {
        self.exhausted = false;
        self.low = self.low.min(place);
        self.recent = self.recent.min(place);
        self.floor = self.floor.min(place);
    }

    /// Forgets the tasks: they wait in the table. What is done with is done with.
    pub fn clear(&mut self) {
        self.end = self.first;
        self.complete = false;
        self.exhausted = false;
    }

    /// Forgets everything: it may be another table from now on.
    pub fn reset(&mut self) {
        self.clear();
        self.floor = Place::FIRST;
        self.low = Place::FIRST;
        self.recent = Place::FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    impl Queued for (i32, i64) {
        fn place(&self) -> Place {
            Place {
                priority: self.0,
                id: self.1,
            }
        }

        fn stands_apart(&self) -> bool {
            self.1 % 4 == 0
        }
    }

    type Task = (i32, i64);

    fn ready() -> Ready<Task> {
        Ready::new((0, 0))
    }

    fn take(ready: &mut Ready<Task>) -> Option<Task> {
        ready.take(0)
    }

    fn fill(ready: &mut Ready<Task>, found: &[Task]) -> bool {
        let look = ready.begin_look(false);
        ready.end_look(look, found, true) == LookEnd::Filled
    }

    #[test]
    fn tasks_are_taken_in_order_and_once() {
        let mut ready = ready();
        assert!(fill(&mut ready, &[(1, 5), (2, 1), (2, 3)]));
        assert_eq!(take(&mut ready), Some((1, 5)));
        assert_eq!(ready.tasks(), [(2, 1), (2, 3)]);
        assert_eq!(take(&mut ready), Some((2, 1)));
        assert_eq!(take(&mut ready), Some((2, 3)));
        assert_eq!(take(&mut ready), None);
    }

    #[test]
    fn what_may_not_start_stays_and_does_not_block() {
        let mut ready = ready();
        fill(&mut ready, &[(1, 5), (1, 6), (2, 1)]);
        assert_eq!(ready.take(2), Some((2, 1)));
        assert_eq!(ready.take(2), None);
        assert_eq!(ready.tasks(), [(1, 5), (1, 6)]);
        assert_eq!(ready.begin_look(false).from, (1, 5).place());
        take(&mut ready);
        take(&mut ready);
        assert_eq!(ready.begin_look(false).from, (1, 5).place());
    }

    #[test]
    fn what_stands_apart_does_not_keep_the_main_line() {
        let mut ready = ready();
        fill(&mut ready, &[(1, 4), (1, 5), (1, 6), (1, 8), (1, 9)]);
        assert_eq!(ready.begin_look(false).from, (1, 5).place());
        assert_eq!(ready.take(1), Some((1, 5)));
        assert_eq!(ready.take(1), Some((1, 6)));
        assert_eq!(ready.begin_look(false).from, (1, 6).place());
        assert_eq!(ready.tasks(), [(1, 4), (1, 8), (1, 9)]);
        assert_eq!(ready.take(1), Some((1, 8)));
        assert_eq!(ready.begin_look(false).from, (1, 6).place());
        assert_eq!(ready.take(1), Some((1, 9)));
        assert_eq!(ready.begin_look(false).from, (1, 9).place());
    }

    #[test]
    fn a_look_begins_where_the_last_one_was_taken() {
        let mut ready = ready();
        fill(&mut ready, &[(1, 5), (1, 7)]);
        take(&mut ready);
        take(&mut ready);
        assert_eq!(ready.begin_look(false).from, (1, 7).place());
        assert!(fill(&mut ready, &[]));
        assert_eq!(ready.begin_look(false).from, (1, 7).place());
    }

    #[test]
    fn what_comes_is_not_passed_over() {
        let mut ready = ready();
        fill(&mut ready, &[(1, 5), (1, 7)]);
        take(&mut ready);
        ready.arrive((1, 2).place());
        assert_eq!(ready.begin_look(false).from, (1, 2).place());
        take(&mut ready);
        assert_eq!(ready.begin_look(false).from, (1, 2).place());
        // during a look that has not seen it
        fill(&mut ready, &[(1, 2)]);
        take(&mut ready);
        let look = ready.begin_look(false);
        ready.arrive((0, 9).place());
        ready.end_look(look, &[(1, 8)], true);
        take(&mut ready);
        assert_eq!(ready.begin_look(false).from, (0, 9).place());
    }

    #[test]
    fn a_look_that_saw_only_part_of_what_could_start_promises_nothing() {
        let mut ready = ready();
        let look = ready.begin_look(false);
        assert_eq!(ready.end_look(look, &[(1, 5)], false), LookEnd::Filled);
        take(&mut ready);
        assert_eq!(ready.begin_look(false).from, Place::FIRST);
        // nor does it take anything back
        fill(&mut ready, &[(1, 2), (1, 3)]);
        take(&mut ready);
        let look = ready.begin_look(false);
        ready.end_look(look, &[], false);
        assert_eq!(ready.begin_look(false).from, (1, 2).place());
    }

    #[test]
    fn only_what_comes_when_all_is_done_is_put() {
        let mut ready = ready();
        assert!(!ready.put((1, 5)), "nobody has looked");
        fill(&mut ready, &[(1, 5)]);
        assert!(!ready.put((1, 6)), "there is one");
        take(&mut ready);
        assert!(!ready.put((1, 6)), "there may be more");
        fill(&mut ready, &[]);
        assert!(ready.put((1, 6)));
        assert!(!ready.put((1, 7)));
        ready.arrive((0, 7).place());
        assert!(ready.is_passed_over());
        assert_eq!(take(&mut ready), Some((1, 6)));
        assert_eq!(ready.begin_look(false).from, (0, 7).place());
        // one comes while somebody looks
        fill(&mut ready, &[(0, 7)]);
        take(&mut ready);
        let look = ready.begin_look(false);
        ready.arrive((1, 9).place());
        ready.end_look(look, &[], true);
        assert!(!ready.put((1, 10)), "the look has not seen that");
        // nor while somebody looks: he sees it, or hears of it
        fill(&mut ready, &[(1, 9)]);
        take(&mut ready);
        fill(&mut ready, &[]);
        let look = ready.begin_look(false);
        assert!(!ready.put((1, 11)));
        ready.end_look(look, &[], true);
        assert!(ready.put((1, 11)));
        assert_eq!(take(&mut ready), Some((1, 11)));
    }

    #[test]
    fn a_look_that_another_has_overtaken_promises_nothing() {
        let mut ready = ready();
        fill(&mut ready, &[(1, 2), (1, 3)]);
        take(&mut ready);
        take(&mut ready);
        let slow = ready.begin_look(false);
        // its row is held, so that it comes back, and the next look passes it over
        ready.arrive((1, 2).place());
        let fast = ready.begin_look(false);
        ready.end_look(fast, &[], false);
        ready.end_look(slow, &[], true);
        assert_eq!(ready.begin_look(false).from, (1, 2).place());
        assert!(!ready.put((1, 5)));
    }

    #[test]
    fn a_whole_look_begins_at_the_head() {
        let mut ready = ready();
        fill(&mut ready, &[(1, 5), (1, 6)]);
        take(&mut ready);
        let look = ready.begin_look(true);
        assert_eq!(look.from, Place::FIRST);
        // until one has seen all of it
        ready.end_look(look, &[(0, 9)], false);
        assert_eq!(ready.begin_look(false).from, Place::FIRST);
        fill(&mut ready, &[(0, 9), (1, 6)]);
        assert_eq!(ready.begin_look(false).from, (0, 9).place());
    }

    #[test]
    fn what_is_forgotten_is_looked_for_again() {
        let mut ready = ready();
        fill(&mut ready, &[(1, 5), (1, 6), (1, 7)]);
        take(&mut ready);
        ready.clear();
        assert_eq!(take(&mut ready), None);
        assert_eq!(ready.begin_look(false).from, (1, 5).place());
        ready.reset();
        assert_eq!(ready.begin_look(false).from, Place::FIRST);
    }

    #[test]
    fn the_floor_rises_while_tasks_come() {
        let mut ready = ready();
        for id in (1..40).step_by(4) {
            ready.arrive((1, id).place());
            let look = ready.begin_look(false);
            // one comes during each look
            ready.arrive((1, id + 4).place());
            ready.end_look(look, &[(1, id)], true);
            take(&mut ready);
            assert_eq!(ready.begin_look(false).from, (1, id).place());
        }
    }

    #[test]
    fn what_is_better_makes_for_a_look_once_something_was_taken() {
        let mut ready = ready();
        fill(&mut ready, &[(1, 5), (1, 6), (1, 7)]);
        ready.arrive((1, 8).place());
        take(&mut ready);
        assert!(!ready.is_passed_over());
        ready.arrive((0, 9).place());
        assert!(ready.is_passed_over());
        // another one comes during each look: they do not follow each other without end
        let look = ready.begin_look(false);
        ready.arrive((0, 10).place());
        ready.end_look(look, &[(0, 9), (1, 6), (1, 7)], true);
        assert!(!ready.is_passed_over());
        assert_eq!(take(&mut ready), Some((0, 9)));
        assert!(ready.is_passed_over());
        fill(&mut ready, &[(0, 10), (1, 6)]);
        take(&mut ready);
        assert!(!ready.is_passed_over());
    }

    #[test]
    fn the_slower_of_two_looks_is_forgotten() {
        let mut ready = ready();
        let (slow, fast) = (ready.begin_look(false), ready.begin_look(false));
        assert_eq!(
            ready.end_look(fast, &[(1, 1), (1, 2)], true),
            LookEnd::Filled
        );
        take(&mut ready);
        assert_eq!(
            ready.end_look(slow, &[(1, 1), (1, 2)], true),
            LookEnd::TooLate
        );
        assert_eq!(ready.tasks(), [(1, 2)]);
        take(&mut ready);
        // nothing is left: what was taken since it began is not to be taken again
        let end = ready.end_look(slow, &[(1, 1), (1, 2), (1, 3)], true);
        assert_eq!(end, LookEnd::Overlapped);
        assert_eq!(ready.tasks(), [(1, 3)]);
    }

    /// What may happen.
    #[derive(Clone, Debug)]
    enum Event {
        Enqueue(i32),
        /// With its place in hand.
        Put(i32),
        /// Begins and ends; in between these happen. The first task is passed over if somebody holds its row.
        Look(usize, bool, Vec<Event>),
        Take,
        /// The first is skipped, because its topic is full.
        TakeSecond,
        /// What was taken could not be claimed, or failed and is to run again.
        Return,
        /// The settings have changed.
        Clear,
    }

    fn event() -> impl Strategy<Value = Event> {
        let simple = prop_oneof![
            3 => (0..3).prop_map(Event::Enqueue),
            2 => (0..3).prop_map(Event::Put),
            4 => Just(Event::Take),
            1 => Just(Event::TakeSecond),
            1 => Just(Event::Return),
            1 => Just(Event::Clear),
        ];
        let inner = prop::collection::vec(simple.clone(), 0..5);
        let look = (1..5_usize, any::<bool>(), inner);
        prop_oneof![
            3 => simple,
            2 => look.clone().prop_map(|(most, held, inside)| Event::Look(most, held, inside)),
            // two at the same time
            1 => (look.clone(), look).prop_map(|((most, held, mut inside), (other, other_held, within))| {
                inside.push(Event::Look(other, other_held, within));
                Event::Look(most, held, inside)
            }),
        ]
    }

    #[derive(Default)]
    struct Table {
        open: BTreeSet<Task>,
        taken: Vec<Task>,
        next: i64,
    }

    fn happen(event: &Event, ready: &mut Ready<Task>, table: &mut Table) {
        match event {
            Event::Enqueue(priority) => {
                table.next += 1;
                table.open.insert((*priority, table.next));
                ready.arrive((*priority, table.next).place());
            }
            Event::Put(priority) => {
                table.next += 1;
                let task = (*priority, table.next);
                table.open.insert(task);
                if task.stands_apart() || !ready.put(task) {
                    ready.arrive(task.place());
                }
            }
            Event::Take => {
                if let Some(task) = take(ready)
                    && table.open.remove(&task)
                {
                    table.taken.push(task);
                }
            }
            Event::TakeSecond => {
                if let Some(task) = ready.take(1)
                    && table.open.remove(&task)
                {
                    table.taken.push(task);
                }
            }
            Event::Return => {
                if let Some(task) = table.taken.pop() {
                    table.open.insert(task);
                    ready.arrive(task.place());
                }
            }
            Event::Clear => ready.clear(),
            Event::Look(most, held, inside) => {
                let look = ready.begin_look(false);
                let from = look.from;
                let mut found: Vec<Task> = table
                    .open
                    .iter()
                    .filter(|task| task.stands_apart() || task.place() >= from)
                    .take(*most)
                    .copied()
                    .collect();
                let passed_over = *held && !found.is_empty();
                if passed_over {
                    found.remove(0);
                }
                for event in inside {
                    happen(event, ready, table);
                }
                ready.end_look(look, &found, !passed_over);
            }
        }
    }

    proptest! {
        /// Whatever happens, nothing that is open is passed over for good: a look that finds nothing more to bring has left nothing.
        #[test]
        fn nothing_is_lost(events in prop::collection::vec(event(), 0..60)) {
            let (mut ready, mut table) = (ready(), Table::default());
            for event in &events {
                happen(event, &mut ready, &mut table);
                prop_assert!(ready.tasks().is_sorted());
            }
            for _ in 0..200 {
                while !ready.tasks().is_empty() {
                    happen(&Event::Take, &mut ready, &mut table);
                }
                happen(&Event::Look(4, false, Vec::new()), &mut ready, &mut table);
            }
            prop_assert_eq!(table.open.len(), 0, "{:?}", table.open);
        }
    }
}
