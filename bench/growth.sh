#!/usr/bin/env bash
# The rate of the first FIRST tasks: alone in the table, with MANY open tasks behind them, and after MANY finished ones.
# Key: growth alone|backlog|finished.
. "$(dirname "$0")/lib.sh"
FIRST=${FIRST:-20000} MANY=${MANY:-1000000} GROWTH_WORKERS=${GROWTH_WORKERS:-4}

configure synchronous_commit=off
for _ in $(seq "$REPS"); do
    for what in alone backlog finished; do
        say "growth $what"
        empty_queue
        case $what in
            alone) fill "$FIRST" ;;
            backlog) fill $((FIRST + MANY)) ;;
            finished)
                fill "$FIRST"
                q "INSERT INTO pg_background_tasks
                       (id, sql_statement, started_at, closed_at, state, role_oid, role_name, origin, search_path, attempt)
                   SELECT -n, sql_statement, now(), now(), 'finished', role_oid, role_name, origin, search_path, 1
                   FROM (SELECT * FROM pg_background_tasks LIMIT 1) AS like_this, generate_series(1, $MANY) AS n"
                ;;
        esac
        settle
        drain "$GROWTH_WORKERS" "$FIRST"
        result "growth $what" "$(rate 1 "$FIRST")"
    done
done
