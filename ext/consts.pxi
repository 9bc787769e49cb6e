# Limits and wire constants that several parts share.

cdef enum:
    # A line of RESP (a length, an integer, an error) is never longer than this from a real server.
    LINE_LIMIT = 64 * 1024
    # What one read may take in; large enough that a busy socket needs few system calls.
    INPUT_BYTES = 256 * 1024
    # Type byte before and RDB version + CRC64 behind the value of a DUMP payload.
    FOOTER_BYTES = 10
    # Keys in one reply to SCAN. COUNT is at most 10,000; a hash bucket's chain adds a few.
    SCAN_REPLY_KEYS_LIMIT = 1 << 24
    # RESTORE's fixed parts: name, array and bulk headers, TTL, REPLACE, ABSTTL, IDLETIME n.
    RESTORE_OVERHEAD = 192
