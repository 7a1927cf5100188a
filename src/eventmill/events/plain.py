"""The decoder of plain JSON: any object, with a small mapping that says where an event's attributes stand in it.

The record is the event's `data`, as it was sent. What can't be found in every record (`map.type`, a mapped id) makes a
dead letter; an optional attribute that isn't there is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from datetime import UTC, datetime
from typing import Any, Final

from eventmill.config import JsonMap
from eventmill.errors import InvalidConfig, InvalidEvent
from eventmill.events.codec import check_depth
from eventmill.events.decoders import TOMBSTONE, DecodeError, Ignored, parsed
from eventmill.events.digest import digest
from eventmill.events.paths import PathTable
from eventmill.events.validation import validate
from eventmill.sdk.event import Event

MILLISECONDS_FROM: Final = 100_000_000_000
"""A number from here on counts milliseconds (as such it is in 1973; as seconds it would be in the year 5138)."""

_Finder = Callable[[dict[str, Any]], Any]


class JsonDecoder:
    """Events of one `source` from plain JSON. `paths` maps a subject that is what another system calls a file.

    Without `map.id` the id is a digest of source and raw record, so that two equal records are one event.

    Raises InvalidConfig if `source` is no URI reference.
    """

    def __init__(self, source: str, map: JsonMap, *, paths: PathTable) -> None:
        try:
            validate({"specversion": "1.0", "id": "1", "source": source, "type": "x"})
        except InvalidEvent as e:
            raise InvalidConfig(f"decoder json: {e}") from None
        self.ignored = Ignored()
        self._source = source
        self._map = map
        self._subject_of = paths.from_source
        self._id = None if map.id is None else _finder(map.id)
        self._type = _finder(map.type)
        self._subject = None if map.subject is None else _finder(map.subject)
        self._time = None if map.time is None else _finder(map.time)

    def fields(self, raw: bytes, types: Set[str] | None = None) -> Mapping[str, Any] | None:
        """The event, but for its `time`. Raises DecodeError."""
        record = parsed(raw)
        if record is None:
            self.ignored.count(TOMBSTONE)
            return None
        type = self._type(record)
        if type.__class__ is not str or not type:
            raise DecodeError(f"no type: there is no text at '{self._map.type}'")
        fields = {
            "specversion": "1.0",
            "id": digest(self._source, raw) if self._id is None else self._id_of(record),
            "source": self._source,
            "type": self._map.type_prefix + type,
            "datacontenttype": "application/json",
            "data": record,
        }
        if self._subject is not None:
            subject = _text(self._subject(record))
            if subject:
                fields["subject"] = self._subject_of(subject)
        return fields

    def event(self, fields: Mapping[str, Any]) -> Event:
        """The event. Raises DecodeError for an impossible time, and for texts that no event can carry."""
        event = Event(fields)
        if self._time is not None:
            time = self._time(event["data"])
            if time is not None:
                event["time"] = _timestamp(time) if time.__class__ in (int, float) else time
        try:
            check_depth(event["data"])
            return validate(event)
        except InvalidEvent as e:
            raise DecodeError(str(e)) from None

    def _id_of(self, record: dict[str, Any]) -> str:
        assert self._id is not None
        id = _text(self._id(record))
        if not id:
            raise DecodeError(f"no id: there is neither text nor a whole number at '{self._map.id}'")
        return id


def _finder(path: str) -> _Finder:
    """What finds the value at `a.b.c` in a record; None if there is none."""
    first, *further = path.split(".")
    if not further:
        return lambda record: record.get(first)

    def find(record: dict[str, Any]) -> Any:
        value = record.get(first)
        for name in further:
            if value.__class__ is not dict:
                return None
            value = value.get(name)
        return value

    return find


def _text(value: Any) -> str | None:
    """Text, or a whole number as text; None for what is neither."""
    return value if value.__class__ is str else str(value) if value.__class__ is int else None


def _timestamp(number: float) -> str:
    """Seconds, or milliseconds, since 1970 as RFC 3339. Raises DecodeError if that can't be a time."""
    seconds = number / 1000 if abs(number) >= MILLISECONDS_FROM else number
    try:
        text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        raise DecodeError(f"an impossible time: {number}") from None
    return text.removesuffix("+00:00") + "Z"
