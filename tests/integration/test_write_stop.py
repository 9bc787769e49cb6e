"""What clients of the source see of a cut-over: how long, what then, and that nothing is lost."""

from __future__ import annotations

import contextlib
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from benches.support.servers import Binary, Server, few_binaries
from benches.support.waiting import wait_for
from engine.model.replication import Replication
from engine.transfer.fence import PauseFence
from tests.support.library import migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known
from tests.support.standstill import Standstill
from tests.support.timed_clients import KEY, RATE, Client

MOST_SECONDS = 1.0
SETTINGS = "min-replicas-to-write", "min-replicas-max-lag"


def settings_of(server: Server) -> tuple[str, ...]:
    """The settings that the seal changes."""
    client = server.client()
    return tuple(client.config_get(name)[name] for name in SETTINGS)


# The one that pauses everybody, and one that pauses writers alone.
@pytest.mark.parametrize("binary", few_binaries()[-2:], ids=str)
def test_the_write_stop(binary: Binary, server_factory: ServerFactory) -> None:
    """A writer at 20,000 writes a second and a reader, through the cut-over and behind it."""
    source, target = server_factory(binary), server_factory(binary)
    source.client().mset({f"key:{n}": n for n in range(10_000)})

    with (
        Standstill() as stood,
        Client("write", source, target) as writer,
        Client("read", source) as reader,
        migrating(source, target) as run,
    ):
        run.following()
        # However slow the machine is: the writer is well under way, and goes on at the target.
        run.wait_for(lambda: source.client().exists(KEY % (RATE + 1)), "a second's writes", 60)
        run.cut_over()
        taken = source.client().dbsize() + RATE // 4
        wait_for(lambda: target.client().dbsize() > taken, "writes at the target", 60)
    assert run.report.status == "done", (run.report.errors, run.events)
    written, seen = writer.said, reader.said
    print(
        f"\n{binary}: at {RATE:,} writes/s, from the last write that the source took to its "
        f"refusal {written['stop'] * 1000:.0f} ms, to the first one that the target took "
        f"{written['gap'] * 1000:.0f} ms; longest gap of a reader {seen['longest'] * 1000:.0f} ms; "
        f"from the fence to the open target {(run.report.fence_seconds or 9) * 1000:.0f} ms"
    )
    # The writer was there all the time, and was told at once.
    assert written["acknowledged"] > RATE
    assert "NOREPLICAS" in written["error"], written["error"]
    most = MOST_SECONDS + stood.seconds
    assert written["stop"] < most
    assert written["gap"] < most
    assert written["longest"] < most
    assert seen["longest"] < most
    # Nothing that either acknowledged is missing, and nothing that the source refused is there.
    pipe = target.client().pipeline(transaction=False)
    for n in range(written["written"]):
        pipe.get(KEY % n)
    assert [n for n, value in enumerate(pipe.execute()) if value != b"%d" % n] == []
    assert source.client().exists(*(KEY % n for n in written["lacking"])) == 0
    assert_tidy(target)


def test_a_source_that_refuses(binary: Binary, server_factory: ServerFactory) -> None:
    """Every kind of write, loudly, until an operator takes it back as the event says."""
    source, target = server_factory(binary), server_factory(binary)
    client = source.client()
    client.config_set("min-replicas-max-lag", 0)
    client.set("key", "1")

    def wait(command: str, *words: object) -> None:
        waiting = redis.Connection(port=source.port, socket_timeout=20)
        waiting.send_command(command, *words)
        with contextlib.suppress(redis.ConnectionError):
            while waiting.read_response():
                pass
            raise AssertionError("nothing came, and the link is still there")

    with ThreadPoolExecutor() as pool:
        # Who waits at a source without writers would wait for ever.
        waits = [pool.submit(wait, "BLPOP", "queue", 0), pool.submit(wait, "SUBSCRIBE", "channel")]
        with migrating(source, target) as run:
            run.following()
            run.cut_over()
        assert run.report.status == "done", (run.report.errors, run.events)
        for each in waits:
            each.result()
    client = source.client()
    assert client.get("key") == b"1"
    writes = [
        lambda: client.set("key", "2"),
        lambda: client.pipeline(transaction=True).incr("n").execute(),
    ]
    if binary.version >= (6, 2, 0):
        writes.append(lambda: client.eval("return redis.call('SET', 'key', '3')", 0))
    for write in writes:
        with pytest.raises(redis.ResponseError, match=r"NOREPLICAS|EXECABORT"):
            write()
    (told,) = (event for event in run.events if "refuses writes" in event)
    for name, value in re.findall(r"CONFIG SET (\S+) (\d+)", told):
        client.config_set(name, value)
    assert settings_of(source) == ("0", "0")
    assert client.set("key", "2")


def test_a_source_that_goes_on(binary: Binary, server_factory: ServerFactory) -> None:
    source, target = server_factory(binary), server_factory(binary)
    client = source.client(retry=None)
    before = settings_of(source)
    client.set("key", "1")

    with migrating(source, target, source_after="resume") as run:
        run.following()
        run.cut_over()
        client.set("key", "2")
    assert run.report.status == "done", (run.report.errors, run.events)
    assert settings_of(source) == before
    assert target.client().get("key") == b"1"


def test_a_refused_cut_over_leaves_the_source_as_it_was(
    binary: Binary, server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target stands still when the fence goes up, with a write on its way."""
    source, target = server_factory(binary), server_factory(binary)
    client = source.client()
    client.config_set("min-replicas-max-lag", 7)
    client.set("key", "1")
    close = PauseFence.close
    stood_still: list[bool] = []

    async def behind_a_freeze(self: PauseFence) -> Replication:
        if not stood_still:
            stood_still.append(True)
            target.freeze()
            client.set("key", "1")
        return await close(self)

    monkeypatch.setattr(PauseFence, "close", behind_a_freeze)

    with migrating(source, target, cut_over_timeout=1.5) as run:
        run.following()
        run.in_sync()
        reason = run.refused()
        assert "the deadline of" in reason
        target.thaw()
        assert settings_of(source) == ("0", "7")
        assert source.client(socket_timeout=2).set("key", "2")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert settings_of(source) == ("65535", "7")
    assert target.client().get("key") == b"2"
    assert_tidy(target)


def test_settings_that_look_like_the_seal_and_have_no_effect(
    binary: Binary, server_factory: ServerFactory
) -> None:
    """With a lag of 0 the source takes writes, whatever else is set: it is to be sealed."""
    source, target = server_factory(binary), server_factory(binary)
    client = source.client()
    client.config_set("min-replicas-max-lag", 0)
    client.config_set("min-replicas-to-write", 65535)
    client.set("key", "1")

    with migrating(source, target) as run:
        run.following()
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert run.report.sealed == "65535 0"
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        client.set("key", "2")
    assert target.client().get("key") == b"1"


@pytest.mark.parametrize("denied", ["config|set", "client|kill"])
def test_rights_that_do_not_suffice(server_factory: ServerFactory, denied: str) -> None:
    """What can be done is done, and the rest is said."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    client = source.client(retry=None)
    client.set("key", "1")
    client.acl_setuser(
        "mover", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", f"-{denied}"]
    )
    url = f"redis://mover:pw@{source.host}:{source.port}"

    with migrating(url, target, cut_over_timeout=1.5) as run:
        run.following()
        run.cut_over(source)
    assert run.report.status == "done", (run.report.errors, run.events)
    if denied == "config|set":
        (told,) = (each for each in run.events if "could not be made to refuse writes" in each)
        assert "CONFIG" in told
        assert "still accepts writes" in run.report.lost_writes
        # For a while nobody writes; then the pause is over.
        assert source.client().set("key", "2")
    else:
        (told,) = (each for each in run.events if "were not disconnected" in each)
        assert "CLIENT" in told
        with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
            client.set("key", "2")
    assert_tidy(target)


SCRIPT = "return redis.call('INCR', KEYS[1])"


@pytest.mark.parametrize(
    ("name", "watched"), [("redis-6.0", True), ("redis-6.0", False), ("redis-6.2", False)]
)
def test_scripts_behind_the_cut_over(
    name: str, watched: bool, server_factory: ServerFactory
) -> None:
    """Before 6.2 the source does not refuse what they write: it is held until its clients are
    disconnected. Where Sentinel watches it is not, and how many it ran is told."""
    source, target = server_factory(known(name)), server_factory(known("redis-6.2"))
    client = source.client(retry=None)
    refusals: list[str] = []

    def write() -> None:
        """Scripts until one is refused, or the link is gone; it is dialled once."""
        connection = redis.Connection(port=source.port)
        connection.connect()
        with contextlib.suppress(redis.ConnectionError):
            while True:
                connection.send_command("EVAL", SCRIPT, 1, "scripts")
                try:
                    connection.read_response()
                except redis.ResponseError as error:
                    refusals.append(str(error))
                    return
                time.sleep(0.001)

    with ThreadPoolExecutor() as pool, contextlib.ExitStack() as stack:
        if watched:
            sentinel = source.client(client_name="sentinel-0a1b2c3d-cmd")
            stack.enter_context(sentinel).ping()
        writers = [pool.submit(write) for _ in range(4)]
        with migrating(source, target, disconnect_for=0) as run:
            run.following()
            run.wait_for(lambda: client.exists("scripts"), "scripts")
            run.cut_over()
        assert run.report.status == "done", (run.report.errors, run.events)
        for each in writers:
            each.result()
    lost = int(client.get("scripts")) - int(target.client().get("scripts"))
    told = [event for event in run.events if "since the cut-over" in event]
    (refuses,) = (event for event in run.events if "the source refuses writes from now" in event)
    if source.binary.version >= (6, 2, 0):
        assert (lost, told) == (0, [])
        assert "scripts" not in refuses
        assert "NOREPLICAS" in refusals[0]
        assert run.report.scripts_run is None
        return
    if not watched:
        assert (lost, told, refusals) == (0, [], [])
        assert "it answers no client" in refuses
        assert run.report.scripts_run == 0
        return
    # Those that waited behind the fence were run at its end.
    assert lost > 0
    assert "but for scripts (EVAL)" in refuses
    assert "Sentinel watches it" in refuses
    assert run.report.scripts_run == lost
    assert run.report.writes_run == lost
    many = "1 script" if lost == 1 else f"{lost:,} scripts"
    writes = "1 command that writes" if lost == 1 else f"{lost:,} commands that write"
    (only,) = told
    alone = "what they wrote is only on the source"
    assert only == f"the source has run {many} since the cut-over, with {writes}: {alone}"
    assert run.report.lost_writes.startswith(only)
    assert "(--disconnect-for 0)" in run.report.lost_writes
    # What is no script is refused.
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        client.incr("scripts")
