"""From what Kafka brought to the bytes that a topic's decoder is given.

Most records are those bytes already, and cost no more than a look at the whole list. Must never raise for what is wrong
with a record: it is refused with a reason, and its value stays as it came. For one thread that may wait (for a schema
registry).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from eventmill.backbone.kafka.schemas import Schemas
from eventmill.config import Registry, Topic
from eventmill.errors import Unavailable
from eventmill.events import DecodeError
from eventmill.events.kafka import Headers, structured

if TYPE_CHECKING:
    from confluent_kafka import Message

WORK_S: Final = 1.0
"""The longest that records are worked on at one go: who reads them has a group to keep."""


class Records:
    """The records of a row of `[[topics]]`. `event_bytes`: a larger one is refused.

    Raises InvalidConfig if the registry can't be used so.
    """

    def __init__(self, topic: Topic, registry: Registry, event_bytes: int) -> None:
        self._wants_headers = topic.decoder == "cloudevents"
        self._schemas = Schemas(registry) if registry.url else None
        self._event_bytes = event_bytes

    def close(self) -> None:
        if self._schemas is not None:
            self._schemas.close()

    def values(self, messages: Sequence[Message]) -> tuple[list[bytes], dict[int, str]]:
        """Their values, for the decoder: empty for a tombstone. And by offset, why a record is refused. Those of the
        first messages, at least of one, if a schema registry takes long or has no answer for more.

        Raises Unavailable while it has none for the first one: then the same messages have to be tried again.
        """
        values = [message.value() or b"" for message in messages]
        refused: dict[int, str] = {}
        if not values or self._are_plain(values):
            return values, refused
        end = time.monotonic() + WORK_S
        for index, message in enumerate(messages):
            if index and time.monotonic() > end:
                return values[:index], refused
            try:
                values[index] = self._value(message, values[index])
            except DecodeError as e:
                refused[cast(int, message.offset())] = e.reason
            except Unavailable:
                if not index:
                    raise
                return values[:index], refused
        return values, refused

    def _are_plain(self, values: list[bytes]) -> bool:
        """Whether all of them can be given to the decoder as they are: the smallest one tells whether any begins with
        a zero byte."""
        if self._wants_headers or max(map(len, values)) > self._event_bytes:
            return False
        return self._schemas is None or min(values)[:1] > b"\0"

    def _value(self, message: Message, raw: bytes) -> bytes:
        """Raises DecodeError, Unavailable."""
        self._check_size(raw)
        value = self._schemas.json(raw) if raw[:1] == b"\0" and self._schemas is not None else raw
        if self._wants_headers and (headers := message.headers()):
            value = structured(cast(Headers, headers), value)
        if value is not raw:
            self._check_size(value)
        return value

    def _check_size(self, value: bytes) -> None:
        if len(value) > self._event_bytes:
            raise DecodeError(f"{len(value)} bytes; limits.event_bytes is {self._event_bytes}")
