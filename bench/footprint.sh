#!/usr/bin/env bash
# Memory of a worker over MEMORY_TASKS tasks, what the table and its indexes take up then, and whether anything wakes up
# when there is nothing to do. Key: memory fresh|first|most (bytes), size RELATION (bytes a task), idle switches.
#
# Memory is that which a process has for itself: pages of shared buffers that it has touched are no news.
. "$(dirname "$0")/lib.sh"
MEMORY_TASKS=${MEMORY_TASKS:-1000000} IDLE_SECONDS=${IDLE_SECONDS:-60}

private_memory() { awk '/^RssAnon/ { print $2 * 1024 }' "/proc/$1/status" 2> /dev/null || true; }
worker() { q "SELECT pid FROM pg_background_queue_workers LIMIT 1"; }

say "memory"
configure synchronous_commit=off
empty_queue
result "memory fresh" "$(psql -XqAt << SQL
$write;
SELECT pg_backend_pid() AS pid \gset
\setenv BACKEND :pid
\! awk '/^RssAnon/ { print \$2 * 1024 }' /proc/\$BACKEND/status
SQL
)"
configure $limit=1
fill 1000
sleep 2
result "memory first" "$(private_memory "$(worker)")"
fill "$MEMORY_TASKS"
# The worker changes from time to time: all that were seen count.
last=$(q "SELECT max(id) FROM pg_background_tasks")
most=0 sampled=0
until [ "$(q "SELECT state = 'finished' FROM pg_background_tasks WHERE id = $last")" = t ]; do
    memory=$(private_memory "$(worker)")
    if [ "${memory:-0}" -gt "$most" ]; then most=$memory; fi
    sampled=$((sampled + 1))
    [ $sampled -lt 600 ] || break
    sleep 1
done
result "memory most" "$most"

say "size"
tasks=$(q "SELECT count(*) FROM pg_background_tasks")
result "size tasks" "$tasks"
q "SELECT 'size ' || relname || E'\t' || round(pg_relation_size(oid) / $tasks.0)
   FROM pg_class WHERE relname LIKE 'pg\\_background\\_tasks%' AND relkind IN ('r', 'i') ORDER BY relname"

say "idle, for $IDLE_SECONDS s"
ours=
switches() { for pid in $ours; do cat "/proc/$pid/status"; done | awk '/ctxt_switches/ { n += $2 } END { print n }'; }
sleep 15 # worker_idle_timeout and more: the last worker leaves
ours=$(q "SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'pg_background_queue%'")
result "idle processes" "$(wc -w <<< "$ours")"
before=$(switches)
sleep "$IDLE_SECONDS"
result "idle switches" $(($(switches) - before))
