/*
 * Interrupts, waiting, and the full abort.
 *
 * It must be C: CHECK_FOR_INTERRUPTS is a macro, and the flags are volatile sig_atomic_t.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/pmsignal.h"
#include "storage/sinval.h"
#include "tcop/pquery.h"
#include "utils/guc.h"
#include "utils/portal.h"
#include "utils/timeout.h"

#include "interrupt.h"

/*
 * What a main loop owes the rest of the server in each round, besides waiting: to notice that the postmaster is gone (a
 * process that is never idle would keep the next one from starting), to serve interrupts, and not to hold up the
 * queue of invalidation messages.
 */
void
pgbq_serve(void)
{
	if (!PostmasterIsAlive())
		proc_exit(1);
	CHECK_FOR_INTERRUPTS();
	if (catchupInterruptPending)
		ProcessCatchupInterrupt();
}

/* For code that waits somewhere below a main loop. */
void
pgbq_check(void)
{
	CHECK_FOR_INTERRUPTS();
}

/* Answers once per SIGHUP. */
bool
pgbq_config_reload_wanted(void)
{
	bool		wanted = ConfigReloadPending;

	ConfigReloadPending = false;
	return wanted;
}

/*
 * Waits for this process's latch, at most so many milliseconds (for ever if negative), and resets it. Exits
 * if the postmaster dies. True if the latch was set.
 */
int
pgbq_wait(long timeout_ms, uint32 wait_event)
{
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;
	int			happened;

	if (timeout_ms >= 0)
		events |= WL_TIMEOUT;
	happened = WaitLatch(MyLatch, events, timeout_ms, wait_event);
	if (happened & WL_LATCH_SET)
		ResetLatch(MyLatch);
	return (happened & WL_LATCH_SET) != 0;
}

/* As pgbq_wait, for callers to whom the postmaster's death is an answer as good as another. */
PgbqWoken
pgbq_wait_or_death(long timeout_ms, uint32 wait_event)
{
	int			events = WL_LATCH_SET | WL_POSTMASTER_DEATH;
	int			happened;

	if (timeout_ms >= 0)
		events |= WL_TIMEOUT;
	happened = WaitLatch(MyLatch, events, timeout_ms, wait_event);
	if (happened & WL_LATCH_SET)
		ResetLatch(MyLatch);
	if (happened & WL_POSTMASTER_DEATH)
		return PGBQ_POSTMASTER_DIED;
	return (happened & WL_LATCH_SET) ? PGBQ_LATCH_SET : PGBQ_TIMED_OUT;
}

/* A cancel that came for work that is over must not hit the next: PostgresMain ignores it while it reads a command. */
void
pgbq_forget_cancel(void)
{
	QueryCancelPending = false;
}

/*
 * Leaves every transaction, the failed one above all; harmless in none. The holdoff counts are zeroed first: the abort
 * releases the locks that they stood for, and would otherwise leave them at 1 for ever.
 */
void
pgbq_abort(void)
{
	InterruptHoldoffCount = 0;
	QueryCancelHoldoffCount = 0;
	AbortOutOfAnyTransaction();
}
