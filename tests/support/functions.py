"""Libraries of functions."""

from __future__ import annotations


def code(name: str, function: str, value: int = 1) -> str:
    """The code of a library with one function, which returns `value`."""
    body = f"redis.register_function('{function}', function() return {value} end)"
    return f"#!lua name={name}\n{body}"
