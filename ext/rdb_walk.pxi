# The interpreter of walks: finds where a value, or what an opcode brings, ends.
#
# It stops at any byte and goes on from there. What it keeps between two portions of the input is
# small: the place in the walk, what is left of a string's body, and a stack of counts.

cdef enum WalkStop:
    WALK_MORE            # the input ends before the walk
    WALK_ENDED
    WALK_TEMPLATE        # `noted` is the id of a template: put its number of fields into `counted`
    WALK_WRONG           # what is next at `at` is not what the walk expects

cdef struct Walk:
    int16_t place        # in `walk_ops`
    int depth
    uint64_t loops[WALK_DEPTH]  # rounds that are left, this one included
    uint64_t body_left   # of a string's body, or of bytes without a head
    uint64_t counted
    uint64_t noted
    size_t at            # in the input: walked up to here
    uint8_t *slots       # the set of slots that ranges are noted in; NULL: they are not


cdef inline void walk_begin(Walk *walk, int16_t place, size_t at) noexcept nogil:
    walk.place = place
    walk.depth = 0
    walk.body_left = 0
    walk.at = at


cdef WalkStop walk_on(Walk *walk, const uint8_t *data, size_t end) noexcept nogil:
    """Go on from `walk.at`, at the most up to `end`."""
    cdef size_t at = walk.at
    cdef uint64_t number = 0
    cdef StringHead head
    cdef int size = 0
    cdef uint8_t op
    while True:
        if walk.body_left:
            if end - at < walk.body_left:
                walk.body_left -= end - at
                walk.at = end
                return WALK_MORE
            at += walk.body_left
            walk.body_left = 0
        op = walk_ops[walk.place]
        if op == c"s":
            size = string_head(data + at, end - at, &head)
            if size > 0:
                walk.body_left = head.body
        elif op == c">":
            walk.loops[walk.depth - 1] -= 1
            if walk.loops[walk.depth - 1]:
                walk.place = walk_jumps[walk.place]
            else:
                walk.depth -= 1
            walk.place += 1
            continue
        elif op == c"8" or op == c"x" or op == c"4":
            walk.body_left = 8 if op == c"8" else 16 if op == c"x" else 4
            walk.place += 1
            continue
        elif op == c"l":
            size = length_head(data + at, end - at, &number)
        elif op == c"c":
            size = length_head(data + at, end - at, &walk.counted)
        elif op == c"i":
            size = length_head(data + at, end - at, &walk.noted)
        elif op == c"<":
            if walk.counted:
                walk.loops[walk.depth] = walk.counted
                walk.depth += 1
            else:
                walk.place = walk_jumps[walk.place]
            walk.place += 1
            continue
        elif op == 0:
            walk.at = at
            return WALK_ENDED
        elif op == c"d":
            size = 1 if at < end else 0
            if size:
                # Above 252 stand nan and the infinities, and no digits.
                walk.body_left = data[at] if data[at] < 253 else 0
        elif op == c"m":
            size = module_item(walk, data + at, end - at, &number)
            if size > 0 and number:
                at += size
                continue
        elif op == c"r":
            size = length_head(data + at, end - at, &walk.noted)
            if size > 0:
                walk.place += 1
                walk.at = at + size
                return WALK_TEMPLATE
        else:
            size = rare_item(walk, op, data + at, end - at)
        if size <= 0:
            break
        at += size
        walk.place += 1
    walk.at = at
    return WALK_MORE if size >= 0 else WALK_WRONG


cdef int module_item(
    Walk *walk, const uint8_t *p, size_t n, uint64_t *kind
) noexcept nogil:
    """One item that a module wrote; kind 0 is the end. Returns as `length_head` does."""
    cdef uint64_t number
    cdef StringHead head
    cdef int size = length_head(p, n, kind)
    cdef int more
    if size <= 0:
        return size
    if kind[0] == 0:
        return size
    if kind[0] == 3 or kind[0] == 4:
        walk.body_left = 4 if kind[0] == 3 else 8
        return size
    if kind[0] == 5:
        more = string_head(p + size, n - size, &head)
        if more > 0:
            walk.body_left = head.body
    elif kind[0] == 1 or kind[0] == 2:
        more = length_head(p + size, n - size, &number)
    else:
        return -1
    return size + more if more > 0 else more


cdef int rare_item(Walk *walk, uint8_t op, const uint8_t *p, size_t n) noexcept nogil:
    """A length, and what follows from it. Returns as `length_head` does."""
    cdef uint64_t kind, number
    cdef StringHead head
    cdef int size = length_head(p, n, &kind)
    cdef int more
    if size <= 0:
        return size
    if op == c"f":
        if kind > 1:
            return -1
        if kind == 0:
            return size
        more = length_head(p + size, n - size, &number)
        return size + more if more > 0 else more
    if op == c"b":
        walk.noted = kind
        return size
    if op == c"e":
        if kind >= SLOT_SET_BYTES * 8 or walk.noted > kind:
            return -1
        if walk.slots != NULL:
            for number in range(walk.noted, kind + 1):
                walk.slots[number >> 3] |= <uint8_t>(1 << (number & 7))
        return size
    if op == c"g" and kind == 0:
        return size
    if op == c"t" and (kind == 1 or kind == 2):
        walk.body_left = 8
        return size
    if op == c"t" and kind > 3:
        return -1
    more = string_head(p + size, n - size, &head)
    if more <= 0:
        return more
    walk.body_left = head.body
    return size + more
