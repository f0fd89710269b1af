# shellcheck shell=bash
# What the parts of the benchmark share; sourced by them. They run inside scripts/with-cluster, one after the other, and
# print one line a measurement: key, tab, value. Keys that occur several times are repetitions.
set -euo pipefail

REPS=${REPS:-3}                 # repetitions; all that is compared is run in turn within each
TASKS=${TASKS:-40000}           # tasks of a run
MOST_SECONDS=${MOST_SECONDS:-30} # a run that takes longer is cut off, and counts with what it has done

write='INSERT INTO sink VALUES (1)'
limit=pg_background_queue.max_parallel_running_tasks_count

q() { psql -XqAt -v ON_ERROR_STOP=1 -c "$1"; }
result() { printf '%s\t%s\n' "$1" "$2"; }
say() { printf '%(%T)T  %s\n' -1 "$*" >&2; }

# configure NAME=VALUE...: settings of the server; an empty value is the default again
configure() {
    local setting commands=()
    for setting; do
        if [ -n "${setting#*=}" ]; then
            commands+=(-c "ALTER SYSTEM SET ${setting%%=*} = '${setting#*=}'")
        else
            commands+=(-c "ALTER SYSTEM RESET ${setting%%=*}")
        fi
    done
    psql -XqAt -v ON_ERROR_STOP=1 "${commands[@]}" -c "SELECT pg_reload_conf()" > /dev/null
    sleep 0.3 # until all processes have it
}

# Stops the queue, ends its workers, so that each run begins with new ones, and empties it.
empty_queue() {
    local i
    configure $limit=0
    for i in $(seq 50); do
        [ "$(q "SELECT pg_background_queue_active_workers_count()")" != 0 ] || break
        [ "$i" -lt 10 ] || q "SELECT pg_terminate_backend(pid) FROM pg_background_queue_workers" > /dev/null
        sleep 0.2
    done
    q "TRUNCATE pg_background_tasks"
    q "TRUNCATE sink"
}

# fill COUNT [SQL] [MORE]: enqueues COUNT tasks in one transaction; MORE are further arguments, in which n is the task's number
fill() { q "SELECT count(pg_background_queue_enqueue('${2:-$write}'${3:+, $3})) FROM generate_series(1, $1) AS n" > /dev/null; }

# What fills leave to be done later is done before the measuring: hint bits, dirty pages.
settle() {
    q "VACUUM (ANALYZE) pg_background_tasks"
    q "CHECKPOINT"
}

# drain WORKERS COUNT: lets the queue run until the first COUNT tasks are done, and stops it again. Sets $began.
# Asks seldom, by primary key, and in sessions of their own, so that no snapshot stays open.
drain() {
    local last end done=''
    last=$(q "SELECT min(id) + $2 - 1 FROM pg_background_tasks WHERE state = 'pending'")
    began=$(q "SELECT clock_timestamp()")
    end=$((SECONDS + MOST_SECONDS))
    configure "$limit=$1"
    until [ "$done" = t ] || [ $SECONDS -ge $end ]; do
        sleep 0.4
        done=$(q "SELECT state IN ('finished', 'failed') FROM pg_background_tasks WHERE id = $last")
    done
    [ "$done" = t ] || say "cut off after $MOST_SECONDS s"
    sleep 0.4 # another worker may have an older task
    configure $limit=0
}

# rate FIRST LAST: tasks a second of the last drain, from its FIRST to its LAST task in the order in which they ended;
# from the start of the first task if FIRST is 1. A negative FIRST counts from the end.
rate() {
    q "WITH done AS (
           SELECT started_at, closed_at, row_number() OVER (ORDER BY closed_at) AS n, count(*) OVER () AS all_of_them
           FROM pg_background_tasks WHERE state = 'finished' AND started_at > '$began'
       ), part AS (
           SELECT * FROM done
           WHERE CASE WHEN $1 < 0 THEN n >= all_of_them + $1 ELSE n BETWEEN $1 - 1 AND $2 END
       )
       SELECT round((count(*) - ($1 <> 1)::int)
                    / extract(epoch FROM max(closed_at) - CASE WHEN $1 = 1 THEN min(started_at) ELSE min(closed_at) END))
       FROM part"
}

# tps CLIENTS SQL LENGTH...: what pgbench reaches with it; LENGTH is -t N or -T SECONDS
tps() {
    local clients=$1 sql=$2
    shift 2
    pgbench -n -M simple -c "$clients" -j $((clients < 2 ? 1 : 2)) "$@" -f <(echo "$sql") 2> /dev/null |
        awk '/^tps/ { tps = $3 } END { printf "%.0f", tps }'
}

# direct CLIENTS SQL TASKS: the same tasks as plain statements of as many sessions
direct() {
    q "TRUNCATE sink"
    q "CHECKPOINT"
    tps "$1" "$2" -t $(($3 / $1))
}

# An old snapshot, as a long report or a pg_dump holds it, in a session of its own.
hold_snapshot() {
    PGAPPNAME=old_snapshot psql -Xq -c "BEGIN ISOLATION LEVEL REPEATABLE READ" -c "SELECT FROM sink" -c "SELECT pg_sleep(3600)" \
        > /dev/null 2>&1 &
    until [ "$(q "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'old_snapshot' AND query ~ 'pg_sleep'")" = 1 ]; do
        sleep 0.2
    done
}
release_snapshot() {
    q "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'old_snapshot'" > /dev/null
    wait || true
}
