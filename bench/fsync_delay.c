/* Makes fsync(2) and fdatasync(2) take 1 ms longer, or FSYNC_DELAY_US microseconds: a disk slower than this machine's.
 *
 *     cc -O2 -shared -fPIC -o fsync_delay.so fsync_delay.c -ldl
 *     LD_PRELOAD=./fsync_delay.so mariadbd ...
 *
 * A disk of its own latency, not of a bandwidth: calls that overlap wait beside each other. What is written with O_DIRECT or
 * O_SYNC does not pass here; MariaDB's redo log and SQLite's write-ahead log are made durable by these two calls.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

static int (*real_fsync)(int), (*real_fdatasync)(int);
static struct timespec delay = {0, 1000000};

__attribute__((constructor)) static void prepare(void)
{
    const char *asked = getenv("FSYNC_DELAY_US");
    long us = asked ? atol(asked) : 1000;
    delay = (struct timespec){us / 1000000, us % 1000000 * 1000};
    real_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
}

static int after_a_while(int result)
{
    int error = errno;
    struct timespec left = delay;
    while (nanosleep(&left, &left) && errno == EINTR) {}
    errno = error;
    return result;
}

int fsync(int fd) { return after_a_while(real_fsync(fd)); }
int fdatasync(int fd) { return after_a_while(real_fdatasync(fd)); }
