# When the bytes of a stream came: for the lag in seconds, and to anchor relative TTLs.
#
# One sample says that everything up to a position had come at a time. The samples are bounded: those
# that came close together are one, and when there are too many every two neighbours become one. A
# byte is never said to have come later than it did, so a lag is never understated.

cdef struct Receipt:
    uint64_t end
    double at

cdef enum:
    RECEIPTS_MOST = 8192

# Seconds within which two receipts count as one.
cdef double RECEIPT_SECONDS = 0.001


@cython.final
cdef class ReceiveTimes:
    """When the bytes of a stream came. Positions count bytes; times are of one clock, in seconds."""
    cdef Receipt *receipts
    cdef size_t count

    def __cinit__(self):
        self.receipts = <Receipt *>PyMem_RawMalloc((RECEIPTS_MOST + 1) * sizeof(Receipt))
        if self.receipts == NULL:
            raise MemoryError()

    def __dealloc__(self):
        PyMem_RawFree(self.receipts)

    def __len__(self):
        return self.count

    def add(self, uint64_t end, double at):
        """The bytes up to position `end` have come now, at `at`."""
        cdef size_t kept = 0, i
        if self.count and at - self.receipts[self.count - 1].at < RECEIPT_SECONDS:
            self.receipts[self.count - 1].end = end
            return
        self.receipts[self.count] = Receipt(end, at)
        self.count += 1
        if self.count > RECEIPTS_MOST:
            # Of each two the end of the second, and the time of the first.
            for i in range(0, self.count, 2):
                self.receipts[kept].at = self.receipts[i].at
                self.receipts[kept].end = self.receipts[min(i + 1, self.count - 1)].end
                kept += 1
            self.count = kept

    cdef size_t index_of(self, uint64_t position) noexcept nogil:
        """Of the first receipt with that byte or one behind it; `count`: there is none."""
        cdef size_t low = 0, high = self.count, middle
        while low < high:
            middle = (low + high) // 2
            if self.receipts[middle].end < position:
                low = middle + 1
            else:
                high = middle
        return low

    def at(self, int64_t position):
        """When byte number `position` (the first is 1) came; None: not yet, or forgotten."""
        cdef size_t index = self.index_of(max(position, 0))
        return self.receipts[index].at if index < self.count else None

    def together(self, uint64_t position, double seconds):
        """The last byte of the run from `position` on that came within `seconds`."""
        cdef size_t index = self.index_of(position), last
        if index >= self.count:
            return position
        last = index
        while last + 1 < self.count and (
                self.receipts[last + 1].at < self.receipts[index].at + seconds):
            last += 1
        return self.receipts[last].end

    @property
    def crowded(self):
        """Whether `forget` is worth a call: what is kept is moved by it."""
        return self.count > RECEIPTS_MOST // 8

    def forget(self, int64_t position):
        """Bytes up to `position` are not asked for again."""
        cdef size_t index = self.index_of(max(position, 0))
        self.count -= index
        memmove(self.receipts, self.receipts + index, self.count * sizeof(Receipt))
