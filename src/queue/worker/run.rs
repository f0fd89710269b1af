//! Running a claimed task alone, to its end, whatever that is.

use std::rc::Rc;

use super::{Claimed, Worker};
use crate::core::{config, errors, outcome};
use crate::pg::bgworker;
use crate::pg::session::{self, Activity};
use crate::pg::xact::{Durability, Transaction};
use crate::pg::{Error, Result, crash_point, guc, interrupt, sqlstate, statement, time};
use crate::queue::store::{State, Store, Task};
use crate::queue::topics::Rules;
use crate::queue::{process, registry};

/// How far a task came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It runs, or its transaction ends.
    Text,
    /// It is marked as finished.
    Mark,
    /// The one that comes next is claimed.
    NextClaim,
}

/// Where commits need not wait for the disk, they do not, until the session is reset: so for the mark of a failure, too. What a
/// task itself sets counts.
fn relax(rules: Rules) -> Result<()> {
    if rules.durability == config::Durability::Relaxed {
        guc::set_for_session(c"synchronous_commit", b"off")?;
    }
    Ok(())
}

impl Worker {
    /// Runs a claimed task to its end, whatever that is.
    ///
    /// # Errors
    /// What is not the task's: its row cannot be written.
    pub(super) fn run(&mut self, claimed: Claimed) -> Result<()> {
        let task = &claimed.task;
        let mut stage = Stage::Text;
        if let Err(error) = self.execute(&claimed, &mut stage) {
            if let Some(next) = self.claimed.pop_front() {
                // its claim was rolled back with all the rest
                registry::lock()?.drop_next(self.ticket, next.task.row.place());
            }
            // what the queue's own rows are up to is none of the task's doing
            let blameless = match stage {
                Stage::Text => false,
                Stage::Mark => error.sqlstate() == sqlstate::SERIALIZATION_FAILURE,
                Stage::NextClaim => error.sqlstate() != sqlstate::QUERY_CANCELED,
            };
            self.chains = stage != Stage::NextClaim;
            self.record_failure(task, &error, blameless)?;
        }
        self.done += 1;
        self.batches.ran_alone();
        let mut clean = !session::is_soiled()?;
        if clean {
            session::reset_settings()?;
            clean = !session::holds_temp_tablespaces();
        }
        if !clean {
            let transaction = Transaction::begin(Durability::Asynchronous)?;
            session::reset()?;
            transaction.commit()?;
        }
        crash_point("a session is reset");
        self.end_task(true)?;
        self.show_idle()?;
        session::report_statistics(false)
    }

    /// Shows in pg_stat_activity that it runs nothing, unless it is about to go on.
    pub(super) fn show_idle(&self) -> Result<()> {
        if self.claimed.is_empty() {
            guc::set_default(c"application_name", b"pg_background_queue")?;
            session::report_activity(Activity::Idle)?;
        }
        Ok(())
    }

    /// `stage` says how far it came.
    fn execute(&mut self, claimed: &Claimed, stage: &mut Stage) -> Result<()> {
        let Claimed { task, store, rules } = claimed;
        self.prepare_session(task, *rules)?;
        let timeout_ms = claimed.timeout_ms();
        let memory = Rc::clone(&self.memory);
        if registry::lock()?.is_cancelled(self.ticket, task.row.id) {
            // before it could be interrupted; or that was taken for a cancel of nothing
            bgworker::interrupt(bgworker::my_pid());
        }
        session::watch_soil();
        interrupt::allow_cancels();
        crash_point("a text is about to run");
        let result = statement::run(&task.sql, &memory, timeout_ms, || {
            crash_point("a text has run");
            *stage = Stage::Mark;
            store.finish(task)?;
            crash_point("a finish mark is made");
            *stage = Stage::NextClaim;
            self.claim_next(store)?;
            *stage = Stage::Text;
            Ok(())
        });
        crash_point("a text is over");
        interrupt::hold_cancels();
        result
    }

    /// Makes the session what this task is to find.
    pub(super) fn prepare_session(&mut self, task: &Task, rules: Rules) -> Result<()> {
        let name = format!("pg_background_queue task {}", task.row.id);
        guc::set_default(c"application_name", name.as_bytes())?;
        if self.search_path != task.search_path {
            guc::set_default(c"search_path", &task.search_path)?;
            self.search_path.clone_from(&task.search_path);
        }
        relax(rules)
    }

    fn record_failure(&self, task: &Task, error: &Error, blameless: bool) -> Result<()> {
        crash_point("a text has failed");
        let began = time::now();
        let cancelled = registry::lock()?.is_cancelled(self.ticket, task.row.id);
        let transaction = Transaction::begin(Durability::Session)?;
        // Only in the table in which it was claimed: after DROP and CREATE EXTENSION the id is another task's.
        if let Some(store) = Store::open()?.filter(|store| store.relation() == task.relation) {
            let text = errors::entry(&error.sqlstate().code(), error.message(), &error.fields());
            let row = &task.row;
            if blameless
                && !cancelled
                && outcome::may_run_again_at_once(row.attempt, row.retry_count)
            {
                store.reopen(row, row.interruptions)?;
            } else {
                process::attempt_failed(&store, row, &text, cancelled)?;
            }
            // it may have been cancelled while the row was waited for
            if registry::lock()?.begin_ending(self.ticket)
                && !cancelled
                && let Some(row) = store.find(row.id)?
            {
                store.close_waiting(&row, State::Cancelled, None)?;
            }
        }
        crash_point("a failure mark is made");
        transaction.commit()?;
        crash_point("a failure mark is committed");
        // it may run again, now or later
        let mut registry = registry::lock()?;
        registry.schedule(self.key, began);
        registry.arrive(self.key, task.row.place());
        Ok(())
    }
}
