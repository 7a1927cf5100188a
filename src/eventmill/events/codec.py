"""Events as JSON (the structured form) and back.

Owns the bytes that go into the log. Never lets an event in that could not be written again: JSON that is nested too
deeply is refused when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from eventmill.errors import InvalidEvent
from eventmill.events.validation import TooLarge, validate
from eventmill.sdk.event import Event

DEPTH_MAX: Final = 200
"""Levels of arrays and objects in an event: orjson reads 1024 but writes only 254, and an event is wrapped a few times
(an activation's parameters, a completion's data) before it has come through."""
_ORJSON_DEPTH: Final = 254


def decode(raw: bytes, *, bytes_max: int | None = None) -> Event:
    """A checked event from its JSON. Raises InvalidEvent; TooLarge beyond `bytes_max`."""
    check_size(len(raw), bytes_max)
    return validate(parse_json(raw))


def decode_batch(raw: bytes, *, events_max: int | None = None, bytes_max: int | None = None) -> list[Event]:
    """Checked events from a JSON array; it may be empty. `bytes_max` holds for each event.

    Raises InvalidEvent, whose message says which event of the batch is wrong (counted from 1): all or nothing.
    """
    elements = parse_json(raw)
    if not isinstance(elements, list):
        raise InvalidEvent("a batch is a JSON array of events")
    if events_max is not None and len(elements) > events_max:
        raise TooLarge(f"the batch has {len(elements)} events; at most {events_max} are allowed")
    # an array that is within the limit has no element beyond it: the usual case needs no measuring
    measure = bytes_max is not None and len(raw) > bytes_max
    events = []
    for number, element in enumerate(elements, 1):
        try:
            if measure:
                check_size(len(orjson.dumps(element)), bytes_max)
            events.append(validate(element))
        except InvalidEvent as e:
            raise _in_batch(e, number) from None
    return events


def encode(event: Mapping[str, Any]) -> bytes:
    """The event's JSON. Raises InvalidEvent if its data can't be JSON (which `decode` never lets in)."""
    try:
        return orjson.dumps(event)
    except TypeError as e:
        raise InvalidEvent(f"can't be written as JSON: {e}", "data") from None


def parse_json(raw: bytes, attribute: str = "") -> Any:
    """Any JSON value; the attribute is what an InvalidEvent names."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as e:
        raise InvalidEvent(f"is not valid JSON: {e}" if attribute else f"not valid JSON: {e}", attribute) from None
    if len(raw) > 2 * DEPTH_MAX:  # what is shorter has no room for so many brackets
        check_depth(value, attribute)
    return value


def check_size(size: int, bytes_max: int | None) -> None:
    """Raise TooLarge if an event of this many bytes is beyond the limit."""
    if bytes_max is not None and size > bytes_max:
        raise TooLarge(
            f"the event has {size} bytes; at most {bytes_max} are allowed: leave large data where it is "
            "and send its name"
        )


def check_depth(value: Any, attribute: str = "") -> None:
    """Raise InvalidEvent if a value of JSON is nested more than `DEPTH_MAX` levels deep.

    orjson's own limit finds it: the value is wrapped in as many levels as make up the difference.
    """
    for _ in range(_ORJSON_DEPTH - DEPTH_MAX):
        value = [value]
    try:
        orjson.dumps(value)
    except TypeError:
        raise InvalidEvent(f"is nested more than {DEPTH_MAX} levels deep", attribute or "data") from None


def _in_batch(error: InvalidEvent, number: int) -> InvalidEvent:
    """The same error, saying in which event of a batch it is."""
    placed = type(error)(f"event {number} of the batch: {error}")
    placed.attribute = error.attribute
    return placed
