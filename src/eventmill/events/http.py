"""Events from HTTP requests: the structured, batched and binary modes of the CloudEvents HTTP binding 1.0.2.

Owns the reading of headers and body. Knows no web framework, and never raises anything but InvalidEvent, whose `status`
is the HTTP status to answer (400, 413, 415).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

from eventmill.config import Limits
from eventmill.errors import InvalidEvent
from eventmill.events.codec import check_size, decode, decode_batch, encode, parse_json
from eventmill.events.validation import is_json, validate
from eventmill.sdk.event import Event

STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"

_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"\Z')
_CHARSET = re.compile(r';\s*charset\s*=\s*"?([^";\s]+)', re.IGNORECASE)
_UTF8: Final = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})


class UnsupportedContentType(InvalidEvent):
    """A request whose content type says that there is no event in it that could be read."""

    status = 415


def from_http(headers: Mapping[str, str], body: bytes, *, limits: Limits) -> list[Event]:
    """The events of a request, checked: one, or as many as its batch has (which may be none).

    `headers`: names in any case; a name may come more than once in `headers.items()`. Raises InvalidEvent.
    """
    lower = [(name.lower(), value) for name, value in headers.items()]
    content_type = next((value.strip() for name, value in lower if name == "content-type"), "")
    media_type = content_type.partition(";")[0].strip().lower()
    # the prefix of the batch's media type begins with that of the single event
    if media_type.startswith("application/cloudevents-batch"):
        _check_format(content_type, media_type, BATCH)
        return _storable(decode_batch(body, events_max=limits.batch_events, bytes_max=limits.event_bytes), limits)
    if media_type.startswith("application/cloudevents"):
        _check_format(content_type, media_type, STRUCTURED)
        return _storable([decode(body, bytes_max=limits.event_bytes)], limits)
    attributes = _attributes(lower)
    if not attributes:
        raise UnsupportedContentType(
            f"no CloudEvent: Content-Type is '{media_type[:100]}' and there are no ce- headers; "
            f"send {STRUCTURED}, {BATCH}, or the attributes as ce- headers"
        )
    check_size(len(body) + sum(map(len, attributes.values())), limits.event_bytes)
    return _storable([_binary(attributes, content_type, body)], limits)


def _storable(events: list[Event], limits: Limits) -> list[Event]:
    """The same events, if what the log has to keep of each (JSON, with base64 and numbers in full) is within the limit:
    whoever reads it back holds it to the same one."""
    for event in events:
        check_size(len(encode(event)), limits.event_bytes)
    return events


def _check_format(content_type: str, media_type: str, supported: str) -> None:
    """Only JSON is understood, and JSON is UTF-8."""
    if media_type != supported:
        raise UnsupportedContentType(f"the event format '{media_type[:100]}' is not supported; send {supported}")
    charset = _charset(content_type)
    if charset not in _UTF8:
        raise UnsupportedContentType(f"charset '{charset[:40]}' is not supported: JSON is UTF-8")


def _charset(content_type: str) -> str:
    match = _CHARSET.search(content_type)
    return match[1].lower() if match else "utf-8"


def _attributes(headers: list[tuple[str, str]]) -> dict[str, str]:
    """The attributes in the ce- headers."""
    found: dict[str, str] = {}
    for header, value in headers:
        if not header.startswith("ce-"):
            continue
        name = header[3:]
        if name in found:
            raise InvalidEvent("its header comes twice", name)
        if name == "datacontenttype":
            raise InvalidEvent("has no ce- header: it is the request's Content-Type", name)
        if name in ("data", "data_base64"):
            raise InvalidEvent("has no header: it is the request's body", name)
        found[name] = _header_value(name, value.strip())
    return found


def _header_value(name: str, value: str) -> str:
    """Undo what a header's value was encoded with: quotes (older senders), then one round of percent-encoding."""
    if not value.isascii():
        raise InvalidEvent("has characters beyond ASCII in its header; percent-encode them (as UTF-8)", name)
    if value.startswith('"'):
        quoted = _QUOTED.match(value)
        if quoted is None:
            raise InvalidEvent("has an opening quote in its header, but no closing one at the end", name)
        value = re.sub(r"\\(.)", r"\1", quoted[1])
    if "%" not in value:
        return value
    if _BAD_PERCENT.search(value):
        raise InvalidEvent("has a '%' without two hexadecimal digits in its header; write %25 for it", name)
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise InvalidEvent("is percent-encoded, but not as UTF-8", name) from None


def _binary(attributes: dict[str, str], content_type: str, body: bytes) -> Event:
    """The event whose attributes were headers and whose data is the body. An empty body is no data."""
    event: dict[str, object] = {**attributes}
    if content_type:
        event["datacontenttype"] = content_type
    if not body:
        return validate(event)
    if is_json(content_type):
        return validate({**event, "data": parse_json(body, "data")})
    text = declared_text(content_type, body)
    if text is None:
        return validate({**event, "data_base64": base64.b64encode(body).decode()})
    return validate({**event, "data": text})


def declared_text(content_type: str, body: bytes) -> str | None:
    """The body, if it is declared to be text (or XML) in UTF-8 and is: what isn't is kept as the bytes it is."""
    media_type = content_type.partition(";")[0].strip().lower()
    if not (media_type.startswith("text/") or media_type.endswith(("/xml", "+xml"))):
        return None
    if _charset(content_type) not in _UTF8:
        return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None
