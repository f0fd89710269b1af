//! Claiming: the next task, or some that share a commit, in a transaction of its own, or in the commit of the task before.

use std::collections::VecDeque;

use super::{Claimed, MAY_BE_STALE, MOST_TASKS, Worker};
use crate::core::plan;
use crate::core::ready::Queued;
use crate::pg::bgworker::Next;
use crate::pg::bgworker::pool;
use crate::pg::table::Updated;
use crate::pg::xact::{self, Durability, Transaction};
use crate::pg::{Result, crash_point, interrupt, session, time};
use crate::queue::registry::{self, Beginning, Begun, Registry, Sight, UNTIL_TOLD};
use crate::queue::schedule::LOCKED_ROW_MICROSECONDS;
use crate::queue::store::{Candidate, Store};
use crate::queue::topics::{self, Configuration, Rules};
use crate::queue::wake;

/// What the registry says before a task is begun.
enum Permission {
    /// To begin this one, and those that share its commit.
    Granted(Candidate, Vec<Candidate>, Rules),
    /// There is none that could start, as far as is known.
    Nothing,
    /// Others may have to go first.
    LookAgain,
    Leave,
}

impl Worker {
    /// Claims the next task and runs it; `None` if there is none that could start.
    pub(super) fn attempt(&mut self) -> Result<Option<Next>> {
        let transaction = Transaction::begin(self.claim_durability()?)?;
        self.notice_changes()?;
        let Some(store) = Store::open()? else {
            transaction.commit()?;
            registry::lock()?.forget_ready(self.key);
            return Ok(Some(Next::Again));
        };
        let configuration = topics::configuration()?;
        let (first, more, rules) = match self.permission(&store, &configuration)? {
            Permission::Granted(first, more, rules) => (first, more, rules),
            Permission::Nothing => {
                transaction.commit()?;
                return Ok(None);
            }
            Permission::LookAgain => {
                transaction.commit()?;
                registry::lock()?.forget_ready(self.key);
                return Ok(Some(Next::Again));
            }
            Permission::Leave => {
                transaction.commit()?;
                return Ok(Some(Next::Leave));
            }
        };
        crash_point("a slot is taken");
        let mut claimed = VecDeque::new();
        let mut locked = Vec::new();
        for candidate in std::iter::once(&first).chain(&more) {
            match store.claim(candidate, self.key.role)? {
                Ok(task) => claimed.push_back(Claimed { task, store, rules }),
                Err(Updated::Locked) => locked.push(*candidate),
                // somebody else was faster
                Err(_) => {}
            }
        }
        crash_point("a claim is made");
        transaction.commit()?;
        crash_point("a claim is committed");
        self.idle_since = None;
        for candidate in &locked {
            self.leave_alone(candidate)?;
        }
        if claimed.is_empty() {
            self.end_task(false)?;
            return Ok(Some(Next::Again));
        }
        if !more.is_empty() {
            let tasks: Vec<i64> = claimed.iter().map(|one| one.task.row.id).collect();
            registry::lock()?.keep_of_batch(self.ticket, &tasks, 0);
        }
        // An error that is not the task's leaves the slot as it is: this process ends, and the orphan is a keeper's.
        self.claimed = claimed;
        self.run_claimed()?;
        Ok(Some(Next::Again))
    }

    /// Somebody holds the task's row: for a while it is passed over. After that it may stand in another place.
    fn leave_alone(&mut self, candidate: &Candidate) -> Result<()> {
        self.held_rows
            .push((candidate.id, time::now() + LOCKED_ROW_MICROSECONDS));
        let mut registry = registry::lock()?;
        registry.arrive(self.key, candidate.place());
        registry.look_everywhere(self.key);
        Ok(())
    }

    /// The claim may be lost in a crash (the task is then still pending), unless that would hide a task that
    /// crashes the server as soon as it is claimed: after an unclean start the claims of what was there before it are flushed.
    fn claim_durability(&self) -> Result<Durability> {
        let mut registry = registry::lock()?;
        let (unclean, booted) = (registry.header.unclean, registry.header.booted);
        let old = |task: &Candidate| task.joined_at < booted;
        let flush = unclean
            && registry
                .shelf(self.key)
                .is_some_and(|shelf| shelf.ready.tasks().iter().any(old));
        Ok(if flush {
            Durability::Flushed
        } else {
            Durability::Asynchronous
        })
    }

    /// Takes a task, and a place among those that run, unless this worker has to leave.
    fn permission(&mut self, store: &Store, configuration: &Configuration) -> Result<Permission> {
        let now = time::now();
        let key = self.key;
        let mut registry = registry::lock()?;
        let Some((first, sight)) = registry
            .shelf(key)
            .and_then(|shelf| Some((*shelf.ready.tasks().first()?, shelf.sight)))
        else {
            return Ok(Permission::Nothing);
        };
        if registry.must_look_again(key, now) {
            return Ok(Permission::LookAgain);
        }
        let stale = self.is_stale(&registry) || self.done >= MOST_TASKS;
        let leaving =
            pool::find(registry.slots, self.ticket).is_none_or(|slot| slot.payload.leaving);
        if stale || leaving {
            self.hand_over(&mut registry, first.priority);
            return Ok(Permission::Leave);
        }
        let Some((i, next)) = registry.next_task(self.ticket, key, configuration, now) else {
            return Ok(Permission::Nothing);
        };
        // what counts is what it would run: better ones may wait for their topic
        if registry.must_make_room(key.database, next.priority, self.stint_is_over()) {
            self.hand_over(&mut registry, next.priority);
            return Ok(Permission::Leave);
        }
        let Some(candidate) = registry.take_known(key, i) else {
            return Ok(Permission::Nothing);
        };
        let rules = configuration.rules(candidate.topic);
        let beginning = Beginning {
            task: candidate.id,
            relation: store.relation(),
            attempt: candidate.attempt.wrapping_add(1),
            topic: candidate.topic,
            rules,
            suspect: candidate.interruptions > 0,
        };
        match registry.begin_task(self.ticket, &beginning, now) {
            Begun::Yes => {}
            Begun::TopicWaits => {
                registry.arrive(key, candidate.place());
                return Ok(Permission::LookAgain);
            }
            Begun::LimitReached => {
                // it was lowered, or is taken up by what others have left
                registry.arrive(key, candidate.place());
                self.hand_over(&mut registry, candidate.priority);
                return Ok(Permission::Leave);
            }
        }
        let most = self.batch_limit(rules);
        let more = if most > 1 {
            registry.begin_batch(self.ticket, &candidate, most)
        } else {
            Vec::new()
        };
        self.sight = sight;
        self.leave_to_others(&mut registry, configuration, now);
        Ok(Permission::Granted(candidate, more, rules))
    }

    /// Whether it has served its role for as long as it may while others wait.
    fn stint_is_over(&self) -> bool {
        self.since.elapsed().as_micros() > plan::STINT_MICROSECONDS as u128
    }

    /// What this worker leaves undone while it runs a task, for hours maybe, is others'.
    fn leave_to_others(&self, registry: &mut Registry, configuration: &Configuration, now: i64) {
        let Sight {
            next_due,
            blocked,
            more,
            ..
        } = self.sight;
        let more = more || registry.others_could_help(self.key, configuration, now);
        let missed = self.has_missed(registry);
        let known = registry.has_ready(self.key);
        let Some(demand) = registry.demand(self.key) else {
            return;
        };
        if more || missed {
            demand.more = true;
        } else if next_due != UNTIL_TOLD || blocked || known {
            // what this worker knows beside what others of the role have found
            demand.due = if demand.due > now {
                demand.due.min(next_due)
            } else {
                next_due
            };
            demand.blocked |= blocked || known;
            demand.more = true;
        } else {
            return;
        }
        if !demand.is_planned() {
            registry.wake_launcher();
        }
    }

    /// Leaves its role's work to another worker, behind all who wait already.
    fn hand_over(&self, registry: &mut Registry, priority: i32) {
        registry.hand_over(self.key, priority);
        if let Some(slot) = pool::find(registry.slots, self.ticket) {
            slot.payload.leaving = true;
        }
    }

    /// Claims the task that comes next, if there is a plain one, in the transaction in which the last one finishes: one
    /// commit is both.
    pub(super) fn claim_next(&mut self, store: &Store) -> Result<()> {
        // what others have changed counts for the next task: then that begins as the first one did
        let changed = MAY_BE_STALE.get() || interrupt::wants_turn();
        // a cursor WITH HOLD runs at the commit, and may take its time
        let plain = xact::is_read_committed() && !session::utility_ran();
        let chains = std::mem::replace(&mut self.chains, true);
        if changed || !plain || !chains || self.done + 1 >= MOST_TASKS {
            return Ok(());
        }
        let Some(priority) = wake::priority_after_commit(self.key.role) else {
            return Ok(());
        };
        let configuration = topics::configuration()?;
        let candidate = {
            let mut registry = registry::lock()?;
            if self.is_stale(&registry) {
                return Ok(());
            }
            let Some(sight) = registry.shelf(self.key).map(|shelf| shelf.sight) else {
                return Ok(());
            };
            let now = time::now();
            let stint_over = self.stint_is_over();
            let Some(next) =
                registry.begin_next(self.ticket, priority, stint_over, &configuration, now)
            else {
                return Ok(());
            };
            self.sight = sight;
            self.leave_to_others(&mut registry, &configuration, now);
            next
        };
        match store.claim(&candidate, self.key.role) {
            Ok(Ok(task)) => {
                crash_point("a next claim is made");
                self.claimed.push_back(Claimed {
                    task,
                    store: *store,
                    rules: configuration.rules(candidate.topic),
                });
            }
            Ok(Err(why)) => {
                registry::lock()?.drop_next(self.ticket, candidate.place());
                if why == Updated::Locked {
                    self.leave_alone(&candidate)?;
                }
            }
            Err(error) => {
                registry::lock()?.drop_next(self.ticket, candidate.place());
                return Err(error);
            }
        }
        Ok(())
    }
}
