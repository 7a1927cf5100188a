"""What happens when a topic is missing, comes, goes, grows, or loses records: each is read as docs/kafka.md says."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from eventmill import Event
from eventmill.backbone.kafka import audit as audit_module
from eventmill.backbone.kafka import consumer as consumer_module
from tests.kafka.broker import Broker
from tests.kafka.reading import numbered, reading, settings

pytestmark = pytest.mark.slow

both = pytest.mark.parametrize("protocol", ["classic", "consumer"])


@pytest.fixture
def name() -> str:
    """Of a topic, and of a group, that nobody else has."""
    return f"behaviour-{uuid4().hex[:8]}"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "_LOOK_S", 0.5)
    monkeypatch.setattr(consumer_module, "_AGAIN_S", 0.2)


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 40))


def said(caplog: pytest.LogCaptureFixture, text: str) -> int:
    """How many lines of the log say so."""
    return sum(text in message for message in caplog.messages)


# topics that are not there yet


@both
def test_a_missing_topic_is_waited_for_and_said_once(
    protocol: str, broker: Broker, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        other = broker.create_topic()
        rows = [{"name": name, "start": "earliest"}, {"name": other, "start": "earliest"}]
        async with reading(tmp_path, settings(broker, *rows, group=name, protocol=protocol)) as r:
            broker.produce(other, numbered(0))
            await r.until_read(numbered(0))  # others are not held up
            await r.until(lambda: said(caplog, f"{name}: there is no such topic"), "a line")
            broker.create_topic(name)
            broker.produce(name, numbered(1, 2))
            await r.until_read(numbered(0, 1, 2))
            assert r.backbone.condition()[0]
        assert said(caplog, "there is no such topic") == 1

    run(body)


@both
def test_topics_that_a_regex_matches_are_read_also_those_that_come_later(
    protocol: str, broker: Broker, name: str, tmp_path: Path
) -> None:
    async def body() -> None:
        row = {"regex": f"{name}-[0-9]+", "start": "earliest"}
        for topic in (f"{name}-1", f"{name}-x", f"a-{name}-1"):
            broker.create_topic(topic)
        async with reading(tmp_path, settings(broker, row, group=name, protocol=protocol)) as r:
            await r.until_assigned(2)  # with our own topic
            broker.create_topic(f"{name}-2", 2)
            await r.until_assigned(4)
            broker.produce(f"{name}-2", numbered(2))
            await r.until_read(numbered(2))
            broker.produce(f"{name}-x", numbered(9))
            broker.produce(f"a-{name}-1", numbered(9))
            broker.produce(f"{name}-1", numbered(3))
            await r.until_read(numbered(2, 3))

    run(body)


def test_a_regex_is_pythons(broker: Broker, name: str, tmp_path: Path) -> None:
    """Not POSIX's, as librdkafka's, nor RE2, as the broker's: `check` and decoders take it for Python's."""

    async def body() -> None:
        for topic in ("run.12", "run.x", "runs"):
            broker.produce(broker.create_topic(f"{name}.{topic}"), numbered(1))
        rows = [
            {"regex": rf"{name}\.(?:run)(?=\.)\.\d+", "start": "earliest"},
            {"regex": f"{name}.[[:alpha:]]+", "start": "earliest"},
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            given = settings(broker, *rows, group=name)
            async with reading(tmp_path, given) as r:
                await r.until_read(numbered(1))
                await r.until_assigned(2)
                assert {term.topic for term in r.terms} == {f"{name}.run.12", f"own-{name}"}

    run(body)


# where reading begins


def test_all_partitions_of_a_new_topic_begin_where_the_row_says(broker: Broker, name: str, tmp_path: Path) -> None:
    async def body() -> None:
        noon = int(datetime(2026, 5, 6, 12, tzinfo=UTC).timestamp() * 1000)
        starts = {"earliest": "earliest", "latest": "latest", "time": "2026-05-06T12:00:00Z"}
        rows = [{"name": f"{name}-{kind}", "start": start} for kind, start in starts.items()]
        for kind in starts:
            topic = broker.create_topic(f"{name}-{kind}", 3)
            broker.produce(topic, numbered(1, 2, 3), partition=0, timestamps_ms=[noon - 2, noon, noon + 2])
            broker.produce(topic, numbered(4), partition=1, timestamps_ms=[noon - 1])
        async with reading(tmp_path, settings(broker, *rows, group=name)) as r:
            r.going.clear()
            await r.until_assigned(9)  # our own topic may come later
            assert await r.positions(f"{name}-earliest") == {0: -1, 1: -1, 2: -1}
            assert await r.positions(f"{name}-latest") == {0: 2, 1: 0, 2: -1}
            assert await r.positions(f"{name}-time") == {0: 0, 1: 0, 2: -1}
            r.going.set()
            await r.until_read(numbered(1, 2, 3, 4) + numbered(2, 3))
        for kind in starts:  # while no server is there, also into a partition that had no record when it was seen
            broker.produce(f"{name}-{kind}", numbered(5), partition=1)
            broker.produce(f"{name}-{kind}", numbered(6), partition=2)
        async with reading(tmp_path, settings(broker, *rows, group=name)) as r:
            await r.until_read(numbered(1, 2, 3, 4, 2, 3) + 3 * numbered(5, 6))

    run(body)


@both
def test_latest_is_for_topics_that_were_there_when_a_row_was_first_served(
    protocol: str, broker: Broker, name: str, tmp_path: Path
) -> None:
    async def body() -> None:
        def come(topic: str, *numbers: int) -> None:
            broker.produce(broker.create_topic(f"{name}-{topic}"), numbered(*numbers))

        rows = [{"name": f"{name}-named"}, {"regex": rf"{name}-r\d"}]
        given = settings(broker, *rows, group=name, protocol=protocol)
        come("r0", 1, 2)
        async with reading(tmp_path, given) as r:
            await r.until_assigned(2)
            broker.produce(f"{name}-r0", numbered(3))
            await r.until_read(numbered(3))
            come("r1", 4, 5)
            come("named", 6)
            await r.until_read(numbered(3, 4, 5, 6))
        come("r2", 7)  # while no server is there
        come("new", 8)
        more = settings(broker, *rows, {"regex": f"{name}-n.*"}, group=name, protocol=protocol)
        async with reading(tmp_path, more) as r:
            await r.until_read(numbered(3, 4, 5, 6, 7))
            await r.until(lambda: any(term.topic.endswith("-new") for term in r.terms), "the new row's topic")
            broker.produce(f"{name}-new", numbered(9))
            await r.until_read(numbered(3, 4, 5, 6, 7, 9))

    run(body)


@both
def test_records_of_partitions_that_are_added_are_read_from_the_first_on(
    protocol: str, broker: Broker, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        broker.create_topic(name)
        broker.produce(name, numbered(0))
        given = settings(broker, {"name": name, "start": "latest"}, group=name, protocol=protocol)
        async with reading(tmp_path, given) as r:
            await r.until_assigned(2)
            broker.add_partitions(name, 3)
            broker.produce(name, numbered(1, 2), partition=1)
            broker.produce(name, numbered(3), partition=2)
            await r.until_read(numbered(1, 2, 3))
        broker.add_partitions(name, 4)  # while no server is there
        broker.produce(name, numbered(4), partition=3)
        async with reading(tmp_path, given) as r:
            await r.until_read(numbered(1, 2, 3, 4))

    caplog.set_level(logging.INFO)
    run(body)
    assert said(caplog, "more partitions: they are read from their beginning") >= 2


# topics that are made again


@both
@pytest.mark.parametrize("longer", [False, True])
def test_a_topic_made_again_is_read_from_its_beginning(
    protocol: str, longer: bool, broker: Broker, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        broker.create_topic(name, 2)
        other = broker.create_topic()
        old, new = numbered(*range(10)), numbered(*range(100, 130 if longer else 103))
        broker.produce(name, old, partition=0)
        rows = [{"name": name, "start": "earliest"}, {"name": other, "start": "earliest"}]
        async with reading(tmp_path, settings(broker, *rows, group=name, protocol=protocol)) as r:
            await r.until_read(old)
            broker.delete_topic(name)
            broker.create_topic(name)
            broker.produce(name, new, partition=0)
            # a longer one is at first read behind our position, and then again from its beginning
            await r.until(lambda: said(caplog, "was deleted and made again"), "the log line")
            broker.produce(other, numbered(500))
            await r.until_read([*old, *new, *numbered(500)], again=longer)
            assert (await r.positions(name))[0] == len(new) - 1
            await asyncio.sleep(1.2)  # another audit or two finds nothing more, though the topic has fewer partitions
        assert said(caplog, "was deleted and made again") == 1

    run(body)


@pytest.mark.parametrize("longer", [False, True])
def test_a_topic_made_again_while_no_server_was_there(
    longer: bool, broker: Broker, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        given = settings(broker, {"name": name, "start": "latest"}, group=name)
        old, new = numbered(*range(10)), numbered(*range(100, 130 if longer else 103))
        broker.create_topic(name, 2)
        async with reading(tmp_path, given) as r:
            await r.until_assigned(3)
            broker.produce(name, old, partition=0)
            await r.until_read(old)
        broker.delete_topic(name)
        broker.create_topic(name, 3)
        broker.produce(name, new, partition=0)
        broker.produce(name, numbered(200), partition=1)
        broker.produce(name, numbered(300), partition=2)
        async with reading(tmp_path, given) as r:
            await r.until_read(old + new + numbered(200, 300))
        assert said(caplog, f"topic {name} was deleted and made again: it is read from its beginning") == 1

    run(body)


def test_our_own_topic_is_made_again(broker: Broker, name: str, tmp_path: Path) -> None:
    async def body() -> None:
        events = [Event.new("test", "//test", id=str(n), time="2026-01-01T00:00:00Z") for n in range(2)]
        given = settings(broker, group=name, properties={"topic.metadata.propagation.max.ms": 500})
        async with reading(tmp_path, given) as r:
            await r.backbone.append(events[:1])
            await r.until(lambda: r.batches, "the first event")
            broker.delete_topic(f"own-{name}")
            await r.backbone.append(events[1:])
            await r.until(lambda: any(b'"1"' in v for b in r.batches for v in b.values), "the second event")

    run(body)


# logs that have lost records


@both
def test_records_that_were_deleted_before_they_were_read(
    protocol: str, broker: Broker, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        given = settings(broker, {"name": name, "start": "earliest"}, group=name, protocol=protocol)
        broker.create_topic(name, 2)
        broker.produce(name, numbered(0), partition=0)
        async with reading(tmp_path, given) as r:
            await r.until_read(numbered(0))
        broker.produce(name, numbered(1, 2, 3), partition=0)
        broker.delete_records(name, 0, 3)
        async with reading(tmp_path, given) as r:
            await r.until_read(numbered(0, 3))
            broker.produce(name, numbered(4), partition=0)
            broker.produce(name, numbered(5), partition=1)
            await r.until_read(numbered(0, 3, 4, 5))
        line = f"{name}/0: records 1 to 2 were deleted by Kafka before they were read: lengthen the topic's retention"
        assert said(caplog, line) == 1

    run(body)


def test_a_log_that_ends_before_our_position_is_read_again(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(broker: Broker) -> None:
        given = settings(broker, {"name": name, "start": "earliest"}, group=name)
        broker.create_topic(name)
        broker.produce(name, numbered(*range(5)))
        async with reading(tmp_path, given) as r:
            await r.until_read(numbered(*range(5)))
            broker.stop()
            for file in (broker.directory / "data" / f"{name}-0").iterdir():
                if file.name != "partition.metadata":  # where the topic's id stands
                    file.unlink()
            broker.start()
            broker.produce(name, numbered(5, 6))
            await r.until_read(numbered(*range(7)))
            assert await r.positions(name) == {0: 1}
        assert said(caplog, f"{name}/0: the log ends before our position 4") == 1

    with Broker(tmp_path / "kafka") as broker:
        run(lambda: body(broker))
