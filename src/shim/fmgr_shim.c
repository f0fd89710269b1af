/*
 * Function calls and the representation of values.
 *
 * It must be C: the magic block, the argument accessors, the varlena and the array accessors are macros. The
 * functions that the dynamic loader looks up (Pg_magic_func, pg_finfo_*) are exported by Rust, because a
 * cdylib exports no symbol of a C library linked into it.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "fmgr_shim.h"

const Pg_magic_struct *
pgbq_magic(void)
{
#if PG_VERSION_NUM >= 180000
	static const Pg_magic_struct magic = PG_MODULE_MAGIC_DATA(.name = "pg_background_queue", .version = "2.0");
#else
	static const Pg_magic_struct magic = PG_MODULE_MAGIC_DATA;
#endif

	return &magic;
}

const Pg_finfo_record *
pgbq_finfo(void)
{
	static const Pg_finfo_record version_1 = {1};

	return &version_1;
}

bool
pgbq_arg_is_null(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n);
}

Datum
pgbq_arg(FunctionCallInfo fcinfo, int n)
{
	return PG_GETARG_DATUM(n);
}

int
pgbq_arg_count(FunctionCallInfo fcinfo)
{
	return PG_NARGS();
}

/* Makes a set-returning function one that hands over all its rows at once (SFRM_Materialize). */
void
pgbq_begin_rows(FunctionCallInfo fcinfo)
{
#if PG_VERSION_NUM >= 150000
	InitMaterializedSRF(fcinfo, 0);
#else
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext old;
	TupleDesc	desc;

	if (result == NULL || !IsA(result, ReturnSetInfo) || (result->allowedModes & SFRM_Materialize) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));
	old = MemoryContextSwitchTo(result->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	result->returnMode = SFRM_Materialize;
	result->setDesc = desc;
	result->setResult = tuplestore_begin_heap(true, false, work_mem);
	MemoryContextSwitchTo(old);
#endif
}

/* One row of it, with a value for each column. */
void
pgbq_add_row(FunctionCallInfo fcinfo, const Datum *values, const bool *nulls)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	tuplestore_putvalues(result->setResult, result->setDesc, unconstify(Datum *, values), unconstify(bool *, nulls));
}

/* The bytes of a text, detoasted into the current memory context if need be; not terminated. */
const char *
pgbq_text_bytes(Datum text, Size *length)
{
	struct varlena *value = PG_DETOAST_DATUM_PACKED(text);

	*length = VARSIZE_ANY_EXHDR(value);
	return VARDATA_ANY(value);
}

/* The elements of a bigint[] that are not NULL, palloc'ed, and their number. */
const int64 *
pgbq_int8_array(Datum array, int *count)
{
	Datum	   *elements;
	bool	   *nulls;
	int64	   *result;
	int			total;

	deconstruct_array(DatumGetArrayTypeP(array), INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE,
					  &elements, &nulls, &total);
	result = palloc(sizeof(int64) * Max(total, 1));
	*count = 0;
	for (int i = 0; i < total; i++)
		if (!nulls[i])
			result[(*count)++] = DatumGetInt64(elements[i]);
	return result;
}

/* In milliseconds, with months of 30 days; what does not fit is the greatest number. */
int64
pgbq_interval_ms(Datum interval)
{
	Interval   *value = DatumGetIntervalP(interval);
	int64		days = value->day + value->month * INT64CONST(30);

	if (days > PG_INT32_MAX / 24 || days < -PG_INT32_MAX / 24)
		return days > 0 ? PG_INT64_MAX : PG_INT64_MIN;
	return value->time / 1000 + days * INT64CONST(86400000);
}

/* A name, cut to what fits; zero-padded, as hashing and datumCopy want it. */
Datum
pgbq_make_name(const char *bytes, Size length)
{
	NameData   *name = palloc0(sizeof(NameData));

	memcpy(NameStr(*name), bytes, Min(length, NAMEDATALEN - 1));
	return NameGetDatum(name);
}

const char *
pgbq_name_bytes(Datum name)
{
	return NameStr(*DatumGetName(name));
}
