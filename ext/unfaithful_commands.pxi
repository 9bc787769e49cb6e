# Commands whose replayed form may lead elsewhere than the source's own: by their arguments.
#
# The table says which commands may. Of most of them it is only now and then true, and it is the
# arguments that tell:
#
#   SET key number                 may have been INCRBYFLOAT, which keeps a TTL
#   HSET key field number          may have been HINCRBYFLOAT, which keeps a field's TTL
#   XCLAIM … RETRYCOUNT 1 …        of an entry that is the group's last: XREADGROUP has delivered it,
#     LASTID that ID               so it was there; any other may be of an entry that was deleted
#   … EX | PX | EXAT | PXAT n …    a near expire time that absolute_ttls.pxi has not extended
#   HSETEX key KEEPTTL FIELDS …    Redis 8.2's HINCRBYFLOAT: unlike others it sets no TTL of a field
#   RESTORE key ttl value …        of a module's value, which not every target may be sent

cdef inline bint is_plain_number(const uint8_t *p, size_t n) noexcept nogil:
    """Whether it is written as servers write the result of INCRBYFLOAT: no exponent, no zeros that
    say nothing."""
    cdef size_t i = 0, first
    if n and p[0] == c"-":
        i = 1
    first = i
    while i < n and 48 <= p[i] <= 57:
        i += 1
    if i == first or (p[first] == 48 and i - first > 1):
        return False
    if i == n:
        return True
    if p[i] != c"." or i + 1 == n or p[n - 1] == 48:
        return False
    i += 1
    while i < n and 48 <= p[i] <= 57:
        i += 1
    return i == n


cdef inline bint last_is_number(const uint8_t *command, uint64_t wanted) noexcept nogil:
    """Whether the command has `wanted` arguments, and the last one is a number."""
    cdef uint64_t count, i
    cdef size_t size = 0
    cdef const uint8_t *p = first_argument(command, &count)
    if count != wanted:
        return False
    for i in range(count):
        p = argument_body(p, &size)
        if i + 1 < count:
            p += size + 2
    return is_plain_number(p, size)


cdef bint is_first_delivery(const uint8_t *command) noexcept nogil:
    """Whether an XCLAIM is what XREADGROUP sends of a new entry.

    XCLAIM key group consumer 0 ID TIME t RETRYCOUNT n FORCE JUSTID LASTID id
    """
    cdef uint64_t count, i
    cdef size_t size, id_size = 0
    cdef const uint8_t *id = NULL
    cdef const uint8_t *p = first_argument(command, &count)
    if count != 14:
        return False
    for i in range(count):
        p = argument_body(p, &size)
        if i == 5:
            id, id_size = p, size
        elif i == 9 and (size != 1 or p[0] != c"1"):
            return False
        elif i == 13:
            return size == id_size and memcmp(p, id, size) == 0
        p += size + 2
    return False


cdef bint keeps_ttls(const uint8_t *command) noexcept nogil:
    """Whether KEEPTTL stands among the options before FIELDS."""
    cdef uint64_t count, i
    cdef size_t size
    cdef const uint8_t *p = first_argument(command, &count)
    for i in range(count):
        p = argument_body(p, &size)
        if i >= 2 and is_keyword(p, size, "fields", 6):
            return False
        if i >= 2 and is_keyword(p, size, "keepttl", 7):
            return True
        p += size + 2
    return False


cdef bint restores_module(const uint8_t *command) noexcept nogil:
    """Whether the value of a RESTORE is a module's."""
    cdef uint64_t count, i
    cdef size_t size
    cdef const uint8_t *p = first_argument(command, &count)
    if count < 4:
        return False
    for i in range(3):
        p = argument_body(p, &size)
        p += size + 2
    p = argument_body(p, &size)
    return is_module_value(p, size)


cdef bint is_doubtful(
    const Packed *packed, const StreamCommand *command, uint32_t flags
) noexcept nogil:
    """Whether one of these flags of the table holds for the command as it stands."""
    cdef uint32_t found = COMMAND_ROWS[command.row].flags & flags
    cdef const uint8_t *p
    if not found:
        return False
    if found & ~<uint32_t>(
            FLAG_TTL | FLAG_MEMBER_TTL | FLAG_SETS_STRING | FLAG_SETS_FIELDS | FLAG_CLAIMS
            | FLAG_PAYLOAD):
        return True
    if found & FLAG_TTL and command.unheld:
        return True
    p = command_bytes(packed, command)
    if found & FLAG_PAYLOAD and restores_module(p):
        return True
    if command.rewritten and not command.renamed:
        return False
    if found & FLAG_MEMBER_TTL and not keeps_ttls(p):
        return True
    if found & FLAG_SETS_STRING and last_is_number(p, 3):
        return True
    if found & FLAG_SETS_FIELDS and last_is_number(p, 4):
        return True
    return found & FLAG_CLAIMS and not is_first_delivery(p)
