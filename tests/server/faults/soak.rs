//! The long form: `make soak`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::kinds::Mix;
use super::run::{Plan, Totals, make};

/// Faults of one run.
const FAULTS: usize = 16;

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

/// A seed that no run before has had; or that of `PGBQ_SEED`.
pub fn seed() -> u64 {
    number("PGBQ_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.expect("after 1970").as_secs() % 1_000_000 * 1000
    })
}

/// Makes runs with one seed after another; keeps the servers of those that went wrong.
fn runs(first: u64, mut plan: impl FnMut(u64) -> Option<Plan>) {
    let mut totals = Totals::default();
    let mut bad = Vec::new();
    for seed in first.. {
        let Some(plan) = plan(seed) else { break };
        if catch_unwind(AssertUnwindSafe(|| make(plan, &mut totals))).is_err() {
            bad.push(seed);
            if bad.len() == 5 {
                break;
            }
        }
    }
    totals.print();
    assert!(bad.is_empty(), "runs with these seeds went wrong: {bad:?}");
}

#[test]
#[ignore = "long: make soak"]
fn soak() {
    let minutes = number("SOAK_MINUTES").unwrap_or(60);
    let begin = Instant::now();
    runs(seed(), |seed| {
        (begin.elapsed() < Duration::from_secs(minutes * 60)).then_some(Plan {
            seed,
            mix: Mix::of_seed(seed),
            faults: FAULTS,
        })
    });
}

#[test]
#[ignore = "long: make soak"]
fn the_wal_cut_at_hundreds_of_places() {
    const A_RUN: u64 = 20;
    let cuts = number("SOAK_CUTS").unwrap_or(300);
    let first = seed();
    runs(first, |seed| {
        ((seed - first) * A_RUN < cuts).then_some(Plan {
            seed,
            mix: Mix::WalCuts,
            faults: usize::try_from(A_RUN).expect("few"),
        })
    });
}
