# Expire times of hash fields, inside the values that hold them: extended as those of keys are.
#
#   24  the earliest expire time (8 bytes); of each field how far its own is from it and one more
#       (0: it has none), its name, its value
#   25  the earliest expire time (8 bytes; 0: there is none); a listpack of (name, value,
#       expire time; 0: none), mostly LZF-compressed
#   22  of Valkey: of each field its name, its value, its expire time (8 bytes; -1: none)
#
# (rdbSaveObject, rdb.c.) All are in ms since the epoch, little-endian. A listpack keeps its length
# where its expire times are numbers of 8 bytes, as all are that are later than January 1970.

cdef enum FieldsExtended:
    FIELDS_NONE          # no field has an expire time
    FIELDS_LIFTED
    FIELDS_STUCK         # some may have one, and it cannot be extended
    FIELDS_NO_MEMORY

cdef enum:
    # What stands before the listpack: the type, the earliest expire time; its length in five bytes.
    FIELDS_HEAD = 9
    FIELDS_LENGTH = 5
    LISTPACK_HEAD = 6
    LISTPACK_INT64 = 0xf4
    LISTPACK_END = 0xff

# HFE_MAX_ABS_TIME_MSEC of Redis, server.h: a later expire time is refused.
cdef int64_t FIELD_DEADLINE_MOST = (1 << 46) - 1


cdef inline bint has_field_ttls(int flavour, int type) noexcept nogil:
    """Whether values of this type may hold some."""
    return type == 22 or (flavour == FLAVOUR_REDIS and (type == 24 or type == 25))


cdef inline void store_le64(uint8_t *out, uint64_t n) noexcept nogil:
    cdef int i
    for i in range(8):
        out[i] = (n >> (8 * i)) & 0xff


cdef inline bint liftable(int64_t at, int64_t shift) noexcept nogil:
    return 0 < at and at <= FIELD_DEADLINE_MOST - shift


cdef size_t listpack_entry(const uint8_t *p, size_t left) noexcept nogil:
    """Bytes of an entry, what says how long it was included (listpack.c); 0: it is none."""
    cdef size_t size, back = 1
    if p[0] < 0x80:
        size = 1
    elif p[0] < 0xc0:
        size = 1 + (p[0] & 0x3f)
    elif p[0] < 0xe0:
        size = 2
    elif p[0] < 0xf0:
        if left < 2:
            return 0
        size = 2 + ((<size_t>(p[0] & 0x0f) << 8) | p[1])
    elif p[0] == 0xf0:
        if left < 5:
            return 0
        size = 5 + (p[1] | <size_t>p[2] << 8 | <size_t>p[3] << 16 | <size_t>p[4] << 24)
    elif p[0] <= 0xf3:
        size = 2 + (p[0] - 0xf0)
    elif p[0] == LISTPACK_INT64:
        size = 9
    else:
        return 0
    if size > 127:
        back = 2 if size <= 16383 else 3 if size <= 2097151 else 4 if size <= 268435455 else 5
    return size + back if size + back <= left else 0


cdef FieldsExtended extend_listpack(
    uint8_t *pack, size_t n, int64_t shift, bint write
) noexcept nogil:
    """Look at the expire time in every third entry; with `write` add `shift` to each."""
    cdef FieldsExtended found = FIELDS_NONE
    cdef size_t at = LISTPACK_HEAD, place = 0, size
    if n < LISTPACK_HEAD + 1 or (
            pack[0] | <size_t>pack[1] << 8 | <size_t>pack[2] << 16 | <size_t>pack[3] << 24) != n:
        return FIELDS_STUCK
    while at < n and pack[at] != LISTPACK_END:
        size = listpack_entry(pack + at, n - at)
        if size == 0:
            return FIELDS_STUCK
        if place == 2 and pack[at] != 0:
            if pack[at] != LISTPACK_INT64 or not liftable(
                    <int64_t>load_le64(pack + at + 1), shift):
                return FIELDS_STUCK
            if write:
                store_le64(pack + at + 1, load_le64(pack + at + 1) + shift)
            found = FIELDS_LIFTED
        place = place + 1 if place < 2 else 0
        at += size
    return found if at + 1 == n and place == 0 else FIELDS_STUCK


cdef FieldsExtended extend_packed_fields(
    uint8_t *value, size_t n, int64_t shift, Bytes *out
) noexcept nogil:
    """Type 25. A listpack that was compressed goes into `out`, as it is."""
    cdef StringHead head
    cdef uint8_t *pack
    cdef FieldsExtended found
    cdef int size, i
    if n <= FIELDS_HEAD:
        return FIELDS_STUCK
    size = string_head(value + FIELDS_HEAD, n - FIELDS_HEAD, &head)
    if size <= 0 or head.encoding == STRING_INTEGER or head.body != n - FIELDS_HEAD - size:
        return FIELDS_STUCK
    if load_le64(value + 1) == 0:
        return FIELDS_NONE
    if not liftable(<int64_t>load_le64(value + 1), shift):
        return FIELDS_STUCK
    pack = value + FIELDS_HEAD + size
    if head.encoding == STRING_RAW:
        found = extend_listpack(pack, head.body, shift, False)
        if found == FIELDS_LIFTED:
            extend_listpack(pack, head.body, shift, True)
            store_le64(value + 1, load_le64(value + 1) + shift)
        return found
    if head.plain > head.body * LZF_RATIO_MOST or head.plain > UINT32_MAX:
        return FIELDS_STUCK
    if not bytes_reserve(out, FIELDS_HEAD + FIELDS_LENGTH + head.plain, SIZE_MAX):
        return FIELDS_NO_MEMORY
    if not lzf_inflate(
            pack, head.body, out.data + FIELDS_HEAD + FIELDS_LENGTH, head.plain):
        return FIELDS_STUCK
    pack = out.data + FIELDS_HEAD + FIELDS_LENGTH
    found = extend_listpack(pack, head.plain, shift, False)
    if found != FIELDS_LIFTED:
        return found
    extend_listpack(pack, head.plain, shift, True)
    out.data[0] = value[0]
    store_le64(out.data + 1, load_le64(value + 1) + shift)
    out.data[FIELDS_HEAD] = 0x80
    for i in range(4):
        out.data[FIELDS_HEAD + 1 + i] = (head.plain >> (24 - 8 * i)) & 0xff
    out.size = FIELDS_HEAD + FIELDS_LENGTH + head.plain
    return found


cdef FieldsExtended extend_plain_fields(
    uint8_t *value, size_t n, int64_t shift, bint write
) noexcept nogil:
    """Type 22 of Valkey; with `write` add `shift` to each expire time."""
    cdef FieldsExtended found = FIELDS_NONE
    cdef StringHead head
    cdef uint64_t count = 0
    cdef size_t at
    cdef int size = length_head(value + 1, n - 1, &count), i
    if size <= 0:
        return FIELDS_STUCK
    at = 1 + size
    while count:
        for i in range(2):
            size = string_head(value + at, n - at, &head)
            if size <= 0 or head.body > n - at - size:
                return FIELDS_STUCK
            at += size + head.body
        if n - at < 8:
            return FIELDS_STUCK
        if <int64_t>load_le64(value + at) != -1:
            if not liftable(<int64_t>load_le64(value + at), shift):
                return FIELDS_STUCK
            if write:
                store_le64(value + at, load_le64(value + at) + shift)
            found = FIELDS_LIFTED
        at += 8
        count -= 1
    return found if at == n else FIELDS_STUCK


cdef FieldsExtended extend_fields(
    int flavour, uint8_t *value, size_t n, int64_t shift, Bytes *out
) noexcept nogil:
    """Extend the expire times of fields in a value of `n` bytes, its type included.

    In place; where the value gets another length `out` holds it whole (its size is 0 else). What
    is stuck stays as it was.
    """
    cdef FieldsExtended found
    out.size = 0
    if flavour == FLAVOUR_REDIS and value[0] == 25:
        return extend_packed_fields(value, n, shift, out)
    if flavour == FLAVOUR_REDIS and value[0] == 24:
        # The fields' own hang on the earliest.
        if n < FIELDS_HEAD or not liftable(<int64_t>load_le64(value + 1), shift):
            return FIELDS_STUCK
        store_le64(value + 1, load_le64(value + 1) + shift)
        return FIELDS_LIFTED
    if flavour == FLAVOUR_VALKEY and value[0] == 22:
        found = extend_plain_fields(value, n, shift, False)
        if found == FIELDS_LIFTED:
            extend_plain_fields(value, n, shift, True)
        return found
    return FIELDS_STUCK


cdef inline int payload_flavour(const uint8_t *footer) noexcept nogil:
    """The project that numbers a DUMP payload's types: Valkey's RDB versions begin at 80."""
    return FLAVOUR_VALKEY if footer_version(footer) >= 80 else FLAVOUR_REDIS
