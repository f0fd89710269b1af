/* See hooks.c. */
#ifndef PGBQ_HOOKS_H
#define PGBQ_HOOKS_H

typedef enum PgbqUtility
{
	PGBQ_SESSION_SETTINGS,		/* ALTER ROLE … SET, ALTER DATABASE … SET */
	PGBQ_COMMIT_PREPARED
} PgbqUtility;

typedef struct PgbqUtilityWatch
{
	/* after such a command, in its transaction; whose settings it changed, where InvalidOid is everybody's */
	void		(*done) (PgbqUtility what, Oid role, Oid database);
	/* before and after a command that wants no sessions in a database, also if it fails */
	void		(*want_empty) (Oid database);
	void		(*no_longer) (Oid database);
} PgbqUtilityWatch;

extern bool pgbq_utility_ran(void);
extern bool pgbq_transaction_wanted(void);
extern void pgbq_forget_utility(void);
extern void pgbq_watch_utility(const PgbqUtilityWatch *watch);

#endif
