#!/usr/bin/env bash
# Enqueueing with the queue stopped, against INSERT into `lean`: many in one transaction, and one a transaction with 1, 4
# and 8 clients. Key: enqueue bulk|CLIENTS lean|ours.
. "$(dirname "$0")/lib.sh"
BULK=${BULK:-100000} SECONDS_EACH=${SECONDS_EACH:-3}

# the values that enqueue writes, so that the rows are of the same length
into="INSERT INTO lean (sql_statement, role_oid, role_name, origin, search_path)"
values="'SELECT 1', 10, 'postgres', '$(q "SELECT pg_background_queue_origin()")', '\"\$user\", public'"
enqueue="SELECT pg_background_queue_enqueue('SELECT 1')"

# timed SQL: rows a second of a statement that makes BULK of them, its commit included, by the server's clock
timed() {
    psql -XqAt -v ON_ERROR_STOP=1 << SQL
SELECT clock_timestamp() AS began \gset
$1 \g /dev/null
SELECT round($BULK / extract(epoch FROM clock_timestamp() - :'began'));
SQL
}

fresh() {
    empty_queue
    q "TRUNCATE lean"
    q "CHECKPOINT"
}

configure synchronous_commit=off
for _ in $(seq "$REPS"); do
    say "enqueue bulk"
    fresh
    result "enqueue bulk lean" "$(timed "$into SELECT $values FROM generate_series(1, $BULK)")"
    fresh
    result "enqueue bulk ours" "$(timed "SELECT count(pg_background_queue_enqueue('SELECT 1')) FROM generate_series(1, $BULK)")"
    for clients in 1 4 8; do
        say "enqueue $clients"
        fresh
        result "enqueue $clients lean" "$(tps $clients "$into VALUES ($values)" -T "$SECONDS_EACH")"
        fresh
        result "enqueue $clients ours" "$(tps $clients "$enqueue" -T "$SECONDS_EACH")"
    done
done
