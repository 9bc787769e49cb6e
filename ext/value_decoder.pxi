# Values as DUMP gives them, decoded: every type of every RDB version of which a description is known,
# from bytes in memory into a sink (value_sink.pxi), without the GIL and without an object an element.
#
# What is read is checked as a server checks it that was told to sanitize what it restores, but for
# members that are there twice. Nothing is allocated but for strings that came compressed, no more
# than LZF can make of their bytes, and for the tape, which is bounded.
#
# Types 29 and 31 (hashes of a template, Redis 8.10) are known from descriptions alone, and so are 28
# (arrays, Redis 8.8), 27, 33 and Valkey's path hashes (23, Valkey 9.2). Sets whose members have TTLs
# (34 and 35, Redis 8.12) are described nowhere, and named as not known.

cdef extern from *:
    """
    #include <locale.h>
    #include <stdlib.h>

    /* The library's user may have chosen a locale whose numbers have commas. */
    static locale_t engine_c_locale;
    static double engine_strtod(const char *text, char **end) {
        if (!engine_c_locale) engine_c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
        return engine_c_locale ? strtod_l(text, end, engine_c_locale) : strtod(text, end);
    }
    """
    double engine_strtod(const char *text, char **end) nogil

cdef extern from "math.h" nogil:
    bint isnan(double x)

cdef enum:
    SCORE_MOST = 255
    SCORE_DIGITS = 15

cdef enum DecodeEnd:
    DECODED
    DECODE_WRONG
    DECODE_UNKNOWN
    DECODE_TOO_LONG
    DECODE_NO_MEMORY

# By type: what it is, and how it is kept. From 22 on the two flavours differ.
_ENCODINGS = {
    0: "string", 1: "linked list", 2: "hash table", 3: "skiplist", 4: "hash table", 5: "skiplist",
    7: "module", 9: "zipmap", 10: "ziplist", 11: "intset", 12: "ziplist", 13: "ziplist",
    14: "quicklist of ziplists", 15: "stream", 16: "listpack", 17: "listpack", 18: "quicklist",
    19: "stream 2", 20: "listpack", 21: "stream 3",
}
_ENCODINGS_REDIS = {
    22: "hash table", 23: "listpack", 24: "hash table", 25: "listpack", 26: "stream 4",
    27: "stream 5", 28: "array", 29: "listpack of a template", 31: "array of a template",
    33: "gcra",
}
_ENCODINGS_VALKEY = {22: "hash table", 23: "radix tree"}


cdef bint next_string(ValueReader *r, Piece *out, int place) noexcept nogil:
    """A string in any encoding; a compressed one is inflated into `inflated[place]`."""
    return string_into(r, out, &r.inflated[place])


cdef bint next_blob(ValueReader *r, Piece *out) noexcept nogil:
    """A string that holds a packed collection."""
    if not string_into(r, out, &r.blob):
        return False
    if out.p == NULL:
        return wrong(r, b"a packed collection")
    return True


cdef bint string_into(ValueReader *r, Piece *out, Bytes *memory) noexcept nogil:
    cdef StringHead head
    cdef const uint8_t *p
    cdef size_t left = r.end - r.at
    cdef int size = string_head(r.at, left, &head)
    if size <= 0 or head.body > left - size:
        return wrong(r, b"a whole string")
    p = r.at + size
    if head.encoding == STRING_RAW:
        piece_bytes(out, p, head.body)
    elif head.encoding == STRING_INTEGER:
        piece_number(out, little_endian(p, <int>head.body))
    else:
        if head.plain > head.body * LZF_RATIO_MOST or head.plain > r.most:
            return wrong(r, b"a compressed string of a length that it can have")
        memory.size = 0
        if not bytes_reserve(memory, head.plain + 1, SIZE_MAX):
            r.sink.no_memory = True
            return False
        if not lzf_inflate(p, head.body, memory.data, head.plain):
            return wrong(r, b"a string that is compressed by LZF")
        piece_bytes(out, memory.data, head.plain)
    r.at = p + head.body
    return True


cdef double TEN_TO[SCORE_DIGITS]
for _power in range(SCORE_DIGITS):
    TEN_TO[_power] = 10.0 ** _power


cdef inline bint short_score(const uint8_t *p, size_t n, double *out) noexcept nogil:
    """A score of few digits and no exponent, as most are: they, and the power of ten that they are
    divided by, are doubles without a loss, so that the one division rounds as strtod does. False
    for all else."""
    cdef size_t i = 0, point = n, digits = 0
    cdef uint64_t number = 0
    cdef bint negative = p[0] == c"-"
    i = negative
    if n - i > SCORE_DIGITS:
        return False
    while i < n:
        if c"0" <= p[i] <= c"9":
            number = 10 * number + p[i] - c"0"
            digits += 1
        elif p[i] == c"." and point == n:
            point = i + 1
        else:
            return False
        i += 1
    if digits == 0:
        return False
    out[0] = <double>number / TEN_TO[n - point]
    if negative:
        out[0] = -out[0]
    return True


cdef bint score_of(ValueReader *r, Piece *piece, double *out) noexcept nogil:
    """A score that is kept as text, or as a number."""
    cdef char text[SCORE_MOST + 1]
    cdef char *end = NULL
    if piece.numeric:
        out[0] = <double>piece.number
        return True
    if piece.n == 0 or piece.n > SCORE_MOST or piece.p[0] <= c" ":
        return wrong(r, b"a score")
    if short_score(piece.p, piece.n, out):
        return True
    memcpy(text, piece.p, piece.n)
    text[piece.n] = 0
    out[0] = engine_strtod(text, &end)
    if end != text + piece.n or isnan(out[0]):
        return wrong(r, b"a score")
    return True


cdef bint decode_strings(ValueReader *r) noexcept nogil:
    """Strings, each for itself: a list's items, a set's members."""
    cdef uint64_t count = 0
    cdef Piece piece
    if not next_length(r, &count):
        return False
    r.sink.loose += count
    while count:
        if not (next_string(r, &piece, 0) and sink_item(r.sink, &piece)):
            return False
        count -= 1
    return True


cdef bint decode_scored(ValueReader *r, bint binary) noexcept nogil:
    cdef uint64_t count = 0, bits
    cdef const uint8_t *p = NULL
    cdef Piece member, text
    cdef double score = 0
    if not next_length(r, &count):
        return False
    r.sink.loose += count
    while count:
        if not next_string(r, &member, 0):
            return False
        if binary:
            if not next_raw(r, 8, &p):
                return False
            bits = load_le64(p)
            memcpy(&score, &bits, 8)
            if isnan(score):
                return wrong(r, b"a score that is a number")
        else:
            if not next_raw(r, 1, &p):
                return False
            if p[0] == 254 or p[0] == 255:
                # (An infinity.)
                bits = <uint64_t>0x7ff0000000000000 if p[0] == 254 else <uint64_t>0xfff0000000000000
                memcpy(&score, &bits, 8)
            else:
                text.numeric = False
                text.n = p[0]
                if p[0] == 253 or not next_raw(r, text.n, &text.p):
                    return wrong(r, b"a score that is a number")
                if not score_of(r, &text, &score):
                    return False
        if not sink_scored(r.sink, &member, score):
            return False
        count -= 1
    return True


cdef bint decode_fields(ValueReader *r, int flavour, int type) noexcept nogil:
    """Fields, each for itself: plain ones (4), with expire times of Redis' kind (22: as they
    are; 24: how far from the earliest, and one more) and of Valkey's (22: behind the value)."""
    cdef uint64_t count = 0, far = 0
    cdef int64_t earliest = 0, ttl
    cdef const uint8_t *p = NULL
    cdef Piece name, value
    cdef bint before = flavour == FLAVOUR_REDIS and (type == 22 or type == 24)
    if before and type == 24:
        if not next_raw(r, 8, &p):
            return False
        earliest = <int64_t>load_le64(p)
    if not next_length(r, &count):
        return False
    r.sink.loose += count
    while count:
        ttl = -1
        if before:
            far = 0
            if not next_length(r, &far):
                return False
            if far:
                if type == 24:
                    far += <uint64_t>earliest - 1
                if far > <uint64_t>INT64_MAX:
                    return wrong(r, b"an expire time of a field")
                ttl = <int64_t>far
        if not (next_string(r, &name, 0) and next_string(r, &value, 1)):
            return False
        if type == 22 and not before:
            if not next_raw(r, 8, &p):
                return False
            ttl = <int64_t>load_le64(p)
            if ttl < -1:
                return wrong(r, b"an expire time of a field")
        if not sink_field(r.sink, &name, &value, ttl):
            return False
        count -= 1
    return True


cdef bint each_of_pack(ValueReader *r, const Piece *blob, bint ziplist, bint ttls) noexcept nogil:
    """The elements of a listpack or ziplist, by what the value is; `ttls`: behind each field's
    value stands its expire time, 0: none."""
    cdef Pack pack
    cdef Piece first, second
    cdef double score = 0
    cdef int64_t ttl = 0
    if not pack_open(r, blob, ziplist, &pack):
        return False
    while pack_more(&pack):
        if not pack_next(r, &pack, &first):
            return False
        if r.sink.kind == KIND_LIST or r.sink.kind == KIND_SET:
            if not sink_item(r.sink, &first):
                return False
            continue
        if not pack_next(r, &pack, &second):
            return False
        if r.sink.kind == KIND_ZSET:
            if not (score_of(r, &second, &score) and sink_scored(r.sink, &first, score)):
                return False
            continue
        ttl = 0
        if ttls and not pack_integer(r, &pack, &ttl):
            return False
        if ttl < 0:
            return wrong(r, b"an expire time of a field")
        if not sink_field(r.sink, &first, &second, ttl if ttl else -1):
            return False
    return pack_close(r, &pack)


cdef bint decode_quicklist(ValueReader *r, int type) noexcept nogil:
    """Ziplists (14); or (18) listpacks and, where the one before says 1, long items."""
    cdef uint64_t nodes = 0, container = 2
    cdef Piece piece
    if not next_length(r, &nodes):
        return False
    while nodes:
        if type == 18 and not next_length(r, &container):
            return False
        if container == 1:
            r.sink.loose += 1
            if not (next_string(r, &piece, 0) and sink_item(r.sink, &piece)):
                return False
        elif container == 2:
            if not (next_blob(r, &piece) and each_of_pack(r, &piece, type == 14, False)):
                return False
        else:
            return wrong(r, b"a node of a quicklist")
        nodes -= 1
    return True


cdef bint decode_module(ValueReader *r) noexcept nogil:
    """What a module wrote, item by item: no module is known, but all of them mark their items."""
    cdef ElementSink *sink = r.sink
    cdef uint64_t id = 0, kind = 0, number = 0
    cdef const uint8_t *p = NULL
    cdef Piece piece
    cdef bint tape = sink.mode == VALUE_TAPE, digest = sink.mode == VALUE_DIGEST
    if not next_length(r, &id):
        return False
    if digest:
        mix_word(&sink.run, id)
    elif tape and not tape_number(sink, id):
        return False
    while True:
        if not next_length(r, &kind):
            return False
        if kind == 0:
            return True
        sink.count += 1
        if digest:
            mix_word(&sink.run, kind)
        if kind == 5:
            if not next_string(r, &piece, 0):
                return False
            piece_text(&piece)
            sink_counted(sink, piece.n)
            if digest:
                sip_bytes_of(&sink.run, piece.p, piece.n)
            elif tape and not tape_bytes(sink, piece.p, piece.n):
                return False
            continue
        if kind == 1 or kind == 2:
            if not next_length(r, &number):
                return False
        elif kind == 3 or kind == 4:
            if not next_raw(r, 4 if kind == 3 else 8, &p):
                return False
            number = load_le32(p) if kind == 3 else load_le64(p)
        else:
            return wrong(r, b"an item of a module")
        sink_counted(sink, 8)
        if digest:
            mix_word(&sink.run, number)
        elif tape and not (
                tape_op(sink, c"d", number, 0) if kind == 4
                else tape_signed(sink, <int64_t>number) if kind == 1
                else tape_number(sink, number)):
            return False


cdef bint decode_array(ValueReader *r) noexcept nogil:
    """An array of Redis 8.8: elements with their indexes; strings, integers and floats."""
    cdef ElementSink *sink = r.sink
    cdef uint64_t count = 0, cursor = 0, has_cursor = 0, index = 0, tag = 0, bits = 0, last = 0
    cdef bint any = False
    cdef const uint8_t *p = NULL
    cdef Piece piece
    cdef Sip s
    cdef bint tape = sink.mode == VALUE_TAPE, digest = sink.mode == VALUE_DIGEST
    if not (next_length(r, &count) and next_length(r, &has_cursor)):
        return False
    if has_cursor > 1:
        return wrong(r, b"whether an array has a cursor")
    if has_cursor and not next_length(r, &cursor):
        return False
    if digest:
        sink_words(sink, &sink.details, AS_ARRAY_CURSOR, has_cursor, cursor, 0, 0)
    sink.loose += count
    while count:
        if not (next_length(r, &index) and next_length(r, &tag)):
            return False
        if any and index <= last:
            return wrong(r, b"the elements of an array in their order")
        any = True
        last = index
        s = sink.start
        mix_word(&s, AS_ARRAY_ITEM)
        mix_word(&s, index)
        if tape and not (tape_open(sink) and tape_number(sink, index)):
            return False
        if tag == 0 or tag == 3:
            if not next_string(r, &piece, 0):
                return False
            piece_text(&piece)
            sink_counted(sink, piece.n)
            mix_word(&s, 0)
            sip_bytes_of(&s, piece.p, piece.n)
            if tape and not tape_bytes(sink, piece.p, piece.n):
                return False
        elif tag == 1 or tag == 2:
            if not next_raw(r, 8, &p):
                return False
            bits = load_le64(p)
            sink_counted(sink, 8)
            mix_word(&s, tag)
            mix_word(&s, bits)
            if tape and not tape_op(sink, c"i" if tag == 1 else c"d", bits, 0):
                return False
        else:
            return wrong(r, b"an element of an array")
        if digest:
            sip_add(&s, &sink.value)
        elif tape and not tape_close(sink):
            return False
        sink.count += 1
        count -= 1
    return True


cdef bint decode_template(ValueReader *r, int type) noexcept nogil:
    """A hash of a template that brings the names: how they are kept (0: in a listpack, 1: as many
    strings as a length says), the names, the values (29: a listpack, which begins with the
    template's id; 31: strings)."""
    cdef uint64_t form = 0, count = 0, left
    cdef const uint8_t *names = NULL
    cdef const uint8_t *values
    cdef Piece name, value, blob
    cdef Pack name_pack, pack
    if not next_length(r, &form):
        return False
    if form > 1:
        return wrong(r, b"how the names of a template are kept")
    if form == 0:
        if not (string_into(r, &blob, &r.inflated[0]) and pack_open(r, &blob, False, &name_pack)):
            return False
    else:
        if not next_length(r, &count):
            return False
        names = r.at
        left = count
        while left:
            if not next_string(r, &name, 0):
                return False
            left -= 1
    if type == 29:
        if not (next_blob(r, &blob) and pack_open(r, &blob, False, &pack)
                and pack_next(r, &pack, &value)):
            return False
        if not value.numeric:
            return wrong(r, b"the id of a template")
    while (form and count) or (not form and pack_more(&name_pack)):
        if form:
            values = r.at
            r.at = names
            if not next_string(r, &name, 0):
                return False
            names = r.at
            r.at = values
            count -= 1
        elif not pack_next(r, &name_pack, &name):
            return False
        if not (pack_next(r, &pack, &value) if type == 29 else next_string(r, &value, 1)):
            return False
        if not sink_field(r.sink, &name, &value, -1):
            return False
    if form == 0 and not pack_close(r, &name_pack):
        return False
    if type != 29:
        return True
    if pack_more(&pack):
        return wrong(r, b"as many values as the template has fields")
    return pack_close(r, &pack)


cdef bint decode_paths(ValueReader *r) noexcept nogil:
    """A path hash of Valkey 9.2: paths, each with fields and their values."""
    cdef ElementSink *sink = r.sink
    cdef uint64_t paths = 0, fields = 0, size
    cdef Piece path, name, value
    cdef Sum none, owner
    cdef Sip s
    cdef bint tape = sink.mode == VALUE_TAPE, digest = sink.mode == VALUE_DIGEST
    none.low = none.high = owner.low = owner.high = 0
    if not next_length(r, &paths):
        return False
    while paths:
        if not (next_string(r, &path, 0) and next_length(r, &fields)):
            return False
        if fields == 0:
            return wrong(r, b"a path that has fields")
        piece_text(&path)
        size = path.n
        sink.count += 1
        sink.loose += 1
        if digest:
            owner = name_of(sink, AS_PATH, &none, &path)
        elif tape and not (tape_open(sink) and tape_bytes(sink, path.p, path.n)):
            return False
        while fields:
            if not (next_string(r, &name, 0) and next_string(r, &value, 1)):
                return False
            piece_text(&name)
            piece_text(&value)
            size += name.n + value.n
            if digest:
                s = sink.start
                mix_word(&s, AS_PATH_FIELD)
                mix_word(&s, owner.low)
                mix_word(&s, owner.high)
                sip_bytes_of(&s, name.p, name.n)
                sip_bytes_of(&s, value.p, value.n)
                sip_add(&s, &sink.value)
            elif tape and not (
                    tape_bytes(sink, name.p, name.n) and tape_bytes(sink, value.p, value.n)):
                return False
            fields -= 1
        sink_counted(sink, size)
        if tape and not tape_close(sink):
            return False
        paths -= 1
    return True


cdef int kind_of(int flavour, int type) noexcept nogil:
    """What a type of value is; -1: that is not known."""
    if type == 0:
        return KIND_STRING
    if type == 1 or type == 10 or type == 14 or type == 18:
        return KIND_LIST
    if type == 2 or type == 11 or type == 20:
        return KIND_SET
    if type == 3 or type == 5 or type == 12 or type == 17:
        return KIND_ZSET
    if type == 4 or type == 9 or type == 13 or type == 16 or type == 22:
        return KIND_HASH
    if type == 7:
        return KIND_MODULE
    if type == 15 or type == 19 or type == 21:
        return KIND_STREAM
    if flavour != FLAVOUR_REDIS:
        return KIND_PATH_HASH if type == 23 else -1
    if type == 23 or type == 24 or type == 25 or type == 29 or type == 31:
        return KIND_HASH
    if type == 26 or type == 27:
        return KIND_STREAM
    if type == 28:
        return KIND_ARRAY
    return KIND_GCRA if type == 33 else -1


cdef bint decode_body(ValueReader *r, int flavour, int type) noexcept nogil:
    cdef ElementSink *sink = r.sink
    cdef uint64_t number = 0
    cdef const uint8_t *p = NULL
    cdef Piece piece
    cdef ValueKind kind = sink.kind
    if kind == KIND_STRING:
        if not (next_string(r, &piece, 0) and sink_item(sink, &piece)):
            return False
        sink.loose = 1
        return True
    if kind == KIND_STREAM:
        return decode_stream(r, type)
    if kind == KIND_MODULE:
        return decode_module(r)
    if kind == KIND_ARRAY:
        return decode_array(r)
    if kind == KIND_PATH_HASH:
        return decode_paths(r)
    if kind == KIND_GCRA:
        if not next_length(r, &number):
            return False
        piece_number(&piece, <int64_t>number)
        return sink_item(sink, &piece)
    if type == 1 or type == 2:
        return decode_strings(r)
    if type == 3 or type == 5:
        return decode_scored(r, type == 5)
    if type == 14 or type == 18:
        return decode_quicklist(r, type)
    if type == 4 or type == 22 or type == 24:
        return decode_fields(r, flavour, type)
    if type == 29 or type == 31:
        return decode_template(r, type)
    if type == 25 and not next_raw(r, 8, &p):
        return False
    # One string that holds all of it.
    if not next_blob(r, &piece):
        return False
    if type == 11:
        return each_of_intset(r, &piece)
    if type == 9:
        return each_of_zipmap(r, &piece)
    return each_of_pack(
        r, &piece, type == 10 or type == 12 or type == 13, type == 23 or type == 25)


cdef DecodeEnd decode_value(
    ValueReader *r, int flavour, const uint8_t *value, size_t size
) noexcept nogil:
    """Decode a value, which begins with its type and has no footer, into the reader's sink."""
    cdef int kind
    r.begin = r.at = value
    r.end = value + size
    r.expected = NULL
    if size == 0:
        wrong(r, b"a type of value")
        return DECODE_WRONG
    kind = kind_of(flavour, value[0])
    if kind < 0:
        return DECODE_UNKNOWN
    sink_begin(r.sink, <ValueKind>kind)
    r.at += 1
    if not (r.sink.mode != VALUE_ENCODE or encode_begin(r.sink)) or (
            not decode_body(r, flavour, value[0])):
        return (DECODE_NO_MEMORY if r.sink.no_memory else
                DECODE_TOO_LONG if r.sink.too_long else DECODE_WRONG)
    if r.at != r.end:
        wrong(r, b"the end of the value")
        return DECODE_WRONG
    if r.sink.count == 0 and has_members[kind]:
        wrong(r, b"a collection that has members")
        return DECODE_WRONG
    return DECODED


# No server keeps these without members.
cdef bint has_members[KINDS]
for _kind in range(KINDS):
    has_members[_kind] = KIND_LIST <= _kind <= KIND_HASH


@cython.final
cdef class ValueDecoder:
    """Decodes values as DUMP gives them: the type, the value, and a footer of ten bytes, whose CRC64
    is not looked at.

    Args:
        key: 16 bytes under which digests are made.
        most: bytes that one string of a value may have once it is inflated, and the memory that a
            value is made of which is shown.

    All raise `ProtocolError` for what is no sound value (with the place in it), or no type that is
    known, and `MemoryError`.
    """
    cdef ValueReader reader
    cdef ElementSink sink

    def __cinit__(self, bytes key not None=bytes(16), *, size_t most=1 << 30):
        if len(key) != 16:
            raise ValueError(f"a digest's key has 16 bytes, found {len(key)}")
        sip_begin(&self.sink.start, <const uint8_t *>PyBytes_AS_STRING(key))
        self.reader.sink = &self.sink
        self.reader.most = self.sink.tape_most = most

    def __dealloc__(self):
        bytes_free(&self.reader.inflated[0])
        bytes_free(&self.reader.inflated[1])
        bytes_free(&self.reader.blob)
        bytes_free(&self.sink.tape)

    cdef int decode(self, const uint8_t *p, size_t n, SinkMode mode) except -1:
        cdef DecodeEnd end
        if n <= FOOTER_BYTES:
            raise ProtocolError("a DUMP payload has more than ten bytes", 0)
        self.sink.mode = mode
        with nogil:
            end = decode_value(
                &self.reader, payload_flavour(p + n - FOOTER_BYTES), p, n - FOOTER_BYTES)
        self.release()
        if end == DECODED:
            return 0
        if end == DECODE_NO_MEMORY:
            raise MemoryError()
        self.complain(end, p, n)

    cdef int complain(self, DecodeEnd end, const uint8_t *p, size_t n) except -1:
        cdef size_t at = self.reader.at - self.reader.begin
        if end == DECODE_UNKNOWN:
            raise ProtocolError(f"type of value {p[0]} is not known", 0)
        if end == DECODE_TOO_LONG:
            raise ProtocolError(
                f"the value is longer than the {self.sink.tape_most:,} bytes that may be shown", at)
        expected = (<bytes>self.reader.expected).decode()
        raise ProtocolError(f"expected {expected}; the value was read up to its byte {at}", at)

    cdef void release(self) noexcept:
        """A large value's memory is given back."""
        if self.reader.inflated[0].capacity > TEXT_KEPT:
            bytes_free(&self.reader.inflated[0])
        if self.reader.inflated[1].capacity > TEXT_KEPT:
            bytes_free(&self.reader.inflated[1])
        if self.reader.blob.capacity > TEXT_KEPT:
            bytes_free(&self.reader.blob)

    cdef tuple looked(self, size_t key_size, bint ttl):
        cdef ElementSink *sink = &self.sink
        return (_KIND_NAMES[sink.kind], sink.count, sink.bytes, sink.longest, sink.ttls,
                sink.group_count, memory_of(sink, key_size, ttl))

    def look(self, bytes payload not None, size_t key_size=0, bint ttl=False):
        """What a value is, without its elements: (type, elements, their bytes, those of the longest,
        fields with expire times, groups, about how much memory the key takes in a server). The key
        has `key_size` bytes, and an expire time if `ttl` says so."""
        self.decode(
            <const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), VALUE_LOOK)
        return self.looked(key_size, ttl)

    def look_at(self, RecordBatch batch not None, Py_ssize_t index):
        """The same of a record of a batch."""
        cdef Record *record = batch.record(index)
        if batch.streamed:
            raise ValueError("the value of a streamed record is not here")
        self.decode(batch.arena.data + record.offset + record.key_size, record.value_size, VALUE_LOOK)
        return self.looked(record.key_size, record.expire_at >= 0)

    def digest(self, bytes payload not None):
        """Four digests of 16 bytes: the value, the expire times of its fields, a stream's groups, and
        what not all versions keep of a stream or array (when consumers were seen, counters)."""
        cdef Sum value
        self.decode(
            <const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), VALUE_DIGEST)
        value = sink_value_digest(&self.sink)
        return (sip_bytes(value.low, value.high),
                sip_bytes(self.sink.field_ttls.low, self.sink.field_ttls.high),
                sip_bytes(self.sink.groups.low, self.sink.groups.high),
                sip_bytes(self.sink.details.low, self.sink.details.high))

    def value(self, bytes payload not None):
        """The type, and the elements as lists of bytes and numbers:

        - string, list, set, gcra: bytes each
        - zset: [member, score]; hash: [field, value, expire time in ms or -1]
        - stream: the entries ([id, field, value, …]), its last id, the highest deleted id, how many
          were added (-1: its version does not keep that); its groups: [name, last id, entries read,
          [[pending id, delivered at, how often]], [[consumer, seen at, active at (-2: not kept),
          [ids]]], from type 27 on ids that were given back]; from type 26 on what producers sent
        - module: its id, its items; array: [index, element]; path hash: [path, field, value, …]
        """
        try:
            self.decode(
                <const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), VALUE_TAPE)
            return _KIND_NAMES[self.sink.kind], tape_value(&self.sink.tape)
        finally:
            if self.sink.tape.capacity > TEXT_KEPT:
                bytes_free(&self.sink.tape)


def value_flavour(bytes payload not None):
    """The project that numbers the type of a DUMP payload: "redis" or "valkey"."""
    if len(payload) <= FOOTER_BYTES:
        raise ValueError("a DUMP payload has more than ten bytes")
    return "valkey" if payload_flavour(
        <const uint8_t *>PyBytes_AS_STRING(payload) + len(payload) - FOOTER_BYTES
    ) == FLAVOUR_VALKEY else "redis"


def value_kind(int number, str flavour not None):
    """What values of a type are, by the number before them; None: that is not known."""
    kind = kind_of(FLAVOUR_VALKEY if flavour == "valkey" else FLAVOUR_REDIS, number)
    return None if kind < 0 else _KIND_NAMES[kind]


def value_encoding(bytes payload not None):
    """How a value is kept, by the type before it; None: that is not known."""
    if len(payload) <= FOOTER_BYTES:
        return None
    number = payload[0]
    own = _ENCODINGS_VALKEY if value_flavour(payload) == "valkey" else _ENCODINGS_REDIS
    return _ENCODINGS.get(number) or own.get(number)
