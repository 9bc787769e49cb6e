# RESP2 and RESP3, read incrementally.
#
# Theory of operation
# -------------------
# Bytes are appended at the tail of one buffer; the scanner works at its head and never goes back:
# a reply that comes in a thousand pieces is read once. The scanner knows two states,
#
#     AT_VALUE  the next byte is the type byte of a value
#     IN_BULK   the header of a bulk was read, its body is awaited
#
# and yields one token a call, without the GIL and without Python objects: a scalar, or the opening
# of an aggregate. The open aggregates stand on a stack of frames, each with the number of values
# that it still awaits; a frame that awaits none is closed, which may complete its parent in turn.
# So depth costs a frame, not a C call, and a declared count costs nothing until its values arrive.
#
# Two consumers share the scanner, and so reach the same verdict on the same bytes:
#
#     gets()  builds objects. Finished values wait on a second stack, and a frame that closes
#             takes its own from the top of it.
#     skip()  only counts what was completed.
#
# An attribute (`|`) is a frame whose values are dropped and that doesn't count as a value itself.
# The first byte that breaks the protocol breaks the reader: nobody can tell where the next reply
# would start.

cdef extern from "Python.h":
    ctypedef struct PyObject
    void reply_incref "Py_INCREF" (PyObject *o)
    void reply_decref "Py_XDECREF" (PyObject *o)
    PyObject *reply_bytes "PyBytes_FromStringAndSize" (const char *s, Py_ssize_t n) except NULL
    PyObject *reply_int "PyLong_FromLongLong" (long long v) except NULL
    object reply_list_new "PyList_New" (Py_ssize_t n)
    void reply_list_set "PyList_SET_ITEM" (object o, Py_ssize_t i, PyObject *value)
    object reply_utf8 "PyUnicode_DecodeUTF8" (const char *s, Py_ssize_t n, const char *errors)
    object reply_ascii "PyUnicode_DecodeASCII" (const char *s, Py_ssize_t n, const char *errors)
    object reply_latin1 "PyUnicode_DecodeLatin1" (const char *s, Py_ssize_t n, const char *errors)
    double reply_double "PyOS_string_to_double" (
        const char *s, char **end, PyObject *overflow) except? -1.0
    long long reply_int64 "PyLong_AsLongLongAndOverflow" (object i, int *overflow) except? -1
    object reply_view "PyMemoryView_FromObject" (object o)


cdef enum:
    REPLY_KEEP_BYTES = 64 * 1024            # the buffer that an idle reader keeps
    REPLY_HINT_MAX = 16 * 1024 * 1024       # the most that get_buffer() makes room for at once
    REPLY_SHRINK_BYTES = 1024 * 1024        # a larger buffer is given back once it is empty
    REPLY_ROOM_BYTES = 32 * 1024            # the least that get_buffer() makes room for
    REPLY_KEEP_VALUES = 4096                # the value stack that an idle reader keeps
    REPLY_DEPTH_LIMIT = 1024                # the highest max_depth
    REPLY_NUMBER_DIGITS = 19                # as many as always fit in 64 bits
    REPLY_LINE_MAX = 1024 * 1024            # a simple string or a simple error
    REPLY_DOUBLE_MAX = 8 * 1024             # a server prints a long double with up to 5 KiB
    REPLY_BIG_DIGITS = 640                  # what int() takes under any limit of the interpreter
    REPLY_GIL_BYTES = 4 * 1024              # less is skipped before another thread could wake
    REPLY_FOUND_BYTES = 24                  # how much of the input an error quotes


cdef enum ReplyState:
    REPLY_AT_VALUE
    REPLY_IN_BULK
    REPLY_BROKEN


cdef enum ReplyText:
    REPLY_TEXT_BYTES
    REPLY_TEXT_UTF8
    REPLY_TEXT_ASCII
    REPLY_TEXT_LATIN1


cdef enum ReplyStep:
    STEP_NEED_DATA
    STEP_SCALAR
    STEP_OPEN
    STEP_BROKEN


cdef enum ReplyFault:
    FAULT_NONE
    FAULT_MEMORY
    FAULT_TYPE
    FAULT_CHUNK
    FAULT_STREAMED
    FAULT_DIGIT
    FAULT_DIGIT_OR_CR
    FAULT_CR
    FAULT_LF
    FAULT_NUMBER_RANGE
    FAULT_BULK_LENGTH
    FAULT_ELEMENTS
    FAULT_DEPTH
    FAULT_LINE_LENGTH
    FAULT_BOOL
    FAULT_DOUBLE
    FAULT_BIG_NUMBER
    FAULT_VERBATIM
    FAULT_NESTED_PUSH


cdef struct ReplyToken:
    uint8_t type            # the type byte on the wire; '_' for every null
    const uint8_t *data     # strings, doubles, big numbers: in the buffer, until it changes
    size_t size
    int64_t number          # integers; booleans as 0 or 1


cdef struct ReplyFrame:
    uint64_t awaited        # values still to come; two a pair in maps and attributes
    size_t first            # where its values begin on the value stack
    uint8_t type


class NeedData:
    """The type of NEED_DATA, the value that says: no complete reply yet, feed more bytes.

    It is false, and can't be made a second time (TypeError).
    """

    __slots__ = ()

    def __new__(cls):
        raise TypeError("NEED_DATA is the only NeedData")

    def __bool__(self):
        return False

    def __repr__(self):
        return "NEED_DATA"

    def __reduce__(self):
        return "NEED_DATA"


NEED_DATA = object.__new__(NeedData)
cdef object reply_need_data = NEED_DATA


class ProtocolError(ValueError):
    """The peer sent bytes that are not RESP; the connection can't be used any further.

    offset: where the offending byte stands, counted in bytes from the reader's first.
    """

    def __init__(self, message, offset):
        super().__init__(message)
        self.offset = offset

    def __reduce__(self):
        return type(self), (self.args[0], self.offset)


class ReplyError(Exception):
    """An error reply, as a value: the reader returns it and never raises it.

    message: the server's text. code: its first word, such as "WRONGTYPE".
    """

    def __init__(self, message):
        super().__init__(message)
        self.message = message
        self.code = message.partition(" ")[0]


class Push(list):
    """A RESP3 push: out-of-band data, not the answer to a command."""

    __slots__ = ()


cdef class _ReplyBlock:
    """The reader's memory. A view keeps it alive when the reader moves on to another block."""

    cdef uint8_t *data
    cdef size_t capacity
    cdef size_t window      # the views that are handed out start here
    cdef size_t window_size

    def __cinit__(self, size_t capacity):
        self.data = <uint8_t *>PyMem_RawMalloc(capacity)
        if self.data == NULL:
            raise MemoryError()
        self.capacity = capacity

    def __dealloc__(self):
        PyMem_RawFree(self.data)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(
            view, self, self.data + self.window, <Py_ssize_t>self.window_size, 0, flags)


# The names are those of codecs.lookup().
cdef dict REPLY_ENCODINGS = {
    "utf-8": REPLY_TEXT_UTF8, "ascii": REPLY_TEXT_ASCII, "iso8859-1": REPLY_TEXT_LATIN1,
}


cdef bint is_reply_double(const uint8_t *p, size_t n) noexcept nogil:
    """Whether n bytes are [+-] digits [. digits] [e [+-] digits], or [+-] inf or nan."""
    cdef const uint8_t *end = p + n
    cdef const uint8_t *digits
    if p != end and (p[0] == c'-' or p[0] == c'+'):
        p += 1
    if end - p == 3 and (memcmp(p, b"inf", 3) == 0 or memcmp(p, b"nan", 3) == 0):
        return True
    digits = p
    p = past_digits(p, end)
    if p == digits:
        return False
    if p != end and p[0] == c'.':
        p = past_digits(p + 1, end)
    if p != end and (p[0] == c'e' or p[0] == c'E'):
        p += 1
        if p != end and (p[0] == c'-' or p[0] == c'+'):
            p += 1
        digits = p
        p = past_digits(p, end)
        if p == digits:
            return False
    return p == end


cdef bint is_reply_big_number(const uint8_t *p, size_t n) noexcept nogil:
    cdef const uint8_t *end = p + n
    if p != end and (p[0] == c'-' or p[0] == c'+'):
        p += 1
    return p != end and end - p <= REPLY_BIG_DIGITS and past_digits(p, end) == end


cdef inline const uint8_t *past_digits(const uint8_t *p, const uint8_t *end) noexcept nogil:
    while p != end and <uint8_t>(p[0] - c'0') <= 9:
        p += 1
    return p


cdef bint is_plain_key(object value):
    """Whether a value may be a dict's key or a set's member.

    Numbers over 64 bits may not, although they have a hash: CPython's is a remainder, so that a
    hostile peer could send a million of them with the same one.
    """
    cdef int overflow = 0
    if isinstance(value, (list, dict, set)):
        return False
    if isinstance(value, int):
        reply_int64(value, &overflow)
    return overflow == 0


@cython.final
cdef class RespReader:
    """Reads RESP2 and RESP3 replies out of bytes that come in pieces.

    max_bulk: the longest bulk string, in bytes. max_elements: the most values in one aggregate (a
    map's keys and values both count). max_depth: the most aggregates inside one another, 1 to
    1024. A reply beyond them raises ProtocolError. encoding: None (strings are bytes), or "utf-8",
    "ascii" or "latin-1" (strings are str; what doesn't decode becomes surrogate escapes).

    Raises ValueError for a bound or an encoding outside of these.
    """

    # What was received: data[head:tail] is not consumed yet, data[0] is byte `discarded`.
    cdef _ReplyBlock block
    cdef uint8_t *data
    cdef size_t head
    cdef size_t tail
    cdef uint64_t discarded

    # The scanner.
    cdef ReplyState state
    cdef ReplyToken token
    cdef uint8_t bulk_type          # IN_BULK: the bulk that is awaited
    cdef size_t bulk_size
    cdef size_t line_searched       # bytes after the type byte that have no LF
    cdef ReplyFrame *frames
    cdef size_t depth

    # The builder, and the skipper.
    cdef PyObject **values
    cdef size_t value_count
    cdef size_t value_capacity
    cdef bytes last_simple          # +OK a million times is one object
    cdef bint skipping              # skip() consumed the first part of a reply
    cdef bint busy
    cdef ReplyText text
    cdef readonly uint64_t skipped_errors

    cdef ReplyFault fault
    cdef uint64_t fault_offset
    cdef uint8_t fault_found[REPLY_FOUND_BYTES]
    cdef size_t fault_found_size

    cdef uint64_t max_bulk
    cdef uint64_t max_elements
    cdef size_t max_depth

    def __cinit__(
        self, *, max_bulk=512 * 1024 * 1024, max_elements=2**24, max_depth=64, encoding=None
    ):
        if not 0 <= max_bulk <= 2**40:
            raise ValueError(f"max_bulk must be 0 to 2**40 bytes, found {max_bulk}")
        if not 0 <= max_elements <= 2**40:
            raise ValueError(f"max_elements must be 0 to 2**40, found {max_elements}")
        if not 1 <= max_depth <= REPLY_DEPTH_LIMIT:
            raise ValueError(f"max_depth must be 1 to {REPLY_DEPTH_LIMIT}, found {max_depth}")
        self.max_bulk = max_bulk
        self.max_elements = max_elements
        self.max_depth = max_depth
        self.text = REPLY_TEXT_BYTES
        if encoding is not None:
            try:
                self.text = REPLY_ENCODINGS[codecs.lookup(encoding).name]
            except LookupError:
                raise ValueError(
                    f"encoding must be None, utf-8, ascii or latin-1, found {encoding!r}"
                ) from None
        self.frames = <ReplyFrame *>PyMem_RawMalloc(self.max_depth * sizeof(ReplyFrame))
        if self.frames == NULL:
            raise MemoryError()
        self.use_block(_ReplyBlock(REPLY_KEEP_BYTES))

    def __dealloc__(self):
        self.drop_values(0)
        PyMem_RawFree(self.values)
        PyMem_RawFree(self.frames)

    # ------------------------------------------------------------------ bytes in

    @property
    def pending(self):
        """Bytes that were fed and not consumed yet."""
        return self.tail - self.head

    def feed(self, data):
        """Append a copy of a contiguous buffer.

        A broken reader drops it. Raises BufferError, MemoryError, or RuntimeError while another
        thread uses the reader.
        """
        cdef Py_buffer view
        self.check_idle()
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.block.window_size = 0
            if view.len and self.state != REPLY_BROKEN:
                self.reserve(<size_t>view.len)
                memcpy(self.data + self.tail, view.buf, <size_t>view.len)
                self.tail += <size_t>view.len
        finally:
            PyBuffer_Release(&view)

    def get_buffer(self, sizehint=-1):
        """A writable memoryview of the reader's own memory, for asyncio.BufferedProtocol.

        sizehint: the room wanted, in bytes (-1 for any; at least 32 KiB and at most 16 MiB are
        made). Say with buffer_updated() how much was written; feed() before that forgets the
        view. Raises MemoryError, or RuntimeError while another thread uses the reader.
        """
        cdef Py_ssize_t hint = sizehint
        cdef size_t room = REPLY_ROOM_BYTES
        self.check_idle()
        if hint > <Py_ssize_t>room:
            room = min(<size_t>hint, <size_t>REPLY_HINT_MAX)
        self.reserve(room)
        self.block.window = self.tail
        self.block.window_size = self.block.capacity - self.tail
        return reply_view(self.block)

    def buffer_updated(self, nbytes):
        """Take the first nbytes of what get_buffer() returned last as received.

        Raises ValueError if that view was smaller, or was used or forgotten already.
        """
        cdef Py_ssize_t n = nbytes
        self.check_idle()
        if n < 0 or <size_t>n > self.block.window_size:
            raise ValueError(
                f"expected 0 to {self.block.window_size} bytes in get_buffer()'s view, found {n}"
            )
        self.block.window_size = 0
        if self.state != REPLY_BROKEN:
            self.tail += <size_t>n

    def reset(self):
        """Forget everything: a new connection begins, at byte 0, and nothing is broken."""
        self.check_idle()
        self.forget()
        self.state = REPLY_AT_VALUE
        self.fault = FAULT_NONE
        self.head = 0
        self.tail = 0
        self.discarded = 0
        self.skipped_errors = 0

    cdef int check_idle(self) except -1:
        if self.busy:
            raise RuntimeError("the reader is in use: by another thread, or further up the stack")
        return 0

    cdef void use_block(self, _ReplyBlock block):
        """Go on in another block, with what is pending at its start."""
        cdef size_t live = self.tail - self.head
        if live:
            memcpy(block.data, self.data + self.head, live)
        self.discarded += self.head
        self.head = 0
        self.tail = live
        self.block = block
        self.data = block.data

    cdef int reserve(self, size_t room) except -1:
        """Make room for so many bytes after the tail.

        Pending bytes move only past at least as many consumed ones, or into a buffer of twice
        the size: a byte is moved a bounded number of times, however small the pieces.
        """
        cdef size_t live = self.tail - self.head
        cdef size_t capacity = self.block.capacity
        if capacity - self.tail >= room and live:
            return 0
        if self.head >= live and capacity - live >= room:
            memmove(self.data, self.data + self.head, live)
            self.discarded += self.head
            self.head = 0
            self.tail = live
            return 0
        if room > SIZE_MAX // 4 - live:
            raise MemoryError()
        self.use_block(_ReplyBlock(max(live + room, 2 * live, <size_t>REPLY_KEEP_BYTES)))
        return 0

    cdef int give_back(self) except -1:
        """An idle reader keeps a small buffer only, unless a view of it is being written to."""
        if (
            self.head == self.tail
            and self.block.capacity > REPLY_SHRINK_BYTES
            and self.block.window_size == 0
        ):
            self.use_block(_ReplyBlock(REPLY_KEEP_BYTES))
        return 0

    cdef int forget(self) except -1:
        """Drop what was received and what was built of it."""
        self.drop_values(0)
        self.depth = 0
        self.skipping = False
        self.line_searched = 0
        self.head = self.tail
        self.block.window_size = 0
        return self.give_back()

    # ------------------------------------------------------------------ the scanner

    cdef ReplyStep scan(self) noexcept nogil:
        """The next token. What isn't there yet in whole is not consumed, but a bulk's header."""
        cdef uint8_t kind
        if self.state == REPLY_IN_BULK:
            return self.on_bulk_body()
        if self.state == REPLY_BROKEN:
            return STEP_BROKEN
        if self.head == self.tail:
            return STEP_NEED_DATA
        kind = self.data[self.head]
        self.token.type = kind
        if kind == c'$' or kind == c'=' or kind == c'!':
            return self.on_bulk_header(kind)
        if kind == c'+' or kind == c'-':
            return self.on_line(REPLY_LINE_MAX)
        if kind == c':':
            return self.on_integer()
        if kind == c'*' or kind == c'%' or kind == c'~' or kind == c'>' or kind == c'|':
            return self.on_aggregate(kind)
        if kind == c'_':
            return self.on_null()
        if kind == c'#':
            return self.on_bool()
        if kind == c',':
            return self.on_double()
        if kind == c'(':
            return self.on_big_number()
        if kind == c';' or kind == c'.':
            return self.fail(FAULT_CHUNK, self.head, 1)
        return self.fail(FAULT_TYPE, self.head, 1)

    cdef ReplyStep fail(self, ReplyFault fault, size_t at, size_t found) noexcept nogil:
        """Break the reader: what was expected, at which index in the buffer, how much to quote."""
        found = min(found, <size_t>REPLY_FOUND_BYTES, self.tail - at)
        memcpy(self.fault_found, self.data + at, found)
        self.fault_found_size = found
        self.fault_offset = self.discarded + at
        self.fault = fault
        self.state = REPLY_BROKEN
        return STEP_BROKEN

    cdef inline ReplyStep read_number(self, bint is_length) noexcept nogil:
        """The number between the type byte and CRLF, into token.number; consumes the line."""
        cdef const uint8_t *data = self.data
        cdef size_t at = self.head + 1
        cdef size_t end = self.tail
        cdef size_t first
        cdef uint64_t value = 0
        cdef bint negative = False
        if at == end:
            return STEP_NEED_DATA
        if data[at] == c'-':
            negative = True
            at += 1
        elif is_length and data[at] == c'?':
            return self.fail(FAULT_STREAMED, at, 1)
        elif not is_length and data[at] == c'+':
            at += 1
        first = at
        while at != end and <uint8_t>(data[at] - c'0') <= 9:
            if at - first == REPLY_NUMBER_DIGITS:
                return self.fail(FAULT_NUMBER_RANGE, self.head, at + 1 - self.head)
            value = 10 * value + <uint8_t>(data[at] - c'0')
            at += 1
        if at == end:
            return STEP_NEED_DATA
        if at == first or data[at] != c'\r':
            return self.fail(FAULT_DIGIT if at == first else FAULT_DIGIT_OR_CR, at, 1)
        if at + 1 == end:
            return STEP_NEED_DATA
        if data[at + 1] != c'\n':
            return self.fail(FAULT_LF, at + 1, 1)
        if value > (<uint64_t>1 << 63) - (not negative):
            return self.fail(FAULT_NUMBER_RANGE, self.head, at - self.head)
        self.token.number = <int64_t>(<uint64_t>0 - value if negative else value)
        self.head = at + 2
        return STEP_SCALAR

    cdef ReplyStep on_integer(self) noexcept nogil:
        return self.read_number(False)

    cdef inline ReplyStep on_bulk_header(self, uint8_t kind) noexcept nogil:
        cdef size_t start = self.head
        cdef ReplyStep step = self.read_number(True)
        if step != STEP_SCALAR:
            return step
        if self.token.number == -1 and kind == c'$':
            self.token.type = c'_'      # RESP2 has no other null
            return STEP_SCALAR
        if self.token.number < 0 or <uint64_t>self.token.number > self.max_bulk:
            return self.fail(FAULT_BULK_LENGTH, start, self.head - 2 - start)
        self.bulk_type = kind
        self.bulk_size = <size_t>self.token.number
        self.state = REPLY_IN_BULK
        return self.on_bulk_body()

    cdef inline ReplyStep on_bulk_body(self) noexcept nogil:
        cdef const uint8_t *body = self.data + self.head
        cdef size_t size = self.bulk_size
        if self.tail - self.head < size + 2:
            return STEP_NEED_DATA
        if body[size] != c'\r':
            return self.fail(FAULT_CR, self.head + size, 1)
        if body[size + 1] != c'\n':
            return self.fail(FAULT_LF, self.head + size + 1, 1)
        self.head += size + 2
        if self.bulk_type == c'=':
            if size < 4 or body[3] != c':':
                return self.fail(FAULT_VERBATIM, self.head - size - 2, min(size, <size_t>4))
            body += 4
            size -= 4
        self.token.type = self.bulk_type
        self.token.data = body
        self.token.size = size
        self.state = REPLY_AT_VALUE
        return STEP_SCALAR

    cdef ReplyStep on_line(self, size_t longest) noexcept nogil:
        """What stands between the type byte and CRLF; no CR or LF may stand inside."""
        cdef size_t start = self.head + 1
        cdef size_t searched = start + self.line_searched
        cdef const uint8_t *line = self.data + start
        cdef const uint8_t *cr
        cdef const uint8_t *lf = <const uint8_t *>memchr(
            self.data + searched, c'\n', self.tail - searched)
        cdef size_t size = <size_t>(lf - line) if lf != NULL else self.tail - start
        if size > longest + 1:
            return self.fail(FAULT_LINE_LENGTH, self.head, REPLY_FOUND_BYTES)
        if lf == NULL:
            self.line_searched = size
            return STEP_NEED_DATA
        cr = <const uint8_t *>memchr(line, c'\r', size)
        if cr == NULL:
            return self.fail(FAULT_CR, start + size, 1)
        if cr + 1 != lf:
            return self.fail(FAULT_LF, <size_t>(cr + 1 - self.data), 1)
        self.token.data = line
        self.token.size = size - 1
        self.head = start + size + 1
        self.line_searched = 0
        return STEP_SCALAR

    cdef ReplyStep on_double(self) noexcept nogil:
        cdef size_t start = self.head + 1
        cdef ReplyStep step = self.on_line(REPLY_DOUBLE_MAX)
        if step == STEP_SCALAR and not is_reply_double(self.token.data, self.token.size):
            return self.fail(FAULT_DOUBLE, start, self.token.size)
        return step

    cdef ReplyStep on_big_number(self) noexcept nogil:
        cdef size_t start = self.head + 1
        cdef ReplyStep step = self.on_line(REPLY_BIG_DIGITS + 1)
        if step == STEP_SCALAR and not is_reply_big_number(self.token.data, self.token.size):
            return self.fail(FAULT_BIG_NUMBER, start, self.token.size)
        return step

    cdef ReplyStep on_null(self) noexcept nogil:
        return self.read_line_end(self.head + 1)

    cdef ReplyStep on_bool(self) noexcept nogil:
        cdef size_t at = self.head + 1
        if at == self.tail:
            return STEP_NEED_DATA
        if self.data[at] != c't' and self.data[at] != c'f':
            return self.fail(FAULT_BOOL, at, 1)
        self.token.number = self.data[at] == c't'
        return self.read_line_end(at + 1)

    cdef ReplyStep read_line_end(self, size_t at) noexcept nogil:
        if at == self.tail:
            return STEP_NEED_DATA
        if self.data[at] != c'\r':
            return self.fail(FAULT_CR, at, 1)
        if at + 1 == self.tail:
            return STEP_NEED_DATA
        if self.data[at + 1] != c'\n':
            return self.fail(FAULT_LF, at + 1, 1)
        self.head = at + 2
        return STEP_SCALAR

    cdef ReplyStep on_aggregate(self, uint8_t kind) noexcept nogil:
        cdef size_t start = self.head
        cdef uint64_t values_each = 2 if kind == c'%' or kind == c'|' else 1
        cdef ReplyFrame *frame
        cdef ReplyStep step
        if kind == c'>' and self.depth:
            return self.fail(FAULT_NESTED_PUSH, start, 1)
        step = self.read_number(True)
        if step != STEP_SCALAR:
            return step
        if self.token.number == -1 and kind == c'*':
            self.token.type = c'_'
            return STEP_SCALAR
        if (
            self.token.number < 0
            or <uint64_t>self.token.number > self.max_elements // values_each
        ):
            return self.fail(FAULT_ELEMENTS, start, self.head - 2 - start)
        if self.depth == self.max_depth:
            return self.fail(FAULT_DEPTH, start, self.head - 2 - start)
        frame = &self.frames[self.depth]
        frame.type = kind
        frame.awaited = values_each * <uint64_t>self.token.number
        frame.first = self.value_count
        self.depth += 1
        return STEP_OPEN

    # ------------------------------------------------------------------ objects out

    def gets(self):
        """The next complete reply, or NEED_DATA.

        Strings are bytes (or str, see `encoding`), nulls None, integers and big numbers int,
        doubles float, booleans bool, arrays list, maps dict, sets set, errors ReplyError, pushes
        Push. A map with a key that a dict can't hold is a list of (key, value) tuples, such a set
        is a list; numbers over 64 bits count among those. Attributes are dropped.

        Raises ProtocolError, and from then on always the same; RuntimeError inside a reply that
        skip() has begun, and while another thread uses the reader.
        """
        self.check_idle()
        if self.skipping:
            raise RuntimeError("skip() consumed a part of this reply: call it until it returns")
        self.busy = True
        try:
            value = self.next_reply()
        except BaseException:
            if self.state != REPLY_BROKEN:
                self.fail(FAULT_MEMORY, self.head, 0)
            self.forget()
            raise
        finally:
            self.busy = False
        return value

    cdef object next_reply(self):
        cdef ReplyStep step
        cdef ReplyFrame *frame
        while True:
            step = self.scan()
            if step == STEP_SCALAR:
                if self.depth == 0:
                    return self.build_top_level()
                if self.value_count == self.value_capacity:
                    self.grow_values()
                self.values[self.value_count] = self.build_scalar()
                self.value_count += 1
                self.frames[self.depth - 1].awaited -= 1
            elif step == STEP_NEED_DATA:
                self.give_back()
                return reply_need_data
            elif step == STEP_BROKEN:
                raise self.failure()
            while self.depth and self.frames[self.depth - 1].awaited == 0:
                frame = &self.frames[self.depth - 1]
                if frame.type == c'|':
                    self.drop_values(frame.first)
                    self.depth -= 1
                    break               # the value that it belongs to is still awaited
                value = self.build_aggregate(frame)
                self.depth -= 1
                if self.depth == 0:
                    self.shrink_values()
                    return value
                self.push_value(value)
                self.frames[self.depth - 1].awaited -= 1

    cdef inline object build_top_level(self):
        cdef PyObject *value = self.build_scalar()
        out = <object>value
        reply_decref(value)
        return out

    cdef inline PyObject *build_scalar(self) except NULL:
        """A new reference: the value stack takes it as it is."""
        cdef uint8_t kind = self.token.type
        if (kind == c'$' or kind == c'=') and self.text == REPLY_TEXT_BYTES:
            return reply_bytes(<const char *>self.token.data, <Py_ssize_t>self.token.size)
        if kind == c':':
            return reply_int(self.token.number)
        value = self.build_other(kind)
        reply_incref(<PyObject *>value)
        return <PyObject *>value

    cdef object build_other(self, uint8_t kind):
        if kind == c'+':
            return self.build_simple()
        if kind == c'$' or kind == c'=':
            return self.build_text()
        if kind == c'_':
            return None
        if kind == c'-' or kind == c'!':
            return ReplyError(reply_utf8(
                <const char *>self.token.data, <Py_ssize_t>self.token.size, b"backslashreplace"))
        if kind == c'#':
            return self.token.number != 0
        if kind == c',':
            return self.build_double()
        return int(PyBytes_FromStringAndSize(
            <const char *>self.token.data, <Py_ssize_t>self.token.size))

    cdef object build_simple(self):
        cdef bytes last = self.last_simple
        if self.text != REPLY_TEXT_BYTES:
            return self.build_text()
        if (
            last is None
            or <size_t>PyBytes_GET_SIZE(last) != self.token.size
            or memcmp(PyBytes_AS_STRING(last), self.token.data, self.token.size) != 0
        ):
            last = PyBytes_FromStringAndSize(
                <const char *>self.token.data, <Py_ssize_t>self.token.size)
            self.last_simple = last
        return last

    cdef object build_text(self):
        cdef const char *data = <const char *>self.token.data
        cdef Py_ssize_t size = <Py_ssize_t>self.token.size
        if self.text == REPLY_TEXT_UTF8:
            return reply_utf8(data, size, b"surrogateescape")
        if self.text == REPLY_TEXT_ASCII:
            return reply_ascii(data, size, b"surrogateescape")
        return reply_latin1(data, size, NULL)

    cdef object build_double(self):
        # The scanner checked the form, and the CR behind it ends the number for strtod().
        cdef char *end
        return reply_double(<const char *>self.token.data, &end, NULL)

    cdef object build_aggregate(self, ReplyFrame *frame):
        """The aggregate of the values from frame.first on, which leave the stack."""
        cdef size_t first = frame.first
        cdef size_t i
        cdef bint plain = True
        cdef size_t step = 2 if frame.type == c'%' else 1
        cdef object out
        if frame.type == c'*' or frame.type == c'>':
            out = self.take_list(first)
            return out if frame.type == c'*' else Push(out)
        for i in range(first, self.value_count, step):
            if not is_plain_key(<object>self.values[i]):
                plain = False
                break
        if frame.type == c'~':
            out = self.take_list(first)
            return set(out) if plain else out
        if plain:
            out = {}
            for i in range(first, self.value_count, 2):
                (<dict>out)[<object>self.values[i]] = <object>self.values[i + 1]
        else:
            out = []
            for i in range(first, self.value_count, 2):
                (<list>out).append((<object>self.values[i], <object>self.values[i + 1]))
        self.drop_values(first)
        return out

    cdef list take_list(self, size_t first):
        cdef size_t count = self.value_count - first
        cdef size_t i
        cdef object out = reply_list_new(<Py_ssize_t>count)
        for i in range(count):
            reply_list_set(out, <Py_ssize_t>i, self.values[first + i])
        self.value_count = first
        return <list>out

    cdef int push_value(self, object value) except -1:
        if self.value_count == self.value_capacity:
            self.grow_values()
        reply_incref(<PyObject *>value)
        self.values[self.value_count] = <PyObject *>value
        self.value_count += 1
        return 0

    cdef int grow_values(self) except -1:
        # It holds values that arrived, never a number that was announced.
        cdef size_t capacity = max(2 * self.value_capacity, <size_t>64)
        cdef PyObject **values = <PyObject **>PyMem_RawRealloc(
            self.values, capacity * sizeof(PyObject *))
        if values == NULL:
            raise MemoryError()
        self.values = values
        self.value_capacity = capacity
        return 0

    cdef void shrink_values(self) noexcept:
        if self.value_capacity > REPLY_KEEP_VALUES and self.value_count == 0:
            PyMem_RawFree(self.values)
            self.values = NULL
            self.value_capacity = 0

    cdef void drop_values(self, size_t first) noexcept:
        while self.value_count > first:
            self.value_count -= 1
            reply_decref(self.values[self.value_count])
        self.shrink_values()

    cdef object failure(self):
        """The ProtocolError of what broke the reader."""
        found = PyBytes_FromStringAndSize(
            <const char *>self.fault_found, <Py_ssize_t>self.fault_found_size)
        return ProtocolError(
            f"expected {self.expected()}, found {found!r} at byte {self.fault_offset}",
            self.fault_offset,
        )

    cdef str expected(self):
        cdef ReplyFault fault = self.fault
        if fault == FAULT_MEMORY:
            return "memory enough for the reply"
        if fault == FAULT_TYPE:
            return "the type byte of a reply"
        if fault == FAULT_CHUNK:
            return "the type byte of a reply (streamed ones are not supported)"
        if fault == FAULT_STREAMED:
            return "a length (streamed replies are not supported)"
        if fault == FAULT_DIGIT:
            return "a digit"
        if fault == FAULT_DIGIT_OR_CR:
            return "a digit or CR"
        if fault == FAULT_CR:
            return "CR"
        if fault == FAULT_LF:
            return "LF"
        if fault == FAULT_NUMBER_RANGE:
            return f"a signed 64-bit number of at most {REPLY_NUMBER_DIGITS} digits"
        if fault == FAULT_BULK_LENGTH:
            return f"a string of 0 to {self.max_bulk} bytes"
        if fault == FAULT_ELEMENTS:
            return f"an aggregate of 0 to {self.max_elements} values"
        if fault == FAULT_DEPTH:
            return f"at most {self.max_depth} aggregates inside one another"
        if fault == FAULT_LINE_LENGTH:
            return "a shorter line"
        if fault == FAULT_BOOL:
            return "t or f"
        if fault == FAULT_DOUBLE:
            return "a double"
        if fault == FAULT_BIG_NUMBER:
            return f"a big number of 1 to {REPLY_BIG_DIGITS} digits"
        if fault == FAULT_VERBATIM:
            return "three letters and a colon before a verbatim string"
        return "a push only outside of other replies"

    # ------------------------------------------------------------------ replies thrown away

    def skip(self, n):
        """Consume up to n complete replies without building them; returns how many were.

        Fewer than n means NEED_DATA: call again after feed(). Error replies are counted in
        `skipped_errors` (not those inside an aggregate). A reply that gets() has half read is the
        first to be skipped. Bytes that break the protocol end the count, and raise ProtocolError
        when they come first. Raises ValueError for n < 0, and RuntimeError while another thread
        uses the reader.
        """
        cdef Py_ssize_t wanted = n
        cdef uint64_t done
        self.check_idle()
        if wanted < 0:
            raise ValueError(f"expected a count of replies, found {wanted}")
        if wanted == 0:
            return 0
        self.drop_values(0)
        if self.tail - self.head < REPLY_GIL_BYTES:
            done = self.skip_replies(<uint64_t>wanted)
        else:
            self.busy = True
            with nogil:
                done = self.skip_replies(<uint64_t>wanted)
            self.busy = False
        if self.state == REPLY_BROKEN:
            self.forget()
            if done == 0:
                raise self.failure()
        else:
            self.skipping = self.depth > 0 or self.state == REPLY_IN_BULK
            self.give_back()
        return done

    cdef uint64_t skip_replies(self, uint64_t wanted) noexcept nogil:
        cdef uint64_t done = 0
        cdef ReplyStep step
        while done < wanted:
            step = self.scan()
            if step == STEP_SCALAR:
                if self.depth:
                    self.frames[self.depth - 1].awaited -= 1
                else:
                    done += 1
                    self.skipped_errors += self.token.type == c'-' or self.token.type == c'!'
            elif step != STEP_OPEN:
                break
            while self.depth and self.frames[self.depth - 1].awaited == 0:
                self.depth -= 1
                if self.frames[self.depth].type == c'|':
                    break               # the value that it belongs to is still awaited
                if self.depth:
                    self.frames[self.depth - 1].awaited -= 1
                else:
                    done += 1
        return done
