# The scan path's side of the source: SCAN's keys in, requests for TTLs and values out, records in.
#
# Replies come in the order of the requests, so what the next bytes must be is known from a short
# queue of what was asked: SCANs, runs of keys in groups (scan_requests.pxi), and proofs
# (scan_without_ttls.pxi). The parser below is a table of states, one branch each; it runs without
# the GIL and stops only to hand out a full batch, a piece of a long value, or an error.
#
# MGET says nil for what is no string, and for what is gone: such keys are asked for again, by DUMP.
# So are those that came into being between their TTL and their value, and those whose TTL was not
# asked for and whose values were not proven. They wait in a queue of their own, and go first.
#
# The next cursor is known from a SCAN's reply alone, so that one page comes in a round trip. Where
# that is long a table is scanned in several ranges beside each other: a cursor says all that SCAN
# remembers, and stands for a place in the table's order (keys.pxi). A range ends at the page whose
# cursor reaches the beginning of the next one; the keys of that page beyond it were named by the
# next one, which is how they are told, and are left to it.

cdef enum ScanState:
    REPLY_START
    SCAN_ARRAY
    SCAN_CURSOR
    SCAN_KEY_COUNT
    SCAN_KEY
    SCAN_KEY_BODY
    GROUP_TIME
    KEY_TTL
    KEY_ACCESS
    KEY_DUMP
    GROUP_STRINGS
    KEY_STRING
    VALUE_BODY
    VALUE_DISCARD
    VALUE_STREAM
    BODY_END
    PROOF_KEYSPACE
    PROOF_PERSISTENCE

cdef enum ParseStop:
    STOP_NEED_DATA
    STOP_BATCH_FULL
    STOP_STREAM_BEGIN
    STOP_STREAM_PIECE
    STOP_STREAM_FOOTER
    STOP_KEY_ERROR
    STOP_RESTLESS
    STOP_SCAN_ERROR
    STOP_SCAN_ORDER
    STOP_TOO_LONG
    STOP_PROOF_PART
    STOP_PROTOCOL
    STOP_NO_MEMORY

cdef enum:
    # Keys asked for again because they came into being between their TTL and their value.
    AGAIN_MOST = 10000
    # Refused keys that are kept in one batch.
    ERRORS_MOST = 1000
    # Bytes of keys that wait, a hostile SCAN's too.
    KEYS_BYTES_MOST = 768 << 20
    KEY_BYTES_MOST = 512 << 20


# Replies to DUMP that are about the server or the user, not about the key.
SCAN_ENDING_CODES = frozenset({
    "LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN", "NOPERM", "NOAUTH",
})


cdef inline bint is_denied(const uint8_t *data, size_t begin, size_t end) noexcept nogil:
    """Whether an error reply says that the user may not run the command, or that there is none."""
    cdef size_t n = end - begin
    if n >= 7 and memcmp(data + begin, b"NOPERM ", 7) == 0:
        return True
    return n >= 19 and memcmp(data + begin, b"ERR unknown command", 19) == 0


cdef inline int64_t wall_clock_ms() noexcept nogil:
    """Milliseconds since the epoch by this machine's clock."""
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1000000


@cython.final
cdef class ScanPipeline:
    """Requests and replies of one SCAN of one database over one connection.

    The caller owns the socket: it writes what `request_scan` and `request_values` return, reads
    into `input`, and calls `received` for what arrived; finished batches pile up in `take`.

    Args:
        db: number stamped on the batches, and looked up in proofs; SELECT is the caller's business.
        cursor: where SCAN begins.
        ranges: instead of `cursor`, up to 64 pairs of where a range's SCAN begins and where it
            ends (0: at the end of the table). The server has to be one whose cursors are turned
            numbers of buckets.
        keys: how many keys the table has, about: SCAN is asked for fewer at the end of a range.
        ttl: "pexpiretime" (Redis 7.0, Valkey) or "pttl", which is anchored to the source's own
            clock by a TIME before the PTTLs of a group of keys: our clock when the reply is read
            would be off by as long as the reply was under way. It is what counts where the source
            denies TIME.
        access: None, "idletime" or "freq": what OBJECT is asked for each key.
        batch_bytes: a batch is closed before it would grow past this.
        stream_above: a longer value is not held: its batch is `streamed`, and its bytes follow.
        value_limit: a longer string is read to nothing and listed in the batch's `errors`.
        made_limit: what comes by DUMP only if it is longer than this, if that is more.
        rules: keys that they leave are passed over and counted in `excluded`; where that takes the
            type, once the value has begun to come.
        flavour: "redis" or "valkey": which of them numbers the types of this server's payloads.

    Attributes:
        strings, string_bytes, others: plain strings read so far, the bytes of their payloads, and
            values of other types (LZF-compressed strings count as strings).
        named, named_bytes: names that SCAN gave, and their bytes.
        excluded, excluded_bytes: keys that the rules leave, and the bytes of their names where
            these were enough to tell.
        proven, unproven: proofs that held, and that did not.
        mget_refused: the source answered MGET with an error.
        disordered: the cursors of this server are not those of a table that ranges could be scanned
            of: it has to be scanned in one range, from the beginning. `received` has raised
            `ReplyError`.
    """
    cdef readonly InputBuffer input
    cdef Input *bytes_in               # the inside of `input`, for loops without the GIL
    cdef Arena arena
    cdef size_t tail_count             # records at its end that are not proven
    cdef int db
    cdef TtlCommand ttl_command
    cdef AccessCommand access_command
    cdef int64_t source_ms             # the source's clock at the last TIME
    cdef int64_t ttls[MGET_KEYS_MOST]  # of the group being read
    cdef int64_t accesses[MGET_KEYS_MOST]
    cdef uint64_t ttls_read
    cdef uint64_t accesses_read
    cdef uint64_t restless_count
    cdef size_t batch_bytes
    cdef size_t stream_above
    cdef size_t value_limit
    cdef size_t made_limit

    cdef KeyQueue first                # as SCAN named them
    cdef KeyQueue again                # to be asked for by DUMP, with TTLs, before all others
    cdef Pages pages
    cdef Run runs[RUNS_MOST]
    cdef int runs_head
    cdef int runs_count
    cdef uint64_t held                 # answered and not proven
    cdef readonly uint64_t named       # ever named by SCAN
    cdef readonly uint64_t named_bytes # of those names
    cdef readonly uint64_t answered    # ever answered; a key that is asked again counts twice
    cdef uint64_t vanished
    cdef KeyRules rules
    cdef bint has_rules
    cdef bint by_type
    cdef int flavour_number
    cdef readonly uint64_t excluded
    cdef readonly uint64_t excluded_bytes

    # Proofs: whether the last run was followed by one, and what the last one to be read said.
    cdef bint linked
    cdef tuple proof
    cdef bytes proof_keyspace
    cdef readonly uint64_t proven
    cdef readonly uint64_t unproven
    cdef readonly bint mget_refused
    cdef readonly bint disordered
    cdef readonly uint64_t strings
    cdef readonly uint64_t string_bytes
    cdef readonly uint64_t others

    # SCAN's own state; the ranges are in `pages`.
    cdef readonly uint32_t scanning    # SCANs that are under way
    cdef uint32_t scanned_ranges
    cdef uint32_t ranges_count
    cdef int runs_most
    cdef uint32_t range_turn           # the range that is asked for first
    cdef uint64_t keys_expected
    cdef uint64_t page_cursor
    cdef uint64_t page_keys_left
    cdef uint32_t name_size            # of the key that is being named
    cdef bint page_reaches_over        # into the range that follows
    cdef FirstNames *firsts            # of each range, where there are several
    cdef Sip name_digest               # to be gone on with, for each name

    # The reply being read.
    cdef ScanState state
    cdef ScanState after_body
    cdef KeyFate fate                  # of the key whose value is being read
    cdef int64_t expire_at
    cdef int64_t access
    cdef bint ttl_missing
    cdef ScanState proof_state         # which part of a proof is being read to nothing
    cdef bint raw                      # the value comes from MGET: head and footer are ours
    cdef uint64_t stream_crc
    cdef uint64_t body_left
    cdef uint64_t body_size            # of the payload
    cdef const char *expected
    cdef size_t line_start
    cdef size_t line_stop
    cdef size_t piece_start
    cdef size_t piece_size
    cdef readonly uint64_t value_bytes_total

    cdef list ready
    cdef list errors

    def __cinit__(
        self, int db=0, uint64_t cursor=0, *, ranges=(), uint64_t keys=0,
        str ttl="pexpiretime", access=None,
        size_t batch_bytes=1 << 20, size_t stream_above=4 << 20, size_t value_limit=512 << 20,
        size_t made_limit=0, KeyRules rules=None, str flavour="redis",
    ):
        cdef bytes digest_key
        self.input = InputBuffer()
        self.bytes_in = &self.input.state
        self.db = db
        self.keys_expected = keys
        if len(ranges) > RANGES_MOST:
            raise ValueError(f"{len(ranges)} ranges; at most {RANGES_MOST}")
        for begin, stop in ranges or ((cursor, 0),):
            self.pages.ranges[self.ranges_count] = TableRange(
                begin, stop, begin, False, False, False,
                self.ranges_count > 0
                and self.pages.ranges[self.ranges_count - 1].stop == <uint64_t>begin)
            self.ranges_count += 1
        if self.ranges_count > 1:
            self.firsts = <FirstNames *>PyMem_RawCalloc(self.ranges_count, sizeof(FirstNames))
            if self.firsts == NULL:
                raise MemoryError()
            digest_key = os.urandom(16)
            sip_begin(&self.name_digest, <const uint8_t *>PyBytes_AS_STRING(digest_key))
        self.runs_most = RUNS_MOST if self.ranges_count > 1 else RUNS_MOST_OF_ONE
        self.ttl_command = {"pttl": TTL_PTTL, "pexpiretime": TTL_PEXPIRETIME}[ttl]
        self.access_command = {
            None: ACCESS_NONE, "idletime": ACCESS_IDLETIME, "freq": ACCESS_FREQ}[access]
        self.batch_bytes = batch_bytes
        self.stream_above = stream_above
        self.value_limit = value_limit
        self.made_limit = max(made_limit, value_limit)
        self.rules = rules
        self.has_rules = rules is not None
        self.by_type = rules is not None and rules.by_type
        self.flavour_number = FLAVOUR_VALKEY if flavour == "valkey" else FLAVOUR_REDIS
        self.state = REPLY_START
        self.ready = []
        self.errors = []

    def __dealloc__(self):
        arena_free(&self.arena)
        PyMem_RawFree(self.first.data)
        PyMem_RawFree(self.again.data)
        PyMem_RawFree(self.firsts)

    # --- What to send ---

    def request_scan(self, uint64_t count, match=None, key_type=None):
        """SCAN for the next page of the next range, encoded. ValueError unless `may_scan`."""
        cdef uint32_t i, n = RANGES_MOST
        cdef TableRange *part
        for i in range(self.ranges_count):
            n = (self.range_turn + i) % self.ranges_count
            if not (self.pages.ranges[n].scanning or self.pages.ranges[n].scanned):
                break
        else:
            raise ValueError("SCANs are under way, or have ended")
        if self.pages.count + self.scanning >= PAGES_MOST:
            raise ValueError("too many pages are not answered for")
        self.range_turn = n + 1
        part = &self.pages.ranges[n]
        count = self.count_to_end(part, count)
        cdef list command = [b"SCAN", b"%d" % part.next, b"COUNT", count]
        if match is not None:
            command += [b"MATCH", match]
        if key_type is not None:
            command += [b"TYPE", key_type]
        self.ask(Run(RUN_SCAN, False, False, TTL_NONE, 1, 1, 1, n))
        part.scanning = True
        self.scanning += 1
        return encode_command(*command)

    cdef uint64_t count_to_end(self, const TableRange *part, uint64_t count) noexcept nogil:
        """`count`, or what the range still has, so that few keys behind its end come twice."""
        cdef uint64_t left
        if part.stop == 0 or self.keys_expected == 0:
            return count
        left = <uint64_t>(
            <double>(turned(part.stop) - turned(part.next)) / 18446744073709551616.0
            * <double>self.keys_expected)
        # Some more, for hashes do not fall evenly, and one page more takes a round trip.
        return min(count, left + left // 16 + 16)

    @property
    def may_scan(self):
        """Whether `request_scan` would be taken now."""
        return (self.scanning + self.scanned_ranges < self.ranges_count
                and self.pages.count + self.scanning < PAGES_MOST)

    @property
    def scanned(self):
        """Whether SCAN has come to the end of every range."""
        return self.scanned_ranges == self.ranges_count

    def request_values(self, uint64_t most, *, uint64_t mget=0, bint without_ttl=False):
        """Requests for up to `most` of the queued keys, encoded; those asked again go first.

        `mget`: keys in one MGET; 0: by DUMP. `without_ttl`: TTLs are not asked for, and the values
        count once it is proven that no key has one. Keys asked again are asked for by DUMP and with
        TTLs whatever is said. Returns empty bytes when no key is queued, or too many requests are
        under way. ValueError for an `mget` above 64.
        """
        cdef uint64_t count = min(most, self.again.queued)
        cdef TtlCommand ttl = self.ttl_command
        cdef bytes result = b""
        cdef Run run
        if mget > MGET_KEYS_MOST:
            raise ValueError(f"MGET of {mget} keys; at most {MGET_KEYS_MOST}")
        # A proof on either side; and SCAN's own places.
        if self.runs_count + (2 if without_ttl else 0) + self.ranges_count >= self.runs_most:
            return b""
        if count:
            run = Run(RUN_VALUES, True, False, ttl, TIME_EVERY if ttl == TTL_PTTL else 1, count, 0, 0)
            result = encode_run(&self.again, &run, self.access_command)
            self.ask(run)
            most -= count
        count = min(most, self.first.queued)
        if count == 0 or self.runs_count + (2 if without_ttl else 0) + self.ranges_count >= self.runs_most:
            return result
        if without_ttl:
            ttl = TTL_NONE
            if not self.linked:
                result += self.ask_proof()
        run = Run(RUN_VALUES, False, mget > 0, ttl, 1, count, 0, 0)
        if mget:
            run.group = mget
        elif ttl == TTL_PTTL:
            run.group = TIME_EVERY
        result += encode_run(&self.first, &run, self.access_command)
        self.ask(run)
        self.linked = without_ttl
        if without_ttl:
            result += self.ask_proof()
        return result

    cdef bytes ask_proof(self):
        self.ask(Run(RUN_PROOF, False, False, TTL_NONE, 1, 1, 1, 0))
        return PROOF_COMMANDS

    cdef int ask(self, Run run) except -1:
        cdef int last = (self.runs_head + self.runs_count) % RUNS_MOST
        if self.runs_count == RUNS_MOST:
            raise ValueError("too many requests are under way")
        self.runs[last] = run
        self.runs_count += 1
        return 0

    # --- What has come ---

    @property
    def queued(self):
        """Keys that are not asked for, or to be asked for again."""
        return self.first.queued + self.again.queued

    @property
    def outstanding(self):
        """Keys asked for and not answered."""
        return self.first.outstanding + self.again.outstanding

    @property
    def waiting(self):
        """Keys that are not answered for. Not proven and to be asked again, one counts twice."""
        return self.queued + self.outstanding + self.held

    @property
    def owed(self):
        """Replies of any kind are due."""
        return self.runs_count > 0

    @property
    def queued_bytes(self):
        """Bytes that the `waiting` keys take."""
        return self.first.tail - self.first.head + self.again.tail - self.again.head

    @property
    def bytes_received(self):
        """Bytes of replies read so far."""
        return input_offset(self.bytes_in)

    @property
    def finished(self):
        """SCAN has ended, every key is answered for."""
        return self.scanned and self.runs_count == 0 and self.queued == 0

    @property
    def safe_cursor(self):
        """Cursor of the first range before which every key has been answered for; None before the
        first page."""
        return self.pages.ranges[0].passed if self.pages.any else None

    cdef tuple open_ranges(self):
        """(cursor before which every key of it is answered for, end) of each unfinished range."""
        return tuple([
            (self.pages.ranges[i].passed, self.pages.ranges[i].stop)
            for i in range(self.ranges_count) if not self.pages.ranges[i].over
        ])

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
            self.arena.count > self.tail_count or self.pages.moved or len(self.errors)
            or self.vanished)

    def flush(self, bint last=False):
        """Close the open batch; with `last` a batch is made even if it is empty.

        What is not proven yet stays. ValueError in the middle of a value.
        """
        if self.state == VALUE_BODY or self.state == VALUE_STREAM:
            raise ValueError("a value is being read")
        if last or self.may_flush:
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
            elif stop == STOP_STREAM_FOOTER:
                self.end_stream()
            elif stop == STOP_PROOF_PART:
                self.read_proof(PyBytes_FromStringAndSize(
                    <char *>self.bytes_in.data + self.piece_start, self.piece_size))
            elif stop == STOP_KEY_ERROR:
                text = self.line_text()
                if text.partition(" ")[0] in SCAN_ENDING_CODES:
                    raise ReplyError(text)
                self.errors.append((self.current_key(), text))
                self.key_answered(FATE_DONE)
                if len(self.errors) >= ERRORS_MOST:
                    self.close_batch(False)
            elif stop == STOP_RESTLESS:
                self.errors.append((
                    self.current_key(), "it came into being anew each time it was asked for"))
            elif stop == STOP_TOO_LONG:
                self.errors.append((
                    self.current_key(),
                    f"its value, {self.body_size:,} bytes as dumped, is longer than the target "
                    f"takes in one bulk, its proto-max-bulk-len ({self.value_limit:,} bytes)"))
            elif stop == STOP_SCAN_ERROR:
                raise ReplyError(self.line_text())
            elif stop == STOP_SCAN_ORDER:
                self.disordered = True
                raise ReplyError("SCAN's cursors are not in the order of a table's buckets")
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
        cdef KeyQueue *queue = self.queue()
        return PyBytes_FromStringAndSize(
            <char *>queue_name(queue, queue.at), queue_entry(queue, queue.at).size)

    # --- Batches ---

    cdef close_batch(self, bint last):
        """What is proven becomes a batch; the arena's tail begins the next one."""
        cdef RecordBatch batch = RecordBatch.__new__(RecordBatch)
        cdef Arena tail
        cdef uint64_t tail_bytes = 0
        memset(&tail, 0, sizeof(Arena))
        if self.tail_count and not arena_split(
                &self.arena, self.arena.count - self.tail_count, self.batch_bytes, &tail):
            raise MemoryError()
        batch.arena = self.arena
        self.arena = tail
        tail_bytes = arena_value_bytes(&tail, 0)
        batch.db = self.db
        batch.value_bytes = self.value_bytes_total - tail_bytes
        self.value_bytes_total = tail_bytes
        if self.pages.moved:
            if self.ranges_count == 1 and self.pages.ranges[0].stop == 0:
                batch.cursor = self.pages.ranges[0].passed
            else:
                batch.ranges = self.open_ranges()
            self.pages.moved = False
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
        cdef uint8_t head[STRING_HEAD_MOST]
        cdef size_t n
        if self.arena.count:
            self.close_batch(False)
        if not self.begin_record(0):
            raise MemoryError()
        self.arena.records[0].value_size = self.body_size
        self.value_bytes_total = self.body_size
        batch = self.close_batch(False)
        batch.streamed = True
        if self.raw:
            n = put_string_head(head, self.body_left) - head
            self.stream_crc = crc64_update(0, head, n)
            self.ready.append(PyBytes_FromStringAndSize(<char *>head, n))

    cdef end_stream(self):
        cdef uint8_t footer[FOOTER_BYTES]
        put_footer(footer, self.stream_crc)
        self.ready.append(PyBytes_FromStringAndSize(<char *>footer, FOOTER_BYTES))

    # --- Proofs ---

    cdef read_proof(self, bytes text):
        """One of the two replies of a proof has come; None: the source refused it."""
        if self.state == PROOF_KEYSPACE:
            self.proof_keyspace = text
            self.state = PROOF_PERSISTENCE
            return
        proof = proof_of(self.proof_keyspace, text, self.db)
        held = proof is not None and proof == self.proof
        self.proof = proof
        if self.first.at > self.first.head:
            if held:
                self.proven += 1
            else:
                self.unproven += 1
            self.settle_held(held)
        self.run_answered()

    cdef settle_held(self, bint proven):
        """The keys that were read without TTLs are answered for, or asked again with them."""
        cdef KeyQueue *queue = &self.first
        cdef KeyHead entry
        if not proven:
            self.value_bytes_total -= arena_value_bytes(
                &self.arena, self.arena.count - self.tail_count)
            arena_cut(&self.arena, self.arena.count - self.tail_count)
        self.tail_count = self.held = 0
        while queue.head < queue.at:
            entry = queue_entry(queue, queue.head)
            if entry.fate == FATE_READ and not proven:
                if not queue_copy(&self.again, queue, queue.head):
                    raise MemoryError()
            elif entry.fate != FATE_AGAIN:
                key_settled(&self.pages, entry.page)
            queue.head += sizeof(KeyHead) + entry.size

    # --- The parser ---

    cdef inline KeyQueue *queue(self) noexcept nogil:
        """That of the run being answered."""
        return &self.again if self.runs[self.runs_head].again else &self.first

    cdef inline void run_answered(self) noexcept nogil:
        self.runs_head = (self.runs_head + 1) % RUNS_MOST
        self.runs_count -= 1
        self.state = REPLY_START

    cdef inline void key_answered(self, KeyFate fate) noexcept nogil:
        """The next key of the run is done with; so may be some pages of SCAN."""
        cdef Run *run = &self.runs[self.runs_head]
        cdef KeyQueue *queue = self.queue()
        cdef KeyHead entry = queue_entry(queue, queue.at)
        if run.ttl == TTL_NONE:
            self.held += 1
            entry.fate = fate
            memcpy(queue.data + queue.at, &entry, sizeof(KeyHead))
            queue.at += sizeof(KeyHead) + entry.size
        else:
            queue.at += sizeof(KeyHead) + entry.size
            queue.head = queue.at
            if fate != FATE_AGAIN:
                key_settled(&self.pages, entry.page)
        queue.outstanding -= 1
        self.answered += 1
        run.left -= 1
        if run.left == 0:
            self.run_answered()
        self.state = REPLY_START

    cdef inline bint reaches_over(self) noexcept nogil:
        """Whether the page that begins may name keys of the range that follows."""
        cdef uint32_t n = self.runs[self.runs_head].part
        return (n + 1 < self.ranges_count and self.pages.ranges[n + 1].follows
                and range_ends(&self.pages.ranges[n], self.page_cursor)
                and self.page_cursor != self.pages.ranges[n].stop)

    cdef bint named_twice(self, uint32_t size) noexcept nogil:
        """Whether the name of `size` bytes at the queue's tail was named by the range that follows;
        the first names of each range are noted."""
        cdef uint32_t n = self.runs[self.runs_head].part
        cdef bint first = self.pages.ranges[n].follows and self.firsts[n].count < FIRST_NAMES_MOST
        cdef Sip digest = self.name_digest
        cdef uint64_t low, high
        if not (first or self.page_reaches_over):
            return False
        sip_update(&digest, self.first.data + self.first.tail - size, size)
        sip_finish(&digest, &low, &high)
        if self.page_reaches_over and first_names_have(&self.firsts[n + 1], low, high):
            return True
        if first:
            first_names_add(&self.firsts[n], low, high)
        return False

    cdef void page_ended(self) noexcept nogil:
        """A reply to SCAN is complete."""
        cdef TableRange *part = &self.pages.ranges[self.runs[self.runs_head].part]
        page_of(&self.pages, pages_last(&self.pages)).complete = True
        self.scanning -= 1
        part.scanning = False
        part.next = self.page_cursor
        if range_ends(part, self.page_cursor):
            part.scanned = True
            self.scanned_ranges += 1
        pages_pass(&self.pages)
        self.run_answered()

    cdef inline bint takes_type(self, uint8_t type) noexcept nogil:
        """Whether the rules take the key whose answer is being read, by the type of its value."""
        cdef KeyQueue *queue = self.queue()
        return self.rules.judge(
            self.db, rule_kind(self.flavour_number, type), queue_name(queue, queue.at),
            queue_entry(queue, queue.at).size) == RULES_TAKE

    cdef inline bint name_again(self) noexcept nogil:
        """Have the key whose answer is being read asked for again."""
        cdef KeyQueue *queue = self.queue()
        return queue_copy(&self.again, queue, queue.at)

    cdef inline bint begin_record(self, size_t value_size) noexcept nogil:
        """A record for the key whose answer is being read, with room for its value."""
        cdef KeyQueue *queue = self.queue()
        cdef uint32_t n = queue_entry(queue, queue.at).size
        cdef Record *record
        if not arena_reserve(&self.arena, n + value_size, self.batch_bytes):
            return False
        record = &self.arena.records[self.arena.count]
        record.offset = self.arena.size
        record.key_size = n
        record.value_size = value_size
        record.expire_at = self.expire_at
        record.access = self.access
        record.adds = record.unsealed = record.loss = False
        if n:
            memcpy(self.arena.data + self.arena.size, queue_name(queue, queue.at), n)
        self.arena.size += n
        self.arena.count += 1
        return True

    cdef inline void end_record(self) noexcept nogil:
        """The bytes of a value that is kept are all there."""
        cdef Record *record = &self.arena.records[self.arena.count - 1]
        cdef uint8_t *payload = self.arena.data + record.offset + record.key_size
        if self.raw:
            put_version(self.arena.data + self.arena.size)
            record.unsealed = True
            self.arena.size += FOOTER_BYTES
        if payload[0] == STRING_TYPE:
            self.strings += 1
            self.string_bytes += record.value_size
        else:
            self.others += 1
        if self.runs[self.runs_head].ttl == TTL_NONE:
            self.tail_count += 1

    cdef inline ParseStop wrong(self, const char *expected) noexcept nogil:
        self.expected = expected
        return STOP_PROTOCOL

    cdef ParseStop parse(self) noexcept nogil:
        """Read replies until the bytes run out or something has to be handed over."""
        cdef Input *input = self.bytes_in
        cdef const uint8_t *data = input.data
        cdef ParseStop stop
        cdef int64_t at, number
        cdef size_t n
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
                self.end_record()
                self.state = BODY_END
            elif self.state == SCAN_KEY_BODY:
                n = min(<uint64_t>(input.end - input.start), self.body_left)
                memcpy(self.first.data + self.first.tail, data + input.start, n)
                self.first.tail += n
                input.start += n
                self.body_left -= n
                if self.body_left:
                    return STOP_NEED_DATA
                self.named += 1
                self.named_bytes += self.name_size
                if self.has_rules and self.rules.judge(
                        self.db, RULE_ANY, self.first.data + self.first.tail - self.name_size,
                        self.name_size) == RULES_LEAVE:
                    self.first.tail -= sizeof(KeyHead) + self.name_size
                    self.excluded += 1
                    self.excluded_bytes += self.name_size
                elif self.firsts != NULL and self.named_twice(self.name_size):
                    self.first.tail -= sizeof(KeyHead) + self.name_size
                else:
                    self.first.queued += 1
                    page_of(&self.pages, pages_last(&self.pages)).open += 1
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
                    if self.raw:
                        self.stream_crc = crc64_update(self.stream_crc, data + input.start, n)
                    input.start += n
                    self.body_left -= n
                    return STOP_STREAM_PIECE
                self.state = BODY_END
                if self.raw:
                    return STOP_STREAM_FOOTER
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
                elif self.after_body == PROOF_KEYSPACE:
                    # Too long to be looked at.
                    self.state = self.proof_state
                    self.piece_size = 0
                    return STOP_PROOF_PART
                else:
                    self.key_answered(self.fate)
                continue

            # All others read a line.
            if self.state == REPLY_START:
                if input.end == input.start:
                    return STOP_NEED_DATA
                if self.runs_count == 0:
                    return self.wrong("nothing: no reply is owed")
                self.begin_reply()
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
                if self.state == GROUP_TIME and is_denied(data, self.line_start, at):
                    self.source_ms = wall_clock_ms()
                    self.state = KEY_TTL
                    input.start = at + 2
                    continue
                if self.state == KEY_TTL or self.state == GROUP_TIME:
                    # A value must not go over without its expire time: the scan ends here.
                    return STOP_SCAN_ERROR
                input.start = at + 2
                if self.state == KEY_ACCESS:
                    self.access_read(-1)
                elif self.state == KEY_DUMP:
                    return STOP_KEY_ERROR
                elif self.state == GROUP_STRINGS:
                    # DUMP may be allowed, or tell of which key the refusal is.
                    self.mget_refused = True
                    n = self.group_size()
                    while n:
                        if not self.name_again():
                            return STOP_NO_MEMORY
                        self.key_answered(FATE_AGAIN)
                        n -= 1
                elif self.state == PROOF_KEYSPACE or self.state == PROOF_PERSISTENCE:
                    self.piece_size = 0
                    return STOP_PROOF_PART
                else:
                    return self.wrong("an array, a bulk or an integer")
                continue
            if not parse_decimal(data + input.start + 1, data + at, &number):
                return self.wrong("a number")

            if self.state == KEY_STRING or self.state == KEY_DUMP:
                if self.by_type and kind == 36 and number > 0 and input.end <= <size_t>at + 2:
                    # The value's first byte is its type.
                    return STOP_NEED_DATA
                stop = self.begin_value(kind, number, at)
                if stop != STOP_NEED_DATA:
                    return stop
                continue
            elif self.state == KEY_TTL:
                if kind != 58:
                    return self.wrong("an integer, the reply to PTTL or PEXPIRETIME")
                if self.ttl_command == TTL_PTTL and number >= 0:
                    number = (self.source_ms + number if number < INT64_MAX - self.source_ms
                              else INT64_MAX)
                self.ttls[self.ttls_read] = number
                self.ttls_read += 1
                if self.ttls_read == self.group_size():
                    self.group_timed()
            elif self.state == GROUP_TIME:
                if kind != 42 or number != 2:
                    return self.wrong("an array of two, the reply to TIME")
                at = self.read_time(at + 2)
                if at == -1:
                    return STOP_NEED_DATA
                if at == -2:
                    return self.wrong("seconds and microseconds, the reply to TIME")
                self.state = KEY_TTL
            elif self.state == KEY_ACCESS:
                if kind != 58 and not (kind == 36 and number == -1):
                    return self.wrong("an integer, the reply to OBJECT")
                self.access_read(number if kind == 58 and number >= 0 else -1)
            elif self.state == GROUP_STRINGS:
                if kind != 42 or number < 0 or <uint64_t>number != self.group_size():
                    return self.wrong("an array, the reply to MGET with a value for each key")
                self.begin_key()
            elif self.state == SCAN_KEY:
                if kind != 36 or number < 0 or number > KEY_BYTES_MOST:
                    return self.wrong("a bulk, a key in the reply to SCAN")
                n = <size_t>number
                if self.first.tail - self.first.head + n > KEYS_BYTES_MOST:
                    return self.wrong("fewer bytes of keys in one reply to SCAN")
                if not queue_reserve(&self.first, n):
                    return STOP_NO_MEMORY
                key_size = <uint32_t>n
                queue_begin(&self.first, key_size, pages_last(&self.pages))
                self.name_size = key_size
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
                if self.ranges_count > 1 and not range_advances(
                        &self.pages.ranges[self.runs[self.runs_head].part], self.page_cursor):
                    return STOP_SCAN_ORDER
                at += n + 2
                self.state = SCAN_KEY_COUNT
            elif self.state == SCAN_KEY_COUNT:
                if kind != 42 or number < 0 or number > SCAN_REPLY_KEYS_LIMIT:
                    return self.wrong("an array, the keys in the reply to SCAN")
                self.page_keys_left = number
                input.start = at + 2
                pages_begin(
                    &self.pages, self.page_cursor, self.runs[self.runs_head].part)
                self.page_reaches_over = self.reaches_over()
                if number:
                    self.state = SCAN_KEY
                else:
                    self.page_ended()
                continue
            else:  # PROOF_KEYSPACE, PROOF_PERSISTENCE
                if kind != 36 or number < 0:
                    return self.wrong("a bulk, the reply to INFO")
                n = <size_t>number
                if n > LINE_LIMIT:
                    self.body_left = n
                    self.proof_state = self.state
                    self.after_body = PROOF_KEYSPACE
                    self.state = VALUE_DISCARD
                else:
                    # Read in one go, like a line of this length.
                    if input.end - (at + 2) < n + 2:
                        return STOP_NEED_DATA
                    if data[at + 2 + n] != 13 or data[at + 3 + n] != 10:
                        return self.wrong("CRLF behind a bulk")
                    self.piece_start = at + 2
                    self.piece_size = n
                    input.start = at + 4 + n
                    return STOP_PROOF_PART
            input.start = at + 2

    cdef inline ParseStop begin_value(
        self, uint8_t kind, int64_t number, int64_t at
    ) noexcept nogil:
        """The length of a value has come; STOP_NEED_DATA: go on, what there was to do is done.

        The line ends at `at`; it is read again after STOP_BATCH_FULL.
        """
        cdef Input *input = self.bytes_in
        cdef const uint8_t *data = input.data
        cdef KeyQueue *queue = self.queue()
        cdef bint provisional = self.runs[self.runs_head].ttl == TTL_NONE
        cdef bint raw = self.state == KEY_STRING
        cdef size_t n, size, with_key
        if kind != 36 or number < -1:
            return self.wrong("a bulk, the reply to DUMP or MGET")
        if number == -1:
            input.start = at + 2
            if raw and not self.ttl_missing:
                if not self.name_again():
                    return STOP_NO_MEMORY
                self.key_answered(FATE_AGAIN)
            else:
                self.vanished += 1
                self.key_answered(FATE_DONE)
            return STOP_NEED_DATA
        if number <= FOOTER_BYTES and not raw:
            return self.wrong("a DUMP payload of more than ten bytes")
        n = <size_t>number
        size = n + string_head_size(n) + FOOTER_BYTES if raw else n
        with_key = self.arena.size + queue_entry(queue, queue.at).size + size
        self.raw = raw
        self.body_left = n
        self.body_size = size
        self.after_body = KEY_TTL
        self.state = VALUE_DISCARD
        if self.by_type and not self.takes_type(STRING_TYPE if raw else data[at + 2]):
            input.start = at + 2
            self.fate = FATE_DONE
            self.excluded += 1
            return STOP_NEED_DATA
        if self.ttl_missing:
            # It came into being between the two commands: ask again for both.
            input.start = at + 2
            if self.restless_count >= AGAIN_MOST:
                self.fate = FATE_DONE
                return STOP_RESTLESS
            self.restless_count += 1
            self.fate = FATE_AGAIN
            return STOP_NEED_DATA if self.name_again() else STOP_NO_MEMORY
        if self.arena.count and size <= self.stream_above and with_key > self.batch_bytes:
            if self.arena.count > self.tail_count:
                self.state = KEY_STRING if raw else KEY_DUMP
                return STOP_BATCH_FULL
        if provisional and (with_key > self.batch_bytes or size > self.stream_above):
            # It cannot be held until it is proven.
            input.start = at + 2
            self.fate = FATE_AGAIN
            return STOP_NEED_DATA if self.name_again() else STOP_NO_MEMORY
        input.start = at + 2
        if size > (self.value_limit if raw else self.made_limit):
            self.fate = FATE_DONE
            return STOP_TOO_LONG
        self.fate = FATE_READ
        if size > self.stream_above:
            self.state = VALUE_STREAM
            return STOP_STREAM_BEGIN
        if not self.begin_record(size):
            return STOP_NO_MEMORY
        self.value_bytes_total += size
        if raw:
            self.arena.size = put_string_head(
                self.arena.data + self.arena.size, n) - self.arena.data
        self.state = VALUE_BODY
        if input.end - input.start >= n + 2:
            memcpy(self.arena.data + self.arena.size, data + input.start, n)
            if data[input.start + n] != 13 or data[input.start + n + 1] != 10:
                return self.wrong("CRLF behind a bulk")
            self.arena.size += n
            self.end_record()
            input.start += n + 2
            self.key_answered(FATE_READ)
        return STOP_NEED_DATA

    cdef inline void begin_reply(self) noexcept nogil:
        """What the next reply is to: a SCAN, a proof, a group of keys, or the next key of one."""
        cdef Run *run = &self.runs[self.runs_head]
        cdef uint64_t i
        if run.kind == RUN_SCAN:
            self.state = SCAN_ARRAY
        elif run.kind == RUN_PROOF:
            self.state = PROOF_KEYSPACE
        elif self.place_in_group():
            self.begin_key()
        else:
            self.ttls_read = self.accesses_read = 0
            if run.ttl == TTL_PTTL:
                self.state = GROUP_TIME
            elif run.ttl == TTL_PEXPIRETIME:
                self.state = KEY_TTL
            else:
                for i in range(self.group_size()):
                    self.ttls[i] = -1
                self.group_timed()

    cdef inline void group_timed(self) noexcept nogil:
        """The TTLs of the group are known."""
        if not self.runs[self.runs_head].mget:
            self.begin_key()
        elif self.access_command == ACCESS_NONE:
            self.state = GROUP_STRINGS
        else:
            self.state = KEY_ACCESS

    cdef inline void access_read(self, int64_t access) noexcept nogil:
        if not self.runs[self.runs_head].mget:
            self.access = access
            self.state = KEY_DUMP
            return
        self.accesses[self.accesses_read] = access
        self.accesses_read += 1
        if self.accesses_read == self.group_size():
            self.state = GROUP_STRINGS

    cdef inline void begin_key(self) noexcept nogil:
        """Its TTL is known (-1: none, -2: no such key); what else was asked comes next."""
        cdef uint64_t place = self.place_in_group()
        cdef int64_t expire_at = self.ttls[place]
        self.ttl_missing = expire_at == -2
        self.expire_at = expire_at if expire_at >= 0 else -1
        self.access = -1
        if self.runs[self.runs_head].mget:
            if self.access_command != ACCESS_NONE:
                self.access = self.accesses[place]
            self.state = KEY_STRING
        else:
            self.state = KEY_DUMP if self.access_command == ACCESS_NONE else KEY_ACCESS

    cdef inline uint64_t place_in_group(self) noexcept nogil:
        """Of the key that is answered next, in its group."""
        cdef Run *run = &self.runs[self.runs_head]
        return (run.count - run.left) % run.group

    cdef inline uint64_t group_size(self) noexcept nogil:
        """At the group's first key."""
        return min(self.runs[self.runs_head].left, self.runs[self.runs_head].group)

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
