# The scan path's side of the source: SCAN's keys in, TTL + DUMP requests out, records in.
#
# Replies come in the order of the requests, so what the next bytes must be is known from a short
# queue of what was asked: one SCAN at the most, and runs of keys. For each key the source answers
# its TTL, then (where it keeps one) its idle time or LFU counter, then DUMP. The parser below is a
# table of states, one branch each; it runs without the GIL and stops only to hand out a full batch,
# a piece of a long value, or an error.

cdef enum ScanState:
    REPLY_START
    SCAN_ARRAY
    SCAN_CURSOR
    SCAN_KEY_COUNT
    SCAN_KEY
    SCAN_KEY_BODY
    KEY_TIME
    KEY_TTL
    KEY_ACCESS
    KEY_DUMP
    VALUE_BODY
    VALUE_DISCARD
    VALUE_STREAM
    BODY_END

cdef enum ParseStop:
    STOP_NEED_DATA
    STOP_BATCH_FULL
    STOP_STREAM_BEGIN
    STOP_STREAM_PIECE
    STOP_KEY_ERROR
    STOP_RESTLESS
    STOP_SCAN_ERROR
    STOP_TOO_LONG
    STOP_PROTOCOL
    STOP_NO_MEMORY

cdef enum AskedKind:
    ASKED_SCAN
    ASKED_KEYS

cdef enum TtlCommand:
    TTL_PTTL
    TTL_PEXPIRETIME

cdef enum AccessCommand:
    ACCESS_NONE
    ACCESS_IDLETIME
    ACCESS_FREQ

cdef enum:
    # Requests under way: runs of keys, and one SCAN at the most, which always finds a place.
    ASKED_MOST = 64
    # PTTL is relative, so the source is asked for its clock before every so many keys of a run.
    TIME_EVERY = 16
    # Keys asked for again because they came into being between their TTL and their DUMP.
    AGAIN_MOST = 10000
    # Refused keys that are kept in one batch.
    ERRORS_MOST = 1000
    # Bytes of one request for values, beyond its last key; of keys that wait, a hostile SCAN's too.
    REQUEST_BYTES = 1 << 20
    KEYS_BYTES_MOST = 768 << 20
    KEY_BYTES_MOST = 512 << 20
    # Pages of SCAN whose keys are not all answered for.
    MARKS_MOST = 4096

cdef struct Asked:
    AskedKind kind
    uint64_t count
    uint64_t left

cdef struct Mark:
    # Once this many keys are answered for, every key before the cursor is.
    uint64_t keys
    uint64_t cursor

cdef const char *PTTL_HEAD = "*2\r\n$4\r\nPTTL\r\n"
cdef const char *PEXPIRETIME_HEAD = "*2\r\n$11\r\nPEXPIRETIME\r\n"
cdef const char *IDLETIME_HEAD = "*3\r\n$6\r\nOBJECT\r\n$8\r\nIDLETIME\r\n"
cdef const char *FREQ_HEAD = "*3\r\n$6\r\nOBJECT\r\n$4\r\nFREQ\r\n"
cdef const char *TIME_COMMAND = "*1\r\n$4\r\nTIME\r\n"
cdef const char *DUMP_HEAD = "*2\r\n$4\r\nDUMP\r\n"


# Replies to DUMP that are about the server or the user, not about the key.
SCAN_ENDING_CODES = frozenset({
    "LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN", "NOPERM", "NOAUTH",
})


cdef inline uint8_t *put_literal(uint8_t *out, const char *text, size_t n) noexcept nogil:
    memcpy(out, text, n)
    return out + n


@cython.final
cdef class ScanPipeline:
    """Requests and replies of one SCAN of one database over one connection.

    The caller owns the socket: it writes what `request_scan` and `request_values` return, reads
    into `input`, and calls `received` for what arrived; finished batches pile up in `take`.

    Args:
        db: number stamped on the batches; SELECT is the caller's business.
        cursor: where SCAN begins.
        ttl: "pexpiretime" (Redis 7.0, Valkey) or "pttl", which is anchored to the source's own
            clock by a TIME before the PTTLs of every 16 keys of a request: our clock when the reply is read would be off by
            as long as the reply was under way.
        access: None, "idletime" or "freq": what OBJECT is asked for each key.
        batch_bytes: a batch is closed before it would grow past this.
        stream_above: a longer value is not held: its batch is `streamed`, and its bytes follow.
        value_limit: a longer value is read to nothing and listed in the batch's `errors`.
    """
    cdef readonly InputBuffer input
    cdef Input *bytes_in               # the inside of `input`, for loops without the GIL
    cdef Arena arena
    cdef int db
    cdef TtlCommand ttl_command
    cdef AccessCommand access_command
    cdef int64_t source_ms             # the source's clock at the last TIME
    cdef int64_t ttls[TIME_EVERY]      # what PTTL said of the keys behind it
    cdef int ttls_read
    cdef uint64_t again_until          # no page is passed before so many keys are answered for
    cdef uint64_t again_count
    cdef size_t batch_bytes
    cdef size_t stream_above
    cdef size_t value_limit

    # Keys that SCAN named: [key_head, key_next) asked for, [key_next, key_tail) not yet. An entry
    # is its length (4 bytes, native order) and its bytes.
    cdef uint8_t *keys
    cdef size_t keys_capacity
    cdef size_t key_head
    cdef size_t key_next
    cdef size_t key_tail
    cdef readonly uint64_t queued      # named by SCAN, not asked for
    cdef readonly uint64_t outstanding  # asked for, not answered
    cdef readonly uint64_t named       # ever put into the queue
    cdef readonly uint64_t answered    # ever answered
    cdef uint64_t vanished

    cdef Asked asked[ASKED_MOST]
    cdef int asked_head
    cdef int asked_count
    cdef Mark marks[MARKS_MOST]
    cdef int marks_head
    cdef int marks_count

    # SCAN's own state.
    cdef readonly bint scanning        # a SCAN is under way
    cdef readonly bint scanned         # SCAN has come back to cursor 0
    cdef readonly uint64_t next_cursor  # for the next SCAN
    cdef uint64_t page_cursor
    cdef uint64_t page_keys_left
    cdef bint has_position
    cdef bint position_moved
    cdef uint64_t position             # every key before this cursor is answered for

    # The reply being read.
    cdef ScanState state
    cdef ScanState after_body
    cdef int64_t expire_at
    cdef int64_t access
    cdef bint ttl_missing
    cdef uint64_t body_left
    cdef uint64_t body_size
    cdef const char *expected
    cdef size_t line_start
    cdef size_t line_stop
    cdef size_t piece_start
    cdef size_t piece_size
    cdef readonly uint64_t value_bytes_total

    cdef list ready
    cdef list errors

    def __cinit__(
        self, int db=0, uint64_t cursor=0, *, str ttl="pexpiretime", access=None,
        size_t batch_bytes=1 << 20, size_t stream_above=4 << 20, size_t value_limit=512 << 20,
    ):
        self.input = InputBuffer()
        self.bytes_in = &self.input.state
        self.db = db
        self.next_cursor = cursor
        self.ttl_command = {"pttl": TTL_PTTL, "pexpiretime": TTL_PEXPIRETIME}[ttl]
        self.access_command = {
            None: ACCESS_NONE, "idletime": ACCESS_IDLETIME, "freq": ACCESS_FREQ}[access]
        self.batch_bytes = batch_bytes
        self.stream_above = stream_above
        self.value_limit = value_limit
        self.state = REPLY_START
        self.ready = []
        self.errors = []

    def __dealloc__(self):
        arena_free(&self.arena)
        PyMem_RawFree(self.keys)

    # --- What to send ---

    def request_scan(self, uint64_t count, match=None, key_type=None):
        """SCAN for the next page, encoded. ValueError unless `may_scan`."""
        if self.scanning or self.scanned:
            raise ValueError("a SCAN is under way, or has ended")
        if self.marks_count == MARKS_MOST:
            raise ValueError("too many pages are not answered for")
        cdef list command = [b"SCAN", b"%d" % self.next_cursor, b"COUNT", count]
        if match is not None:
            command += [b"MATCH", match]
        if key_type is not None:
            command += [b"TYPE", key_type]
        self.ask(ASKED_SCAN, 1)
        self.scanning = True
        return encode_command(*command)

    @property
    def may_scan(self):
        """Whether `request_scan` would be taken now."""
        return not self.scanning and not self.scanned and self.marks_count < MARKS_MOST

    def request_values(self, uint64_t most):
        """TTL, access and DUMP requests for up to `most` of the queued keys, encoded.

        Returns empty bytes when no key is queued, or too many requests are under way.
        """
        cdef uint64_t count = min(most, self.queued)
        cdef size_t head_bytes, size = 0, at = self.key_next, per_key
        cdef uint64_t i
        cdef uint32_t n
        cdef uint8_t *out
        cdef const uint8_t *key
        cdef const char *ttl_head
        cdef const char *access_head = NULL
        cdef size_t ttl_bytes, access_bytes = 0, dump_bytes = 14
        cdef int commands = 2
        if count == 0 or self.asked_count >= ASKED_MOST - 1:
            return b""
        if self.ttl_command == TTL_PTTL:
            ttl_head, ttl_bytes = PTTL_HEAD, 14
        else:
            ttl_head, ttl_bytes = PEXPIRETIME_HEAD, 22
        if self.access_command == ACCESS_IDLETIME:
            access_head, access_bytes, commands = IDLETIME_HEAD, 30, 3
        elif self.access_command == ACCESS_FREQ:
            access_head, access_bytes, commands = FREQ_HEAD, 26, 3
        head_bytes = ttl_bytes + access_bytes + dump_bytes
        for i in range(count):
            memcpy(&n, self.keys + at, 4)
            # "$" + length + CRLF + key + CRLF, for each command
            size += head_bytes + commands * (<size_t>5 + decimal_digits(n) + n)
            at += 4 + n
            if size > REQUEST_BYTES:
                count = i + 1
                break
        if self.ttl_command == TTL_PTTL:
            size += 14 * ((count + TIME_EVERY - 1) // TIME_EVERY)
        result = PyBytes_FromStringAndSize(NULL, size)
        out = <uint8_t *>PyBytes_AS_STRING(result)
        with nogil:
            at = self.key_next
            for i in range(count):
                if self.ttl_command == TTL_PTTL and i % TIME_EVERY == 0:
                    out = self.put_ttls(out, at, min(count - i, <uint64_t>TIME_EVERY))
                memcpy(&n, self.keys + at, 4)
                key = self.keys + at + 4
                if self.ttl_command != TTL_PTTL:
                    out = put_bulk(put_literal(out, ttl_head, ttl_bytes), key, n)
                if access_head != NULL:
                    out = put_bulk(put_literal(out, access_head, access_bytes), key, n)
                out = put_bulk(put_literal(out, DUMP_HEAD, dump_bytes), key, n)
                at += 4 + n
        self.ask(ASKED_KEYS, count)
        self.key_next = at
        self.queued -= count
        self.outstanding += count
        return result

    cdef uint8_t *put_ttls(self, uint8_t *out, size_t at, uint64_t count) noexcept nogil:
        """TIME and the PTTLs of `count` keys, with nothing between them that takes time."""
        cdef uint64_t i
        cdef uint32_t n
        out = put_literal(out, TIME_COMMAND, 14)
        for i in range(count):
            memcpy(&n, self.keys + at, 4)
            out = put_bulk(put_literal(out, PTTL_HEAD, 14), self.keys + at + 4, n)
            at += 4 + n
        return out

    cdef int ask(self, AskedKind kind, uint64_t count) except -1:
        cdef int last = (self.asked_head + self.asked_count) % ASKED_MOST
        if self.asked_count == ASKED_MOST:
            raise ValueError("too many requests are under way")
        self.asked[last] = Asked(kind, count, count)
        self.asked_count += 1
        return 0

    # --- What has come ---

    @property
    def queued_bytes(self):
        """Bytes of keys that SCAN named and that are not answered for."""
        return self.key_tail - self.key_head

    @property
    def bytes_received(self):
        """Bytes of replies read so far."""
        return input_offset(self.bytes_in)

    @property
    def finished(self):
        """SCAN has ended, every key is answered for."""
        return self.scanned and self.queued == 0 and self.outstanding == 0

    @property
    def safe_cursor(self):
        """Cursor before which every key has been answered for; None before the first page."""
        return self.position if self.has_position else None

    def take(self):
        """The finished batches and pieces of streamed values (bytes), in order; empties the list.
        """
        ready = self.ready
        self.ready = []
        return ready

    @property
    def has_ready(self):
        """Whether `take` would give something."""
        return bool(self.ready)

    @property
    def may_flush(self):
        """Whether `flush` would be taken now, and hand on anything."""
        if self.state == VALUE_BODY or self.state == VALUE_STREAM:
            return False
        return bool(
            self.arena.count or self.position_moved or len(self.errors) or self.vanished)

    def flush(self, bint last=False):
        """Close the open batch; with `last` a batch is made even if it is empty.

        ValueError in the middle of a value.
        """
        if self.state == VALUE_BODY or self.state == VALUE_STREAM:
            raise ValueError("a value is being read")
        if self.arena.count or last or self.errors or self.vanished or self.position_moved:
            self.close_batch(last)

    def received(self, size_t n):
        """Take in `n` bytes that were read into `input`.

        Returns how many items `take` would give. Raises `ProtocolError` for bytes that are no
        reply to what was asked, `ReplyError` where the source refused SCAN itself, `MemoryError`.
        After an exception the pipeline is of no more use.
        """
        cdef ParseStop stop
        self.input.commit(n)
        while True:
            with nogil:
                stop = self.parse()
            if stop == STOP_NEED_DATA:
                return len(self.ready)
            if stop == STOP_BATCH_FULL:
                self.close_batch(False)
            elif stop == STOP_STREAM_BEGIN:
                self.begin_stream()
            elif stop == STOP_STREAM_PIECE:
                self.ready.append(PyBytes_FromStringAndSize(
                    <char *>self.bytes_in.data + self.piece_start, self.piece_size))
            elif stop == STOP_KEY_ERROR:
                text = self.line_text()
                if text.partition(" ")[0] in SCAN_ENDING_CODES:
                    raise ReplyError(text)
                self.errors.append((self.current_key(), text))
                self.key_answered()
                if len(self.errors) >= ERRORS_MOST:
                    self.close_batch(False)
            elif stop == STOP_RESTLESS:
                self.errors.append((
                    self.current_key(), "it came into being anew each time it was asked for"))
            elif stop == STOP_TOO_LONG:
                self.errors.append((
                    self.current_key(),
                    f"its value, {self.body_size:,} bytes as dumped, is longer than the target "
                    f"takes in one bulk ({self.value_limit:,} bytes)"))
            elif stop == STOP_SCAN_ERROR:
                raise ReplyError(self.line_text())
            elif stop == STOP_NO_MEMORY:
                raise MemoryError()
            else:
                self.raise_protocol_error()

    cdef raise_protocol_error(self):
        cdef size_t shown = min(self.bytes_in.end - self.bytes_in.start, <size_t>32)
        found = PyBytes_FromStringAndSize(<char *>self.bytes_in.data + self.bytes_in.start, shown)
        raise ProtocolError(
            f"expected {(<bytes>self.expected).decode()}, found {found!r} "
            f"at byte {input_offset(self.bytes_in)}", input_offset(self.bytes_in))

    cdef str line_text(self):
        return PyBytes_FromStringAndSize(
            <char *>self.bytes_in.data + self.line_start, self.line_stop - self.line_start
        ).decode("utf-8", "backslashreplace")

    cdef bytes current_key(self):
        cdef uint32_t n
        memcpy(&n, self.keys + self.key_head, 4)
        return PyBytes_FromStringAndSize(<char *>self.keys + self.key_head + 4, n)

    cdef close_batch(self, bint last):
        cdef RecordBatch batch = RecordBatch.__new__(RecordBatch)
        batch.arena = self.arena
        memset(&self.arena, 0, sizeof(Arena))
        batch.db = self.db
        batch.value_bytes = self.value_bytes_total
        self.value_bytes_total = 0
        if self.position_moved:
            batch.cursor = self.position
            self.position_moved = False
        batch.last = last
        batch.vanished = self.vanished
        self.vanished = 0
        batch.errors = self.errors
        self.errors = []
        batch.access_is_freq = self.access_command == ACCESS_FREQ
        self.ready.append(batch)
        return batch

    cdef begin_stream(self):
        cdef RecordBatch batch
        if self.arena.count:
            self.close_batch(False)
        if not self.begin_record(0):
            raise MemoryError()
        self.arena.records[0].value_size = self.body_size
        self.value_bytes_total = self.body_size
        batch = self.close_batch(False)
        batch.streamed = True

    # --- The parser ---

    cdef inline bint reserve_key(self, size_t n) noexcept nogil:
        """Room for a key of `n` bytes at the tail of the queue."""
        cdef size_t need = 4 + n
        cdef size_t capacity
        cdef uint8_t *grown
        if self.keys_capacity - self.key_tail >= need:
            return True
        if self.key_head > 0 and self.key_head >= (self.keys_capacity >> 1):
            memmove(self.keys, self.keys + self.key_head, self.key_tail - self.key_head)
            self.key_next -= self.key_head
            self.key_tail -= self.key_head
            self.key_head = 0
            if self.keys_capacity - self.key_tail >= need:
                return True
        capacity = self.keys_capacity * 2 if self.keys_capacity else 64 * 1024
        if capacity < self.key_tail + need:
            capacity = self.key_tail + need
        grown = <uint8_t *>PyMem_RawRealloc(self.keys, capacity)
        if grown == NULL:
            return False
        self.keys = grown
        self.keys_capacity = capacity
        return True

    cdef inline void key_answered(self) noexcept nogil:
        """The key at the head of the queue is done with; so may be some pages of SCAN."""
        cdef uint32_t n
        memcpy(&n, self.keys + self.key_head, 4)
        self.key_head += 4 + n
        self.outstanding -= 1
        self.answered += 1
        self.asked[self.asked_head].left -= 1
        if self.asked[self.asked_head].left == 0:
            self.asked_head = (self.asked_head + 1) % ASKED_MOST
            self.asked_count -= 1
        if self.marks_count and self.marks[self.marks_head].keys <= self.answered:
            self.pass_marks()
        self.state = REPLY_START

    cdef void pass_marks(self) noexcept nogil:
        while (self.marks_count and self.marks[self.marks_head].keys <= self.answered
               and self.again_until <= self.answered):
            self.position = self.marks[self.marks_head].cursor
            self.has_position = True
            self.position_moved = True
            self.marks_head = (self.marks_head + 1) % MARKS_MOST
            self.marks_count -= 1

    cdef void page_ended(self) noexcept nogil:
        """A reply to SCAN is complete."""
        cdef int last = (self.marks_head + self.marks_count) % MARKS_MOST
        self.asked_head = (self.asked_head + 1) % ASKED_MOST
        self.asked_count -= 1
        self.scanning = False
        self.next_cursor = self.page_cursor
        if self.page_cursor == 0:
            self.scanned = True
        self.marks[last] = Mark(self.named, self.page_cursor)
        self.marks_count += 1
        self.pass_marks()
        self.state = REPLY_START

    cdef bint name_again(self) noexcept nogil:
        """Put the key at the head of the queue at its tail, too: its answers did not agree."""
        cdef uint32_t n
        memcpy(&n, self.keys + self.key_head, 4)
        if not self.reserve_key(n):
            return False
        memcpy(self.keys + self.key_tail, self.keys + self.key_head, 4 + n)
        self.key_tail += 4 + n
        self.queued += 1
        self.named += 1
        # The page that named it stands before it in the queue, and must not be passed yet.
        self.again_until = self.named
        self.again_count += 1
        return True

    cdef inline bint begin_record(self, size_t value_size) noexcept nogil:
        """A record for the key at the head of the queue, with room for its value."""
        cdef uint32_t n
        cdef Record *record
        memcpy(&n, self.keys + self.key_head, 4)
        if not arena_reserve(&self.arena, n + value_size, self.batch_bytes):
            return False
        record = &self.arena.records[self.arena.count]
        record.offset = self.arena.size
        record.key_size = n
        record.value_size = value_size
        record.expire_at = self.expire_at
        record.access = self.access
        if n:
            memcpy(self.arena.data + self.arena.size, self.keys + self.key_head + 4, n)
        self.arena.size += n
        self.arena.count += 1
        return True

    cdef inline ParseStop wrong(self, const char *expected) noexcept nogil:
        self.expected = expected
        return STOP_PROTOCOL

    cdef ParseStop parse(self) noexcept nogil:
        """Read replies until the bytes run out or something has to be handed over."""
        cdef Input *input = self.bytes_in
        cdef const uint8_t *data = input.data
        cdef int64_t at, number
        cdef size_t have, n
        cdef uint32_t key_size
        cdef uint8_t kind
        while True:
            # States that read a body: as much of it as is here.
            if self.state == VALUE_BODY:
                n = min(<uint64_t>(input.end - input.start), self.body_left)
                memcpy(self.arena.data + self.arena.size, data + input.start, n)
                self.arena.size += n
                input.start += n
                self.body_left -= n
                if self.body_left:
                    return STOP_NEED_DATA
                self.state = BODY_END
            elif self.state == SCAN_KEY_BODY:
                n = min(<uint64_t>(input.end - input.start), self.body_left)
                memcpy(self.keys + self.key_tail, data + input.start, n)
                self.key_tail += n
                input.start += n
                self.body_left -= n
                if self.body_left:
                    return STOP_NEED_DATA
                self.queued += 1
                self.named += 1
                self.page_keys_left -= 1
                self.state = BODY_END
            elif self.state == VALUE_DISCARD:
                n = min(<uint64_t>(input.end - input.start), self.body_left)
                input.start += n
                self.body_left -= n
                if self.body_left:
                    return STOP_NEED_DATA
                self.state = BODY_END
            elif self.state == VALUE_STREAM:
                if self.body_left:
                    n = min(<uint64_t>(input.end - input.start), self.body_left)
                    if n == 0:
                        return STOP_NEED_DATA
                    self.piece_start = input.start
                    self.piece_size = n
                    input.start += n
                    self.body_left -= n
                    return STOP_STREAM_PIECE
                self.state = BODY_END
            if self.state == BODY_END:
                if input.end - input.start < 2:
                    return STOP_NEED_DATA
                if data[input.start] != 13 or data[input.start + 1] != 10:
                    return self.wrong("CRLF behind a bulk")
                input.start += 2
                if self.after_body == SCAN_KEY:
                    if self.page_keys_left:
                        self.state = SCAN_KEY
                    else:
                        self.page_ended()
                else:
                    self.key_answered()
                continue

            # All others read a line.
            if self.state == REPLY_START:
                if input.end == input.start:
                    return STOP_NEED_DATA
                if self.asked_count == 0:
                    return self.wrong("nothing: no reply is owed")
                if self.asked[self.asked_head].kind == ASKED_SCAN:
                    self.state = SCAN_ARRAY
                elif self.ttl_command != TTL_PTTL:
                    self.state = KEY_TTL
                elif self.place_in_group() == 0:
                    self.state = KEY_TIME
                else:
                    self.begin_key(self.ttls[self.place_in_group()])
            at = line_end(data, input.start, input.end)
            if at == -1:
                return STOP_NEED_DATA
            if at == -2:
                return self.wrong("a line that ends in CRLF")
            kind = data[input.start]
            self.line_start = input.start + 1
            self.line_stop = at
            if kind == 45:  # "-": an error reply
                if self.state == SCAN_ARRAY:
                    return STOP_SCAN_ERROR
                if self.state == KEY_ACCESS:
                    self.access = -1
                    self.state = KEY_DUMP
                    input.start = at + 2
                    continue
                if self.state == KEY_DUMP:
                    input.start = at + 2
                    return STOP_KEY_ERROR
                if self.state == KEY_TTL or self.state == KEY_TIME:
                    # A value must not go over without its deadline: the scan ends here.
                    return STOP_SCAN_ERROR
                return self.wrong("an array, a bulk or an integer")
            if not parse_decimal(data + input.start + 1, data + at, &number):
                return self.wrong("a number")

            if self.state == KEY_TTL:
                if kind != 58:
                    return self.wrong("an integer, the reply to PTTL or PEXPIRETIME")
                if self.ttl_command != TTL_PTTL:
                    self.begin_key(number)
                else:
                    if number >= 0:
                        number = (self.source_ms + number if number < INT64_MAX - self.source_ms
                                  else INT64_MAX)
                    self.ttls[self.ttls_read] = number
                    self.ttls_read += 1
                    if self.ttls_read == self.group_size():
                        self.begin_key(self.ttls[0])
            elif self.state == KEY_TIME:
                if kind != 42 or number != 2:
                    return self.wrong("an array of two, the reply to TIME")
                at = self.read_time(at + 2)
                if at == -1:
                    return STOP_NEED_DATA
                if at == -2:
                    return self.wrong("seconds and microseconds, the reply to TIME")
                self.ttls_read = 0
                self.state = KEY_TTL
            elif self.state == KEY_ACCESS:
                if kind != 58 and not (kind == 36 and number == -1):
                    return self.wrong("an integer, the reply to OBJECT")
                self.access = number if kind == 58 and number >= 0 else -1
                self.state = KEY_DUMP
            elif self.state == KEY_DUMP:
                if kind != 36 or number < -1:
                    return self.wrong("a bulk, the reply to DUMP")
                if number == -1:
                    input.start = at + 2
                    self.vanished += 1
                    self.key_answered()
                    continue
                if number <= FOOTER_BYTES:
                    return self.wrong("a DUMP payload of more than ten bytes")
                memcpy(&key_size, self.keys + self.key_head, 4)
                n = <size_t>number
                if (self.arena.count and n <= self.stream_above
                        and not self.ttl_missing
                        and self.arena.size + key_size + n > self.batch_bytes):
                    # The line is read again for the next batch.
                    return STOP_BATCH_FULL
                self.body_size = n
                self.body_left = n
                self.after_body = KEY_TTL
                input.start = at + 2
                if self.ttl_missing:
                    # It came into being between the two commands: ask again for both.
                    self.state = VALUE_DISCARD
                    if self.again_count >= AGAIN_MOST:
                        return STOP_RESTLESS
                    if not self.name_again():
                        return STOP_NO_MEMORY
                elif n > self.value_limit:
                    self.state = VALUE_DISCARD
                    return STOP_TOO_LONG
                elif n > self.stream_above:
                    self.state = VALUE_STREAM
                    return STOP_STREAM_BEGIN
                else:
                    if not self.begin_record(n):
                        return STOP_NO_MEMORY
                    self.value_bytes_total += n
                    self.state = VALUE_BODY
                    have = input.end - input.start
                    if have >= n + 2:
                        memcpy(self.arena.data + self.arena.size, data + input.start, n)
                        if data[input.start + n] != 13 or data[input.start + n + 1] != 10:
                            return self.wrong("CRLF behind a bulk")
                        self.arena.size += n
                        input.start += n + 2
                        self.key_answered()
                continue
            elif self.state == SCAN_KEY:
                if kind != 36 or number < 0 or number > KEY_BYTES_MOST:
                    return self.wrong("a bulk, a key in the reply to SCAN")
                n = <size_t>number
                if self.key_tail - self.key_head + n > KEYS_BYTES_MOST:
                    return self.wrong("fewer bytes of keys in one reply to SCAN")
                if not self.reserve_key(n):
                    return STOP_NO_MEMORY
                key_size = <uint32_t>n
                memcpy(self.keys + self.key_tail, &key_size, 4)
                self.key_tail += 4
                self.body_left = n
                self.after_body = SCAN_KEY
                self.state = SCAN_KEY_BODY
            elif self.state == SCAN_ARRAY:
                if kind != 42 or number != 2:
                    return self.wrong("an array of two, the reply to SCAN")
                self.state = SCAN_CURSOR
            elif self.state == SCAN_CURSOR:
                if kind != 36 or number < 1 or number > 20:
                    return self.wrong("a bulk, the cursor in the reply to SCAN")
                n = <size_t>number
                if input.end - (at + 2) < n + 2:
                    return STOP_NEED_DATA
                if not self.read_cursor(data + at + 2, n):
                    return self.wrong("a cursor in the reply to SCAN")
                at += n + 2
                self.state = SCAN_KEY_COUNT
            elif self.state == SCAN_KEY_COUNT:
                if kind != 42 or number < 0 or number > SCAN_REPLY_KEYS_LIMIT:
                    return self.wrong("an array, the keys in the reply to SCAN")
                self.page_keys_left = number
                input.start = at + 2
                if number:
                    self.state = SCAN_KEY
                else:
                    self.page_ended()
                continue
            input.start = at + 2

    cdef inline void begin_key(self, int64_t expire_at) noexcept nogil:
        """Its TTL is known (-1: none, -2: no such key); what else was asked comes next."""
        self.ttl_missing = expire_at == -2
        self.expire_at = expire_at if expire_at >= 0 else -1
        self.access = -1
        self.state = KEY_DUMP if self.access_command == ACCESS_NONE else KEY_ACCESS

    cdef inline int place_in_group(self) noexcept nogil:
        """Of the key at the head of the queue, among those that share a TIME."""
        cdef Asked *run = &self.asked[self.asked_head]
        return <int>((run.count - run.left) % TIME_EVERY)

    cdef inline int group_size(self) noexcept nogil:
        return <int>min(self.asked[self.asked_head].left, <uint64_t>TIME_EVERY)

    cdef int64_t read_time(self, size_t start) noexcept nogil:
        """Read TIME's two bulks from `start`; index of their last CRLF, -1: not here yet, -2: bad.

        They are read in one go: 40 bytes, and read again if a cut lies in them.
        """
        cdef const uint8_t *data = self.bytes_in.data
        cdef int64_t numbers[2]
        cdef int64_t at = 0, length
        cdef int i
        for i in range(2):
            at = line_end(data, start, self.bytes_in.end)
            if at < 0:
                return at
            if data[start] != 36 or not parse_decimal(data + start + 1, data + at, &length):
                return -2
            start = at + 2
            at = line_end(data, start, self.bytes_in.end)
            if at < 0:
                return at
            if at - <int64_t>start != length or length > 12:
                return -2
            if not parse_decimal(data + start, data + at, &numbers[i]) or numbers[i] < 0:
                return -2
            start = at + 2
        self.source_ms = numbers[0] * 1000 + numbers[1] // 1000
        return at

    cdef bint read_cursor(self, const uint8_t *p, size_t n) noexcept nogil:
        """Cursors are unsigned 64-bit numbers: `parse_decimal` is too narrow for them."""
        cdef uint64_t value = 0
        cdef uint32_t digit
        cdef size_t i
        for i in range(n):
            digit = <uint32_t>p[i] - 48
            if digit > 9 or value > (<uint64_t>-1 - digit) // 10:
                return False
            value = value * 10 + digit
        if p[n] != 13 or p[n + 1] != 10:
            return False
        self.page_cursor = value
        return True
