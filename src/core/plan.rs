//! Which workers to start, to wake and to send away.
//!
//! The launcher calls [`plan`] whenever something has changed. The rules:
//!
//! - Workers, idle ones included, never exceed the limit; what a terminated worker has left and a keeper has not
//!   yet cleared away counts as one.
//! - A role that has work and no worker comes first; databases take turns, then better (lower) priority, then
//!   who has waited longest.
//! - What is free after that goes to roles whose workers have more to do than they can; idle workers of others
//!   leave for them, too, and busy ones whose work is of worse priority.
//! - When room is needed, idle workers leave at once. Busy ones are asked through [`Plan::room`]: the first that has
//!   finished a task and was here for its [`STINT_MICROSECONDS`], or whose work is of worse priority, leaves. (Sending
//!   away one in particular could pick the one whose task takes hours.)

use std::collections::HashMap;

/// How long a worker may stay with its role while others of equal priority have none: a new process costs
/// 3–13 ms, so that five turns a second cost a few per cent at most.
pub const STINT_MICROSECONDS: i64 = 200_000;

/// What a worker is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Asked for, not there yet.
    Starting,
    /// Waiting for work.
    Idle,
    /// Looking for work or running it.
    Busy,
}

/// One worker, as the launcher sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Worker {
    /// Its slot in the registry.
    pub slot: usize,
    /// Its database.
    pub database: u32,
    /// Its role.
    pub role: u32,
    /// What it does.
    pub phase: Phase,
    /// It has been told to leave.
    pub leaving: bool,
    /// When it will have run its task for so long that it does not serve its role's other ones ([`STINT_MICROSECONDS`]); `None` if
    /// it runs none.
    pub stuck_from: Option<i64>,
}

/// Work that somebody may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Demand {
    /// Its place in the registry.
    pub index: usize,
    /// The database of the work.
    pub database: u32,
    /// The role of the work.
    pub role: u32,
    /// The best priority among it.
    pub priority: i32,
    /// Lower has waited longer.
    pub order: u64,
    /// It must wait until then (microseconds).
    pub due: i64,
    /// There is more of it than its workers can do.
    pub more: bool,
}

/// What there may be at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Workers in the cluster.
    pub workers: usize,
    /// Places taken by what terminated workers have left.
    pub orphans: usize,
    /// Others who wait for a process.
    pub waiting: usize,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Demands (by index) to start a worker for, in this order.
    pub start: Vec<usize>,
    /// Idle workers (by slot) to wake: there is work for them.
    pub wake: Vec<usize>,
    /// Idle workers (by slot) to send away.
    pub leave: Vec<usize>,
    /// Busy workers that should leave after their task and their stint.
    pub room: usize,
    /// Of those who wait for that room, the best: its database and priority.
    pub room_for: Option<(u32, i32)>,
    /// Of those who have more to do than their workers can, the best, if it found no place: a worker of the same database whose
    /// work is of worse priority leaves for it after its task.
    pub better: Option<(u32, i32)>,
    /// Busy workers that must leave after their task: the limit has been lowered.
    pub surplus: usize,
    /// Workers that should leave instead of becoming idle: others have more to do than they can.
    pub idle_room: usize,
    /// When to plan again at the latest.
    pub next: Option<i64>,
}

/// See the module's head.
pub fn plan(now: i64, limits: Limits, workers: &[Worker], demands: &[Demand]) -> Plan {
    let mut plan = Plan {
        next: demands
            .iter()
            .map(|demand| demand.due)
            .filter(|&due| due > now)
            .min(),
        ..Plan::default()
    };
    let is_of = |worker: &Worker, demand: &Demand| {
        !worker.leaving && worker.database == demand.database && worker.role == demand.role
    };
    // to a role that has more to do, one in a long task is as good as none, if others could make room
    let others_are_busy = |demand: &Demand| {
        let same =
            |worker: &Worker| (worker.database, worker.role) == (demand.database, demand.role);
        workers
            .iter()
            .any(|worker| worker.phase == Phase::Busy && !worker.leaving && !same(worker))
    };
    let stuck_from = |worker: &Worker, demand: &Demand| {
        worker
            .stuck_from
            .filter(|_| demand.more && others_are_busy(demand))
    };
    let serves = |worker: &Worker, demand: &Demand| {
        is_of(worker, demand) && stuck_from(worker, demand).is_none_or(|from| from > now)
    };
    let ready: Vec<&Demand> = demands.iter().filter(|demand| demand.due <= now).collect();
    let (served, mut unserved): (Vec<&Demand>, Vec<&Demand>) = ready
        .iter()
        .partition(|demand| workers.iter().any(|worker| serves(worker, demand)));

    // when the last one that serves such a role will be stuck, others have to make room
    for demand in &served {
        let of_role = workers.iter().filter(|worker| is_of(worker, demand));
        let last = of_role
            .map(|worker| stuck_from(worker, demand))
            .max_by_key(|from| from.unwrap_or(i64::MAX));
        if let Some(Some(from)) = last {
            plan.next = Some(plan.next.map_or(from, |next| next.min(from)));
        }
    }

    for demand in &served {
        let idle = workers
            .iter()
            .filter(|w| w.phase == Phase::Idle && serves(w, demand))
            .map(|w| w.slot);
        plan.wake
            .extend(idle.take(if demand.more { usize::MAX } else { 1 }));
    }

    let occupied = workers.len() + limits.orphans;
    let mut free = limits.workers.saturating_sub(occupied);
    let mut in_database: HashMap<u32, usize> = HashMap::new();
    for worker in workers {
        *in_database.entry(worker.database).or_default() += 1;
    }
    let mut more: Vec<&Demand> = served
        .iter()
        .copied()
        .filter(|demand| demand.more)
        .collect();
    while free > 0 {
        // a role without a worker before one that could do with another, unless that is of better priority
        let key = |demand: &Demand, has_worker: bool| {
            let turn = in_database.get(&demand.database).copied().unwrap_or(0);
            (turn, demand.priority, has_worker, demand.order)
        };
        let without = (0..unserved.len()).min_by_key(|&i| key(unserved[i], false));
        let with = (0..more.len()).min_by_key(|&i| key(more[i], true));
        let demand = match (without, with) {
            (Some(i), Some(j)) if key(unserved[i], false) > key(more[j], true) => {
                more.swap_remove(j)
            }
            (Some(i), _) => unserved.swap_remove(i),
            (None, Some(j)) => more.swap_remove(j),
            (None, None) => break,
        };
        *in_database.entry(demand.database).or_default() += 1;
        plan.start.push(demand.index);
        free -= 1;
    }

    // Those who are still without a worker need room, and so does a limit that is lower than what there is.
    let over = occupied.saturating_sub(limits.workers);
    let leaving = workers.iter().filter(|worker| worker.leaving).count();
    let without = if limits.workers == 0 {
        0
    } else {
        unserved.len()
    };
    let mut needed = (without + limits.waiting + over).saturating_sub(leaving);
    let woken = plan.wake.clone();
    let mut idle: Vec<usize> = workers
        .iter()
        .filter(|worker| worker.phase == Phase::Idle && !worker.leaving)
        .map(|worker| worker.slot)
        .collect();
    // those with nothing to do before those who were just woken
    idle.sort_by_key(|slot| woken.contains(slot));
    let spare = idle.len() - woken.len();
    let go = needed.min(if over > 0 { idle.len() } else { spare });
    let for_more = more.len().min(spare.saturating_sub(go));
    plan.leave = idle[..go + for_more].to_vec();
    plan.idle_room = if limits.workers == 0 {
        0
    } else {
        more.len() - for_more
    };
    plan.wake.retain(|slot| !plan.leave.contains(slot));
    needed -= go;
    plan.surplus = needed.min(over.saturating_sub(leaving + go));
    plan.room = needed - plan.surplus;
    let best = |waiting: &[&Demand]| {
        waiting
            .iter()
            .min_by_key(|demand| demand.priority)
            .map(|demand| (demand.database, demand.priority))
    };
    plan.room_for = best(&unserved).filter(|_| plan.room > 0);
    plan.better = best(&more).filter(|_| limits.workers > 0);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn worker(slot: usize, role: u32, phase: Phase) -> Worker {
        Worker {
            slot,
            database: 1,
            role,
            phase,
            leaving: false,
            stuck_from: None,
        }
    }

    fn demand(index: usize, role: u32) -> Demand {
        Demand {
            index,
            database: 1,
            role,
            priority: 100,
            order: index as u64,
            due: 0,
            more: false,
        }
    }

    const LIMITS: Limits = Limits {
        workers: 2,
        orphans: 0,
        waiting: 0,
    };

    #[test]
    fn a_role_without_a_worker_gets_one() {
        assert_eq!(plan(0, LIMITS, &[], &[demand(0, 7)]).start, [0]);
    }

    #[test]
    fn a_role_with_a_worker_gets_no_second_unless_there_is_more() {
        let busy = [worker(0, 7, Phase::Busy)];
        assert_eq!(plan(0, LIMITS, &busy, &[demand(0, 7)]), Plan::default());
        let more = Demand {
            more: true,
            ..demand(0, 7)
        };
        assert_eq!(plan(0, LIMITS, &busy, &[more]).start, [0]);
    }

    #[test]
    fn an_idle_worker_is_woken_rather_than_another_started() {
        let result = plan(0, LIMITS, &[worker(3, 7, Phase::Idle)], &[demand(0, 7)]);
        assert_eq!((result.wake, result.start), (vec![3], vec![]));
    }

    #[test]
    fn idle_workers_of_others_make_room() {
        let idle = [worker(0, 1, Phase::Idle), worker(1, 2, Phase::Busy)];
        let result = plan(0, LIMITS, &idle, &[demand(0, 7), demand(1, 2)]);
        assert_eq!(
            (result.leave, result.room, result.start),
            (vec![0], 0, vec![])
        );
    }

    #[test]
    fn idle_workers_of_others_leave_for_those_who_have_more_to_do() {
        let workers = [worker(0, 1, Phase::Idle), worker(1, 2, Phase::Busy)];
        let more = [Demand {
            more: true,
            ..demand(0, 2)
        }];
        let result = plan(0, LIMITS, &workers, &more);
        assert_eq!(
            (result.leave, result.idle_room, result.room),
            (vec![0], 0, 0)
        );
        let busy = [worker(0, 1, Phase::Busy), worker(1, 2, Phase::Busy)];
        assert_eq!(plan(0, LIMITS, &busy, &more).idle_room, 1);
    }

    #[test]
    fn busy_workers_are_asked_for_room_when_none_is_idle() {
        let busy = [worker(0, 1, Phase::Busy), worker(1, 2, Phase::Busy)];
        let demands = [demand(0, 7), demand(1, 8), demand(2, 1), demand(3, 2)];
        let result = plan(0, LIMITS, &busy, &demands);
        assert_eq!(
            (result.room, result.room_for, result.surplus),
            (2, Some((1, 100)), 0)
        );
    }

    #[test]
    fn a_role_whose_workers_are_all_in_long_tasks_is_as_one_without() {
        let long = Worker {
            stuck_from: Some(200),
            ..worker(0, 7, Phase::Busy)
        };
        let workers = [long, worker(1, 1, Phase::Busy)];
        let more = Demand {
            more: true,
            ..demand(0, 7)
        };
        let flood = Demand {
            more: true,
            ..demand(1, 1)
        };
        let before = plan(199, LIMITS, &workers, &[more, flood]);
        assert_eq!((before.room, before.next), (0, Some(200)));
        assert_eq!(plan(200, LIMITS, &workers, &[more, flood]).room, 1);
        // what it runs is all there is
        assert_eq!(plan(200, LIMITS, &workers, &[demand(0, 7), flood]).room, 0);
        // another one of the role is at work on the rest
        let both = [long, worker(1, 7, Phase::Busy), worker(2, 1, Phase::Busy)];
        let result = plan(200, LIMITS, &both, &[more, flood]);
        assert_eq!((result.room, result.surplus), (0, 1));
        // nobody else could make room, least of all itself
        assert_eq!(plan(200, LIMITS, &both[..2], &[more]).room, 0);
        let alone = plan(
            200,
            Limits {
                workers: 1,
                ..LIMITS
            },
            &[long],
            &[more],
        );
        assert_eq!((alone.room, alone.start), (0, vec![]));
    }

    #[test]
    fn a_better_priority_with_more_to_do_goes_before_a_role_without_a_worker() {
        let workers = [worker(0, 1, Phase::Busy)];
        let better = Demand {
            more: true,
            priority: 1,
            ..demand(0, 1)
        };
        let demands = [better, demand(1, 7)];
        assert_eq!(plan(0, LIMITS, &workers, &demands).start, [0]);
        let equal = Demand {
            more: true,
            ..demand(0, 1)
        };
        assert_eq!(plan(0, LIMITS, &workers, &[equal, demand(1, 7)]).start, [1]);
        let busy = [worker(0, 1, Phase::Busy), worker(1, 7, Phase::Busy)];
        assert_eq!(plan(0, LIMITS, &busy, &demands).better, Some((1, 1)));
    }

    #[test]
    fn a_worker_that_leaves_already_is_counted() {
        let busy = [
            Worker {
                leaving: true,
                ..worker(0, 1, Phase::Busy)
            },
            worker(1, 2, Phase::Busy),
        ];
        assert_eq!(plan(0, LIMITS, &busy, &[demand(0, 7)]).room, 0);
    }

    #[test]
    fn a_lowered_limit_sends_the_surplus_away_and_starts_nothing() {
        let workers = [
            worker(0, 1, Phase::Busy),
            worker(1, 2, Phase::Busy),
            worker(2, 3, Phase::Idle),
        ];
        let limits = Limits {
            workers: 1,
            orphans: 0,
            waiting: 0,
        };
        let result = plan(0, limits, &workers, &[demand(0, 7), demand(1, 3)]);
        assert_eq!(result.start, [] as [usize; 0]);
        assert_eq!(result.leave, [2]);
        assert_eq!(result.surplus, 1);
    }

    #[test]
    fn a_limit_of_zero_pauses() {
        let limits = Limits {
            workers: 0,
            orphans: 0,
            waiting: 0,
        };
        let result = plan(0, limits, &[worker(0, 7, Phase::Idle)], &[demand(0, 7)]);
        assert_eq!(
            (result.start, result.wake, result.leave),
            (vec![], vec![], vec![0])
        );
    }

    #[test]
    fn what_is_not_due_waits_for_its_time() {
        let later = Demand {
            due: 500,
            ..demand(0, 7)
        };
        let result = plan(499, LIMITS, &[], &[later]);
        assert_eq!((result.start, result.next), (vec![], Some(500)));
        assert_eq!(plan(500, LIMITS, &[], &[later]).start, [0]);
    }

    #[test]
    fn databases_take_turns_then_priority_then_waiting() {
        let workers = [worker(0, 1, Phase::Busy)];
        let other = Demand {
            database: 2,
            priority: 900,
            ..demand(0, 1)
        };
        let better = Demand {
            priority: 1,
            ..demand(1, 8)
        };
        let older = Demand {
            order: 0,
            ..demand(2, 9)
        };
        let limits = Limits {
            workers: 4,
            orphans: 0,
            waiting: 0,
        };
        let demands = [demand(3, 7), older, better, other];
        assert_eq!(plan(0, limits, &workers, &demands).start, [0, 1, 2]);
    }

    #[test]
    fn orphans_take_room() {
        let limits = Limits {
            workers: 2,
            orphans: 2,
            waiting: 0,
        };
        assert_eq!(
            plan(0, limits, &[], &[demand(0, 7)]).start,
            [] as [usize; 0]
        );
    }

    prop_compose! {
        fn any_worker()(slot in 0usize..1, role in 0u32..6, database in 1u32..3, phase in 0..3, leaving: bool, stuck in prop::option::of(0i64..3)) -> Worker {
            let phase = [Phase::Starting, Phase::Idle, Phase::Busy][phase as usize];
            Worker { slot, role, database, phase, leaving, stuck_from: stuck }
        }
    }
    prop_compose! {
        fn any_demand()(role in 0u32..6, database in 1u32..3, priority in 0..3, due in 0i64..3, more: bool, order: u64) -> Demand {
            Demand { index: 0, database, role, priority, order, due, more }
        }
    }

    proptest! {
        #[test]
        fn times_at_their_ends_are_times(now in any::<i64>(), dues in prop::collection::vec(any::<i64>(), 0..6)) {
            let demands: Vec<Demand> = dues
                .iter()
                .enumerate()
                .map(|(index, &due)| Demand { due, ..demand(index, index as u32) })
                .collect();
            let result = plan(now, Limits { workers: 8, orphans: 0, waiting: 0 }, &[], &demands);
            let due = demands.iter().filter(|demand| demand.due <= now).count();
            prop_assert_eq!(result.start.len(), due);
            prop_assert_eq!(result.next, dues.iter().copied().filter(|&due| due > now).min());
        }

        #[test]
        fn the_limit_holds_and_room_is_used(
            mut workers in prop::collection::vec(any_worker(), 0..8),
            mut demands in prop::collection::vec(any_demand(), 0..12),
            limit in 0usize..8,
            orphans in 0usize..3,
        ) {
            demands.sort_by_key(|d| (d.database, d.role));
            demands.dedup_by_key(|d| (d.database, d.role));
            workers.iter_mut().enumerate().for_each(|(slot, worker)| worker.slot = slot);
            demands.iter_mut().enumerate().for_each(|(index, demand)| demand.index = index);
            let result = plan(1, Limits { workers: limit, orphans, waiting: 0 }, &workers, &demands);
            let occupied = workers.len() + orphans;
            prop_assert!(result.start.is_empty() || occupied + result.start.len() <= limit);
            // nobody who is ready is left without a worker while there is room
            let unserved = demands.iter().filter(|d| d.due <= 1).filter(|d| {
                !workers.iter().any(|w| !w.leaving && (w.database, w.role) == (d.database, d.role))
            }).count();
            prop_assert!(result.start.len() >= unserved.min(limit.saturating_sub(occupied)));
            // only idle workers are woken or sent away, never both
            for slot in result.wake.iter().chain(&result.leave) {
                prop_assert_eq!(workers[*slot].phase, Phase::Idle);
                prop_assert!(!workers[*slot].leaving);
            }
            prop_assert!(result.wake.iter().all(|slot| !result.leave.contains(slot)));
            prop_assert!(result.room + result.surplus + result.leave.len() <= workers.len() + demands.len() + orphans);
        }
    }
}
