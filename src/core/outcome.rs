//! What becomes of a task whose attempt ended.
//!
//! ```text
//! pending ──claim──▶ running ──commit──▶ finished
//!    ▲                 │ ├──error, retries left──▶ retrying ──claim──▶ running
//!    │                 │ └──error, none left─────▶ failed
//!    └──interruption───┘        (too many of them: failed)
//! ```

/// Unclean interruptions (crashes of the server while the task ran) after which a task is given up.
pub const MOST_INTERRUPTIONS: i32 = 5;

/// What to do with a task whose attempt failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AfterFailure {
    /// Run it again after so many seconds; it then has used so many retries.
    Retry {
        /// Retries used, this one included.
        retry_count: i32,
        /// Seconds to wait.
        delay_seconds: i32,
    },
    /// It has failed.
    Fail,
}

/// An attempt failed: `retry_count` retries were used before, `max_retries` are allowed, with `most_seconds` before each at most.
pub fn after_failure(retry_count: i32, max_retries: i32, most_seconds: i32) -> AfterFailure {
    if retry_count < max_retries {
        let retry_count = retry_count.saturating_add(1);
        AfterFailure::Retry {
            retry_count,
            delay_seconds: delay_seconds(retry_count, most_seconds),
        }
    } else {
        AfterFailure::Fail
    }
}

/// 2, 4, 8 … seconds before the first, second, third retry, at most `most`.
fn delay_seconds(retry: i32, most: i32) -> i32 {
    u32::try_from(retry)
        .ok()
        .and_then(|exponent| 2_i32.checked_pow(exponent))
        .map_or(most, |seconds| seconds.min(most))
}

/// Attempts beyond its retries that a task may have because of conflicts over the queue's own row.
const MOST_CONFLICTS: i32 = 20;

/// Whether a task whose attempt failed through no fault of its own may run again at once.
pub fn may_run_again_at_once(attempt: i32, retry_count: i32) -> bool {
    attempt.saturating_sub(retry_count) <= MOST_CONFLICTS
}

/// What to do with a task that was running when its server went down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AfterInterruption {
    /// Run it again; so many interruptions are held against it.
    Reopen {
        /// Unclean interruptions so far.
        interruptions: i32,
    },
    /// It has taken the server down too often.
    GiveUp {
        /// Unclean interruptions so far.
        interruptions: i32,
    },
}

/// The server went down while the task ran: an orderly shutdown is not held against it.
pub fn after_interruption(interruptions: i32, clean: bool) -> AfterInterruption {
    if clean {
        return AfterInterruption::Reopen { interruptions };
    }
    let interruptions = interruptions.saturating_add(1);
    if interruptions >= MOST_INTERRUPTIONS {
        AfterInterruption::GiveUp { interruptions }
    } else {
        AfterInterruption::Reopen { interruptions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_retries_a_failure_is_final() {
        assert_eq!(after_failure(0, 0, 60), AfterFailure::Fail);
    }

    #[test]
    fn delays_double_from_two_seconds() {
        let delays: Vec<_> = (0..4).map(|used| after_failure(used, 4, 60)).collect();
        let expected: Vec<_> = [(1, 2), (2, 4), (3, 8), (4, 16)]
            .map(|(retry_count, delay_seconds)| AfterFailure::Retry {
                retry_count,
                delay_seconds,
            })
            .into();
        assert_eq!(delays, expected);
        assert_eq!(after_failure(4, 4, 60), AfterFailure::Fail);
    }

    #[test]
    fn conflicts_are_forgiven_for_a_while() {
        assert!(may_run_again_at_once(1, 0));
        assert!(may_run_again_at_once(20, 0));
        assert!(!may_run_again_at_once(21, 0));
        assert!(may_run_again_at_once(21, 1));
    }

    #[test]
    fn shutdowns_never_count_and_crashes_do() {
        let mut interruptions = 0;
        for _ in 0..100 {
            assert_eq!(
                after_interruption(interruptions, true),
                AfterInterruption::Reopen { interruptions }
            );
        }
        for n in 1..MOST_INTERRUPTIONS {
            let outcome = after_interruption(interruptions, false);
            assert_eq!(outcome, AfterInterruption::Reopen { interruptions: n });
            interruptions = n;
        }
        assert_eq!(
            after_interruption(interruptions, false),
            AfterInterruption::GiveUp {
                interruptions: MOST_INTERRUPTIONS
            }
        );
    }

    proptest! {
        #[test]
        fn a_failing_task_ends_after_as_many_retries_as_it_may_have(start in any::<i32>(), max in any::<i32>(), most in 1..i32::MAX) {
            let mut used = start;
            // from anywhere to the limit, not all the way
            for _ in 0..100 {
                match after_failure(used, max, most) {
                    AfterFailure::Retry { retry_count, delay_seconds } => {
                        prop_assert!(used < max && retry_count == used + 1);
                        prop_assert!((1..=most).contains(&delay_seconds));
                        used = retry_count;
                    }
                    AfterFailure::Fail => {
                        prop_assert!(used >= max);
                        break;
                    }
                }
            }
        }

        #[test]
        fn no_counter_lets_a_task_crash_the_server_for_ever(start in any::<i32>()) {
            let mut interruptions = start.max(0);
            let ends = (0..MOST_INTERRUPTIONS).any(|_| match after_interruption(interruptions, false) {
                AfterInterruption::Reopen { interruptions: now } => {
                    interruptions = now;
                    false
                }
                AfterInterruption::GiveUp { .. } => true,
            });
            prop_assert!(ends);
        }

        #[test]
        fn conflicts_are_forgiven_only_so_often(attempt in any::<i32>(), retries in any::<i32>()) {
            // no overflow, and an end to it
            prop_assert!(!may_run_again_at_once(attempt, retries) || i64::from(attempt) - i64::from(retries) <= i64::from(MOST_CONFLICTS));
        }

        #[test]
        fn delays_are_bounded_and_never_shrink(used in 0..i32::MAX - 1, most in 1..i32::MAX) {
            let delay = delay_seconds(used, most);
            prop_assert!((1..=most).contains(&delay));
            prop_assert!(delay_seconds(used + 1, most) >= delay);
        }
    }
}
