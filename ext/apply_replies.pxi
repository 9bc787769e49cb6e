# What the target answers to a transaction.
#
# Theory of operation
# -------------------
# The replies come in an order that is known, so the reader is a table of stages:
#
#   stage          what comes                             where it leads
#   TX_MULTI       +OK                                    TX_QUEUED
#                  an error                               TX_LOOSE, "not_begun"
#   TX_QUEUED      +QUEUED or an error, for each slot     TX_EXEC
#   TX_EXEC        an array with a reply for each slot    TX_ELEMENT, "applied"
#                  an array without the refused ones      TX_ELEMENT, "partial"
#                  nil                                    TX_WATCH, "raced"
#                  an error                               TX_WATCH, "aborted"
#   TX_ELEMENT     any value, for each slot               TX_WATCH
#   TX_LOOSE       any value, for each slot               TX_LOOSE_EXEC
#   TX_LOOSE_EXEC  any value                              TX_WATCH
#   TX_WATCH       +OK or an error                        TX_GET
#   TX_GET         a bulk, nil or an error                the result
#
# Behind a batch with a record (see apply.pxi) there are fewer:
#
#   TX_ELEMENT     any value, for each slot               TX_BEFORE
#   TX_BEFORE      a bulk, nil or an error, GET's         TX_RECORD
#   TX_RECORD      +OK                                    the result, "recorded"
#                  nil or an error                        the result, "unrecorded"
#
# Of a command that is a transaction for itself there EXEC's reply is told by the +QUEUED before it:
# SELECT's reply and its own are the first in that array, and nil is an error.
#
# Where MULTI itself is refused the target runs what follows one by one: that is what TX_LOOSE
# reads. It takes a user without the right to MULTI or one who has to log in first. "partial" takes
# Redis before 6.0.6, which forgot about commands that it had refused as LOADING.
#
# Below the stages lies a reader of items, a line or a bulk each. A value is thrown away by counting:
# `awaited` is how many values are still to come, an aggregate of n adds n - 1 of them, so that depth
# costs nothing. Bodies and long lines pass in pieces, of which only the first bytes are kept.

cdef enum TransactionStage:
    TX_MULTI
    TX_QUEUED
    TX_EXEC
    TX_ELEMENT
    TX_LOOSE
    TX_LOOSE_EXEC
    TX_WATCH
    TX_GET
    TX_BEFORE
    TX_RECORD

cdef enum TransactionStatus:
    STATUS_ABORTED
    STATUS_APPLIED
    STATUS_RACED
    STATUS_NOT_BEGUN
    STATUS_PARTIAL
    STATUS_RECORDED
    STATUS_UNRECORDED

cdef tuple TRANSACTION_STATUS = (
    "aborted", "applied", "raced", "not_begun", "partial", "recorded", "unrecorded")

cdef enum ItemStep:
    ITEM_NEED_DATA
    ITEM_BAD
    ITEM_READ

cdef enum TransactionStop:
    TX_GO_ON
    TX_NEED_DATA
    TX_PROTOCOL
    TX_REFUSED
    TX_FAILED
    TX_FAILED_INSIDE
    TX_FOUND_BEFORE
    TX_DONE
    TX_STAGE_ERROR

# Values in one reply, and bytes of one bulk.
cdef int64_t REPLY_SIZE_MOST = <int64_t>1 << 40

cdef enum:
    # Longer than the header of any reply, a number or a length and CRLF.
    HEADER_BYTES_MOST = 64
    BIG_NUMBER_DIGITS = 640


cdef bint is_reply_double(const uint8_t *p, size_t n) noexcept nogil:
    """Whether n bytes are [+-] digits [. digits] [e [+-] digits], or [+-] inf or nan."""
    cdef const uint8_t *end = p + n
    cdef const uint8_t *digits
    if p != end and (p[0] == c'-' or p[0] == c'+'):
        p += 1
    if end - p == 3 and (memcmp(p, b"inf", 3) == 0 or memcmp(p, b"nan", 3) == 0):
        return True
    digits = p
    p = past_digits(p, end)
    if p == digits:
        return False
    if p != end and p[0] == c'.':
        p = past_digits(p + 1, end)
    if p != end and (p[0] == c'e' or p[0] == c'E'):
        p += 1
        if p != end and (p[0] == c'-' or p[0] == c'+'):
            p += 1
        digits = p
        p = past_digits(p, end)
        if p == digits:
            return False
    return p == end


cdef bint is_reply_big_number(const uint8_t *p, size_t n) noexcept nogil:
    cdef const uint8_t *end = p + n
    if p != end and (p[0] == c'-' or p[0] == c'+'):
        p += 1
    return p != end and end - p <= BIG_NUMBER_DIGITS and past_digits(p, end) == end


cdef inline const uint8_t *past_digits(const uint8_t *p, const uint8_t *end) noexcept nogil:
    while p != end and <uint8_t>(p[0] - c'0') <= 9:
        p += 1
    return p


@cython.final
cdef class TransactionResult:
    """What became of one transaction. Immutable.

    Attributes:
        status: "applied": EXEC ran it; "aborted": nothing was applied; "raced": nothing was
            applied, the position was moved by another client; "not_begun": MULTI was refused, and
            what followed ran one by one, outside of any transaction; "partial": EXEC ran it
            without the commands that were refused (Redis before 6.0.6, while it loads);
            "recorded": all that did not fail ran, one by one, and the record stands behind it;
            "unrecorded": the same, and no record was set: there was none any more, or
            `guard_error` tells why.
        refused: (slot, message) of errors at queueing.
        failed: (slot, message) of errors in EXEC's reply, or, not begun, of those commands that
            did not run; the others did. With a record there may be several for a command of another
            database, of which the first tells why.
        error: EXEC's own error, or MULTI's; None if there was none.
        guard_error: what WATCH or GET, or the SET of a record, answered in place of +OK and a
            value: the connection is not to be used for another transaction. None if there was
            nothing.
        position: GET's reply, None for nil; of a longer value its first 4096 bytes. It shows what
            a transaction has left, and what there was before a record.
    """
    cdef readonly str status
    cdef readonly list refused
    cdef readonly list failed
    cdef readonly object error
    cdef readonly object guard_error
    cdef readonly object position

    def stands(self, bytes position not None):
        """Whether all is well: all of it ran, and GET showed `position`: that of a transaction
        itself; before a record, the one that was left there."""
        return ((self.status is TRANSACTION_STATUS[STATUS_APPLIED]
                 or self.status is TRANSACTION_STATUS[STATUS_RECORDED])
                and not self.failed and self.guard_error is None and self.position == position)

    def __repr__(self):
        return (
            f"TransactionResult(status={self.status!r}, refused={self.refused!r}, "
            f"failed={self.failed!r}, error={self.error!r}, guard_error={self.guard_error!r}, "
            f"position={self.position!r})")


@cython.final
cdef class TransactionReader:
    """Reads the replies to transactions.

    `expect` in the order of sending; `received` after reading into `input`; `take` gives a
    `TransactionResult` for each transaction that is answered whole.
    """
    cdef readonly InputBuffer input
    cdef Input *bytes_in
    cdef uint64_t expected[EXPECTED_MOST]
    cdef bint records[EXPECTED_MOST]
    cdef int head
    cdef readonly int waiting
    cdef list done

    # The transaction that is being answered.
    cdef TransactionStage stage
    cdef uint64_t slot
    cdef uint64_t refused_count
    cdef TransactionStatus status
    cdef TransactionResult result

    # The value that is being thrown away.
    cdef uint64_t awaited
    cdef uint64_t attribute_awaited    # of the attribute before it
    cdef bint value_begun
    cdef bint was_queued               # the one before it was +QUEUED
    cdef uint32_t exec_items           # of EXEC's reply to a command of its own; 0: it is none

    # The item that is being read.
    cdef uint8_t kind
    cdef int64_t number                # a length; for nil -1
    cdef uint64_t body_left            # of its body, CRLF included
    cdef bint in_line                  # a line longer than the buffer holds
    cdef uint8_t line_last
    cdef uint8_t text[POSITION_BYTES_MOST]
    cdef size_t text_size
    cdef size_t text_most

    cdef uint64_t item_offset          # where it begins
    cdef bint item_read

    cdef const char *wanted
    cdef object failure
    cdef bytes last_text
    cdef str last_message

    def __cinit__(self):
        self.input = InputBuffer()
        self.bytes_in = &self.input.state
        self.done = []
        self.begin()

    cdef begin(self):
        self.stage = TX_MULTI
        self.slot = 0
        self.refused_count = 0
        self.was_queued = False
        self.exec_items = 0
        self.await_value()
        self.result = TransactionResult.__new__(TransactionResult)
        self.status = STATUS_ABORTED
        self.result.refused = []
        self.result.failed = []

    cdef inline void await_value(self) noexcept nogil:
        self.awaited = 1
        self.attribute_awaited = 0
        self.value_begun = False

    @property
    def room(self):
        """Whether `expect` would be taken now."""
        return self.waiting < EXPECTED_MOST

    def expect(self, uint64_t queued, bint record=False):
        """A transaction with `queued` commands between MULTI and EXEC was sent; or, `record`, so
        many commands with a record behind them."""
        cdef int last = (self.head + self.waiting) % EXPECTED_MOST
        if self.waiting == EXPECTED_MOST:
            raise ValueError("too many transactions are not answered")
        if (queued == 0 and not record) or queued > INT32_MAX:
            raise ValueError(f"a transaction has at least one command, found {queued}")
        self.expected[last] = queued
        self.records[last] = record
        self.waiting += 1

    def take(self):
        """Results of the transactions answered since the last call, in order."""
        done = self.done
        self.done = []
        return done

    def received(self, size_t n):
        """Take in `n` bytes that were read into `input`; returns how many results are ready.

        Raises `ProtocolError` for bytes that are no reply to a transaction.
        """
        cdef TransactionStop stop
        self.input.commit(n)
        if self.failure is not None:
            raise self.failure
        while True:
            with nogil:
                stop = self.read()
            if stop == TX_NEED_DATA:
                return len(self.done)
            if stop == TX_REFUSED:
                self.result.refused.append((self.slot, self.message()))
                self.refused_count += 1
                self.slot += 1
            elif stop == TX_FAILED:
                self.result.failed.append((self.failed_slot(), self.message()))
                self.slot += 1
            elif stop == TX_FAILED_INSIDE:
                self.result.failed.append((self.slot, self.message()))
            elif stop == TX_STAGE_ERROR:
                self.note_stage_error()
            elif stop == TX_FOUND_BEFORE:
                if self.kind != c'_':
                    self.result.position = PyBytes_FromStringAndSize(
                        <char *>self.text, self.text_size)
                self.stage = TX_RECORD
            elif stop == TX_DONE:
                if self.stage == TX_GET and self.kind != c'_':
                    self.result.position = PyBytes_FromStringAndSize(
                        <char *>self.text, self.text_size)
                self.finish()
            else:
                self.raise_protocol_error()

    cdef uint64_t failed_slot(self):
        """The slot of the current value: in a partial reply the refused ones have none."""
        cdef uint64_t slot = self.slot
        if self.status == STATUS_PARTIAL:
            for refused, _ in self.result.refused:
                if refused > slot:
                    break
                slot += 1
        return slot

    cdef str message(self):
        """The text of the current error; the same one over and over is one object."""
        cdef size_t size = min(self.text_size, <size_t>ERROR_TEXT_BYTES)
        if self.last_text is None or <size_t>PyBytes_GET_SIZE(self.last_text) != size or memcmp(
                PyBytes_AS_STRING(self.last_text), self.text, size) != 0:
            self.last_text = PyBytes_FromStringAndSize(<char *>self.text, size)
            self.last_message = self.last_text.decode("utf-8", "backslashreplace")
        return self.last_message

    cdef note_stage_error(self):
        """An error that is no command's own."""
        if self.stage == TX_MULTI:
            self.status = STATUS_NOT_BEGUN
            self.result.error = self.message()
            self.stage = TX_LOOSE
        elif self.stage == TX_EXEC:
            self.result.error = self.message()
            self.stage = TX_WATCH
        else:
            if self.result.guard_error is None:
                self.result.guard_error = self.message()
            if self.stage == TX_GET or self.stage == TX_RECORD:
                self.finish()
            elif self.stage == TX_BEFORE:
                self.stage = TX_RECORD
            else:
                self.stage = TX_GET

    cdef finish(self):
        self.result.status = TRANSACTION_STATUS[<int>self.status]
        self.done.append(self.result)
        self.head = (self.head + 1) % EXPECTED_MOST
        self.waiting -= 1
        self.begin()

    cdef raise_protocol_error(self):
        """An item is shown by its first bytes, whether or not it was consumed already."""
        cdef size_t shown = min(self.bytes_in.end - self.bytes_in.start, <size_t>32)
        if self.item_read:
            found = bytes([self.kind]) + PyBytes_FromStringAndSize(
                <char *>self.text, min(self.text_size, <size_t>32))
        else:
            found = PyBytes_FromStringAndSize(
                <char *>self.bytes_in.data + self.bytes_in.start, shown)
        self.failure = ProtocolError(
            f"expected {(<bytes>self.wanted).decode()}, found {found!r} "
            f"at byte {self.item_offset}", self.item_offset)
        raise self.failure

    # --- Stages ---

    cdef inline TransactionStop wrong(self, const char *wanted) noexcept nogil:
        self.wanted = wanted
        return TX_PROTOCOL

    cdef TransactionStop read(self) noexcept nogil:
        """Read items until the bytes run out or something has to be handed over."""
        cdef Input *input = self.bytes_in
        cdef ItemStep step
        cdef TransactionStop stop
        while True:
            self.item_read = False
            if input.start == input.end:
                return TX_NEED_DATA
            if self.waiting == 0:
                self.item_offset = input_offset(input)
                return self.wrong("nothing: no reply is owed")
            self.pass_slots()
            if input.start == input.end:
                return TX_NEED_DATA
            step = self.read_item()
            if step == ITEM_NEED_DATA:
                return TX_NEED_DATA
            if step == ITEM_BAD:
                return TX_PROTOCOL
            self.item_read = True
            stop = self.on_item()
            if stop != TX_GO_ON:
                return stop

    cdef inline void pass_slots(self) noexcept nogil:
        """The usual replies, quickly; and on to the next stage where all slots are answered."""
        cdef Input *input = self.bytes_in
        cdef const uint8_t *data = input.data
        cdef uint64_t slots = self.expected[self.head]
        cdef bint between = not (self.in_line or self.body_left)
        if self.stage == TX_MULTI and between and self.records[self.head]:
            self.status = STATUS_UNRECORDED
            self.stage = TX_ELEMENT
        if self.stage == TX_QUEUED:
            if between:
                while (self.slot < slots and input.end - input.start >= 9
                        and memcmp(data + input.start, b"+QUEUED\r\n", 9) == 0):
                    input.start += 9
                    self.slot += 1
            if self.slot == slots:
                self.stage = TX_EXEC
                self.slot = 0
        elif self.stage == TX_ELEMENT:
            slots -= self.refused_count
            if between and self.awaited == 1 and not self.value_begun \
                    and self.attribute_awaited == 0:
                while (self.slot < slots and input.end - input.start >= 5
                        and memcmp(data + input.start, b"+OK\r\n", 5) == 0):
                    input.start += 5
                    self.slot += 1
            if self.slot == slots:
                self.stage = TX_BEFORE if self.records[self.head] else TX_WATCH
        elif self.stage == TX_LOOSE and self.slot == slots:
            self.stage = TX_LOOSE_EXEC

    cdef inline bint is_text(self, const char *text, size_t n) noexcept nogil:
        return self.kind == c'+' and self.text_size == n and memcmp(self.text, text, n) == 0

    cdef TransactionStop on_item(self) noexcept nogil:
        """An item was read: what it means at this stage."""
        cdef bint is_error = self.kind == c'-' or self.kind == c'!'
        if self.stage == TX_MULTI:
            if is_error:
                return TX_STAGE_ERROR
            if not self.is_text("OK", 2):
                return self.wrong("+OK or an error, the reply to MULTI")
            self.stage = TX_QUEUED
        elif self.stage == TX_QUEUED:
            if is_error:
                return TX_REFUSED
            if not self.is_text("QUEUED", 6):
                return self.wrong("+QUEUED or an error, the reply to a command in MULTI")
            self.slot += 1
        elif self.stage == TX_EXEC:
            if is_error:
                return TX_STAGE_ERROR
            if self.kind == c'_':
                self.status = STATUS_RACED
                self.stage = TX_WATCH
            elif self.kind == c'*' and <uint64_t>self.number == (
                    self.expected[self.head] - self.refused_count):
                self.status = STATUS_PARTIAL if self.refused_count else STATUS_APPLIED
                self.stage = TX_ELEMENT
            else:
                return self.wrong("an array with a reply for each queued command, nil or an error")
        elif self.stage == TX_WATCH:
            if is_error or self.is_text("QUEUED", 6):
                return TX_STAGE_ERROR
            if not self.is_text("OK", 2):
                return self.wrong("+OK or an error, the reply to WATCH")
            self.stage = TX_GET
        elif self.stage == TX_GET:
            if is_error or self.is_text("QUEUED", 6):
                return TX_STAGE_ERROR
            if self.kind != c'$' and self.kind != c'_':
                return self.wrong("a bulk, nil or an error, the reply to GET")
            return TX_DONE
        elif self.stage == TX_BEFORE:
            if is_error:
                return TX_STAGE_ERROR
            if self.kind != c'$' and self.kind != c'_':
                return self.wrong("a bulk, nil or an error, the reply to GET")
            return TX_FOUND_BEFORE
        elif self.stage == TX_RECORD:
            if is_error:
                return TX_STAGE_ERROR
            if self.is_text("OK", 2):
                self.status = STATUS_RECORDED
            elif self.kind != c'_':
                return self.wrong("+OK, nil or an error, the reply to SET")
            return TX_DONE
        else:
            return self.on_value_item(is_error)
        return TX_GO_ON

    cdef inline TransactionStop on_value_item(self, bint is_error) noexcept nogil:
        """An item of a value that is thrown away."""
        cdef uint64_t more = 0             # values that it announces
        cdef uint64_t itself = 1           # an attribute stands for none
        cdef bint failed, inside = False
        if self.kind == c'*' or self.kind == c'~':
            more = self.number
        elif self.kind == c'%':
            more = 2 * <uint64_t>self.number
        elif self.kind == c'|':
            more = 2 * <uint64_t>self.number
            itself = 0
        if self.awaited + self.attribute_awaited + more > <uint64_t>REPLY_SIZE_MOST:
            return self.wrong("fewer values in one reply")
        if not self.value_begun and (self.attribute_awaited or self.kind == c'|'):
            self.attribute_awaited += more
            self.attribute_awaited -= itself
            return TX_GO_ON
        failed = is_error and not self.value_begun
        if self.value_begun:
            if 0 < self.exec_items < 3:
                self.exec_items += 1
                inside = is_error
            elif self.exec_items:
                self.exec_items = 4
        elif self.records[self.head]:
            self.exec_items = self.was_queued and self.kind == c'*'
            if self.was_queued and self.kind == c'_':
                self.text_size = 0
                failed = True
            self.was_queued = self.is_text("QUEUED", 6)
        self.value_begun = True
        self.awaited += more
        self.awaited -= itself
        if self.awaited:
            return TX_FAILED_INSIDE if inside else TX_GO_ON
        self.await_value()
        if self.stage == TX_LOOSE_EXEC:
            self.stage = TX_WATCH
            return TX_GO_ON
        if failed or inside:
            return TX_FAILED
        self.slot += 1
        return TX_GO_ON

    # --- Items ---

    cdef inline ItemStep bad(self, const char *wanted) noexcept nogil:
        self.wanted = wanted
        return ITEM_BAD

    cdef inline void keep_text(self, const uint8_t *p, size_t n) noexcept nogil:
        """The first bytes of a line or of a body, up to `text_most`."""
        n = min(n, self.text_most - self.text_size)
        if n:
            memcpy(self.text + self.text_size, p, n)
        self.text_size += n

    cdef ItemStep read_item(self) noexcept nogil:
        """One line, or one bulk with its body; its kind, number and text say what it was."""
        cdef Input *input = self.bytes_in
        if self.in_line:
            return self.read_long_line()
        if self.body_left:
            return self.read_body()
        self.item_offset = input_offset(input)
        self.kind = input.data[input.start]
        self.number = 0
        self.text_size = 0
        self.text_most = 0
        if self.kind == c'+' or self.kind == c'-':
            self.text_most = ERROR_TEXT_BYTES
            return self.read_line()
        if self.kind == c'(' or self.kind == c',':
            return self.read_line()
        return self.read_header()

    cdef ItemStep read_line(self) noexcept nogil:
        """A line of any length: a simple string, an error, a double, a big number."""
        cdef Input *input = self.bytes_in
        cdef const uint8_t *line = input.data + input.start
        cdef size_t have = input.end - input.start
        cdef const uint8_t *newline = <const uint8_t *>memchr(line, c'\n', have)
        if newline == NULL:
            if have < LINE_LIMIT:
                return ITEM_NEED_DATA
            self.keep_text(line + 1, have - 1)
            self.line_last = line[have - 1]
            self.in_line = True
            input.start = input.end
            return ITEM_NEED_DATA
        if newline - line < 2 or (newline - 1)[0] != 13:
            return self.bad("a line that ends in CRLF")
        if self.kind == c',' and not is_reply_double(line + 1, newline - line - 2):
            return self.bad("a double")
        if self.kind == c'(' and not is_reply_big_number(line + 1, newline - line - 2):
            return self.bad("a big number")
        self.keep_text(line + 1, newline - line - 2)
        input.start += newline + 1 - line
        return ITEM_READ

    cdef ItemStep read_long_line(self) noexcept nogil:
        """More of a line of which the buffer held the beginning only."""
        cdef Input *input = self.bytes_in
        cdef const uint8_t *line = input.data + input.start
        cdef size_t have = input.end - input.start
        cdef const uint8_t *newline = <const uint8_t *>memchr(line, c'\n', have)
        if newline == NULL:
            self.line_last = line[have - 1]
            input.start = input.end
            return ITEM_NEED_DATA
        if ((newline - 1)[0] if newline != line else self.line_last) != 13:
            return self.bad("a line that ends in CRLF")
        self.in_line = False
        input.start += newline + 1 - line
        return ITEM_READ

    cdef ItemStep read_header(self) noexcept nogil:
        """A short line: a number, a length, a bool, a null."""
        cdef Input *input = self.bytes_in
        cdef const uint8_t *line = input.data + input.start
        cdef size_t have = min(input.end - input.start, <size_t>HEADER_BYTES_MOST)
        cdef const uint8_t *newline = <const uint8_t *>memchr(line, c'\n', have)
        cdef const uint8_t *end
        if newline == NULL:
            return ITEM_NEED_DATA if have < HEADER_BYTES_MOST else self.bad("the type of a reply")
        if newline - line < 2 or (newline - 1)[0] != 13:
            return self.bad("a line that ends in CRLF")
        end = newline - 1
        if self.kind == c':':
            if line[1] == c'-' or line[1] == c'+':
                line += 1
            if line + 1 == end or past_digits(line + 1, end) != end:
                return self.bad("an integer")
            input.start = newline + 1 - input.data
            return ITEM_READ
        if self.kind == c'_':
            if line + 1 != end:
                return self.bad("CRLF behind a null")
            input.start = newline + 1 - input.data
            return ITEM_READ
        if self.kind == c'#':
            if end - line != 2 or (line[1] != c't' and line[1] != c'f'):
                return self.bad("t or f")
            input.start = newline + 1 - input.data
            return ITEM_READ
        if memchr(b"$*%~=!|", self.kind, 7) == NULL:
            return self.bad("the type of a reply")
        if not parse_decimal(line + 1, end, &self.number) or self.number > REPLY_SIZE_MOST \
                or self.number < (-1 if self.kind == c'$' or self.kind == c'*' else 0):
            return self.bad("a length")
        input.start = newline + 1 - input.data
        if self.number == -1:
            self.kind = c'_'
            return ITEM_READ
        if self.kind == c'$' or self.kind == c'=' or self.kind == c'!':
            if self.kind == c'!':
                self.text_most = ERROR_TEXT_BYTES
            elif self.stage == TX_GET or self.stage == TX_BEFORE:
                self.text_most = POSITION_BYTES_MOST
            self.body_left = <uint64_t>self.number + 2
            return self.read_body()
        return ITEM_READ

    cdef ItemStep read_body(self) noexcept nogil:
        """As much of a bulk's body as is here, and the CRLF behind it."""
        cdef Input *input = self.bytes_in
        cdef uint64_t n = min(<uint64_t>(input.end - input.start), self.body_left - 2)
        self.keep_text(input.data + input.start, n)
        input.start += n
        self.body_left -= n
        if self.body_left > 2 or input.end - input.start < 2:
            return ITEM_NEED_DATA
        if input.data[input.start] != 13 or input.data[input.start + 1] != 10:
            return self.bad("CRLF behind a bulk")
        input.start += 2
        self.body_left = 0
        return ITEM_READ
