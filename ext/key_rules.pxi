# Which keys go over: rules on their names, databases and types, looked up without a Python object.
#
# Rules of one database and type are a group, with all prefixes in one sorted table, in which none
# begins with another: the greatest one that is not behind a key is the only one with which the key
# can begin. Globs are matched as the servers do (stringmatchlen of util.c), but that only the last
# star is ever gone back to: if the rest has no match behind where that one was tried first, it has
# none behind an earlier one. Regular expressions are programs of `model.key_regex`, run as a set of
# places in them, a byte at a time (Thompson, Pike): no name takes longer than its length by theirs.
#
# The type of a key may not be known yet. Then what depends on it is an answer of its own.

cdef enum RuleVerdict:
    RULES_LEAVE
    RULES_TAKE
    # It depends on the type.
    RULES_DEPEND

cdef enum RuleMatch:
    MATCH_NO
    MATCH_OF_TYPE
    MATCH_YES

cdef enum RegexOpcode:
    REGEX_MATCH
    REGEX_BYTE
    REGEX_SET
    REGEX_ANY
    REGEX_JUMP
    REGEX_SPLIT
    REGEX_ASSERT
    REGEX_OPCODES

cdef enum RegexAssertion:
    ASSERT_TEXT_BEGIN
    ASSERT_TEXT_END
    ASSERT_LINE_BEGIN
    ASSERT_LINE_END
    ASSERT_WORD_EDGE
    ASSERT_NO_WORD_EDGE
    ASSERTIONS

cdef enum:
    REGEX_STEPS_MOST = 2000
    BYTE_SET_BYTES = 32
    # Of a glob: a byte is itself.
    GLOB_ANY = 256
    GLOB_STAR = 257
    GLOB_SET = 258
    RULE_ANY = -1
    # What is none of the first six of `ValueKind`.
    RULE_OTHER_KIND = 6

REGEX_STEPS_LIMIT = REGEX_STEPS_MOST
"""Steps of the longest program of a regular expression."""

cdef struct RegexStep:
    uint16_t op
    uint16_t x
    uint16_t y

cdef struct RegexRule:
    const RegexStep *steps
    size_t count
    const uint8_t *sets
    # What a match begins with; `anchored`: at the name's beginning.
    const uint8_t *head
    size_t head_size
    bint anchored

cdef struct GlobRule:
    const uint16_t *codes
    size_t count
    const uint8_t *sets

cdef struct RuleGroup:
    int db
    int kind
    # Every name.
    bint every
    const uint8_t *text
    # Where each prefix begins in `text`, and where the last one ends.
    const uint32_t *starts
    size_t prefixes
    size_t first_glob
    size_t globs
    size_t first_regex
    size_t regexes

cdef struct PlaceList:
    uint32_t count
    uint16_t dense[REGEX_STEPS_MOST]
    uint16_t sparse[REGEX_STEPS_MOST]


cdef inline bint in_byte_set(const uint8_t *sets, size_t index, uint8_t byte) noexcept nogil:
    return sets[index * BYTE_SET_BYTES + (byte >> 3)] >> (byte & 7) & 1


cdef inline bint is_word_byte(uint8_t c) noexcept nogil:
    return (c >= c'0' and c <= c'9') or (c >= c'A' and c <= c'Z') or c == c'_' or (
        c >= c'a' and c <= c'z')


cdef inline bint begins_with_one_of(const RuleGroup *group, const uint8_t *key, size_t n) noexcept nogil:
    """Whether one of the group's prefixes begins the key."""
    cdef size_t low = 0, high = group.prefixes, middle, size
    cdef int order
    # The first prefix that is behind the key.
    while low < high:
        middle = (low + high) >> 1
        size = group.starts[middle + 1] - group.starts[middle]
        order = memcmp(group.text + group.starts[middle], key, min(size, n))
        if order < 0 or (order == 0 and size <= n):
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return False
    size = group.starts[low] - group.starts[low - 1]
    return size <= n and memcmp(group.text + group.starts[low - 1], key, size) == 0


cdef bint glob_matches(const GlobRule *glob, const uint8_t *key, size_t n) noexcept nogil:
    cdef size_t at = 0, place = 0, star = 0, tried = 0
    cdef bint has_star = False
    cdef uint16_t code
    while at < n:
        if place < glob.count:
            code = glob.codes[place]
            if code == GLOB_STAR:
                place += 1
                if place == glob.count:
                    return True
                star, tried, has_star = place, at, True
                continue
            if code == GLOB_ANY or code == key[at] or (
                    code >= GLOB_SET and in_byte_set(glob.sets, code - GLOB_SET, key[at])):
                place += 1
                at += 1
                continue
        if not has_star:
            return False
        tried += 1
        at, place = tried, star
    while place < glob.count and glob.codes[place] == GLOB_STAR:
        place += 1
    return place == glob.count


cdef bint holds(uint16_t what, const uint8_t *key, size_t n, size_t at) noexcept nogil:
    """Whether an assertion holds before byte `at` of the key."""
    cdef bint edge
    if what == ASSERT_TEXT_BEGIN:
        return at == 0
    if what == ASSERT_TEXT_END:
        return at == n
    if what == ASSERT_LINE_BEGIN:
        return at == 0 or key[at - 1] == c'\n'
    if what == ASSERT_LINE_END:
        return at == n or key[at] == c'\n'
    edge = (at > 0 and is_word_byte(key[at - 1])) != (at < n and is_word_byte(key[at]))
    return edge == (what == ASSERT_WORD_EDGE)


cdef bint add_places(
    const RegexRule *regex, PlaceList *places, uint32_t place, const uint8_t *key, size_t n, size_t at
) noexcept nogil:
    """Add where the program may go on from `place` before byte `at`; True: it has matched."""
    cdef uint16_t stack[REGEX_STEPS_MOST + 1]
    cdef uint32_t depth = 1, known
    cdef const RegexStep *step
    # Each place that is passed puts one more there than it takes, at the most, and is passed once.
    stack[0] = <uint16_t>place
    while depth:
        depth -= 1
        place = stack[depth]
        while True:
            # A sparse set: no entry has to be set before.
            known = places.sparse[place]
            if known < places.count and places.dense[known] == place:
                break
            places.sparse[place] = <uint16_t>places.count
            places.dense[places.count] = <uint16_t>place
            places.count += 1
            step = &regex.steps[place]
            if step.op == REGEX_MATCH:
                return True
            if step.op == REGEX_JUMP:
                place = step.x
            elif step.op == REGEX_SPLIT:
                stack[depth] = step.y
                depth += 1
                place = step.x
            elif step.op == REGEX_ASSERT:
                if not holds(step.x, key, n, at):
                    break
                place += 1
            else:
                break
    return False


cdef bint regex_matches(const RegexRule *regex, const uint8_t *key, size_t n) noexcept nogil:
    """Whether it matches anywhere in the key."""
    cdef PlaceList lists[2]
    cdef PlaceList *now = &lists[0]
    cdef PlaceList *then = &lists[1]
    cdef PlaceList *other
    cdef const RegexStep *step
    cdef const uint8_t *found
    cdef size_t at = 0
    cdef uint32_t i
    cdef uint8_t byte
    if regex.anchored and regex.head_size:
        if n < regex.head_size or memcmp(key, regex.head, regex.head_size) != 0:
            return False
    # (Every place but the first is unset, and is looked at only behind a check with `count`.)
    memset(now.sparse, 0, regex.count * sizeof(uint16_t))
    memset(then.sparse, 0, regex.count * sizeof(uint16_t))
    now.count = then.count = 0
    if regex.head_size and not regex.anchored:
        found = <const uint8_t *>memchr(key, regex.head[0], n) if n else NULL
        if found == NULL:
            return False
        at = found - key
    if add_places(regex, now, 0, key, n, at):
        return True
    while at < n:
        byte = key[at]
        at += 1
        then.count = 0
        for i in range(now.count):
            step = &regex.steps[now.dense[i]]
            if step.op == REGEX_BYTE:
                if step.x != byte:
                    continue
            elif step.op == REGEX_SET:
                if not in_byte_set(regex.sets, step.x, byte):
                    continue
            elif step.op != REGEX_ANY:
                continue
            if add_places(regex, then, now.dense[i] + 1, key, n, at):
                return True
        if not regex.anchored:
            if add_places(regex, then, 0, key, n, at):
                return True
        elif then.count == 0:
            return False
        other = now
        now = then
        then = other
    return False


@cython.final
cdef class KeyRules:
    """Rules that say which keys go over. Read-only; `model.rules` makes them of what an operator
    writes.

    A group is (database or -1, number of a type or -1, whether every name matches, sorted prefixes
    of which none begins with another, globs, regexes). A glob is (codes, sets), a regex (steps,
    sets, head, anchored), as `model.key_glob` and `model.key_regex` make them. ValueError for others.

    Args:
        included: groups of which a key matches one; empty: every key does.
        excluded: groups of which it matches none.
    """
    cdef RuleGroup *groups
    cdef size_t includes
    cdef size_t count
    cdef GlobRule *globs
    cdef size_t globs_count
    cdef RegexRule *regexes
    cdef size_t regexes_count
    # What the pointers above point into.
    cdef list kept
    cdef readonly bint by_type

    def __cinit__(self, list included not None, list excluded not None):
        cdef list groups = included + excluded
        self.kept = []
        self.includes = len(included)
        self.groups = <RuleGroup *>PyMem_RawCalloc(len(groups) + 1, sizeof(RuleGroup))
        self.globs = <GlobRule *>PyMem_RawCalloc(
            sum([len(each[4]) for each in groups]) + 1, sizeof(GlobRule))
        self.regexes = <RegexRule *>PyMem_RawCalloc(
            sum([len(each[5]) for each in groups]) + 1, sizeof(RegexRule))
        if self.groups == NULL or self.globs == NULL or self.regexes == NULL:
            raise MemoryError()
        for each in groups:
            db, kind, every, prefixes, globs, regexes = each
            self.add_group(db, kind, every, prefixes, globs, regexes)

    def __dealloc__(self):
        PyMem_RawFree(self.groups)
        PyMem_RawFree(self.globs)
        PyMem_RawFree(self.regexes)

    def __repr__(self):
        return f"<KeyRules of {self.count} groups>"

    def takes(self, int db, bytes key not None, int kind=RULE_ANY):
        """Whether a key goes over; None: that depends on its type, whose number `kind` was not
        given."""
        cdef RuleVerdict found = self.judge(
            db, kind, <const uint8_t *>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        return None if found == RULES_DEPEND else found == RULES_TAKE

    def takes_db(self, int db):
        """Whether keys of this database can go over."""
        return self.touches(db)

    def chosen(self, int db, list keys not None):
        """Those of some keys of a database that go over, whatever their types are."""
        cdef list found = []
        cdef bytes key
        for key in keys:
            if self.judge(db, RULE_ANY, <const uint8_t *>PyBytes_AS_STRING(key),
                          PyBytes_GET_SIZE(key)) != RULES_LEAVE:
                found.append(key)
        return found

    cdef bint touches(self, int db) noexcept nogil:
        """Whether keys of this database can go over."""
        cdef const RuleGroup *group
        cdef bint found = self.includes == 0
        cdef size_t i
        for i in range(self.count):
            group = &self.groups[i]
            if group.db != RULE_ANY and group.db != db:
                continue
            if i < self.includes:
                found = True
            elif group.every and group.kind == RULE_ANY:
                return False
        return found

    cdef const uint8_t *keep(self, bytes held):
        self.kept.append(held)
        return <const uint8_t *>PyBytes_AS_STRING(held)

    cdef add_group(self, int db, int kind, bint every, prefixes, globs, regexes):
        cdef RuleGroup *group = &self.groups[self.count]
        if db < RULE_ANY or not RULE_ANY <= kind <= RULE_OTHER_KIND:
            raise ValueError(f"no database and type: {db}, {kind}")
        self.by_type = self.by_type or kind != RULE_ANY
        group.db, group.kind, group.every = db, kind, every
        starts = array.array("I", [0])
        for before, prefix in zip([None, *prefixes], prefixes):
            if before is not None and (before >= prefix or prefix.startswith(before)):
                raise ValueError(f"prefixes in another order: {before!r}, {prefix!r}")
            starts.append(starts[len(starts) - 1] + len(prefix))
        group.text = self.keep(b"".join(prefixes))
        group.starts = <const uint32_t *>self.keep(starts.tobytes())
        group.prefixes = len(prefixes)
        group.first_glob, group.globs = self.globs_count, len(globs)
        for codes, sets in globs:
            self.add_glob(codes, sets)
        group.first_regex, group.regexes = self.regexes_count, len(regexes)
        for steps, sets, head, anchored in regexes:
            self.add_regex(steps, sets, head, anchored)
        self.count += 1

    cdef add_glob(self, codes, bytes sets):
        cdef GlobRule *glob = &self.globs[self.globs_count]
        found = array.array("H", codes)
        if any([code >= GLOB_SET + len(sets) // BYTE_SET_BYTES for code in found]):
            raise ValueError("a glob of sets that are not there")
        glob.codes = <const uint16_t *>self.keep(found.tobytes())
        glob.count = len(found)
        glob.sets = self.keep(sets)
        self.globs_count += 1

    cdef add_regex(self, steps, bytes sets, bytes head, bint anchored):
        cdef RegexRule *regex = &self.regexes[self.regexes_count]
        cdef size_t n = len(steps), most, i = 0
        if not 0 < n <= REGEX_STEPS_MOST:
            raise ValueError(f"a program of {n} steps; at most {REGEX_STEPS_MOST}")
        flat = array.array("H")
        for op, x, y in steps:
            most = (256 if op == REGEX_BYTE else len(sets) // BYTE_SET_BYTES if op == REGEX_SET
                    else n if op == REGEX_JUMP or op == REGEX_SPLIT
                    else ASSERTIONS if op == REGEX_ASSERT else 1)
            if op >= REGEX_OPCODES or x >= most or (op == REGEX_SPLIT and y >= n):
                raise ValueError(f"no step of a program: {(op, x, y)}")
            i += 1
            if i == n and op != REGEX_MATCH and op != REGEX_JUMP:
                raise ValueError("a program that runs over its end")
            flat.extend((op, x, y))
        regex.steps = <const RegexStep *>self.keep(flat.tobytes())
        regex.count = n
        regex.sets = self.keep(sets)
        regex.head = self.keep(head)
        regex.head_size = len(head)
        regex.anchored = anchored
        self.regexes_count += 1

    cdef inline bint names(self, const RuleGroup *group, const uint8_t *key, size_t n) noexcept nogil:
        """Whether the group's rules match the name."""
        cdef size_t i
        if group.every or (group.prefixes and begins_with_one_of(group, key, n)):
            return True
        for i in range(group.first_glob, group.first_glob + group.globs):
            if glob_matches(&self.globs[i], key, n):
                return True
        for i in range(group.first_regex, group.first_regex + group.regexes):
            if regex_matches(&self.regexes[i], key, n):
                return True
        return False

    cdef inline RuleMatch among(
        self, size_t first, size_t end, int db, int kind, const uint8_t *key, size_t n
    ) noexcept nogil:
        cdef RuleMatch found = MATCH_NO
        cdef const RuleGroup *group
        cdef bint of_type
        cdef size_t i
        for i in range(first, end):
            group = &self.groups[i]
            if group.db != RULE_ANY and group.db != db:
                continue
            of_type = group.kind != RULE_ANY and kind == RULE_ANY
            if group.kind != RULE_ANY and not of_type and group.kind != kind:
                continue
            if (of_type and found == MATCH_OF_TYPE) or not self.names(group, key, n):
                continue
            if not of_type:
                return MATCH_YES
            found = MATCH_OF_TYPE
        return found

    cdef inline RuleVerdict judge(
        self, int db, int kind, const uint8_t *key, size_t n
    ) noexcept nogil:
        """Whether a key goes over; `kind` RULE_ANY: its type is not known."""
        cdef RuleMatch included = MATCH_YES
        cdef RuleMatch excluded
        if self.includes:
            included = self.among(0, self.includes, db, kind, key, n)
            if included == MATCH_NO:
                return RULES_LEAVE
        excluded = self.among(self.includes, self.count, db, kind, key, n)
        if excluded == MATCH_YES:
            return RULES_LEAVE
        if included == MATCH_YES and excluded == MATCH_NO:
            return RULES_TAKE
        return RULES_DEPEND


cdef inline int rule_kind(int flavour, int type) noexcept nogil:
    """What rules call the type of a value, by its number in a payload."""
    cdef int kind = kind_of(flavour, type)
    if flavour == FLAVOUR_REDIS and (type == 30 or type == 32):
        # A hash of a template, which a snapshot has.
        return KIND_HASH
    return kind if 0 <= kind < RULE_OTHER_KIND else RULE_OTHER_KIND
