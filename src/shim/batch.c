/*
 * Runs several texts in one transaction, a subtransaction each: the commit, and what it costs, is shared.
 *
 * It must be C, as statement.c.
 */
#include "postgres.h"

#include "access/xact.h"
#include "libpq/be-fsstubs.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "tcop/tcopprot.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "batch.h"
#include "guard.h"
#include "hooks.h"
#include "text.h"

/* How long a text that has caught the cancel, when the time is over, may go on until the next one, ms. */
#define CAUGHT_CANCEL_MS 10

typedef enum Stage
{
	NOT_BEGUN,
	BETWEEN_TEXTS,
	IN_TEXT,					/* its subtransaction is open */
	ROLLING_BACK,				/* that */
	HAS_FAILED,					/* it is rolled back, and the error is at hand */
	COMMITTING,
	ABORTING,
	OVER
} Stage;

/* How a text ended that raised no error. */
typedef enum Outcome
{
	GO_ON,
	BE_LAST,
	BE_ALONE
} Outcome;

/*
 * Whether the error may come of the company that the text was in: commands that want a transaction to themselves, locks and memory that
 * the others hold, a cancel because the batch takes too long; and if others have run before it, keys made of the time of the transaction.
 */
static bool
must_be_alone(int sqlstate, bool is_first)
{
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_FEATURE_NOT_SUPPORTED:
		case ERRCODE_INVALID_TRANSACTION_STATE:
		case ERRCODE_INVALID_TRANSACTION_TERMINATION:
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_PROGRAM_LIMIT_EXCEEDED:
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_INTERNAL_ERROR:
			return true;
		case ERRCODE_OPERATOR_INTERVENTION:
			return sqlstate != ERRCODE_QUERY_CANCELED || pgbq_text_timed_out();
		case ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION:
			return !is_first;
		default:
			return false;
	}
}

/* Runs a text in a subtransaction, and releases that. */
static Outcome
run_text(const PgbqText *text, int index, TimestampTz until, PgbqBatchHook hook, void *arg)
{
	int			left_ms;
	bool		goes_on;

	BeginInternalSubTransaction(NULL);
	pgbq_begin_text(text->sql);
	if (!hook(arg, PGBQ_BATCH_BEGIN, index, NULL))
	{
		RollbackAndReleaseCurrentSubTransaction();
		return BE_ALONE;
	}

	left_ms = (int) Max((until - GetCurrentTimestamp()) / 1000, 1);
	pgbq_start_text_timeout(text->timeout_ms > 0 ? Min(text->timeout_ms, left_ms) : left_ms, CAUGHT_CANCEL_MS);
	(void) pgbq_execute_text(text->sql);
	(void) pgbq_stop_text_timeout();

	/*
	 * It may have caught the cancel, and done something else than it would have done alone.
	 */
	if (pgbq_text_timed_out() || pgbq_transaction_wanted())
	{
		QueryCancelPending = false;
		RollbackAndReleaseCurrentSubTransaction();
		return BE_ALONE;
	}

	CommandCounterIncrement();
	Assert(!ActiveSnapshotSet());
	goes_on = hook(arg, PGBQ_BATCH_DONE, index, NULL);

	/* Large objects that it has open are closed: a commit would leave them to the next text. */
	AtEOSubXact_LargeObject(false, GetCurrentSubTransactionId(), InvalidSubTransactionId);
	ReleaseCurrentSubTransaction();
	return goes_on ? GO_ON : BE_LAST;
}

/* Ends the subtransactions that are open, after an error. */
static void
give_up_text(void)
{
	debug_query_string = NULL;
	while (GetCurrentTransactionNestLevel() > 1)
		RollbackAndReleaseCurrentSubTransaction();
	pgbq_end_recovery();
}

/*
 * Runs texts as pgbq_run_statements would, one after the other, in one READ COMMITTED transaction. Returns how many of them, from
 * the first on, are settled: they have done what they do, or have failed, and that is committed, with what the hook has done about
 * it. If the next one is to be run by pgbq_run_statements, *alone says so: it cannot be in a subtransaction, or the commit has failed
 * and all are to run alone. The hook may raise errors; whatever comes, this raises none.
 *
 * All of it takes most_ms at most: what runs then is rolled back, and must be alone. Nobody waits longer for those that are done. It may
 * also end early without need.
 *
 * Deferred constraints are checked at the end of each. AfterTriggerFireDeferred says that it is for the end of a transaction: it
 * empties the list of events, and a list that something else points to must not be emptied. What a subtransaction has saved of it
 * at its beginning is an empty list: each text leaves it so, and a failed one's is put back to that.
 *
 * For the rest see pgbq_run_statements.
 */
int
pgbq_run_batch(const PgbqText *texts, int count, int most_ms, MemoryContext error_context,
			   PgbqBatchHook hook, void *arg, bool *alone)
{
	TimestampTz until = GetCurrentTimestamp() + (TimestampTz) most_ms * 1000;
	PgbqCaller	caller;
	sigjmp_buf	here;
	volatile Stage stage = NOT_BEGUN;
	volatile int done = 0;
	volatile bool last = false;
	ErrorData  *volatile error = NULL;

	*alone = false;
	pgbq_enter_text(&caller);

	/* Every error comes back to here, also one in the recovery from another. */
	if (sigsetjmp(here, 1) != 0)
	{
		pgbq_begin_recovery(&caller);
		if (stage == ABORTING)
		{
			EmitErrorReport();
			proc_exit(1);
		}
		if (stage == IN_TEXT)
		{
			stage = ROLLING_BACK;
			*alone = must_be_alone(geterrcode(), done == 0);
			if (*alone)
				FlushErrorState();	/* it will be told by whoever runs it alone */
			else
			{
				EmitErrorReport();
				error = pgbq_take_error(error_context);
			}
			/* A failed copy has let interrupts in again. */
			InterruptHoldoffCount = 1;
			give_up_text();
			last = *alone;
			stage = *alone ? BETWEEN_TEXTS : HAS_FAILED;
		}
		else
		{
			/* Each of them will tell its own. */
			stage = ABORTING;
			FlushErrorState();
			debug_query_string = NULL;
			AbortOutOfAnyTransaction();
			PortalErrorCleanup();
			LockReleaseAll(USER_LOCKMETHOD, true);
			pgbq_end_recovery();
			done = 0;
			*alone = true;
			stage = OVER;
		}
		InterruptHoldoffCount = 0;
	}
	PG_exception_stack = &here;

	if (stage == NOT_BEGUN)
	{
		pgbq_begin_text(texts[0].sql);
		StartTransactionCommand();
		stage = BETWEEN_TEXTS;
	}
	if (stage == HAS_FAILED)
	{
		ErrorData  *failure = error;

		error = NULL;
		last = !hook(arg, PGBQ_BATCH_FAILED, done, failure);
		done++;
		stage = BETWEEN_TEXTS;
	}
	while (stage == BETWEEN_TEXTS && !last && done < count && GetCurrentTimestamp() < until)
	{
		Outcome		outcome;

		stage = IN_TEXT;
		outcome = run_text(&texts[done], done, until, hook, arg);
		stage = BETWEEN_TEXTS;
		*alone = outcome == BE_ALONE;
		last = outcome != GO_ON;
		if (!*alone)
		{
			pgbq_end_text(texts[done].sql);
			done++;
		}
	}
	if (stage == BETWEEN_TEXTS)
	{
		stage = COMMITTING;
		(void) hook(arg, PGBQ_BATCH_COMMIT, done, NULL);
		CommitTransactionCommand();
		stage = OVER;
	}

	if (error != NULL)
		pgbq_free_error(error);
	pgbq_leave_text(&caller);
	return done;
}
