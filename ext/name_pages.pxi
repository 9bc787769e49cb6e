# Names of keys, a page of SCAN at a time, on their way from one server to another one that is asked
# whether it has them.
#
# What SCAN answers and what EXISTS takes are the same bytes: a bulk for each name. So a page is kept
# as it came, and becomes a command by putting a header before it. A cluster's node takes names of one
# slot in a command: there the commands are written as the page is read, one for names that follow each
# other and share a slot (newer nodes name their keys slot by slot), most often one for each name. Python
# sees a page, and names only where some are missing.
#
#   state        what comes                      where it leads
#   NP_REPLY     *2, where a page is owed        NP_CURSOR
#                an integer, where a count is    the next reply; a count behind the last of its own
#                an error                        the next reply
#   NP_CURSOR    $n and the cursor               NP_NAMES
#   NP_NAMES     *m                              NP_NAME; the page, if there are none
#   NP_NAME      $n                              NP_BODY
#   NP_BODY      n bytes and CRLF                NP_NAME; the page behind the last one

cdef enum NameState:
    NP_REPLY
    NP_CURSOR
    NP_CURSOR_BODY
    NP_NAMES
    NP_NAME
    NP_BODY

cdef enum NameStop:
    NAMES_NEED_DATA
    NAMES_REPLY
    NAMES_ERROR
    NAMES_BAD
    NAMES_NO_MEMORY

cdef enum:
    # Replies that may be owed at once, and names in one page.
    NAME_REPLIES_MOST = 256
    NAMES_IN_A_PAGE_MOST = 1 << 24
    ONE_BYTES = 4
    # `*2` and CRLF, and the longest line of its kind.
    ONE_NAME_BYTES = 4
    COUNT_BYTES_MOST = 24
    PADDED_BYTES = 32

# What EXISTS answers for a name that is there, again and again.
cdef uint8_t many_ones[ONE_BYTES * REPLIES_AT_ONCE]
repeat_reply(many_ones, b":1\r\n", ONE_BYTES)

# Bytes of one page. Names of megabytes make pages short, see `verify.key_sampling`.
cdef int64_t PAGE_BYTES_MOST = <int64_t>1 << 31


@cython.final
cdef class NamePage:
    """The keys that one reply to SCAN named, those with the reader's prefix left out, those that are
    in none of its slots, and those that its rules leave.

    Attributes:
        cursor: where the next page begins; 0: this was the last.
        nbytes: bytes of the names, with those that were left out.
        named: keys, with those that were left out.
    """
    # The names, if all go in one command; else the commands.
    cdef bytes bulks
    cdef Py_ssize_t count
    # What they are looked up by.
    cdef bytes command
    cdef bint together
    cdef uint64_t commands
    cdef readonly object cursor
    cdef readonly uint64_t nbytes
    cdef readonly uint64_t named

    def __len__(self):
        return self.count

    def lookup(self):
        """What asks for all the names, encoded: one command, or several."""
        if not self.together:
            return self.bulks
        return b"*%d\r\n$%d\r\n%s\r\n%s" % (
            self.count + 1, len(self.command), self.command, self.bulks)

    @property
    def replies(self):
        """How many replies that brings."""
        return 1 if self.together else self.commands

    def names(self):
        """The names, a bytes object each."""
        cdef list found = []
        cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(self.bulks)
        cdef size_t at = 0, end = PyBytes_GET_SIZE(self.bulks)
        cdef int64_t n, left = 0
        while at < end:
            if left == 0 and not self.together:
                left = read_length(data, &at, end, c'*') - 1
                n = read_length(data, &at, end, c'$')
                at += n + 2
            n = read_length(data, &at, end, c'$')
            found.append(PyBytes_FromStringAndSize(<char *>data + at, n))
            at += n + 2
            left -= 1
        return found


@cython.final
cdef class NamePageReader:
    """Reads replies to SCAN and to EXISTS.

    `expect_page` and `expect_count` in the order of sending; `received` after reading into
    `input`; `take` gives, for each, a `NamePage`, the sum of the counts, or an error's text.

    Args:
        prefix: names that begin so are left out.
        slots: so are those that are in none of these; None: all are kept.
        command: what the names are looked up by, at the other end.
        together: it takes all names of a page in one command.
        by_slot: or those of one slot. Neither: one name alone.
        rules: so are those that they leave, in the database `db`, whatever their type is.
    """
    cdef readonly InputBuffer input
    cdef Input *bytes_in
    cdef bytes prefix
    cdef bytes command
    cdef bint together
    cdef bint by_slot
    # A command's beginning, for one name; and behind its first line, however many they are.
    cdef bytes before
    cdef const uint8_t *before_data
    cdef uint8_t before_padded[PADDED_BYTES]
    cdef size_t before_size
    cdef SlotFilter slots
    cdef KeyRules rules
    cdef bint has_rules
    cdef int db
    cdef const uint8_t *left_out
    cdef size_t left_out_size
    cdef bint of_slots
    cdef uint64_t expected[NAME_REPLIES_MOST]   # 0: a page; else so many integers
    cdef int head
    cdef int waiting
    cdef list done

    cdef NameState state
    cdef uint64_t answered
    cdef uint64_t total
    cdef str error
    cdef object failure

    cdef uint8_t *page
    cdef size_t page_size
    cdef size_t page_capacity
    cdef size_t name_start
    cdef size_t body_start
    cdef uint64_t body_left
    cdef uint64_t names_left
    cdef uint64_t named
    cdef uint64_t kept
    cdef uint64_t commands
    cdef uint64_t nbytes
    cdef uint8_t cursor[24]
    cdef size_t cursor_size
    cdef const char *wanted

    def __cinit__(
        self, bytes prefix not None, SlotFilter slots=None, *,
        bytes command not None=b"EXISTS", bint together=True, bint by_slot=False,
        KeyRules rules=None, int db=0,
    ):
        if not prefix:
            raise ValueError("a prefix has at least one byte")
        self.command = command
        self.together = together
        # (Without slots that are looked for no name is hashed.)
        self.by_slot = by_slot and slots is not None and not together
        self.before = b"" if together else b"*2\r\n$%d\r\n%s\r\n" % (len(command), command)
        self.before_data = <const uint8_t *>PyBytes_AS_STRING(self.before)
        self.before_size = PyBytes_GET_SIZE(self.before)
        memcpy(self.before_padded, self.before_data, min(self.before_size, <size_t>PADDED_BYTES))
        self.slots = slots
        self.of_slots = slots is not None
        self.rules = rules
        self.has_rules = rules is not None
        self.db = db
        self.input = InputBuffer()
        self.bytes_in = &self.input.state
        self.prefix = prefix
        self.left_out = <const uint8_t *>PyBytes_AS_STRING(prefix)
        self.left_out_size = PyBytes_GET_SIZE(prefix)
        self.done = []
        self.state = NP_REPLY

    def __dealloc__(self):
        PyMem_RawFree(self.page)

    def expect_page(self):
        """A SCAN was sent."""
        self.expect(0)

    def expect_count(self, uint64_t replies=1):
        """So many commands were sent that answer with an integer each."""
        if replies == 0:
            raise ValueError("at least one reply is expected")
        self.expect(replies)

    cdef expect(self, uint64_t replies):
        if self.waiting == NAME_REPLIES_MOST:
            raise ValueError("too many replies are owed")
        self.expected[(self.head + self.waiting) % NAME_REPLIES_MOST] = replies
        self.waiting += 1

    def take(self):
        """What was answered since the last call, in order."""
        done = self.done
        self.done = []
        return done

    def received(self, size_t n):
        """Take in `n` bytes that were read into `input`; returns how many items `take` has.

        Raises `ProtocolError` for bytes that are no such reply.
        """
        cdef NameStop stop
        self.input.commit(n)
        if self.failure is not None:
            raise self.failure
        while True:
            with nogil:
                stop = self.read()
            if stop == NAMES_NEED_DATA:
                return len(self.done)
            if stop == NAMES_ERROR:
                self.take_error()
            elif stop == NAMES_REPLY:
                self.finish()
            elif stop == NAMES_NO_MEMORY:
                raise MemoryError()
            else:
                self.failure = ProtocolError(
                    f"expected {self.wanted.decode()} at byte {input_offset(&self.input.state)}",
                    input_offset(&self.input.state))
                raise self.failure

    cdef take_error(self):
        """The current line is an error reply."""
        cdef Input *input = self.bytes_in
        cdef int64_t end = line_end(input.data, input.start, input.end)
        cdef bytes text = PyBytes_FromStringAndSize(
            <char *>input.data + input.start + 1, end - input.start - 1)
        if self.error is None:
            self.error = text.decode("utf-8", "backslashreplace")
        input.start = end + 2
        self.answered += 1
        if self.answered >= max(self.expected[self.head], <uint64_t>1):
            self.finish()

    cdef finish(self):
        cdef NamePage page
        cdef object item = self.error
        if item is None and self.expected[self.head]:
            item = self.total
        elif item is None:
            page = NamePage.__new__(NamePage)
            page.bulks = PyBytes_FromStringAndSize(<char *>self.page, self.page_size)
            page.count = self.kept
            page.command = self.command
            page.together = self.together
            page.commands = self.commands
            page.named = self.named
            page.nbytes = self.nbytes
            page.cursor = int(PyBytes_FromStringAndSize(<char *>self.cursor, self.cursor_size))
            item = page
        self.done.append(item)
        self.head = (self.head + 1) % NAME_REPLIES_MOST
        self.waiting -= 1
        self.state = NP_REPLY
        self.answered = self.total = 0
        self.error = None
        self.page_size = 0
        self.named = self.kept = self.commands = self.nbytes = 0

    cdef inline NameStop bad(self, const char *wanted) noexcept nogil:
        self.wanted = wanted
        return NAMES_BAD

    cdef inline bint reserve(self, size_t n) noexcept nogil:
        """Room for `n` bytes more in the page; False: no memory."""
        cdef size_t capacity
        cdef uint8_t *grown
        if self.page_capacity - self.page_size < n:
            capacity = max(2 * self.page_capacity, self.page_size + n, <size_t>65536)
            grown = <uint8_t *>PyMem_RawRealloc(self.page, capacity)
            if grown == NULL:
                return False
            self.page = grown
            self.page_capacity = capacity
        return True

    cdef inline bint keep(self, const uint8_t *p, size_t n) noexcept nogil:
        """Append to the page; False: no memory."""
        if not self.reserve(n):
            return False
        if n:
            memcpy(self.page + self.page_size, p, n)
            self.page_size += n
        return True

    cdef inline bint keep_names(self, const uint8_t *p, size_t n, uint64_t count) noexcept nogil:
        """Append so many names, `n` bytes at `p`: as they are, or as a command; False: no memory."""
        cdef uint8_t *out
        if count == 0:
            return True
        if self.together:
            return self.keep(p, n)
        if not self.reserve(PADDED_BYTES + COUNT_BYTES_MOST + self.before_size + n):
            return False
        out = self.page + self.page_size
        if count == 1:
            # Most often: a copy of fixed size, of which some is written over.
            memcpy(out, self.before_padded, PADDED_BYTES)
            if self.before_size > PADDED_BYTES:
                memcpy(out, self.before_data, self.before_size)
            out += self.before_size
        else:
            out = put_array_header(out, count + 1)
            memcpy(out, self.before_data + ONE_NAME_BYTES, self.before_size - ONE_NAME_BYTES)
            out += self.before_size - ONE_NAME_BYTES
        memcpy(out, p, n)
        self.page_size = out + n - self.page
        self.commands += 1
        return True

    cdef inline bint passes_by(self, const uint8_t *name, size_t size) noexcept nogil:
        """Whether it has the prefix, or the rules leave it."""
        if size >= self.left_out_size and memcmp(name, self.left_out, self.left_out_size) == 0:
            return True
        return self.has_rules and (
            self.rules.judge(self.db, RULE_ANY, name, size) == RULES_LEAVE)

    cdef bint whole_names(self) noexcept nogil:
        """Take in the names that are here from head to end, as long as nothing is odd: what is goes
        the long way. False: no memory."""
        cdef Input *input = self.bytes_in
        cdef const uint8_t *data = input.data
        cdef size_t at, size
        cdef int64_t n
        cdef int slot = 0, last = -1
        cdef bint left_out
        # So many names that go together begin here.
        cdef size_t first = input.start
        cdef uint64_t count = 0
        while self.names_left:
            at = input.start
            n = read_length(data, &at, input.end, c'$')
            if n < 0 or <uint64_t>n + 2 > input.end - at:
                break
            size = n
            if data[at + size] != 13 or data[at + size + 1] != 10 or (
                    n > PAGE_BYTES_MOST - <int64_t>(self.page_size + (at - first))):
                break
            left_out = self.passes_by(data + at, size)
            if self.of_slots and not left_out:
                slot = slot_of(data + at, size)
                left_out = not self.slots.has_slot(slot)
            if left_out or not (self.together or self.by_slot and slot == last):
                if not self.keep_names(data + first, input.start - first, count):
                    return False
                first = input.start
                count = 0
            self.names_left -= 1
            self.nbytes += size
            input.start = at + size + 2
            if left_out:
                first = input.start
                last = -1
            else:
                self.kept += 1
                count += 1
                last = slot
        return self.keep_names(data + first, input.start - first, count)

    cdef NameStop read(self) noexcept nogil:
        """Read until the bytes run out or an item is whole."""
        cdef Input *input = self.bytes_in
        cdef const uint8_t *line
        cdef int64_t end, number
        cdef size_t size
        cdef uint64_t many
        while True:
            if self.state == NP_NAME:
                if not self.whole_names():
                    return NAMES_NO_MEMORY
                if self.names_left == 0:
                    return NAMES_REPLY
            elif self.state == NP_REPLY and self.waiting and self.expected[self.head]:
                # Most often all are there.
                many = equal_replies(
                    input.data + input.start,
                    min(<uint64_t>((input.end - input.start) // ONE_BYTES),
                        self.expected[self.head] - self.answered),
                    many_ones, ONE_BYTES)
                input.start += ONE_BYTES * many
                self.total += many
                self.answered += many
                if self.answered == self.expected[self.head]:
                    return NAMES_REPLY
            if self.state == NP_BODY or self.state == NP_CURSOR_BODY:
                if input.start == input.end:
                    return NAMES_NEED_DATA
                if self.state == NP_BODY:
                    size = min(<uint64_t>(input.end - input.start), self.body_left)
                    if not self.keep(input.data + input.start, size):
                        return NAMES_NO_MEMORY
                    input.start += size
                    self.body_left -= size
                    if self.body_left:
                        return NAMES_NEED_DATA
                    if not self.end_name():
                        return self.bad("CRLF behind a name")
                    if self.names_left == 0:
                        return NAMES_REPLY
                    continue
            if input.start == input.end:
                return NAMES_NEED_DATA
            if self.waiting == 0:
                return self.bad("nothing: no reply is owed")
            end = line_end(input.data, input.start, input.end)
            if end == -1:
                return NAMES_NEED_DATA
            if end < 0:
                return self.bad("a line that ends in CRLF")
            line = input.data + input.start
            size = end - input.start
            if self.state == NP_CURSOR_BODY:
                if size != self.cursor_size or not parse_digits(line, size):
                    return self.bad("a cursor")
                memcpy(self.cursor, line, size)
                self.state = NP_NAMES
            elif self.state == NP_REPLY and line[0] == c'-':
                return NAMES_ERROR
            elif not parse_decimal(line + 1, line + size, &number) or number < 0:
                return self.bad("a length or a count")
            elif self.state == NP_REPLY and self.expected[self.head]:
                if line[0] != c':':
                    return self.bad("an integer")
                self.total += number
                self.answered += 1
                if self.answered == self.expected[self.head]:
                    input.start = end + 2
                    return NAMES_REPLY
            elif self.state == NP_REPLY:
                if line[0] != c'*' or number != 2:
                    return self.bad("an array of a cursor and names")
                self.state = NP_CURSOR
            elif self.state == NP_CURSOR:
                if line[0] != c'$' or number < 1 or number > 20:
                    return self.bad("a cursor")
                self.cursor_size = number
                self.state = NP_CURSOR_BODY
            elif self.state == NP_NAMES:
                if line[0] != c'*' or number > NAMES_IN_A_PAGE_MOST:
                    return self.bad("an array of names")
                self.names_left = number
                self.named = number
                self.state = NP_NAME
                if number == 0:
                    input.start = end + 2
                    return NAMES_REPLY
            else:
                if line[0] != c'$' or number > PAGE_BYTES_MOST - <int64_t>self.page_size:
                    return self.bad("a name")
                self.name_start = self.page_size
                self.body_left = number + 2
                self.nbytes += number
                if not (self.keep(self.before_data, self.before_size) and self.keep(line, size + 2)):
                    return NAMES_NO_MEMORY
                self.body_start = self.page_size
                self.state = NP_BODY
            input.start = end + 2

    cdef inline bint end_name(self) noexcept nogil:
        """A name is whole; False: it does not end in CRLF."""
        cdef size_t size = self.page_size - self.body_start - 2
        cdef const uint8_t *name = self.page + self.body_start
        if self.page[self.page_size - 2] != 13 or self.page[self.page_size - 1] != 10:
            return False
        if self.passes_by(name, size) or self.of_slots and not self.slots.has_key(name, size):
            self.page_size = self.name_start
        else:
            self.kept += 1
            self.commands += not self.together
        self.names_left -= 1
        self.state = NP_NAME
        return True


cdef inline bint parse_digits(const uint8_t *p, size_t n) noexcept nogil:
    """Whether all of them are decimal digits."""
    cdef size_t i
    for i in range(n):
        if p[i] < c'0' or p[i] > c'9':
            return False
    return n > 0
