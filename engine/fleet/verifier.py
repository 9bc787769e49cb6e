"""The process that verifies a group: its keys compared with those of a source.

    python -m engine.fleet.verifier GROUP   (with the state's URL in the environment)

It claims the verification that the state asks for (`groups.verifications`), tells there each second
how far it is, and ends with its result, or where it is told to stop. The report is a file beside
the state.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from engine import logs
from engine.errors import EngineError
from engine.fleet import local, worker_log_file
from engine.fleet.group_process import main_of
from engine.fleet.launcher import open_registry
from engine.fleet.process_identity import ProcessId
from engine.groups import verifications
from engine.groups.registry import Registry
from engine.groups.store import TransientStateError
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.proof import ProofProgress, ProofReport, ProofSettings
from engine.model.retry import Deadline, retry_blocking
from engine.proof.run import prove

_log = logs.logger(__name__)
_TELL_SECONDS = 1.0
# For so long a state that does not answer is tried again. What is compared meanwhile is written to
# nothing, and one that was replaced is told so by the state itself.
_PATIENCE_SECONDS = 600.0
# So many differences, reasons and things that were left out are in the state, each text cut there;
# the report has all.
_NAMED_MOST, _TEXT_MOST = 20, 300


class _Verifier:
    """One verification."""

    def __init__(self, registry: Registry, claimed: verifications.Claimed) -> None:
        self._registry = registry
        self._claimed = claimed
        self._progress = ProofProgress()
        self._anew = False

    async def run(self) -> None:
        """Do it to its end. Raises `StateError`."""
        proof = asyncio.create_task(self._prove())
        try:
            await self._tell_of(proof)
        finally:
            proof.cancel()
            await asyncio.wait([proof])
        result, event = self._came_to(proof)
        if self._anew:
            event += " (of the one that it was to go on with nothing was saved: it began anew)"
        await asyncio.to_thread(
            retry_blocking,
            lambda: self._claimed.end(result, event),
            Deadline(_PATIENCE_SECONDS, _TELL_SECONDS),
            TransientStateError,
        )
        _log.info("The verification has ended: %s", event)

    async def _tell_of(self, proof: asyncio.Task[ProofReport]) -> None:
        """Keep in the state how far it is, until it is at its end or is to end."""
        wanted, patience = True, Deadline(_PATIENCE_SECONDS, _TELL_SECONDS)
        while wanted and not proof.done():
            await asyncio.wait([proof], timeout=_TELL_SECONDS)
            try:
                wanted = await asyncio.to_thread(self._claimed.write, self._told())
                patience = Deadline(_PATIENCE_SECONDS, _TELL_SECONDS)
            except TransientStateError as error:
                if not patience.left:
                    raise
                _log.warning("The progress could not be written to the state: %s", error.message)

    async def _prove(self) -> ProofReport:
        claimed, credentials = self._claimed, Credentials.load()
        asked = dict(claimed.asked)
        paths = verifications.report_paths(self._registry.store, claimed.group.id)
        # (One that had saved nothing has compared nothing.)
        wanted = bool(asked.pop("resume"))
        resume = wanted and paths.state.exists()
        self._anew = wanted and not resume
        return await prove(
            credentials.apply(Endpoint.parse(claimed.source_url)),
            credentials.apply(claimed.group.primary),
            ProofSettings(**asked),
            report=str(paths.report),
            resume=resume,
            # One that was cut off is over: another one was asked for.
            fresh=not resume,
            on_progress=self._on_progress,
        )

    def _on_progress(self, progress: ProofProgress) -> None:
        self._progress = progress

    def _told(self) -> dict[str, Any]:
        progress = self._progress
        return asdict(progress) | {"seconds_left": progress.seconds_left}

    def _came_to(self, proof: asyncio.Task[ProofReport]) -> tuple[Mapping[str, Any], str]:
        if proof.cancelled():
            return {"status": "stopped"}, "verification stopped"
        error = proof.exception()
        if error is None:
            return _told(proof.result()), f"verification: {proof.result().sentence}"
        if not isinstance(error, EngineError):
            _log.error("The verification has a bug", exc_info=error)
        reason = error.in_one_line if isinstance(error, EngineError) else type(error).__name__
        return {"status": "failed", "reason": reason}, f"verification failed: {reason}"


def _told(report: ProofReport) -> dict[str, Any]:
    told = report.to_dict()
    for name in ("settings", "not_compared", "source", "target"):
        del told[name]
    # What is in the keys is for those alone who may read the report.
    differences = [
        {"db": each["db"], "key": _cut(each["key"]), "kinds": each["kinds"]}
        for each in told["differences"][:_NAMED_MOST]
    ]
    named = {"status": "done", "reason": report.sentence, "differences": differences}
    reasons: dict[str, int] = {}
    for number, (why, count) in enumerate(sorted(report.reasons.items(), key=lambda e: -e[1])):
        name = _cut(why) if number < _NAMED_MOST else "for other reasons"
        reasons[name] = reasons.get(name, 0) + count
    left_out = [_cut(each) for each in report.left_out[:_NAMED_MOST]]
    if (more := len(report.left_out) - len(left_out)) > 0:
        left_out.append(f"{more:,} more, which the report has")
    return told | named | {"reasons": reasons, "left_out": left_out}


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_MOST else text[:_TEXT_MOST] + "…"


async def work(group_id: str) -> int:
    """Verify the group, if that is asked for and no other process does it."""
    registry = open_registry()
    worker_log_file.begin(local.worker_log(registry, group_id))
    claimed = verifications.claim(registry.store, group_id, ProcessId.here().worker)
    if claimed is None:
        _log.info("Nothing is to be verified, or another process verifies it")
        return 0
    await _Verifier(registry, claimed).run()
    await asyncio.to_thread(registry.store.close)
    return 0


def main(arguments: Sequence[str]) -> int:
    """Verify the group named in `arguments`."""
    return main_of("engine.fleet.verifier", "process that verifies", work, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
