# Records out as RESTORE or MSET, and the counting of what the target answers.
#
# A string without expire time and access figure is the same key after MSET as after RESTORE …
# REPLACE: both drop what the key had, its expire time too, and both store a number as one. MSET costs the
# target a third to a half less, for it has no payload to check and to unpack, and looks commands up
# once a run. So runs of such records go out as one MSET, all else as RESTORE.

cdef enum IfExists:
    IF_EXISTS_REPLACE
    IF_EXISTS_REFUSE

# The lowest RDB version whose reader knows each type of value (rdb.h of the servers). Of the types
# that the flavours number differently (22 and above) `walk_needed` has it (rdb_format.pxi).
cdef enum:
    TYPES_KNOWN = 22
cdef uint8_t LOWEST_VERSION[TYPES_KNOWN]
for _type, _version in enumerate(
    [1, 1, 1, 1, 1, 8, 8, 8, 0, 4, 4, 4, 4, 4, 7, 9, 10, 10, 10, 10, 11, 11]
):
    LOWEST_VERSION[_type] = _version


cdef enum:
    # The target's other clients wait while it runs one MSET: for 0.1 ms with so many short values.
    MSET_KEYS = 64
    # A longer value is an MSET of its own.
    MSET_BYTES = 64 * 1024
    OK_BYTES = 5

cdef uint8_t many_oks[OK_BYTES * REPLIES_AT_ONCE]
repeat_reply(many_oks, b"+OK\r\n", OK_BYTES)


cdef inline uint16_t footer_version(const uint8_t *footer) noexcept nogil:
    return footer[0] | (<uint16_t>footer[1] << 8)


cdef inline void restamp(uint8_t *footer, uint16_t version, uint64_t crc) noexcept nogil:
    """Give a footer another version, and its CRC64 with it; `crc` is that of the value alone.

    A footer that does not fit its value stays as it is, for the target to refuse: a fresh CRC over
    damaged bytes would pass them off as sound.
    """
    cdef int i
    cdef uint64_t found = crc64_update(crc, footer, 2)
    for i in range(8):
        if footer[2 + i] != ((found >> (8 * i)) & 0xff):
            return
    footer[0] = version & 0xff
    footer[1] = version >> 8
    crc = crc64_update(crc, footer, 2)
    for i in range(8):
        footer[2 + i] = (crc >> (8 * i)) & 0xff


@cython.final
cdef class RestoreEncoder:
    """Turns batches into `RESTORE key ttl value [REPLACE] [ABSTTL] [IDLETIME s | FREQ n]`.

    Args:
        replace: send REPLACE; without it the target answers BUSYKEY for a key that it has.
        highest_version: the highest RDB version that the target accepts in a footer.
        refused_low, refused_high: versions, both included, that it refuses though they are lower
            (Valkey 8.1 and later: 12 to 79). A refused footer is stamped anew with the lowest
            version that the value's type needs.
        guard: whose verdicts on module types hold; None: they are like other values.
        mset: send runs of plain strings as MSET; ValueError without `replace`. May be switched off
            between two batches.
        of_one_slot: the target is a cluster's node, which takes keys of one slot in a command.
        transcoder: what rewrites values that the target does not know (`ValueTranscoder`), kept here
            for whoever has the encoder.
    """
    cdef bint replace
    cdef readonly bint mset
    cdef bint of_one_slot
    cdef uint16_t highest_version
    cdef uint16_t refused_low
    cdef uint16_t refused_high
    cdef public ModuleGuard guard
    cdef public object transcoder
    # Of the value that is being streamed.
    cdef uint64_t stream_left
    cdef uint64_t stream_crc
    cdef int stream_type
    cdef uint8_t stream_footer[FOOTER_BYTES]
    cdef bint stream_begun
    cdef bytes stream_tail

    def __cinit__(
        self, *, bint replace=True, uint16_t highest_version=0xffff, uint16_t refused_low=1,
        uint16_t refused_high=0, bint mset=False, bint of_one_slot=False, ModuleGuard guard=None,
        transcoder=None,
    ):
        if mset and not replace:
            raise ValueError("MSET replaces what is there")
        self.replace = replace
        self.mset = mset
        self.of_one_slot = of_one_slot
        self.highest_version = highest_version
        self.refused_low = refused_low
        self.refused_high = refused_high
        self.guard = guard
        self.transcoder = transcoder

    cdef inline uint16_t stamp(self, int type, uint16_t version) noexcept nogil:
        """The version to send for a value of `type` whose footer says `version`."""
        cdef int flavour = FLAVOUR_VALKEY if version >= 80 else FLAVOUR_REDIS
        cdef uint16_t lowest
        if type < 0 or not self.refuses(version):
            return version
        if type < TYPES_KNOWN:
            return LOWEST_VERSION[type] if LOWEST_VERSION[type] else version
        # A target of the other flavour would misread it: that one refuses all its versions.
        lowest = walk_needed[flavour][type]
        return version if lowest == 0 or self.refuses(lowest) else lowest

    cdef inline bint refuses(self, uint16_t version) noexcept nogil:
        return version > self.highest_version or (
            self.refused_low <= version <= self.refused_high)

    cdef inline uint8_t *put_head(
        self, uint8_t *out, const Record *record, const uint8_t *key
    ) noexcept nogil:
        # Behind its DEL the key is gone; if it is not, the target says so.
        cdef bint replace = self.replace and not record.adds
        cdef int arguments = 4 + replace
        if self.replace and record.adds:
            out = put_array_header(out, 2)
            out = put_literal(out, "$3\r\nDEL\r\n", 9)
            out = put_bulk(out, key, record.key_size)
        if record.expire_at >= 0:
            arguments += 1
        if record.access >= 0:
            arguments += 2
        out = put_array_header(out, arguments)
        out = put_literal(out, "$7\r\nRESTORE\r\n", 13)
        out = put_bulk(out, key, record.key_size)
        if record.expire_at >= 0:
            # RESTORE reads a TTL of 0 as none; an expire time of 0 is long past, and so is 1.
            out = put_number_bulk(out, record.expire_at if record.expire_at > 0 else 1)
        else:
            out = put_literal(out, "$1\r\n0\r\n", 7)
        return put_bulk_header(out, record.value_size)

    cdef inline uint8_t *put_tail(
        self, uint8_t *out, const Record *record, bint access_is_freq
    ) noexcept nogil:
        out = put_literal(out, "\r\n", 2)
        if self.replace and not record.adds:
            out = put_literal(out, "$7\r\nREPLACE\r\n", 13)
        if record.expire_at >= 0:
            out = put_literal(out, "$6\r\nABSTTL\r\n", 12)
        if record.access >= 0:
            if access_is_freq:
                out = put_literal(out, "$4\r\nFREQ\r\n", 10)
            else:
                out = put_literal(out, "$8\r\nIDLETIME\r\n", 14)
            out = put_number_bulk(out, record.access)
        return out

    def encode(self, RecordBatch batch not None):
        """The whole batch as commands. ValueError for a streamed batch.

        No SELECT: one that failed inside a pipeline would put what follows into another database,
        so the connection's owner selects first and waits for the answer.
        """
        cdef OutputBuffer result
        cdef uint8_t *out
        cdef uint8_t *records = NULL
        cdef size_t i = 0, n
        cdef size_t replies = 0
        cdef size_t count = batch.arena.count
        if batch.streamed:
            raise ValueError("a streamed batch is encoded in pieces")
        cdef bint delete = self.replace and batch.adding
        cdef bint single = True
        result = new_output(
            batch.arena.size + batch.adding + count * RESTORE_OVERHEAD + 64)
        if (self.mset or delete) and count:
            result.runs = ReplyRuns.__new__(ReplyRuns)
            records = result.runs.records = <uint8_t *>PyMem_RawMalloc(2 * count)
            if records == NULL:
                raise MemoryError()
        out = result.data
        with nogil:
            while i < count:
                n = 0
                if self.mset:
                    out = self.put_strings(out, &batch.arena, i, batch.hashed, &n)
                if records != NULL:
                    if delete and n == 0 and batch.arena.records[i].adds:
                        # The reply to DEL is about no record.
                        records[replies] = 0
                        replies += 1
                        single = False
                    records[replies] = <uint8_t>(n if n else 1)
                    replies += 1
                    single = single and n <= 1
                if n:
                    i += n
                else:
                    out = self.put_record(out, &batch.arena, i, batch.access_is_freq)
                    i += 1
        result.size = out - result.data
        if records != NULL:
            result.runs.count = replies
            result.runs.single = single
        return result

    def command(self, bytes key not None, int64_t expire_at, bytes payload not None):
        """One RESTORE … REPLACE of a DUMP payload, its footer stamped for the target.

        `expire_at` in ms since the epoch, -1: never. ValueError for what is no payload.
        """
        payload = self.stamped(payload)
        if expire_at < 0:
            return encode_command(b"RESTORE", key, 0, payload, b"REPLACE")
        return encode_command(
            b"RESTORE", key, max(expire_at, 1), payload, b"REPLACE", b"ABSTTL")

    def stamped(self, bytes payload not None):
        """A DUMP payload with a footer that the target takes; the payload itself where its own is
        such a one. ValueError for what is no payload."""
        cdef size_t size = PyBytes_GET_SIZE(payload)
        cdef size_t body = size - FOOTER_BYTES
        cdef const uint8_t *value = <const uint8_t *>PyBytes_AS_STRING(payload)
        cdef uint8_t footer[FOOTER_BYTES]
        cdef uint16_t version, stamped
        if size <= FOOTER_BYTES:
            raise ValueError("a DUMP payload has more than ten bytes")
        memcpy(footer, value + body, FOOTER_BYTES)
        version = footer_version(footer)
        stamped = self.stamp(value[0], version)
        if stamped == version:
            return payload
        restamp(footer, stamped, crc64_update(0, value, body))
        return payload[:body] + PyBytes_FromStringAndSize(<char *>footer, FOOTER_BYTES)

    def use_restore_alone(self):
        """No MSET from now on: the target does not know it, or the user may not run it."""
        self.mset = False

    cdef inline uint8_t *put_strings(
        self, uint8_t *out, const Arena *arena, size_t first, bint hashed, size_t *taken
    ) noexcept nogil:
        """One MSET of the plain strings from record `first` on; `taken`: how many, maybe none."""
        cdef PlainString strings[MSET_KEYS]
        cdef const Record *record
        cdef const uint8_t *data
        cdef size_t most = min(arena.count - first, <size_t>MSET_KEYS)
        cdef size_t n = 0, i, size = 0
        cdef uint16_t slot = 0
        while n < most:
            record = &arena.records[first + n]
            if record.expire_at >= 0 or record.access >= 0:
                break
            data = arena.data + record.offset + record.key_size
            if n and size + record.value_size > MSET_BYTES:
                break
            if n and self.of_one_slot:
                # Without hash tags two keys that follow each other share a slot once in 16384 times,
                # unless they come slot by slot: to hash them costs more than it saves.
                if not record.follows if hashed else find_brace(
                        arena.data + record.offset, record.key_size) == NULL:
                    break
                if n == 1:
                    slot = slot_of(arena.data + arena.records[first].offset,
                                   arena.records[first].key_size)
                if slot_of(arena.data + record.offset, record.key_size) != slot:
                    break
            if not plain_string(data, record.value_size, record.unsealed, &strings[n]):
                break
            size += record.value_size
            n += 1
        taken[0] = n
        if n == 0:
            return out
        if n == 1:
            out = put_literal(out, "*3\r\n$4\r\nMSET\r\n", 14)
        else:
            out = put_array_header(out, 1 + 2 * n)
            out = put_literal(out, "$4\r\nMSET\r\n", 10)
        for i in range(n):
            record = &arena.records[first + i]
            out = put_bulk(out, arena.data + record.offset, record.key_size)
            data = strings[i].data if strings[i].data != NULL else strings[i].text
            out = put_bulk(out, data, strings[i].size)
        return out

    cdef inline uint8_t *put_record(
        self, uint8_t *out, const Arena *arena, size_t i, bint access_is_freq
    ) noexcept nogil:
        cdef const Record *record = &arena.records[i]
        cdef const uint8_t *key = arena.data + record.offset
        cdef const uint8_t *value = key + record.key_size
        cdef size_t body = record.value_size - FOOTER_BYTES
        cdef uint16_t version = footer_version(value + body)
        cdef uint16_t stamped = self.stamp(value[0], version)
        out = self.put_head(out, record, key)
        memcpy(out, value, record.value_size)
        out += record.value_size
        if record.unsealed:
            (out - FOOTER_BYTES)[0] = stamped & 0xff
            (out - FOOTER_BYTES)[1] = stamped >> 8
            seal_payload(out - record.value_size, record.value_size)
        elif stamped != version:
            restamp(out - FOOTER_BYTES, stamped, crc64_update(0, value, body))
        return self.put_tail(out, record, access_is_freq)

    # --- A value in pieces ---

    def begin(self, RecordBatch batch not None):
        """The head of the RESTORE of a streamed batch's one record. ValueError for others."""
        cdef OutputBuffer result
        cdef uint8_t *out
        cdef const Record *record
        cdef uint8_t tail[RESTORE_OVERHEAD]
        if not batch.streamed or batch.arena.count != 1:
            raise ValueError("not a streamed batch")
        if self.stream_begun:
            raise ValueError("another value is being streamed")
        record = &batch.arena.records[0]
        result = new_output(record.key_size + batch.adding + RESTORE_OVERHEAD + 64)
        if self.replace and record.adds:
            result.runs = ReplyRuns.__new__(ReplyRuns)
            result.runs.records = <uint8_t *>PyMem_RawMalloc(2)
            if result.runs.records == NULL:
                raise MemoryError()
            result.runs.records[0], result.runs.records[1] = 0, 1
            result.runs.count = 2
        out = result.data
        out = self.put_head(out, record, batch.arena.data + record.offset)
        result.size = out - result.data
        out = self.put_tail(tail, record, batch.access_is_freq)
        self.stream_tail = PyBytes_FromStringAndSize(<char *>tail, out - tail)
        self.stream_left = record.value_size
        self.stream_crc = 0
        self.stream_type = -1
        self.stream_begun = True
        return result

    def piece(self, bytes piece not None):
        """The next bytes of the streamed value; what to send for them.

        The footer is held back until it is whole; with it comes the end of the command.
        ValueError for more bytes than the value has.
        """
        cdef size_t n = PyBytes_GET_SIZE(piece)
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(piece)
        cdef size_t body, kept, at
        cdef uint16_t version, stamped
        if not self.stream_begun or n > self.stream_left:
            raise ValueError("more bytes than the streamed value has")
        if self.stream_type < 0 and n:
            self.stream_type = p[0]
        body = 0
        if self.stream_left > FOOTER_BYTES:
            body = min(<uint64_t>n, self.stream_left - FOOTER_BYTES)
        with nogil:
            self.stream_crc = crc64_update(self.stream_crc, p, body)
        if self.stream_left - n < FOOTER_BYTES:
            at = FOOTER_BYTES - (self.stream_left - body)
            kept = n - body
            memcpy(self.stream_footer + at, p + body, kept)
        self.stream_left -= n
        if self.stream_left:
            return piece if body == n else piece[:body]
        version = footer_version(self.stream_footer)
        stamped = self.stamp(self.stream_type, version)
        if stamped != version:
            restamp(self.stream_footer, stamped, self.stream_crc)
        self.stream_begun = False
        return (
            piece[:body]
            + PyBytes_FromStringAndSize(<char *>self.stream_footer, FOOTER_BYTES)
            + self.stream_tail)

    @property
    def streaming(self):
        """A value has begun and not ended."""
        return self.stream_begun

    def abandon(self):
        """Forget the value that is being streamed: the connection that it went over is gone."""
        self.stream_begun = False


cdef inline uint8_t *put_number_bulk(uint8_t *out, uint64_t n) noexcept nogil:
    """A number as a bulk: `$<digits>`, its digits."""
    out = put_bulk_header(out, decimal_digits(n))
    out = put_decimal(out, n)
    return put_literal(out, "\r\n", 2)


cdef enum:
    # Batches that are sent and not answered. The window's bytes bound them long before.
    EXPECTED_MOST = 1024


@cython.final
cdef class ReplyCounter:
    """Reads the replies to encoded batches; keeps a count of +OK and the errors, by index.

    One reply may stand for several records (MSET); it counts for each, and so does its error.
    `expect` in the order of sending; `received` after reading into `input`; `take` gives one
    `(ok, busy, errors)` for each batch that is answered whole, `errors` being a list of
    (index of the record, message). Replies of BUSYKEY are only counted when
    `count_busy` is set.
    """
    cdef readonly InputBuffer input
    cdef Input *bytes_in
    cdef bint count_busy
    cdef uint64_t expected[EXPECTED_MOST]     # records of each batch
    cdef const uint8_t *runs[EXPECTED_MOST]   # how many each reply stands for; NULL: one
    cdef object runs_kept                     # what owns them, in the same order
    cdef int head
    cdef readonly int waiting
    cdef uint64_t index                       # records answered, of the first batch
    cdef uint64_t replies                     # replies read, of the first batch
    cdef uint64_t ok
    cdef uint64_t busy
    cdef size_t line_start
    cdef size_t line_stop
    cdef const char *wanted
    cdef list errors
    cdef list done

    def __cinit__(self, *, bint count_busy=False):
        self.input = InputBuffer()
        self.bytes_in = &self.input.state
        self.count_busy = count_busy
        self.errors = []
        self.done = []
        self.runs_kept = collections.deque()

    @property
    def room(self):
        """Whether `expect` would be taken now."""
        return self.waiting < EXPECTED_MOST

    def expect(self, uint64_t count, ReplyRuns runs=None):
        """A batch of `count` records was sent; `runs` as the encoder gave them (`OutputBuffer`).

        ValueError for runs that do not add up to `count`.
        """
        cdef int last = (self.head + self.waiting) % EXPECTED_MOST
        cdef uint64_t sum = 0
        cdef size_t i
        if self.waiting == EXPECTED_MOST:
            raise ValueError("too many batches are not answered")
        self.runs[last] = NULL
        if runs is not None:
            for i in range(runs.count):
                sum += runs.records[i]
            if sum != count:
                raise ValueError("the runs are those of another batch")
            if not runs.single:
                self.runs[last] = runs.records
        self.runs_kept.append(runs)
        self.expected[last] = count
        self.waiting += 1
        if self.waiting == 1:
            self.finish_empty()

    cdef finish_empty(self):
        """Batches that nothing is owed for are done as soon as they are first in the queue."""
        while self.waiting and self.expected[self.head] == self.index:
            self.done.append((self.ok, self.busy, self.errors))
            self.errors = []
            self.ok = self.busy = self.index = self.replies = 0
            self.runs_kept.popleft()
            self.head = (self.head + 1) % EXPECTED_MOST
            self.waiting -= 1

    def take(self):
        """Results of the batches answered since the last call, in order."""
        done = self.done
        self.done = []
        return done

    def received(self, size_t n):
        """Take in `n` bytes that were read into `input`; returns how many results are ready.

        Raises `ProtocolError` for bytes that are no reply to RESTORE.
        """
        cdef ParseStop stop
        cdef size_t shown
        self.input.commit(n)
        while True:
            with nogil:
                stop = self.count_replies()
            if stop == STOP_NEED_DATA:
                return len(self.done)
            if stop == STOP_BATCH_FULL:
                self.finish_empty()
            elif stop == STOP_KEY_ERROR:
                text = PyBytes_FromStringAndSize(
                    <char *>self.bytes_in.data + self.line_start, self.line_stop - self.line_start
                ).decode("utf-8", "backslashreplace")
                for _ in range(self.stands_for()):
                    self.errors.append((self.index, text))
                    self.index += 1
                self.replies += 1
                if self.index == self.expected[self.head]:
                    self.finish_empty()
            else:
                shown = min(self.bytes_in.end - self.bytes_in.start, <size_t>32)
                found = PyBytes_FromStringAndSize(
                    <char *>self.bytes_in.data + self.bytes_in.start, shown)
                raise ProtocolError(
                    f"expected {(<bytes>self.wanted).decode()}, found {found!r} "
                    f"at byte {input_offset(self.bytes_in)}", input_offset(self.bytes_in))

    cdef inline uint64_t stands_for(self) noexcept nogil:
        """Records that the next reply is about."""
        cdef const uint8_t *runs = self.runs[self.head]
        return 1 if runs == NULL else runs[self.replies]

    cdef inline void count_ok(self) noexcept nogil:
        cdef uint64_t n = self.stands_for()
        self.index += n
        self.ok += n
        self.replies += 1

    cdef ParseStop count_replies(self) noexcept nogil:
        cdef Input *input = self.bytes_in
        cdef const uint8_t *data = input.data
        cdef uint64_t owed
        cdef size_t many
        cdef int64_t at
        cdef uint8_t kind
        while True:
            if input.start == input.end:
                return STOP_NEED_DATA
            if self.waiting == 0:
                self.wanted = "nothing: no reply is owed"
                return STOP_PROTOCOL
            owed = self.expected[self.head]
            if self.runs[self.head] == NULL:
                many = equal_replies(
                    data + input.start,
                    min(<uint64_t>((input.end - input.start) // OK_BYTES), owed - self.index),
                    many_oks, OK_BYTES)
                input.start += OK_BYTES * many
                self.index += many
                self.ok += many
                self.replies += many
            else:
                while input.end - input.start >= OK_BYTES and self.index < owed:
                    if memcmp(data + input.start, many_oks, OK_BYTES) != 0:
                        break
                    input.start += OK_BYTES
                    self.count_ok()
            if self.index == owed:
                return STOP_BATCH_FULL
            at = line_end(data, input.start, input.end)
            if at == -1:
                return STOP_NEED_DATA
            if at == -2:
                self.wanted = "a line that ends in CRLF"
                return STOP_PROTOCOL
            kind = data[input.start]
            if kind == 45:  # "-"
                self.line_start = input.start + 1
                self.line_stop = at
                if (self.count_busy and at - input.start >= 8
                        and memcmp(data + input.start + 1, b"BUSYKEY", 7) == 0):
                    input.start = at + 2
                    # Only RESTORE without REPLACE says so, and that is one record a reply.
                    self.busy += self.stands_for()
                    self.index += self.stands_for()
                    self.replies += 1
                    if self.index == owed:
                        return STOP_BATCH_FULL
                    continue
                input.start = at + 2
                return STOP_KEY_ERROR
            if kind == 58 and self.stands_for() == 0:  # ":", the reply to DEL
                input.start = at + 2
                self.replies += 1
                continue
            if kind != 43 or at - input.start != 3:
                self.wanted = "+OK or an error, the reply to RESTORE or MSET"
                return STOP_PROTOCOL
            # "+OK" that the loop above left because it was cut: whole by now.
            if memcmp(data + input.start, b"+OK", 3) != 0:
                self.wanted = "+OK or an error, the reply to RESTORE or MSET"
                return STOP_PROTOCOL
            input.start = at + 2
            self.count_ok()
            if self.index == owed:
                return STOP_BATCH_FULL
