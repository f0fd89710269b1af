/*
 * Reads and writes single rows of a table below SQL.
 *
 * Nothing here is parsed, planned or checked for permission, and neither triggers, rules nor row security have a
 * part in it. So it works in a transaction that somebody else's statements have shaped: at any isolation level,
 * READ ONLY or DEFERRABLE, under any role, search_path and setting.
 *
 * All of it runs inside a transaction of the caller's, and may raise errors.
 *
 * It must be C: the table access method's interface is inline functions, and PG_TRY is a macro.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/pg_am.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/smgr.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#if PG_VERSION_NUM >= 140000
#include "utils/wait_event.h"
#endif

#include "row.h"
#include "target.h"

/*
 * How often a row is looked for before it counts as missing. A lookup with SnapshotSelf can miss a row while it is
 * updated: it passes the new version before the commit and the old one after it.
 */
#define LOOKUPS 5

/* The longest pause between two attempts to lock a row, ms. */
#define MAX_PAUSE 32

struct PgbqScan
{
	MemoryContext context;		/* of all the scan allocates, itself included */
	MemoryContext row_context;	/* of the values of the row fetched last */
	Relation	rel;
	Relation	index;
	Snapshot	snapshot;		/* registered */
	IndexScanDesc desc;
	TupleTableSlot *slot;
};

/*
 * Makes the entry of a row in one of the target's indexes that is a plain btree, without a look at whether there is such a key.
 *
 * It is not told that the key is as it was. A btree takes that as a hint to look, when a page of it is full, which old
 * versions of its rows are gone, with that page locked. Whoever works on a row beside this one waits for that, mostly in
 * vain: the versions are too young. (So the index should have room for some entries a row: see its fillfactor.)
 */
static void
insert_unchecked(PgbqTarget *target, TupleTableSlot *slot, Relation index, IndexInfo *info)
{
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];

	FormIndexDatum(info, slot, target->estate, values, isnull);
	(void) index_insert(index, values, isnull, &slot->tts_tid, target->rel, UNIQUE_CHECK_NO,
#if PG_VERSION_NUM >= 140000
						false,
#endif
						info);
}

/*
 * Makes the index entries of a row that has been stored. What a deferrable constraint would have to check again
 * when the transaction ends is ignored: that is a trigger's work, and triggers do not fire.
 *
 * If it is an update that leaves the key of a unique index as it is, that is kept: nobody else can have got that key meanwhile, because
 * the old version has it. The executor would look nevertheless, at all old versions of the row, with the page of the index locked; and
 * those who work on the rows beside it want that page, too.
 */
static void
insert_index_entries(PgbqTarget *target, TupleTableSlot *slot, bool update, bool only_summarizing, Relation kept)
{
	ResultRelInfo *result = target->result;
	IndexInfo  *unchecked = NULL;

	if (result->ri_NumIndices == 0)
		return;

	for (int i = 0; i < result->ri_NumIndices && kept != NULL && !only_summarizing; i++)
	{
		IndexInfo  *info = result->ri_IndexRelationInfo[i];

		if (result->ri_IndexRelationDescs[i] == kept && info->ii_Am == BTREE_AM_OID && info->ii_ReadyForInserts &&
			info->ii_Predicate == NIL && info->ii_Expressions == NIL)
		{
			insert_unchecked(target, slot, kept, info);
			/*
			 * The executor leaves it out then. After an error there is no target any more; and a function in another index
			 * that writes to the table meanwhile makes a target of its own.
			 */
			info->ii_ReadyForInserts = false;
			unchecked = info;
		}
	}

#if PG_VERSION_NUM >= 190000
	(void) ExecInsertIndexTuples(result, target->estate,
								 (update ? EIIT_IS_UPDATE : 0) | (only_summarizing ? EIIT_ONLY_SUMMARIZING : 0),
								 slot, NIL, NULL);
#elif PG_VERSION_NUM >= 160000
	(void) ExecInsertIndexTuples(result, slot, target->estate, update, false, NULL, NIL, only_summarizing);
#elif PG_VERSION_NUM >= 140000
	(void) ExecInsertIndexTuples(result, slot, target->estate, update, false, NULL, NIL);
#else
	(void) ExecInsertIndexTuples(slot, target->estate, false, NULL, NIL);
#endif

	if (unchecked != NULL)
		unchecked->ii_ReadyForInserts = true;
}

/* Whether these are columns beside the one by which the rows of the index are found. */
static bool
leaves_key(Relation index, const PgbqColumn *cols, int ncols)
{
	for (int i = 0; i < ncols; i++)
		if (cols[i].attnum == index->rd_index->indkey.values[0])
			return false;
	return true;
}

/*
 * Fetches columns of the row in the slot into get; values by reference are copies in the given context,
 * detoasted, with a full varlena header. There must be a snapshot, to detoast.
 */
static void
get_columns(TupleTableSlot *slot, PgbqColumn *get, int nget, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);

	for (int i = 0; i < nget; i++)
	{
		Form_pg_attribute attr = TupleDescAttr(slot->tts_tupleDescriptor, get[i].attnum - 1);
		Datum		value = slot_getattr(slot, get[i].attnum, &get[i].isnull);

		if (get[i].isnull)
			get[i].value = (Datum) 0;
		else if (attr->attlen == -1)
			get[i].value = PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
		else
			get[i].value = datumCopy(value, attr->attbyval, attr->attlen);
	}

	MemoryContextSwitchTo(old);
}

/*
 * Whether the row in the slot holds these values. They are compared byte by byte, by no operator that somebody
 * could have put in the way; a NULL equals a NULL.
 */
static bool
row_matches(TupleTableSlot *slot, const PgbqColumn *cols, int ncols)
{
	for (int i = 0; i < ncols; i++)
	{
		Form_pg_attribute attr = TupleDescAttr(slot->tts_tupleDescriptor, cols[i].attnum - 1);
		bool		isnull;
		Datum		value = slot_getattr(slot, cols[i].attnum, &isnull);

		if (isnull != cols[i].isnull)
			return false;
		if (!isnull && !datum_image_eq(value, cols[i].value, attr->attbyval, attr->attlen))
			return false;
	}
	return true;
}

/*
 * Makes new_slot the row in old_slot (or, if that is NULL, one of nothing but NULLs) with these columns replaced.
 * Values by reference are not copied. Dropped columns become NULL, as in an UPDATE.
 */
static void
fill_slot(TupleTableSlot *new_slot, TupleTableSlot *old_slot, const PgbqColumn *cols, int ncols)
{
	TupleDesc	desc = new_slot->tts_tupleDescriptor;

	if (old_slot != NULL)
		slot_getallattrs(old_slot);

	ExecClearTuple(new_slot);
	for (int i = 0; i < desc->natts; i++)
	{
		bool		keep = old_slot != NULL && !TupleDescAttr(desc, i)->attisdropped;

		new_slot->tts_isnull[i] = keep ? old_slot->tts_isnull[i] : true;
		new_slot->tts_values[i] = keep ? old_slot->tts_values[i] : (Datum) 0;
	}
	for (int i = 0; i < ncols; i++)
	{
		new_slot->tts_isnull[cols[i].attnum - 1] = cols[i].isnull;
		new_slot->tts_values[cols[i].attnum - 1] = cols[i].value;
	}
	ExecStoreVirtualTuple(new_slot);
}

/*
 * The open index to look a row up in: the one that was asked for if it is usable, or else the primary key; NULL if
 * there is none.
 */
static Relation
find_primary_key(PgbqTarget *target, Oid indexid)
{
	Relation	found = NULL;

	for (int i = 0; i < target->result->ri_NumIndices; i++)
	{
		Relation	index = target->result->ri_IndexRelationDescs[i];

		if (!index->rd_index->indisunique || !index->rd_index->indisvalid ||
			IndexRelationGetNumberOfKeyAttributes(index) != 1 ||
			index->rd_opcintype[0] != INT8OID)
			continue;
		if (RelationGetRelid(index) == indexid)
			return index;
		if (index->rd_index->indisprimary)
			found = index;
	}
	return found;
}

/*
 * Opens a table and its indexes to update these columns of a row, and returns the index to look it up in.
 *
 * REINDEX CONCURRENTLY replaces the index by one with another OID, and for an instant after its commit the catalog
 * cache can hold the old index as it is now and the new one as it was, neither the primary key: so look again.
 */
static Relation
open_target_for_update(PgbqTarget **target, Oid relid, Oid pkindex, const PgbqColumn *set, int nset)
{
	for (int i = 0; i < LOOKUPS; i++)
	{
		Relation	index;

		*target = pgbq_open_target(relid, CMD_UPDATE, set, nset);
		index = find_primary_key(*target, pkindex);
		if (index != NULL)
			return index;

		pgbq_close_target(*target);
		pg_usleep(1000L);
		AcceptInvalidationMessages();
	}

	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("table \"%s\" has no primary key of one column of type bigint", get_rel_name(relid))));
}

static IndexScanDesc
begin_scan(Relation rel, Relation index, Snapshot snapshot, int nkeys)
{
#if PG_VERSION_NUM >= 190000
	return index_beginscan(rel, index, snapshot, NULL, nkeys, 0, SO_NONE);
#elif PG_VERSION_NUM >= 180000
	return index_beginscan(rel, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(rel, index, snapshot, nkeys, 0);
#endif
}

/*
 * Prunes the page of this buffer, pinned once, if it may not have room for another version of the row. An index scan
 * would have had it pruned at each row, as soon as less is free than fillfactor leaves: a WAL record for each old version.
 */
static void
prune_if_full(Relation rel, Buffer buffer, uint32 length)
{
	/* without a lock, as heap_page_prune_opt itself looks first: it is a guess */
	if (PageGetHeapFreeSpace(BufferGetPage(buffer)) >= Max(BLCKSZ / 10, MAXALIGN(length)))
		return;
#if PG_VERSION_NUM >= 190000
	{
		Buffer		vmbuffer = InvalidBuffer;

		heap_page_prune_opt(rel, buffer, &vmbuffer, false);
		if (BufferIsValid(vmbuffer))
			ReleaseBuffer(vmbuffer);
	}
#else
	heap_page_prune_opt(rel, buffer);
#endif
}

/*
 * Whether the table has a block. VACUUM may have cut off its end before it was locked, but not since: so it has no less than this process
 * has once seen, unless it has been told to forget that, and the system need not be asked.
 */
static bool
has_block(Relation rel, BlockNumber block)
{
#if PG_VERSION_NUM >= 150000
	BlockNumber seen = RelationGetSmgr(rel)->smgr_cached_nblocks[MAIN_FORKNUM];

	if (seen != InvalidBlockNumber && block < seen)
		return true;
#endif
	return block < RelationGetNumberOfBlocks(rel);
}

/*
 * Looks for the row where it was, without the index. If it is there the slot holds a copy of it, and no buffer is pinned.
 * That the place is one of another table, or of this one before it was made anew, does no harm: a row with this id that is
 * valid now is the row.
 */
static bool
find_there(Relation rel, Relation index, int64 id, int64 tid, TupleTableSlot *slot)
{
	ItemPointerData there;
	bool		isnull;

	if (tid == 0)
		return false;
	itemptr_decode(&there, tid);
	if (!has_block(rel, ItemPointerGetBlockNumber(&there)) ||
		!table_tuple_fetch_row_version(rel, &there, SnapshotSelf, slot) ||
		DatumGetInt64(slot_getattr(slot, index->rd_index->indkey.values[0], &isnull)) != id || isnull)
		return false;

	if (TTS_IS_BUFFERTUPLE(slot) && rel->rd_tableam == GetHeapamTableAmRoutine())
	{
		BufferHeapTupleTableSlot *row = (BufferHeapTupleTableSlot *) slot;
		Buffer		buffer = row->buffer;

		IncrBufferRefCount(buffer);
		ExecMaterializeSlot(slot);
		prune_if_full(rel, buffer, row->base.tuple->t_len);
		ReleaseBuffer(buffer);
	}
	else
		ExecMaterializeSlot(slot);
	return true;
}

/*
 * Looks a row up, first at the TID where it is thought to be, if that is not 0; on success the slot holds a copy of it, and
 * no buffer is pinned.
 *
 * SnapshotSelf sees what is committed by now, whatever snapshot the transaction has, and takes no predicate locks.
 */
static bool
find_row(Relation rel, Relation index, int64 id, int64 tid, TupleTableSlot *slot)
{
	ScanKeyData key;
	IndexScanDesc scan;
	bool		found;

	if (find_there(rel, index, id, tid, slot))
		return true;
	ExecClearTuple(slot);		/* there may be another row by now, with its page pinned */

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	scan = begin_scan(rel, index, SnapshotSelf, 1);
	index_rescan(scan, &key, 1, NULL, 0);

	found = index_getnext_slot(scan, ForwardScanDirection, slot);
	if (found)
		ExecMaterializeSlot(slot);

	index_endscan(scan);
	return found;
}

/*
 * Locks the newest version of the row in the slot, which then holds that version; without waiting for anybody, or as any session does.
 */
static TM_Result
lock_row(Relation rel, TupleTableSlot *slot, LockWaitPolicy policy)
{
	ItemPointerData tid = slot->tts_tid;
	TM_FailureData failure;

	/*
	 * Nobody has locked, updated or deleted this version: the update itself will find out whether that still
	 * holds, so that a lock, which costs a WAL record, would gain nothing.
	 */
	if (TTS_IS_BUFFERTUPLE(slot) &&
		(((BufferHeapTupleTableSlot *) slot)->base.tuple->t_data->t_infomask & HEAP_XMAX_INVALID))
		return TM_Ok;

	ExecClearTuple(slot);
	return table_tuple_lock(rel, &tid, GetActiveSnapshot(), slot, GetCurrentCommandId(true),
							LockTupleNoKeyExclusive, policy,
							TUPLE_LOCK_FLAG_FIND_LAST_VERSION, &failure);
}

/* Sleeps as long as *pause says, and doubles it up to a limit. */
static void
pause_for_lock(int *pause)
{
	pgstat_report_wait_start(PG_WAIT_LOCK | LOCKTAG_TUPLE);
	pg_usleep(*pause * 1000L);
	pgstat_report_wait_end();
	*pause = Min(*pause * 2, MAX_PAUSE);
}

/* The body of pgbq_row_update and, with set = NULL, of pgbq_row_delete, with lock_timeout already in force. */
static PgbqRowResult
update_row(Oid relid, Oid pkindex, int64 id, int64 *tid_hint, const PgbqColumn *fence, int nfence,
		   PgbqColumn *get, int nget, const PgbqColumn *set, int nset, int row_timeout_ms)
{
	MemoryContext caller_context = CurrentMemoryContext;
	PgbqRowResult result;
	PgbqTarget *target;
	Relation	index;
	TupleTableSlot *slot;
	TupleTableSlot *new_slot;
	int			misses = 0;
	int			pause = 1;
	bool		waits = false;
	instr_time	since;

	/* Otherwise a row written by the command before this one could not be updated. */
	CommandCounterIncrement();

	/*
	 * The first snapshot of a SERIALIZABLE READ ONLY DEFERRABLE transaction waits for others to end. If this
	 * transaction has none yet, it has read nothing either, and its level makes no difference to anybody.
	 */
	if (!FirstSnapshotSet)
		XactIsoLevel = XACT_READ_COMMITTED;

	/* TOAST, and functions in index expressions, want an active snapshot; rows are found by another one. */
	PushActiveSnapshot(GetTransactionSnapshot());

	index = open_target_for_update(&target, relid, pkindex, set, nset);
	pgbq_check_columns(target->rel, fence, nfence);
	pgbq_check_columns(target->rel, get, nget);

	MemoryContextSwitchTo(GetPerTupleMemoryContext(target->estate));
	slot = table_slot_create(target->rel, NULL);
	new_slot = MakeSingleTupleTableSlot(RelationGetDescr(target->rel), &TTSOpsVirtual);

	for (;;)
	{
		TM_Result	outcome;
		TM_FailureData failure;
		LockTupleMode lockmode;
		ItemPointerData tid;
#if PG_VERSION_NUM >= 160000
		TU_UpdateIndexes update_indexes;
#else
		bool		update_indexes;
#endif

		CHECK_FOR_INTERRUPTS();

		if (!find_row(target->rel, index, id, *tid_hint, slot))
		{
			if (++misses < LOOKUPS)
				continue;
			result = PGBQ_ROW_MISSING;
			break;
		}

		outcome = lock_row(target->rel, slot, row_timeout_ms < 0 ? LockWaitBlock : LockWaitSkip);
		if (outcome == TM_Ok)
		{
			if (!row_matches(slot, fence, nfence))
			{
				get_columns(slot, get, nget, caller_context);
				result = PGBQ_ROW_FENCED;
				break;
			}

			/*
			 * If it was not locked above and somebody has got at the row in the meantime, this waits for him, no
			 * longer than lock_timeout, and then says so if he has changed it.
			 */
			tid = slot->tts_tid;
			if (set == NULL)
			{
#if PG_VERSION_NUM >= 190000
				outcome = table_tuple_delete(target->rel, &tid, GetCurrentCommandId(true), 0, GetActiveSnapshot(),
											 InvalidSnapshot, true, &failure);
#else
				outcome = table_tuple_delete(target->rel, &tid, GetCurrentCommandId(true), GetActiveSnapshot(),
											 InvalidSnapshot, true, &failure, false);
#endif
				if (outcome == TM_Ok)
				{
					result = PGBQ_ROW_DONE;
					break;
				}
				goto again;
			}
			fill_slot(new_slot, slot, set, nset);
			outcome = table_tuple_update(target->rel, &tid, new_slot, GetCurrentCommandId(true),
#if PG_VERSION_NUM >= 190000
										 0,
#endif
										 GetActiveSnapshot(), InvalidSnapshot, true,
										 &failure, &lockmode, &update_indexes);
			if (outcome == TM_Ok)
			{
				Relation	kept = leaves_key(index, set, nset) ? index : NULL;

#if PG_VERSION_NUM >= 160000
				if (update_indexes != TU_None)
					insert_index_entries(target, new_slot, true, update_indexes == TU_Summarizing, kept);
#else
				if (update_indexes)
					insert_index_entries(target, new_slot, true, false, kept);
#endif
				*tid_hint = itemptr_encode(&new_slot->tts_tid);
				get_columns(slot, get, nget, caller_context);
				result = PGBQ_ROW_DONE;
				break;
			}
		}

again:
		/* Somebody else has it, or has just changed it: again, from the lookup on, for a bounded time. */
		if (outcome != TM_WouldBlock && outcome != TM_Updated && outcome != TM_Deleted)
			elog(ERROR, "unexpected status %d of row " INT64_FORMAT " of table \"%s\"",
				 outcome, id, RelationGetRelationName(target->rel));

		if (row_timeout_ms < 0)
			continue;
		if (row_timeout_ms == 0 && outcome == TM_WouldBlock)
		{
			result = PGBQ_ROW_LOCKED;
			break;
		}
		/* by the clock that nobody sets */
		if (!waits)
		{
			INSTR_TIME_SET_CURRENT(since);
			waits = true;
		}
		else
		{
			instr_time	waited;

			INSTR_TIME_SET_CURRENT(waited);
			INSTR_TIME_SUBTRACT(waited, since);
			if (INSTR_TIME_GET_MILLISEC(waited) >= row_timeout_ms)
			{
				result = PGBQ_ROW_LOCKED;
				break;
			}
		}
		if (outcome == TM_WouldBlock)
			pause_for_lock(&pause);
	}

	ExecDropSingleTupleTableSlot(new_slot);
	ExecDropSingleTupleTableSlot(slot);
	MemoryContextSwitchTo(caller_context);
	pgbq_close_target(target);
	CommandCounterIncrement();
	PopActiveSnapshot();
	return result;
}

/* Changes one row with lock_timeout in force: the variable, not the setting, so that no GUC machinery can fail. */
static PgbqRowResult
change_row(Oid relid, Oid pkindex, int64 id, int64 *tid, const PgbqColumn *fence, int nfence,
		   PgbqColumn *get, int nget, const PgbqColumn *set, int nset,
		   int lock_timeout_ms, int row_timeout_ms)
{
	volatile PgbqRowResult result = PGBQ_ROW_MISSING;
	int			save_lock_timeout = LockTimeout;

	Assert(IsTransactionState());
	if (lock_timeout_ms >= 0)
		LockTimeout = lock_timeout_ms;
	PG_TRY();
	{
		result = update_row(relid, pkindex, id, tid, fence, nfence, get, nget, set, nset, row_timeout_ms);
	}
	PG_FINALLY();
	{
		LockTimeout = save_lock_timeout;
	}
	PG_END_TRY();

	return result;
}

/*
 * Updates the row whose primary key, one column of type bigint, is id.
 *
 * Each fence column of the row's newest version must hold the value given; otherwise nothing is written and the
 * answer is FENCED. The columns in get are filled from the version that was replaced, or that failed the fence,
 * in CurrentMemoryContext. pkindex is the primary key's index; if it is InvalidOid, or gone, the table is asked for it.
 *
 * tid (as of itemptr_encode) is where the row is looked for first, without that index, or 0. It is no more than a hint: there
 * may be another row by now, or none. If the answer is DONE it is where the row is from now on, if this transaction commits.
 *
 * A row that somebody else holds is waited for no longer than row_timeout_ms: LOCKED then. A lock on the whole
 * table, or one that came between two steps, is waited for no longer than lock_timeout_ms (0: for ever) and ends in
 * an error then, 55P03: in either case the row is as it was. The wait for a row is one that the deadlock detector
 * does not see, so a caller that holds locks of its own must bound it. Negative times are those of the session: both waits are
 * as for an UPDATE. A SERIALIZABLE transaction can get 40001 here if other such transactions have read the row.
 *
 * If the transaction has no snapshot yet it becomes READ COMMITTED: to be called first, or last, in it.
 */
PgbqRowResult
pgbq_row_update(Oid relid, Oid pkindex, int64 id, int64 *tid, const PgbqColumn *fence, int nfence,
				PgbqColumn *get, int nget, const PgbqColumn *set, int nset,
				int lock_timeout_ms, int row_timeout_ms)
{
	Assert(set != NULL);
	return change_row(relid, pkindex, id, tid, fence, nfence, get, nget, set, nset, lock_timeout_ms, row_timeout_ms);
}

/*
 * Deletes the row whose primary key is id, if its newest version holds the values of the fence columns; else as
 * pgbq_row_update. Foreign keys that refer to the row are not looked at: they are triggers.
 */
PgbqRowResult
pgbq_row_delete(Oid relid, Oid pkindex, int64 id, const PgbqColumn *fence, int nfence,
				int lock_timeout_ms, int row_timeout_ms)
{
	int64		tid = 0;

	return change_row(relid, pkindex, id, &tid, fence, nfence, NULL, 0, NULL, 0, lock_timeout_ms, row_timeout_ms);
}

/*
 * Inserts one row. Columns not named are NULL: defaults are the caller's business, NOT NULL and CHECK constraints
 * are checked. Later commands of the transaction see the row; the current one, if there is one, does not. Returns its TID,
 * as pgbq_row_update takes it.
 */
int64
pgbq_row_insert(Oid relid, const PgbqColumn *cols, int ncols)
{
	MemoryContext old;
	PgbqTarget *target;
	TupleTableSlot *slot;
	int64		tid;
	bool		push = !ActiveSnapshotSet();

	Assert(IsTransactionState());

	/* In a function called from SQL there is one, and another one per row would be dear. */
	if (push)
		PushActiveSnapshot(GetTransactionSnapshot());

	target = pgbq_open_target(relid, CMD_INSERT, cols, ncols);

	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(target->estate));
	slot = MakeSingleTupleTableSlot(RelationGetDescr(target->rel), &TTSOpsVirtual);
	fill_slot(slot, NULL, cols, ncols);

	if (target->rel->rd_att->constr)
		ExecConstraints(target->result, slot, target->estate);
	table_tuple_insert(target->rel, slot, GetCurrentCommandId(true), 0, NULL);
	insert_index_entries(target, slot, false, false, NULL);
	tid = itemptr_encode(&slot->tts_tid);

	ExecDropSingleTupleTableSlot(slot);
	MemoryContextSwitchTo(old);
	pgbq_close_target(target);
	if (push)
		PopActiveSnapshot();
	return tid;
}

/*
 * Begins a scan of a table in the order of one of its btree indexes, forward, of the rows that fulfil all keys;
 * these are in the order of the index's columns, and
 * values by reference must stay until pgbq_scan_end.
 *
 * The scan sees what was committed before this call, also in a REPEATABLE READ transaction, and what the transaction
 * itself did in earlier commands. In a SERIALIZABLE one it takes predicate locks as any query does. It holds
 * AccessShareLock on both until pgbq_scan_end, or the end of the transaction after an error, and lives in a context
 * below CurrentMemoryContext.
 */
PgbqScan *
pgbq_scan_begin(Oid relid, Oid indexid, const PgbqScanKey *keys, int nkeys)
{
	MemoryContext context;
	MemoryContext old;
	PgbqScan   *scan;
	ScanKey		scan_keys;

	Assert(IsTransactionState());

	context = AllocSetContextCreate(CurrentMemoryContext, "pg_background_queue scan", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	scan = palloc0(sizeof(PgbqScan));
	scan->context = context;
	scan->row_context = AllocSetContextCreate(context, "pg_background_queue row", ALLOCSET_SMALL_SIZES);

	/* The table's lock comes first: who holds it keeps its indexes from being dropped. */
	scan->rel = pgbq_open_table(relid, AccessShareLock);
	scan->index = try_relation_open(indexid, AccessShareLock);
	if (scan->index == NULL ||
		scan->index->rd_rel->relkind != RELKIND_INDEX ||
		scan->index->rd_index->indrelid != relid ||
		!scan->index->rd_index->indisvalid)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("relation \"%s\" has no valid index with OID %u", RelationGetRelationName(scan->rel), indexid)));

	scan_keys = palloc(sizeof(ScanKeyData) * Max(nkeys, 1));
	for (int i = 0; i < nkeys; i++)
	{
		int			column = keys[i].index_column - 1;
		Oid			type;
		Oid			operator;

		if (column < 0 || column >= IndexRelationGetNumberOfKeyAttributes(scan->index) ||
			(i > 0 && keys[i].index_column < keys[i - 1].index_column))
			elog(ERROR, "bad key column %d for index \"%s\"",
				 keys[i].index_column, RelationGetRelationName(scan->index));

		if (keys[i].strategy < 0)
		{
			ScanKeyEntryInitialize(&scan_keys[i],
								   SK_ISNULL | (keys[i].strategy == PGBQ_IS_NULL ? SK_SEARCHNULL : SK_SEARCHNOTNULL),
								   keys[i].index_column, InvalidStrategy, InvalidOid, InvalidOid, InvalidOid, (Datum) 0);
			continue;
		}

		type = scan->index->rd_opcintype[column];
		operator = get_opfamily_member(scan->index->rd_opfamily[column], type, type, keys[i].strategy);
		if (!OidIsValid(operator))
			elog(ERROR, "index \"%s\" has no operator for strategy %d of column %d",
				 RelationGetRelationName(scan->index), keys[i].strategy, keys[i].index_column);

		ScanKeyEntryInitialize(&scan_keys[i], 0, keys[i].index_column, keys[i].strategy, InvalidOid,
							   scan->index->rd_indcollation[column], get_opcode(operator), keys[i].value);
	}

	scan->snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan->slot = table_slot_create(scan->rel, NULL);
	scan->desc = begin_scan(scan->rel, scan->index, scan->snapshot, nkeys);
	index_rescan(scan->desc, scan_keys, nkeys, NULL, 0);

	MemoryContextSwitchTo(old);
	return scan;
}

/*
 * Fetches the columns of the scan's next row; the values last until the next call. False if there is none; get is as
 * it was then.
 */
bool
pgbq_scan_next(PgbqScan *scan, PgbqColumn *get, int nget)
{
	MemoryContext caller_context = MemoryContextSwitchTo(scan->context);
	bool		found;

	CHECK_FOR_INTERRUPTS();
	MemoryContextReset(scan->row_context);

	/* The index access method may allocate here what it needs until the end of the scan. */
	found = index_getnext_slot(scan->desc, ForwardScanDirection, scan->slot);
	if (found)
	{
		pgbq_check_columns(scan->rel, get, nget);
		get_columns(scan->slot, get, nget, scan->row_context);
	}

	MemoryContextSwitchTo(caller_context);
	return found;
}

/* Where the row fetched last is, as pgbq_row_update takes it. */
int64
pgbq_scan_tid(PgbqScan *scan)
{
	return itemptr_encode(&scan->slot->tts_tid);
}

/* Ends a scan and frees it. */
void
pgbq_scan_end(PgbqScan *scan)
{
	index_endscan(scan->desc);
	ExecDropSingleTupleTableSlot(scan->slot);
	UnregisterSnapshot(scan->snapshot);
	relation_close(scan->index, AccessShareLock);
	table_close(scan->rel, AccessShareLock);
	MemoryContextDelete(scan->context);
}
