/* Counts what a process does to files whose path has a given part, and makes the k-th such call fail, or the process
 * die in the middle of it. Loaded with LD_PRELOAD; armed by the process itself through ctypes. Linux and glibc.
 *
 * Counted: write, pwrite, writev, fsync, fdatasync, ftruncate, open for writing, mkdir, rename, unlink, rmdir.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define KILL (-1)
#define LASTING 1000 /* added to an errno: every later call fails too, as on a disk that stays full */

static char part[PATH_MAX];
static long target, count;
static int how;

/* path_part "" disarms. k = 0 only counts. */
void inject_arm(const char *path_part, long k, int error) {
    snprintf(part, sizeof part, "%s", path_part);
    target = k;
    how = error;
    count = 0;
}

long inject_count(void) { return count; }

/* 0: go on; else the call is to fail and errno is set. */
static int hit(const char *path) {
    if (!part[0] || !path || !strstr(path, part))
        return 0;
    long number = __sync_add_and_fetch(&count, 1);
    if (!target || number < target || (number > target && how < LASTING))
        return 0;
    if (how == KILL)
        return KILL;
    errno = how % LASTING;
    return 1;
}

static int hit_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!part[0])
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return hit(path);
}

static int hit_at(int folder, const char *name) {
    char link[64], path[2 * PATH_MAX];
    if (!part[0])
        return 0;
    if (name[0] == '/' || folder == AT_FDCWD)
        return hit(name);
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    snprintf(path + length, sizeof path - length, "/%s", name);
    return hit(path);
}

static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *bytes, size_t length) {
    int what = hit_fd(fd);
    if (what == KILL) {
        REAL(write)(fd, bytes, length / 2); /* torn */
        die();
    }
    return what ? -1 : REAL(write)(fd, bytes, length);
}

#define CALL(declaration, test, call)                                                                                  \
    declaration {                                                                                                      \
        int what = test;                                                                                               \
        if (what == KILL)                                                                                              \
            die();                                                                                                     \
        return what ? -1 : call;                                                                                       \
    }

CALL(ssize_t pwrite(int fd, const void *b, size_t n, off_t o), hit_fd(fd), REAL(pwrite)(fd, b, n, o))
CALL(ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o), hit_fd(fd), REAL(pwrite64)(fd, b, n, o))
CALL(ssize_t writev(int fd, const struct iovec *v, int n), hit_fd(fd), REAL(writev)(fd, v, n))
CALL(int fsync(int fd), hit_fd(fd), REAL(fsync)(fd))
CALL(int fdatasync(int fd), hit_fd(fd), REAL(fdatasync)(fd))
CALL(int ftruncate(int fd, off_t n), hit_fd(fd), REAL(ftruncate)(fd, n))
CALL(int ftruncate64(int fd, off64_t n), hit_fd(fd), REAL(ftruncate64)(fd, n))
CALL(int mkdir(const char *path, mode_t mode), hit(path), REAL(mkdir)(path, mode))
CALL(int rename(const char *from, const char *to), hit(to), REAL(rename)(from, to))
CALL(int unlink(const char *path), hit(path), REAL(unlink)(path))
CALL(int rmdir(const char *path), hit(path), REAL(rmdir)(path))
CALL(int unlinkat(int f, const char *path, int flags), hit_at(f, path), REAL(unlinkat)(f, path, flags))

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                      \
        va_end(rest);                                                                                                  \
        int what = (flags & O_ACCMODE) != O_RDONLY ? hit(path) : 0;                                                    \
        if (what == KILL)                                                                                              \
            die();                                                                                                     \
        return what ? -1 : REAL(name)(path, flags, mode);                                                              \
    }

OPEN(open)
OPEN(open64)
