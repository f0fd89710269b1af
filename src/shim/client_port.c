/*
 * MyProcPort for a process that has no client.
 *
 * Without it log_line_prefix has no user and no database, and code that believes that every session with a
 * role has a client reads through a null pointer: an unprivileged SELECT ssl_is_used() of contrib/sslinfo crashes the process, and with it the server.
 */
#include "postgres.h"

/* libpq-be.h would want gssapi.h and OpenSSL's headers, which a package for building extensions need not have */
#undef ENABLE_GSS
#undef USE_SSL
#undef USE_OPENSSL

#include <sys/socket.h>

#include "libpq/libpq-be.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "client_port.h"

/*
 * The fields behind those #undefs exist in the server's idea of the struct: room for them, zeroed. Fields
 * before them have the same offsets in both.
 */
#define HIDDEN_FIELDS 256

void
pgbq_set_port(const char *user, const char *database)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	Port	   *port = palloc0(sizeof(Port) + HIDDEN_FIELDS);

	port->sock = PGINVALID_SOCKET;
	/* not TCP, else SET tcp_keepalives_idle touches the descriptor */
	port->laddr.addr.ss_family = AF_UNIX;
	port->raddr.addr.ss_family = AF_UNIX;
	port->user_name = pstrdup(user);
	port->database_name = pstrdup(database);
	MyProcPort = port;
	MemoryContextSwitchTo(old);
}
