"""What is sent to a function service, and what its answer means. Functions of values.

An event goes as the CloudEvent that it is; any other parameters go as the data of one that is made for them, whose id
is the activation's: the same for all its attempts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from eventmill.entities import Status
from eventmill.errors import InvalidEvent
from eventmill.events.codec import parse_json
from eventmill.events.http import STRUCTURED
from eventmill.events.validation import is_json, validate
from eventmill.executors.base import Attempt
from eventmill.executors.endings import RETRY_AFTER_S_MAX, Ending, internal_error
from eventmill.sdk.event import ATTRIBUTES

CALLED_TYPE = "org.eventmill.action.called"
MODE = "cloudevents"
"""The annotation that chooses how events are sent: `binary` (default) or `structured`."""
MODES = ("binary", "structured")

_RETRIED = frozenset({408, 425, 429, 502, 503, 504})
"""Statuses after which another attempt may help."""
_SHOWN_CHARS = 1000
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""As W3C has it. An event may bring anything under that name."""


def request(attempt: Attempt) -> tuple[dict[str, str], bytes]:
    """Headers and body. Raises InvalidEvent if the parameters say that they are an event and are none."""
    event = _event(attempt)
    headers = {"x-request-id": attempt.activation, "idempotency-key": attempt.activation}
    if attempt.traceparent and _TRACEPARENT.fullmatch(attempt.traceparent):
        headers["traceparent"] = attempt.traceparent
    if attempt.action.annotations.get(MODE) == "structured":
        return {**headers, "content-type": STRUCTURED}, orjson.dumps(event)
    return {**headers, **_binary_headers(event)}, _binary_body(event)


def _event(attempt: Attempt) -> Mapping[str, Any]:
    params = orjson.loads(attempt.params)
    if isinstance(params, dict) and "specversion" in params:
        return validate({name: value for name, value in params.items() if _is_of_the_event(name, value)})
    return {
        "specversion": "1.0", "id": attempt.activation, "source": f"/eventmill/{attempt.namespace}",
        "type": CALLED_TYPE, "subject": attempt.action.qualified, "datacontenttype": "application/json",
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"), "data": params,
    }  # fmt: skip


def _is_of_the_event(name: str, value: Any) -> bool:
    """Bound parameters are extension attributes where CloudEvents allow such ones."""
    if name in (*ATTRIBUTES, "data", "data_base64"):
        return True
    return name.isascii() and name.isalnum() and name.islower() and isinstance(value, str | bool | int)


def _binary_headers(event: Mapping[str, Any]) -> dict[str, str]:
    headers = {
        f"ce-{name}": quote(_text(value), safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~")
        for name, value in event.items()
        if name not in ("data", "data_base64", "datacontenttype") and value is not None
    }
    content_type = event.get("datacontenttype") or ("application/json" if "data" in event else None)
    if content_type is None:
        return headers
    if not (content_type.isascii() and content_type.isprintable()):
        raise InvalidEvent("has characters that no header can have", "datacontenttype")
    return {**headers, "content-type": content_type}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _binary_body(event: Mapping[str, Any]) -> bytes:
    if "data_base64" in event:
        import base64

        return base64.b64decode(event["data_base64"])
    if "data" not in event:
        return b""
    data, content_type = event["data"], event.get("datacontenttype") or "application/json"
    return orjson.dumps(data) if is_json(content_type) or not isinstance(data, str) else data.encode()


# the answer


def ending(status: int, headers: httpx.Headers, body: bytes, where: str) -> Ending:
    """What an answer says of the attempt's end."""
    if 200 <= status < 300:
        return _of_success(body, headers.get("content-type", ""), where)
    final = status not in _RETRIED
    moved = ", which is not followed" if 300 <= status < 400 else ""
    shown = body[:_SHOWN_CHARS].decode(errors="replace").strip()
    said = f": {shown}" if shown else ""
    result = {"error": f"{where} answered {status}{moved}{said}", "status": status}
    return Ending(
        Status.APPLICATION_ERROR, final, orjson.dumps(result),
        retry_after_s=None if final else _retry_after(headers.get("retry-after", "")),
    )  # fmt: skip


def _of_success(body: bytes, content_type: str, where: str) -> Ending:
    """A JSON object or array is the result; another value, or text, is its `body`."""
    if not body.strip():
        return Ending(Status.SUCCESS, True, b"{}")
    try:
        value = parse_json(body) if is_json(content_type or "application/json") else body.decode()
    except (InvalidEvent, UnicodeDecodeError) as e:
        return unusable(f"{where} answered neither JSON nor text: {e}")
    result = value if isinstance(value, dict | list) else {"body": value}
    failed = isinstance(result, dict) and "error" in result
    return Ending(Status.APPLICATION_ERROR if failed else Status.SUCCESS, True, orjson.dumps(result))


def unusable(text: str) -> Ending:
    """An answer that is there but can't be taken."""
    return Ending(Status.DEVELOPER_ERROR, True, orjson.dumps({"error": text[:_SHOWN_CHARS]}))


def unreachable(text: str) -> Ending:
    """There is no answer; another attempt may help."""
    return internal_error(text[:_SHOWN_CHARS])


def _retry_after(value: str) -> float | None:
    """Seconds, from the header's seconds or its date."""
    if value.isascii() and value.strip().isdigit():
        return min(float(value), RETRY_AFTER_S_MAX)
    try:
        return min(max(0.0, parsedate_to_datetime(value).timestamp() - time.time()), RETRY_AFTER_S_MAX)
    except (ValueError, OverflowError):
        return None
