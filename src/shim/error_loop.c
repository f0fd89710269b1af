/*
 * The outermost error recovery of a background worker, as PostgresMain has it for backends: once, for all workers.
 *
 * It must be C: sigsetjmp.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "executor/spi.h"
#include "jit/jit.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/bufmgr.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/timeout.h"
#if PG_VERSION_NUM >= 180000
#include "storage/aio_subsys.h"
#endif

#include "error_loop.h"

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

/*
 * Calls step(arg) until it answers false. An ERROR that leaves step is logged, its transaction aborted, and
 * after recovered(arg), the worker's own part of the recovery, the loop goes on; both are called with
 * CurrentMemoryContext = context, which is reset after an error and must hold nothing that outlives a step.
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
		/* an abort does these only if there was a transaction */
		LWLockReleaseAll();
		ConditionVariableCancelSleep();
		pgstat_report_wait_end();
#if PG_VERSION_NUM >= 180000
		pgaio_error_cleanup();
#endif
		UnlockBuffers();
		PortalErrorCleanup();
		jit_reset_after_error();

		MemoryContextSwitchTo(context);
		FlushErrorState();
		MemoryContextReset(context);
		pgstat_report_activity(STATE_IDLE, NULL);
		RESUME_INTERRUPTS();

		recovered(arg);
		recovering = false;
	}

	PG_exception_stack = &here;
	do
	{
		MemoryContextSwitchTo(context);
		MemoryContextReset(context);
	} while (step(arg));
	PG_exception_stack = outer;
	MemoryContextSwitchTo(outer_context);
}
