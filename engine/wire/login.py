"""The password with which a server is dialled, where it may change while the engine runs.

It is read with each dial. Where the server refuses it, the one that was accepted last is tried (the
file is ahead of the server), and what is read once more (the server is ahead of the file). If none
of them is accepted, that may pass: as long as a password from there was accepted before, it is an
error of the link, and dialled again within the bounds that hold for these. At the start it is one
of the credentials.
"""

from __future__ import annotations

from engine.errors import AuthError, EngineError, FaultOf, LinkError, UsageError
from engine.model.endpoint import Endpoint
from engine.model.password_source import IamToken, PasswordFile, PasswordSource
from engine.wire.iam_token import token_of
from engine.wire.password_command import printed_by

RENEWED_SECONDS = 11 * 3600.0
"""AWS ends a connection that has logged in with a token behind 12 hours."""
ASKS_AGAIN = "It is dialled anew, with the password as it is by then."
# What was accepted last, by its source and the user. As many as the configuration has entries.
_accepted: dict[tuple[PasswordSource, str | None], str] = {}


class Login:
    """The passwords with which one dial is tried: `first`, then `following` what is refused."""

    def __init__(self, endpoint: Endpoint, fault: FaultOf, name: str) -> None:
        """`name` is how messages call the server."""
        self._endpoint = endpoint
        self._fault: FaultOf = fault
        self._name = name
        self._tried: list[str] = []
        self._problem: UsageError | None = None
        self.password: str | None = None
        """The one that is tried; None: the server is not told any."""

    async def first(self) -> None:
        """Read the password. Raises `AuthError` where that cannot be done, and none was accepted
        before."""
        source = self._endpoint.password_source
        if source is None:
            self.password = self._endpoint.password
            return
        try:
            self.password = await self._read(source)
        except UsageError as error:
            # It may be written just now; the one before may hold on.
            self._problem = error
            known = self._known(source)
            if known is None:
                raise AuthError(
                    f"{self._name} is not dialled: {error.message}",
                    remedy=error.remedy,
                    fault="user",
                ) from None
            self.password = known
        self._tried.append(self.password)

    async def following(self, refusal: AuthError) -> None:
        """The next password, behind one that the server has refused. Raises `refusal`, or
        `LinkError` in its place, where there is none."""
        source = self._endpoint.password_source
        if source is None or not refusal.of_password:
            raise refusal
        known = self._known(source)
        if known is not None and known not in self._tried:
            self._try(known)
            return
        try:
            again = await self._read(source, anew=True)
        except UsageError as error:
            self._problem = error
        else:
            if again not in self._tried:
                self._try(again)
                return
        raise self._given_up(source, refusal)

    def accepted(self) -> None:
        """The server has taken the password."""
        source = self._endpoint.password_source
        if source is not None and self.password is not None:
            _accepted[source, self._endpoint.username] = self.password

    def _try(self, password: str) -> None:
        self.password = password
        self._tried.append(password)

    def _known(self, source: PasswordSource) -> str | None:
        """The one that was accepted last, or was read at the start."""
        return _accepted.get((source, self._endpoint.username), self._endpoint.password)

    def _given_up(self, source: PasswordSource, refusal: AuthError) -> EngineError:
        what = self._problem.message if self._problem is not None else f"it is from {source.name}"
        message = f"{refusal.message.rstrip('.')} ({what})"
        if (source, self._endpoint.username) in _accepted:
            return LinkError(
                message,
                remedy=f"It was accepted before, and {source.name} is read again with each try: "
                "put the password there that the server has now.",
                fault=self._fault,
            )
        error = AuthError(message, remedy=refusal.remedy, fault=refusal.fault)
        error.of_password = True
        return error

    async def _read(self, source: PasswordSource, *, anew: bool = False) -> str:
        if isinstance(source, PasswordFile):
            return source.read()
        if isinstance(source, IamToken):
            return await token_of(source, anew=anew)
        return await printed_by(source, anew=anew)


def secrets_of(endpoint: Endpoint, tried: str | None) -> list[str]:
    """The passwords of this server that are known by now, and the one that is tried: for leaving
    them out of what is told."""
    source = endpoint.password_source
    known = None if source is None else _accepted.get((source, endpoint.username))
    return [each for each in (endpoint.password, known, tried) if each]


def renewed_behind(endpoint: Endpoint) -> float | None:
    """Seconds behind which a connection has to log in again, or be dialled anew; None: never."""
    return RENEWED_SECONDS if isinstance(endpoint.password_source, IamToken) else None


def asks_again(endpoint: Endpoint, refusal: EngineError) -> bool:
    """Whether an error reply to a command (no AUTH) says that the password which the connection was
    opened with holds no more, and there may be another one."""
    return (
        endpoint.password_source is not None
        and isinstance(refusal, AuthError)
        and refusal.of_password
    )
