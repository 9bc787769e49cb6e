# Expire times in the stream: relative ones made absolute, near ones extended.
#
# Sources before 7.0 send EXPIRE, SETEX, SET … EX and RESTORE on as their clients gave them, so that
# an expire time hangs on when a replica applies the command. Ours may be applied hours later, out
# of a spool, and must not: the TTL is added to the time of receipt, on the source's clock.
#
#   EXPIRE, PEXPIRE key t …        PEXPIREAT key at
#   (P)EXPIREAT key at NX|XX|GT|LT PEXPIREAT key at
#   SETEX, PSETEX key t value      SET key value, PEXPIREAT key at
#   SET key value … EX | PX t …    SET key value, PEXPIREAT key at
#   GETEX key EX | PX t            PEXPIREAT key at
#   RESTORE key t payload …        RESTORE key at payload … ABSTTL
#   MSETEX, INCREX … PXAT | EXAT t the same with another t
#
# SET has PXAT only from 6.2 on, and the target may be older; the two commands have one offset, and
# so always are in one transaction. A SET that was replicated has succeeded on the source: NX, XX
# and GET have served their purpose. What is no valid TTL passes.
#
# While the target is behind, a near expire time would pass there before the stream's next command
# that extends it is applied. So expire times before `extend_before` are extended by `extend_by`,
# those of the absolute forms (EXPIREAT, PEXPIREAT, SET … EXAT | PXAT, GETEX, RESTORE … ABSTTL) too;
# the part that set this restores them once the target has caught up.

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

cdef struct ExpireTimes:
    # Whether relative TTLs are made absolute, and when the bytes now read were received.
    bint anchor
    int64_t now_ms
    # Absolute expire times before the first are extended by the second; 0: none is.
    int64_t extend_before
    int64_t extend_by
    uint64_t extended_count


cdef inline bint is_word(const Argument *argument, const char *word, size_t n) noexcept nogil:
    """Whether it is this word of up to eight lower-case letters, in any case."""
    return argument.size == n and name_word(argument.data, n) == name_word(
        <const uint8_t *>word, n)


cdef inline bint read_deadline(
    const Argument *ttl, int64_t unit, bint relative, ExpireTimes *how, int64_t *at
) noexcept nogil:
    """The expire time that a TTL in units of so many ms means, saturating.

    False if it is no valid TTL, or has to stay as it is.
    """
    cdef int64_t n
    cdef bint changed = relative and how.anchor
    if relative and not how.anchor:
        return False
    if not parse_decimal(ttl.data, ttl.data + ttl.size, &n) or n <= 0:
        return False
    n = n * unit if n <= INT64_MAX // unit else INT64_MAX
    if relative:
        n = how.now_ms + n if n <= INT64_MAX - how.now_ms else INT64_MAX
    if n < how.extend_before:
        n = n + how.extend_by if n <= INT64_MAX - how.extend_by else INT64_MAX
        how.extended_count += 1
        changed = True
    at[0] = n
    return changed


cdef inline bint deadline_option(
    const Argument *word, int64_t *unit, bint *relative
) noexcept nogil:
    """Whether it is EX, PX, EXAT or PXAT, and what these say of the number behind them."""
    if is_word(word, "ex", 2) or is_word(word, "px", 2):
        relative[0] = True
    elif is_word(word, "exat", 4) or is_word(word, "pxat", 4):
        relative[0] = False
    else:
        return False
    unit[0] = 1000 if word.data[0] | 0x20 == c'e' else 1
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
    const Argument *arguments, size_t count, ExpireTimes *how, int64_t *at
) noexcept nogil:
    """Whether a SET has an expire time to change, and only options that we know beside it."""
    cdef size_t place = 0, i = 3
    cdef int64_t unit = 1, other = 1
    cdef bint relative = False
    while i < count:
        if deadline_option(&arguments[i], &other, &relative):
            if place or i + 1 == count:
                return False
            unit = other
            place = i + 1
            i += 1
        elif not (is_word(&arguments[i], "nx", 2) or is_word(&arguments[i], "xx", 2)
                  or is_word(&arguments[i], "get", 3)):
            return False
        i += 1
    return place and read_deadline(&arguments[place], unit, relative, how, at)


cdef bint known_restore(
    const Argument *arguments, size_t count, bint *relative
) noexcept nogil:
    """Whether a RESTORE has only options that we know; `relative`: it lacks ABSTTL."""
    cdef size_t i = 4
    relative[0] = True
    while i < count:
        if is_word(&arguments[i], "idletime", 8) or is_word(&arguments[i], "freq", 4):
            i += 1
        elif is_word(&arguments[i], "absttl", 6):
            relative[0] = False
        elif not is_word(&arguments[i], "replace", 7):
            return False
        i += 1
    return i == count


cdef inline bint sets_deadline_alone(
    StreamName name, int64_t *unit, bint *relative
) noexcept nogil:
    """Whether it is one of the EXPIRE family, and what its name says of its number."""
    if name != NAME_EXPIRE and name != NAME_PEXPIRE and name != NAME_EXPIREAT \
            and name != NAME_PEXPIREAT:
        return False
    unit[0] = 1000 if name == NAME_EXPIRE or name == NAME_EXPIREAT else 1
    relative[0] = name == NAME_EXPIRE or name == NAME_PEXPIRE
    return True


cdef AnchorResult anchor_command(
    Packed *packed, StreamCommand *command, ExpireTimes *how
) noexcept nogil:
    """Add `command`, whose bytes lie in `packed.raw`, to the index as what it is rewritten to.

    ANCHOR_PASS: it carries no expire time that has to be changed, and nothing was added.
    """
    cdef Argument arguments[ANCHOR_ARGUMENTS_MOST]
    cdef StreamCommand added = command[0]
    cdef StreamName name = stream_name(command)
    cdef uint64_t count
    cdef const uint8_t *p = first_argument(packed.raw.data + command.start, &count)
    cdef size_t i, size, middle
    cdef int64_t at = 0, unit = 1
    cdef bint relative = True
    cdef uint8_t *begin
    cdef uint8_t *out
    if count < 3 or count > ANCHOR_ARGUMENTS_MOST:
        return ANCHOR_PASS
    for i in range(count):
        p = argument_body(p, &size)
        arguments[i].data = p
        arguments[i].size = size
        p += size + 2

    if sets_deadline_alone(name, &unit, &relative):
        # NX, XX, GT and LT were true on the source; on the target, whose expire times may be
        # extended, they could be false.
        if not read_deadline(&arguments[2], unit, relative, how, &at) and (count == 3 or at <= 0):
            return ANCHOR_PASS
    elif name == NAME_SETEX or name == NAME_PSETEX:
        if count != 4 or not read_deadline(
                &arguments[2], 1000 if name == NAME_SETEX else 1, True, how, &at):
            return ANCHOR_PASS
    elif name == NAME_SET:
        if count < 5 or not find_set_deadline(arguments, count, how, &at):
            return ANCHOR_PASS
    elif name == NAME_GETEX:
        if count != 4 or not deadline_option(&arguments[2], &unit, &relative):
            return ANCHOR_PASS
        if not read_deadline(&arguments[3], unit, relative, how, &at):
            return ANCHOR_PASS
    elif name == NAME_RESTORE:
        if count < 4 or not known_restore(arguments, count, &relative) or not read_deadline(
                &arguments[2], 1, relative, how, &at):
            return ANCHOR_PASS
    else:
        return ANCHOR_PASS

    if not reserve_commands(packed, 2) or not raw_reserve(
            &packed.rewritten, command.size + ANCHOR_OVERHEAD + arguments[1].size):
        return ANCHOR_NO_MEMORY
    added.rewritten = True
    added.start = packed.rewritten.size
    begin = packed.rewritten.data + added.start
    if sets_deadline_alone(name, &unit, &relative):
        out = put_pexpireat(begin, arguments, count, count, at)
    elif name == NAME_GETEX:
        out = put_pexpireat(begin, arguments, count, count, at)
    elif name == NAME_RESTORE:
        known_restore(arguments, count, &relative)
        out = put_array_header(begin, count + relative)
        out = put_argument(out, &arguments[0])
        out = put_argument(out, &arguments[1])
        out = put_number_bulk(out, at)
        for i in range(3, count):
            out = put_argument(out, &arguments[i])
        if relative:
            out = put_literal(out, "$6\r\nABSTTL\r\n", 12)
    else:
        out = put_set(begin, &arguments[1], &arguments[2 if name == NAME_SET else 3])
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


cdef bint find_deadline_option(
    StreamName name, const uint8_t *command, Argument *option, Argument *number
) noexcept nogil:
    """Whether the command has one of EX, PX, EXAT and PXAT, and a number behind it."""
    cdef uint64_t count, i, options = 3 if name == NAME_SET else 2
    cdef int64_t keys, unit
    cdef bint relative, found = False
    cdef Argument argument
    cdef const uint8_t *p = first_argument(command, &count)
    for i in range(count):
        p = argument_body(p, &argument.size)
        argument.data = p
        if name == NAME_MSETEX and i == 1:
            if not parse_decimal(p, p + argument.size, &keys) or keys < 0 or \
                    <uint64_t>keys > count:
                return False
            options = 2 + 2 * <uint64_t>keys
        elif found:
            number[0] = argument
            return True
        elif i >= options and deadline_option(&argument, &unit, &relative):
            option[0] = argument
            found = True
        p += argument.size + 2
    return False


cdef AnchorResult extend_option(
    Packed *packed, StreamCommand *command, ExpireTimes *how
) noexcept nogil:
    """As `anchor_command`, for commands that only have the number behind EXAT or PXAT changed."""
    cdef StreamCommand added = command[0]
    cdef Argument option, number
    cdef int64_t at = 0, unit = 1
    cdef bint relative = False
    cdef uint8_t *begin
    cdef uint8_t *out
    cdef const uint8_t *start = packed.raw.data + command.start
    cdef const uint8_t *number_header
    cdef const uint8_t *rest
    if not find_deadline_option(stream_name(command), start, &option, &number):
        return ANCHOR_PASS
    deadline_option(&option, &unit, &relative)
    if relative or not read_deadline(&number, unit, False, how, &at):
        return ANCHOR_PASS
    if not reserve_commands(packed, 1) or not raw_reserve(
            &packed.rewritten, command.size + ANCHOR_OVERHEAD):
        return ANCHOR_NO_MEMORY
    number_header = option.data + option.size + 2
    rest = number.data + number.size + 2
    added.rewritten = True
    added.start = packed.rewritten.size
    begin = packed.rewritten.data + added.start
    memcpy(begin, start, number_header - start)
    out = put_number_bulk(begin + (number_header - start), at // unit)
    memcpy(out, rest, start + command.size - rest)
    out += start + command.size - rest
    added.size = out - begin
    packed.commands[packed.count] = added
    packed.count += 1
    packed.rewritten.size = added.start + added.size
    return ANCHOR_DONE


cdef bint leaves_ttl(
    StreamName name, const uint8_t *command, const ExpireTimes *how
) noexcept nogil:
    """Whether a command that was not rewritten sets an expire time that would have had to be: one
    that is relative, or near. Its form is not one of those above."""
    cdef Argument option, number
    cdef int64_t at, unit = 1
    cdef bint relative = False
    if not find_deadline_option(name, command, &option, &number):
        return False
    deadline_option(&option, &unit, &relative)
    if not parse_decimal(number.data, number.data + number.size, &at) or at <= 0:
        return False
    return relative or at < how.extend_before // unit
