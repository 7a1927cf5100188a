"""Web actions: what anybody may call by plain HTTP, with or without a key, if the action's annotations say so.

Owns the way from a request to an action's parameters. An action sees the whole request but for the credentials, which
are the server's business (`web_credentials`). It runs as its owner: the activation is of the owner's namespace.
"""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote_plus, unquote, unquote_plus

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from eventmill.api import answers, names
from eventmill.api.answers import ACTIVATION_HEADER
from eventmill.api.auth import Call, call_of
from eventmill.api.errors import INTERNAL, NO_SUCH_PATH, Refusal, malformed, missing
from eventmill.api.invocation import WAIT_MS_MAX, Invocations, Plan, reserved
from eventmill.api.projection import EXTENSIONS, FORM, is_json, is_text, media_type_of, project
from eventmill.api.routing import CORS
from eventmill.api.services import Services
from eventmill.api.wire import Pretty, parse, read_body
from eventmill.entities import Activation, Status

PREFIX = "/api/v1/web/"

_RESERVED = frozenset(f"__ow_{name}" for name in ("method", "headers", "path", "user", "query", "body"))
_CREDENTIALS = ("authorization", "proxy-authorization", "x-require-whisk-auth")
_FORM_FIELDS_MAX = 10_000
_OCTETS = "application/octet-stream"
_CORS = {**CORS, "access-control-allow-methods": "OPTIONS, GET, DELETE, POST, PUT, HEAD, PATCH"}
_SANDBOX = "sandbox allow-scripts allow-forms"
"""A page that an action makes comes from where the API is: this makes it a stranger there, unless the action has a
policy of its own."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names: an action (`name` with its package, if there is one), how its result is wanted, and the rest
    of the path, percent-encoded as it came."""

    namespace: str
    name: str
    extension: str
    rest: str


def target_of(raw_path: bytes) -> Target | None:
    """None if this is not the path of a web action: it needs a key then, and is nowhere."""
    path = raw_path.decode("latin-1")
    if not path.startswith(PREFIX):
        return None
    parts = path[len(PREFIX) :].split("/", 3)
    if len(parts) < 3:
        return None
    namespace, package, action = map(unquote, parts[:3])
    extension = next((known for known in EXTENSIONS if action.endswith(known)), "")
    action = action.removesuffix(extension)
    if not all(map(names.is_name, (namespace, package, action))):
        return None
    name = action if package == "default" else f"{package}/{action}"
    return Target(namespace, name, extension or ".http", "/" + parts[3] if len(parts) == 4 else "")


class Web:
    def __init__(self, services: Services, invocations: Invocations) -> None:
        self._invocations = invocations
        self._bytes_max = services.settings.limits.payload_bytes
        self._hidden = frozenset() if services.settings.server.web_credentials else frozenset(_CREDENTIALS)

    def routes(self) -> list[BaseRoute]:
        every = Route(PREFIX + "{rest:path}", self.call)
        every.methods = set()  # that is: all
        return [every]

    async def call(self, request: Request) -> Response:
        """What the action answers; 202 if it takes too long."""
        target = target_of(request.scope["raw_path"])
        if target is None:
            raise Refusal(NO_SUCH_PATH, 404)
        plan = await self._exported(target)
        call = call_of(request)
        if plan.annotations.get("web-custom-options") is not True:
            call.headers.update(_cors(request.headers.get("access-control-request-headers")))
            if request.method == "OPTIONS":
                return Response()
        _check_caller(plan, request, call)
        body = await read_body(request, self._bytes_max)
        plan = await self._exported(target)  # once more: a body may take its time, and the action may be another now
        _check_caller(plan, request, call)
        parameters = self._parameters(request, plan, target, body)
        row = await self._invocations.call(plan, parameters, wait_s=WAIT_MS_MAX / 1000, transaction=call.transaction)
        call.headers |= {ACTIVATION_HEADER: row.id, "content-security-policy": _SANDBOX}
        if not row.state.final:
            return Pretty({"error": "Response not yet ready.", "code": call.transaction}, 202)
        return project(_outcome(row), target.extension)

    async def _exported(self, target: Target) -> Plan:
        """Raises Refusal (404) for whatever can't be called: strangers learn nothing about what is there."""
        try:
            plan = await self._invocations.plan(target.namespace, target.name, target.namespace)
        except Refusal:
            raise missing() from None
        if plan.annotations.get("web-export") is not True:
            raise missing()
        return plan

    def _parameters(self, request: Request, plan: Plan, target: Target, body: bytes) -> dict[str, Any]:
        media_type = media_type_of(request.headers.get("content-type", ""))
        query = request.scope["query_string"].decode("latin-1")
        if plan.annotations.get("raw-http") is True:
            given: dict[str, Any] = {}
            facts = {"__ow_query": _reencoded(query), "__ow_body": _raw_body(body, media_type)}
        else:
            given, facts = _merged(query, body, media_type)
            if not _RESERVED.isdisjoint(given):
                raise reserved()
        return {**plan.parameters(given), **facts, **self._facts(request, target, bool(body) and media_type is None)}

    def _facts(self, request: Request, target: Target, untyped: bool) -> dict[str, Any]:
        headers: dict[str, str] = {}
        for name, value in request.headers.items():
            if name not in self._hidden:
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
        if untyped:
            headers["content-type"] = _OCTETS
        identity = call_of(request).identity
        user = {} if identity is None else {"__ow_user": identity.namespace}
        return {"__ow_method": request.method.lower(), "__ow_headers": headers, "__ow_path": target.rest, **user}


def _cors(wanted: str | None) -> dict[str, str]:
    if wanted and wanted.isascii() and wanted.isprintable():
        return {**_CORS, "access-control-allow-headers": wanted}
    return _CORS


def _check_caller(plan: Plan, request: Request, call: Call) -> None:
    """Raises Refusal (401). Who only asks what may be asked needs nothing."""
    if request.method != "OPTIONS":
        _check_key(plan.annotations.get("require-whisk-auth", False), request, call)


def _check_key(required: Any, request: Request, call: Call) -> None:
    """The annotation `require-whisk-auth`: true wants a key of whatever account, text or number that the header
    repeats it. Raises Refusal (401)."""
    match required:
        case False:
            return
        case True:
            is_allowed = call.identity is not None
        case str() | int() | float():
            given = request.headers.get("x-require-whisk-auth")
            is_allowed = given is not None and hmac.compare_digest(given.encode("latin-1"), str(required).encode())
        case _:
            is_allowed = False
    if not is_allowed:
        raise Refusal("Authentication is possible but has failed or not yet been provided.", 401)


def _outcome(row: Activation) -> Any:
    """What is to be answered: the result, or its `error`. Raises Refusal if the action did not get as far as that."""
    if row.status not in (Status.SUCCESS, Status.APPLICATION_ERROR):
        if answers.http_status(row) == 500:
            raise Refusal(INTERNAL, 500)
        raise Refusal("There was an error processing your request.")
    result = orjson.loads(row.result or b"{}")
    return result["error"] if isinstance(result, dict) and "error" in result else result


# queries and bodies


def _merged(query: str, body: bytes, media_type: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(parameters of query and body, of one name those of the body; `__ow_body`, if it is not among them)."""
    given: dict[str, Any] = _pairs(query)
    if media_type == FORM:
        return {**given, **_pairs(body.decode(errors="replace"))}, {}
    if not body and (media_type is None or is_json(media_type)):
        return given, {}
    if media_type is None or not is_json(media_type):
        return given, {"__ow_body": _body_text(body, media_type)}
    value = parse(body)
    return ({**given, **value}, {}) if isinstance(value, dict) else (given, {"__ow_body": value})


def _pairs(text: str) -> dict[str, str]:
    """Of a key that comes twice the last one counts."""
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_FORM_FIELDS_MAX))
    except ValueError:
        raise malformed(f"more than {_FORM_FIELDS_MAX} fields") from None


def _raw_body(body: bytes, media_type: str | None) -> str:
    return body.decode(errors="replace") if media_type == FORM else _body_text(body, media_type)


def _body_text(body: bytes, media_type: str | None) -> str:
    """Texts as they are, all else in base64."""
    if media_type is not None and is_text(media_type):
        return body.decode(errors="replace")
    return base64.b64encode(body).decode()


def _reencoded(query: str) -> str:
    """The query, percent-encoded in one way whatever the caller's way is."""
    return "&".join("=".join(map(_reencoded_part, pair.split("=", 1))) for pair in query.split("&"))


def _reencoded_part(text: str) -> str:
    return quote_plus(unquote_plus(text), safe="/:@~*-._!'()$,;?")
