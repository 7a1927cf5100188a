"""The event that says that an activation has finished: what other rules match, and what closes the loop."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from eventmill.entities import Activation, State, ids
from eventmill.sdk.patterns import TICK_TYPE

SUCCEEDED = "org.eventmill.activation.succeeded"
FAILED = "org.eventmill.activation.failed"

_OWN = "/eventmill/"
"""What the sources of the server's own events begin with; a namespace's completions have its name after it."""

DEPTH = "eventmilldepth"
"""Extension attribute: how many completions lie between the first event and this one."""

_RESULT_BYTES_MAX = 256 << 10
"""A larger result stays with the activation (`resultomitted`): the log is for events, not for payloads."""


def completion_event(row: Activation, now_ms: int) -> bytes:
    """The completion event of a finished activation, as structured JSON.

    `subject` is the action's qualified name, `causationid` the event that caused the activation (for a step: its
    parent's activation id), `traceparent` is kept.
    """
    ok = row.state is State.SUCCEEDED
    data: dict[str, Any] = {
        "activationId": row.id,
        "action": row.action,
        "rule": row.rule,
        "parent": row.parent,
        "attempt": row.attempt,
        "status": None if row.status is None else row.status.text,
        "success": ok,
        "start": row.started,
        "end": row.ended,
    }
    if row.result is not None and len(row.result) <= _RESULT_BYTES_MAX:
        data["result"] = orjson.Fragment(row.result)
    elif row.result is not None:
        data["resultomitted"] = True
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": ids.completion_event_id(row.id, row.finishes),
        "source": _OWN + row.namespace,
        "type": SUCCEEDED if ok else FAILED,
        "subject": row.action,
        "time": iso(now_ms),
        "datacontenttype": "application/json",
        DEPTH: row.depth + 1,
        "data": data,
    }
    cause = row.cause_id or row.parent
    if cause is not None:
        event["causationid"] = cause
    if row.traceparent is not None:
        event["traceparent"] = row.traceparent
    return orjson.dumps(event)


def owner_of(event: Mapping[str, Any]) -> str | None:
    """The namespace whose rules alone the event is for, since it tells what the namespace's activations have returned;
    None: it is for everybody's, as all are that come from outside, and ticks. No key may post events of such sources.
    """
    source = event.get("source")
    if source.__class__ is not str or not source.startswith(_OWN) or event.get("type") == TICK_TYPE:
        return None
    return str(source[len(_OWN) :])


def iso(time_ms: int) -> str:
    """Epoch milliseconds as RFC 3339 in UTC."""
    return f"{_iso(time_ms // 1000)}.{time_ms % 1000:03d}Z"


@functools.lru_cache(maxsize=4)
def _iso(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")
