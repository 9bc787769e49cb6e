# Keys to look for among the arguments of commands.

cdef inline uint64_t hash_bytes(const uint8_t *p, size_t n, uint64_t seed) noexcept nogil:
    """For tables that live for one call; the seed keeps collisions from being prepared."""
    cdef uint64_t word
    cdef uint64_t h = seed ^ (<uint64_t>n * <uint64_t>0x9E3779B97F4A7C15)
    while n >= 8:
        memcpy(&word, p, 8)
        h = (h ^ word) * <uint64_t>0xD6E8FEB86659FD93
        h ^= h >> 32
        p += 8
        n -= 8
    word = 0
    if n:
        memcpy(&word, p, n)
    h = (h ^ word) * <uint64_t>0xD6E8FEB86659FD93
    h ^= h >> 32
    h *= <uint64_t>0xD6E8FEB86659FD93
    return h ^ (h >> 32)


cdef struct WantedKey:
    const uint8_t *data           # NULL: a free slot
    size_t size


cdef class _WantedKeys:
    """A set of byte strings, for comparing arguments with it without making objects of them."""
    cdef tuple keeper
    cdef WantedKey *slots
    cdef size_t mask
    cdef uint64_t seed
    # Bit n: a wanted key's size is n modulo 64. Most arguments end here.
    cdef uint64_t sizes

    def __cinit__(self, keys):
        cdef size_t capacity = 8, slot
        cdef WantedKey wanted
        self.keeper = tuple(keys)
        for key in self.keeper:
            if not PyBytes_CheckExact(key):
                raise TypeError(f"keys must be bytes, found {type(key).__name__}")
        while capacity < 2 * <size_t>len(self.keeper):
            capacity *= 2
        self.mask = capacity - 1
        self.seed = <uint64_t><Py_hash_t>hash("wanted keys")
        self.slots = <WantedKey *>PyMem_RawMalloc(capacity * sizeof(WantedKey))
        if self.slots == NULL:
            raise MemoryError()
        memset(self.slots, 0, capacity * sizeof(WantedKey))
        for key in self.keeper:
            wanted.data = <const uint8_t *>PyBytes_AS_STRING(key)
            wanted.size = <size_t>PyBytes_GET_SIZE(key)
            slot = hash_bytes(wanted.data, wanted.size, self.seed) & self.mask
            while self.slots[slot].data != NULL:
                slot = (slot + 1) & self.mask
            self.slots[slot] = wanted
            self.sizes |= <uint64_t>1 << (wanted.size & 63)

    def __dealloc__(self):
        PyMem_RawFree(self.slots)

    cdef bint has(self, const uint8_t *p, size_t n) noexcept nogil:
        cdef size_t slot
        cdef const WantedKey *wanted
        if not (self.sizes >> (n & 63)) & 1:
            return False
        slot = hash_bytes(p, n, self.seed) & self.mask
        while self.slots[slot].data != NULL:
            wanted = &self.slots[slot]
            if wanted.size == n and memcmp(wanted.data, p, n) == 0:
                return True
            slot = (slot + 1) & self.mask
        return False

    cdef bint mentioned(self, const uint8_t *command) noexcept nogil:
        """Whether an argument behind the command's name is one of the keys."""
        cdef uint64_t count
        cdef size_t size
        cdef const uint8_t *p = first_argument(command, &count)
        cdef bint is_name = True
        while count:
            p = argument_body(p, &size)
            if not is_name and self.has(p, size):
                return True
            is_name = False
            p += size + 2
            count -= 1
        return False


cdef bint begins_so(
    const uint8_t *command, const uint8_t *prefix, size_t prefix_size
) noexcept nogil:
    """Whether an argument behind the command's name begins with `prefix`."""
    cdef uint64_t count
    cdef size_t size
    cdef const uint8_t *p = first_argument(command, &count)
    cdef bint is_name = True
    while count:
        p = argument_body(p, &size)
        if not is_name and size >= prefix_size and memcmp(p, prefix, prefix_size) == 0:
            return True
        is_name = False
        p += size + 2
        count -= 1
    return False
