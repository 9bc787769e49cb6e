# Which batches of a connection go with a record, and how far commands may be sent.
#
#     … the batch's commands …  GET <key>  SET <key> <record> XX
#
# in one connection's order. It is for targets where the position cannot ride in a batch's transaction
# (EXEC on a cluster's node refuses keys of two slots), and costs a target less: a transaction queues
# each command before it runs it, and answers it twice.
#
# Theory. A record says three places of the stream, `since` <= `position` <= `begun`:
#
# - up to `since` every command has run and was answered; what failed is named, or dirty;
# - up to `position` every command has run, and it is not known here which of them failed;
# - up to `begun` a command may have run;
# - behind `begun` none was sent.
#
# The first three are true because a batch's record comes behind its commands, in the order of one
# connection, and because `since` is moved by what comes behind the answers. The last one is true
# because of this rule: *a command is sent only once the target has answered that a record stands
# there whose `begun` lies behind it.* So `begun` is moved ahead in good time: each record goes some
# way further than its own batch, and when its answer is there, the next batch is covered by it. Where
# it is not (the first batch, a long one) the batch goes as a transaction, which moves `begun` too.
# A record before each batch, in the same breath as its commands, would not do: the target may refuse
# that SET (out of memory, say) and take an INCR right behind it, because a DEL between them has made
# room. Then nothing tells that the INCR was ever sent, and it is doubled.
#
# What goes on from a record (this engine behind a lost link, or the next one) applies what is behind
# `position`, and reads each key again that is named up to `begun` (`Doubt.BEGUN_BEFORE`): what was
# applied twice, or on top of something that failed, is put right by that. Commands for which reading
# keys again is no remedy (FLUSHALL, scripts, PUBLISH) never go in this form, and neither
# does what was in a transaction of the source's: they go as a transaction with the position, on any
# target that is no cluster. SELECT does not either: where it is refused (BUSY, say) and the next
# command is not, that one would run in another database. So a record's commands all run in its own;
# to a cluster's node one of another database is a transaction for itself (`ext/apply.pxi`).
#
# - *A cut link.* The target has run any number of the commands, and perhaps the record. Found there
#   again: the batch's own record, so that all has run, and what failed is not known; or the one
#   before it, so that any of it may have run. The dial ends the old connection at the target before
#   it looks, so that nothing arrives behind the look.
# - *A command fails.* Answers come in order, so it is known which one. What failed for good is dirty,
#   as in a transaction. What failed for a reason that passes (OOM, MISCONF, READONLY, LOADING, BUSY)
#   is applied once more, in order, in a transaction, when the target takes it: and since a command
#   behind it may have run on the same key meanwhile, each of its keys is read again.
# - *The record's SET fails.* Then the one before it stands, whose `begun` covers all of this.
# - *The target goes back* to an older copy of its data. Its copy is some earlier moment of this one
#   order of commands, so that the record in it is true of it. On the same connection (it was a
#   replica for a moment, or was emptied) GET shows another record than the one that was left there:
#   then everything behind is not trusted. XX sets no record where there is none, so that an emptied
#   target stays without one.
# - *Several under way.* Each record's `since` reaches back to the last answer that was seen when it
#   was sent. A batch that fails for a passing reason, with others behind it applied, has its keys
#   read again.
# - *The source fails over* while no engine follows. What was sent and is not covered by `position`
#   may be part of a history that the new primary does not have. So where the source goes on under
#   another replication id and `begun` stands there, everything is copied again. An engine that lives
#   takes `begun` away before it gives up its connection (`Applier.leave`), once all is answered.
# - *Another engine.* There is no WATCH, so that an engine that was replaced is fenced off by name: a
#   claim writes the new name, then ends the connections of all engines before it, and whoever dials
#   names its connection first and looks at the claim then, before it sends anything. So what the old
#   engine has under way may arrive between the new claim and its end, but never behind it: the record
#   that is found behind that tells of it. Where the target's user may not name, list and end
#   connections there is no such form, and everything goes in transactions; and an engine that finds
#   `begun` there, and may not end connections, refuses to go on (`transfer.target_claim`).
#
# *A cluster's node* takes no transaction of keys in two slots, so that a batch with its position has
# no form but this one there (`only`). These things hold then:
#
# - Where a batch is not covered by `begun`, a record of the same position goes first, alone, whose
#   `begun` is further, and its answer is waited for.
# - What went as a transaction because reading its keys again is no remedy goes alone, and so does not
#   lie between others that are applied twice. Where it is in doubt what that changed, every key is
#   compared before the cut-over. FLUSHALL is never sent: the lane's keys are removed one by one. What
#   was published may be published twice.
# - The names of keys that became dirty are on the target before the batch whose record moves past
#   what made them so: they go with a record of the same position, whose answer is waited for. A
#   value that was read again goes behind the batch's commands, in front of its record: what is left
#   of that where the record is not set is put right by its name, which stands until its answer came.
# - A transaction of the source's is applied command by command.
# - A command that is answered with where its slot is (MOVED, ASK, TRYAGAIN) did not run, and those
#   behind it did. Its keys are dirty until they can be stored.
#
# The same connection goes back and forth between both forms. A record leaves no WATCH, and breaks one
# that stands, so that the next transaction has to look at the position anew, alone. So a batch that
# has to be a transaction is followed by others, until sixteen in a row have no need of it.

# Commands of which a second run, or none, is not made good by reading the keys again that they name.
cdef uint32_t NEEDS_TRANSACTION = (
    FLAG_FLUSHES | FLAG_KEYLESS | FLAG_MODULE | FLAG_PAYLOAD | FLAG_PUBLISHES | FLAG_READS_UNNAMED
    | FLAG_SCRIPT | FLAG_SWAPS | FLAG_UNKNOWN | FLAG_WRITES_UNNAMED)

cdef enum:
    # So many batches in a row have no need of a transaction before one goes without.
    ALIKE_LEAST = 16
    # How far `begun` goes ahead at the least, in bytes of the stream. What lies between the position
    # and it, and was written before the next engine came, is read again by that one.
    BEGUN_AHEAD_BYTES = 256 << 10


@cython.final
cdef class RecordForm:
    """Which batches go with a record in place of a transaction, and how far their records reach.

    Args:
        db: the position's database.
        only: nothing goes in another form: the target is a cluster's node.

    Attributes:
        allowed: whether any may, over this connection.
        watched: whether the WATCH stands that a transaction needs: a record's SET breaks it.
        unresolved: whether something was not simply applied, and nothing has come of that yet.
        asked: up to where the record goes that was sent last.
        records: how many batches have gone with one.
    """
    cdef int db
    cdef readonly bint only
    cdef readonly bint allowed
    cdef public bint watched
    cdef public bint unresolved
    cdef readonly uint64_t asked
    cdef readonly uint64_t records
    cdef uint64_t alike
    cdef uint64_t begun                # up to here the target has answered that commands may be sent
    cdef uint64_t last_end             # where the last batch ended, and how long it was
    cdef uint64_t last_size

    def __cinit__(self, int db=0, *, bint only=False):
        self.db = db
        self.only = only
        self.watched = True

    def begin(self, bint allowed):
        """A connection was made: nothing has been answered over it. What was asked for before it
        may have been taken as far, and no record goes back behind that."""
        self.allowed = allowed
        self.alike = self.begun = self.last_end = self.last_size = 0

    def takes(self, CommandBatch batch not None):
        """Whether the next batch, this one, may go with a record."""
        return self.may_take(batch)

    cdef bint may_take(self, CommandBatch batch) noexcept nogil:
        if not self.allowed:
            return False
        if self.only:
            return (batch.packed.raw.file == NULL and batch.packed.rewritten.file == NULL
                    and batch.end_offset <= self.begun)
        if (batch.all_flags() & NEEDS_TRANSACTION or not batch.all_alone(self.db)
                or batch.packed.raw.file != NULL or batch.packed.rewritten.file != NULL):
            self.alike = 0
            return False
        self.alike += 1
        return self.alike > ALIKE_LEAST and batch.end_offset <= self.begun

    def covers(self, uint64_t offset):
        """Whether the target has answered that commands up to there may be sent."""
        return offset <= self.begun

    def ahead(self, bytes position not None, uint64_t offset):
        """`position`, which stands, with commands allowed up to `offset` and further."""
        head, _, before = position.partition(b" begun ")
        self.asked = max(self.asked + 1, offset + BEGUN_AHEAD_BYTES, int(before or 0) + 1)
        self.last_size = 0
        return b"v3%b begun %d" % (head[2:], self.asked)

    @property
    def room(self):
        """Whether a batch as long as the last one may be sent behind others."""
        return self.has_room()

    cdef inline bint has_room(self) noexcept nogil:
        return (not self.allowed or (self.alike <= ALIKE_LEAST and not self.only)
                or self.last_end + self.last_size <= self.begun)

    def value(self, CommandBatch batch not None, bytes position not None, uint64_t under_way):
        """`position`, behind `batch`, with how far commands may be sent from then on.

        Args:
            under_way: bytes of batches that are unanswered.
        """
        cdef uint64_t size = batch.end_offset - batch.start_offset
        cdef uint64_t begun = batch.end_offset + BEGUN_AHEAD_BYTES + 4 * (size + under_way)
        # No two are alike: which of two batches was applied is told by its record.
        self.asked = max(self.asked + 1, begun)
        self.last_end = batch.end_offset
        self.last_size = size
        head, _, before = position.partition(b" begun ")
        if before:
            self.asked = max(self.asked, int(before))
        return b"v3%b begun %d" % (head[2:], self.asked)

    def answered(self, uint64_t begun):
        """The target has a record that goes up to `begun`; 0: one that does not say."""
        self.begun = begun
