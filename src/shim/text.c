/*
 * Executes SQL text in the current transaction, as a backend does with what a client sends it: the part of
 * exec_simple_query that statement.c (a text in transactions of its own) and batch.c (several texts in one) have in common.
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

#include "text.h"

/* The timeout of a text as a whole, once it is registered in this process, and whether it has fired. */
static TimeoutId run_timeout = MAX_TIMEOUTS;
static volatile sig_atomic_t run_timed_out = false;

/* While that clock runs: after how many milliseconds it fires again if its cancel was caught; else 0. */
static int	run_timeout_again = 0;

/* Of the text that runs: its statements are in the log, and log_statement_stats was on when it began. */
static bool text_was_logged;
static bool text_wants_stats;

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

/*
 * The text has caught the cancel: its handler has its time, too, but not for ever. (This is the place because the clock cannot be set
 * anew by the signal handler on all versions.)
 */
static void
subtransaction_ended(SubXactEvent event, SubTransactionId subxact, SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB && run_timeout_again > 0 && run_timed_out &&
		!get_timeout_active(run_timeout))
		enable_timeout_after(run_timeout, run_timeout_again);
}

/*
 * Has what runs cancelled after so many milliseconds; 0 is never. If that is caught, again and again after so many more.
 */
void
pgbq_start_text_timeout(int timeout_ms, int again_ms)
{
	run_timed_out = false;
	run_timeout_again = 0;
	if (timeout_ms <= 0)
		return;
	if (run_timeout == MAX_TIMEOUTS)
	{
		run_timeout = RegisterTimeout(USER_TIMEOUT, cancel_run);
		RegisterSubXactCallback(subtransaction_ended, NULL);
	}
	enable_timeout_after(run_timeout, timeout_ms);
	run_timeout_again = again_ms;
}

/* Stops it; returns how many milliseconds were left, at least 1; 0 if it was not running. */
int
pgbq_stop_text_timeout(void)
{
	long		left;

	run_timeout_again = 0;
	if (run_timeout == MAX_TIMEOUTS || !get_timeout_active(run_timeout))
		return 0;
	left = (get_timeout_finish_time(run_timeout) - GetCurrentTimestamp()) / 1000;
	disable_timeout(run_timeout, false);
	return (int) Max(left, 1);
}

/* Whether it was that timeout that cancelled the text. */
bool
pgbq_text_timed_out(void)
{
	return run_timed_out;
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
 * Keeps what belongs to the caller. What a backend calls MessageContext is where trees live that must survive commits inside
 * a statement. PostgresMain makes it, so a background worker has none; extensions may rely on it, so we do not hide ours.
 */
void
pgbq_enter_text(PgbqCaller *caller)
{
	Assert(!IsTransactionOrTransactionBlock());
	Assert(InterruptHoldoffCount == 0 && QueryCancelHoldoffCount == 0);

	caller->context = CurrentMemoryContext;
	caller->message_context = MessageContext;
	caller->query_string = debug_query_string;
	caller->error_context = error_context_stack;
	caller->exception_stack = PG_exception_stack;
	MessageContext = NULL;
}

/* Gives it back, when no transaction is open. A cancel request that came too late is forgotten: it must not hit what runs next. */
void
pgbq_leave_text(const PgbqCaller *caller)
{
	PG_exception_stack = caller->exception_stack;
	error_context_stack = caller->error_context;
	debug_query_string = caller->query_string;

	MemoryContextSwitchTo(caller->context);
	if (MessageContext != NULL)
		MemoryContextDelete(MessageContext);
	MessageContext = caller->message_context;

	pgstat_report_activity(STATE_IDLE, NULL);
	set_ps_display("idle");

	QueryCancelPending = false;
	InterruptHoldoffCount = 0;
}

/*
 * After a jump to the caller's sigsetjmp, before anything else. errfinish has zeroed the counts, but an error caught and thrown
 * again inside may have been counted up since; the abort that follows releases all that they stood for, so that they start from
 * nothing. Timeouts are stopped: one that fires now would set the cancel flag again.
 */
void
pgbq_begin_recovery(const PgbqCaller *caller)
{
	InterruptHoldoffCount = 0;
	QueryCancelHoldoffCount = 0;
	HOLD_INTERRUPTS();
	error_context_stack = caller->error_context;
	run_timeout_again = 0;
	disable_all_timeouts(false);
	QueryCancelPending = false;
}

/* After the abort, as PostgresMain. Slots too: a logical one whose decoding failed stays acquired otherwise. */
void
pgbq_end_recovery(void)
{
	if (MyReplicationSlot != NULL)
		ReplicationSlotRelease();
#if PG_VERSION_NUM >= 170000
	ReplicationSlotCleanup(false);
#else
	ReplicationSlotCleanup();
#endif
	jit_reset_after_error();
}

/* Tells the rest of the server that a text begins, before its transaction does. */
void
pgbq_begin_text(const char *sql)
{
	SetCurrentStatementStartTimestamp();
	debug_query_string = sql;
	pgstat_report_activity(STATE_RUNNING, sql);
	text_was_logged = false;
	text_wants_stats = log_statement_stats;
	if (text_wants_stats)
		ResetUsage();

	if (MessageContext == NULL)
		MessageContext = AllocSetContextCreate(TopMemoryContext, "MessageContext", ALLOCSET_DEFAULT_SIZES);
	else
		MemoryContextReset(MessageContext);
}

/*
 * Parses and executes a text in the current transaction, with its deferred constraints and triggers at the end: they may take
 * their time, and what follows shall be the last before the commit. As at a commit, no statement_timeout applies to them.
 * True if its statements are an implicit transaction block. In a subtransaction they need none: what cannot be in a block
 * sees that.
 */
bool
pgbq_execute_text(const char *sql)
{
	bool		implicit_block;
	MemoryContext transaction_context;
	List	   *statements;
	ListCell   *cell;

	start_statement_timeout();

	transaction_context = MemoryContextSwitchTo(MessageContext);
	statements = pg_parse_query(sql);
	if (log_statement_wants(statements))
	{
		ereport(LOG,
				(errmsg("statement: %s", sql),
				 errhidestmt(true)));
		text_was_logged = true;
	}
	MemoryContextSwitchTo(transaction_context);

	/* All of them before the first one runs, so that what was refused has had no effect at all. */
	foreach(cell, statements)
		refuse_if_it_needs_a_client(lfirst_node(RawStmt, cell));

	/* As for psql -c, several statements are one transaction, and those that cannot be in a block see one. */
	implicit_block = list_length(statements) > 1 && !IsSubTransaction();
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

	stop_statement_timeout();
	AfterTriggerFireDeferred();
	return implicit_block;
}

/* Logs the duration if a setting asks for it. */
static void
log_duration_if_asked(const char *sql)
{
	char		msec[32];

	switch (check_log_duration(msec, text_was_logged))
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
}

/*
 * Reports the duration and the like, if a setting asks for it, once the text is done. Interrupts are held: a cancel request served by
 * ereport would make a failure of what is done.
 */
void
pgbq_end_text(const char *sql)
{
	HOLD_INTERRUPTS();
	log_duration_if_asked(sql);
	if (text_wants_stats)
		ShowUsage("QUERY STATISTICS");
	RESUME_INTERRUPTS();
}
