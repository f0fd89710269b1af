/* See encoding.c. */
#ifndef PGBQ_ENCODING_H
#define PGBQ_ENCODING_H

extern char *pgbq_utf8_to_server(const char *text, int length);

#endif
