# Listpacks made into what older servers keep the same elements in, in one pass and without a sink
# between: ziplists of a hash (16 → 13), a sorted set (17 → 12), a list's nodes (18 → 14), and the
# members of a set, each for itself (20 → 2).
#
# A ziplist has the same elements in the same order, so that the target takes it as it is: it neither
# builds a value element by element nor looks for a form to keep it in. What the decoder checks is
# checked here too, and what older servers trust in: that no field or member is there twice, that a
# sorted set is sorted, and that its scores are written as they write them. Where any of it is
# otherwise nothing is made, and the way by the decoder says what becomes of the value.

cdef enum:
    # A ziplist is gone through from its beginning; of longer ones servers have had faults.
    REPACK_MOST = 64 << 10
    # Older servers copy the text of a score into 128 bytes.
    PLAIN_SCORE_MOST = 40
    # Heads, lengths and ends, beside the elements.
    REPACK_HEAD = 64

# By the type of listpacks, what is made of it.
cdef uint8_t repacked[256]
repacked[16], repacked[17], repacked[18], repacked[20] = 13, 12, 14, 2


cdef inline void copy_short(uint8_t *out, const uint8_t *p, size_t n) noexcept nogil:
    """Copy what is mostly short, with no call."""
    cdef uint64_t a, b
    cdef uint32_t c, d
    if n > 32:
        memcpy(out, p, n)
    elif n >= 16:
        memcpy(out, p, 16)
        memcpy(out + n - 16, p + n - 16, 16)
    elif n >= 8:
        memcpy(&a, p, 8)
        memcpy(&b, p + n - 8, 8)
        memcpy(out, &a, 8)
        memcpy(out + n - 8, &b, 8)
    elif n >= 4:
        memcpy(&c, p, 4)
        memcpy(&d, p + n - 4, 4)
        memcpy(out, &c, 4)
        memcpy(out + n - 4, &d, 4)
    elif n:
        out[0] = p[0]
        out[n >> 1] = p[n >> 1]
        out[n - 1] = p[n - 1]


cdef inline uint8_t *put_little(uint8_t *out, uint64_t n, int bytes_) noexcept nogil:
    cdef int i
    for i in range(bytes_):
        out[i] = (n >> (8 * i)) & 0xff
    return out + bytes_


cdef inline uint8_t *put_text_length(uint8_t *out, size_t n, int bytes_) noexcept nogil:
    """A length in 1, 2 or 5 bytes, as a snapshot has it, and a ziplist that of a string."""
    if bytes_ == 1:
        out[0] = <uint8_t>n
    elif bytes_ == 2:
        out[0] = <uint8_t>(0x40 | n >> 8)
        out[1] = <uint8_t>(n & 0xff)
    else:
        out[0] = 0x80
        out[1] = (n >> 24) & 0xff
        out[2] = (n >> 16) & 0xff
        out[3] = (n >> 8) & 0xff
        out[4] = n & 0xff
    return out + bytes_


cdef inline uint8_t *put_ziplist_entry(
    uint8_t *out, size_t before, const Piece *piece
) noexcept nogil:
    """An entry behind one of `before` bytes; a number in the shortest form that it has."""
    cdef int64_t n
    if before < 254:
        out[0] = <uint8_t>before
        out += 1
    else:
        out[0] = 254
        out = put_little(out + 1, before, 4)
    if not piece.numeric:
        out = put_text_length(out, piece.n, 1 if piece.n < 1 << 6 else 2 if piece.n < 1 << 14 else 5)
        copy_short(out, piece.p, piece.n)
        return out + piece.n
    n = piece.number
    if 0 <= n <= 12:
        out[0] = 0xf1 + <uint8_t>n
        return out + 1
    if n == <int8_t>n:
        out[0] = 0xfe
        return put_little(out + 1, <uint64_t>n, 1)
    if n == <int16_t>n:
        out[0] = 0xc0
        return put_little(out + 1, <uint64_t>n, 2)
    if -(1 << 23) <= n < 1 << 23:
        out[0] = 0xf0
        return put_little(out + 1, <uint64_t>n, 3)
    if n == <int32_t>n:
        out[0] = 0xd0
        return put_little(out + 1, <uint64_t>n, 4)
    out[0] = 0xe0
    return put_little(out + 1, <uint64_t>n, 8)


cdef inline bint plain_score(ValueReader *r, Piece *piece, double *out) noexcept nogil:
    """A score that every server reads as what it is: a number, or digits with a point and an
    exponent, or an infinity."""
    cdef size_t i
    cdef uint8_t byte
    if piece.numeric:
        out[0] = <double>piece.number
        return True
    if piece.n == 0 or piece.n > PLAIN_SCORE_MOST:
        return False
    if short_score(piece.p, piece.n, out):
        return True
    i = piece.p[0] == c"-"
    if piece.n != i + 3 or memcmp(piece.p + i, b"inf", 3) != 0:
        for i in range(piece.n):
            byte = piece.p[i]
            if not (c"0" <= byte <= c"9" or byte == c"." or byte == c"-" or byte == c"+"
                    or byte == c"e" or byte == c"E"):
                return False
    return score_of(r, piece, out)


cdef inline bint sorted_after(
    Piece *before, double score_before, Piece *member, double score
) noexcept nogil:
    """Whether a member of a sorted set belongs behind the one before."""
    cdef int order
    if score != score_before:
        return score > score_before
    piece_text(before)
    piece_text(member)
    order = memcmp(before.p, member.p, min(before.n, member.n))
    return order < 0 or (order == 0 and before.n < member.n)


cdef bint repack_ziplist(ValueReader *r, const Piece *blob) noexcept nogil:
    """The ziplist that a listpack comes to, as a string on the tape; False: it comes to none."""
    cdef ElementSink *sink = r.sink
    cdef ValueKind kind = sink.kind
    cdef Pack pack
    # Of a pair; members in turn, for that before is looked at again.
    cdef Piece members[2]
    cdef Piece second
    cdef Piece *first = &members[0]
    cdef Piece *last = &members[1]
    cdef double score = 0, score_last = 0
    cdef uint8_t *begin
    cdef uint8_t *out
    cdef uint8_t *end
    cdef size_t before = 0
    cdef int head
    if blob.n > REPACK_MOST or not pack_open(r, blob, False, &pack) or not pack_more(&pack):
        return False
    # An entry of two bytes takes three, and behind one of 254 or more the next takes four more.
    if not encode_room(sink, 2 * blob.n + REPACK_HEAD):
        return False
    if kind != KIND_LIST and not once_begin(sink, min(<size_t>pack.told, blob.n) // 2):
        return False
    head = 2 if 2 * blob.n + REPACK_HEAD < 1 << 14 else 5
    begin = out = sink.tape.data + sink.tape.size + head
    out += 10
    while pack_more(&pack):
        if not listpack_next(r, &pack, first):
            return False
        end = put_ziplist_entry(out, before, first)
        before = end - out
        out = end
        if kind == KIND_LIST:
            continue
        if not (encode_once(sink, first) and pack_more(&pack) and listpack_next(
                r, &pack, &second)):
            return False
        if kind == KIND_ZSET:
            if not plain_score(r, &second, &score):
                return False
            if pack.seen > 2 and not sorted_after(last, score_last, first, score):
                return False
            first, last = last, first
            score_last = score
        end = put_ziplist_entry(out, before, &second)
        before = end - out
        out = end
    if not pack_close(r, &pack):
        return False
    out[0] = 0xff
    out += 1
    put_little(begin, out - begin, 4)
    put_little(begin + 4, (out - begin) - 1 - before, 4)
    put_little(begin + 8, min(pack.seen, <uint64_t>0xffff), 2)
    put_text_length(begin - head, out - begin, head)
    sink.tape.size = out - sink.tape.data
    return True


cdef inline uint8_t *put_member(uint8_t *out, const Piece *piece) noexcept nogil:
    """A string that stands for itself; one that was kept as a number of 32 bits stays one."""
    cdef int64_t n
    cdef uint8_t *end
    if not piece.numeric:
        out = put_text_length(out, piece.n, 1 if piece.n < 1 << 6 else 2 if piece.n < 1 << 14 else 5)
        copy_short(out, piece.p, piece.n)
        return out + piece.n
    n = piece.number
    if n == <int8_t>n:
        out[0] = 0xc0
        return put_little(out + 1, <uint64_t>n, 1)
    if n == <int16_t>n:
        out[0] = 0xc1
        return put_little(out + 1, <uint64_t>n, 2)
    if n == <int32_t>n:
        out[0] = 0xc2
        return put_little(out + 1, <uint64_t>n, 4)
    end = out + 1
    if n < 0:
        end[0] = c"-"
        end += 1
    end = put_decimal(end, 0 - <uint64_t>n if n < 0 else <uint64_t>n)
    out[0] = <uint8_t>(end - out - 1)
    return end


cdef bint repack_members(ValueReader *r, const Piece *blob) noexcept nogil:
    """How many members a listpack has, and each for itself, on the tape; False: it was not done."""
    cdef ElementSink *sink = r.sink
    cdef Pack pack
    cdef Piece member
    cdef uint8_t *begin
    cdef uint8_t *out
    if blob.n > REPACK_MOST or not pack_open(r, blob, False, &pack) or not pack_more(&pack):
        return False
    # A number of ten bytes may be one of twenty digits.
    if not encode_room(sink, 3 * blob.n + REPACK_HEAD):
        return False
    if not once_begin(sink, min(<size_t>pack.told, blob.n)):
        return False
    begin = out = sink.tape.data + sink.tape.size
    out += 5
    while pack_more(&pack):
        if not (listpack_next(r, &pack, &member) and encode_once(sink, &member)):
            return False
        out = put_member(out, &member)
    if not pack_close(r, &pack):
        return False
    put_text_length(begin, pack.seen, 5)
    sink.tape.size = out - sink.tape.data
    return True


cdef bint repack(ValueReader *r, const uint8_t *value, size_t size, int form) noexcept nogil:
    """A value of listpacks, which begins with its type and has no footer, as one of this form, on
    the tape. False: it is left to the decoder, whether it is damaged or has no such form."""
    cdef ElementSink *sink = r.sink
    cdef int type = value[0]
    cdef uint8_t number = <uint8_t>form
    cdef uint64_t nodes = 1, container = 2
    cdef const uint8_t *begin
    cdef Piece blob
    r.begin = r.at = value
    r.end = value + size
    sink_begin(sink, <ValueKind>kind_of(FLAVOUR_REDIS, type))
    r.at += 1
    if not encode_raw(sink, &number, 1):
        return False
    if type == 18:
        begin = r.at
        if not (next_length(r, &nodes) and nodes and copy_from(r, begin)):
            return False
    while nodes:
        if type == 18 and not (next_length(r, &container) and container == 2):
            return False
        if not next_blob(r, &blob):
            return False
        if not (repack_members(r, &blob) if type == 20 else repack_ziplist(r, &blob)):
            return False
        nodes -= 1
    return r.at == r.end
