"""Access keys for the HTTP API: a file of them, and what each may do.

One JSON object a line, appended by `create-access-key`; a key is revoked by deleting its line. A
signature can only be checked with the secret itself, so the file is as secret as the keys: it is
refused when users other than its owner can read it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import stat
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.errors import UsageError

_ID = re.compile(r"[A-Za-z0-9]{16,128}", re.ASCII)
_ID_PREFIX = "SMIG"
_SECRET_BYTES = 30
_MEMBERS = {"AccessKeyId", "SecretAccessKey", "Role", "CreateDate"}
FILE_MOST = 1 << 20
"""A file of keys that is longer than this (bytes) is refused."""


class Role(StrEnum):
    """What a key may do; each role may do what those before it may."""

    READ = "read"
    MIGRATE = "migrate"
    ADMIN = "admin"

    def allows(self, needed: Role) -> bool:
        """Whether this role is enough for what needs `needed`."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class AccessKey:
    """One key."""

    id: str
    secret: str = field(repr=False)
    role: Role


class AccessKeys:
    """The keys of one file, read anew when the file has changed. Safe on one thread."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises `UsageError`, which never repeats a secret."""
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._keys: dict[str, AccessKey] = {}
        self._failure: UsageError | None = None
        self._refresh()
        if self._failure is not None:
            raise self._failure

    def find(self, key_id: str) -> AccessKey | None:
        """The key of this id.

        Raises `UsageError` while the file cannot be used: a key that was to be revoked must not
        live on because its file was damaged on the way.
        """
        self._refresh()
        if self._failure is not None:
            raise self._failure
        return self._keys.get(key_id)

    def _refresh(self) -> None:
        try:
            found = self._path.stat()
        except OSError as error:
            self._keys, self._seen = {}, ()
            self._failure = UsageError(f"{self._path} cannot be read: {error.strerror}")
            return
        # The time of the last change, too: that of the last writing can be set to what it was.
        times = (found.st_mtime_ns, found.st_ctime_ns)
        seen = (found.st_ino, *times, found.st_size, found.st_mode)
        if seen == self._seen:
            return
        try:
            self._keys, self._failure, self._seen = _read(self._path), None, seen
        except OSError as error:
            # It may pass by itself (no descriptors left, a disk that is away): not remembered.
            self._keys, self._seen = {}, ()
            self._failure = UsageError(f"{self._path} cannot be read: {error.strerror}")
        except UsageError as error:
            self._keys, self._failure, self._seen = {}, error, seen


def create(path: Path, role: Role) -> AccessKey:
    """Make a key, and append it to the file (created for its owner alone).

    Raises `UsageError` if the file cannot be written, or others can read it.
    """
    key = AccessKey(
        id=_ID_PREFIX + base64.b32encode(secrets.token_bytes(10)).decode("ascii"),
        secret=base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode("ascii"),
        role=role,
    )
    row = {
        "AccessKeyId": key.id,
        "SecretAccessKey": key.secret,
        "Role": role.value,
        "CreateDate": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            _check_mode(path, os.fstat(handle))
            # One write: two that append at once do not mix their lines. What an editor left
            # without an end is ended first, or the two lines were none.
            begun = b"" if _ends_a_line(handle) else b"\n"
            line = begun + f"{json.dumps(row)}\n".encode("ascii")
            if os.write(handle, line) != len(line):
                raise UsageError(f"{path} cannot be written: the disk is full")
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    return key


def _ends_a_line(handle: int) -> bool:
    size = os.fstat(handle).st_size
    return size == 0 or os.pread(handle, 1, size - 1) == b"\n"


def _read(path: Path) -> dict[str, AccessKey]:
    def without_waiting(name: str, flags: int) -> int:
        # A pipe would be waited for.
        return os.open(name, flags | os.O_NONBLOCK)

    # `open` closes what its opener gave where it is a directory; `os.fdopen` leaves it open.
    with open(path, "rb", opener=without_waiting) as file:
        _check_mode(path, os.fstat(file.fileno()))
        data = file.read(FILE_MOST + 1)
    if len(data) > FILE_MOST:
        raise UsageError(f"{path} is longer than a file of access keys can be")
    keys: dict[str, AccessKey] = {}
    for n, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        key = _key(line, f"{path}, line {n}")
        if key.id in keys:
            raise UsageError(f"{path}, line {n}: the access key {key.id} is there twice")
        keys[key.id] = key
    return keys


def _key(line: bytes, where: str) -> AccessKey:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        # Not chained: the parser's error carries the line, with its secret.
        raise UsageError(f"{where}: not a JSON object") from None
    if not isinstance(row, dict) or not set(row) <= _MEMBERS:
        raise UsageError(
            f"{where}: expected an object with no other members than {', '.join(sorted(_MEMBERS))}"
        )
    key_id, secret = row.get("AccessKeyId"), row.get("SecretAccessKey")
    if not isinstance(key_id, str) or not _ID.fullmatch(key_id):
        raise UsageError(f"{where}: AccessKeyId is not 16 to 128 letters and digits")
    if not isinstance(secret, str) or len(secret) < 16:
        raise UsageError(f"{where}: SecretAccessKey has fewer than 16 characters")
    if not secret.isascii() or not secret.isprintable():
        raise UsageError(f"{where}: SecretAccessKey has other characters than ASCII's")
    try:
        role = Role(row.get("Role", ""))
    except ValueError:
        known = ", ".join(role.value for role in Role)
        raise UsageError(f"{where}: Role is not one of {known}") from None
    return AccessKey(key_id, secret, role)


def _check_mode(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is not a file")
    if found.st_mode & 0o077:
        raise UsageError(
            f"{path} holds access keys and can be read by others", remedy=f"chmod 600 {path}"
        )
