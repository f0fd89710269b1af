//! Faults at random under a mixed load, and what must hold afterwards.
//!
//! A run ([`run`]) has a server of its own. Sessions of several roles in several databases enqueue tasks of many kinds
//! ([`load`]) while processes are killed, the server is stopped, tables are locked, databases dropped ([`kinds`]).
//! Then it is left alone, and when all tasks have come to their end, they are judged ([`judge`]): each
//! transactional task has had its effect exactly once, or not at all if it is not finished; nothing is lost, nothing
//! stuck, no limit was broken, no process is left over.
//!
//! Each run is made from a seed, which decides what is enqueued and which faults come; not the moments at which they
//! hit, which are the server's. `PGBQ_SEED=N` makes the run of that seed again; `make soak` makes many.

mod inject;
mod judge;
mod kinds;
mod ledger;
mod load;
mod resources;
mod run;
mod soak;
mod tests;

pub use inject::TOPICS;
pub use judge::judge;
pub use ledger::Ledger;
pub use load::{Kind, Loader, prepare_database};
pub use run::{account, under_load};

/// One of these, as often as its weight says.
fn pick<T: Copy>(choice: &[(T, usize)], random: &mut fastrand::Rng) -> T {
    let total: usize = choice.iter().map(|&(_, weight)| weight).sum();
    let mut left = random.usize(..total);
    for &(one, weight) in choice {
        if left < weight {
            return one;
        }
        left -= weight;
    }
    choice[0].0
}
