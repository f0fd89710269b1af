/* See target.c. For the shim only. */
#ifndef PGBQ_TARGET_H
#define PGBQ_TARGET_H

#include "nodes/execnodes.h"
#include "nodes/parsenodes.h"
#include "storage/lockdefs.h"
#include "utils/rel.h"

#include "row.h"

/* A table that is open for writing, with its indexes. */
typedef struct PgbqTarget
{
	Relation	rel;
	EState	   *estate;			/* its per-tuple context is the caller's, until the target is closed */
	ResultRelInfo *result;

	/* target.c's own: what there is between two uses, too */
	Oid			relid;
	Oid		   *indexes;		/* in the order of result's arrays */
#if PG_VERSION_NUM >= 160000
	RTEPermissionInfo *columns; /* where the executor looks for those that are written */
#else
	RangeTblEntry *columns;
#endif
	uint64		definitions;	/* the state of all definitions from which it was made */
	bool		lasts;			/* nothing else can make it untrue */
} PgbqTarget;

extern Relation pgbq_open_table(Oid relid, LOCKMODE lockmode);
extern void pgbq_check_columns(Relation rel, const PgbqColumn *cols, int ncols);

extern PgbqTarget *pgbq_open_target(Oid relid, CmdType command, const PgbqColumn *cols, int ncols);
extern void pgbq_close_target(PgbqTarget *target);

#endif
