//! How many tasks of a topic with a `commit_batch` a worker takes at once: as many as have turned out to be good for it.
//!
//! A batch that is cut short costs: what was taken in vain is put back, and what ran in vain runs again. So one that ran to its end lets the
//! next be larger, one that took too long makes it smaller, and after one that was spoiled (by a task that cannot be in a
//! batch, or after which none can follow) tasks run alone for a while, the longer the more often that happens.

/// The longest while, in tasks.
const MOST_ALONE: u32 = 256;

/// A worker's experience with batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Experience {
    size: usize,
    /// Tasks that are to run alone before another batch is tried.
    alone: u32,
    /// How many it will be after the next one that is spoiled.
    penalty: u32,
}

impl Experience {
    /// None yet.
    pub const fn new() -> Self {
        Self {
            size: 2,
            alone: 0,
            penalty: 1,
        }
    }

    /// How many tasks may be taken, of `most`.
    pub fn limit(&self, most: usize) -> usize {
        if self.alone > 0 {
            1
        } else {
            self.size.min(most)
        }
    }

    /// A task has run alone.
    pub fn ran_alone(&mut self) {
        self.alone = self.alone.saturating_sub(1);
    }

    /// A batch has come to its end; it was `quick` if it took less than half of the time that it may take.
    pub fn whole(&mut self, quick: bool) {
        self.penalty = 1;
        if quick {
            self.size = self.size.saturating_mul(2);
        }
    }

    /// The time was over after so many of its tasks.
    pub fn out_of_time(&mut self, settled: usize) {
        self.size = settled.max(2);
    }

    /// After so many of its tasks came one that could not be in it, or was the last that could.
    pub fn spoiled(&mut self, settled: usize) {
        self.out_of_time(settled);
        self.alone = self.penalty;
        self.penalty = self.penalty.saturating_mul(2).min(MOST_ALONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_while_they_are_quick() {
        let mut experience = Experience::new();
        let mut sizes = Vec::new();
        for quick in [true, true, true, false, true] {
            sizes.push(experience.limit(60));
            experience.whole(quick);
        }
        sizes.push(experience.limit(60));
        assert_eq!(sizes, [2, 4, 8, 16, 16, 32]);
        assert_eq!(experience.limit(10), 10);
    }

    #[test]
    fn one_that_took_too_long_is_followed_by_a_smaller_one() {
        let mut experience = Experience::new();
        experience.whole(true);
        experience.whole(true);
        experience.out_of_time(3);
        assert_eq!(experience.limit(60), 3);
        experience.out_of_time(1);
        assert_eq!(experience.limit(60), 2);
    }

    /// A topic none of whose tasks can be in a batch: what is tried in vain becomes rare.
    #[test]
    fn tasks_that_spoil_batches_are_left_alone() {
        let mut experience = Experience::new();
        let mut in_vain = 0;
        for _ in 0..10_000 {
            if experience.limit(60) > 1 {
                experience.spoiled(0);
                in_vain += 1;
            }
            experience.ran_alone();
        }
        assert!(in_vain < 60, "{in_vain}");
        // and as soon as one is good, others are tried
        while experience.limit(60) == 1 {
            experience.ran_alone();
        }
        experience.whole(true);
        experience.whole(true);
        experience.spoiled(3);
        assert_eq!(experience.limit(60), 1);
        experience.ran_alone();
        assert_eq!(experience.limit(60), 3);
    }
}
