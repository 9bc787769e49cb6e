"""How much a server reads at a time.

A server reads its clients' commands 16 KiB at a time, and writes its replies before it reads on:
where commands never end, the kernel's work for both is a tenth of a target's. Behind one long
argument (PROTO_MBULK_BIG_ARG, networking.c) a server keeps a buffer of that argument's length for
the next one, and from Redis 7.0 on it reads as much as its buffer holds. It gives the buffer back
when nothing has come for some seconds. To older servers it makes no difference.
"""

from __future__ import annotations

WIDEN_READS = ("PING", b"-" * (64 << 10))
"""Has the server read up to 64 KiB at a time from the connection that it comes over. What is
answered means nothing: the server has read the argument before it looks at rights."""
