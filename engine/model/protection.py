"""What an end may suffer of a migration (`--protect-source`, `--protect-target`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.errors import UsageError

OFF = "off"
"""The word for no bounds."""
MIB = 1 << 20
_NUMBER = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(ms|s|kb|mb|gb)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0}
_BYTES = {"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}


@dataclass(frozen=True, slots=True)
class Protection:
    """Bounds of what an end may suffer; 0: none.

    `latency`: seconds that it takes for a command beyond the network's. `cow`: bytes that are
    copied on write for the child that makes our snapshot. `output_buffer`: bytes that wait in it
    behind the snapshot.
    """

    latency: float = 0.0
    cow: int = 0
    output_buffer: int = 0

    @classmethod
    def read(cls, option: str, text: str, known: tuple[str, ...]) -> Protection:
        """As the option has it: `latency=5ms,cow=512mb`; `known` are the bounds that there are for
        this end. Raises `UsageError`."""
        if text in ("", OFF):
            return cls()
        found: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            match = _NUMBER.fullmatch(value)
            units = _SECONDS if name == "latency" else _BYTES
            if name not in known or name in found or match is None or match[2] not in units:
                raise UsageError(
                    f"{option} {text!r}: {part.strip()!r} is not a bound", remedy=_remedy(known)
                )
            number = float(match[1]) * units[match[2]]
            if number < MIB if units is _BYTES else number <= 0:
                least = "1mb or more" if units is _BYTES else "above 0"
                raise UsageError(
                    f"{option} {text!r}: {name} must be {least}", remedy=_remedy(known)
                )
            found[name] = number
        return cls(
            latency=found.get("latency", 0.0),
            cow=int(found.get("cow", 0)),
            output_buffer=int(found.get("output-buffer", 0)),
        )


def _remedy(known: tuple[str, ...]) -> str:
    examples = {"latency": "latency=5ms", "cow": "cow=512mb", "output-buffer": "output-buffer=4mb"}
    return f"Expected {','.join(examples[each] for each in known)}, or some of that; or {OFF}."


SOURCE_BOUNDS = ("latency", "cow", "output-buffer")
TARGET_BOUNDS = ("latency",)
