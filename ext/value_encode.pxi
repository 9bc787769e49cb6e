# Values that a target does not know, rewritten to the newest form that it knows, so that one RESTORE
# stores them whole:
#
#   lists     18 → 14             or, where it cannot be so, item by item: 14, 18 → 1
#   sets      20           → 2
#   zsets     17 → 12             or with scores as doubles: 17 → 5
#   hashes    16 → 13             or field by field: 16, 29, 31 → 4, and so the forms with expire
#                                 times of fields whose fields have none
#             22 to 25     → 24   for Redis (7.4), 22 for Valkey (9.0), where some have
#   streams   27, 26       → 21 → 19 → 15
#
# A stream's nodes and groups are in all its forms the same, so it is cut out and not made anew:
# what the older form does not have is left out, and named as a loss if there was anything. All
# other values lose nothing, or are left alone; what is left alone the target refuses by itself. No
# value is rewritten that the decoder (value_decoder.pxi) does not find sound, or whose CRC64 is not
# its own: a fresh one would pass it off as sound.
#
# What the first column of lists, zsets and hashes says is done in one pass (value_repack.pxi).
#
# A member or field that is there twice is written by no server. Servers before 6.2 end their process
# at one, so such a value is left alone too.

cdef enum RewriteEnd:
    REWRITE_NONE         # the target knows it, or it cannot be rewritten
    REWRITE_DONE
    REWRITE_TOO_LONG
    REWRITE_NO_MEMORY

cdef enum Loss:
    # What the target's form of a stream does not have (`model.carried_with_loss` has the words).
    LOSS_ACTIVE_TIMES = 1
    LOSS_COUNTERS = 2
    LOSS_PRODUCERS = 4
    # Of those that are made by commands alone (stream_commands.pxi).
    LOSS_SEEN_TIMES = 8

cdef enum:
    FORM_HASH = 4
    FORM_HASH_VALKEY = 22
    FORM_HASH_REDIS = 24
    # What a stream's producers are told by default, where nobody has set it (XCFGSET).
    PRODUCERS_MS = 100
    PRODUCERS_MOST = 100
    # Of more members than these it is not looked at whether one is there twice.
    ONCE_MOST = 1 << 22
    ONCE_FIRST = 1 << 5
    # What is announced is not to be believed beyond this.
    ONCE_EXPECTED_MOST = 1 << 12
    # A batch that has grown by so much is sent before the rest is looked at.
    REWRITTEN_MOST = 16 << 20


# --- The other forms, element by element ---

cdef inline bint encode_room(ElementSink *sink, size_t n) noexcept nogil:
    if n > sink.tape_most or sink.tape.size > sink.tape_most - n:
        sink.too_long = True
        return False
    if not bytes_reserve(&sink.tape, n, SIZE_MAX):
        sink.no_memory = True
        return False
    return True


cdef inline bint encode_raw(ElementSink *sink, const uint8_t *p, size_t n) noexcept nogil:
    """Bytes as they are."""
    if not encode_room(sink, n):
        return False
    if n:
        memcpy(sink.tape.data + sink.tape.size, p, n)
    sink.tape.size += n
    return True


cdef inline bint encode_length(ElementSink *sink, uint64_t n) noexcept nogil:
    """A length in its shortest form."""
    cdef uint8_t *out
    cdef int shift
    if not encode_room(sink, 9):
        return False
    out = sink.tape.data + sink.tape.size
    if n < 1 << 6:
        out[0] = <uint8_t>n
        sink.tape.size += 1
        return True
    if n < 1 << 14:
        out[0] = <uint8_t>(0x40 | n >> 8)
        out[1] = <uint8_t>(n & 0xff)
        sink.tape.size += 2
        return True
    out[0] = 0x80 if n <= UINT32_MAX else 0x81
    shift = 24 if n <= UINT32_MAX else 56
    sink.tape.size += 5 if n <= UINT32_MAX else 9
    out += 1
    while shift >= 0:
        out[0] = <uint8_t>((n >> shift) & 0xff)
        out += 1
        shift -= 8
    return True


cdef inline bint encode_le64(ElementSink *sink, uint64_t n) noexcept nogil:
    if not encode_room(sink, 8):
        return False
    store_le64(sink.tape.data + sink.tape.size, n)
    sink.tape.size += 8
    return True


cdef inline bint encode_piece(ElementSink *sink, Piece *piece) noexcept nogil:
    """A string; one that was kept as a number of 32 bits stays one. Its text has been made."""
    cdef uint8_t *out
    cdef int bytes_ = 4, i
    if not piece.numeric or piece.number != <int32_t>piece.number:
        if piece.n >= 1 << 6:
            return encode_length(sink, piece.n) and encode_raw(sink, piece.p, piece.n)
        # Most are short: with one look at the room.
        if not encode_room(sink, piece.n + 1):
            return False
        out = sink.tape.data + sink.tape.size
        out[0] = <uint8_t>piece.n
        memcpy(out + 1, piece.p, piece.n)
        sink.tape.size += piece.n + 1
        return True
    if piece.number == <int8_t>piece.number:
        bytes_ = 1
    elif piece.number == <int16_t>piece.number:
        bytes_ = 2
    if not encode_room(sink, 5):
        return False
    out = sink.tape.data + sink.tape.size
    out[0] = 0xc0 if bytes_ == 1 else 0xc1 if bytes_ == 2 else 0xc2
    for i in range(bytes_):
        out[1 + i] = (<uint64_t>piece.number >> (8 * i)) & 0xff
    sink.tape.size += 1 + bytes_
    return True


cdef bint once_begin(ElementSink *sink, size_t expected) noexcept nogil:
    """An empty table, for so many members; it grows where there are more."""
    cdef Bytes *table = &sink.once
    cdef size_t places = ONCE_FIRST
    sink.once_used = 0
    expected = min(expected, <size_t>ONCE_EXPECTED_MOST)
    while places < 2 * (expected + 1):
        places *= 2
    if table.capacity > TEXT_KEPT:
        bytes_free(table)
    table.size = 0
    if not bytes_reserve(table, 8 * places, SIZE_MAX):
        sink.no_memory = True
        return False
    table.size = 8 * places
    memset(table.data, 0, table.size)
    return True


cdef bint once_grow(ElementSink *sink) noexcept nogil:
    """Twice the places."""
    cdef Bytes *table = &sink.once
    cdef uint64_t *places
    cdef uint64_t *before = <uint64_t *>table.data
    cdef size_t size = table.size // 8, at, i, mask
    mask = max(2 * size, <size_t>ONCE_FIRST) - 1
    places = <uint64_t *>PyMem_RawCalloc(mask + 1, 8)
    if places == NULL:
        sink.no_memory = True
        return False
    for i in range(size):
        if before[i]:
            at = before[i] & mask
            while places[at]:
                at = (at + 1) & mask
            places[at] = before[i]
    PyMem_RawFree(before)
    table.data = <uint8_t *>places
    table.size = table.capacity = (mask + 1) * 8
    return True


cdef inline uint64_t once_hash(uint64_t seed, const Piece *member) noexcept nogil:
    """The same whether it is kept as a number or as its digits. Each step can be undone, so that no
    two numbers meet, nor two strings of a length up to eight."""
    cdef const uint8_t *p = member.p
    cdef size_t n = member.n
    cdef uint64_t h, eight = 0, digits = 0xf0f0f0f0f0f0f0f0
    cdef int64_t number = 0
    if member.numeric and member.number != INT64_MIN:
        h = seen_mix(seed ^ <uint64_t>member.number)
        return h if h else 1
    if n >= 8:
        eight = load_le64(p)
    elif n:
        eight = load_part(p, n)
        if n < 4:
            digits = 0xf0f0f0
    # What cannot be digits is told with one look: a branch for each byte costs more than the hash.
    # (The lowest number cannot be read from its digits.)
    if ((eight & digits) == (<uint64_t>0x3030303030303030 & digits) or eight & 0xff == c"-") and (
            canonical_number(p, n, &number)):
        h = seen_mix(seed ^ <uint64_t>number)
        return h if h else 1
    h = seen_mix(~seed ^ n)
    if n < 8:
        h = seen_mix(h ^ eight)
        return h if h else 1
    while n >= 8:
        h = seen_mix(h ^ load_le64(p))
        p += 8
        n -= 8
    if n:
        h = seen_mix(h ^ load_part(p, n))
    return h if h else 1


cdef bint canonical_number(const uint8_t *p, size_t n, int64_t *out) noexcept nogil:
    """Whether a text is that of a number as servers write it."""
    cdef size_t sign = n > 1 and p[0] == c"-"
    return n > 0 and (p[sign] != c"0" or n == 1) and parse_decimal(p, p + n, out)


cdef inline bint encode_once(ElementSink *sink, Piece *member) noexcept nogil:
    """Note a member; False if it was there before."""
    cdef uint64_t *places
    cdef uint64_t h
    cdef size_t mask, at
    if sink.once_used >= ONCE_MOST:
        return True
    if 16 * (sink.once_used + 1) > sink.once.size and not once_grow(sink):
        return False
    if member.numeric and member.number == INT64_MIN:
        piece_text(member)
    places = <uint64_t *>sink.once.data
    mask = sink.once.size // 8 - 1
    h = once_hash(sink.once_seed, member)
    at = h & mask
    while places[at]:
        if places[at] == h:
            return False
        at = (at + 1) & mask
    places[at] = h
    sink.once_used += 1
    return True


cdef bint names_differ(const uint8_t *names, size_t size, uint64_t count) except -1:
    """Whether no two of `count` strings as a snapshot has them are the same."""
    cdef ElementSink sink
    cdef ValueReader reader
    cdef Piece piece
    cdef bytes seed = os.urandom(8)
    cdef bint differ = True
    memset(&sink, 0, sizeof(ElementSink))
    memset(&reader, 0, sizeof(ValueReader))
    sink.once_seed = load_le64(<const uint8_t *>PyBytes_AS_STRING(seed))
    reader.sink = &sink
    reader.begin = reader.at = names
    reader.end = names + size
    reader.most = size * LZF_RATIO_MOST
    with nogil:
        while differ and count:
            differ = next_string(&reader, &piece, 0)
            if differ:
                piece_text(&piece)
                differ = encode_once(&sink, &piece)
            count -= 1
        bytes_free(&sink.once)
        bytes_free(&reader.inflated[0])
    if sink.no_memory:
        raise MemoryError()
    return differ


cdef bint encode_begin(ElementSink *sink) noexcept nogil:
    """The type, and room for how many elements there are going to be."""
    cdef uint8_t type = <uint8_t>sink.form
    if not once_begin(sink, 0):
        return False
    if not encode_raw(sink, &type, 1):
        return False
    if type == FORM_HASH_REDIS and not encode_le64(sink, <uint64_t>sink.earliest):
        return False
    sink.count_at = sink.tape.size + 1
    return encode_raw(sink, b"\x80\0\0\0\0", 5)


cdef bint encode_end(ElementSink *sink) noexcept nogil:
    """How many elements there were."""
    cdef int i
    if sink.count > UINT32_MAX:
        sink.too_long = True
        return False
    for i in range(4):
        sink.tape.data[sink.count_at + i] = (sink.count >> (24 - 8 * i)) & 0xff
    return True


cdef inline bint encode_item(ElementSink *sink, Piece *piece) noexcept nogil:
    """As `sink_item`."""
    if sink.kind == KIND_SET and not encode_once(sink, piece):
        return False
    return encode_piece(sink, piece)


cdef inline bint encode_scored(ElementSink *sink, Piece *member, double score) noexcept nogil:
    """As `sink_scored`."""
    cdef uint64_t bits
    memcpy(&bits, &score, 8)
    return encode_once(sink, member) and encode_piece(sink, member) and encode_le64(sink, bits)


cdef inline bint encode_field(
    ElementSink *sink, Piece *name, Piece *value, int64_t ttl
) noexcept nogil:
    """As `sink_field`."""
    if not encode_once(sink, name):
        return False
    if sink.form == FORM_HASH_REDIS and not encode_length(
            sink, <uint64_t>(ttl - sink.earliest) + 1 if ttl >= 0 else 0):
        return False
    if not (encode_piece(sink, name) and encode_piece(sink, value)):
        return False
    return sink.form != FORM_HASH_VALKEY or encode_le64(sink, <uint64_t>ttl)


# --- Streams ---

cdef bint pass_string(ValueReader *r) noexcept nogil:
    """Go over a string, whatever it holds."""
    cdef StringHead head
    cdef size_t left = r.end - r.at
    cdef int size = string_head(r.at, left, &head)
    if size <= 0 or head.body > left - size:
        return wrong(r, b"a whole string")
    r.at += size + head.body
    return True


cdef inline bint copy_from(ValueReader *r, const uint8_t *begin) noexcept nogil:
    """What was passed since `begin` stands in the other form too."""
    return encode_raw(r.sink, begin, r.at - begin)


cdef bint rewrite_stream(ValueReader *r, int type, int form, uint8_t *lost) noexcept nogil:
    """A stream of which the decoder has found that it is sound, from its type on."""
    cdef const uint8_t *begin
    cdef const uint8_t *p = NULL
    cdef uint64_t n = 0, nodes = 0, groups = 0, pending = 0, consumers = 0, held = 0, i
    cdef uint8_t number = <uint8_t>form
    r.sink.tape.size = 0
    lost[0] = 0
    r.at = r.begin + 1
    begin = r.at
    if not (encode_raw(r.sink, &number, 1) and next_length(r, &nodes)):
        return False
    for i in range(nodes):
        if not (pass_string(r) and pass_string(r)):
            return False
    # Its length, and its last id; then counters.
    for i in range(8):
        if i == 3 and form == 15:
            if not copy_from(r, begin):
                return False
        if not next_length(r, &n):
            return False
    if form == 15:
        lost[0] |= LOSS_COUNTERS
    elif not copy_from(r, begin):
        return False
    begin = r.at
    if not (next_length(r, &groups) and copy_from(r, begin)):
        return False
    while groups:
        begin = r.at
        if not (pass_string(r) and next_length(r, &n) and next_length(r, &n)):
            return False
        if form == 15 and not copy_from(r, begin):
            return False
        if not next_length(r, &n):
            return False
        if form == 15:
            begin = r.at
        if not next_length(r, &pending):
            return False
        for i in range(pending):
            if not (next_raw(r, 24, &p) and next_length(r, &n)):
                return False
        if not next_length(r, &consumers):
            return False
        while consumers:
            if not (pass_string(r) and next_raw(r, 8, &p)):
                return False
            if type >= 21 and form < 21:
                lost[0] |= LOSS_ACTIVE_TIMES
                if not copy_from(r, begin):
                    return False
            if type >= 21 and not next_raw(r, 8, &p):
                return False
            if form < 21:
                begin = r.at if type >= 21 else begin
            if not next_length(r, &held) or held > <uint64_t>(r.end - r.at) // 16:
                return False
            r.at += 16 * held
            consumers -= 1
        if not copy_from(r, begin):
            return False
        if type >= 27:
            # What consumers have given back is with none of them, which older forms cannot say.
            if not next_length(r, &n) or n:
                return False
        groups -= 1
    if type < 26:
        return True
    begin = r.at
    if not next_length(r, &n):
        return False
    if n != PRODUCERS_MS:
        lost[0] |= LOSS_PRODUCERS
    if not next_length(r, &n):
        return False
    if n != PRODUCERS_MOST:
        lost[0] |= LOSS_PRODUCERS
    if not next_length(r, &nodes):
        return False
    if nodes:
        lost[0] |= LOSS_PRODUCERS
    while nodes:
        if not (pass_string(r) and next_length(r, &held)):
            return False
        while held:
            if not (pass_string(r) and next_length(r, &n) and next_length(r, &n)):
                return False
            held -= 1
        nodes -= 1
    for i in range(2):
        if not next_length(r, &n):
            return False
        if n:
            lost[0] |= LOSS_PRODUCERS
    if form < 26:
        return True
    lost[0] &= ~LOSS_PRODUCERS
    return copy_from(r, begin)


# --- Whole values ---

@cython.final
cdef class ValueTranscoder:
    """Rewrites values whose type a target does not know to the newest form that it knows.

    Args:
        flavour: the target's, "redis" or "valkey": of the types that the two number differently.
        known: the types (RDB_TYPE_*) that it loads.
        most: bytes of a rewritten value; a longer one is not made. It may be set between values.

    What a batch's values lost is in the batch (`RecordBatch.losses`). None of this calls into
    Python for a value; memory is taken of twice the length of the longest.
    """
    cdef ValueReader reader
    cdef ElementSink sink
    cdef uint8_t known[FLAVOURS][256]
    cdef uint8_t known_to_both[256]
    cdef int with_ttls          # the form of a hash whose fields have expire times; 0: none
    cdef int stream_form        # 0: none
    cdef Bytes held
    cdef readonly uint64_t rewritten

    def __cinit__(self, str flavour not None, known, *, size_t most=512 << 20):
        cdef int number
        cdef uint8_t type
        cdef int own = FLAVOUR_VALKEY if flavour == "valkey" else FLAVOUR_REDIS
        if flavour not in ("redis", "valkey"):
            raise ValueError(f"a flavour is redis or valkey, found {flavour!r}")
        for each in known:
            if not 0 <= each < 256:
                raise ValueError(f"no type of value: {each}")
            type = <uint8_t>each
            self.known[own][type] = True
            if type < TYPES_KNOWN:
                self.known[1 - own][type] = self.known_to_both[type] = True
        number = FORM_HASH_VALKEY if own == FLAVOUR_VALKEY else FORM_HASH_REDIS
        self.with_ttls = number if self.known[own][number] else 0
        for number in (15, 19, 21, 26):
            # (Of the last Valkey's are other values.)
            if self.known[own][number] and (number < TYPES_KNOWN or own == FLAVOUR_REDIS):
                self.stream_form = number
        seed = os.urandom(8)
        self.sink.once_seed = load_le64(<const uint8_t *>PyBytes_AS_STRING(seed))
        self.reader.sink = &self.sink
        self.most = most

    def __dealloc__(self):
        bytes_free(&self.reader.inflated[0])
        bytes_free(&self.reader.inflated[1])
        bytes_free(&self.reader.blob)
        bytes_free(&self.sink.tape)
        bytes_free(&self.sink.once)
        bytes_free(&self.held)

    @property
    def most(self):
        """Bytes of a rewritten value at the most."""
        return self.sink.tape_most

    @most.setter
    def most(self, size_t most):
        self.reader.most = self.sink.tape_most = most

    cdef inline bint knows(self, const uint8_t *value, size_t size) noexcept nogil:
        """Whether the target does; of types that the flavours number differently by the footer."""
        return self.known_to_both[value[0]] or size <= FOOTER_BYTES or self.known[
            payload_flavour(value + size - FOOTER_BYTES)][value[0]]

    cdef RewriteEnd rewrite(
        self, const uint8_t *value, size_t size, bint unsealed, uint8_t *lost
    ) noexcept nogil:
        """Into the tape, with a footer that has a version and no CRC64 yet."""
        cdef ElementSink *sink = &self.sink
        cdef int type = value[0], form, kind, flavour, own = FLAVOUR_REDIS
        cdef size_t body = size - FOOTER_BYTES
        cdef DecodeEnd end
        lost[0] = 0
        flavour = payload_flavour(value + body)
        kind = kind_of(flavour, type)
        if kind < KIND_LIST or kind > KIND_STREAM:
            return REWRITE_NONE
        if not unsealed and not crc_fits(value, body):
            return REWRITE_NONE
        form = repacked[type]
        if form and self.known[own][form] and repack(&self.reader, value, body, form):
            return self.finished(own, form)
        form = self.form_of(flavour, type, kind)
        if form < 0 or kind == KIND_STREAM:
            # Looked through before: what fields there are with expire times, or whether it is sound.
            sink.mode = VALUE_LOOK
            sink.earliest, sink.latest = INT64_MAX, 0
            end = decode_value(&self.reader, flavour, value, body)
            if end != DECODED:
                return REWRITE_NO_MEMORY if end == DECODE_NO_MEMORY else REWRITE_NONE
            if kind == KIND_HASH and sink.ttls:
                form = self.with_ttls
                if form == 0 or (form == FORM_HASH_REDIS and sink.latest > FIELD_DEADLINE_MOST):
                    return REWRITE_NONE
            elif kind == KIND_HASH:
                form = FORM_HASH
        if form == FORM_HASH_VALKEY:
            own = FLAVOUR_VALKEY
        if form <= 0 or not self.known[own][form]:
            return REWRITE_NONE
        sink.no_memory = sink.too_long = False
        if kind == KIND_STREAM:
            if form >= type or not rewrite_stream(&self.reader, type, form, lost):
                return self.ended(DECODE_WRONG)
        else:
            sink.mode = VALUE_ENCODE
            sink.form = form
            end = decode_value(&self.reader, flavour, value, body)
            if end != DECODED or not encode_end(sink):
                return self.ended(end)
        return self.finished(own, form)

    cdef inline RewriteEnd finished(self, int own, int form) noexcept nogil:
        """With its footer."""
        cdef ElementSink *sink = &self.sink
        if not encode_room(sink, FOOTER_BYTES):
            return self.ended(DECODE_WRONG)
        memset(sink.tape.data + sink.tape.size, 0, FOOTER_BYTES)
        sink.tape.data[sink.tape.size] = <uint8_t>walk_needed[own][form]
        sink.tape.size += FOOTER_BYTES
        self.rewritten += 1
        return REWRITE_DONE

    cdef inline int form_of(self, int flavour, int type, int kind) noexcept nogil:
        """The form to make; -1: that hangs on the value; 0: there is none."""
        if kind == KIND_LIST:
            return 1
        if kind == KIND_SET:
            return 2
        if kind == KIND_ZSET:
            return 5
        if kind == KIND_STREAM:
            return self.stream_form
        return -1 if has_field_ttls(flavour, type) or type == 23 else FORM_HASH

    cdef inline RewriteEnd ended(self, DecodeEnd end) noexcept nogil:
        if self.sink.no_memory or end == DECODE_NO_MEMORY:
            return REWRITE_NO_MEMORY
        return REWRITE_TOO_LONG if self.sink.too_long else REWRITE_NONE

    cdef void release(self) noexcept nogil:
        """A large value's memory is given back."""
        if self.reader.inflated[0].capacity > TEXT_KEPT:
            bytes_free(&self.reader.inflated[0])
        if self.reader.inflated[1].capacity > TEXT_KEPT:
            bytes_free(&self.reader.inflated[1])
        if self.reader.blob.capacity > TEXT_KEPT:
            bytes_free(&self.reader.blob)
        if self.sink.tape.capacity > TEXT_KEPT:
            bytes_free(&self.sink.tape)

    def transcode(self, RecordBatch batch not None, size_t first=0):
        """Rewrite the records of a batch from `first` on, which is not streamed.

        Returns up to which record that was done, and the indexes of those whose rewritten value
        would be too long; those are as they were. It is not done to the end where the batch has
        grown by much: send what is done (`RecordBatch.take`), and go on. Raises `MemoryError`.
        """
        cdef Arena *arena = &batch.arena
        cdef RewriteEnd end = REWRITE_NONE
        cdef size_t i = first, size = arena.size
        cdef Record *record
        cdef const uint8_t *value
        cdef uint8_t lost = 0
        cdef list long_ = []
        if batch.streamed:
            raise ValueError("the value of a streamed record is not here")
        while i < arena.count:
            with nogil:
                while i < arena.count:
                    record = &arena.records[i]
                    value = arena.data + record.offset + record.key_size
                    if record.value_size <= FOOTER_BYTES or self.knows(value, record.value_size):
                        i += 1
                        continue
                    end = self.rewrite(value, record.value_size, record.unsealed, &lost)
                    if end == REWRITE_DONE and not self.put(batch, i, lost):
                        end = REWRITE_NO_MEMORY
                    self.release()
                    if end == REWRITE_NO_MEMORY or end == REWRITE_TOO_LONG:
                        break
                    i += 1
                    if arena.size - size > REWRITTEN_MOST:
                        break
            if i < arena.count and end == REWRITE_NO_MEMORY:
                raise MemoryError()
            if i < arena.count and end == REWRITE_TOO_LONG:
                long_.append(i)
                i += 1
                continue
            break
        return i, long_

    cdef bint put(self, RecordBatch batch, size_t i, uint8_t lost) noexcept nogil:
        """The tape becomes the value of a record, behind all others; False: no memory."""
        cdef Arena *arena = &batch.arena
        cdef Record *record = &arena.records[i]
        cdef size_t n = record.key_size + self.sink.tape.size
        if n > arena.capacity - arena.size:
            # (It grows by doubling, for there may be many.)
            if not arena_reserve(arena, n, 2 * arena.capacity):
                return False
            record = &arena.records[i]
        memcpy(arena.data + arena.size, arena.data + record.offset, record.key_size)
        memcpy(arena.data + arena.size + record.key_size, self.sink.tape.data, self.sink.tape.size)
        batch.value_bytes += self.sink.tape.size - record.value_size
        record.offset = arena.size
        record.value_size = self.sink.tape.size
        record.unsealed = True
        record.loss = lost
        batch.lossy |= lost
        arena.size += n
        return True

    def payload(self, bytes payload not None):
        """(A DUMP payload in a form that the target knows, what it has lost); the payload itself if
        it knows that, or it cannot be rewritten; None in its place if it would be too long. Raises
        `MemoryError`."""
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(payload)
        cdef size_t n = PyBytes_GET_SIZE(payload)
        cdef uint8_t lost = 0
        cdef RewriteEnd end
        if n <= FOOTER_BYTES or self.knows(p, n):
            return payload, 0
        with nogil:
            end = self.rewrite(p, n, False, &lost)
            if end == REWRITE_DONE:
                seal_payload(self.sink.tape.data, self.sink.tape.size)
        try:
            if end == REWRITE_NO_MEMORY:
                raise MemoryError()
            if end == REWRITE_TOO_LONG:
                return None, 0
            if end == REWRITE_NONE:
                return payload, 0
            return PyBytes_FromStringAndSize(
                <char *>self.sink.tape.data, self.sink.tape.size), lost
        finally:
            self.release()

    # --- A value in pieces ---

    def wants(self, int number):
        """Whether a value in pieces of this type would be rewritten, so that it is to be held. (Its
        flavour stands at its end: 22 is Valkey's here, for Redis' is of no release.)"""
        cdef int flavour = FLAVOUR_VALKEY if number == FORM_HASH_VALKEY else FLAVOUR_REDIS
        cdef int kind
        if not 0 <= number < 256 or self.known[flavour][number]:
            return False
        kind = kind_of(flavour, number)
        return KIND_LIST <= kind <= KIND_STREAM and self.form_of(flavour, number, kind) != 0

    def hold(self, bytes piece not None):
        """Keep the next bytes of a value in pieces. Raises `MemoryError`."""
        cdef size_t n = PyBytes_GET_SIZE(piece)
        if not bytes_reserve(&self.held, n, SIZE_MAX):
            raise MemoryError()
        if n:
            memcpy(self.held.data + self.held.size, PyBytes_AS_STRING(piece), n)
        self.held.size += n
        return self.held.size

    def drop(self):
        """Forget what is held."""
        bytes_free(&self.held)

    def whole(self, RecordBatch batch not None):
        """The value that is held becomes that of the one record of a batch that was streamed,
        rewritten if that can be done. True: it would be too long, and the batch is as it was.
        ValueError where it has another length. Raises `MemoryError`.

        What would be too long is held still, for `taken`."""
        cdef Record *record
        cdef RewriteEnd end
        cdef uint8_t lost = 0
        if not batch.streamed or batch.arena.count != 1 or (
                batch.arena.records[0].value_size != self.held.size):
            raise ValueError("no batch of this value")
        try:
            with nogil:
                end = self.rewrite(self.held.data, self.held.size, False, &lost)
                if end == REWRITE_NONE:
                    self.sink.tape.size = 0
                    if not bytes_reserve(&self.sink.tape, self.held.size, SIZE_MAX):
                        end = REWRITE_NO_MEMORY
                    else:
                        memcpy(self.sink.tape.data, self.held.data, self.held.size)
                        self.sink.tape.size = self.held.size
            if end == REWRITE_TOO_LONG:
                return True
            bytes_free(&self.held)
            if end == REWRITE_NO_MEMORY or not self.put(batch, 0, lost):
                raise MemoryError()
            record = &batch.arena.records[0]
            record.unsealed = end == REWRITE_DONE
            batch.streamed = False
            return False
        finally:
            self.release()

    def taken(self):
        """What is held, which is not any more. Raises `MemoryError`."""
        try:
            return PyBytes_FromStringAndSize(<char *>self.held.data, self.held.size)
        finally:
            bytes_free(&self.held)
