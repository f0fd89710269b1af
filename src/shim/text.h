/* See text.c. For the shim's own verbs that run SQL text: statement.c and batch.c. */
#ifndef PGBQ_TEXT_H
#define PGBQ_TEXT_H

/* What a verb changes and gives back. */
typedef struct PgbqCaller
{
	MemoryContext context;
	MemoryContext message_context;
	const char *query_string;
	ErrorContextCallback *error_context;
	sigjmp_buf *exception_stack;
} PgbqCaller;

extern void pgbq_enter_text(PgbqCaller *caller);
extern void pgbq_leave_text(const PgbqCaller *caller);
extern void pgbq_begin_text(const char *sql);
extern bool pgbq_execute_text(const char *sql);
extern void pgbq_end_text(const char *sql);

extern void pgbq_start_text_timeout(int timeout_ms, int again_ms);
extern int	pgbq_stop_text_timeout(void);
extern bool pgbq_text_timed_out(void);

extern void pgbq_begin_recovery(const PgbqCaller *caller);
extern void pgbq_end_recovery(void);

#endif
