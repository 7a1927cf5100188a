"""kafka-latency: from the producer's `produce` to the first line of the function, 100 of dCache's records a second,
open loop, through a real broker, against a server in a process of its own. The function returns when it
began.

Floor: a raw consumer with the same settings in a thread of this process, then one durable commit of the record, then a
warm round trip to a worker. Floor and server take turns, a few seconds each, on topics of their own.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
from confluent_kafka import Consumer, Producer, TopicPartition
from tests.kafka.broker import Broker

from bench.latency import deploy, first_lines
from bench.result import Result, percentile, result, scratch, server
from bench.worker import raw_round_trips, raw_workers
from eventmill.cli.dcache_records import date

RATE = 100
ROUNDS = 4
SECONDS = 3
TOPICS = ("floor", "billing")
MS = 1_790_000_000_000
CONFIG = """
[backbone]
kind = "kafka"
brokers = "{brokers}"
[[topics]]
name = "billing"
decoder = "dcache"
"""


def run() -> Iterator[Result]:
    with scratch() as directory, Broker(directory / "broker") as broker:
        for topic in TOPICS:
            broker.create_topic(topic)
        with server(directory, more=CONFIG.format(brokers=broker.bootstrap)) as (url, key, _):
            deploy(url, key)
            floors, latencies = _measure(directory, broker)
    for case, share in (("p50", 0.5), ("p99", 0.99)):
        yield result("kafka-latency", case, percentile(latencies, share), "ms", percentile(floors, share))


def _measure(directory: Path, broker: Broker) -> tuple[list[float], list[float]]:
    """Milliseconds of the floor and of the server, for each record after the first round, which warms them up."""
    produced: dict[str, int] = {}
    ended: dict[str, int] = {}
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 0, "acks": "all"})
    stop = threading.Event()
    floor = threading.Thread(target=_floor, args=(directory, broker.bootstrap, ended, stop))
    floor.start()
    time.sleep(3)  # the server has its partition by then
    for number in range(ROUNDS):
        for topic in TOPICS:
            _produce(producer, topic, number, produced)
            time.sleep(0.2)
    time.sleep(1)
    stop.set()
    floor.join()
    ran = first_lines(directory, "$.subject")
    measured = [path for path in produced if not path.startswith("/0/")]
    floors, servers = ([p for p in measured if p.split("/")[2] == topic] for topic in TOPICS)
    return [(ended[p] - produced[p]) / 1e6 for p in floors], [(ran[p] - produced[p]) / 1e6 for p in servers]


def _produce(producer: Producer, topic: str, number: int, produced: dict[str, int]) -> None:
    begin = time.monotonic()
    for n in range(RATE * SECONDS):
        time.sleep(max(0.0, begin + n / RATE - time.monotonic()))
        path = f"/{number}/{topic}/{n}"
        raw = orjson.dumps(_record(path, number * 10_000 + n))
        produced[path] = time.time_ns()
        producer.produce(topic, raw)
        producer.poll(0)


def _record(path: str, n: int) -> dict[str, object]:
    """A pool's record of a written file."""
    return {
        "version": "1.0", "msgType": "transfer", "date": date(MS + n, 0), "queuingTime": 0, "cellName": "pool-07",
        "cellType": "pool", "cellDomain": "pool-07Domain", "status": {"code": 0, "msg": ""},
        "session": f"door:WebDAV-1@webdavDomain:AAX2c4aaa2ca1af:{n}", "transaction": f"pool:pool-07@pool-07Domain:{n}",
        "subject": ["UidPrincipal[20011]", "GidPrincipal[20011,primary]", "Origin[192.0.2.12]"],
        "pnfsid": f"{n:036X}", "billingPath": path, "transferPath": path, "fileSize": 14_117_924 + n,
        "storageInfo": "exfel:raw@osm", "transferSize": 14_117_924 + n, "transferTime": 5300, "isWrite": "write",
        "protocolInfo": {"protocol": "Http", "versionMajor": 1, "versionMinor": 1, "port": 0, "host": "192.0.2.12"},
        "initiator": f"door:WebDAV-1@webdavDomain:AAX2c4aaa2ca1af:{n}", "isP2p": False,
    }  # fmt: skip


def _floor(directory: Path, brokers: str, ended: dict[str, int], stop: threading.Event) -> None:
    consumer = Consumer({
        "bootstrap.servers": brokers, "group.id": "floor", "enable.auto.commit": False, "auto.offset.reset": "error",
        "fetch.queue.backoff.ms": 10,
    })  # fmt: skip
    consumer.assign([TopicPartition("floor", 0, 0)])
    db = sqlite3.connect(directory / "floor.db", isolation_level=None)
    for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "CREATE TABLE log (value BLOB)"):
        db.execute(statement)
    with raw_workers(1) as worker:
        while not stop.is_set():
            first = consumer.poll(0.5)
            for message in [] if first is None else [first, *consumer.consume(999, 0)]:
                raw = message.value() or b""
                db.execute("INSERT INTO log VALUES (?)", (raw,))
                raw_round_trips(worker, 1, raw)
                ended[orjson.loads(raw)["billingPath"]] = time.time_ns()
    db.close()
    consumer.close()
