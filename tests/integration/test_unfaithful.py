"""What the source's stream does not say as a server means it: read again, left out, or passed on.

Each test is one migration between real servers, to the end of its cut-over: what the source holds
then, the target holds as well.
"""

from __future__ import annotations

import pytest

from engine.transfer.transfer import Transfer
from tests.conftest import ServerFactory
from tests.converge import assert_settled
from tests.online import cut_over, following, in_sync, online
from tests.servers import Server, binaries
from tests.transfers import Run

Ends = tuple[Server, Server]


def pair(server_factory: ServerFactory, source: str, target: str, *options: str) -> Ends:
    """Servers of these releases (the beginnings of their names); skips where there are none."""
    found = []
    for wanted in (source, target):
        named = [each for each in binaries() if each.name.startswith(wanted)]
        if not named:
            pytest.skip(f"no {wanted} on this machine")
        found.append(named[0])
    return server_factory(found[0], *options), server_factory(found[1])


@pytest.mark.parametrize("publish", ["pass", "drop"])
def test_messages(server_factory: ServerFactory, publish: str) -> None:
    """Sentinels of both ends never find each other through us; others are heard, or not."""
    source, target = pair(server_factory, "redis-7.0", "valkey-9")
    client, listener = source.client(), target.client().pubsub()
    listener.psubscribe("*")
    assert listener.get_message(timeout=5)["type"] == "psubscribe"  # type: ignore[index]

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        client.publish("__sentinel__:hello", "127.0.0.1,26379,id,0,one,127.0.0.1,6379,0")
        client.publish("news", "one")
        pipe = client.pipeline(transaction=True)
        pipe.set("key", "value").publish("__sentinel__:hello", "m").publish("news", "two")
        pipe.execute()
        await in_sync(work, source)
        assert work.progress.lag_bytes == 0
        await cut_over(work, run, source)

    run = online(source, target, steer, publish=publish)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)
    target.client().publish("last", "m")
    heard = []
    while not heard or heard[-1] != b"last":
        message = listener.get_message(timeout=5)
        assert message is not None
        heard.append(message["channel"])
    assert heard == ([b"news", b"news"] if publish == "pass" else []) + [b"last"]


@pytest.mark.parametrize("both", [True, False])
def test_a_command_of_an_unknown_name(server_factory: ServerFactory, both: bool) -> None:
    """As a module's, or a newer server's: its keys are read again, and an event names it once."""
    renamed = ("--rename-command", "INCRBY", "BUMP")
    source, target = pair(server_factory, "redis-7.0", "redis-7.0", *renamed)
    if both:
        target = server_factory(target.binary, *renamed)
    client = source.client()

    async def steer(work: Transfer, run: Run) -> None:
        await in_sync(work, source)
        for n in range(20):
            client.execute_command("BUMP", f"counter:{n % 5}", n)
            client.copy("counter:0", f"copy:{n}", replace=True)
        await in_sync(work, source)
        await cut_over(work, run, source)

    run = online(source, target, steer)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_settled(source, target, 2)
    assert target.client().get("counter:4") == b"%d" % sum(range(4, 20, 5))
    told = [event for event in run.events if "BUMP" in event]
    assert len(told) == 1, run.events
    assert "is not known here: each key that it names is read again" in told[0]
