/*
 * A table that is open to have one row written.
 *
 * The executor is made for statements of many rows: it wants a range table and a description of each index, and the
 * first row has it plan and compile the predicates of those. For a single row that is dearer than the row. So it is
 * kept for the next one, in this process, as long as no definition changes. The relations themselves are opened and
 * closed for each row: in between nothing is open or pinned, and no resource owner knows of anything, so that the
 * same transaction may alter or drop the table, and the end of a transaction or savepoint has nothing to do here.
 *
 * It must be C: all of it is about the executor's structs.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/pg_am.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/parse_relation.h"
#include "utils/inval.h"
#include "utils/memutils.h"

#include "target.h"

/*
 * The target of the last row, in a context of its own below CacheMemoryContext. While it is in use it is not here,
 * and its context is below the user's: so an error frees it, and whoever comes meanwhile (a function in an index may
 * write to the table) makes another.
 */
static PgbqTarget *kept = NULL;

/*
 * Counts changes of definitions, of whatever relation: to make a target anew costs less than any such change did, and
 * a list of those that matter could be wrong.
 */
static uint64 definitions = 0;

static void
definition_changed(Datum arg, Oid relid)
{
	definitions++;
}

/*
 * Opens a table with the lock given. That it does not exist (any more) has an SQLSTATE of its own, because it is no
 * bug: the OID may have come from a cache.
 */
Relation
pgbq_open_table(Oid relid, LOCKMODE lockmode)
{
	Relation	rel = try_relation_open(relid, lockmode);

	if (rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	if (rel->rd_rel->relkind != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", RelationGetRelationName(rel))));
	return rel;
}

/* Raises an error unless the table has all these columns: they too may have been dropped. */
void
pgbq_check_columns(Relation rel, const PgbqColumn *cols, int ncols)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < ncols; i++)
	{
		AttrNumber	attnum = cols[i].attnum;

		if (attnum < 1 || attnum > desc->natts || TupleDescAttr(desc, attnum - 1)->attisdropped)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column number %d of relation \"%s\" does not exist",
							attnum, RelationGetRelationName(rel))));
	}
}

static bool
is_made_by_user(Oid function, void *context)
{
	return function >= FirstNormalObjectId;
}

/*
 * Whether this part of an index's predicate, once compiled, could go stale without a change of the index, or hold on to
 * something of the transaction: a function that can be replaced, and may have been inlined; a domain that can be
 * altered; a composite value. What is not known to be harmless counts.
 */
static bool
is_for_one_use(Node *node, void *context)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_List:
		case T_Var:
		case T_Const:
		case T_BoolExpr:
		case T_BooleanTest:
		case T_NullTest:
		case T_RelabelType:
		case T_OpExpr:
		case T_ScalarArrayOpExpr:
		case T_FuncExpr:
			return check_functions_in_node(node, is_made_by_user, NULL) ||
				expression_tree_walker(node, is_for_one_use, context);
		default:
			return true;
	}
}

/*
 * Whether a target may be used again. Btrees keep what they know in the relation; other access methods leave it in the
 * IndexInfo, with pointers to the relation that is open now. A constraint with an expression is as an index with one;
 * generated columns have the executor remember which of them this update changes.
 */
static bool
may_last(const ResultRelInfo *result)
{
	const TupleConstr *constr = result->ri_RelationDesc->rd_att->constr;

	if (constr != NULL && (constr->num_check > 0 || constr->has_generated_stored
#if PG_VERSION_NUM >= 180000
						   || constr->has_generated_virtual
#endif
						   ))
		return false;

	for (int i = 0; i < result->ri_NumIndices; i++)
	{
		const IndexInfo *info = result->ri_IndexRelationInfo[i];

		if (info->ii_Am != BTREE_AM_OID || info->ii_Expressions != NIL ||
			is_for_one_use((Node *) info->ii_Predicate, NULL))
			return false;
	}
	return true;
}

/* Makes a target of an open table, and opens its indexes. */
static PgbqTarget *
make_target(Relation rel)
{
	EState	   *estate = CreateExecutorState();
	MemoryContext old = MemoryContextSwitchTo(estate->es_query_cxt);
	PgbqTarget *target = palloc0(sizeof(PgbqTarget));
	RangeTblEntry *rte;

	MemoryContextSetIdentifier(estate->es_query_cxt, "pg_background_queue target");

	/* Now, not when all is done: of a change that is heard of meanwhile some may have been seen and some not. */
	target->definitions = definitions;
	target->estate = estate;
	target->rel = rel;
	target->relid = RelationGetRelid(rel);

	rte = makeNode(RangeTblEntry);
	rte->rtekind = RTE_RELATION;
	rte->relid = target->relid;
	rte->relkind = rel->rd_rel->relkind;
	rte->rellockmode = RowExclusiveLock;

	{
#if PG_VERSION_NUM >= 160000
		List	   *perminfos = NIL;

		target->columns = addRTEPermissionInfo(&perminfos, rte);
#else
		target->columns = rte;
#endif

#if PG_VERSION_NUM >= 180000
		ExecInitRangeTable(estate, list_make1(rte), perminfos, bms_make_singleton(1));
#elif PG_VERSION_NUM >= 160000
		ExecInitRangeTable(estate, list_make1(rte), perminfos);
#else
		ExecInitRangeTable(estate, list_make1(rte));
#endif
	}

	target->result = makeNode(ResultRelInfo);
	InitResultRelInfo(target->result, rel, 1, NULL, 0);
#if PG_VERSION_NUM < 140000
	estate->es_result_relation_info = target->result;
#endif

	ExecOpenIndices(target->result, false);
	target->indexes = palloc(sizeof(Oid) * Max(target->result->ri_NumIndices, 1));
	for (int i = 0; i < target->result->ri_NumIndices; i++)
		target->indexes[i] = RelationGetRelid(target->result->ri_IndexRelationDescs[i]);
	target->lasts = may_last(target->result);

	MemoryContextSwitchTo(old);
	return target;
}

/* The kept target with its indexes opened again, or NULL if it cannot be used for this open table. */
static PgbqTarget *
take_kept(Relation rel)
{
	PgbqTarget *target = kept;

	if (target == NULL)
		return NULL;
	kept = NULL;
	MemoryContextSetParent(target->estate->es_query_cxt, CurrentMemoryContext);

	if (target->relid == RelationGetRelid(rel) && target->definitions == definitions)
	{
		ResultRelInfo *result = target->result;

		target->rel = result->ri_RelationDesc = rel;
		for (int i = 0; i < result->ri_NumIndices; i++)
			result->ri_IndexRelationDescs[i] = index_open(target->indexes[i], RowExclusiveLock);

		/* who waits for a lock, or just takes one, hears of changes */
		if (target->definitions == definitions)
			return target;
		ExecCloseIndices(result);
	}
	FreeExecutorState(target->estate);
	return NULL;
}

/*
 * Opens a table and its indexes, to write these columns by command. The locks are kept until the transaction ends.
 */
PgbqTarget *
pgbq_open_target(Oid relid, CmdType command, const PgbqColumn *cols, int ncols)
{
	static bool watching = false;
	Relation	rel;
	PgbqTarget *target;
	Bitmapset  *written = NULL;
	MemoryContext old;

	if (!watching)
	{
		CacheRegisterRelcacheCallback(definition_changed, (Datum) 0);
		watching = true;
	}

	rel = pgbq_open_table(relid, RowExclusiveLock);
	pgbq_check_columns(rel, cols, ncols);
	target = take_kept(rel);
	if (target == NULL)
		target = make_target(rel);

	/* From this the executor tells an index whether an update changes its columns, which spares btrees splits. */
	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(target->estate));
	for (int i = 0; i < ncols; i++)
		written = bms_add_member(written, cols[i].attnum - FirstLowInvalidHeapAttributeNumber);
	MemoryContextSwitchTo(old);
	target->columns->insertedCols = command == CMD_INSERT ? written : NULL;
	target->columns->updatedCols = command == CMD_INSERT ? NULL : written;
#if PG_VERSION_NUM >= 150000
	for (int i = 0; i < target->result->ri_NumIndices; i++)
		target->result->ri_IndexRelationInfo[i]->ii_CheckedUnchanged = false;
#endif

	return target;
}

/* Closes what pgbq_open_target opened, and keeps the rest if it can be used again. */
void
pgbq_close_target(PgbqTarget *target)
{
	ResultRelInfo *result = target->result;

	if (!target->lasts || target->definitions != definitions || kept != NULL)
	{
		ExecCloseIndices(result);
		table_close(target->rel, NoLock);
		FreeExecutorState(target->estate);
		return;
	}

	/* The locks of the indexes stay, as the table's does: the next row of this transaction needs no new ones. */
	for (int i = 0; i < result->ri_NumIndices; i++)
	{
		index_close(result->ri_IndexRelationDescs[i], NoLock);
		result->ri_IndexRelationDescs[i] = NULL;
	}
	table_close(target->rel, NoLock);
	target->rel = result->ri_RelationDesc = NULL;

	ResetPerTupleExprContext(target->estate);
	MemoryContextSetParent(target->estate->es_query_cxt, CacheMemoryContext);
	kept = target;
}
