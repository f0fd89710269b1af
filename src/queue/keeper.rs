//! A keeper: visits one database for a moment, as the bootstrap superuser, and never runs a task's text.
//!
//! It deals with what nobody else can: tasks that stand as `running` though nobody runs them, and tasks of roles
//! that cannot connect. Then it tells the launcher which roles have work.

use super::process;
use super::registry::{self, Key, PROCESSES, UNTIL_TOLD, Work};
use super::store::{Open, OpenRow, Roles, Row, Seen, State, Step, Store};
use crate::core::errors;
use crate::core::outcome::{self, AfterInterruption, MOST_INTERRUPTIONS};
use crate::core::ready::Place;
use crate::core::schedule::Position;
use crate::pg::bgworker::pool::{self, Member, SlotState, Ticket};
use crate::pg::bgworker::{Session, Setup};
use crate::pg::catalog::{self, MayConnect};
use crate::pg::datum::Datum;
use crate::pg::time::{self, TimestampTz};
use crate::pg::xact::{Durability, Transaction};
use crate::pg::{Oid, Result, control, crash_point, guc, log, sqlstate};

/// Rows that one transaction of the keeper changes at most: locks are held for a moment only.
const BATCH: usize = 100;

/// Topics of a role whose first tasks are looked at; the worker of one that has more will find the best of them.
const MOST_LANES: usize = 1000;

/// The main function of a keeper process.
///
/// # Errors
/// End the process; the launcher sends another after a while.
pub fn main(argument: Datum) -> Result<()> {
    let Some(member) = Member::attach(&PROCESSES, argument)? else {
        return Ok(());
    };
    let key = member.key();
    let _worker = Setup::new(Session::Superuser(key.database))
        .application_name(super::NAME)
        .begin()?;
    member.ready()?;
    crash_point("a process is connected");
    // it is wanted elsewhere, too
    guc::set_for_session(c"lock_timeout", b"5s")?;
    Keeper {
        database: key.database,
    }
    .visit()
}

struct Keeper {
    database: Oid,
}

impl Keeper {
    fn visit(&self) -> Result<()> {
        let (known, seen) = {
            let mut registry = registry::lock()?;
            let known = registry
                .database(self.database)
                .is_some_and(|database| database.recovered);
            (known, registry.header.order)
        };
        let installed = self.is_installed()?;
        let mut barred = Vec::new();
        let demands = if installed {
            if !known {
                self.recover()?;
            }
            self.clear_orphans()?;
            self.roles_with_work(&mut barred)?
        } else {
            registry::lock()?.forget_work(self.database, seen);
            Vec::new()
        };
        self.tell(demands)?;
        // Last, for a session of such a role that is still there can hold its rows: then another keeper comes back for them.
        for (role, name, why) in barred {
            self.fail_all_of(role, &name, why, seen)?;
        }
        let mut registry = registry::lock()?;
        if let Some(database) = registry.database(self.database) {
            database.visited = true;
        }
        registry.wake_launcher();
        Ok(())
    }

    /// Lets workers start here, for those who have work.
    fn tell(&self, demands: Vec<(Oid, i32, Option<TimestampTz>)>) -> Result<()> {
        let mut registry = registry::lock()?;
        // Also where the extension is not installed: should it be, there is nothing to recover.
        match registry.add_database(self.database) {
            Some(database) => database.recovered = true,
            None => registry.header.overflow = true,
        }
        let now = time::now();
        for (role, priority, due) in demands {
            let key = Key {
                database: self.database,
                role,
            };
            let place = Place {
                priority,
                ..Place::FIRST
            };
            // what the keeper is there for has come from anywhere: a prepared transaction, a release, somebody's hand
            registry.look_everywhere(key);
            match due {
                Some(due) => registry.offer_later(key, priority, due, now),
                None => registry.offer(key, place, 1),
            };
        }
        registry.wake_launcher();
        Ok(())
    }

    fn is_installed(&self) -> Result<bool> {
        let transaction = Transaction::begin(Durability::Asynchronous)?;
        let installed = Store::open()?.is_some();
        transaction.commit()?;
        Ok(installed)
    }

    /// Once after the server's start: reopens what its predecessor left running, holds what came from elsewhere.
    fn recover(&self) -> Result<()> {
        let unclean = registry::lock()?.header.unclean;
        let mut stranded = Vec::new();
        let mut foreign = Vec::new();
        for open in [Open::Running, Open::Waiting(Roles::All)] {
            self.each_open_row(open, |row| {
                if !row.ours {
                    foreign.push(row.id);
                } else if row.state == Some(State::Running) {
                    stranded.push((row.id, row.attempt));
                }
                true
            })?;
        }
        let mut given_up = 0;
        let total = stranded.len();
        for batch in stranded.chunks(BATCH) {
            let transaction = Transaction::begin(Durability::Flushed)?;
            let store = Store::require()?;
            for &(id, attempt) in batch {
                if registry::lock()?.has_task(self.database, store.relation(), id, None) {
                    continue;
                }
                let Some(row) = store.find(id)?.filter(|row| row.attempt == attempt) else {
                    continue;
                };
                match outcome::after_interruption(row.interruptions, !unclean) {
                    AfterInterruption::Reopen { interruptions } => {
                        store.reopen(&row, interruptions)?;
                    }
                    AfterInterruption::GiveUp { interruptions } => {
                        let row = Row {
                            interruptions,
                            ..row
                        };
                        store.close(&row, State::Failed, &given_up_error(interruptions))?;
                        given_up += 1;
                    }
                }
            }
            crash_point("tasks are reopened");
            transaction.commit()?;
            crash_point("a reopening is committed");
        }
        for batch in foreign.chunks(BATCH) {
            let transaction = Transaction::begin(Durability::Flushed)?;
            let store = Store::require()?;
            for &id in batch {
                if let Some(row) = store.find(id)?.filter(|row| !row.ours) {
                    store.hold(&row)?;
                }
            }
            transaction.commit()?;
        }
        if total > 0 {
            log::log(format!(
                "pg_background_queue: database {}: {total} tasks were cut off by the end of the last server, \
                 {given_up} of them are given up, the others run again",
                self.database
            ))?;
        }
        if !foreign.is_empty() {
            log::log(format!(
                "pg_background_queue: database {}: {} tasks were enqueued elsewhere and are held",
                self.database,
                foreign.len()
            ))?;
        }
        Ok(())
    }

    /// The attempts of workers that were ended while the server lived on have failed. Not if the server is about
    /// to stop: then that is what ended them, and the next start runs them again.
    fn clear_orphans(&self) -> Result<()> {
        let orphans: Vec<(Ticket, Work)> = {
            let registry = registry::lock()?;
            let slots = registry.slots.iter().enumerate();
            slots
                .filter(|(_, slot)| {
                    slot.state == SlotState::Orphaned && slot.key.database == self.database
                })
                .map(|(i, slot)| {
                    let ticket = Ticket {
                        slot: i as u32,
                        generation: slot.generation,
                    };
                    (ticket, slot.payload)
                })
                .collect()
        };
        for (ticket, work) in orphans {
            if control::postmaster_is_stopping() {
                return Ok(());
            }
            let transaction = Transaction::begin(Durability::Flushed)?;
            let store = Store::require()?;
            let one = [
                (work.task, work.attempt),
                (work.next.task, work.next.attempt),
            ];
            let batch = work
                .batch
                .claims()
                .iter()
                .map(|claim| (claim.task, claim.attempt));
            let others = batch.filter(|&(task, _)| task != work.task);
            for (task, attempt) in one.into_iter().chain(others).filter(|&(task, _)| task != 0) {
                let row = store.find(task)?.filter(|row| {
                    store.relation() == work.relation
                        && row.state == State::Running
                        && row.attempt == attempt
                });
                let Some(row) = row else { continue };
                let (is_others, cancelled) = {
                    let mut registry = registry::lock()?;
                    // Of an attempt that never came about, the next one has the number. Who makes that is in a slot before the row says so.
                    let is_others =
                        registry.has_task(self.database, work.relation, task, Some(ticket));
                    (is_others, registry.is_cancelled(ticket, task))
                };
                if is_others {
                    continue;
                }
                // that the row could not be written (the disk was full) is none of the task's doing
                let next = outcome::after_interruption(row.interruptions, false);
                if task != work.task && task != work.next.task && !cancelled {
                    // of a batch in which another one ran
                    store.reopen(&row, row.interruptions)?;
                } else if let AfterInterruption::Reopen { interruptions } = next
                    && work.broken
                    && !cancelled
                {
                    store.reopen(&row, interruptions)?;
                } else {
                    process::attempt_failed(&store, &row, &terminated_error(), cancelled)?;
                }
            }
            crash_point("an orphan is marked");
            transaction.commit()?;
            crash_point("an orphan's mark is committed");
            let mut registry = registry::lock()?;
            if let Some(slot) = pool::find(registry.slots, ticket) {
                pool::release(slot);
            }
            registry.unblock(Some(self.database));
        }
        Ok(())
    }

    /// The roles that have open tasks, each with its best priority and, if none of its tasks is in the queue, the first time at which one is due; those
    /// that cannot connect are `barred`.
    fn roles_with_work(
        &self,
        barred: &mut Vec<(Oid, Vec<u8>, MayConnect)>,
    ) -> Result<Vec<(Oid, i32, Option<TimestampTz>)>> {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let mut next = None;
            let others = after.map_or(Roles::All, Roles::After);
            self.each_open_row(Open::Waiting(others), |row| {
                next = Some((row.role, row.role_name.clone(), row.priority, row.scheduled));
                false
            })?;
            let Some((role, enqueued_as, mut priority, scheduled)) = next else {
                return Ok(found);
            };
            after = Some(role);
            let transaction = Transaction::begin(Durability::Asynchronous)?;
            let may_connect = catalog::may_connect(role, self.database)?;
            let name = catalog::role_name(role)?;
            let mut due = scheduled.then_some(UNTIL_TOLD);
            if scheduled {
                Store::require()?.scheduled(role, Position::FIRST, |task| {
                    (priority, due) = (task.priority, Some(task.due()));
                    false
                })?;
            } else {
                priority = best_priority(role)?;
            }
            transaction.commit()?;
            if may_connect == MayConnect::Yes {
                found.push((role, priority, due));
            } else {
                barred.push((role, name.unwrap_or(enqueued_as), may_connect));
            }
        }
    }

    fn fail_all_of(&self, role: Oid, name: &[u8], why: MayConnect, seen: u64) -> Result<()> {
        let mut tasks = Vec::new();
        self.each_open_row(Open::Waiting(Roles::Only(role)), |row| {
            if row.ours {
                tasks.push(row.id);
            }
            true
        })?;
        let error = cannot_connect_error(name, why);
        for batch in tasks.chunks(BATCH) {
            let transaction = Transaction::begin(Durability::Flushed)?;
            let store = Store::require()?;
            for &id in batch {
                let waits = |row: &Row| matches!(row.state, State::Pending | State::Retrying);
                if let Some(row) = store.find(id)?.filter(waits) {
                    store.close_waiting(&row, State::Failed, Some(&error))?;
                }
            }
            transaction.commit()?;
        }
        let mut registry = registry::lock()?;
        let key = Key {
            database: self.database,
            role,
        };
        registry.remove_demands(|demand| demand.key == key && demand.bumps <= seen);
        Ok(())
    }

    fn each_open_row(&self, open: Open, mut see: impl FnMut(&OpenRow) -> bool) -> Result<()> {
        let transaction = Transaction::begin(Durability::Asynchronous)?;
        Store::require()?.open_rows(open, |row| Ok(see(row)))?;
        transaction.commit()
    }
}

/// The best priority of the tasks of a role that are in the queue. In a transaction.
fn best_priority(role: Oid) -> Result<i32> {
    let store = Store::require()?;
    let (mut best, mut lanes) = (i32::MAX, 0);
    // the first of each
    let mut see = |seen: Seen<'_>| {
        best = best.min(seen.task.priority);
        lanes += 1;
        Ok(if lanes < MOST_LANES {
            Step::NextLane
        } else {
            Step::Stop
        })
    };
    store.main_line(role, Place::FIRST, &mut see)?;
    store.lanes(role, &mut see)?;
    Ok(if lanes < MOST_LANES { best } else { i32::MIN })
}

fn terminated_error() -> Vec<u8> {
    let message = b"the background worker that ran this task was terminated";
    errors::entry(&sqlstate::ADMIN_SHUTDOWN.code(), message, &[])
}

fn given_up_error(interruptions: i32) -> Vec<u8> {
    let message = format!("the server crashed {interruptions} times while this task ran");
    let hint = format!(
        "A task is given up after {MOST_INTERRUPTIONS} crashes. Find out what it does before it is enqueued again."
    );
    errors::entry(
        &sqlstate::CRASH_SHUTDOWN.code(),
        message.as_bytes(),
        &[("HINT", Some(hint.as_bytes()))],
    )
}

fn cannot_connect_error(name: &[u8], why: MayConnect) -> Vec<u8> {
    let mut message = [b"role \"", name, b"\""].concat();
    let (rest, state): (&[u8], _) = match why {
        MayConnect::NoSuchRole | MayConnect::Yes => {
            (b" does not exist any more", sqlstate::UNDEFINED_OBJECT)
        }
        MayConnect::NoLogin => (
            b" is not permitted to log in",
            sqlstate::INVALID_AUTHORIZATION,
        ),
        MayConnect::NoConnectPrivilege => (
            b" does not have the CONNECT privilege on the database",
            sqlstate::INSUFFICIENT_PRIVILEGE,
        ),
    };
    message.extend_from_slice(rest);
    errors::entry(
        &state.code(),
        &message,
        &[(
            "DETAIL",
            Some(b"No background worker can run this task as that role."),
        )],
    )
}
