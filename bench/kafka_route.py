"""kafka-route: how many of dCache's records a second one process takes from a real broker, decodes, matches and deals
with: 10,000 rules; one record in a hundred matches one and runs a function, whose completion goes back to Kafka.

The records are those of `eventmill generate dcache`, in four partitions. Rules: 2,000 directories with one for each of
five endings; of these directories as many occur as it takes. Floor: the same records from the same broker, poll and
consume(n, 0) with the same settings and `orjson.loads` on each, in this process, before and after.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import Consumer, Producer, TopicPartition
from tests.kafka.broker import Broker

from bench.mill import mill
from bench.result import Result, result, scratch
from eventmill.backbone.kafka.consumer import QUEUE_KB
from eventmill.cli.generate import DEFAULT_MIX
from eventmill.cli.generating import Traffic, parse_mix
from eventmill.config import Settings, load
from eventmill.engine import Engine

RECORDS = 1_000_000
PARTITIONS = 4
RULES = 10_000
ENDINGS = (".h5", ".nxs", ".tif", ".cbf", ".dat")
SHARE = 0.01
TOPIC = "billing"
DIRECTORY = "/pnfs/example.org/data"
SOURCE = "def main(args):\n    return {}\n"


def run() -> Iterator[Result]:
    with scratch() as directory, Broker(directory / "broker", properties=BROKER) as broker:
        broker.create_topic(TOPIC, partitions=PARTITIONS)
        written = _produce(broker)
        rules = _rules(written)
        settings = load(
            backbone={"kind": "kafka", "brokers": broker.bootstrap},
            topics=[{"name": TOPIC, "decoder": "dcache", "start": "earliest"}],
            limits={"disk_free_mb": 0},
        )
        floors = [_drain(broker, settings)]
        rate, functions = asyncio.run(_route(directory, settings, rules))
        floors.append(_drain(broker, settings))
    yield result("kafka-route", f"{RULES // 1000}k rules, {functions} functions", rate, "records/s", sum(floors) / 2)


BROKER = {"log.segment.bytes": str(1 << 28)}


def _produce(broker: Broker) -> Counter[str]:
    """Put the records into the topic; how many files were written, by directory and ending."""
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 20, "acks": "all"})
    written: Counter[str] = Counter()
    for n, fields in enumerate(islice(Traffic(7, DIRECTORY, parse_mix(DEFAULT_MIX), 0.0).records(0), RECORDS)):
        if fields["msgType"] == "transfer" and fields["isWrite"] == "write" and fields["status"]["code"] == 0:
            written[_place(fields["billingPath"])] += 1
        producer.produce(TOPIC, orjson.dumps(fields), partition=n % PARTITIONS)
        if n % 1000 == 0:
            while len(producer) > 50_000:
                producer.poll(0.1)
    producer.flush()
    return written


def _place(path: str) -> str:
    """Directory and ending of a file."""
    directory, _, name = path.rpartition("/")
    return f"{directory}/*{name[name.rfind('.') :]}"


def _rules(written: Counter[str]) -> dict[str, dict[str, Any]]:
    """Patterns by name, which match as many records as they should."""
    globs: list[str] = []
    matching = 0
    for place, count in written.items():
        if place.endswith(ENDINGS) and matching + count <= RECORDS * SHARE:
            globs.append(place)
            matching += count
    others = (f"{DIRECTORY}/elsewhere/{n:06}/raw/*{ending}" for n in range(RULES) for ending in ENDINGS)
    globs = globs[:RULES] + list(islice(others, RULES - len(globs)))
    return {f"r{n}": {"type": ["org.dcache.file.written"], "subject": [{"glob": g}]} for n, g in enumerate(globs)}


def _drain(broker: Broker, settings: Settings) -> float:
    """Records a second by the plain client."""
    consumer = Consumer({
        "bootstrap.servers": broker.bootstrap, "group.id": "floor", "enable.auto.commit": False,
        "auto.offset.reset": "error", "fetch.queue.backoff.ms": 10, "queued.max.messages.kbytes": QUEUE_KB,
        "fetch.max.bytes": QUEUE_KB << 10, "statistics.interval.ms": 10_000,
        "stats_cb": lambda text: None,
    })  # fmt: skip
    consumer.assign([TopicPartition(TOPIC, n, 0) for n in range(PARTITIONS)])
    batch, seen, begun = settings.limits.batch_events, 0, 0.0
    while seen < RECORDS:
        first = consumer.poll(5)
        assert first is not None
        assert first.error() is None, first.error()
        begun = begun or time.perf_counter()
        for message in [first, *consumer.consume(batch - 1, 0)]:
            orjson.loads(message.value() or b"")
            seen += 1
    took = time.perf_counter() - begun
    consumer.close()
    return RECORDS / took


async def _route(directory: Path, settings: Settings, rules: dict[str, dict[str, Any]]) -> tuple[float, int]:
    """Records a second, until the last function's completion has been dealt with, too; how many functions ran."""
    async with mill(directory, settings, workers=8) as m:
        await m.put_function("noop", SOURCE)
        await m.put_rules(rules, "noop")
        await m.engine.start()
        counts = m.engine.counts
        await _until(m.engine, lambda: counts["records"] > 0)
        begun = time.perf_counter()
        # each function's end comes back through Kafka
        await _until(m.engine, lambda: 0 < RECORDS + counts["matches"] <= counts["records"])
        took = time.perf_counter() - begun
        assert counts["function.succeeded"] == counts["matches"], counts
        return RECORDS / took, counts["matches"]


async def _until(engine: Engine, condition: Callable[[], bool]) -> None:
    while not condition():
        if engine.problem is not None:
            raise engine.problem
        await asyncio.sleep(0.05)
