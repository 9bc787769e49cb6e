# Values without their TTLs: when that is safe, and how it is proven afterwards.
#
# In a database where no key has a TTL, asking for each key's is a third of the source's work.
# INFO tells how many keys of a database have one (`expires`), but for one moment only: a lock that
# is taken with a TTL, read by us and released again would be on the target for good. So two
# questions are asked on both sides of the values, over the same connection, whose commands the
# server runs in their order:
#
#     proof 0 · values · proof 1 · values · proof 2 …       proof: INFO keyspace, INFO persistence
#
# Values are proven when both proofs around them say that the database holds no key with a TTL,
# and that nothing was written between them (`rdb_changes_since_last_save` counts every write to any
# database; a save sets it back, so the saves are compared as well). A TTL comes by a write, so
# then none of the keys had one when it was read. What is not proven is dropped, and its keys are
# asked for again, each with its TTL. Until then the records stay in the arena's tail, never longer
# than one batch, and the pages of SCAN that named the keys are not passed.

cdef bytes info_field(bytes text, bytes name):
    """The value of a field of INFO; None if it is not there."""
    cdef Py_ssize_t at
    text = b"\n" + text
    at = text.find(b"\n" + name + b":")
    if at < 0:
        return None
    return text[at + len(name) + 2:].partition(b"\n")[0].strip()


cdef tuple proof_of(bytes keyspace, bytes persistence, int db):
    """What two proofs must agree in; None: this one proves nothing."""
    cdef bytes counts, changes
    if keyspace is None or persistence is None:
        return None
    counts = info_field(keyspace, b"db%d" % db)
    changes = info_field(persistence, b"rdb_changes_since_last_save")
    # A database that is empty, or a server that hides either, proves nothing.
    if counts is None or not changes or b"expires=0" not in counts.split(b","):
        return None
    return (
        changes,
        info_field(persistence, b"rdb_last_save_time"),
        info_field(persistence, b"rdb_bgsave_in_progress"),
        # Redis 7.0 and later; the time is in whole seconds.
        info_field(persistence, b"rdb_saves"),
    )
