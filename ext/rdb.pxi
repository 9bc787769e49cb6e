# A snapshot (RDB) in, records out: what a replica is sent at a full sync, or a file of SAVE.
#
# The value of a key is written in a snapshot as it is in a DUMP payload: so a value is never
# decoded. The walk of its type (rdb_format.pxi) finds where it ends; its bytes are copied once,
# from the input to the arena, in the largest runs that the input has, and get a footer of their
# own. Long values are not held. A string says its length before its body, so its record goes first
# and its bytes follow. A collection does not: once it has outgrown what may be held, its bytes go
# out as they come, and its record behind them (`spilled`).
#
# What comes next is known from one of a few states. `parse` runs without the GIL, and stops to
# hand out a batch or a piece, to keep a text (an AUX field, a function), or with an error.

cdef enum SnapshotState:
    SNAPSHOT_MAGIC
    SNAPSHOT_NEXT        # an opcode, or the type of a value
    SNAPSHOT_TEXT        # a string that is decoded: a key, an AUX field, a function
    SNAPSHOT_WALK        # a value, or what an opcode brings with it
    SNAPSHOT_CHECKSUM
    SNAPSHOT_MARK
    SNAPSHOT_END
    SNAPSHOT_FAILED

cdef enum SnapshotStop:
    SNAP_GO_ON
    SNAP_NEED_DATA
    SNAP_CLOSE           # the open batch ends here; parse the same bytes again
    SNAP_SPLIT           # the open batch ends before the record that has begun
    SNAP_TEXT            # `text` is whole
    SNAP_STREAM          # the string that has begun is too long to be held
    SNAP_OUTGROWN        # the collection that has begun is
    SNAP_REFUSED         # the value that has begun cannot be carried
    SNAP_PIECE
    SNAP_LAST_PIECE
    SNAP_DROPPED         # the end of a value that was not kept, or of an opcode's own
    SNAP_TEMPLATE        # how many fields has template `noted`?
    SNAP_REBUILD         # the value that is held whole is a hash of a template
    SNAP_EOF
    SNAP_UNKNOWN
    SNAP_PROTOCOL
    SNAP_NO_MEMORY

cdef enum TextUse:
    TEXT_KEY
    TEXT_AUX_NAME
    TEXT_AUX_VALUE
    TEXT_FUNCTION

cdef enum ValueSink:
    SINK_ARENA
    SINK_PIECES
    SINK_NOTHING

cdef enum RefusedWhy:
    REFUSED_NOT
    REFUSED_LENGTH
    REFUSED_TEMPLATE
    # These are passed over and counted.
    REFUSED_EXPIRED
    REFUSED_EMPTY
    REFUSED_SLOT
    REFUSED_ELSEWHERE
    REFUSED_RULES

cdef enum:
    MARK_BYTES = 40
    # Of a piece: the type before and the footer behind it must fit into an input buffer's size too.
    PIECE_MOST = INPUT_BYTES - 16
    # A value that arrives in small portions makes the arena grow by this much at a time.
    ARENA_STEP = 64 * 1024
    # Bytes of functions, and of scripts; of all other AUX fields, and how many of them.
    TEXT_BYTES_MOST = 64 << 20
    TEXT_COST = 64
    AUX_BYTES_MOST = 1 << 20
    AUX_FIELDS_MOST = 1024
    # Bytes of what modules keep beside the keys.
    MODULE_DATA_MOST = 16 << 20
    TEMPLATES_MOST = 1 << 20
    # Bytes of the names of all of them.
    TEMPLATE_BYTES_MOST = 64 << 20
    # An import of slots: its job's name, and bytes of all; how many there may be.
    IMPORT_NAME_MOST = 1024
    IMPORT_BYTES_MOST = 512 << 10
    IMPORTS_MOST = 1000
    LEFT_OUT_MOST = 1000

cdef bint says_nothing(const uint8_t *p, size_t size) noexcept nogil:
    """Whether what a module keeps beside the keys is empty: no texts, and no number but 0."""
    cdef size_t at = 0
    cdef uint64_t kind = 0, number = 0
    cdef int head, item
    for item in range(-1, 64):
        # The type's id first, then (-1) when the module wrote it: before the keys, or behind.
        if item == -1:
            head = length_head(p, size, &number)
            if head <= 0:
                return False
            at = head
            head = length_head(p + at, size - at, &kind)
            if head <= 0 or kind != 2:
                return False
            at += head
            head = length_head(p + at, size - at, &number)
            if head <= 0:
                return False
            at += head
            continue
        head = length_head(p + at, size - at, &kind)
        if head <= 0:
            return False
        at += head
        if kind == 0:
            return True
        if kind != 1 and kind != 2:
            return False
        head = length_head(p + at, size - at, &number)
        if head <= 0 or number:
            return False
        at += head
    return False


cdef bint note_name(Bytes *names, const uint8_t *name, size_t n) noexcept nogil:
    """Add it, behind its length in 4 bytes; False: no memory."""
    cdef uint32_t size = <uint32_t>n
    if not bytes_reserve(names, 4 + n, SIZE_MAX):
        return False
    # Little-endian, as every machine that this is built for.
    memcpy(names.data + names.size, &size, 4)
    if n:
        memcpy(names.data + names.size + 4, name, n)
    names.size += 4 + n
    return True


cdef inline size_t left_of(size_t most, size_t used) noexcept nogil:
    return most - used if used < most else 0


SEARCH_DATA = frozenset({"ft_index0", "scdtype00"})
"""Types of RediSearch's: its indexes with their aliases, and its dictionaries."""


@cython.final
cdef class SnapshotReader:
    """Splits a snapshot into batches of records, whose values are DUMP payloads.

    The caller owns the socket or file: it reads into `input` and calls `received`, or hands bytes
    to `feed`; batches and pieces of long values pile up in `take`, in order. A `streamed` batch is
    followed by its pieces. One that is `spilled` as well comes behind them: everything since the
    batch before is its value (or, if it is empty, the part of a value that is given up in its
    `errors`).

    Args:
        length: bytes of the snapshot, which must end exactly there (`$<length>`).
        mark: 40 bytes that must follow it (`$EOF:<mark>`). Neither: it ends by itself, as a file.
        batch_bytes: a batch is closed when it has grown to this, or would grow past it.
        stream_above: a longer value is not held.
        value_limit: a longer value is read to nothing and listed in the batch's `errors`.
        made_limit: of lists, sets, sorted sets and hashes only one that is longer than this; none
            where it is less than `value_limit`.
        extend_before: the expire time of a key that would expire before this (ms since the epoch)
            is extended by `extend_by` (ms), and hashes whose fields have expire times are named in
            the batch's `timed`. 0: none is.
        extend_fields: the expire times of hash fields are extended by `extend_by` as well, however
            far they are; hashes of which they cannot be extended are in the batch's `stuck`.
        drop_before: a key whose expire time lies before this (ms since the epoch) is passed over
            and counted in `expired`, as a server does when it loads a file. 0: none is.
        drop_imports: keys of slots whose import was under way are passed over and counted in
            `importing`: they are the other node's, and the node that saved them hid them. A replica
            gets the rest of the import, and needs them.
        slots: keys that are not in these are passed over and counted in `elsewhere`. All else is as
            without it.
        rules: keys that they leave are passed over and counted in `excluded`.
        footers: whether values get footers that can be sent; False: their last ten bytes mean
            nothing, for a caller that only looks at them.

    `slot_imports` are the imports of slots that were under way: (name of the job, ranges of slots).

    `module_data` is what modules keep beside the keys: (name of the type, the bytes behind opcode
    247; empty: they say nothing; None: they were too long to be kept).

    Collections without members, which servers before 6.2 could write, are passed over and counted
    in `empty`, as later servers do.
    """
    cdef readonly InputBuffer input
    cdef Input *bytes_in
    cdef Arena arena
    cdef size_t batch_bytes
    cdef size_t stream_above
    cdef size_t value_limit
    cdef size_t made_limit
    cdef public int64_t extend_before
    cdef public int64_t extend_by
    cdef readonly uint64_t extended_count
    cdef int64_t drop_before
    cdef readonly uint64_t expired
    cdef readonly uint64_t empty
    cdef readonly uint64_t importing
    cdef readonly uint64_t elsewhere
    cdef SlotFilter slots
    cdef bint filters
    cdef int slot                      # of the last key, if they are hashed; -1: of none yet
    cdef bint follows                  # it is that of the key before
    cdef KeyRules rules
    cdef bint has_rules
    cdef readonly uint64_t excluded
    cdef bint drop_imports
    cdef bint footers
    cdef bint extend_fields
    cdef bint has_imports
    cdef uint8_t import_slots[SLOT_SET_BYTES]
    cdef int unknown_number            # -1: everything was known so far
    cdef uint64_t of_type[FIRST_OPCODE]
    cdef bint has_length
    cdef uint64_t length
    cdef bint has_mark
    cdef uint8_t mark_bytes[MARK_BYTES]

    cdef SnapshotState state
    cdef size_t end                    # of the bytes that may be read now
    cdef uint64_t crc
    cdef size_t crc_from               # bytes of the input from here on are not in `crc`
    cdef int flavour_number
    cdef readonly int version
    cdef readonly bint checksummed
    cdef readonly uint64_t keys_hint

    # The text being read.
    cdef TextUse text_use
    cdef Text text

    # The open batch, and what the opcodes before it said of the next key.
    cdef int db
    cdef AccessCommand batch_access
    cdef Bytes timed
    cdef Bytes stuck
    cdef bint is_stuck
    cdef Bytes unpacked
    cdef size_t value_bytes_total
    cdef int64_t expire_at
    cdef int64_t access
    cdef AccessCommand access_kind

    # The value being walked.
    cdef uint8_t type
    cdef Walk walk                     # has gone up to `walk.at`: what is behind is handed on
    cdef bint peeked                   # it has been looked at whether it has members
    cdef bint judged                   # it is one string, and its length has been looked at
    cdef ValueSink sink
    cdef size_t record_at              # in the arena
    cdef size_t value_at
    cdef uint32_t key_size
    cdef uint64_t value_size           # handed on as pieces, or to nothing; the type included
    cdef uint64_t value_crc
    cdef uint8_t footer[FOOTER_BYTES]
    cdef size_t piece_start
    cdef size_t piece_size
    cdef bint spilled
    cdef bint type_unsent
    cdef RefusedWhy refused
    cdef bytes key

    cdef const char *expected
    cdef list ready
    cdef list errors
    cdef size_t errors_count
    cdef list beyond
    # What a module keeps beside the keys, as it came: its own, and bytes of those before it.
    cdef Bytes module_bytes
    cdef size_t module_bytes_before
    cdef bint module_too_long
    cdef readonly list module_data
    cdef Bytes import_bytes
    cdef readonly list slot_imports
    cdef bytes aux_name
    cdef size_t aux_bytes
    cdef size_t scripts_bytes
    cdef size_t functions_bytes
    # (Number of fields, their names as they came; None: too long to be kept) by id.
    cdef dict templates
    cdef Bytes template_bytes
    cdef size_t template_bytes_before
    cdef bint template_too_long
    cdef uint64_t key_metadata
    cdef list left
    cdef readonly dict aux
    cdef readonly list functions
    cdef readonly list scripts

    def __cinit__(
        self, *, length=None, mark=None, size_t batch_bytes=1 << 20,
        size_t stream_above=4 << 20, size_t value_limit=512 << 20,
        size_t made_limit=0,
        int64_t extend_before=0, int64_t extend_by=0, int64_t drop_before=0,
        bint drop_imports=False, bint footers=True, bint extend_fields=False,
        SlotFilter slots=None, KeyRules rules=None,
    ):
        if length is not None and mark is not None:
            raise ValueError("a snapshot has a length or a mark, not both")
        if mark is not None:
            if not PyBytes_CheckExact(mark) or len(mark) != MARK_BYTES:
                raise ValueError(f"a mark is {MARK_BYTES} bytes, found {mark!r}")
            self.has_mark = True
            memcpy(self.mark_bytes, PyBytes_AS_STRING(mark), MARK_BYTES)
        if extend_before < 0 or extend_by < 0:
            raise ValueError("an expire time is only ever extended")
        self.input = InputBuffer()
        self.bytes_in = &self.input.state
        self.has_length = length is not None
        self.length = length or 0
        self.batch_bytes = batch_bytes
        self.stream_above = stream_above
        self.value_limit = value_limit
        self.made_limit = max(made_limit, value_limit)
        self.extend_before = extend_before
        self.extend_by = extend_by
        self.drop_before = drop_before
        self.drop_imports = drop_imports
        self.slots = slots
        self.filters = slots is not None
        self.rules = rules
        self.has_rules = rules is not None
        self.footers = footers
        self.extend_fields = extend_fields
        self.unknown_number = -1
        self.state = SNAPSHOT_MAGIC
        self.expire_at = self.access = self.slot = -1
        self.ready = []
        self.errors = []
        self.beyond = []
        self.templates = {}
        self.left = []
        self.aux = {}
        self.module_data = []
        self.slot_imports = []
        self.functions = []
        self.scripts = []

    def __dealloc__(self):
        arena_free(&self.arena)
        bytes_free(&self.text.raw)
        bytes_free(&self.text.plain)
        bytes_free(&self.timed)
        bytes_free(&self.module_bytes)
        bytes_free(&self.import_bytes)
        bytes_free(&self.template_bytes)
        bytes_free(&self.stuck)
        bytes_free(&self.unpacked)

    # --- Its face ---

    @property
    def flavour(self):
        """By the magic: "valkey" from Valkey 9.0 on, else "redis"; "" before it was read."""
        if self.version == 0:
            return ""
        return "valkey" if self.flavour_number == FLAVOUR_VALKEY else "redis"

    @property
    def finished(self):
        """The whole snapshot has been read: its checksum, and the mark behind it."""
        return self.state == SNAPSHOT_END

    @property
    def offset(self):
        """Bytes of the snapshot consumed so far."""
        return input_offset(self.bytes_in)

    @property
    def types(self):
        """How many keys of each type of value (RDB_TYPE_*) there were: {type: keys}."""
        return {kind: self.of_type[kind] for kind in range(FIRST_OPCODE) if self.of_type[kind]}

    @property
    def left_out(self):
        """What the snapshot holds beside its keys and cannot be carried, one line each; but for what
        RediSearch keeps, which is in `module_data`."""
        lines = []
        for name in dict.fromkeys(name for name, data in self.module_data if data != b""):
            if name not in SEARCH_DATA:
                lines.append(f"the data that module {name} keeps beside the keys")
        lines += self.left
        if self.key_metadata:
            lines.append(f"module metadata of {self.key_metadata:,} keys")
        if self.has_imports and self.drop_imports:
            lines.append(
                f"{self.importing:,} keys of slots that were on their way in: they are on the "
                "node that the slots come from")
        return lines

    @property
    def unknown(self):
        """The type of value or opcode that is not known, and ended the reading; else None."""
        return None if self.unknown_number < 0 else self.unknown_number

    @property
    def may_flush(self):
        """Whether `flush` would be taken now, and hand on anything."""
        return not self.holds_part() and bool(self.arena.count or self.errors)

    def flush(self):
        """Close the open batch, if there is anything in it. ValueError in the middle of a value."""
        if self.holds_part():
            raise ValueError("a value is being read")
        self.close_if_any()

    def take(self):
        """The finished batches and pieces (bytes) in order; empties the list."""
        ready = self.ready
        self.ready = []
        return ready

    def rest(self):
        """The bytes behind the snapshot that have been read already; empties `input`.

        ValueError unless `finished`.
        """
        cdef Input *input = self.bytes_in
        if self.state != SNAPSHOT_END:
            raise ValueError("the snapshot has not been read to its end")
        first = PyBytes_FromStringAndSize(
            <char *>input.data + input.start, input.end - input.start)
        input.start = input.end
        beyond, self.beyond = self.beyond, []
        return first + b"".join(beyond)

    def received(self, size_t n):
        """Take in `n` bytes that were read into `input`.

        Returns how many items `take` would give. Raises `ProtocolError` for bytes that are no
        snapshot, `MemoryError`. After an exception the reader is of no more use.
        """
        self.input.commit(n)
        return self.advance()

    def feed(self, bytes data not None):
        """Take in bytes that come from elsewhere, as many as there are; else as `received`."""
        cdef Input *input = self.bytes_in
        cdef size_t size = PyBytes_GET_SIZE(data)
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(data)
        cdef size_t at = 0, n
        while at < size:
            if self.state == SNAPSHOT_END:
                self.beyond.append(data[at:])
                break
            self.input.compact()
            n = min(input.capacity - input.end, size - at)
            if n == 0:
                raise BufferError("the input is lent out")
            memcpy(input.data + input.end, p + at, n)
            input.end += n
            at += n
            self.advance()
        return len(self.ready)

    # --- What `parse` stops for ---

    cdef Py_ssize_t advance(self) except -1:
        if self.state == SNAPSHOT_FAILED:
            raise ValueError("the snapshot was found damaged")
        try:
            self.run()
        except BaseException:
            self.state = SNAPSHOT_FAILED
            raise
        return len(self.ready)

    cdef int run(self) except -1:
        cdef Input *input = self.bytes_in
        cdef SnapshotStop stop
        self.crc_from = input.start
        # All that was walked has been handed on; the input may have been moved since.
        self.walk.at = input.start
        self.end = input.end
        if self.has_length and self.state != SNAPSHOT_END and (
                input.before + input.end > self.length):
            # What is behind is no part of the snapshot.
            self.end = self.length - input.before
        while True:
            with nogil:
                stop = self.parse()
                if stop == SNAP_NEED_DATA:
                    self.checksum_run()
            if stop == SNAP_NEED_DATA:
                break
            self.attend(stop)
        if self.has_length and self.state != SNAPSHOT_END and (
                input.before + input.end >= self.length):
            self.expected = "the end of the snapshot before that of its length"
            self.raise_wrong()
        return 0

    cdef int attend(self, SnapshotStop stop) except -1:
        """Do what needs the GIL."""
        if stop == SNAP_CLOSE:
            self.close_if_any()
        elif stop == SNAP_SPLIT:
            self.split_batch()
        elif stop == SNAP_TEXT:
            self.keep_text()
        elif stop == SNAP_STREAM:
            self.begin_stream()
        elif stop == SNAP_OUTGROWN:
            self.begin_spill()
        elif stop == SNAP_REFUSED:
            self.value_size = self.arena.size - self.value_at
            self.key = self.take_begun()[0]
            self.sink = SINK_NOTHING
        elif stop == SNAP_PIECE:
            self.add_piece(False)
        elif stop == SNAP_LAST_PIECE:
            self.add_piece(True)
            self.end_pieces()
        elif stop == SNAP_DROPPED:
            self.end_dropped()
        elif stop == SNAP_TEMPLATE:
            if self.walk.noted not in self.templates:
                self.expected = "the id of a field template that the snapshot has defined"
                self.raise_wrong()
            self.walk.counted = self.templates[self.walk.noted][0]
        elif stop == SNAP_REBUILD:
            self.rebuild()
        elif stop == SNAP_EOF:
            self.close_if_any()
        elif stop == SNAP_UNKNOWN:
            number = self.bytes_in.data[self.bytes_in.start]
            self.unknown_number = number
            what = "opcode" if number >= FIRST_OPCODE else "type of value"
            at = input_offset(self.bytes_in)
            raise ProtocolError(
                f"{what} {number} is not known in a snapshot of {self.flavour}, version "
                f"{self.version}, found at byte {at}", at)
        elif stop == SNAP_NO_MEMORY:
            raise MemoryError()
        else:
            self.raise_wrong()
        return 0

    cdef int raise_wrong(self) except -1:
        cdef size_t at = self.bytes_in.start, shown
        if self.state == SNAPSHOT_WALK and self.walk.at > at:
            at = self.walk.at
        shown = min(self.bytes_in.end - at, <size_t>32)
        found = PyBytes_FromStringAndSize(<char *>self.bytes_in.data + at, shown)
        offset = self.bytes_in.before + at
        raise ProtocolError(
            f"expected {(<bytes>self.expected).decode()}, found {found!r} at byte {offset} "
            f"of the snapshot", offset)

    cdef int keep_text(self) except -1:
        text = PyBytes_FromStringAndSize(<char *>self.text.data, self.text.size)
        self.state = SNAPSHOT_NEXT
        if self.text_use == TEXT_AUX_NAME:
            self.aux_name = text
            self.aux_bytes += self.text.size
            if text == b"lua":
                self.await_text(TEXT_AUX_VALUE, left_of(TEXT_BYTES_MOST, self.scripts_bytes))
            else:
                self.await_text(TEXT_AUX_VALUE, left_of(AUX_BYTES_MOST, self.aux_bytes))
        elif self.text_use == TEXT_FUNCTION:
            self.functions.append(text)
            self.functions_bytes += self.text.size + TEXT_COST
        elif self.aux_name == b"lua":
            self.scripts.append(text)
            self.scripts_bytes += self.text.size + TEXT_COST
        else:
            self.aux[self.aux_name.decode("utf-8", "backslashreplace")] = text
            self.aux_bytes += self.text.size
            if len(self.aux) > AUX_FIELDS_MOST:
                self.expected = "fewer AUX fields"
                self.raise_wrong()
        text_release(&self.text)
        return 0

    cdef tuple take_begun(self):
        """The key, and the value as far as it is held, of the record that has begun.

        They leave the arena. The value comes in portions of a piece.
        """
        cdef size_t at = self.value_at
        cdef size_t n
        cdef uint8_t *data = self.arena.data
        key = PyBytes_FromStringAndSize(<char *>data + self.record_at, self.key_size)
        pieces = []
        while at < self.arena.size:
            n = min(self.arena.size - at, <size_t>PIECE_MOST)
            pieces.append(PyBytes_FromStringAndSize(<char *>data + at, n))
            at += n
        self.arena.size = self.record_at
        if self.arena.count == 0:
            # What comes next is small: it shall not keep so much.
            arena_free(&self.arena)
        return key, pieces

    cdef int split_batch(self) except -1:
        """Close the batch before the record that has begun, which opens the next."""
        cdef size_t n = self.arena.size - self.record_at
        begun = PyBytes_FromStringAndSize(<char *>self.arena.data + self.record_at, n)
        self.arena.size = self.record_at
        self.close_if_any()
        if not arena_reserve(&self.arena, n + FOOTER_BYTES, self.batch_bytes):
            raise MemoryError()
        memcpy(self.arena.data, PyBytes_AS_STRING(begun), n)
        self.arena.size = n
        self.value_at -= self.record_at
        self.record_at = 0
        return 0

    cdef int close_if_any(self) except -1:
        if self.arena.count or self.errors:
            self.close_batch()
        return 0

    cdef RecordBatch close_batch(self):
        cdef RecordBatch batch = RecordBatch.__new__(RecordBatch)
        cdef uint8_t *less
        if self.arena.capacity - self.arena.size > self.batch_bytes + ARENA_STEP:
            # A value that has left it again made it grow.
            less = <uint8_t *>PyMem_RawRealloc(self.arena.data, max(self.arena.size, <size_t>1))
            if less != NULL:
                self.arena.data = less
                self.arena.capacity = max(self.arena.size, <size_t>1)
        batch.arena = self.arena
        memset(&self.arena, 0, sizeof(Arena))
        batch.db = self.db
        batch.value_bytes = self.value_bytes_total
        self.value_bytes_total = 0
        batch.errors = self.errors
        self.errors = []
        self.errors_count = 0
        batch.access_is_freq = self.batch_access == ACCESS_FREQ
        self.batch_access = ACCESS_NONE
        batch.hashed = self.filters
        if self.timed.size:
            batch.timed = PyBytes_FromStringAndSize(<char *>self.timed.data, self.timed.size)
            self.timed.size = 0
        if self.stuck.size:
            batch.stuck = PyBytes_FromStringAndSize(<char *>self.stuck.data, self.stuck.size)
            self.stuck.size = 0
        self.ready.append(batch)
        return batch

    cdef RecordBatch lone_batch(self, bytes key, uint64_t value_size):
        """A streamed batch: one record without its value."""
        cdef RecordBatch batch
        cdef Record *record
        self.key_size = <uint32_t>PyBytes_GET_SIZE(key)
        if not arena_reserve(&self.arena, self.key_size, 0):
            raise MemoryError()
        if self.key_size:
            memcpy(self.arena.data, PyBytes_AS_STRING(key), self.key_size)
        self.arena.size = self.key_size
        record = &self.arena.records[0]
        record.offset = 0
        record.key_size = self.key_size
        record.value_size = value_size
        record.unsealed = False
        if not self.describe(record):
            raise MemoryError()
        self.arena.count = 1
        self.value_bytes_total = value_size
        batch = self.close_batch()
        batch.streamed = True
        return batch

    cdef int begin_stream(self) except -1:
        """The string whose head is next is not held: its record first, then its bytes."""
        key = self.take_begun()[0]
        self.close_if_any()
        self.lone_batch(key, self.value_size)
        self.value_size = 0
        self.value_crc = crc64_update(0, &self.type, 1)
        self.type_unsent = True
        self.spilled = False
        self.sink = SINK_PIECES
        return 0

    cdef int begin_spill(self) except -1:
        """The collection that has begun cannot be held on: what there is of it goes out."""
        if self.extend_fields and has_field_ttls(self.flavour_number, self.type):
            # Of type 24 they all hang on the first, which is here by now.
            self.is_stuck = self.type != 24 or extend_fields(
                self.flavour_number, self.arena.data + self.value_at,
                self.arena.size - self.value_at, self.extend_by, &self.unpacked
            ) != FIELDS_LIFTED
        self.key, pieces = self.take_begun()
        self.close_if_any()
        self.value_size = 0
        self.value_crc = 0
        for piece in pieces:
            self.value_size += PyBytes_GET_SIZE(piece)
            self.value_crc = crc64_update(
                self.value_crc, <const uint8_t *>PyBytes_AS_STRING(piece),
                PyBytes_GET_SIZE(piece))
        self.ready += pieces
        self.type_unsent = False
        self.spilled = True
        self.sink = SINK_PIECES
        return 0

    cdef int add_piece(self, bint last) except -1:
        cdef size_t before = 1 if self.type_unsent else 0
        cdef size_t behind = FOOTER_BYTES if last else 0
        cdef bytes piece = PyBytes_FromStringAndSize(NULL, before + self.piece_size + behind)
        cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(piece)
        out[0] = self.type
        memcpy(out + before, self.bytes_in.data + self.piece_start, self.piece_size)
        memcpy(out + before + self.piece_size, self.footer, behind)
        self.type_unsent = False
        self.ready.append(piece)
        return 0

    cdef int end_pieces(self) except -1:
        cdef RecordBatch batch
        if self.spilled:
            batch = self.lone_batch(self.key, self.value_size + FOOTER_BYTES)
            batch.spilled = True
            self.key = None
        self.value_ended()
        return 0

    cdef int end_dropped(self) except -1:
        """The end of what was read to nothing."""
        if self.type == 246:
            self.leave_out("functions as the release candidates of Redis 7.0 wrote them")
        elif self.type == 247:
            self.keep_module_data()
        elif self.type == 242:
            if len(self.templates) >= TEMPLATES_MOST:
                self.expected = "fewer field templates"
                self.raise_wrong()
            self.keep_template()
        elif self.type == 243 and self.flavour_number == FLAVOUR_REDIS:
            self.key_metadata += 1
        elif self.type == 243:
            self.keep_import()
            if self.drop_imports:
                self.has_imports = True
            else:
                self.leave_out("an import of slots that was under way")
        if self.type >= FIRST_OPCODE:
            self.state = SNAPSHOT_NEXT
            return 0
        if self.refused >= REFUSED_EXPIRED:
            if self.refused == REFUSED_EXPIRED:
                self.expired += 1
            elif self.refused == REFUSED_EMPTY:
                self.empty += 1
            else:
                self.importing += 1
            self.value_ended()
            return 0
        if self.refused == REFUSED_TEMPLATE:
            return self.refuse_template("is too long for it")
        why = (
            f"its value, {self.value_size + FOOTER_BYTES:,} bytes as dumped, is longer than the "
            f"target takes in one bulk, its proto-max-bulk-len ({self.value_limit:,} bytes)")
        if self.limit_of_type() > self.value_limit:
            why += f", and than the {self.made_limit:,} bytes of which commands are made"
        return self.refuse(why)

    cdef int refuse(self, str why) except -1:
        """Name the key whose value has ended, and is not handed on."""
        cdef RecordBatch batch
        self.errors.append((self.key, why))
        self.errors_count += 1
        self.key = None
        if self.spilled:
            batch = self.close_batch()
            batch.spilled = True
        elif self.errors_count >= ERRORS_MOST:
            self.close_batch()
        self.value_ended()
        return 0

    # --- Hashes of a template ---

    cdef int keep_template(self) except -1:
        """The names of a template, whose bytes are here: its walk was sound."""
        cdef Bytes *found = &self.template_bytes
        cdef uint64_t number = 0
        cdef size_t at = 0
        names = None
        if not self.template_too_long:
            at = length_head(found.data, found.size, &number)
            at += length_head(found.data + at, found.size - at, &number)
            # (False: a name is there twice, and a hash with it would be refused, or worse.)
            names = names_differ(found.data + at, found.size - at, self.walk.counted) and (
                PyBytes_FromStringAndSize(<char *>found.data + at, found.size - at))
            self.template_bytes_before += found.size
        found.size = 0
        self.template_too_long = False
        self.templates[self.walk.noted] = (self.walk.counted, names)
        return 0

    cdef int rebuild(self) except -1:
        """Make a hash that stands for itself of the value, which is at the arena's end."""
        cdef TemplateHash value
        cdef uint8_t *data = self.arena.data + self.value_at
        cdef size_t n = self.arena.size - self.value_at
        cdef size_t most = left_of(min(self.stream_above, self.value_limit), FOOTER_BYTES)
        cdef const uint8_t *p
        cdef size_t size
        cdef uint64_t count
        cdef TemplateEnd end
        cdef SnapshotStop stop
        found = None
        try:
            end = template_open(&value, self.type, data + 1, n - 1)
            if end == TEMPLATE_DONE:
                found = self.templates.get(value.id)
                if found is None or found[1] is False:
                    end = TEMPLATE_WRONG
                elif found[1] is None:
                    end = TEMPLATE_TOO_LONG
                else:
                    count = found[0]
                    p = <const uint8_t *>PyBytes_AS_STRING(found[1])
                    size = PyBytes_GET_SIZE(found[1])
                    with nogil:
                        end = template_build(&value, p, size, count, &self.unpacked, most)
        finally:
            template_close(&value)
        if end == TEMPLATE_NO_MEMORY:
            raise MemoryError()
        if end != TEMPLATE_DONE:
            self.key = self.take_begun()[0]
            return self.refuse_template(
                "is too long for it" if end == TEMPLATE_TOO_LONG else "does not fit it")
        self.of_type[self.type] -= 1
        self.type = 4
        self.of_type[4] += 1
        if not self.replace_value():
            raise MemoryError()
        stop = self.finish_record()
        if stop == SNAP_NO_MEMORY:
            raise MemoryError()
        if stop == SNAP_CLOSE:
            self.close_if_any()
        return 0

    cdef int refuse_template(self, str what) except -1:
        return self.refuse(
            f"it is a hash that names a field template of the snapshot, and {what}: no payload of "
            "RESTORE can be made of it; DUMP gives one")

    cdef int keep_module_data(self) except -1:
        cdef Bytes *found = &self.module_bytes
        name = module_name(self.walk.noted)
        if len(self.module_data) >= LEFT_OUT_MOST:
            self.leave_out("data that more modules keep beside the keys")
        elif self.module_too_long:
            self.module_data.append((name, None))
        elif says_nothing(found.data, found.size):
            self.module_data.append((name, b""))
        else:
            self.module_data.append(
                (name, PyBytes_FromStringAndSize(<char *>found.data, found.size)))
            self.module_bytes_before += found.size
        found.size = 0
        self.module_too_long = False
        if self.module_bytes_before > MODULE_DATA_MOST:
            bytes_free(found)
        return 0

    cdef int keep_import(self) except -1:
        """Note the import of slots whose bytes are here: its walk was sound."""
        cdef const uint8_t *p = self.import_bytes.data
        cdef size_t n = self.import_bytes.size, at = 0
        cdef uint64_t count = 0, first = 0, last = 0
        cdef TextStop stop
        self.import_bytes.size = 0
        text_begin(&self.text, IMPORT_NAME_MOST)
        stop = text_on(&self.text, p, &at, n)
        if stop == TEXT_NO_MEMORY:
            raise MemoryError()
        if stop != TEXT_READY or len(self.slot_imports) >= IMPORTS_MOST:
            self.expected = "fewer imports of slots, and their names in bounds"
            self.raise_wrong()
        name = PyBytes_FromStringAndSize(<char *>self.text.data, self.text.size)
        ranges = []
        at += length_head(p + at, n - at, &count)
        while count:
            at += length_head(p + at, n - at, &first)
            at += length_head(p + at, n - at, &last)
            ranges.append((first, last))
            count -= 1
        self.slot_imports.append((name, tuple(ranges)))
        return 0

    cdef int leave_out(self, str line) except -1:
        if line not in self.left and len(self.left) < LEFT_OUT_MOST:
            self.left.append(line)
        return 0

    # --- The parser ---

    cdef inline bint holds_part(self) noexcept nogil:
        """The arena holds the beginning of a record, or pieces of one have gone out."""
        return (
            self.state == SNAPSHOT_WALK and self.type < FIRST_OPCODE
            and self.sink != SINK_NOTHING)

    cdef inline SnapshotStop wrong(self, const char *expected) noexcept nogil:
        self.expected = expected
        return SNAP_PROTOCOL

    cdef inline void checksum_run(self) noexcept nogil:
        """Bring the snapshot's checksum up to the next unread byte."""
        cdef Input *input = self.bytes_in
        if self.state <= SNAPSHOT_WALK:
            self.crc = crc64_update(
                self.crc, input.data + self.crc_from, input.start - self.crc_from)
        self.crc_from = input.start

    cdef inline void await_text(self, TextUse use, size_t limit) noexcept nogil:
        self.text_use = use
        text_begin(&self.text, limit)
        self.state = SNAPSHOT_TEXT

    cdef inline void value_ended(self) noexcept nogil:
        self.expire_at = self.access = -1
        self.spilled = False
        self.refused = REFUSED_NOT
        self.state = SNAPSHOT_NEXT

    cdef SnapshotStop parse(self) noexcept nogil:
        cdef SnapshotStop stop
        while True:
            if self.state == SNAPSHOT_NEXT:
                stop = self.next_item()
            elif self.state == SNAPSHOT_TEXT:
                stop = self.read_text()
            elif self.state == SNAPSHOT_WALK:
                stop = self.walk_value()
            elif self.state == SNAPSHOT_MAGIC:
                stop = self.read_magic()
            elif self.state == SNAPSHOT_CHECKSUM:
                stop = self.read_checksum()
            elif self.state == SNAPSHOT_MARK:
                stop = self.read_mark()
            else:
                return SNAP_NEED_DATA
            if stop != SNAP_GO_ON:
                return stop

    cdef SnapshotStop read_magic(self) noexcept nogil:
        cdef const uint8_t *p = self.bytes_in.data + self.bytes_in.start
        cdef int at, version = 0
        if self.end - self.bytes_in.start < 9:
            return SNAP_NEED_DATA
        if memcmp(p, b"REDIS", 5) == 0:
            self.flavour_number = FLAVOUR_REDIS
            at = 5
        elif memcmp(p, b"VALKEY", 6) == 0:
            self.flavour_number = FLAVOUR_VALKEY
            at = 6
        else:
            return self.wrong("the magic of a snapshot, REDIS or VALKEY")
        while at < 9:
            if p[at] < 48 or p[at] > 57:
                return self.wrong("a version in digits behind the magic of a snapshot")
            version = version * 10 + p[at] - 48
            at += 1
        if version == 0:
            return self.wrong("a version above 0 behind the magic of a snapshot")
        self.version = version
        self.bytes_in.start += 9
        self.state = SNAPSHOT_NEXT
        return SNAP_GO_ON

    cdef SnapshotStop next_item(self) noexcept nogil:
        """An opcode with all it brings, or the type of a value."""
        cdef Input *input = self.bytes_in
        cdef const uint8_t *p = input.data + input.start
        cdef size_t n = self.end - input.start
        cdef uint64_t number = 0, second = 0
        cdef int size, more, i
        if n == 0:
            return SNAP_NEED_DATA
        if p[0] < FIRST_OPCODE:
            if self.flavour_number == FLAVOUR_REDIS and (p[0] == 107 or p[0] == 121):
                # Redis Enterprise: how lately the next key was used, and its slot.
                size = length_head(p + 1, n - 1, &number)
                if size == 0:
                    return SNAP_NEED_DATA
                if size < 0:
                    return self.wrong("a length behind Redis Enterprise's opcode 107 or 121")
                input.start += 1 + size
                return SNAP_GO_ON
            if walk_starts[self.flavour_number][p[0]] < 0 or (
                    self.version < walk_since[self.flavour_number][p[0]]):
                return SNAP_UNKNOWN
            if self.access >= 0 and self.batch_access != self.access_kind and (
                    self.batch_access != ACCESS_NONE):
                return SNAP_CLOSE
            self.type = p[0]
            input.start += 1
            self.await_text(TEXT_KEY, KEY_BYTES_MOST)
            return SNAP_GO_ON
        if p[0] == 252:
            if n < 9:
                return SNAP_NEED_DATA
            self.set_deadline(little_endian(p + 1, 8))
            size = 8
        elif p[0] == 253:
            if n < 5:
                return SNAP_NEED_DATA
            self.set_deadline(little_endian(p + 1, 4) * 1000)
            size = 4
        elif p[0] == 249:
            if n < 2:
                return SNAP_NEED_DATA
            self.access, self.access_kind = p[1], ACCESS_FREQ
            size = 1
        elif p[0] == 248:
            size = length_head(p + 1, n - 1, &number)
            if size == 0:
                return SNAP_NEED_DATA
            if size < 0 or number > <uint64_t>INT64_MAX:
                return self.wrong("an idle time behind opcode 248")
            self.access, self.access_kind = <int64_t>number, ACCESS_IDLETIME
        elif p[0] == 254:
            size = length_head(p + 1, n - 1, &number)
            if size == 0:
                return SNAP_NEED_DATA
            if size < 0 or number > 0x7fffffff:
                return self.wrong("the number of a database behind opcode 254")
            if <int>number != self.db and (self.arena.count or self.errors_count):
                return SNAP_CLOSE
            self.db = <int>number
        elif p[0] == 251 or p[0] == 244:
            size = 0
            for i in range(2 if p[0] == 251 else 3):
                more = length_head(p + 1 + size, n - 1 - size, &second)
                if more == 0:
                    return SNAP_NEED_DATA
                if more < 0:
                    return self.wrong("sizes behind opcode 251 or 244")
                if i == 0:
                    number = second
                size += more
            if p[0] == 251:
                self.keys_hint = (
                    self.keys_hint + number if number < SIZE_MAX - self.keys_hint else SIZE_MAX)
        elif p[0] == 250:
            input.start += 1
            self.await_text(TEXT_AUX_NAME, left_of(AUX_BYTES_MOST, self.aux_bytes))
            return SNAP_GO_ON
        elif p[0] == 245:
            input.start += 1
            self.await_text(TEXT_FUNCTION, left_of(TEXT_BYTES_MOST, self.functions_bytes))
            return SNAP_GO_ON
        elif p[0] == 255:
            input.start += 1
            self.checksum_run()
            self.state = SNAPSHOT_CHECKSUM
            return SNAP_GO_ON
        else:
            if walk_starts[self.flavour_number][p[0]] < 0 or (
                    self.version < walk_since[self.flavour_number][p[0]]):
                return SNAP_UNKNOWN
            self.type = p[0]
            input.start += 1
            self.sink = SINK_NOTHING
            self.begin_walk()
            return SNAP_GO_ON
        input.start += 1 + size
        return SNAP_GO_ON

    cdef inline void set_deadline(self, int64_t at) noexcept nogil:
        """-1 is none, and all else below 0 long past."""
        self.expire_at = at if at >= -1 else 0

    cdef SnapshotStop read_text(self) noexcept nogil:
        cdef TextStop stop = text_on(
            &self.text, self.bytes_in.data, &self.bytes_in.start, self.end)
        if stop == TEXT_READY:
            return self.begin_record() if self.text_use == TEXT_KEY else SNAP_TEXT
        if stop == TEXT_MORE:
            return SNAP_NEED_DATA
        if stop == TEXT_NO_MEMORY:
            return SNAP_NO_MEMORY
        if stop == TEXT_TOO_LONG:
            return self.wrong("a key, AUX field, script or function of a length in bounds")
        return self.wrong("a string, and sound LZF in it")

    cdef inline SnapshotStop begin_record(self) noexcept nogil:
        """The key is there: it goes into the arena, and the type of its value behind it."""
        cdef size_t n = self.text.size
        cdef int slot
        if self.filters:
            slot = slot_of(self.text.data, n)
            if not self.slots.has_slot(slot):
                text_release(&self.text)
                return self.pass_over(REFUSED_ELSEWHERE)
            self.follows = slot == self.slot
            self.slot = slot
        if self.has_rules and self.rules.judge(
                self.db, rule_kind(self.flavour_number, self.type), self.text.data, n
        ) != RULES_TAKE:
            text_release(&self.text)
            return self.pass_over(REFUSED_RULES)
        if 0 <= self.expire_at < self.drop_before:
            text_release(&self.text)
            return self.pass_over(REFUSED_EXPIRED)
        if self.has_imports and self.drop_imports and self.imports_slot_of(self.text.data, n):
            text_release(&self.text)
            return self.pass_over(REFUSED_SLOT)
        self.of_type[self.type] += 1
        if not arena_reserve(&self.arena, n + 1 + FOOTER_BYTES, self.batch_bytes):
            return SNAP_NO_MEMORY
        self.record_at = self.arena.size
        self.key_size = <uint32_t>n
        if n:
            memcpy(self.arena.data + self.record_at, self.text.data, n)
        self.value_at = self.record_at + n
        self.arena.data[self.value_at] = self.type
        self.arena.size = self.value_at + 1
        text_release(&self.text)
        self.is_stuck = False
        self.sink = SINK_ARENA
        self.begin_walk()
        return SNAP_GO_ON

    cdef inline bint of_template(self) noexcept nogil:
        """Whether the value names a template, and is held whole to be made into another."""
        return (self.type == 30 or self.type == 32) and self.flavour_number == FLAVOUR_REDIS

    cdef inline bint imports_slot_of(self, const uint8_t *key, size_t n) noexcept nogil:
        cdef uint16_t slot = slot_of(key, n)
        return self.import_slots[slot >> 3] >> (slot & 7) & 1

    cdef SnapshotStop pass_over(self, RefusedWhy why) noexcept nogil:
        """Walk over the value that comes, however long it is."""
        self.refused = why
        self.sink = SINK_NOTHING
        self.begin_walk()
        self.judged = self.peeked = True
        return SNAP_GO_ON

    cdef SnapshotStop peek(self) noexcept nogil:
        """Before a value is walked: has it members at all?"""
        cdef Input *input = self.bytes_in
        cdef int found = value_empty(
            self.flavour_number, self.type, input.data + input.start, self.end - input.start)
        if found < 0:
            return SNAP_NEED_DATA
        self.peeked = True
        if found:
            self.arena.size = self.record_at
            self.of_type[self.type] -= 1
            return self.pass_over(REFUSED_EMPTY)
        return SNAP_GO_ON

    cdef inline void begin_walk(self) noexcept nogil:
        self.peeked = self.type == 0 or self.type >= FIRST_OPCODE
        self.walk.slots = self.import_slots
        self.judged = not walk_single[self.flavour_number][self.type]
        walk_begin(
            &self.walk, walk_starts[self.flavour_number][self.type], self.bytes_in.start)
        self.state = SNAPSHOT_WALK

    cdef inline size_t limit_of_type(self) noexcept nogil:
        """Bytes of the longest value of this type that is handed on."""
        return self.made_limit if (
            KIND_LIST <= kind_of(self.flavour_number, self.type) <= KIND_HASH) else self.value_limit

    cdef SnapshotStop judge(self) noexcept nogil:
        """The value is one string: what is to be done with it follows from its head."""
        cdef Input *input = self.bytes_in
        cdef const uint8_t *p = input.data + input.start
        cdef size_t n = self.end - input.start
        cdef StringHead head
        cdef int size = string_head(p, n, &head)
        cdef uint64_t total, whole
        if size == 0:
            return SNAP_NEED_DATA
        if size < 0:
            return self.wrong("a string")
        total = size + head.body
        whole = 1 + total + FOOTER_BYTES
        if whole > self.limit_of_type():
            self.judged = True
            self.refused = REFUSED_LENGTH
            return SNAP_REFUSED
        if whole > self.stream_above and self.of_template():
            self.judged = True
            self.refused = REFUSED_TEMPLATE
            return SNAP_REFUSED
        if whole > self.stream_above:
            self.judged = True
            self.value_size = whole
            return SNAP_STREAM
        if self.arena.count and self.arena.size + total + FOOTER_BYTES > self.batch_bytes:
            return SNAP_SPLIT
        self.judged = True
        if not arena_reserve(&self.arena, total + FOOTER_BYTES, self.batch_bytes):
            return SNAP_NO_MEMORY
        if n < total:
            return SNAP_GO_ON
        memcpy(self.arena.data + self.arena.size, p, total)
        self.arena.size += total
        input.start += total
        return self.finish_record()

    cdef inline SnapshotStop finish_record(self) noexcept nogil:
        """The value is in the arena whole: its footer, and its entry in the index."""
        cdef Record *record = &self.arena.records[self.arena.count]
        cdef uint8_t *value = self.arena.data + self.value_at
        cdef size_t n
        if self.of_template():
            return SNAP_REBUILD
        if self.extend_fields and has_field_ttls(self.flavour_number, self.type):
            if not self.extend_members():
                return SNAP_NO_MEMORY
            record = &self.arena.records[self.arena.count]
            value = self.arena.data + self.value_at
        n = self.arena.size - self.value_at
        memset(value + n, 0, FOOTER_BYTES)
        record.unsealed = False
        if self.footers:
            self.put_version(value + n)
            record.unsealed = self.type == STRING_TYPE
            if not record.unsealed:
                seal_payload(value, n + FOOTER_BYTES)
        self.arena.size += FOOTER_BYTES
        record.offset = self.record_at
        record.key_size = self.key_size
        record.value_size = n + FOOTER_BYTES
        if not self.describe(record):
            return SNAP_NO_MEMORY
        self.arena.count += 1
        self.value_bytes_total += record.value_size
        self.value_ended()
        return SNAP_CLOSE if self.arena.size >= self.batch_bytes else SNAP_GO_ON

    cdef bint extend_members(self) noexcept nogil:
        """The expire times of the fields of the value at the arena's end; False: no memory."""
        cdef size_t n = self.arena.size - self.value_at
        cdef FieldsExtended found = extend_fields(
            self.flavour_number, self.arena.data + self.value_at, n, self.extend_by,
            &self.unpacked)
        if found == FIELDS_NO_MEMORY:
            return False
        self.is_stuck = found == FIELDS_STUCK
        n = self.unpacked.size
        if n == 0:
            return True
        if n + FOOTER_BYTES > self.value_limit:
            self.is_stuck = True
            return True
        return self.replace_value()

    cdef bint replace_value(self) noexcept nogil:
        """Put `unpacked` in the place of the value at the arena's end; False: no memory."""
        cdef size_t n = self.unpacked.size
        self.arena.size = self.value_at
        if not arena_reserve(&self.arena, n + FOOTER_BYTES, self.batch_bytes):
            return False
        memcpy(self.arena.data + self.value_at, self.unpacked.data, n)
        self.arena.size += n
        if self.unpacked.capacity > ARENA_STEP:
            bytes_free(&self.unpacked)
        return True

    cdef inline void put_version(self, uint8_t *footer) noexcept nogil:
        """The lowest version that this type needs, so that the oldest servers take it."""
        cdef int version = walk_needed[self.flavour_number][self.type]
        if self.type >= TYPES_KNOWN:
            version = min(version, self.version)
        footer[0] = version & 0xff
        footer[1] = version >> 8

    cdef inline void make_footer(self, uint8_t *footer, uint64_t crc) noexcept nogil:
        cdef int i
        self.put_version(footer)
        crc = crc64_update(crc, footer, 2)
        for i in range(8):
            footer[2 + i] = (crc >> (8 * i)) & 0xff

    cdef inline bint describe(self, Record *record) noexcept nogil:
        """What the opcodes before the key said of it; its key is at the arena's `offset`."""
        cdef size_t n = record.key_size
        record.expire_at = self.expire_at
        record.access = self.access
        record.adds = record.loss = False
        record.follows = self.follows
        if self.access >= 0:
            self.batch_access = self.access_kind
        if 0 <= self.expire_at < self.extend_before:
            record.expire_at = (
                self.expire_at + self.extend_by
                if self.extend_by < INT64_MAX - self.expire_at else INT64_MAX)
            self.extended_count += 1
        if self.extend_before and has_field_ttls(self.flavour_number, self.type):
            if not note_name(&self.timed, self.arena.data + record.offset, n):
                return False
        if self.is_stuck:
            self.is_stuck = False
            return note_name(&self.stuck, self.arena.data + record.offset, n)
        return True

    cdef SnapshotStop walk_value(self) noexcept nogil:
        """Go on with the value, or with what the opcode brings, as far as the input goes."""
        cdef SnapshotStop stop
        cdef WalkStop found
        if not self.peeked:
            stop = self.peek()
            if stop != SNAP_GO_ON:
                return stop
        if not self.judged:
            stop = self.judge()
            if stop != SNAP_GO_ON or self.state != SNAPSHOT_WALK:
                return stop
        found = walk_on(&self.walk, self.bytes_in.data, self.end)
        if found == WALK_TEMPLATE:
            return SNAP_TEMPLATE
        if found == WALK_WRONG:
            return self.wrong("what comes next by the type of this value, or by this opcode")
        return self.hand_on(found == WALK_ENDED)

    cdef SnapshotStop hand_on(self, bint ended) noexcept nogil:
        """Give what has been walked to where it goes."""
        cdef Input *input = self.bytes_in
        cdef size_t n = self.walk.at - input.start
        cdef size_t total, room
        if self.sink == SINK_ARENA:
            total = self.arena.size - self.value_at + n + FOOTER_BYTES
            if total > self.limit_of_type():
                self.refused = REFUSED_LENGTH
                return SNAP_REFUSED
            if total > self.stream_above and self.of_template():
                self.refused = REFUSED_TEMPLATE
                return SNAP_REFUSED
            if total > self.stream_above:
                return SNAP_OUTGROWN
            room = n + FOOTER_BYTES
            if not ended and self.arena.capacity - self.arena.size < room:
                room += ARENA_STEP
            if not arena_reserve(&self.arena, room, self.batch_bytes):
                return SNAP_NO_MEMORY
            memcpy(self.arena.data + self.arena.size, input.data + input.start, n)
            self.arena.size += n
            input.start += n
            return self.finish_record() if ended else SNAP_NEED_DATA
        if self.sink == SINK_PIECES:
            if self.spilled and self.value_size + n + FOOTER_BYTES > (
                    self.limit_of_type()):
                self.refused = REFUSED_LENGTH
                self.sink = SINK_NOTHING
            else:
                return self.cut_piece(ended)
        if self.type == 247 and not self.keep_module_bytes(input.data + input.start, n):
            return SNAP_NO_MEMORY
        if self.type == 242 and not self.keep_template_bytes(input.data + input.start, n):
            return SNAP_NO_MEMORY
        if n and self.type == 243 and self.flavour_number == FLAVOUR_VALKEY:
            if self.import_bytes.size + n > IMPORT_BYTES_MOST:
                return self.wrong("an import of fewer slots")
            if not bytes_reserve(&self.import_bytes, n, IMPORT_BYTES_MOST):
                return SNAP_NO_MEMORY
            memcpy(self.import_bytes.data + self.import_bytes.size, input.data + input.start, n)
            self.import_bytes.size += n
        self.value_size += n
        input.start += n
        if ended and self.refused >= REFUSED_ELSEWHERE:
            # Most keys, on a lane of several or by rules.
            if self.refused == REFUSED_ELSEWHERE:
                self.elsewhere += 1
            else:
                self.excluded += 1
            self.value_ended()
            return SNAP_GO_ON
        return SNAP_DROPPED if ended else SNAP_NEED_DATA

    cdef bint keep_module_bytes(self, const uint8_t *p, size_t n) noexcept nogil:
        """Of what a module keeps beside the keys; False: no memory."""
        cdef Bytes *kept = &self.module_bytes
        cdef size_t room = left_of(MODULE_DATA_MOST, self.module_bytes_before + kept.size)
        if n == 0:
            return True
        if self.module_too_long or n > room:
            bytes_free(kept)
            self.module_too_long = True
            return True
        if not bytes_reserve(kept, n, MODULE_DATA_MOST):
            return False
        memcpy(kept.data + kept.size, p, n)
        kept.size += n
        return True

    cdef bint keep_template_bytes(self, const uint8_t *p, size_t n) noexcept nogil:
        """Of a template; False: no memory."""
        cdef Bytes *kept = &self.template_bytes
        cdef size_t room = left_of(TEMPLATE_BYTES_MOST, self.template_bytes_before + kept.size)
        if n == 0:
            return True
        if self.template_too_long or n > room:
            bytes_free(kept)
            self.template_too_long = True
            return True
        if not bytes_reserve(kept, n, TEMPLATE_BYTES_MOST):
            return False
        memcpy(kept.data + kept.size, p, n)
        kept.size += n
        return True

    cdef SnapshotStop cut_piece(self, bint ended) noexcept nogil:
        cdef Input *input = self.bytes_in
        cdef size_t n = min(self.walk.at - input.start, <size_t>PIECE_MOST)
        self.piece_start = input.start
        self.piece_size = n
        self.value_crc = crc64_update(self.value_crc, input.data + input.start, n)
        self.value_size += n
        input.start += n
        if ended and input.start == self.walk.at:
            self.make_footer(self.footer, self.value_crc)
            return SNAP_LAST_PIECE
        return SNAP_PIECE if n else SNAP_NEED_DATA

    # --- The snapshot's end ---

    cdef SnapshotStop read_checksum(self) noexcept nogil:
        """The CRC64 of everything before it; 0 where the server has checksums off."""
        cdef Input *input = self.bytes_in
        cdef uint64_t found
        if self.version >= 5:
            if self.end - input.start < 8:
                return SNAP_NEED_DATA
            found = load_le64(input.data + input.start)
            if found != 0 and found != self.crc:
                return self.wrong("the checksum of the bytes before it")
            self.checksummed = found != 0
            input.start += 8
        if self.has_length and input_offset(input) != self.length:
            return self.wrong("a snapshot that ends where its length says")
        if self.has_mark:
            self.state = SNAPSHOT_MARK
            return SNAP_GO_ON
        self.state = SNAPSHOT_END
        return SNAP_EOF

    cdef SnapshotStop read_mark(self) noexcept nogil:
        cdef Input *input = self.bytes_in
        if self.end - input.start < MARK_BYTES:
            return SNAP_NEED_DATA
        if memcmp(input.data + input.start, self.mark_bytes, MARK_BYTES) != 0:
            return self.wrong("the mark that was announced for the snapshot's end")
        input.start += MARK_BYTES
        self.state = SNAPSHOT_END
        return SNAP_EOF
