/* Preloaded by tests/server/clock.rs: the processes of one server have a wall clock that is wrong by the seconds that stand in a file.
 *
 * (libfaketime would not do: it shows the right time to signal handlers that interrupt a wait, and so to all that the postmaster of
 * PostgreSQL 15 and before forks there.) */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long none = 0;
static const volatile long *wrong_by = &none;

__attribute__((constructor)) static void
attach(void)
{
	const char *file = getenv("TEST_CLOCK");
	int			fd = file ? open(file, O_RDONLY | O_CLOEXEC) : -1;

	if (fd >= 0)
	{
		void	   *address = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);

		if (address != MAP_FAILED)
			wrong_by = address;
		close(fd);
	}
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int			result = (int) syscall(SYS_clock_gettime, clock, now);

	if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += *wrong_by;
	return result;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec exact;
	int			result = clock_gettime(CLOCK_REALTIME, &exact);

	(void) zone;
	now->tv_sec = exact.tv_sec;
	now->tv_usec = exact.tv_nsec / 1000;
	return result;
}

time_t
time(time_t *copy)
{
	struct timespec exact;

	clock_gettime(CLOCK_REALTIME, &exact);
	if (copy != NULL)
		*copy = exact.tv_sec;
	return exact.tv_sec;
}
