# What the scan path asks for: runs of keys, in groups.
#
#   group:  [TIME] [TTL of each key]  then by DUMP:  for each key [OBJECT] DUMP
#                                     or by MGET:    [OBJECT of each key] MGET of all
#
# A TTL is asked for before the value, so that a key which is made anew between the two is noticed.
# PTTL is relative and hangs on the TIME before it. The parser walks through the same groups.

cdef enum RunKind:
    RUN_SCAN
    RUN_VALUES
    RUN_PROOF

cdef enum TtlCommand:
    TTL_NONE
    TTL_PTTL
    TTL_PEXPIRETIME

cdef enum AccessCommand:
    ACCESS_NONE
    ACCESS_IDLETIME
    ACCESS_FREQ

cdef enum:
    # Requests under way: runs and proofs, and a SCAN of each range, which always finds a place.
    RUNS_MOST = 512
    RUNS_MOST_OF_ONE = 64
    # Keys that share a TIME, where they share nothing else.
    TIME_EVERY = 16
    # Keys of one MGET at the most: the source's other clients wait for it.
    MGET_KEYS_MOST = 64
    # Bytes of one request for values, beyond its last key.
    REQUEST_BYTES = 1 << 20


cdef struct Run:
    RunKind kind
    # Of values alone: from the queue of keys asked for again; how they are asked for.
    bint again
    bint mget
    TtlCommand ttl
    # Keys that stand together in one group.
    uint64_t group
    uint64_t count
    uint64_t left
    # Of a SCAN alone: the range that it is of.
    uint32_t part


cdef const char *PTTL_HEAD = "*2\r\n$4\r\nPTTL\r\n"
cdef const char *PEXPIRETIME_HEAD = "*2\r\n$11\r\nPEXPIRETIME\r\n"
cdef const char *IDLETIME_HEAD = "*3\r\n$6\r\nOBJECT\r\n$8\r\nIDLETIME\r\n"
cdef const char *FREQ_HEAD = "*3\r\n$6\r\nOBJECT\r\n$4\r\nFREQ\r\n"
cdef const char *TIME_COMMAND = "*1\r\n$4\r\nTIME\r\n"
cdef const char *DUMP_HEAD = "*2\r\n$4\r\nDUMP\r\n"
cdef const char *MGET_NAME = "$4\r\nMGET\r\n"
# See scan_without_ttls.pxi.
cdef bytes PROOF_COMMANDS = (
    b"*2\r\n$4\r\nINFO\r\n$8\r\nkeyspace\r\n*2\r\n$4\r\nINFO\r\n$11\r\npersistence\r\n")


cdef inline uint8_t *put_literal(uint8_t *out, const char *text, size_t n) noexcept nogil:
    memcpy(out, text, n)
    return out + n


cdef inline uint8_t *put_each(
    uint8_t *out, const char *head, size_t head_bytes, const KeyQueue *queue, size_t at,
    uint64_t count,
) noexcept nogil:
    """One command for each of `count` keys from `at` on, or the key alone (no head)."""
    cdef KeyHead entry
    cdef uint64_t i
    for i in range(count):
        entry = queue_entry(queue, at)
        out = put_literal(out, head, head_bytes)
        out = put_bulk(out, queue_name(queue, at), entry.size)
        at += sizeof(KeyHead) + entry.size
    return out


cdef bytes encode_run(KeyQueue *queue, Run *run, AccessCommand access):
    """Requests for the next `run.count` queued keys, or fewer (`REQUEST_BYTES`); sets the counts.
    """
    cdef size_t ttl_bytes = 0, access_bytes = 0, size = 0, at = queue.next, stop, each
    cdef const char *ttl_head = PTTL_HEAD
    cdef const char *access_head = IDLETIME_HEAD
    cdef size_t copies = 1
    cdef size_t group_bytes = 0
    cdef uint64_t i, n
    cdef KeyHead entry
    cdef uint8_t *out
    if run.ttl == TTL_PTTL:
        ttl_bytes, group_bytes = 14, 14
    elif run.ttl == TTL_PEXPIRETIME:
        ttl_head, ttl_bytes = PEXPIRETIME_HEAD, 22
    if access == ACCESS_IDLETIME:
        access_bytes = 30
    elif access == ACCESS_FREQ:
        access_head, access_bytes = FREQ_HEAD, 26
    copies += (ttl_bytes > 0) + (access_bytes > 0)
    each = ttl_bytes + access_bytes + (0 if run.mget else 14)
    # The longest "*<n>" and MGET's name.
    group_bytes += 33 if run.mget else 0
    for i in range(run.count):
        entry = queue_entry(queue, at)
        size += each + copies * bulk_size(entry.size)
        at += sizeof(KeyHead) + entry.size
        if size > REQUEST_BYTES:
            run.count = i + 1
            break
    stop = at
    size += group_bytes * ((run.count + run.group - 1) // run.group)
    result = new_output(size)
    out = result.data
    with nogil:
        at = queue.next
        i = 0
        while i < run.count:
            n = min(run.group, run.count - i)
            if run.ttl == TTL_PTTL:
                out = put_literal(out, TIME_COMMAND, 14)
            if run.ttl != TTL_NONE:
                out = put_each(out, ttl_head, ttl_bytes, queue, at, n)
            if run.mget:
                if access_bytes:
                    out = put_each(out, access_head, access_bytes, queue, at, n)
                out = put_array_header(out, n + 1)
                out = put_literal(out, MGET_NAME, 10)
                out = put_each(out, MGET_NAME, 0, queue, at, n)
                at = skip_entries(queue, at, n)
            else:
                at = put_dumps(&out, access_head, access_bytes, queue, at, n)
            i += n
    run.left = run.count
    queue.next = stop
    queue.queued -= run.count
    queue.outstanding += run.count
    return PyBytes_FromStringAndSize(<char *>result.data, out - result.data)


cdef inline size_t skip_entries(const KeyQueue *queue, size_t at, uint64_t count) noexcept nogil:
    cdef uint64_t i
    for i in range(count):
        at += sizeof(KeyHead) + queue_entry(queue, at).size
    return at


cdef inline size_t put_dumps(
    uint8_t **out, const char *access_head, size_t access_bytes, const KeyQueue *queue, size_t at,
    uint64_t count,
) noexcept nogil:
    """[OBJECT] DUMP for each of `count` keys from `at` on; returns where the next one is."""
    cdef uint64_t i
    for i in range(count):
        if access_bytes:
            out[0] = put_each(out[0], access_head, access_bytes, queue, at, 1)
        out[0] = put_each(out[0], DUMP_HEAD, 14, queue, at, 1)
        at = skip_entries(queue, at, 1)
    return at
