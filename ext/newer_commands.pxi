# Commands that the target does not know, made of ones that it knows, where that is the same thing.
#
# A source replicates a command in the form that its own version has for it, and an older target
# refuses that form. What it does is then read again from the source. Where the form alone is newer it
# need not be: a command that was replicated has succeeded on the source, so that its conditions have
# served their purpose, and the rest is what older commands do.
#
#   SET key value … PXAT | EXAT t        SET key value, PEXPIREAT key t
#   SET key value IFEQ … [KEEPTTL]       SET key value [KEEPTTL]
#   MSETEX n key value …                 MSET key value …
#     … PXAT | EXAT t                    SET key value PXAT t, for each key; or MSET and PEXPIREATs
#     … KEEPTTL                          SET key value KEEPTTL, for each key
#   DELEX key                            DEL key
#   LPOP | RPOP key n                    LTRIM key …
#   LMOVE one two RIGHT LEFT             RPOPLPUSH one two
#   HSETEX key … FIELDS n field value …  HSET key field value …
#     … PXAT | EXAT t                    and HPEXPIREAT, where fields may have TTLs
#     … KEEPTTL                          the same HSET, where they may not
#   HGETDEL key FIELDS n field …         HDEL key field …
#   XADD, XTRIM                          without NOMKSTREAM, KEEPREF, and LIMIT of an exact length
#   XDELEX key [KEEPREF] IDS n id …      XDEL key id …
#   XGROUP CREATECONSUMER key group c    XREADGROUP, which makes the consumer, of an ID that no entry has
#   XGROUP … ENTRIESREAD n, XSETID … ENTRIESADDED n …   without that, which the target does not keep
#   FLUSHALL | FLUSHDB SYNC, SCRIPT FLUSH SYNC | ASYNC  without that word
#   SPUBLISH channel message             nothing: no client can have subscribed
#   FUNCTION RESTORE payload …           the same with a footer of version 10, which each server takes
#
# LIMIT is no matter of versions: servers send `XADD … MAXLEN ~ 9 LIMIT 5` on as `MAXLEN = 12 LIMIT 5`,
# which each of them takes from its primary alone, without the limit.
#
# All that a command is made into has its offset, and so is in one transaction. What is not in the
# table, or in a form of which it says nothing, is sent as it is; the target refuses it, and its keys
# are read again.

cdef enum Lack:
    # What the target does not know. SET … PXAT, LMOVE, LPOP of several, XGROUP CREATECONSUMER, …:
    LACKS_6_2 = 1 << 0
    # SPUBLISH, ENTRIESREAD and ENTRIESADDED:
    LACKS_7_0 = 1 << 1
    LACKS_FIELD_TTLS = 1 << 2
    LACKS_HSETEX = 1 << 3
    LACKS_HGETDEL = 1 << 4
    # XDELEX, XADD … KEEPREF:
    LACKS_REFERENCES = 1 << 5
    # SET … IFEQ, DELEX:
    LACKS_CONDITIONS = 1 << 6
    LACKS_MSETEX = 1 << 7
    # What any server takes from its primary alone.
    LACKS_EXACT_LIMIT = 1 << 8
    # FUNCTION RESTORE of a payload that another version or flavour has made.
    LACKS_FUNCTION_VERSIONS = 1 << 9

CMD_LACKS_6_2 = LACKS_6_2
CMD_LACKS_7_0 = LACKS_7_0
CMD_LACKS_FIELD_TTLS = LACKS_FIELD_TTLS
CMD_LACKS_HSETEX = LACKS_HSETEX
CMD_LACKS_HGETDEL = LACKS_HGETDEL
CMD_LACKS_REFERENCES = LACKS_REFERENCES
CMD_LACKS_CONDITIONS = LACKS_CONDITIONS
CMD_LACKS_MSETEX = LACKS_MSETEX
CMD_LACKS_EXACT_LIMIT = LACKS_EXACT_LIMIT
CMD_LACKS_FUNCTION_VERSIONS = LACKS_FUNCTION_VERSIONS

cdef enum Made:
    MADE_PASS
    MADE_DONE
    MADE_NO_MEMORY

cdef enum:
    # Arguments of the forms that are looked at as a whole.
    MADE_ARGUMENTS_MOST = 16
    # Beside the bytes of the command: for each of its arguments, and once.
    MADE_OVERHEAD_EACH = 96
    MADE_OVERHEAD = 512
    # Runs of a command's arguments that are left out.
    CUTS_MOST = 8
    # The RDB version that brought libraries of functions (Redis 7.0), and the opcode before each.
    FUNCTIONS_VERSION = 10
    OPCODE_FUNCTION = 245

cdef struct Making:
    Packed *packed
    StreamCommand command
    uint32_t lacks
    # The command's bytes, the header of its first argument behind the name, and how many arguments
    # there are, the name included.
    const uint8_t *bytes
    const uint8_t *first
    uint64_t count
    # Where the next command that is made begins; NULL: there is no room for it yet.
    uint8_t *out

ctypedef Made (*Maker)(Making *making) noexcept nogil

# By row: what a target may lack of a command, and what makes others of it.
cdef uint32_t ROW_LACKS[COMMAND_ROWS_MOST]
cdef Maker ROW_MAKERS[COMMAND_ROWS_MOST]


cdef inline const uint8_t *read_argument(const uint8_t *p, Argument *argument) noexcept nogil:
    """From a bulk header to the one behind it."""
    argument.data = argument_body(p, &argument.size)
    return argument.data + argument.size + 2


cdef inline bint is_long_word(const Argument *argument, const char *word, size_t n) noexcept nogil:
    """As `is_word`, of any length."""
    return is_keyword(argument.data, argument.size, word, n)


cdef inline bint read_all(Making *making, Argument *arguments) noexcept nogil:
    """The arguments, the name included; False: there are more than MADE_ARGUMENTS_MOST."""
    cdef uint64_t count, i
    cdef const uint8_t *p = first_argument(making.bytes, &count)
    if count > MADE_ARGUMENTS_MOST:
        return False
    for i in range(count):
        p = read_argument(p, &arguments[i])
    return True


cdef inline bint read_positive(const Argument *argument, int64_t *n) noexcept nogil:
    return parse_decimal(argument.data, argument.data + argument.size, n) and n[0] > 0


cdef inline bint read_time(const Argument *word, const Argument *number, int64_t *at) noexcept nogil:
    """The expire time (ms) of EXAT or PXAT; False for other words, and for what is none."""
    cdef int64_t unit = 1
    cdef bint relative = True
    if not deadline_option(word, &unit, &relative) or relative:
        return False
    if not read_positive(number, at) or at[0] > INT64_MAX // unit:
        return False
    at[0] *= unit
    return True


cdef inline uint8_t *put_piece_of(uint8_t *out, const uint8_t *begin, const uint8_t *end) noexcept nogil:
    """Arguments as they stand."""
    if end > begin:
        memcpy(out, begin, end - begin)
    return out + (end - begin)


cdef bint begin_making(Making *making) noexcept nogil:
    """Have room for all that the command is made into; False: no memory."""
    cdef Packed *packed = making.packed
    if making.out != NULL:
        return True
    if not raw_reserve(
            &packed.rewritten,
            2 * making.command.size + making.count * MADE_OVERHEAD_EACH + MADE_OVERHEAD) or \
            not reserve_commands(packed, making.count + 1):
        return False
    making.out = packed.rewritten.data + packed.rewritten.size
    return True


cdef void add_made(Making *making, uint8_t *out, uint16_t row) noexcept nogil:
    """A command of this row was written from `making.out` up to there."""
    cdef Packed *packed = making.packed
    cdef StreamCommand *added = &packed.commands[packed.count]
    added[0] = making.command
    added.row = row
    # What was rewritten before has its expire time changed.
    added.renamed = making.command.renamed or not making.command.rewritten
    added.rewritten = True
    added.start = packed.rewritten.size
    added.size = out - making.out
    packed.rewritten.size += added.size
    packed.count += 1
    making.out = out


cdef uint16_t row_called(str name) except 0:
    cdef bytes spelled = name.encode()
    return named_row(<const uint8_t *>PyBytes_AS_STRING(spelled), len(spelled))

cdef uint16_t ROW_DEL = row_called("del")
cdef uint16_t ROW_HDEL = row_called("hdel")
cdef uint16_t ROW_HPEXPIREAT = row_called("hpexpireat")
cdef uint16_t ROW_HSET = row_called("hset")
cdef uint16_t ROW_LTRIM = row_called("ltrim")
cdef uint16_t ROW_MSET = row_called("mset")
cdef uint16_t ROW_PEXPIREAT = row_called("pexpireat")
cdef uint16_t ROW_RPOPLPUSH = row_called("rpoplpush")
cdef uint16_t ROW_SET = row_called("set")
cdef uint16_t ROW_XDEL = row_called("xdel")
cdef uint16_t ROW_XREADGROUP = row_called("xreadgroup")


# --- Strings ---

cdef inline void make_pexpireat(Making *making, const Argument *key, int64_t at) noexcept nogil:
    cdef uint8_t *out = put_literal(making.out, "*3\r\n$9\r\nPEXPIREAT\r\n", 19)
    out = put_argument(out, key)
    add_made(making, put_number_bulk(out, at), ROW_PEXPIREAT)


cdef void make_set(
    Making *making, const Argument *key, const Argument *value, int64_t at, bint keeps
) noexcept nogil:
    """`at`: the expire time, with the SET; 0: none."""
    cdef uint8_t *out = put_array_header(making.out, 5 if at else 4 if keeps else 3)
    out = put_literal(out, "$3\r\nSET\r\n", 9)
    out = put_argument(put_argument(out, key), value)
    if at:
        out = put_number_bulk(put_literal(out, "$4\r\nPXAT\r\n", 10), at)
    elif keeps:
        out = put_literal(out, "$7\r\nKEEPTTL\r\n", 13)
    add_made(making, out, ROW_SET)


cdef Made of_set(Making *making) noexcept nogil:
    cdef Argument arguments[MADE_ARGUMENTS_MOST]
    cdef uint64_t i = 3
    cdef int64_t at = 0
    cdef bint keeps = False, condition = False, apart
    cdef const Argument *word
    if making.count < 4 or not read_all(making, arguments):
        return MADE_PASS
    while i < making.count:
        word = &arguments[i]
        if is_word(word, "keepttl", 7):
            keeps = True
        elif is_word(word, "ifeq", 4) or is_word(word, "ifne", 4) or is_word(word, "ifdeq", 5) \
                or is_word(word, "ifdne", 5):
            condition = True
            i += 1
        elif i + 1 < making.count and not at and read_time(word, word + 1, &at):
            i += 1
        elif not (is_word(word, "nx", 2) or is_word(word, "xx", 2) or is_word(word, "get", 3)):
            return MADE_PASS
        i += 1
    if i != making.count or (at and keeps):
        return MADE_PASS
    apart = at and making.lacks & LACKS_6_2
    if not apart and not (condition and making.lacks & LACKS_CONDITIONS):
        return MADE_PASS
    if not begin_making(making):
        return MADE_NO_MEMORY
    make_set(making, &arguments[1], &arguments[2], 0 if apart else at, keeps)
    if apart:
        make_pexpireat(making, &arguments[1], at)
    return MADE_DONE


cdef Made of_msetex(Making *making) noexcept nogil:
    cdef Argument argument, key
    cdef const uint8_t *pairs
    cdef const uint8_t *end
    cdef const uint8_t *p
    cdef uint8_t *out
    cdef uint64_t left, i
    cdef int64_t keys, at = 0
    cdef bint keeps = False
    if making.count < 4:
        return MADE_PASS
    pairs = read_argument(making.first, &argument)
    if not read_positive(&argument, &keys) or <uint64_t>keys > (making.count - 2) // 2:
        return MADE_PASS
    left = making.count - 2 - 2 * <uint64_t>keys
    end = p = argument_behind(pairs, 2 * <uint64_t>keys)
    while left:
        p = read_argument(p, &argument)
        left -= 1
        if is_word(&argument, "keepttl", 7):
            keeps = True
        elif left and not at and deadline_option_follows(&argument, &p, &at):
            left -= 1
        elif not (is_word(&argument, "nx", 2) or is_word(&argument, "xx", 2)):
            return MADE_PASS
    if at and keeps:
        return MADE_PASS
    if not begin_making(making):
        return MADE_NO_MEMORY
    if not keeps and (not at or making.lacks & LACKS_6_2):
        out = put_array_header(making.out, 1 + 2 * <uint64_t>keys)
        out = put_literal(out, "$4\r\nMSET\r\n", 10)
        add_made(making, put_piece_of(out, pairs, end), ROW_MSET)
        if not at:
            return MADE_DONE
    p = pairs
    for i in range(<uint64_t>keys):
        p = read_argument(read_argument(p, &key), &argument)
        if keeps or not making.lacks & LACKS_6_2:
            make_set(making, &key, &argument, at, keeps)
        else:
            make_pexpireat(making, &key, at)
    return MADE_DONE


cdef inline bint deadline_option_follows(
    const Argument *word, const uint8_t **p, int64_t *at
) noexcept nogil:
    """`read_time` where the number is the next argument; `p` is moved behind it."""
    cdef Argument number
    cdef const uint8_t *behind
    cdef int64_t unit
    cdef bint relative
    if not deadline_option(word, &unit, &relative):
        return False
    behind = read_argument(p[0], &number)
    if not read_time(word, &number, at):
        return False
    p[0] = behind
    return True


cdef Made of_delex(Making *making) noexcept nogil:
    cdef Argument key
    if making.count != 2:
        return MADE_PASS
    read_argument(making.first, &key)
    if not begin_making(making):
        return MADE_NO_MEMORY
    add_made(making, put_argument(put_literal(making.out, "*2\r\n$3\r\nDEL\r\n", 13), &key), ROW_DEL)
    return MADE_DONE


# --- Lists ---

cdef Made of_pop(Making *making) noexcept nogil:
    cdef Argument arguments[MADE_ARGUMENTS_MOST]
    cdef int64_t n
    cdef uint8_t *out
    if making.count != 3 or not read_all(making, arguments) or not read_positive(&arguments[2], &n):
        return MADE_PASS
    if n == INT64_MAX:
        return MADE_PASS
    if not begin_making(making):
        return MADE_NO_MEMORY
    out = put_literal(making.out, "*4\r\n$5\r\nLTRIM\r\n", 15)
    out = put_argument(out, &arguments[1])
    if arguments[0].data[0] | 0x20 == c"l":
        out = put_literal(put_number_bulk(out, n), "$2\r\n-1\r\n", 8)
    else:
        out = put_literal(out, "$1\r\n0\r\n", 7)
        # The last n are behind -(n + 1).
        out = put_bulk_header(out, decimal_digits(n + 1) + 1)
        out[0] = c"-"
        out = put_literal(put_decimal(out + 1, n + 1), "\r\n", 2)
    add_made(making, out, ROW_LTRIM)
    return MADE_DONE


cdef Made of_lmove(Making *making) noexcept nogil:
    cdef Argument arguments[MADE_ARGUMENTS_MOST]
    cdef uint8_t *out
    if making.count != 5 or not read_all(making, arguments):
        return MADE_PASS
    if not is_word(&arguments[3], "right", 5) or not is_word(&arguments[4], "left", 4):
        return MADE_PASS
    if not begin_making(making):
        return MADE_NO_MEMORY
    out = put_literal(making.out, "*3\r\n$9\r\nRPOPLPUSH\r\n", 19)
    out = put_argument(put_argument(out, &arguments[1]), &arguments[2])
    add_made(making, out, ROW_RPOPLPUSH)
    return MADE_DONE


# --- Hashes ---

cdef Made of_hsetex(Making *making) noexcept nogil:
    cdef Argument argument, key
    cdef const uint8_t *p = read_argument(making.first, &key)
    cdef const uint8_t *pairs
    cdef uint8_t *out
    cdef uint64_t left = making.count - 2, i
    cdef int64_t fields = 0, at = 0
    cdef bint keeps = False
    while True:
        if left < 2:
            return MADE_PASS
        p = read_argument(p, &argument)
        left -= 1
        if is_word(&argument, "fields", 6):
            break
        if is_word(&argument, "keepttl", 7):
            keeps = True
        elif not at and deadline_option_follows(&argument, &p, &at):
            left -= 1
        elif not (is_word(&argument, "fnx", 3) or is_word(&argument, "fxx", 3)):
            return MADE_PASS
    pairs = read_argument(p, &argument)
    left -= 1
    if not read_positive(&argument, &fields) or <uint64_t>fields != left // 2 or left % 2:
        return MADE_PASS
    if (at and keeps) or (at != 0 if making.lacks & LACKS_FIELD_TTLS else keeps):
        return MADE_PASS
    if not begin_making(making):
        return MADE_NO_MEMORY
    out = put_literal(put_array_header(making.out, 2 + left), "$4\r\nHSET\r\n", 10)
    out = put_argument(out, &key)
    add_made(
        making, put_piece_of(out, pairs, making.bytes + making.command.size), ROW_HSET)
    if not at:
        return MADE_DONE
    out = put_array_header(making.out, 5 + <uint64_t>fields)
    out = put_argument(put_literal(out, "$10\r\nHPEXPIREAT\r\n", 17), &key)
    out = put_literal(put_number_bulk(out, at), "$6\r\nFIELDS\r\n", 12)
    out = put_number_bulk(out, fields)
    p = pairs
    for i in range(<uint64_t>fields):
        p = argument_behind(read_argument(p, &argument), 1)
        out = put_argument(out, &argument)
    add_made(making, out, ROW_HPEXPIREAT)
    return MADE_DONE


cdef Made of_hgetdel(Making *making) noexcept nogil:
    cdef Argument key, argument
    cdef const uint8_t *p
    cdef int64_t fields
    cdef uint8_t *out
    if making.count < 5:
        return MADE_PASS
    p = read_argument(read_argument(making.first, &key), &argument)
    if not is_word(&argument, "fields", 6):
        return MADE_PASS
    p = read_argument(p, &argument)
    if not read_positive(&argument, &fields) or <uint64_t>fields != making.count - 4:
        return MADE_PASS
    if not begin_making(making):
        return MADE_NO_MEMORY
    out = put_literal(put_array_header(making.out, 2 + <uint64_t>fields), "$4\r\nHDEL\r\n", 10)
    out = put_argument(out, &key)
    add_made(making, put_piece_of(out, p, making.bytes + making.command.size), ROW_HDEL)
    return MADE_DONE


# --- Streams ---

cdef struct Cuts:
    # What is left out of a command: runs of its arguments, in order.
    const uint8_t *begin[CUTS_MOST]
    const uint8_t *end[CUTS_MOST]
    size_t count
    uint64_t arguments


cdef inline bint cut(
    Cuts *cuts, const uint8_t *begin, const uint8_t *end, uint64_t arguments
) noexcept nogil:
    if cuts.count == CUTS_MOST:
        return False
    cuts.begin[cuts.count] = begin
    cuts.end[cuts.count] = end
    cuts.count += 1
    cuts.arguments += arguments
    return True


cdef Made make_shorter(Making *making, const Cuts *cuts) noexcept nogil:
    """The command without what was cut."""
    cdef uint64_t count
    cdef const uint8_t *p = first_argument(making.bytes, &count)
    cdef uint8_t *out
    cdef size_t i
    if not cuts.count:
        return MADE_PASS
    if not begin_making(making):
        return MADE_NO_MEMORY
    out = put_array_header(making.out, count - cuts.arguments)
    for i in range(cuts.count):
        out = put_piece_of(out, p, cuts.begin[i])
        p = cuts.end[i]
    out = put_piece_of(out, p, making.bytes + making.command.size)
    add_made(making, out, making.command.row)
    return MADE_DONE


cdef Made of_trim(Making *making) noexcept nogil:
    """XADD, whose options end before its ID, and XTRIM."""
    cdef Cuts cuts
    cdef Argument argument, next
    cdef const uint8_t *p
    cdef const uint8_t *begin
    cdef const uint8_t *limit = NULL
    cdef const uint8_t *limit_end = NULL
    cdef uint64_t left
    cdef bint exact = True
    memset(&cuts, 0, sizeof(Cuts))
    if making.count < 3:
        return MADE_PASS
    left = making.count - 2
    p = read_argument(making.first, &argument)
    while left:
        begin = p
        p = read_argument(p, &argument)
        left -= 1
        if argument.size < 4 or argument.data[0] <= 57:
            # An ID, as a rule.
            break
        if is_long_word(&argument, "nomkstream", 10):
            if making.lacks & LACKS_6_2 and not cut(&cuts, begin, p, 1):
                return MADE_PASS
        elif is_word(&argument, "keepref", 7):
            if making.lacks & LACKS_REFERENCES and not cut(&cuts, begin, p, 1):
                return MADE_PASS
        elif is_word(&argument, "delref", 6) or is_word(&argument, "acked", 5):
            if making.lacks & LACKS_REFERENCES:
                return MADE_PASS
        elif is_word(&argument, "idmpauto", 8) and left:
            p = argument_behind(p, 1)
            left -= 1
        elif is_word(&argument, "idmp", 4) and left > 1:
            p = argument_behind(p, 2)
            left -= 2
        elif is_word(&argument, "limit", 5) and left:
            if limit != NULL:
                return MADE_PASS
            p = argument_behind(p, 1)
            left -= 1
            limit, limit_end = begin, p
            # Its place among the cuts is that among the arguments.
            if not cut(&cuts, limit, limit_end, 2):
                return MADE_PASS
        elif (is_word(&argument, "maxlen", 6) or is_word(&argument, "minid", 5)) and left:
            if argument.size == 5 and making.lacks & LACKS_6_2:
                return MADE_PASS
            begin = read_argument(p, &next)
            if next.size == 1 and left > 1 and (next.data[0] == c"=" or next.data[0] == c"~"):
                exact = next.data[0] == c"="
                p = begin
                left -= 1
            p = argument_behind(p, 1)
            left -= 1
        else:
            break
    if limit != NULL and not exact:
        return MADE_PASS
    return make_shorter(making, &cuts)


cdef Made of_xdelex(Making *making) noexcept nogil:
    cdef Argument key, argument
    cdef const uint8_t *p
    cdef uint64_t left = making.count - 2
    cdef int64_t ids
    cdef uint8_t *out
    if making.count < 5:
        return MADE_PASS
    p = read_argument(read_argument(making.first, &key), &argument)
    left -= 1
    if is_word(&argument, "keepref", 7):
        p = read_argument(p, &argument)
        left -= 1
    if left < 2 or not is_word(&argument, "ids", 3):
        return MADE_PASS
    p = read_argument(p, &argument)
    left -= 1
    if not read_positive(&argument, &ids) or <uint64_t>ids != left:
        return MADE_PASS
    if not begin_making(making):
        return MADE_NO_MEMORY
    out = put_argument(put_literal(put_array_header(making.out, 2 + left), "$4\r\nXDEL\r\n", 10), &key)
    add_made(making, put_piece_of(out, p, making.bytes + making.command.size), ROW_XDEL)
    return MADE_DONE


cdef Made of_xgroup(Making *making) noexcept nogil:
    cdef Argument arguments[MADE_ARGUMENTS_MOST]
    cdef Cuts cuts
    cdef uint64_t i
    cdef uint8_t *out
    memset(&cuts, 0, sizeof(Cuts))
    if making.count < 5 or not read_all(making, arguments):
        return MADE_PASS
    if is_long_word(&arguments[1], "createconsumer", 14):
        if making.count != 5 or not making.lacks & LACKS_6_2:
            return MADE_PASS
        if not begin_making(making):
            return MADE_NO_MEMORY
        # Of the consumer's own entries, from behind the last ID but one: it has none there, or it
        # would be delivered once more.
        out = put_literal(making.out, "*9\r\n$10\r\nXREADGROUP\r\n$5\r\nGROUP\r\n", 32)
        out = put_argument(put_argument(out, &arguments[3]), &arguments[4])
        out = put_literal(out, "$5\r\nCOUNT\r\n$1\r\n1\r\n$7\r\nSTREAMS\r\n", 31)
        out = put_argument(out, &arguments[2])
        out = put_literal(out, "$41\r\n18446744073709551615-18446744073709551614\r\n", 48)
        add_made(making, out, ROW_XREADGROUP)
        return MADE_DONE
    if not making.lacks & LACKS_7_0 or not (
            is_word(&arguments[1], "create", 6) or is_word(&arguments[1], "setid", 5)):
        return MADE_PASS
    for i in range(5, making.count - 1):
        if is_long_word(&arguments[i], "entriesread", 11):
            cut(&cuts, header_of(&arguments[i]), arguments[i + 1].data + arguments[i + 1].size + 2, 2)
            break
    return make_shorter(making, &cuts)


cdef inline const uint8_t *header_of(const Argument *argument) noexcept nogil:
    """Where the header of an argument begins."""
    return argument.data - (decimal_digits(argument.size) + 3)


cdef Made of_xsetid(Making *making) noexcept nogil:
    cdef Cuts cuts
    memset(&cuts, 0, sizeof(Cuts))
    if making.count > 3:
        cut(&cuts, argument_behind(making.first, 2), making.bytes + making.command.size,
            making.count - 3)
    return make_shorter(making, &cuts)


# --- No keys ---

cdef Made of_flush(Making *making) noexcept nogil:
    cdef Cuts cuts
    cdef Argument argument
    memset(&cuts, 0, sizeof(Cuts))
    if making.count == 2:
        read_argument(making.first, &argument)
        if is_word(&argument, "sync", 4):
            cut(&cuts, making.first, making.bytes + making.command.size, 1)
    return make_shorter(making, &cuts)


cdef Made of_script(Making *making) noexcept nogil:
    cdef Cuts cuts
    cdef Argument argument
    memset(&cuts, 0, sizeof(Cuts))
    if making.count == 3:
        cuts.begin[0] = read_argument(making.first, &argument)
        if is_word(&argument, "flush", 5):
            cut(&cuts, cuts.begin[0], making.bytes + making.command.size, 1)
    return make_shorter(making, &cuts)


cdef Made of_spublish(Making *making) noexcept nogil:
    return MADE_DONE


cdef bint holds_functions(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """Whether that is libraries of functions and nothing else: an opcode and a string for each, which
    no version has changed."""
    cdef StringHead head
    cdef int size
    while p < end:
        if p[0] != OPCODE_FUNCTION:
            return False
        p += 1
        size = string_head(p, end - p, &head)
        if size <= 0 or head.body > <uint64_t>(end - p - size):
            return False
        p += size + head.body
    return True


cdef Made of_function(Making *making) noexcept nogil:
    cdef Argument word, payload
    cdef const uint8_t *behind
    cdef size_t body
    cdef uint8_t *out
    if making.count < 3:
        return MADE_PASS
    behind = read_argument(making.first, &word)
    if not is_word(&word, "restore", 7):
        return MADE_PASS
    behind = read_argument(behind, &payload)
    if payload.size < FOOTER_BYTES:
        return MADE_PASS
    body = payload.size - FOOTER_BYTES
    # (One that does not fit its footer stays as it is, for the target to refuse.)
    if footer_version(payload.data + body) <= FUNCTIONS_VERSION or (
            not crc_fits(payload.data, body)
            or not holds_functions(payload.data, payload.data + body)):
        return MADE_PASS
    if not begin_making(making):
        return MADE_NO_MEMORY
    out = put_literal(put_array_header(making.out, making.count), "$8\r\nFUNCTION\r\n", 14)
    out = put_bulk_header(put_argument(out, &word), payload.size)
    memcpy(out, payload.data, body)
    out[body] = FUNCTIONS_VERSION
    out[body + 1] = 0
    seal_payload(out, payload.size)
    out = put_literal(out + payload.size, "\r\n", 2)
    add_made(
        making, put_piece_of(out, behind, making.bytes + making.command.size),
        making.command.row)
    return MADE_DONE


# --- The table ---

cdef int add_newer(str name, uint32_t lacks, Maker maker) except -1:
    cdef uint16_t row = row_called(name)
    ROW_LACKS[row] = lacks
    ROW_MAKERS[row] = maker
    return 0

add_newer("set", LACKS_6_2 | LACKS_CONDITIONS, of_set)
add_newer("msetex", LACKS_MSETEX, of_msetex)
add_newer("delex", LACKS_CONDITIONS, of_delex)
add_newer("lpop", LACKS_6_2, of_pop)
add_newer("rpop", LACKS_6_2, of_pop)
add_newer("lmove", LACKS_6_2, of_lmove)
add_newer("hsetex", LACKS_HSETEX, of_hsetex)
add_newer("hgetdel", LACKS_HGETDEL, of_hgetdel)
add_newer("xadd", LACKS_6_2 | LACKS_REFERENCES | LACKS_EXACT_LIMIT, of_trim)
add_newer("xtrim", LACKS_6_2 | LACKS_REFERENCES | LACKS_EXACT_LIMIT, of_trim)
add_newer("xdelex", LACKS_REFERENCES, of_xdelex)
add_newer("xgroup", LACKS_6_2 | LACKS_7_0, of_xgroup)
add_newer("xsetid", LACKS_7_0, of_xsetid)
add_newer("flushall", LACKS_6_2, of_flush)
add_newer("flushdb", LACKS_6_2, of_flush)
add_newer("script", LACKS_6_2, of_script)
add_newer("spublish", LACKS_7_0, of_spublish)
add_newer("function", LACKS_FUNCTION_VERSIONS, of_function)


cdef Made make_known(
    Packed *packed, const StreamCommand *command, uint32_t lacks
) noexcept nogil:
    """Add what a command is made into for a target that lacks this.

    MADE_PASS: it stays as it is, and nothing was added. MADE_DONE may also have added nothing.
    """
    cdef Making making
    if not ROW_LACKS[command.row] & lacks or command.across:
        return MADE_PASS
    making.packed = packed
    making.command = command[0]
    making.lacks = lacks
    making.out = NULL
    first_argument(command_bytes(packed, command), &making.count)
    if making.count < 2:
        return MADE_PASS
    if command.rewritten and not begin_making(&making):
        # Its own bytes may move for it, before they are looked at.
        return MADE_NO_MEMORY
    making.bytes = command_bytes(packed, command)
    making.first = argument_behind(first_argument(making.bytes, &making.count), 1)
    return ROW_MAKERS[command.row](&making)
