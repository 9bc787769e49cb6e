"""The application: a request in, a document out. What the parts do is in their own files.

body and query → caller → Action and Version → role → parameters → operation → XML
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from engine import logs
from engine.errors import ApiFault, EngineError, StateError
from engine.front import operations
from engine.front.access_keys import Role
from engine.front.engine import Engine
from engine.front.http import actions, query, xml
from engine.front.http.answer_cache import AnswerCache
from engine.front.http.authentication import Authenticator, Caller, bearer_fits, sha256
from engine.front.http.botocore_model import API_VERSION, Model, Operation, model
from engine.front.http.client_limits import (
    AT_ONCE,
    BODY_MOST,
    CHANGES_AT_ONCE,
    OPERATION_SECONDS,
    SLOW_AT_ONCE,
    read_body,
)
from engine.front.http.common_errors import (
    InternalFailure,
    InvalidAction,
    MalformedQueryString,
    MissingAction,
    MissingParameter,
    ServiceUnavailable,
    Throttling,
)
from engine.front.http.feed import EVENTS, Feed
from engine.front.http.log_throttle import LogThrottle
from engine.front.http.metrics import MEDIA_TYPE as METRICS_TYPE
from engine.front.http.metrics import Metrics
from engine.front.http.metrics_history import History
from engine.front.http.page import Page, asked_for
from engine.front.http.sigv4 import QUERY_MEMBERS, Signed
from engine.groups.states import GroupStatus
from engine.model.allowed_endpoints import with_every_reason

_FORM = "application/x-www-form-urlencoded"
_HEALTH_SECONDS = 1.0
_PACKAGE = Path(__file__).resolve().parents[3]
_log = logs.logger(__name__)


@dataclass(slots=True)
class Call:
    """One call, as far as it is known."""

    id: str
    began: float
    client: str
    operation: str = "unknown"
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request whose sender is known, with its parameters as they stand in the form."""

    caller: Caller
    pairs: query.Pairs


class Api:
    """The routes, and what they share. `metrics_token` is what Prometheus may show instead of a
    signature."""

    def __init__(
        self, engine: Engine, authenticator: Authenticator, *, metrics_token: bytes | None = None
    ) -> None:
        self._engine = engine
        self._authenticator = authenticator
        self._metrics_token = metrics_token
        self._model: Model = model()
        self._line = asyncio.Semaphore(AT_ONCE)
        self._changes = asyncio.Semaphore(CHANGES_AT_ONCE)
        self._slow_changes = asyncio.Semaphore(SLOW_AT_ONCE)
        self._slow = 0
        self._recent = AnswerCache()
        self._healthy = (0.0, False)
        self._page = Page()
        self._quiet = LogThrottle()
        self.metrics = Metrics()
        self.history = History()
        self.feed = Feed(lambda: operations.overview(engine.services, EVENTS))
        self.app = Starlette(
            routes=[
                Route("/", self._answer(self._root), methods=["GET", "POST"]),
                Route("/page/{name}", self._answer(self._part), methods=["GET"]),
                Route("/watch", self._answer(self._watch), methods=["GET"]),
                Route("/metrics", self._answer(self._metrics), methods=["GET"]),
                Route("/healthz", self._health, methods=["GET"]),
            ],
            exception_handlers={404: self._no_path, 405: self._no_method},
        )
        # A redirect would not be signed: /watch/ is another path, and not there.
        self.app.router.redirect_slashes = False

    async def _root(self, request: Request, call: Call) -> Response:
        if asked_for(request):
            call.operation = "Page"
            return self._page.index(request)
        return await self._query(request, call)

    # --- The Query protocol ---

    async def _query(self, request: Request, call: Call) -> Response:
        # 1. The caller.
        admitted = await self._admit(request, call)
        given = query.single(pair for pair in admitted.pairs if pair[0] not in QUERY_MEMBERS)
        # 2. What: the action, in our version of the API, by a caller that may.
        action, operation = self._asked_for(given, call)
        self._authenticator.allow(admitted.caller, action.role, f"elasticache:{operation.name}")
        # 3. With what.
        parameters = query.read(given, self._model.shape(operation.takes), self._model)
        action.check(parameters)
        # 4. Do it.
        answer = await self._run(action, parameters, admitted.caller)
        body = xml.response(operation, answer, call.id, self._model)
        return Response(body, media_type=xml.MEDIA_TYPE)

    def _asked_for(self, given: dict[str, str], call: Call) -> tuple[actions.Action, Operation]:
        name, version = given.pop("Action", ""), given.pop("Version", None)
        if not name:
            raise MissingAction("The request must contain the parameter Action.")
        if version is None:
            raise MissingParameter("The request must contain the parameter Version.")
        action = actions.find(name)
        call.operation = name
        if version != API_VERSION:
            raise InvalidAction(
                f"The version of the API is {API_VERSION}; {name} is not in another."
            )
        return action, self._model.operations[name]

    async def _run(
        self, action: actions.Action, parameters: dict[str, Any], caller: Caller
    ) -> dict[str, Any]:
        """Run an operation, within the limits on how many there are and how long they take."""
        try:
            async with asyncio.timeout(OPERATION_SECONDS):
                if action.refused is None and action.slow:
                    # Slow ones do not stand in the others' way, nor wait behind them.
                    with _reasons_for(caller):
                        return await self._slowly(action, parameters)
                if action.refused is None:
                    asked = (action.run, tuple(sorted(parameters.items())))
                    return await self._recent.get(asked, lambda: self._do(action, parameters))
                with _reasons_for(caller):
                    return await self._change(action, parameters, caller)
        except TimeoutError:
            raise ServiceUnavailable(
                f"The operation was not done after {OPERATION_SECONDS:g} s."
            ) from None

    async def _do(self, action: actions.Action, parameters: dict[str, Any]) -> dict[str, Any]:
        async with self._line:
            return _shown(await action.run(self._engine, parameters))

    async def _slowly(self, action: actions.Action, parameters: dict[str, Any]) -> dict[str, Any]:
        if self._slow >= SLOW_AT_ONCE:
            raise Throttling(f"{SLOW_AT_ONCE} such operations are under way.")
        self._slow += 1
        try:
            return _shown(await action.run(self._engine, parameters))
        finally:
            self._slow -= 1
            # (It may have asked the target what it runs, which the answers about its group show.)
            self._recent.forget()

    async def _change(
        self, action: actions.Action, parameters: dict[str, Any], caller: Caller
    ) -> dict[str, Any]:
        try:
            if self._authenticator.was_used(caller):
                await action.look(self._engine, parameters)
            with self._authenticator.once(caller):
                async with self._slow_changes if action.slow else self._changes:
                    return _shown(await action.run(self._engine, parameters))
        finally:
            # Refused or not: a refusal is an event.
            self._recent.forget()

    async def _admit(self, request: Request, call: Call) -> Admitted:
        """Read the request and check its signature."""
        scope = request.scope
        if scope["method"] == "HEAD":
            # The routes let it pass for a GET, whose answer is thrown away.
            raise _no_such_method()
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"]]
        if len(scope["query_string"]) > BODY_MOST:
            raise MalformedQueryString("The query string is too long.")
        body = await read_body(request.receive, headers)
        in_query = query.pairs(scope["query_string"])
        signed = Signed(
            method=scope["method"],
            path=scope["raw_path"].decode("latin-1"),
            query=in_query,
            headers=headers,
            body=sha256(body),
        )
        caller = self._authenticator.admit(signed)
        call.key_id = caller.key_id
        if not body:
            return Admitted(caller, in_query)
        kind = dict(headers).get("content-type", _FORM).partition(";")[0].strip().lower()
        if kind != _FORM:
            raise MalformedQueryString(f"The body is not {_FORM}.")
        return Admitted(caller, [*in_query, *query.pairs(body)])

    # --- The other routes ---

    async def _part(self, request: Request, call: Call) -> Response:
        call.operation = "Page"
        return self._page.part(request)

    async def _watch(self, request: Request, call: Call) -> Response:
        call.operation = "Watch"
        admitted = await self._admit(request, call)
        self._authenticator.allow(admitted.caller, Role.READ, "Watch")
        self.feed.check()
        role = {"X-Startmigration-Role": admitted.caller.role.value}
        return _Stream(
            self.feed,
            role,
            self.history.event(),
            lambda: self._authenticator.still_good(admitted.caller),
        )

    async def _metrics(self, request: Request, call: Call) -> Response:
        call.operation = "Metrics"
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in request.scope["headers"]]
        if not bearer_fits(headers, self._metrics_token):
            admitted = await self._admit(request, call)
            self._authenticator.allow(admitted.caller, Role.READ, "Metrics")
        self.metrics.watchers.set(self.feed.clients)
        found = await self._engine.services.state(
            lambda registry: (
                registry.under_migration(),
                registry.checkpoint_times(),
                registry.source_clients(),
                registry.ended(),
            )
        )
        return Response(self.metrics.page(*found), media_type=METRICS_TYPE)

    async def _health(self, request: Request) -> Response:
        del request
        at, healthy = self._healthy
        # Not more often: it is asked without a signature.
        if time.monotonic() - at >= _HEALTH_SECONDS:
            try:
                async with asyncio.timeout(_HEALTH_SECONDS * 5):
                    await self._engine.services.state(lambda registry: registry.list(limit=1))
                healthy = True
            except (EngineError, TimeoutError):
                healthy = False
            self._healthy = time.monotonic(), healthy
        status = {"status": "ok" if healthy else "the state cannot be used"}
        return JSONResponse(status, status_code=200 if healthy else 503)

    async def _no_path(self, request: Request, _error: Exception) -> Response:
        fault = MalformedQueryString("The path of the API is /.")
        return self._fault_response(_call(request), fault)

    async def _no_method(self, request: Request, _error: Exception) -> Response:
        return self._fault_response(_call(request), _no_such_method())

    # --- What every route has in common ---

    def _answer(
        self, handle: Callable[[Request, Call], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            call = _call(request)
            try:
                response = await handle(request, call)
            except asyncio.CancelledError:
                # At the end of the server, to those whose request was never complete.
                return self._fault_response(
                    call, ServiceUnavailable("The server is shutting down.")
                )
            except Exception as error:
                return self._fault_response(call, error)
            response.headers["x-amzn-RequestId"] = call.id
            self._note(call, "")
            return response

        return answer

    def _fault_response(self, call: Call, error: Exception) -> Response:
        """An error as a document; nothing but a documented one."""
        fault = _fault(error, call)
        message = str(fault)
        self._note(call, fault.code)
        body = xml.error(
            fault.code,
            message,
            sender=fault.http_status < 500,
            request_id=call.id,
            namespace=self._model.namespace,
        )
        response = Response(body, status_code=fault.http_status, media_type=xml.MEDIA_TYPE)
        response.headers["x-amzn-RequestId"] = call.id
        return response

    def _note(self, call: Call, code: str) -> None:
        seconds = time.monotonic() - call.began
        self.metrics.calls.labels(call.operation, code).inc()
        self.metrics.seconds.labels(call.operation).observe(seconds)
        if code and not call.key_id:
            skipped = self._quiet.take()
            if skipped is None:
                return
            if skipped:
                _log.info("%d refusals of callers without a key were not logged", skipped)
        action = actions.ACTIONS.get(call.operation)
        level = (
            logging.INFO
            if code or (action is not None and action.refused is not None)
            else logging.DEBUG
        )
        _log.log(
            level,
            "Request refused" if code else "Request answered",
            extra={
                "operation": call.operation,
                "code": code or "ok",
                "key": call.key_id or "-",
                "client": call.client,
                "ms": round(seconds * 1000, 1),
                "request": call.id,
            },
        )


class _Stream(Response):
    """The feed as a response, with headers of its own (among them what the watcher may do), and
    an event that comes first."""

    def __init__(
        self, feed: Feed, headers: dict[str, str], first: bytes, welcome: Callable[[], bool]
    ) -> None:
        super().__init__(headers=headers)
        self._feed = feed
        self._first = first
        self._welcome = welcome

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_ours(message: Message) -> None:
            if message["type"] != "http.response.start":
                await send(message)
                return
            ours = [each for each in self.raw_headers if each[0] != b"content-length"]
            await send({**message, "headers": [*message["headers"], *ours]})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})

        await self._feed.serve(scope, receive, send_ours, self._welcome)


def _call(request: Request) -> Call:
    client = request.client.host if request.client is not None else "-"
    return Call(id=str(uuid.uuid4()), began=time.monotonic(), client=client)


def _reasons_for(caller: Caller) -> AbstractContextManager[None]:
    """For an operation that dials: an admin is told why a server cannot be reached. Others could
    find out by it which ports are open in a network that is not theirs."""
    return with_every_reason() if caller.role is Role.ADMIN else nullcontext()


def _no_such_method() -> ApiFault:
    return InvalidAction("The API takes only POST and GET.")


def _fault(error: Exception, call: Call) -> ApiFault:
    """The fault of the API that an error is; a bug leaves its place in the log, and no text."""
    if isinstance(error, ApiFault):
        return error
    if isinstance(error, StateError):
        _log.error("%s", error, extra={"request": call.id})
        return ServiceUnavailable(
            "The server's state database cannot be used now. Try again; the server's log says why."
        )
    if isinstance(error, EngineError):
        _log.error("%s", error, extra={"request": call.id})
        return InternalFailure(error.message, remedy=error.remedy)
    # Its text may hold anything, a password included.
    places = [f for f in traceback.extract_tb(error.__traceback__) if "engine" in f.filename]
    place = (
        f"{places[-1].filename.removeprefix(str(_PACKAGE))}:{places[-1].lineno}" if places else "?"
    )
    _log.error("a bug: %s in %s", type(error).__name__, place, extra={"request": call.id})
    return InternalFailure("The request failed for an internal reason.")


def _shown(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer with what the model has a place for: how far a migration is, in percent.

    `Migration` is ours, and the SDKs pass over it. `SlotMigration.ProgressPercentage` is the one
    figure of the model that says how much of a group's data has arrived; 100 means that the
    migration can be completed.
    """
    groups = answer.get("ReplicationGroups", [answer.get("ReplicationGroup")])
    for group in groups:
        migration = None if group is None else group.get("Migration")
        if migration is None or group["Status"] != GroupStatus.MIGRATING:
            continue
        done, total = migration["Keys"], migration["TotalKeys"]
        percent = (
            100.0 if migration["CanComplete"] else min(99.0, 100.0 * done / max(total or 0, 1))
        )
        group["PendingModifiedValues"] = {
            "Resharding": {"SlotMigration": {"ProgressPercentage": round(percent, 1)}}
        }
    return answer
