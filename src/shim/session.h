/* See session.c. */
#ifndef PGBQ_SESSION_H
#define PGBQ_SESSION_H

#include "postmaster/bgworker.h"

extern void pgbq_reset_session(void);
extern void pgbq_reset_settings(void);
extern bool pgbq_holds_advisory_locks(void);
extern bool pgbq_holds_temp_tablespaces(void);
extern bool pgbq_may_share_transactions(void);

/* So that a worker can connect as a NOLOGIN role, too, where the server can do that; pgbq_may_connect tells. */
#if PG_VERSION_NUM >= 170000
static const uint32 PGBQ_CONNECT_FLAGS = BGWORKER_BYPASS_ROLELOGINCHECK;
#else
static const uint32 PGBQ_CONNECT_FLAGS = 0;
#endif

#endif
