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

/// The longest wait before a retry, in seconds: a day.
pub const MOST_DELAY_SECONDS: i32 = 24 * 60 * 60;

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

/// An attempt failed: `retry_count` retries were used before, `max_retries` are allowed.
pub fn after_failure(retry_count: i32, max_retries: i32) -> AfterFailure {
    if retry_count < max_retries {
        let retry_count = retry_count.saturating_add(1);
        AfterFailure::Retry {
            retry_count,
            delay_seconds: delay_seconds(retry_count),
        }
    } else {
        AfterFailure::Fail
    }
}

/// 2, 4, 8 … seconds before the first, second, third retry, at most [`MOST_DELAY_SECONDS`].
fn delay_seconds(retry: i32) -> i32 {
    u32::try_from(retry)
        .ok()
        .and_then(|exponent| 2_i32.checked_pow(exponent))
        .map_or(MOST_DELAY_SECONDS, |seconds| {
            seconds.min(MOST_DELAY_SECONDS)
        })
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
        assert_eq!(after_failure(0, 0), AfterFailure::Fail);
    }

    #[test]
    fn delays_double_from_two_seconds() {
        let delays: Vec<_> = (0..4).map(|used| after_failure(used, 4)).collect();
        let expected: Vec<_> = [(1, 2), (2, 4), (3, 8), (4, 16)]
            .map(|(retry_count, delay_seconds)| AfterFailure::Retry {
                retry_count,
                delay_seconds,
            })
            .into();
        assert_eq!(delays, expected);
        assert_eq!(after_failure(4, 4), AfterFailure::Fail);
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
        fn delays_are_bounded_and_never_shrink(used in 0..i32::MAX - 1) {
            let delay = delay_seconds(used);
            prop_assert!((1..=MOST_DELAY_SECONDS).contains(&delay));
            prop_assert!(delay_seconds(used + 1) >= delay);
        }
    }
}
