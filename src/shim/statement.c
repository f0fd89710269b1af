/*
 * Runs SQL text in a background worker as a backend runs what a client sends it.
 *
 * This is a twin of exec_simple_query and of the error recovery of PostgresMain, less all that has to do with a
 * client. SPI will not do: it can run neither VACUUM nor CREATE INDEX CONCURRENTLY, nor a CALL that commits.
 *
 * It must be C: sigsetjmp, and no frame of another language may lie between that and the statements.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "tcop/tcopprot.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"

#include "guard.h"
#include "interrupt.h"
#include "statement.h"
#include "text.h"

/* How long a text that has caught the cancel of its timeout may go on until the next one, ms. */
#define CAUGHT_CANCEL_MS 1000

/* What run_statements is to do, and how far it came. */
typedef struct Run
{
	const char *sql;
	void		(*before_commit) (void *arg);
	void	   *arg;
	int			timeout_ms;		/* for all of it; 0 is none */
	volatile bool committed;	/* the last transaction is; nothing can undo it */
} Run;

/*
 * Calls before_commit in the open transaction, or in one more where that must not be, and commits.
 */
static void
finish_transaction(Run *run, bool implicit_block)
{
	/* What follows is not the statements' own doing: no time limit of theirs applies. */
	int			left_ms = pgbq_stop_text_timeout();

#ifdef XACT_FLAGS_NEEDIMMEDIATECOMMIT

	/*
	 * CREATE DATABASE and its like have changed more than tables and must commit now, before anything can fail.
	 * The statement has then succeeded, so a cancel request that did not catch it is void: it must not hit the
	 * transaction that only records the success.
	 */
	if (MyXactFlags & XACT_FLAGS_NEEDIMMEDIATECOMMIT)
	{
		CommitTransactionCommand();
		QueryCancelPending = false;
		StartTransactionCommand();
	}
#endif

	pgbq_stop_transaction_timeout();
	CommandCounterIncrement();
	Assert(!ActiveSnapshotSet());
	if (run->before_commit != NULL)
		run->before_commit(run->arg);

	/*
	 * Cursors WITH HOLD run at the commit, and could run for ever. (Of statement_timeout they are
	 * free in any session.) If the clock fires when all is done already, its cancel request is forgotten.
	 */
	pgbq_start_text_timeout(left_ms, CAUGHT_CANCEL_MS);

	if (implicit_block)
		EndImplicitTransactionBlock();
	CommitTransactionCommand();
	run->committed = true;
	(void) pgbq_stop_text_timeout();
}

/* The part of pgbq_run_statements that may raise errors. */
static void
run_statements(Run *run)
{
	pgbq_begin_text(run->sql);
	StartTransactionCommand();
	pgbq_start_text_timeout(run->timeout_ms, CAUGHT_CANCEL_MS);
	finish_transaction(run, pgbq_execute_text(run->sql));
	pgbq_end_text(run->sql);
}

/*
 * Runs SQL text as psql -c would, in transactions of its own. Returns NULL once everything is committed, or the
 * error, after the transaction has been aborted completely; in either case the process is in no transaction then,
 * interrupts are not held, and CurrentMemoryContext is what it was. Whatever comes, it raises no error.
 *
 * before_commit(arg), if not NULL, is called in the last transaction, just before that commits, without an active
 * snapshot; an error raised there aborts the transaction as one of a statement would. Commands that must commit
 * alone (CREATE DATABASE, ALTER SYSTEM) are an exception: before_commit has the next transaction to itself. If
 * there is no statement in the text it is called all the same.
 *
 * After timeout_ms (0: never) what runs is cancelled, and the error says so. A text that catches that is cancelled again each second.
 *
 * The error has been logged as log_min_error_statement and the like want it. It lives in error_context, which must be none that a transaction owns, and is freed by
 * pgbq_free_error. A pending termination request is left pending; a cancel request that came too late is
 * forgotten, it must not hit what runs next.
 *
 * The caller is in no transaction, holds no lock and no interrupts, and sql is in the database's encoding.
 */
ErrorData *
pgbq_run_statements(const char *sql, MemoryContext error_context, int timeout_ms,
					void (*before_commit) (void *arg), void *arg)
{
	Run			run = {
		.sql = sql, .before_commit = before_commit, .arg = arg, .timeout_ms = timeout_ms, .committed = false
	};
	PgbqCaller	caller;
	sigjmp_buf	here;
	volatile bool recovering = false;
	ErrorData  *volatile error = NULL;

	pgbq_enter_text(&caller);

	/* The signal mask is saved too: the jump may come out of a signal handler. */
	if (sigsetjmp(here, 1) == 0)
	{
		PG_exception_stack = &here;
		run_statements(&run);
	}
	else
	{
		pgbq_begin_recovery(&caller);

		/* An error inside the recovery: trying again could only loop, and going on would be in an unknown state. */
		if (recovering)
		{
			EmitErrorReport();
			proc_exit(1);
		}
		recovering = true;

		if (pgbq_text_timed_out() && geterrcode() == ERRCODE_QUERY_CANCELED)
			errmsg("canceling statement due to the timeout of %d ms for all of it", timeout_ms);

		/* Logged as any session's error is, with the statement */
		EmitErrorReport();

		/*
		 * An error after the commit (no memory to log the duration) has undone nothing, and to report it would
		 * tell the caller otherwise.
		 */
		if (run.committed)
			FlushErrorState();
		else
			error = pgbq_take_error(error_context);

		/* A failed copy has let interrupts in again. */
		InterruptHoldoffCount = 1;

		debug_query_string = NULL;
		AbortOutOfAnyTransaction();
		PortalErrorCleanup();
		/* advisory locks of the session have survived that: if they fill the server's table, the error could not be noted */
		LockReleaseAll(USER_LOCKMETHOD, true);
		pgbq_end_recovery();
	}

	pgbq_leave_text(&caller);
	return error;
}
