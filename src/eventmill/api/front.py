"""What every request passes: its id, the Host header, the key; and what every answer gets: the id, CORS headers, an
error document, a log line, a count. One plain ASGI layer around the routes, since the hot paths pay for it.

It must never log a header, a query or a body.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eventmill.api import web
from eventmill.api.auth import CALL, Authenticator, Call
from eventmill.api.errors import INTERNAL, NO_SUCH_PATH, Refusal, status_of
from eventmill.api.protocol import HEAD_BYTES_MAX
from eventmill.api.routing import CORS, NAMESPACE
from eventmill.api.wire import Json, Pretty
from eventmill.config import Server
from eventmill.errors import EventmillError

_access = logging.getLogger("eventmill.access")
_log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""What answers without a key."""
OPEN_BELOW = ("/eventmill/v1/job-ends/",)
"""Below these, each request has a token of its own, which its handler checks."""

_MANY = {("POST", "/events"), *(("POST", f"{NAMESPACE}/actions/{name}") for name in ("{name}", "{package}/{name}"))}
"""What comes by the thousand, and is counted: a line for each would say no more than its event or activation does."""
_TRANSACTION_LENGTH_MAX = 128
_LINGER_BYTES, _LINGER_S = 64 << 20, 5.0
"""What is still taken in of a body that was refused for its size."""
_METHODS = "GET, DELETE, POST, PUT, HEAD"
_CORS = {**CORS, "access-control-allow-methods": _METHODS}
_VERBS = frozenset({*_METHODS.split(", "), "OPTIONS", "PATCH"})
_URI_BYTES_MAX = 8 << 10
_HOSTS_SEEN_MAX, _HOST_SEEN_BYTES_MAX = 100, 300


class Front:
    """The outermost layer of the application."""

    def __init__(
        self, app: ASGIApp, *, authenticator: Authenticator, server: Server, metrics: CollectorRegistry
    ) -> None:
        self._app = app
        self.authenticator = authenticator
        self._hosts = frozenset(host.lower() for host in server.allowed_hosts)
        self._hosts_seen: set[bytes] = set()
        """Host headers that were good."""
        self._metrics = _Metrics(metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        head = dict(reversed(scope["headers"]))  # of several of one name the first counts
        scope["app"] = self  # whoever finds no route raises then
        call = scope[CALL] = Call(_transaction(head.get(b"x-request-id", b"")), head)
        answer = _Answer(call, send)
        try:
            response = await self._admit(scope, call)
            await (response or self._app)(scope, self._watched(scope, call, receive, answer), answer.send)
        except ClientDisconnect:
            answer.status = answer.status or 499
        except HTTPException as e:
            await self._refuse(_no_route(scope["path"], e), scope, receive, answer)
        except Exception as e:
            await self._refuse(e, scope, receive, answer)
        self._note(scope, call, answer.status, time.perf_counter() - began)

    async def _admit(self, scope: Scope, call: Call) -> Response | None:
        """Let the request in, or answer it here. Raises Refusal."""
        path, method = scope["path"], scope["method"]
        is_web = web.target_of(scope["raw_path"]) is not None
        if path.startswith("/api/") and not is_web:
            call.headers.update(_CORS)
        self._check_host(scope, call.head)
        _check_head(scope)
        if not is_web and path not in OPEN_PATHS and b"sec-fetch-site" in call.head:
            _check_page(method, call.head, is_ours=not path.startswith("/api/"))
        if method == "OPTIONS" and not is_web:
            return PlainTextResponse("OK")
        if method not in _VERBS:
            supported = f"{_METHODS}, OPTIONS, PATCH"
            raise Refusal(f"HTTP method not allowed, supported methods: {supported}", 405, {"allow": supported})
        if path not in OPEN_PATHS and not path.startswith(OPEN_BELOW):
            await self._identify(call, optional=is_web)
        return None

    def _check_host(self, scope: Scope, head: Mapping[bytes, bytes]) -> None:
        """A web page that has rebound its name to our address still sends its own name here. Raises Refusal (400 for
        several names, of which a proxy before us may have gone by another; 403)."""
        if len(head) < len(scope["headers"]) and sum(name == b"host" for name, _ in scope["headers"]) > 1:
            raise Refusal("More than one Host header.")
        header = head.get(b"host", b"")
        if header in self._hosts_seen:
            return
        host = header.decode("latin-1").lower()
        name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
        if name not in self._hosts:
            shown = ascii(name[:100])
            raise Refusal(f"Host {shown} is not a name of this server (they are listed in server.allowed_hosts).", 403)
        if len(self._hosts_seen) < _HOSTS_SEEN_MAX and len(header) <= _HOST_SEEN_BYTES_MAX:
            self._hosts_seen.add(header)

    def _watched(self, scope: Scope, call: Call, receive: Receive, answer: _Answer) -> Receive:
        """Receives for a request that was let in. A body may take its time: if keys are withdrawn meanwhile, it is
        asked once more who calls, so that no withdrawn key opens what was begun with it. May raise Refusal (401)."""
        changes = self.authenticator.changes

        async def receive_watched() -> Message:
            answer.is_body_asked_for = True
            message = await receive()
            answer.has_body_ended = not message.get("more_body")
            if self.authenticator.changes != changes and call.identity is not None:
                is_web = web.target_of(scope["raw_path"]) is not None
                call.identity = None
                await self._identify(call, optional=is_web)
            return message

        return receive_watched

    async def _identify(self, call: Call, *, optional: bool) -> None:
        """`optional`: whoever has no key, or not a good one, is nobody. Raises Refusal (401)."""
        header = call.head.get(b"authorization")
        if header is None and optional:
            return
        try:
            call.identity = await self.authenticator.identify(header)
        except Refusal:
            if not optional:
                raise

    async def _refuse(self, error: Exception, scope: Scope, receive: Receive, answer: _Answer) -> None:
        status = status_of(error) if isinstance(error, EventmillError) else 500
        if status == 500:
            _log.error("request %s failed", answer.transaction, exc_info=error)
        if answer.status:  # it has begun: cut it off rather than mix two answers
            raise error
        document = {"error": INTERNAL if status == 500 else str(error), "code": answer.transaction}
        headers = dict(error.headers) if isinstance(error, Refusal) else {}
        kind = Pretty if scope["path"].startswith(web.PREFIX) else Json
        if status == 503:
            headers["retry-after"] = "1"
        if status == 413:
            await _answer_early(kind(document, status, {**headers, "connection": "close"}), scope, receive, answer)
        else:
            await kind(document, status, headers)(scope, receive, answer.send)

    def _note(self, scope: Scope, call: Call, status: int, took_s: float) -> None:
        route = getattr(scope.get("route"), "path", "")
        self._metrics.count(route, status, took_s)
        level = logging.DEBUG if status < 400 and (scope["method"], route) in _MANY else logging.INFO
        if _access.isEnabledFor(level):
            facts = {
                "transaction": call.transaction,
                "namespace": call.identity.namespace if call.identity is not None else None,
                "method": scope["method"], "path": scope["path"], "status": status,
                "duration_ms": round(took_s * 1000, 2),
            }  # fmt: skip
            _access.log(
                level, "%(method)s %(path)r %(status)d %(duration_ms)s ms [%(transaction)s]", facts, extra=facts
            )


async def _answer_early(response: Response, scope: Scope, receive: Receive, answer: _Answer) -> None:
    """Answer while the body is still coming, and take in and forget some more of it: a caller whose connection were
    cut while it sends would never read the answer."""

    async def hold_open(message: Message) -> None:
        await answer.send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    await response(scope, receive, hold_open)
    if not (answer.has_body_ended or answer.is_body_held_back):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await _discard(receive)
    await answer.send({"type": "http.response.body"})


async def _discard(receive: Receive) -> None:
    size = 0
    while size < _LINGER_BYTES:
        message = await receive()
        size += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


class _Answer:
    """Puts our headers on an answer while it is sent, and remembers its status (0: not yet begun), and how far the body
    has come that it answers."""

    is_body_asked_for = False
    has_body_ended = False

    def __init__(self, call: Call, send: Send) -> None:
        self.transaction = call.transaction
        self.status = 0
        self._call = call
        self._send = send

    @property
    def is_body_held_back(self) -> bool:
        """The caller waits to be told to send it (`Expect: 100-continue`), and has not been. Once it is answered, it
        may leave it out or not."""
        return b"expect" in self._call.head and not self.is_body_asked_for

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self.is_body_held_back:  # nobody could tell then where the next request begins
                self._call.headers["connection"] = "close"
            self.status = message["status"]
            headers = list(message["headers"])
            own = {name for name, _ in headers}
            for name, value in self._call.headers.items():
                if (raw := name.encode()) not in own:
                    headers.append((raw, value.encode("latin-1")))
            headers.append((b"x-request-id", self.transaction.encode("latin-1")))
            message["headers"] = headers
        await self._send(message)


class _Metrics:
    """Counts and times by route: its template, of which there are few, never the path."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter("eventmill_http_requests", "Requests answered", ("route", "status"), registry=registry)
        self._seconds = Histogram(
            "eventmill_http_request_seconds", "Time to answer a request", ("route",), registry=registry
        )
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def count(self, route: str, status: int, took_s: float) -> None:
        children = self._children.get((route, status))
        if children is None:
            children = self._requests.labels(route, status), self._seconds.labels(route)
            self._children[route, status] = children
        children[0].inc()
        children[1].observe(took_s)


def _no_route(path: str, error: HTTPException) -> Refusal:
    """No such path, or not this verb. Under /api/v1 OpenWhisk knows no 405, elsewhere nothing else."""
    if path == "/api/v1" or path.startswith("/api/v1/"):
        return Refusal(NO_SUCH_PATH, 404)
    if error.status_code == 404 and not path.startswith("/eventmill/"):
        return Refusal("HTTP method not allowed, supported methods: OPTIONS", 405)
    return Refusal(NO_SUCH_PATH if error.status_code == 404 else error.detail, error.status_code, error.headers)


def _transaction(header: bytes) -> str:
    """The request's own id if it has one that can be used, else a new one."""
    given = header.decode("latin-1")
    if 0 < len(given) <= _TRANSACTION_LENGTH_MAX and given.isascii() and given.isprintable() and given[:4] != "sid_":
        return given
    return os.urandom(16).hex()


def _check_head(scope: Scope) -> None:
    """Raises Refusal (414, 431)."""
    if len(scope["raw_path"]) + len(scope["query_string"]) > _URI_BYTES_MAX:
        raise Refusal(f"URI length exceeds the configured limit of {_URI_BYTES_MAX} characters", 414)
    if sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_BYTES_MAX:
        raise Refusal(f"more than {HEAD_BYTES_MAX} bytes of headers", 431)


def _check_page(method: str, head: Mapping[bytes, bytes], *, is_ours: bool) -> None:
    """Browsers say where a request comes from, and add the key that they remember to what any page makes them send.
    There is no page of ours: what comes from our own origin comes from a web action's. Of others, OpenWhisk's clients
    among them, `/api/` takes what a page can't send without having asked (CORS), and what changes nothing. Raises
    Refusal (403)."""
    site = head[b"sec-fetch-site"]
    if site == b"none":
        return
    is_refused = is_ours or site == b"same-origin"
    if method not in ("GET", "HEAD", "OPTIONS"):
        is_simple = method == "POST" and not head.get(b"content-type", b"").startswith(b"application/json")
        is_refused = is_refused or is_simple or head.get(b"sec-fetch-mode") in (b"no-cors", b"navigate")
    if is_refused:
        raise Refusal("This is not answered to web pages.", 403)
