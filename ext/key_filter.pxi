# Which keys of a stream a reader wants: those in some slots of a cluster, those that rules take.

@cython.final
cdef class KeyFilter:
    """Slots, rules, or both: then a key is wanted that both take. Read-only.

    Args:
        slots: None: those of every slot.
        rules: None: all of these. They must not ask for types, which a stream does not tell
            (ValueError).
    """
    cdef readonly SlotFilter slots
    cdef readonly KeyRules rules
    cdef bint by_slot
    cdef bint by_rule

    def __cinit__(self, SlotFilter slots, KeyRules rules):
        if rules is not None and rules.by_type:
            raise ValueError("the type of a key is not known from its name")
        self.slots, self.by_slot = slots, slots is not None
        self.rules, self.by_rule = rules, rules is not None

    def takes(self, int db, key not None):
        """Whether the key, any contiguous buffer, of this database is wanted."""
        cdef const uint8_t[::1] view = key
        return self.has_key(db, &view[0] if view.shape[0] else NULL, view.shape[0])

    cdef inline bint has_key(self, int32_t db, const uint8_t *key, size_t n) noexcept nogil:
        if self.by_slot and not self.slots.has_key(key, n):
            return False
        return not self.by_rule or self.rules.judge(db, RULE_ANY, key, n) == RULES_TAKE
