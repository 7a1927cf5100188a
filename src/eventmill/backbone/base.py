"""The contract of the durable, partitioned log that events flow on. One test suite holds every implementation to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

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


class Backbone(ABC):
    """The log. All methods are called on the event loop."""

    @abstractmethod
    async def start(self) -> None:
        """Get ready to append."""

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
    def read(self) -> AsyncIterator[Batch]:
        """Push batches as records arrive, from the store's positions on, forever. One reader. The next batch is asked
        for when the reader has dealt with the one before, so that a slow reader holds the log back, not the memory."""

    @abstractmethod
    def partitions(self) -> Sequence[Partition]:
        """The partitions that this server owns now."""
