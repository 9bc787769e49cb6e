# Digests of values that servers' replies bring in pieces: SipHash-2-4 with 128 bits of output
# (J.-P. Aumasson, D. J. Bernstein, "SipHash: a fast short-input PRF", 2012), under a key of the
# process. A client that can choose values cannot choose two that digest alike without it.
#
# A part goes in with its length before it, 8 bytes little-endian, so that no two sequences of parts
# read the same. In a digest without order each element is hashed for itself, and the hashes are
# added up modulo 2^128: two servers hold the same elements in different orders.

cdef struct Sip:
    uint64_t v0
    uint64_t v1
    uint64_t v2
    uint64_t v3
    uint64_t total
    uint8_t tail[8]


cdef inline uint64_t rotated(uint64_t x, int n) noexcept nogil:
    return (x << n) | (x >> (64 - n))


cdef inline void sip_round(Sip *s) noexcept nogil:
    s.v0 += s.v1
    s.v2 += s.v3
    s.v1 = rotated(s.v1, 13) ^ s.v0
    s.v3 = rotated(s.v3, 16) ^ s.v2
    s.v0 = rotated(s.v0, 32)
    s.v2 += s.v1
    s.v0 += s.v3
    s.v1 = rotated(s.v1, 17) ^ s.v2
    s.v3 = rotated(s.v3, 21) ^ s.v0
    s.v2 = rotated(s.v2, 32)


cdef inline void sip_word(Sip *s, uint64_t word) noexcept nogil:
    s.v3 ^= word
    sip_round(s)
    sip_round(s)
    s.v0 ^= word


cdef void sip_begin(Sip *s, const uint8_t *key) noexcept nogil:
    cdef uint64_t k0 = load_le64(key), k1 = load_le64(key + 8)
    s.v0 = <uint64_t>0x736f6d6570736575 ^ k0
    s.v1 = <uint64_t>0x646f72616e646f6d ^ k1 ^ 0xee
    s.v2 = <uint64_t>0x6c7967656e657261 ^ k0
    s.v3 = <uint64_t>0x7465646279746573 ^ k1
    s.total = 0


cdef void sip_update(Sip *s, const uint8_t *data, size_t n) noexcept nogil:
    cdef size_t have = s.total & 7, take
    # A copy of its own stays in registers: what `data` points to might else be the state itself.
    cdef Sip local
    s.total += n
    if have:
        take = min(8 - have, n)
        memcpy(s.tail + have, data, take)
        if have + take < 8:
            return
        sip_word(s, load_le64(s.tail))
        data += take
        n -= take
    if n >= 8:
        local = s[0]
        while n >= 8:
            sip_word(&local, load_le64(data))
            data += 8
            n -= 8
        s.v0, s.v1, s.v2, s.v3 = local.v0, local.v1, local.v2, local.v3
    if n:
        memcpy(s.tail, data, n)


cdef void sip_finish(const Sip *of, uint64_t *low, uint64_t *high) noexcept nogil:
    """The digest of what went in so far; more may follow."""
    cdef Sip s = of[0]
    cdef size_t have = s.total & 7
    memset(s.tail + have, 0, 8 - have)
    sip_word(&s, load_le64(s.tail) | (s.total << 56))
    s.v2 ^= 0xee
    for _ in range(4):
        sip_round(&s)
    low[0] = s.v0 ^ s.v1 ^ s.v2 ^ s.v3
    s.v1 ^= 0xdd
    for _ in range(4):
        sip_round(&s)
    high[0] = s.v0 ^ s.v1 ^ s.v2 ^ s.v3


cdef int sip_number(Sip *s, int64_t number) except -1:
    """A number as a part: its 8 bytes."""
    cdef uint64_t framed[2]
    framed[0] = 8
    framed[1] = <uint64_t>number
    sip_update(s, <const uint8_t *>framed, 16)
    return 0


cdef int sip_part(Sip *s, object part) except -1:
    """A part of bytes, or a number. TypeError for anything else."""
    cdef uint64_t size
    if PyBytes_CheckExact(part):
        size = PyBytes_GET_SIZE(part)
        sip_update(s, <const uint8_t *>&size, 8)
        sip_update(s, <const uint8_t *>PyBytes_AS_STRING(part), size)
        return 0
    if isinstance(part, int):
        return sip_number(s, part)
    raise TypeError(f"a part must be bytes or a number, found {type(part).__name__}")


cdef bytes sip_bytes(uint64_t low, uint64_t high):
    cdef uint64_t both[2]
    both[0] = low
    both[1] = high
    return PyBytes_FromStringAndSize(<char *>both, 16)


@cython.final
cdef class OrderedDigest:
    """A digest of parts in their order: bytes, or numbers of 64 bits. `key` has 16 bytes."""
    cdef Sip state

    def __cinit__(self, bytes key not None):
        if len(key) != 16:
            raise ValueError(f"a digest's key has 16 bytes, found {len(key)}")
        sip_begin(&self.state, <const uint8_t *>PyBytes_AS_STRING(key))

    def raw(self, bytes piece not None):
        """Add a piece of one long part; where it was cut leaves no trace."""
        cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(piece)
        cdef size_t n = PyBytes_GET_SIZE(piece)
        with nogil:
            sip_update(&self.state, data, n)

    def add(self, *parts):
        """Add whole parts."""
        for part in parts:
            sip_part(&self.state, part)

    def add_all(self, list parts not None):
        """Add each member of a list."""
        for part in parts:
            sip_part(&self.state, part)

    def add_entries(self, list entries not None):
        """Add a stream's entries, as XRANGE gives them: [id, fields and values or None] each."""
        cdef list fields
        for identifier, told in entries:
            fields = [] if told is None else told
            sip_part(&self.state, identifier)
            sip_number(&self.state, len(fields))
            for part in fields:
                sip_part(&self.state, part)

    def digest(self):
        """16 bytes."""
        cdef uint64_t low, high
        sip_finish(&self.state, &low, &high)
        return sip_bytes(low, high)


@cython.final
cdef class UnorderedDigest:
    """A digest of elements in any order, each made of parts as in `OrderedDigest`.

    Attributes:
        count: elements that were added.
    """
    cdef Sip start
    cdef uint64_t low
    cdef uint64_t high
    cdef readonly uint64_t count

    def __cinit__(self, bytes key not None):
        if len(key) != 16:
            raise ValueError(f"a digest's key has 16 bytes, found {len(key)}")
        sip_begin(&self.start, <const uint8_t *>PyBytes_AS_STRING(key))

    cdef inline void take(self, const Sip *element) noexcept nogil:
        cdef uint64_t low, high
        sip_finish(element, &low, &high)
        self.low += low
        self.high += high + (self.low < low)
        self.count += 1

    def add(self, *parts):
        """Add one element."""
        cdef Sip element = self.start
        for part in parts:
            sip_part(&element, part)
        self.take(&element)

    def add_all(self, list members not None):
        """Add each member of a list, an element of one part."""
        cdef Sip element
        for part in members:
            element = self.start
            sip_part(&element, part)
            self.take(&element)

    def add_pairs(self, list flat not None):
        """Add elements of two parts, which follow each other in a list. ValueError for an odd one.
        """
        cdef Sip element
        cdef Py_ssize_t i, n = len(flat)
        if n & 1:
            raise ValueError("a list of pairs has an even number of members")
        for i in range(0, n, 2):
            element = self.start
            sip_part(&element, flat[i])
            sip_part(&element, flat[i + 1])
            self.take(&element)

    def add_scored(self, list flat not None):
        """Add a sorted set's members, each followed by its score as text: the double counts, for
        versions print it differently. ValueError for an odd list, and for what is no number."""
        cdef Sip element
        cdef Py_ssize_t i, n = len(flat)
        cdef double score
        cdef int64_t bits
        if n & 1:
            raise ValueError("a list of members and scores has an even number of them")
        for i in range(0, n, 2):
            element = self.start
            sip_part(&element, flat[i])
            # + 0.0: -0.0 and 0.0 sort alike, and an integer encoding keeps no sign of zero.
            score = float(flat[i + 1]) + 0.0
            memcpy(&bits, &score, 8)
            sip_number(&element, bits)
            self.take(&element)

    def digest(self):
        """16 bytes, and the count in 8."""
        return sip_bytes(self.low, self.high) + PyBytes_FromStringAndSize(
            <char *>&self.count, 8)
