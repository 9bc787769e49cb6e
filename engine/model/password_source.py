"""Where a password is read each time that a server is dialled, for it may change while the engine
runs: a file, or what a command prints."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import UsageError


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
        return text.rstrip("\r\n")


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
            try:
                words = shlex.split(given)
            except ValueError as error:
                raise ValueError(f"cannot be split into words: {str(error).lower()}") from None
        elif isinstance(given, list | tuple) and all(isinstance(each, str) for each in given):
            words = list(given)
        else:
            raise ValueError("is neither a text nor a list of texts")
        if not words or not words[0]:
            raise ValueError("names no program")
        for word in words:
            if "\0" in word:
                raise ValueError("holds a NUL")
            try:
                os.fsencode(word)
            except UnicodeEncodeError:
                raise ValueError("is not valid UTF-8") from None
        return cls(tuple(words))

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"the password command {os.path.basename(self.words[0])}"


PasswordSource = PasswordFile | PasswordCommand


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
