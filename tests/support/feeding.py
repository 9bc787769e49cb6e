"""Bytes into the core's readers, cut anywhere; and what batches of commands hold, for comparing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from typing_extensions import Buffer

from engine._native import CommandBatch


class Reader(Protocol):
    """What a connection reads into (`wire.connection`)."""

    @property
    def input(self) -> Buffer:
        """Where the next bytes go."""
        ...

    def received(self, n: int) -> int:
        """So many have come."""
        ...


def push(reader: Reader, data: bytes, sizes: Sequence[int] | None = None) -> None:
    """Put `data` into a reader in pieces of these sizes, over and over; whole without them."""
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)] if sizes else len(data)
        turn += 1
        with memoryview(reader.input) as view:
            n = min(size, len(data) - at, len(view))
            view[:n] = data[at : at + n]
        reader.received(n)
        at += n


def contents(batches: Sequence[CommandBatch]) -> list[tuple[int, int, list[bytes]]]:
    """(end offset, database, arguments) of every command."""
    return [
        (batch.offset(i), batch.db(i), batch.command(i))
        for batch in batches
        for i in range(len(batch))
    ]
