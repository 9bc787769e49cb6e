# The pump: commands of a stream out as transactions, the target's answers in, and the position.
#
#   StreamReader ──CommandBatch──▶ TransactionEncoder ──Transaction──▶ (the target's socket)
#   (the target's socket) ──▶ TransactionReader ──TransactionResult──▶ the position
#
# A round of following costs the same however little it carries, so what is said of a batch of which
# nothing has to be known is said here, without an object of Python's for it: `next` looks at the
# kinds of its commands, and encodes it with the position; `received` sees that the answer to the
# oldest transaction under way says that all of it ran, and moves the position on. Whatever is out
# of the ordinary surfaces: `next` gives the batch itself, `pop` what an answer was given to.
#
# Invariant: `offset` moves on only past a transaction that is the oldest one under way, of which
# every command ran, and behind which the target showed the very position that the transaction has
# set (or, before a record of its own, the one that was left there); and only while none before it
# has surfaced. What surfaces does so in the order of sending.
#
# What may change between two commands of a stream is not copied: whether the stream can be trusted
# (`engine.transfer.stream_trust.Trust`), and what waits in front of the reader (the spool), are
# asked for their plain attributes where they matter.

@cython.final
cdef class Sent:
    """A transaction under way, and what became of it.

    Attributes:
        batch: what it applies.
        transaction: its bytes, and which command sits where.
        position: what it sets the target's position to; `before`: what it expects to find there.
        shown: what GET shows if all is well: `position`, and before a record `before`.
        begun: up to where commands may be sent once it is applied (`RecordForm`); 0: nowhere.
        replid: the stream's name when it was sent; empty where the pump follows none.
        outcome: the target's answer (`TransactionResult`), or why there is none (an exception);
            None until then.
        applied: all of it ran, and the target's position is `position`.
    """
    cdef readonly CommandBatch batch
    cdef readonly Transaction transaction
    cdef readonly bytes position
    cdef readonly object before
    cdef readonly object shown
    cdef readonly uint64_t begun
    cdef readonly str replid
    cdef readonly object outcome
    cdef readonly bint applied
    cdef size_t nbytes
    cdef Sent behind                   # the one that was sent next


@cython.final
cdef class Pump:
    """Transactions under way over one connection, oldest first. A reader of bytes for it: read into
    `input`, then call `received`.

    Args:
        encoder: makes the transactions.
        found: the target's position.
        position_db: the database that the connection is in.
        form: which batches go with a record in place of a transaction.

    Attributes:
        found: the position that the target has by the last answer that was as it should be.
        under_way: how many transactions are not answered; under_way_bytes: of their batches.
        surfacing: every answer surfaces. So it is before `follow`; behind it this is for the caller
            to say.
        offset, db, in_multi, replid: up to where the target has the stream that is followed.
        commands: how many commands of the stream were passed since `follow`.
        named_keys: the keys of what is on the target are noted there, if it is not None: once it is
            applied, and before `offset` is behind it.
    """
    cdef TransactionEncoder encoder
    cdef TransactionReader replies
    cdef RecordForm form
    cdef int position_db
    cdef public object found
    cdef Sent oldest
    cdef Sent newest
    cdef readonly size_t under_way
    cdef readonly uint64_t under_way_bytes
    cdef public bint surfacing
    cdef object answers                # Sent that have surfaced, in order
    cdef object others                 # results of transactions that were not sent by the pump

    # What is followed.
    cdef StreamReader stream
    cdef object trust
    cdef object spool
    cdef object noted
    cdef ExtendedNames names
    cdef frozenset databases
    cdef uint64_t databases_low        # a bit each for those below 64
    cdef bint several
    cdef size_t most
    cdef uint64_t bytes_most
    cdef uint64_t bytes_limit
    cdef uint32_t doubtful
    cdef uint32_t in_order
    cdef bint alone                    # the newest has to be applied before another is sent
    cdef bytes own_streams
    cdef bytes head
    cdef bytes tail
    cdef readonly str replid
    cdef bytes head_of_stream          # `head` and the stream's name, which is `named`
    cdef str named
    cdef readonly uint64_t offset
    cdef readonly int db
    cdef readonly bint in_multi
    cdef readonly uint64_t commands
    cdef public NamedKeys named_keys
    cdef char text[POSITION_BYTES_MOST]

    def __cinit__(self, TransactionEncoder encoder not None, object found, int position_db=0,
                  RecordForm form=None):
        self.encoder = encoder
        self.form = RecordForm(position_db) if form is None else form
        self.replies = TransactionReader()
        self.found = found
        self.position_db = position_db
        self.surfacing = True
        self.answers = collections.deque()
        self.others = collections.deque()
        self.replid = ""

    @property
    def input(self):
        """Where the target's next bytes go."""
        return self.replies.input

    # --- Transactions ---

    def expect(self, Transaction transaction not None):
        """This one is sent, by hand: its answer is for `other`."""
        self.replies.expect(transaction.queued, transaction.record)

    def push(self, CommandBatch batch not None, Transaction transaction not None,
             bytes position not None):
        """`transaction` is under way, whose answer is expected: it applies `batch`, and sets the
        position to `position`."""
        cdef Sent sent = Sent.__new__(Sent)
        sent.batch = batch
        sent.transaction = transaction
        sent.position = position
        sent.replid = self.replid
        sent.nbytes = batch.held_bytes()
        if self.newest is None:
            sent.before = self.found
            self.oldest = sent
        else:
            sent.before = self.newest.position
            self.newest.behind = sent
        sent.shown = sent.before if transaction.record else position
        sent.begun = self.form.asked if self.form.allowed else 0
        self.newest = sent
        self.under_way += 1
        self.under_way_bytes += sent.nbytes

    def received(self, size_t n):
        """Take in `n` bytes of the target's that were read into `input`; returns how many
        transactions have surfaced, and answers to others have come.

        Raises `ProtocolError` for bytes that are no reply to a transaction.
        """
        cdef TransactionResult result
        self.replies.received(n)
        if self.replies.done:
            for result in self.replies.take():
                self.take_answer(result)
        return len(self.answers) + len(self.others)

    cdef int take_answer(self, TransactionResult result) except -1:
        cdef Sent sent = self.oldest
        if sent is None:
            self.others.append(result)
            return 0
        self.drop_oldest()
        sent.outcome = result
        sent.applied = sent.shown is not None and result.stands(sent.shown)
        if sent.applied:
            self.found = sent.position
            self.form.begun = sent.begun
        else:
            self.form.unresolved = True
        if (sent.applied and not self.surfacing and not self.answers
                and not self.is_doubtful_now(sent)):
            self.advance(sent)
        else:
            self.answers.append(sent)
        return 0

    cdef void drop_oldest(self):
        cdef Sent sent = self.oldest
        self.oldest = sent.behind
        sent.behind = None
        if self.oldest is None:
            self.newest = None
        self.under_way -= 1
        self.under_way_bytes -= sent.nbytes

    cdef bint is_doubtful_now(self, Sent sent) except -1:
        """Whether keys of what was applied may have to be read again."""
        cdef object trust = self.trust
        if trust.every_key:
            return True
        return sent.batch.all_flags() & FLAG_MEMBER_COUNT and trust.field_ttls

    cdef int advance(self, Sent sent) except -1:
        if self.named_keys is not None:
            self.named_keys.note(sent.batch)
        self.replid = sent.replid
        self.offset = sent.batch.end_offset
        self.db = sent.batch.db_after
        self.in_multi = sent.batch.in_multi_after
        self.commands += sent.batch.stream_commands
        return 0

    def passed(self, Sent sent not None):
        """What has surfaced is on the target all the same: the position is behind it."""
        self.advance(sent)

    def pop(self):
        """The oldest that has surfaced and was not taken yet; None: there is none."""
        return self.answers.popleft() if self.answers else None

    def other(self):
        """The oldest answer to a transaction that was not sent by the pump, and was not taken yet;
        None: there is none."""
        return self.others.popleft() if self.others else None

    @property
    def surfaced(self):
        """How many `pop` has to give."""
        return len(self.answers)

    def lost(self, object error):
        """The link is gone: all that is under way surfaces, with `error` for its outcome."""
        cdef Sent sent
        self.form.unresolved = True
        self.others.clear()
        while self.oldest is not None:
            sent = self.oldest
            self.drop_oldest()
            sent.outcome = error
            self.answers.append(sent)

    def forget(self):
        """Nothing is waited for any more."""
        while self.oldest is not None:
            self.drop_oldest()
        self.answers.clear()
        self.surfacing = True

    # --- A stream ---

    def follow(
        self, StreamReader stream not None, object trust, object spool, *, object noted,
        ExtendedNames names not None, bytes head not None, bytes tail not None,
        str replid not None, uint64_t offset, int db, bint in_multi, frozenset databases not None,
        uint32_t doubtful, uint32_t in_order, uint64_t bytes_limit, bytes own_streams not None,
        bint several=False, size_t most=1, uint64_t bytes_most=0,
    ):
        """From here on `next` takes from `stream`, and what is applied plainly is passed over.

        Args:
            trust: its attributes `kinds`, `own_streams`, `every_key` and `field_ttls` are asked of
                each batch; see `engine.transfer.stream_trust`.
            spool: its `size` is how many bytes wait in front of `stream`.
            noted: called with each batch that is going to the target, if `names` are known and it
                may put an extended TTL there.
            head, tail: what stands in a position's value before the stream's name, and behind the
                two places.
            replid, offset, db, in_multi: up to where the target has the stream.
            databases: those that the target is known to have.
            doubtful: kinds of commands that are looked at if their arguments say so as well.
            in_order: kinds of commands that are applied before another transaction is sent.
            bytes_limit: a larger batch is looked at.
            own_streams: how names of streams begin that a server writes for itself.
            several, most, bytes_most: whether several transactions may be under way; so many, and
                so many bytes of their batches.
        """
        if len(head) + len(tail) + len(replid) > POSITION_BYTES_MOST // 2:
            raise ValueError(f"a position has at most {POSITION_BYTES_MOST // 2} bytes of words")
        self.stream = stream
        self.trust = trust
        self.spool = spool
        self.noted = noted
        self.names = names
        self.head = head
        self.tail = tail
        self.replid = replid
        self.head_of_stream = None
        self.offset = offset
        self.db = db
        self.in_multi = in_multi
        self.databases = databases
        self.databases_low = 0
        for number in databases:
            if number < 64:
                self.databases_low |= <uint64_t>1 << <int>number
        self.doubtful = doubtful | FLAG_PAYLOAD
        self.in_order = in_order
        self.bytes_limit = bytes_limit
        self.own_streams = own_streams
        self.several = several
        self.most = most
        self.bytes_most = bytes_most
        self.alone = False
        self.commands = 0
        self.surfacing = False

    @property
    def room(self):
        """Whether another transaction may be sent now."""
        return self.has_room()

    cdef inline bint has_room(self) noexcept:
        if not self.under_way:
            return True
        return (self.several and not self.alone and self.under_way < self.most
                and self.under_way_bytes < self.bytes_most and self.form.has_room())

    def next(self, str replid not None):
        """The stream's next transaction, which is to be written to the target's socket at once.

        A `CommandBatch` instead, where one has to be looked at: it was not sent. None: nothing is
        at hand, or there is no room. `replid`: the stream's name now.
        """
        cdef CommandBatch batch
        cdef Transaction transaction
        cdef bytes position
        cdef bint ordered, record
        if not self.has_room():
            return None
        batch = self.stream.next(not self.spool.size)
        if batch is None:
            return None
        ordered = self.several and batch.all_flags() & self.in_order
        if (ordered and self.under_way) or not self.is_plain(batch):
            return batch
        record = self.form.may_take(batch)
        if not record and (self.form.only or not self.form.watched):
            # The record has to be moved ahead first; the next transaction has to look at the
            # position first.
            return batch
        if self.names.known and self.may_extend(batch):
            self.noted(batch)
        position = self.value_behind(batch, replid)
        if self.form.allowed:
            position = self.form.value(batch, position, self.under_way_bytes)
        if record:
            self.form.watched = False
            self.form.records += 1
            transaction = self.encoder.encode_record(batch, position)
        else:
            # Where those before it find the position gone, this one brings none back.
            transaction = self.encoder.encode(
                batch, position, db=self.position_db, over=self.several and self.under_way > 0)
        self.replies.expect(transaction.queued, record)
        self.push(batch, transaction, position)
        self.newest.replid = replid
        self.alone = ordered
        return transaction

    cdef bint is_plain(self, CommandBatch batch) except -1:
        """Whether nothing has to be known of it."""
        cdef uint32_t flags = batch.all_flags()
        cdef object trust = self.trust
        cdef size_t i
        if flags & (<uint32_t>trust.kinds | FLAG_SWAPS | FLAG_ACROSS) or batch.held_bytes() > self.bytes_limit:
            return False
        # Of the target's keys those of the lane's slots, and of its rules, alone are to go.
        if batch.filter is not None and flags & FLAG_FLUSHES:
            return False
        # It is sent in pieces, no faster than the target takes them.
        if batch.packed.raw.file != NULL or batch.packed.rewritten.file != NULL:
            return False
        if flags & self.doubtful:
            for i in range(batch.packed.count):
                if is_doubtful(&batch.packed, &batch.packed.commands[i], self.doubtful):
                    return False
        if not self.knows_databases(batch):
            return False
        return not (trust.own_streams and batch.naming(self.own_streams))

    cdef bint knows_databases(self, CommandBatch batch) except -1:
        cdef size_t i
        cdef int db = -1
        for i in range(batch.packed.count):
            if batch.packed.commands[i].db == db:
                continue
            db = batch.packed.commands[i].db
            if db < 64:
                if not self.databases_low >> db & 1:
                    return False
            elif db not in self.databases:
                return False
        return True

    cdef inline bint may_extend(self, CommandBatch batch) noexcept:
        return (batch.packed.rewritten.size
                or batch.all_flags() & (FLAG_MOVES | FLAG_SWAPS | FLAG_UNKNOWN))

    cdef bytes value_behind(self, CommandBatch batch, str replid):
        """The position behind `batch`, as `TargetPosition.encode_span` writes it: every answer up
        to `offset` was seen."""
        cdef char *out = self.text
        if self.head_of_stream is None or replid is not self.named:
            self.head_of_stream = self.head + replid.encode() + b" "
            self.named = replid
            if len(self.head_of_stream) + len(self.tail) > POSITION_BYTES_MOST // 2:
                raise ValueError("the stream's name is too long")
        out = put_bytes(out, self.head_of_stream)
        out = put_place(out, batch.end_offset, batch.db_after, batch.in_multi_after)
        out[0] = c' '
        out = put_place(out + 1, self.offset, self.db, self.in_multi)
        out = put_bytes(out, self.tail)
        return PyBytes_FromStringAndSize(self.text, out - self.text)


cdef inline char *put_bytes(char *out, bytes value):
    cdef size_t n = PyBytes_GET_SIZE(value)
    memcpy(out, PyBytes_AS_STRING(value), n)
    return out + n


cdef inline char *put_place(char *out, uint64_t offset, int db, bint in_multi) noexcept:
    """`<offset> <database> <0|1>`."""
    cdef uint8_t *p = put_decimal(<uint8_t *>out, offset)
    p[0] = c' '
    p = put_decimal(p + 1, db)
    p[0] = c' '
    p[1] = c'1' if in_multi else c'0'
    return <char *>p + 2
