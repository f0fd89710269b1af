/*
 * What a check hook of a setting says when it refuses a value.
 *
 * It must be C: GUC_check_errdetail is a macro.
 */
#include "postgres.h"

#include "utils/guc.h"

#include "guc_shim.h"

/* The DETAIL of the error that the server makes of the hook's refusal. */
void
pgbq_refuse_value(const char *detail)
{
	GUC_check_errdetail("%s", detail);
}
