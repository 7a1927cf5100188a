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
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from eventmill.backbone.base import Assigned, Batch, Partition
from eventmill.backbone.kafka import places
from eventmill.backbone.kafka.client import Properties, explain
from eventmill.backbone.kafka.subscription import Subscription
from eventmill.config import Backbone
from eventmill.errors import EventmillError, InvalidConfig, Unavailable
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
_AT_ONCE = 8000
"""Records in one hand-over: in fewer, this thread and the engine's would mostly wait for the interpreter's lock."""
_COMMIT_S = 1.0
_AGAIN_S = 2.0
_COMPLAIN_S = 300.0
_STATISTICS_MS = 5_000
_NOT_YET = "Kafka has not answered yet"
_NO_TOPIC = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
"""Topics that are missing are told by the backbone's audit."""

Handed = Assigned | list[Batch]
Key = tuple[str, int]
"""A partition as Kafka names it: topic and number."""


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
            "statistics.interval.ms": _STATISTICS_MS,
            **clients,
            "group.id": settings.group,
            "group.protocol": settings.group_protocol,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "allow.auto.create.topics": False,
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
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="kafka", daemon=True)
        self._granted: set[Key] = set()
        """What the group has given us."""
        self._partitions: dict[Key, Partition] = {}
        """What we have taken of it, and read."""
        self._doubtful: set[Key] = set()
        """Our positions in these are not in the log."""
        self._taken_at = 0.0
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
        self._asked: deque[Callable[[Consumer], None]] = deque()
        self._dealt: dict[Key, int] = {}
        self._committed_at = 0.0
        self._complaints: dict[str, float] = {}
        self.trouble = _NOT_YET
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

    def numbers(self, topic: str) -> list[int]:
        """The partitions of this topic that are read here."""
        return [number for of, number in list(self._partitions) if of == topic]

    def begin_again(self, topic: str) -> None:
        """The topic was made again: take its partitions anew, from where they begin by now."""
        self._asked.append(partial(self._begin_again, topic))

    def fail(self, error: BaseException) -> None:
        """Let `items` raise this."""
        self._put(error)

    def _put(self, item: Handed | BaseException) -> None:
        self._idle.clear()
        self._handed.append(item)
        self._loop.call_soon_threadsafe(self._arrived.set)

    # the thread

    def _run(self) -> None:
        try:
            self._admin = AdminClient(self._clients)
            consumer = Consumer(self._properties)
            consumer.subscribe(
                self._subscription.topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            try:
                while not self._stopping:
                    self._step(consumer)
            finally:
                consumer.close()
        except KafkaException as e:
            self._put(EventmillError(f"reading from Kafka has ended: {explain(e.args[0])}"))
        except BaseException as e:  # the loop's side raises it
            self._put(e)

    def _step(self, consumer: Consumer) -> None:
        while self._asked:
            self._asked.popleft()(consumer)
        if len(self._partitions) < len(self._granted) and time.monotonic() >= self._taken_at + _AGAIN_S:
            self._take_up(consumer)
        messages = self._kept or self._poll(consumer, _POLL_S)
        self._kept = []
        if messages and (batches := self._batches(consumer, messages)):
            self._until_room(consumer)
            self._put(batches)
        self._commit(consumer)

    def _poll(self, consumer: Consumer, timeout_s: float) -> list[Message]:
        """Wait for a record, and take what else is there: this has both the latency and the batches."""
        first = consumer.poll(timeout_s)
        return [] if first is None else [first, *consumer.consume(_AT_ONCE - 1, 0)]

    def _until_room(self, consumer: Consumer) -> None:
        """Wait until what was handed on before has been taken; keep polling if that takes long."""
        if not self._room.acquire(timeout=PAUSE_AFTER_S):
            _log.info("reading is paused: the engine is busy with what it has")
            self._hold(consumer, lambda: self._room.acquire(timeout=_KEEP_S))

    def _hold(self, consumer: Consumer, is_over: Callable[[], bool]) -> None:
        """Wait for something with the partitions paused, and polling going on, so that the group keeps us."""
        self._paused = True
        consumer.pause(consumer.assignment())
        try:
            while not is_over():
                came = self._poll(consumer, 0)  # in which partitions may go, with what is kept of them
                self._kept += came
        finally:
            self._paused = False
            consumer.resume(consumer.assignment())

    def _batches(self, consumer: Consumer, messages: Sequence[Message]) -> list[Batch]:
        """Records by partition, in order. What is not a record is dealt with here."""
        groups: defaultdict[Key, list[Message]] = defaultdict(list)
        errors = []
        for message in messages:
            if message.error() is None:
                groups[message.topic(), message.partition()].append(message)  # type: ignore[index]
            else:
                errors.append(message)
        # in the terms in which they were read: from here on partitions may come and go
        found = [(partition, group) for key, group in groups.items() if (partition := self._partitions.get(key))]
        for message in errors:
            self._on_message_error(consumer, message)
        most = self._batch_max
        parts = ((of, group[i : i + most]) for of, group in found for i in range(0, len(group), most))
        return [batch for of, part in parts if (batch := self._batch(consumer, of, part)) is not None]

    def _batch(self, consumer: Consumer, partition: Partition, messages: list[Message]) -> Batch | None:
        """None if the thread is to end."""
        reading = self._subscription[partition.topic]
        while True:
            try:
                values, refused = reading.records.values(messages)
                break
            except Unavailable as e:
                self._complain("registry", str(e))
            if self._stopping:
                return None
            self._hold(consumer, partial(self._is_time, time.monotonic() + _AGAIN_S))
        self._complaints.pop("registry", None)
        offsets = [message.offset() for message in messages]
        return Batch(partition, values, offsets, offsets[-1], reading.decoder, refused)  # type: ignore[arg-type]

    def _is_time(self, then: float) -> bool:
        time.sleep(_KEEP_S)
        return self._stopping or time.monotonic() >= then

    def _commit(self, consumer: Consumer) -> None:
        """Tell the group how far we are, for lag tools. It may fail: the truth is in the store."""
        now = time.monotonic()
        if not self._dealt or now - self._committed_at < _COMMIT_S:
            return
        dealt, self._dealt = self._dealt, {}
        offsets = [self._mark(key, offset) for key, offset in dealt.items() if key in self._partitions]
        self._committed_at = now
        if offsets:
            try:
                consumer.commit(offsets=offsets, asynchronous=True)
            except KafkaException as e:
                _log.debug("offsets not committed: %s", e)

    def _mark(self, key: Key, offset: int) -> TopicPartition:
        return TopicPartition(*key, offset, self._store_id)

    # partitions come and go

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        self._well()
        self._granted.update((p.topic, p.partition) for p in assigned)
        self._take_up(consumer)

    def _take_up(self, consumer: Consumer) -> None:
        """Take what the group has given us, and read it. What can't be had now is tried again: the rest is read."""
        taken: list[tuple[Partition, int]] = []
        try:
            taken = self._take(consumer, self._granted - self._partitions.keys())
        except KafkaException as e:
            self._complain(e.args[0].name(), explain(e.args[0]))
        except Unavailable as e:
            self._complain("store", str(e))
        self._taken_at = time.monotonic()
        offsets = []
        if taken:
            reached("claimed")
            self._put(Assigned([partition for partition, _ in taken]))
            _log.info("%d partitions are ours: %s", len(taken), _shown(taken))
        for partition, position in taken:
            key = partition.topic, partition.number
            self._partitions[key], self._dealt[key] = partition, position + 1
            self._doubtful.discard(key)
            offsets.append(self._mark(key, position + 1))
        consumer.incremental_assign(offsets)  # also when there is nothing: it answers the group
        if self._paused:
            consumer.pause(offsets)

    def _take(self, consumer: Consumer, keys: Collection[Key]) -> list[tuple[Partition, int]]:
        """Take partitions in the store, with what Kafka says of them. Raises KafkaException, Unavailable, and
        InvalidConfig if they are another store's."""
        if not keys:
            return []
        self._check_group(consumer, [TopicPartition(*key) for key in keys])
        wanted: defaultdict[str, list[int]] = defaultdict(list)
        for topic, number in sorted(keys):
            wanted[topic].append(number)
        known = self._ask(self._store.transact(partial(_places, topics=list(wanted))))
        findings = []
        for topic, numbers in wanted.items():
            doubtful = [number for number in numbers if (topic, number) in self._doubtful]
            try:
                findings.append(
                    places.find(self._client, topic, known[topic], numbers, doubtful, self._subscription[topic].start)
                )
            except KafkaException as e:
                error: KafkaError = e.args[0]
                if error.code() < 0:  # not an answer about this topic, but none
                    raise
                self._complain(f"{error.name()} {topic}", f"{topic}: {explain(error)}")
        return self._ask(self._store.transact(partial(places.take, findings=findings), durable=True))

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
        self._let_go(consumer, revoked)
        _log.info("%d partitions are given up", len(revoked))

    def _on_lost(self, consumer: Consumer, lost: list[TopicPartition]) -> None:
        self._let_go(consumer, lost)
        _log.warning(
            "Kafka has taken %d partitions away: this server was not heard of in time (was it suspended, or the machine"
            " overloaded?), or their topic is gone. What there is of them is taken up again",
            len(lost),
        )

    def _let_go(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> None:
        keys = [(p.topic, p.partition) for p in partitions]
        self._granted.difference_update(keys)
        self._doubtful.difference_update(keys)
        self._give_up(consumer, keys)

    def _give_up(self, consumer: Consumer, keys: Collection[Key]) -> None:
        """Read these no more; those that the group leaves us are taken up again."""
        ours = [key for key in keys if self._partitions.pop(key, None) is not None]
        for key in ours:
            self._dealt.pop(key, None)
        self._kept = [m for m in self._kept if m.error() is not None or (m.topic(), m.partition()) not in ours]
        consumer.incremental_unassign([TopicPartition(*key) for key in ours])
        self._taken_at = 0

    # the log under our position is another one

    def _begin_again(self, topic: str, consumer: Consumer) -> None:
        self._give_up(consumer, [key for key in self._partitions if key[0] == topic])

    # what goes wrong

    def _on_message_error(self, consumer: Consumer, message: Message) -> None:
        error, key = message.error(), (message.topic() or "", message.partition() or 0)
        assert error is not None
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            if key in self._partitions:
                self._doubtful.add(key)
                self._give_up(consumer, [key])
        elif error.fatal() or error.code() == KafkaError._FATAL:
            raise KafkaException(error)
        elif error.code() not in _NO_TOPIC:
            self._complain(f"{error.name()} {key[0]}", f"{key[0] or 'Kafka'}: {explain(error)}")

    def _on_error(self, error: KafkaError) -> None:
        """What is the matter with the connection; librdkafka goes on trying."""
        if error.code() in _NO_TOPIC:
            return
        text = explain(error)
        is_vague = error.code() == KafkaError._ALL_BROKERS_DOWN  # why that is may have been said before
        if error.code() != KafkaError._TRANSPORT and (not is_vague or self.trouble in ("", _NOT_YET)):
            self.trouble = text
        self._complain(error.name(), text)

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
            self._well()
        elif not self.trouble:
            self.trouble = "no broker can be reached"
        self.lag = {
            name: sum(max(p["consumer_lag"], 0) for p in topic["partitions"].values())
            for name, topic in numbers["topics"].items()
        }

    def _well(self) -> None:
        if self.trouble:
            _log.info("Kafka answers")
            self._complaints.clear()
        self.trouble = ""

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
