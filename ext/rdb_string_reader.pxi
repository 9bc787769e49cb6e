# A string that is decoded: a key, an AUX field, a function. In place where it lies in the input
# whole and plain, as nearly all keys do; collected where a cut goes through it.

cdef enum TextStop:
    TEXT_MORE
    TEXT_READY           # `data` and `size`, until the input moves or the next text begins
    TEXT_WRONG           # no string
    TEXT_TOO_LONG
    TEXT_NO_MEMORY

cdef enum:
    # More memory than this is not kept for the next text.
    TEXT_KEPT = 1 << 20

cdef struct Bytes:
    uint8_t *data
    size_t size
    size_t capacity


cdef inline bint bytes_reserve(Bytes *bytes_, size_t n, size_t most) noexcept nogil:
    """Room for `n` more, doubling, but to no more than `most` in all."""
    cdef size_t capacity
    cdef uint8_t *data
    if bytes_.capacity - bytes_.size >= n:
        return True
    capacity = max(bytes_.size + n, min(bytes_.capacity * 2, most))
    data = <uint8_t *>PyMem_RawRealloc(bytes_.data, capacity)
    if data == NULL:
        return False
    bytes_.data = data
    bytes_.capacity = capacity
    return True


cdef inline void bytes_free(Bytes *bytes_) noexcept nogil:
    PyMem_RawFree(bytes_.data)
    memset(bytes_, 0, sizeof(Bytes))


cdef struct Text:
    const uint8_t *data
    size_t size
    size_t limit
    bint begun
    StringHead head
    Bytes raw            # as it came
    Bytes plain          # decoded
    uint8_t number[24]


cdef inline void text_begin(Text *text, size_t limit) noexcept nogil:
    text.limit = limit
    text.begun = False
    text.raw.size = 0


cdef inline void text_release(Text *text) noexcept nogil:
    """It has been used: a large one's memory is given back."""
    if text.raw.capacity > TEXT_KEPT:
        bytes_free(&text.raw)
    if text.plain.capacity > TEXT_KEPT:
        bytes_free(&text.plain)


cdef TextStop text_on(Text *text, const uint8_t *data, size_t *start, size_t end) noexcept nogil:
    """Go on from `start`, which moves past what was taken in, at the most up to `end`."""
    cdef const uint8_t *p = data + start[0]
    cdef size_t n = end - start[0]
    cdef StringHead *head = &text.head
    cdef int size
    if not text.begun:
        size = string_head(p, n, head)
        if size == 0:
            return TEXT_MORE
        if size < 0:
            return TEXT_WRONG
        if head.body > text.limit or head.plain > text.limit or (
                head.encoding == STRING_LZF and head.plain > head.body * LZF_RATIO_MOST):
            return TEXT_TOO_LONG
        if n - size >= head.body:
            start[0] += size + head.body
            return text_decode(text, p + size)
        if head.encoding == STRING_INTEGER:
            return TEXT_MORE
        start[0] += size
        p += size
        n -= size
        text.begun = True
    n = min(<uint64_t>n, head.body - text.raw.size)
    if n:
        if not bytes_reserve(&text.raw, n, head.body):
            return TEXT_NO_MEMORY
        memcpy(text.raw.data + text.raw.size, p, n)
        text.raw.size += n
        start[0] += n
    if text.raw.size < head.body:
        return TEXT_MORE
    return text_decode(text, text.raw.data)


cdef TextStop text_decode(Text *text, const uint8_t *body) noexcept nogil:
    cdef int64_t number
    cdef uint8_t *out = text.number
    cdef size_t plain = text.head.plain
    if text.head.encoding == STRING_RAW:
        text.data = body
        text.size = plain
        return TEXT_READY
    if text.head.encoding == STRING_INTEGER:
        number = little_endian(body, <int>text.head.body)
        if number < 0:
            out[0] = 45
            out += 1
        out = put_decimal(out, <uint64_t>-number if number < 0 else <uint64_t>number)
        text.data = text.number
        text.size = out - text.number
        return TEXT_READY
    text.plain.size = 0
    # One byte more: memory of size 0 is no memory.
    if not bytes_reserve(&text.plain, plain + 1, plain + 1):
        return TEXT_NO_MEMORY
    if not lzf_inflate(body, text.head.body, text.plain.data, plain):
        return TEXT_WRONG
    text.data = text.plain.data
    text.size = plain
    return TEXT_READY


cdef enum:
    # Bytes of all texts in what a module keeps beside the keys.
    MODULE_TEXTS_MOST = 64 << 20


def module_items(bytes data not None):
    """What a module keeps beside the keys, as a list of numbers (int, float) and texts (bytes) in
    their order: `data` is of `SnapshotReader.module_data`. The first number says when it was
    written: before the keys (1) or behind them (2). ValueError for what is not sound."""
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef size_t size = PyBytes_GET_SIZE(data), at = 0, total = 0
    cdef uint64_t kind = 0, number = 0
    cdef int head
    cdef Text text
    cdef TextStop stop
    cdef float single
    cdef double real
    memset(&text, 0, sizeof(Text))
    found = []
    head = length_head(p, size, &number)
    if head <= 0:
        raise ValueError("no id of a module's type")
    at = head
    try:
        while True:
            head = length_head(p + at, size - at, &kind)
            if head <= 0:
                raise ValueError("no kind of an item")
            at += head
            if kind == 0:
                return found
            if kind == 1 or kind == 2:
                head = length_head(p + at, size - at, &number)
                if head <= 0:
                    raise ValueError("no number")
                at += head
                found.append(<int64_t>number if kind == 1 else number)
            elif kind == 3 and size - at >= 4:
                memcpy(&single, p + at, 4)
                at += 4
                found.append(float(single))
            elif kind == 4 and size - at >= 8:
                memcpy(&real, p + at, 8)
                at += 8
                found.append(real)
            elif kind == 5:
                text_begin(&text, MODULE_TEXTS_MOST - total)
                stop = text_on(&text, p, &at, size)
                if stop == TEXT_NO_MEMORY:
                    raise MemoryError()
                if stop != TEXT_READY:
                    raise ValueError("no sound text")
                total += text.size
                found.append(PyBytes_FromStringAndSize(<char *>text.data, text.size))
            else:
                raise ValueError(f"no item of kind {kind}")
    finally:
        bytes_free(&text.raw)
        bytes_free(&text.plain)
