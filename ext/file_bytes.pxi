# Bytes that lie in a file: commands that are too long for memory.
#
# A command may have arguments of 512 MiB, and several of them. What looks at a command (the walk
# over its keys, say) wants its bytes side by side, and few of them. So long ones are appended to a
# file without a name, which is mapped to be looked at: what is written by `pwrite` costs no memory of
# the process, and pages that were looked at are let go (`file_let_go`) before they become many. A
# kernel short of memory writes them to the disk.
#
# Of a mapping nothing behind the file's end is ever touched, for that would end the process. So room
# that is written by pointer (`file_reserve`) is given to the file first; a disk that is full is an
# error there.

from libc.errno cimport EINTR, EIO, ENOMEM, errno

cdef extern from "<sys/mman.h>" nogil:
    void *c_mmap "mmap"(void *at, size_t n, int protection, int flags, int fd, long offset)
    int c_munmap "munmap"(void *at, size_t n)
    int c_madvise "madvise"(void *at, size_t n, int advice)
    enum:
        C_PROT_READ "PROT_READ"
        C_PROT_WRITE "PROT_WRITE"
        C_MAP_SHARED "MAP_SHARED"
        C_MADV_DONTNEED "MADV_DONTNEED"
    void *C_MAP_FAILED "MAP_FAILED"

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)
    long c_pread "pread"(int fd, void *into, size_t n, long offset)
    long c_pwrite "pwrite"(int fd, const void *data, size_t n, long offset)

cdef extern from "<fcntl.h>" nogil:
    int c_fallocate "posix_fallocate"(int fd, long offset, long n)

cdef enum:
    # The first mapping's size; it is doubled. Address space alone.
    FILE_MAPPED_FIRST = 64 << 20
    # More is copied piece by piece, and let go in between.
    FILE_COPIED_AT_ONCE = 1 << 20
    # No machine has larger pages, where pages are what memory is given by.
    FILE_PAGE = 64 << 10

cdef struct FileBytes:
    int fd
    uint8_t *data                 # where it is mapped; NULL: not yet
    size_t mapped
    # Batches that were cut have their commands in one file. Counted with the GIL.
    size_t owners
    # Why something failed last, an errno.
    int error


cdef FileBytes *file_begin(int fd) noexcept:
    """Bytes in the file `fd`, which is empty and ours from now on. NULL: no memory; `fd` is closed."""
    cdef FileBytes *file = <FileBytes *>PyMem_RawCalloc(1, sizeof(FileBytes))
    if file == NULL:
        c_close(fd)
        return NULL
    file.fd = fd
    file.owners = 1
    return file


cdef void file_end(FileBytes *file) noexcept nogil:
    """One owner less; behind the last one the file is gone."""
    file.owners -= 1
    if file.owners:
        return
    if file.data != NULL:
        c_munmap(file.data, file.mapped)
    c_close(file.fd)
    PyMem_RawFree(file)


cdef bint file_map(FileBytes *file, size_t n) noexcept nogil:
    """Have the first `n` bytes mapped, perhaps at another place than before. False: see `error`."""
    cdef size_t mapped = file.mapped if file.mapped else FILE_MAPPED_FIRST
    cdef void *data
    # One more at the least: bytes of two files never lie side by side.
    if n < file.mapped:
        return True
    while mapped <= n:
        mapped *= 2
    data = c_mmap(NULL, mapped, C_PROT_READ | C_PROT_WRITE, C_MAP_SHARED, file.fd, 0)
    if data == C_MAP_FAILED:
        file.error = errno
        return False
    if file.data != NULL:
        c_munmap(file.data, file.mapped)
    file.data = <uint8_t *>data
    file.mapped = mapped
    return True


cdef bint file_write(FileBytes *file, size_t at, const uint8_t *p, size_t n) noexcept nogil:
    """Put `n` bytes to offset `at`. False: see `error`."""
    cdef long done
    if not file_map(file, at + n):
        return False
    while n:
        done = c_pwrite(file.fd, p, n, <long>at)
        if done < 0 and errno == EINTR:
            continue
        if done <= 0:
            file.error = errno if done else EIO
            return False
        p += done
        at += done
        n -= done
    return True


cdef bint file_reserve(FileBytes *file, size_t at, size_t n) noexcept nogil:
    """Have `n` bytes from offset `at` on, to be written by pointer. False: see `error`."""
    if not file_map(file, at + n):
        return False
    if n:
        file.error = c_fallocate(file.fd, <long>at, <long>n)
    return not n or file.error == 0


cdef int file_read(const FileBytes *file, size_t at, uint8_t *into, size_t n) noexcept nogil:
    """Copy `n` bytes from offset `at` on, past the mapping; 0, or an errno."""
    cdef long done
    while n:
        done = c_pread(file.fd, into, n, <long>at)
        if done < 0 and errno == EINTR:
            continue
        if done <= 0:
            return errno if done else EIO
        into += done
        at += done
        n -= done
    return 0


cdef void file_let_go(const FileBytes *file, size_t first, size_t last) noexcept nogil:
    """The pages between two offsets count as this process's memory no longer. Nothing is lost: they
    are the file's."""
    first = first // FILE_PAGE * FILE_PAGE
    if file.data != NULL and first < last <= file.mapped:
        c_madvise(file.data + first, last - first, C_MADV_DONTNEED)
