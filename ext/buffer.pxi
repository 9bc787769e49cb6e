# Memory that sockets read into and write from.

cdef struct Input:
    uint8_t *data
    size_t capacity
    # Unread: [start, end).
    size_t start
    size_t end
    # Bytes of the stream before data[0].
    uint64_t before


cdef inline uint64_t input_offset(const Input *input) noexcept nogil:
    """Offset of the next unread byte in the whole stream."""
    return input.before + input.start


@cython.final
cdef class InputBuffer:
    """Memory of fixed size that a transport reads into; a parser eats it from the front.

    As a writable buffer it is its own free tail, so that a `BufferedProtocol` receives straight
    into it. The parser leaves at most one unfinished line behind (`LINE_LIMIT`), which is moved to
    the front, so that there is always room.
    """
    cdef Input state
    cdef int exports

    def __cinit__(self, size_t capacity=INPUT_BYTES):
        if capacity < 2 * LINE_LIMIT:
            raise ValueError("an input buffer holds at least two lines")
        self.state.data = <uint8_t *>PyMem_RawMalloc(capacity)
        if self.state.data == NULL:
            raise MemoryError()
        self.state.capacity = capacity

    def __dealloc__(self):
        PyMem_RawFree(self.state.data)

    def __len__(self):
        """Bytes of room: how long it is as a buffer."""
        self.compact()
        return self.state.capacity - self.state.end

    def __getbuffer__(self, Py_buffer *view, int flags):
        cdef Input *input = &self.state
        self.compact()
        PyBuffer_FillInfo(
            view, self, input.data + input.end, input.capacity - input.end, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1

    cdef void compact(self) noexcept:
        """Move what is unread to the front, unless the free tail is lent."""
        cdef Input *input = &self.state
        if self.exports == 0 and input.start > 0:
            memmove(input.data, input.data + input.start, input.end - input.start)
            input.before += input.start
            input.end -= input.start
            input.start = 0

    def read_from(self, int fd):
        """Read what a socket that does not block has, into the free tail; how many bytes came, to
        be told to the parser's `received`. 0: the other end has closed, -1: nothing is there, or an
        error that the next to read finds as well."""
        cdef Input *input = &self.state
        cdef ssize_t n
        self.compact()
        with nogil:
            n = read(fd, input.data + input.end, input.capacity - input.end)
        return n

    cdef int commit(self, size_t n) except -1:
        """Count `n` bytes as received."""
        if n > self.state.capacity - self.state.end:
            raise ValueError("more bytes received than there was room for")
        self.state.end += n
        return 0


@cython.final
cdef class ReplyRuns:
    """How many records each reply to a batch stands for, a byte each; kept until it is answered."""
    cdef uint8_t *records
    cdef size_t count
    # Each stands for one.
    cdef bint single

    def __dealloc__(self):
        PyMem_RawFree(self.records)

    def __len__(self):
        return self.count


@cython.final
cdef class OutputBuffer:
    """Encoded commands, ready to be written. Read-only; freed when the transport lets go of it.

    Attributes:
        runs: how many records each reply will stand for; None: each for one.
    """
    cdef uint8_t *data
    cdef size_t size
    cdef readonly ReplyRuns runs

    def __dealloc__(self):
        PyMem_RawFree(self.data)

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.size, 1, flags)


cdef OutputBuffer new_output(size_t capacity):
    cdef OutputBuffer out = OutputBuffer.__new__(OutputBuffer)
    out.data = <uint8_t *>PyMem_RawMalloc(capacity if capacity else 1)
    if out.data == NULL:
        raise MemoryError()
    return out


cdef inline int64_t line_end(const uint8_t *data, size_t start, size_t end) noexcept nogil:
    """Index of the '\\r' that ends the line at `start`; -1: not here yet; -2: no such line.

    A line ends in CRLF; a lone CR or LF inside it is a violation of the protocol (-2), and so is a
    line longer than `LINE_LIMIT`.
    """
    cdef const uint8_t *newline = <const uint8_t *>memchr(data + start, 10, end - start)
    cdef size_t at
    if newline == NULL:
        return -2 if end - start > LINE_LIMIT else -1
    at = newline - data
    if at == start or data[at - 1] != 13:
        return -2
    return <int64_t>(at - 1)


cdef enum:
    # Replies that are compared in one go.
    REPLIES_AT_ONCE = 64


cdef void repeat_reply(uint8_t *many, const char *reply, size_t size) noexcept nogil:
    """Write a reply of `size` bytes `REPLIES_AT_ONCE` times."""
    cdef int i
    for i in range(REPLIES_AT_ONCE):
        memcpy(many + i * size, reply, size)


cdef inline size_t equal_replies(
    const uint8_t *p, size_t most, const uint8_t *many, size_t size
) noexcept nogil:
    """How many of the replies at `p` are the same one of `size` bytes, before the first that is
    another: `most` at the most, for which there are bytes. `many` has it `REPLIES_AT_ONCE` times.
    """
    cdef size_t n = 0, step = REPLIES_AT_ONCE
    while step:
        while most - n >= step and memcmp(p + n * size, many, step * size) == 0:
            n += step
        step //= 8
    return n


cdef inline bint parse_decimal(
    const uint8_t *p, const uint8_t *end, int64_t *out
) noexcept nogil:
    """Read `-?[0-9]+` that fills [p, end); False if it is anything else or does not fit."""
    cdef bint negative = False
    cdef uint64_t value = 0
    cdef uint32_t digit
    if p < end and p[0] == 45:
        negative = True
        p += 1
    if p >= end or end - p > 19:
        return False
    while p < end:
        digit = <uint32_t>p[0] - 48
        if digit > 9:
            return False
        value = value * 10 + digit
        p += 1
    if value > <uint64_t>INT64_MAX:
        return False
    out[0] = -<int64_t>value if negative else <int64_t>value
    return True
