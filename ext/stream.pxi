# The replication stream, or an append-only file, split into batches of commands.
#
# Theory of operation
# -------------------
# What comes is appended to `open.raw`, the arena of the batch that is being filled, and is parsed
# where it lies: no command is copied. Behind `parsed` lies one unfinished command at the most; it
# is read on from the bulk header that was cut (`at`), so that a byte is looked at once however
# small the pieces are. When a batch closes, the arena goes with it and what was not parsed (never
# more than one portion of INPUT_BYTES, see `grows_too_long`) moves to a fresh one.
#
#   base      the stream's offset of raw[0]: raw[i] is byte base + i + 1 of the stream
#   open_*    where the open batch begins, and the state there
#   unit_*    where the last unit ended: a lone command, or an EXEC. Outside of MULTI this is the
#             same as `parsed`. A batch closes here.
#   parsed    behind the last whole command; `db` and `in_multi` are the state there
#
# A unit that outgrows `unit_bytes` is closed inside. That gives up its atomicity for clients that
# read the target meanwhile, not its exactness: the position says that it lies between MULTI and
# EXEC.
#
# What outgrows `memory_bytes` lies in a file from then on (file_bytes.pxi): that is one long command,
# or the commands of a long unit, for others close before. It is read where it lies as anything else.
# A long command that has to be rewritten is rewritten as a short one (`anchor_long`), in which words
# stand for its long arguments; these are copied from file to file.
#
# The parser is as strict as a server is with its clients, and stricter: what it passes on is sent
# to the target as it is. A source sends keep-alive newlines before the stream only, but counts
# none of them differently from other bytes; so they are taken between commands.

cdef enum:
    # Marks that a batch may have for each command that it may have.
    MARKS_A_COMMAND = 4
    # Digits of a length: up to 9,999,999,999.
    LENGTH_DIGITS_MOST = 10
    # Of a command that cannot be read: how much of it an error shows.
    STREAM_FOUND_BYTES = 32
    SENTINEL_CHANNEL_BYTES = 18
    # Longer arguments of a long command are left out where it is rewritten, and stand there as a word
    # of one byte more, which no argument is then: where it lies, and its size.
    LEFT_OUT_ABOVE = 256
    # A shorter one is rewritten as it is.
    LONG_COMMAND = 4 << 10

# The channel in which Sentinels of one primary find each other.
cdef const char *SENTINEL_CHANNEL = "__sentinel__:hello"

cdef struct Alias:
    # A command that has another name at one of the ends: as it stands in the stream, its row, and
    # as it is sent on; `same`: that is the same.
    uint8_t name[ALIAS_BYTES_MOST]
    size_t size
    uint16_t row
    uint8_t sent[ALIAS_BYTES_MOST]
    size_t sent_size
    bint same

cdef inline uint8_t lower_case(uint8_t c) noexcept nogil:
    return c | 0x20 if 65 <= c <= 90 else c

cdef enum StreamStop:
    STREAM_GO_ON
    STREAM_NEED_DATA
    STREAM_BATCH_FULL
    STREAM_WRONG
    STREAM_NO_MEMORY

cdef enum:
    LENGTH_NEED_DATA = -1
    LENGTH_BAD = -2


cdef inline int64_t read_length(
    const uint8_t *data, size_t *at, size_t end, uint8_t kind
) noexcept nogil:
    """A header line `<kind><digits>` and CRLF; moves `at` behind it only when it is whole."""
    cdef size_t p = at[0]
    cdef size_t first
    cdef int64_t value = 0
    cdef uint32_t digit
    if p == end:
        return LENGTH_NEED_DATA
    if data[p] != kind:
        return LENGTH_BAD
    p += 1
    first = p
    while True:
        if p == end:
            return LENGTH_NEED_DATA
        digit = <uint32_t>data[p] - 48
        if digit > 9:
            break
        if p - first == LENGTH_DIGITS_MOST or (p > first and value == 0):
            return LENGTH_BAD
        value = value * 10 + digit
        p += 1
    if p == first or data[p] != 13:
        return LENGTH_BAD
    if p + 1 == end:
        return LENGTH_NEED_DATA
    if data[p + 1] != 10:
        return LENGTH_BAD
    at[0] = p + 2
    return value


@cython.final
cdef class StreamReader:
    """Splits a replication stream into `CommandBatch`es with exact offsets.

    Read into `input` and call `received`, or hand bytes to `feed`; finished batches pile up in
    `take`. A batch is closed when it is full; `flush` closes one before that.

    Args:
        offset: the offset behind which the stream goes on: its first byte is offset + 1.
        db: the database selected there.
        in_multi: whether the stream is between MULTI and EXEC there.
        batch_bytes, batch_commands: a batch that has reached one of them is closed at the end of
            the unit; a unit is a lone command, or all between MULTI and EXEC.
        unit_bytes: a unit that has outgrown this, its index counted in, is closed inside.
        command_limit: the longest command, in bytes; a longer one is a ProtocolError.
        anchor: turn relative TTLs into absolute ones, see absolute_ttls.pxi; `now_ms` must be set then.
        publish: pass PUBLISH and SPUBLISH on. Messages of Sentinels are never passed on.
        names: commands that have another name: (the name in the stream, their own name, the name
            that they are sent on by) each, see `alias_of`.
        append_only: it is an append-only file: annotations may stand between two commands, and
            newlines may not, see aof.pxi.
        file: called for the descriptor of an empty file, open for reading and writing, which is the
            reader's from then on; None: all lies in memory.
        memory_bytes: what is longer than that, a command or a unit, lies in such a file.
        extend_fields: expire times of hash fields are extended as well, see aof.pxi.
        until: seconds since the epoch, see `cut_offset`.
        slots: batches hold only what goes to the node that has these, see slot_routing.pxi. What
            is left out stays in their offsets.
        rules: batches hold only what is done to keys that these take, see slot_routing.pxi; with
            `slots`: that both take. ValueError for rules that ask for types.
        lacks: what the target does not know, a sum of CMD_LACKS_…: commands of that kind are made
            of others, see newer_commands.pxi.

    Attributes:
        now_ms: when the bytes now fed were received, in ms since the epoch on the source's clock.
        extend_before, extend_by: expire times before the first (ms since the epoch) are extended by
        the
            second (ms); 0: none is. `extended_count` counts them.
        db, in_multi: the state behind the last whole command.
        parsed_offset: offset behind the last whole command.
        batched_offset: `end_offset` of the last closed batch.
        commands: how many commands were put into batches, the open one included.
        elsewhere: how many were left out because they are not for `slots` and `rules`.
        acks_wanted: how many REPLCONF GETACK came.
        multi_offset: where the MULTI begins that was opened last.
        timestamps, first_timestamp, last_timestamp: how many annotations said a time, and which
            the first and the last of them are, in seconds since the epoch.
        cut_offset: where the first unit begins that was written behind the time `until`; None: no
            annotation said such a time so far. It is read on from there all the same.
    """
    cdef readonly InputBuffer input
    cdef ExpireTimes expire_times
    cdef readonly int db
    cdef readonly bint in_multi
    cdef readonly uint64_t commands
    cdef readonly uint64_t elsewhere
    cdef readonly uint64_t acks_wanted
    cdef readonly KeyFilter filter
    cdef bint filters
    cdef uint32_t lacks
    cdef SlotGroups *groups
    cdef size_t batch_bytes
    cdef size_t batch_commands
    cdef size_t unit_bytes
    cdef size_t command_limit
    cdef bint publish
    cdef bint append_only
    cdef bint extend_fields
    cdef Bytes scratch[2]
    cdef object file
    cdef size_t memory_bytes
    # Of a command that is rewritten, without its long arguments.
    cdef Packed small
    # Why no file was to be had.
    cdef object trouble
    cdef readonly uint64_t multi_offset
    cdef readonly uint64_t timestamps
    cdef readonly int64_t first_timestamp
    cdef readonly int64_t last_timestamp
    cdef int64_t until
    cdef bint cut
    cdef uint64_t cut_at

    cdef Packed open
    cdef uint64_t base
    cdef size_t parsed

    # The command that is being read, if `begun`. Indices into open.raw.
    cdef bint begun
    cdef uint64_t arguments_left
    cdef size_t at
    cdef size_t name_at               # 0: its name is not read yet
    cdef size_t name_size

    cdef uint64_t open_offset
    cdef int open_db
    cdef bint open_in_multi

    cdef uint64_t unit_offset
    cdef int unit_db
    cdef size_t unit_parsed
    cdef size_t unit_rewritten
    cdef size_t unit_count
    cdef size_t unit_marks

    cdef Alias *aliases
    cdef size_t alias_count

    cdef const char *wanted
    cdef size_t wrong_at
    cdef object failure
    cdef list ready

    def __cinit__(
        self, uint64_t offset, int db=0, bint in_multi=False, *, size_t batch_bytes=1 << 20,
        size_t batch_commands=8192, size_t unit_bytes=64 << 20, size_t command_limit=1 << 30,
        bint anchor=False, bint publish=True, bint append_only=False, until=None,
        names=(), bint extend_fields=False, file=None, size_t memory_bytes=8 << 20,
        SlotFilter slots=None, KeyRules rules=None, uint32_t lacks=0,
    ):
        if db < 0:
            raise ValueError(f"a database's number is not negative, found {db}")
        if batch_bytes < 1 or batch_commands < 1:
            raise ValueError("a batch holds at least one command")
        self.input = InputBuffer()
        self.base = self.open_offset = self.unit_offset = offset
        self.db = self.open_db = self.unit_db = db
        self.in_multi = self.open_in_multi = in_multi
        self.batch_bytes = batch_bytes
        self.batch_commands = batch_commands
        self.unit_bytes = unit_bytes
        self.command_limit = command_limit
        self.expire_times.anchor = anchor
        self.publish = publish
        self.append_only = append_only
        self.extend_fields = extend_fields
        self.file = file
        self.memory_bytes = memory_bytes
        self.filters = slots is not None or rules is not None
        self.filter = KeyFilter(slots, rules) if self.filters else None
        self.lacks = lacks
        self.until = INT64_MAX if until is None else until
        self.ready = []
        self.aliases = NULL
        self.alias_count = 0
        if names:
            self.take_names(list(names))

    cdef int take_names(self, list names) except -1:
        cdef bytes received, own, passed_on
        cdef Alias *alias
        self.aliases = <Alias *>PyMem_RawMalloc(len(names) * sizeof(Alias))
        if self.aliases == NULL:
            raise MemoryError()
        for received, own, passed_on in names:
            for name in (received, own, passed_on):
                if not 1 <= len(name) <= ALIAS_BYTES_MOST:
                    raise ValueError(f"a command's name has 1 to {ALIAS_BYTES_MOST} bytes")
            alias = &self.aliases[self.alias_count]
            alias.size = len(received)
            memcpy(alias.name, PyBytes_AS_STRING(received), alias.size)
            alias.row = named_row(<const uint8_t *>PyBytes_AS_STRING(own), len(own))
            alias.sent_size = len(passed_on)
            memcpy(alias.sent, PyBytes_AS_STRING(passed_on), alias.sent_size)
            alias.same = received.lower() == passed_on.lower()
            self.alias_count += 1
        return 0

    def __dealloc__(self):
        PyMem_RawFree(self.aliases)
        PyMem_RawFree(self.groups)
        bytes_free(&self.scratch[0])
        bytes_free(&self.scratch[1])
        packed_free(&self.open)
        packed_free(&self.small)

    @property
    def received_offset(self):
        """Offset of the last byte that was taken in."""
        return self.base + self.open.raw.size

    @property
    def parsed_offset(self):
        """Offset behind the last whole command."""
        return self.base + self.parsed

    @property
    def batched_offset(self):
        """`end_offset` of the last closed batch."""
        return self.open_offset

    @property
    def cut_offset(self):
        return self.cut_at if self.cut else None

    @property
    def may_flush(self):
        """Whether `flush` would close a batch."""
        return self.unit_offset > self.open_offset

    @property
    def now_ms(self):
        return self.expire_times.now_ms

    @now_ms.setter
    def now_ms(self, int64_t value):
        self.expire_times.now_ms = value

    @property
    def extend_before(self):
        return self.expire_times.extend_before

    @extend_before.setter
    def extend_before(self, int64_t value):
        self.expire_times.extend_before = value

    @property
    def extend_by(self):
        return self.expire_times.extend_by

    @extend_by.setter
    def extend_by(self, int64_t value):
        if value < 0:
            raise ValueError("an expire time is extended, never brought forward")
        self.expire_times.extend_by = value

    @property
    def extended_count(self):
        """How many expire times were extended."""
        return self.expire_times.extended_count

    def take(self):
        """The closed batches, in order; empties the list."""
        ready = self.ready
        self.ready = []
        return ready

    def next(self, bint flush):
        """The oldest closed batch, taken from the list; None: there is none.

        flush: close the open batch first if no other is closed.
        """
        if not self.ready:
            if not flush:
                return None
            self.flush()
            if not self.ready:
                return None
        return self.ready.pop(0)

    @property
    def closed(self):
        """How many closed batches wait to be taken."""
        return len(self.ready)

    def flush(self):
        """Close the open batch at the last unit's end, if it holds a unit or passed anything."""
        if self.unit_offset > self.open_offset:
            self.close(self.unit_count, self.unit_marks, self.unit_parsed, self.unit_rewritten,
                       self.unit_offset, self.unit_db, False)

    def received(self, size_t n):
        """Take in `n` bytes that were read into `input`; returns how many batches are closed.

        Raises `ProtocolError` for bytes that are no replication stream, its offset that of the
        stream; what was closed before can still be taken. ValueError if TTLs are to be anchored
        and `now_ms` was never set. OSError where a file is wanted and cannot be had or written:
        nothing can be read on then.
        """
        cdef Input *bytes_in = &self.input.state
        self.input.commit(n)
        self.check()
        try:
            self.ingest(bytes_in.data + bytes_in.start, bytes_in.end - bytes_in.start)
            bytes_in.start = bytes_in.end
            self.parse_all()
        except (OSError, MemoryError) as exc:
            self.failure = exc
            raise
        return len(self.ready)

    def feed(self, bytes data not None):
        """As `received`, for bytes that come from elsewhere, any number of them."""
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(data)
        cdef size_t left = PyBytes_GET_SIZE(data), n
        self.check()
        while left:
            n = min(left, <size_t>INPUT_BYTES)
            try:
                self.ingest(p, n)
                self.parse_all()
            except (OSError, MemoryError) as exc:
                self.failure = exc
                raise
            p += n
            left -= n
        return len(self.ready)

    cdef int check(self) except -1:
        if self.failure is not None:
            raise self.failure
        if self.expire_times.anchor and self.expire_times.now_ms <= 0:
            raise ValueError("now_ms has to be set where TTLs are to be anchored")
        return 0

    cdef int ingest(self, const uint8_t *p, size_t n) except -1:
        """Append a portion to the arena."""
        cdef bint done
        if self.open.count == 0 and self.parsed:
            with nogil:
                done = self.drop_parsed()
            if not done:
                raise MemoryError()
        if self.open.raw.file == NULL and self.open.raw.size + n > self.memory_bytes:
            self.move_to_file(&self.open.raw)
        with nogil:
            done = bytes_append(&self.open.raw, p, n)
        if not done:
            self.raise_no_room(&self.open.raw)
        return 0

    cdef bint drop_parsed(self) noexcept nogil:
        """Nothing that was parsed is kept: a hole at the front, which must not grow for ever. In a
        file it stays until little lies behind it. False: no memory."""
        cdef size_t gone = self.parsed
        cdef size_t left = self.open.raw.size - gone
        cdef RawBytes behind
        if self.open.raw.file == NULL:
            memmove(self.open.raw.data, self.open.raw.data + gone, left)
            self.open.raw.size = left
        elif left <= self.memory_bytes:
            memset(&behind, 0, sizeof(RawBytes))
            if not bytes_append(&behind, self.open.raw.data + gone, left):
                return False
            bytes_end(&self.open.raw)
            self.open.raw = behind
        else:
            return True
        self.unit_parsed = 0
        self.shift(gone)
        return True

    cdef int move_to_file(self, RawBytes *bytes) except -1:
        """Have them lie in a file from now on, if there is one for them."""
        cdef FileBytes *file
        cdef int fd
        if self.file is None or bytes.file != NULL:
            return 0
        fd = self.file()
        file = file_begin(fd)
        if file == NULL:
            raise MemoryError()
        if not bytes_to_file(bytes, file):
            error = file.error
            file_end(file)
            self.raise_error(error)
        return 0

    cdef bint rewrite_in_file(self) noexcept with gil:
        """`move_to_file` for what is rewritten, while a command is parsed. False: see `trouble`."""
        try:
            self.move_to_file(&self.open.rewritten)
        except BaseException as exc:
            self.trouble = exc
            return False
        return True

    cdef int raise_no_room(self, const RawBytes *bytes) except -1:
        """They could not be appended to."""
        if bytes.file == NULL:
            raise MemoryError()
        self.raise_error(bytes.file.error)

    cdef int raise_error(self, int error) except -1:
        if error == ENOMEM or not error:
            raise MemoryError()
        raise OSError(error, os.strerror(error))

    cdef void shift(self, size_t gone) noexcept nogil:
        """The first `gone` bytes of the arena went; all of them were parsed."""
        self.base += gone
        self.parsed -= gone
        if self.begun:
            self.at -= gone
            if self.name_at:
                self.name_at -= gone

    cdef int parse_all(self) except -1:
        cdef StreamStop stop
        cdef size_t parsed, at
        while True:
            parsed = self.parsed
            at = self.at if self.begun else parsed
            with nogil:
                stop = self.parse()
                if self.open.raw.file != NULL:
                    # Of a command that is not whole yet nothing before `at` was looked at.
                    file_let_go(
                        self.open.raw.file, at if self.parsed == parsed else parsed,
                        self.open.raw.size)
            if stop == STREAM_NEED_DATA:
                return 0
            if stop == STREAM_BATCH_FULL:
                self.close(self.open.count, self.open.mark_count, self.parsed,
                           self.open.rewritten.size, self.base + self.parsed, self.db,
                           self.in_multi)
            elif stop == STREAM_NO_MEMORY:
                if self.trouble is not None:
                    raise self.trouble
                self.raise_no_room(&self.open.rewritten)
            else:
                self.raise_protocol_error()

    cdef raise_protocol_error(self):
        cdef size_t shown = min(
            self.open.raw.size - self.wrong_at, <size_t>STREAM_FOUND_BYTES)
        cdef uint64_t offset = self.base + self.wrong_at
        found = PyBytes_FromStringAndSize(<char *>self.open.raw.data + self.wrong_at, shown)
        self.failure = ProtocolError(
            f"expected {(<bytes>self.wanted).decode()}, found {found!r} "
            f"at offset {offset} of the replication stream", offset)
        raise self.failure

    cdef int close(
        self, size_t count, size_t marks, size_t parsed, size_t rewritten, uint64_t offset,
        int db, bint in_multi,
    ) except -1:
        """Close a batch that has the first `count` commands and `marks`, and ends at `offset`.

        parsed, rewritten: where that is in the two arenas.
        """
        cdef CommandBatch batch = CommandBatch.__new__(CommandBatch)
        cdef Packed rest
        cdef bint done
        memset(&rest, 0, sizeof(Packed))
        if count and self.open.raw.size - parsed > self.memory_bytes:
            self.move_to_file(&rest.raw)
        if count and self.open.rewritten.size - rewritten > self.memory_bytes:
            self.move_to_file(&rest.rewritten)
        with nogil:
            done = self.split_open(&rest, count, marks, parsed, rewritten)
        if not done:
            error = rest.raw.file.error if rest.raw.file != NULL else ENOMEM
            packed_free(&rest)
            self.raise_error(error or ENOMEM)
        batch.packed = self.open
        batch.filter = self.filter
        self.open = rest
        batch.start_offset, batch.end_offset = self.open_offset, offset
        batch.db_before, batch.db_after = self.open_db, db
        batch.in_multi_before, batch.in_multi_after = self.open_in_multi, in_multi
        if count:
            self.shift(parsed)
        self.open_offset = self.unit_offset = offset
        self.open_db = self.unit_db = db
        self.open_in_multi = in_multi
        self.unit_parsed = self.unit_rewritten = self.unit_count = self.unit_marks = 0
        self.ready.append(batch)
        return 0

    cdef bint split_open(
        self, Packed *rest, size_t count, size_t marks, size_t parsed, size_t rewritten
    ) noexcept nogil:
        """Leave in `open` what closes, and put what stays into `rest`.

        Without commands there is nothing to hand over but marks: the arena stays.
        """
        cdef Packed *open = &self.open
        cdef Packed closing
        cdef size_t i
        cdef size_t kept = open.count - count
        cdef size_t kept_marks = open.mark_count - marks
        if count == 0:
            memset(&closing, 0, sizeof(Packed))
            if not reserve_marks(&closing, marks):
                return False
            if marks:
                memcpy(closing.marks, open.marks, marks * sizeof(StreamMark))
                memmove(open.marks, open.marks + marks, kept_marks * sizeof(StreamMark))
            closing.mark_count = marks
            open.mark_count = kept_marks
            rest[0] = open[0]
            open[0] = closing
            return True
        if not bytes_copy(&rest.raw, &open.raw, parsed, open.raw.size - parsed):
            return False
        if not bytes_copy(
                &rest.rewritten, &open.rewritten, rewritten, open.rewritten.size - rewritten):
            return False
        if not reserve_commands(rest, kept) or not reserve_marks(rest, kept_marks):
            return False
        for i in range(kept):
            rest.commands[i] = open.commands[count + i]
            rest.commands[i].start -= rewritten if rest.commands[i].rewritten else parsed
        if kept_marks:
            memcpy(rest.marks, open.marks + marks, kept_marks * sizeof(StreamMark))
        rest.count = kept
        rest.mark_count = kept_marks
        open.raw.size = parsed
        open.rewritten.size = rewritten
        open.count = count
        open.mark_count = marks
        return True

    # --- The parser ---

    cdef inline StreamStop wrong(self, const char *wanted, size_t at) noexcept nogil:
        self.wanted = wanted
        self.wrong_at = at
        return STREAM_WRONG

    cdef StreamStop parse(self) noexcept nogil:
        """Read commands until the bytes run out, a batch is full, or something is wrong."""
        cdef const uint8_t *data = self.open.raw.data
        cdef size_t end = self.open.raw.size
        cdef size_t at
        cdef int64_t n
        cdef StreamStop stop
        while True:
            if not self.begun:
                at = self.parsed
                if at == end:
                    return STREAM_NEED_DATA
                if data[at] != c'*':
                    if self.append_only:
                        stop = self.annotation(data, at, end)
                    else:
                        stop = self.keep_alive(data, at, end)
                    if stop != STREAM_GO_ON:
                        return stop
                    continue
                n = read_length(data, &at, end, c'*')
                if n == LENGTH_NEED_DATA:
                    return STREAM_NEED_DATA
                if n <= 0 or <uint64_t>n > self.command_limit:
                    return self.wrong("an array's length, at the start of a command", at)
                self.begun = True
                self.arguments_left = n
                self.at = at
                self.name_at = 0
            at = self.at
            while self.arguments_left:
                n = read_length(data, &at, end, c'$')
                if n == LENGTH_NEED_DATA:
                    return STREAM_NEED_DATA
                if n == LENGTH_BAD:
                    return self.wrong("a bulk's length, in a command", at)
                if at - self.parsed + n + 2 > self.command_limit:
                    return self.wrong("a shorter command", self.at)
                if end - at < <size_t>n + 2:
                    return STREAM_BATCH_FULL if self.grows_too_long(at + n) else STREAM_NEED_DATA
                if data[at + n] != 13 or data[at + n + 1] != 10:
                    return self.wrong("CRLF behind a bulk", at + n)
                if not self.name_at:
                    self.name_at = at
                    self.name_size = n
                at += n + 2
                self.at = at
                self.arguments_left -= 1
            stop = self.end_command(at)
            if stop != STREAM_GO_ON:
                return stop

    cdef inline bint grows_too_long(self, size_t end) noexcept nogil:
        """A command that ends there at the soonest: whether those before it should close first.

        They would wait for it; and once it is there, closing at the last unit would move it.
        """
        cdef uint64_t covered = self.base + end - self.open_offset
        return self.open.count > 0 and covered > (
            self.unit_bytes if self.in_multi else self.batch_bytes)

    cdef StreamStop keep_alive(self, const uint8_t *data, size_t at, size_t end) noexcept nogil:
        """A newline between two commands."""
        cdef size_t n = 1
        if data[at] == 13:
            if at + 1 == end:
                return STREAM_NEED_DATA
            n = 2
        if data[at + n - 1] != 10:
            return self.wrong("a command", at)
        self.parsed = at + n
        return self.pass_over()

    cdef StreamStop annotation(self, const uint8_t *data, size_t at, size_t end) noexcept nogil:
        """A line of an append-only file that is no command."""
        cdef int64_t size, seconds
        if data[at] != c'#':
            return self.wrong("a command or an annotation", at)
        size = annotation_size(data + at, end - at)
        if size == ANNOTATION_NEED_DATA:
            return STREAM_NEED_DATA
        if size == ANNOTATION_BAD:
            return self.wrong("an annotation of at most 1024 bytes", at)
        if annotated_time(data + at, size, &seconds):
            if not self.timestamps:
                self.first_timestamp = seconds
            self.timestamps += 1
            self.last_timestamp = seconds
            if seconds > self.until and not self.cut:
                self.cut = True
                self.cut_at = self.multi_offset if self.in_multi else self.base + at
        self.parsed = at + size
        return self.pass_over()

    cdef inline StreamStop pass_over(self) noexcept nogil:
        """What ends at `parsed` was taken out: leave a mark."""
        return self.end_step() if self.add_mark(self.parsed) else STREAM_NO_MEMORY

    cdef inline bint add_mark(self, size_t end) noexcept nogil:
        """The state behind what ends there; False: no memory."""
        cdef StreamMark *mark
        if not reserve_marks(&self.open, 1):
            return False
        mark = &self.open.marks[self.open.mark_count]
        mark.end_offset = self.base + end
        mark.db = self.db
        mark.in_multi = self.in_multi
        self.open.mark_count += 1
        return True

    cdef inline StreamStop end_step(self) noexcept nogil:
        """Something ends at `parsed`: a unit, perhaps, and perhaps the batch is full."""
        cdef uint64_t covered = self.base + self.parsed - self.open_offset
        if self.in_multi:
            covered += (self.open.rewritten.size
                        + self.open.count * sizeof(StreamCommand)
                        + self.open.mark_count * sizeof(StreamMark))
            return STREAM_BATCH_FULL if covered > self.unit_bytes else STREAM_GO_ON
        self.unit_offset = self.base + self.parsed
        self.unit_db = self.db
        self.unit_parsed = self.parsed
        self.unit_rewritten = self.open.rewritten.size
        self.unit_count = self.open.count
        self.unit_marks = self.open.mark_count
        if (covered >= self.batch_bytes or self.open.count >= self.batch_commands
                or self.open.rewritten.size >= self.batch_bytes
                or self.open.mark_count >= MARKS_A_COMMAND * self.batch_commands):
            return STREAM_BATCH_FULL
        return STREAM_GO_ON

    cdef inline StreamStop end_command(self, size_t end) noexcept nogil:
        """A whole command lies between `parsed` and `end`."""
        cdef const uint8_t *data = self.open.raw.data
        cdef size_t start = self.parsed
        cdef const Alias *alias = NULL
        cdef uint16_t row
        cdef StreamName name
        cdef StreamCommand command
        cdef AnchorResult anchored = ANCHOR_PASS
        cdef Routing routing = ROUTE_HERE
        cdef size_t before
        self.begun = False
        if self.alias_count:
            alias = self.alias_of(data + self.name_at, self.name_size)
        row = named_row(data + self.name_at, self.name_size) if alias == NULL else alias.row
        if COMMAND_ROWS[row].flags & FLAG_CONTAINER:
            row = contained_row(row, data + start)
        name = <StreamName>COMMAND_ROWS[row].stream_name
        if name != NAME_OTHER and name <= NAME_TAKEN_OUT_LAST:
            if not self.take_out(name, data + start):
                self.wrong_at = start
                return STREAM_WRONG
            self.parsed = end
            return self.pass_over()
        if (name == NAME_PUBLISH or name == NAME_SPUBLISH) and not self.passes(data + start):
            self.parsed = end
            return self.pass_over()
        if name == NAME_SWAPDB and not self.is_swap(data + start):
            return self.wrong("two numbers of databases, in SWAPDB", start)
        if self.name_at + self.name_size + 2 == end and COMMAND_ROWS[row].part_count:
            return self.wrong("arguments, behind the name of a command that has keys", start)
        before = self.open.count
        command.start = start
        command.size = end - start
        command.end_offset = self.base + end
        command.db = self.db
        command.row = row
        command.rewritten = command.renamed = command.unheld = False
        command.extended_fields = command.stuck_fields = False
        command.in_multi = self.in_multi
        command.across = False
        if self.filters:
            routing = self.route_command(&command, alias)
            if routing == ROUTE_ELSEWHERE:
                self.elsewhere += 1
                self.parsed = end
                return self.pass_over()
            if routing == ROUTE_NO_MEMORY:
                return STREAM_NO_MEMORY
            if routing != ROUTE_HERE:
                anchored = ANCHOR_DONE
        if name == NAME_RESTORE and self.extend_fields and anchored == ANCHOR_PASS:
            anchored = extend_restored_hash(&self.open, &command, &self.expire_times, self.scratch)
        if anchored != ANCHOR_PASS or not (
                self.expire_times.anchor or self.expire_times.extend_before or self.extend_fields
                or NAME_ABSOLUTE_FIRST <= name <= NAME_ANCHORED_LAST):
            # Most sources: nothing is rewritten, whatever the command.
            pass
        elif self.open.raw.file != NULL and command.size > LONG_COMMAND:
            anchored = self.anchor_long(&command, name, alias != NULL)
        else:
            anchored = self.anchor(&self.open, &command, name, alias != NULL)
        if anchored == ANCHOR_NO_MEMORY:
            return STREAM_NO_MEMORY
        if anchored == ANCHOR_PASS:
            if alias != NULL and not alias.same:
                if not self.rename(&command, alias):
                    return STREAM_NO_MEMORY
            if not self.add_command(&command):
                return STREAM_NO_MEMORY
        self.parsed = end
        if self.lacks & ROW_LACKS[row]:
            if not self.make_known(before):
                return STREAM_NO_MEMORY
            if self.open.count == before:
                return self.pass_over()
        self.commands += self.open.count - before
        return self.end_step()

    cdef bint make_known(self, size_t before) noexcept nogil:
        """Have the commands that were added since be of a kind that the target knows. False: no
        memory."""
        cdef size_t count = self.open.count - before, i
        cdef StreamCommand *command
        cdef Made made
        cdef bint is_long
        if not reserve_commands(&self.small, count):
            return False
        memcpy(self.small.commands, self.open.commands + before, count * sizeof(StreamCommand))
        self.open.count = before
        for i in range(count):
            command = &self.small.commands[i]
            is_long = self.open.raw.file != NULL and command.size > LONG_COMMAND
            if is_long and not self.rewrite_in_file():
                return False
            made = make_known(&self.open, command, self.lacks)
            if made == MADE_NO_MEMORY:
                return False
            if made == MADE_PASS and not self.add_command(command):
                return False
            if is_long:
                bytes_let_go(&self.open.rewritten)
        return True

    cdef inline bint add_command(self, const StreamCommand *command) noexcept nogil:
        """False: no memory."""
        if not reserve_commands(&self.open, 1):
            return False
        self.open.commands[self.open.count] = command[0]
        self.open.count += 1
        return True

    cdef Routing route_command(self, StreamCommand *command, const Alias *alias) noexcept nogil:
        """Find out where a command goes. What is across, or goes in parts, is added."""
        cdef size_t first = self.name_at + self.name_size + 2
        cdef Routing routing = self.route(command, self.open.raw.data + first)
        if routing == ROUTE_PARTS:
            routing = self.take_apart(command, alias)
        if routing == ROUTE_ACROSS:
            # It is looked at under the name that the source knows it by.
            command.across = True
            return ROUTE_ACROSS if self.add_command(command) else ROUTE_NO_MEMORY
        if routing == ROUTE_HERE and command.db != self.db and not self.add_mark(
                command.start + command.size):
            # It runs in another database than what is behind it.
            return ROUTE_NO_MEMORY
        return routing

    cdef inline Routing route(
        self, StreamCommand *command, const uint8_t *argument
    ) noexcept nogil:
        """Where a command goes whose first argument has its header there, if it has any."""
        cdef const CommandRow *row = &COMMAND_ROWS[command.row]
        cdef const uint8_t *key
        cdef size_t size
        # (Of DEL and its like the lone key is the common case: `*2`.)
        if row.lone_key or (
                row.flags & FLAG_PARTS and row.parts[0].step == 1
                and self.open.raw.data[command.start + 1] == c'2'
                and self.open.raw.data[command.start + 2] == 13):
            key = argument_body(argument, &size)
            return ROUTE_HERE if self.filter.has_key(command.db, key, size) else ROUTE_ELSEWHERE
        if row.flags & (FLAG_UNKNOWN | FLAG_SLOT_MOVES):
            return ROUTE_ACROSS
        if row.flags & FLAG_KEYLESS:
            return route_keyless(
                self.filter, row, command, self.open.raw.data + command.start)
        return route_walked(
            self.filter, row, self.open.raw.data + command.start, command.db)

    cdef Routing take_apart(self, const StreamCommand *command, const Alias *alias) noexcept nogil:
        """Add a command as one for each of our slots that it names keys of."""
        cdef const CommandRow *row = &COMMAND_ROWS[command.row]
        cdef const uint8_t *data = self.open.raw.data
        if self.groups == NULL:
            self.groups = <SlotGroups *>PyMem_RawCalloc(1, sizeof(SlotGroups))
            if self.groups == NULL:
                return ROUTE_NO_MEMORY
        if row.flags & FLAG_TTL and (
                self.expire_times.anchor or self.expire_times.extend_before) and leaves_ttl(
                <StreamName>row.stream_name, data + command.start, &self.expire_times):
            # Each part would have to be rewritten once more.
            return ROUTE_ACROSS
        if self.open.raw.file != NULL and command.size > LONG_COMMAND:
            if not self.rewrite_in_file():
                return ROUTE_NO_MEMORY
        if alias == NULL:
            return put_parts(
                &self.open, command, self.filter, self.groups, data + self.name_at, self.name_size)
        return put_parts(
            &self.open, command, self.filter, self.groups, alias.sent, alias.sent_size)

    cdef AnchorResult anchor(
        self, Packed *packed, StreamCommand *command, StreamName name, bint has_alias
    ) noexcept nogil:
        """Add `command`, whose bytes lie in `packed.raw`, as what its expire time is rewritten to.

        ANCHOR_PASS: it stays as it is, and was not added; `unheld` says whether that is right.
        """
        cdef uint32_t flags = COMMAND_ROWS[command.row].flags
        cdef AnchorResult anchored = ANCHOR_PASS
        if NAME_ANCHORED_FIRST <= name <= NAME_ANCHORED_LAST and (
                self.expire_times.anchor or self.expire_times.extend_before
                or name >= NAME_ABSOLUTE_FIRST):
            anchored = anchor_command(packed, command, &self.expire_times)
        elif flags & FLAG_TTL and self.expire_times.extend_before:
            anchored = extend_option(packed, command, &self.expire_times)
        elif self.extend_fields and not has_alias and flags & FLAG_MEMBER_TTL:
            anchored = extend_member_ttl(packed, command, &self.expire_times)
        if anchored == ANCHOR_PASS and flags & FLAG_TTL and (
                self.expire_times.anchor or self.expire_times.extend_before):
            command.unheld = leaves_ttl(
                name, packed.raw.data + command.start, &self.expire_times)
        return anchored

    cdef AnchorResult anchor_long(
        self, StreamCommand *command, StreamName name, bint has_alias
    ) noexcept nogil:
        """As `anchor`, for a command that lies in a file: its long arguments are copied from there to
        another one, and not through memory."""
        cdef uint32_t flags = COMMAND_ROWS[command.row].flags
        cdef AnchorResult anchored
        cdef StreamCommand small = command[0]
        cdef size_t i
        if not (NAME_ANCHORED_FIRST <= name <= NAME_ANCHORED_LAST
                or flags & (FLAG_TTL | FLAG_MEMBER_TTL)):
            return ANCHOR_PASS
        packed_free(&self.small)
        if not self.without_long_arguments(command):
            return ANCHOR_NO_MEMORY
        small.start = 0
        small.size = self.small.raw.size
        anchored = self.anchor(&self.small, &small, name, has_alias)
        command.unheld = small.unheld
        if anchored == ANCHOR_DONE and not self.rewrite_in_file():
            anchored = ANCHOR_NO_MEMORY
        elif anchored == ANCHOR_DONE:
            for i in range(self.small.count):
                if not self.add_whole(&self.small.commands[i]):
                    anchored = ANCHOR_NO_MEMORY
                    break
        packed_free(&self.small)
        return anchored

    cdef bint without_long_arguments(self, const StreamCommand *command) noexcept nogil:
        """Put the command into `small`, with a word for each long argument. False: no memory."""
        cdef uint8_t word[LEFT_OUT_ABOVE + 1]
        cdef uint8_t header[64]
        cdef RawBytes *small = &self.small.raw
        cdef const uint8_t *data = self.open.raw.data
        cdef uint64_t count, i
        cdef size_t size, at
        cdef const uint8_t *p = first_argument(data + command.start, &count)
        memset(word, 0, sizeof(word))
        if not bytes_append(small, header, put_array_header(header, count) - header):
            return False
        for i in range(count):
            p = argument_body(p, &size)
            if size <= LEFT_OUT_ABOVE:
                if not bytes_append(small, header, put_bulk_header(header, size) - header) or \
                        not bytes_append(small, p, size + 2):
                    return False
            else:
                at = p - data
                memcpy(word, &at, sizeof(size_t))
                memcpy(word + sizeof(size_t), &size, sizeof(size_t))
                if not bytes_append(
                        small, header, put_bulk_header(header, sizeof(word)) - header) or \
                        not bytes_append(small, word, sizeof(word)) or \
                        not bytes_append(small, <const uint8_t *>b"\r\n", 2):
                    return False
            p += size + 2
        return True

    cdef bint add_whole(self, const StreamCommand *small) noexcept nogil:
        """Add a rewritten command of `self.small` to the batch, with its long arguments. False: no
        memory, or what the file of what is rewritten says."""
        cdef RawBytes *to = &self.open.rewritten
        cdef StreamCommand *added
        cdef uint8_t header[64]
        cdef uint64_t count, i
        cdef size_t size, at
        cdef const uint8_t *p = first_argument(command_bytes(&self.small, small), &count)
        if not reserve_commands(&self.open, 1):
            return False
        added = &self.open.commands[self.open.count]
        added[0] = small[0]
        added.start = to.size
        if not bytes_append(to, header, put_array_header(header, count) - header):
            return False
        for i in range(count):
            p = argument_body(p, &size)
            if size <= LEFT_OUT_ABOVE:
                if not bytes_append(to, header, put_bulk_header(header, size) - header) or \
                        not bytes_append(to, p, size + 2):
                    return False
                p += size + 2
                continue
            p += size + 2
            memcpy(&at, p - size - 2, sizeof(size_t))
            memcpy(&size, p - size - 2 + sizeof(size_t), sizeof(size_t))
            if not bytes_append(to, header, put_bulk_header(header, size) - header) or \
                    not bytes_copy(to, &self.open.raw, at, size + 2):
                return False
        added.size = to.size - added.start
        self.open.count += 1
        return True

    cdef const Alias *alias_of(self, const uint8_t *name, size_t n) noexcept nogil:
        """What is known of a command that has another name at one of the ends; NULL: its name is
        its own at both."""
        cdef size_t i, j
        cdef const Alias *alias
        for i in range(self.alias_count):
            alias = &self.aliases[i]
            if alias.size != n:
                continue
            for j in range(n):
                if lower_case(name[j]) != lower_case(alias.name[j]):
                    break
            else:
                return alias
        return NULL

    cdef bint rename(self, StreamCommand *command, const Alias *alias) noexcept nogil:
        """Have the command's bytes lie among the rewritten ones, under the name that the target
        knows it by."""
        cdef const uint8_t *data = self.open.raw.data
        cdef size_t rest = self.name_at + self.name_size + 2
        cdef size_t end = command.start + command.size
        cdef uint64_t count
        cdef uint8_t *begin
        cdef uint8_t *out
        if self.open.raw.file != NULL and command.size > LONG_COMMAND:
            return self.rename_long(command, alias, rest)
        if not raw_reserve(&self.open.rewritten, command.size + ALIAS_BYTES_MOST + 64):
            return False
        first_argument(data + command.start, &count)
        begin = self.open.rewritten.data + self.open.rewritten.size
        out = put_array_header(begin, count)
        out = put_bulk(out, alias.sent, alias.sent_size)
        memcpy(out, data + rest, end - rest)
        out += end - rest
        command.rewritten = command.renamed = True
        command.start = self.open.rewritten.size
        command.size = out - begin
        self.open.rewritten.size += command.size
        return True

    cdef bint rename_long(
        self, StreamCommand *command, const Alias *alias, size_t rest
    ) noexcept nogil:
        """As `rename`, from file to file; what stays of the command begins at `rest`."""
        cdef RawBytes *to = &self.open.rewritten
        cdef uint8_t header[ALIAS_BYTES_MOST + 128]
        cdef uint8_t *out
        cdef uint64_t count
        cdef size_t end = command.start + command.size
        if not self.rewrite_in_file():
            return False
        first_argument(self.open.raw.data + command.start, &count)
        out = put_bulk(put_array_header(header, count), alias.sent, alias.sent_size)
        command.rewritten = command.renamed = True
        command.start = to.size
        if not bytes_append(to, header, out - header) or \
                not bytes_copy(to, &self.open.raw, rest, end - rest):
            return False
        command.size = to.size - command.start
        return True

    cdef bint take_out(self, StreamName name, const uint8_t *command) noexcept nogil:
        """What a command that is not passed on means to us; False where it makes no sense."""
        cdef uint64_t count
        cdef size_t size
        cdef int64_t number
        cdef const uint8_t *p = first_argument(command, &count)
        p = argument_body(p, &size)
        if name == NAME_SELECT:
            if count != 2 or not database_number(p + size + 2, &number):
                self.wanted = "the number of a database, in SELECT"
                return False
            self.db = <int>number
        elif name == NAME_MULTI:
            # Within another one: a replica refuses it, and stays where it is.
            if not self.in_multi:
                self.multi_offset = self.base + self.parsed
            self.in_multi = True
        elif name == NAME_EXEC:
            # Without a MULTI too: Redis 6.0 sends it behind a transaction of PFCOUNTs alone, which
            # write their keys' caches and are no writes by their flags (`execCommand`).
            self.in_multi = False
        elif name == NAME_REPLCONF and count > 1:
            p = argument_body(p + size + 2, &size)
            self.acks_wanted += (
                size == 6 and name_word(p, 6) == name_word(<const uint8_t *>b"getack", 6))
        return True

    cdef bint passes(self, const uint8_t *command) noexcept nogil:
        """Whether a PUBLISH or SPUBLISH is passed on.

        A Sentinel announces itself and its primary's address on a channel of that primary. Through
        the stream the message reaches the target's Sentinels, and where both ends have one primary
        name, each takes the other's for its own and may make the target a replica of the source.
        """
        cdef uint64_t count
        cdef size_t size
        cdef const uint8_t *p = first_argument(command, &count)
        if not self.publish:
            return False
        if count < 2:
            return True
        p = argument_body(p, &size)
        p = argument_body(p + size + 2, &size)
        return size != SENTINEL_CHANNEL_BYTES or memcmp(p, SENTINEL_CHANNEL, size) != 0

    cdef bint is_swap(self, const uint8_t *command) noexcept nogil:
        cdef uint64_t count
        cdef size_t size
        cdef int64_t number
        cdef const uint8_t *p = first_argument(command, &count)
        if count != 3:
            return False
        p = argument_body(p, &size) + size + 2
        if not database_number(p, &number):
            return False
        p = argument_body(p, &size) + size + 2
        return database_number(p, &number)


cdef uint16_t contained_row(uint16_t container, const uint8_t *command) noexcept nogil:
    """The row of what a container's command does; 0: not known."""
    cdef uint64_t count
    cdef size_t size
    cdef const uint8_t *p = first_argument(command, &count)
    if count < 2:
        return 0
    p = argument_body(p, &size) + size + 2
    p = argument_body(p, &size)
    return subcommand_row(container, p, size)


cdef bint database_number(const uint8_t *header, int64_t *number) noexcept nogil:
    """Read an argument that is the number of a database. A byte lies behind every argument."""
    cdef size_t size
    cdef const uint8_t *p = argument_body(header, &size)
    return parse_decimal(p, p + size, number) and 0 <= number[0] <= 0x7fffffff
