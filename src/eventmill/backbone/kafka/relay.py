"""The relay: what our own log holds goes to Kafka, in order, and leaves the log when Kafka has acknowledged it.

It owns the producer and our topic. The log is the outbox: a list is sent when it is durable, so that Kafka never knows
more than the store, and its position moves on the delivery reports, so that a list that was sent, but not noted, is
sent again, with the same event ids. Events of one subject have one key, and so
stay in order. One list is on its way at a time, in a thread; idempotence keeps the order of its retries.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from eventmill.backbone.base import Batch
from eventmill.backbone.complaints import Complaints
from eventmill.backbone.embedded import EmbeddedBackbone
from eventmill.backbone.kafka.client import AROUND_BYTES, Properties, explain
from eventmill.errors import Unavailable
from eventmill.points import reached
from eventmill.store import DeadLetter, Store, Tx

_log = logging.getLogger(__name__)

_ANSWER_S = 2.0
_FLUSH_S = 1.0
_AGAIN_S = 2.0
_HOPELESS = (
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_RECORD,
)
"""What will be refused as often as it is sent."""
_NO_TOPIC = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
"""Somebody has deleted our topic."""


class Relay:
    """`run` until it is cancelled, then `stop`."""

    def __init__(
        self, clients: Properties, topic: str, log: EmbeddedBackbone, store: Store, *, event_bytes: int
    ) -> None:
        self._clients = {**clients, "log_level": 0}  # what it has to say comes as errors, too
        self._record_bytes = max(event_bytes + AROUND_BYTES, 1_048_588)  # no less than Kafka's default
        self._properties = {
            "message.max.bytes": self._record_bytes,
            "linger.ms": 0,
            "topic.metadata.propagation.max.ms": 5_000,  # how long it may be unknown before it is made again
            **self._clients,
            "enable.idempotence": True,
            "acks": "all",
        }
        self._topic = topic
        self._log = log
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="relay")
        self._stopping = threading.Event()
        self._producer: Producer | None = None
        self._complaints = Complaints(_log)
        self.sent = 0

    async def run(self) -> None:
        """Send what the log holds, and what comes, forever."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._make_topic)
        async for batch in self._log.batches():
            await self._store.durable()
            refused = await loop.run_in_executor(self._thread, self._send, batch.values)
            reached("relayed")
            await self._note(batch, refused)

    async def stop(self) -> None:
        """What is not acknowledged stays in the log."""
        self._stopping.set()
        await asyncio.to_thread(self._thread.shutdown)

    async def _note(self, batch: Batch, refused: dict[int, str]) -> None:
        """The batch is in Kafka, or, where that is impossible, a dead letter."""
        now_ms = time.time_ns() // 1_000_000
        letters = [
            DeadLetter(kind="record", reason=reason, time=now_ms, record=batch.values[i])
            for i, reason in refused.items()
        ]

        def note(tx: Tx) -> None:
            tx.dead_letters.insert(letters)
            tx.advance(batch.partition, batch.position)
            tx.forget_records(batch.position)

        while True:
            try:
                await self._store.transact(note)
                break
            except Unavailable as e:
                self._complaints.say("store", str(e))
                await asyncio.sleep(_AGAIN_S)
        self.sent += len(batch.values) - len(refused)

    # in the thread

    def _make_topic(self) -> None:
        """See that our topic is there; without the right to make it, wait for somebody who has."""
        admin = AdminClient(self._clients)
        new = NewTopic(self._topic, -1, -1, config={"max.message.bytes": str(self._record_bytes)})
        while not self._stopping.is_set():
            try:
                known = admin.list_topics(self._topic, timeout=_ANSWER_S).topics.get(self._topic)
                if known is not None and known.error is None:
                    return
                admin.create_topics([new])[self._topic].result(_ANSWER_S)
                _log.info("topic %s is made, with the brokers' defaults for partitions and replicas", self._topic)
                return
            except KafkaException as e:
                if e.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                    return
                self._complaints.say("topic", f"topic {self._topic}: {explain(e.args[0])}")
            except TimeoutError:
                self._complaints.say("topic", f"topic {self._topic}: Kafka does not answer")
            self._stopping.wait(_AGAIN_S)

    def _send(self, values: Sequence[bytes]) -> dict[int, str]:
        """Send these, and return when all are acknowledged: those that never will be, with the reason."""
        refused: dict[int, str] = {}
        waiting = dict(enumerate(values))
        while waiting:
            failed = self._deliver(waiting)
            if len(waiting) > 1 and any(error.code() in _HOPELESS for error in failed.values()):
                failed = self._deliver_singly({i: waiting[i] for i in failed})
            for i, error in failed.items():
                if error.code() in _HOPELESS:
                    refused[i] = f"can't be put into {self._topic}: {explain(error)}"
                    self._complaints.say("refused", f"an event becomes a dead letter: it {refused[i]}")
                else:
                    self._complaints.say(error.name(), f"{len(failed)} events wait: {explain(error)}")
            again = [i for i in failed if i not in refused]
            # what came behind a failed one is sent again behind it: the order is kept, and ids tell a repetition
            waiting = {i: value for i, value in waiting.items() if again and i >= min(again) and i not in refused}
            if again:
                if self._stopping.wait(_AGAIN_S):
                    raise Unavailable("the relay has been stopped")
                if any(failed[i].code() in _NO_TOPIC for i in again):
                    self._make_topic()
        return refused

    def _deliver_singly(self, waiting: Mapping[int, bytes]) -> dict[int, KafkaError]:
        """A broker refuses what came together in one piece: each by itself tells which of them it is that is wrong."""
        failed: dict[int, KafkaError] = {}
        for i, value in waiting.items():
            failed |= self._deliver({i: value})
        return failed

    def _deliver(self, waiting: Mapping[int, bytes]) -> dict[int, KafkaError]:
        """One try: what was not acknowledged, and why. Raises Unavailable if the relay is stopped meanwhile."""
        failed: dict[int, KafkaError] = {}
        producer = self._producer
        if producer is None:
            producer = self._producer = Producer(self._properties)
        for i, value in waiting.items():

            def report(error: KafkaError | None, message: Message, i: int = i) -> None:
                if error is not None:
                    failed[i] = error

            try:
                producer.produce(self._topic, value, key=_key(value), on_delivery=report)
            except BufferError:
                self._flush(producer)
                producer.produce(self._topic, value, key=_key(value), on_delivery=report)
            except KafkaException as e:
                failed[i] = e.args[0]
        self._flush(producer)
        if any(error.fatal() or error.code() == KafkaError._FATAL for error in failed.values()):
            self._producer = None  # it can't be used any more
        return failed

    def _flush(self, producer: Producer) -> None:
        """Wait for all delivery reports. Raises Unavailable if the relay is stopped meanwhile."""
        while producer.flush(_FLUSH_S):
            if self._stopping.is_set():
                producer.purge()
                raise Unavailable("the relay has been stopped")


def _key(value: bytes) -> bytes:
    """The subject of an event, or, without one, its source."""
    event = orjson.loads(value)
    key: str = event.get("subject") or event["source"]
    return key.encode()
