/*
 * Encodings.
 *
 * It is C because the conversion that reports what it cannot convert, instead of raising an error, has to be put
 * together from parts, and came with 14.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "mb/pg_wchar.h"

#include "encoding.h"

/*
 * A UTF-8 text in the database's encoding, palloc'ed; NULL if it has characters that are not in that. In a transaction.
 */
char *
pgbq_utf8_to_server(const char *text, int length)
{
	int			server = GetDatabaseEncoding();
	int			room = length * MAX_CONVERSION_GROWTH + 1;
	unsigned char *result;
	Oid			conversion;

	if (server == PG_UTF8 || server == PG_SQL_ASCII)
		return pnstrdup(text, length);

	conversion = FindDefaultConversionProc(PG_UTF8, server);
	if (!OidIsValid(conversion))
		return NULL;
	result = palloc(room);
#if PG_VERSION_NUM >= 140000
	if (pg_do_encoding_conversion_buf(conversion, PG_UTF8, server, (unsigned char *) unconstify(char *, text),
									  length, result, room, true) != length)
		return NULL;
	return (char *) result;
#else
	pfree(result);
	return pg_any_to_server(text, length, PG_UTF8);
#endif
}
