#!/usr/bin/env bash
# What topics, limits and priorities cost, and tasks that are enqueued meanwhile: the same tasks with and without.
# Key: topics none|limits|many|priorities|meanwhile.
. "$(dirname "$0")/lib.sh"
TOPICS_WORKERS=${TOPICS_WORKERS:-4}

# ten topics with limits that are in force but keep nobody waiting
rules=
for n in 0 1 2 3 4 5 6 7 8 9; do
    rules+="${rules:+, }\"t$n\": {\"max_parallel_running_tasks_count\": $TOPICS_WORKERS, \"retry_count\": 2, \"timeout_in_sec\": 60}"
done

configure synchronous_commit=off
for _ in $(seq "$REPS"); do
    for what in none limits many priorities meanwhile; do
        say "topics $what"
        empty_queue
        case $what in
            none | meanwhile) fill "$TASKS" ;;
            limits)
                configure "pg_background_queue.topic_config={$rules}"
                fill "$TASKS" "$write" "topic => 't' || n % 10"
                ;;
            many) fill "$TASKS" "$write" "topic => 'many' || n % 1000" ;;
            priorities) fill "$TASKS" "$write" "priority => n % 5" ;;
        esac
        settle
        if [ $what = meanwhile ]; then
            # a thousand a second, behind the others
            pgbench -n -c 1 -R 1000 -T "$MOST_SECONDS" -f <(echo "SELECT pg_background_queue_enqueue('$write')") > /dev/null 2>&1 &
            meanwhile=$!
            sleep 1
        fi
        drain "$TOPICS_WORKERS" "$TASKS"
        if [ $what = meanwhile ]; then
            kill "$meanwhile"
            wait "$meanwhile" || true
        fi
        result "topics $what" "$(rate 1 "$TASKS")"
        configure pg_background_queue.topic_config=
    done
done
