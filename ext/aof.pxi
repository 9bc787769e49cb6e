# Append-only files: what they have beside the commands of a replication stream.
#
# Between two commands stands, where the server was told to (`aof-timestamp-enabled`), a line
#
#   #TS:<seconds since the epoch>\r\n      genAofTimestampAnnotationIfNeeded, aof.c
#
# A server that loads the file passes over every line that begins with `#`; so do we, up to the
# length that it reads. Unlike a source, which keeps its link alive with newlines, it takes nothing
# else between two commands.

cdef enum:
    # AOF_ANNOTATION_LINE_MAX_LEN, aof.c.
    ANNOTATION_BYTES_MOST = 1024

cdef enum:
    ANNOTATION_NEED_DATA = 0
    ANNOTATION_BAD = -1


cdef int64_t annotation_size(const uint8_t *line, size_t left) noexcept nogil:
    """Bytes of the line that begins at `line` with a `#`, its end included."""
    cdef size_t most = min(left, <size_t>ANNOTATION_BYTES_MOST)
    cdef const uint8_t *end = <const uint8_t *>memchr(line, 10, most)
    if end != NULL:
        return end - line + 1
    return ANNOTATION_BAD if most == ANNOTATION_BYTES_MOST else ANNOTATION_NEED_DATA


cdef bint annotated_time(const uint8_t *line, size_t size, int64_t *seconds) noexcept nogil:
    """Whether the annotation is a time."""
    cdef size_t end = size - 1
    if end and line[end - 1] == 13:
        end -= 1
    if end < 5 or memcmp(line, b"#TS:", 4) != 0:
        return False
    return line[4] != c"-" and parse_decimal(line + 4, line + end, seconds)


cdef bint member_deadline_passes(const uint8_t *command, int64_t before) noexcept nogil:
    """Whether a command that gives members of a key a deadline gives them one before that moment
    (ms since the epoch), or one that hangs on when it is applied."""
    cdef uint64_t count, i
    cdef int64_t at, unit = 1
    cdef bint relative = False, found = False
    cdef size_t size
    cdef Argument argument
    cdef const uint8_t *p = first_argument(command, &count)
    for i in range(count):
        p = argument_body(p, &size)
        argument.data, argument.size = p, size
        if i == 0:
            # HPEXPIREAT key ms …, HEXPIREAT key s …; their relative forms; else options.
            found = is_keyword(p, size, "hpexpireat", 10) or is_keyword(p, size, "hexpireat", 9)
            unit = 1000 if size == 9 else 1
            if is_keyword(p, size, "hpexpire", 8) or is_keyword(p, size, "hexpire", 7):
                return True
        elif found and i >= 2:
            return parse_decimal(p, p + size, &at) and at <= before // unit
        elif i >= 2 and is_keyword(p, size, "fields", 6):
            return False
        elif i >= 2 and deadline_option(&argument, &unit, &relative):
            if relative:
                return True
            found = True
        p += size + 2
    return False


def early_member_deadlines(CommandBatch batch not None, int64_t before):
    """Indices of the commands that give members of a key (fields of a hash) a deadline before that
    moment, in ms since the epoch, or a relative one."""
    cdef size_t i
    cdef list found = []
    if batch.all_flags() & FLAG_MEMBER_TTL:
        for i in range(batch.packed.count):
            if COMMAND_ROWS[batch.packed.commands[i].row].flags & FLAG_MEMBER_TTL and \
                    member_deadline_passes(
                        command_bytes(&batch.packed, &batch.packed.commands[i]), before):
                found.append(i)
    return found
