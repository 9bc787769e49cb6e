# What an RDB snapshot is made of (rdb.h and rdb.c of the servers), as far as it takes to find where
# a value ends: lengths, strings, and for each type of value the order in which they come.

cdef enum:
    # The bytes from here on are opcodes, those below are types of values.
    FIRST_OPCODE = 242
    WALK_OPS_MOST = 512
    # Groups, consumers, pending entries: no type nests deeper.
    WALK_DEPTH = 4
    # Of the head of a string: its encoding, and two lengths (compressed, and plain).
    STRING_HEAD_MOST = 19
    # A list of more nodes is not looked through for members.
    EMPTY_NODES_MOST = 4
    # LZF's best: three bytes that stand for 264.
    LZF_RATIO_MOST = 264
    # Bytes of the longest run that is not compressed.
    LZF_LITERAL = 32

cdef enum Flavour:
    FLAVOUR_REDIS
    FLAVOUR_VALKEY
    FLAVOURS

cdef enum StringEncoding:
    STRING_RAW
    STRING_INTEGER
    STRING_LZF

cdef struct StringHead:
    StringEncoding encoding
    # Bytes behind the head, and bytes once decoded (0 where it is an integer).
    uint64_t body
    uint64_t plain


# How to walk over what stands behind a type or an opcode. A walk is a row of items:
#
#   s       a string, in any encoding             d       a score in ASCII, its length before it
#   l       a length, which may be any number     4 8 x   4, 8, 16 bytes
#   i       a length that is kept: an id          c       a length that is kept: a count
#   < >     what is between, as often as the count says;  ( is c<, and ) is >
#   m       a module's items, to their end        g       a length; a string, unless it was 0
#   f       a length; another, if it was 1        t       an element of an array, its kind first
#   r       the id of a template; its number of fields is the count
#   b e     the first and the last slot of a range, which is noted where there is a set of slots
#
# The interpreter (`SnapshotReader.walk`) stops at any byte and goes on from there: its whole state
# is the place in the walk, what is left of a string's body, and a short stack of counts. A count
# costs nothing until its elements come.
_STREAM_LOG = "(ss)lll"
_STREAM_LOG_2 = "(ss)llllllll"
_PENDING = "(x8l)"
_IDEMPOTENCE = "ll(s(sll))ll"

# (first RDB version that has it, walk), by type and opcode.
_WALKS_COMMON = {
    0: (1, "s"),
    1: (1, "(s)"),
    2: (1, "(s)"),
    3: (1, "(sd)"),
    4: (1, "(ss)"),
    5: (8, "(s8)"),
    7: (8, "im"),
    9: (1, "s"),
    10: (1, "s"),
    11: (1, "s"),
    12: (1, "s"),
    13: (1, "s"),
    14: (7, "(s)"),
    15: (9, _STREAM_LOG + "(sll" + _PENDING + "(s8(x)))"),
    16: (10, "s"),
    17: (10, "s"),
    18: (10, "(ls)"),
    19: (10, _STREAM_LOG_2 + "(slll" + _PENDING + "(s8(x)))"),
    20: (11, "s"),
    21: (11, _STREAM_LOG_2 + "(slll" + _PENDING + "(s88(x)))"),
    # Functions as the release candidates of 7.0 wrote them; a module's data beside the keys.
    246: (10, "ssgs"),
    247: (8, "im"),
}
# 29 and 31 stand in DUMP payloads alone: a snapshot has 30 and 32 instead, which are made into 4
# (template_hashes.pxi).
_WALKS_REDIS = {
    22: (12, "(lss)"),
    23: (12, "s"),
    24: (12, "8(lss)"),
    25: (12, "8s"),
    26: (12, _STREAM_LOG_2 + "(slll" + _PENDING + "(s88(x)))" + _IDEMPOTENCE),
    27: (13, _STREAM_LOG_2 + "(slll" + _PENDING + "(s88(x))(x))" + _IDEMPOTENCE),
    28: (13, "cf<lt>"),
    30: (14, "s"),
    32: (14, "r<s>"),
    33: (14, "l"),
    # The names of a template's fields; module metadata of the key that comes next.
    242: (14, "ic<s>"),
    243: (12, "(4m)"),
}
# A hash with field TTLs; a path hash; a slot import that was under way. Behind 242 stands a command
# that was written while the snapshot was (Valkey 9.2, for replicas): it is no part of what a
# snapshot holds, and named as not known.
_WALKS_VALKEY = {
    22: (80, "(ss8)"),
    23: (81, "(s(ss))"),
    243: (80, "s(be)"),
}

# What a footer has to say for the types that one flavour alone has. The tables above let some in
# at a lower version, for pre-releases wrote them before they raised their number.
_NEEDED = {
    FLAVOUR_REDIS: {22: 12, 23: 12, 24: 12, 25: 12, 26: 13, 27: 14, 28: 14, 33: 15},
    FLAVOUR_VALKEY: {22: 80, 23: 81},
}

cdef uint8_t walk_ops[WALK_OPS_MOST]
# Where the loop that opens or closes here closes or opens.
cdef int16_t walk_jumps[WALK_OPS_MOST]
# Where the walk of a type or opcode begins (-1: there is no such), since which version there is
# such, whether it is one string, whose length is known up front, and the version to stamp on it.
cdef int16_t walk_starts[FLAVOURS][256]
cdef uint16_t walk_since[FLAVOURS][256]
cdef uint8_t walk_single[FLAVOURS][256]
cdef uint16_t walk_needed[FLAVOURS][256]


cdef setup_walks():
    """Fill the tables; a walk that several types share is stored once."""
    cdef int used = 0, at, flavour, number
    starts = {}
    memset(walk_starts, 0xff, sizeof(walk_starts))
    for flavour, own in ((FLAVOUR_REDIS, _WALKS_REDIS), (FLAVOUR_VALKEY, _WALKS_VALKEY)):
        for number, (since, walk) in (_WALKS_COMMON | own).items():
            plain = walk.replace("(", "c<").replace(")", ">")
            if plain not in starts:
                starts[plain] = used
                opened = []
                for op in plain:
                    walk_ops[used] = ord(op)
                    if op == "<":
                        opened.append(used)
                    elif op == ">":
                        at = opened.pop()
                        walk_jumps[used] = at
                        walk_jumps[at] = used
                    used += 1
                walk_ops[used] = 0
                used += 1
                if used > WALK_OPS_MOST - 64:
                    raise AssertionError("WALK_OPS_MOST is too small")
            walk_starts[flavour][number] = starts[plain]
            walk_since[flavour][number] = since
            walk_single[flavour][number] = plain == "s"
            walk_needed[flavour][number] = (
                LOWEST_VERSION[number] if number < TYPES_KNOWN
                else _NEEDED[flavour].get(number, since))


setup_walks()


cdef inline int length_head(const uint8_t *p, size_t n, uint64_t *value) noexcept nogil:
    """Read a length; returns the bytes that it takes, 0: not all here yet, -1: no length."""
    cdef int i
    if n == 0:
        return 0
    if p[0] < 0x40:
        value[0] = p[0]
        return 1
    if p[0] < 0x80:
        if n < 2:
            return 0
        value[0] = (<uint64_t>(p[0] & 0x3f) << 8) | p[1]
        return 2
    if p[0] == 0x80:
        if n < 5:
            return 0
        value[0] = (<uint64_t>p[1] << 24) | (<uint64_t>p[2] << 16) | (<uint64_t>p[3] << 8) | p[4]
        return 5
    if p[0] == 0x81:
        if n < 9:
            return 0
        value[0] = 0
        for i in range(1, 9):
            value[0] = (value[0] << 8) | p[i]
        return 9
    return -1


cdef inline int string_head(const uint8_t *p, size_t n, StringHead *head) noexcept nogil:
    """Read what stands before a string's body; returns as `length_head` does.

    A body longer than a signed number can say is no string: sums of sizes cannot overflow.
    """
    cdef int first, second
    # No compiler can tell that code which finds a size also finds these.
    head.body = head.plain = 0
    if n == 0:
        return 0
    if p[0] < 0xc0:
        first = length_head(p, n, &head.body)
        head.encoding = STRING_RAW
        head.plain = head.body
        if first > 0 and head.body > <uint64_t>INT64_MAX - 64:
            return -1
        return first
    if p[0] < 0xc3:
        head.encoding = STRING_INTEGER
        head.body = <uint64_t>1 << (p[0] - 0xc0)
        head.plain = 0
        return 1
    if p[0] != 0xc3:
        return -1
    head.encoding = STRING_LZF
    first = length_head(p + 1, n - 1, &head.body)
    if first <= 0:
        return first
    second = length_head(p + 1 + first, n - 1 - first, &head.plain)
    if second <= 0:
        return second
    if head.body > <uint64_t>INT64_MAX - 64:
        return -1
    return 1 + first + second


cdef bint lzf_inflate(
    const uint8_t *p, size_t n, uint8_t *out, size_t plain
) noexcept nogil:
    """Undo LZF (liblzf's format); False unless `n` bytes give exactly `plain`."""
    cdef const uint8_t *end = p + n
    cdef uint8_t *begin = out
    cdef uint8_t *stop = out + plain
    cdef uint8_t *p_out
    cdef const uint8_t *back
    cdef size_t count, distance
    while p < end:
        count = p[0]
        p += 1
        if count < 32:
            count += 1
            if <size_t>(end - p) < count or <size_t>(stop - out) < count:
                return False
            if <size_t>(end - p) >= LZF_LITERAL and <size_t>(stop - out) >= LZF_LITERAL:
                # (What is too much is written over.)
                memcpy(out, p, LZF_LITERAL)
            else:
                memcpy(out, p, count)
            p += count
            out += count
            continue
        distance = (count & 0x1f) << 8
        count >>= 5
        if count == 7:
            if p == end:
                return False
            count += p[0]
            p += 1
        if p == end:
            return False
        distance += p[0] + 1
        p += 1
        count += 2
        if distance > <size_t>(out - begin) or <size_t>(stop - out) < count:
            return False
        # The copy may overlap itself: that is how runs are written.
        back = out - distance
        if distance >= 8 and <size_t>(stop - out) >= count + 8:
            p_out = out
            out += count
            while p_out < out:
                memcpy(p_out, back, 8)
                p_out += 8
                back += 8
            continue
        while count:
            out[0] = back[0]
            out += 1
            back += 1
            count -= 1
    return out == stop


cdef inline int packed_empty(int type, const uint8_t *p, size_t n) noexcept nogil:
    """Whether a string holds a packed collection without members: 1, 0, or -1: not all here yet.

    An empty ziplist has 11 bytes, an intset 8, a listpack 7, a zipmap 2, and no server compresses
    so few.
    """
    cdef int size
    if n == 0:
        return -1
    if type == 11:
        size = 8
    elif type == 9:
        size = 2
    elif type == 10 or type == 12 or type == 13 or type == 14:
        size = 11
    else:
        size = 7
    if p[0] != size:
        return 0
    if n < <size_t>size + 1:
        return -1
    p += 1
    if size == 11:
        return p[8] == 0 and p[9] == 0
    if size == 8:
        return p[4] == 0 and p[5] == 0 and p[6] == 0 and p[7] == 0
    if size == 7:
        return p[4] == 0 and p[5] == 0
    return p[0] == 0


cdef inline int value_empty(
    int flavour, int type, const uint8_t *p, size_t n
) noexcept nogil:
    """Whether a value is a collection without members, which servers before 6.2 could write, and
    which no server takes: 1, 0, or -1: more bytes are needed to know. It needs a few at the most.
    """
    cdef uint64_t count = 0, container = 0
    cdef size_t at
    cdef int size, found
    if type == 0 or type == 7 or type == 15 or type == 19 or type == 21:
        return 0
    if 9 <= type <= 13 or type == 16 or type == 17 or type == 20:
        return packed_empty(type, p, n)
    if type == 24 or type == 25:
        if flavour != FLAVOUR_REDIS:
            return 0
        # The earliest expire time of the fields comes first.
        if n <= 8:
            return -1
        p += 8
        n -= 8
        if type == 25:
            return packed_empty(type, p, n)
    elif not (1 <= type <= 5 or type == 14 or type == 18 or type == 22):
        return 0
    size = length_head(p, n, &count)
    if size <= 0:
        return -1 if size == 0 else 0
    if count == 0:
        return 1
    if (type != 14 and type != 18) or count > EMPTY_NODES_MOST:
        return 0
    at = size
    while count:
        if type == 18:
            size = length_head(p + at, n - at, &container)
            if size <= 0:
                return -1 if size == 0 else 0
            at += size
            if container != 2:
                return 0
        found = packed_empty(type, p + at, n - at)
        if found <= 0:
            return found
        at += p[at] + 1
        count -= 1
    return 1


cdef inline int64_t little_endian(const uint8_t *p, int bytes) noexcept nogil:
    """A signed number of 1, 2, 4 or 8 bytes."""
    cdef uint64_t value = 0
    cdef int i
    for i in range(bytes):
        value |= <uint64_t>p[i] << (8 * i)
    if bytes == 1:
        return <int8_t>value
    if bytes == 2:
        return <int16_t>value
    if bytes == 4:
        return <int32_t>value
    return <int64_t>value


cdef str module_name(uint64_t id):
    """The nine characters in the upper 54 bits of a module type's id (module.c)."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return "".join(alphabet[(id >> (10 + 6 * place)) & 63] for place in range(8, -1, -1))
