# Batches of commands: pieces of a replication stream, and an index into them.
#
# The bytes stay as they came, holes included: where a PING or a SELECT stood the index has no
# command, and what is sent on are the runs between the holes. Only commands that are rewritten
# (anchor.pxi) lie elsewhere, in a second arena. What was taken out leaves a mark: its end offset,
# and the state behind it, so that a batch can be cut at any boundary of the stream.

cdef enum StreamName:
    NAME_OTHER
    # Taken out of the stream.
    NAME_PING
    NAME_REPLCONF
    NAME_SELECT
    NAME_MULTI
    NAME_EXEC
    NAME_TAKEN_OUT_LAST = NAME_EXEC
    # Kept; named for those who have to know about them.
    NAME_FLUSHALL
    NAME_FLUSHDB
    NAME_SWAPDB
    NAME_RENAME
    NAME_RENAMENX
    NAME_COPY
    NAME_MOVE
    # Kept; may carry a deadline.
    NAME_EXPIRE
    NAME_DEADLINE_FIRST = NAME_EXPIRE
    NAME_PEXPIRE
    NAME_SET
    NAME_SETEX
    NAME_PSETEX
    NAME_GETEX
    NAME_RESTORE
    NAME_EXPIREAT
    NAME_PEXPIREAT
    NAME_DEADLINE_LAST = NAME_PEXPIREAT
    # Kept; set deadlines of a hash's fields, or depend on whether one has passed.
    NAME_FIELD_DEADLINE
    NAME_FIELD_COUNT

# Kinds of commands, for `CommandBatch.holds`; of several at once the sum.
KIND_MOVERS = 1 << NAME_RENAME | 1 << NAME_RENAMENX | 1 << NAME_COPY | 1 << NAME_MOVE
KIND_SWAPS = 1 << NAME_SWAPDB
KIND_FIELD_DEADLINES = 1 << NAME_FIELD_DEADLINE
KIND_FIELD_COUNTS = 1 << NAME_FIELD_COUNT

cdef enum:
    NAME_SLOTS = 64               # a power of two, well above the count of names
    NAME_BYTES_MOST = 8           # the longest of them, those of `long_name` aside

# Names by their bytes in lower case, packed into one number: open addressing, 0 for a free slot.
cdef uint64_t NAME_WORDS[NAME_SLOTS]
cdef uint8_t NAME_VALUES[NAME_SLOTS]


cdef inline uint64_t name_word(const uint8_t *p, size_t n) noexcept nogil:
    """Up to eight bytes as a number, letters in lower case.

    Setting 0x20 also folds other bytes together, but none of them onto a lower-case letter.
    """
    cdef uint64_t word = 0
    cdef size_t i
    for i in range(n):
        word |= <uint64_t>(p[i] | 0x20) << (8 * i)
    return word


cdef inline size_t name_slot(uint64_t word) noexcept nogil:
    return <size_t>((word * <uint64_t>0x9E3779B97F4A7C15) >> 58)


cdef inline bint is_name(const uint8_t *p, size_t n, const char *name) noexcept nogil:
    """Whether these 9 to 16 bytes are `name`, in lower case and of the same length, in any case."""
    return (name_word(p, 8) == name_word(<const uint8_t *>name, 8)
            and name_word(p + 8, n - 8) == name_word(<const uint8_t *>name + 8, n - 8))


cdef StreamName long_name(const uint8_t *p, size_t n) noexcept nogil:
    if n == 9:
        if is_name(p, n, "pexpireat"):
            return NAME_PEXPIREAT
        if is_name(p, n, "hexpireat"):
            return NAME_FIELD_DEADLINE
    elif n == 10:
        if is_name(p, n, "hpexpireat"):
            return NAME_FIELD_DEADLINE
    elif n == 12:
        if is_name(p, n, "hincrbyfloat"):
            return NAME_FIELD_COUNT
    elif n == 14:
        if is_name(p, n, "restore-asking"):
            return NAME_RESTORE
    return NAME_OTHER


cdef inline StreamName stream_name(const uint8_t *p, size_t n) noexcept nogil:
    """Which of the commands that we care for this name is, in any case of letters."""
    cdef uint64_t word
    cdef size_t slot
    if n > NAME_BYTES_MOST:
        return long_name(p, n)
    word = name_word(p, n)
    slot = name_slot(word)
    while NAME_WORDS[slot]:
        if NAME_WORDS[slot] == word:
            return <StreamName>NAME_VALUES[slot]
        slot = (slot + 1) % NAME_SLOTS
    return NAME_OTHER


cdef add_stream_names():
    cdef size_t slot
    cdef uint64_t word
    for name, value in (
        (b"ping", NAME_PING), (b"replconf", NAME_REPLCONF), (b"select", NAME_SELECT),
        (b"multi", NAME_MULTI), (b"exec", NAME_EXEC), (b"flushall", NAME_FLUSHALL),
        (b"flushdb", NAME_FLUSHDB), (b"swapdb", NAME_SWAPDB), (b"rename", NAME_RENAME),
        (b"renamenx", NAME_RENAMENX), (b"copy", NAME_COPY), (b"move", NAME_MOVE),
        (b"expire", NAME_EXPIRE), (b"pexpire", NAME_PEXPIRE), (b"set", NAME_SET),
        (b"setex", NAME_SETEX), (b"psetex", NAME_PSETEX), (b"getex", NAME_GETEX),
        (b"restore", NAME_RESTORE), (b"expireat", NAME_EXPIREAT), (b"hexpire", NAME_FIELD_DEADLINE),
        (b"hpexpire", NAME_FIELD_DEADLINE), (b"hpersist", NAME_FIELD_DEADLINE), (b"hgetex", NAME_FIELD_DEADLINE),
        (b"hsetex", NAME_FIELD_DEADLINE), (b"hincrby", NAME_FIELD_COUNT),
    ):
        word = name_word(<const uint8_t *>PyBytes_AS_STRING(name), len(name))
        slot = name_slot(word)
        while NAME_WORDS[slot]:
            slot = (slot + 1) % NAME_SLOTS
        NAME_WORDS[slot] = word
        NAME_VALUES[slot] = value


add_stream_names()


# ---------------------------------------------------------------------------- the packed form

cdef struct StreamCommand:
    # Where its bytes are: in `raw`, or in `rewritten`.
    size_t start
    size_t size
    # Of the stream, behind it.
    uint64_t end_offset
    int32_t db
    uint8_t name
    bint rewritten
    bint in_multi


cdef struct StreamMark:
    # Of the stream, behind something that was taken out; the state is that behind it, too.
    uint64_t end_offset
    int32_t db
    bint in_multi


cdef struct RawBytes:
    uint8_t *data
    size_t size
    size_t capacity


cdef struct Packed:
    RawBytes raw
    RawBytes rewritten
    StreamCommand *commands
    size_t count
    size_t capacity
    StreamMark *marks
    size_t mark_count
    size_t mark_capacity


cdef enum:
    FIRST_BYTES = 64 * 1024
    FIRST_COMMANDS = 256


cdef inline bint raw_reserve(RawBytes *bytes, size_t n) noexcept nogil:
    """Room for `n` more bytes; False: no memory, or sizes overflow."""
    cdef size_t capacity
    cdef uint8_t *data
    if bytes.capacity - bytes.size >= n:
        return True
    if n > (SIZE_MAX >> 2) - bytes.size:
        return False
    capacity = bytes.capacity * 2 if bytes.capacity else FIRST_BYTES
    if capacity < bytes.size + n:
        capacity = bytes.size + n
    data = <uint8_t *>PyMem_RawRealloc(bytes.data, capacity)
    if data == NULL:
        return False
    bytes.data = data
    bytes.capacity = capacity
    return True


cdef bint bytes_append(RawBytes *bytes, const uint8_t *p, size_t n) noexcept nogil:
    if not raw_reserve(bytes, n):
        return False
    if n:
        memcpy(bytes.data + bytes.size, p, n)
    bytes.size += n
    return True


cdef bint reserve_commands(Packed *packed, size_t n) noexcept nogil:
    cdef size_t capacity
    cdef StreamCommand *grown
    if packed.capacity - packed.count >= n:
        return True
    capacity = packed.capacity * 2 if packed.capacity else FIRST_COMMANDS
    if capacity < packed.count + n:
        capacity = packed.count + n
    grown = <StreamCommand *>PyMem_RawRealloc(
        packed.commands, capacity * sizeof(StreamCommand))
    if grown == NULL:
        return False
    packed.commands = grown
    packed.capacity = capacity
    return True


cdef bint reserve_marks(Packed *packed, size_t n) noexcept nogil:
    cdef size_t capacity
    cdef StreamMark *grown
    if packed.mark_capacity - packed.mark_count >= n:
        return True
    capacity = packed.mark_capacity * 2 if packed.mark_capacity else FIRST_COMMANDS
    if capacity < packed.mark_count + n:
        capacity = packed.mark_count + n
    grown = <StreamMark *>PyMem_RawRealloc(packed.marks, capacity * sizeof(StreamMark))
    if grown == NULL:
        return False
    packed.marks = grown
    packed.mark_capacity = capacity
    return True


cdef void packed_free(Packed *packed) noexcept nogil:
    PyMem_RawFree(packed.raw.data)
    PyMem_RawFree(packed.rewritten.data)
    PyMem_RawFree(packed.commands)
    PyMem_RawFree(packed.marks)
    memset(packed, 0, sizeof(Packed))


cdef inline const uint8_t *command_bytes(
    const Packed *packed, const StreamCommand *command
) noexcept nogil:
    return (packed.rewritten.data if command.rewritten else packed.raw.data) + command.start


cdef bint packed_slice(
    const Packed *source, size_t first, size_t last, size_t first_mark, size_t last_mark,
    Packed *out,
) noexcept nogil:
    """Copy the commands [first, last) and the marks [first_mark, last_mark) into empty `out`."""
    cdef size_t i
    cdef StreamCommand *command
    if not reserve_commands(out, last - first) or not reserve_marks(out, last_mark - first_mark):
        return False
    for i in range(first, last):
        command = &out.commands[out.count]
        command[0] = source.commands[i]
        if command.rewritten:
            command.start = out.rewritten.size
            if not bytes_append(
                    &out.rewritten, command_bytes(source, &source.commands[i]), command.size):
                return False
        else:
            command.start = out.raw.size
            if not bytes_append(
                    &out.raw, command_bytes(source, &source.commands[i]), command.size):
                return False
        out.count += 1
    if last_mark > first_mark:
        memcpy(out.marks, source.marks + first_mark, (last_mark - first_mark) * sizeof(StreamMark))
    out.mark_count = last_mark - first_mark
    return True


cdef inline const uint8_t *first_argument(const uint8_t *p, uint64_t *count) noexcept nogil:
    """Of a command that was checked when it was read: its first bulk header; how many there are."""
    cdef uint64_t n = 0
    p += 1
    while p[0] != 13:
        n = n * 10 + (p[0] - 48)
        p += 1
    count[0] = n
    return p + 2


cdef inline const uint8_t *argument_body(const uint8_t *p, size_t *size) noexcept nogil:
    """From a bulk header to its body; the next header is at body + size + 2."""
    cdef uint64_t n
    p = first_argument(p, &n)
    size[0] = <size_t>n
    return p


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


# ---------------------------------------------------------------------------- keys to look for

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


# ---------------------------------------------------------------------------- the batch

@cython.final
cdef class CommandBatch:
    """Commands of a replication stream, in order, between two of its offsets. Immutable.

    An offset counts the raw bytes of the stream; "at offset X" means that everything up to and
    including byte X lies before. PING, REPLCONF, SELECT, MULTI and EXEC are counted in offsets,
    but are no commands of the batch; a batch may hold no command at all and only move the offset.

    Attributes:
        start_offset, end_offset: the batch holds what lies behind the first and up to the second.
        db_before, db_after: the database selected there.
        in_multi_before, in_multi_after: whether there the stream is between MULTI and EXEC.
        flushes: one of the commands is FLUSHALL or FLUSHDB.
    """
    cdef Packed packed
    cdef readonly uint64_t start_offset
    cdef readonly uint64_t end_offset
    cdef readonly int db_before
    cdef readonly int db_after
    cdef readonly bint in_multi_before
    cdef readonly bint in_multi_after

    def __dealloc__(self):
        packed_free(&self.packed)

    def __len__(self):
        return self.packed.count

    def __repr__(self):
        return (f"<CommandBatch {self.start_offset}..{self.end_offset}, "
                f"{self.packed.count} commands>")

    @staticmethod
    def empty(uint64_t offset, int db=0, bint in_multi=False):
        """A batch without commands that begins and ends at `offset`."""
        cdef CommandBatch batch = CommandBatch.__new__(CommandBatch)
        batch.start_offset = batch.end_offset = offset
        batch.db_before = batch.db_after = db
        batch.in_multi_before = batch.in_multi_after = in_multi
        return batch

    @property
    def nbytes(self):
        """Bytes held in memory: commands, what lies between them, and the index."""
        return (self.packed.raw.size + self.packed.rewritten.size
                + self.packed.count * sizeof(StreamCommand)
                + self.packed.mark_count * sizeof(StreamMark))

    cdef const StreamCommand *at(self, Py_ssize_t index) except NULL:
        if index < 0 or <size_t>index >= self.packed.count:
            raise IndexError("no such command")
        return &self.packed.commands[index]

    def command(self, Py_ssize_t index):
        """The arguments of command `index`, its name first, as it is to be sent."""
        cdef uint64_t count
        cdef size_t size
        cdef const uint8_t *p = first_argument(
            command_bytes(&self.packed, self.at(index)), &count)
        arguments = []
        while count:
            p = argument_body(p, &size)
            arguments.append(PyBytes_FromStringAndSize(<const char *>p, size))
            p += size + 2
            count -= 1
        return arguments

    def offset(self, Py_ssize_t index):
        """The stream's offset behind command `index`."""
        return self.at(index).end_offset

    def db(self, Py_ssize_t index):
        """The database that command `index` runs in."""
        return self.at(index).db

    @property
    def databases(self):
        """The databases that commands of this batch run in, a frozenset."""
        cdef size_t i
        cdef int db = -1
        found = set()
        for i in range(self.packed.count):
            if self.packed.commands[i].db != db:
                db = self.packed.commands[i].db
                found.add(db)
        return frozenset(found)

    cdef list indices_of(self, StreamName first, StreamName last):
        cdef size_t i
        cdef list found = []
        for i in range(self.packed.count):
            if first <= self.packed.commands[i].name <= last:
                found.append(i)
        return found

    @property
    def flushes(self):
        """Whether one of the commands is FLUSHALL or FLUSHDB."""
        return bool(self.indices_of(NAME_FLUSHALL, NAME_FLUSHDB))

    @property
    def swaps(self):
        """The pairs of databases that SWAPDB swaps here, in order."""
        swaps = []
        for index in self.indices_of(NAME_SWAPDB, NAME_SWAPDB):
            arguments = self.command(index)
            swaps.append((int(arguments[1]), int(arguments[2])))
        return swaps

    @property
    def deadlines(self):
        """Indices of the commands that may set the deadline of the key behind their name."""
        return self.named(NAME_DEADLINE_FIRST, NAME_DEADLINE_LAST)

    @property
    def rewritten(self):
        """Indices of the commands whose deadline is not as the source sent it: absolute, lifted."""
        cdef size_t i
        cdef list found = []
        for i in range(self.packed.count):
            if self.packed.commands[i].rewritten:
                found.append(i)
        return found

    @property
    def field_deadlines(self):
        """Indices of the commands that set deadlines of fields in the hash behind their name."""
        return self.named(NAME_FIELD_DEADLINE, NAME_FIELD_DEADLINE)

    @property
    def field_counts(self):
        """Indices of the commands that count in a field, which may be one whose deadline passed."""
        return self.named(NAME_FIELD_COUNT, NAME_FIELD_COUNT)

    cdef list named(self, StreamName first, StreamName last):
        cdef size_t i
        cdef uint8_t name
        cdef list found = []
        for i in range(self.packed.count):
            name = self.packed.commands[i].name
            if first <= name <= last:
                found.append(i)
        return found

    def holds(self, uint32_t kinds):
        """Whether a command is of one of these kinds (a sum of KIND_MOVERS, KIND_SWAPS …)."""
        cdef size_t i
        cdef uint32_t found = 0
        for i in range(self.packed.count):
            found |= <uint32_t>1 << self.packed.commands[i].name
        return (found & kinds) != 0

    @property
    def movers(self):
        """Indices of RENAME, RENAMENX, COPY and MOVE: a value goes from one key to another."""
        return self.indices_of(NAME_RENAME, NAME_MOVE)

    def mentioning(self, keys):
        """Indices of the commands that have one of `keys` (a set of bytes) for an argument.

        Any argument behind the name counts, a value that happens to be equal to a key as well.
        TypeError for a key that is not bytes.
        """
        cdef _WantedKeys wanted = _WantedKeys(keys)
        cdef size_t i, count = self.packed.count
        cdef uint8_t *hits
        if not wanted.keeper or not count:
            return []
        hits = <uint8_t *>PyMem_RawMalloc(count)
        if hits == NULL:
            raise MemoryError()
        try:
            with nogil:
                for i in range(count):
                    hits[i] = wanted.mentioned(
                        command_bytes(&self.packed, &self.packed.commands[i]))
            return [i for i in range(count) if hits[i]]
        finally:
            PyMem_RawFree(hits)

    def split(self, uint64_t offset):
        """This batch as two, the first of which ends exactly at `offset`.

        ValueError unless `offset` is a boundary of the stream within the batch: its start, or
        just behind a command, one that was taken out included. A cut between MULTI and EXEC is
        allowed; `in_multi_after` of the first says so.
        """
        cdef size_t i = 0, j = 0
        cdef int db = self.db_before
        cdef bint in_multi = self.in_multi_before
        cdef uint64_t reached = self.start_offset
        cdef CommandBatch left, right
        while i < self.packed.count and self.packed.commands[i].end_offset <= offset:
            i += 1
        while j < self.packed.mark_count and self.packed.marks[j].end_offset <= offset:
            j += 1
        if i:
            reached = self.packed.commands[i - 1].end_offset
            db = self.packed.commands[i - 1].db
            in_multi = self.packed.commands[i - 1].in_multi
        if j and self.packed.marks[j - 1].end_offset > reached:
            reached = self.packed.marks[j - 1].end_offset
            db = self.packed.marks[j - 1].db
            in_multi = self.packed.marks[j - 1].in_multi
        if reached != offset or offset > self.end_offset:
            raise ValueError(
                f"{offset} is no boundary between {self.start_offset} and {self.end_offset}")
        left = self.part(0, i, 0, j)
        right = self.part(i, self.packed.count, j, self.packed.mark_count)
        left.start_offset, left.end_offset = self.start_offset, offset
        left.db_before, left.db_after = self.db_before, db
        left.in_multi_before, left.in_multi_after = self.in_multi_before, in_multi
        right.start_offset, right.end_offset = offset, self.end_offset
        right.db_before, right.db_after = db, self.db_after
        right.in_multi_before, right.in_multi_after = in_multi, self.in_multi_after
        return left, right

    cdef CommandBatch part(self, size_t first, size_t last, size_t first_mark, size_t last_mark):
        cdef CommandBatch part = CommandBatch.__new__(CommandBatch)
        cdef bint done
        with nogil:
            done = packed_slice(
                &self.packed, first, last, first_mark, last_mark, &part.packed)
        if not done:
            raise MemoryError()
        return part
