# Which slots of a cluster one lane brings, for whoever reads commands or records for it.

@cython.final
cdef class SlotFilter:
    """Slots as a bitmap: what is to go to one node of a cluster, or to come from one. Read-only.

    Args:
        ranges: (first, last) of slots from 0 to 16383, in any order. ValueError for others.
        keyless: commands that name no key, and that the target needs once, are this reader's as
            well (PUBLISH).
    """
    cdef uint8_t bits[SLOT_SET_BYTES]
    cdef readonly tuple ranges
    cdef readonly bint keyless
    cdef size_t count

    def __cinit__(self, ranges, *, bint keyless):
        cdef int first, last, slot
        self.ranges = tuple((first, last) for first, last in ranges)
        self.keyless = keyless
        for first, last in self.ranges:
            if not 0 <= first <= last < SLOT_COUNT:
                raise ValueError(f"not a range of slots: ({first}, {last})")
            for slot in range(first, last + 1):
                self.count += not self.has_slot(slot)
                self.bits[slot >> 3] |= <uint8_t>(1 << (slot & 7))

    def __len__(self):
        """How many slots."""
        return self.count

    def __contains__(self, int slot):
        return 0 <= slot < SLOT_COUNT and self.has_slot(slot)

    def __repr__(self):
        return f"<SlotFilter of {self.count} slots>"

    def takes(self, key not None):
        """Whether the key, any contiguous buffer, is in one of the slots."""
        return key_slot(key) in self

    cdef inline bint has_slot(self, int slot) noexcept nogil:
        return self.bits[slot >> 3] >> (slot & 7) & 1

    cdef inline bint has_key(self, const uint8_t *key, size_t n) noexcept nogil:
        return self.has_slot(slot_of(key, n))
