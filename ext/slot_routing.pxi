# Which commands of a stream go to one lane's target, and what becomes of the others: by slots, where
# lanes part keys by them, and by rules.
#
# By slots:
#
#   all keys in one of the lane's slots        as it is
#   all keys in one other slot                 left out: another lane's
#   keys of several slots                      where it comes to the same as several commands (`parts`
#                                              in the table) it becomes those, a command a slot; all
#                                              else is not sent, and what it writes in the lane's
#                                              slots is for the main flow to read again (across)
#   unknown keys, slots that are moved         across
#   no keys                                    to each lane, or to the one that takes such
#                                              (`keyless`), in the database 0, as the target may
#                                              have no other
#
# Over lanes whose slots make up all of them each key's change goes to one lane exactly, or is read
# again there. What is left out stays in the offsets, as a PING does.
#
# By rules:
#
#   all keys taken                             as it is
#   none taken                                 left out
#   some taken                                 where it may go in parts it becomes one command with
#                                              those that are taken; all else is across: what it
#                                              writes of what is taken is read again
#   keys that it does not name: scripts,       across, whatever it names: it must not touch what the
#   SORT BY                                    target has beside
#   FLUSHALL, FLUSHDB                          here, for the main flow, which has the target's keys
#                                              that are taken removed by name
#   SWAPDB of databases of which keys are      across: everything is copied again
#   taken
#   other commands without keys                left out: messages, functions, scripts, search indexes
#                                              are the whole server's. But for HIMPORT, which is its
#                                              connection's, and what writes keys that it does not
#                                              name, which is across
#
# Where there are both a key is taken that both take.
#
# A command that is across stays in the batch, and no encoder sends it.

cdef enum Routing:
    ROUTE_HERE
    ROUTE_ELSEWHERE
    ROUTE_ACROSS
    ROUTE_PARTS
    ROUTE_NO_MEMORY

cdef enum:
    # Keys that are grouped by slot at once; a longer command becomes several for a slot.
    GROUPED_MOST = 4096
    NO_GROUP = 0xffffffff

cdef struct KeyGroup:
    # Of a command: a key with what belongs to it, from the key's header on.
    size_t at
    size_t size
    # The next one of the same slot.
    uint32_t next

cdef struct SlotGroups:
    KeyGroup groups[GROUPED_MOST]
    # By slot: its first and its last group, valid only where `count` says so.
    uint32_t first[SLOT_COUNT]
    uint32_t last[SLOT_COUNT]
    uint32_t count[SLOT_COUNT]
    # The slots that have any, in the order of their first keys.
    uint16_t slots[GROUPED_MOST]
    uint32_t slot_count
    uint32_t group_count


cdef const uint8_t *argument_behind(const uint8_t *p, uint64_t count) noexcept nogil:
    """The header of the argument behind the next `count`."""
    cdef size_t size
    while count:
        p = argument_body(p, &size)
        p += size + 2
        count -= 1
    return p


cdef Routing route_walked(
    KeyFilter filter, const CommandRow *row, const uint8_t *command, int32_t db
) noexcept nogil:
    """Where a command goes that names keys."""
    cdef KeyWalk walk
    cdef WalkStep step
    cdef int slot = 0, first = -1
    cdef bint one = True, whole = True, some = False, writes = False, taken
    if not begin_walk(&walk, row, command, db):
        return ROUTE_ACROSS
    step = next_key(&walk)
    while step == WALK_KEY:
        taken = True
        if filter.by_slot:
            slot = slot_of(walk.key, walk.size)
            taken = filter.slots.has_slot(slot)
        if taken and filter.by_rule:
            taken = filter.rules.judge(
                walk.key_db, RULE_ANY, walk.key, walk.size) == RULES_TAKE
        if first < 0:
            first = slot
        one = one and slot == first
        whole = whole and taken
        some = some or taken
        writes = writes or (walk.role & ROLE_WRITTEN and taken)
        step = next_key(&walk)
    if step == WALK_UNKNOWN or first < 0:
        return ROUTE_ACROSS
    if row.flags & FLAG_SCRIPT and (filter.by_rule or not (one and whole)):
        # It may write keys that it does not name.
        return ROUTE_ACROSS
    if one and whole:
        # SORT BY or GET of a pattern reads whatever it matches.
        return ROUTE_ACROSS if walk.unnamed else ROUTE_HERE
    if not some:
        return ROUTE_ELSEWHERE
    if row.flags & FLAG_PARTS:
        return ROUTE_PARTS
    return ROUTE_ACROSS if writes else ROUTE_ELSEWHERE


cdef Routing route_keyless(
    KeyFilter filter, const CommandRow *row, StreamCommand *command, const uint8_t *bytes
) noexcept nogil:
    """Where a command goes that names no key. Of FLUSHDB and what modules have the database counts."""
    cdef uint64_t count
    cdef size_t size
    cdef int64_t one, other
    cdef const uint8_t *p = first_argument(bytes, &count)
    p = argument_behind(p, 1)
    if row.stream_name == NAME_SWAPDB:
        # Two numbers, or the stream would have ended here.
        database_number(p, &one)
        database_number(argument_behind(p, 1), &other)
        if one == other or filter.by_rule and not (
                filter.rules.touches(<int>one) or filter.rules.touches(<int>other)):
            return ROUTE_ELSEWHERE
        return ROUTE_ACROSS
    if filter.by_rule:
        return route_keyless_by_rule(filter, row, command)
    if row.stream_name != NAME_FLUSHDB and not row.flags & FLAG_MODULE:
        command.db = 0
    if row.stream_name == NAME_PUBLISH:
        return ROUTE_HERE if filter.slots.keyless else ROUTE_ELSEWHERE
    if row.stream_name == NAME_SPUBLISH:
        if count < 2:
            return ROUTE_ELSEWHERE
        p = argument_body(p, &size)
        return ROUTE_HERE if filter.slots.has_key(p, size) else ROUTE_ELSEWHERE
    if row.flags & FLAG_WRITES_UNNAMED and not row.flags & FLAG_MODULE:
        return ROUTE_ACROSS
    return ROUTE_HERE


cdef Routing route_keyless_by_rule(
    KeyFilter filter, const CommandRow *row, StreamCommand *command
) noexcept nogil:
    """The same of others than SWAPDB where there are rules."""
    if row.flags & FLAG_FLUSHES:
        if row.stream_name == NAME_FLUSHDB and not filter.rules.touches(command.db):
            return ROUTE_ELSEWHERE
        return ROUTE_HERE
    if row.flags & FLAG_WRITES_UNNAMED:
        return ROUTE_ACROSS
    return ROUTE_HERE if memcmp(row.name, b"himport", 7) == 0 else ROUTE_ELSEWHERE


cdef bint is_conditional(const uint8_t *p, uint64_t count) noexcept nogil:
    """Whether NX or XX is among these arguments."""
    cdef size_t size
    while count:
        p = argument_body(p, &size)
        if is_keyword(p, size, "nx", 2) or is_keyword(p, size, "xx", 2):
            return True
        p += size + 2
        count -= 1
    return False


cdef bint find_parts(
    const CommandRow *row, const uint8_t *command, uint64_t *first, uint64_t *groups,
    uint64_t *step,
) noexcept nogil:
    """Of a command that may go in parts: the first argument that is a key, how many keys there are,
    and from one to the next. False where it is not as its row has it, or sets all keys or none."""
    cdef const KeyPart *part = &row.parts[0]
    cdef uint64_t count
    cdef int64_t number
    cdef size_t size
    cdef const uint8_t *p = first_argument(command, &count)
    step[0] = part.step
    first[0] = part.first
    if part.form == FORM_RANGE:
        groups[0] = (count - first[0]) // step[0]
        return count > first[0] and not (count - first[0]) % step[0]
    p = argument_body(argument_behind(p, first[0]), &size)
    if not parse_decimal(p, p + size, &number) or number < 1:
        return False
    p += size + 2
    first[0] += 1
    groups[0] = <uint64_t>number
    if groups[0] > (count - first[0]) // step[0]:
        return False
    p = argument_behind(p, groups[0] * step[0])
    return not is_conditional(p, count - first[0] - groups[0] * step[0])


cdef uint32_t group_keys(
    SlotGroups *into, KeyFilter filter, int32_t db, const uint8_t *base, const uint8_t **at,
    uint64_t left, uint64_t step,
) noexcept nogil:
    """Group the next keys by slot, of those that are ours; returns how many were looked at, and
    moves `at` behind them. `base`: what places are counted from."""
    cdef uint32_t seen = 0, place
    cdef uint64_t i
    cdef size_t size
    # Without slots all keys go together.
    cdef int slot = 0
    cdef bint taken
    cdef const uint8_t *p = at[0]
    cdef const uint8_t *begin
    for i in range(into.slot_count):
        into.count[into.slots[i]] = 0
    into.slot_count = into.group_count = 0
    while seen < left and into.group_count < GROUPED_MOST:
        begin = p
        p = argument_body(p, &size)
        taken = True
        if filter.by_slot:
            slot = slot_of(p, size)
            taken = filter.slots.has_slot(slot)
        if taken and filter.by_rule:
            taken = filter.rules.judge(db, RULE_ANY, p, size) == RULES_TAKE
        p += size + 2
        for i in range(1, step):
            p = argument_body(p, &size)
            p += size + 2
        seen += 1
        if not taken:
            continue
        place = into.group_count
        into.group_count += 1
        into.groups[place].at = begin - base
        into.groups[place].size = p - begin
        into.groups[place].next = NO_GROUP
        if into.count[slot]:
            into.groups[into.last[slot]].next = place
        else:
            into.first[slot] = place
            into.slots[into.slot_count] = <uint16_t>slot
            into.slot_count += 1
        into.last[slot] = place
        into.count[slot] += 1
    at[0] = p
    return seen


cdef inline bint put_piece(
    RawBytes *to, const RawBytes *source, const KeyGroup *group
) noexcept nogil:
    """Append a key with what belongs to it; False: no memory, or what the file says."""
    if to.file != NULL or source.file != NULL:
        return bytes_copy(to, source, group.at, group.size)
    if to.capacity - to.size < group.size and not raw_reserve(to, group.size):
        return False
    memcpy(to.data + to.size, source.data + group.at, group.size)
    to.size += group.size
    return True


cdef Routing put_parts(
    Packed *packed, const StreamCommand *command, KeyFilter filter, SlotGroups *groups,
    const uint8_t *name, size_t name_size,
) noexcept nogil:
    """Add a command, whose bytes lie in `packed.raw`, as one for each of our slots, under `name`.

    ROUTE_ACROSS: it cannot be taken apart, and nothing was added. ROUTE_ELSEWHERE: none of its keys
    are ours.
    """
    cdef const CommandRow *row = &COMMAND_ROWS[command.row]
    cdef const uint8_t *base = packed.raw.data
    cdef const uint8_t *p
    cdef RawBytes *to = &packed.rewritten
    cdef StreamCommand *added
    cdef uint8_t header[ALIAS_BYTES_MOST + 128]
    cdef uint8_t *out
    cdef uint64_t count, first, left, step, options, i
    cdef uint32_t place, in_slot
    cdef size_t options_at, before = packed.count
    cdef bint counted = row.parts[0].form == FORM_COUNT
    if not find_parts(row, base + command.start, &first, &left, &step):
        return ROUTE_ACROSS
    p = argument_behind(first_argument(base + command.start, &count), first)
    options = count - first - left * step
    # What stands behind the keys, which goes with each part.
    options_at = command.start + command.size
    if options:
        options_at = argument_behind(p, left * step) - base
    while left:
        left -= group_keys(groups, filter, command.db, base, &p, left, step)
        for i in range(groups.slot_count):
            in_slot = groups.count[groups.slots[i]]
            out = put_array_header(header, first + in_slot * step + options)
            out = put_bulk(out, name, name_size)
            if counted:
                out = put_number_bulk(out, in_slot)
            if not reserve_commands(packed, 1):
                return ROUTE_NO_MEMORY
            added = &packed.commands[packed.count]
            added[0] = command[0]
            added.start = to.size
            added.rewritten = added.renamed = True
            if not bytes_append(to, header, out - header):
                return ROUTE_NO_MEMORY
            place = groups.first[groups.slots[i]]
            while place != NO_GROUP:
                if not put_piece(to, &packed.raw, &groups.groups[place]):
                    return ROUTE_NO_MEMORY
                place = groups.groups[place].next
            if options and not bytes_copy(
                    to, &packed.raw, options_at, command.start + command.size - options_at):
                return ROUTE_NO_MEMORY
            added.size = to.size - added.start
            packed.count += 1
    return ROUTE_PARTS if packed.count > before else ROUTE_ELSEWHERE
