/* See guc_shim.c. */
#ifndef PGBQ_GUC_SHIM_H
#define PGBQ_GUC_SHIM_H

extern void pgbq_refuse_value(const char *detail);

#endif
