/*
 * DISCARD ALL as a call, less what it must not discard.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "commands/async.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "storage/fd.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/portal.h"

#include "interrupt.h"
#include "session.h"

/*
 * Brings the session back to what it was after the login, as DiscardAll (commands/discard.c) does, in the
 * caller's transaction. Without ResetPlanCache, which would throw away the plans of the worker itself and of every
 * function that the next piece of work calls again: plans hold no state of a session.
 */
void
pgbq_reset_session(void)
{
	pgbq_reset_settings();
	DropAllPreparedStatements();
	Async_UnlistenAll();
	LockReleaseAll(USER_LOCKMETHOD, true);
	ResetTempTableNamespace();
}

/*
 * Of that, what a session can have that has run no utility command and holds no lock of its own. It can be done in the middle
 * of a transaction, and without one: to reset a setting is to take its old value back, as a reload of the configuration may do at any time.
 *
 * One of them leaves something behind: temp_tablespaces, which sets for the rest of the transaction where temporary files go, to
 * nowhere in particular if the old value is that of the configuration. So there has to be an end of a transaction, now or later: see
 * pgbq_holds_temp_tablespaces.
 */
void
pgbq_reset_settings(void)
{
	PortalHashTableDeleteAll();
	SetConfigOption("session_authorization", NULL, PGC_SUSET, PGC_S_SESSION);
	/* DISCARD ALL relies on the above for the role; some versions leave the setting itself behind */
	SetConfigOption("role", NULL, PGC_SUSET, PGC_S_SESSION);
	ResetAllOptions();
	/* in a transaction the default of the role is armed at once */
	pgbq_stop_transaction_timeout();
	ResetSequenceCaches();
}

/* Whether it is settled until the end of the transaction where temporary files go. */
bool
pgbq_holds_temp_tablespaces(void)
{
	return TempTablespacesAreSet();
}

/* Whether this process holds advisory locks, of the session or of the transaction. */
bool
pgbq_holds_advisory_locks(void)
{
	bool		found = false;

	for (int i = 0; i < NUM_LOCK_PARTITIONS && !found; i++)
	{
		LWLock	   *partition = LockHashPartitionLockByIndex(i);

		/* the list is our own, but what is in it can be moved by others */
		LWLockAcquire(partition, LW_SHARED);
#if PG_VERSION_NUM >= 160000
		{
			dlist_iter	iter;

			dlist_foreach(iter, &MyProc->myProcLocks[i])
				found |= LOCK_LOCKMETHOD(*dlist_container(PROCLOCK, procLink, iter.cur)->tag.myLock) == USER_LOCKMETHOD;
		}
#else
		{
			SHM_QUEUE  *list = &MyProc->myProcLocks[i];
			PROCLOCK   *held;

			for (held = (PROCLOCK *) SHMQueueNext(list, list, offsetof(PROCLOCK, procLink));
				 held != NULL;
				 held = (PROCLOCK *) SHMQueueNext(list, &held->procLink, offsetof(PROCLOCK, procLink)))
				found |= LOCK_LOCKMETHOD(*held->tag.myLock) == USER_LOCKMETHOD;
		}
#endif
		LWLockRelease(partition);
	}
	return found;
}

/* Whether tasks of this session may share a transaction, as its settings are by default. */
bool
pgbq_may_share_transactions(void)
{
#if PG_VERSION_NUM >= 170000
	if (TransactionTimeout > 0)
		return false;
#endif
	return DefaultXactIsoLevel <= XACT_READ_COMMITTED;
}
