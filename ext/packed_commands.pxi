# Commands of a replication stream as memory: their bytes, and an index into them.
#
# The bytes stay as they came, holes included: where a PING or a SELECT stood the index has no
# command, and what is sent on are the runs between the holes. Only commands that are rewritten
# (absolute_ttls.pxi, or for their names' sake) lie elsewhere, in a second arena. What was taken out leaves a mark: its end offset,
# and the state behind it, so that a batch can be cut at any boundary of the stream.

cdef struct StreamCommand:
    # Where its bytes are: in `raw`, or in `rewritten`.
    size_t start
    size_t size
    # Of the stream, behind it.
    uint64_t end_offset
    int32_t db
    # Of its name, in COMMAND_ROWS.
    uint16_t row
    # From here on each is 0 or 1; of large transactions the index is a good part.
    uint8_t rewritten
    # Rewritten for its name, or as one of several parts: its expire time is the source's.
    uint8_t renamed
    # It is not sent: see slot_routing.pxi.
    uint8_t across
    # It sets an expire time that would have had to be rewritten, and was not.
    uint8_t unheld
    # Expire times of fields of the hash that it names were extended; or were to be, and could not.
    uint8_t extended_fields
    uint8_t stuck_fields
    uint8_t in_multi


cdef struct StreamMark:
    # Of the stream, behind something that was taken out; the state is that behind it, too.
    uint64_t end_offset
    int32_t db
    bint in_multi


cdef struct RawBytes:
    uint8_t *data
    size_t size
    size_t capacity
    # Where they lie if not in memory; `data` is its mapping then.
    FileBytes *file


cdef struct Packed:
    RawBytes raw
    RawBytes rewritten
    StreamCommand *commands
    size_t count
    size_t capacity
    StreamMark *marks
    size_t mark_count
    size_t mark_capacity


cdef enum:
    FIRST_BYTES = 64 * 1024
    FIRST_COMMANDS = 256


cdef inline bint raw_reserve(RawBytes *bytes, size_t n) noexcept nogil:
    """Room for `n` more bytes; False: no memory, or sizes overflow."""
    cdef size_t capacity
    cdef uint8_t *data
    if bytes.capacity - bytes.size >= n:
        return True
    if n > (SIZE_MAX >> 2) - bytes.size:
        return False
    if bytes.file != NULL:
        if not file_reserve(bytes.file, bytes.size, n):
            return False
        bytes.data = bytes.file.data
        bytes.capacity = bytes.size + n
        return True
    capacity = bytes.capacity * 2 if bytes.capacity else FIRST_BYTES
    if capacity < bytes.size + n:
        capacity = bytes.size + n
    data = <uint8_t *>PyMem_RawRealloc(bytes.data, capacity)
    if data == NULL:
        return False
    bytes.data = data
    bytes.capacity = capacity
    return True


cdef bint bytes_append(RawBytes *bytes, const uint8_t *p, size_t n) noexcept nogil:
    """False: no memory, or what the file's `error` says."""
    if bytes.file != NULL:
        if not file_write(bytes.file, bytes.size, p, n):
            return False
        bytes.data = bytes.file.data
        bytes.size += n
        bytes.capacity = bytes.size
        return True
    if not raw_reserve(bytes, n):
        return False
    if n:
        memcpy(bytes.data + bytes.size, p, n)
    bytes.size += n
    return True


cdef bint bytes_copy(RawBytes *to, const RawBytes *source, size_t at, size_t n) noexcept nogil:
    """Append `n` bytes of `source`, from `at` on. What lies in a file does not pile up in memory."""
    cdef size_t some
    while n:
        some = n
        if source.file != NULL and some > FILE_COPIED_AT_ONCE:
            some = FILE_COPIED_AT_ONCE
        if not bytes_append(to, source.data + at, some):
            return False
        if source.file != NULL:
            file_let_go(source.file, at, at + some)
        at += some
        n -= some
    return True


cdef void bytes_end(RawBytes *bytes) noexcept nogil:
    """Free them, or let go of the file."""
    if bytes.file != NULL:
        file_end(bytes.file)
    else:
        PyMem_RawFree(bytes.data)
    memset(bytes, 0, sizeof(RawBytes))


cdef bint bytes_to_file(RawBytes *bytes, FileBytes *file) noexcept nogil:
    """Have them lie in `file`, which is theirs from now on, from what they are now. False: see the
    file's `error`."""
    cdef RawBytes before = bytes[0]
    memset(bytes, 0, sizeof(RawBytes))
    bytes.file = file
    if not bytes_append(bytes, before.data, before.size):
        bytes.data, bytes.size, bytes.capacity, bytes.file = before.data, before.size, before.capacity, NULL
        return False
    PyMem_RawFree(before.data)
    return True


cdef inline void bytes_let_go(const RawBytes *bytes) noexcept nogil:
    """What was looked at counts as memory no longer, if it lies in a file."""
    if bytes.file != NULL:
        file_let_go(bytes.file, 0, bytes.size)


cdef bint reserve_commands(Packed *packed, size_t n) noexcept nogil:
    cdef size_t capacity
    cdef StreamCommand *grown
    if packed.capacity - packed.count >= n:
        return True
    capacity = packed.capacity * 2 if packed.capacity else FIRST_COMMANDS
    if capacity < packed.count + n:
        capacity = packed.count + n
    grown = <StreamCommand *>PyMem_RawRealloc(
        packed.commands, capacity * sizeof(StreamCommand))
    if grown == NULL:
        return False
    packed.commands = grown
    packed.capacity = capacity
    return True


cdef bint reserve_marks(Packed *packed, size_t n) noexcept nogil:
    cdef size_t capacity
    cdef StreamMark *grown
    if packed.mark_capacity - packed.mark_count >= n:
        return True
    capacity = packed.mark_capacity * 2 if packed.mark_capacity else FIRST_COMMANDS
    if capacity < packed.mark_count + n:
        capacity = packed.mark_count + n
    grown = <StreamMark *>PyMem_RawRealloc(packed.marks, capacity * sizeof(StreamMark))
    if grown == NULL:
        return False
    packed.marks = grown
    packed.mark_capacity = capacity
    return True


cdef void packed_free(Packed *packed) noexcept nogil:
    bytes_end(&packed.raw)
    bytes_end(&packed.rewritten)
    PyMem_RawFree(packed.commands)
    PyMem_RawFree(packed.marks)
    memset(packed, 0, sizeof(Packed))


cdef inline const uint8_t *command_bytes(
    const Packed *packed, const StreamCommand *command
) noexcept nogil:
    return (packed.rewritten.data if command.rewritten else packed.raw.data) + command.start


cdef inline StreamName stream_name(const StreamCommand *command) noexcept nogil:
    return <StreamName>COMMAND_ROWS[command.row].stream_name


cdef inline uint32_t command_flags_of(const StreamCommand *command) noexcept nogil:
    """What the table says of it, and whether it is not sent: then it swaps nothing either."""
    cdef uint32_t flags = COMMAND_ROWS[command.row].flags
    if not command.across:
        return flags
    if flags & FLAG_SWAPS:
        flags = flags & ~<uint32_t>FLAG_SWAPS | FLAG_WRITES_UNNAMED
    return flags | FLAG_ACROSS


cdef bint packed_slice(
    const Packed *source, size_t first, size_t last, size_t first_mark, size_t last_mark,
    Packed *out,
) noexcept nogil:
    """Copy the commands [first, last) and the marks [first_mark, last_mark) into empty `out`, the
    commands' bytes unless they lie in a file: that is theirs as well, and is not counted yet
    (`FileBytes.owners`), whatever this returns."""
    cdef size_t i
    cdef StreamCommand *command
    cdef const RawBytes *lie
    cdef RawBytes *to
    if not reserve_commands(out, last - first) or not reserve_marks(out, last_mark - first_mark):
        return False
    for i in range(first, last):
        command = &out.commands[out.count]
        command[0] = source.commands[i]
        lie = &source.rewritten if command.rewritten else &source.raw
        to = &out.rewritten if command.rewritten else &out.raw
        if lie.file == NULL:
            command.start = to.size
            if not bytes_append(to, lie.data + source.commands[i].start, command.size):
                return False
        else:
            to[0] = lie[0]
        out.count += 1
    if last_mark > first_mark:
        memcpy(out.marks, source.marks + first_mark, (last_mark - first_mark) * sizeof(StreamMark))
    out.mark_count = last_mark - first_mark
    return True


cdef inline const uint8_t *first_argument(const uint8_t *p, uint64_t *count) noexcept nogil:
    """Of a command that was checked when it was read: its first bulk header; how many there are."""
    cdef uint64_t n = 0
    p += 1
    while p[0] != 13:
        n = n * 10 + (p[0] - 48)
        p += 1
    count[0] = n
    return p + 2


cdef inline const uint8_t *argument_body(const uint8_t *p, size_t *size) noexcept nogil:
    """From a bulk header to its body; the next header is at body + size + 2."""
    cdef uint64_t n
    p = first_argument(p, &n)
    size[0] = <size_t>n
    return p
