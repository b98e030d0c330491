/* Fails chosen calls of write, fsync, rename and unlink below one folder, as a full or broken disk does.

   Built by disk.py as a shared library and named in LD_PRELOAD, so that every caller of the C library passes through:
   fault_arm(folder, call, first, last, error) fails the calls numbered first..last (from 1) of one kind with `error`;
   fault_seen(call) is how many of a kind there were. Kinds: 0 write, 1 fsync, 2 rename, 3 unlink (rmdir included). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[PATH_MAX];
static int armed_call = -1, armed_error;
static long armed_first, armed_last;
static atomic_long seen[4];

void fault_arm(const char *below, int call, long first, long last, int error) {
    for (int kind = 0; kind < 4; kind++) seen[kind] = 0;
    armed_call = call, armed_first = first, armed_last = last, armed_error = error;
    if (realpath(below, folder) == NULL) strncpy(folder, below, PATH_MAX - 1);
}

long fault_seen(int call) { return seen[call]; }

static int fails(int call, const char *path) {
    size_t length = strlen(folder);
    if (length == 0 || strncmp(path, folder, length) != 0 || (path[length] != '/' && path[length] != 0)) return 0;
    long number = atomic_fetch_add(&seen[call], 1) + 1;
    if (call != armed_call || number < armed_first || number > armed_last) return 0;
    errno = armed_error;
    return 1;
}

static int descriptor_fails(int call, int descriptor) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

static int path_fails(int call, int at, const char *path) { /* relative to a folder's descriptor, as rmtree does */
    return path[0] == '/' || at == AT_FDCWD ? fails(call, path) : descriptor_fails(call, at);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int descriptor, const void *data, size_t size) {
    return descriptor_fails(0, descriptor) ? -1 : REAL(write)(descriptor, data, size);
}

int fsync(int descriptor) { return descriptor_fails(1, descriptor) ? -1 : REAL(fsync)(descriptor); }

int rename(const char *from, const char *to) { return path_fails(2, AT_FDCWD, from) ? -1 : REAL(rename)(from, to); }

int unlink(const char *path) { return path_fails(3, AT_FDCWD, path) ? -1 : REAL(unlink)(path); }

int rmdir(const char *path) { return path_fails(3, AT_FDCWD, path) ? -1 : REAL(rmdir)(path); }

int unlinkat(int at, const char *path, int flags) {
    return path_fails(3, at, path) ? -1 : REAL(unlinkat)(at, path, flags);
}
