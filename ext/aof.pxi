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
    """Whether a command that gives members of a key an expire time gives them one before that
    moment (ms since the epoch), or one that hangs on when it is applied."""
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


def early_field_ttls(CommandBatch batch not None, int64_t before):
    """Indices of the commands that give members of a key (fields of a hash) an expire time before
    that moment, in ms since the epoch, or a relative one."""
    cdef size_t i
    cdef list found = []
    if batch.all_flags() & FLAG_MEMBER_TTL:
        for i in range(batch.packed.count):
            if COMMAND_ROWS[batch.packed.commands[i].row].flags & FLAG_MEMBER_TTL and \
                    member_deadline_passes(
                        command_bytes(&batch.packed, &batch.packed.commands[i]), before):
                found.append(i)
    return found


def stuck_hashes(CommandBatch batch not None):
    """Indices of the commands that give fields of a hash expire times which were to be extended,
    and could not be: RESTOREs of payloads that are not understood."""
    cdef size_t i
    return [i for i in range(batch.packed.count) if batch.packed.commands[i].stuck_fields]


# Expire times of hash fields in the commands that set them:
#
#   H(P)EXPIRE(AT) key t [NX|XX|GT|LT] FIELDS …          HPEXPIREAT key at … FIELDS …
#   HSETEX, HGETEX key … EX|PX|EXAT|PXAT t … FIELDS …    the same with PXAT at
#   RESTORE key t payload …                              the same with another payload
#
# All that a file holds are extended by as much, so that NX, XX, GT and LT find what they found.

cdef AnchorResult extend_member_ttl(
    Packed *packed, StreamCommand *command, ExpireTimes *how
) noexcept nogil:
    """As `anchor_command`, for commands that give fields of a hash an expire time."""
    cdef StreamCommand added = command[0]
    cdef Argument argument
    cdef uint64_t count, i, place = 0
    cdef int64_t at = 0, unit = 1
    cdef bint relative = False, named = False, found = False
    cdef uint8_t *out
    cdef const uint8_t *start = packed.raw.data + command.start
    cdef const uint8_t *p = first_argument(start, &count)
    for i in range(count):
        p = argument_body(p, &argument.size)
        argument.data = p
        if i == 0:
            named = hash_expiry(&argument, &unit, &relative)
        elif i >= 2 and (named or place):
            place = i
            if not read_deadline(&argument, unit, relative, how, &at) or (
                    at > FIELD_DEADLINE_MOST):
                return ANCHOR_PASS
            found = True
            break
        elif i >= 2 and is_keyword(argument.data, argument.size, "fields", 6):
            return ANCHOR_PASS
        elif i >= 2 and deadline_option(&argument, &unit, &relative):
            place = i
        p += argument.size + 2
    if not found:
        return ANCHOR_PASS
    # A number and an option or a name may each become longer; so may each header, by no more.
    if not reserve_commands(packed, 1) or not raw_reserve(
            &packed.rewritten, command.size + ANCHOR_OVERHEAD):
        return ANCHOR_NO_MEMORY
    added.rewritten = added.extended_fields = True
    added.start = packed.rewritten.size
    out = put_array_header(packed.rewritten.data + added.start, count)
    p = first_argument(start, &count)
    for i in range(place + 1):
        p = argument_body(p, &argument.size)
        argument.data = p
        p += argument.size + 2
        if i == place:
            out = put_number_bulk(out, at)
        elif i == 0 and named:
            out = put_literal(out, "$10\r\nHPEXPIREAT\r\n", 17)
        elif i + 1 == place and not named:
            out = put_literal(out, "$4\r\nPXAT\r\n", 10)
        else:
            out = put_argument(out, &argument)
    memcpy(out, p, start + command.size - p)
    out += start + command.size - p
    added.size = out - (packed.rewritten.data + added.start)
    packed.commands[packed.count] = added
    packed.count += 1
    packed.rewritten.size = added.start + added.size
    return ANCHOR_DONE


cdef bint hash_expiry(const Argument *name, int64_t *unit, bint *relative) noexcept nogil:
    """Whether it is one of the HEXPIRE family, and what its name says of its number."""
    if is_keyword(name.data, name.size, "hpexpireat", 10):
        unit[0], relative[0] = 1, False
    elif is_keyword(name.data, name.size, "hexpireat", 9):
        unit[0], relative[0] = 1000, False
    elif is_keyword(name.data, name.size, "hpexpire", 8):
        unit[0], relative[0] = 1, True
    elif is_keyword(name.data, name.size, "hexpire", 7):
        unit[0], relative[0] = 1000, True
    else:
        return False
    return True


cdef AnchorResult extend_restored_hash(
    Packed *packed, StreamCommand *command, ExpireTimes *how, Bytes *scratch
) noexcept nogil:
    """As `anchor_command`, for a RESTORE of a hash with expire times of its fields; `scratch`:
    two."""
    cdef Argument arguments[ANCHOR_ARGUMENTS_MOST]
    cdef StreamCommand added = command[0]
    cdef uint64_t count
    cdef const uint8_t *p = first_argument(packed.raw.data + command.start, &count)
    cdef const uint8_t *footer
    cdef size_t i, size, body
    cdef int64_t at = 0
    cdef uint64_t crc
    cdef bint relative = True, moved
    cdef int flavour
    cdef FieldsExtended found
    cdef Bytes *value = &scratch[0]
    cdef uint8_t *out
    if count < 4 or count > ANCHOR_ARGUMENTS_MOST:
        return ANCHOR_PASS
    for i in range(count):
        p = argument_body(p, &size)
        arguments[i].data = p
        arguments[i].size = size
        p += size + 2
    if arguments[3].size <= FOOTER_BYTES:
        return ANCHOR_PASS
    body = arguments[3].size - FOOTER_BYTES
    footer = arguments[3].data + body
    flavour = payload_flavour(footer)
    if not has_field_ttls(flavour, arguments[3].data[0]):
        return ANCHOR_PASS
    value.size = 0
    if not bytes_reserve(value, body, SIZE_MAX):
        return ANCHOR_NO_MEMORY
    memcpy(value.data, arguments[3].data, body)
    found = FIELDS_STUCK
    if crc_fits(arguments[3].data, body):
        found = extend_fields(flavour, value.data, body, how.extend_by, &scratch[1])
    if found == FIELDS_NO_MEMORY:
        return ANCHOR_NO_MEMORY
    if found != FIELDS_LIFTED or not known_restore(arguments, count, &relative):
        command.stuck_fields = found != FIELDS_NONE
        return ANCHOR_PASS
    value.size = body
    if scratch[1].size:
        value = &scratch[1]
    if not reserve_commands(packed, 1) or not raw_reserve(
            &packed.rewritten, command.size + ANCHOR_OVERHEAD + value.size):
        return ANCHOR_NO_MEMORY
    moved = read_deadline(&arguments[2], 1, relative, how, &at)
    added.rewritten = added.extended_fields = True
    added.start = packed.rewritten.size
    out = put_array_header(packed.rewritten.data + added.start, count + (moved and relative))
    out = put_argument(put_argument(out, &arguments[0]), &arguments[1])
    out = put_number_bulk(out, at) if moved else put_argument(out, &arguments[2])
    out = put_bulk_header(out, value.size + FOOTER_BYTES)
    memcpy(out, value.data, value.size)
    crc = crc64_update(0, out, value.size)
    out += value.size
    out[0], out[1] = footer[0], footer[1]
    crc = crc64_update(crc, out, 2)
    store_le64(out + 2, crc)
    out = put_literal(out + FOOTER_BYTES, "\r\n", 2)
    for i in range(4, count):
        out = put_argument(out, &arguments[i])
    if moved and relative:
        out = put_literal(out, "$6\r\nABSTTL\r\n", 12)
    added.size = out - (packed.rewritten.data + added.start)
    packed.commands[packed.count] = added
    packed.count += 1
    packed.rewritten.size = added.start + added.size
    for i in range(2):
        if scratch[i].capacity > TEXT_KEPT:
            bytes_free(&scratch[i])
    return ANCHOR_DONE
