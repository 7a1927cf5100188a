"""What the result of a web action is as an HTTP answer, by the extension that it was called with.

Nothing that an action returns may break the answer's frame or stand for what the server says itself: header names and
values are checked, headers about the connection and the server's own are left out. Functions of values.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Any

from starlette.responses import Response

from eventmill.api.answers import ACTIVATION_HEADER
from eventmill.api.errors import Refusal
from eventmill.api.protocol import HEAD_BYTES_MAX
from eventmill.api.wire import Pretty, pretty

EXTENSIONS = (".http", ".json", ".html", ".svg", ".text")
_FIELDS = {".html": ("html", "text/html"), ".svg": ("svg", "image/svg+xml")}

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_NAME = re.compile(_TOKEN)
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_MEDIA_TYPE = re.compile(rf"({_TOKEN}/{_TOKEN})\s*(;[\t\x20-\x7e]*)?")
_OF_THE_SERVER = frozenset(
    ("connection", "content-length", "date", "keep-alive", "proxy-connection", "server", "te", "trailer",
     "transfer-encoding", "upgrade", "x-request-id", ACTIVATION_HEADER)
)  # fmt: skip
_WITHOUT_BODY = (204, 205, 304)

FORM = "application/x-www-form-urlencoded"
_TEXTS = frozenset(
    f"application/{name}"
    for name in ("atom+xml", "javascript", "rss+xml", "soap+xml", "vnd.google-earth.kml+xml", "xhtml+xml", "xml",
                 "xml-dtd")
)  # fmt: skip


def is_text(media_type: str) -> bool:
    """Whether bodies of this type are texts; all else but JSON and forms is base64 in parameters and results."""
    return media_type.startswith("text/") or media_type in _TEXTS


def is_json(media_type: str) -> bool:
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))


def media_type_of(header: str) -> str | None:
    """The `type/subtype` of a Content-Type, lower case; None if it is none."""
    match = _MEDIA_TYPE.fullmatch(header.strip())
    return match[1].lower() if match else None


def project(value: Any, extension: str) -> Response:
    """The answer. Raises Refusal (400, 404) for a value that does not fit the extension."""
    match extension:
        case ".json":
            if not isinstance(value, dict | list):
                raise _invalid("application/json")
            return Pretty(value)
        case ".text":
            return _text(_field(value, "text"))
        case ".html" | ".svg":
            return _markup(value, *_FIELDS[extension])
        case _:
            return _http(value)


def _invalid(media_type: str) -> Refusal:
    return Refusal(f"Response is not valid '{media_type}'.")


def _field(value: Any, name: str) -> Any:
    """Of an object its `body`, else the field of this name. Raises Refusal (404)."""
    if not isinstance(value, dict):
        return value
    for key in ("body", name):
        if key in value:
            return value[key]
    raise Refusal("Response does not include requested property.", 404)


def _text(value: Any) -> Response:
    body = value.encode(errors="replace") if isinstance(value, str) else pretty(value)
    return Response(body, media_type="text/plain; charset=UTF-8")


def _markup(value: Any, field: str, media_type: str) -> Response:
    markup = value.get("body", value.get(field)) if isinstance(value, dict) else value
    if not isinstance(markup, str):
        raise _invalid(media_type)
    return Response(markup, media_type=_with_charset(media_type))


# .http


def _http(value: Any) -> Response:
    if not isinstance(value, dict):
        raise _invalid("message/http")
    body = value.get("body")
    is_empty = body is None or body == ""
    status = _status(value["statusCode"]) if "statusCode" in value else 204 if is_empty else 200
    headers = list(_headers(value.get("headers", {})))
    content_types = [header for name, header in headers if name == "content-type"]
    if is_empty:
        answer = Response(status_code=status)
    else:
        content, content_type = _content(body, content_types[0] if content_types else None)
        answer = Response(b"" if status in _WITHOUT_BODY else content, status)
        if status not in _WITHOUT_BODY:
            answer.headers["content-type"] = content_type
    for name, header in headers:
        if name != "content-type":
            answer.headers.append(name, header)
    return answer


def _status(value: Any) -> int:
    """A final status, as number or digits."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise _invalid("message/http")
    if not 200 <= value <= 599:
        raise _invalid("message/http")
    return int(value)


def _headers(value: Any) -> Iterator[tuple[str, str]]:
    """(name in lower case, value) of the headers that an action may set. Raises Refusal."""
    if not isinstance(value, dict):
        raise _invalid("message/http")
    size = 0
    for name, given in value.items():
        if not _NAME.fullmatch(name):
            raise _invalid("message/http")
        for text in _header_texts(given):
            size += len(name) + len(text)
            if size > HEAD_BYTES_MAX:
                raise Refusal(f"Response has more than {HEAD_BYTES_MAX} bytes of headers.")
            if name.lower() not in _OF_THE_SERVER:
                yield name.lower(), text


def _header_texts(value: Any) -> Iterator[str]:
    match value:
        case list():
            for item in value:
                yield from _header_texts(item)
        case bool():
            yield "true" if value else "false"
        case int() | float():
            yield str(value)
        case str() if _VALUE.fullmatch(value):
            yield value
        case _:
            raise _invalid("message/http")


def _content(body: Any, header: str | None) -> tuple[bytes, str]:
    """(bytes, Content-Type) of a body that is not empty. Raises Refusal."""
    if header is None:
        header = "text/html" if isinstance(body, str) else "application/json"
    media_type = media_type_of(header)
    if media_type is None:
        raise Refusal("Response did not specify a known content-type.")
    if not isinstance(body, str):
        if not is_json(media_type):
            raise _mismatch()
        return pretty(body), header
    if is_text(media_type):
        return body.encode(errors="replace"), _with_charset(media_type)
    if media_type in ("application/json", FORM):
        return body.encode(errors="replace"), header
    return _decoded(body), header


def _decoded(body: str) -> bytes:
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _mismatch() from None


def _mismatch() -> Refusal:
    return Refusal("Response type in header did not match generated content type.")


def _with_charset(media_type: str) -> str:
    return f"{media_type}; charset=UTF-8" if is_text(media_type) else media_type
