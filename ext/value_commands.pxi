# Values as the commands that make them, for those that no RESTORE carries: they are longer than one
# argument of the target may be, as they are or in the form that it knows.
#
#   strings   SET name value
#   lists     RPUSH name item …
#   sets      SADD name member …
#   zsets     ZADD name score member …         scores with 17 digits, which are exact
#   hashes    HSET name field value …          and then, for those that have an expire time,
#             HPEXPIREAT name t FIELDS n field …
#   streams   XADD name id field value …      and more (stream_commands.pxi)
#
# All else has no commands.
#
# The decoder goes through the value once, and hands on what it has made portion by portion: so its
# memory is that of the longest element, and of a portion. No value is made into commands whose CRC64
# is not its own.

cdef extern from *:
    """
    static int engine_score_text(double score, char *out, size_t n) {
        /* snprintf by the thread's locale may have a comma for its point. */
        int size, i;
        if (score > 1.7976931348623157e308) { memcpy(out, "inf", 4); return 3; }
        if (score < -1.7976931348623157e308) { memcpy(out, "-inf", 5); return 4; }
        size = snprintf(out, n, "%.17g", score);
        for (i = 0; i < size; i++)
            if (out[i] == ',') out[i] = '.';
        return size;
    }
    """
    int engine_score_text(double score, char *out, size_t n) nogil

cdef enum:
    # A command is ended behind so many bytes or elements: the target's other clients wait meanwhile.
    MADE_BYTES = 64 << 10
    MADE_ELEMENTS = 1024
    # Commands are handed on together, of about so many bytes.
    PORTION_BYTES = 256 << 10
    SCORE_TEXT_MOST = 32
    # Bytes of one string or packed collection of a value, once it is inflated.
    INFLATED_MOST = 1 << 30

cdef struct Commanding:
    bint only_look             # nothing is made
    bint ttls                  # HPEXPIREATs, of fields that have expire times
    uint64_t longest           # bytes of an element, and of a field's name or value
    const char *name           # of the command, with its header
    size_t name_size
    int name_words             # XGROUP CREATE has two
    bint key_within            # the key is among the arguments, and not before them
    const uint8_t *key
    size_t key_size
    Bytes arguments            # of the command that is being made, behind the key
    uint64_t argument_count
    uint64_t elements
    int64_t at                 # the expire time of its fields
    bint begun                 # the first element was handed on
    Bytes portion
    uint64_t commands
    StreamCommands stream
    void *owner


cdef bint command_argument(ElementSink *sink, const uint8_t *p, size_t n) noexcept nogil:
    cdef Commanding *to = sink.commanding
    if n > to.longest:
        to.longest = n
    if to.only_look:
        return True
    if not bytes_reserve(&to.arguments, bulk_size(n), SIZE_MAX):
        sink.no_memory = True
        return False
    to.arguments.size = put_bulk(
        to.arguments.data + to.arguments.size, p, n) - to.arguments.data
    to.argument_count += 1
    return True


cdef bint command_element(ElementSink *sink) noexcept nogil:
    """An element is whole."""
    cdef Commanding *to = sink.commanding
    if to.only_look:
        return True
    to.elements += 1
    if not to.begun:
        # The first element goes by itself: what it makes is given an end at once.
        to.begun = True
        return command_end(sink) and hand_portion(sink)
    if to.arguments.size < MADE_BYTES and to.elements < MADE_ELEMENTS:
        return True
    return command_end(sink)


cdef bint command_end(ElementSink *sink) noexcept nogil:
    """The command that is being made is ended, if there is one."""
    cdef Commanding *to = sink.commanding
    cdef Bytes *portion = &to.portion
    cdef uint8_t *out
    if to.elements == 0:
        return True
    if not bytes_reserve(
            portion, to.arguments.size + bulk_size(to.key_size) + to.name_size + 128, SIZE_MAX):
        sink.no_memory = True
        return False
    out = put_array_header(
        portion.data + portion.size,
        to.name_words + to.argument_count + (3 if to.ttls else 0) + (not to.key_within))
    out = put_literal(out, to.name, to.name_size)
    if not to.key_within:
        out = put_bulk(out, to.key, to.key_size)
    if to.ttls:
        out = put_number_bulk(out, to.at)
        out = put_number_bulk(put_literal(out, "$6\r\nFIELDS\r\n", 12), to.elements)
    memcpy(out, to.arguments.data, to.arguments.size)
    portion.size = out + to.arguments.size - portion.data
    to.commands += 1
    to.arguments.size = 0
    to.argument_count = to.elements = 0
    if to.arguments.capacity > PORTION_BYTES:
        bytes_free(&to.arguments)
    return portion.size < PORTION_BYTES or hand_portion(sink)


cdef inline bint command_item(ElementSink *sink, Piece *piece) noexcept nogil:
    """As `sink_item`."""
    return command_argument(sink, piece.p, piece.n) and command_element(sink)


cdef inline bint command_scored(ElementSink *sink, Piece *member, double score) noexcept nogil:
    """As `sink_scored`."""
    cdef char text[SCORE_TEXT_MOST]
    cdef int n = engine_score_text(score, text, SCORE_TEXT_MOST)
    return (command_argument(sink, <const uint8_t *>text, n)
            and command_argument(sink, member.p, member.n) and command_element(sink))


cdef inline bint command_field(
    ElementSink *sink, Piece *name, Piece *value, int64_t ttl
) noexcept nogil:
    """As `sink_field`."""
    cdef Commanding *to = sink.commanding
    if not to.ttls:
        return (command_argument(sink, name.p, name.n)
                and command_argument(sink, value.p, value.n) and command_element(sink))
    if ttl < 0:
        return True
    if ttl != to.at and not command_end(sink):
        return False
    to.at = ttl
    return command_argument(sink, name.p, name.n) and command_element(sink)


@cython.final
cdef class ValueCommands:
    """The commands that make one value, a DUMP payload: bytes, or a file's memory.

    Raises ProtocolError for what is no sound value, or has no such commands; `MemoryError`.

    `consumers`, `counters`: whether who runs them knows XGROUP CREATECONSUMER (6.2), and how many
    entries were added and read (7.0).

    Attributes:
        kind: "string", "list", "set", "zset", "hash" or "stream".
        count: how many elements it has.
        longest: bytes of its longest element, or of a field's name or value.
        timed: how many of its fields have expire times.
        pending: how many entries of a stream are pending, in all groups together.
        released: how many of these no consumer holds, for which there are no commands.
        lost: what a stream loses, as bits of `model.carried_with_loss`, once the commands were given.
    """
    cdef ValueReader reader
    cdef ElementSink sink
    cdef Commanding commanding
    cdef Py_buffer view
    cdef bint held
    cdef readonly str kind
    cdef readonly uint64_t count
    cdef readonly uint64_t longest
    cdef readonly uint64_t timed
    cdef readonly uint64_t pending
    cdef readonly uint64_t released
    cdef object take
    cdef object error

    def __cinit__(self, value not None, *, bint consumers=True, bint counters=True):
        cdef const uint8_t *p
        cdef size_t body
        cdef bint sound = False
        PyObject_GetBuffer(value, &self.view, PyBUF_SIMPLE)
        self.held = True
        self.reader.sink = &self.sink
        self.reader.most = INFLATED_MOST
        self.sink.tape_most = 0
        self.sink.commanding = &self.commanding
        self.commanding.owner = <void *>self
        self.commanding.only_look = True
        self.commanding.name_words = 1
        self.commanding.stream.consumers = consumers
        self.commanding.stream.counters = counters
        if <size_t>self.view.len <= FOOTER_BYTES:
            raise ProtocolError("a DUMP payload has more than ten bytes", 0)
        p = <const uint8_t *>self.view.buf
        body = self.view.len - FOOTER_BYTES
        self.kind = value_kind(p[0], (
            "valkey" if payload_flavour(p + body) == FLAVOUR_VALKEY else "redis"))
        if self.kind not in ("string", "list", "set", "zset", "hash", "stream"):
            raise ProtocolError(f"no commands make a value of type {p[0]}", 0)
        with nogil:
            sound = crc_fits(p, body)
        if not sound:
            raise ProtocolError("the value's checksum is not its own", body)
        self.decode()
        self.count = self.sink.count
        self.longest = self.commanding.longest
        self.timed = self.sink.ttls
        self.pending = self.commanding.stream.pending
        self.released = self.commanding.stream.released

    @property
    def lost(self):
        return self.commanding.stream.lost

    def __dealloc__(self):
        bytes_free(&self.reader.inflated[0])
        bytes_free(&self.reader.inflated[1])
        bytes_free(&self.reader.blob)
        bytes_free(&self.commanding.arguments)
        bytes_free(&self.commanding.portion)
        stream_commands_free(&self.commanding.stream)
        if self.held:
            PyBuffer_Release(&self.view)

    cdef bint hand_on(self) noexcept:
        cdef Commanding *to = &self.commanding
        if to.commands == 0:
            return True
        try:
            self.take(
                PyBytes_FromStringAndSize(<char *>to.portion.data, to.portion.size), to.commands)
        except BaseException as exc:
            self.error = exc
            return False
        to.commands = 0
        to.portion.size = 0
        if to.portion.capacity > 4 * PORTION_BYTES:
            bytes_free(&to.portion)
        return True

    cdef int decode(self) except -1:
        cdef DecodeEnd end
        cdef const uint8_t *p = <const uint8_t *>self.view.buf
        cdef size_t body = self.view.len - FOOTER_BYTES
        self.sink.mode = VALUE_COMMANDS
        with nogil:
            end = decode_value(&self.reader, payload_flavour(p + body), p, body)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if end == DECODE_NO_MEMORY:
            raise MemoryError()
        if end == DECODE_UNKNOWN:
            raise ProtocolError(f"type of value {p[0]} is not known", 0)
        if end != DECODED:
            expected = (<bytes>self.reader.expected).decode() if self.reader.expected else "a value"
            at = self.reader.at - self.reader.begin
            raise ProtocolError(f"expected {expected}; the value was read up to its byte {at}", at)
        return 0

    def give(self, bytes name not None, take not None, *, bint ttls=False):
        """Call `take(commands, how many)` for portions of the encoded commands that make the value
        under this name; `ttls`: of those behind them that give fields their expire times.

        What `take` raises ends it, and is raised. ValueError for expire times of other values than
        hashes, and for a stream with entries that were given back.
        """
        cdef Commanding *to = &self.commanding
        if ttls and self.kind != "hash":
            raise ValueError(f"a {self.kind} has no fields")
        if self.released:
            raise ValueError("no commands make entries that were given back")
        to.only_look = False
        to.ttls = ttls
        if ttls:
            to.name = b"$10\r\nHPEXPIREAT\r\n"
        elif self.sink.kind == KIND_STRING:
            to.name = b"$3\r\nSET\r\n"
        elif self.sink.kind == KIND_LIST:
            to.name = b"$5\r\nRPUSH\r\n"
        elif self.sink.kind == KIND_SET:
            to.name = b"$4\r\nSADD\r\n"
        elif self.sink.kind == KIND_ZSET:
            to.name = b"$4\r\nZADD\r\n"
        elif self.sink.kind == KIND_HASH:
            to.name = b"$4\r\nHSET\r\n"
        else:
            to.name = b"$4\r\nXADD\r\n"
        to.name_size = strlen(to.name)
        to.name_words = 1
        to.key_within = False
        to.key = <const uint8_t *>PyBytes_AS_STRING(name)
        to.key_size = PyBytes_GET_SIZE(name)
        to.arguments.size = to.portion.size = 0
        to.argument_count = to.elements = to.commands = 0
        to.at = -1
        to.begun = ttls
        self.take = take
        try:
            self.decode()
            if not command_end(&self.sink):
                if self.error is None:
                    raise MemoryError()
            elif to.commands:
                self.hand_on()
            if self.error is not None:
                error, self.error = self.error, None
                raise error
        finally:
            self.take = None
            to.only_look = True
            bytes_free(&to.arguments)
            bytes_free(&to.portion)


cdef bint hand_portion(ElementSink *sink) noexcept with gil:
    """False: who takes them has raised."""
    cdef Commanding *to = sink.commanding
    return (<ValueCommands>to.owner).hand_on()
