# Streams, in the five forms that they have had (rdb.c and t_stream.c of the servers):
#
#   15  nodes, length, last id; of each group its name, its last id, what is pending, its consumers
#   19  first id, the highest id deleted, entries added; of a group how many it has read
#   21  of a consumer when it was active
#   26  what producers have sent, so that no entry is added twice
#   27  of a group what its consumers have given back
#
# A node is an id and a listpack: the names of the first entry's fields, then entries, whose ids are
# told as distances from the node's, and whose names are left out where they are the first's.

cdef enum:
    ENTRY_DELETED = 1
    ENTRY_SAME_FIELDS = 2

cdef struct StreamState:
    bint any                   # an id was seen: each has to be higher than the one before
    uint64_t last_ms
    uint64_t last_seq


cdef inline bint next_length(ValueReader *r, uint64_t *out) noexcept nogil:
    cdef int size = length_head(r.at, r.end - r.at, out)
    if size <= 0:
        return wrong(r, b"a length")
    r.at += size
    return True


cdef inline bint next_raw(ValueReader *r, size_t n, const uint8_t **out) noexcept nogil:
    if <size_t>(r.end - r.at) < n:
        return wrong(r, b"more bytes")
    out[0] = r.at
    r.at += n
    return True


cdef bint next_id(ValueReader *r, uint64_t *ms, uint64_t *seq) noexcept nogil:
    """An id of 16 bytes."""
    cdef const uint8_t *p = NULL
    if not next_raw(r, 16, &p):
        return False
    ms[0] = load_big_endian(p, 8)
    seq[0] = load_big_endian(p + 8, 8)
    return True


cdef bint decode_stream(ValueReader *r, int type) noexcept nogil:
    cdef ElementSink *sink = r.sink
    cdef StreamState state
    cdef uint64_t nodes = 0, groups = 0, length = 0, i
    cdef uint64_t meta[8]
    cdef uint64_t told = 3 if type == 15 else 8
    memset(&state, 0, sizeof(StreamState))
    memset(meta, 0, sizeof(meta))
    if not next_length(r, &nodes):
        return False
    if sink.mode == VALUE_COMMANDS and not stream_begin(sink, type):
        return False
    if sink.mode == VALUE_TAPE and not tape_open(sink):
        return False
    while nodes:
        if not decode_node(r, &state):
            return False
        nodes -= 1
    for i in range(told):
        if not next_length(r, &meta[i]):
            return False
    length = meta[0]
    if length != sink.count:
        return wrong(r, b"as many entries as the stream says")
    if state.any and (state.last_ms > meta[1] or (
            state.last_ms == meta[1] and state.last_seq > meta[2])):
        return wrong(r, b"no entry behind the stream's last id")
    if sink.mode == VALUE_DIGEST:
        sink_words(sink, &sink.value, AS_STREAM, length, meta[1], meta[2], 0)
        if told == 8:
            # The first id is that of the first entry.
            sink_words(sink, &sink.details, AS_STREAM_DETAILS, meta[5], meta[6], meta[7], 0)
    elif sink.mode == VALUE_TAPE:
        if not (tape_close(sink) and tape_id(sink, meta[1], meta[2])):
            return False
        if told == 8:
            if not (tape_id(sink, meta[5], meta[6]) and tape_number(sink, meta[7])):
                return False
        elif not (tape_signed(sink, -1) and tape_signed(sink, -1)):
            return False
        if not tape_open(sink):
            return False
    elif sink.mode == VALUE_COMMANDS and not stream_entries_end(sink, meta[1], meta[2]):
        return False
    if not next_length(r, &groups):
        return False
    while groups:
        if not decode_group(r, type):
            return False
        sink.group_count += 1
        groups -= 1
    if sink.mode == VALUE_TAPE and not tape_close(sink):
        return False
    if type >= 26 and not decode_producers(r):
        return False
    return sink.mode != VALUE_COMMANDS or stream_end(sink, meta)


cdef bint decode_node(ValueReader *r, StreamState *state) noexcept nogil:
    cdef ElementSink *sink = r.sink
    cdef Piece key, blob, piece
    cdef Pack pack, names
    cdef Sip named
    cdef int64_t live = 0, deleted = 0, name_count = 0, end = 0, flags, ms_off, seq_off, fields, told
    cdef int64_t live_seen = 0, deleted_seen = 0, i
    cdef uint64_t node_ms, node_seq, ms, seq, names_size = 0
    cdef Sum names_hash
    cdef bint digest = sink.mode == VALUE_DIGEST
    if not next_string(r, &key, 0):
        return False
    piece_text(&key)
    if key.n != 16:
        return wrong(r, b"an id of 16 bytes before a node")
    node_ms = load_big_endian(key.p, 8)
    node_seq = load_big_endian(key.p + 8, 8)
    if not next_blob(r, &blob) or not pack_open(r, &blob, False, &pack):
        return False
    # The head: entries, deleted ones, the names of the first one's fields, 0.
    if not (pack_integer(r, &pack, &live) and pack_integer(r, &pack, &deleted)
            and pack_integer(r, &pack, &name_count)):
        return False
    if live < 0 or deleted < 0 or name_count < 0:
        return wrong(r, b"the head of a stream's node")
    names = pack
    if digest:
        named = sink.start
        mix_word(&named, AS_NAMES)
    for i in range(name_count):
        if not pack_next(r, &pack, &piece):
            return False
        piece_text(&piece)
        names_size += piece.n
        if digest:
            sip_bytes_of(&named, piece.p, piece.n)
    if not pack_integer(r, &pack, &end):
        return False
    if end != 0:
        return wrong(r, b"the end of the head of a stream's node")
    names_hash.low = names_hash.high = 0
    if digest:
        sip_add(&named, &names_hash)
    while pack_more(&pack):
        flags = ms_off = seq_off = told = 0
        if not (pack_integer(r, &pack, &flags) and pack_integer(r, &pack, &ms_off)
                and pack_integer(r, &pack, &seq_off)):
            return False
        if flags & ~(ENTRY_DELETED | ENTRY_SAME_FIELDS):
            return wrong(r, b"an entry's flags")
        ms = node_ms + <uint64_t>ms_off
        seq = node_seq + <uint64_t>seq_off
        if state.any and (ms < state.last_ms or (ms == state.last_ms and seq <= state.last_seq)):
            return wrong(r, b"an entry whose id is higher than the one before")
        state.any = True
        state.last_ms = ms
        state.last_seq = seq
        fields = name_count
        if not flags & ENTRY_SAME_FIELDS:
            if not pack_integer(r, &pack, &fields):
                return False
        # Each field takes a byte at the least.
        if fields < 0 or fields > pack.end - pack.at:
            return wrong(r, b"as many fields as an entry says")
        if flags & ENTRY_DELETED:
            deleted_seen += 1
            for i in range(fields if flags & ENTRY_SAME_FIELDS else 2 * fields):
                if not pack_next(r, &pack, &piece):
                    return False
        else:
            live_seen += 1
            if not decode_entry(
                    r, &pack, &names, &names_hash, names_size,
                    bool(flags & ENTRY_SAME_FIELDS), ms, seq, fields):
                return False
        if not pack_integer(r, &pack, &told):
            return False
        if told != (fields + 3 if flags & ENTRY_SAME_FIELDS else 2 * fields + 4):
            return wrong(r, b"how many items an entry has")
    if live != live_seen or deleted != deleted_seen:
        return wrong(r, b"as many entries as a node says")
    return pack_close(r, &pack)


cdef bint decode_entry(
    ValueReader *r, Pack *pack, const Pack *names_at, const Sum *names_hash, uint64_t names_size,
    bint same, uint64_t ms, uint64_t seq, int64_t fields
) noexcept nogil:
    cdef ElementSink *sink = r.sink
    cdef Pack names = names_at[0]
    cdef Piece name, value
    cdef Sip named, hashed
    cdef Sum own = names_hash[0]
    cdef bint tape = sink.mode == VALUE_TAPE, digest = sink.mode == VALUE_DIGEST
    cdef bint commands = sink.mode == VALUE_COMMANDS
    cdef uint64_t size = names_size if same else 0
    cdef int64_t i
    sink.count += 1
    if commands and not stream_entry(r, ms, seq, fields):
        return False
    if tape and not (tape_open(sink) and tape_id(sink, ms, seq)):
        return False
    if digest:
        hashed = sink.start
        named = sink.start
        mix_word(&hashed, AS_ENTRY)
        mix_word(&hashed, ms)
        mix_word(&hashed, seq)
        mix_word(&hashed, fields)
        mix_word(&named, AS_NAMES)
    for i in range(fields):
        if same:
            if tape or commands:
                if not pack_next(r, &names, &name):
                    return False
                piece_text(&name)
        else:
            if not pack_next(r, pack, &name):
                return False
            piece_text(&name)
            size += name.n
            if digest:
                sip_bytes_of(&named, name.p, name.n)
        if not pack_next(r, pack, &value):
            return False
        piece_text(&value)
        size += value.n
        if digest:
            sip_bytes_of(&hashed, value.p, value.n)
        elif tape:
            if not (tape_piece(sink, &name) and tape_piece(sink, &value)):
                return False
        elif commands and not (
                command_argument(sink, name.p, name.n)
                and command_argument(sink, value.p, value.n)):
            return False
    sink_counted(sink, size)
    if digest:
        if not same:
            own.low = own.high = 0
            sip_add(&named, &own)
        mix_word(&hashed, own.low)
        mix_word(&hashed, own.high)
        sip_add(&hashed, &sink.value)
    if commands:
        return stream_command(sink, b"$4\r\nXADD\r\n", 1)
    return not tape or tape_close(sink)


cdef bint decode_group(ValueReader *r, int type) noexcept nogil:
    """One group: what is pending there is told once for all, and by its id for each consumer."""
    cdef ElementSink *sink = r.sink
    cdef Piece group_name, name
    cdef const uint8_t *p = NULL
    cdef uint64_t ms = 0, seq = 0, read_ = 0, pending = 0, consumers = 0, held = 0, released = 0
    cdef uint64_t left, delivered, released_count = 0
    cdef Sum none, group, owner
    cdef bint tape = sink.mode == VALUE_TAPE, digest = sink.mode == VALUE_DIGEST
    cdef bint commands = sink.mode == VALUE_COMMANDS
    cdef uint64_t seen, active
    none.low = none.high = group.low = group.high = owner.low = owner.high = 0
    if not (next_string(r, &group_name, 0) and next_length(r, &ms) and next_length(r, &seq)):
        return False
    if type != 15 and not next_length(r, &read_):
        return False
    if digest:
        group = name_of(sink, AS_GROUP_NAME, &none, &group_name)
        sink_named(sink, &sink.groups, AS_GROUP, &group, &group_name, ms, seq, 0)
        if type != 15:
            sink_words(sink, &sink.details, AS_GROUP_DETAILS, group.low, group.high, read_, 0)
    elif tape:
        if not (tape_open(sink) and tape_piece(sink, &group_name) and tape_id(sink, ms, seq)
                and tape_signed(sink, -1 if type == 15 else <int64_t>read_) and tape_open(sink)):
            return False
    elif commands:
        piece_text(&group_name)
        if not stream_group(sink, &group_name, ms, seq, <int64_t>read_):
            return False
    # What is pending.
    if not next_length(r, &pending):
        return False
    left = pending
    while left:
        if not (next_id(r, &ms, &seq) and next_raw(r, 8, &p)):
            return False
        seen = load_le64(p)
        delivered = 0
        if not next_length(r, &delivered):
            return False
        if digest:
            sink_pending(sink, &group, ms, seq, seen, delivered)
        elif tape and not (
                tape_open(sink) and tape_id(sink, ms, seq) and tape_number(sink, seen)
                and tape_number(sink, delivered) and tape_close(sink)):
            return False
        elif commands and not stream_pending(r, p - 16):
            return False
        left -= 1
    if tape and not (tape_close(sink) and tape_open(sink)):
        return False
    # Its consumers.
    if not next_length(r, &consumers):
        return False
    while consumers:
        # (The group's name may lie in the other place.)
        if not (next_string(r, &name, 1) and next_raw(r, 8, &p)):
            return False
        seen = active = load_le64(p)
        if type != 15 and type != 19:
            if not next_raw(r, 8, &p):
                return False
            active = load_le64(p)
        if digest:
            owner = name_of(sink, AS_OWNER, &group, &name)
            sink_named(sink, &sink.details, AS_CONSUMER, &owner, &name, seen,
                       0 if type == 15 or type == 19 else active, 0)
        elif tape and not (
                tape_open(sink) and tape_piece(sink, &name) and tape_signed(sink, <int64_t>seen)
                and tape_signed(sink, -2 if type == 15 or type == 19 else <int64_t>active)
                and tape_open(sink)):
            return False
        left = 0
        if not next_length(r, &left):
            return False
        held += left
        if held < left or held > pending:
            return wrong(r, b"each pending entry with one consumer")
        if commands:
            piece_text(&name)
            if not stream_consumer(sink, &group_name, &name, left):
                return False
        while left:
            if not next_id(r, &ms, &seq):
                return False
            if digest:
                sink_words(sink, &sink.groups, AS_OWNED, owner.low, owner.high, ms, seq)
            elif tape and not tape_id(sink, ms, seq):
                return False
            elif commands and not stream_claim(r, &group_name, &name, r.at - 16):
                return False
            left -= 1
        if commands and not stream_claims_end(sink):
            return False
        if tape and not (tape_close(sink) and tape_close(sink)):
            return False
        consumers -= 1
    if type >= 27:
        if tape and not (tape_close(sink) and tape_open(sink)):
            return False
        if not next_length(r, &released):
            return False
        if released > pending - held:
            return wrong(r, b"what was given back among what is pending")
        held += released
        released_count = released
        while released:
            if not next_id(r, &ms, &seq):
                return False
            if digest:
                sink_words(sink, &sink.groups, AS_RELEASED, group.low, group.high, ms, seq)
            elif tape and not tape_id(sink, ms, seq):
                return False
            released -= 1
    if held != pending:
        return wrong(r, b"each pending entry with one consumer")
    if commands:
        return stream_group_end(r, released_count)
    return not tape or (tape_close(sink) and tape_close(sink))


cdef bint decode_producers(ValueReader *r) noexcept nogil:
    """What producers have sent: (id of theirs, id of the entry), so that none is added twice."""
    cdef ElementSink *sink = r.sink
    cdef uint64_t duration = 0, most = 0, producers = 0, sent = 0, ms = 0, seq = 0
    cdef uint64_t added = 0, doubled = 0
    cdef bint any_sent
    cdef Piece name
    cdef Sum none, owner
    cdef bint tape = sink.mode == VALUE_TAPE, digest = sink.mode == VALUE_DIGEST
    none.low = none.high = owner.low = owner.high = 0
    if not (next_length(r, &duration) and next_length(r, &most) and next_length(r, &producers)):
        return False
    if tape and not (
            tape_number(sink, duration) and tape_number(sink, most) and tape_open(sink)):
        return False
    any_sent = producers > 0
    while producers:
        if not (next_string(r, &name, 0) and next_length(r, &sent)):
            return False
        if digest:
            owner = name_of(sink, AS_PRODUCER, &none, &name)
        elif tape and not (tape_open(sink) and tape_piece(sink, &name)):
            return False
        while sent:
            if not (next_string(r, &name, 0) and next_length(r, &ms) and next_length(r, &seq)):
                return False
            if digest:
                sink_named(sink, &sink.details, AS_PRODUCER, &owner, &name, ms, seq, 0)
            elif tape and not (
                    tape_open(sink) and tape_piece(sink, &name) and tape_id(sink, ms, seq)
                    and tape_close(sink)):
                return False
            sent -= 1
        if tape and not tape_close(sink):
            return False
        producers -= 1
    if not (next_length(r, &added) and next_length(r, &doubled)):
        return False
    if digest:
        sink_words(sink, &sink.details, AS_PRODUCER, duration, most, added, doubled)
    elif sink.mode == VALUE_COMMANDS:
        if (any_sent or added or doubled or duration != PRODUCERS_MS or most != PRODUCERS_MOST):
            sink.commanding.stream.lost |= LOSS_PRODUCERS
    return not tape or (
        tape_close(sink) and tape_number(sink, added) and tape_number(sink, doubled))
