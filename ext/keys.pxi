# Names of keys on their way to their values: a flat queue, and a count of open keys for each page
# of SCAN that named them.

cdef enum KeyFate:
    # Not answered yet.
    FATE_OPEN
    # Its record is in the arena.
    FATE_READ
    # Gone, refused, or too long: it has been counted or named.
    FATE_DONE
    # It stands in the queue of those that are asked for again, and its page waits for that.
    FATE_AGAIN


cdef struct KeyHead:
    uint32_t size
    # Number of the page that named it, from 0 on.
    uint32_t page
    KeyFate fate


cdef struct KeyQueue:
    # Entries are a KeyHead and the name. [head, at) are answered and held until that is proven,
    # [at, next) asked for, [next, tail) not yet.
    uint8_t *data
    size_t capacity
    size_t head
    size_t at
    size_t next
    size_t tail
    uint64_t queued
    uint64_t outstanding


cdef inline bint queue_reserve(KeyQueue *queue, size_t n) noexcept nogil:
    """Room at the tail for an entry with a name of `n` bytes; False: no memory."""
    cdef size_t need = sizeof(KeyHead) + n
    cdef size_t capacity
    cdef uint8_t *grown
    if queue.capacity - queue.tail >= need:
        return True
    if queue.head > 0 and queue.head >= (queue.capacity >> 1):
        memmove(queue.data, queue.data + queue.head, queue.tail - queue.head)
        queue.at -= queue.head
        queue.next -= queue.head
        queue.tail -= queue.head
        queue.head = 0
        if queue.capacity - queue.tail >= need:
            return True
    capacity = queue.capacity * 2 if queue.capacity else 64 * 1024
    if capacity < queue.tail + need:
        capacity = queue.tail + need
    grown = <uint8_t *>PyMem_RawRealloc(queue.data, capacity)
    if grown == NULL:
        return False
    queue.data = grown
    queue.capacity = capacity
    return True


cdef inline KeyHead queue_entry(const KeyQueue *queue, size_t at) noexcept nogil:
    cdef KeyHead head
    memcpy(&head, queue.data + at, sizeof(KeyHead))
    return head


cdef inline const uint8_t *queue_name(const KeyQueue *queue, size_t at) noexcept nogil:
    return queue.data + at + sizeof(KeyHead)


cdef inline void queue_begin(KeyQueue *queue, uint32_t size, uint32_t page) noexcept nogil:
    """An entry at the tail; room is reserved, its name follows and `queued` counts it then."""
    cdef KeyHead head = KeyHead(size, page, FATE_OPEN)
    memcpy(queue.data + queue.tail, &head, sizeof(KeyHead))
    queue.tail += sizeof(KeyHead)


cdef inline bint queue_copy(KeyQueue *queue, const KeyQueue *other, size_t at) noexcept nogil:
    """Append the entry at `at` of `other`, which may be the same queue; False: no memory."""
    cdef KeyHead head = queue_entry(other, at)
    cdef size_t before = other.head
    if not queue_reserve(queue, head.size):
        return False
    if other == queue:
        # The reserving may have moved it to the front.
        at -= before - other.head
    queue_begin(queue, head.size, head.page)
    if head.size:
        memcpy(queue.data + queue.tail, queue_name(other, at), head.size)
    queue.tail += head.size
    queue.queued += 1
    return True


cdef enum:
    # Pages of SCAN whose keys are not all answered for.
    PAGES_MOST = 4096
    # Ranges of one table that are scanned beside each other.
    RANGES_MOST = 128


# A table's buckets are passed in the order of their numbers' bits, the lowest first, so that a
# table which grows or shrinks meanwhile is passed all the same (dict.c, hashtable.c: `scan`).
# Cursors are compared by their bits turned round.
cdef inline uint64_t turned(uint64_t v) noexcept nogil:
    v = ((v >> 1) & 0x5555555555555555ULL) | ((v & 0x5555555555555555ULL) << 1)
    v = ((v >> 2) & 0x3333333333333333ULL) | ((v & 0x3333333333333333ULL) << 2)
    v = ((v >> 4) & 0x0F0F0F0F0F0F0F0FULL) | ((v & 0x0F0F0F0F0F0F0F0FULL) << 4)
    v = ((v >> 8) & 0x00FF00FF00FF00FFULL) | ((v & 0x00FF00FF00FF00FFULL) << 8)
    v = ((v >> 16) & 0x0000FFFF0000FFFFULL) | ((v & 0x0000FFFF0000FFFFULL) << 16)
    return (v >> 32) | (v << 32)


cdef struct TableRange:
    uint64_t next         # cursor for its next SCAN
    uint64_t stop         # where it ends; 0: at the end of the table
    uint64_t passed       # every key of the range before this cursor is answered for
    bint scanning         # a SCAN of it is under way
    bint scanned          # SCAN has come to its end
    bint over             # every key of it is answered for
    bint follows          # it begins where the one before it ends


cdef inline bint range_ends(const TableRange *part, uint64_t cursor) noexcept nogil:
    """Whether nothing of the range lies behind `cursor`."""
    if cursor == 0:
        return True
    return part.stop != 0 and turned(cursor) >= turned(part.stop)


cdef inline bint range_advances(const TableRange *part, uint64_t cursor) noexcept nogil:
    """Whether `cursor` may follow the range's last one in such a table."""
    return cursor == 0 or turned(cursor) > turned(part.next)


cdef enum:
    # Names at a range's beginning that are known. The page that ends the range before it reaches
    # over so many keys at the most, but for tables whose hashes fall very unevenly.
    FIRST_NAMES_MOST = 256


# The first names of a range, by their digests: what the last page of the range before it names
# beyond its end is among them, and would come twice. It is left out there. Pages are passed in the
# order in which they came, so a position behind that last page is behind these keys as well.
cdef struct FirstNames:
    uint64_t low[FIRST_NAMES_MOST]
    uint64_t high[FIRST_NAMES_MOST]
    uint32_t count


cdef inline void first_names_add(FirstNames *names, uint64_t low, uint64_t high) noexcept nogil:
    names.low[names.count] = low
    names.high[names.count] = high
    names.count += 1


cdef inline bint first_names_have(const FirstNames *names, uint64_t low, uint64_t high) noexcept nogil:
    cdef uint32_t i
    for i in range(names.count):
        if names.low[i] == low and names.high[i] == high:
            return True
    return False


cdef struct Page:
    uint64_t cursor       # of the page behind it
    uint32_t part         # which range it is of
    uint64_t open         # its keys that are not answered for
    bint complete         # all of its keys are named


cdef struct Pages:
    Page ring[PAGES_MOST]
    uint32_t first        # number of the oldest
    uint32_t count
    bint moved            # a range's `passed` has changed, and no batch says so yet
    bint any
    TableRange ranges[RANGES_MOST]


cdef inline uint32_t pages_last(const Pages *pages) noexcept nogil:
    return pages.first + pages.count - 1


cdef inline Page *page_of(Pages *pages, uint32_t number) noexcept nogil:
    return &pages.ring[number % PAGES_MOST]


cdef inline void pages_begin(Pages *pages, uint64_t cursor, uint32_t part) noexcept nogil:
    pages.count += 1
    page_of(pages, pages_last(pages))[0] = Page(cursor, part, 0, False)


cdef inline void pages_pass(Pages *pages) noexcept nogil:
    """Move the position over the pages at the front that have no open key."""
    cdef Page *page
    cdef TableRange *part
    while pages.count:
        page = page_of(pages, pages.first)
        if page.open or not page.complete:
            return
        part = &pages.ranges[page.part]
        part.passed = page.cursor
        part.over = range_ends(part, page.cursor)
        pages.any = True
        pages.moved = True
        pages.first += 1
        pages.count -= 1


cdef inline void key_settled(Pages *pages, uint32_t number) noexcept nogil:
    """One key of the page `number` is answered for."""
    page_of(pages, number).open -= 1
    if number == pages.first:
        pages_pass(pages)
