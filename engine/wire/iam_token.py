"""Tokens by which a user of AWS's roles logs in to ElastiCache and MemoryDB: the URL of the action
`connect`, presigned (SigV4) with the credentials that botocore finds, without its scheme.

A token holds for 15 minutes, and for AUTH alone: a connection that has logged in is ended by AWS
behind 12 hours, unless it logs in again.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from engine import logs
from engine.errors import UsageError
from engine.model.password_source import IamToken

if TYPE_CHECKING:
    from botocore.credentials import Credentials

TOKEN_SECONDS = 900
# How long one is used: what it was signed with may end a little sooner.
_HOLDS_SECONDS = 600.0
# How long AWS may be asked for the credentials of a role.
_SECONDS = 10.0
_log = logs.logger(__name__)


@dataclass(frozen=True, slots=True)
class _Made:
    token: str
    at: float


_made: dict[IamToken, _Made] = {}
# One at a time, and not on the threads on which files and the state are written: AWS may be silent.
_thread = ThreadPoolExecutor(1, thread_name_prefix="aws credentials")


async def token_of(source: IamToken, *, anew: bool = False) -> str:
    """A token that holds for some minutes yet. `anew`: the one before was refused.

    Raises `UsageError` with what went wrong and what to do.
    """
    made = _made.get(source)
    if made is not None and not anew and time.monotonic() - made.at < _HOLDS_SECONDS:
        return made.token
    try:
        # On a thread: the credentials of a role are asked for over the network.
        async with asyncio.timeout(_SECONDS):
            return await asyncio.get_running_loop().run_in_executor(
                _thread, contextvars.copy_context().run, _make, source, time.monotonic()
            )
    except TimeoutError:
        raise UsageError(
            f"{source.name} cannot be signed: no AWS credentials within {_SECONDS:g} s",
            remedy=_REMEDY,
        ) from None


def _make(source: IamToken, asked: float) -> str:
    made = _made.get(source)
    if made is not None and made.at >= asked:
        # It was made for another dial meanwhile.
        return made.token
    token = _signed(source)
    _made[source] = _Made(token, time.monotonic())
    _log.debug("Signed %s", source.name)
    return token


_REMEDY = (
    "The engine's environment has to give AWS credentials as botocore finds them (AWS_PROFILE, a "
    "role …): `aws sts get-caller-identity` shows whose they are."
)


def _signed(source: IamToken) -> str:
    try:
        from botocore.auth import SigV4QueryAuth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise UsageError(
            f"{source.name} cannot be signed: botocore is not installed",
            remedy="pip install 'startmigration[aws]'",
        ) from None
    wanted = {"Action": "connect", "User": source.user}
    if source.serverless:
        wanted["ResourceType"] = "ServerlessCache"
    request = AWSRequest("GET", f"https://{source.cluster}/", params=wanted)
    try:
        found = _credentials()
        if found is None:
            raise UsageError(
                f"{source.name} cannot be signed: no AWS credentials were found", remedy=_REMEDY
            )
        signer = SigV4QueryAuth(
            found.get_frozen_credentials(), source.service, source.region, expires=TOKEN_SECONDS
        )
        signer.add_auth(request)
    except (BotoCoreError, ClientError, OSError, ValueError, RuntimeError) as error:
        # (A role that may not be taken is a ClientError; one whose credentials came ended already a
        # RuntimeError.) Its words may repeat what a program that gives credentials has said.
        raise UsageError(
            f"{source.name} cannot be signed: {type(error).__name__} of botocore", remedy=_REMEDY
        ) from None
    url: str = request.url
    return url.removeprefix("https://")


@cache
def _session() -> Any:
    from botocore.session import Session

    return Session()


def _credentials() -> Credentials | None:
    """Those of the environment, a profile or a role, renewed as they end; None: there are none."""
    found: Credentials | None = _session().get_credentials()
    return found
