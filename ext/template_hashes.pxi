# Hashes that name a template of their snapshot (Redis 8.10, opcode 242), made into hashes that stand
# for themselves (type 4): every server takes them, as a field by a field.
#
#   30  a listpack: the template's id, then the values
#   32  the template's id, then the values as strings
#
# The names stand in the template, in the order of the values. All of it is known from descriptions
# alone; what does not fit them is refused, and the key named.

cdef enum TemplateEnd:
    TEMPLATE_DONE
    TEMPLATE_WRONG
    TEMPLATE_TOO_LONG
    TEMPLATE_NO_MEMORY

cdef enum:
    LENGTH_MOST = 9

cdef struct TemplateHash:
    ValueReader reader
    ElementSink sink             # counts what is read, and nothing looks at it
    Pack pack
    bint packed
    uint64_t id


cdef inline size_t put_length(uint8_t *out, uint64_t n) noexcept nogil:
    """A length as short as it can be; the bytes that it takes, `LENGTH_MOST` at the most."""
    cdef int size = 1 if n < 0x40 else 2 if n < 0x4000 else 5 if n <= 0xffffffffU else 9
    cdef int i, first = 1 if size > 2 else 0
    for i in range(first, size):
        out[i] = (n >> (8 * (size - 1 - i))) & 0xff
    if size == 2:
        out[0] |= 0x40
    elif size > 2:
        out[0] = 0x80 if size == 5 else 0x81
    return size


cdef TemplateEnd template_open(
    TemplateHash *hash_, int type, const uint8_t *value, size_t n
) noexcept nogil:
    """Read the id of its template: the value begins behind its type."""
    cdef ValueReader *r = &hash_.reader
    cdef Piece piece
    memset(hash_, 0, sizeof(TemplateHash))
    r.sink = &hash_.sink
    r.begin = r.at = value
    r.end = value + n
    # (LZF makes no more of them.)
    r.most = n * LZF_RATIO_MOST
    hash_.packed = type == 30
    if hash_.packed:
        if not (next_blob(r, &piece) and pack_open(r, &piece, False, &hash_.pack)
                and pack_next(r, &hash_.pack, &piece)) or not piece.numeric:
            return TEMPLATE_NO_MEMORY if hash_.sink.no_memory else TEMPLATE_WRONG
        hash_.id = <uint64_t>piece.number
    elif not next_length(r, &hash_.id):
        return TEMPLATE_WRONG
    return TEMPLATE_DONE


cdef TemplateEnd template_build(
    TemplateHash *hash_, const uint8_t *names, size_t names_size, uint64_t count, Bytes *out,
    size_t most
) noexcept nogil:
    """Behind `template_open`: all of the value, its type included, into `out`, if that takes no more
    than `most`; `names` are as many strings as the template has fields."""
    cdef ValueReader *r = &hash_.reader
    cdef const uint8_t *end = names + names_size
    cdef StringHead head
    cdef Piece piece
    cdef uint8_t length[LENGTH_MOST]
    cdef size_t n
    cdef int size
    out.size = 0
    if count == 0:
        return TEMPLATE_WRONG
    if not bytes_reserve(out, 1 + LENGTH_MOST, SIZE_MAX):
        return TEMPLATE_NO_MEMORY
    out.data[0] = 4
    out.size = 1 + put_length(out.data + 1, count)
    while count:
        size = string_head(names, end - names, &head)
        if size <= 0 or head.body > <size_t>(end - names) - size:
            return TEMPLATE_WRONG
        n = size + head.body
        if n > most or not bytes_reserve(out, n, SIZE_MAX):
            return TEMPLATE_TOO_LONG if n > most else TEMPLATE_NO_MEMORY
        memcpy(out.data + out.size, names, n)
        out.size += n
        names += n
        if hash_.packed:
            if not pack_next(r, &hash_.pack, &piece):
                return TEMPLATE_WRONG
            piece_text(&piece)
            size = put_length(length, piece.n)
            n = piece.n
        else:
            piece.p = r.at
            size = string_head(r.at, r.end - r.at, &head)
            if size <= 0 or head.body > <size_t>(r.end - r.at) - size:
                return TEMPLATE_WRONG
            n = size + head.body
            size = 0
            r.at += n
        if n > most or out.size + size + n > most:
            return TEMPLATE_TOO_LONG
        if not bytes_reserve(out, size + n, SIZE_MAX):
            return TEMPLATE_NO_MEMORY
        memcpy(out.data + out.size, length, size)
        if n:
            memcpy(out.data + out.size + size, piece.p, n)
        out.size += size + n
        count -= 1
    if hash_.packed and (pack_more(&hash_.pack) or not pack_close(r, &hash_.pack)):
        return TEMPLATE_WRONG
    return TEMPLATE_DONE if r.at == r.end and names == end else TEMPLATE_WRONG


cdef inline void template_close(TemplateHash *hash_) noexcept nogil:
    bytes_free(&hash_.reader.blob)
