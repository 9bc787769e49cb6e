# The keys of a command, found among its arguments by the row of its name.
#
# A walk goes over the arguments once, in order, and makes no object. Counts that commands carry
# ("numkeys") are checked against the arguments that there are; what does not fit ends the walk with
# WALK_UNKNOWN: no server has replicated such a command, so nothing is known of it.
#
cdef enum WalkStep:
    WALK_END
    WALK_KEY
    WALK_UNKNOWN

cdef struct KeyWalk:
    const CommandRow *row
    const uint8_t *at             # the header of argument `index`
    uint64_t count
    uint64_t index
    # Of each part: the first of its keys, and behind the last; 0: not known yet.
    uint64_t first[KEY_PARTS_MOST]
    uint64_t end[KEY_PARTS_MOST]
    # What STORE names, which counts only if no other follows.
    const uint8_t *stored
    size_t stored_size
    uint64_t stored_at
    # FORM_SORT, FORM_STREAMS: arguments that belong to the word before them.
    uint32_t skipped
    bint store_follows
    bint may_be_pattern
    # It reads keys that it does not name.
    bint unnamed
    int32_t db
    int32_t other_db
    bint has_other
    # The key that was found.
    const uint8_t *key
    size_t size
    uint64_t position
    uint8_t role
    int32_t key_db


cdef inline bint is_keyword(
    const uint8_t *p, size_t n, const char *word, size_t size
) noexcept nogil:
    """Whether it is this word of lower-case letters, in any case."""
    cdef size_t i
    if n != size:
        return False
    for i in range(n):
        if (p[i] | 0x20) != <uint8_t>word[i]:
            return False
    return True


cdef bint find_other_database(KeyWalk *walk) noexcept nogil:
    """Of COPY and MOVE: the database that the key goes to. False where it is no number."""
    cdef const uint8_t *p = walk.at
    cdef size_t size
    cdef uint64_t i
    cdef int64_t number
    cdef bint wanted = False
    for i in range(walk.count):
        if wanted or (walk.row.stream_name == NAME_MOVE and i == 2):
            if not database_number(p, &number):
                return False
            walk.other_db = <int32_t>number
            walk.has_other = True
            return True
        p = argument_body(p, &size)
        wanted = walk.row.stream_name == NAME_COPY and i >= 3 and is_keyword(p, size, "db", 2)
        p += size + 2
    return walk.row.stream_name == NAME_COPY and not wanted


cdef bint begin_walk(
    KeyWalk *walk, const CommandRow *row, const uint8_t *command, int32_t db
) noexcept nogil:
    """False: the command's arguments are not those of its row, so that its keys are not known."""
    cdef const KeyPart *part
    cdef size_t i
    memset(walk, 0, sizeof(KeyWalk))
    walk.row = row
    walk.at = first_argument(command, &walk.count)
    walk.db = walk.other_db = db
    if row.flags & (FLAG_UNKNOWN | FLAG_CONTAINER):
        return False
    for i in range(row.part_count):
        part = &row.parts[i]
        if part.form == FORM_RANGE:
            walk.first[i] = part.first
            if part.last >= 0:
                walk.end[i] = <uint64_t>part.last + 1
            elif walk.count + 1 >= <uint64_t>(-part.last):
                walk.end[i] = walk.count + 1 + part.last
            if i and part.last < 0 and walk.end[i] == walk.first[i]:
                # PFMERGE of nothing.
                walk.first[i] = 0
            elif walk.end[i] <= walk.first[i] or walk.end[i] > walk.count:
                return False
        elif part.form == FORM_COUNT and walk.count <= <uint64_t>part.first:
            return False
    if row.stream_name == NAME_COPY or row.stream_name == NAME_MOVE:
        return find_other_database(walk)
    return True


cdef bint count_keys(
    KeyWalk *walk, size_t i, const uint8_t *p, size_t size
) noexcept nogil:
    """Read how many keys follow. False where it is no number, or there are fewer arguments."""
    cdef int64_t number
    cdef uint64_t left = walk.count - 1 - walk.index
    cdef uint64_t step = walk.row.parts[i].step
    if not parse_decimal(p, p + size, &number) or number < 0 or <uint64_t>number > left // step:
        return False
    walk.first[i] = walk.index + 1
    walk.end[i] = walk.index + 1 + <uint64_t>number * step
    return True


cdef bint look_for_streams(
    KeyWalk *walk, size_t i, const uint8_t *p, size_t size
) noexcept nogil:
    """The keys of XREADGROUP are half of what follows STREAMS. False where that is odd."""
    cdef uint64_t left = walk.count - 1 - walk.index
    if walk.first[i] or not walk.index:
        return True
    if walk.skipped:
        walk.skipped -= 1
    elif is_keyword(p, size, "group", 5):
        walk.skipped = 2
    elif (is_keyword(p, size, "count", 5) or is_keyword(p, size, "block", 5)
          or is_keyword(p, size, "claim", 5) or is_keyword(p, size, "maxcount", 8)
          or is_keyword(p, size, "maxsize", 7)):
        walk.skipped = 1
    elif is_keyword(p, size, "streams", 7):
        if not left or left % 2:
            return False
        walk.first[i] = walk.index + 1
        walk.end[i] = walk.index + 1 + left // 2
    return True


cdef void look_for_store(
    KeyWalk *walk, const KeyPart *part, const uint8_t *p, size_t size
) noexcept nogil:
    """What is behind STORE (GEORADIUS: or STOREDIST); of several the last counts."""
    if walk.index < <uint64_t>part.first:
        return
    if walk.store_follows:
        walk.stored, walk.stored_size, walk.stored_at = p, size, walk.index
        walk.store_follows = False
    elif walk.skipped:
        walk.skipped -= 1
        if walk.may_be_pattern and memchr(p, c"*", size) != NULL:
            walk.unnamed = True
    elif is_keyword(p, size, "store", 5) or (
            part.form == FORM_STORE and is_keyword(p, size, "storedist", 9)):
        walk.store_follows = True
    elif part.form == FORM_SORT:
        walk.may_be_pattern = is_keyword(p, size, "by", 2) or is_keyword(p, size, "get", 3)
        if walk.may_be_pattern:
            walk.skipped = 1
        elif is_keyword(p, size, "limit", 5):
            walk.skipped = 2


cdef void look_for_migrated(
    KeyWalk *walk, size_t i, const uint8_t *p, size_t size
) noexcept nogil:
    """MIGRATE host port key …, or an empty key and KEYS key …"""
    if walk.index == 3 and size:
        walk.first[i], walk.end[i] = 3, 4
    elif walk.index == 3:
        walk.store_follows = True
    elif walk.skipped:
        walk.skipped -= 1
    elif (walk.index >= 6 and walk.index + 1 < walk.count and walk.store_follows
          and is_keyword(p, size, "keys", 4)):
        walk.store_follows = False
        walk.first[i], walk.end[i] = walk.index + 1, walk.count
    elif walk.index >= 6 and is_keyword(p, size, "auth", 4):
        walk.skipped = 1
    elif walk.index >= 6 and is_keyword(p, size, "auth2", 5):
        walk.skipped = 2


cdef WalkStep next_key(KeyWalk *walk) noexcept nogil:
    cdef const CommandRow *row = walk.row
    cdef const KeyPart *part
    cdef const uint8_t *p
    cdef size_t size, i
    cdef uint64_t first
    cdef bint found
    while row.part_count and walk.index < walk.count:
        p = argument_body(walk.at, &size)
        found = False
        for i in range(row.part_count):
            part = &row.parts[i]
            if part.form == FORM_COUNT and walk.index == <uint64_t>part.first:
                if not count_keys(walk, i, p, size):
                    return WALK_UNKNOWN
            elif part.form == FORM_STREAMS:
                if not look_for_streams(walk, i, p, size):
                    return WALK_UNKNOWN
            elif part.form == FORM_STORE or part.form == FORM_SORT:
                look_for_store(walk, part, p, size)
            elif part.form == FORM_MIGRATE:
                look_for_migrated(walk, i, p, size)
            first = walk.first[i]
            if first and first <= walk.index < walk.end[i] and not (
                    (walk.index - first) % part.step):
                found = True
                walk.role = part.role
                # COPY: the second one of its keys is in the other database.
                walk.key_db = (walk.other_db if row.stream_name == NAME_COPY and i == 1
                               else walk.db)
        walk.at = p + size + 2
        walk.index += 1
        if found:
            walk.key, walk.size, walk.position = p, size, walk.index - 1
            return WALK_KEY
        if row.part_count <= 1 and walk.end[0] and walk.index >= walk.end[0]:
            break
    if walk.stored != NULL:
        walk.key, walk.size, walk.position = walk.stored, walk.stored_size, walk.stored_at
        walk.role, walk.key_db = ROLE_WRITTEN, walk.db
        walk.stored = NULL
        return WALK_KEY
    if row.stream_name == NAME_MOVE and walk.has_other:
        # The same key, where it goes to; it stays if there is one.
        walk.role, walk.key_db = ROLE_READ | ROLE_WRITTEN, walk.other_db
        walk.has_other = False
        return WALK_KEY
    if row.part_count and not walk.first[0] and (
            row.parts[0].form == FORM_STREAMS or row.parts[0].form == FORM_MIGRATE):
        return WALK_UNKNOWN
    return WALK_END


cdef struct PlacedKey:
    const uint8_t *data
    size_t size
    int32_t db


cdef class _PlacedKeys:
    """Keys with their databases: each once, in the order in which they were added. The bytes belong
    to another client."""
    cdef PlacedKey *keys
    cdef size_t count
    cdef size_t capacity
    # Numbers of keys, from 1 on; 0: a free slot.
    cdef size_t *slots
    cdef size_t mask
    cdef uint64_t seed

    def __cinit__(self):
        self.seed = <uint64_t><Py_hash_t>hash("placed keys")
        if not self.grow():
            raise MemoryError()

    def __dealloc__(self):
        PyMem_RawFree(self.keys)
        PyMem_RawFree(self.slots)

    cdef bint grow(self) noexcept nogil:
        cdef size_t capacity = 2 * self.capacity if self.capacity else 64
        cdef size_t *slots
        cdef PlacedKey *keys
        cdef size_t i, slot
        if capacity > (SIZE_MAX >> 8):
            return False
        keys = <PlacedKey *>PyMem_RawRealloc(self.keys, capacity * sizeof(PlacedKey))
        if keys == NULL:
            return False
        self.keys = keys
        slots = <size_t *>PyMem_RawMalloc(2 * capacity * sizeof(size_t))
        if slots == NULL:
            return False
        memset(slots, 0, 2 * capacity * sizeof(size_t))
        PyMem_RawFree(self.slots)
        self.slots = slots
        self.mask = 2 * capacity - 1
        self.capacity = capacity
        for i in range(self.count):
            slot = self.place(&keys[i])
            slots[slot] = i + 1
        return True

    cdef size_t place(self, const PlacedKey *wanted) noexcept nogil:
        """The slot of an equal key, or the free one where it belongs."""
        cdef size_t slot = hash_bytes(
            wanted.data, wanted.size, self.seed ^ <uint32_t>wanted.db) & self.mask
        cdef const PlacedKey *key
        while self.slots[slot]:
            key = &self.keys[self.slots[slot] - 1]
            if key.size == wanted.size and key.db == wanted.db and memcmp(
                    key.data, wanted.data, key.size) == 0:
                return slot
            slot = (slot + 1) & self.mask
        return slot

    cdef bint has(self, const uint8_t *p, size_t n, int32_t db) noexcept nogil:
        cdef PlacedKey wanted
        wanted.data, wanted.size, wanted.db = p, n, db
        return self.slots[self.place(&wanted)] != 0

    cdef bint add(self, const uint8_t *p, size_t n, int32_t db) noexcept nogil:
        """False: no memory."""
        cdef PlacedKey wanted
        cdef size_t slot
        wanted.data, wanted.size, wanted.db = p, n, db
        slot = self.place(&wanted)
        if self.slots[slot]:
            return True
        if self.count == self.capacity:
            if not self.grow():
                return False
            slot = self.place(&wanted)
        self.keys[self.count] = wanted
        self.count += 1
        self.slots[slot] = self.count
        return True

    cdef list since(self, size_t first):
        """The keys from number `first` on, as (database, key)."""
        cdef size_t i
        cdef list found = []
        for i in range(first, self.count):
            found.append((self.keys[i].db, PyBytes_FromStringAndSize(
                <const char *>self.keys[i].data, self.keys[i].size)))
        return found
