#!/usr/bin/env bash
# From the commit of a task to its running, in microseconds: on a worker that waits for tasks of its role, and if there is
# none yet. The floor is a backend asleep on an advisory lock, from its unlocking until the INSERT of the same string runs.
# Key: latency lock|idle|new p50|p99, and to the first statement of the task: latency begun p50|p99.
. "$(dirname "$0")/lib.sh"
SAMPLES=${SAMPLES:-300} NEW_SAMPLES=${NEW_SAMPLES:-20}

clear_samples() { q "TRUNCATE sent, seen"; }

# percentiles NAME COLUMN
percentiles() {
    local p
    for p in 50 99; do
        result "latency $1 p$p" "$(q "SELECT round(percentile_cont(0.$p) WITHIN GROUP
            (ORDER BY extract(epoch FROM seen.$2 - sent.at) * 1e6)) FROM sent JOIN seen USING (n)")"
    done
}

configure synchronous_commit=off pg_background_queue.worker_idle_timeout=2s
psql -XqAt <<< "SELECT format('CREATE ROLE new_%s LOGIN', n) FROM generate_series(1, $NEW_SAMPLES) AS n \\gexec"
for _ in $(seq "$REPS"); do
    say "latency lock"
    clear_samples
    q "CALL send_unlocks($SAMPLES, 0.03)" &
    sleep 0.5
    for ((n = 1; n <= SAMPLES; n++)); do
        echo "BEGIN\\; SELECT pg_advisory_xact_lock(4711, $n)\\; INSERT INTO seen VALUES ($n, clock_timestamp())\\; COMMIT;"
    done | psql -XqAt > /dev/null
    wait
    percentiles lock at

    say "latency idle"
    empty_queue
    configure $limit=4
    fill 1
    sleep 1
    clear_samples
    q "CALL send_tasks($SAMPLES, 0.03, '')"
    sleep 1
    percentiles idle at
    percentiles begun begun

    say "latency new"
    empty_queue
    configure $limit=24
    clear_samples
    q "CALL send_tasks($NEW_SAMPLES, 0.3, 'new_')"
    sleep 1
    percentiles new at
done
configure pg_background_queue.worker_idle_timeout=
