/* See session.c. */
#ifndef PGBQ_SESSION_H
#define PGBQ_SESSION_H

extern void pgbq_reset_session(void);

#endif
