/* See interrupt.c. */
#ifndef PGBQ_INTERRUPT_H
#define PGBQ_INTERRUPT_H

extern void pgbq_serve(void);
extern bool pgbq_config_reload_wanted(void);
extern bool pgbq_wants_turn(void);
extern uint32 pgbq_wait_event(const char *name);
extern int	pgbq_wait(long timeout_ms, uint32 wait_event);
extern void pgbq_forget_cancel(void);
extern void pgbq_start_transaction(void);
extern void pgbq_stop_transaction_timeout(void);
extern void pgbq_abort(void);

#endif
