"""What tests do with the topics of a broker, or of a cluster, from outside: each call returns when it has taken effect.

Every call makes its own client and lets it go, so that nothing of one test is left for the next. It must never be used
where the time of a call is measured.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic

WAIT_S = 30.0
"""How long a call may take, on a machine under load."""
STEP_S = 0.05

QUIET = {
    "log_level": 0,  # a refused connection is nothing to print while a broker starts
    "reconnect.backoff.max.ms": 100,
}


class Topics:
    """The topics of the brokers at `bootstrap`. Errors of Kafka are raised as KafkaException."""

    @property
    def bootstrap(self) -> str:
        """`host:port[,host:port…]` of the listeners without TLS."""
        raise NotImplementedError

    def admin(self) -> AdminClient:
        """A client for all that is not here."""
        return AdminClient({"bootstrap.servers": self.bootstrap, **QUIET})

    def create_topic(
        self,
        name: str | None = None,
        partitions: int = 1,
        config: Mapping[str, str] | None = None,
        replicas: int = -1,
    ) -> str:
        """Make a topic, by default under a name that nobody else has; returns the name when all partitions have a
        leader."""
        name = name or f"topic-{uuid.uuid4().hex[:12]}"
        admin = self.admin()
        new = NewTopic(name, num_partitions=partitions, replication_factor=replicas, config=dict(config or {}))
        admin.create_topics([new], request_timeout=WAIT_S)[name].result(WAIT_S)
        until(lambda: self._led(name, partitions), f"topic {name} to have leaders")
        return name

    def add_partitions(self, topic: str, total: int) -> None:
        """Have the topic `total` partitions."""
        admin = self.admin()
        admin.create_partitions([NewPartitions(topic, total)], request_timeout=WAIT_S)[topic].result(WAIT_S)
        until(lambda: self._led(topic, total), f"topic {topic} to have {total} leaders")

    def delete_topic(self, topic: str) -> None:
        """Delete the topic; returns when the brokers no longer know it."""
        admin = self.admin()
        admin.delete_topics([topic], request_timeout=WAIT_S)[topic].result(WAIT_S)
        until(lambda: topic not in admin.list_topics(timeout=WAIT_S).topics, f"topic {topic} to be gone")

    def produce(
        self,
        topic: str,
        values: Sequence[bytes | None],
        *,
        keys: Sequence[bytes | None] | None = None,
        headers: Sequence[Mapping[str, bytes]] | None = None,
        timestamps_ms: Sequence[int] | None = None,
        partition: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[tuple[int, int]]:
        """Write records and wait until all replicas have them; (partition, offset) of each. None is sent twice.

        `keys`, `headers` and `timestamps_ms` have one element for each value; `settings` are librdkafka's.
        """
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "retries": 0,  # an idempotent producer would do, but takes 0.5 s to begin
                "queue.buffering.max.messages": 0,
                "delivery.timeout.ms": int(WAIT_S * 1000),
                **QUIET,
                **(settings or {}),
            }
        )
        reports: dict[int, tuple[KafkaError | None, int, int]] = {}
        for number, value in enumerate(values):
            producer.produce(
                topic,
                value,
                key=keys[number] if keys else None,
                headers=dict(headers[number]) if headers else None,
                timestamp=timestamps_ms[number] if timestamps_ms else 0,
                partition=-1 if partition is None else partition,
                on_delivery=_reporter(reports, number),
            )
        producer.flush()
        for error, _, _ in reports.values():
            if error is not None:
                raise KafkaException(error)
        return [reports[number][1:] for number in range(len(values))]

    def partitions(self, topic: str) -> list[int]:
        """Numbers of the topic's partitions, in order; none if it isn't there."""
        known = self.admin().list_topics(timeout=WAIT_S).topics.get(topic)
        return sorted(known.partitions) if known else []

    def start_offsets(self, topic: str) -> dict[int, int]:
        """The first offset of each partition that is still there."""
        return {number: start for number, (start, _) in self._offsets(topic).items()}

    def end_offsets(self, topic: str) -> dict[int, int]:
        """The offset of each partition that the next record will get."""
        return {number: end for number, (_, end) in self._offsets(topic).items()}

    def _offsets(self, topic: str) -> dict[int, tuple[int, int]]:
        with self._consumer({}) as consumer:
            return {n: _watermarks(consumer, TopicPartition(topic, n)) for n in self.partitions(topic)}

    def _led(self, topic: str, partitions: int) -> bool:
        """Whether each partition's leader answers for it: the metadata name it a moment before it does."""
        try:
            return len(self.end_offsets(topic)) == partitions
        except KafkaException:
            return False

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Delete a partition's records before that offset, as retention does."""
        place = TopicPartition(topic, partition, before)
        admin = self.admin()
        for future in admin.delete_records([place], request_timeout=WAIT_S).values():
            future.result(WAIT_S)

    def records(self, topic: str, settings: Mapping[str, Any] | None = None) -> list[Message]:
        """All records that the topic has now, partition after partition. Those of open transactions are not waited
        for: they must not exist."""
        with self._consumer(settings or {}) as consumer:
            places = [(n, _watermarks(consumer, TopicPartition(topic, n))[0]) for n in self.partitions(topic)]
            return [record for number, start in places for record in _partition(consumer, topic, number, start)]

    @contextmanager
    def _consumer(self, settings: Mapping[str, Any]) -> Iterator[Consumer]:
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": "topics",  # the library asks for one
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,  # the end of a partition is told when the wait for more is over
                **QUIET,
                **settings,
            }
        )
        try:
            yield consumer
        finally:
            consumer.close()


def until(done: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Ask again and again; TimeoutError if it isn't so in time."""
    end = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(STEP_S)


def _watermarks(consumer: Consumer, place: TopicPartition) -> tuple[int, int]:
    offsets = consumer.get_watermark_offsets(place, timeout=WAIT_S)
    if offsets is None:
        raise TimeoutError(f"no offsets of {place.topic} [{place.partition}] in {WAIT_S:g} s")
    return offsets


def _reporter(
    reports: dict[int, tuple[KafkaError | None, int, int]], number: int
) -> Callable[[KafkaError | None, Message], None]:
    def report(error: KafkaError | None, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        reports[number] = (error, -1 if partition is None else partition, -1 if offset is None else offset)

    return report


def _partition(consumer: Consumer, topic: str, number: int, first: int) -> list[Message]:
    consumer.assign([TopicPartition(topic, number, first)])
    found = []
    while True:
        message = consumer.poll(WAIT_S)
        if message is None:
            raise TimeoutError(f"nothing from {topic} [{number}] for {WAIT_S:g} s")
        error = message.error()
        if error is None:
            found.append(message)
        elif error.code() == KafkaError._PARTITION_EOF:
            return found
        else:
            raise KafkaException(error)
