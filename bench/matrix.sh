#!/usr/bin/env bash
# The rate of FIRST tasks at so many finished rows and workers, and of as many tasks of so many roles. Not among the parts that are run by
# default: it takes some minutes, and 5 GB of disk. Key: matrix finished ROWS WORKERS, matrix roles ROLES WORKERS.
. "$(dirname "$0")/lib.sh"
FIRST=${FIRST:-20000} FINISHED=${FINISHED:-10 1000 100000 10000000} ROLES=${ROLES:-1 10 100 1000} MATRIX_WORKERS=${MATRIX_WORKERS:-1 4 16}

# fill_roles ROLES: FIRST tasks in all, each role's one after the other
fill_roles() {
    q "DO \$\$
       BEGIN
           FOR n IN 1 .. $1 LOOP
               EXECUTE format('SET LOCAL ROLE bench_%s', n);
               PERFORM pg_background_queue_enqueue('$write') FROM generate_series(1, $FIRST / $1);
           END LOOP;
       END \$\$"
}

configure synchronous_commit=off
for rows in $FINISHED; do
    empty_queue
    q "INSERT INTO pg_background_tasks
           (id, sql_statement, joined_at, started_at, closed_at, state, role_oid, role_name, origin, search_path, attempt)
       SELECT -n, '$write', now() - interval '1 day', now() - interval '1 day', now() - interval '1 day', 'finished', 10, current_user,
           pg_background_queue_origin(), '\"\$user\", public', 1
       FROM generate_series(1, $rows) AS n"
    for _ in $(seq "$REPS"); do
        for workers in $MATRIX_WORKERS; do
            say "matrix finished $rows $workers"
            fill "$FIRST"
            settle
            drain "$workers" "$FIRST"
            result "matrix finished $rows $workers" "$(rate 1 "$FIRST")"
        done
    done
done

q "GRANT INSERT ON sink TO PUBLIC"
for roles in $ROLES; do
    q "DO \$\$
       BEGIN
           FOR n IN 1 .. $roles LOOP
               IF to_regrole(format('bench_%s', n)) IS NULL THEN EXECUTE format('CREATE ROLE bench_%s LOGIN', n); END IF;
           END LOOP;
       END \$\$"
    for _ in $(seq "$REPS"); do
        for workers in $MATRIX_WORKERS; do
            say "matrix roles $roles $workers"
            empty_queue
            fill_roles "$roles"
            settle
            began=$(q "SELECT clock_timestamp()")
            configure "$limit=$workers"
            until [ "$(q "SELECT count(*) FROM pg_background_tasks WHERE state IN ('pending', 'running', 'retrying')")" = 0 ]; do sleep 0.4; done
            configure "$limit=0"
            result "matrix roles $roles $workers" "$(rate 1 $((FIRST / roles * roles)))"
        done
    done
done
