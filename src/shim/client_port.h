/* See client_port.c. */
#ifndef PGBQ_CLIENT_PORT_H
#define PGBQ_CLIENT_PORT_H

extern void pgbq_set_port(const char *user, const char *database);

#endif
