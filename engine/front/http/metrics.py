"""What Prometheus reads: the API's calls, counted here, and the migrations, read from the state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.groups.records import GroupRecord, TransferRecord
from engine.model.clients_after_cut_over import SourceClients
from engine.model.progress import FIGURES, Phase, Progress

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "startmigration"
_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Name, help, and the figure; None is a figure that is not known, and then there is no sample.
SHOWN: tuple[tuple[str, str, Callable[[Progress], float | None]], ...] = (
    *((each.metric, each.meaning, attrgetter(each.name)) for each in FIGURES if each.metric),
    (
        "source_link_up",
        "1 while the followed source answers, 0 while its link is down or silent.",
        lambda p: float(p.link == "up") if p.link else None,
    ),
    (
        "throttled",
        "1 while less is moved because an end suffers.",
        lambda p: float(bool(p.throttled)),
    ),
    ("paused", "1 while the migration is paused.", lambda p: float(bool(p.paused))),
)


class Metrics:
    """The server's figures."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.calls = Counter(
            f"{_PREFIX}_api_calls",
            "Calls of the API, by operation and error code (empty: none).",
            ("operation", "code"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            f"{_PREFIX}_api_call_seconds",
            "How long calls of the API took.",
            ("operation",),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.watchers = Gauge(
            f"{_PREFIX}_watchers", "Clients of the feed.", registry=self._registry
        )
        self.replaced = Counter(
            f"{_PREFIX}_workers_replaced",
            "Workers that were killed and replaced by this server.",
            registry=self._registry,
        )

    def page(
        self,
        migrations: Sequence[tuple[GroupRecord, TransferRecord]],
        checkpoints: dict[int, float],
        source_clients: Mapping[str, SourceClients],
        ended: Mapping[str, int],
    ) -> bytes:
        """The page that Prometheus scrapes: the API's figures, those of `migrations`, and those of
        the clients of sources that were cut over from, by group, and how many migrations ended with
        which outcome."""
        once = CollectorRegistry()
        once.register(_Migrations(migrations, checkpoints))
        once.register(_SourceClients(source_clients))
        once.register(_Ended(ended))
        return generate_latest(self._registry) + generate_latest(once)


class _Migrations(Collector):
    """The migrations as they stand in the state."""

    def __init__(
        self,
        migrations: Sequence[tuple[GroupRecord, TransferRecord]],
        checkpoints: dict[int, float],
    ) -> None:
        self._migrations = migrations
        self._checkpoints = checkpoints

    def collect(self) -> Iterator[Metric]:
        """One family a figure, one sample a migration."""
        labels = ("group",)
        for name, meaning, figure in SHOWN:
            family = GaugeMetricFamily(f"{_PREFIX}_migration_{name}", meaning, labels=labels)
            for group, transfer in self._migrations:
                value = figure(transfer.known)
                if value is not None:
                    family.add_metric([group.id], float(value))
            yield family
        phases = GaugeMetricFamily(
            f"{_PREFIX}_migration_phase", "1 for the phase it is in.", labels=("group", "phase")
        )
        running = GaugeMetricFamily(
            f"{_PREFIX}_migration_worker_alive", "1 while a worker has it.", labels=labels
        )
        beat = GaugeMetricFamily(
            f"{_PREFIX}_migration_heartbeat_age_seconds",
            "Since its worker last showed that it lives.",
            labels=labels,
        )
        age = GaugeMetricFamily(
            f"{_PREFIX}_migration_checkpoint_age_seconds",
            "Since its checkpoint was written.",
            labels=labels,
        )
        now = time.time()
        for group, transfer in self._migrations:
            for phase in Phase:
                phases.add_metric([group.id, phase.value], float(transfer.progress.phase is phase))
            running.add_metric([group.id], float(transfer.leased()))
            beat.add_metric([group.id], transfer.lease.seconds)
            if transfer.id in self._checkpoints:
                age.add_metric([group.id], max(now - self._checkpoints[transfer.id], 0.0))
        yield from (phases, running, beat, age)


class _SourceClients(Collector):
    """The clients of the sources that were cut over from, as the state has them."""

    def __init__(self, found: Mapping[str, SourceClients]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        """One family a figure, one sample a group; what is not known has no sample."""
        labels = ("group",)
        connected = GaugeMetricFamily(
            f"{_PREFIX}_source_clients",
            "Clients at the source after its cut-over, at the last look.",
            labels=labels,
        )
        gone = CounterMetricFamily(
            f"{_PREFIX}_source_clients_disconnected",
            "Connections to the source that were closed after its cut-over.",
            labels=labels,
        )
        seen = GaugeMetricFamily(
            f"{_PREFIX}_source_client_last_seen_timestamp_seconds",
            "When the last client was seen at the source after its cut-over.",
            labels=labels,
        )
        done = GaugeMetricFamily(
            f"{_PREFIX}_source_clients_attended",
            "1 while a process disconnects the source's clients, 0 where one is to and none does.",
            labels=labels,
        )
        scripts = GaugeMetricFamily(
            f"{_PREFIX}_source_scripts",
            "Scripts that the source has run since its cut-over, where it does not refuse their "
            "writes.",
            labels=labels,
        )
        for group, found in self._found.items():
            alone = found.unattended_since is not None
            if not found.ended:
                done.add_metric([group], float(not alone))
            if (calls := found.calls_now) is not None:
                scripts.add_metric([group], float(calls.scripts))
            if found.connected is not None and not found.unseen:
                connected.add_metric([group], float(found.connected))
            gone.add_metric([group], float(found.disconnected))
            if found.last_seen is not None:
                seen.add_metric([group], found.last_seen)
        yield from (connected, gone, seen, done, scripts)


class _Ended(Collector):
    """How the migrations of the groups in the state ended."""

    def __init__(self, ended: Mapping[str, int]) -> None:
        self._ended = ended

    def collect(self) -> Iterator[Metric]:
        """One sample an outcome. No counter: deleted groups take theirs along."""
        family = GaugeMetricFamily(
            f"{_PREFIX}_migrations_ended",
            "Migrations of the groups in the state that have ended, by outcome.",
            labels=("outcome",),
        )
        for outcome, count in self._ended.items():
            family.add_metric([outcome], float(count))
        yield family
