# The packed collections inside values: listpack, ziplist, intset, zipmap (listpack.c, ziplist.c,
# intset.c, zipmap.c of the servers), entry by entry, each checked as it is passed: what it says of
# its own size, of its neighbour's, of how many there are, and that it ends where its memory does.

cdef struct ValueReader:
    const uint8_t *begin
    const uint8_t *at
    const uint8_t *end
    const char *expected       # what was wrong; NULL: nothing was
    size_t most                # bytes of one string, once inflated
    Bytes inflated[2]          # strings that came compressed: those of one element
    Bytes blob                 # a packed collection that did
    ElementSink *sink

cdef struct Pack:
    bint ziplist
    const uint8_t *begin
    const uint8_t *at
    const uint8_t *end         # its last byte, which is 0xff
    uint64_t told              # entries; 65535: not known
    uint64_t seen
    uint64_t before            # of a ziplist: bytes of the entry that was passed last


cdef inline bint wrong(ValueReader *r, const char *expected) noexcept nogil:
    r.expected = expected
    return False


cdef inline uint32_t load_le32(const uint8_t *p) noexcept nogil:
    return p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24


cdef inline int64_t little_24(const uint8_t *p) noexcept nogil:
    """A signed number of three bytes."""
    return <int32_t>(
        (<uint32_t>p[0] << 8) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 24)) >> 8


# --- Listpacks and ziplists ---

cdef bint pack_open(ValueReader *r, const Piece *blob, bint ziplist, Pack *pack) noexcept nogil:
    """The head of a listpack or ziplist, which is all of `blob`."""
    cdef const uint8_t *p = blob.p
    cdef size_t head = 10 if ziplist else 6
    if blob.p == NULL or blob.n < head + 1 or load_le32(p) != blob.n or p[blob.n - 1] != 0xff:
        return wrong(r, b"a ziplist that ends where it says" if ziplist else
                     b"a listpack that ends where it says")
    pack.ziplist = ziplist
    pack.begin = p
    pack.at = p + head
    pack.end = p + blob.n - 1
    pack.told = p[head - 2] | <uint64_t>p[head - 1] << 8
    pack.seen = 0
    pack.before = 0
    r.sink.packed += blob.n
    return True


cdef inline bint pack_more(const Pack *pack) noexcept nogil:
    return pack.at < pack.end


cdef bint pack_close(ValueReader *r, const Pack *pack) noexcept nogil:
    """What its head says of the number of its entries, once all were passed."""
    if pack.told != 0xffff and pack.told != pack.seen:
        return wrong(r, b"as many entries as the list says")
    if pack.ziplist and load_le32(pack.begin + 4) != (
            <uint64_t>(pack.at - pack.begin) - pack.before):
        return wrong(r, b"the last entry where the ziplist says")
    return True


cdef inline bint pack_next(ValueReader *r, Pack *pack, Piece *out) noexcept nogil:
    if pack.at >= pack.end:
        return wrong(r, b"another entry")
    if pack.ziplist:
        return ziplist_next(r, pack, out)
    return listpack_next(r, pack, out)


cdef inline bint listpack_next(ValueReader *r, Pack *pack, Piece *out) noexcept nogil:
    """An entry of a listpack that has not ended."""
    cdef const uint8_t *p = pack.at
    cdef size_t size
    # Most are short strings, or numbers below 128. (Behind them there is the end's own byte.)
    if p[0] < 0xc0:
        size = 1
        if p[0] >= 0x80:
            size += p[0] & 0x3f
            piece_bytes(out, p + 1, size - 1)
        else:
            piece_number(out, p[0])
        if <size_t>(pack.end - p) <= size or p[size] != size:
            return wrong(r, b"an entry of a listpack, and its length behind it")
        pack.at = p + size + 1
        pack.seen += 1
        return True
    return listpack_longer(r, pack, out)


cdef bint listpack_longer(ValueReader *r, Pack *pack, Piece *out) noexcept nogil:
    cdef const uint8_t *p = pack.at
    cdef size_t left = pack.end - p, size = 0, back = 1
    cdef uint8_t first = p[0]
    cdef int64_t number
    if first < 0xe0:
        # (Behind `left` there is the end's own byte.)
        number = (<int64_t>(first & 0x1f) << 8) | p[1]
        piece_number(out, number - 8192 if number >= 4096 else number)
        size = 2
    elif first < 0xf0:
        size = 2 + ((<size_t>(first & 0x0f) << 8) | p[1])
        piece_bytes(out, p + 2, size - 2)
    elif first == 0xf0:
        if left < 5:
            return wrong(r, b"an entry of a listpack")
        size = 5 + <size_t>load_le32(p + 1)
        piece_bytes(out, p + 5, size - 5)
    elif first <= 0xf4:
        size = 9 if first == 0xf4 else 2 + (first - 0xf0)
        if left < size:
            return wrong(r, b"an entry of a listpack")
        if first == 0xf2:
            number = little_24(p + 1)
        else:
            number = little_endian(p + 1, 2 if first == 0xf1 else 4 if first == 0xf3 else 8)
        piece_number(out, number)
    else:
        return wrong(r, b"an entry of a listpack")
    if size > 127:
        back = 2 if size <= 16383 else 3 if size <= 2097151 else 4 if size <= 268435455 else 5
    if left < size + back or not says_back(p + size, size, back):
        return wrong(r, b"an entry of a listpack, and its length behind it")
    pack.at = p + size + back
    pack.seen += 1
    return True


cdef inline bint says_back(const uint8_t *p, size_t size, size_t back) noexcept nogil:
    """Whether the length of an entry, by which it is passed backwards, is right: seven bits a byte,
    the highest first, and all but the first marked."""
    cdef size_t i
    if back == 1:
        return p[0] == size
    for i in range(back):
        if p[back - 1 - i] != ((size >> (7 * i)) & 0x7f | (0 if i == back - 1 else 0x80)):
            return False
    return True


cdef bint ziplist_next(ValueReader *r, Pack *pack, Piece *out) noexcept nogil:
    cdef const uint8_t *p = pack.at
    cdef size_t left = pack.end - p, head = 1, size
    cdef uint64_t before = p[0]
    cdef uint8_t first
    if before == 0xff:
        return wrong(r, b"an entry of a ziplist")
    if before == 0xfe:
        if left < 6:
            return wrong(r, b"an entry of a ziplist")
        before = load_le32(p + 1)
        head = 5
    if before != pack.before or left < head + 1:
        return wrong(r, b"the length of the entry before")
    p += head
    left -= head
    first = p[0]
    if first < 0x40:
        size = 1 + first
        piece_bytes(out, p + 1, first)
    elif first < 0x80:
        size = 2 + ((<size_t>(first & 0x3f) << 8) | p[1])
        piece_bytes(out, p + 2, size - 2)
    elif first == 0x80:
        if left < 5:
            return wrong(r, b"an entry of a ziplist")
        size = 5 + (<size_t>p[1] << 24 | <size_t>p[2] << 16 | <size_t>p[3] << 8 | p[4])
        piece_bytes(out, p + 5, size - 5)
    elif 0xf1 <= first <= 0xfd:
        size = 1
        piece_number(out, first - 0xf1)
    else:
        if first == 0xfe:
            size = 2
        elif first == 0xc0:
            size = 3
        elif first == 0xf0:
            size = 4
        elif first == 0xd0:
            size = 5
        elif first == 0xe0:
            size = 9
        else:
            return wrong(r, b"an entry of a ziplist")
        if left < size:
            return wrong(r, b"an entry of a ziplist")
        piece_number(out, little_24(p + 1) if size == 4 else little_endian(p + 1, size - 1))
    if left < size:
        return wrong(r, b"an entry of a ziplist that lies within it")
    pack.at = p + size
    pack.before = head + size
    pack.seen += 1
    return True


cdef inline bint pack_integer(ValueReader *r, Pack *pack, int64_t *out) noexcept nogil:
    """An entry that is a number, as the servers' own are."""
    cdef const uint8_t *p = pack.at
    # Most are below 128.
    if not pack.ziplist and pack.end - p >= 2 and p[0] < 0x80 and p[1] == 1:
        out[0] = p[0]
        pack.at = p + 2
        pack.seen += 1
        return True
    return pack_any_integer(r, pack, out)


cdef bint pack_any_integer(ValueReader *r, Pack *pack, int64_t *out) noexcept nogil:
    cdef Piece piece
    if not pack_next(r, pack, &piece):
        return False
    if piece.numeric:
        out[0] = piece.number
        return True
    if not parse_decimal(piece.p, piece.p + piece.n, out):
        return wrong(r, b"a number in the list")
    return True


# --- Intsets and zipmaps ---

cdef bint each_of_intset(ValueReader *r, const Piece *blob) noexcept nogil:
    cdef const uint8_t *p = blob.p
    cdef uint32_t width, count, i
    cdef int64_t number, last = 0
    cdef Piece member
    if p == NULL or blob.n < 8:
        return wrong(r, b"an intset")
    width = load_le32(p)
    count = load_le32(p + 4)
    if (width != 2 and width != 4 and width != 8) or (
            <uint64_t>count * width != blob.n - 8):
        return wrong(r, b"an intset that ends where it says")
    r.sink.packed += blob.n
    p += 8
    for i in range(count):
        number = little_endian(p, width)
        if i and number <= last:
            return wrong(r, b"the members of an intset in their order")
        last = number
        p += width
        piece_number(&member, number)
        if not sink_item(r.sink, &member):
            return False
    return True


cdef bint zipmap_length(
    ValueReader *r, const uint8_t **at, const uint8_t *end, size_t *out
) noexcept nogil:
    cdef const uint8_t *p = at[0]
    if p < end and p[0] < 254:
        out[0] = p[0]
        at[0] = p + 1
        return True
    if end - p < 5 or p[0] != 254:
        return wrong(r, b"a length in a zipmap")
    out[0] = load_le32(p + 1)
    at[0] = p + 5
    return True


cdef bint each_of_zipmap(ValueReader *r, const Piece *blob) noexcept nogil:
    cdef const uint8_t *p = blob.p
    cdef const uint8_t *end
    cdef size_t size = 0, spare
    cdef uint64_t seen = 0
    cdef Piece name, value
    if p == NULL or blob.n < 2 or p[blob.n - 1] != 0xff:
        return wrong(r, b"a zipmap")
    end = p + blob.n - 1
    r.sink.packed += blob.n
    p += 1
    while p < end:
        if not zipmap_length(r, &p, end, &size):
            return False
        if <size_t>(end - p) < size:
            return wrong(r, b"a field that lies within its zipmap")
        piece_bytes(&name, p, size)
        p += size
        if not zipmap_length(r, &p, end, &size):
            return False
        if p >= end:
            return wrong(r, b"a value in a zipmap")
        spare = p[0]
        p += 1
        if <size_t>(end - p) < size + spare:
            return wrong(r, b"a value that lies within its zipmap")
        piece_bytes(&value, p, size)
        p += size + spare
        seen += 1
        if not sink_field(r.sink, &name, &value, -1):
            return False
    if blob.p[0] < 254 and blob.p[0] != seen:
        return wrong(r, b"as many fields as the zipmap says")
    return True
