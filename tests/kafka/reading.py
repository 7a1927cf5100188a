"""A Kafka backbone over a store, and who reads it: a stand-in for the engine (named so: `Reading`) that records, with
the position and in the same transaction, which records it was given. What happens to records is then seen exactly.

Everything runs on the event loop of the test, but what a real server does in threads of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from eventmill.backbone import Assigned, Batch, Partition
from eventmill.backbone.embedded import EmbeddedBackbone
from eventmill.backbone.kafka import KafkaBackbone
from eventmill.backbone.room import Room
from eventmill.config import Settings, load
from eventmill.errors import LostPartition
from eventmill.events import PathTable
from eventmill.store import SqliteStore, Tx
from tests.kafka.topics import Topics

WAIT_S = 20.0
QUICK = {"topic.metadata.refresh.interval.ms": 300, "reconnect.backoff.max.ms": 200}
"""Tests want to see in a moment what otherwise takes seconds."""

Effect = tuple[str, int, int, bytes]
"""Topic, partition, offset and value of a record that was dealt with."""


def settings(
    brokers: Topics | str,
    *topics: Mapping[str, Any],
    group: str,
    protocol: str = "classic",
    properties: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
) -> Settings:
    """Rows of `[[topics]]` are plain JSON unless they say something else. Our own topic has the name of the group."""
    plain = {"decoder": "json", "source": "//test"}
    return load(
        backbone={
            "kind": "kafka", "brokers": brokers if isinstance(brokers, str) else brokers.bootstrap,
            "topic": f"own-{group}", "group": group, "group_protocol": protocol, "session_timeout_s": 2,
            "properties": {**QUICK, **(properties or {})},
        },
        topics=[{**plain, **row} for row in topics],
        limits={"disk_free_mb": 0, **(limits or {})},
    )  # fmt: skip


class Reading:
    """Reads as long as it is open. `going`: cleared, it deals with nothing more, like an engine that is held up."""

    def __init__(self, store: SqliteStore, backbone: KafkaBackbone) -> None:
        self.store, self.backbone = store, backbone
        self.going = asyncio.Event()
        self.going.set()
        self.terms: list[Partition] = []
        """What was assigned, in order."""
        self.batches: list[Batch] = []
        """What was recorded."""
        self.outdated: list[Batch] = []
        """What was read in a term that had ended."""
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for read in self.backbone.read():
            if isinstance(read, Assigned):
                self.terms += read.partitions
                continue
            await self.going.wait()
            try:
                await self.store.transact(partial(_record, batch=read))
                self.batches.append(read)
            except LostPartition:
                self.outdated.append(read)

    async def effects(self) -> list[Effect]:
        return await self.store.transact(_effects)

    async def values(self) -> list[bytes]:
        """What was dealt with, sorted, each as often as it was."""
        return sorted(value for _, _, _, value in await self.effects())

    async def until(self, is_so: Callable[[], Any], what: str) -> None:
        """Raises what the reader has died of, or AssertionError if it isn't so in time."""
        end = time.monotonic() + WAIT_S
        while not is_so():
            if self.task.done():
                await self.task
            assert time.monotonic() < end, f"waited {WAIT_S:g} s for {what}: {self.backbone.condition()}"
            await asyncio.sleep(0.02)

    async def until_read(self, values: Iterable[bytes], *, again: bool = False) -> None:
        """Wait until these are dealt with; then they are, and nothing else, and each once unless it may be `again`."""
        wanted = sorted(values)
        end = time.monotonic() + WAIT_S
        while set(await self.values()) < set(wanted):
            if self.task.done():
                await self.task
            assert time.monotonic() < end, f"{await self.values()} of {wanted}: {self.backbone.condition()}"
            await asyncio.sleep(0.02)
        found = await self.values()
        assert sorted(set(found) if again else found) == wanted

    async def until_assigned(self, count: int) -> None:
        """Wait until so many partitions have been assigned in all."""
        await self.until(lambda: len(self.terms) >= count, f"{count} partitions ({len(self.terms)} are there)")

    async def positions(self, topic: str) -> dict[int, int]:
        places = await self.store.transact(lambda tx: tx.places(topic))
        return {number: place.position for number, place in places.items()}


@asynccontextmanager
async def reading(store: SqliteStore | Path, settings: Settings) -> AsyncIterator[Reading]:
    """A reader over a store, or over the one of this directory."""
    path = store if isinstance(store, Path) else None
    opened = SqliteStore.open(path / "store.db") if path else store
    assert isinstance(opened, SqliteStore)
    await opened.transact(_make_effects)
    room = Room(path or Path(), 0)
    log = EmbeddedBackbone(opened, room, batch_max=100, batch_bytes=1 << 20)
    backbone = KafkaBackbone(opened, log, room, settings, PathTable())
    await backbone.start()
    reader = Reading(opened, backbone)
    try:
        yield reader
    finally:
        reader.task.cancel()
        await asyncio.gather(reader.task, return_exceptions=True)
        await backbone.stop()
        if path:
            opened.close()


def numbered(*numbers: int, pad: int = 0) -> list[bytes]:
    """Records for the decoder of plain JSON."""
    return [orjson.dumps({"type": "test", "n": n, **({"pad": "x" * pad} if pad else {})}) for n in numbers]


def _make_effects(tx: Tx) -> None:
    tx._driver.execute("CREATE TABLE IF NOT EXISTS effects (topic TEXT, number INT, record INT, value BLOB)")


def _record(tx: Tx, batch: Batch) -> None:
    tx.advance(batch.partition, batch.position)
    p = batch.partition
    records: Sequence[Effect] = [(p.topic, p.number, o, v) for o, v in zip(batch.offsets, batch.values, strict=True)]
    tx._driver.executemany("INSERT INTO effects VALUES (?, ?, ?, ?)", records)


def _effects(tx: Tx) -> list[Effect]:
    return tx._driver.execute("SELECT topic, number, record, value FROM effects ORDER BY rowid").fetchall()
