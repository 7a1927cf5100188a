"""The reader: a thread that waits in librdkafka, and hands on what comes, in order, to the event loop.

It owns the consumer, and all calls of it happen in its thread. It is one hand-over ahead of who takes them,
never more: if nothing is taken for `PAUSE_AFTER_S`, it pauses the partitions and goes on polling, so that the group
keeps us however long the engine takes.

Who may write is decided by the epochs in the store, not here: a partition is taken there before it is read. So
`revoked` needs only the courtesy of dealing with what is in hand, that the next owner need not read it again; and of
`lost` there is nothing to be done, since somebody else may have the partition by then: what is in hand either still has
its epoch, or its transaction fails.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from eventmill.backbone.base import Assigned, Batch, Partition
from eventmill.backbone.kafka import places
from eventmill.backbone.kafka.client import Properties, explain
from eventmill.backbone.kafka.subscription import Subscription
from eventmill.config import Backbone
from eventmill.errors import InvalidConfig, Unavailable
from eventmill.points import reached
from eventmill.store import Place, Store, Tx

_log = logging.getLogger(__name__)
T = TypeVar("T")

PAUSE_AFTER_S = 1.0
"""Who takes the records is busy for longer than this: the partitions are paused meanwhile."""
IN_HAND_S = 5.0
"""A partition that is revoked is given up after this, though a batch of it is not dealt with yet."""
_POLL_S = 0.5
"""The longest that the thread sleeps: how soon it sees that it is to end, or to commit."""
_KEEP_S = 0.1
"""A paused consumer polls so often: the group's callbacks wait for it."""
_COMMIT_S = 1.0
_AGAIN_S = 2.0
_COMPLAIN_S = 300.0
_STATISTICS_MS = 10_000

Handed = Assigned | list[Batch]


class Reader:
    """`clients`: the properties of every client. `store_id` is written beside every committed offset: a group
    that another store uses is refused."""

    def __init__(
        self,
        settings: Backbone,
        clients: Properties,
        subscription: Subscription,
        store: Store,
        store_id: int,
        *,
        batch_max: int,
    ) -> None:
        self._subscription = subscription
        self._store = store
        self._store_id = str(store_id)
        self._batch_max = batch_max
        self._properties: dict[str, Any] = {
            "fetch.queue.backoff.ms": 10,  # a full local queue is looked at again so soon: the default costs throughput
            "topic.metadata.refresh.interval.ms": 10_000,  # how soon new topics and partitions are seen
            **clients,
            "group.id": settings.group,
            "group.protocol": settings.group_protocol,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "allow.auto.create.topics": False,
            "statistics.interval.ms": _STATISTICS_MS,
            "error_cb": self._on_error,
            "stats_cb": self._on_statistics,
            "log_level": 0,  # what it has to say comes as errors, too
        }
        if settings.group_protocol == "classic":  # with the other one these are the broker's
            session_ms = int(settings.session_timeout_s * 1000)
            self._properties |= {
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": session_ms,
                "heartbeat.interval.ms": max(session_ms // 3, 1),
            }
        self._clients = {**clients, "log_level": 0}
        self._admin: AdminClient | None = None
        self._consumer: Consumer | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="kafka", daemon=True)
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._handed: deque[Handed | BaseException] = deque()
        self._arrived = asyncio.Event()
        self._room = threading.Semaphore(1)
        """One hand-over may wait to be taken."""
        self._idle = threading.Event()
        """All that was handed on has been dealt with."""
        self._idle.set()
        self._stopping = False
        self._paused = False
        self._kept: list[Message] = []
        """What came while the partitions were being paused."""
        self._asked: deque[Callable[[], None]] = deque()
        self._dealt: dict[tuple[str, int], int] = {}
        self._committed_at = 0.0
        self._complaints: dict[str, float] = {}
        self.trouble = "Kafka has not answered yet"
        """What is the matter with Kafka; empty if it is well."""
        self.lag: Mapping[str, int] = {}
        """Records behind the position, by topic."""

    # the event loop's side

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """Leave the group. What was handed on is not waited for."""
        self._stopping = True
        self._room.release()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    async def items(self) -> AsyncIterator[Handed]:
        """What is handed on, in order; each has been dealt with when the next is asked for. Raises what the thread has
        died of."""
        while True:
            while not self._handed:
                self._idle.set()
                self._arrived.clear()
                await self._arrived.wait()
            item = self._handed.popleft()
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, list):
                self._room.release()
            yield item

    def dealt(self, batch: Batch) -> None:
        """This batch's records have been dealt with: the group may know."""
        self._dealt[batch.partition.topic, batch.partition.number] = batch.position + 1

    def begin_again(self, topic: str) -> None:
        """The topic was made again: read its partitions from where the store says by now."""
        self._asked.append(partial(self._begin_again, topic))

    def _put(self, item: Handed | BaseException) -> None:
        self._idle.clear()
        self._handed.append(item)
        self._loop.call_soon_threadsafe(self._arrived.set)

    # the thread

    def _run(self) -> None:
        try:
            self._admin = AdminClient(self._clients)
            consumer = self._consumer = Consumer(self._properties)
            consumer.subscribe(
                self._subscription.topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            try:
                while not self._stopping:
                    self._step(consumer)
            finally:
                consumer.close()
        except BaseException as e:  # the loop's side raises it
            self._put(e)

    def _step(self, consumer: Consumer) -> None:
        messages = self._kept or self._poll(consumer, _POLL_S)
        self._kept = []
        while self._asked:
            self._asked.popleft()()
        if messages and (batches := self._batches(messages)):
            self._until_room(consumer)
            self._put(batches)
        self._commit(consumer)

    def _poll(self, consumer: Consumer, timeout_s: float) -> list[Message]:
        """Wait for a record, and take what else is there: this has both the latency and the batches."""
        first = consumer.poll(timeout_s)
        return [] if first is None else [first, *consumer.consume(self._batch_max - 1, 0)]

    def _until_room(self, consumer: Consumer) -> None:
        """Wait until what was handed on before has been taken; keep polling if that takes long."""
        if self._room.acquire(timeout=PAUSE_AFTER_S):
            return
        _log.info("reading is paused: the engine is busy with what it has")
        self._paused = True
        consumer.pause(consumer.assignment())
        try:
            while not self._room.acquire(timeout=_KEEP_S):
                self._kept += self._poll(consumer, 0)
        finally:
            self._paused = False
            consumer.resume(consumer.assignment())

    def _batches(self, messages: Sequence[Message]) -> list[Batch]:
        """Records by partition, in order. What is not a record is dealt with here."""
        groups: defaultdict[tuple[str, int], list[Message]] = defaultdict(list)
        for message in messages:
            if message.error() is None:
                groups[message.topic(), message.partition()].append(message)  # type: ignore[index]
            else:
                self._on_message_error(message)
        return [batch for key, group in groups.items() if (batch := self._batch(key, group)) is not None]

    def _batch(self, key: tuple[str, int], messages: list[Message]) -> Batch | None:
        partition = self._partitions.get(key)
        if partition is None:  # given up while it was on its way
            return None
        reading = self._subscription[key[0]]
        while True:
            try:
                values, refused = reading.records.values(messages)
                break
            except Unavailable as e:
                self._complain("registry", str(e))
                if self._stopping:
                    return None
                time.sleep(_AGAIN_S)
        self._complaints.pop("registry", None)
        offsets = [message.offset() for message in messages]
        return Batch(partition, values, offsets, offsets[-1], reading.decoder, refused)  # type: ignore[arg-type]

    def _commit(self, consumer: Consumer) -> None:
        """Tell the group how far we are, for lag tools. It may fail: the truth is in the store."""
        now = time.monotonic()
        if not self._dealt or now - self._committed_at < _COMMIT_S:
            return
        dealt, self._dealt = self._dealt, {}
        offsets = [self._mark(*key, offset) for key, offset in dealt.items() if key in self._partitions]
        self._committed_at = now
        if offsets:
            try:
                consumer.commit(offsets=offsets, asynchronous=True)
            except KafkaException as e:
                _log.debug("offsets not committed: %s", e)

    def _mark(self, topic: str, number: int, offset: int) -> TopicPartition:
        return TopicPartition(topic, number, offset, self._store_id)

    # partitions come and go (called in `poll`)

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        taken = self._insist(lambda: self._take(consumer, assigned))
        if not taken:
            return
        reached("claimed")
        self._partitions.update({(p.topic, p.number): p for p, _ in taken})
        self._put(Assigned([partition for partition, _ in taken]))
        offsets = [self._mark(p.topic, p.number, position + 1) for p, position in taken]
        consumer.incremental_assign(offsets)
        if self._paused:
            consumer.pause(offsets)
        self._dealt.update({(p.topic, p.number): position + 1 for p, position in taken})
        _log.info("%d partitions are ours: %s", len(taken), _shown(taken))
        self._complaints.clear()

    def _take(self, consumer: Consumer, assigned: Sequence[TopicPartition]) -> list[tuple[Partition, int]]:
        """Take partitions in the store, with what Kafka says of them. Raises KafkaException, Unavailable."""
        if not assigned:
            return []
        self._check_group(consumer, assigned)
        wanted: defaultdict[str, list[int]] = defaultdict(list)
        for partition in assigned:
            wanted[partition.topic].append(partition.partition)
        known = self._ask(self._store.transact(partial(_places, topics=list(wanted))))
        topics = places.describe(self._client, wanted)
        findings = [places.find(self._client, topics[t], known[t], self._subscription[t].start) for t in wanted]
        return self._ask(self._store.transact(partial(places.take, findings=findings, wanted=wanted), durable=True))

    def _check_group(self, consumer: Consumer, assigned: Sequence[TopicPartition]) -> None:
        """Raise InvalidConfig if the group belongs to another store: each would see only a part of the events."""
        for committed in consumer.committed(list(assigned), timeout=places.ANSWER_S):
            if committed.metadata and committed.metadata != self._store_id:
                raise InvalidConfig(
                    f"the consumer group is used by another Eventmill server with a store of its own ({committed.topic}"
                    f"/{committed.partition}): give this one a backbone.group of its own. If the other one is gone for"
                    " good, delete the group (kafka-consumer-groups.sh --delete), then this one begins where [[topics]]"
                    " says"
                )

    def _on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        if not self._stopping:
            self._idle.wait(IN_HAND_S)
            self._committed_at = 0
            self._commit(consumer)
        self._give_up(consumer, revoked)
        _log.info("%d partitions are given up", len(revoked))

    def _on_lost(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        self._give_up(consumer, lost)
        _log.warning(
            "Kafka has taken %d partitions away: this server was not heard of in time. They are taken up again",
            len(lost),
        )

    def _give_up(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for p in partitions:
            self._partitions.pop((p.topic, p.partition), None)
            self._dealt.pop((p.topic, p.partition), None)
        consumer.incremental_unassign(partitions)

    # the log under our position is another one

    def _begin_again(self, topic: str) -> None:
        """Take the topic's partitions anew: what Kafka says of it is looked at again."""
        ours = [TopicPartition(t, n) for t, n in self._partitions if t == topic]
        if ours and self._consumer is not None:
            self._give_up(self._consumer, ours)
            self._on_assign(self._consumer, ours)

    def _on_no_such_offset(self, topic: str, number: int) -> None:
        """Our position is not in the log: its retention was faster than we, or it was cut, or it is a new one."""
        partition = self._partitions.get((topic, number))
        if partition is None or self._consumer is None:
            return
        known = self._ask(self._store.transact(partial(_places, topics=[topic])))[topic][number]
        topics = self._insist(lambda: places.describe(self._client, [topic]))
        if topics and topics[topic].id == known.topic_id:
            before = self._insist(lambda: places.beginning(self._client, topic, number))
            if before is None:
                return
            if before > known.position:
                _log.error(
                    "%s/%d: records %d to %d were deleted by Kafka before they were read: lengthen the topic's"
                    " retention (retention.ms, retention.bytes), or make the server faster. Reading goes on at %d",
                    topic, number, known.position + 1, before, before + 1,
                )  # fmt: skip
            else:
                _log.error(
                    "%s/%d: the log ends before our position %d: Kafka has lost records that it had acknowledged (an"
                    " unclean leader election?). It is read again from its beginning; what was dealt with is"
                    " recognised",
                    topic, number, known.position,
                )  # fmt: skip
            self._ask(self._store.transact(partial(Tx.move, topic=topic, number=number, position=before,
                                                   topic_id=known.topic_id)))  # fmt: skip
        self._begin_again(topic)

    # what goes wrong

    def _on_message_error(self, message: Message) -> None:
        error = message.error()
        assert error is not None
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            self._on_no_such_offset(str(message.topic()), int(message.partition() or 0))
        elif error.fatal():
            raise KafkaException(error)
        else:
            self._complain(f"{error.name()} {message.topic() or ''}", f"{message.topic() or 'Kafka'}: {explain(error)}")

    def _on_error(self, error: KafkaError) -> None:
        """What is the matter with the connection; librdkafka goes on trying."""
        self.trouble = explain(error)
        self._complain(error.name(), self.trouble)

    def _complain(self, what: str, text: str) -> None:
        """Log something that may go on for long, now and then."""
        now = time.monotonic()
        if now - self._complaints.get(what, -_COMPLAIN_S) >= _COMPLAIN_S:
            self._complaints[what] = now
            _log.error("%s", text)

    def _on_statistics(self, text: str) -> None:
        """librdkafka's numbers (its STATISTICS.md): whether a broker is there, and how far behind we are."""
        numbers = json.loads(text)
        if any(broker["state"] == "UP" for broker in numbers["brokers"].values()):
            if self.trouble:
                _log.info("Kafka answers")
                self._complaints.clear()
            self.trouble = ""
        self.lag = {
            name: sum(max(p["consumer_lag"], 0) for p in topic["partitions"].values())
            for name, topic in numbers["topics"].items()
        }

    def _insist(self, call: Callable[[], T]) -> T | None:
        """Try until it can be had; None if the thread is to end."""
        while not self._stopping:
            try:
                return call()
            except KafkaException as e:
                self._complain("places", explain(e.args[0]))
            except Unavailable as e:
                self._complain("store", str(e))
            time.sleep(_AGAIN_S)
        return None

    def _ask(self, work: Coroutine[Any, Any, T]) -> T:
        """Have something done on the event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @property
    def _client(self) -> AdminClient:
        assert self._admin is not None
        return self._admin


def _places(tx: Tx, topics: Sequence[str]) -> dict[str, dict[int, Place]]:
    return {topic: tx.places(topic) for topic in topics}


def _shown(taken: Sequence[tuple[Partition, int]]) -> str:
    most = ", ".join(f"{p.topic}/{p.number} from {position + 1}" for p, position in taken[:8])
    return most + (", …" if len(taken) > 8 else "")
