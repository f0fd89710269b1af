//! Letting tasks whose time has come into the queue. A worker does that for its role before each look.

use super::registry::UNTIL_TOLD;
use super::store::{Scheduled, Store};
use crate::core::ready::Place;
use crate::core::schedule::Position;
use crate::pg::table::Updated;
use crate::pg::time::TimestampTz;
use crate::pg::{Oid, Result};

/// Tasks that are let in at once, at most: the transaction that does it is short, and holds their rows for a moment.
const MOST: usize = 512;

/// What was done.
pub struct LetIn {
    /// Before all of those that were let in; `None` if there are none.
    pub first: Option<Place>,
    /// All that stood before this is in the queue, once the transaction has committed.
    pub reached: Position,
    /// When there is more to let in, as far as was seen.
    pub next_due: TimestampTz,
    /// The time of more of them has come.
    pub more: bool,
    /// Somebody else holds these.
    pub locked: Vec<i64>,
}

impl LetIn {
    /// Nothing.
    pub fn nothing(from: Position) -> Self {
        Self {
            first: None,
            reached: from,
            next_due: UNTIL_TOLD,
            more: false,
            locked: Vec::new(),
        }
    }
}

/// Lets the tasks of a role in that are due, in the order of their positions from this one on, but those of `held_rows` that are
/// left alone until a time that comes with them. In a transaction.
///
/// # Errors
/// I/O.
pub fn let_in(
    store: &Store,
    role: Oid,
    held_rows: &[(i64, TimestampTz)],
    from: Position,
    now: TimestampTz,
) -> Result<LetIn> {
    let mut done = LetIn::nothing(from.max(Position::at(now)));
    let mut due: Vec<Scheduled> = Vec::new();
    store.scheduled(role, from, |task| {
        if task.due() > now {
            done.next_due = done.next_due.min(task.due());
            return false;
        }
        if let Some(&(_, until)) = held_rows.iter().find(|&&(id, _)| id == task.id) {
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
                done.locked.push(task.id);
                done.reached = done.reached.min(task.position());
            }
            // somebody else was faster
            Updated::Fenced | Updated::Missing => {}
        }
    }
    Ok(done)
}
