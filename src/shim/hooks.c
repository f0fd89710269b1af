/*
 * The ProcessUtility hook, reduced to the questions that we ask it.
 *
 * It must be C: the hook's signature differs between versions, and it calls the next one, which may jump.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/syscache.h"

#include "hooks.h"

static ProcessUtility_hook_type next_hook = NULL;
static PgbqUtilityWatch watch;

/* A utility command has begun since the last pgbq_forget_utility: one that may leave something in the session. */
static bool utility_ran = false;

/* The same of one that has to do with the end of its transaction. */
static bool transaction_wanted = false;

#if PG_VERSION_NUM >= 140000
#define READ_ONLY_TREE_PARAMETER bool read_only_tree,
#define READ_ONLY_TREE read_only_tree,
#else
#define READ_ONLY_TREE_PARAMETER
#define READ_ONLY_TREE
#endif

/* The value of an option of a database command; NULL if it is not given. */
static const char *
option(List *options, const char *name)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *element = lfirst_node(DefElem, cell);

		if (strcmp(element->defname, name) == 0 && element->arg != NULL)
			return defGetString(element);
	}
	return NULL;
}

/* Whether the current role owns the database, and so may drop, rename or move it. */
static bool
owns(Oid database)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(DatabaseRelationId, database, GetUserId());
#else
	return pg_database_ownercheck(database, GetUserId());
#endif
}

/* Whether the current role may copy the database: createdb's own conditions. */
static bool
may_copy(Oid database)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	bool		may_create = superuser();
	bool		is_template = false;

	if (HeapTupleIsValid(tuple))
	{
		may_create |= ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	if (HeapTupleIsValid(tuple))
	{
		is_template = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
		ReleaseSysCache(tuple);
	}
	return may_create && (is_template || owns(database));
}

/*
 * The database that the command wants to be without sessions; InvalidOid if it is no such command, or one that the
 * current role may not give: nobody else's workers are to leave for that.
 */
static Oid
database_to_empty(Node *node)
{
	const char *name = NULL;
	Oid			database;

	if (IsA(node, DropdbStmt))
		name = castNode(DropdbStmt, node)->dbname;
	else if (IsA(node, RenameStmt) && castNode(RenameStmt, node)->renameType == OBJECT_DATABASE)
		name = castNode(RenameStmt, node)->subname;
	else if (IsA(node, AlterDatabaseStmt) &&
			 option(castNode(AlterDatabaseStmt, node)->options, "tablespace") != NULL)
		name = castNode(AlterDatabaseStmt, node)->dbname;
	else if (IsA(node, CreatedbStmt))
	{
		name = option(castNode(CreatedbStmt, node)->options, "template");
		if (name == NULL)
			name = "template1";
	}
	if (name == NULL || !IsTransactionState())
		return InvalidOid;

	database = get_database_oid(name, true);
	if (!OidIsValid(database) ||
		!(IsA(node, CreatedbStmt) ? may_copy(database) : owns(database)))
		return InvalidOid;
	return database;
}

/*
 * Whose settings the command changes; false if it is no such command. To be called before it runs: a name that is not
 * there is the command's own error.
 */
static bool
changes_settings(Node *node, Oid *role, Oid *database)
{
	const char *name;

	*role = InvalidOid;
	*database = InvalidOid;
	if (IsA(node, AlterRoleSetStmt))
	{
		AlterRoleSetStmt *statement = castNode(AlterRoleSetStmt, node);

		if (statement->role != NULL)
			*role = get_rolespec_oid(statement->role, true);
		name = statement->database;
	}
	else if (IsA(node, AlterDatabaseSetStmt))
		name = castNode(AlterDatabaseSetStmt, node)->dbname;
	else
		return false;
	if (name != NULL)
		*database = get_database_oid(name, true);
	return true;
}

/* Whether nothing of the command can outlive it, but for the commands that run inside of it, which come by here, too. */
static bool
leaves_nothing(Node *node)
{
	return IsA(node, DoStmt) || IsA(node, CallStmt) || IsA(node, ExplainStmt);
}

static void
watch_utility(PlannedStmt *statement, const char *text, READ_ONLY_TREE_PARAMETER
			  ProcessUtilityContext context, ParamListInfo params,
			  QueryEnvironment *environment, DestReceiver *receiver, QueryCompletion *completion)
{
	Node	   *node = statement->utilityStmt;
	/* the statement may be gone once it has run: COMMIT frees what it was planned in */
	volatile bool prepared = IsA(node, TransactionStmt) &&
		castNode(TransactionStmt, node)->kind == TRANS_STMT_COMMIT_PREPARED;
	volatile Oid database = database_to_empty(node);
	Oid			settings_role;
	Oid			settings_database;
	volatile bool settings = changes_settings(node, &settings_role, &settings_database);

	if (!leaves_nothing(node))
		utility_ran = true;
	if (IsA(node, DeclareCursorStmt) || IsA(node, LockStmt))
		transaction_wanted = true;

	PG_TRY();
	{
		if (OidIsValid(database))
			watch.want_empty(database);
		if (next_hook != NULL)
			next_hook(statement, text, READ_ONLY_TREE context, params, environment, receiver, completion);
		else
			standard_ProcessUtility(statement, text, READ_ONLY_TREE context, params, environment, receiver, completion);
	}
	PG_FINALLY();
	{
		if (OidIsValid(database))
			watch.no_longer(database);
	}
	PG_END_TRY();

	if (settings)
		watch.done(PGBQ_SESSION_SETTINGS, settings_role, settings_database);
	if (prepared)
		watch.done(PGBQ_COMMIT_PREPARED, InvalidOid, InvalidOid);
}

/* From _PG_init. The callbacks want_empty and no_longer must not raise. */
void
pgbq_watch_utility(const PgbqUtilityWatch *callbacks)
{
	watch = *callbacks;
	next_hook = ProcessUtility_hook;
	ProcessUtility_hook = watch_utility;
}

/* Whether a utility command has begun in this process since pgbq_forget_utility. */
bool
pgbq_utility_ran(void)
{
	return utility_ran;
}

/*
 * Whether one of them wants a transaction of its own: DECLARE ... WITH HOLD, which runs at the commit, with no bound; or DECLARE and LOCK
 * TABLE, which are errors where nothing follows in their transaction, and are to be so in company, too.
 */
bool
pgbq_transaction_wanted(void)
{
	return transaction_wanted;
}

void
pgbq_forget_utility(void)
{
	utility_ran = false;
	transaction_wanted = false;
}
