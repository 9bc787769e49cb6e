# A stream as the commands that make it, in this order:
#
#   XADD name id field value …           its entries, and one for each id that is pending and whose
#                                        entry was deleted: XCLAIM takes none that is not there
#   XSETID name id ENTRIESADDED most     for some versions bound what a group has read by this
#   XGROUP CREATE name group id ENTRIESREAD n
#   XGROUP CREATECONSUMER name group consumer
#   XCLAIM name group consumer 0 id … TIME t RETRYCOUNT n FORCE JUSTID
#   XTRIM name MAXLEN n, XDEL name id …  what was added to be claimed
#   XSETID name id ENTRIESADDED n MAXDELETEDID id
#
# What a target before 7.0, or 6.2, does not know is left out, or done in another way. What no command
# tells is lost: when consumers were seen, and what producers have sent.
#
# Ids that are pending are kept, sorted, to know which of them have no entry: 16 bytes each, of the 41
# that one takes in the value at the least.

cdef extern from *:
    """
    static int engine_by_id(const void *a, const void *b) { return memcmp(a, b, 16); }
    """
    int engine_by_id(const void *a, const void *b) nogil

cdef enum:
    STREAM_ID = 16
    ID_TEXT_MOST = 41
    # Ids of one XCLAIM or XDEL, and entries of one XTRIM.
    IDS_AT_ONCE = 512
    TRIMMED_AT_ONCE = 64 << 10
    # Of what is pending in a group each so manieth place is kept, to look ids up.
    PENDING_STEP = 16
    # Servers before 7.0 take no command of more than 1,048,576 arguments.
    ENTRY_FIELDS_MOST = 500_000

cdef struct StreamCommands:
    bint consumers             # XGROUP CREATECONSUMER is known
    bint counters              # ENTRIESREAD, ENTRIESADDED and MAXDELETEDID are
    uint8_t lost               # what the value loses (LOSS_…)
    uint64_t pending           # entries of all groups together
    uint64_t released          # of these, those which consumers have given back
    Bytes ids                  # of entries that are pending, sorted
    size_t next                # the first of these that may be behind the entry before
    Bytes gaps                 # those without an entry that are behind the first entry
    uint64_t below             # how many are before it
    bint any                   # an entry was seen
    uint64_t first_ms          # its id
    uint64_t first_seq
    uint64_t last_ms
    uint64_t last_seq
    bint from_15               # a form without counters
    # Of a group:
    Bytes places               # each PENDING_STEPth of its pending entries
    const uint8_t *places_end
    const uint8_t *before
    uint64_t owned             # a sum over the ids that are pending, less those of consumers
    # Of an XCLAIM:
    uint64_t seen
    uint64_t delivered
    uint64_t claimed


cdef void stream_commands_free(StreamCommands *s) noexcept nogil:
    bytes_free(&s.ids)
    bytes_free(&s.gaps)
    bytes_free(&s.places)


cdef inline bint command_number(ElementSink *sink, int64_t number) noexcept nogil:
    cdef uint8_t text[24]
    return command_argument(sink, text, put_signed(text, number) - text)


cdef inline bint command_word(ElementSink *sink, const char *word) noexcept nogil:
    return command_argument(sink, <const uint8_t *>word, strlen(word))


cdef bint command_id(ElementSink *sink, uint64_t ms, uint64_t seq) noexcept nogil:
    cdef uint8_t text[ID_TEXT_MOST]
    cdef uint8_t *at = put_decimal(text, ms)
    at[0] = c"-"
    at = put_decimal(at + 1, seq)
    return command_argument(sink, text, at - text)


cdef bint command_id_at(ElementSink *sink, const uint8_t *id) noexcept nogil:
    return command_id(sink, load_big_endian(id, 8), load_big_endian(id + 8, 8))


cdef bint stream_command(ElementSink *sink, const char *name, int words) noexcept nogil:
    """A command is whole but for its name, of so many words."""
    cdef Commanding *to = sink.commanding
    if to.only_look:
        return True
    to.name = name
    to.name_size = strlen(name)
    to.name_words = words
    to.elements = 1
    if not command_end(sink):
        return False
    if to.begun:
        return True
    # The first goes by itself: what it makes is given an end at once.
    to.begun = True
    return hand_portion(sink)


cdef inline bint stream_keep(ElementSink *sink, Bytes *to, const void *p, size_t n) noexcept nogil:
    if not bytes_reserve(to, n, SIZE_MAX):
        sink.no_memory = True
        return False
    memcpy(to.data + to.size, p, n)
    to.size += n
    return True


# --- Entries ---

cdef bint stream_begin(ElementSink *sink, int type) noexcept nogil:
    cdef StreamCommands *s = &sink.commanding.stream
    s.next = s.gaps.size = 0
    s.below = s.pending = s.released = 0
    s.any = False
    s.from_15 = type == 15
    if sink.commanding.only_look:
        s.ids.size = 0
        s.lost = LOSS_COUNTERS if type != 15 and not s.counters else 0
    return True


cdef bint stream_looked(ElementSink *sink) noexcept nogil:
    """All of it was looked at: sort the ids that are pending."""
    cdef StreamCommands *s = &sink.commanding.stream
    cdef size_t at = 0, kept = 0
    cdef uint8_t id[STREAM_ID]
    if s.ids.size == 0 and sink.count == 0:
        # It takes an entry, which is removed again, to make an empty stream.
        put_big_endian(id, s.last_ms)
        put_big_endian(id + 8, s.last_seq if s.last_ms or s.last_seq else 1)
        return stream_keep(sink, &s.ids, id, STREAM_ID)
    if s.ids.size:
        qsort(s.ids.data, s.ids.size // STREAM_ID, STREAM_ID, engine_by_id)
    while at < s.ids.size:
        if kept == 0 or memcmp(s.ids.data + kept - STREAM_ID, s.ids.data + at, STREAM_ID):
            memmove(s.ids.data + kept, s.ids.data + at, STREAM_ID)
            kept += STREAM_ID
        at += STREAM_ID
    s.ids.size = kept
    return True


cdef inline void put_big_endian(uint8_t *out, uint64_t word) noexcept nogil:
    cdef int i
    for i in range(8):
        out[i] = <uint8_t>(word >> (56 - 8 * i))


cdef bint stream_gaps(ElementSink *sink, const uint8_t *id) noexcept nogil:
    """Entries of ids that are pending and have none, up to this one; NULL: all that are left."""
    cdef StreamCommands *s = &sink.commanding.stream
    cdef const uint8_t *missing
    cdef int order
    while s.next < s.ids.size:
        missing = s.ids.data + s.next
        order = -1 if id == NULL else memcmp(missing, id, STREAM_ID)
        if order > 0:
            return True
        s.next += STREAM_ID
        if order == 0:
            return True
        if not s.any:
            s.below += 1
        elif not stream_keep(sink, &s.gaps, missing, STREAM_ID):
            return False
        if not (command_id_at(sink, missing) and command_word(sink, b"x")
                and command_word(sink, b"x") and stream_command(sink, b"$4\r\nXADD\r\n", 1)):
            return False
    return True


cdef bint stream_entry(ValueReader *r, uint64_t ms, uint64_t seq, int64_t fields) noexcept nogil:
    """What goes before an entry's fields."""
    cdef ElementSink *sink = r.sink
    cdef StreamCommands *s = &sink.commanding.stream
    cdef uint8_t id[STREAM_ID]
    if fields < 1 or fields > ENTRY_FIELDS_MOST:
        return wrong(r, b"an entry of 1 to 500,000 fields")
    if not sink.commanding.only_look:
        put_big_endian(id, ms)
        put_big_endian(id + 8, seq)
        if not stream_gaps(sink, id):
            return False
    if not s.any:
        s.any = True
        s.first_ms = ms
        s.first_seq = seq
    return command_id(sink, ms, seq)


cdef bint stream_entries_end(ElementSink *sink, uint64_t ms, uint64_t seq) noexcept nogil:
    """Behind all entries; (ms, seq) is the stream's last id."""
    cdef StreamCommands *s = &sink.commanding.stream
    s.last_ms = ms
    s.last_seq = seq
    if sink.commanding.only_look:
        return True
    if not stream_gaps(sink, NULL):
        return False
    if not s.counters:
        return True
    stream_top(s, &ms, &seq)
    return (command_id(sink, ms, seq) and command_word(sink, b"ENTRIESADDED")
            and command_number(sink, INT64_MAX) and stream_command(sink, b"$6\r\nXSETID\r\n", 1))


cdef void stream_top(const StreamCommands *s, uint64_t *ms, uint64_t *seq) noexcept nogil:
    """The higher one of an id and those that were added to be claimed."""
    cdef const uint8_t *last
    cdef uint64_t last_ms, last_seq
    if s.ids.size == 0:
        return
    last = s.ids.data + s.ids.size - STREAM_ID
    last_ms = load_big_endian(last, 8)
    last_seq = load_big_endian(last + 8, 8)
    if last_ms > ms[0] or (last_ms == ms[0] and last_seq > seq[0]):
        ms[0] = last_ms
        seq[0] = last_seq


# --- Groups ---

cdef int64_t stream_read_before(
    const StreamCommands *s, uint64_t count, uint64_t ms, uint64_t seq
) noexcept nogil:
    """How many entries a group has read whose form does not say it, as servers from 7.0 on guess it
    that load one; -1: not known."""
    if count == 0 or (ms == s.last_ms and seq == s.last_seq):
        return <int64_t>count
    if ms > s.last_ms or (ms == s.last_ms and seq > s.last_seq):
        return -1
    if ms < s.first_ms or (ms == s.first_ms and seq < s.first_seq):
        return 0
    return 1 if ms == s.first_ms and seq == s.first_seq else -1


cdef bint stream_group(
    ElementSink *sink, const Piece *name, uint64_t ms, uint64_t seq, int64_t read_
) noexcept nogil:
    cdef StreamCommands *s = &sink.commanding.stream
    s.places.size = 0
    s.before = NULL
    s.owned = 0
    if not (command_argument(sink, name.p, name.n) and command_id(sink, ms, seq)):
        return False
    if s.counters:
        if s.from_15:
            read_ = stream_read_before(s, sink.count, ms, seq)
        if not (command_word(sink, b"ENTRIESREAD") and command_number(sink, read_)):
            return False
    # (The key goes behind both words.)
    return stream_command(sink, b"$6\r\nXGROUP\r\n$6\r\nCREATE\r\n", 2)


cdef inline uint64_t id_word(const uint8_t *id) noexcept nogil:
    """A number for an id: the sum of some tells, but for chance, which they were."""
    cdef uint64_t word = load_le64(id) * <uint64_t>0x9e3779b97f4a7c15 ^ load_le64(id + 8)
    word = (word ^ (word >> 30)) * <uint64_t>0xbf58476d1ce4e5b9
    word = (word ^ (word >> 27)) * <uint64_t>0x94d049bb133111eb
    return word ^ (word >> 31)


cdef bint stream_pending(ValueReader *r, const uint8_t *id) noexcept nogil:
    """An entry that is pending in the group; its id, its time and its count stand there."""
    cdef ElementSink *sink = r.sink
    cdef StreamCommands *s = &sink.commanding.stream
    if s.before != NULL and memcmp(s.before, id, STREAM_ID) >= 0:
        return wrong(r, b"pending entries in their order")
    s.before = id
    s.places_end = r.at
    s.owned += id_word(id)
    if s.places.size == 0 or s.claimed == PENDING_STEP:
        s.claimed = 0
        if not stream_keep(sink, &s.places, &id, sizeof(id)):
            return False
    s.claimed += 1
    s.pending += 1
    return not sink.commanding.only_look or stream_keep(sink, &s.ids, id, STREAM_ID)


cdef const uint8_t *place_at(const StreamCommands *s, size_t n) noexcept nogil:
    cdef const uint8_t *place
    memcpy(&place, s.places.data + n * sizeof(place), sizeof(place))
    return place


cdef bint stream_found(
    StreamCommands *s, const uint8_t *id, uint64_t *seen, uint64_t *delivered
) noexcept nogil:
    """What a group says of an id that is pending; False: it is not."""
    cdef size_t low = 0, high = s.places.size // sizeof(id), middle
    cdef const uint8_t *at
    cdef int size, order
    if high == 0:
        return False
    while high - low > 1:
        middle = (low + high) // 2
        if memcmp(place_at(s, middle), id, STREAM_ID) <= 0:
            low = middle
        else:
            high = middle
    at = place_at(s, low)
    # (All of it was passed before.)
    while at < s.places_end:
        order = memcmp(at, id, STREAM_ID)
        if order > 0:
            return False
        size = length_head(at + 24, s.places_end - at - 24, delivered)
        if order == 0:
            seen[0] = load_le64(at + STREAM_ID)
            return True
        at += 24 + size
    return False


cdef bint stream_consumer(
    ElementSink *sink, const Piece *group, const Piece *name, uint64_t held
) noexcept nogil:
    """A consumer which holds so many entries."""
    cdef Commanding *to = sink.commanding
    cdef StreamCommands *s = &to.stream
    s.claimed = 0
    s.lost |= LOSS_SEEN_TIMES
    if s.consumers:
        return (command_argument(sink, group.p, group.n) and command_argument(sink, name.p, name.n)
                and stream_command(sink, b"$6\r\nXGROUP\r\n$14\r\nCREATECONSUMER\r\n", 2))
    if held:
        # It is made by what it claims.
        return True
    # One that reads its own entries from the last id but one on is made, and finds none.
    if not (command_word(sink, b"GROUP") and command_argument(sink, group.p, group.n)
            and command_argument(sink, name.p, name.n) and command_word(sink, b"STREAMS")
            and command_argument(sink, to.key, to.key_size)
            and command_id(sink, <uint64_t>-1, <uint64_t>-2)):
        return False
    to.key_within = True
    if not stream_command(sink, b"$10\r\nXREADGROUP\r\n", 1):
        return False
    to.key_within = False
    return True


cdef bint stream_claim(
    ValueReader *r, const Piece *group, const Piece *consumer, const uint8_t *id
) noexcept nogil:
    """An entry that this consumer holds: those with one time and one count go together."""
    cdef ElementSink *sink = r.sink
    cdef StreamCommands *s = &sink.commanding.stream
    cdef uint64_t seen = 0, delivered = 0
    if not stream_found(s, id, &seen, &delivered):
        return wrong(r, b"what consumers hold among what is pending")
    if delivered > <uint64_t>INT64_MAX:
        return wrong(r, b"a count of deliveries")
    s.owned -= id_word(id)
    if s.claimed and (
            seen != s.seen or delivered != s.delivered or s.claimed == IDS_AT_ONCE):
        if not stream_claims_end(sink):
            return False
    if s.claimed == 0:
        s.seen = seen
        s.delivered = delivered
        if not (command_argument(sink, group.p, group.n)
                and command_argument(sink, consumer.p, consumer.n) and command_word(sink, b"0")):
            return False
    s.claimed += 1
    return command_id_at(sink, id)


cdef bint stream_claims_end(ElementSink *sink) noexcept nogil:
    cdef StreamCommands *s = &sink.commanding.stream
    if s.claimed == 0:
        return True
    s.claimed = 0
    return (command_word(sink, b"TIME") and command_number(sink, <int64_t>s.seen)
            and command_word(sink, b"RETRYCOUNT") and command_number(sink, <int64_t>s.delivered)
            and command_word(sink, b"FORCE") and command_word(sink, b"JUSTID")
            and stream_command(sink, b"$6\r\nXCLAIM\r\n", 1))


cdef bint stream_group_end(ValueReader *r, uint64_t released) noexcept nogil:
    cdef StreamCommands *s = &r.sink.commanding.stream
    s.released += released
    if s.owned and not released:
        return wrong(r, b"each pending entry with one consumer")
    return True


# --- The end ---

cdef bint stream_end(ElementSink *sink, const uint64_t *meta) noexcept nogil:
    """What was added to be claimed goes; then the ids and counts that the stream has."""
    cdef StreamCommands *s = &sink.commanding.stream
    cdef uint64_t left = s.below, step, total = sink.count + s.below + s.gaps.size // STREAM_ID
    cdef size_t at = 0
    cdef uint64_t ms = s.last_ms, seq = s.last_seq
    cdef uint64_t deleted_ms = 0 if s.from_15 else meta[5]
    cdef uint64_t deleted_seq = 0 if s.from_15 else meta[6]
    if sink.commanding.only_look:
        return stream_looked(sink)
    while left:
        step = min(left, <uint64_t>TRIMMED_AT_ONCE)
        left -= step
        total -= step
        if not (command_word(sink, b"MAXLEN") and command_number(sink, <int64_t>total)
                and stream_command(sink, b"$5\r\nXTRIM\r\n", 1)):
            return False
    while at < s.gaps.size:
        if not command_id_at(sink, s.gaps.data + at):
            return False
        at += STREAM_ID
        if at == s.gaps.size or at % (IDS_AT_ONCE * STREAM_ID) == 0:
            if not stream_command(sink, b"$4\r\nXDEL\r\n", 1):
                return False
    if s.gaps.size and s.counters:
        if not (deleted_ms or deleted_seq or s.from_15):
            # No command takes back that one was deleted.
            s.lost |= LOSS_COUNTERS
        stream_top(s, &ms, &seq)
        if ms != s.last_ms or seq != s.last_seq:
            # The last id was set back: it cannot be below what was deleted.
            if not (command_id(sink, ms, seq) and command_word(sink, b"MAXDELETEDID")
                    and (command_id(sink, deleted_ms, deleted_seq) if deleted_ms or deleted_seq
                         else command_id(sink, s.last_ms, s.last_seq))
                    and stream_command(sink, b"$6\r\nXSETID\r\n", 1)):
                return False
    if not command_id(sink, s.last_ms, s.last_seq):
        return False
    if s.counters:
        if not (command_word(sink, b"ENTRIESADDED")
                and command_number(sink, <int64_t>(sink.count if s.from_15 else meta[7]))):
            return False
        if deleted_ms or deleted_seq:
            if not (command_word(sink, b"MAXDELETEDID")
                    and command_id(sink, deleted_ms, deleted_seq)):
                return False
    return stream_command(sink, b"$6\r\nXSETID\r\n", 1)
