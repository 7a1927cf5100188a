"""The embedded backbone: a table of the store's own file, so that an event and its effects commit together.

One topic, one partition. Appends of many callers share one sync of the disk. The reader is woken by the commit that
put records there; nothing polls. With Kafka the same table is the outbox, and who reads it is the relay.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import orjson

from eventmill.backbone.base import Assigned, Backbone, Batch, Partition
from eventmill.backbone.room import Room
from eventmill.events import CloudEventsJson, Decoder
from eventmill.sdk.event import Event
from eventmill.store import SqliteStore, Tx

TOPIC = "events"


class EmbeddedBackbone(Backbone):
    """`batch_max`, `batch_bytes`: records in one batch. Without `room` nothing is taken in, and reading pauses."""

    def __init__(self, store: SqliteStore, room: Room, *, batch_max: int, batch_bytes: int) -> None:
        self._store = store
        self._room = room
        self._batch_max = batch_max
        self._batch_bytes = batch_bytes
        self._arrived = asyncio.Event()
        self._decoder = CloudEventsJson()
        self._home: Partition | None = None
        self._position = 0

    @property
    def home(self) -> Partition:
        assert self._home is not None, "start() first"
        return self._home

    async def start(self) -> None:
        self._home, self._position = await self._store.transact(
            lambda tx: tx.claim_partition(TOPIC, 0, start=0), durable=True
        )
        self._store.on_emit = self._arrived.set
        self._arrived.set()

    async def stop(self) -> None:
        self._store.on_emit = lambda: None

    async def append(self, events: Sequence[Event]) -> None:
        self.check_room()
        values = [orjson.dumps(event) for event in events]
        now_ms = time.time_ns() // 1_000_000
        await self._store.transact(lambda tx: tx.emit(values, now_ms), durable=True)

    def check_room(self) -> None:
        self._room.check()

    async def read(self) -> AsyncIterator[Batch | Assigned]:
        if left := await self._store.transact(lambda tx: claim_left(tx, lambda topic: topic == TOPIC), durable=True):
            yield Assigned(left)
        async for batch in self.batches():
            await self._room.wait()
            yield batch

    async def batches(self) -> AsyncIterator[Batch]:
        """The records of the one partition, as they arrive; also on a full disk: to be rid of them makes room."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while True:
                offsets, values = await self._store.transact(self._next)
                if not offsets:
                    break
                self._position = offsets[-1]
                yield Batch(self.home, values, offsets, self._position, self._decoder)

    def _next(self, tx: Tx) -> tuple[list[int], list[bytes]]:
        return tx.records(self._position, self._batch_max, self._batch_bytes)

    def decoder(self, topic: str) -> Decoder | None:
        return self._decoder if topic == TOPIC else None


def claim_left(tx: Tx, is_read: Callable[[str], bool]) -> list[Partition]:
    """Take the partitions of topics that are read no more: what they have caused has to be finished all the same."""
    left = [(topic, number) for topic, numbers in tx.topics().items() if not is_read(topic) for number in numbers]
    return [tx.claim_partition(topic, number, start=0)[0] for topic, number in left]
