# Commands as a server reads them: an array of bulk strings (RESP, "Sending commands").
#
#   *<arguments>\r\n  then for each argument  $<bytes>\r\n<the bytes>\r\n
#
# Two passes over the same objects: the first adds up the exact size, the second writes into the
# one bytes object that was allocated. Between the two a bytearray may have been resized by
# another thread, so the second pass checks what it writes against what is left.

cdef extern from *:
    """
    static const char engine_two_digits[] =
        "00010203040506070809" "10111213141516171819" "20212223242526272829"
        "30313233343536373839" "40414243444546474849" "50515253545556575859"
        "60616263646566676869" "70717273747576777879" "80818283848586878889"
        "90919293949596979899";

    static const uint64_t engine_ten_power[20] = {
        1u, 10u, 100u, 1000u, 10000u, 100000u, 1000000u, 10000000u, 100000000u, 1000000000u,
        UINT64_C(10000000000), UINT64_C(100000000000), UINT64_C(1000000000000),
        UINT64_C(10000000000000), UINT64_C(100000000000000), UINT64_C(1000000000000000),
        UINT64_C(10000000000000000), UINT64_C(100000000000000000),
        UINT64_C(1000000000000000000), UINT64_C(10000000000000000000)};

    static inline unsigned engine_bit_length(uint64_t v) {  /* v > 0 */
    #if defined(__GNUC__)
        return 64u - (unsigned)__builtin_clzll(v);
    #else
        unsigned n = 0;
        for (; v; v >>= 1) n++;
        return n;
    #endif
    }
    """
    const char *engine_two_digits
    const uint64_t *engine_ten_power
    unsigned int engine_bit_length(uint64_t v) noexcept nogil


cdef extern from "Python.h":
    const char *command_str_utf8 "PyUnicode_AsUTF8AndSize" (object s, Py_ssize_t *n) except NULL
    long long command_int64 "PyLong_AsLongLongAndOverflow" (object i, int *overflow) except? -1


# ---------------------------------------------------------------------------- without the GIL

cdef inline size_t decimal_digits(uint64_t v) noexcept nogil:
    """How many digits v has in base ten: 1 to 20."""
    # 1233 / 4096 is just above log10(2): bits to digits, too small by one at the most.
    cdef size_t guess = (engine_bit_length(v | 1) * 1233) >> 12
    return guess + (v >= engine_ten_power[guess] or v == 0)


cdef inline uint8_t *put_decimal(uint8_t *out, uint64_t v) noexcept nogil:
    """Write v in base ten (up to 20 bytes, no terminator); returns the end of what was written."""
    cdef uint8_t *end = out + decimal_digits(v)
    cdef uint8_t *p = end
    while v >= 100:
        p -= 2
        memcpy(p, engine_two_digits + 2 * (v % 100), 2)
        v //= 100
    if v >= 10:
        memcpy(out, engine_two_digits + 2 * v, 2)
    else:
        out[0] = <uint8_t>(c'0' + v)
    return end


cdef inline uint8_t *put_header(uint8_t *out, uint8_t mark, uint64_t n) noexcept nogil:
    out[0] = mark
    out = put_decimal(out + 1, n)
    memcpy(out, b"\r\n", 2)
    return out + 2


cdef inline uint8_t *put_array_header(uint8_t *out, uint64_t n) noexcept nogil:
    """Write `*<n>` and CRLF (up to 23 bytes); returns the end of what was written."""
    return put_header(out, c'*', n)


cdef inline uint8_t *put_bulk_header(uint8_t *out, uint64_t n) noexcept nogil:
    """Write `$<n>` and CRLF (up to 23 bytes); returns the end of what was written."""
    return put_header(out, c'$', n)


cdef inline uint8_t *put_bulk(uint8_t *out, const uint8_t *p, size_t n) noexcept nogil:
    """Write a bulk string of n bytes at p, bulk_size(n) bytes in all; returns the end."""
    out = put_bulk_header(out, n)
    if n:
        memcpy(out, p, n)
    memcpy(out + n, b"\r\n", 2)
    return out + n + 2


cdef inline size_t bulk_size(size_t n) noexcept nogil:
    """What put_bulk() writes for a string of n bytes."""
    return decimal_digits(n) + n + 5


# ---------------------------------------------------------------------------- Python objects

cdef enum:
    COMMAND_NUMBER_BYTES = 24     # a sign and 20 digits, rounded up


cdef struct CommandArgument:
    const uint8_t *data
    size_t size
    bint borrowed                           # `view` has to be released
    Py_buffer view
    uint8_t digits[COMMAND_NUMBER_BYTES]    # what `data` points to for an int


cdef object open_argument(object arg, CommandArgument *a):
    """Point `a` at the wire bytes of an argument; release with close_argument().

    Returns the object that must outlive the use of a.data. Raises TypeError for a type that has
    no single meaning on the wire, UnicodeEncodeError for a str with lone surrogates, BufferError
    for a memoryview that isn't contiguous.
    """
    cdef Py_ssize_t length
    cdef long long number
    cdef int overflow
    cdef uint8_t *p
    a.borrowed = False
    if PyBytes_CheckExact(arg):
        a.data = <const uint8_t *>PyBytes_AS_STRING(arg)
        a.size = <size_t>PyBytes_GET_SIZE(arg)
        return arg
    if isinstance(arg, str):
        a.data = <const uint8_t *>command_str_utf8(arg, &length)
        a.size = <size_t>length
        return arg
    if isinstance(arg, (bytes, bytearray, memoryview)):
        PyObject_GetBuffer(arg, &a.view, PyBUF_SIMPLE)
        a.borrowed = True
        a.data = <const uint8_t *>a.view.buf
        a.size = <size_t>a.view.len
        return arg
    if isinstance(arg, int) and not isinstance(arg, bool):
        number = command_int64(arg, &overflow)
        if overflow:
            return open_argument(int.__repr__(arg), a)
        p = a.digits
        if number < 0:
            p[0] = c'-'
            p += 1
        # 0 - x, unsigned: -(-2**63) has no signed form.
        p = put_decimal(p, <uint64_t>0 - <uint64_t>number if number < 0 else <uint64_t>number)
        a.data = a.digits
        a.size = <size_t>(p - a.digits)
        return arg
    if isinstance(arg, float):
        return open_argument(float.__repr__(arg), a)
    raise TypeError(
        "an argument must be bytes, bytearray, memoryview, str, int or float, "
        f"found {type(arg).__name__}"
    )


cdef inline void close_argument(CommandArgument *a):
    if a.borrowed:
        PyBuffer_Release(&a.view)


cdef size_t command_size(object args) except 0:
    """The exact size of one command, args being a list or a tuple."""
    cdef CommandArgument a
    cdef size_t count = len(args)
    cdef size_t total = decimal_digits(count) + 3
    if count == 0:
        raise ValueError("a command needs at least its name, found no arguments")
    for arg in args:
        keeper = open_argument(arg, &a)
        total += bulk_size(a.size)
        close_argument(&a)
    return total


cdef uint8_t *put_command(uint8_t *out, const uint8_t *end, object args) except NULL:
    """Write one command; returns the end of what was written, never past `end`."""
    cdef CommandArgument a
    cdef size_t count = len(args)
    cdef bint fits = decimal_digits(count) + 3 <= <size_t>(end - out)
    if fits:
        out = put_array_header(out, count)
        for arg in args:
            keeper = open_argument(arg, &a)
            fits = bulk_size(a.size) <= <size_t>(end - out)
            if fits:
                out = put_bulk(out, a.data, a.size)
            close_argument(&a)
            if not fits:
                break
    if not fits:
        raise BufferError("an argument changed its size while it was encoded")
    return out


def encode_command(*args):
    """One command as the server reads it: a RESP array of bulk strings.

    args: the command's name and its arguments; str goes as UTF-8, int in base ten, float as its
    repr(). Raises ValueError for no arguments, TypeError for any other type (bool too: the
    servers have none), UnicodeEncodeError for a str with lone surrogates.
    """
    cdef size_t size = command_size(args)
    cdef object out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
    cdef uint8_t *p = <uint8_t *>PyBytes_AS_STRING(out)
    if put_command(p, p + size, args) != p + size:
        raise BufferError("an argument changed its size while it was encoded")
    return out
