# The two checksums of the servers: CRC64 (DUMP payloads, RDB files) and CRC16 (cluster slots).
#
# CRC64 is the "Jones" polynomial, reflected, initial value 0, no final xor (Redis crc64.c). It
# has two implementations, and the processor decides at import which one is used:
#
#   slicing-by-16  portable: sixteen tables, so that sixteen bytes cost sixteen independent
#                  look-ups instead of sixteen dependent ones.
#   pclmulqdq      x86-64: the message is a polynomial over GF(2). A block A that stands D bits
#                  ahead of a block B may be replaced by A * (x^D mod P), added to B: this
#                  "folds" 64 bytes at a time into one register, which one Barrett reduction then
#                  takes modulo P. (V. Gopal et al., "Fast CRC Computation for Generic
#                  Polynomials Using PCLMULQDQ Instruction", Intel, 2009.) It needs no tables,
#                  whose 32 KiB would push the caller's data out of the first-level cache.
#
# All constants are computed from the polynomial at import. Nothing is written afterwards, so
# every function here may run in any thread, without the GIL.

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    #define CRC64_POLY_REFLECTED UINT64_C(0x95ac9329ac4bc9b5)  /* 0xad93d23594c935a9 mirrored */

    /* Compilers turn this into one load on little-endian machines. */
    static inline uint64_t load_le64(const uint8_t *p) {
        return (uint64_t)p[0] | (uint64_t)p[1] << 8 | (uint64_t)p[2] << 16
             | (uint64_t)p[3] << 24 | (uint64_t)p[4] << 32 | (uint64_t)p[5] << 40
             | (uint64_t)p[6] << 48 | (uint64_t)p[7] << 56;
    }

    #if (defined(__x86_64__) || defined(_M_X64)) && defined(__GNUC__)
    #define CRC64_HAVE_PCLMUL 1
    #include <immintrin.h>

    /* Each pair folds over a distance of D bits: the half that comes first on the wire takes
       x^(D+63) mod P, the other x^(D-1) mod P. The missing factor x is what a carry-less product
       of two mirrored 64-bit numbers brings with it. */
    static uint64_t crc64_fold_128[2], crc64_fold_256[2], crc64_fold_384[2], crc64_fold_512[2];
    static uint64_t crc64_barrett[2];  /* floor(x^128 / P), and P: both 65 bits, less the x^0 */

    /* x^n mod P, mirrored: bit 63 is the coefficient of x^0. */
    static uint64_t crc64_x_power(unsigned n) {
        uint64_t r = UINT64_C(1) << 63;
        while (n--) {
            r = (r >> 1) ^ ((r & 1) ? CRC64_POLY_REFLECTED : 0);
        }
        return r;
    }

    static void crc64_fold_pair(uint64_t pair[2], unsigned distance) {
        pair[0] = crc64_x_power(distance + 63);
        pair[1] = crc64_x_power(distance - 1);
    }

    static void crc64_pclmul_setup(void) {
        uint64_t quotient = 0, rest = CRC64_POLY_REFLECTED;
        unsigned i;
        crc64_fold_pair(crc64_fold_128, 128);
        crc64_fold_pair(crc64_fold_256, 256);
        crc64_fold_pair(crc64_fold_384, 384);
        crc64_fold_pair(crc64_fold_512, 512);
        /* Long division of x^128 by P. The first step leaves x^64 * (P - x^64), mirrored in
           `rest`; each of the next 63 gives one bit of the quotient, highest power first. */
        for (i = 1; i < 64; i++) {
            uint64_t bit = rest & 1;
            quotient |= bit << i;
            rest = (rest >> 1) ^ (bit ? CRC64_POLY_REFLECTED : 0);
        }
        crc64_barrett[0] = quotient | 1;
        crc64_barrett[1] = CRC64_POLY_REFLECTED << 1 | 1;
    }

    static int crc64_pclmul_usable(void) {
        __builtin_cpu_init();
        return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
    }

    #define CRC64_TARGET __attribute__((target("pclmul,sse4.1")))
    #define CRC64_LOAD(p) _mm_loadu_si128((const __m128i *)(p))

    CRC64_TARGET static inline __m128i crc64_fold(__m128i block, __m128i pair) {
        return _mm_xor_si128(_mm_clmulepi64_si128(block, pair, 0x00),
                             _mm_clmulepi64_si128(block, pair, 0x11));
    }

    /* n >= 16. */
    CRC64_TARGET static uint64_t crc64_pclmul(uint64_t crc, const uint8_t *p, size_t n) {
        const __m128i by_128 = CRC64_LOAD(crc64_fold_128);
        __m128i state, product, quotient;
        __m128i seed = _mm_cvtsi64_si128((long long)crc);
        const uint8_t *end = p + n;

        if (n >= 64) {
            /* Four blocks in flight: a product takes about seven cycles, and one can start in
               each cycle. */
            const __m128i by_512 = CRC64_LOAD(crc64_fold_512);
            __m128i a = _mm_xor_si128(CRC64_LOAD(p), seed);
            __m128i b = CRC64_LOAD(p + 16);
            __m128i c = CRC64_LOAD(p + 32);
            __m128i d = CRC64_LOAD(p + 48);
            for (p += 64; end - p >= 64; p += 64) {
                a = _mm_xor_si128(crc64_fold(a, by_512), CRC64_LOAD(p));
                b = _mm_xor_si128(crc64_fold(b, by_512), CRC64_LOAD(p + 16));
                c = _mm_xor_si128(crc64_fold(c, by_512), CRC64_LOAD(p + 32));
                d = _mm_xor_si128(crc64_fold(d, by_512), CRC64_LOAD(p + 48));
            }
            a = crc64_fold(a, CRC64_LOAD(crc64_fold_384));
            b = crc64_fold(b, CRC64_LOAD(crc64_fold_256));
            c = crc64_fold(c, by_128);
            state = _mm_xor_si128(_mm_xor_si128(a, b), _mm_xor_si128(c, d));
        } else {
            state = _mm_xor_si128(CRC64_LOAD(p), seed);
            p += 16;
        }
        for (; end - p >= 16; p += 16) {
            state = _mm_xor_si128(crc64_fold(state, by_128), CRC64_LOAD(p));
        }
        if (p != end) {
            /* r bytes are left. Cut state + rest (16 + r bytes) anew: its first r bytes are
               folded over its last 16. The last 16 bytes of the input are readable: n >= 16. */
            const int r = (int)(end - p);
            const __m128i index = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7,
                                                8, 9, 10, 11, 12, 13, 14, 15);
            /* _mm_shuffle_epi8 writes 0 where the index is negative. */
            const __m128i head = _mm_shuffle_epi8(
                state, _mm_sub_epi8(index, _mm_set1_epi8((char)(16 - r))));
            const __m128i past = _mm_add_epi8(index, _mm_set1_epi8((char)(112 + r)));
            const __m128i tail = _mm_blendv_epi8(
                _mm_shuffle_epi8(state, past), CRC64_LOAD(end - 16), past);
            state = _mm_xor_si128(crc64_fold(head, by_128), tail);
        }

        /* 128 bits stand for A*x^64 + B, and the checksum is that times x^64, modulo P. First
           A*x^128 is folded onto B*x^64, then Barrett: q = floor(T / P), T - q*P. */
        product = _mm_xor_si128(_mm_clmulepi64_si128(state, by_128, 0x10),
                                _mm_srli_si128(state, 8));
        {
            const __m128i barrett = CRC64_LOAD(crc64_barrett);
            quotient = _mm_clmulepi64_si128(product, barrett, 0x00);
            state = _mm_clmulepi64_si128(quotient, barrett, 0x10);
        }
        state = _mm_xor_si128(state, _mm_xor_si128(product, _mm_slli_si128(quotient, 8)));
        return (uint64_t)_mm_extract_epi64(state, 1);
    }
    #else
    #define CRC64_HAVE_PCLMUL 0
    static void crc64_pclmul_setup(void) {}
    static int crc64_pclmul_usable(void) { return 0; }
    static uint64_t crc64_pclmul(uint64_t crc, const uint8_t *p, size_t n) {
        (void)p; (void)n;
        return crc;  /* never called: crc64_pclmul_usable() is false */
    }
    #endif
    """
    const uint64_t CRC64_POLY_REFLECTED
    uint64_t load_le64(const uint8_t *p) noexcept nogil
    void crc64_pclmul_setup() noexcept nogil
    bint crc64_pclmul_usable() noexcept nogil
    uint64_t crc64_pclmul(uint64_t crc, const uint8_t *p, size_t n) noexcept nogil


cdef enum:
    CRC64_PCLMUL_MIN = 16         # below, one register is not full
    CRC16_POLY = 0x1021           # XMODEM, not reflected
    SLOT_COUNT = 16384
    SLOT_SET_BYTES = 16384 // 8
    HASH_GIL_BYTES = 16 * 1024    # a shorter input is hashed before another thread could wake


cdef uint64_t crc64_tables[16][256]
cdef uint16_t crc16_tables[8][256]
cdef bint crc64_use_pclmul = False


cdef void hash_setup() noexcept nogil:
    """Fill the tables: table[k][b] is the checksum of the byte b followed by k zero bytes."""
    global crc64_use_pclmul
    cdef uint64_t wide
    cdef uint16_t narrow
    cdef int byte, bit, table
    for byte in range(256):
        wide = <uint64_t>byte
        narrow = <uint16_t>(byte << 8)
        for bit in range(8):
            wide = (wide >> 1) ^ (CRC64_POLY_REFLECTED if wide & 1 else <uint64_t>0)
            narrow = <uint16_t>((narrow << 1) ^ (CRC16_POLY if narrow & 0x8000 else 0))
        crc64_tables[0][byte] = wide
        crc16_tables[0][byte] = narrow
    for table in range(1, 16):
        for byte in range(256):
            wide = crc64_tables[table - 1][byte]
            crc64_tables[table][byte] = (wide >> 8) ^ crc64_tables[0][wide & 0xff]
    for table in range(1, 8):
        for byte in range(256):
            narrow = crc16_tables[table - 1][byte]
            crc16_tables[table][byte] = <uint16_t>(narrow << 8) ^ crc16_tables[0][narrow >> 8]
    crc64_pclmul_setup()
    crc64_use_pclmul = crc64_pclmul_usable()


hash_setup()


# ---------------------------------------------------------------------------- CRC64

cdef uint64_t crc64_slicing(uint64_t crc, const uint8_t *p, size_t n) noexcept nogil:
    cdef uint64_t low, high
    while n >= 16:
        low = crc ^ load_le64(p)
        high = load_le64(p + 8)
        crc = (
            crc64_tables[15][low & 0xff] ^ crc64_tables[14][(low >> 8) & 0xff]
            ^ crc64_tables[13][(low >> 16) & 0xff] ^ crc64_tables[12][(low >> 24) & 0xff]
            ^ crc64_tables[11][(low >> 32) & 0xff] ^ crc64_tables[10][(low >> 40) & 0xff]
            ^ crc64_tables[9][(low >> 48) & 0xff] ^ crc64_tables[8][low >> 56]
            ^ crc64_tables[7][high & 0xff] ^ crc64_tables[6][(high >> 8) & 0xff]
            ^ crc64_tables[5][(high >> 16) & 0xff] ^ crc64_tables[4][(high >> 24) & 0xff]
            ^ crc64_tables[3][(high >> 32) & 0xff] ^ crc64_tables[2][(high >> 40) & 0xff]
            ^ crc64_tables[1][(high >> 48) & 0xff] ^ crc64_tables[0][high >> 56]
        )
        p += 16
        n -= 16
    if n >= 8:
        low = crc ^ load_le64(p)
        crc = (
            crc64_tables[7][low & 0xff] ^ crc64_tables[6][(low >> 8) & 0xff]
            ^ crc64_tables[5][(low >> 16) & 0xff] ^ crc64_tables[4][(low >> 24) & 0xff]
            ^ crc64_tables[3][(low >> 32) & 0xff] ^ crc64_tables[2][(low >> 40) & 0xff]
            ^ crc64_tables[1][(low >> 48) & 0xff] ^ crc64_tables[0][low >> 56]
        )
        p += 8
        n -= 8
    while n:
        crc = (crc >> 8) ^ crc64_tables[0][(crc ^ p[0]) & 0xff]
        p += 1
        n -= 1
    return crc


cdef uint64_t crc64_update(uint64_t crc, const uint8_t *p, size_t n) noexcept nogil:
    """The CRC64 of what `crc` stands for, followed by n bytes at p; start with crc = 0."""
    if n >= CRC64_PCLMUL_MIN and crc64_use_pclmul:
        return crc64_pclmul(crc, p, n)
    return crc64_slicing(crc, p, n)


def crc64(data, uint64_t crc=0):
    """The servers' CRC64 of a buffer (Redis crc64.c; the last 8 bytes of a DUMP payload).

    data: any contiguous buffer, in bytes; crc: the checksum of what came before (0 to start).
    Returns an int below 2**64. Raises BufferError for a buffer that isn't contiguous, and
    OverflowError for a crc that isn't in 0 to 2**64 - 1.
    """
    cdef Py_buffer view
    cdef uint64_t result
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if view.len < HASH_GIL_BYTES:
            result = crc64_update(crc, <const uint8_t *>view.buf, <size_t>view.len)
        else:
            with nogil:
                result = crc64_update(crc, <const uint8_t *>view.buf, <size_t>view.len)
    finally:
        PyBuffer_Release(&view)
    return result


def crc64_implementation():
    """The implementation that this processor uses: "pclmulqdq" or "slicing-by-16"."""
    return "pclmulqdq" if crc64_use_pclmul else "slicing-by-16"


def crc64_with(str name, data, uint64_t crc=0):
    """crc64() by the implementation of that name, for tests and benchmarks.

    Raises ValueError for an unknown name, and for one that this processor can't run.
    """
    cdef Py_buffer view
    cdef bint folding = name == "pclmulqdq"
    if not folding and name != "slicing-by-16":
        raise ValueError(f"expected 'pclmulqdq' or 'slicing-by-16', found {name!r}")
    if folding and not crc64_use_pclmul:
        raise ValueError("this processor has no PCLMULQDQ")
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if folding and view.len >= CRC64_PCLMUL_MIN:
            return crc64_pclmul(crc, <const uint8_t *>view.buf, <size_t>view.len)
        return crc64_slicing(crc, <const uint8_t *>view.buf, <size_t>view.len)
    finally:
        PyBuffer_Release(&view)


# ---------------------------------------------------------------------------- CRC16, slots

cdef uint16_t crc16_update(uint16_t crc, const uint8_t *p, size_t n) noexcept nogil:
    cdef uint16_t found
    cdef size_t i
    while n >= 8:
        crc = (
            crc16_tables[7][p[0] ^ (crc >> 8)] ^ crc16_tables[6][p[1] ^ (crc & 0xff)]
            ^ crc16_tables[5][p[2]] ^ crc16_tables[4][p[3]] ^ crc16_tables[3][p[4]]
            ^ crc16_tables[2][p[5]] ^ crc16_tables[1][p[6]] ^ crc16_tables[0][p[7]]
        )
        p += 8
        n -= 8
    if n == 0:
        return crc
    if n == 1:
        return <uint16_t>(crc << 8) ^ crc16_tables[0][(crc >> 8) ^ p[0]]
    # The same of what is left. (A loop in which each byte waits for the one before took as long as
    # several times eight.)
    found = crc16_tables[n - 1][p[0] ^ (crc >> 8)] ^ crc16_tables[n - 2][p[1] ^ (crc & 0xff)]
    for i in range(2, n):
        found ^= crc16_tables[n - 1 - i][p[i]]
    return found


cdef inline bint has_brace(uint64_t eight) noexcept nogil:
    """Whether one of eight bytes is a `{`."""
    eight ^= <uint64_t>0x7b7b7b7b7b7b7b7b
    # One of them is zero then.
    return ((eight - <uint64_t>0x0101010101010101) & ~eight & <uint64_t>0x8080808080808080) != 0


cdef inline const uint8_t *find_brace(const uint8_t *p, size_t n) noexcept nogil:
    """The first `{` of n bytes, or NULL. Keys are short: a call of memchr took as long as the hash."""
    cdef uint64_t eight
    cdef uint32_t first, last
    if n >= 8:
        while True:
            memcpy(&eight, p, 8)
            if has_brace(eight):
                break
            if n == 8:
                return NULL
            # The last eight may begin among those before.
            p += min(n - 8, <size_t>8)
            n = max(n - 8, <size_t>8)
    elif n >= 4:
        memcpy(&first, p, 4)
        memcpy(&last, p + n - 4, 4)
        if not has_brace(first | <uint64_t>last << 32):
            return NULL
    while n:
        if p[0] == c'{':
            return p
        p += 1
        n -= 1
    return NULL


cdef uint16_t slot_of(const uint8_t *key, size_t n) noexcept nogil:
    """The cluster slot, 0 to 16383, of a key of n bytes.

    Only what stands between the first { and the first } after it is hashed, unless that is
    nothing (the Redis Cluster specification, "Hash tags").
    """
    cdef const uint8_t *opening = find_brace(key, n)
    cdef const uint8_t *closing
    if opening != NULL:
        opening += 1
        closing = <const uint8_t *>memchr(opening, c'}', n - <size_t>(opening - key))
        if closing != NULL and closing != opening:
            return crc16_update(0, opening, <size_t>(closing - opening)) % SLOT_COUNT
    return crc16_update(0, key, n) % SLOT_COUNT


def key_slot(key):
    """The cluster slot of a key, 0 to 16383, by the part between { and } where there is one.

    key: any contiguous buffer. Raises BufferError for one that isn't contiguous.
    """
    cdef Py_buffer view
    cdef uint16_t result
    PyObject_GetBuffer(key, &view, PyBUF_SIMPLE)
    try:
        if view.len < HASH_GIL_BYTES:
            result = slot_of(<const uint8_t *>view.buf, <size_t>view.len)
        else:
            with nogil:
                result = slot_of(<const uint8_t *>view.buf, <size_t>view.len)
    finally:
        PyBuffer_Release(&view)
    return result
