#!/usr/bin/env bash
# Whether the rate falls while dead rows pile up, also if an old snapshot keeps them all from being removed.
# Key: decay none|held WORKERS first|last|all, and for the plot: curve none|held WORKERS TASK.
. "$(dirname "$0")/lib.sh"
DECAY_TASKS=${DECAY_TASKS:-100000}

configure synchronous_commit=off
for _ in $(seq "$REPS"); do
    for workers in 1 4; do
        for snapshot in none held; do
            say "decay $snapshot $workers"
            empty_queue
            fill "$DECAY_TASKS"
            settle
            [ $snapshot = none ] || hold_snapshot
            drain $workers "$DECAY_TASKS"
            [ $snapshot = none ] || release_snapshot
            key="decay $snapshot $workers"
            # not the very first, while the workers are still being started
            result "$key first" "$(rate 1001 11000)"
            result "$key last" "$(rate -10000 0)"
            result "$key all" "$(rate 1 "$DECAY_TASKS")"
            for ((n = 5001; n <= DECAY_TASKS; n += 5000)); do
                result "curve $snapshot $workers $((n + 4999))" "$(rate $n $((n + 4999)))"
            done
        done
    done
done
