"""The contract of the durable, partitioned log that events flow on. One test suite holds every implementation to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from eventmill.events import Decoder
from eventmill.sdk.event import Event


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition, as its owner knows it. `id` is its row in the store, `epoch` its owner's term."""

    id: int
    topic: str
    number: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Raw records of one partition, in order. `position`: up to which the log has been dealt with after this batch."""

    partition: Partition
    values: Sequence[bytes]
    offsets: Sequence[int]
    position: int
    decoder: Decoder
    refused: Mapping[int, str] = field(default_factory=dict)
    """Offsets of records that can't even be given to a decoder, with the reason."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """These partitions are ours from now on: their rows in the store have our epochs. Their batches may follow.

    They stay ours until somebody else takes them there, which a transaction finds out (LostPartition): what the log's
    own group of readers believes decides only who reads.
    """

    partitions: Sequence[Partition]


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a log can be measured by. Without Kafka there is nothing to relay and nobody to be behind."""

    ignored: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Records that made no event since the start: topic (or regular expression of topics) → reason → how many."""
    lag: Mapping[str, int] = field(default_factory=dict)
    """Records of our partitions that have not been dealt with yet, by topic."""
    outbox: int = 0
    """Our own events that Kafka has not acknowledged yet."""
    relayed: int = 0
    """Our own events that Kafka has acknowledged since the start."""


class Backbone(ABC):
    """The log. All methods are called on the event loop."""

    relays: bool = False
    """Others read it elsewhere: they are told of everything, whether a rule here asks for it or not."""

    @property
    @abstractmethod
    def home(self) -> Partition:
        """The partition that is this server's own from `start` on: what is called by HTTP belongs to it."""

    @abstractmethod
    async def start(self) -> None:
        """Take `home`; get ready to append."""

    @abstractmethod
    async def stop(self) -> None:
        """Let go. What was appended stays."""

    @abstractmethod
    async def append(self, events: Sequence[Event]) -> None:
        """Append events; returns when they are durable. Raises Unavailable if that can't be had now."""

    @abstractmethod
    def check_room(self) -> None:
        """Raise Unavailable while nothing new can be taken in (a disk that is nearly full)."""

    @abstractmethod
    def read(self) -> AsyncIterator[Batch | Assigned]:
        """Push batches as records arrive, from the store's positions on, forever. One reader. The next is asked for
        when the reader has dealt with the one before, so that a slow reader holds the log back, not the memory."""

    @abstractmethod
    def decoder(self, topic: str) -> Decoder | None:
        """What makes events of a topic's records; None if it is not read (any more)."""

    def condition(self) -> tuple[bool, str]:
        """Whether records come in, and a line about it for people."""
        return True, "ready"

    async def numbers(self) -> Numbers:
        """What is to be seen from outside now."""
        return Numbers()
