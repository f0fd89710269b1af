#!/usr/bin/env bash
# How fast a queue that was filled before is drained, against pgbench running the same SQL with as many clients.
# And what the queue writes to the WAL for a task. Key: drain CASE direct|ours, wal KIND direct|ours.
. "$(dirname "$0")/lib.sh"

# Durable commits are the disk's flushes: no more of them than fit into some 5 seconds.
durable_tasks() { awk -v n="$1" -v us="${FLUSH_MICROSECONDS:-1000}" 'BEGIN { t = int(n * 5e6 / us); print t < 20000 ? t : 20000 }'; }

# ours NAME WORKERS TASKS SQL [ARGUMENTS [SETTING=VALUE...]]: ARGUMENTS are further ones of enqueue, the settings are in force
# for this run.
ours() {
    local name=$1 workers=$2 tasks=$3 sql=$4 arguments=${5:-} setting
    shift $(($# < 5 ? $# : 5))
    empty_queue
    fill "$tasks" "$sql" "$arguments"
    settle
    [ $# = 0 ] || configure "$@"
    drain "$workers" "$tasks"
    result "drain $name ours" "$(rate 1 "$tasks")"
    for setting; do configure "${setting%%=*}="; done
}

# compare NAME SYNCHRONOUS_COMMIT WORKERS TASKS SQL: direct and ours
compare() {
    say "drain $1"
    configure "synchronous_commit=$2"
    result "drain $1 direct" "$(direct "$3" "$5" "$4")"
    ours "$1" "$3" "$4" "$5"
}

# wal KIND: the bytes of a write task, after a checkpoint before the tasks were enqueued or after that: then each page
# of theirs is written to the WAL once more.
wal() {
    local from
    say "wal $1"
    from=$(q "SELECT pg_current_wal_insert_lsn()")
    direct 1 "$write" 20000 > /dev/null
    result "wal $1 direct" "$(q "SELECT round((pg_current_wal_insert_lsn() - '$from') / 20000)")"
    empty_queue
    q "CHECKPOINT"
    fill 20000
    [ "$1" = plain ] || q "CHECKPOINT"
    from=$(q "SELECT pg_current_wal_insert_lsn()")
    drain 1 20000
    result "wal $1 ours" "$(q "SELECT round((pg_current_wal_insert_lsn() - '$from') / 20000)")"
}

batches='pg_background_queue.topic_config={"flood": {"commit_batch": 10}}'
for _ in $(seq "$REPS"); do
    for workers in 1 4; do
        compare "trivial off $workers" off $workers "$TASKS" "SELECT 1"
        compare "write off $workers" off $workers "$TASKS" "$write"
        say "drain group off $workers"
        ours "group off $workers" $workers "$TASKS" "$write" "topic => 'flood'" "$batches"
    done
    for workers in 1 4 16; do
        compare "write on $workers" on $workers "$(durable_tasks $workers)" "$write"
    done
    for workers in 1 4; do
        say "drain group and relaxed on $workers"
        ours "group on $workers" $workers $((4 * $(durable_tasks $workers))) "$write" "topic => 'flood'" "$batches"
        ours "relaxed on $workers" $workers 20000 "$write" '' pg_background_queue.durability=relaxed
    done
    configure synchronous_commit=off
    wal plain
    wal images
done
