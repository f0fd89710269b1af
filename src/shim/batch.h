/* See batch.c. */
#ifndef PGBQ_BATCH_H
#define PGBQ_BATCH_H

typedef struct PgbqText
{
	const char *sql;
	int			timeout_ms;		/* 0 is none */
} PgbqText;

/* What the caller is asked at each step of a batch. */
typedef enum PgbqBatchStep
{
	PGBQ_BATCH_BEGIN,			/* before a text, in its subtransaction; false: it must run alone */
	PGBQ_BATCH_DONE,			/* after it, in its subtransaction; false: it is the last one */
	PGBQ_BATCH_FAILED,			/* it has failed and is rolled back, with the error, which is the caller's; false: it is the last one */
	PGBQ_BATCH_COMMIT			/* before the commit */
} PgbqBatchStep;

typedef bool (*PgbqBatchHook) (void *arg, PgbqBatchStep step, int index, ErrorData *error);

extern int	pgbq_run_batch(const PgbqText *texts, int count, int most_ms, MemoryContext error_context,
						   PgbqBatchHook hook, void *arg, bool *alone);

#endif
