"""How an attempt at OpenWhisk has ended: from its document there to what `Finished` says. Functions of values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from eventmill.entities import Document, Status
from eventmill.executors.endings import RETRY_AFTER_S_MAX, Ending, developer_error, internal_error
from eventmill.executors.openwhisk.client import Called
from eventmill.executors.pool.loader import NO_CODE as NOT_LOADED

OWN = "__eventmill"

_STATUSES = {status.text: status for status in Status}
_OUTCOMES = {
    "returned": (Status.APPLICATION_ERROR, True),
    "raised": (Status.APPLICATION_ERROR, False),
    "fatal": (Status.APPLICATION_ERROR, True),
    "memory": (Status.DEVELOPER_ERROR, False),
    "bad": (Status.DEVELOPER_ERROR, True),
}
"""What `entry` says of a failure: its status, and whether no further attempt may help."""


@dataclass(frozen=True, slots=True)
class Ended:
    """`took_ms`: how long it ran, by the other side's clock. `quiet`: it has written no logs."""

    ending: Ending
    usage: Mapping[str, Any] = field(default_factory=dict)
    took_ms: int | None = None
    quiet: bool = False

    @property
    def logged(self) -> bool:
        """Whether there may be logs to fetch."""
        return bool(self.usage.get("openwhisk")) and not self.quiet


def of_call(called: Called) -> Ended:
    """An answer that says how it ended."""
    if called.document is not None:
        return of_document(called.document)
    return Ended(Ending(Status.SUCCESS, True, orjson.dumps(called.array)), {"openwhisk": called.activation})


def of_document(document: Document) -> Ended:
    """An activation that has ended."""
    response = _response(document)
    result, mark = _unmarked(response.get("result"))
    annotations = _annotations(document)
    status = _STATUSES.get(str(response.get("status")), Status.INTERNAL_ERROR)
    usage = {"openwhisk": str(document.get("activationId", ""))}
    usage |= {name: annotations[name] for name in ("initTime", "waitTime") if name in annotations}
    ending = _ending(status, result, mark)._replace(timed_out=annotations.get("timeout") is True)
    took_ms = document.get("duration")
    return Ended(ending, usage, took_ms if type(took_ms) is int else None, mark.get("quiet") is True)


def is_of(document: Document, activation: str, attempt: int) -> bool:
    """Whether this is the activation that the attempt began there."""
    _, mark = _unmarked(_response(document).get("result"))
    return (mark.get("activation"), mark.get("attempt")) == (activation, attempt)


def _response(document: Document) -> Mapping[str, Any]:
    said = document.get("response")
    return said if isinstance(said, dict) else {}


def _annotations(document: Document) -> Mapping[str, Any]:
    said = document.get("annotations")
    pairs = said if isinstance(said, list) else []
    return {str(pair.get("key")): pair.get("value") for pair in pairs if isinstance(pair, dict)}


def _unmarked(result: Any) -> tuple[Any, Mapping[str, Any]]:
    """The result as the author made it, and what `entry` has put beside it."""
    failure = result.get("error") if isinstance(result, dict) else None
    holder = failure if isinstance(failure, dict) and OWN in failure else result
    mark = holder.get(OWN) if isinstance(holder, dict) else None
    if not isinstance(mark, dict):
        return result, {}
    if holder is failure:
        return failure.get("result"), mark
    if "list" in mark:
        return mark["list"], mark
    return {name: value for name, value in result.items() if name != OWN}, mark


def _ending(status: Status, result: Any, mark: Mapping[str, Any]) -> Ending:
    if status is Status.SUCCESS:
        if not isinstance(result, dict | list):
            return internal_error("OpenWhisk sent no result")
        return Ending(status, True, orjson.dumps(result))
    failed = result if isinstance(result, dict) and "error" in result else {"error": f"OpenWhisk says: {status.text}"}
    # without our mark, nobody knows whether it was raised: OpenWhisk takes what was returned for final, and so do we
    known, final = _OUTCOMES.get(str(mark.get("outcome")), (status, status is Status.APPLICATION_ERROR))
    if failed["error"] == NOT_LOADED:
        return developer_error(NOT_LOADED, final=True)
    after = mark.get("after")
    return Ending(known, final, orjson.dumps(failed), retry_after_s=after if _is_delay(after) else None)


def _is_delay(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value <= RETRY_AFTER_S_MAX
