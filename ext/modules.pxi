# Values of module types: which a target may be sent, by the type's name.
#
# A module's value begins with its type byte and the id of the module's type: nine characters in the
# upper 54 bits, the version of its encoding in the others (module.c). A server that lacks the module
# refuses the value at best; some end their process. So such values are looked at before they leave.
#
# FalkorDB notes the queries of each graph in a stream `telemetry{GRAPH}`, at every server for itself:
# it is written by the module, and no replica gets it. Where the source has the module, such streams
# are taken out too.

cdef enum:
    MODULE_TYPE_1 = 6             # as the pre-releases of 4.0 wrote them: no release loads them
    MODULE_TYPE_2 = 7
    MODULES_KEPT = 64             # verdicts that are kept without a Python object
    STREAM_HEAD = 96              # so many bytes of a stream's beginning hold its first field's name

cdef enum ModuleVerdict:
    MODULE_UNKNOWN
    MODULE_FINE
    MODULE_ADDS
    MODULE_REFUSED


cdef inline bint is_module_value(const uint8_t *value, size_t size) noexcept nogil:
    return size > 0 and (value[0] == MODULE_TYPE_2 or value[0] == MODULE_TYPE_1)


cdef inline uint64_t module_of(const uint8_t *value, size_t size) noexcept nogil:
    """The id of the type of a module's value without the version; 0: it cannot be read."""
    cdef uint64_t id = 0
    if value[0] != MODULE_TYPE_2 or length_head(value + 1, size - 1, &id) <= 0:
        return 0
    return id >> 10


cdef inline bint is_stream_value(const uint8_t *value, size_t size) noexcept nogil:
    return size > 1 and (
        value[0] == 15 or value[0] == 19 or value[0] == 21 or value[0] == 26 or value[0] == 27)


cdef bint is_telemetry_of(
    const uint8_t *key, size_t key_size, const uint8_t *value, size_t size
) noexcept nogil:
    """Whether this is a stream in which FalkorDB notes queries, by its name and its first field.

    The field's name is in the head of the first listpack, which LZF leaves as it is: nothing before
    it is there twice. A stream without entries has no fields, and is taken for one by its name.
    """
    cdef size_t i, most
    if key_size < 11 or memcmp(key, b"telemetry{", 10) != 0 or key[key_size - 1] != c"}":
        return False
    if not is_stream_value(value, size):
        return False
    if value[1] == 0:
        return True
    most = min(size, <size_t>STREAM_HEAD)
    for i in range(2, most):
        if most - i >= 12 and memcmp(value + i, b"\x8bReceived at", 12) == 0:
            return True
    return False


def is_telemetry(bytes key not None, bytes payload not None):
    """Whether this is a stream in which FalkorDB notes queries, by its name and its value (the DUMP
    payload, or the first 96 bytes of one)."""
    return is_telemetry_of(
        <const uint8_t *>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key),
        <const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))


def module_type(bytes payload not None):
    """The name of the module type of a value (its DUMP payload, or the first ten bytes of one);
    None where it is no module's, an empty text where the name cannot be read."""
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(payload)
    cdef uint64_t id
    if not is_module_value(p, PyBytes_GET_SIZE(payload)):
        return None
    id = module_of(p, PyBytes_GET_SIZE(payload))
    return module_name(id << 10) if id else ""


@cython.final
cdef class ModuleGuard:
    """Says of each module type what a target does with its values.

    Args:
        judge: called with the name of a type once; gives (refusal, adds): why such values are not
            to be sent, or an empty text; and whether RESTORE … REPLACE may add to what is there.
        telemetry: whether the streams in which FalkorDB notes queries are taken out.
    """
    cdef readonly bint telemetry
    cdef object judge
    cdef uint64_t ids[MODULES_KEPT]
    cdef uint8_t verdicts[MODULES_KEPT]
    cdef int count
    cdef dict reasons

    def __cinit__(self, judge, *, bint telemetry=False):
        self.judge = judge
        self.telemetry = telemetry
        self.reasons = {}

    cdef inline ModuleVerdict known(self, uint64_t id) noexcept nogil:
        cdef int i
        for i in range(self.count):
            if self.ids[i] == id:
                return <ModuleVerdict>self.verdicts[i]
        return MODULE_UNKNOWN

    cdef ModuleVerdict verdict(self, uint64_t id) except *:
        cdef ModuleVerdict found = self.known(id)
        if found != MODULE_UNKNOWN:
            return found
        refusal, adds = self.judge(module_name(id << 10) if id else "")
        found = MODULE_REFUSED if refusal else MODULE_ADDS if adds else MODULE_FINE
        if refusal:
            self.reasons[id] = refusal
        if self.count < MODULES_KEPT:
            self.ids[self.count] = id
            self.verdicts[self.count] = found
            self.count += 1
        return found

    cdef str reason(self, uint64_t id):
        return self.reasons[id]

    def refusal(self, bytes payload not None):
        """Why this value (a DUMP payload) is not to be sent; empty: it may be."""
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(payload)
        cdef uint64_t id
        if not is_module_value(p, PyBytes_GET_SIZE(payload)):
            return ""
        id = module_of(p, PyBytes_GET_SIZE(payload))
        return self.reason(id) if self.verdict(id) == MODULE_REFUSED else ""

    def adds(self, bytes payload not None):
        """Whether RESTORE … REPLACE of this value may add to what is there."""
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(payload)
        if not is_module_value(p, PyBytes_GET_SIZE(payload)):
            return False
        return self.verdict(module_of(p, PyBytes_GET_SIZE(payload))) == MODULE_ADDS

    def withhold(self, RecordBatch batch not None, bytes head=None):
        """Take out of `batch` what is not to be sent; it is named in `batch.withheld`, or in
        `batch.telemetry`.

        `head`: the first 96 bytes, or all, of the value of a streamed batch. ValueError for such
        a batch without it.
        """
        cdef Arena *arena = &batch.arena
        cdef const uint8_t *value
        cdef Record *record
        cdef size_t i, size, kept = 0
        cdef uint64_t id
        cdef ModuleVerdict found
        if batch.streamed:
            if head is None:
                raise ValueError("the head of a streamed value is needed")
            i = 0
        else:
            with nogil:
                i = self.first_to_judge(arena)
        kept = i
        while i < arena.count:
            record = &arena.records[i]
            if batch.streamed:
                value, size = <const uint8_t *>PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head)
            else:
                value, size = arena.data + record.offset + record.key_size, record.value_size
            found = MODULE_FINE
            id = 0
            if is_module_value(value, size):
                id = module_of(value, size)
                found = self.verdict(id)
            if found == MODULE_REFUSED:
                key = PyBytes_FromStringAndSize(
                    <char *>arena.data + record.offset, record.key_size)
                batch.withheld.append((key, self.reason(id)))
                batch.value_bytes -= record.value_size
            elif self.telemetry and is_telemetry_of(
                    arena.data + record.offset, record.key_size, value, size):
                batch.telemetry.append(PyBytes_FromStringAndSize(
                    <char *>arena.data + record.offset, record.key_size))
                batch.value_bytes -= record.value_size
            else:
                if found == MODULE_ADDS:
                    batch.adding += record.key_size + DEL_OVERHEAD
                    record.adds = True
                arena.records[kept] = record[0]
                kept += 1
            i += 1
        arena.count = kept

    cdef size_t first_to_judge(self, const Arena *arena) noexcept nogil:
        """The first record whose value is a module's, or a stream; their number if there is none.
        """
        cdef const Record *record
        cdef size_t i
        for i in range(arena.count):
            record = &arena.records[i]
            if is_module_value(arena.data + record.offset + record.key_size, record.value_size):
                return i
            if self.telemetry and is_stream_value(
                    arena.data + record.offset + record.key_size, record.value_size):
                return i
        return arena.count
