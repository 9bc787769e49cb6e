"""The online path between real servers: snapshot, follow, cut over, while writes go on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.model.report import printable_key
from engine.transfer.transfer import Transfer
from tests.adversity.test_follow import not_alike, understood
from tests.conftest import ServerFactory
from tests.converge import assert_settled, settle
from tests.online import assert_tidy, cut_over, following, in_sync, online, refused
from tests.servers import Binary
from tests.traffic import Traffic
from tests.transfers import Run

RATE = 2500.0


def test_every_pair_under_traffic(
    pair: tuple[Binary, Binary], server_factory: ServerFactory
) -> None:
    """Where the target knows all that the source has, both end equal; else what is not is named."""
    source, target = server_factory(pair[0]), server_factory(pair[1])
    options: dict[str, Any] = {"without": not_alike(*pair), "rate": RATE}
    Traffic(source, "before", **{**options, "rate": None}, limit=2000).start().join()
    traffic = Traffic(source, "meanwhile", **options)
    reasons: list[str] = []

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        await asyncio.sleep(0.8)
        await asyncio.to_thread(traffic.stop)
        if understood(*pair):
            await cut_over(work, source)
            return
        await asyncio.sleep(0.5)
        reasons.append(await refused(work, run))
        work.complete(force=True)

    with traffic:
        run = online(source, target, steer)
    print(traffic.describe())
    report = run.report
    assert report.full_syncs == 1
    assert report.commands > 300
    if understood(*pair):
        assert report.status == "done", (report.errors, run.events)
        assert_settled(source, target, 2)
        assert_tidy(target)
        return
    found = settle(source, target, 0)
    named = {(each.db, each.key) for each in report.not_carried}
    differ = {(each.db, printable_key(each.key)) for each in found.keys.different}
    differ |= {(db, printable_key(key)) for db, key in (*found.keys.missing, *found.keys.extra)}
    print(reasons, report.not_carried_total, len(named), len(differ), differ - named)
    print(found.describe())
    print(run.events)
    assert differ <= named
