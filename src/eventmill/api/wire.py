"""Bytes in, bytes out: bodies read within bounds, query values, JSON answers. Nothing of what they mean."""

from __future__ import annotations

import functools
import re
from typing import Any

import orjson
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from eventmill.api.auth import call_of
from eventmill.api.errors import Refusal, malformed, malformed_query, too_large

JSON_DEPTH_MAX = 128
"""Nesting of a body. The encoder of all our answers and rows gives up at 254, and rows hold bodies."""

_LIST_DEFAULT, LIST_MAX = 30, 200
_TRUE, _FALSE = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})
_WRAPPINGS = 254 - JSON_DEPTH_MAX
_QUERY_BYTES_KEPT = 64


class Json(Response):
    """An answer in JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return content if isinstance(content, bytes) else orjson.dumps(content)


class Pretty(Json):
    """One for people: web actions answer so."""

    def render(self, content: Any) -> bytes:
        return pretty(content)


def pretty(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2)


async def read_body(request: Request, bytes_max: int) -> bytes:
    """The body. Raises Refusal (413) as soon as it is known to be too large: the rest is not read."""
    declared = call_of(request).head.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > bytes_max:
        raise too_large("Request", int(declared), bytes_max)
    chunks: list[bytes] = []
    size = 0
    while True:  # a stream of Starlette's is an iterator more
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > bytes_max:
            raise too_large("Request", size, bytes_max)
        if not message.get("more_body"):
            return b"".join(chunks) + chunk if chunks else chunk
        chunks.append(chunk)


async def json_object(request: Request, bytes_max: int, *, optional: bool = False) -> dict[str, Any]:
    """The body's JSON object; `optional`: no body is an empty one. Raises Refusal (400, 413, 415)."""
    body = await read_body(request, bytes_max)
    _check_content_type(request, body)
    if not body and optional:
        return {}
    value = parse(body)
    if not isinstance(value, dict):
        raise malformed("JSON object expected")
    return value


def _check_content_type(request: Request, body: bytes) -> None:
    """A web page can send a body to any server, but none of this type without asking first (CORS)."""
    header = call_of(request).head.get(b"content-type", b"")
    if header == b"application/json":
        return
    given = header.decode("latin-1").partition(";")[0].strip()
    if (body or given) and given.lower() != "application/json":
        shown = f" [{given}]" if given else ""
        raise Refusal(f"The request's Content-Type{shown} is not supported. Expected:\napplication/json", 415)


def parse(body: bytes) -> Any:
    """JSON that can be written again. Raises Refusal."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise malformed(str(e)) from None
    if body.count(b"[") + body.count(b"{") > JSON_DEPTH_MAX:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    """The encoder, which has a limit, counts for us."""
    for _ in range(_WRAPPINGS):
        value = [value]
    try:
        orjson.dumps(value)
    except TypeError:
        raise malformed(f"nested deeper than {JSON_DEPTH_MAX} levels") from None


def query_of(request: Request) -> QueryParams:
    """The values after the question mark."""
    query = request.scope["query_string"]
    return _parsed(query) if len(query) <= _QUERY_BYTES_KEPT else QueryParams(query)


@functools.lru_cache(maxsize=256)
def _parsed(query: bytes) -> QueryParams:
    """What many calls have in common (`blocking=true`)."""
    return QueryParams(query)


def flag(request: Request, name: str, default: bool = False) -> bool:
    """A query value that is true or false."""
    query = request.scope["query_string"]
    return (_flag if len(query) <= _QUERY_BYTES_KEPT else _flag.__wrapped__)(query, name, default)


@functools.lru_cache(maxsize=256)
def _flag(query: bytes, name: str, default: bool) -> bool:
    value = next(iter(QueryParams(query).getlist(name)), "")
    if not value:
        return default
    if value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise malformed_query(name, f"'{value}' is not a valid Boolean value")


def paging(request: Request, collection: str) -> tuple[int, int]:
    """(skip, limit) of a list."""
    query = query_of(request)
    skip = _integer(query, "skip", 0, collection)
    limit = _integer(query, "limit", _LIST_DEFAULT, collection)
    if skip < 0:
        why = f"The value '{skip}' is not greater than or equal to 0 for {collection}."
        raise malformed_query("skip", why)
    if not 0 <= limit <= LIST_MAX:
        why = f"The value '{limit}' is not in the range of 0 to {LIST_MAX} for {collection}."
        raise malformed_query("limit", why)
    return skip, limit or LIST_MAX


def _integer(query: QueryParams, name: str, default: int, collection: str) -> int:
    value = next(iter(query.getlist(name)), None)
    try:
        if value is None:
            return default
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", value):  # no database and no clock has more digits
            raise ValueError
        return int(value)
    except ValueError:
        raise malformed_query(name, f"The value '{value}' is not an integer for {collection}.") from None
