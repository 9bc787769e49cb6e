"""What a source has run behind its cut-over, by its own figures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.model.calls_despite_write_block import Calls, calls_words, since, total
from engine.transfer.scripts_behind_cut_over import calls_in

COUNTS = st.integers(0, 1 << 40)
CALLS = st.builds(Calls, COUNTS, COUNTS)


def test_what_counts() -> None:
    """Scripts, and commands that write: not what only reads, publishes, or is about clients."""
    names = ("eval", "evalsha", "incr", "flushall", "swapdb", "get", "pfcount", "exec", "publish")
    names += ("select", "config", "replconf", "info", "unknown.command", "script")
    lines = (f"cmdstat_{name}:calls=10,usec=7,usec_per_call=0.70" for name in names)
    text = "# Commandstats\r\n" + "\r\n".join(lines) + "\r\n"
    assert calls_in(text.encode()) == Calls(scripts=20, writes=30)
    for nothing in (None, b"", b"# Commandstats\r\n", b"cmdstat_get:calls=?,usec=1", [b"x"]):
        assert calls_in(nothing) is None


@given(CALLS, CALLS)
def test_what_was_run_since(before: Calls, more: Calls) -> None:
    now = total(before, more)
    assert since(now, before) == more
    assert since(None, before) is None
    assert since(now, None) is None
    # Where the figures were reset, what was counted since.
    reset = since(more, now)
    assert reset is not None
    assert reset.scripts == (more.scripts if before.scripts else 0)
    # Of a source whose writes were not asked for, they are not known.
    assert since(now, Calls(before.scripts)) == Calls(more.scripts)
    assert total(Calls(0), more) == more


def test_words() -> None:
    alone = "what they wrote is only on the source"
    assert calls_words("it", Calls(1)) == f"it has run 1 script since the cut-over: {alone}"
    assert calls_words("it", Calls(2000, 1), "meanwhile") == (
        f"it has run 2,000 scripts meanwhile, with 1 command that writes: {alone}"
    )
    assert calls_words("it", Calls(0, 3)) == (
        "it has run 3 commands that write since the cut-over, of transactions (MULTI) that were "
        f"begun before it: {alone}"
    )
    assert not Calls(0, 0).any
    assert not Calls(0).any
