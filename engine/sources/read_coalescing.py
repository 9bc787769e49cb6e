"""How long the socket of a followed source rests after a read.

Theory. What a read brings goes through one round: it is parsed, is one transaction on the target,
and is acknowledged. A round costs the same however little it carries, and a source that is written
to sends hundreds of small portions a second, one for each turn of its loop: a round for each costs
several times what the commands do. What comes while the socket rests waits in the kernel, and is
one portion and one round afterwards.

- The rest begins behind a read. What comes after a quiet moment is read at once; only what follows
  on its heels waits, for `MOST_SECONDS` at the most.
- Every byte of the read buys some of it, so that a stream of single commands hardly waits (a lone
  SET buys a millisecond), and that of a busier one grows from read to read until it is the longest.
- A read that filled its room, or brought much, is followed by the next at once: the socket is to
  be drained, for the source cuts off a replica that leaves too much behind. How much can lie there
  is the kernel's affair: a receive buffer has room for 64 KiB at first, and grows with a reader
  that keeps up. Were 64 KiB taken every 4 ms, 16 MB a second would be the most.
- While an offset is waited for (the cut-over's last bytes) there is none.
- Lanes that share a process share its rounds as well: three that rest as long as one of them would
  alone make three times as many. So each rests so many times longer, up to `_LANES_MOST` times,
  while what comes meanwhile is little.
"""

from __future__ import annotations

MOST_SECONDS = 0.004
"""The longest rest of a lane that is alone."""
_LANES_MOST = 4
_SECONDS_A_BYTE = 10e-6
# What comes in the longest rest at 100,000 small commands a second is a little less.
_MUCH_BYTES = 65_000


def rest_after(nbytes: int, *, filled: bool, hurried: bool, lanes: int = 1) -> float:
    """Seconds of rest after a read of `nbytes` bytes; 0: none.

    `filled`: the read took all the room there was. `hurried`: an offset is waited for. `lanes`: how
    many share the process.
    """
    if filled or hurried or nbytes >= _MUCH_BYTES:
        return 0.0
    times = min(lanes, _LANES_MOST) if nbytes < _MUCH_BYTES // 2 else 1
    return min(nbytes * _SECONDS_A_BYTE, MOST_SECONDS * times)
