"""What every backbone promises; each implementation, the embedded one and Kafka with a real broker, is a `Subject`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.kafka.broker import Broker

from eventmill import Event
from eventmill.backbone import Backbone, Batch
from eventmill.backbone.embedded import EmbeddedBackbone
from eventmill.backbone.kafka import KafkaBackbone
from eventmill.backbone.room import Room
from eventmill.config import load
from eventmill.errors import LostPartition, Unavailable
from eventmill.events import PathTable
from eventmill.store import SqliteStore, Store

Opened = tuple[Store, Backbone]


@asynccontextmanager
async def embedded(directory: Path, batch_max: int = 100) -> AsyncIterator[Opened]:
    store = SqliteStore.open(directory / "store.db")
    backbone = EmbeddedBackbone(store, Room(directory, 0), batch_max=batch_max, batch_bytes=1 << 20)
    await backbone.start()
    yield store, backbone
    await backbone.stop()
    store.close()


@asynccontextmanager
async def kafka(broker: Broker, topic: str, directory: Path, batch_max: int = 100) -> AsyncIterator[Opened]:
    settings = load(
        backbone={"kind": "kafka", "brokers": broker.bootstrap, "topic": topic, "group": topic},
        limits={"batch_events": batch_max},
    )
    store = SqliteStore.open(directory / "store.db")
    room = Room(directory, 0)
    log = EmbeddedBackbone(store, room, batch_max=batch_max, batch_bytes=1 << 20)
    backbone = KafkaBackbone(store, log, room, settings, PathTable())
    await backbone.start()
    yield store, backbone
    await backbone.stop()
    store.close()


Subject = Callable[..., Any]


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.slow)])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "embedded":
        return embedded
    return partial(kafka, request.getfixturevalue("broker"), f"contract-{uuid.uuid4().hex[:8]}")


async def batches(backbone: Backbone) -> AsyncIterator[Batch]:
    """What is read, without the news of partitions."""
    async for read in backbone.read():
        if isinstance(read, Batch):
            yield read


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 20))


def event(n: int) -> Event:
    return Event.new("test", "//test", id=str(n), time="2026-01-01T00:00:00Z")


def ids(*batches: Batch) -> list[int]:
    return [int(orjson.loads(value)["id"]) for batch in batches for value in batch.values]


def test_what_was_appended_is_pushed_in_order(subject: Subject, tmp_path: Path) -> None:
    async def body() -> None:
        async with subject(tmp_path) as (_, backbone):
            reading = batches(backbone)
            waiting = asyncio.ensure_future(anext(reading))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            await backbone.append([event(1), event(2)])
            assert ids(await waiting) == [1, 2]
            for n in range(3, 8):
                await backbone.append([event(n)])
            got: list[int] = []
            while len(got) < 5:
                got += ids(await anext(reading))
            assert got == [3, 4, 5, 6, 7]

    run(body)


def test_appends_at_once_are_all_there_and_each_in_order(subject: Subject, tmp_path: Path) -> None:
    async def body() -> None:
        async with subject(tmp_path) as (_, backbone):
            await asyncio.gather(*(backbone.append([event(10 * i + k) for k in range(10)]) for i in range(50)))
            got: list[int] = []
            async for batch in batches(backbone):
                got += ids(batch)
                assert len(batch.values) == len(batch.offsets) <= 100
                assert batch.position == batch.offsets[-1]
                if len(got) == 500:
                    break
            assert sorted(got) == list(range(500))
            assert all(got.index(n) < got.index(n + 1) for n in range(500) if n % 10 != 9)

    run(body)


def test_the_next_reader_begins_at_the_stores_position(subject: Subject, tmp_path: Path) -> None:
    async def body() -> None:
        async with subject(tmp_path, 3) as (store, backbone):
            await backbone.append([event(n) for n in range(10)])
            batch = await anext(batches(backbone))
            assert ids(batch) == [0, 1, 2]
            await store.transact(lambda tx: tx.advance(batch.partition, batch.offsets[1]))
        async with subject(tmp_path, 3) as (_, backbone):
            assert ids(await anext(batches(backbone))) == [2, 3, 4]

    run(body)


def test_a_new_owner_shuts_the_old_one_out(subject: Subject, tmp_path: Path) -> None:
    async def body() -> None:
        async with subject(tmp_path) as (store, backbone):
            old = backbone.home
        async with subject(tmp_path) as (store, backbone):
            new = backbone.home
            assert (new.id, new.epoch) == (old.id, old.epoch + 1)
            with pytest.raises(LostPartition):
                await store.transact(lambda tx: tx.advance(old, 1))
            await store.transact(lambda tx: tx.advance(new, 1))

    run(body)


def test_events_with_odd_contents_come_back_as_they_were(subject: Subject, tmp_path: Path) -> None:
    async def body() -> None:
        odd = Event.new(
            "t", "//s", id="1", subject="/ä/€/\u2028/🙂", data={"x": None, "y": [1.5, -0.0, 2**53], "z": "\x00"}
        )
        async with subject(tmp_path) as (_, backbone):
            await backbone.append([odd])
            batch = await anext(batches(backbone))
            assert orjson.loads(batch.values[0]) == odd

    run(body)


def test_nothing_to_append_is_nothing(subject: Subject, tmp_path: Path) -> None:
    async def body() -> None:
        async with subject(tmp_path) as (_, backbone):
            await backbone.append([])
            await backbone.append([event(1)])
            assert ids(await anext(batches(backbone))) == [1]

    run(body)


def test_a_full_disk_is_refused_and_reading_pauses(tmp_path: Path) -> None:
    async def body() -> None:
        async with embedded(tmp_path) as (store, backbone):
            await backbone.append([event(1)])
            assert isinstance(store, SqliteStore)
            full = EmbeddedBackbone(store, Room(tmp_path, 1 << 30), batch_max=10, batch_bytes=1 << 20)
            await full.start()
            with pytest.raises(Unavailable, match="make room"):
                await full.append([event(2)])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(batches(full)), 0.1)
            relayed = EmbeddedBackbone(store, Room(tmp_path, 1 << 30), batch_max=10, batch_bytes=1 << 20)
            await relayed.start()
            assert ids(await anext(relayed.batches())) == [1], "to send it on makes room"

    run(body)


_APPENDER = """
import asyncio, sys
from pathlib import Path
from tests.backbone.test_backbone_contract import embedded, event

async def main():
    async with embedded(Path(sys.argv[1])) as (_, backbone):
        for n in range(100000):
            await backbone.append([event(n)])
            print(n, flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    for round in range(3):
        command = [sys.executable, "-c", _APPENDER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout is not None
            for _ in range(50 * (round + 1)):
                line = process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
            rest = [int(n) for n in process.stdout.read().splitlines() if n]
        last = max([int(line), *rest])

        async def body(last: int = last) -> None:
            async with embedded(tmp_path) as (store, _):
                _, values = await store.transact(lambda tx: tx.records(0, 10**6, 1 << 30))
                got = [int(orjson.loads(value)["id"]) for value in values]
                assert got[-(last + 1) :] == list(range(last + 1)) or got[-(last + 2) :] == list(range(last + 2))

        run(body)
