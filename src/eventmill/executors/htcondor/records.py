"""Records of HTCondor's event logs, and the typed value that the rest of Eventmill sees of them.

A log is JSON objects one after the other, each printed over several lines: the first is `{`, the last `}`, both at the
line's beginning, and nothing else is. HTCondor appends a record at a time, but a full disk or a killed daemon leaves a
part of one, with the next record right behind it; `parse` saves what is whole.

Functions of values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final

import orjson

ACTIVATION: Final = "EventmillActivation"
"""The job attribute that says whose job it is. Anybody can set it: it counts for recorded handles only."""

INFORMATION: Final = 28
"""JobAdInformation: a copy of the event before it, with attributes of the job and the other's number."""

_END: Final = b"\n}\n"
_BEGIN: Final = b"\n{\n"
_BEGINS: Final = re.compile(r"\{[ \t]*\n")
_SALVAGED_MAX: Final = 64
"""Places in a damaged piece where a record may begin that are tried, the last ones."""


class Kind(Enum):
    """HTCondor's job events; the values are the last words of our events' types."""

    SUBMITTED = "submitted"
    EXECUTING = "executing"
    EXECUTABLE_ERROR = "executable_error"
    CHECKPOINTED = "checkpointed"
    EVICTED = "evicted"
    TERMINATED = "terminated"
    IMAGE_SIZE = "image_size"
    SHADOW_EXCEPTION = "shadow_exception"
    GENERIC = "generic"
    ABORTED = "aborted"
    SUSPENDED = "suspended"
    UNSUSPENDED = "unsuspended"
    HELD = "held"
    RELEASED = "released"
    NODE_EXECUTING = "node_executing"
    NODE_TERMINATED = "node_terminated"
    POST_SCRIPT_TERMINATED = "post_script_terminated"
    REMOTE_ERROR = "remote_error"
    DISCONNECTED = "disconnected"
    RECONNECTED = "reconnected"
    RECONNECT_FAILED = "reconnect_failed"
    GRID_RESOURCE_UP = "grid_resource_up"
    GRID_RESOURCE_DOWN = "grid_resource_down"
    GRID_SUBMITTED = "grid_submitted"
    STATUS_UNKNOWN = "status_unknown"
    STATUS_KNOWN = "status_known"
    STAGED_IN = "staged_in"
    STAGED_OUT = "staged_out"
    ATTRIBUTE_UPDATED = "attribute_updated"
    SKIPPED = "skipped"
    CLUSTER_SUBMITTED = "cluster_submitted"
    CLUSTER_REMOVED = "cluster_removed"
    FACTORY_PAUSED = "factory_paused"
    FACTORY_RESUMED = "factory_resumed"
    FILE_TRANSFER = "file_transfer"
    SPACE_RESERVED = "space_reserved"
    SPACE_RELEASED = "space_released"
    FILE_COMPLETE = "file_complete"
    FILE_USED = "file_used"
    FILE_REMOVED = "file_removed"
    DATAFLOW_SKIPPED = "dataflow_skipped"
    COMMON_FILES = "common_files"
    OTHER = "other"
    """One that this version does not know; the record says which."""


_KINDS: Final[Mapping[int, Kind]] = {
    0: Kind.SUBMITTED, 1: Kind.EXECUTING, 2: Kind.EXECUTABLE_ERROR, 3: Kind.CHECKPOINTED, 4: Kind.EVICTED,
    5: Kind.TERMINATED, 6: Kind.IMAGE_SIZE, 7: Kind.SHADOW_EXCEPTION, 8: Kind.GENERIC, 9: Kind.ABORTED,
    10: Kind.SUSPENDED, 11: Kind.UNSUSPENDED, 12: Kind.HELD, 13: Kind.RELEASED, 14: Kind.NODE_EXECUTING,
    15: Kind.NODE_TERMINATED, 16: Kind.POST_SCRIPT_TERMINATED, 21: Kind.REMOTE_ERROR, 22: Kind.DISCONNECTED,
    23: Kind.RECONNECTED, 24: Kind.RECONNECT_FAILED, 25: Kind.GRID_RESOURCE_UP, 26: Kind.GRID_RESOURCE_DOWN,
    27: Kind.GRID_SUBMITTED, 29: Kind.STATUS_UNKNOWN, 30: Kind.STATUS_KNOWN, 31: Kind.STAGED_IN, 32: Kind.STAGED_OUT,
    33: Kind.ATTRIBUTE_UPDATED, 34: Kind.SKIPPED, 35: Kind.CLUSTER_SUBMITTED, 36: Kind.CLUSTER_REMOVED,
    37: Kind.FACTORY_PAUSED, 38: Kind.FACTORY_RESUMED, 40: Kind.FILE_TRANSFER, 41: Kind.SPACE_RESERVED,
    42: Kind.SPACE_RELEASED, 43: Kind.FILE_COMPLETE, 44: Kind.FILE_USED, 45: Kind.FILE_REMOVED,
    46: Kind.DATAFLOW_SKIPPED, 47: Kind.COMMON_FILES,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """What happened to a job (or, with `proc` -1, to a cluster)."""

    kind: Kind
    cluster: int
    proc: int
    time_ms: int
    """0: the record does not say."""
    activation: str | None
    """What the job's attribute says, whoever has set it."""
    number: int
    """HTCondor's number of the event."""
    informed: bool
    """From a record of type 28: the job's attributes are among `attributes`."""
    attributes: Mapping[str, Any]
    """The record as it stands in the log."""

    @property
    def key(self) -> tuple[int, int, int, int]:
        """What a plain record and its record of type 28 have in common."""
        return self.cluster, self.proc, self.number, self.time_ms


def job_event(record: Mapping[str, Any]) -> JobEvent | None:
    """The event of a record; None if it is not about a job (a log's header, a daemon's event)."""
    number = _integer(record.get("EventTypeNumber"))
    informed = number == INFORMATION
    if informed:
        number = _integer(record.get("TriggerEventTypeNumber"))
    cluster, proc = _integer(record.get("Cluster")), _integer(record.get("Proc"))
    if number is None or cluster is None or cluster < 1:
        return None
    activation = record.get(ACTIVATION)
    return JobEvent(
        kind=_KINDS.get(number, Kind.OTHER),
        cluster=cluster,
        proc=-1 if proc is None else proc,
        time_ms=_time_ms(record.get("EventTime")),
        activation=activation if isinstance(activation, str) else None,
        number=number,
        informed=informed,
        attributes=record,
    )


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _time_ms(value: Any) -> int:
    """A time without a zone is this machine's, as HTCondor writes it unless it is told otherwise."""
    try:
        return int(datetime.fromisoformat(value).timestamp() * 1000)
    except (TypeError, ValueError, OverflowError, OSError):
        return 0


def pieces(data: bytes) -> Iterator[tuple[int, int]]:
    """(start, end) of each piece of a log that ends as a record does. The rest is incomplete."""
    start = 0
    while (at := data.find(_END, start)) >= 0:
        yield start, at + len(_END)
        start = at + len(_END)


def parse(piece: bytes, bytes_max: int) -> tuple[list[dict[str, Any]], bool]:
    """The records of a piece (one, as a rule), and whether something in it was none."""
    try:
        record = orjson.loads(piece)
        if len(piece) <= bytes_max and _is_record(record):
            return [record], False
    except ValueError:
        pass
    return _salvage(piece, bytes_max)


def overlong(data: bytes) -> int:
    """How much of an incomplete piece that is too long to become a record can be given up."""
    begin = data.rfind(_BEGIN)
    return begin + 1 if begin > 0 else len(data) - len(_END) + 1


def _salvage(piece: bytes, bytes_max: int) -> tuple[list[dict[str, Any]], bool]:
    """What is whole in a damaged piece. A string can't go over a line's end, so that torn ones end there."""
    if len(piece) > bytes_max:
        return _salvage(piece[-bytes_max:], bytes_max)[0], True
    text = piece.decode(errors="replace")
    found: list[dict[str, Any]] = []
    at, damaged = 0, False
    for begin in [match.start() for match in _BEGINS.finditer(text)][-_SALVAGED_MAX:]:
        if begin < at:
            continue
        try:
            value, end = _DECODER.raw_decode(text, begin)
            value = orjson.loads(orjson.dumps(value))  # half characters and huge numbers could not be passed on
        except (ValueError, TypeError, RecursionError):
            continue
        if _is_record(value):
            found.append(value)
            damaged |= bool(text[at:begin].strip())
            at = end
    return found, damaged or bool(text[at:].strip())


_DECODER: Final = json.JSONDecoder()


def _is_record(value: Any) -> bool:
    """Not a part of one, such as `ToE`."""
    return isinstance(value, dict) and isinstance(value.get("EventTypeNumber"), int)
