# Strings inside DUMP payloads: type 0, a length or an encoding, the bytes, the footer.
#
# The first byte behind the type says by its two highest bits what follows: a length in its other
# six bits, in those and the next byte, or in the next four or eight bytes; or an encoding: a signed
# number of one, two or four bytes, or LZF (rdb.c: rdbLoadLenByRef, rdbLoadIntegerObject). Lengths
# are big-endian, numbers little-endian.

cdef enum:
    STRING_TYPE = 0
    # The type, and the longest form of a length.
    PAYLOAD_HEAD_MOST = 10
    # A sign and ten digits.
    INT32_TEXT_MOST = 11


cdef struct PlainString:
    # NULL: the bytes are in `text`, made from a number.
    const uint8_t *data
    size_t size
    uint8_t text[INT32_TEXT_MOST]


cdef inline bint crc_fits(const uint8_t *payload, size_t body) noexcept nogil:
    """Whether the CRC64 behind `body` bytes and the version is theirs."""
    cdef uint64_t found = crc64_update(0, payload, body + 2)
    cdef int i
    for i in range(8):
        if payload[body + 2 + i] != ((found >> (8 * i)) & 0xff):
            return False
    return True


cdef inline void seal_payload(uint8_t *payload, size_t size) noexcept nogil:
    """Sum a DUMP payload of `size` bytes up, the version in its footer included."""
    cdef size_t body = size - FOOTER_BYTES
    cdef uint64_t crc = crc64_update(0, payload, body + 2)
    cdef int i
    for i in range(8):
        payload[body + 2 + i] = (crc >> (8 * i)) & 0xff


cdef inline bint plain_string(
    const uint8_t *payload, size_t size, bint unsealed, PlainString *out
) noexcept nogil:
    """Find the string in a DUMP payload of `size` bytes; False if it has to stay a payload.

    It has to where it is of another type, LZF-compressed (to pack it out would be our work, and
    more bytes on the wire), or not sound: no CRC but that of the payload vouches for the bytes, so
    damaged ones are left for the target to refuse. An `unsealed` one has no CRC of its own yet: the
    core made the payload itself, of a snapshot's bytes or of a reply to MGET.
    """
    cdef const uint8_t *p = payload + 1
    cdef size_t body = size - FOOTER_BYTES
    cdef size_t room
    cdef uint64_t n
    cdef int32_t number
    if size < FOOTER_BYTES + 2 or payload[0] != STRING_TYPE:
        return False
    room = body - 1
    if p[0] < 0x40:
        n = p[0]
        p += 1
        room -= 1
    elif p[0] < 0x80:
        if room < 2:
            return False
        n = ((<uint64_t>p[0] & 0x3f) << 8) | p[1]
        p += 2
        room -= 2
    elif p[0] == 0x80:
        if room < 5:
            return False
        n = load_big_endian(p + 1, 4)
        p += 5
        room -= 5
    elif p[0] == 0x81:
        if room < 9:
            return False
        n = load_big_endian(p + 1, 8)
        p += 9
        room -= 9
    elif p[0] >= 0xc0 and p[0] <= 0xc2:
        if room != (<size_t>1 << (p[0] & 3)) + 1:
            return False
        if p[0] == 0xc0:
            number = <int8_t>p[1]
        elif p[0] == 0xc1:
            number = <int16_t>(p[1] | <uint16_t>p[2] << 8)
        else:
            number = <int32_t>(
                p[1] | <uint32_t>p[2] << 8 | <uint32_t>p[3] << 16 | <uint32_t>p[4] << 24)
        if not unsealed and not crc_fits(payload, body):
            return False
        out.data = NULL
        out.size = put_signed(out.text, number) - out.text
        return True
    else:
        return False
    if n != room or not (unsealed or crc_fits(payload, body)):
        return False
    out.data = p
    out.size = room
    return True


cdef inline uint64_t load_big_endian(const uint8_t *p, int n) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(n):
        value = value << 8 | p[i]
    return value


cdef inline uint8_t *put_signed(uint8_t *out, int64_t n) noexcept nogil:
    """Write n in base ten, with a sign if it is negative."""
    if n < 0:
        out[0] = c'-'
        return put_decimal(out + 1, <uint64_t>0 - <uint64_t>n)
    return put_decimal(out, <uint64_t>n)


# The other way: the payload of a string that came from MGET.

cdef inline size_t string_head_size(size_t n) noexcept nogil:
    """Bytes before the string: the type, and its length in the shortest form."""
    if n < 1 << 6:
        return 2
    if n < 1 << 14:
        return 3
    return 6 if n <= UINT32_MAX else 10


cdef inline uint8_t *put_string_head(uint8_t *out, uint64_t n) noexcept nogil:
    """Write the type and the length of a string of n bytes (up to 10 bytes); returns the end."""
    cdef int shift
    out[0] = STRING_TYPE
    if n < 1 << 6:
        out[1] = <uint8_t>n
        return out + 2
    if n < 1 << 14:
        out[1] = <uint8_t>(0x40 | n >> 8)
        out[2] = <uint8_t>(n & 0xff)
        return out + 3
    out[1] = 0x80 if n <= UINT32_MAX else 0x81
    out += 2
    shift = 24 if n <= UINT32_MAX else 56
    while shift >= 0:
        out[0] = <uint8_t>((n >> shift) & 0xff)
        out += 1
        shift -= 8
    return out


cdef inline void put_version(uint8_t *footer) noexcept nogil:
    """Write the version that all know."""
    footer[0] = 1
    footer[1] = 0


cdef inline void put_footer(uint8_t *out, uint64_t crc) noexcept nogil:
    """Write the footer behind a value whose CRC64 is `crc`, with a version that all know."""
    cdef int i
    put_version(out)
    crc = crc64_update(crc, out, 2)
    for i in range(8):
        out[2 + i] = (crc >> (8 * i)) & 0xff
