/*
 * Runs SQL text in a background worker as a backend runs what a client sends it.
 *
 * This is a twin of exec_simple_query and of the error recovery of PostgresMain, less all that has to do with a
 * client. SPI will not do: it can run neither VACUUM nor CREATE INDEX CONCURRENTLY, nor a CALL that commits.
 *
 * It must be C: sigsetjmp, and no frame of another language may lie between that and the statements.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "commands/trigger.h"
#include "jit/jit.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/analyze.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/dest.h"
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/ps_status.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "guard.h"
#include "interrupt.h"
#include "statement.h"

/* The timeout of pgbq_run_statements, once it is registered in this process, and whether it has fired. */
static TimeoutId run_timeout = MAX_TIMEOUTS;
static volatile sig_atomic_t run_timed_out = false;

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
 * Starts the clock of statement_timeout unless it runs already, or stops it if the setting has become 0. It does
 * not start by itself in a background worker. Twin of enable_statement_timeout.
 */
static void
start_statement_timeout(void)
{
	bool		wanted = StatementTimeout > 0;

#if PG_VERSION_NUM >= 170000
	/* the shorter transaction_timeout, armed by xact.c, makes it pointless */
	wanted = wanted && (TransactionTimeout <= 0 || StatementTimeout < TransactionTimeout);
#endif

	if (wanted != get_timeout_active(STATEMENT_TIMEOUT))
	{
		if (wanted)
			enable_timeout_after(STATEMENT_TIMEOUT, StatementTimeout);
		else
			disable_timeout(STATEMENT_TIMEOUT, false);
	}
}

/* Stops the clock of statement_timeout. Twin of disable_statement_timeout. */
static void
stop_statement_timeout(void)
{
	if (get_timeout_active(STATEMENT_TIMEOUT))
		disable_timeout(STATEMENT_TIMEOUT, false);
}

/* In a signal handler. As statement_timeout does, it sends this process what pg_cancel_backend would. */
static void
cancel_run(void)
{
	run_timed_out = true;
	kill(MyProcPid, SIGINT);
}

static void
start_run_timeout(int timeout_ms)
{
	run_timed_out = false;
	if (timeout_ms <= 0)
		return;
	if (run_timeout == MAX_TIMEOUTS)
		run_timeout = RegisterTimeout(USER_TIMEOUT, cancel_run);
	enable_timeout_after(run_timeout, timeout_ms);
}

/* Returns how many milliseconds were left, at least 1; 0 if it was not running. */
static int
stop_run_timeout(void)
{
	long		left;

	if (run_timeout == MAX_TIMEOUTS || !get_timeout_active(run_timeout))
		return 0;
	left = (get_timeout_finish_time(run_timeout) - GetCurrentTimestamp()) / 1000;
	disable_timeout(run_timeout, false);
	return (int) Max(left, 1);
}

/* Whether log_statement wants these statements logged. Twin of check_log_statement. */
static bool
log_statement_wants(List *statements)
{
	ListCell   *cell;

	if (log_statement == LOGSTMT_NONE)
		return false;
	if (log_statement == LOGSTMT_ALL)
		return true;

	foreach(cell, statements)
	{
		if (GetCommandLogLevel((Node *) lfirst(cell)) <= log_statement)
			return true;
	}
	return false;
}

/*
 * Raises an error if the statement cannot work without a client.
 *
 * COPY and, up to 13, LISTEN would succeed and do nothing. Transaction control would take the end of the
 * transaction, and with it the time of before_commit, out of our hands.
 */
static void
refuse_if_it_needs_a_client(RawStmt *statement)
{
	Node	   *node = statement->stmt;
	const char *command = GetCommandTagName(CreateCommandTag(node));
	const char *detail;
	const char *hint;

	if (IsA(node, TransactionStmt))
	{
		detail = "The statements of one string are a transaction of their own, which is ended for them.";
		hint = "To commit in between, use a DO block or call a procedure.";
	}
	else if (IsA(node, CopyStmt) && castNode(CopyStmt, node)->filename == NULL)
	{
		bool		from = castNode(CopyStmt, node)->is_from;

		command = from ? "COPY FROM STDIN" : "COPY TO STDOUT";
		detail = from ? "There is no client that could send the data." : "There is no client that could receive the data.";
		hint = "Use a file on the server or a program, or another command such as INSERT.";
	}
	else if (IsA(node, ListenStmt))
	{
		detail = "There is no client that could receive the notifications.";
		hint = "NOTIFY can be used.";
	}
	else
		return;

	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot execute %s within a background process", command),
			 errdetail_internal("%s", detail),
			 errhint("%s", hint)));
}

/*
 * Analyses, plans and executes one statement in the current transaction; its result goes nowhere.
 *
 * The trees are made in CurrentMemoryContext, which must outlive the transaction: the statement may commit it
 * and start another. After it returns a transaction is open in any case.
 */
static void
run_statement(RawStmt *statement, const char *sql, MemoryContext tree_context)
{
	MemoryContext transaction_context;
	bool		snapshot_set = false;
	CommandTag	tag = CreateCommandTag(statement->stmt);
	QueryCompletion completion;
	List	   *queries;
	List	   *plans;
	Portal		portal;
	DestReceiver *receiver;

#if PG_VERSION_NUM >= 140000
	pgstat_report_query_id(0, true);
#endif
#if PG_VERSION_NUM >= 180000
	pgstat_report_plan_id(0, true);
#endif
	set_ps_display(GetCommandTagName(tag));

	start_statement_timeout();
	CHECK_FOR_INTERRUPTS();

	if (analyze_requires_snapshot(statement))
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		snapshot_set = true;
	}

	transaction_context = MemoryContextSwitchTo(tree_context);
#if PG_VERSION_NUM >= 150000
	queries = pg_analyze_and_rewrite_fixedparams(statement, sql, NULL, 0, NULL);
#else
	queries = pg_analyze_and_rewrite(statement, sql, NULL, 0, NULL);
#endif
	plans = pg_plan_queries(queries, sql, CURSOR_OPT_PARALLEL_OK, NULL);

	/*
	 * Execution takes a snapshot of its own, after the tables have been locked. Besides, one that stayed on the
	 * stack would be there still when VACUUM or a procedure commits, which crashes the server.
	 */
	if (snapshot_set)
		PopActiveSnapshot();

	CHECK_FOR_INTERRUPTS();

	/* The unnamed portal, not shown in pg_cursors; all that it is given lives in tree_context. */
	portal = CreatePortal("", true, true);
	portal->visible = false;
	PortalDefineQuery(portal, NULL, sql, tag, plans, NULL);
	PortalStart(portal, NULL, 0, InvalidSnapshot);
	receiver = CreateDestReceiver(DestNone);

	MemoryContextSwitchTo(transaction_context);

#if PG_VERSION_NUM >= 180000
	(void) PortalRun(portal, FETCH_ALL, true, receiver, receiver, &completion);
#else
	(void) PortalRun(portal, FETCH_ALL, true, true, receiver, receiver, &completion);
#endif

	receiver->rDestroy(receiver);
	PortalDrop(portal, false);
}

/*
 * Calls before_commit in the open transaction, or in one more where that must not be, and commits.
 */
static void
finish_transaction(Run *run, bool implicit_block)
{
	int			left_ms;

	/*
	 * Deferred constraints and triggers now, not after before_commit: they may take their time, and what is done there
	 * shall be the last before the commit. As at a commit, no statement_timeout applies to them.
	 */
	stop_statement_timeout();
	AfterTriggerFireDeferred();

	/* What follows is not the statements' own doing: no time limit of theirs applies. */
	left_ms = stop_run_timeout();

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
	if (left_ms > 0)
		enable_timeout_after(run_timeout, left_ms);

	if (implicit_block)
		EndImplicitTransactionBlock();
	CommitTransactionCommand();
	run->committed = true;
	(void) stop_run_timeout();
}

/*
 * Logs the duration if a setting asks for it. Interrupts are held: a cancel request served by ereport would make
 * a failure of what is committed.
 */
static void
log_duration_if_asked(const char *sql, bool was_logged)
{
	char		msec[32];

	HOLD_INTERRUPTS();
	switch (check_log_duration(msec, was_logged))
	{
		case 1:
			ereport(LOG,
					(errmsg("duration: %s ms", msec),
					 errhidestmt(true)));
			break;
		case 2:
			ereport(LOG,
					(errmsg("duration: %s ms  statement: %s", msec, sql),
					 errhidestmt(true)));
			break;
	}
	RESUME_INTERRUPTS();
}

/*
 * The part of pgbq_run_statements that may raise errors. Leaves MessageContext set to a context that the caller
 * has to delete.
 */
static void
run_statements(Run *run)
{
	const char *sql = run->sql;
	bool		save_log_statement_stats = log_statement_stats;
	bool		was_logged = false;
	bool		implicit_block;
	MemoryContext transaction_context;
	List	   *statements;
	ListCell   *cell;

	SetCurrentStatementStartTimestamp();
	debug_query_string = sql;
	pgstat_report_activity(STATE_RUNNING, sql);
	if (save_log_statement_stats)
		ResetUsage();

	/*
	 * What a backend calls MessageContext is where trees live that must survive commits inside a statement.
	 * PostgresMain makes it, so a background worker has none; extensions may rely on it, so we do not hide ours.
	 */
	MessageContext = AllocSetContextCreate(TopMemoryContext, "MessageContext", ALLOCSET_DEFAULT_SIZES);

	StartTransactionCommand();
	start_run_timeout(run->timeout_ms);
	start_statement_timeout();

	transaction_context = MemoryContextSwitchTo(MessageContext);
	statements = pg_parse_query(sql);
	if (log_statement_wants(statements))
	{
		ereport(LOG,
				(errmsg("statement: %s", sql),
				 errhidestmt(true)));
		was_logged = true;
	}
	MemoryContextSwitchTo(transaction_context);

	/* All of them before the first one runs, so that what was refused has had no effect at all. */
	foreach(cell, statements)
		refuse_if_it_needs_a_client(lfirst_node(RawStmt, cell));

	/* As for psql -c, several statements are one transaction, and those that cannot be in a block see one. */
	implicit_block = list_length(statements) > 1;
	if (implicit_block)
		BeginImplicitTransactionBlock();

	foreach(cell, statements)
	{
		RawStmt    *statement = lfirst_node(RawStmt, cell);
		MemoryContext tree_context;

		if (lnext(statements, cell) == NULL)
		{
			run_statement(statement, sql, MessageContext);
			break;
		}

		/* Not the last one: its trees are freed at once, and the next statement has the full statement_timeout. */
		tree_context = AllocSetContextCreate(MessageContext, "per-parsetree message context",
											 ALLOCSET_DEFAULT_SIZES);
		run_statement(statement, sql, tree_context);
		CommandCounterIncrement();
		stop_statement_timeout();
		MemoryContextDelete(tree_context);
	}

	finish_transaction(run, implicit_block);

	log_duration_if_asked(sql, was_logged);
	if (save_log_statement_stats)
		ShowUsage("QUERY STATISTICS");
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
 * After timeout_ms (0: never) what runs is cancelled, and the error says so.
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
	MemoryContext outer_context = CurrentMemoryContext;
	MemoryContext outer_message_context = MessageContext;
	const char *outer_query_string = debug_query_string;
	ErrorContextCallback *outer_context_stack = error_context_stack;
	sigjmp_buf *outer_exception_stack = PG_exception_stack;
	sigjmp_buf	here;
	volatile bool recovering = false;
	ErrorData  *volatile error = NULL;

	Assert(!IsTransactionOrTransactionBlock());
	Assert(InterruptHoldoffCount == 0 && QueryCancelHoldoffCount == 0);

	/* The signal mask is saved too: the jump may come out of a signal handler. */
	if (sigsetjmp(here, 1) == 0)
	{
		PG_exception_stack = &here;
		run_statements(&run);
	}
	else
	{
		/*
		 * errfinish has zeroed the counts, but an error caught and thrown again inside may have been counted up
		 * since. The abort releases all that they stood for, so that they start from nothing.
		 */
		InterruptHoldoffCount = 0;
		QueryCancelHoldoffCount = 0;
		HOLD_INTERRUPTS();
		error_context_stack = outer_context_stack;

		/* An error inside the recovery: trying again could only loop, and going on would be in an unknown state. */
		if (recovering)
		{
			EmitErrorReport();
			proc_exit(1);
		}
		recovering = true;

		/* Timeouts first: one that fires now would set the cancel flag again. */
		disable_all_timeouts(false);
		QueryCancelPending = false;

		if (run_timed_out && geterrcode() == ERRCODE_QUERY_CANCELED)
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

		/* As PostgresMain. Slots too: a logical one whose decoding failed stays acquired otherwise. */
		debug_query_string = NULL;
		AbortOutOfAnyTransaction();
		PortalErrorCleanup();
		/* advisory locks of the session have survived that: if they fill the server's table, the error could not be noted */
		LockReleaseAll(USER_LOCKMETHOD, true);
		if (MyReplicationSlot != NULL)
			ReplicationSlotRelease();
#if PG_VERSION_NUM >= 170000
		ReplicationSlotCleanup(false);
#else
		ReplicationSlotCleanup();
#endif
		jit_reset_after_error();
	}

	PG_exception_stack = outer_exception_stack;
	error_context_stack = outer_context_stack;
	debug_query_string = outer_query_string;

	MemoryContextSwitchTo(outer_context);
	if (MessageContext != outer_message_context)
	{
		MemoryContextDelete(MessageContext);
		MessageContext = outer_message_context;
	}

	pgstat_report_activity(STATE_IDLE, NULL);
	set_ps_display("idle");

	QueryCancelPending = false;
	InterruptHoldoffCount = 0;
	return error;
}
