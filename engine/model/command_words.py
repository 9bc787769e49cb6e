"""The words of a command that the operator gives as a text: no shell is used."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable

Words = tuple[str, ...]


def split(text: str) -> Words:
    """The words of a text, as a shell would split it.

    Raises `ValueError` with what is wrong, as the rest of a sentence.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"cannot be split into words: {str(error).lower()}") from None
    return checked(words)


def checked(words: Iterable[str]) -> Words:
    """Words that a process can be given. Raises `ValueError` as `split` does."""
    found = tuple(words)
    if not found or not found[0]:
        raise ValueError("names no program")
    for word in found:
        if "\0" in word:
            raise ValueError("holds a NUL")
        try:
            os.fsencode(word)
        except UnicodeEncodeError:
            raise ValueError("is not valid UTF-8") from None
    return found
