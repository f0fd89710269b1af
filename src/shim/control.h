/* See control.c. */
#ifndef PGBQ_CONTROL_H
#define PGBQ_CONTROL_H

extern bool pgbq_was_shut_down_cleanly(void);
extern bool pgbq_postmaster_is_stopping(void);

#endif
