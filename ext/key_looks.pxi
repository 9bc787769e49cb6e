# What two servers say of the same keys, read and compared without a Python object for a key.
#
#   SCAN ─▶ KeyNames ─▶ requests to both ends ─▶ LookReader ─▶ Looks, Looks ─▶ LookComparer
#
# A value is held until it was compared. One that is longer than `held`, or comes when a run of keys
# holds `held_together` already, is digested as it comes, under the comparison's key: so memory has a
# bound, whatever the keys are.
#
# Two payloads whose bytes are the same but for the footer are the same value. Others are decoded,
# for one value has many forms, and their digests are compared.
#
# The bytes of a string may come without a payload (GET, MGET): one is made of them here, so that
# both ways come to the same. What these do not tell, of whatever is no string, is told by DUMP.

cdef enum:
    # Replies that are owed at a time: pages, and runs of keys.
    LOOKS_OWED_MOST = 64
    # The least room to read into.
    LOOK_ROOM = 64 << 10
    # A page of SCAN with all its names.
    LOOK_PAGE_MOST = 512 << 20
    LOOK_ERROR_MOST = 240
    LOOK_COMMANDS_MOST = 4
    # Keys of one MGET: the server's other clients wait for it.
    LOOK_TOGETHER_MOST = 64
    LOOK_TEXTS_MOST = 8
    # From this type on the same bytes may be another value at the other flavour.
    FIRST_OWN_TYPE = 22

cdef enum LookState:
    LOOK_ABSENT
    LOOK_THERE
    LOOK_HELD
    LOOK_DIGESTED
    LOOK_REFUSED
    # It is no string, or a long one, or is not there.
    LOOK_UNTOLD

cdef enum LookStage:
    # What of a run is read.
    LOOK_TEXTS_BEFORE
    LOOK_KEY_BY_KEY
    LOOK_TOGETHER
    LOOK_TEXTS_BEHIND

cdef enum LookStep:
    LOOK_NEED_DATA
    LOOK_WHOLE
    LOOK_BAD
    LOOK_NO_MEMORY

cdef enum LookDifference:
    # What a key differs in, as bits.
    DIFFER_MISSING = 1
    DIFFER_EXTRA = 2
    DIFFER_TYPE = 4
    DIFFER_VALUE = 8
    DIFFER_FIELD_TTLS = 16
    DIFFER_GROUPS = 32
    DIFFER_TTL = 64
    DIFFER_UNDECODED = 128
    DIFFER_LONG = 256
    DIFFER_REFUSED = 512
    DIFFER_UNTOLD = 1024

DIFFERS_MISSING = DIFFER_MISSING
DIFFERS_EXTRA = DIFFER_EXTRA
DIFFERS_TYPE = DIFFER_TYPE
DIFFERS_VALUE = DIFFER_VALUE
DIFFERS_FIELD_TTLS = DIFFER_FIELD_TTLS
DIFFERS_GROUPS = DIFFER_GROUPS
DIFFERS_TTL = DIFFER_TTL
DIFFERS_NOT_DECODED = DIFFER_UNDECODED
DIFFERS_NOT_HELD = DIFFER_LONG
DIFFERS_REFUSED = DIFFER_REFUSED

cdef struct KeyLook:
    LookState state
    uint8_t type           # the first byte of the value
    int flavour
    int64_t expire_at      # ms since the epoch; -1: none
    size_t at              # of the value in the arena, if it is held
    uint64_t size          # of the value, with its footer
    Sum raw                # of its bytes without the footer, if it is not held


@cython.final
cdef class KeyNames:
    """Names of keys in a row, and what servers are asked about them.

    Attributes:
        nbytes: of the names together.
    """
    cdef Bytes names
    cdef Bytes ends

    def __cinit__(self, list names not None=[]):
        cdef bytes name
        for name in names:
            if not self.add(<const uint8_t *>PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)):
                raise MemoryError()

    def __dealloc__(self):
        bytes_free(&self.names)
        bytes_free(&self.ends)

    def __len__(self):
        return self.count()

    @property
    def nbytes(self):
        return self.names.size

    cdef inline size_t count(self) noexcept nogil:
        return self.ends.size // sizeof(uint64_t)

    cdef inline bint add(self, const uint8_t *p, size_t n) noexcept nogil:
        """Append a name; False: no memory."""
        cdef uint64_t end
        if not (bytes_reserve(&self.names, n, SIZE_MAX)
                and bytes_reserve(&self.ends, sizeof(uint64_t), SIZE_MAX)):
            return False
        if n:
            memcpy(self.names.data + self.names.size, p, n)
        self.names.size += n
        end = self.names.size
        memcpy(self.ends.data + self.ends.size, &end, sizeof(uint64_t))
        self.ends.size += sizeof(uint64_t)
        return True

    cdef inline const uint8_t *at(self, size_t index, size_t *n) noexcept nogil:
        cdef uint64_t *ends = <uint64_t *>self.ends.data
        cdef size_t begin = ends[index - 1] if index else 0
        n[0] = ends[index] - begin
        return self.names.data + begin

    cdef int check(self, size_t first, size_t last) except -1:
        if first > last or last > self.count():
            raise IndexError(f"no names from {first} to {last} among {self.count()}")
        return 0

    def name(self, size_t index):
        """One name."""
        cdef size_t n
        cdef const uint8_t *p
        self.check(index, index + 1)
        p = self.at(index, &n)
        return PyBytes_FromStringAndSize(<const char *>p, n)

    def some(self, size_t first, size_t last):
        """Those from `first` to before `last`."""
        cdef KeyNames names = KeyNames()
        cdef size_t n, i
        cdef const uint8_t *p
        self.check(first, last)
        for i in range(first, last):
            p = self.at(i, &n)
            if not names.add(p, n):
                raise MemoryError()
        return names

    def request(
        self, tuple commands not None, size_t first, size_t last, *, bint clock=False,
        bytes together not None=b"", bytes around not None=b"",
    ):
        """Each of `commands` (names alone) with each of the names from `first` to before `last`, key
        by key; behind them the command `together` with up to 64 of the names at a time. With `clock`
        TIME before them; `around`, as it is, before and behind all of that. ValueError for more than
        four commands."""
        cdef const uint8_t *heads[LOOK_COMMANDS_MOST]
        cdef size_t sizes[LOOK_COMMANDS_MOST]
        cdef size_t many = len(commands), i, c, n, total = 14 if clock else 0, head_bytes = 0
        cdef size_t around_bytes = len(around), together_bytes = len(together)
        cdef const uint8_t *p
        cdef uint8_t *out
        cdef OutputBuffer result
        cdef bytes head
        cdef list kept = []
        cdef const char *around_data = PyBytes_AS_STRING(around)
        cdef const uint8_t *together_data = <const uint8_t *>PyBytes_AS_STRING(together)
        self.check(first, last)
        if many > LOOK_COMMANDS_MOST:
            raise ValueError("too many commands a key")
        for c in range(many):
            name = <bytes>commands[c]
            head = b"*2\r\n$%d\r\n%b\r\n" % (len(name), name)
            kept.append(head)
            heads[c] = <const uint8_t *>PyBytes_AS_STRING(head)
            sizes[c] = PyBytes_GET_SIZE(head)
            head_bytes += sizes[c]
        for i in range(first, last):
            self.at(i, &n)
            total += head_bytes + (many + (together_bytes > 0)) * bulk_size(n)
        if together_bytes:
            # The longest header has 23 bytes.
            total += (23 + bulk_size(together_bytes)) * (
                (last - first + LOOK_TOGETHER_MOST - 1) // LOOK_TOGETHER_MOST)
        total += 2 * around_bytes
        result = new_output(total)
        out = result.data
        with nogil:
            out = put_literal(out, around_data, around_bytes)
            if clock:
                out = put_literal(out, TIME_COMMAND, 14)
            for i in range(first, last):
                p = self.at(i, &n)
                for c in range(many):
                    out = put_literal(out, <const char *>heads[c], sizes[c])
                    out = put_bulk(out, p, n)
            if together_bytes:
                for i in range(first, last):
                    if (i - first) % LOOK_TOGETHER_MOST == 0:
                        out = put_array_header(
                            out, 1 + min(<size_t>LOOK_TOGETHER_MOST, last - i))
                        out = put_bulk(out, together_data, together_bytes)
                    p = self.at(i, &n)
                    out = put_bulk(out, p, n)
            out = put_literal(out, around_data, around_bytes)
        result.size = out - result.data
        return result


@cython.final
cdef class KeyPage:
    """A page of SCAN.

    Attributes:
        cursor: of the page behind it; 0: there is none.
        named: names that it had.
        nbytes: of the reply.
        left_out: those of the engine's own keys.
        names: the others, by the part that they belong to.
    """
    cdef readonly uint64_t cursor
    cdef readonly uint64_t named
    cdef readonly uint64_t nbytes
    cdef readonly uint64_t left_out
    cdef readonly list names


@cython.final
cdef class Looks:
    """What a server said of keys in a row.

    Attributes:
        nbytes: of the replies.
        refused: of so many keys it answered an error.
        error: the first of these.
        texts: what was asked before and behind them, in order; None: an error.
    """
    cdef KeyLook *looks
    cdef size_t count
    cdef Bytes arena
    cdef readonly uint64_t nbytes
    cdef readonly uint64_t refused
    cdef readonly str error
    cdef readonly list texts

    def __dealloc__(self):
        PyMem_RawFree(self.looks)
        bytes_free(&self.arena)

    def __len__(self):
        return self.count

    cdef KeyLook *look(self, size_t index) except NULL:
        if index >= self.count:
            raise IndexError(f"no look {index} among {self.count}")
        return &self.looks[index]

    @property
    def absent(self):
        """The numbers of those that are not there, or were refused."""
        cdef size_t i
        cdef list found = []
        for i in range(self.count):
            if self.looks[i].state == LOOK_ABSENT or self.looks[i].state == LOOK_REFUSED:
                found.append(i)
        return found

    @property
    def strings(self):
        """How many of the values that came, as payloads or by GET, are strings."""
        cdef size_t i, found = 0
        for i in range(self.count):
            if self.looks[i].type == STRING_TYPE and (
                    self.looks[i].state == LOOK_HELD or self.looks[i].state == LOOK_DIGESTED):
                found += 1
        return found

    def there(self, size_t index):
        """Whether the key is there; where that is not told, True."""
        return self.look(index).state != LOOK_ABSENT

    def value(self, size_t index):
        """The value as it came, if it was held; None: it was not."""
        cdef KeyLook *look = self.look(index)
        if look.state != LOOK_HELD:
            return None
        return PyBytes_FromStringAndSize(<char *>self.arena.data + look.at, look.size)

    def size(self, size_t index):
        """Bytes of the value, with its footer; 0: there is none."""
        return self.look(index).size

    def expire_at(self, size_t index):
        """In ms since the epoch; None: it has no expire time."""
        cdef int64_t at = self.look(index).expire_at
        return None if at < 0 else at

    def state(self, size_t index, bytes key not None):
        """16 bytes that tell whether it is as it was: of the value and whether there is one, under
        the `key` of 16 bytes."""
        cdef KeyLook *look = self.look(index)
        cdef Sip s
        cdef uint64_t words[4]
        cdef Sum found
        if len(key) != 16:
            raise ValueError(f"a digest's key has 16 bytes, found {len(key)}")
        found = raw_digest(self, look, <const uint8_t *>PyBytes_AS_STRING(key))
        sip_begin(&s, <const uint8_t *>PyBytes_AS_STRING(key))
        words[0] = LOOK_THERE if look.state == LOOK_HELD or look.state == LOOK_DIGESTED else look.state
        words[1], words[2], words[3] = look.size, found.low, found.high
        sip_update(&s, <uint8_t *>words, sizeof(words))
        sip_finish(&s, &found.low, &found.high)
        return sip_bytes(found.low, found.high)


cdef Sum raw_digest(Looks looks, const KeyLook *look, const uint8_t *key) noexcept nogil:
    """The digest of a value's bytes without its footer."""
    cdef Sum found
    cdef Sip s
    found.low = found.high = 0
    if look.state == LOOK_DIGESTED:
        return look.raw
    if look.state == LOOK_HELD:
        sip_begin(&s, key)
        sip_update(
            &s, looks.arena.data + look.at,
            look.size - FOOTER_BYTES if look.size > FOOTER_BYTES else look.size)
        sip_finish(&s, &found.low, &found.high)
    return found


@cython.final
cdef class LookReader:
    """Reads replies to SCAN, and what a server says of keys.

    A `BulkReader`: it is its own writable buffer, as long as the room that it has. `expect_page` and
    `expect_looks` in the order of sending; `take` gives, for each, a `KeyPage`, a `Looks`, or the text
    of the error that SCAN was answered.

    Args:
        key: 16 bytes under which long values are digested, and names chosen.
        prefix: keys whose names begin so are left out.
        parts: of each of the 16,384 slots the part that its keys belong to; empty: all are one.
        count: of parts.
        share: of 2^64: so many of the names are taken; 0: all.
        held: bytes of a value that is held at the most.
        held_together: of the values of one run.

    Attributes:
        named: names that were taken of all pages.
        names: a digest of these, in which their order does not count.
    """
    cdef uint8_t *data
    cdef size_t capacity
    cdef size_t start
    cdef size_t end
    cdef int exports
    cdef uint64_t before

    cdef Sip hashing
    cdef bytes prefix
    cdef bytes parts
    cdef uint32_t part_count
    cdef uint64_t share
    cdef uint64_t held
    cdef uint64_t held_together
    cdef object owed
    cdef list done
    cdef object failure
    cdef const char *wanted

    # Of the run of keys that is read.
    cdef Looks looks
    cdef const char *shape
    cdef bytes shape_kept
    cdef LookStage stage
    cdef size_t texts_left         # of those before, or behind
    cdef bint together
    cdef size_t opened             # up to this key the reply for several is there
    cdef size_t index
    cdef size_t letter
    cdef bint clocked
    cdef int64_t clock
    cdef uint64_t body_left        # of a value that is not held
    cdef Sip body
    cdef char error[LOOK_ERROR_MOST]
    cdef size_t error_size
    # Of the page that is read: how much of it was passed.
    cdef size_t page_at
    cdef uint64_t page_left
    cdef Sum names_sum
    cdef readonly uint64_t named

    def __cinit__(
        self, bytes key not None, bytes prefix not None=b"", *, bytes parts not None=b"",
        uint32_t count=1, uint64_t share=0, uint64_t held=1 << 20, uint64_t held_together=8 << 20,
    ):
        if len(key) != 16:
            raise ValueError(f"a digest's key has 16 bytes, found {len(key)}")
        if parts and len(parts) != 2 * SLOT_COUNT:
            raise ValueError("two bytes for each slot are expected")
        if count < 1:
            raise ValueError("there is one part at least")
        sip_begin(&self.hashing, <const uint8_t *>PyBytes_AS_STRING(key))
        self.prefix = prefix
        self.parts = parts
        self.part_count = count
        self.share = share
        self.held = held
        self.held_together = held_together
        self.owed = collections.deque()
        self.done = []

    def __dealloc__(self):
        PyMem_RawFree(self.data)

    # --- Its memory ---

    @property
    def input(self):
        return self

    def __len__(self):
        self.make_room()
        return self.capacity - self.end

    def __getbuffer__(self, Py_buffer *view, int flags):
        self.make_room()
        PyBuffer_FillInfo(view, self, self.data + self.end, self.capacity - self.end, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1

    cdef int make_room(self) except -1:
        """Room for as much again as is unread, unless the memory is lent."""
        cdef size_t live = self.end - self.start, room = max(live, <size_t>LOOK_ROOM), capacity
        cdef uint8_t *grown
        if self.exports or self.capacity - self.end >= room:
            return 0
        if self.start:
            memmove(self.data, self.data + self.start, live)
            self.before += self.start
            self.page_at -= self.start if self.page_left else 0
            self.start, self.end = 0, live
        if self.capacity - self.end >= room:
            return 0
        capacity = max(live + room, <size_t>(4 * LOOK_ROOM))
        grown = <uint8_t *>PyMem_RawRealloc(self.data, capacity)
        if grown == NULL:
            raise MemoryError()
        self.data, self.capacity = grown, capacity
        return 0

    @property
    def names(self):
        return sip_bytes(self.names_sum.low, self.names_sum.high)

    # --- What is owed ---

    def expect_page(self):
        """A SCAN was sent."""
        self.expect(None)

    def expect_looks(self, bytes shape not None, size_t count, *, size_t texts=0):
        """Commands were sent for so many keys; of each key `shape` has a letter for each reply: `t`
        the time left in ms (TIME came before all of them), `T` an expire time in ms, `d` a payload,
        `y` a type, `e` whether it is there, `s` the bytes of a string (GET); at its end `m` for the
        bytes of strings that come together for up to 64 keys (MGET), behind all others. `texts`
        replies come before all of that, and as many behind it. ValueError for others, and for no
        key."""
        cdef bytes each = shape.removesuffix(b"m")
        if not shape or count == 0 or each.strip(b"tTdyes") or texts > LOOK_TEXTS_MOST:
            raise ValueError("one key at least, and replies that are known, are expected")
        self.expect((each, count, len(each) < len(shape), texts))

    cdef expect(self, object what):
        if len(self.owed) >= LOOKS_OWED_MOST:
            raise ValueError("too many replies are owed")
        self.owed.append(what)

    def take(self):
        """What was answered since the last call, in order."""
        done = self.done
        self.done = []
        return done

    # --- Reading ---

    def received(self, size_t n):
        """Take in `n` bytes that were read into it; returns how many items `take` has.

        Raises `ProtocolError` for bytes that are no such reply.
        """
        cdef LookStep step
        if n > self.capacity - self.end:
            raise ValueError("more bytes received than there was room for")
        self.end += n
        if self.failure is not None:
            raise self.failure
        while self.start < self.end or self.page_left:
            if not self.owed:
                self.wanted = b"nothing: no reply is owed"
                self.fail()
            if self.owed[0] is None:
                if not self.read_page():
                    break
                continue
            if self.looks is None:
                self.begin()
            if self.texts_left:
                if not self.read_texts():
                    break
                continue
            with nogil:
                step = self.read_looks()
            if step == LOOK_NEED_DATA:
                break
            if step == LOOK_NO_MEMORY:
                raise MemoryError()
            if step == LOOK_BAD:
                self.fail()
            self.stage = LOOK_TEXTS_BEHIND
            self.texts_left = self.owed[0][3]
            if not self.texts_left:
                self.finish()
        return len(self.done)

    cdef int fail(self) except -1:
        self.failure = ProtocolError(
            f"expected {self.wanted.decode()} at byte {self.before + self.start}",
            self.before + self.start)
        raise self.failure

    cdef int begin(self) except -1:
        cdef Looks looks = Looks.__new__(Looks)
        cdef size_t count, i
        self.shape_kept, count, self.together, self.texts_left = self.owed[0]
        self.shape = PyBytes_AS_STRING(self.shape_kept)
        looks.looks = <KeyLook *>PyMem_RawCalloc(count, sizeof(KeyLook))
        if looks.looks == NULL:
            raise MemoryError()
        looks.count = count
        looks.texts = []
        for i in range(count):
            looks.looks[i].expire_at = -1
        self.looks = looks
        self.stage = LOOK_TEXTS_BEFORE if self.texts_left else LOOK_KEY_BY_KEY
        self.index = self.letter = self.opened = 0
        self.clocked = not memchr(self.shape, c"t", len(self.shape_kept))
        self.error_size = 0
        return 0

    cdef int finish(self) except -1:
        if self.error_size:
            self.looks.error = self.error[:self.error_size].decode("utf-8", "backslashreplace")
        self.done.append(self.looks)
        self.looks = None
        self.owed.popleft()
        return 0

    cdef bint read_texts(self) except -1:
        """Whether all of those before, or behind, were there."""
        cdef RawWalk walk
        cdef RawValue value
        while self.texts_left:
            walk.data, walk.at, walk.end = self.data, self.start, self.end
            raw_value(&walk, &value)
            if value.kind == RAW_NEED_DATA and self.end - self.start <= LOOK_PAGE_MOST:
                return False
            if value.kind != RAW_TEXT and value.kind != RAW_NULL:
                self.wanted = b"a text"
                self.fail()
            if value.kind == RAW_TEXT and self.data[self.start] != c"-":
                self.looks.texts.append(
                    PyBytes_FromStringAndSize(<char *>value.text, value.size))
            else:
                self.looks.texts.append(None)
            self.looks.nbytes += walk.at - self.start
            self.start = walk.at
            self.texts_left -= 1
        if self.stage == LOOK_TEXTS_BEHIND:
            self.finish()
        else:
            self.stage = LOOK_KEY_BY_KEY
        return True

    cdef inline LookStep bad(self, const char *wanted) noexcept nogil:
        self.wanted = wanted
        return LOOK_BAD

    cdef inline LookStep need_short(self, const RawWalk *walk) noexcept nogil:
        """More is needed of a number, a type or a time, none of which is longer than a line."""
        return self.bad(b"a short reply") if walk.end - walk.at > RAW_LINE_MOST else LOOK_NEED_DATA

    cdef LookStep read_looks(self) noexcept nogil:
        """Read until the bytes run out, or all of a run is there."""
        cdef RawWalk walk
        cdef RawValue value
        cdef KeyLook *look
        cdef size_t began = self.start
        cdef LookStep step = LOOK_WHOLE
        walk.data, walk.at, walk.end = self.data, self.start, self.end
        if not self.clocked:
            step = self.read_clock(&walk)
        if self.stage == LOOK_KEY_BY_KEY and self.shape[0] == 0:
            self.stage = LOOK_TOGETHER
        while step == LOOK_WHOLE and self.stage == LOOK_KEY_BY_KEY and (
                self.index < self.looks.count):
            look = &self.looks.looks[self.index]
            if self.body_left:
                step = self.read_body(&walk, look)
            elif self.shape[self.letter] == c"d":
                step = self.read_payload(&walk, look)
            elif self.shape[self.letter] == c"s":
                step = self.read_string(&walk, look)
            else:
                raw_value(&walk, &value)
                if value.kind == RAW_NEED_DATA:
                    step = self.need_short(&walk)
                elif value.kind == RAW_BAD:
                    step = self.bad(b"a reply")
                else:
                    step = self.take_value(&walk, &value, look)
            if step == LOOK_WHOLE:
                self.letter += 1
                if self.shape[self.letter] == 0:
                    self.letter = 0
                    self.index += 1
        if step == LOOK_WHOLE and self.stage == LOOK_KEY_BY_KEY and self.together:
            self.stage = LOOK_TOGETHER
            self.index = 0
        while step == LOOK_WHOLE and self.stage == LOOK_TOGETHER and (
                self.index < self.looks.count):
            look = &self.looks.looks[self.index]
            if self.body_left:
                step = self.read_body(&walk, look)
            elif self.index == self.opened:
                step = self.open_together(&walk)
                continue
            else:
                step = self.read_string(&walk, look)
            if step == LOOK_WHOLE:
                self.index += 1
        self.looks.nbytes += walk.at - began
        self.start = walk.at
        return step

    cdef LookStep read_clock(self, RawWalk *walk) noexcept nogil:
        """The reply to TIME; where it is an error this machine's clock."""
        cdef RawWalk ahead = walk[0]
        cdef RawValue value
        cdef int64_t parts[2]
        cdef int i
        cdef timespec now
        raw_value(&ahead, &value)
        if value.kind == RAW_NEED_DATA:
            return self.need_short(walk)
        if value.kind == RAW_ARRAY and value.number == 2:
            for i in range(2):
                raw_value(&ahead, &value)
                if value.kind == RAW_NEED_DATA:
                    return self.need_short(walk)
                if value.kind != RAW_TEXT or not parse_decimal(
                        value.text, value.text + value.size, &parts[i]):
                    return self.bad(b"a time")
            if parts[0] < 0 or parts[0] > INT64_MAX // 2000 or parts[1] < 0:
                return self.bad(b"a time")
            self.clock = parts[0] * 1000 + parts[1] // 1000
        elif value.kind == RAW_TEXT and walk.data[walk.at] == c"-":
            clock_gettime(CLOCK_REALTIME, &now)
            self.clock = <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1000000
        else:
            return self.bad(b"a time")
        self.clocked = True
        walk.at = ahead.at
        return LOOK_WHOLE

    cdef void note_error(self, KeyLook *look, const uint8_t *text, size_t size) noexcept nogil:
        if look.state != LOOK_REFUSED:
            self.looks.refused += 1
        look.state = LOOK_REFUSED
        if not self.error_size:
            self.error_size = min(size, <size_t>LOOK_ERROR_MOST)
            memcpy(self.error, text, self.error_size)

    cdef LookStep take_value(
        self, RawWalk *walk, const RawValue *value, KeyLook *look
    ) noexcept nogil:
        """A reply that is no payload."""
        cdef char letter = self.shape[self.letter]
        if value.kind == RAW_TEXT and (value.text - 1)[0] == c"-":
            # (A bulk has its line's end before it.)
            self.note_error(look, value.text, value.size)
            return LOOK_WHOLE
        if letter == c"y":
            if value.kind != RAW_TEXT:
                return self.bad(b"a type")
            if look.state == LOOK_REFUSED or (
                    value.size == 4 and memcmp(value.text, b"none", 4) == 0):
                return LOOK_WHOLE
            if value.size > FOOTER_BYTES:
                return self.bad(b"a type")
            return self.hold(look, value.text, value.size)
        if value.kind != RAW_NUMBER:
            return self.bad(b"a number")
        if letter == c"e":
            if value.number and look.state == LOOK_ABSENT:
                look.state = LOOK_THERE
        elif value.number >= 0:
            look.expire_at = value.number
            if letter == c"t":
                if value.number > INT64_MAX - self.clock:
                    return self.bad(b"a time that is left")
                look.expire_at += self.clock
        return LOOK_WHOLE

    cdef LookStep hold(self, KeyLook *look, const uint8_t *p, size_t n) noexcept nogil:
        cdef Bytes *arena = &self.looks.arena
        if not bytes_reserve(arena, n, SIZE_MAX):
            return LOOK_NO_MEMORY
        if n:
            memcpy(arena.data + arena.size, p, n)
        look.at = arena.size
        look.size = n
        look.type = p[0] if n else 0
        look.state = LOOK_HELD
        arena.size += n
        return LOOK_WHOLE

    cdef LookStep read_payload(self, RawWalk *walk, KeyLook *look) noexcept nogil:
        cdef const uint8_t *line = walk.data + walk.at
        cdef size_t have = walk.end - walk.at
        cdef int64_t end, n = 0
        cdef LookStep step
        if have == 0:
            return LOOK_NEED_DATA
        end = line_end(walk.data, walk.at, walk.end)
        if end == -1:
            return LOOK_NEED_DATA
        if end < 0:
            return self.bad(b"a line that ends in CRLF")
        if line[0] == c"-":
            self.note_error(look, line + 1, end - walk.at - 1)
            walk.at = end + 2
            return LOOK_WHOLE
        if line[0] != c"$" or not parse_decimal(line + 1, walk.data + end, &n) or n < -1:
            return self.bad(b"a payload")
        if n == -1:
            walk.at = end + 2
            return LOOK_WHOLE
        if n <= FOOTER_BYTES:
            return self.bad(b"a payload with a footer")
        if <uint64_t>n > self.held or self.looks.arena.size + n > self.held_together:
            walk.at = end + 2
            self.body_left = <uint64_t>n + 2
            self.body = self.hashing
            if look.state != LOOK_REFUSED:
                look.state = LOOK_DIGESTED
            look.size = n
            return self.read_body(walk, look)
        if walk.end - <size_t>end - 2 < <uint64_t>n + 2:
            return LOOK_NEED_DATA
        line = walk.data + end + 2
        if line[n] != 13 or line[n + 1] != 10:
            return self.bad(b"CRLF behind a payload")
        walk.at = end + 2 + n + 2
        if look.state == LOOK_REFUSED:
            return LOOK_WHOLE
        step = self.hold(look, line, n)
        look.flavour = payload_flavour(line + n - FOOTER_BYTES)
        return step

    cdef LookStep open_together(self, RawWalk *walk) noexcept nogil:
        """The beginning of the reply for the next keys; where it is an error they are refused."""
        cdef RawValue value
        cdef size_t i, last = self.index + min(
            <size_t>LOOK_TOGETHER_MOST, self.looks.count - self.index)
        if walk.at == walk.end:
            return LOOK_NEED_DATA
        value.kind = RAW_BAD
        if walk.data[walk.at] == c"*" or walk.data[walk.at] == c"-":
            raw_value(walk, &value)
        if value.kind == RAW_NEED_DATA:
            return LOOK_NEED_DATA
        if value.kind == RAW_TEXT:
            for i in range(self.index, last):
                self.note_error(&self.looks.looks[i], value.text, value.size)
            self.index = last
        elif value.kind != RAW_ARRAY or value.number != <int64_t>(last - self.index):
            return self.bad(b"the values of the keys that were named")
        self.opened = last
        return LOOK_WHOLE

    cdef LookStep read_string(self, RawWalk *walk, KeyLook *look) noexcept nogil:
        """The bytes of a string; a long one is passed over."""
        cdef const uint8_t *line = walk.data + walk.at
        cdef size_t have = walk.end - walk.at
        cdef int64_t end, n = 0
        if have == 0:
            return LOOK_NEED_DATA
        end = line_end(walk.data, walk.at, walk.end)
        if end == -1:
            return LOOK_NEED_DATA
        if end < 0:
            return self.bad(b"a line that ends in CRLF")
        if line[0] == c"-":
            n = end - walk.at - 1
            if n >= 9 and memcmp(line + 1, b"WRONGTYPE", 9) == 0:
                if look.state != LOOK_REFUSED:
                    look.state = LOOK_UNTOLD
            else:
                self.note_error(look, line + 1, n)
            walk.at = end + 2
            return LOOK_WHOLE
        if line[0] != c"$" or not parse_decimal(line + 1, walk.data + end, &n) or n < -1:
            return self.bad(b"a string")
        if n == -1 or <uint64_t>n > self.held or self.looks.arena.size + n > self.held_together:
            walk.at = end + 2
            if look.state != LOOK_REFUSED:
                look.state = LOOK_UNTOLD
            if n == -1:
                return LOOK_WHOLE
            self.body_left = <uint64_t>n + 2
            self.body = self.hashing
            look.size = n
            return self.read_body(walk, look)
        if walk.end - <size_t>end - 2 < <uint64_t>n + 2:
            return LOOK_NEED_DATA
        line = walk.data + end + 2
        if line[n] != 13 or line[n + 1] != 10:
            return self.bad(b"CRLF behind a string")
        walk.at = end + 2 + n + 2
        if look.state == LOOK_REFUSED:
            return LOOK_WHOLE
        return self.hold_string(look, line, n)

    cdef LookStep hold_string(self, KeyLook *look, const uint8_t *p, size_t n) noexcept nogil:
        """Hold the payload of a string; nothing looks at the sum in its footer."""
        cdef Bytes *arena = &self.looks.arena
        cdef size_t size = string_head_size(n) + n + FOOTER_BYTES
        cdef uint8_t *out
        if not bytes_reserve(arena, size, SIZE_MAX):
            return LOOK_NO_MEMORY
        out = put_string_head(arena.data + arena.size, n)
        if n:
            memcpy(out, p, n)
        memset(out + n, 0, FOOTER_BYTES)
        put_version(out + n)
        look.at = arena.size
        look.size = size
        look.type = STRING_TYPE
        look.flavour = payload_flavour(out + n)
        look.state = LOOK_HELD
        arena.size += size
        return LOOK_WHOLE

    cdef LookStep read_body(self, RawWalk *walk, KeyLook *look) noexcept nogil:
        """Digest what has come of a long payload; its footer counts for nothing."""
        cdef uint64_t take, counted
        cdef const uint8_t *p
        while self.body_left > 2:
            take = min(<uint64_t>(walk.end - walk.at), self.body_left - 2)
            if take == 0:
                return LOOK_NEED_DATA
            p = walk.data + walk.at
            if self.body_left - 2 == look.size:
                look.type = p[0]
            # What is left counts up to the footer.
            counted = self.body_left - 2
            counted = counted - FOOTER_BYTES if counted > FOOTER_BYTES else 0
            sip_update(&self.body, p, min(take, counted))
            walk.at += take
            self.body_left -= take
        if walk.end - walk.at < 2:
            return LOOK_NEED_DATA
        if walk.data[walk.at] != 13 or walk.data[walk.at + 1] != 10:
            return self.bad(b"CRLF behind a payload")
        walk.at += 2
        self.body_left = 0
        sip_finish(&self.body, &look.raw.low, &look.raw.high)
        return LOOK_WHOLE

    cdef bint read_page(self) except -1:
        """Whether a page was there."""
        cdef RawWalk walk
        cdef RawKind found
        if not self.page_left:
            self.page_left = 1
            self.page_at = self.start
        walk.data, walk.at, walk.end = self.data, self.page_at, self.end
        with nogil:
            found = raw_rest(&walk, &self.page_left)
        self.page_at = walk.at
        if found == RAW_NEED_DATA:
            if self.end - self.start > LOOK_PAGE_MOST:
                self.wanted = b"a shorter page"
                self.fail()
            return False
        if found == RAW_BAD:
            self.wanted = b"a page of names"
            self.fail()
        self.take_page(walk.at)
        self.start = walk.at
        self.owed.popleft()
        return True

    cdef int take_page(self, size_t end) except -1:
        cdef RawWalk walk
        cdef RawValue value
        cdef KeyPage page
        cdef int64_t i, count
        cdef size_t prefix_size = len(self.prefix)
        cdef const char *prefix = PyBytes_AS_STRING(self.prefix)
        cdef const char *parts = PyBytes_AS_STRING(self.parts)
        cdef bint parted = len(self.parts) > 0
        cdef uint32_t part
        cdef uint16_t told = 0
        cdef KeyNames names
        cdef list by_part
        walk.data, walk.at, walk.end = self.data, self.start, end
        if self.data[self.start] == c"-":
            raw_value(&walk, &value)
            self.done.append(PyBytes_FromStringAndSize(
                <char *>value.text, value.size).decode("utf-8", "backslashreplace"))
            return 0
        self.wanted = b"a page of names"
        raw_value(&walk, &value)
        if value.kind != RAW_ARRAY or value.number != 2:
            self.fail()
        raw_value(&walk, &value)
        if value.kind != RAW_TEXT or not parse_digits(value.text, value.size) or value.size > 20:
            self.fail()
        cursor = int(PyBytes_FromStringAndSize(<char *>value.text, value.size))
        if cursor.bit_length() > 64:
            self.fail()
        page = KeyPage.__new__(KeyPage)
        page.cursor = cursor
        raw_value(&walk, &value)
        if value.kind != RAW_ARRAY:
            self.fail()
        count = value.number
        page.named = count
        page.nbytes = end - self.start
        by_part = [KeyNames() for _ in range(self.part_count)]
        names = by_part[0]
        for i in range(count):
            raw_value(&walk, &value)
            if value.kind != RAW_TEXT:
                self.fail()
            if prefix_size and value.size >= prefix_size and memcmp(
                    value.text, prefix, prefix_size) == 0:
                page.left_out += 1
                continue
            if not self.chosen(value.text, value.size):
                continue
            if parted:
                memcpy(&told, parts + 2 * slot_of(value.text, value.size), 2)
                part = told
                if part >= self.part_count:
                    part = 0
                names = by_part[part]
            if not names.add(value.text, value.size):
                raise MemoryError()
        page.names = by_part
        self.done.append(page)
        return 0

    cdef bint chosen(self, const uint8_t *p, size_t n) noexcept:
        """Whether a name is of the share; it is added to the digest then."""
        cdef Sip s = self.hashing
        cdef uint64_t low, high
        sip_bytes_of(&s, p, n)
        sip_finish(&s, &low, &high)
        if self.share and low >= self.share:
            return False
        self.named += 1
        self.names_sum.low += low
        self.names_sum.high += high + (self.names_sum.low < low)
        return True


@cython.final
cdef class LookComparer:
    """Compares what two servers said of the same keys.

    Args:
        key: 16 bytes under which values are digested; `LookReader`'s.
        ttl_bound: by so many ms two expire times may be apart.
        extended: the target's may be later by so many ms; 0: they may not.

    Attributes:
        equal: keys that were found equal.
        values: bytes of the source's values among them.
        decoded: how many pairs of values were decoded, for their bytes were not the same.
        db: the database that the keys are in.
    """
    cdef ValueDecoder ours
    cdef ValueDecoder theirs
    cdef Sip hashing
    cdef bytes key
    cdef const uint8_t *key_data
    cdef int64_t ttl_bound
    cdef int64_t extended
    cdef Sum source
    cdef Sum target
    cdef readonly uint64_t equal
    cdef readonly uint64_t values
    cdef readonly uint64_t decoded
    cdef public uint32_t db

    def __cinit__(self, bytes key not None, *, int64_t ttl_bound=1000, int64_t extended=0):
        cdef timespec now
        self.ours = ValueDecoder(key)
        self.theirs = ValueDecoder(key)
        self.ours.sink.mode = self.theirs.sink.mode = VALUE_DIGEST
        self.key = key
        self.key_data = <const uint8_t *>PyBytes_AS_STRING(key)
        sip_begin(&self.hashing, self.key_data)
        self.ttl_bound = ttl_bound
        self.extended = extended
        if extended:
            # Fields of hashes likewise: at both ends, so that what is as late at either is the same.
            clock_gettime(CLOCK_REALTIME, &now)
            self.ours.sink.extended = self.theirs.sink.extended = extended
            self.ours.sink.extended_from = self.theirs.sink.extended_from = (
                <int64_t>now.tv_sec * 1000 + extended // 2)

    @property
    def digests(self):
        """Of all keys that were added, at the source and at the target: 16 bytes each, in which their
        order does not count."""
        return (sip_bytes(self.source.low, self.source.high),
                sip_bytes(self.target.low, self.target.high))

    def compare(self, KeyNames names not None, size_t first, Looks source not None,
                Looks target not None):
        """Compare the looks at the names from `first` on. Those that are equal are counted, and added
        to the digests; of the others [(index among `names`, in what they differ)]."""
        cdef size_t i, count = source.count
        cdef int found
        cdef list different = []
        if target.count != count:
            raise ValueError("the looks are not at the same keys")
        names.check(first, first + count)
        i = 0
        while i < count:
            with nogil:
                found = 0
                while i < count:
                    found = self.compare_one(
                        source, &source.looks[i], target, &target.looks[i])
                    if found > 0:
                        break
                    if found == 0:
                        self.add_equal(names, first + i, source, &source.looks[i])
                    i += 1
            if found > 0:
                different.append((first + i, found))
                i += 1
        self.ours.release()
        self.theirs.release()
        return different

    def sift(self, KeyNames names not None, size_t first, Looks source not None,
             Looks target not None):
        """Of the looks at the names from `first` on count those that are equal, as `compare` does;
        the names of all others, also of those that are at neither end; None: there are none."""
        cdef size_t i, n = 0, count = source.count
        cdef const uint8_t *p
        cdef bint room = True
        cdef KeyNames others = KeyNames()
        if target.count != count:
            raise ValueError("the looks are not at the same keys")
        names.check(first, first + count)
        with nogil:
            for i in range(count):
                if self.compare_one(source, &source.looks[i], target, &target.looks[i]) == 0:
                    self.add_equal(names, first + i, source, &source.looks[i])
                    continue
                p = names.at(first + i, &n)
                room = others.add(p, n)
                if not room:
                    break
        if not room:
            raise MemoryError()
        self.ours.release()
        self.theirs.release()
        return others if others.count() else None

    def add(self, KeyNames names not None, size_t index, Looks looks not None, size_t at, *,
            bint target):
        """Add what one end said of a key to its digest."""
        cdef KeyLook *look = looks.look(at)
        names.check(index, index + 1)
        if look.state != LOOK_ABSENT and look.state != LOOK_REFUSED:
            self.add_to(
                &self.target if target else &self.source, names, index, looks, look,
                self.decode(self.ours, looks, look))

    def count_equal(self, KeyNames names not None, size_t index, Looks looks not None, size_t at):
        """Count a key that was found equal in another way; `looks` are the source's."""
        names.check(index, index + 1)
        self.add_equal(names, index, looks, looks.look(at))

    cdef void add_equal(
        self, KeyNames names, size_t index, Looks looks, const KeyLook *look
    ) noexcept nogil:
        cdef Sum before = self.source
        self.equal += 1
        self.values += look.size
        self.add_to(
            &self.source, names, index, looks, look, self.decode(self.ours, looks, look))
        # The same at the other end.
        before.low = self.source.low - before.low
        before.high = self.source.high - before.high - (self.source.low < before.low)
        self.target.low += before.low
        self.target.high += before.high + (self.target.low < before.low)

    cdef DecodeEnd decode(
        self, ValueDecoder decoder, Looks looks, const KeyLook *look
    ) noexcept nogil:
        if look.state != LOOK_HELD or look.size <= FOOTER_BYTES:
            return DECODE_UNKNOWN
        return decode_value(
            &decoder.reader, look.flavour, looks.arena.data + look.at, look.size - FOOTER_BYTES)

    cdef void add_to(
        self, Sum *sum, KeyNames names, size_t index, Looks looks, const KeyLook *look,
        DecodeEnd end
    ) noexcept nogil:
        cdef Sip s = self.hashing, raw = self.hashing
        cdef ElementSink *sink = &self.ours.sink
        cdef size_t n
        cdef const uint8_t *name = names.at(index, &n)
        cdef Sum value = look.raw
        sip_word(&s, self.db)
        sip_bytes_of(&s, name, n)
        if end == DECODED:
            value = sink_value_digest(sink)
            sip_word(&s, sink.field_ttls.low)
            sip_word(&s, sink.field_ttls.high)
            sip_word(&s, sink.groups.low)
            sip_word(&s, sink.groups.high)
        elif look.state == LOOK_HELD:
            sip_update(
                &raw, looks.arena.data + look.at,
                look.size - FOOTER_BYTES if look.size > FOOTER_BYTES else look.size)
            sip_finish(&raw, &value.low, &value.high)
        sip_word(&s, value.low)
        sip_word(&s, value.high)
        sip_add(&s, sum)

    cdef int compare_one(
        self, Looks source, const KeyLook *one, Looks target, const KeyLook *other
    ) noexcept nogil:
        """In what they differ; 0: in nothing, -1: there is nothing at either end."""
        cdef int found = 0
        if one.state == LOOK_REFUSED or other.state == LOOK_REFUSED:
            return DIFFER_REFUSED
        if one.state == LOOK_UNTOLD or other.state == LOOK_UNTOLD:
            return DIFFER_UNTOLD
        if one.state == LOOK_ABSENT:
            return -1 if other.state == LOOK_ABSENT else DIFFER_EXTRA
        if other.state == LOOK_ABSENT:
            return DIFFER_MISSING
        if one.state == LOOK_HELD and other.state == LOOK_HELD:
            found = self.compare_values(source, one, target, other)
        elif one.state == LOOK_DIGESTED or other.state == LOOK_DIGESTED:
            found = self.compare_long(source, one, target, other)
        if self.other_ttl(one.expire_at, other.expire_at):
            found |= DIFFER_TTL
        return found

    cdef inline bint other_ttl(self, int64_t one, int64_t other) noexcept nogil:
        if (one < 0) != (other < 0):
            return True
        if one < 0:
            return False
        other -= one
        if self.extended and other > self.extended // 2:
            other -= self.extended
        return other > self.ttl_bound or other < -self.ttl_bound

    cdef int compare_values(
        self, Looks source, const KeyLook *one, Looks target, const KeyLook *other
    ) noexcept nogil:
        cdef const uint8_t *p = source.arena.data + one.at
        cdef const uint8_t *q = target.arena.data + other.at
        cdef DecodeEnd ours, theirs
        cdef ElementSink *a = &self.ours.sink
        cdef ElementSink *b = &self.theirs.sink
        cdef Sum x, y
        cdef int found = 0
        if one.size == other.size and (
                one.type < FIRST_OWN_TYPE or one.flavour == other.flavour):
            # What TYPE says has no footer.
            if memcmp(p, q, one.size if one.size <= FOOTER_BYTES
                      else one.size - FOOTER_BYTES) == 0:
                return 0
        if one.size <= FOOTER_BYTES:
            return DIFFER_TYPE
        self.decoded += 1
        ours = self.decode(self.ours, source, one)
        theirs = self.decode(self.theirs, target, other)
        if ours != DECODED or theirs != DECODED:
            return DIFFER_UNDECODED
        if a.kind != b.kind:
            return DIFFER_TYPE
        x, y = sink_value_digest(a), sink_value_digest(b)
        if x.low != y.low or x.high != y.high:
            found = DIFFER_VALUE if a.kind != KIND_MODULE else DIFFER_UNDECODED
        if a.field_ttls.low != b.field_ttls.low or a.field_ttls.high != b.field_ttls.high:
            found |= DIFFER_FIELD_TTLS
        if a.groups.low != b.groups.low or a.groups.high != b.groups.high:
            found |= DIFFER_GROUPS
        return found

    cdef int compare_long(
        self, Looks source, const KeyLook *one, Looks target, const KeyLook *other
    ) noexcept nogil:
        """One of the values was not held: their bytes are the same, or they are looked at again."""
        cdef Sum x, y
        if one.size != other.size or one.type != other.type or one.type >= FIRST_OWN_TYPE:
            return DIFFER_LONG
        x = raw_digest(source, one, self.key_data)
        y = raw_digest(target, other, self.key_data)
        return 0 if x.low == y.low and x.high == y.high else DIFFER_LONG
