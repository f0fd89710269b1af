/*
 * Interrupts, waiting, the start of a transaction and the full abort.
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
#include "storage/proc.h"
#include "storage/sinval.h"
#include "tcop/pquery.h"
#include "utils/guc.h"
#include "utils/portal.h"
#include "utils/timeout.h"
#if PG_VERSION_NUM >= 140000
#include "utils/wait_event.h"
#else
#include "pgstat.h"
#endif

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

/* Whether the process is to exit or to read the configuration. */
bool
pgbq_wants_turn(void)
{
	return ConfigReloadPending || ProcDiePending;
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

/* A wait event of our own, the same number in every process; before 17 the one that all extensions share. */
uint32
pgbq_wait_event(const char *name)
{
#if PG_VERSION_NUM >= 170000
	return WaitEventExtensionNew(name);
#else
	return PG_WAIT_EXTENSION;
#endif
}

/* Waits for this process's latch, and resets it, or for this event; at most so many milliseconds (for ever if negative). */
static int
wait_for_latch(int or_event, long timeout_ms, uint32 wait_event)
{
	int			events = WL_LATCH_SET | or_event;
	int			happened;

	if (timeout_ms >= 0)
		events |= WL_TIMEOUT;
	happened = WaitLatch(MyLatch, events, timeout_ms, wait_event);
	if (happened & WL_LATCH_SET)
		ResetLatch(MyLatch);
	return happened;
}

/* True if the latch was set. Exits if the postmaster dies. */
int
pgbq_wait(long timeout_ms, uint32 wait_event)
{
	return (wait_for_latch(WL_EXIT_ON_PM_DEATH, timeout_ms, wait_event) & WL_LATCH_SET) != 0;
}

/* As pgbq_wait, for callers to whom the postmaster's death is an answer as good as another. */
PgbqWoken
pgbq_wait_or_death(long timeout_ms, uint32 wait_event)
{
	int			happened = wait_for_latch(WL_POSTMASTER_DEATH, timeout_ms, wait_event);

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
 * StartTransactionCommand for bookkeeping: transaction_timeout (17+), which a role or a task has set for its own sake and
 * which ends the process, is not armed.
 */
void
pgbq_start_transaction(void)
{
#if PG_VERSION_NUM >= 170000
	int			save_timeout = TransactionTimeout;

	/* the variable, not the setting, so that no GUC machinery can fail */
	TransactionTimeout = 0;
	PG_TRY();
	{
		StartTransactionCommand();
	}
	PG_FINALLY();
	{
		TransactionTimeout = save_timeout;
	}
	PG_END_TRY();
#else
	StartTransactionCommand();
#endif
}

/* What follows in this transaction is not the doing of who set transaction_timeout. */
void
pgbq_stop_transaction_timeout(void)
{
#if PG_VERSION_NUM >= 170000
	if (get_timeout_active(TRANSACTION_TIMEOUT))
		disable_timeout(TRANSACTION_TIMEOUT, false);
#endif
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
