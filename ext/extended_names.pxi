# The names of keys whose expire times on the target are extended: a set of (database, name), so
# that they can be set back without a walk through every key.
#
# An entry is an int32 (the database), a uint32 (the name's length) and the name, side by side in
# one arena; a table of places by their hash finds them. The set is bounded. Once it is full it says
# so, holds nothing, and takes nothing: what is extended is not known any more.

cdef enum:
    HELD_HEAD = 8
    HELD_FIRST_SLOTS = 1024


@cython.final
cdef class ExtendedNames:
    """A bounded set of (database, name).

    Attributes:
        known: the set holds every name that was added since `clear`. False before the first
            `clear`, behind `give_up`, and once it has outgrown its bound.
    """
    cdef RawBytes names
    cdef size_t *slots                 # the place of an entry + 1; 0: free
    cdef size_t mask
    cdef size_t count
    cdef size_t names_most
    cdef size_t bytes_most
    cdef uint64_t seed
    cdef size_t begun                  # how often it was emptied
    cdef readonly bint known

    def __cinit__(self, *, size_t names_most=1 << 20, size_t bytes_most=64 << 20):
        self.names_most = names_most
        self.bytes_most = bytes_most
        self.seed = <uint64_t><Py_hash_t>hash("extended names")

    def __dealloc__(self):
        self.free()

    def __len__(self):
        return self.count

    @property
    def nbytes(self):
        """Bytes of memory."""
        return self.names.capacity + (self.mask + 1) * sizeof(size_t) * (self.slots != NULL)

    cdef void free(self) noexcept nogil:
        PyMem_RawFree(self.names.data)
        PyMem_RawFree(self.slots)
        memset(&self.names, 0, sizeof(RawBytes))
        self.slots = NULL
        self.mask = self.count = 0
        self.begun += 1

    def clear(self):
        """Begin anew: no name, and all that come are noted."""
        self.free()
        self.known = True

    def give_up(self):
        """What is extended is not known."""
        self.free()
        self.known = False

    def add(self, int db, bytes name not None):
        """Note one name."""
        if not self.put(
                db, <const uint8_t *>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)):
            self.give_up()

    def add_records(self, RecordBatch batch not None, int64_t due_from):
        """Note the keys of a snapshot's batch that are due at `due_from` (ms since the epoch) or
        later."""
        cdef Record *record
        cdef size_t i
        cdef bint fits = True
        with nogil:
            for i in range(batch.arena.count):
                record = &batch.arena.records[i]
                if record.expire_at >= due_from:
                    fits = self.put(batch.db, batch.arena.data + record.offset, record.key_size)
                    if not fits:
                        break
        if not fits:
            self.give_up()

    def add_packed(self, int db, bytes names not None):
        """Note names that stand behind one another, each behind its length (4 bytes,
        little-endian), as in `RecordBatch.timed`. ValueError for a wrong length."""
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(names)
        cdef size_t left = PyBytes_GET_SIZE(names)
        cdef uint32_t n
        while left:
            if left < 4:
                raise ValueError("no length of a name")
            memcpy(&n, p, 4)
            if left - 4 < n:
                raise ValueError("a name that is shorter than its length")
            if not self.put(db, p + 4, n):
                self.give_up()
                return
            p += 4 + <size_t>n
            left -= 4 + <size_t>n

    def add_commands(self, CommandBatch batch not None, *, bint members=False):
        """Note the keys of the commands that were rewritten, for their expire times may be
        extended; with `members` those whose fields' expire times may be, else the others.

        Mostly they are of the forms that `anchor_command` writes: PEXPIREAT, SET and RESTORE, whose
        first argument is the key. Of others (MSETEX) the table says where the keys are.
        """
        cdef const StreamCommand *command
        cdef KeyWalk walk
        cdef WalkStep step
        cdef const uint8_t *p
        cdef uint64_t count
        cdef size_t i, size
        cdef bint fits = True
        with nogil:
            for i in range(batch.packed.count):
                command = &batch.packed.commands[i]
                if not command.rewritten or command.renamed:
                    continue
                if members and not command.extended_fields:
                    continue
                if not members and COMMAND_ROWS[command.row].flags & FLAG_MEMBER_TTL:
                    continue
                p = argument_body(
                    first_argument(command_bytes(&batch.packed, command), &count), &size)
                if count >= 3 and rewritten_by_key(p, size):
                    p = argument_body(p + size + 2, &size)
                    fits = self.put(command.db, p, size)
                else:
                    fits = begin_walk(
                        &walk, &COMMAND_ROWS[command.row],
                        command_bytes(&batch.packed, command), command.db)
                    step = next_key(&walk) if fits else WALK_UNKNOWN
                    while fits and step == WALK_KEY:
                        fits = self.put(walk.key_db, walk.key, walk.size)
                        step = next_key(&walk)
                    fits = fits and step == WALK_END
                if not fits:
                    break
        if not fits:
            self.give_up()

    cdef bint put(self, int32_t db, const uint8_t *name, size_t n) noexcept nogil:
        """False: there is no room for it."""
        cdef size_t slot, at
        cdef uint32_t size = <uint32_t>n
        cdef uint8_t *entry
        if not self.known:
            return True
        if n > UINT32_MAX:
            return False
        if 2 * (self.count + 1) > self.mask and not self.grow():
            return False
        slot = hash_bytes(name, n, self.seed + <uint64_t>db) & self.mask
        while self.slots[slot]:
            at = self.slots[slot] - 1
            if self.is_entry(at, db, name, n):
                return True
            slot = (slot + 1) & self.mask
        if self.count == self.names_most or self.names.size + HELD_HEAD + n > self.bytes_most:
            return False
        if not raw_reserve(&self.names, HELD_HEAD + n):
            return False
        entry = self.names.data + self.names.size
        memcpy(entry, &db, 4)
        memcpy(entry + 4, &size, 4)
        if n:
            memcpy(entry + HELD_HEAD, name, n)
        self.slots[slot] = self.names.size + 1
        self.names.size += HELD_HEAD + n
        self.count += 1
        return True

    cdef inline bint is_entry(
        self, size_t at, int32_t db, const uint8_t *name, size_t n
    ) noexcept nogil:
        cdef int32_t entry_db
        cdef uint32_t size
        memcpy(&entry_db, self.names.data + at, 4)
        memcpy(&size, self.names.data + at + 4, 4)
        return (entry_db == db and size == n
                and memcmp(self.names.data + at + HELD_HEAD, name, n) == 0)

    cdef bint grow(self) noexcept nogil:
        """Twice as many slots, and the entries in their places."""
        cdef size_t capacity = 2 * (self.mask + 1) if self.slots != NULL else HELD_FIRST_SLOTS
        cdef size_t *slots = <size_t *>PyMem_RawMalloc(capacity * sizeof(size_t))
        cdef size_t at = 0, slot
        cdef int32_t db
        cdef uint32_t n
        if slots == NULL:
            return False
        memset(slots, 0, capacity * sizeof(size_t))
        while at < self.names.size:
            memcpy(&db, self.names.data + at, 4)
            memcpy(&n, self.names.data + at + 4, 4)
            slot = hash_bytes(self.names.data + at + HELD_HEAD, n, self.seed + <uint64_t>db)
            slot &= capacity - 1
            while slots[slot]:
                slot = (slot + 1) & (capacity - 1)
            slots[slot] = at + 1
            at += HELD_HEAD + n
        PyMem_RawFree(self.slots)
        self.slots = slots
        self.mask = capacity - 1
        return True

    def pages(self, size_t most):
        """Iterate over the names in lists of up to `most`, as (database, name), the oldest first.

        Names that are added meanwhile come last. It ends early if the set is emptied meanwhile.
        """
        cdef int32_t db
        cdef uint32_t n
        cdef size_t at = 0
        cdef size_t begun = self.begun
        cdef list found
        while at < self.names.size:
            found = []
            while at < self.names.size and <size_t>len(found) < most:
                memcpy(&db, self.names.data + at, 4)
                memcpy(&n, self.names.data + at + 4, 4)
                found.append((db, PyBytes_FromStringAndSize(
                    <const char *>self.names.data + at + HELD_HEAD, n)))
                at += HELD_HEAD + n
            yield found
            if self.begun != begun:
                return


cdef inline bint rewritten_by_key(const uint8_t *name, size_t n) noexcept nogil:
    """Whether a rewritten command of this name has its one key behind the name."""
    if n == 3:
        return name_word(name, 3) == name_word(<const uint8_t *>"set", 3)
    if n == 7:
        return name_word(name, 7) == name_word(<const uint8_t *>"restore", 7)
    if n == 9:
        return (name_word(name, 8) == name_word(<const uint8_t *>"pexpirea", 8)
                and name_word(name + 8, 1) == name_word(<const uint8_t *>"t", 1))
    return (n == 14 and name_word(name, 8) == name_word(<const uint8_t *>"restore-", 8)
            and name_word(name + 8, 6) == name_word(<const uint8_t *>"asking", 6))
