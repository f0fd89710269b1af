/* See error_loop.c. */
#ifndef PGBQ_ERROR_LOOP_H
#define PGBQ_ERROR_LOOP_H

typedef bool (*PgbqStep) (void *arg);
typedef void (*PgbqRecovered) (void *arg);

extern void pgbq_worker_signals(void);
extern void pgbq_report_activity(BackendState state, const char *text);
extern void pgbq_error_loop(MemoryContext context, PgbqStep step, PgbqRecovered recovered, void *arg);

#endif
