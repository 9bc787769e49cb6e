"""A target that comes back from before what was stored there while the position stayed where it is:
the source sent nothing meanwhile, so that the place in its stream tells nothing of that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benches.support.servers import Server
from engine._native import key_slot
from engine.model.endpoint import Endpoint
from engine.model.lane_keys import KeysOfLane
from engine.model.position import StreamPosition, TargetPosition
from engine.model.settings import TransferSettings
from engine.model.slots import SlotSet
from engine.targets.applier import Applier, PositionMoved
from engine.wire.event_loop import run
from tests.support.raw_replica import POSITION_KEY, batch_of
from tests.support.scenario import NewScenario
from tests.support.servers import ServerFactory, known

QUIET = ("--repl-ping-replica-period", "3600")
# Its file is cut off where it is to come back from.
TARGET = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


def back_to_before(target: Server, command: bytes, begins: bytes = b"*1\r\n$5\r\nMULTI") -> None:
    """Kill it, and have it come back from before the last command of these bytes, or what begins so
    and has it."""
    target.kill()
    (file,) = target.folder.glob("appendonlydir/*.incr.aof")
    data = file.read_bytes()
    at = data.rindex(begins, 0, data.rindex(command) + len(command))
    file.write_bytes(data[:at])
    target.restart()


@pytest.mark.parametrize("then", ["is written to", "is cut over"])
def test_values_that_were_read_again(scenario: NewScenario, then: str) -> None:
    s = scenario(
        "redis-7.0",
        "redis-7.0",
        source_options=QUIET,
        target_options=(*TARGET, "--rename-command", "HSET", ""),
    )
    s.load()
    source, target = s.source.client(), s.target.client()
    keys = [f"h:{n}" for n in range(120)]
    with s.migration() as run:
        run.in_sync()
        # More than are read again at once.
        with source.pipeline(transaction=True) as pipe:
            for key in keys:
                pipe.hset(key, "f", "v")
            pipe.execute()
        run.wait_for(lambda: target.exists(*keys) == len(keys), "they are read again")
        run.in_sync()
        back_to_before(s.target, b"$7\r\nRESTORE")
        assert target.exists(*keys) < len(keys)
        if then == "is written to":
            source.set("later", "1")
            run.wait_for(lambda: target.get("later") == b"1", "what comes later")
            run.wait_for(lambda: target.exists(*keys) == len(keys), "they are read once more")
        run.cut_over(again="the target is not what it was")
    s.assert_migrated()


def test_a_value_that_a_comparison_has_had_read_again(scenario: NewScenario) -> None:
    """Nothing else knows that it differed: behind that every key is compared."""
    s = scenario("redis-7.0", "redis-7.0", source_options=QUIET, target_options=TARGET)
    s.load()
    source, target = s.source.client(), s.target.client()
    with s.migration() as run:
        run.in_sync()
        (lane,) = run.work._way.lanes
        target.set("key:1", "another")
        run.call(lambda: lane._follower.read_again([(0, b"key:1")]))
        run.wait_for(lambda: target.get("key:1") == b"1", "it is read again")
        run.in_sync()
        back_to_before(s.target, b"$7\r\nRESTORE")
        assert target.get("key:1") == b"another"
        source.set("later", "1")
        told = "what was read again because it differed: every key is compared before the cut-over"
        run.wait_for(lambda: any(told in event for event in run.events), "it is told")
        run.cut_over()
    s.assert_migrated()


def test_keys_that_were_removed(server_factory: ServerFactory) -> None:
    """FLUSHALL of one lane's source, on a target that has keys of other lanes: they are removed one
    by one, before the position moves."""
    target = server_factory(known("redis-7.0"), *TARGET)
    target.client().mset({"{a}mine": 1, "{b}another's": 1})
    at = TargetPosition("t", StreamPosition("r", 1), "e")
    target.client().set(POSITION_KEY, at.encode())
    keys = KeysOfLane(SlotSet.of([key_slot(b"a")]))

    async def main() -> None:
        applier = Applier(
            Endpoint.parse(target.url),
            TransferSettings(retry_for=10.0),
            POSITION_KEY,
            on_event=lambda _: None,
        )
        try:
            await applier.open()
            await applier.empty(keys, 2)
            assert target.client().keys("{*") == [b"{b}another's"]
            deletes = b"*2\r\n$3\r\nDEL"
            back_to_before(target, deletes, deletes)
            assert target.client().exists("{a}mine")
            behind = replace(at, position=StreamPosition("r", 2))
            with pytest.raises(PositionMoved):
                await applier.apply(batch_of(("INCR", "n")), behind.encode())
        finally:
            await applier.close()

    run(main())
