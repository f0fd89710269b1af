/*
 * Questions to the system catalogs.
 *
 * It is C because the structs behind the answers, and the names of the functions that check rights, differ
 * between versions. All may raise; all need a transaction.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/dependency.h"
#include "catalog/index.h"
#if PG_VERSION_NUM < 140000
#include "catalog/indexing.h"
#endif
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

#include "catalog_shim.h"

/* The schema of an extension: extension.c has this function, exported only from 16 on. */
static Oid
extension_schema(Oid extension)
{
	Relation	catalog = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			schema = InvalidOid;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(catalog, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return schema;
}

/*
 * The relation of this name that belongs to the extension, in whichever schema; InvalidOid if the extension or
 * the relation is not there. What a user puts under the same name into the extension's schema is not taken for it.
 */
Oid
pgbq_extension_relation(const char *extension, const char *relation)
{
	Oid			extension_oid = get_extension_oid(extension, true);
	Oid			schema;
	Oid			found;

	if (!OidIsValid(extension_oid))
		return InvalidOid;
	schema = extension_schema(extension_oid);
	found = get_relname_relid(relation, schema);
	if (OidIsValid(found) &&
		getExtensionOfObject(RelationRelationId, found) != extension_oid)
		return InvalidOid;
	return found;
}

/* The index of this name on the relation; the name alone could be another's. */
Oid
pgbq_index_of(Oid relation, const char *name)
{
	Oid			index = get_relname_relid(name, get_rel_namespace(relation));

	if (OidIsValid(index) && IndexGetRelation(index, true) != relation)
		return InvalidOid;
	return index;
}

/* The sequence that a column of the relation owns; the relation has only one such column. */
Oid
pgbq_owned_sequence(Oid relation)
{
	List	   *sequences = getOwnedSequences(relation);

	return sequences == NIL ? InvalidOid : linitial_oid(sequences);
}

Oid
pgbq_column_type(Oid relation, AttrNumber attnum)
{
	return get_atttype(relation, attnum);
}

/* InvalidOid if the enum has no such label. */
Oid
pgbq_enum_label(Oid type, const char *label)
{
	return GetSysCacheOid2(ENUMTYPOIDNAME, Anum_pg_enum_oid,
						   ObjectIdGetDatum(type), CStringGetDatum(label));
}

/* The databases of the cluster. Palloc'ed. */
PgbqDatabase *
pgbq_databases(int *count)
{
	Relation	relation = table_open(DatabaseRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(relation, 0, NULL);
	HeapTuple	tuple;
	int			room = 16;
	PgbqDatabase *databases = palloc(room * sizeof(PgbqDatabase));

	*count = 0;
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		if (*count == room)
		{
			room *= 2;
			databases = repalloc(databases, room * sizeof(PgbqDatabase));
		}
		/* -2 marks what an interrupted DROP DATABASE has left: nobody can connect */
		databases[(*count)++] = (PgbqDatabase) {
			.oid = database->oid,
			.name = database->datname,
			.connectable = database->datallowconn && database->datconnlimit != -2,
			.is_template = database->datistemplate
		};
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	return databases;
}

/*
 * Whether the database exists; also without being connected to any, where up to 13 the syscache would look for an index
 * that cannot be opened (as GetDatabaseTupleByOid).
 */
bool
pgbq_database_exists(Oid database)
{
	Relation	catalog = table_open(DatabaseRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	bool		found;

	ScanKeyInit(&key, Anum_pg_database_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(database));
	scan = systable_beginscan(catalog, DatabaseOidIndexId, criticalSharedRelcachesBuilt, NULL, 1, &key);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return found;
}

/* Palloc'ed; NULL if there is no such role. */
char *
pgbq_role_name(Oid role)
{
	return GetUserNameFromId(role, true);
}

/* Whether a worker of that role would be let in by its LOGIN attribute; also true if there is no such role. */
bool
pgbq_may_log_in(Oid role)
{
#if PG_VERSION_NUM < 170000
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	bool		can_login;

	if (!HeapTupleIsValid(tuple))
		return true;
	can_login = ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
	ReleaseSysCache(tuple);
	return can_login;
#else
	/* BGWORKER_BYPASS_ROLELOGINCHECK lets it in */
	return true;
#endif
}

/*
 * Whether a worker of that role could connect: what InitializeSessionUserId and CheckMyDatabase will ask.
 * Limits on the number of connections are left out: they pass.
 */
PgbqMayConnect
pgbq_may_connect(Oid role, Oid database)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	bool		is_superuser;
	AclResult	privilege;

	if (!HeapTupleIsValid(tuple))
		return PGBQ_NO_SUCH_ROLE;
	is_superuser = ((Form_pg_authid) GETSTRUCT(tuple))->rolsuper;
	ReleaseSysCache(tuple);

	if (!pgbq_may_log_in(role))
		return PGBQ_MAY_NOT_LOG_IN;
	if (is_superuser)
		return PGBQ_MAY_CONNECT;
#if PG_VERSION_NUM >= 160000
	privilege = object_aclcheck(DatabaseRelationId, database, role, ACL_CONNECT);
#else
	privilege = pg_database_aclcheck(database, role, ACL_CONNECT);
#endif
	return privilege == ACLCHECK_OK ? PGBQ_MAY_CONNECT : PGBQ_NO_CONNECT_PRIVILEGE;
}

/*
 * Text, palloc'ed, that changes when a session of this role in this database would have to be opened anew to be as
 * after a login; NULL if there is no such role or database. Left out is what changes by itself or is looked up each
 * time it matters: passwords, the horizons that VACUUM moves, memberships beyond the right to connect (acl.c watches them).
 */
char *
pgbq_session_fingerprint(Oid role, Oid database)
{
	StringInfoData text;
	HeapTuple	tuple;
	bool		isnull;
	Datum		acl;

	initStringInfo(&text);

	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	if (!HeapTupleIsValid(tuple))
		return NULL;
	{
		Form_pg_authid form = (Form_pg_authid) GETSTRUCT(tuple);

		appendStringInfo(&text, "%s %d%d%d%d%d%d%d %d", NameStr(form->rolname),
						 form->rolsuper, form->rolinherit, form->rolcreaterole, form->rolcreatedb,
						 form->rolcanlogin, form->rolreplication, form->rolbypassrls, form->rolconnlimit);
	}
	ReleaseSysCache(tuple);

	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	if (!HeapTupleIsValid(tuple))
		return NULL;
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		appendStringInfo(&text, " %s %u %d %d", NameStr(form->datname), form->datdba,
						 form->datallowconn, form->datconnlimit);
	}
	appendStringInfo(&text, " %d", (int) pgbq_may_connect(role, database));
	acl = SysCacheGetAttr(DATABASEOID, tuple, Anum_pg_database_datacl, &isnull);
	if (!isnull)
		appendStringInfo(&text, " %s", OidOutputFunctionCall(F_ARRAY_OUT, acl));
	ReleaseSysCache(tuple);
	return text.data;
}

/* What a syscache callback will be given when this row changes. */
uint32
pgbq_syscache_hash(int cache, Oid key)
{
	return GetSysCacheHashValue1(cache, ObjectIdGetDatum(key));
}
