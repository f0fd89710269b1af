/*
 * Encodings.
 *
 * It is C because the conversion that reports what it cannot convert, instead of raising an error, has to be put
 * together from parts, and came with 14.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"

#include "encoding.h"

#if PG_VERSION_NUM < 140000

/*
 * The error of the conversion is caught and forgotten, and the transaction goes on: a conversion function works on its two buffers and
 * holds nothing when it raises that.
 */
static char *
convert_or_null(const char *text, int length)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		interrupts_held = InterruptHoldoffCount;
	uint32		cancels_held = QueryCancelHoldoffCount;
	char	   *volatile result = NULL;

	PG_TRY();
	{
		result = pg_any_to_server(text, length, PG_UTF8);
	}
	PG_CATCH();
	{
		if (geterrcode() != ERRCODE_UNTRANSLATABLE_CHARACTER)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		/* the error has zeroed them: see pgbq_guard */
		InterruptHoldoffCount = interrupts_held;
		QueryCancelHoldoffCount = cancels_held;
	}
	PG_END_TRY();
	return result;
}
#endif

/*
 * A UTF-8 text in the database's encoding, palloc'ed; NULL if it has characters that are not in that. In a transaction.
 */
char *
pgbq_utf8_to_server(const char *text, int length)
{
	int			server = GetDatabaseEncoding();
	Oid			conversion;
#if PG_VERSION_NUM >= 140000
	int			room;
	unsigned char *result;
#endif

	if (server == PG_UTF8 || server == PG_SQL_ASCII)
		return pnstrdup(text, length);

	conversion = FindDefaultConversionProc(PG_UTF8, server);
	if (!OidIsValid(conversion))
		return NULL;
#if PG_VERSION_NUM >= 140000
	room = length * MAX_CONVERSION_GROWTH + 1;
	result = palloc(room);
	if (pg_do_encoding_conversion_buf(conversion, PG_UTF8, server, (unsigned char *) unconstify(char *, text),
									  length, result, room, true) != length)
		return NULL;
	return (char *) result;
#else
	return convert_or_null(text, length);
#endif
}
