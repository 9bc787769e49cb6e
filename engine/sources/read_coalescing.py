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
- To wake up costs as much as a round or two, and the first round behind it more than the next one.
  So lanes that share a process wake up together: a rest that would be the longest ends with the
  next beat of the loop's clock, which is the same for all of them. The beat of two lanes is twice
  as long as the longest rest of a lane that is alone, that of a few 2.5 times, that of more than
  `_FEW` lanes four times, while what comes meanwhile is little.
"""

from __future__ import annotations

MOST_SECONDS = 0.004
"""The longest rest of a lane that is alone."""
# So many lanes have the shorter beats.
_FEW = 6
_SECONDS_A_BYTE = 10e-6
# What comes in the longest rest at 100,000 small commands a second is a little less.
_MUCH_BYTES = 65_000


def rest_after(
    nbytes: int, *, filled: bool, hurried: bool, lanes: int = 1, now: float = 0.0
) -> float:
    """Seconds of rest after a read of `nbytes` bytes; 0: none.

    `filled`: the read took all the room there was. `hurried`: an offset is waited for. `lanes`: how
    many share the process, and the loop's clock, which says `now`.
    """
    if filled or hurried or nbytes >= _MUCH_BYTES:
        return 0.0
    bought = nbytes * _SECONDS_A_BYTE
    if lanes == 1:
        return min(bought, MOST_SECONDS)
    times = 1.0
    if nbytes < _MUCH_BYTES // 2:
        times = min(lanes, 2.5) if lanes <= _FEW else 4.0
    if bought < MOST_SECONDS * times:
        return bought
    # In whole milliseconds, as uvloop's timers are.
    beat = round(MOST_SECONDS * times * 1000)
    return (beat - round(now * 1000) % beat) / 1000
