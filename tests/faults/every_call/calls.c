/* Fail or kill a process at its k-th call that changes the file system below one directory.

   Loaded with LD_PRELOAD, so that it sees the calls of Python and of the libraries beneath alike.
   Nothing happens before arm(). Counted are calls that name a path below the directory, or a
   descriptor that is open on one. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, COUNT, KILL, ONCE, FULL };

static char root[PATH_MAX];
static size_t root_length;
static int mode = NONE, error_number;
static long position, target;
static FILE *record; /* one line for each call: its name and its path */

/* mode FULL: from the target on, every call fails that needs room on the disk. */
void arm(const char *directory, int how, long k, int error, const char *log)
{
    root_length = strlen(strcpy(root, directory));
    target = k, error_number = error, position = 0;
    record = *log ? fopen(log, "we") : NULL;
    mode = how;
}

/* The whole path of one below an open directory, or, where path is NULL, of an open file. */
static const char *whole(int directory, const char *path, char *buffer)
{
    char link[64];
    ssize_t length;
    if (path && path[0] == '/')
        return path;
    if (directory == AT_FDCWD)
        strcpy(link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    length = readlink(link, buffer, PATH_MAX);
    if (length < 0)
        return "";
    snprintf(buffer + length, PATH_MAX, "%s%s", path ? "/" : "", path ? path : "");
    return buffer;
}

/* Returns whether to interfere with a call; errno is set. */
static int strike(const char *name, int directory, const char *path, int needs_room)
{
    char buffer[2 * PATH_MAX];
    const char *full;
    if (mode == NONE)
        return 0;
    full = whole(directory, path, buffer);
    if (strncmp(full, root, root_length) != 0 || (full[root_length] && full[root_length] != '/'))
        return 0;
    position++;
    if (record) {
        fprintf(record, "%s %d %s\n", name, needs_room, full);
        fflush(record);
    }
    if (mode == COUNT || position < target || (position > target && mode != FULL))
        return 0;
    if (mode == FULL && !needs_room)
        return 0;
    errno = error_number;
    return 1;
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) \
        real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define STRIKE(directory, path, room) \
    if (strike(__func__, directory, path, room)) { \
        if (mode == KILL) \
            die(); \
        return -1; \
    }

/* Of flags that make a file, open takes a mode as well. */
#define OPEN(name, directory, parameters, types, arguments) \
    int name parameters \
    { \
        REAL(int, name, types); \
        mode_t bits = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list more; \
            va_start(more, flags); \
            bits = va_arg(more, mode_t); \
            va_end(more); \
        } \
        if (flags & (O_WRONLY | O_RDWR)) \
            STRIKE(directory, path, (flags & O_CREAT) && faccessat(directory, path, F_OK, 0) != 0) \
        return real arguments; \
    }
#define LIST(...) __VA_ARGS__

OPEN(open, AT_FDCWD, (const char *path, int flags, ...), LIST(const char *, int, ...), (path, flags, bits))
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), LIST(const char *, int, ...), (path, flags, bits))
OPEN(openat, at, (int at, const char *path, int flags, ...), LIST(int, const char *, int, ...), (at, path, flags, bits))
OPEN(openat64, at, (int at, const char *path, int flags, ...), LIST(int, const char *, int, ...), (at, path, flags, bits))

/* A kill within a write leaves half of it. */
#define HALVED(half) \
    if (strike(__func__, file, NULL, 1)) { \
        if (mode == KILL) \
            half, die(); \
        return -1; \
    }

ssize_t write(int file, const void *data, size_t size)
{
    REAL(ssize_t, write, int, const void *, size_t);
    HALVED(real(file, data, size / 2))
    return real(file, data, size);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset)
{
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    HALVED(real(file, data, size / 2, offset))
    return real(file, data, size, offset);
}

ssize_t writev(int file, const struct iovec *parts, int count)
{
    REAL(ssize_t, writev, int, const struct iovec *, int);
    HALVED(real(file, parts, count / 2))
    return real(file, parts, count);
}

ssize_t sendfile64(int file, int source, off64_t *offset, size_t size)
{
    REAL(ssize_t, sendfile64, int, int, off64_t *, size_t);
    STRIKE(file, NULL, 1)
    return real(file, source, offset, size);
}

ssize_t sendfile(int file, int source, off_t *offset, size_t size)
{
    REAL(ssize_t, sendfile, int, int, off_t *, size_t);
    STRIKE(file, NULL, 1)
    return real(file, source, offset, size);
}

ssize_t copy_file_range(int source, off64_t *from, int file, off64_t *to, size_t size, unsigned flags)
{
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
    STRIKE(file, NULL, 1)
    return real(source, from, file, to, size, flags);
}

#define CALL(name, room, directory, path, parameters, types, arguments) \
    int name parameters \
    { \
        REAL(int, name, types); \
        STRIKE(directory, path, room) \
        return real arguments; \
    }

CALL(fsync, 1, file, NULL, (int file), int, (file))
CALL(fdatasync, 1, file, NULL, (int file), int, (file))
CALL(ftruncate64, 0, file, NULL, (int file, off64_t size), LIST(int, off64_t), (file, size))
CALL(ftruncate, 0, file, NULL, (int file, off_t size), LIST(int, off_t), (file, size))
CALL(fchmod, 0, file, NULL, (int file, mode_t bits), LIST(int, mode_t), (file, bits))
CALL(mkdir, 1, AT_FDCWD, path, (const char *path, mode_t bits), LIST(const char *, mode_t), (path, bits))
CALL(mkdirat, 1, at, path, (int at, const char *path, mode_t bits), LIST(int, const char *, mode_t), (at, path, bits))
CALL(chmod, 0, AT_FDCWD, path, (const char *path, mode_t bits), LIST(const char *, mode_t), (path, bits))
CALL(fchmodat, 0, at, path, (int at, const char *path, mode_t bits, int flags), LIST(int, const char *, mode_t, int), (at, path, bits, flags))
CALL(rmdir, 0, AT_FDCWD, path, (const char *path), const char *, (path))
CALL(unlink, 0, AT_FDCWD, path, (const char *path), const char *, (path))
CALL(unlinkat, 0, at, path, (int at, const char *path, int flags), LIST(int, const char *, int), (at, path, flags))
CALL(rename, 0, AT_FDCWD, to, (const char *from, const char *to), LIST(const char *, const char *), (from, to))
CALL(renameat, 0, at, to, (int base, const char *from, int at, const char *to), LIST(int, const char *, int, const char *), (base, from, at, to))
CALL(link, 1, AT_FDCWD, to, (const char *from, const char *to), LIST(const char *, const char *), (from, to))
CALL(linkat, 1, at, to, (int base, const char *from, int at, const char *to, int flags), LIST(int, const char *, int, const char *, int), (base, from, at, to, flags))
CALL(symlink, 1, AT_FDCWD, to, (const char *from, const char *to), LIST(const char *, const char *), (from, to))
CALL(symlinkat, 1, at, to, (const char *from, int at, const char *to), LIST(const char *, int, const char *), (from, at, to))
CALL(truncate64, 0, AT_FDCWD, path, (const char *path, off64_t size), LIST(const char *, off64_t), (path, size))
