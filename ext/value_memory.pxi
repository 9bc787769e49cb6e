# About how much memory a key takes in a server: what MEMORY USAGE would say, within a third.
#
# Servers differ, and so do their versions and allocators; where a server can be asked it is the one
# that knows. Of a file nobody does: the figure tells keys apart by their order of size.

cdef enum:
    # An entry of the keyspace with its object: robj, dictEntry, a place in the table; an expire time.
    MEMORY_KEY = 56
    MEMORY_EXPIRE = 40
    # An sds: its head, its end, what the allocator rounds up; of a short string's object.
    MEMORY_STRING = 11
    MEMORY_STRING_VALUE = 3

# Of an element that stands for itself: dictEntry, a place in the table; of a member of a sorted set
# its node in the skiplist too.
cdef uint64_t MEMORY_ELEMENT[KINDS]
for _kind in range(KINDS):
    MEMORY_ELEMENT[_kind] = {
        KIND_STRING: 0, KIND_SET: 35, KIND_HASH: 51, KIND_ZSET: 75, KIND_ARRAY: 16}.get(_kind, 40)


cdef uint64_t memory_of(const ElementSink *sink, size_t key_size, bint ttl) noexcept nogil:
    """Bytes of a key of this size with the value that was looked at."""
    cdef uint64_t found = MEMORY_KEY + MEMORY_STRING + key_size + (MEMORY_EXPIRE if ttl else 0)
    cdef double share
    if sink.kind == KIND_STRING:
        return found + sink.bytes + MEMORY_STRING_VALUE
    if sink.loose:
        share = <double>min(sink.loose, sink.count) / <double>max(sink.count, <uint64_t>1)
        found += <uint64_t>(<double>sink.bytes * share)
        found += sink.loose * (MEMORY_ELEMENT[<int>sink.kind] + MEMORY_STRING)
    elif not sink.packed:
        # What a module wrote: no more is known of it.
        found += sink.bytes
    return found + sink.packed
