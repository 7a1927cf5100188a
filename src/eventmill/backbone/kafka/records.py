"""From what Kafka brought to the bytes that a topic's decoder is given.

Most records are those bytes already, and cost no more than a look at the whole list. Must never raise for what is wrong
with a record: it is refused with a reason, and its value stays as it came. For one thread that may wait (for a schema
registry).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from eventmill.backbone.kafka.schemas import Schemas
from eventmill.config import Registry, Topic
from eventmill.events import DecodeError
from eventmill.events.kafka import Headers, structured

if TYPE_CHECKING:
    from confluent_kafka import Message


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
        """Their values, for the decoder: empty for a tombstone. And by offset, why a record is refused.

        Raises Unavailable while the schema registry has no answer: then the same messages have to be tried again.
        """
        values = [message.value() or b"" for message in messages]
        refused: dict[int, str] = {}
        if not values or self._are_plain(values):
            return values, refused
        for index, message in enumerate(messages):
            try:
                values[index] = self._value(message, values[index])
            except DecodeError as e:
                refused[cast(int, message.offset())] = e.reason
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
