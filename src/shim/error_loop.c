/*
 * The outermost error recovery of a background worker, as PostgresMain has it for backends: once, for all workers.
 *
 * It must be C: sigsetjmp.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "executor/spi.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#if PG_VERSION_NUM >= 180000
#include "storage/aio_subsys.h"
#endif
#include "storage/bufmgr.h"
#include "storage/condition_variable.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/procsignal.h"
#include "storage/smgr.h"
#include "tcop/tcopprot.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/ps_status.h"
#include "utils/resowner.h"
#include "utils/timeout.h"
#if PG_VERSION_NUM >= 140000
#include "utils/wait_event.h"
#endif

#include "error_loop.h"
#include "text.h"

/*
 * The signal handlers of a backend, so that CHECK_FOR_INTERRUPTS means in a worker what it means there, and
 * signals unblocked. pqsignal is called from C because it is a macro in 18.
 */
void
pgbq_worker_signals(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGINT, StatementCancelHandler);
	pqsignal(SIGTERM, die);
	pqsignal(SIGUSR1, procsignal_sigusr1_handler);
	BackgroundWorkerUnblockSignals();
}

/* What pg_stat_activity and ps show of this process. set_ps_display is called from C because it is an inline function in 16. */
void
pgbq_report_activity(BackendState state, const char *text)
{
	set_ps_display(state == STATE_IDLE ? "idle" : text);
	pgstat_report_activity(state, text);
}

/*
 * Gives back what is held outside transactions, too, where the abort of one does not look: the second half of
 * PostgresMain's recovery (tcop/postgres.c), and of AutoVacLauncherMain's (postmaster/autovacuum.c), which has no
 * database. All of it is harmless where there is nothing to give back.
 */
static void
release_resources(void)
{
	LWLockReleaseAll();
	ConditionVariableCancelSleep();
	pgstat_report_wait_end();
#if PG_VERSION_NUM >= 180000
	pgaio_error_cleanup();
#endif
	UnlockBuffers();
	if (AuxProcessResourceOwner != NULL)
		ReleaseAuxProcessResources(false);
	AtEOXact_Buffers(false);
	AtEOXact_SMgr();
	AtEOXact_Files(false);
	AtEOXact_HashTables(false);

	/* a process without a database has no portals, nor the table of them */
	if (OidIsValid(MyDatabaseId))
		PortalErrorCleanup();
	pgbq_end_recovery();
}

/*
 * Calls step(arg) until it answers false. An ERROR that leaves step is logged, its transaction aborted, and
 * after recovered(arg), the worker's own part of the recovery, the loop goes on; both are called with
 * CurrentMemoryContext = context, which is reset after each step and after an error. A step must leave with it, too:
 * asserted, as is the state of all memory contexts, where PostgresMain does so.
 *
 * It is the same for workers with a database, with the shared catalogs only, and without a session.
 *
 * It returns with the caller's exception stack and memory context.
 *
 * An error inside the recovery itself ends the process: trying again could only loop.
 */
void
pgbq_error_loop(MemoryContext context, PgbqStep step, PgbqRecovered recovered, void *arg)
{
	sigjmp_buf *outer = PG_exception_stack;
	MemoryContext outer_context = CurrentMemoryContext;
	sigjmp_buf	here;
	volatile bool recovering = false;
	bool		again;

	if (sigsetjmp(here, 1) != 0)
	{
		/* not in a PG_TRY block: reset the stacks by hand, as PostgresMain does */
		error_context_stack = NULL;
		HOLD_INTERRUPTS();
		if (recovering)
		{
			EmitErrorReport();
			proc_exit(1);
		}
		recovering = true;

		/* timeouts first: one that fires now would cancel what comes next */
		disable_all_timeouts(false);
		QueryCancelPending = false;

		EmitErrorReport();
		debug_query_string = NULL;
		AbortOutOfAnyTransaction();
		release_resources();

		MemoryContextSwitchTo(context);
		FlushErrorState();
		MemoryContextReset(context);
		pgbq_report_activity(STATE_IDLE, NULL);
		RESUME_INTERRUPTS();

		recovered(arg);
		recovering = false;
	}

	PG_exception_stack = &here;
	do
	{
		/* where the assertion below is compiled out, the next step begins in its context all the same */
		MemoryContextSwitchTo(context);
		MemoryContextReset(context);
		again = step(arg);
		Assert(CurrentMemoryContext == context);
#ifdef MEMORY_CONTEXT_CHECKING
		MemoryContextCheck(TopMemoryContext);
#endif
	} while (again);
	PG_exception_stack = outer;
	MemoryContextSwitchTo(outer_context);
}
