"""Where a password is read each time that a server is dialled, for it may change while the engine
runs: a file, what a command prints, or a token that AWS takes for one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import UsageError
from engine.model import command_words


@dataclass(frozen=True, slots=True)
class PasswordFile:
    """A file that holds the password alone; a line's end behind it is no part of it."""

    path: str

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"the password file {self.path}"

    @property
    def lasts(self) -> bool:
        """Whether it can be read more than once: a pipe cannot."""
        return os.path.isfile(os.path.expanduser(self.path))

    def read(self) -> str:
        """The password as it stands there now. Raises `UsageError` if it cannot be read."""
        try:
            text = Path(self.path).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, OSError):
                reason = error.strerror
            elif isinstance(error, UnicodeDecodeError):
                reason = "not UTF-8 text"
            else:
                reason = path_problem(self.path) or "no path"
            raise UsageError(f"{self.name} cannot be read: {reason}") from None
        password = text.rstrip("\r\n")
        if not password:
            # As it is seen, too, by one who reads it while it is written.
            raise UsageError(
                f"{self.name} is empty", remedy="Write the password there, and nothing else."
            )
        return password


@dataclass(frozen=True, slots=True)
class PasswordCommand:
    """A program and its arguments, which prints the password alone. The arguments are part of no
    message: they may say more than others should know."""

    words: tuple[str, ...] = field(repr=False)

    @classmethod
    def parse(cls, given: object) -> PasswordCommand:
        """Read a list of words, or a text that is split as a shell would (no shell is used).

        Raises `ValueError` with what is wrong, as the rest of a sentence.
        """
        if isinstance(given, str):
            return cls(command_words.split(given))
        if isinstance(given, list | tuple) and all(isinstance(each, str) for each in given):
            return cls(command_words.checked(given))
        raise ValueError("is neither a text nor a list of texts")

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"the password command {os.path.basename(self.words[0])}"


_IAM = re.compile(
    r"(elasticache|elasticache-serverless|memorydb)/([a-z]{2}[a-z0-9-]{1,30})/"
    r"([A-Za-z][A-Za-z0-9-]{0,49})"
)
_IAM_EXPECTED = (
    "Expected elasticache/REGION/REPLICATION-GROUP, elasticache-serverless/REGION/CACHE or "
    "memorydb/REGION/CLUSTER."
)


@dataclass(frozen=True, slots=True)
class IamToken:
    """What the IAM user `user` of a replication group (`cluster`) of ElastiCache, or of a cluster
    of MemoryDB, has in the place of a password: signed for 15 minutes (`wire.iam_token`)."""

    service: str
    region: str
    cluster: str
    user: str
    serverless: bool = False

    @classmethod
    def parse(cls, given: str, user: str) -> IamToken:
        """Read `elasticache/REGION/GROUP`, `elasticache-serverless/REGION/CACHE` or
        `memorydb/REGION/CLUSTER`. Raises `UsageError`."""
        found = _IAM.fullmatch(given)
        if found is None:
            raise UsageError("iam does not say whose token is meant", remedy=_IAM_EXPECTED)
        service, region, cluster = found.groups()
        # AWS has these names in small letters, and signs them so.
        serverless = service == "elasticache-serverless"
        name = "elasticache" if serverless else service
        return cls(name, region, cluster.lower(), user, serverless)

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"the IAM token of {self.user} for {self.cluster} ({self.service}, {self.region})"


PasswordSource = PasswordFile | PasswordCommand | IamToken


def path_problem(path: str) -> str | None:
    """What is wrong with a file's name, as the rest of a sentence; None: it may be one."""
    if not path:
        return "is empty"
    if "\0" in path:
        return "holds a NUL, which no path does"
    try:
        os.fsencode(path)
        Path(path).expanduser()
    except UnicodeEncodeError:
        return "is not a path that this machine can have"
    except RuntimeError:
        return "begins with a ~ for which there is no home directory"
    return None
