# Which keys the commands of a stream have named since a moment, whatever their number.
#
# Each key is a bit in a table of fixed size, by 64 bits of it under a key of our own. Two keys may
# share a bit: then one of them is taken for named, and never one that was named for another. The
# names themselves are kept beside that while there is room for them, each once.
#
# Invariant: a key that a command has named, as far as the command table knows the commands' keys, is
# `has`; and while `complete`, it is among `names`. What may have changed keys that it does not name
# makes `everything` true, for good.

cdef enum:
    NAMED_BITS_A_KEY = 16
    NAMED_BITS_LEAST = 1 << 20
    # 64 MiB of them.
    NAMED_BITS_MOST = 1 << 29
    NAMED_SLOTS_FIRST = 1 << 10
    # Database and size, before each name.
    NAMED_HEAD = 8
    # What changes keys that it does not name, or may.
    NAMED_ANY = FLAG_UNKNOWN | FLAG_SCRIPT | FLAG_SWAPS | FLAG_FLUSHES | FLAG_WRITES_UNNAMED


@cython.final
cdef class NamedKeys:
    """The keys that commands have named since it was made.

    Args:
        expected: so many keys there may be; more of them share bits more often.
        most_bytes: of the names that are kept.
        seed: keys cannot be chosen to share a bit by clients that do not know it.

    Attributes:
        everything: any key may be one of them.
        complete: `names` has all of them.
        nbytes: of memory.
    """
    cdef uint64_t *bits
    cdef uint64_t mask
    cdef uint64_t seed
    cdef size_t marked
    cdef Bytes kept
    cdef size_t count
    cdef size_t most_bytes
    # Places of names, from 1 on; 0: a free slot.
    cdef uint32_t *slots
    cdef size_t slot_mask
    cdef readonly bint everything
    cdef readonly bint complete

    def __cinit__(self, size_t expected=0, size_t most_bytes=32 << 20, uint64_t seed=0):
        cdef size_t bits = NAMED_BITS_LEAST
        while bits < NAMED_BITS_MOST and bits // NAMED_BITS_A_KEY < expected:
            bits *= 2
        self.mask = bits - 1
        self.seed = seed_of_named(seed)
        self.most_bytes = min(most_bytes, <size_t>UINT32_MAX - 1)
        self.complete = True
        self.bits = <uint64_t *>PyMem_RawCalloc(bits // 64, sizeof(uint64_t))
        self.slots = <uint32_t *>PyMem_RawCalloc(NAMED_SLOTS_FIRST, sizeof(uint32_t))
        self.slot_mask = NAMED_SLOTS_FIRST - 1
        if self.bits == NULL or self.slots == NULL:
            raise MemoryError()

    def __dealloc__(self):
        PyMem_RawFree(self.bits)
        PyMem_RawFree(self.slots)
        bytes_free(&self.kept)

    def __len__(self):
        """How many they are: exact while all names are kept, else at least so many."""
        return max(self.count, self.marked)

    @property
    def nbytes(self):
        return ((self.mask + 1) // 8 + self.kept.capacity
                + (self.slot_mask + 1) * sizeof(uint32_t))

    def doubt(self):
        """Any key may be one of them from here on."""
        self.any_key()

    def add(self, int db, bytes key not None):
        """A key is named."""
        self.mark(db, <const uint8_t *>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))

    def note(self, CommandBatch batch not None):
        """The keys that these commands name, those alone that the batch is for."""
        with nogil:
            if not self.note_all(batch):
                self.any_key()
            batch.let_go()

    def has(self, int db, bytes key not None):
        """Whether a key is, or may be, one of them."""
        return self.everything or self.is_marked(self.hash_of(
            db, <const uint8_t *>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)))

    def among(self, int db, list keys not None):
        """Those of some keys of a database that are, or may be, among them."""
        cdef list found = []
        cdef bytes key
        if self.everything:
            return list(keys)
        for key in keys:
            if self.is_marked(self.hash_of(
                    db, <const uint8_t *>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))):
                found.append(key)
        return found

    def names(self):
        """All of them, as (database, key). ValueError where they are not kept."""
        cdef list found = []
        cdef size_t at = 0
        cdef uint32_t size
        cdef int32_t db
        if not self.complete:
            raise ValueError("the names are not kept")
        while at < self.kept.size:
            memcpy(&db, self.kept.data + at, 4)
            memcpy(&size, self.kept.data + at + 4, 4)
            found.append((db, PyBytes_FromStringAndSize(
                <const char *>self.kept.data + at + NAMED_HEAD, size)))
            at += NAMED_HEAD + size
        return found

    cdef void any_key(self) noexcept nogil:
        self.everything = True
        self.drop_names()

    cdef void drop_names(self) noexcept nogil:
        self.complete = False
        self.count = 0
        bytes_free(&self.kept)

    cdef inline uint64_t hash_of(self, int32_t db, const uint8_t *p, size_t n) noexcept nogil:
        return seen_hash(seen_mix(self.seed ^ (<uint64_t><uint32_t>db << 32)), p, n)

    cdef inline bint is_marked(self, uint64_t h) noexcept nogil:
        h &= self.mask
        return (self.bits[h >> 6] >> (h & 63)) & 1

    cdef void mark(self, int32_t db, const uint8_t *p, size_t n) noexcept nogil:
        cdef uint64_t h, bit, place
        if self.everything:
            return
        h = self.hash_of(db, p, n)
        place = h & self.mask
        bit = <uint64_t>1 << (place & 63)
        if not self.bits[place >> 6] & bit:
            self.bits[place >> 6] |= bit
            self.marked += 1
        if self.complete and not self.keep(h, db, p, n):
            self.drop_names()

    cdef bint keep(self, uint64_t h, int32_t db, const uint8_t *p, size_t n) noexcept nogil:
        """False: there is no room for the name."""
        cdef size_t slot = (h >> 32) & self.slot_mask, at
        cdef uint32_t size
        cdef int32_t there
        while self.slots[slot]:
            at = self.slots[slot] - 1
            memcpy(&there, self.kept.data + at, 4)
            memcpy(&size, self.kept.data + at + 4, 4)
            if there == db and size == n and memcmp(
                    self.kept.data + at + NAMED_HEAD, p, n) == 0:
                return True
            slot = (slot + 1) & self.slot_mask
        if n > self.most_bytes or self.kept.size + n + NAMED_HEAD > self.most_bytes:
            return False
        if not bytes_reserve(&self.kept, n + NAMED_HEAD, self.most_bytes):
            return False
        at = self.kept.size
        size = <uint32_t>n
        memcpy(self.kept.data + at, &db, 4)
        memcpy(self.kept.data + at + 4, &size, 4)
        if n:
            memcpy(self.kept.data + at + NAMED_HEAD, p, n)
        self.kept.size += n + NAMED_HEAD
        self.slots[slot] = <uint32_t>at + 1
        self.count += 1
        return 2 * self.count <= self.slot_mask or self.grow()

    cdef bint grow(self) noexcept nogil:
        cdef size_t mask = 2 * self.slot_mask + 1, at = 0, slot
        cdef uint32_t size
        cdef int32_t db
        cdef uint32_t *slots = <uint32_t *>PyMem_RawCalloc(mask + 1, sizeof(uint32_t))
        if slots == NULL:
            return False
        while at < self.kept.size:
            memcpy(&db, self.kept.data + at, 4)
            memcpy(&size, self.kept.data + at + 4, 4)
            slot = (self.hash_of(db, self.kept.data + at + NAMED_HEAD, size) >> 32) & mask
            while slots[slot]:
                slot = (slot + 1) & mask
            slots[slot] = <uint32_t>at + 1
            at += NAMED_HEAD + size
        PyMem_RawFree(self.slots)
        self.slots = slots
        self.slot_mask = mask
        return True

    cdef bint note_all(self, CommandBatch batch) noexcept nogil:
        """False: they may have changed any key."""
        cdef const StreamCommand *command
        cdef const CommandRow *row
        cdef KeyWalk walk
        cdef WalkStep step
        cdef uint32_t flags
        cdef size_t i
        for i in range(batch.packed.count):
            command = &batch.packed.commands[i]
            row = &COMMAND_ROWS[command.row]
            flags = command_flags_of(command)
            # (Slots that move are read again, and a module's own keys are all that it writes, but
            # for what rules of time series make of them, and for an index that takes its documents
            # along.)
            if flags & NAMED_ANY and not flags & (FLAG_SLOT_MOVES | FLAG_MODULE):
                return False
            if (flags & FLAG_MODULE and flags & FLAG_KEYLESS and flags & FLAG_WRITES_UNNAMED
                    and removes_documents(row, command_bytes(&batch.packed, command))):
                return False
            if not row.part_count:
                continue
            if not begin_walk(&walk, row, command_bytes(&batch.packed, command), command.db):
                return False
            step = next_key(&walk)
            while step == WALK_KEY:
                if batch.is_ours(command, &walk):
                    self.mark(walk.key_db, walk.key, walk.size)
                step = next_key(&walk)
            if step != WALK_END:
                return False
        return True


cdef bint removes_documents(const CommandRow *row, const uint8_t *bytes) noexcept nogil:
    """Whether FT.DROPINDEX, FT.DROP or one that stands for it removes the keys of the index."""
    cdef uint64_t count
    cdef size_t size
    cdef const uint8_t *p = first_argument(bytes, &count)
    cdef const uint8_t *name = row.name + (4 if row.name[3] == c"_" else 3)
    # FT.DROP does so unless it is told not to, FT.DROPINDEX if it is told to.
    cdef bint removes = memcmp(name, b"dropindex", 9) != 0
    if count < 2:
        return False
    # Behind its name and that of the index.
    p, count = argument_behind(p, 2), count - 2
    while count:
        p = argument_body(p, &size)
        if is_keyword(p, size, "keepdocs", 8) or is_keyword(p, size, "_forcekeepdocs", 14):
            return False
        removes |= is_keyword(p, size, "dd", 2)
        p += size + 2
        count -= 1
    return removes


cdef inline uint64_t seed_of_named(uint64_t seed) noexcept nogil:
    return seen_mix(seed ^ <uint64_t>0x6e616d65646b6579)
