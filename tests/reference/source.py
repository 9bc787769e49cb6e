"""A source in slow, obvious Python: what a server answers to the scan path's requests, one by one.

Another client may do something between two requests. What it wrote can be told from the values: a
key that has a deadline holds another string than one that has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.reference.scan import bulk, payload, scan_reply, string_value

NOW = 1_900_000_000_000


@dataclass
class Entry:
    """A key's value: a string, or (`other`) something that only DUMP gives out."""

    text: bytes
    deadline: int | None = None
    other: bool = False

    @property
    def dumped(self) -> bytes:
        return payload(b"\x01" + self.text if self.other else string_value(self.text))


@dataclass
class Source:
    """Keys by name, pages of names for SCAN, and what INFO says."""

    keys: dict[bytes, Entry]
    pages: list[list[bytes]]
    meanwhile: Callable[[Source], None] = lambda _: None
    info: str = "told"
    changes: int = 0
    asked: list[tuple[bytes, ...]] = field(default_factory=list)
    # Keys whose TTL was told and whose value was not yet: another client rests meanwhile, for what
    # it does in so short a time the scan path does not promise anything.
    _timed: set[bytes] = field(default_factory=set)

    def write(self, name: bytes, entry: Entry | None) -> None:
        """What another client does: SET, or DEL."""
        self.changes += 1
        if entry is None:
            self.keys.pop(name, None)
        else:
            self.keys[name] = entry

    def answer(self, requests: bytes) -> bytes:
        return b"".join(self._answer(each) for each in commands(requests))

    def _answer(self, args: tuple[bytes, ...]) -> bytes:
        if not self._timed:
            self.meanwhile(self)
        self.asked.append(args)
        name = args[-1]
        entry = self.keys.get(name)
        match args[0]:
            case b"SCAN":
                number = int(args[1])
                return scan_reply((number + 1) % len(self.pages), self.pages[number])
            case b"TIME":
                return b"*2\r\n" + bulk(b"%d" % (NOW // 1000)) + bulk(b"0")
            case b"PTTL" | b"PEXPIRETIME":
                self._timed.add(name)
                if entry is None:
                    return b":-2\r\n"
                if entry.deadline is None:
                    return b":-1\r\n"
                past = NOW if args[0] == b"PTTL" else 0
                return b":%d\r\n" % (entry.deadline - past)
            case b"OBJECT":
                return b"$-1\r\n" if entry is None else b":7\r\n"
            case b"DUMP":
                self._timed.discard(name)
                return bulk(entry.dumped if entry else None)
            case b"MGET":
                self._timed.difference_update(args[1:])
                found = [self.keys.get(each) for each in args[1:]]
                texts = [each.text if each and not each.other else None for each in found]
                return b"*%d\r\n" % len(texts) + b"".join(map(bulk, texts))
            case b"INFO":
                return self._info(args[1])
        raise AssertionError(args)

    def _info(self, section: bytes) -> bytes:
        expires = sum(entry.deadline is not None for entry in self.keys.values())
        match self.info, section:
            case "refused", _:
                return b"-NOPERM not yours\r\n"
            case "hidden", b"persistence":
                return bulk(b"# Persistence\r\n")
            case "long", _:
                return bulk(b"x" * 70_000)
            case _, b"keyspace":
                text = b"# Keyspace\r\ndb3:keys=9,expires=9\r\n"
                if self.keys:
                    text += b"db7:keys=%d,expires=%d,avg_ttl=0\r\n" % (len(self.keys), expires)
                return bulk(text)
            case _:
                text = b"# Persistence\r\nrdb_changes_since_last_save:%d\r\n" % self.changes
                return bulk(text + b"rdb_last_save_time:1\r\nrdb_saves:0\r\n")


def commands(data: bytes) -> Iterator[tuple[bytes, ...]]:
    """Commands as they stand on the wire, taken apart."""
    at = 0
    while at < len(data):
        end = data.index(b"\r\n", at)
        assert data[at : at + 1] == b"*"
        count, at = int(data[at + 1 : end]), end + 2
        args = []
        for _ in range(count):
            end = data.index(b"\r\n", at)
            assert data[at : at + 1] == b"$"
            size, at = int(data[at + 1 : end]), end + 2
            args.append(data[at : at + size])
            assert data[at + size : at + size + 2] == b"\r\n"
            at += size + 2
        yield tuple(args)
