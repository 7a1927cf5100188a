"""Which topics are read, and how: the rows of `[[topics]]`, and our own topic."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from eventmill.backbone.kafka.client import AROUND_BYTES
from eventmill.backbone.kafka.records import Records
from eventmill.config import Settings, Topic
from eventmill.errors import InvalidConfig
from eventmill.events import Decoder, PathTable
from eventmill.events.cloudevents import CloudEventsDecoder
from eventmill.events.topics import decoder


@dataclass(frozen=True, slots=True)
class Reading:
    """How the records of a topic are read."""

    start: str
    records: Records
    decoder: Decoder


class Subscription:
    """All that is read. A topic belongs to the first row that names it. Raises InvalidConfig."""

    def __init__(self, settings: Settings, paths: PathTable) -> None:
        own = Topic(name=settings.backbone.topic, decoder="cloudevents", start="earliest")
        decoders = [CloudEventsDecoder(), *(decoder(row, paths) for row in settings.topics)]
        registry, most = settings.backbone.registry, settings.limits.event_bytes
        self._rows = [
            (row, Reading(row.start, Records(row, registry, most if row is not own else most + AROUND_BYTES), made))
            for row, made in zip((own, *settings.topics), decoders, strict=True)
        ]
        self._readings: dict[str, Reading | None] = {}
        self.topics = [row.name or f"^({row.regex})$" for row, _ in self._rows]
        """For librdkafka, where a name that begins with ^ is a regular expression."""
        self.names = [row.name for row in settings.topics if row.name]
        """Topics of others that have to be there."""
        for row, _ in self._rows:
            try:
                re.compile(row.regex or "")
            except re.error as e:
                raise InvalidConfig(f"topics: '{row.regex}' is not a regular expression: {e}") from None

    def __getitem__(self, topic: str) -> Reading:
        reading = self.get(topic)
        assert reading is not None, topic
        return reading

    def get(self, topic: str) -> Reading | None:
        """How this topic is read; None if it isn't."""
        if topic not in self._readings:
            self._readings[topic] = next((r for row, r in self._rows if _is_named(row, topic)), None)
        return self._readings[topic]

    def decoders(self) -> Iterator[tuple[str, Decoder]]:
        """Each row's name or regular expression, with its decoder."""
        for row, reading in self._rows:
            yield row.name or row.regex or "", reading.decoder


def _is_named(row: Topic, topic: str) -> bool:
    return row.name == topic if row.regex is None else re.fullmatch(row.regex, topic) is not None
