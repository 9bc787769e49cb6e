# Which keys have been there before: by 64 bits of each, in a table of bounded size.
#
# A file that names a key twice is none that a server loads, but bytes are bytes, and the second value
# would take the place of the first without a word. Keys come in batches, so that the places of the
# table that the next ones need can be fetched while those before them are looked at: a table that
# outgrows the cache costs a few nanoseconds a key that way, and not a hundred.

cdef extern from *:
    """
    #if defined(__GNUC__)
    #define FETCH_AHEAD(p) __builtin_prefetch(p)
    #else
    #define FETCH_AHEAD(p) ((void)(p))
    #endif
    """
    void FETCH_AHEAD(const void *p) noexcept nogil

cdef enum:
    SEEN_AT_ONCE = 32
    SEEN_FIRST_PLACES = 1 << 12


cdef inline uint64_t seen_mix(uint64_t h) noexcept nogil:
    h = (h ^ (h >> 32)) * <uint64_t>0x9fb21c651e98df25
    return h ^ (h >> 29)


cdef inline uint64_t seen_hash(uint64_t seed, const uint8_t *p, size_t n) noexcept nogil:
    """Eight bytes at a time; each step can be undone, so that short keys never meet."""
    cdef uint64_t h = seed ^ n, last = 0
    while n >= 8:
        h = seen_mix(h ^ load_le64(p))
        p += 8
        n -= 8
    if n:
        memcpy(&last, p, n)
        h = seen_mix(h ^ last)
    h = seen_mix(h)
    # 0 is a place that is free.
    return h if h else 1


@cython.final
cdef class SeenKeys:
    """Tells which keys of batches were in batches before.

    Args:
        most_bytes: the table grows no further; what comes then is compared, and not remembered.
        seed: keys cannot be chosen to be taken for each other by clients that do not know it.
    """
    cdef uint64_t *places
    cdef size_t mask
    cdef size_t used
    cdef size_t most_places
    cdef uint64_t seed
    cdef readonly bint full

    def __cinit__(self, size_t most_bytes=1 << 27, uint64_t seed=0):
        self.most_places = max(most_bytes // sizeof(uint64_t), <size_t>SEEN_FIRST_PLACES)
        self.seed = seed

    def __dealloc__(self):
        PyMem_RawFree(self.places)

    def __len__(self):
        return self.used

    def add(self, RecordBatch batch not None, size_t expected=0):
        """The indices of those records whose keys were there before, in this database; remembers
        the others. `expected`: how many keys there may be, if it is known. Raises `MemoryError`.
        """
        cdef size_t count = batch.arena.count, first, i
        cdef uint64_t hashes[SEEN_AT_ONCE]
        cdef uint64_t seed = seen_mix(self.seed ^ (<uint64_t>batch.db << 40))
        cdef Record *record
        cdef bint again
        cdef size_t n
        found = []
        if count == 0:
            return found
        # What a file announces is not to be believed beyond what the table may be.
        if self.used == 0:
            n = max(count, min(expected, self.most_places // 2))
        else:
            n = count
        if not self.full and not self.make_room(n):
            raise MemoryError()
        for first in range(0, count, SEEN_AT_ONCE):
            n = min(count - first, <size_t>SEEN_AT_ONCE)
            with nogil:
                for i in range(n):
                    record = &batch.arena.records[first + i]
                    hashes[i] = seen_hash(
                        seed, batch.arena.data + record.offset, record.key_size)
                    FETCH_AHEAD(&self.places[hashes[i] & self.mask])
                again = False
                for i in range(n):
                    if self.place(hashes[i]):
                        hashes[i] = 0
                        again = True
            if again:
                for i in range(n):
                    if hashes[i] == 0:
                        found.append(first + i)
        return found

    cdef inline bint place(self, uint64_t h) noexcept nogil:
        """Whether it was there; it is now, if there is room."""
        cdef size_t at = h & self.mask
        while self.places[at]:
            if self.places[at] == h:
                return True
            at = (at + 1) & self.mask
        if not self.full:
            self.places[at] = h
            self.used += 1
        return False

    cdef bint make_room(self, size_t more) noexcept nogil:
        """For so many more, half of the places being free; `full` where there may be none."""
        cdef size_t size = self.mask + 1 if self.places != NULL else SEEN_FIRST_PLACES
        cdef uint64_t *before = self.places
        cdef size_t places_before = self.mask + 1 if before != NULL else 0
        cdef size_t i, at
        while size < (self.used + more) * 2 and size * 2 <= self.most_places:
            size *= 2
        # It stays that far from full, so that a search for a key finds a free place.
        self.full = (self.used + more) * 4 > size * 3
        if size == places_before:
            return True
        self.places = <uint64_t *>PyMem_RawCalloc(size, sizeof(uint64_t))
        if self.places == NULL:
            self.places = before
            return False
        self.mask = size - 1
        for i in range(places_before):
            if before[i]:
                at = before[i] & self.mask
                while self.places[at]:
                    at = (at + 1) & self.mask
                self.places[at] = before[i]
        PyMem_RawFree(before)
        return True
