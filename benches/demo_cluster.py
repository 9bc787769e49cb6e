"""The demo with clusters: three shards into three, and one server into three, while clients write.

`make demo ARGS=--cluster`. Each client counts up at the source, and goes on at the target behind
the cut-over: its count must be what was acknowledged. All else is compared key by key.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

from benches import datasets
from benches.support.clicks import PREFIX, Clicks, without
from benches.support.clusters import Cluster
from benches.support.compare import compare
from benches.support.servers import Binary, Server
from engine import Endpoint
from engine.cli.output_format import duration
from engine.cli.report_summary import as_text
from engine.model.report import Report

SHAPES = ((3, 3), (0, 3))
"""Primaries of the source and of the target; 0: a server that is no cluster."""

TAGS_A_SHARD = 40
CLICKS = 200

Say = Callable[[str, str], None]
Migrate = Callable[[Endpoint, Endpoint], Report]


def demo(
    options: argparse.Namespace, binaries: tuple[Binary, Binary], migrate: Migrate, say: Say
) -> int:
    """Show each of `SHAPES`; returns the exit code."""
    code = 0
    for shards in SHAPES:
        with ExitStack() as stack:
            ends = _started(binaries, shards, stack)
            code = max(code, _one(options, ends, migrate, say))
    return code


def _started(
    binaries: tuple[Binary, Binary], shards: tuple[int, int], stack: ExitStack
) -> list[Server | Cluster]:
    def start(binary: Binary, primaries: int) -> Server | Cluster:
        if primaries:
            return Cluster.start(binary, primaries=primaries)
        return Server.start(binary)

    # Side by side: nodes take two seconds to be sure of each other.
    with ThreadPoolExecutor(2) as pool:
        begun = [pool.submit(start, *each) for each in zip(binaries, shards, strict=True)]
    for each in begun:
        if each.exception() is None:
            stack.callback(each.result().close)
    return [each.result() for each in begun]


def _one(
    options: argparse.Namespace, ends: list[Server | Cluster], migrate: Migrate, say: Say
) -> int:
    source, target = ends
    say("Source", _words(source))
    say("Target", _words(target))
    # 1. Data, and clients that go on writing.
    say("Fill", f"{options.keys:,} keys, seed {options.seed}")
    for each in _fill(source, options.keys, options.seed):
        print(each)
    with Clicks(source, target) as clicks:
        # 2. The migration.
        report = migrate(Endpoint.parse(source.url), Endpoint.parse(target.url))
        clicks.move()
        clicks.wait(CLICKS)
    # 3. The proof.
    say("Compare", "both ends, key by key, and what the clients counted")
    began = time.monotonic()
    found = compare(source.url, target.url)
    found = replace(
        found,
        different=[each for each in found.different if not each.key.startswith(PREFIX)],
        missing=without(found.missing),
        extra=without(found.extra),
    )
    print(found.describe())
    print(f"Clients: {clicks}.")
    wrong = clicks.wrong()
    for line in wrong:
        print(f"  {line}")
    counted = "each count is what was acknowledged" if not wrong else "counts are WRONG"
    verdict = "The same" if found.equal else "NOT the same"
    print(f"{verdict}, and {counted} ({duration(time.monotonic() - began)}).")
    say("Steps", "")
    print(as_text(report))
    return 0 if found.equal and not wrong and report.status == "done" else 1


def _fill(source: Server | Cluster, keys: int, seed: int) -> list[datasets.Summary]:
    if isinstance(source, Server):
        return [datasets.mixed(source.url, n=keys, seed=seed)]
    nodes = source.primaries
    return [
        datasets.tagged(
            node.url,
            source.tags_of(node, TAGS_A_SHARD),
            n=keys * (at + 1) // len(nodes) - keys * at // len(nodes),
            seed=seed + at,
        )
        for at, node in enumerate(nodes)
    ]


def _words(end: Server | Cluster) -> str:
    if isinstance(end, Server):
        return f"{end.binary} on port {end.port}"
    ports = ", ".join(str(node.port) for node in end.nodes)
    return f"a cluster of {len(end.nodes)} primaries, {end.nodes[0].binary} on ports {ports}"
