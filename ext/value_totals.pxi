# What all values of a source come to, by type: batch by batch, without an object for a key.

@cython.final
cdef class ValueTotals:
    """Counts keys by the type of their values; those of a value that cannot be decoded too, with the
    bytes that it has.

    Attributes:
        not_decoded: how many of these there were.
    """
    cdef ValueDecoder decoder
    cdef readonly uint64_t not_decoded
    # The last row is of types that are not known.
    cdef uint64_t keys[KINDS + 1]
    cdef uint64_t elements[KINDS + 1]
    cdef uint64_t bytes[KINDS + 1]
    cdef uint64_t memory[KINDS + 1]
    cdef uint64_t with_ttl[KINDS + 1]

    def __cinit__(self):
        self.decoder = ValueDecoder()

    cdef inline void note(
        self, int kind, uint64_t elements, uint64_t size, uint64_t memory, bint ttl
    ) noexcept nogil:
        if kind < 0:
            kind = KINDS
        self.keys[kind] += 1
        self.elements[kind] += elements
        self.bytes[kind] += size
        self.memory[kind] += memory
        self.with_ttl[kind] += ttl

    def add(self, RecordBatch batch not None, int64_t above):
        """Count the records of a batch, which is not streamed. The indexes of those that take more
        memory than `above`, in their order. Raises `MemoryError`."""
        cdef size_t i, size
        cdef const uint8_t *value
        cdef Record *record
        cdef ElementSink *sink = &self.decoder.sink
        cdef ValueReader *reader = &self.decoder.reader
        cdef uint64_t memory
        cdef DecodeEnd end
        cdef Bytes found
        cdef uint32_t index
        cdef int flavour
        if batch.streamed:
            raise ValueError("the value of a streamed record is not here")
        memset(&found, 0, sizeof(Bytes))
        sink.mode = VALUE_LOOK
        try:
            with nogil:
                end = DECODED
                for i in range(batch.arena.count):
                    record = &batch.arena.records[i]
                    value = batch.arena.data + record.offset + record.key_size
                    if record.value_size <= FOOTER_BYTES:
                        self.not_decoded += 1
                        self.note(-1, 0, 0, 0, record.expire_at >= 0)
                        continue
                    size = record.value_size - FOOTER_BYTES
                    flavour = payload_flavour(value + size)
                    end = decode_value(reader, flavour, value, size)
                    if end == DECODE_NO_MEMORY:
                        break
                    if end == DECODED:
                        memory = memory_of(sink, record.key_size, record.expire_at >= 0)
                        self.note(sink.kind, sink.count, size, memory, record.expire_at >= 0)
                    else:
                        memory = size
                        self.not_decoded += 1
                        self.note(
                            kind_of(flavour, value[0]), 0, size, memory, record.expire_at >= 0)
                    if <int64_t>memory > above:
                        index = <uint32_t>i
                        if not bytes_reserve(&found, 4, SIZE_MAX):
                            end = DECODE_NO_MEMORY
                            break
                        memcpy(found.data + found.size, &index, 4)
                        found.size += 4
            self.decoder.release()
            if end == DECODE_NO_MEMORY:
                raise MemoryError()
            return [(<uint32_t *>found.data)[i] for i in range(found.size // 4)]
        finally:
            bytes_free(&found)

    def count(self, str kind not None, uint64_t size, bint ttl):
        """Count a key whose value was not decoded; "?": its type is not known."""
        place = _KIND_NAMES.index(kind) if kind in _KIND_NAMES else KINDS
        self.not_decoded += 1
        self.note(place, 0, size, size, ttl)

    @property
    def types(self):
        """(Keys, elements, bytes as DUMP has them, memory, keys with expire times) by type."""
        return {
            _KIND_NAMES[kind] if kind < KINDS else "?": (
                self.keys[kind], self.elements[kind], self.bytes[kind], self.memory[kind],
                self.with_ttl[kind])
            for kind in range(KINDS + 1) if self.keys[kind]
        }
