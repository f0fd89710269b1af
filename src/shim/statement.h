/* See statement.c. */
#ifndef PGBQ_STATEMENT_H
#define PGBQ_STATEMENT_H

extern ErrorData *pgbq_run_statements(const char *sql, MemoryContext error_context, int timeout_ms,
									  void (*before_commit) (void *arg), void *arg);

#endif
