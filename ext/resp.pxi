# RESP2, read incrementally.
#
# Theory of operation
# -------------------
# Bytes are appended at the tail of one buffer; the scanner works at its head and never goes back:
# a reply that comes in a thousand pieces is read once. The scanner knows two states,
#
#     AT_VALUE  the next byte is the type byte of a value
#     IN_BULK   the header of a bulk was read, its body is awaited
#
# and yields one token a call, without Python objects: a scalar, or the head of an array. The
# open arrays stand on a stack of frames, each with the number of values that it still awaits; a
# frame that awaits none is closed, which may complete its parent in turn. Finished values wait on a
# second stack, and a frame that closes takes its own from the top of it. So depth costs a frame,
# not a C call, and a declared count costs nothing until its values arrive.
#
# The first byte that breaks the protocol breaks the reader: it is unknown where the next reply
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
    REPLY_FOUND_BYTES = 24                  # how much of the input an error quotes


cdef enum ReplyState:
    REPLY_AT_VALUE
    REPLY_IN_BULK
    REPLY_BROKEN


cdef enum ReplyStep:
    STEP_NEED_DATA
    STEP_SCALAR
    STEP_OPEN
    STEP_BROKEN


cdef enum ReplyFault:
    FAULT_NONE
    FAULT_MEMORY
    FAULT_TYPE
    FAULT_DIGIT
    FAULT_DIGIT_OR_CR
    FAULT_CR
    FAULT_LF
    FAULT_NUMBER_RANGE
    FAULT_BULK_LENGTH
    FAULT_ELEMENTS
    FAULT_DEPTH
    FAULT_LINE_LENGTH


cdef struct ReplyToken:
    uint8_t type            # the type byte on the wire; '_' for a null
    const uint8_t *data     # strings: in the buffer, until it changes
    size_t size
    int64_t number          # integers


cdef struct ReplyFrame:
    uint64_t awaited        # values still to come
    size_t first            # where its values begin on the value stack


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


@cython.final
cdef class RespReader:
    """Reads RESP2 replies out of bytes that come in pieces.

    max_bulk: the longest bulk string, in bytes. max_elements: the most values in one array.
    max_depth: the most arrays inside one another, 1 to 1024. A reply beyond them raises
    ProtocolError.

    Raises ValueError for a bound outside of these.
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
    cdef size_t bulk_size           # IN_BULK: of the bulk that is awaited
    cdef size_t line_searched       # bytes after the type byte that have no LF
    cdef ReplyFrame *frames
    cdef size_t depth

    # The builder.
    cdef PyObject **values
    cdef size_t value_count
    cdef size_t value_capacity
    cdef bytes last_simple          # +OK a million times is one object
    cdef bint busy

    cdef ReplyFault fault
    cdef uint64_t fault_offset
    cdef uint8_t fault_found[REPLY_FOUND_BYTES]
    cdef size_t fault_found_size

    cdef uint64_t max_bulk
    cdef uint64_t max_elements
    cdef size_t max_depth

    def __cinit__(self, *, max_bulk=512 * 1024 * 1024, max_elements=2**24, max_depth=64):
        if not 0 <= max_bulk <= 2**40:
            raise ValueError(f"max_bulk must be 0 to 2**40 bytes, found {max_bulk}")
        if not 0 <= max_elements <= 2**40:
            raise ValueError(f"max_elements must be 0 to 2**40, found {max_elements}")
        if not 1 <= max_depth <= REPLY_DEPTH_LIMIT:
            raise ValueError(f"max_depth must be 1 to {REPLY_DEPTH_LIMIT}, found {max_depth}")
        self.max_bulk = max_bulk
        self.max_elements = max_elements
        self.max_depth = max_depth
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
        if kind == c'$':
            return self.on_bulk_header()
        if kind == c'+' or kind == c'-':
            return self.on_line()
        if kind == c':':
            return self.on_integer()
        if kind == c'*':
            return self.on_array()
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

    cdef inline ReplyStep on_bulk_header(self) noexcept nogil:
        cdef size_t start = self.head
        cdef ReplyStep step = self.read_number(True)
        if step != STEP_SCALAR:
            return step
        if self.token.number == -1:
            self.token.type = c'_'
            return STEP_SCALAR
        if self.token.number < 0 or <uint64_t>self.token.number > self.max_bulk:
            return self.fail(FAULT_BULK_LENGTH, start, self.head - 2 - start)
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
        self.token.type = c'$'
        self.token.data = body
        self.token.size = size
        self.state = REPLY_AT_VALUE
        return STEP_SCALAR

    cdef ReplyStep on_line(self) noexcept nogil:
        """What stands between the type byte and CRLF; no CR or LF may stand inside."""
        cdef size_t start = self.head + 1
        cdef size_t searched = start + self.line_searched
        cdef const uint8_t *line = self.data + start
        cdef const uint8_t *cr
        cdef const uint8_t *lf = <const uint8_t *>memchr(
            self.data + searched, c'\n', self.tail - searched)
        cdef size_t size = <size_t>(lf - line) if lf != NULL else self.tail - start
        if size > REPLY_LINE_MAX + 1:
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

    cdef ReplyStep on_array(self) noexcept nogil:
        cdef size_t start = self.head
        cdef ReplyFrame *frame
        cdef ReplyStep step = self.read_number(True)
        if step != STEP_SCALAR:
            return step
        if self.token.number == -1:
            self.token.type = c'_'
            return STEP_SCALAR
        if self.token.number < 0 or <uint64_t>self.token.number > self.max_elements:
            return self.fail(FAULT_ELEMENTS, start, self.head - 2 - start)
        if self.depth == self.max_depth:
            return self.fail(FAULT_DEPTH, start, self.head - 2 - start)
        frame = &self.frames[self.depth]
        frame.awaited = <uint64_t>self.token.number
        frame.first = self.value_count
        self.depth += 1
        return STEP_OPEN

    # ------------------------------------------------------------------ objects out

    def gets(self):
        """The next complete reply, or NEED_DATA.

        Strings are bytes, nulls None, integers int, arrays list, errors ReplyError.

        Raises ProtocolError, and from then on always the same; RuntimeError while another thread
        uses the reader.
        """
        self.check_idle()
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
                value = self.take_list(frame.first)
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
        if kind == c'$':
            return reply_bytes(<const char *>self.token.data, <Py_ssize_t>self.token.size)
        if kind == c':':
            return reply_int(self.token.number)
        value = self.build_other(kind)
        reply_incref(<PyObject *>value)
        return <PyObject *>value

    cdef object build_other(self, uint8_t kind):
        if kind == c'+':
            return self.build_simple()
        if kind == c'_':
            return None
        return ReplyError(reply_utf8(
            <const char *>self.token.data, <Py_ssize_t>self.token.size, b"backslashreplace"))

    cdef object build_simple(self):
        cdef bytes last = self.last_simple
        if (
            last is None
            or <size_t>PyBytes_GET_SIZE(last) != self.token.size
            or memcmp(PyBytes_AS_STRING(last), self.token.data, self.token.size) != 0
        ):
            last = PyBytes_FromStringAndSize(
                <const char *>self.token.data, <Py_ssize_t>self.token.size)
            self.last_simple = last
        return last

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
            return f"an array of 0 to {self.max_elements} values"
        if fault == FAULT_DEPTH:
            return f"at most {self.max_depth} arrays inside one another"
        return "a shorter line"
