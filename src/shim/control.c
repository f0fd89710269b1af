/*
 * How the server started and whether it is about to stop, from the two files that know.
 *
 * It is C for the sake of pg_control.h, whose structs differ between versions.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "catalog/pg_control.h"
#include "common/controldata_utils.h"
#include "miscadmin.h"
#include "utils/pidfile.h"

#include "control.h"

/*
 * Whether the cluster was shut down in an orderly way before this start. Only a caller that runs before the
 * startup process (a shmem_startup_hook in the postmaster) gets an answer about the past: StartupXLOG then
 * overwrites the state. After a crash of a backend the postmaster starts anew with the state still "in
 * production", which is not clean either.
 */
bool
pgbq_was_shut_down_cleanly(void)
{
	bool		crc_ok;
	bool		clean;
	ControlFileData *control = get_controlfile(DataDir, &crc_ok);

	clean = crc_ok && (control->state == DB_SHUTDOWNED ||
					   control->state == DB_SHUTDOWNED_IN_RECOVERY);
	pfree(control);
	return clean;
}

/*
 * Whether the postmaster has been told to stop. It writes "stopping" into postmaster.pid before it signals
 * any child (pmdie), so a process that died from a shutdown's SIGTERM died after this became true. No answer
 * (file unreadable) counts as stopping: the caller then leaves things to the next start.
 */
bool
pgbq_postmaster_is_stopping(void)
{
	char		path[MAXPGPATH];
	char		content[1024];
	char	   *line = content;
	ssize_t		length;
	int			file;

	/* the working directory of every server process is the data directory */
	snprintf(path, sizeof(path), "%s/postmaster.pid", DataDir);
	file = open(path, O_RDONLY | PG_BINARY, 0);
	if (file < 0)
		return true;
	length = read(file, content, sizeof(content) - 1);
	close(file);
	if (length < 0)
		return true;
	content[length] = '\0';

	for (int i = 1; i < LOCK_FILE_LINE_PM_STATUS && line != NULL; i++)
	{
		line = strchr(line, '\n');
		if (line != NULL)
			line++;
	}
	return line == NULL ||
		strncmp(line, PM_STATUS_STOPPING, strlen(PM_STATUS_STOPPING)) == 0;
}
