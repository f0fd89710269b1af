/*
 * The border between PostgreSQL's errors, which are longjmps, and Rust's, which are values.
 *
 * It must be C: sigsetjmp cannot be called from Rust, and ereport is a macro.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/elog.h"
#include "utils/memutils.h"

#include "guard.h"

/* What is reported when there is no memory left to copy an error to. */
static ErrorData out_of_memory = {
	.elevel = ERROR,
	.sqlerrcode = ERRCODE_OUT_OF_MEMORY,
	.message = "out of memory while an error was being copied",
};

/*
 * Takes the error that has just been caught off the error stack: a copy in the given context, which must
 * outlive it. An error raised by the copying itself (no memory) is answered by a static one, so that a caller
 * in a PG_CATCH block is never jumped over.
 */
ErrorData *
pgbq_take_error(MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	ErrorData  *volatile error = &out_of_memory;

	PG_TRY();
	{
		/* in a context of its own: FreeErrorData leaves some of the strings that CopyErrorData copies */
		MemoryContextSwitchTo(AllocSetContextCreate(context, "caught error", ALLOCSET_SMALL_SIZES));
		error = CopyErrorData();
	}
	PG_CATCH();
	{
		error = &out_of_memory;
	}
	PG_END_TRY();

	/* PG_CATCH leaves us in ErrorContext or where the failed copy stood */
	MemoryContextSwitchTo(old);
	FlushErrorState();
	return error;
}

/* The report for when there is no memory to make another. */
ErrorData *
pgbq_out_of_memory(void)
{
	return &out_of_memory;
}

/* Frees what pgbq_take_error returned. */
void
pgbq_free_error(ErrorData *error)
{
	if (error != &out_of_memory)
		MemoryContextDelete(GetMemoryChunkContext(error));
}

/*
 * Runs body(arg); returns NULL, or the error it raised.
 *
 * body is a single call into the server made by a Rust frame that owns nothing, so that jumping over it leaks
 * nothing. After an error the memory context and both holdoff counts are what they were before: errfinish sets
 * the counts to 0, and a lock that the caller still holds and releases later would take them to -1, after
 * which the process ignores cancel and terminate for ever.
 *
 * The caller must either rethrow the error or abort the transaction: nothing else cleans up what the failed
 * call left half done.
 */
ErrorData *
pgbq_guard(PgbqBody body, void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		interrupt_holdoff = InterruptHoldoffCount;
	uint32		cancel_holdoff = QueryCancelHoldoffCount;
	ErrorData  *volatile error = NULL;

	PG_TRY();
	{
		body(arg);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = pgbq_take_error(context);
		InterruptHoldoffCount = interrupt_holdoff;
		QueryCancelHoldoffCount = cancel_holdoff;
	}
	PG_END_TRY();

	return error;
}

/*
 * Raises the error; the last act of a Rust boundary. Both holdoff counts are zeroed, as errfinish does for an error that was never
 * caught: whatever lock they stood for is released by the abort that follows.
 *
 * An error that came from the server has had its CONTEXT lines collected already, by the same callbacks that
 * errfinish would call once more: those are cut off. Whoever catches it restores error_context_stack.
 */
void
pgbq_throw(ErrorData *error, bool has_context)
{
	InterruptHoldoffCount = 0;
	QueryCancelHoldoffCount = 0;
	if (has_context)
		error_context_stack = NULL;
	ThrowErrorData(error);
	pg_unreachable();
}

/*
 * ereport below ERROR. It can raise all the same: errfinish runs CHECK_FOR_INTERRUPTS. To be called under the
 * guard. The texts are in the server's encoding.
 */
void
pgbq_report(int elevel, int sqlstate, const char *message, const char *detail, const char *hint)
{
	Assert(elevel < ERROR);
	ereport(elevel,
			(sqlstate != 0 ? errcode(sqlstate) : 0,
			 errmsg_internal("%s", message),
			 detail != NULL ? errdetail_internal("%s", detail) : 0,
			 hint != NULL ? errhint("%s", hint) : 0));
}
