/* See catalog_shim.c. */
#ifndef PGBQ_CATALOG_SHIM_H
#define PGBQ_CATALOG_SHIM_H

typedef enum PgbqMayConnect
{
	PGBQ_MAY_CONNECT,
	PGBQ_NO_SUCH_ROLE,
	PGBQ_MAY_NOT_LOG_IN,
	PGBQ_NO_CONNECT_PRIVILEGE
} PgbqMayConnect;

typedef struct PgbqDatabase
{
	Oid			oid;
	NameData	name;
	bool		connectable;	/* anybody may connect who has the right to */
	bool		is_template;
} PgbqDatabase;

extern Oid	pgbq_extension_relation(const char *extension, const char *relation);
extern Oid	pgbq_index_of(Oid relation, const char *name);
extern Oid	pgbq_owned_sequence(Oid relation);
extern Oid	pgbq_column_type(Oid relation, AttrNumber attnum);
extern Oid	pgbq_enum_label(Oid type, const char *label);
extern PgbqDatabase *pgbq_databases(int *count);
extern bool pgbq_database_exists(Oid database);
extern char *pgbq_role_name(Oid role);
extern bool pgbq_may_log_in(Oid role);
extern PgbqMayConnect pgbq_may_connect(Oid role, Oid database);
extern char *pgbq_session_fingerprint(Oid role, Oid database);
extern uint32 pgbq_syscache_hash(int cache, Oid key);

#endif
