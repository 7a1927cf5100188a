"""CloudEvents on Kafka, protocol binding 1.0.2: from a record of the binary mode to the structured one.

In binary mode the attributes are headers (`ce_id`, …), the data is the record's value, and its content type a header
`content-type`. Attributes are UTF-8 as they are: nothing is percent-encoded, as it is over HTTP. Functions of values;
nothing here raises: what is wrong with a record is put so that the decoder refuses it, and says why.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final

import orjson

from eventmill.events.http import declared_text
from eventmill.events.validation import is_json

PREFIX: Final = "ce_"
_STRUCTURED: Final = "application/cloudevents"
_NOT_UTF8: Final = "\x00"
"""Stands for a header that is not UTF-8: an attribute has no control characters."""

Headers = Sequence[tuple[str, bytes | None]]


def structured(headers: Headers, value: bytes | None) -> bytes:
    """The record's event in structured JSON: of a record in binary mode, else its value; empty for a tombstone.

    Data that should be JSON and isn't is returned as it is: that is what the decoder will say.
    """
    attributes = _attributes(headers)
    content_type = _content_type(headers)
    if not attributes or content_type.lower().startswith(_STRUCTURED):
        return value or b""
    event: dict[str, Any] = attributes
    if content_type:
        event["datacontenttype"] = content_type
    if not value:
        return orjson.dumps(event)
    if not is_json(content_type):
        text = declared_text(content_type, value)
        event |= {"data": text} if text is not None else {"data_base64": base64.b64encode(value).decode()}
        return orjson.dumps(event)
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return value
    return orjson.dumps({**event, "data": orjson.Fragment(value)})


def _attributes(headers: Headers) -> dict[str, Any]:
    """What the headers say. A name that comes twice has a list, and names of what is no attribute keep their prefix:
    none of these is an attribute's value, or its name."""
    found: dict[str, Any] = {}
    for header, raw in headers:
        if not header.startswith(PREFIX):
            continue
        name = header.removeprefix(PREFIX)
        if name in ("data", "data_base64", "datacontenttype"):
            name = header
        text = _decoded(raw)
        found[name] = [found[name], text] if name in found else text
    return found


def _content_type(headers: Headers) -> str:
    return next(((_decoded(raw) or "").strip() for header, raw in headers if header.lower() == "content-type"), "")


def _decoded(raw: bytes | None) -> str | None:
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError:
        return _NOT_UTF8
