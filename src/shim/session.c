/*
 * DISCARD ALL as a call, less what it must not discard.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "commands/async.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "storage/lock.h"
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
	PortalHashTableDeleteAll();
	SetPGVariable("session_authorization", NIL, false);
	/* DISCARD ALL relies on the above for the role; some versions leave the setting itself behind */
	SetPGVariable("role", NIL, false);
	ResetAllOptions();
	/* in a transaction the default of the role is armed at once */
	pgbq_stop_transaction_timeout();
	DropAllPreparedStatements();
	Async_UnlistenAll();
	LockReleaseAll(USER_LOCKMETHOD, true);
	ResetTempTableNamespace();
	ResetSequenceCaches();
}
