# What a decoded value goes into, element by element, the same for every encoding and version:
#
#   VALUE_LOOK    counts: elements, their bytes, the longest of them, expire times of fields
#   VALUE_DIGEST  four digests of 128 bits (SipHash-1-3): the value, the expire times of its fields,
#                 a stream's groups, and what not every version keeps
#   VALUE_TAPE    the elements as they are shown, in memory of ours; Python objects are made of it
#                 afterwards (`tape_value`)
#   VALUE_ENCODE  the value in another form (value_encode.pxi), on the tape too
#   VALUE_COMMANDS  the commands that make it (value_commands.pxi)
#
# A digest is independent of the encoding, and of the order where the type has none. Each element is
# hashed for itself, under a head that names what it is, each part behind its length and filled up
# to whole words; the hashes are added up modulo 2^128. Where order counts (a list, a module's items)
# the elements go into one running hash. An entry of a stream has its id, which is its order.
#
# The names of a stream's fields are hashed once for all entries that share them: so no value costs
# more than its bytes do.

cdef enum SinkMode:
    VALUE_LOOK
    VALUE_DIGEST
    VALUE_TAPE
    VALUE_ENCODE
    VALUE_COMMANDS

cdef enum ValueKind:
    KIND_STRING
    KIND_LIST
    KIND_SET
    KIND_ZSET
    KIND_HASH
    KIND_STREAM
    KIND_MODULE
    KIND_ARRAY
    KIND_GCRA
    KIND_PATH_HASH
    KINDS

cdef enum HashedAs:
    # The first word of what is hashed, so that no two kinds of elements hash alike.
    AS_VALUE = 1
    AS_MEMBER
    AS_SCORED
    AS_FIELD
    AS_FIELD_TTL
    AS_NAMES
    AS_ENTRY
    AS_STREAM
    AS_GROUP_NAME
    AS_GROUP
    AS_PENDING
    AS_OWNER
    AS_OWNED
    AS_RELEASED
    AS_CONSUMER
    AS_STREAM_DETAILS
    AS_GROUP_DETAILS
    AS_PRODUCER
    AS_ARRAY_ITEM
    AS_ARRAY_CURSOR
    AS_PATH
    AS_PATH_FIELD

_KIND_NAMES = (
    "string", "list", "set", "zset", "hash", "stream", "module", "array", "gcra", "path hash"
)

cdef struct Piece:
    # A string of the value: its bytes, or the number that it is kept as, until `piece_text`.
    const uint8_t *p
    size_t n
    bint numeric
    int64_t number
    uint8_t text[24]

cdef struct Sum:
    uint64_t low
    uint64_t high

cdef struct Commanding

cdef struct ElementSink:
    SinkMode mode
    ValueKind kind
    Sip start            # under the key
    Sip run              # of what has an order
    Sum value            # of what has none
    Sum field_ttls
    Sum groups
    Sum details
    uint64_t count       # elements; entries of a stream; of a string one
    uint64_t bytes       # of the elements
    uint64_t longest
    uint64_t ttls        # fields with expire times
    int64_t earliest     # of these, if they are looked for
    int64_t latest
    int64_t extended     # a digest takes so many ms off expire times behind `extended_from`
    int64_t extended_from
    uint64_t group_count
    uint64_t packed      # bytes of ziplists, listpacks and intsets, as servers keep them
    uint64_t loose       # elements that stand for themselves
    Bytes tape
    size_t tape_most
    bint no_memory
    bint too_long
    int form             # the type to encode as
    size_t count_at      # where its number of elements goes
    Bytes once           # hashes of its members so far, in a table
    size_t once_used
    uint64_t once_seed
    Commanding *commanding


cdef inline void piece_text(Piece *piece) noexcept nogil:
    """Make its bytes of the number that it is kept as."""
    cdef uint8_t *out = piece.text
    if piece.p != NULL:
        return
    if piece.number < 0:
        out[0] = 45
        out += 1
    out = put_decimal(
        out, 0 - <uint64_t>piece.number if piece.number < 0 else <uint64_t>piece.number)
    piece.p = piece.text
    piece.n = out - piece.text


cdef inline void piece_number(Piece *piece, int64_t number) noexcept nogil:
    piece.p = NULL
    piece.n = 0
    piece.numeric = True
    piece.number = number


cdef inline void piece_bytes(Piece *piece, const uint8_t *p, size_t n) noexcept nogil:
    piece.p = p
    piece.n = n
    piece.numeric = False


# --- Hashes ---
#
# SipHash as in digest.pxi, but with one round a word and three behind the last, as hash tables use
# it: every member is hashed for itself, and most are short. All that goes in is whole words, each
# part behind its length.

cdef inline void mix_word(Sip *s, uint64_t word) noexcept nogil:
    s.v3 ^= word
    sip_round(s)
    s.v0 ^= word


cdef inline void mix_finish(const Sip *of, uint64_t *low, uint64_t *high) noexcept nogil:
    cdef Sip s
    s.v0, s.v1, s.v2, s.v3 = of.v0, of.v1, of.v2 ^ 0xee, of.v3
    for _ in range(3):
        sip_round(&s)
    low[0] = s.v0 ^ s.v1 ^ s.v2 ^ s.v3
    s.v1 ^= 0xdd
    for _ in range(3):
        sip_round(&s)
    high[0] = s.v0 ^ s.v1 ^ s.v2 ^ s.v3


cdef inline uint64_t load_part(const uint8_t *p, size_t n) noexcept nogil:
    """The last 1 to 7 bytes of a part as a word; with their number known no two read the same."""
    cdef uint32_t low, high
    if n >= 4:
        memcpy(&low, p, 4)
        memcpy(&high, p + n - 4, 4)
        return low | <uint64_t>high << 32
    return p[0] | <uint64_t>p[n >> 1] << 8 | <uint64_t>p[n - 1] << 16


cdef inline void sip_bytes_of(Sip *s, const uint8_t *p, size_t n) noexcept nogil:
    """A part: its length, its bytes."""
    mix_word(s, n)
    while n >= 8:
        mix_word(s, load_le64(p))
        p += 8
        n -= 8
    if n:
        mix_word(s, load_part(p, n))


cdef inline void sip_piece(Sip *s, Piece *piece) noexcept nogil:
    piece_text(piece)
    sip_bytes_of(s, piece.p, piece.n)


cdef inline void sip_add(const Sip *s, Sum *sum) noexcept nogil:
    """Add the hash of an element."""
    cdef uint64_t low, high
    mix_finish(s, &low, &high)
    sum.low += low
    sum.high += high + (sum.low < low)


cdef inline void sink_counted(ElementSink *sink, size_t n) noexcept nogil:
    sink.bytes += n
    if n > sink.longest:
        sink.longest = n


# --- The tape ---

cdef inline bint tape_op(ElementSink *sink, uint8_t op, uint64_t word, size_t more) noexcept nogil:
    """A mark, a word behind it, and room for `more` bytes; False where it is full."""
    cdef Bytes *tape = &sink.tape
    if tape.size + more > sink.tape_most:
        sink.too_long = True
        return False
    if not bytes_reserve(tape, 9 + more, SIZE_MAX):
        sink.no_memory = True
        return False
    tape.data[tape.size] = op
    memcpy(tape.data + tape.size + 1, &word, 8)
    tape.size += 9
    return True


cdef inline bint tape_bytes(ElementSink *sink, const uint8_t *p, size_t n) noexcept nogil:
    if not tape_op(sink, c"b", n, n):
        return False
    if n:
        memcpy(sink.tape.data + sink.tape.size, p, n)
    sink.tape.size += n
    return True


cdef inline bint tape_piece(ElementSink *sink, Piece *piece) noexcept nogil:
    piece_text(piece)
    return tape_bytes(sink, piece.p, piece.n)


cdef inline bint tape_number(ElementSink *sink, uint64_t number) noexcept nogil:
    return tape_op(sink, c"u", number, 0)


cdef inline bint tape_signed(ElementSink *sink, int64_t number) noexcept nogil:
    return tape_op(sink, c"i", <uint64_t>number, 0)


cdef inline bint tape_double(ElementSink *sink, double number) noexcept nogil:
    cdef uint64_t bits
    memcpy(&bits, &number, 8)
    return tape_op(sink, c"d", bits, 0)


cdef inline bint tape_id(ElementSink *sink, uint64_t ms, uint64_t seq) noexcept nogil:
    """An id of a stream's entry."""
    return tape_op(sink, c"#", ms, 8) and tape_word(sink, seq)


cdef inline bint tape_word(ElementSink *sink, uint64_t word) noexcept nogil:
    memcpy(sink.tape.data + sink.tape.size, &word, 8)
    sink.tape.size += 8
    return True


cdef inline bint tape_open(ElementSink *sink) noexcept nogil:
    return tape_op(sink, c"(", 0, 0)


cdef inline bint tape_close(ElementSink *sink) noexcept nogil:
    return tape_op(sink, c")", 0, 0)


cdef object tape_value(const Bytes *tape):
    """The lists, bytes and numbers that a tape says."""
    cdef size_t at = 0
    cdef uint8_t op
    cdef uint64_t word, more
    cdef double number
    cdef list row = [], deeper
    cdef list above = []
    while at < tape.size:
        op = tape.data[at]
        memcpy(&word, tape.data + at + 1, 8)
        at += 9
        if op == c"b":
            row.append(PyBytes_FromStringAndSize(<char *>tape.data + at, word))
            at += word
        elif op == c"u":
            row.append(word)
        elif op == c"i":
            row.append(<int64_t>word)
        elif op == c"d":
            memcpy(&number, &word, 8)
            row.append(number)
        elif op == c"#":
            memcpy(&more, tape.data + at, 8)
            at += 8
            row.append(b"%d-%d" % (word, more))
        elif op == c"(":
            deeper = []
            row.append(deeper)
            above.append(row)
            row = deeper
        else:
            row = above.pop()
    return row


# --- Elements ---

cdef inline bint sink_item(ElementSink *sink, Piece *piece) noexcept nogil:
    """An item of a list, a member of a set, the bytes of a string."""
    cdef Sip s
    piece_text(piece)
    sink.count += 1
    sink_counted(sink, piece.n)
    if sink.mode == VALUE_DIGEST:
        if sink.kind != KIND_SET:
            sip_bytes_of(&sink.run, piece.p, piece.n)
            return True
        s = sink.start
        mix_word(&s, AS_MEMBER)
        sip_bytes_of(&s, piece.p, piece.n)
        sip_add(&s, &sink.value)
        return True
    if sink.mode == VALUE_ENCODE:
        return encode_item(sink, piece)
    if sink.mode == VALUE_COMMANDS:
        return command_item(sink, piece)
    return sink.mode == VALUE_LOOK or tape_bytes(sink, piece.p, piece.n)


cdef inline bint sink_scored(ElementSink *sink, Piece *member, double score) noexcept nogil:
    """A member of a sorted set."""
    cdef Sip s
    cdef uint64_t bits
    # -0.0 and 0.0 sort alike, and an integer encoding keeps no sign of zero.
    score += 0.0
    piece_text(member)
    sink.count += 1
    sink_counted(sink, member.n)
    if sink.mode == VALUE_DIGEST:
        memcpy(&bits, &score, 8)
        s = sink.start
        mix_word(&s, AS_SCORED)
        mix_word(&s, bits)
        sip_bytes_of(&s, member.p, member.n)
        sip_add(&s, &sink.value)
        return True
    if sink.mode == VALUE_ENCODE:
        return encode_scored(sink, member, score)
    if sink.mode == VALUE_COMMANDS:
        return command_scored(sink, member, score)
    return sink.mode == VALUE_LOOK or (
        tape_open(sink) and tape_bytes(sink, member.p, member.n)
        and tape_double(sink, score) and tape_close(sink))


cdef inline bint sink_field(
    ElementSink *sink, Piece *name, Piece *value, int64_t ttl
) noexcept nogil:
    """A field of a hash; `ttl` is its expire time in ms since the epoch, -1: it has none."""
    cdef Sip s
    piece_text(name)
    piece_text(value)
    sink.count += 1
    if ttl >= 0:
        sink.ttls += 1
        sink.earliest = min(sink.earliest, ttl)
        sink.latest = max(sink.latest, ttl)
    sink_counted(sink, name.n + value.n)
    if sink.mode == VALUE_DIGEST:
        s = sink.start
        mix_word(&s, AS_FIELD)
        sip_bytes_of(&s, name.p, name.n)
        sip_bytes_of(&s, value.p, value.n)
        sip_add(&s, &sink.value)
        if ttl >= 0:
            if sink.extended and ttl > sink.extended_from:
                ttl -= sink.extended
            s = sink.start
            mix_word(&s, AS_FIELD_TTL)
            mix_word(&s, <uint64_t>ttl)
            sip_bytes_of(&s, name.p, name.n)
            sip_add(&s, &sink.field_ttls)
        return True
    if sink.mode == VALUE_ENCODE:
        return encode_field(sink, name, value, ttl)
    if sink.mode == VALUE_COMMANDS:
        return command_field(sink, name, value, ttl)
    return sink.mode == VALUE_LOOK or (
        tape_open(sink) and tape_bytes(sink, name.p, name.n)
        and tape_bytes(sink, value.p, value.n)
        and tape_signed(sink, ttl) and tape_close(sink))


cdef inline void sink_words(
    ElementSink *sink, Sum *sum, HashedAs head, uint64_t a, uint64_t b, uint64_t c, uint64_t d
) noexcept nogil:
    """An element of four numbers, into a digest."""
    cdef Sip s = sink.start
    mix_word(&s, head)
    mix_word(&s, a)
    mix_word(&s, b)
    mix_word(&s, c)
    mix_word(&s, d)
    sip_add(&s, sum)


cdef inline void sink_named(
    ElementSink *sink, Sum *sum, HashedAs head, const Sum *of, Piece *name, uint64_t a, uint64_t b,
    uint64_t c
) noexcept nogil:
    """An element with a name and three numbers, into a digest; `of` is what it belongs to."""
    cdef Sip s = sink.start
    mix_word(&s, head)
    mix_word(&s, of.low)
    mix_word(&s, of.high)
    mix_word(&s, a)
    mix_word(&s, b)
    mix_word(&s, c)
    sip_piece(&s, name)
    sip_add(&s, sum)


cdef inline void sink_pending(
    ElementSink *sink, const Sum *group, uint64_t ms, uint64_t seq, uint64_t when, uint64_t times
) noexcept nogil:
    """An entry that waits in a group, into the digest of groups."""
    cdef Sip s = sink.start
    mix_word(&s, AS_PENDING)
    mix_word(&s, group.low)
    mix_word(&s, group.high)
    mix_word(&s, ms)
    mix_word(&s, seq)
    mix_word(&s, when)
    mix_word(&s, times)
    sip_add(&s, &sink.groups)


cdef inline Sum name_of(ElementSink *sink, HashedAs head, const Sum *of, Piece *name) noexcept nogil:
    """What stands for a name, and what it belongs to, in the elements that hang on it."""
    cdef Sum found
    found.low = found.high = 0
    sink_named(sink, &found, head, of, name, 0, 0, 0)
    return found


cdef void sink_begin(ElementSink *sink, ValueKind kind) noexcept nogil:
    sink.kind = kind
    sink.run = sink.start
    memset(&sink.value, 0, sizeof(Sum))
    memset(&sink.field_ttls, 0, sizeof(Sum))
    memset(&sink.groups, 0, sizeof(Sum))
    memset(&sink.details, 0, sizeof(Sum))
    sink.count = sink.bytes = sink.longest = sink.ttls = sink.group_count = 0
    sink.packed = sink.loose = 0
    sink.tape.size = 0
    sink.no_memory = sink.too_long = False


cdef Sum sink_value_digest(ElementSink *sink) noexcept nogil:
    """The digest of the value itself: what has an order, what has none, and how many."""
    cdef Sum found
    cdef Sip s = sink.run
    mix_word(&s, AS_VALUE)
    mix_word(&s, sink.kind)
    mix_word(&s, sink.count)
    mix_word(&s, sink.value.low)
    mix_word(&s, sink.value.high)
    found.low = found.high = 0
    sip_add(&s, &found)
    return found
