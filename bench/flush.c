/* Preloaded by scripts/bench for FLUSH_DELAY: a disk that takes so many microseconds longer for each flush of the WAL. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int
fdatasync(int fd)
{
	const char *delay = getenv("FLUSH_DELAY");
	long		microseconds = delay ? atol(delay) : 0;
	struct timespec rest = {microseconds / 1000000, microseconds % 1000000 * 1000};

	while (nanosleep(&rest, &rest) != 0)
		;
	return (int) syscall(SYS_fdatasync, fd);
}
