"""Which topics are read, and how: the rows of `[[topics]]`, and our own topic."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from eventmill.backbone.kafka.client import AROUND_BYTES
from eventmill.backbone.kafka.records import Records
from eventmill.config import Settings, Topic
from eventmill.events import Decoder, PathTable
from eventmill.events.cloudevents import CloudEventsDecoder
from eventmill.events.topics import decoder

FIRST_LOOK: Final = "kafka: topics at the first look"
"""What the store has, by row, of the topics that were there when it was first served."""
INTERNAL: Final = "__"
"""Kafka's own topics begin so; our own commits would be news in them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the records of a topic are read. `row`: its name, or ^ and its regular expression."""

    row: str
    start: str
    records: Records
    decoder: Decoder

    def begins(self, topic: str, first: Mapping[str, Collection[str]]) -> str:
        """Where a topic that was never read begins. `first`: what the store has as `FIRST_LOOK`."""
        is_later = self.row in first and topic not in first[self.row]
        return "earliest" if is_later and self.start == "latest" else self.start


class Subscription:
    """All that is read. A topic belongs to the first row that names it. Raises InvalidConfig."""

    def __init__(self, settings: Settings, paths: PathTable) -> None:
        own = Topic(name=settings.backbone.topic, decoder="cloudevents", start="earliest")
        decoders = [CloudEventsDecoder(), *(decoder(row, paths) for row in settings.topics)]
        registry, most = settings.backbone.registry, settings.limits.event_bytes
        self._rows = [
            (row, Reading(_key(row), row.start, Records(row, registry, room), made))
            for row, room, made in zip(
                (own, *settings.topics), (most + AROUND_BYTES, *[most] * len(settings.topics)), decoders, strict=True
            )
        ]
        self._readings: dict[str, Reading | None] = {}
        self.awaited = [row.name for row in settings.topics if row.name]
        """Topics of others that have to be there."""
        self.names = [settings.backbone.topic, *self.awaited]
        self.has_regex = any(row.regex is not None for row in settings.topics)

    def __str__(self) -> str:
        return ", ".join(row.name or str(row.regex) for row, _ in self._rows)

    def __getitem__(self, topic: str) -> Reading:
        reading = self.get(topic)
        if reading is None:
            raise KeyError(topic)
        return reading

    def get(self, topic: str) -> Reading | None:
        """How this topic is read; None if it isn't."""
        if topic not in self._readings:
            self._readings[topic] = next((r for row, r in self._rows if matches(row, topic)), None)
        return self._readings[topic]

    def is_by_regex(self, topic: str) -> bool:
        """Whether it is read since a regular expression matches it."""
        reading = self.get(topic)
        return reading is not None and reading.row.startswith("^")

    def rows(self) -> Iterator[tuple[str, str | None]]:
        """Each row, as `Reading` has it, with its name if it has one."""
        for row, reading in self._rows:
            yield reading.row, row.name

    def decoders(self) -> Iterator[tuple[str, Decoder]]:
        """Each row's name or regular expression, with its decoder."""
        for row, reading in self._rows:
            yield row.name or row.regex or "", reading.decoder


def matches(row: Topic, topic: str) -> bool:
    """Whether a row means this topic. Regular expressions are Python's, and mean none of Kafka's own."""
    if row.regex is None:
        return row.name == topic
    return not topic.startswith(INTERNAL) and re.fullmatch(row.regex, topic) is not None


def _key(row: Topic) -> str:
    return row.name or f"^{row.regex}"
