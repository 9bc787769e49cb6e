# Batches of records: a packed arena, and an index into it.

cdef struct Record:
    # Where the key starts in the arena; the value follows it.
    size_t offset
    size_t value_size
    # Absolute, in ms since the epoch; -1: never.
    int64_t expire_at
    # Seconds idle, or the LFU counter; -1: not known.
    int64_t access
    uint32_t key_size
    # A module's value, and RESTORE … REPLACE may add it to what is there (modules.pxi).
    uint8_t adds
    # The footer has a version and no CRC64 yet: whoever hands the payload on sums it up
    # (`seal_payload`). A string that goes by MSET never needs one.
    uint8_t unsealed
    # What a value has lost that was rewritten for the target (value_encode.pxi).
    uint8_t loss
    # Its slot was that of the record before it, if `RecordBatch.hashed`: that one may have left.
    uint8_t follows


cdef enum:
    FIRST_RECORDS = 1024
    # DEL and the lengths of its two arguments.
    DEL_OVERHEAD = 40


cdef struct Arena:
    uint8_t *data
    size_t size
    size_t capacity
    Record *records
    size_t count
    size_t records_capacity


cdef inline bint arena_reserve(Arena *arena, size_t n, size_t least) noexcept nogil:
    """Make room for `n` more bytes and one more record; False: no memory, or sizes overflow."""
    cdef size_t capacity
    cdef uint8_t *data
    cdef Record *records
    if n > SIZE_MAX - arena.size:
        return False
    if arena.size + n > arena.capacity:
        # A value that outgrows the batch's usual size is the last in it: no doubling.
        capacity = arena.size + n
        if capacity < least:
            capacity = least
        data = <uint8_t *>PyMem_RawRealloc(arena.data, capacity)
        if data == NULL:
            return False
        arena.data = data
        arena.capacity = capacity
    if arena.count == arena.records_capacity:
        capacity = arena.records_capacity * 2 if arena.records_capacity else FIRST_RECORDS
        records = <Record *>PyMem_RawRealloc(arena.records, capacity * sizeof(Record))
        if records == NULL:
            return False
        arena.records = records
        arena.records_capacity = capacity
    return True


cdef inline void arena_free(Arena *arena) noexcept nogil:
    PyMem_RawFree(arena.data)
    PyMem_RawFree(arena.records)
    memset(arena, 0, sizeof(Arena))


cdef inline uint64_t arena_value_bytes(const Arena *arena, size_t first) noexcept nogil:
    """Bytes of the values from record `first` on."""
    cdef uint64_t total = 0
    cdef size_t i
    for i in range(first, arena.count):
        total += arena.records[i].value_size
    return total


cdef inline void arena_cut(Arena *arena, size_t first) noexcept nogil:
    """Drop the records from `first` on."""
    if first < arena.count:
        arena.size = arena.records[first].offset
        arena.count = first


cdef inline bint arena_split(
    Arena *arena, size_t first, size_t least, Arena *tail
) noexcept nogil:
    """Move the records from `first` on into the empty arena `tail`; False: no memory."""
    cdef size_t start, n, i
    cdef Record record
    start = arena.records[first].offset
    n = arena.size - start
    for i in range(first, arena.count):
        record = arena.records[i]
        # Room for all of it at once.
        if not arena_reserve(tail, n if i == first else 0, least):
            arena_free(tail)
            return False
        record.offset -= start
        tail.records[tail.count] = record
        tail.count += 1
    memcpy(tail.data, arena.data + start, n)
    tail.size = n
    arena_cut(arena, first)
    return True


cdef inline bint arena_make(Arena *arena, size_t size, size_t count) noexcept nogil:
    """Room for so many bytes and records in an arena that has none; False: no memory."""
    arena.data = <uint8_t *>PyMem_RawMalloc(size + 1)
    arena.records = <Record *>PyMem_RawMalloc((count + 1) * sizeof(Record))
    if arena.data == NULL or arena.records == NULL:
        arena_free(arena)
        return False
    arena.capacity = size + 1
    arena.records_capacity = count + 1
    return True


cdef inline void arena_copy(Arena *arena, const Arena *other, size_t index) noexcept nogil:
    """Record `index` of `other` once more, at the end of an arena that has room for it."""
    cdef Record record = other.records[index]
    cdef size_t n = record.key_size + record.value_size
    memcpy(arena.data + arena.size, other.data + record.offset, n)
    record.offset = arena.size
    arena.records[arena.count] = record
    arena.count += 1
    arena.size += n


@cython.final
cdef class RecordBatch:
    """Records of one database, in the order in which the source gave them. Immutable, but for what
    `ModuleGuard.withhold`, `take`, `take_with_ttls` and `leave_out` take out and `strings_first`
    moves.

    Attributes:
        db: the database's number.
        nbytes: bytes of keys and values held here.
        value_bytes: bytes of values, those of a streamed value included.
        cursor: SCAN's cursor before which every key has been answered for by this batch and those
            before it; None where no whole page has been, and where there are ranges.
        ranges: the same of a table that is scanned in ranges: (cursor, where it ends) of each that
            is not over; None where no whole page has been.
        last: nothing of this database comes after this batch.
        vanished: keys that SCAN named and that were gone when they were asked for.
        errors: (key, reason) of keys that the source refused to hand out.
        streamed: this batch is one record whose value follows as `bytes` pieces.
        spilled: the pieces came before this batch, as their number was not known: all
            since the batch before it. They are the value if this batch is `streamed`, else the
            beginning of one that is listed in `errors`, to be thrown away.
        withheld: (key, reason) of records that were taken out, as the target must not get them.
        telemetry: keys of records that were taken out, as every server makes such keys for itself.
        lossy: what any of the values has lost that were rewritten for the target, a bit each.
        timed: names of the hashes whose fields have expire times, where near ones are extended;
            each behind its length (4 bytes, little-endian).
        stuck: the same of those whose fields' expire times were to be extended, and could not be.
    """
    cdef Arena arena
    cdef readonly int db
    cdef readonly size_t value_bytes
    cdef readonly object cursor
    cdef readonly object ranges
    cdef readonly bint last
    cdef readonly size_t vanished
    cdef readonly list errors
    cdef readonly bint streamed
    cdef readonly bint spilled
    cdef readonly bytes timed
    cdef readonly bytes stuck
    cdef readonly list withheld
    cdef readonly list telemetry
    cdef readonly int lossy
    # Bytes of the DELs that go before values which RESTORE would add to what is there.
    cdef size_t adding
    # The access figure of the records is an LFU counter, not seconds idle.
    cdef bint access_is_freq
    # Whoever made the records has hashed their keys.
    cdef bint hashed

    def __cinit__(self):
        self.timed = b""
        self.stuck = b""
        self.withheld = []
        self.telemetry = []

    def __dealloc__(self):
        arena_free(&self.arena)

    def __len__(self):
        return self.arena.count

    @property
    def nbytes(self):
        """Bytes of keys and values held in memory."""
        return self.arena.size

    @property
    def lasting(self):
        """How many of the records have no expire time."""
        cdef size_t count = 0, i
        with nogil:
            for i in range(self.arena.count):
                count += self.arena.records[i].expire_at < 0
        return count

    def strings_first(self):
        """Put strings that an MSET can carry before all else, so that fewer commands carry them.

        For batches that name no key twice, before an index has been given out: the records
        change their places. Raises `MemoryError`.
        """
        cdef size_t count = self.arena.count, i, first = 0, others = 0
        cdef Record *records = self.arena.records
        cdef Record *kept
        if self.streamed or count < 3:
            return
        kept = <Record *>PyMem_RawMalloc(count * sizeof(Record))
        if kept == NULL:
            raise MemoryError()
        with nogil:
            for i in range(count):
                if (records[i].expire_at < 0 and records[i].access < 0 and records[i].value_size
                        and self.arena.data[records[i].offset + records[i].key_size] == 0):
                    records[first] = records[i]
                    first += 1
                else:
                    kept[others] = records[i]
                    others += 1
            memcpy(records + first, kept, others * sizeof(Record))
        PyMem_RawFree(kept)

    cdef Record *record(self, Py_ssize_t index) except NULL:
        if index < 0 or <size_t>index >= self.arena.count:
            raise IndexError("no such record")
        return &self.arena.records[index]

    def key(self, Py_ssize_t index):
        """The key of record `index`, as bytes. For reports and tests: one object a call."""
        cdef Record *record = self.record(index)
        return PyBytes_FromStringAndSize(
            <char *>self.arena.data + record.offset, record.key_size)

    def value(self, Py_ssize_t index):
        """The value of record `index` as the source serialised it; empty if it is streamed."""
        cdef Record *record = self.record(index)
        cdef bytes value
        if self.streamed:
            return b""
        value = PyBytes_FromStringAndSize(
            <char *>self.arena.data + record.offset + record.key_size, record.value_size)
        if record.unsealed:
            seal_payload(<uint8_t *>PyBytes_AS_STRING(value), record.value_size)
        return value

    def value_size(self, Py_ssize_t index):
        """Bytes of the value of record `index`."""
        return self.record(index).value_size

    def value_type(self, Py_ssize_t index):
        """RDB type byte of the value of record `index`; None if it is streamed or empty."""
        cdef Record *record = self.record(index)
        if self.streamed or record.value_size == 0:
            return None
        return self.arena.data[record.offset + record.key_size]

    def expire_at(self, Py_ssize_t index):
        """When record `index` expires, in ms since the epoch; None if it does not."""
        cdef int64_t at = self.record(index).expire_at
        return None if at < 0 else at

    def access(self, Py_ssize_t index):
        """Seconds idle, or the LFU counter, of record `index`; None where not known."""
        cdef int64_t access = self.record(index).access
        return None if access < 0 else access

    def take(self, Py_ssize_t count):
        """The first `count` records as a batch of their own; the others stay, and so does all that
        this batch says besides (its cursor, its errors). ValueError unless some are on both sides,
        or where the batch is streamed."""
        cdef RecordBatch head
        cdef Arena *arena = &self.arena
        cdef size_t taken = count, size = 0, end = 0, i
        if self.streamed or not 0 < count < <Py_ssize_t>arena.count:
            raise ValueError(f"{count} of {arena.count} records cannot be taken")
        for i in range(taken):
            size += arena.records[i].key_size + arena.records[i].value_size
        head = RecordBatch.__new__(RecordBatch)
        if not arena_make(&head.arena, size, taken):
            raise MemoryError()
        head.db = self.db
        head.errors = []
        head.access_is_freq = self.access_is_freq
        head.lossy = self.lossy
        # (Record by record: their bytes need not lie in the order of the index.)
        with nogil:
            for i in range(taken):
                arena_copy(&head.arena, arena, i)
            arena.count -= taken
            memmove(arena.records, arena.records + taken, arena.count * sizeof(Record))
            # What lay behind all that stays is room again.
            for i in range(arena.count):
                end = max(end, arena.records[i].offset + arena.records[i].key_size + (
                    arena.records[i].value_size))
            arena.size = end
        head.value_bytes = arena_value_bytes(&head.arena, 0)
        self.value_bytes -= head.value_bytes
        for i in range(head.arena.count):
            if head.arena.records[i].adds:
                head.adding += head.arena.records[i].key_size + DEL_OVERHEAD
        self.adding -= head.adding
        return head

    def take_with_ttls(self):
        """The records that have an expire time as a batch of their own, in their order; the others
        stay.

        None, and nothing is changed, if no record has one, or the batch is streamed. Raises
        `MemoryError`.
        """
        cdef RecordBatch taken
        cdef Record *records = self.arena.records
        cdef size_t i, size = 0, kept = 0, found = 0
        if self.streamed:
            return None
        with nogil:
            for i in range(self.arena.count):
                if records[i].expire_at >= 0:
                    size += records[i].key_size + records[i].value_size
                    found += 1
        if not found:
            return None
        taken = RecordBatch.__new__(RecordBatch)
        if not arena_make(&taken.arena, size, found):
            raise MemoryError()
        taken.db = self.db
        taken.errors = []
        taken.access_is_freq = self.access_is_freq
        with nogil:
            for i in range(self.arena.count):
                if records[i].expire_at < 0:
                    records[kept] = records[i]
                    kept += 1
                    continue
                arena_copy(&taken.arena, &self.arena, i)
                taken.value_bytes += records[i].value_size
                if records[i].adds:
                    taken.adding += records[i].key_size + DEL_OVERHEAD
        self.arena.count = kept
        self.value_bytes -= taken.value_bytes
        self.adding -= taken.adding
        return taken

    def leave_out(self, Py_ssize_t index, str reason not None):
        """Take record `index` out; it is named in `withheld`."""
        cdef Record *record = self.record(index)
        cdef size_t i
        self.withheld.append((self.key(index), reason))
        self.value_bytes -= record.value_size
        if record.adds:
            self.adding -= record.key_size + DEL_OVERHEAD
        for i in range(index, self.arena.count - 1):
            self.arena.records[i] = self.arena.records[i + 1]
        self.arena.count -= 1

    def lose(self, size_t index, uint8_t losses):
        """A value is made by commands, and loses this (a bit each)."""
        if index >= self.arena.count:
            raise IndexError(index)
        self.arena.records[index].loss |= losses
        self.lossy |= losses

    def losses(self, refused, Py_ssize_t most):
        """What values have lost that were rewritten: (the loss's bit, how many values, the first
        `most` of their keys), without the records of the indexes in `refused`."""
        cdef dict found = {}
        cdef size_t i
        cdef uint8_t loss
        cdef set left
        if not self.lossy:
            return []
        left = set(refused)
        for bit in (1, 2, 4, 8):
            count, names = 0, []
            for i in range(self.arena.count):
                loss = self.arena.records[i].loss
                if not loss & bit or i in left:
                    continue
                count += 1
                if len(names) < most:
                    names.append(self.key(i))
            if count:
                found[bit] = (bit, count, names)
        return list(found.values())
