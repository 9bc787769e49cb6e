# Batches of commands out as transactions, and the reading of what the target answers.
#
#   MULTI
#   [SELECT d] command …      those of the batch, then the extras (repairs at the batch's end)
#   [SELECT p] SET key value  the position, in the database that it is kept in; with XX behind
#                             transactions that are unanswered
#   EXEC
#   WATCH key                 for the next transaction: if another client moves the position in
#   GET key                   between, our next EXEC is nil
#
# The position moves together with the data, or neither does. FLUSHALL and FLUSHDB need nothing:
# the position is set behind them. SWAPDB with the position's database would leave the key behind
# in the other one, so that it is deleted there.
#
# Or, where the position is a record (ext/position_records.pxi), without a transaction:
#
#   command …                 those of the batch, each for itself, in the record's database
#   GET key                   what the record was before
#   SET key value XX          the record; not where there is none any more
#
# There a command of another database is a transaction for itself, for where a SELECT of its own is
# refused (BUSY, say) and the command is not, it would run in the database before it:
#
#   UNWATCH                   once: the record's SET has changed what was watched
#   MULTI
#   SELECT d
#   command
#   SELECT p
#   EXEC
#
# What a batch has across slots (`CommandBatch.across`) is left out in either form.
#
# A slot is the place of a command between MULTI and EXEC, counted from 0, ours included; with a
# record, the place of any command before GET. One of another database has four, whichever of them is
# refused: it did not run.
#
# A target spends as much on a command's turn (queueing it, calling it, its two replies) as on a short
# SET itself. So SETs without options that follow each other may go as one MSET, which stores the same
# in the same order: a slot then stands for several commands.

cdef enum:
    # Slots of a transaction that hold no command of the batch.
    SLOT_OURS = -0x7fffffff
    # `*4`, `$5`, a command's name, and so on, of all that a transaction adds once.
    TRANSACTION_OVERHEAD = 512
    # A SELECT, at the most; a DEL beside its key.
    SELECT_BYTES = 48
    DELETE_BYTES = 48
    # What stands around a command of another database, in front of a record.
    APART_BYTES = 2 * SELECT_BYTES + 32
    APART_SLOTS = 5
    # The longest value of a position; GET's reply is kept up to that.
    POSITION_BYTES_MOST = 4096
    # Of an error's text, how much is kept.
    ERROR_TEXT_BYTES = 1024
    # SETs in one MSET, and bytes of a SET that is worth it.
    MERGED_MOST = 64
    MERGED_BYTES_MOST = 1024
    # `*3`, `$3` and the name.
    SET_HEADER_BYTES = 13
    # Of a batch in a file, bytes side by side that are worth reading from there when they are sent.
    PART_BYTES = 64 << 10

cdef struct TransactionPart:
    # Bytes of a file: before which byte of `data` they belong, and where they lie.
    size_t before
    FileBytes *file
    size_t start
    size_t size


cdef inline uint8_t *put_select(uint8_t *out, int db) noexcept nogil:
    out = put_literal(out, "*2\r\n$6\r\nSELECT\r\n", 16)
    return put_number_bulk(out, db)


@cython.final
cdef class Transaction:
    """One encoded transaction. A read-only buffer; freed when the transport lets go of it.

    One of a batch that lies in a file (`in_file`) is no buffer: it is read `piece` by piece.

    Attributes:
        in_file: whether some of its bytes lie in the batch's file.
        queued: commands between MULTI and EXEC, ours included: what `TransactionReader.expect`
            is to be told.
        body, ending: views of the bytes before EXEC, which may be sent before it is known whether
            EXEC is to follow, and of the others.
        record: whether these are commands with a record behind them (`encode_record`), and
            nothing holds them together.
    """
    cdef uint8_t *data
    cdef size_t size
    cdef int32_t *slots
    cdef readonly bint record          # the commands and a record, no transaction
    cdef uint8_t *merged               # how many commands beside that one; NULL: none anywhere
    cdef readonly size_t queued
    cdef size_t body_size
    cdef TransactionPart *parts
    cdef size_t part_count
    cdef size_t part_bytes
    cdef bint unwatched                # UNWATCH is among them
    cdef CommandBatch batch            # it has the files

    def __dealloc__(self):
        PyMem_RawFree(self.parts)
        PyMem_RawFree(self.data)
        PyMem_RawFree(self.slots)
        PyMem_RawFree(self.merged)

    def __len__(self):
        return self.size + self.part_bytes

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.part_count:
            raise BufferError("a transaction that lies in a file is read piece by piece")
        PyBuffer_FillInfo(view, self, self.data, self.size, 1, flags)

    @property
    def in_file(self):
        return self.part_count > 0

    def piece(self, size_t at, size_t most):
        """Up to `most` of its bytes from byte `at` on, as they are sent; empty at its end. It reads
        the file: on a thread. OSError where that fails."""
        cdef size_t i, before = 0, memory = 0, n
        cdef const TransactionPart *part
        cdef int error
        cdef uint8_t *into
        # `memory` bytes of data and `before` bytes in all lie before the part that is looked at.
        for i in range(self.part_count):
            part = &self.parts[i]
            if at < before + (part.before - memory):
                return self.in_memory(memory + (at - before), part.before, most)
            before += part.before - memory
            memory = part.before
            if at < before + part.size:
                n = min(most, part.size - (at - before))
                piece = PyBytes_FromStringAndSize(NULL, n)
                into = <uint8_t *>PyBytes_AS_STRING(piece)
                with nogil:
                    error = file_read(part.file, part.start + (at - before), into, n)
                if error:
                    raise OSError(error, os.strerror(error))
                return piece
            before += part.size
        if at - before >= self.size - memory:
            return b""
        return self.in_memory(memory + (at - before), self.size, most)

    cdef bytes in_memory(self, size_t first, size_t last, size_t most):
        return PyBytes_FromStringAndSize(
            <const char *>self.data + first, min(last - first, most))

    cdef bint add_part(self, size_t before, FileBytes *file, size_t start, size_t size) noexcept nogil:
        """Have bytes of a file lie before byte `before` of `data`. False: no memory."""
        cdef size_t capacity = self.part_count
        cdef TransactionPart *grown
        if not capacity & (capacity - 1):
            capacity = 2 * capacity if capacity else 1
            grown = <TransactionPart *>PyMem_RawRealloc(
                self.parts, capacity * sizeof(TransactionPart))
            if grown == NULL:
                return False
            self.parts = grown
        self.parts[self.part_count].before = before
        self.parts[self.part_count].file = file
        self.parts[self.part_count].start = start
        self.parts[self.part_count].size = size
        self.part_count += 1
        self.part_bytes += size
        return True

    @property
    def body(self):
        return memoryview(self)[:self.body_size]

    @property
    def ending(self):
        return memoryview(self)[self.body_size:]

    def index_of(self, Py_ssize_t slot):
        """Which command sits at `slot`: i >= 0 is command i of the batch, -1 - i is extra i.

        None for what the encoder added itself: SELECT, DEL and the position. IndexError for a
        slot that the transaction has not.
        """
        if slot < 0 or <size_t>slot >= self.queued:
            raise IndexError("no such slot")
        return None if self.slots[slot] == SLOT_OURS else self.slots[slot]

    def merged_at(self, Py_ssize_t slot):
        """How many commands of the batch stand at `slot` as one: those from `index_of` on. 1 where
        a command stands for itself. IndexError for a slot that the transaction has not."""
        if slot < 0 or <size_t>slot >= self.queued:
            raise IndexError("no such slot")
        return 1 if self.merged == NULL else self.merged[slot] + 1


@cython.final
cdef class TransactionEncoder:
    """Turns command batches into transactions that set `position_key` in `position_db`.

    Args:
        databases: how many the target has. A SELECT that it refuses inside EXEC would put what
            follows into another database, so that `encode` raises ValueError before that.
    """
    cdef bytes position_key
    cdef const uint8_t *key            # its bytes, for loops without the GIL
    cdef size_t key_size
    cdef int position_db
    cdef int64_t databases
    cdef uint16_t set_row

    def __cinit__(
        self, bytes position_key not None, int position_db=0, *, int64_t databases=<int64_t>1 << 31
    ):
        if not 0 <= position_db < databases:
            raise ValueError(
                f"position_db must be 0 to {databases - 1}, found {position_db}")
        self.databases = databases
        self.position_key = position_key
        self.key = <const uint8_t *>PyBytes_AS_STRING(position_key)
        self.key_size = PyBytes_GET_SIZE(position_key)
        self.position_db = position_db
        self.set_row = named_row(<const uint8_t *>b"set", 3)

    def encode(
        self, CommandBatch batch not None, bytes position not None, *, int db,
        frozenset skip=frozenset(), extras=(), bint merge=False, bint over=False,
    ):
        """The transaction that applies `batch` and moves the position to `position`.

        Args:
            db: the database that the connection is in. A transaction that is not applied leaves
                it there, and GET then looks there too: let it be the position's own, in which
                every applied transaction ends.
            skip: indices of commands to leave out.
            extras: (database, one encoded command) to run behind the batch's commands.
            merge: short SETs without options that follow each other go as MSET. The target must
                take keys of any slot in one command.
            over: the position is set only where the key holds one: a target that was emptied
                meanwhile has none behind it either.

        Raises ValueError for an extra that is not exactly one command, for a database that the
        target has not, and for a position above 4096 bytes.
        """
        cdef Transaction result = Transaction.__new__(Transaction)
        cdef size_t count = batch.packed.count
        cdef size_t extra_bytes = 0, capacity
        cdef const uint8_t *skipped = NULL
        cdef bytes skip_map = None
        cdef int now = db
        if not 0 <= db < self.databases:
            raise ValueError(f"db must be 0 to {self.databases - 1}, found {db}")
        if len(position) > POSITION_BYTES_MOST:
            raise ValueError(f"a position has at most {POSITION_BYTES_MOST} bytes")
        extras = tuple(extras)
        for extra_db, command in extras:
            extra_bytes += self.check_extra(extra_db, command)
        if skip:
            skip_map = self.map_of(skip, count)
            skipped = <const uint8_t *>PyBytes_AS_STRING(skip_map)
        self.check_databases(batch, skipped)
        capacity = (
            self.commands_size(batch, db) + extra_bytes + len(extras) * SELECT_BYTES
            + self.key_size * 3 + <size_t>len(position) + TRANSACTION_OVERHEAD)
        result.data = <uint8_t *>PyMem_RawMalloc(capacity)
        # A SELECT for each command at the most, a SELECT and a DEL for each SWAPDB; ours.
        result.slots = <int32_t *>PyMem_RawMalloc(
            (4 * count + 2 * <size_t>len(extras) + 4) * sizeof(int32_t))
        if result.data == NULL or result.slots == NULL or count > INT32_MAX:
            raise MemoryError()
        if merge and self.has_set(batch):
            result.merged = <uint8_t *>PyMem_RawCalloc(
                4 * count + 2 * <size_t>len(extras) + 4, sizeof(uint8_t))
            if result.merged == NULL:
                raise MemoryError()
        result.batch = batch
        with nogil:
            result.size = put_literal(result.data, "*1\r\n$5\r\nMULTI\r\n", 15) - result.data
            now = self.put_commands(result, batch, skipped, now)
            batch.let_go()
        if now < 0:
            raise MemoryError()
        for number, (extra_db, command) in enumerate(extras):
            now = self.put_extra(result, extra_db, command, number, now)
        self.put_end(result, position, now, over)
        if result.part_count:
            self.give_back(result)
        else:
            result.batch = None
        return result

    cdef void give_back(self, Transaction to) noexcept:
        """There was room for all commands, and those in a file stay there."""
        cdef uint8_t *data = <uint8_t *>PyMem_RawRealloc(to.data, to.size)
        if data != NULL:
            to.data = data

    def encode_record(
        self, CommandBatch batch not None, bytes position not None, *,
        frozenset skip=frozenset(), extras=(),
    ):
        """The commands of `batch` one by one, and `position` behind them, if there is one still.

        The connection must be in the position's database. `skip` and `extras` as in `encode`.
        Raises ValueError for a database that the target has not, for SWAPDB, for an extra that is
        not exactly one command, and for a position above 4096 bytes.
        """
        cdef Transaction result = Transaction.__new__(Transaction)
        cdef size_t count = batch.packed.count, apart = 0, i
        cdef const uint8_t *skipped = NULL
        cdef bytes skip_map = None
        cdef size_t extra_bytes = 0
        cdef uint8_t *out
        cdef int now
        if len(position) > POSITION_BYTES_MOST:
            raise ValueError(f"a position has at most {POSITION_BYTES_MOST} bytes")
        extras = tuple(extras)
        for extra_db, command in extras:
            extra_bytes += self.check_extra(extra_db, command)
            apart += extra_db != self.position_db
        if skip:
            skip_map = self.map_of(skip, count)
            skipped = <const uint8_t *>PyBytes_AS_STRING(skip_map)
        self.check_databases(batch, skipped)
        for i in range(count):
            if batch.packed.commands[i].across or (skipped != NULL and skipped[i]):
                continue
            apart += batch.packed.commands[i].db != self.position_db
            if stream_name(&batch.packed.commands[i]) == NAME_SWAPDB:
                raise ValueError("a record has no SWAPDB")
        result.record = True
        result.data = <uint8_t *>PyMem_RawMalloc(
            self.commands_size(batch, self.position_db) + extra_bytes + apart * APART_BYTES
            + self.key_size * 2 + <size_t>len(position) + TRANSACTION_OVERHEAD)
        result.slots = <int32_t *>PyMem_RawMalloc(
            (count + <size_t>len(extras) + apart * APART_SLOTS + 1) * sizeof(int32_t))
        if result.data == NULL or result.slots == NULL or count > INT32_MAX:
            raise MemoryError()
        result.batch = batch
        with nogil:
            now = self.put_commands(result, batch, skipped, self.position_db)
            batch.let_go()
        if now < 0:
            raise MemoryError()
        for number, (extra_db, command) in enumerate(extras):
            if extra_db == self.position_db:
                self.put_extra(result, extra_db, command, number, now)
            else:
                self.put_extra_apart(result, extra_db, command, -1 - <int32_t>number)
        out = self.put_key(put_literal(result.data + result.size, "*2\r\n$3\r\nGET\r\n", 13))
        out = self.put_key(put_literal(out, "*4\r\n$3\r\nSET\r\n", 13))
        out = put_bulk(
            out, <const uint8_t *>PyBytes_AS_STRING(position), PyBytes_GET_SIZE(position))
        out = put_literal(out, "$2\r\nXX\r\n", 8)
        result.size = result.body_size = out - result.data
        if result.part_count:
            self.give_back(result)
        else:
            result.batch = None
        return result

    cdef size_t check_extra(self, db, command) except? 0:
        """The bytes of an extra. ValueError and TypeError for what is none."""
        if not isinstance(db, int) or not 0 <= db < self.databases:
            raise ValueError(
                f"an extra's database must be 0 to {self.databases - 1}, found {db!r}")
        if not PyBytes_CheckExact(command):
            raise TypeError(f"an extra's command must be bytes, found {type(command).__name__}")
        check_one_command(command)
        return PyBytes_GET_SIZE(command)

    cdef int check_databases(self, CommandBatch batch, const uint8_t *skipped) except -1:
        cdef int highest = self.highest_database(batch, skipped)
        if highest >= self.databases:
            raise ValueError(
                f"a command runs in database {highest}, and the target has {self.databases}")
        return 0

    cdef bytes map_of(self, frozenset skip, size_t count):
        """A byte for each command: 1 where it is to be left out."""
        cdef object result = PyBytes_FromStringAndSize(NULL, count)
        cdef char *map = PyBytes_AS_STRING(result)
        cdef Py_ssize_t index
        memset(map, 0, count)
        for number in skip:
            index = number
            if index < 0 or <size_t>index >= count:
                raise IndexError(f"no such command to skip: {index}")
            map[index] = 1
        return result

    cdef int highest_database(self, CommandBatch batch, const uint8_t *skipped) noexcept nogil:
        """Of the commands that are not skipped; -1 if there are none."""
        cdef int highest = -1
        cdef size_t i
        for i in range(batch.packed.count):
            if batch.packed.commands[i].db > highest and not (
                    batch.packed.commands[i].across or (skipped != NULL and skipped[i])):
                highest = batch.packed.commands[i].db
        return highest

    cdef size_t commands_size(self, CommandBatch batch, int db) noexcept nogil:
        """Room for the batch's commands and all that may be added to them."""
        cdef size_t size = 0, i
        cdef const StreamCommand *command
        for i in range(batch.packed.count):
            command = &batch.packed.commands[i]
            # What is skipped can only make the changes fewer.
            if command.db != db:
                size += SELECT_BYTES
                db = command.db
            if stream_name(command) == NAME_SWAPDB:
                size += 2 * SELECT_BYTES + DELETE_BYTES + self.key_size
            size += command.size
        return size

    cdef bint has_set(self, CommandBatch batch) noexcept nogil:
        """Whether there is a SET of any kind."""
        cdef size_t i
        for i in range(batch.packed.count):
            if batch.packed.commands[i].row == self.set_row:
                return True
        return False

    cdef inline bint may_merge(
        self, const StreamCommand *command, const uint8_t *bytes
    ) noexcept nogil:
        """Whether it is a short SET without options, by the name that the target knows it by."""
        return (command.row == self.set_row and not command.renamed
                and command.size <= MERGED_BYTES_MOST
                and memcmp(bytes, b"*3\r\n$3\r\n", 8) == 0
                and is_keyword(bytes + 8, 3, "set", 3))

    cdef inline uint8_t *select(
        self, Transaction to, uint8_t *out, int db, int *now
    ) noexcept nogil:
        if db == now[0]:
            return out
        now[0] = db
        to.slots[to.queued] = SLOT_OURS
        to.queued += 1
        return put_select(out, db)

    cdef int put_commands(
        self, Transaction to, CommandBatch batch, const uint8_t *skipped, int now
    ) noexcept nogil:
        """The batch's commands; returns the database that the connection is in then; -1: no memory."""
        cdef const Packed *packed = &batch.packed
        cdef const StreamCommand *command
        cdef const uint8_t *bytes
        cdef const uint8_t *run = NULL        # commands that lie side by side go as one
        cdef size_t run_size = 0, i = 0, several
        cdef uint8_t *out = to.data + to.size
        while i < packed.count:
            command = &packed.commands[i]
            if command.across or (skipped != NULL and skipped[i]):
                i += 1
                continue
            bytes = command_bytes(packed, command)
            if to.record and command.db != self.position_db:
                out = self.put_run(to, out, packed, run, run_size)
                if out == NULL:
                    return -1
                run, run_size = NULL, 0
                out = self.begin_apart(to, out, command.db, <int32_t>i)
                out = self.put_run(to, out, packed, bytes, command.size)
                if out == NULL:
                    return -1
                out = self.end_apart(to, out, <int32_t>i)
                i += 1
                continue
            several = self.mergeable(packed, skipped, i) if to.merged != NULL else 0
            if several > 1:
                out = self.put_run(to, out, packed, run, run_size)
                if out == NULL:
                    return -1
                run, run_size = NULL, 0
                out = self.select(to, out, command.db, &now)
                out = self.put_merged(to, out, packed, i, several)
                i += several
                continue
            if run + run_size != bytes or command.db != now:
                out = self.put_run(to, out, packed, run, run_size)
                if out == NULL:
                    return -1
                run, run_size = bytes, 0
                out = self.select(to, out, command.db, &now)
            run_size += command.size
            to.slots[to.queued] = <int32_t>i
            to.queued += 1
            if stream_name(command) == NAME_SWAPDB:
                out = self.put_run(to, out, packed, run, run_size)
                if out == NULL:
                    return -1
                run_size = 0
                out = self.put_swapped(to, out, bytes, &now)
            i += 1
        out = self.put_run(to, out, packed, run, run_size)
        if out == NULL:
            return -1
        to.size = out - to.data
        return now

    cdef inline uint8_t *begin_apart(
        self, Transaction to, uint8_t *out, int db, int32_t place
    ) noexcept nogil:
        """Before the command at `place`, of another database than the record's."""
        if not to.unwatched:
            to.unwatched = True
            out = put_literal(out, "*1\r\n$7\r\nUNWATCH\r\n", 17)
            to.slots[to.queued] = SLOT_OURS
            to.queued += 1
        out = put_select(put_literal(out, "*1\r\n$5\r\nMULTI\r\n", 15), db)
        to.slots[to.queued] = SLOT_OURS
        to.slots[to.queued + 1] = to.slots[to.queued + 2] = place
        to.queued += 3
        return out

    cdef inline uint8_t *end_apart(
        self, Transaction to, uint8_t *out, int32_t place
    ) noexcept nogil:
        to.slots[to.queued] = to.slots[to.queued + 1] = place
        to.queued += 2
        return put_literal(put_select(out, self.position_db), "*1\r\n$4\r\nEXEC\r\n", 14)

    cdef void put_extra_apart(self, Transaction to, int db, bytes command, int32_t place):
        cdef uint8_t *out = self.begin_apart(to, to.data + to.size, db, place)
        cdef size_t n = PyBytes_GET_SIZE(command)
        memcpy(out, PyBytes_AS_STRING(command), n)
        to.size = self.end_apart(to, out + n, place) - to.data

    cdef inline uint8_t *put_run(
        self, Transaction to, uint8_t *out, const Packed *packed, const uint8_t *run, size_t size
    ) noexcept nogil:
        """Commands that lie side by side; many bytes in a file are left there. NULL: no memory."""
        cdef const RawBytes *lie = &packed.raw
        if size < PART_BYTES:
            if size:
                memcpy(out, run, size)
            return out + size
        if not lie.data <= run < lie.data + lie.size:
            lie = &packed.rewritten
        if lie.file == NULL:
            memcpy(out, run, size)
            return out + size
        return out if to.add_part(out - to.data, lie.file, run - lie.data, size) else NULL

    cdef size_t mergeable(
        self, const Packed *packed, const uint8_t *skipped, size_t first
    ) noexcept nogil:
        """How many SETs from there on may go as one command."""
        cdef size_t i = first
        cdef const StreamCommand *command
        while i < packed.count and i - first < MERGED_MOST:
            command = &packed.commands[i]
            if command.db != packed.commands[first].db or (skipped != NULL and skipped[i]):
                break
            if not self.may_merge(command, command_bytes(packed, command)):
                break
            i += 1
        return i - first

    cdef uint8_t *put_merged(
        self, Transaction to, uint8_t *out, const Packed *packed, size_t first, size_t several
    ) noexcept nogil:
        """SETs as one MSET; it is shorter than they are."""
        cdef size_t i, size
        cdef const StreamCommand *command
        out = put_array_header(out, 1 + 2 * several)
        out = put_literal(out, "$4\r\nMSET\r\n", 10)
        for i in range(first, first + several):
            command = &packed.commands[i]
            size = command.size - SET_HEADER_BYTES
            memcpy(out, command_bytes(packed, command) + SET_HEADER_BYTES, size)
            out += size
        to.slots[to.queued] = <int32_t>first
        to.merged[to.queued] = <uint8_t>(several - 1)
        to.queued += 1
        return out

    cdef uint8_t *put_swapped(
        self, Transaction to, uint8_t *out, const uint8_t *swap, int *now
    ) noexcept nogil:
        """Behind a SWAPDB: the position's key is deleted where it was moved to."""
        cdef uint64_t count
        cdef size_t size
        cdef int64_t first = 0, second = 0
        cdef const uint8_t *p = first_argument(swap, &count)
        p = argument_body(p, &size) + size + 2
        database_number(p, &first)
        p = argument_body(p, &size) + size + 2
        database_number(p, &second)
        if first == second or (first != self.position_db and second != self.position_db):
            return out
        out = self.select(
            to, out, <int>(second if first == self.position_db else first), now)
        out = put_literal(out, "*2\r\n$3\r\nDEL\r\n", 13)
        out = self.put_key(out)
        to.slots[to.queued] = SLOT_OURS
        to.queued += 1
        return out

    cdef inline uint8_t *put_key(self, uint8_t *out) noexcept nogil:
        return put_bulk(out, self.key, self.key_size)

    cdef int put_extra(self, Transaction to, int db, bytes command, int32_t number, int now):
        cdef uint8_t *out = self.select(to, to.data + to.size, db, &now)
        cdef size_t n = PyBytes_GET_SIZE(command)
        memcpy(out, PyBytes_AS_STRING(command), n)
        to.slots[to.queued] = -1 - number
        to.queued += 1
        to.size = out + n - to.data
        return now

    cdef put_end(self, Transaction to, bytes position, int now, bint over):
        cdef uint8_t *out = self.select(to, to.data + to.size, self.position_db, &now)
        to.slots[to.queued] = SLOT_OURS
        to.queued += 1
        out = put_literal(
            out, "*4\r\n$3\r\nSET\r\n" if over else "*3\r\n$3\r\nSET\r\n", 13)
        out = self.put_key(out)
        out = put_bulk(
            out, <const uint8_t *>PyBytes_AS_STRING(position), PyBytes_GET_SIZE(position))
        if over:
            out = put_literal(out, "$2\r\nXX\r\n", 8)
        to.body_size = out - to.data
        out = put_literal(out, "*1\r\n$4\r\nEXEC\r\n", 14)
        out = self.put_key(put_literal(out, "*2\r\n$5\r\nWATCH\r\n", 15))
        out = self.put_key(put_literal(out, "*2\r\n$3\r\nGET\r\n", 13))
        to.size = out - to.data


cdef int check_one_command(bytes command) except -1:
    """ValueError unless these bytes are one command, whole, and nothing more."""
    cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(command)
    cdef size_t end = PyBytes_GET_SIZE(command), at = 0
    cdef int64_t left = read_length(data, &at, end, c'*'), n = 0
    cdef bint good = left > 0
    while good and left:
        n = read_length(data, &at, end, c'$')
        good = n >= 0 and <size_t>n + 2 <= end - at
        if good:
            at += n + 2
            good = data[at - 2] == 13 and data[at - 1] == 10
            left -= 1
    if not good or at != end:
        raise ValueError("an extra must be exactly one encoded command")
    return 0
