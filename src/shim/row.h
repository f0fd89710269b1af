/* See row.c. */
#ifndef PGBQ_ROW_H
#define PGBQ_ROW_H

#include "access/attnum.h"

/* One column of a row, to be compared, fetched or stored; values by value are as the type's XGetDatum makes them */
typedef struct PgbqColumn
{
	AttrNumber	attnum;
	bool		isnull;
	Datum		value;
} PgbqColumn;

typedef enum PgbqRowResult
{
	PGBQ_ROW_DONE = 0,
	PGBQ_ROW_MISSING,			/* there is no such row */
	PGBQ_ROW_FENCED,			/* it holds other values than the fence wants */
	PGBQ_ROW_LOCKED				/* somebody else has it locked, or changes it all the time */
} PgbqRowResult;

/* Strategies beyond those of a btree (BTEqualStrategyNumber ...), without a value */
enum
{
	PGBQ_IS_NULL = -1,
	PGBQ_IS_NOT_NULL = -2
};

/* index column <strategy> value; the column counts from 1 */
typedef struct PgbqScanKey
{
	int			index_column;
	int			strategy;
	Datum		value;
} PgbqScanKey;

typedef struct PgbqScan PgbqScan;

extern PgbqRowResult pgbq_row_update(Oid relid, Oid pkindex, int64 id, int64 *tid,
									 const PgbqColumn *fence, int nfence,
									 PgbqColumn *get, int nget,
									 const PgbqColumn *set, int nset,
									 int lock_timeout_ms, int row_timeout_ms);
extern PgbqRowResult pgbq_row_delete(Oid relid, Oid pkindex, int64 id,
									 const PgbqColumn *fence, int nfence,
									 int lock_timeout_ms, int row_timeout_ms);
extern int64 pgbq_row_insert(Oid relid, const PgbqColumn *cols, int ncols);

extern PgbqScan *pgbq_scan_begin(Oid relid, Oid indexid, const PgbqScanKey *keys, int nkeys);
extern bool pgbq_scan_next(PgbqScan *scan, PgbqColumn *get, int nget);
extern int64 pgbq_scan_tid(PgbqScan *scan);
extern void pgbq_scan_end(PgbqScan *scan);

#endif
