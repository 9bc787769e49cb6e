"""A trouble is over once the target has taken something: it is shown no more, and one that comes
long after it is a new one.
"""

from __future__ import annotations

from benches.support.proxy import Proxy
from tests.support.library import Run, migrating
from tests.support.servers import ServerFactory, known

TRIES = 30


def unseen(run: Run) -> int:
    """How many batches were applied without their answer being seen, since it is followed."""
    follower = run.work._way.lanes[0]._follower  # type: ignore[union-attr]
    return 0 if follower is None else follower.unseen


def test_an_answer_that_is_lost_and_names_no_key(server_factory: ServerFactory) -> None:
    """A PUBLISH is on the target, as the position there says; nothing is to be read again."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    client = source.client()
    with (
        Proxy(target.host, target.port) as between,
        migrating(source, between, retry_for=8.0) as run,
    ):
        run.in_sync()
        for n in range(TRIES):
            before, connections = unseen(run), between.connections
            between.cut_after(0, "down")
            client.publish("channel", "message")
            run.wait_for(lambda: between.connections > connections, "a new link")  # noqa: B023
            run.wait_for(lambda: run.progress.lag_bytes == 0, "the rest")
            if unseen(run) > before:
                break
            client.set("key", n)
            run.in_sync()
        else:
            raise AssertionError("each answer was seen")
        client.set("key", "behind")
        # The gate is open, and stays so without anything that is read again.
        run.in_sync()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().get("key") == b"behind"
