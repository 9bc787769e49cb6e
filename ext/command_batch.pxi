# Batches of commands: pieces of a replication stream.

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
    def places(self):
        """Indices of GEORADIUS, GEORADIUSBYMEMBER and GEOSEARCHSTORE."""
        return self.indices_of(NAME_PLACES, NAME_PLACES)

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
