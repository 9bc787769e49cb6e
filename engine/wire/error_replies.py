"""Error replies to the control plane's commands, as errors that say whose fault it is and what to
do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import AuthError, EngineError, FaultOf, ServerError
from engine.model.endpoint import Endpoint
from engine.model.joined_sentences import without_arguments

if TYPE_CHECKING:
    from redis.exceptions import RedisError


@dataclass(frozen=True, slots=True)
class ErrorReplies:
    """Those of one server, which is called `name` in messages."""

    name: str
    endpoint: Endpoint
    fault: FaultOf

    def error(self, error: RedisError, command: Sequence[bytes | str | int | float]) -> EngineError:
        """An error reply as a value; raises `error` where it is none."""
        from redis.exceptions import ResponseError

        # redis-py counts some error replies (NOAUTH, LOADING) as failures of the connection.
        if error.status_code is None and not isinstance(error, ResponseError):
            raise error
        text = str(error)
        code = error.status_code
        if code is None:
            first, _, rest = text.partition(" ")
            code, text = (first, rest) if first.isupper() and first.isalnum() else ("ERR", text)
        if code in ("NOAUTH", "WRONGPASS"):
            return self.of_credentials(code, text)
        if code == "NOPERM":
            of_key = "to access" in text
            on_key = " on this key" if of_key else ""
            rule = "~PATTERN (one that the key fits)" if of_key else _rule(command)
            refusal = AuthError(
                f"{self.name}: the user {self._user!r} may not run {_named(command)}{on_key}",
                remedy=f"ACL SETUSER {self._user} {rule}, or give another user in the endpoint's "
                "URL.",
                fault=self.fault,
            )
            refusal.of_key = of_key
            return refusal
        return ServerError(
            f"{self.name} answered {_named(command)} with: {code} {without_arguments(text)}",
            code=code,
            fault=self.fault,
        )

    @property
    def _user(self) -> str:
        return self.endpoint.username or "default"

    def of_credentials(self, code: str, text: str) -> AuthError:
        """One that is about the credentials."""
        # The server's own words stay out: some echo the arguments of a command they don't know.
        who = f"the user {self._user!r}"
        if code == "NOAUTH" or not self.endpoint.has_password:
            message = f"{self.name} wants a password, and none was given."
            remedy = "Give one in the endpoint's URL, the environment, or the credentials file."
        elif "no password is set" in text:
            # As it was said before there were users.
            message = f"{self.name} has no password set, and refuses the one given."
            remedy = "Leave out the password."
        elif "without any password" in text:
            message = f"{self.name} has no password set for {who}, and refuses the one given."
            remedy = "Leave out the password, or name the ACL user that it belongs to."
        elif code == "ERR" and "invalid password" in text:
            message = f"{self.name} refused the password."
            remedy = "Check the password; a server before Redis 6.0 has one, and no users."
        else:
            message = f"{self.name} refused the password of {who} ({code})."
            remedy = "Check user and password; ACL users need their name in the URL too."
        refusal = AuthError(message, remedy=remedy, fault=self.fault)
        refusal.of_password = True
        return refusal


def _named(command: Sequence[bytes | str | int | float]) -> str:
    """The command's name, with its subcommand: never its arguments."""
    words = [each.decode() if isinstance(each, bytes) else str(each) for each in command[:1]]
    containers = {"ACL", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "MEMORY", "OBJECT", "XINFO"}
    if len(command) > 1 and words[0].upper() in containers:
        words.append(str(command[1]))
    return " ".join(words)


def _rule(command: Sequence[bytes | str | int | float]) -> str:
    """What ACL SETUSER allows it with: `+config|get`."""
    return "+" + _named(command).lower().replace(" ", "|")
