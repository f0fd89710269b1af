//! Whether all is as it must be after a run. A pure function of what was found, so that it can be shown what it must catch.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use super::ledger::{Disturbance, Sent};
use super::load::{Expected, Kind};

/// A task as it was found in the end. Times are microseconds since 1970.
#[derive(Debug, Clone)]
pub struct Found {
    pub database: String,
    pub id: i64,
    pub marker: i64,
    pub kind: Kind,
    pub role: String,
    pub state: String,
    pub priority: i32,
    pub attempt: i32,
    pub interruptions: i32,
    pub joined: i64,
    pub started: Option<i64>,
    pub closed: Option<i64>,
    pub errors: String,
    /// How often its number is in `effects`.
    pub effects: i64,
    /// How often it is in `steps_begun`.
    pub begun: i64,
}

/// All that is known of a run.
#[derive(Debug, Clone, Default)]
pub struct Account {
    pub found: Vec<Found>,
    /// Numbers in `effects` that no task in the table has: database, number, how often.
    pub strays: Vec<(String, i64, i64)>,
    pub sent: Vec<Sent>,
    pub disturbances: Vec<Disturbance>,
    /// The database whose tasks may be taken away.
    pub scratch: String,
    /// The most tasks that could run at a time.
    pub most_running: usize,
    /// How often the server went down uncleanly.
    pub crashes: u64,
    /// How often a worker was terminated or cancelled.
    pub terminations: u64,
    pub cancels: u64,
}

/// What the account comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// In words, what is wrong.
    pub complaints: Vec<String>,
    pub lost_tasks: u64,
    pub lost_effects: u64,
    pub doubled_effects: u64,
    /// Pairs of tasks whose order was looked at.
    pub ordered: u64,
    /// Pairs of delayed starts that were looked at.
    pub delayed: u64,
    /// The most tasks that were seen to run at a time.
    pub at_once: usize,
}

/// After that long nothing of a disturbance is felt any more, and a commit that was acknowledged is known to all; in microseconds.
const SETTLED: i64 = 3_000_000;

pub fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_micros()).expect("not that late")
}

/// The SQLSTATE of the last error.
fn last_code(errors: &str) -> &str {
    errors
        .lines()
        .rev()
        .filter_map(|line| line.split_once(": "))
        .map(|(code, _)| code)
        .find(|code| {
            code.len() == 5
                && code
                    .bytes()
                    .all(|b| b.is_ascii_digit() || b.is_ascii_uppercase())
        })
        .unwrap_or("")
}

pub fn judge(account: &Account) -> Verdict {
    let mut verdict = Verdict::default();
    judge_effects(account, &mut verdict);
    judge_ends(account, &mut verdict);
    judge_losses(account, &mut verdict);
    judge_children(account, &mut verdict);
    judge_parallel(account, &mut verdict);
    judge_order(account, &mut verdict);
    judge_delays(account, &mut verdict);
    verdict
}

/// Exactly once what is finished, not at all what is not.
fn judge_effects(account: &Account, verdict: &mut Verdict) {
    for task in account.found.iter().filter(|task| task.kind.has_effect()) {
        let wanted = i64::from(task.state == "finished");
        if task.effects == wanted {
            continue;
        }
        if task.effects < wanted {
            verdict.lost_effects += 1;
        } else {
            verdict.doubled_effects += 1;
        }
        verdict
            .complaints
            .push(format!("effect {} times: {task:?}", task.effects));
    }
    for task in &account.found {
        if task.kind == Kind::Steps && task.state == "finished" && task.begun == 0 {
            verdict.lost_effects += 1;
            verdict.complaints.push(format!("no first step: {task:?}"));
        }
    }
    for (database, marker, count) in &account.strays {
        if *database != account.scratch || *count > 1 {
            verdict.doubled_effects += 1;
            verdict.complaints.push(format!(
                "effect {count} times of number {marker} in {database}, which is no task"
            ));
        }
    }
}

/// Closed, in a state that the task's kind or a fault explains.
fn judge_ends(account: &Account, verdict: &mut Verdict) {
    for task in &account.found {
        let code = last_code(&task.errors);
        let fault = match code {
            "57014" => account.cancels > 0,
            "57P01" => account.terminations > 0 || task.database == account.scratch,
            "57P02" => account.crashes >= 5 && task.interruptions == 5,
            _ => task.database == account.scratch && !["XX000", "PB001", ""].contains(&code),
        };
        let good = match (task.state.as_str(), task.kind.expected()) {
            ("finished", Expected::Finished | Expected::Either) => true,
            ("failed", Expected::Failed(expected)) => code == expected || fault,
            ("failed", Expected::Either) => fault || (task.kind == Kind::Flaky && code == "22012"),
            ("failed", Expected::Finished) => fault,
            ("cancelled", _) => task.kind == Kind::Cancelled,
            _ => false,
        };
        if !good || task.closed.is_none() {
            verdict.complaints.push(format!("a wrong end: {task:?}"));
        }
    }
}

/// What was acknowledged is there, once.
fn judge_losses(account: &Account, verdict: &mut Verdict) {
    let steady = || {
        account
            .found
            .iter()
            .filter(|task| task.database != account.scratch)
    };
    let mut markers = HashSet::new();
    for task in steady() {
        if !markers.insert(task.marker) {
            verdict.complaints.push(format!("there twice: {task:?}"));
        }
    }
    let by_id: HashMap<(&str, i64), i64> = steady()
        .map(|task| ((task.database.as_str(), task.id), task.marker))
        .collect();
    for sent in &account.sent {
        if sent.database == account.scratch {
            continue;
        }
        match by_id.get(&(sent.database.as_str(), sent.id)) {
            Some(&marker) if marker == sent.marker => {}
            // an id that was lost with its commit is given again
            _ if !sent.durable && account.crashes > 0 => {}
            other => {
                verdict.lost_tasks += 1;
                verdict
                    .complaints
                    .push(format!("lost: {sent:?}, in its place {other:?}"));
            }
        }
    }
}

/// A task that enqueues another does so exactly once.
fn judge_children(account: &Account, verdict: &mut Verdict) {
    let children: HashSet<(&str, i64)> = account
        .found
        .iter()
        .filter(|task| task.kind == Kind::Child)
        .map(|task| (task.database.as_str(), task.marker))
        .collect();
    for task in &account.found {
        if task.kind == Kind::Parent
            && task.database != account.scratch
            && children.contains(&(task.database.as_str(), task.marker + 1))
                != (task.state == "finished")
        {
            verdict.complaints.push(format!("a wrong child: {task:?}"));
        }
    }
}

/// Never more at a time than any configuration allowed. The topics' limits are checked by the tasks themselves. Tasks of a batch count as
/// one; which those are is not known here.
fn judge_parallel(account: &Account, verdict: &mut Verdict) {
    let mut events = Vec::new();
    let counts = |task: &&Found| task.state == "finished" && task.kind.topic() != Some("batch");
    for task in account.found.iter().filter(counts) {
        if let (Some(started), Some(closed)) = (task.started, task.closed) {
            events.push((started, 1));
            events.push((closed, -1));
        }
    }
    // an end before a start at the same moment
    events.sort_unstable();
    let mut running = 0_i64;
    for (_, change) in events {
        running += change;
        verdict.at_once = verdict.at_once.max(usize::try_from(running).unwrap_or(0));
    }
    if verdict.at_once > account.most_running {
        verdict
            .complaints
            .push(format!("{} tasks ran at a time", verdict.at_once));
    }
}

/// Whether nothing had been done to the server for a while before `time`.
fn is_calm(account: &Account, time: i64) -> bool {
    !account.disturbances.iter().any(|disturbance| {
        micros(disturbance.began) <= time && time <= micros(disturbance.ended) + SETTLED
    })
}

/// Topic `one`, in which a task begins after another has ended: one role's tasks come by priority, then by id.
fn judge_order(account: &Account, verdict: &mut Verdict) {
    let acknowledged: HashMap<(&str, i64), i64> = account
        .sent
        .iter()
        .map(|sent| {
            (
                (sent.database.as_str(), sent.marker),
                micros(sent.acknowledged),
            )
        })
        .collect();
    // by database and role: task, start, acknowledgement
    type Timed<'a> = (&'a Found, i64, i64);
    let mut groups: BTreeMap<(&str, &str), Vec<Timed<'_>>> = BTreeMap::new();
    for task in &account.found {
        let known = acknowledged.get(&(task.database.as_str(), task.marker));
        if task.kind == Kind::One
            && task.database != account.scratch
            && task.attempt == 1
            && let (Some(started), Some(&acknowledged)) = (task.started, known)
        {
            groups
                .entry((&task.database, &task.role))
                .or_default()
                .push((task, started, acknowledged));
        }
    }
    for tasks in groups.values() {
        for &(late, late_start, _) in tasks {
            if !is_calm(account, late_start) {
                continue;
            }
            for &(early, early_start, acknowledged) in tasks {
                let comes_first = (early.priority, early.id) < (late.priority, late.id);
                let known_then = if early.priority < late.priority {
                    acknowledged + SETTLED < late_start
                } else {
                    acknowledged < late.joined
                };
                if !comes_first || !known_then {
                    continue;
                }
                verdict.ordered += 1;
                if early_start > late_start {
                    verdict
                        .complaints
                        .push(format!("out of order: {early:?} after {late:?}"));
                }
            }
        }
    }
}

/// Topic `delayed`: at most two starts in a second. A start is noted a moment after it is allowed, so half of that is enough.
fn judge_delays(account: &Account, verdict: &mut Verdict) {
    let mut starts: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for task in &account.found {
        if task.kind == Kind::Delayed
            && task.state == "finished"
            && task.database != account.scratch
            && let Some(started) = task.started
        {
            starts.entry(&task.database).or_default().push(started);
        }
    }
    for starts in starts.values_mut() {
        starts.sort_unstable();
        for (first, third) in starts.iter().zip(starts.iter().skip(2)) {
            // a server that begins anew knows nothing of earlier starts
            if account.crashes > 0 && !is_calm(account, *third) {
                continue;
            }
            verdict.delayed += 1;
            if third - first < 500_000 {
                verdict
                    .complaints
                    .push(format!("three delayed starts from {first} to {third}"));
            }
        }
    }
}

/// What the log says that the ends of tasks do not show.
pub fn judge_log(log: &str, killed: &[i32], scratch: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for line in log.lines() {
        if let Some((before, _)) = line.split_once(") was terminated by signal") {
            let pid = before
                .rsplit("PID ")
                .next()
                .and_then(|pid| pid.parse().ok());
            if pid.is_none_or(|pid| !killed.contains(&pid)) {
                complaints.push(format!("nobody of ours killed it: {line}"));
            }
        }
        if line.contains(" XX000 ") && !line.contains(&format!("@{scratch} ")) {
            complaints.push(format!("an internal error: {line}"));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn task(marker: i64, kind: Kind) -> Found {
        let at = marker * 10_000_000;
        Found {
            database: "postgres".to_owned(),
            id: marker,
            marker,
            kind,
            role: "alice".to_owned(),
            state: "finished".to_owned(),
            priority: 100,
            attempt: 1,
            interruptions: 0,
            joined: at,
            started: Some(at + 1_000_000),
            closed: Some(at + 1_500_000),
            errors: String::new(),
            effects: i64::from(kind.has_effect()),
            begun: 0,
        }
    }

    fn sent(task: &Found) -> Sent {
        Sent {
            database: task.database.clone(),
            id: task.id,
            marker: task.marker,
            durable: true,
            acknowledged: UNIX_EPOCH
                + Duration::from_micros(u64::try_from(task.joined).expect("after 1970") + 1000),
        }
    }

    /// Ten tasks of the kind, all as they must be.
    fn account(kind: Kind) -> Account {
        let found: Vec<Found> = (1..=10).map(|n| task(n * 2, kind)).collect();
        Account {
            sent: found.iter().map(sent).collect(),
            found,
            scratch: "scratch".to_owned(),
            most_running: 4,
            ..Account::default()
        }
    }

    #[track_caller]
    fn complaint(account: &Account) -> Verdict {
        let verdict = judge(account);
        assert_eq!(verdict.complaints.len(), 1, "{verdict:?}");
        verdict
    }

    #[test]
    fn a_good_account_is_no_complaint() {
        for kind in [Kind::Insert, Kind::One, Kind::Vacuum, Kind::Delayed] {
            assert_eq!(judge(&account(kind)).complaints, [""; 0]);
        }
        let verdict = judge(&account(Kind::One));
        assert_eq!((verdict.ordered, verdict.at_once), (45, 1));
        assert_eq!(judge(&account(Kind::Delayed)).delayed, 8);
    }

    #[test]
    fn a_lost_effect_is_a_complaint() {
        let mut account = account(Kind::Insert);
        account.found[3].effects = 0;
        assert_eq!(complaint(&account).lost_effects, 1);
    }

    #[test]
    fn a_doubled_effect_is_a_complaint() {
        let mut account = account(Kind::Insert);
        account.found[3].effects = 2;
        assert_eq!(complaint(&account).doubled_effects, 1);
    }

    #[test]
    fn an_effect_of_a_failed_task_is_a_complaint() {
        let mut account = account(Kind::Fails);
        for task in &mut account.found {
            task.state = "failed".to_owned();
            task.errors = "22012: division by zero".to_owned();
            task.effects = 0;
        }
        assert_eq!(judge(&account).complaints, [""; 0]);
        account.found[3].effects = 1;
        assert_eq!(complaint(&account).doubled_effects, 1);
    }

    #[test]
    fn an_effect_without_a_task_is_a_complaint() {
        let mut account = account(Kind::Insert);
        account.strays.push(("scratch".to_owned(), 98, 1));
        assert_eq!(judge(&account).complaints, [""; 0]);
        account.strays.push(("postgres".to_owned(), 99, 1));
        assert_eq!(complaint(&account).doubled_effects, 1);
    }

    #[test]
    fn a_lost_task_is_a_complaint() {
        let mut account = account(Kind::Insert);
        account.found.remove(3);
        assert_eq!(complaint(&account).lost_tasks, 1);
    }

    #[test]
    fn a_task_without_its_child_is_a_complaint() {
        let mut account = account(Kind::Parent);
        account.found.truncate(1);
        account.sent.truncate(1);
        complaint(&account);
        account.found.push(task(3, Kind::Child));
        assert_eq!(judge(&account).complaints, [""; 0]);
    }

    #[test]
    fn a_task_that_is_open_or_failed_for_no_reason_is_a_complaint() {
        for (state, errors) in [
            ("running", ""),
            ("failed", "57P01: terminated"),
            ("failed", "57014: canceled"),
            ("failed", "57P02: crashed"),
            ("failed", "PB001: more than 1 tasks of topic one run"),
            ("cancelled", ""),
        ] {
            let mut account = account(Kind::Insert);
            account.found[3].state = state.to_owned();
            account.found[3].errors = errors.to_owned();
            account.found[3].effects = 0;
            complaint(&account);
        }
    }

    #[test]
    fn more_tasks_at_a_time_than_allowed_are_a_complaint() {
        let mut account = account(Kind::Insert);
        for task in &mut account.found[..5] {
            task.closed = Some(200_000_000);
        }
        complaint(&account);
        account.most_running = 6;
        assert_eq!(judge(&account).complaints, [""; 0]);
    }

    #[test]
    fn a_better_task_that_is_passed_over_is_a_complaint() {
        let mut account = account(Kind::One);
        account.found[3].priority = 1;
        // joined long before the fifth one starts
        account.found[3].started = account.found[4].started.map(|start| start + 1);
        complaint(&account);
        let disturbance = account.found[4].started.map(|start| {
            UNIX_EPOCH + Duration::from_micros(u64::try_from(start).expect("after 1970") - 1)
        });
        let disturbance = disturbance.expect("a time");
        account.disturbances.push(Disturbance {
            began: disturbance,
            ended: disturbance,
        });
        assert_eq!(judge(&account).complaints, [""; 0]);
    }

    #[test]
    fn three_starts_at_a_time_of_a_delayed_topic_are_a_complaint() {
        let mut account = account(Kind::Delayed);
        let first = account.found[0].started;
        account.found[1].started = first;
        account.found[2].started = first;
        complaint(&account);
    }

    #[test]
    fn a_signal_that_we_did_not_send_is_a_complaint() {
        let log =
            "[1] LOG:  server process (PID 7) was terminated by signal 11: Segmentation fault\n";
        assert_eq!(judge_log(log, &[7], "scratch"), [""; 0]);
        assert_eq!(judge_log(log, &[8], "scratch").len(), 1);
    }
}
