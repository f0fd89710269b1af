//! The short form, for every run of the suite.

use super::inject::{MOST_RUNNING, STEADY};
use super::judge::judge;
use super::kinds::Mix;
use super::ledger::Ledger;
use super::load::{Kind, Loader};
use super::run::{Plan, Totals, account, make, server};
use super::soak::seed;
use crate::harness::{PATIENCE, run, wait_all_closed};

fn short(mix: Mix, faults: usize) {
    let seed = seed();
    let mut totals = Totals::default();
    make(Plan { seed, mix, faults }, &mut totals);
    totals.print();
    assert!(totals.acknowledged > 0);
    assert!(
        totals
            .states
            .get("finished")
            .is_some_and(|&count| count > 0)
    );
}

#[test]
fn whatever_hits_the_server_each_task_has_its_effect_exactly_once() {
    short(Mix::All, 6);
}

#[test]
fn whatever_hits_its_processes_each_task_has_its_effect_exactly_once() {
    short(Mix::Gentle, 6);
}

#[test]
fn wherever_the_wal_is_cut_each_task_has_its_effect_exactly_once() {
    short(Mix::WalCuts, 10);
}

/// The judgement is made of what is really in the tables.
#[test]
fn a_lost_and_a_doubled_effect_are_found_in_the_tables() {
    let server = server();
    let ledger = Ledger::default();
    let mut client = server.superuser();
    let mut loader = Loader {
        connector: server.connector(),
        role: "postgres",
        database: "postgres",
        is_scratch: false,
        ledger: &ledger,
        random: fastrand::Rng::with_seed(1),
    };
    for kind in Kind::ALL.into_iter().filter(|&kind| kind != Kind::Child) {
        loader.enqueue(&mut client, true, kind).expect("enqueue");
    }
    wait_all_closed(&mut client, PATIENCE);
    let verdict = judge(&account(&server, &ledger, &STEADY));
    assert_eq!(verdict.complaints, [""; 0]);
    assert!((1..=MOST_RUNNING).contains(&verdict.at_once));

    // the first task's is lost, the second one's doubled
    run(
        &mut client,
        "DELETE FROM effects WHERE n = 2; INSERT INTO effects SELECT n FROM effects WHERE n = 4",
    );
    let verdict = judge(&account(&server, &ledger, &STEADY));
    assert_eq!((verdict.lost_effects, verdict.doubled_effects), (1, 1));
    assert_eq!(verdict.complaints.len(), 2, "{verdict:?}");
    run(&mut client, "DELETE FROM pg_background_tasks WHERE id = 5");
    let verdict = judge(&account(&server, &ledger, &STEADY));
    assert_eq!(verdict.lost_tasks, 1);
}
