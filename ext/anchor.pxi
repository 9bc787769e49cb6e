# Relative TTLs made absolute.
#
# Sources before 7.0 send EXPIRE, SETEX, SET … EX and RESTORE on as their clients gave them, so that
# a deadline hangs on when a replica applies the command. Ours may be applied hours later, out of a
# spool, and must not: the TTL is added to the time of receipt, on the source's clock.
#
#   EXPIRE, PEXPIRE key t …        PEXPIREAT key at …
#   SETEX, PSETEX key t value      SET key value, PEXPIREAT key at
#   SET key value … EX | PX t …    SET key value, PEXPIREAT key at
#   GETEX key EX | PX t            PEXPIREAT key at
#   RESTORE key t payload …        RESTORE key at payload … ABSTTL
#
# SET has PXAT only from 6.2 on, and the target may be older; the two commands have one offset, and
# so always are in one transaction. A SET that was replicated has succeeded on the source: NX, XX
# and GET have served their purpose. Absolute forms pass, and so does what is no valid TTL.

cdef enum:
    ANCHOR_ARGUMENTS_MOST = 16    # more than any of the commands above takes
    # Beside the arguments: headers, names, and a number of 19 digits, twice.
    ANCHOR_OVERHEAD = 512

cdef enum AnchorResult:
    ANCHOR_PASS
    ANCHOR_DONE
    ANCHOR_NO_MEMORY

cdef struct Argument:
    const uint8_t *data
    size_t size


cdef inline bint is_word(const Argument *argument, const char *word, size_t n) noexcept nogil:
    """Whether it is this word of up to eight lower-case letters, in any case."""
    return argument.size == n and name_word(argument.data, n) == name_word(
        <const uint8_t *>word, n)


cdef inline bint read_deadline(
    const Argument *ttl, int64_t unit, int64_t now_ms, int64_t *at
) noexcept nogil:
    """`now_ms` plus a TTL in units of so many ms, saturating; False if it is no valid TTL."""
    cdef int64_t n
    if not parse_decimal(ttl.data, ttl.data + ttl.size, &n) or n <= 0:
        return False
    n = n * unit if n <= INT64_MAX // unit else INT64_MAX
    at[0] = now_ms + n if n <= INT64_MAX - now_ms else INT64_MAX
    return True


cdef inline uint8_t *put_argument(uint8_t *out, const Argument *argument) noexcept nogil:
    return put_bulk(out, argument.data, argument.size)


cdef inline uint8_t *put_pexpireat(
    uint8_t *out, const Argument *arguments, size_t first_option, size_t count, int64_t at
) noexcept nogil:
    """PEXPIREAT of the key in arguments[1], with the options from `first_option` on."""
    cdef size_t i
    out = put_array_header(out, 3 + count - first_option)
    out = put_literal(out, "$9\r\nPEXPIREAT\r\n", 15)
    out = put_argument(out, &arguments[1])
    out = put_number_bulk(out, at)
    for i in range(first_option, count):
        out = put_argument(out, &arguments[i])
    return out


cdef inline uint8_t *put_set(
    uint8_t *out, const Argument *key, const Argument *value
) noexcept nogil:
    out = put_literal(out, "*3\r\n$3\r\nSET\r\n", 13)
    return put_argument(put_argument(out, key), value)


cdef bint find_set_deadline(
    const Argument *arguments, size_t count, int64_t now_ms, int64_t *at
) noexcept nogil:
    """Whether a SET has EX or PX, and only options that we know beside it."""
    cdef bint found = False
    cdef size_t i = 3
    cdef int64_t unit
    while i < count:
        if is_word(&arguments[i], "ex", 2) or is_word(&arguments[i], "px", 2):
            unit = 1000 if arguments[i].data[0] | 0x20 == c'e' else 1
            if found or i + 1 == count or not read_deadline(
                    &arguments[i + 1], unit, now_ms, at):
                return False
            found = True
            i += 1
        elif not (is_word(&arguments[i], "nx", 2) or is_word(&arguments[i], "xx", 2)
                  or is_word(&arguments[i], "get", 3)):
            return False
        i += 1
    return found


cdef bint is_relative_restore(const Argument *arguments, size_t count) noexcept nogil:
    """Whether a RESTORE lacks ABSTTL, and has only options that we know."""
    cdef size_t i = 4
    while i < count:
        if is_word(&arguments[i], "idletime", 8) or is_word(&arguments[i], "freq", 4):
            i += 1
        elif not is_word(&arguments[i], "replace", 7):
            return False
        i += 1
    return i == count


cdef AnchorResult anchor_command(
    Packed *packed, StreamCommand *command, int64_t now_ms
) noexcept nogil:
    """Add `command`, whose bytes lie in `packed.raw`, to the index as what it is rewritten to.

    ANCHOR_PASS: it carries no relative TTL, and nothing was added.
    """
    cdef Argument arguments[ANCHOR_ARGUMENTS_MOST]
    cdef StreamCommand added = command[0]
    cdef uint64_t count
    cdef const uint8_t *p = first_argument(packed.raw.data + command.start, &count)
    cdef size_t i, size, middle
    cdef int64_t at = 0
    cdef uint8_t *begin
    cdef uint8_t *out
    if count < 3 or count > ANCHOR_ARGUMENTS_MOST:
        return ANCHOR_PASS
    for i in range(count):
        p = argument_body(p, &size)
        arguments[i].data = p
        arguments[i].size = size
        p += size + 2

    if command.name == NAME_EXPIRE or command.name == NAME_PEXPIRE:
        if not read_deadline(
                &arguments[2], 1000 if command.name == NAME_EXPIRE else 1, now_ms, &at):
            return ANCHOR_PASS
    elif command.name == NAME_SETEX or command.name == NAME_PSETEX:
        if count != 4 or not read_deadline(
                &arguments[2], 1000 if command.name == NAME_SETEX else 1, now_ms, &at):
            return ANCHOR_PASS
    elif command.name == NAME_SET:
        if count < 5 or not find_set_deadline(arguments, count, now_ms, &at):
            return ANCHOR_PASS
    elif command.name == NAME_GETEX:
        if count != 4 or not (
                is_word(&arguments[2], "ex", 2) or is_word(&arguments[2], "px", 2)):
            return ANCHOR_PASS
        if not read_deadline(
                &arguments[3], 1000 if arguments[2].data[0] | 0x20 == c'e' else 1, now_ms, &at):
            return ANCHOR_PASS
    elif command.name == NAME_RESTORE:
        if count < 4 or not is_relative_restore(arguments, count) or not read_deadline(
                &arguments[2], 1, now_ms, &at):
            return ANCHOR_PASS
    else:
        return ANCHOR_PASS

    if not reserve_commands(packed, 2) or not raw_reserve(
            &packed.rewritten, command.size + ANCHOR_OVERHEAD + arguments[1].size):
        return ANCHOR_NO_MEMORY
    added.rewritten = True
    added.start = packed.rewritten.size
    begin = packed.rewritten.data + added.start
    if command.name == NAME_EXPIRE or command.name == NAME_PEXPIRE:
        out = put_pexpireat(begin, arguments, 3, count, at)
    elif command.name == NAME_GETEX:
        out = put_pexpireat(begin, arguments, count, count, at)
    elif command.name == NAME_RESTORE:
        out = put_array_header(begin, count + 1)
        out = put_argument(out, &arguments[0])
        out = put_argument(out, &arguments[1])
        out = put_number_bulk(out, at)
        for i in range(3, count):
            out = put_argument(out, &arguments[i])
        out = put_literal(out, "$6\r\nABSTTL\r\n", 12)
    else:
        out = put_set(begin, &arguments[1], &arguments[2 if command.name == NAME_SET else 3])
        middle = out - begin
        out = put_pexpireat(out, arguments, count, count, at)
        added.size = middle
        packed.commands[packed.count] = added
        packed.count += 1
        added.start += middle
        begin += middle
    added.size = out - begin
    packed.commands[packed.count] = added
    packed.count += 1
    packed.rewritten.size = added.start + added.size
    return ANCHOR_DONE
