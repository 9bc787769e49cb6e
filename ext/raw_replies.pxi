# Replies as the bytes that they came as, and what one of them says of a stream: no Python object for
# an entry, a consumer, or what is pending.
#
# A reply is whole when as many values have come as it announced: an array stands for its members,
# however deep they are nested, so that one number tells where it ends.

cdef enum:
    # A line without an end is no reply: an error's text, or a length.
    RAW_LINE_MOST = 1 << 16

# Values of one reply that are announced and have not come.
cdef uint64_t RAW_VALUES_MOST = <uint64_t>1 << 40

cdef enum RawKind:
    RAW_TEXT
    RAW_NUMBER
    RAW_ARRAY
    RAW_NULL
    RAW_NEED_DATA
    RAW_BAD

cdef struct RawValue:
    RawKind kind
    # A number; the members of an array.
    int64_t number
    const uint8_t *text
    size_t size

cdef struct RawWalk:
    const uint8_t *data
    size_t at
    size_t end


cdef void raw_value(RawWalk *walk, RawValue *value) noexcept nogil:
    """The value at `walk.at`, which moves behind it: of an array behind its header. It stays where
    it is if the value is not whole."""
    cdef const uint8_t *line = walk.data + walk.at
    cdef size_t have = walk.end - walk.at, size
    cdef const uint8_t *newline = NULL
    cdef int64_t n = 0
    value.kind = RAW_NEED_DATA
    if have:
        newline = <const uint8_t *>memchr(line, 10, have)
    if newline == NULL:
        if have > RAW_LINE_MOST:
            value.kind = RAW_BAD
        return
    size = newline - line
    value.kind = RAW_BAD
    if size < 2 or line[size - 1] != 13:
        return
    if line[0] == c'+' or line[0] == c'-':
        value.kind = RAW_TEXT
        value.text = line + 1
        value.size = size - 2
        walk.at += size + 1
        return
    if not parse_decimal(line + 1, line + size - 1, &n):
        return
    value.number = n
    if line[0] == c':':
        value.kind = RAW_NUMBER
        walk.at += size + 1
    elif n == -1 and (line[0] == c'$' or line[0] == c'*'):
        value.kind = RAW_NULL
        walk.at += size + 1
    elif line[0] == c'*' and n >= 0:
        value.kind = RAW_ARRAY
        walk.at += size + 1
    elif line[0] == c'$' and n >= 0:
        if have - size - 1 < <uint64_t>n + 2:
            value.kind = RAW_NEED_DATA
            return
        value.text = line + size + 1
        value.size = n
        if value.text[n] != 13 or value.text[n + 1] != 10:
            return
        value.kind = RAW_TEXT
        walk.at += size + 1 + n + 2


cdef RawKind raw_rest(RawWalk *walk, uint64_t *left) noexcept nogil:
    """Pass `left` values, with all that is in them; RAW_ARRAY when they are whole."""
    cdef RawValue value
    while left[0]:
        raw_value(walk, &value)
        if value.kind == RAW_NEED_DATA or value.kind == RAW_BAD:
            return value.kind
        left[0] -= 1
        if value.kind == RAW_ARRAY:
            left[0] += value.number
            if left[0] > RAW_VALUES_MOST:
                return RAW_BAD
    return RAW_ARRAY


@cython.final
cdef class ReplySplitter:
    """Cuts what a connection brings into replies (RESP2), each as the bytes that it is."""
    cdef uint8_t *data
    cdef size_t capacity
    # Unread: [start, end); up to `at` it was looked at.
    cdef size_t start
    cdef size_t end
    cdef size_t at
    # Values that the reply at `start` still has; 0: it was not looked at.
    cdef uint64_t left

    def __dealloc__(self):
        PyMem_RawFree(self.data)

    def feed(self, bytes chunk not None):
        """Add what has come."""
        cdef size_t n = PyBytes_GET_SIZE(chunk), capacity = self.capacity
        cdef uint8_t *grown
        if self.start and n > capacity - self.end:
            memmove(self.data, self.data + self.start, self.end - self.start)
            self.end -= self.start
            self.at -= self.start
            self.start = 0
        if n > capacity - self.end:
            capacity = max(2 * capacity, self.end + n)
            grown = <uint8_t *>PyMem_RawRealloc(self.data, capacity)
            if grown == NULL:
                raise MemoryError()
            self.data = grown
            self.capacity = capacity
        if n:
            memcpy(self.data + self.end, PyBytes_AS_STRING(chunk), n)
        self.end += n

    def next(self):
        """The next reply, None where it is not whole. ValueError for what is no reply."""
        cdef RawWalk walk
        cdef RawKind found
        cdef bytes reply
        if self.left == 0:
            self.left = 1
            self.at = self.start
        walk.data, walk.at, walk.end = self.data, self.at, self.end
        with nogil:
            found = raw_rest(&walk, &self.left)
        self.at = walk.at
        if found == RAW_NEED_DATA:
            return None
        if found == RAW_BAD:
            raise ValueError("what came is no reply")
        reply = PyBytes_FromStringAndSize(<char *>self.data + self.start, self.at - self.start)
        self.start = self.at
        return reply


cdef struct RawPlace:
    # A group or a consumer: its name, its count of pending entries, and where it stands.
    const uint8_t *name
    size_t size
    RawValue last_id
    int64_t pending
    size_t consumers_at
    size_t pending_at


cdef int by_name(const void *one, const void *other) noexcept nogil:
    cdef const RawPlace *a = <const RawPlace *>one
    cdef const RawPlace *b = <const RawPlace *>other
    cdef int order = memcmp(a.name, b.name, min(a.size, b.size))
    if order == 0 and a.size != b.size:
        return -1 if a.size < b.size else 1
    return order


cdef int raw_next(RawWalk *walk, RawValue *value) except -1:
    raw_value(walk, value)
    if value.kind == RAW_NEED_DATA or value.kind == RAW_BAD:
        raise ValueError("a reply is not whole")
    return 0


cdef int raw_of(RawWalk *walk, RawValue *value, RawKind kind) except -1:
    """The next value, which must be of this kind."""
    raw_next(walk, value)
    if value.kind != kind:
        raise ValueError("a reply to XINFO STREAM is not as expected")
    return 0


cdef int raw_skip(RawWalk *walk) except -1:
    cdef uint64_t left = 1
    if raw_rest(walk, &left) != RAW_ARRAY:
        raise ValueError("a reply is not whole")
    return 0


cdef int64_t raw_members(RawWalk *walk, int64_t each) except -1:
    """Open an array whose members have `each` values; how many there are."""
    cdef RawValue value
    raw_of(walk, &value, RAW_ARRAY)
    # Three bytes are the shortest value.
    if value.number % each or value.number > <int64_t>((walk.end - walk.at) // 3):
        raise ValueError("a reply to XINFO STREAM is not as expected")
    return value.number // each


cdef inline bint named(const RawValue *value, const char *name, size_t size) noexcept nogil:
    return value.size == size and memcmp(value.text, name, size) == 0


cdef enum:
    PARTS_BYTES = 2048

cdef struct Parts:
    # Parts on their way into a digest: many short ones cost a call each else.
    Sip *sip
    size_t used
    uint8_t framed[PARTS_BYTES]


cdef void parts_flush(Parts *s) noexcept nogil:
    sip_update(s.sip, s.framed, s.used)
    s.used = 0


cdef inline void part_number(Parts *s, int64_t number) noexcept nogil:
    cdef uint64_t size = 8
    if s.used + 16 > PARTS_BYTES:
        parts_flush(s)
    memcpy(s.framed + s.used, &size, 8)
    memcpy(s.framed + s.used + 8, &number, 8)
    s.used += 16


cdef inline void part_text(Parts *s, const uint8_t *text, uint64_t size) noexcept nogil:
    if size > PARTS_BYTES or s.used + 8 + size > PARTS_BYTES:
        parts_flush(s)
    memcpy(s.framed + s.used, &size, 8)
    s.used += 8
    if size <= PARTS_BYTES - s.used:
        memcpy(s.framed + s.used, text, size)
        s.used += size
    else:
        parts_flush(s)
        sip_update(s.sip, text, size)


cdef inline int part_value(Parts *s, const RawValue *value) except -1:
    if value.kind == RAW_NUMBER:
        part_number(s, value.number)
    elif value.kind == RAW_TEXT:
        part_text(s, value.text, value.size)
    else:
        raise ValueError("a reply to XINFO STREAM is not as expected")
    return 0


cdef object raw_object(const RawValue *value):
    if value.kind == RAW_NUMBER:
        return value.number
    if value.kind == RAW_TEXT:
        return PyBytes_FromStringAndSize(<char *>value.text, value.size)
    raise ValueError("a reply to XINFO STREAM is not as expected")


cdef int parts_entries(Parts *s, RawWalk *walk) except -1:
    """What `OrderedDigest.add_entries` adds."""
    cdef RawValue value
    cdef int64_t i, left
    for i in range(raw_members(walk, 1)):
        raw_of(walk, &value, RAW_ARRAY)
        if value.number != 2:
            raise ValueError("a reply to XINFO STREAM is not as expected")
        raw_of(walk, &value, RAW_TEXT)
        part_value(s, &value)
        raw_next(walk, &value)
        left = value.number if value.kind == RAW_ARRAY else 0
        part_number(s, left)
        while left:
            raw_next(walk, &value)
            part_value(s, &value)
            left -= 1
    return 0


cdef RawPlace *raw_places(RawWalk *walk, int64_t *count) except NULL:
    """The maps of an array (groups, or consumers) by name. To be freed."""
    cdef RawValue name, value
    cdef int64_t i, member
    cdef RawPlace *places
    cdef RawPlace *place
    count[0] = raw_members(walk, 1)
    places = <RawPlace *>PyMem_RawCalloc(count[0] + 1, sizeof(RawPlace))
    if places == NULL:
        raise MemoryError()
    try:
        for i in range(count[0]):
            place = places + i
            for member in range(raw_members(walk, 2)):
                raw_of(walk, &name, RAW_TEXT)
                if named(&name, b"name", 4):
                    raw_of(walk, &value, RAW_TEXT)
                    place.name, place.size = value.text, value.size
                elif named(&name, b"last-delivered-id", 17):
                    raw_of(walk, &place.last_id, RAW_TEXT)
                elif named(&name, b"pel-count", 9):
                    raw_of(walk, &value, RAW_NUMBER)
                    place.pending = value.number
                else:
                    if named(&name, b"consumers", 9):
                        place.consumers_at = walk.at
                    elif named(&name, b"pending", 7):
                        place.pending_at = walk.at
                    raw_skip(walk)
            if place.name == NULL:
                raise ValueError("a reply to XINFO STREAM is not as expected")
        qsort(places, count[0], sizeof(RawPlace), by_name)
    except:
        PyMem_RawFree(places)
        raise
    return places


cdef int parts_consumers(Parts *s, RawWalk *walk, bint idle_consumers) except -1:
    cdef int64_t count = 0, i
    cdef RawPlace *places = raw_places(walk, &count)
    try:
        for i in range(count):
            if places[i].pending or idle_consumers:
                part_text(s, places[i].name, places[i].size)
                part_number(s, places[i].pending)
    finally:
        PyMem_RawFree(places)
    return 0


cdef int parts_pending(Parts *s, RawWalk *walk) except -1:
    """Of each: identifier, consumer, when it was delivered (left out), how often."""
    cdef RawValue value
    cdef int64_t i
    cdef int column
    for i in range(raw_members(walk, 1)):
        raw_of(walk, &value, RAW_ARRAY)
        if value.number != 4:
            raise ValueError("a reply to XINFO STREAM is not as expected")
        for column in range(4):
            raw_next(walk, &value)
            if column != 2:
                part_value(s, &value)
    return 0


cdef int parts_groups(Parts *s, RawWalk *walk, bint idle_consumers) except -1:
    cdef int64_t count = 0, i
    cdef RawPlace *places = raw_places(walk, &count)
    cdef RawWalk within = walk[0]
    try:
        for i in range(count):
            if places[i].last_id.text == NULL or not (
                places[i].consumers_at and places[i].pending_at
            ):
                raise ValueError("a reply to XINFO STREAM is not as expected")
            part_text(s, places[i].name, places[i].size)
            part_value(s, &places[i].last_id)
            part_number(s, places[i].pending)
            within.at = places[i].consumers_at
            parts_consumers(s, &within, idle_consumers)
            within.at = places[i].pending_at
            parts_pending(s, &within)
    finally:
        PyMem_RawFree(places)
    return 0


def stream_digests(bytes reply not None, bytes key not None, *, bint idle_consumers):
    """What a reply to XINFO STREAM … FULL COUNT 0 says of a stream, digested as `OrderedDigest`
    does: (entries, groups, last id, greatest id that was deleted, entries ever added).

    Of a group: name, last delivered id, how many are pending, its consumers by name (those without
    pending entries only with `idle_consumers`), and what is pending, without the time at which it
    was delivered. What a version does not tell is None. None for a reply that is no array.
    ValueError for one that is not as expected.
    """
    cdef RawWalk walk
    cdef RawValue name, value
    cdef int64_t member
    cdef Sip entries, groups
    cdef Parts parts
    cdef uint64_t low, high
    cdef bint seen = False, grouped = False
    cdef object last_id = None, deleted = None, added = None
    if len(key) != 16:
        raise ValueError(f"a digest's key has 16 bytes, found {len(key)}")
    walk.data = <const uint8_t *>PyBytes_AS_STRING(reply)
    walk.at, walk.end = 0, PyBytes_GET_SIZE(reply)
    if walk.end == 0 or walk.data[0] != c'*':
        return None
    sip_begin(&entries, <const uint8_t *>PyBytes_AS_STRING(key))
    groups = entries
    for member in range(raw_members(&walk, 2)):
        raw_of(&walk, &name, RAW_TEXT)
        if named(&name, b"entries", 7) and not seen:
            parts.sip, parts.used = &entries, 0
            parts_entries(&parts, &walk)
            parts_flush(&parts)
            seen = True
        elif named(&name, b"groups", 6) and not grouped:
            parts.sip, parts.used = &groups, 0
            parts_groups(&parts, &walk, idle_consumers)
            parts_flush(&parts)
            grouped = True
        elif named(&name, b"last-generated-id", 17):
            raw_next(&walk, &value)
            last_id = raw_object(&value)
        elif named(&name, b"max-deleted-entry-id", 20):
            raw_next(&walk, &value)
            deleted = raw_object(&value)
        elif named(&name, b"entries-added", 13):
            raw_next(&walk, &value)
            added = raw_object(&value)
        else:
            raw_skip(&walk)
    if not (seen and grouped) or last_id is None:
        raise ValueError("a reply to XINFO STREAM is not as expected")
    sip_finish(&entries, &low, &high)
    told = sip_bytes(low, high)
    sip_finish(&groups, &low, &high)
    return told, sip_bytes(low, high), last_id, deleted, added
