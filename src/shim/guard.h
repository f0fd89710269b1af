/* See guard.c. */
#ifndef PGBQ_GUARD_H
#define PGBQ_GUARD_H

typedef void (*PgbqBody) (void *arg);

extern ErrorData *pgbq_guard(PgbqBody body, void *arg);
extern ErrorData *pgbq_take_error(MemoryContext context);
extern void pgbq_free_error(ErrorData *error);
extern ErrorData *pgbq_out_of_memory(void);
#if PG_VERSION_NUM >= 180000
pg_noreturn extern void pgbq_throw(ErrorData *error, bool has_context);
#else
extern void pgbq_throw(ErrorData *error, bool has_context) pg_attribute_noreturn();
#endif
extern void pgbq_report(int elevel, int sqlstate, const char *message, const char *detail, const char *hint);

#endif
