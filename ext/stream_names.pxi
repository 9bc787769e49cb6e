# The commands of a replication stream that somebody has to know about, by their names.

cdef enum StreamName:
    NAME_OTHER
    # Taken out of the stream.
    NAME_PING
    NAME_REPLCONF
    NAME_SELECT
    NAME_MULTI
    NAME_EXEC
    NAME_TAKEN_OUT_LAST = NAME_EXEC
    # Kept; named for those who have to know about them.
    NAME_FLUSHALL
    NAME_FLUSHDB
    NAME_SWAPDB
    NAME_RENAME
    NAME_RENAMENX
    NAME_COPY
    NAME_MOVE
    # Kept; may carry a deadline.
    NAME_EXPIRE
    NAME_DEADLINE_FIRST = NAME_EXPIRE
    NAME_PEXPIRE
    NAME_SET
    NAME_SETEX
    NAME_PSETEX
    NAME_GETEX
    NAME_RESTORE
    NAME_EXPIREAT
    NAME_PEXPIREAT
    NAME_DEADLINE_LAST = NAME_PEXPIREAT
    # Kept; set deadlines of a hash's fields, or depend on whether one has passed.
    NAME_FIELD_DEADLINE
    NAME_FIELD_COUNT
    # Kept; store what a search for places finds.
    NAME_PLACES
    # Kept, unless the channel or the reader says otherwise.
    NAME_PUBLISH

# Kinds of commands, for `CommandBatch.holds`; of several at once the sum.
KIND_MOVERS = 1 << NAME_RENAME | 1 << NAME_RENAMENX | 1 << NAME_COPY | 1 << NAME_MOVE
KIND_SWAPS = 1 << NAME_SWAPDB
KIND_FIELD_DEADLINES = 1 << NAME_FIELD_DEADLINE
KIND_FIELD_COUNTS = 1 << NAME_FIELD_COUNT
KIND_PLACES = 1 << NAME_PLACES

cdef enum:
    NAME_SLOTS = 64               # a power of two, well above the count of names
    NAME_BYTES_MOST = 8           # the longest of them, those of `long_name` aside

# Names by their bytes in lower case, packed into one number: open addressing, 0 for a free slot.
cdef uint64_t NAME_WORDS[NAME_SLOTS]
cdef uint8_t NAME_VALUES[NAME_SLOTS]


cdef inline uint64_t name_word(const uint8_t *p, size_t n) noexcept nogil:
    """Up to eight bytes as a number, letters in lower case.

    Setting 0x20 also folds other bytes together, but none of them onto a lower-case letter.
    """
    cdef uint64_t word = 0
    cdef size_t i
    for i in range(n):
        word |= <uint64_t>(p[i] | 0x20) << (8 * i)
    return word


cdef inline size_t name_slot(uint64_t word) noexcept nogil:
    return <size_t>((word * <uint64_t>0x9E3779B97F4A7C15) >> 58)


cdef inline bint is_name(const uint8_t *p, size_t n, const char *name) noexcept nogil:
    """Whether these 9 to 16 bytes are `name`, in lower case and of the same length, in any case."""
    return (name_word(p, 8) == name_word(<const uint8_t *>name, 8)
            and name_word(p + 8, n - 8) == name_word(<const uint8_t *>name + 8, n - 8))


cdef StreamName long_name(const uint8_t *p, size_t n) noexcept nogil:
    if n == 9:
        if is_name(p, n, "pexpireat"):
            return NAME_PEXPIREAT
        if is_name(p, n, "hexpireat"):
            return NAME_FIELD_DEADLINE
        if is_name(p, n, "georadius"):
            return NAME_PLACES
    elif n == 10:
        if is_name(p, n, "hpexpireat"):
            return NAME_FIELD_DEADLINE
    elif n == 12:
        if is_name(p, n, "hincrbyfloat"):
            return NAME_FIELD_COUNT
    elif n == 14:
        if is_name(p, n, "restore-asking"):
            return NAME_RESTORE
        if is_name(p, n, "geosearchstore"):
            return NAME_PLACES
    elif n == 17:
        if is_name(p, 16, "georadiusbymembe") and (p[16] | 0x20) == c"r":
            return NAME_PLACES
    return NAME_OTHER


cdef inline StreamName stream_name(const uint8_t *p, size_t n) noexcept nogil:
    """Which of the commands that we care for this name is, in any case of letters."""
    cdef uint64_t word
    cdef size_t slot
    if n > NAME_BYTES_MOST:
        return long_name(p, n)
    word = name_word(p, n)
    slot = name_slot(word)
    while NAME_WORDS[slot]:
        if NAME_WORDS[slot] == word:
            return <StreamName>NAME_VALUES[slot]
        slot = (slot + 1) % NAME_SLOTS
    return NAME_OTHER


cdef add_stream_names():
    cdef size_t slot
    cdef uint64_t word
    for name, value in (
        (b"ping", NAME_PING), (b"replconf", NAME_REPLCONF), (b"select", NAME_SELECT),
        (b"multi", NAME_MULTI), (b"exec", NAME_EXEC), (b"flushall", NAME_FLUSHALL),
        (b"flushdb", NAME_FLUSHDB), (b"swapdb", NAME_SWAPDB), (b"rename", NAME_RENAME),
        (b"renamenx", NAME_RENAMENX), (b"copy", NAME_COPY), (b"move", NAME_MOVE),
        (b"expire", NAME_EXPIRE), (b"pexpire", NAME_PEXPIRE), (b"set", NAME_SET),
        (b"setex", NAME_SETEX), (b"psetex", NAME_PSETEX), (b"getex", NAME_GETEX),
        (b"restore", NAME_RESTORE), (b"expireat", NAME_EXPIREAT), (b"hexpire", NAME_FIELD_DEADLINE),
        (b"hpexpire", NAME_FIELD_DEADLINE), (b"hpersist", NAME_FIELD_DEADLINE), (b"hgetex", NAME_FIELD_DEADLINE),
        (b"hsetex", NAME_FIELD_DEADLINE), (b"hincrby", NAME_FIELD_COUNT),
        (b"publish", NAME_PUBLISH), (b"spublish", NAME_PUBLISH),
    ):
        word = name_word(<const uint8_t *>PyBytes_AS_STRING(name), len(name))
        slot = name_slot(word)
        while NAME_WORDS[slot]:
            slot = (slot + 1) % NAME_SLOTS
        NAME_WORDS[slot] = word
        NAME_VALUES[slot] = value


add_stream_names()
