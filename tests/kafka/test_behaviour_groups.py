"""What happens when readers come, go, stand still and fail: who has a partition reads it, each record counts once."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, Message

from eventmill import Event
from eventmill.backbone import Partition
from eventmill.backbone.kafka import consumer as consumer_module
from eventmill.backbone.kafka import places
from eventmill.backbone.kafka.consumer import Reader
from eventmill.backbone.kafka.subscription import Subscription
from eventmill.errors import EventmillError, InvalidConfig, Unavailable
from eventmill.events import PathTable
from eventmill.store import Place, SqliteStore
from tests.kafka.broker import Broker
from tests.kafka.reading import Reading, numbered, reading, settings

pytestmark = pytest.mark.slow

both = pytest.mark.parametrize("protocol", ["classic", "consumer"])


@pytest.fixture
def name() -> str:
    """Of a topic, and of a group, that nobody else has."""
    return f"behaviour-{uuid4().hex[:8]}"


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(body(), 40))


# several readers over one store


@both
def test_partitions_are_shared_under_load_and_each_record_counts_once(
    protocol: str, broker: Broker, name: str, tmp_path: Path
) -> None:
    async def body() -> None:
        broker.create_topic(name, 4)
        given = settings(broker, {"name": name, "start": "earliest"}, group=name, protocol=protocol)
        store = SqliteStore.open(tmp_path / "store.db")
        async with reading(store, given) as first:
            await first.until_assigned(4)
            sent: list[bytes] = []

            async def load(is_enough: Callable[[], Any]) -> None:
                while not is_enough():
                    sent.extend(new := numbered(*range(len(sent), len(sent) + 10)))
                    await asyncio.to_thread(broker.produce, name, new)

            await load(lambda: len(sent) >= 50)
            async with reading(store, given) as second:
                await load(lambda: len(second.batches) >= 3 and len(first.batches) >= 3)
            await load(lambda: len(first.terms) >= 4 + len(second.terms))  # what the second had is the first's again
            await first.until_read(sent)
            assert second.terms
        store.close()

    run(body)


_CHILD = """
import asyncio, json, sys
from pathlib import Path
from tests.kafka.reading import reading, settings

async def main():
    given = json.loads(sys.argv[2])
    async with reading(Path(sys.argv[1]), settings(given["brokers"], *given["topics"], **given["more"])) as r:
        await r.until(lambda: r.batches, "records")
        print("reading", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@both
def test_one_is_killed_and_the_other_goes_on(protocol: str, broker: Broker, name: str, tmp_path: Path) -> None:
    async def body() -> None:
        broker.create_topic(name, 4)
        topics, more = [{"name": name, "start": "earliest"}], {"group": name, "protocol": protocol}
        arguments = json.dumps({"brokers": broker.bootstrap, "topics": topics, "more": more})
        async with reading(tmp_path, settings(broker, *topics, group=name, protocol=protocol)) as r:
            await r.until_assigned(5)
            command = [sys.executable, "-c", _CHILD, str(tmp_path), arguments]
            child = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE)
            assert child.stdout is not None
            sent: list[bytes] = []
            said = asyncio.create_task(asyncio.to_thread(child.stdout.readline))
            while not said.done():
                sent += (new := numbered(*range(len(sent), len(sent) + 8)))
                await asyncio.to_thread(broker.produce, name, new)
                await asyncio.sleep(0.1)
            assert said.result() == b"reading\n"
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            child.stdout.close()
            sent += (new := numbered(*range(len(sent), len(sent) + 40)))
            await asyncio.to_thread(broker.produce, name, new)
            await r.until_read(sent)

    run(body)


def test_a_group_of_another_store_is_refused(broker: Broker, name: str, tmp_path: Path) -> None:
    async def body() -> None:
        broker.create_topic(name)
        given = settings(broker, {"name": name, "start": "earliest"}, group=name, protocol="consumer")
        (tmp_path / "other").mkdir()
        broker.produce(name, numbered(1))
        async with reading(tmp_path, given) as r:
            await r.until_read(numbered(1))
            await asyncio.sleep(1.2)  # offsets are committed once a second
        async with reading(tmp_path / "other", given) as other:
            with pytest.raises(InvalidConfig, match=r"used by another Eventmill server .*backbone\.group of its own"):
                await other.until(lambda: False, "its end")
        async with reading(tmp_path, given) as r:
            broker.produce(name, numbered(2))
            await r.until_read(numbered(1, 2))

    run(body)


# an engine that is held up


@both
def test_an_engine_that_is_held_up_does_not_lose_its_partitions(
    protocol: str, broker: Broker, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        broker.create_topic(name, 2)
        slow = {"max.poll.interval.ms": 2500}
        given = settings(
            broker, {"name": name, "start": "earliest"}, group=name, protocol=protocol, properties=slow,
            limits={"batch_events": 10},
        )  # fmt: skip
        async with reading(tmp_path, given) as r:
            await r.until_assigned(3)
            r.going.clear()
            for n in range(10):
                broker.produce(name, numbered(*range(20 * n, 20 * n + 20)))
            await asyncio.sleep(3.5)
            broker.produce(name, numbered(*range(200, 220)))
            assert not r.batches
            r.going.set()
            await r.until_read(numbered(*range(220)))
            assert len(r.terms) == 3
            assert not r.outdated

    caplog.set_level(logging.INFO)
    run(body)
    assert "reading is paused: the engine is busy with what it has" in caplog.messages
    assert not [line for line in caplog.messages if "taken" in line]


def test_partitions_that_come_while_the_engine_is_held_up_wait_too(broker: Broker, name: str, tmp_path: Path) -> None:
    async def body() -> None:
        broker.create_topic(name, 2)
        given = settings(broker, {"name": name, "start": "earliest"}, group=name, limits={"batch_events": 10})
        async with reading(tmp_path, given) as r:
            await r.until_assigned(3)
            r.going.clear()
            for n in range(5):
                broker.produce(name, numbered(*range(20 * n, 20 * n + 20)))
            await asyncio.sleep(1.5)
            broker.add_partitions(name, 4)
            broker.produce(name, numbered(100, 101), partition=3)
            await asyncio.sleep(1)
            r.going.set()
            await r.until_read(numbered(*range(102)))

    run(body)


def test_a_registry_without_an_answer_holds_up_what_needs_it_and_neither_others_nor_the_group(
    broker: Broker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        monkeypatch.setattr(consumer_module, "_AGAIN_S", 0.3)
        other = broker.create_topic()
        broker.create_topic(name, 2)
        rows = [{"name": name, "start": "earliest"}, {"name": other, "start": "earliest"}]
        given = settings(broker, *rows, group=name, properties={"max.poll.interval.ms": 2500})
        async with reading(tmp_path, given) as r:
            await r.until_assigned(4)
            records = r.backbone._subscription[name].records
            answers, values = [False], records.values

            def asked(messages: Any) -> Any:
                if not answers[0]:
                    raise Unavailable("the schema registry does not answer")
                return values(messages)

            monkeypatch.setattr(records, "values", asked)
            broker.produce(name, numbered(*range(10)), partition=1)
            broker.produce(other, numbered(100))
            await r.until_read(numbered(100))
            await asyncio.sleep(3.5)
            expected = f"1 of 4 partitions are not read: {name}/1: the schema registry does not answer"
            assert r.backbone.condition() == (False, expected)
            broker.produce(name, numbered(*range(10, 20)), partition=1)
            answers[0] = True
            await r.until_read(numbered(*range(20), 100))
            assert r.backbone.condition()[0]
            assert len(r.terms) == 4
        assert caplog.messages.count("the schema registry does not answer") == 1

    run(body)


def test_a_topic_about_which_kafka_has_no_answer_holds_up_no_other(
    broker: Broker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        monkeypatch.setattr(consumer_module, "_AGAIN_S", 0.3)
        others = [broker.create_topic(f"{place}-{name}") for place in ("a", "z")]
        broker.create_topic(name, 2)
        find, answers = places.find, [False]

        def found(admin: Any, topic: str, *rest: Any) -> Any:
            if topic == name and not answers[0]:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            return find(admin, topic, *rest)

        monkeypatch.setattr(places, "find", found)
        rows = [{"name": topic, "start": "earliest"} for topic in (name, *others)]
        async with reading(tmp_path, settings(broker, *rows, group=name)) as r:
            for n, topic in enumerate((name, *others)):
                broker.produce(topic, numbered(n))
            await r.until_read(numbered(1, 2))
            await r.until(lambda: len(r.terms) == 3, "our own topic")
            ok, text = r.backbone.condition()
            assert not ok
            assert text.startswith(f"2 of 5 partitions are not read: {name}/0: the broker does not answer in time")
            answers[0] = True
            await r.until_read(numbered(0, 1, 2))
            assert r.backbone.condition()[0]

    run(body)


@both
def test_partitions_that_went_while_reading_was_paused_are_read_when_they_come_back(
    protocol: str, broker: Broker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(consumer_module, "PAUSE_AFTER_S", 0.1)
    monkeypatch.setattr(consumer_module, "IN_HAND_S", 0.1)
    caplog.set_level(logging.INFO)

    async def body() -> None:
        broker.create_topic(name, 4)
        given = settings(broker, {"name": name, "start": "earliest"}, group=name, protocol=protocol)
        store = SqliteStore.open(tmp_path / "store.db")
        async with reading(store, given) as first:
            await first.until_assigned(5)
            first.going.clear()
            sent: list[bytes] = []

            def is_paused() -> bool:
                sent.extend(new := numbered(len(sent)))
                broker.produce(name, new)
                return "reading is paused: the engine is busy with what it has" in caplog.messages

            await first.until(is_paused, "a pause")
            async with reading(store, given) as second:
                await second.until(lambda: second.terms, "a partition that the first gives up")
                first.going.set()
                sent += (new := numbered(*range(len(sent), len(sent) + 40)))
                broker.produce(name, new)
                await first.until_read(sent)
                came = len(first.terms)
            await first.until_assigned(came + len(second.terms))
            sent += (new := numbered(*range(len(sent), len(sent) + 40)))
            broker.produce(name, new)
            await first.until_read(sent)
        store.close()

    run(body)


# what is in hand


def test_batches_have_no_more_bytes_than_they_may(broker: Broker, name: str, tmp_path: Path) -> None:
    async def body() -> None:
        broker.create_topic(name)
        broker.produce(name, [*numbered(*range(30), pad=20_000), *numbered(30, pad=200_000), *numbered(31)])
        row = {"name": name, "start": "earliest"}
        large = {"message.max.bytes": 64 << 20}  # more than is fetched ahead by default
        given = settings(broker, row, group=name, limits={"batch_bytes": 100_000}, properties=large)
        async with reading(tmp_path, given) as r:
            await r.until(lambda: sum(len(batch.values) for batch in r.batches) == 32, "all")
            assert max(sum(map(len, batch.values)) for batch in r.batches if len(batch.values) > 1) <= 100_000
            assert len(r.batches) < 32

    run(body)


def test_a_clean_stop_commits_what_was_dealt_with(broker: Broker, name: str, tmp_path: Path) -> None:
    async def body() -> None:
        broker.create_topic(name)
        async with reading(tmp_path, settings(broker, {"name": name, "start": "earliest"}, group=name)) as r:
            for n in range(5):
                broker.produce(name, numbered(n))
                await r.until_read(numbered(*range(n + 1)))
            # while the group deals partitions anew it refuses what is committed: our own topic is the last to be found
            await r.until_assigned(2)
            await r.until(lambda: sum(len(batch.values) for batch in r.batches) == 5, "all to be dealt with")
            last = r.batches[-1]
            assert r.backbone._reader is not None
            r.backbone._reader.dealt(replace(last, partition=replace(last.partition, epoch=0), position=99))
        admin = broker.admin()
        asked: Any = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(name)])
        committed = {p.topic: p.offset for p in asked[name].result(30).topic_partitions}
        assert committed[name] == 5

    run(body)


def test_a_record_of_a_term_that_ended_meanwhile_is_dropped(name: str, tmp_path: Path) -> None:
    """Partitions come and go while the library is asked for records, also between two of them."""

    reader: Any = None

    class Library:
        def poll(self, _: float) -> Message:
            return _message(7)

        def consume(self, *_: Any) -> list[Message]:
            if self.again:
                reader._partitions[name, 0] = Partition(1, name, 0, 2)
            return [_message(8)]

        again = False

    def _message(offset: int) -> Message:
        return Message(topic=name, partition=0, offset=offset, value=b"{}")

    async def body() -> None:
        nonlocal reader
        store = SqliteStore.open(tmp_path / "store.db")
        given = settings("127.0.0.1:1", {"name": name}, group=name)
        reader = Reader(
            given.backbone, {}, Subscription(given, PathTable()), store, 1, batch_max=10, batch_bytes=1 << 20
        )  # fmt: skip
        reader._partitions[name, 0] = Partition(1, name, 0, 1)
        library: Any = Library()
        assert [message.offset() for message in reader._poll(library, 0)] == [7, 8]
        library.again = True
        assert [message.offset() for message in reader._poll(library, 0)] == [8]
        store.close()

    run(body)


def test_a_position_that_is_in_the_log_stays_whatever_was_said_about_it(broker: Broker, name: str) -> None:
    broker.create_topic(name)
    broker.produce(name, numbered(*range(10)))
    broker.delete_records(name, 0, 4)
    admin = broker.admin()
    id = places.describe(admin, name).id
    for position, moved in ((2, 3), (3, None), (9, None), (10, 3)):
        found = places.find(admin, name, {0: Place(position, id, 1)}, [0], [0], "earliest")
        assert found.moved == ({} if moved is None else {0: moved}), position


# failures of our own


@pytest.mark.parametrize("place", ["assignment", "statistics", "beside"])
def test_what_fails_in_the_readers_thread_is_told_to_who_reads(
    place: str, broker: Broker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError(place)

    async def body() -> None:
        if place == "assignment":
            monkeypatch.setattr(places, "find", fail)
        elif place == "statistics":
            monkeypatch.setattr(Reader, "_on_statistics", fail)
        broker.create_topic(name)
        row = {"name": name, "start": "earliest"}
        async with reading(
            tmp_path, settings(broker, row, group=name, properties={"statistics.interval.ms": 200})
        ) as r:
            if place == "beside":
                monkeypatch.setattr(r.backbone._relay, "_note", fail)
                await r.backbone.append([Event.new("test", "//test")])
            with pytest.raises(ZeroDivisionError, match=place):
                await r.until(lambda: False, "its end")

    run(body)


def test_a_broker_without_the_new_protocol_ends_the_reader_with_advice(name: str, tmp_path: Path) -> None:
    async def body(broker: Broker) -> None:
        given = settings(broker, group=name, protocol="consumer")
        async with reading(tmp_path, given) as r:
            with pytest.raises(EventmillError, match='try "classic"'):
                await r.until(lambda: False, "its end")

    with Broker(tmp_path / "kafka", properties={"group.coordinator.rebalance.protocols": "classic"}) as broker:
        run(lambda: body(broker))


# records that can't be dealt with


def test_a_record_that_is_too_large_is_refused_and_the_partition_goes_on(
    broker: Broker, name: str, tmp_path: Path
) -> None:
    async def body() -> None:
        broker.create_topic(name, config={"max.message.bytes": "8000000"})
        large = numbered(1, pad=3_000_000)
        row = {"name": name, "start": "earliest"}
        async with reading(tmp_path, settings(broker, row, group=name, limits={"event_bytes": 1_000_000})) as r:
            broker.produce(name, numbered(0))
            broker.produce(name, large, settings={"message.max.bytes": 8_000_000})
            broker.produce(name, numbered(2))
            await r.until_read(numbered(0) + large + numbered(2))
            (refused,) = [batch.refused for batch in r.batches if batch.refused]
            assert list(refused) == [1]
            assert "bytes; limits.event_bytes is 1000000" in refused[1]

    run(body)


def test_an_event_of_ours_that_the_topic_never_takes_becomes_a_dead_letter(
    broker: Broker, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        broker.create_topic(f"own-{name}", config={"max.message.bytes": "20000"})
        events = [_event(n, "x" * (50_000 if n == 7 else 1_000)) for n in range(40)]
        async with reading(tmp_path, settings(broker, group=name)) as r:
            await r.until_assigned(1)
            await r.backbone.append(events)  # together they are more than the topic takes at once
            await r.backbone.append([_event(40, "")])
            await r.until(lambda: 40 in _numbers(r), "the last event")
            assert _numbers(r) >= {*range(41)} - {7}
            assert 7 not in _numbers(r)
            (letter,) = await r.store.transact(lambda tx: tx.dead_letters.newest(limit=10))
            assert f"can't be put into own-{name}: an event is larger than the topic takes" in letter.reason
            assert letter.record is not None
            assert json.loads(letter.record)["id"] == "7"
        (line,) = [line for line in caplog.messages if "becomes a dead letter" in line]
        assert "raise max.message.bytes of backbone.topic" in line

    run(body)


def test_an_event_of_the_largest_size_comes_through_a_topic_that_we_have_made(
    broker: Broker, name: str, tmp_path: Path
) -> None:
    """Around it there is what a completion adds."""

    async def body() -> None:
        limits = {"event_bytes": 2 << 20}
        async with reading(tmp_path, settings(broker, group=name, limits=limits)) as r:
            await r.backbone.append([_event(0, "x" * (2 << 20)), _event(1, "")])
            await r.until(lambda: 1 in _numbers(r), "the last event")
            assert _numbers(r) == {0, 1}
            assert not [batch for batch in r.batches if batch.refused]

    run(body)


def test_kafka_never_knows_more_than_the_disk(
    broker: Broker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        broker.create_topic(f"own-{name}")
        async with reading(tmp_path, settings(broker, group=name)) as r:
            synced, durable = asyncio.Event(), r.store.durable

            async def late() -> None:
                await synced.wait()
                await durable()

            monkeypatch.setattr(r.store, "durable", late)
            appending = asyncio.create_task(r.backbone.append([_event(1, "")]))
            await asyncio.sleep(0.5)
            assert not broker.records(f"own-{name}")
            synced.set()
            await appending
            await r.until(lambda: r.batches, "the event")

    run(body)


def _event(n: int, data: str) -> Event:
    return Event.new("test", "//test", id=str(n), subject="/one", data=data, time="2026-01-01T00:00:00Z")


def _numbers(r: Reading) -> set[int]:
    return {int(json.loads(value)["id"]) for batch in r.batches for value in batch.values}
