//! Several tasks in one commit, for topics with a `commit_batch`.
//!
//! Tasks that follow each other and are of one topic are claimed together and run in one transaction, a subtransaction each, so that one that
//! fails is alone in that. They have one place among those that run. A batch takes [`MOST_MILLISECONDS`] at most: the task that
//! runs then is rolled back, as is one that cannot be in a subtransaction. What was done before it is committed, what comes after it is put
//! back for others, and it runs alone, as all tasks of other topics do. How many are taken the next time is `core::batch`'s business: a
//! topic whose tasks are no good for batches loses little by its setting.

use std::time::{Duration, Instant};

use super::{Claimed, MAY_BE_STALE, Worker};
use crate::core::errors;
use crate::core::ready::Place;
use crate::pg::session;
use crate::pg::statement::{self, Text};
use crate::pg::xact::{self, CommitLevel, Durability, Transaction};
use crate::pg::{Error, Result, crash_point, interrupt, time};
use crate::queue::store::State;
use crate::queue::topics::Rules;
use crate::queue::{process, registry};

/// How long those that are done may wait for the others.
const MOST_MILLISECONDS: i32 = 100;

/// How long a task of a batch waits for who holds its row or the table, in milliseconds, before it is left to run alone: nobody sees that the
/// others wait with it.
const PATIENCE_MILLISECONDS: i32 = 20;

impl Worker {
    /// How many tasks of a topic may be in a batch now.
    pub(super) fn batch_limit(&self, rules: Rules) -> usize {
        // each start of a topic with a delay is to wait; and other transactions than READ COMMITTED see what has come before them
        if rules.commit_batch == 1 || rules.delay > 0 || !session::may_share_transactions() {
            return 1;
        }
        self.batches.limit(rules.commit_batch)
    }

    /// Runs the tasks that are claimed, as far as they can share a commit.
    ///
    /// # Errors
    /// What is not a task's: a row cannot be written.
    pub(super) fn run_batch(&mut self) -> Result<()> {
        let batch: Vec<Claimed> = self.claimed.drain(..).collect();
        let memory = std::rc::Rc::clone(&self.memory);
        let texts: Vec<Text<'_>> = batch
            .iter()
            .map(|claimed| Text {
                sql: &claimed.task.sql,
                timeout_ms: claimed.timeout_ms(),
            })
            .collect();
        let mut watch = Watch {
            worker: self,
            batch: &batch,
            level: None,
            cut: false,
            failed: None,
        };
        let began = time::now();
        let clock = Instant::now();
        session::watch_soil();
        interrupt::allow_cancels();
        let end = statement::run_batch(&texts, MOST_MILLISECONDS, &memory, &mut watch);
        interrupt::hold_cancels();
        crash_point("a batch is over");
        xact::commit_at(None);
        let (failed, cut) = (watch.failed, watch.cut);
        drop(texts);

        let transaction = Transaction::begin(Durability::Asynchronous)?;
        session::reset()?;
        transaction.commit()?;
        let mut rest: Vec<Claimed> = batch.into_iter().skip(end.settled).collect();
        if end.alone || cut && !rest.is_empty() {
            self.batches.spoiled(end.settled);
        } else if rest.is_empty() {
            let limit = Duration::from_millis(MOST_MILLISECONDS as u64);
            self.batches.whole(clock.elapsed() < limit / 2);
        } else {
            self.batches.out_of_time(end.settled);
        }
        // others may go first, and the session may have to be another one
        self.put_back(&rest.split_off(usize::from(end.alone).min(rest.len())))?;

        self.done += end.settled as u64;
        // the last one is counted when it ends
        let last = rest.is_empty() && end.settled > 0;
        let ended = end.settled as u64 - u64::from(last);
        let mut registry = registry::lock()?;
        registry.keep_of_batch(self.ticket, &ids(&rest), ended);
        if let Some(place) = failed {
            // it may run again, now or later
            registry.schedule(self.key, began);
            registry.arrive(self.key, place);
        }
        drop(registry);
        self.claimed.extend(rest);
        if self.claimed.is_empty() {
            self.end_task(end.settled > 0)?;
        }
        self.show_idle()?;
        session::report_statistics(false)
    }

    /// Leaves tasks that it has claimed and not begun to others, or to itself for another time.
    ///
    /// # Errors
    /// A row cannot be written.
    pub(super) fn put_back(&self, tasks: &[Claimed]) -> Result<()> {
        let Some(place) = tasks.iter().map(|claimed| claimed.task.row.place()).min() else {
            return Ok(());
        };
        let cancelled = registry::lock()?.begin_put_back(self.ticket, &ids(tasks));
        let transaction = Transaction::begin(Durability::Asynchronous)?;
        for Claimed { task, store, .. } in tasks {
            if cancelled.contains(&task.row.id) {
                store.close_waiting(&task.row, State::Cancelled, None)?;
            } else {
                store.reopen(&task.row, task.row.interruptions)?;
            }
        }
        transaction.commit()?;
        crash_point("what is left of a batch is put back");
        let mut registry = registry::lock()?;
        if registry.offer(self.key, place, tasks.len() as u32) {
            registry.wake_launcher();
        }
        Ok(())
    }
}

fn ids(tasks: &[Claimed]) -> Vec<i64> {
    tasks.iter().map(|claimed| claimed.task.row.id).collect()
}

/// See to the tasks of a batch while it runs.
struct Watch<'a> {
    worker: &'a mut Worker,
    batch: &'a [Claimed],
    /// How long the commit has to wait: as long as the one of them that wants the most.
    level: Option<CommitLevel>,
    /// The last one has left something in the session.
    cut: bool,
    /// Before all that have failed.
    failed: Option<Place>,
}

impl Watch<'_> {
    /// Makes the session ready for another text; false if that cannot be in this transaction, or something else comes first.
    fn goes_on(&mut self) -> Result<bool> {
        self.level = self.level.max(Some(CommitLevel::now()));
        self.cut = session::is_soiled()?;
        // what others have changed counts for the next task
        let worker = &*self.worker;
        let changed = MAY_BE_STALE.get() || worker.is_stale(&registry::lock()?);
        if self.cut || changed || interrupt::wants_turn() {
            return Ok(false);
        }
        session::reset_settings()?;
        self.cut = session::holds_temp_tablespaces();
        Ok(!self.cut)
    }
}

impl statement::Watch for Watch<'_> {
    fn begin(&mut self, index: usize) -> Result<bool> {
        let Claimed { task, rules, .. } = &self.batch[index];
        {
            let mut registry = registry::lock()?;
            registry.go_on(self.worker.ticket, task.row.id);
            // One for the task before may have come late. Who cancels holds the lock: none is lost.
            interrupt::forget_cancel();
            if registry.is_cancelled(self.worker.ticket, task.row.id) {
                return Ok(false);
            }
        }
        self.worker.prepare_session(task, *rules)?;
        crash_point("a text of a batch is about to run");
        Ok(true)
    }

    fn done(&mut self, index: usize) -> Result<bool> {
        let Claimed { task, store, .. } = &self.batch[index];
        store.with_patience(PATIENCE_MILLISECONDS).finish(task)?;
        crash_point("a text of a batch has run");
        self.goes_on()
    }

    fn failed(&mut self, index: usize, error: &Error) -> Result<bool> {
        let Claimed { task, store, .. } = &self.batch[index];
        let text = errors::entry(&error.sqlstate().code(), error.message(), &error.fields());
        // from here on a cancel waits for what is marked now
        let cancelled = registry::lock()?.begin_ending(self.worker.ticket);
        let store = store.with_patience(PATIENCE_MILLISECONDS);
        process::attempt_failed(&store, &task.row, &text, cancelled)?;
        let place = task.row.place();
        self.failed = Some(self.failed.map_or(place, |first| first.min(place)));
        crash_point("a text of a batch has failed");
        self.goes_on()
    }

    fn before_commit(&mut self) -> Result<()> {
        crash_point("a batch is about to commit");
        xact::commit_at(self.level);
        Ok(())
    }
}
