"""Decisions of the engine that are functions of values: no clock, no I/O."""

from __future__ import annotations

from typing import Any

import orjson

from eventmill.config import Limits
from eventmill.entities import Action, Activation
from eventmill.executors import Attempt


def retry_at(now_ms: int, retried: int, after_s: float | None, limits: Limits) -> int:
    """When the next attempt is due (epoch ms): what the action asked for, or exponential back-off after `retried`
    retries before this one, bounded."""
    if after_s is None:
        after_s = limits.retry_first_s * limits.retry_factor ** min(retried, 50)
    return now_ms + int(1000 * min(max(after_s, 0.0), limits.retry_max_s))


def merge(bound: Any, payload: bytes) -> bytes:
    """Bound parameters below the payload; an array result replaces them (OpenWhisk's rule)."""
    if not bound:
        return payload
    value = orjson.loads(payload)
    if not isinstance(value, dict):
        return payload
    return orjson.dumps({**bound, **value})


def qualified(name: str, namespace: str) -> str:
    """`namespace/[package/]name` of a reference: `/ns/p/a`, `/_/p/a` (the own namespace), or `p/a` in the own one."""
    if not name.startswith("/"):
        return f"{namespace}/{name}"
    first, _, rest = name[1:].partition("/")
    return f"{namespace if first == '_' else first}/{rest}"


def reference(name: object, namespace: str) -> str | None:
    """The same of what may be no reference at all: then None. A slash too many does not matter."""
    if not isinstance(name, str):
        return None
    parts = [part for part in name.split("/") if part]
    is_full = name.startswith("/")
    if not 1 + is_full <= len(parts) <= 2 + is_full:
        return None
    return qualified("/" * is_full + "/".join(parts), namespace)


def error(message: str) -> bytes:
    """A result that says what went wrong."""
    return orjson.dumps({"error": message})


def error_of(result: bytes | None) -> dict[str, Any]:
    """What a failed activation says, as `{"error": …}`."""
    value = orjson.loads(result or b"{}")
    return {"error": value.get("error")} if isinstance(value, dict) else {"error": value}


def items_of(params: bytes) -> list[Any] | str | None:
    """The elements that a map runs over: the parameters' `items`, or the parameters if they are a list. A string is the
    `href` of a file with one element a line: of `items`, or of the result of a large map."""
    value = orjson.loads(params)
    if not isinstance(value, dict):
        return value if isinstance(value, list) else None
    # a map's result comes before items that are bound to an action, as its `items` would
    items = value if isinstance(value.get("href"), str) and "count" in value else value.get("items")
    if isinstance(items, dict):
        items = items.get("href")
        return items if isinstance(items, str) else None
    return items if isinstance(items, list) else None


def element_params(element: Any) -> bytes:
    """An element as an action's parameters: an object as it is, anything else as `{"value": …}`."""
    return orjson.dumps(element if isinstance(element, dict) else {"value": element})


def attempt(activation: Activation, action: Action, chain: str = "") -> Attempt:
    """What an executor is given of an activation; of a job also the name of its chain."""
    return Attempt(
        activation=activation.id,
        number=activation.attempt,
        action=action,
        params=activation.params,
        caller=activation.namespace,
        chain=chain,
        transaction=activation.transaction,
        traceparent=activation.traceparent,
    )
