/* Lets the k-th file call of a program fail. Loaded before the C library (LD_PRELOAD), whose calls it makes in its turn.
 *
 * Only calls on what lies below one directory count, those of all threads together, each in the classes it belongs to: which
 * call is the k-th depends on what is to happen to it. A short write cannot happen to a sync, and a full disk is no trouble to
 * whoever removes a file.
 *
 *   CALLS_ROOT    the directory, by the name that the kernel has for it
 *   CALLS_TALLY   a file of the layout `struct tally`: what was counted, to be read by the parent however the program ends
 *   CALLS_NTH     which call; 0 lets all of them be
 *   CALLS_HOW     EIO, ENOSPC, SHORT (half of a write is done, and said so) or ABORT (the program ends without another step)
 *   CALLS_HALF    1: before it fails, half of a write is done
 *   CALLS_STICKY  1: all calls after it fail, too
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* The status by which the parent knows that it was us. */
enum { ABORTED = 99 };
enum how { NOTHING, EIO_, ENOSPC_, SHORT, ABORT };
/* Every call; those that may need space; those that write. */
enum class { ANY, SPACE, WRITES, CLASSES };

struct tally {
    _Atomic unsigned long counted[CLASSES];
    _Atomic unsigned long failed;
    char first[232];
};

static struct tally *tally;
static const char *root;
static unsigned long nth;
static enum how how;
static int half, sticky;

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); real; })

static int set(const char *name) {
    const char *value = getenv(name);
    return value && *value == '1';
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CALLS_TALLY"), *text = getenv("CALLS_NTH"), *named = getenv("CALLS_HOW");
    static const char *names[] = {"", "EIO", "ENOSPC", "SHORT", "ABORT"};
    if (!path || !named) return;
    int fd = REAL(open)(path, O_RDWR | O_CLOEXEC);
    void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *tally, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) abort();
    nth = text ? strtoul(text, NULL, 10) : 0;
    for (int i = 1; i <= ABORT; i++)
        if (!strcmp(named, names[i])) how = i;
    half = set("CALLS_HALF");
    sticky = set("CALLS_STICKY");
    root = getenv("CALLS_ROOT");
    tally = mapped;
}

static int below(const char *path) {
    size_t length = root ? strlen(root) : 0;
    return length && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

/* The name of an open file, where it is ours. */
static int named(int fd, char *name) {
    int before = errno;
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, PATH_MAX - 1);
    errno = before;
    name[length < 0 ? 0 : length] = 0;
    return below(name);
}

/* What a call is to meet with. */
static enum how met(const char *call, enum class class, const char *path) {
    unsigned long at[CLASSES] = {0};
    for (int one = ANY; one <= (int)class; one++) at[one] = atomic_fetch_add(&tally->counted[one], 1) + 1;
    unsigned long mine = at[how == SHORT ? WRITES : how == ENOSPC_ ? SPACE : half && how == ABORT ? WRITES : ANY];
    if (!nth || !mine || mine < nth || (mine > nth && !sticky)) return NOTHING;
    if (!atomic_fetch_add(&tally->failed, 1)) snprintf(tally->first, sizeof tally->first, "%s %s", call, path);
    return how;
}

static enum how met_file(const char *call, enum class class, int fd) {
    char name[PATH_MAX];
    return tally && named(fd, name) ? met(call, class, name) : NOTHING;
}

static enum how met_name(const char *call, enum class class, int directory, const char *path) {
    if (!tally || !path) return NOTHING;
    if (*path == '/') return below(path) ? met(call, class, path) : NOTHING;
    char name[PATH_MAX];
    return directory >= 0 && named(directory, name) ? met(call, class, path) : NOTHING;
}

static int fails(enum how with) {
    if (with == ABORT) _exit(ABORTED);
    errno = with == ENOSPC_ ? ENOSPC : EIO;
    return -1;
}

/* So much of a write is done before it fails. */
static size_t part(enum how with, size_t bytes) {
    return with == SHORT || half ? (bytes + 1) / 2 : 0;
}

static ssize_t wrote(enum how with, ssize_t bytes) {
    return with == SHORT ? bytes : fails(with);
}

#define WRITE(name, arguments, first)                                                    \
    enum how with = met_file(#name, WRITES, fd);                                         \
    if (!with) return REAL(name) arguments;                                              \
    bytes = part(with, bytes);                                                           \
    ssize_t done = bytes ? first : 0;                                                    \
    return wrote(with, done)

ssize_t write(int fd, const void *from, size_t bytes) {
    WRITE(write, (fd, from, bytes), REAL(write)(fd, from, bytes));
}

ssize_t pwrite(int fd, const void *from, size_t bytes, off_t at) {
    WRITE(pwrite, (fd, from, bytes, at), REAL(pwrite)(fd, from, bytes, at));
}

ssize_t pwrite64(int fd, const void *from, size_t bytes, off64_t at) {
    WRITE(pwrite64, (fd, from, bytes, at), REAL(pwrite64)(fd, from, bytes, at));
}

/* Short at the end of its first piece. */
ssize_t writev(int fd, const struct iovec *pieces, int count) {
    size_t bytes = count > 0 ? pieces->iov_len : 0;
    WRITE(writev, (fd, pieces, count), REAL(write)(fd, pieces->iov_base, bytes));
}

#define ON_FILE(class, name, parameters, arguments)                                      \
    int name parameters {                                                                \
        enum how with = met_file(#name, class, fd);                                      \
        return with ? fails(with) : REAL(name) arguments;                                \
    }
#define ON_NAME(class, name, directory, path, parameters, arguments)                     \
    int name parameters {                                                                \
        enum how with = met_name(#name, class, directory, path);                         \
        return with ? fails(with) : REAL(name) arguments;                                \
    }

ON_FILE(SPACE, fsync, (int fd), (fd))
ON_FILE(SPACE, fdatasync, (int fd), (fd))
ON_FILE(SPACE, sync_file_range, (int fd, off64_t from, off64_t bytes, unsigned flags), (fd, from, bytes, flags))
ON_FILE(SPACE, fallocate, (int fd, int mode, off_t from, off_t bytes), (fd, mode, from, bytes))
ON_FILE(SPACE, fallocate64, (int fd, int mode, off64_t from, off64_t bytes), (fd, mode, from, bytes))
ON_FILE(ANY, ftruncate, (int fd, off_t length), (fd, length))
ON_FILE(ANY, ftruncate64, (int fd, off64_t length), (fd, length))
ON_NAME(SPACE, mkdir, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
ON_NAME(SPACE, link, AT_FDCWD, to, (const char *from, const char *to), (from, to))
ON_NAME(SPACE, linkat, there, to, (int here, const char *from, int there, const char *to, int flags),
        (here, from, there, to, flags))
ON_NAME(SPACE, rename, AT_FDCWD, to, (const char *from, const char *to), (from, to))
ON_NAME(SPACE, renameat, there, to, (int here, const char *from, int there, const char *to), (here, from, there, to))
ON_NAME(ANY, unlink, AT_FDCWD, path, (const char *path), (path))
ON_NAME(ANY, unlinkat, directory, path, (int directory, const char *path, int flags), (directory, path, flags))
ON_NAME(ANY, rmdir, AT_FDCWD, path, (const char *path), (path))

#define OPEN(name, directory, arguments)                                                 \
    va_list rest;                                                                        \
    va_start(rest, flags);                                                               \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;              \
    va_end(rest);                                                                        \
    enum how with = met_name(#name, flags & O_CREAT ? SPACE : ANY, directory, path);     \
    return with ? fails(with) : REAL(name) arguments

int open(const char *path, int flags, ...) { OPEN(open, AT_FDCWD, (path, flags, mode)); }
int open64(const char *path, int flags, ...) { OPEN(open64, AT_FDCWD, (path, flags, mode)); }
int openat(int directory, const char *path, int flags, ...) { OPEN(openat, directory, (directory, path, flags, mode)); }
int openat64(int directory, const char *path, int flags, ...) {
    OPEN(openat64, directory, (directory, path, flags, mode));
}
