//! Letting tasks whose time has come into the queue. A worker does that for its role before each look.

use std::time::{Duration, Instant};

use super::registry::{self, Key, UNTIL_TOLD};
use super::store::{Scheduled, Store};
use crate::core::ready::Place;
use crate::core::schedule::Position;
use crate::pg::table::Updated;
use crate::pg::time::{self, TimestampTz};
use crate::pg::xact::{Durability, Transaction};
use crate::pg::{Oid, Result, crash_point};

/// Tasks that one transaction lets in at most: it is short, and holds their rows for a moment.
const MOST: usize = 512;

/// How long a worker goes on with moving tasks, from the schedule or to their lanes, if there are more, before others of its role's tasks have
/// their turn.
pub const TURN: Duration = Duration::from_millis(200);

/// How long those have it then, in microseconds; a task that has begun runs to its end.
pub const PAUSE_MICROSECONDS: i64 = 10_000;

/// How long a row that somebody else holds is left alone, in microseconds.
pub const LOCKED_ROW_MICROSECONDS: i64 = 1_000_000;

/// Rows that are left alone, and until when.
type Held = Vec<(i64, TimestampTz)>;

/// What was done.
pub struct Done {
    /// When there is more to let in, as far as was seen.
    pub next_due: TimestampTz,
    /// The time of more tasks has come.
    pub more: bool,
    /// What [`Demand::bumps`](registry::Registry::demand) has to be compared with after the look that follows.
    pub bumps: u64,
}

/// Lets in what is due of this key, for a worker that is about to look and has read `bumps` before. In a transaction, which is
/// another one afterwards if anything was let in: what is in the queue then is committed.
///
/// # Errors
/// I/O.
pub fn let_in_due(
    mut transaction: Transaction,
    key: Key,
    held: &mut Held,
    bumps: u64,
    now: TimestampTz,
) -> Result<(Transaction, Done)> {
    let began = Instant::now();
    held.retain(|&(_, until)| until > now);
    let mut done = Done {
        next_due: UNTIL_TOLD,
        more: false,
        bumps,
    };
    loop {
        let Some(visit) = registry::lock()?
            .shelf(key)
            .map(|shelf| shelf.schedule.begin_visit())
        else {
            break;
        };
        let Some(store) = Store::open()? else { break };
        let let_in = visit_schedule(&store, key.role, held, visit.from, now)?;
        if let Some(first) = let_in.first {
            crash_point("due tasks are let in");
            transaction.commit()?;
            // nothing can interrupt it before they are told of
            crash_point("a letting in is committed");
            done.bumps = registry::lock()?.let_in(key, first, done.bumps);
            transaction = Transaction::begin(Durability::Asynchronous)?;
        }
        if let Some(shelf) = registry::lock()?.shelf(key) {
            shelf.schedule.end_visit(visit, let_in.reached);
        }
        done.next_due = done.next_due.min(let_in.next_due);
        done.more = let_in.more;
        if !done.more {
            break;
        }
        if began.elapsed() > TURN {
            done.next_due = time::now() + PAUSE_MICROSECONDS;
            break;
        }
    }
    Ok((transaction, done))
}

/// What a visit has done.
struct LetIn {
    /// Before all of those that were let in; `None` if there are none.
    first: Option<Place>,
    /// All that stood before this is in the queue, once the transaction has committed.
    reached: Position,
    next_due: TimestampTz,
    more: bool,
}

/// Lets the first tasks of a role in that are due, from this position on, but those that are left alone. In a transaction.
fn visit_schedule(
    store: &Store,
    role: Oid,
    held: &mut Held,
    from: Position,
    now: TimestampTz,
) -> Result<LetIn> {
    let mut done = LetIn {
        first: None,
        reached: from.max(Position::at(now)),
        next_due: UNTIL_TOLD,
        more: false,
    };
    let mut due: Vec<Scheduled> = Vec::new();
    store.scheduled(role, from, |task| {
        if task.due() > now {
            done.next_due = done.next_due.min(task.due());
            return false;
        }
        if let Some(&(_, until)) = held.iter().find(|&&(id, _)| id == task.id) {
            done.next_due = done.next_due.min(until);
            done.reached = done.reached.min(task.position());
            return true;
        }
        if due.len() == MOST {
            done.more = true;
            done.reached = done.reached.min(task.position());
            return false;
        }
        due.push(task);
        true
    })?;
    for task in &due {
        match store.let_in(task, role)? {
            Updated::Done => {
                let place = task.position().place;
                let first = done.first.unwrap_or(place);
                done.first = Some(Place {
                    priority: first.priority.min(place.priority),
                    id: first.id.min(place.id),
                });
            }
            Updated::Locked => {
                let until = now + LOCKED_ROW_MICROSECONDS;
                held.push((task.id, until));
                done.next_due = done.next_due.min(until);
                done.reached = done.reached.min(task.position());
            }
            // somebody else was faster
            Updated::Fenced | Updated::Missing => {}
        }
    }
    Ok(done)
}
