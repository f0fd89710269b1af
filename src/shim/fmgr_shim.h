/* See fmgr_shim.c. */
#ifndef PGBQ_FMGR_SHIM_H
#define PGBQ_FMGR_SHIM_H

extern const Pg_magic_struct *pgbq_magic(void);
extern const Pg_finfo_record *pgbq_finfo(void);
extern bool pgbq_arg_is_null(FunctionCallInfo fcinfo, int n);
extern Datum pgbq_arg(FunctionCallInfo fcinfo, int n);
extern int	pgbq_arg_count(FunctionCallInfo fcinfo);
extern void pgbq_begin_rows(FunctionCallInfo fcinfo);
extern void pgbq_add_row(FunctionCallInfo fcinfo, const Datum *values, const bool *nulls);
extern const char *pgbq_text_bytes(Datum text, Size *length);
extern const int64 *pgbq_int8_array(Datum array, int *count);
extern int64 pgbq_interval_ms(Datum interval);
extern Datum pgbq_make_name(const char *bytes, Size length);
extern const char *pgbq_name_bytes(Datum name);

#endif
