"""A producer of records for `witness_flow`, of every decoder's kind, which knows what each of them has to cause.

A thread of its own, which goes on while a server or the broker is away, as producers do: records wait in the client and
are acknowledged later, or never. What they are depends on the seed alone; when they come, on the clock.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import orjson
from confluent_kafka import KafkaError, Message, Producer

from eventmill.cli.generating import Traffic
from eventmill.events import PathTable
from eventmill.events.dcache import DcacheDecoder
from tests.kafka.topics import QUIET

Effect = tuple[str, str]
"""(name of the rule, id of the event)."""

KINDS = {"billing": 75, "note": 12, "line": 12, "chain": 1}
"""How often what is produced."""
LARGE = 10_000_000
_TWICE = 0.02
"""The share of records that are produced twice."""


@dataclass(frozen=True, slots=True)
class Record:
    topic: str
    key: bytes
    value: bytes
    headers: Mapping[str, bytes]
    effects: frozenset[Effect]


class Feeder(threading.Thread):
    """Produces until `stop`. `topics`: the names of billing, runs and lines. `rate`: records a second."""

    def __init__(self, bootstrap: str, topics: Mapping[str, str], seed: int, *, rate: float) -> None:
        super().__init__(name="feeder", daemon=True)
        self.acknowledged: set[Effect] = set()
        """What must have happened in the end: Kafka has said that it has the record."""
        self.sent: set[Effect] = set()
        """What may have happened."""
        self.records = 0
        """Acknowledged ones."""
        self._rng = random.Random(seed)
        self._topics = topics
        self._gap_s = 1 / rate
        self._ending = threading.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "linger.ms": 1,
                "delivery.timeout.ms": 60_000,
                **QUIET,
            }
        )

    def run(self) -> None:
        for record in stream(self._rng, self._topics):
            self.send(record)
            self._producer.poll(0)
            if self._ending.wait(self._rng.expovariate(1 / self._gap_s)):
                break
        self._producer.flush()

    def stop(self) -> None:
        """Returns when all that was sent is acknowledged, or given up."""
        self._ending.set()
        self.join()

    def send(self, record: Record) -> None:
        self.sent |= record.effects

        def report(error: KafkaError | None, message: Message) -> None:
            if error is None:
                self.acknowledged |= record.effects
                self.records += 1

        self._producer.produce(
            record.topic, record.value, key=record.key, headers=dict(record.headers), on_delivery=report
        )


def stream(rng: random.Random, topics: Mapping[str, str]) -> Iterator[Record]:
    """Records without end."""
    kinds = {
        "billing": _billing(rng, topics["billing"]),
        "note": _events(rng, topics["runs"], "note"),
        "chain": _events(rng, topics["runs"], "chain"),
        "line": _lines(topics["lines"]),
    }
    while True:
        [kind] = rng.choices(list(KINDS), list(KINDS.values()))
        record = next(kinds[kind])
        yield record
        if rng.random() < _TWICE:
            yield record


def _billing(rng: random.Random, topic: str) -> Iterator[Record]:
    """A dCache site, of which written files matter."""
    decoder = DcacheDecoder("dcache", paths=PathTable([]))
    mix = {"written": 10, "srm": 2, "read": 8, "removed": 3, "failed": 2, "store": 1, "p2p": 1}
    for record in Traffic(rng.getrandbits(32), "/pnfs/site", mix, twice=0.2).records(0):
        value = orjson.dumps(record)
        yield Record(topic, record["cellName"].encode(), value, {}, _of_file(decoder, value))


def _of_file(decoder: DcacheDecoder, value: bytes) -> frozenset[Effect]:
    fields = decoder.fields(value)
    if fields is None or fields["type"] != "org.dcache.file.written" or not fields["subject"].startswith("/pnfs/"):
        return frozenset()
    event = decoder.event(fields)
    rules = ["file", "tally"] if event.data["size"] >= LARGE else ["file"]
    return frozenset((rule, event.id) for rule in rules)


def _events(rng: random.Random, topic: str, kind: str) -> Iterator[Record]:
    """CloudEvents, structured or binary."""
    for n in itertools.count():
        id = f"kafka-{kind}-{n}"
        attributes = {"specversion": "1.0", "id": id, "source": "//lab", "type": f"witness.{kind}"}
        if rng.random() < 0.5:
            headers, value = {}, orjson.dumps({**attributes, "data": {"n": n}})
        else:
            headers = {f"ce_{name}": text.encode() for name, text in attributes.items()}
            headers["content-type"], value = b"application/json", orjson.dumps({"n": n})
        yield Record(topic, id.encode(), value, headers, frozenset({(kind, id)}))


def _lines(topic: str) -> Iterator[Record]:
    """Plain JSON."""
    for n in itertools.count():
        value = orjson.dumps({"kind": "line", "nr": f"line-{n}", "place": {"run": n // 100}})
        yield Record(topic, str(n % 7).encode(), value, {}, frozenset({("line", f"line-{n}")}))
