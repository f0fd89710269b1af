/* See interrupt.c. */
#ifndef PGBQ_INTERRUPT_H
#define PGBQ_INTERRUPT_H

typedef enum PgbqWoken
{
	PGBQ_LATCH_SET,
	PGBQ_TIMED_OUT,
	PGBQ_POSTMASTER_DIED
} PgbqWoken;

extern void pgbq_serve(void);
extern void pgbq_check(void);
extern bool pgbq_config_reload_wanted(void);
extern bool pgbq_wants_turn(void);
extern uint32 pgbq_wait_event(const char *name);
extern int	pgbq_wait(long timeout_ms, uint32 wait_event);
extern PgbqWoken pgbq_wait_or_death(long timeout_ms, uint32 wait_event);
extern void pgbq_forget_cancel(void);
extern void pgbq_start_transaction(void);
extern void pgbq_stop_transaction_timeout(void);
extern void pgbq_abort(void);

#endif
