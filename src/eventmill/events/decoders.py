"""Decoders: from the raw records of a log to events. The contract, and what all of them share.

A decoder works in two steps, because of a hundred records that the engine reads perhaps one matches a rule. `fields` is
the cheap step, done for every record: what patterns are matched against. `event` is the dear one (an id by digest,
times in UTC, personal data taken out), done only for records that match.

A decoder does no I/O and keeps no state between records, but for the count of those that made no event. It is used by
one thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Final, Protocol

import orjson

from eventmill.errors import InvalidInput
from eventmill.sdk.event import Event

TOMBSTONE: Final = "tombstone (a record without a value)"


class DecodeError(InvalidInput):
    """A record that is not what the topic's decoder expects: it becomes a dead letter with this `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Ignored:
    """How many records made no event, by the reason. Beyond `REASONS_MAX` reasons the rest counts as `other`."""

    REASONS_MAX: Final = 64

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.last = ""
        """Why the last of them made none."""

    def count(self, reason: str) -> None:
        self.last = reason
        if reason not in self.counts and len(self.counts) >= self.REASONS_MAX:
            reason = "other"
        self.counts[reason] = self.counts.get(reason, 0) + 1


class Decoder(Protocol):
    """From raw records to events."""

    ignored: Ignored
    """What `fields` has returned None for."""

    def fields(self, raw: bytes, types: Set[str] | None = None) -> Mapping[str, Any] | None:
        """What patterns are matched against: the shape of the event (attributes at top level, `data` below).

        `types`: the only types that anybody waits for. A record that makes another event may be answered by None,
        uncounted, as soon as that is clear, and is not looked at any further.

        Whatever stands in there has the value that it has in the event; what is dear to compute may be left out. None:
        a record that makes no event, which has been counted; of these are empty ones. Raises DecodeError for one that
        can't be understood.
        """
        ...

    def event(self, fields: Mapping[str, Any]) -> Event:
        """The event for what `fields` returned. Raises DecodeError if only now something turns out to be wrong."""
        ...


def parsed(raw: bytes) -> dict[str, Any] | None:
    """A record that is a JSON object; None for one without a value (in Kafka: a key's last record). Raises DecodeError.

    The usual case costs what orjson costs: what is wrong is looked at only if something is.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as e:
        if not raw:
            return None
        raise DecodeError(_not_json(raw, e)) from None
    if value.__class__ is not dict:
        raise DecodeError("not a JSON object")
    return value


def _not_json(raw: bytes, error: orjson.JSONDecodeError) -> str:
    if raw[0] != 0 or len(raw) < 5:
        return f"not valid JSON: {error}"
    schema = int.from_bytes(raw[1:5], "big")
    return f"in Confluent's wire format, with schema {schema}: set backbone.registry.url to the registry that has it"
