"""The embedded backbone: a table of the store's own file, so that an event and its effects commit together.

One topic, one partition. Appends of many callers share one sync of the disk. The reader is woken by the commit that
put records there; nothing polls.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import orjson

from eventmill.backbone.base import Backbone, Batch, Partition
from eventmill.errors import Unavailable
from eventmill.sdk.event import Event
from eventmill.store import SqliteStore, Tx

TOPIC = "events"
_NO_ROOM_S = 5.0
"""A full disk is looked at again after this: nothing tells when there is room."""

_log = logging.getLogger(__name__)


class EmbeddedBackbone(Backbone):
    """`batch_max`, `batch_bytes`: records in one batch. `disk_free_mb`: with less room left, nothing is taken in."""

    def __init__(
        self, store: SqliteStore, directory: Path, *, batch_max: int, batch_bytes: int, disk_free_mb: int
    ) -> None:
        self._store = store
        self._directory = directory
        self._batch_max = batch_max
        self._batch_bytes = batch_bytes
        self._disk_free = disk_free_mb << 20
        self._arrived = asyncio.Event()
        self._partition: Partition | None = None
        self._position = 0

    async def start(self) -> None:
        """Take the partition: whoever had it before can write nothing more."""
        self._partition, self._position = await self._store.transact(
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
        """Raise Unavailable while the disk is nearly full: the rest is kept for finishing what was taken in."""
        disk = os.statvfs(self._directory)
        if disk.f_bavail * disk.f_frsize < self._disk_free:
            raise Unavailable(
                f"less than {self._disk_free >> 20} MB free in {self._directory}: make room, then send it again"
            )

    async def read(self) -> AsyncIterator[Batch]:
        assert self._partition is not None, "start() first"
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while True:
                await self._until_room()
                offsets, values = await self._store.transact(self._next)
                if not offsets:
                    break
                self._position = offsets[-1]
                yield Batch(self._partition, values, offsets, self._position)

    async def _until_room(self) -> None:
        """Reading is paused while the disk is nearly full: what is left is for ends of what has begun."""
        while True:
            try:
                return self.check_room()
            except Unavailable as e:
                _log.error("reading is paused: %s", e)
                await asyncio.sleep(_NO_ROOM_S)

    def _next(self, tx: Tx) -> tuple[list[int], list[bytes]]:
        return tx.records(self._position, self._batch_max, self._batch_bytes)

    def partitions(self) -> Sequence[Partition]:
        return () if self._partition is None else (self._partition,)
