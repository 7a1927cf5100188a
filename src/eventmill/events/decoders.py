"""Decoders: from the raw records of a log to events.

A decoder works in two steps, because of a hundred records that the engine reads perhaps one matches a rule. `fields` is
the cheap step, done for every record: what patterns are matched against. `event` is the dear one (an id by digest,
times in UTC, personal data taken out), done only for records that match.

A decoder keeps no state between records and does no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import orjson

from eventmill.errors import InvalidInput
from eventmill.sdk.event import Event


class DecodeError(InvalidInput):
    """A record that is not what the topic's decoder expects: it becomes a dead letter with this `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Decoder(Protocol):
    """From raw records to events."""

    def fields(self, raw: bytes) -> Mapping[str, Any] | None:
        """What patterns are matched against: the shape of the event (attributes at top level, `data` below).

        Whatever stands in there has the value that it has in the event; what is dear to compute may be left out. None:
        a record that makes no event. Raises DecodeError for one that can't be understood.
        """
        ...

    def event(self, fields: Mapping[str, Any]) -> Event:
        """The event for what `fields` returned. Raises DecodeError if only now something turns out to be wrong."""
        ...


class CloudEventsJson:
    """Structured CloudEvents in our own log: ingress and sources have checked them, so they are not checked again."""

    def fields(self, raw: bytes) -> Mapping[str, Any]:
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError as e:
            raise DecodeError(f"not valid JSON: {e}") from None
        if not isinstance(value, dict):
            raise DecodeError("not a JSON object")
        return value

    def event(self, fields: Mapping[str, Any]) -> Event:
        return Event(fields)
