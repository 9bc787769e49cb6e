# Batches of commands: pieces of a replication stream.

cdef class _Swaps:
    """Which databases are swapped, in order; `passed`: how many of them lie behind us."""
    cdef int32_t *pairs
    cdef size_t count
    cdef size_t passed

    def __cinit__(self, list swaps):
        self.pairs = <int32_t *>PyMem_RawMalloc((len(swaps) + 1) * 2 * sizeof(int32_t))
        if self.pairs == NULL:
            raise MemoryError()
        for one, other in swaps:
            self.pairs[2 * self.count] = one
            self.pairs[2 * self.count + 1] = other
            self.count += 1

    def __dealloc__(self):
        PyMem_RawFree(self.pairs)

    cdef int32_t behind(self, int32_t db) noexcept nogil:
        """Where what is now in this database is behind all the swaps."""
        cdef size_t i
        for i in range(self.passed, self.count):
            if self.pairs[2 * i] == db:
                db = self.pairs[2 * i + 1]
            elif self.pairs[2 * i + 1] == db:
                db = self.pairs[2 * i]
        return db


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
        filter: what its commands are for, where that is not every key.
    """
    cdef Packed packed
    cdef readonly KeyFilter filter
    cdef readonly uint64_t start_offset
    cdef readonly uint64_t end_offset
    cdef readonly int db_before
    cdef readonly int db_after
    cdef readonly bint in_multi_before
    cdef readonly bint in_multi_after
    cdef uint32_t flags_of_all
    cdef bint flags_found

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
    def stream_commands(self):
        """How many commands of the stream it has: one that is sent as two, as a SETEX whose expire
        time is extended is, counts once."""
        cdef size_t i, found = self.packed.count
        if self.packed.rewritten.size:
            for i in range(1, self.packed.count):
                found -= (self.packed.commands[i].end_offset
                          == self.packed.commands[i - 1].end_offset)
        return found

    @property
    def in_file(self):
        """Whether the commands, or some of them, lie in a file: they are long."""
        return self.packed.raw.file != NULL or self.packed.rewritten.file != NULL

    cdef inline void let_go(self) noexcept nogil:
        """What was looked at of commands in a file counts as memory no longer."""
        bytes_let_go(&self.packed.raw)
        bytes_let_go(&self.packed.rewritten)

    @property
    def nbytes(self):
        """Bytes held, in memory or in a file: commands, what lies between them, and the index. Of
        batches that were cut and lie in one file each counts all of it."""
        return self.held_bytes()

    cdef size_t held_bytes(self) noexcept nogil:
        return (self.packed.raw.size + self.packed.rewritten.size
                + self.packed.count * sizeof(StreamCommand)
                + self.packed.mark_count * sizeof(StreamMark))

    cdef const StreamCommand *at(self, Py_ssize_t index) except NULL:
        if index < 0 or <size_t>index >= self.packed.count:
            raise IndexError("no such command")
        return &self.packed.commands[index]

    def command(self, Py_ssize_t index, size_t most=SIZE_MAX):
        """The arguments of command `index`, its name first, as it is to be sent: the first `most`
        bytes of each."""
        cdef uint64_t count
        cdef size_t size
        cdef const uint8_t *p = first_argument(
            command_bytes(&self.packed, self.at(index)), &count)
        arguments = []
        while count:
            p = argument_body(p, &size)
            arguments.append(PyBytes_FromStringAndSize(<const char *>p, min(size, most)))
            p += size + 2
            count -= 1
        self.let_go()
        return arguments

    def argument(self, Py_ssize_t index, uint64_t place, size_t most=SIZE_MAX):
        """Argument `place` of command `index` (its name is argument 0), as it is to be sent: its
        first `most` bytes. Unlike `command` it copies nothing else, and an argument may be very
        long. IndexError for an argument that the command has not.
        """
        cdef uint64_t count
        cdef size_t size = 0
        cdef const uint8_t *p = first_argument(
            command_bytes(&self.packed, self.at(index)), &count)
        if place >= count:
            raise IndexError("no such argument")
        while True:
            p = argument_body(p, &size)
            if not place:
                return PyBytes_FromStringAndSize(<const char *>p, min(size, most))
            p += size + 2
            place -= 1

    def longer(self, uint64_t limit):
        """Indices of the commands with an argument of more than `limit` bytes."""
        cdef size_t i, size
        cdef uint64_t count
        cdef const uint8_t *p
        cdef list found = []
        if self.nbytes <= limit:
            return found
        for i in range(self.packed.count):
            p = first_argument(command_bytes(&self.packed, &self.packed.commands[i]), &count)
            while count:
                p = argument_body(p, &size)
                if size > limit:
                    found.append(i)
                    break
                p += size + 2
                count -= 1
        self.let_go()
        return found

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
            if self.packed.commands[i].db != db and not self.packed.commands[i].across:
                db = self.packed.commands[i].db
                found.add(db)
        return frozenset(found)

    def stand_alone(self, int db):
        """Whether each command stands for itself, in database `db`: none was part of a transaction
        of the source's."""
        return self.all_alone(db)

    cdef bint all_alone(self, int db) noexcept nogil:
        cdef size_t i
        if self.in_multi_before or self.in_multi_after:
            return False
        for i in range(self.packed.count):
            if self.packed.commands[i].across:
                continue
            if self.packed.commands[i].db != db or self.packed.commands[i].in_multi:
                return False
        return True

    cdef uint32_t all_flags(self) noexcept nogil:
        """What the table says of all the commands together: found once, since nothing changes."""
        cdef size_t i
        cdef uint32_t found = 0
        cdef uint8_t across = 0
        if not self.flags_found:
            for i in range(self.packed.count):
                found |= COMMAND_ROWS[self.packed.commands[i].row].flags
                across |= self.packed.commands[i].across
            if across:
                found = 0
                for i in range(self.packed.count):
                    found |= command_flags_of(&self.packed.commands[i])
            self.flags_of_all = found
            self.flags_found = True
        return self.flags_of_all

    def holds(self, uint32_t flags):
        """Whether the table says one of these flags (a sum of CMD_…) of one of the commands."""
        return (self.all_flags() & flags) != 0

    def indices(self, uint32_t flags):
        """Indices of the commands of which the table says one of these flags (a sum of CMD_…)."""
        cdef size_t i
        cdef list found = []
        if self.all_flags() & flags:
            for i in range(self.packed.count):
                if command_flags_of(&self.packed.commands[i]) & flags:
                    found.append(i)
        return found

    def doubtful(self, uint32_t flags):
        """As `indices`, without the commands whose arguments say that the flag means nothing here:
        a SET of no number cannot have been INCRBYFLOAT (CMD_SETS_STRING), say. See unfaithful_commands.pxi."""
        cdef size_t i
        cdef list found = []
        if self.all_flags() & flags:
            for i in range(self.packed.count):
                if is_doubtful(&self.packed, &self.packed.commands[i], flags):
                    found.append(i)
        return found

    def flags(self, Py_ssize_t index):
        """What the table says of command `index`: a sum of CMD_…; CMD_UNKNOWN if it has no row,
        CMD_ACROSS if it is in `across`."""
        return command_flags_of(self.at(index))

    @property
    def across(self):
        """Indices of the commands that are never sent: their keys are not in one of the slots alone,
        the rules do not take all of them, or they are not known. `changes` names those that are."""
        return self.indices(FLAG_ACROSS)

    @property
    def swaps_across(self):
        """Whether one of them is SWAPDB, which may have changed any key."""
        cdef size_t i
        if self.all_flags() & FLAG_ACROSS:
            for i in range(self.packed.count):
                if self.packed.commands[i].across and (
                        stream_name(&self.packed.commands[i]) == NAME_SWAPDB):
                    return True
        return False

    @property
    def slot_moves(self):
        """Indices of the commands that tell of slots which are being moved: RESTORE-ASKING,
        CLUSTER SYNCSLOTS, TRIMSLOTS. Where there are slots each of the stream's is among them."""
        return self.indices(FLAG_SLOT_MOVES)

    def within(self, keys):
        """Those of `keys`, as (database, key), that it is for: all where there is no `filter`."""
        if self.filter is None:
            return list(keys)
        return [(db, key) for db, key in keys if self.filter.takes(db, key)]

    @property
    def unknown(self):
        """The names of the commands that have no row, each once, in upper case."""
        return list(dict.fromkeys(
            self.argument(index, 0).upper() for index in self.indices(FLAG_UNKNOWN)))

    @property
    def flushes(self):
        """Whether one of the commands is FLUSHALL or FLUSHDB."""
        return self.holds(FLAG_FLUSHES)

    @property
    def swaps(self):
        """The pairs of databases that SWAPDB swaps here, in order."""
        swaps = []
        for index in self.indices(FLAG_SWAPS):
            arguments = self.command(index)
            swaps.append((int(arguments[1]), int(arguments[2])))
        return swaps

    @property
    def rewritten(self):
        """Indices of the commands whose expire time is not as the source sent it: absolute,
        extended."""
        cdef size_t i
        cdef list found = []
        for i in range(self.packed.count):
            if self.packed.commands[i].rewritten and not self.packed.commands[i].renamed:
                found.append(i)
        return found

    def keys(self, Py_ssize_t index):
        """The keys that command `index` names, in the order of its arguments.

        None: they are not known, because the command has no row, or because its arguments are not
        those of its row.
        """
        cdef KeyWalk walk
        cdef WalkStep step
        cdef list found = []
        if not self.begin(&walk, index):
            return None
        while True:
            step = next_key(&walk)
            if step != WALK_KEY:
                break
            # MOVE: its one key once, not once for each database.
            if not found or stream_name(self.at(index)) != NAME_MOVE:
                found.append(PyBytes_FromStringAndSize(<const char *>walk.key, walk.size))
        return None if step == WALK_UNKNOWN else found

    def key_positions(self, Py_ssize_t index):
        """Which arguments of command `index` are keys; its name is argument 0. None as in `keys`.

        A cluster's node is chosen by the slot of the first one.
        """
        cdef KeyWalk walk
        cdef WalkStep step
        cdef list found = []
        if not self.begin(&walk, index):
            return None
        while True:
            step = next_key(&walk)
            if step != WALK_KEY:
                break
            if not found or stream_name(self.at(index)) != NAME_MOVE:
                found.append(walk.position)
        return None if step == WALK_UNKNOWN else found

    def changes(self, Py_ssize_t index):
        """The keys that command `index` may change, as (database, key); None as in `keys`. Only
        those that the `filter` takes, where there is one.

        Of RENAME, COPY and MOVE the last one is where the key goes to. The databases are those in
        which the keys are behind the batch: a later SWAPDB in it may have moved them.
        """
        cdef KeyWalk walk
        cdef WalkStep step
        cdef list found = []
        cdef _Swaps swaps
        if not self.begin(&walk, index):
            return None
        swaps = _Swaps(self.swaps_behind(index))
        while True:
            step = next_key(&walk)
            if step != WALK_KEY:
                break
            if walk.role & ROLE_WRITTEN and self.is_ours(self.at(index), &walk):
                found.append((
                    swaps.behind(walk.key_db),
                    PyBytes_FromStringAndSize(<const char *>walk.key, walk.size)))
        return None if step == WALK_UNKNOWN else found

    cdef inline bint is_ours(
        self, const StreamCommand *command, const KeyWalk *walk
    ) noexcept nogil:
        """Whether the key that was found is for the batch: of what is sent each is."""
        return not command.across or self.filter.has_key(walk.key_db, walk.key, walk.size)

    cdef bint begin(self, KeyWalk *walk, Py_ssize_t index) except -1:
        cdef const StreamCommand *command = self.at(index)
        return begin_walk(
            walk, &COMMAND_ROWS[command.row], command_bytes(&self.packed, command), command.db)

    cdef list swaps_behind(self, Py_ssize_t index):
        """The pairs of databases that are swapped behind command `index`."""
        if not self.all_flags() & FLAG_SWAPS:
            return []
        before = sum(at <= index for at in self.indices(FLAG_SWAPS))
        return self.swaps[before:]

    def changed(self):
        """(keys, unknown): the keys that the commands may change, each once, as (database, key);
        the indices of the commands whose keys are not known.

        The databases are those behind the batch, as in `changes`.
        """
        return self.spread((), False, FLAG_READS)

    def derived(self, dirty, bint moves=False):
        """(keys, unknown): the keys that become dirty by the commands if `dirty` are, as (database,
        key); the indices of the commands whose keys are not known.

        A key is changed by what a dirty one holds: or, where a command reads keys that it does not
        name, by whatever is dirty. `dirty` are pairs (database, key), their databases those behind
        the batch; what is in it is not given again. `moves`: only by RENAME, COPY and their like,
        which take a key's TTL along. TypeError if they are something else.
        """
        return self.spread(dirty, True, FLAG_MOVES if moves else FLAG_READS)

    cdef tuple spread(self, dirty, bint dirty_alone, uint32_t flags):
        cdef _PlacedKeys keys = _PlacedKeys()
        cdef _Swaps swaps = _Swaps(self.swaps)
        cdef tuple keeper = tuple(dirty)
        cdef size_t i, first
        cdef bint done = True
        cdef uint8_t *known
        cdef list unknown = []
        for db, key in keeper:
            if not PyBytes_CheckExact(key):
                raise TypeError(f"keys must be bytes, found {type(key).__name__}")
            if not keys.add(
                    <const uint8_t *>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), db):
                raise MemoryError()
        first = keys.count
        if not self.packed.count or (dirty_alone and not first):
            return [], []
        known = <uint8_t *>PyMem_RawMalloc(self.packed.count)
        if known == NULL:
            raise MemoryError()
        try:
            with nogil:
                done = self.spread_over(keys, swaps, dirty_alone, flags, known)
                self.let_go()
            if not done:
                raise MemoryError()
            for i in range(self.packed.count):
                if not known[i]:
                    unknown.append(i)
            return keys.since(first), unknown
        finally:
            PyMem_RawFree(known)

    cdef bint spread_over(
        self, _PlacedKeys keys, _Swaps swaps, bint dirty_alone, uint32_t flags, uint8_t *known
    ) noexcept nogil:
        """Add the keys that the commands change; `dirty_alone`: where commands with one of the
        flags change them by what is in `keys` already. False: no memory."""
        cdef const StreamCommand *command
        cdef const CommandRow *row
        cdef KeyWalk walk
        cdef WalkStep step
        cdef bint hit
        cdef size_t i
        for i in range(self.packed.count):
            command = &self.packed.commands[i]
            row = &COMMAND_ROWS[command.row]
            if stream_name(command) == NAME_SWAPDB and not command.across:
                swaps.passed += 1
            known[i] = not row.flags & FLAG_UNKNOWN
            if not known[i] or not row.part_count:
                continue
            if dirty_alone and not row.flags & flags:
                continue
            hit = not dirty_alone
            # Once to know whether it counts, and that its arguments are sound.
            known[i] = begin_walk(
                &walk, row, command_bytes(&self.packed, command), command.db)
            step = next_key(&walk) if known[i] else WALK_END
            while step == WALK_KEY:
                hit = hit or (walk.role & ROLE_READ and keys.has(
                    walk.key, walk.size, swaps.behind(walk.key_db)))
                step = next_key(&walk)
            known[i] = known[i] and step == WALK_END
            hit = hit or walk.unnamed or (row.flags & FLAG_SCRIPT)
            if not known[i] or not hit:
                continue
            begin_walk(&walk, row, command_bytes(&self.packed, command), command.db)
            while next_key(&walk) == WALK_KEY:
                if walk.role & ROLE_WRITTEN and self.is_ours(command, &walk) and not keys.add(
                        walk.key, walk.size, swaps.behind(walk.key_db)):
                    return False
        return True

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
                self.let_go()
            return [i for i in range(count) if hits[i]]
        finally:
            PyMem_RawFree(hits)

    def naming(self, bytes prefix not None):
        """Indices of the commands that have an argument behind the name which begins so."""
        cdef const uint8_t *wanted = <const uint8_t *>PyBytes_AS_STRING(prefix)
        cdef size_t wanted_size = PyBytes_GET_SIZE(prefix), i, count = self.packed.count
        cdef size_t first = count
        with nogil:
            for i in range(count):
                if begins_so(
                        command_bytes(&self.packed, &self.packed.commands[i]),
                        wanted, wanted_size):
                    first = i
                    break
            self.let_go()
        # There are few of them, if there is one.
        return [
            i for i in range(first, count)
            if begins_so(
                command_bytes(&self.packed, &self.packed.commands[i]), wanted, wanted_size)]

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
        if j and self.packed.marks[j - 1].end_offset >= reached:
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
        part.filter = self.filter
        with nogil:
            done = packed_slice(
                &self.packed, first, last, first_mark, last_mark, &part.packed)
        if part.packed.raw.file != NULL:
            part.packed.raw.file.owners += 1
        if part.packed.rewritten.file != NULL:
            part.packed.rewritten.file.owners += 1
        if not done:
            raise MemoryError()
        return part
