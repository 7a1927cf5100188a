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
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from eventmill.backbone.base import Assigned, Batch, Partition
from eventmill.backbone.complaints import Complaints
from eventmill.backbone.kafka import places
from eventmill.backbone.kafka.client import Properties, explain, is_no_topic
from eventmill.backbone.kafka.subscription import FIRST_LOOK, Subscription
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
QUEUE_KB = 16 << 10
"""Records that librdkafka fetches ahead, of all partitions together. A hand-over is at most as large, and three may be
about: one in this thread, one handed over, one with the engine."""
_COMMIT_S = 1.0
_LAST_S = 3.0
_AGAIN_S = 2.0
_ANSWERS_S = 15.0
"""The longest that Kafka is asked about topics at one go: the group waits meanwhile."""
_STATISTICS_MS = 5_000
_NOT_YET = "Kafka has not answered yet"

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
        batch_bytes: int,
    ) -> None:
        self._subscription = subscription
        self._store = store
        self._store_id = str(store_id)
        self._batch_max = batch_max
        self._batch_bytes = batch_bytes
        self._properties: dict[str, Any] = {
            "queued.max.messages.kbytes": QUEUE_KB,
            # one answer of a broker, which may come on top of a full queue; librdkafka wants it no smaller than that
            "fetch.max.bytes": max(QUEUE_KB << 10, int(clients.get("message.max.bytes", 0))),
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
        self._topics: list[str] = []
        """What is to be read, and"""
        self._subscribed: list[str] = []
        """what the group knows of it."""
        self._granted: set[Key] = set()
        """What the group has given us."""
        self._partitions: dict[Key, Partition] = {}
        """What we have taken of it, and read."""
        self._doubtful: set[Key] = set()
        """Our positions in these are not in the log."""
        self._aside: dict[Key, tuple[int, float]] = {}
        """Partitions of ours that are not read for now: from which offset they go on, and when."""
        self._unread: dict[Key, str] = {}
        """Why partitions that the group has given us are not read."""
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
        self._complaints = Complaints(_log)
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
        """This batch's records have been dealt with: the group may know. Of one whose term has ended nobody knows."""
        key = batch.partition.topic, batch.partition.number
        if self._partitions.get(key) is batch.partition:
            self._dealt[key] = batch.position + 1

    def numbers(self, topic: str) -> list[int]:
        """The partitions of this topic that are read here."""
        return [number for of, number in list(self._partitions) if of == topic]

    @property
    def unread(self) -> str:
        """How many of the partitions that the group has given us are not read, and why; empty if all are."""
        granted, reasons = list(self._granted), dict(self._unread)
        unread = sorted(key for key in granted if key in reasons or key not in self._partitions)
        if not unread:
            return ""
        why = next((f": {topic}/{n}: {reasons[topic, n]}" for topic, n in unread if (topic, n) in reasons), "")
        return f"{len(unread)} of {len(granted)} partitions are not read{why}"

    def subscribe(self, topics: Collection[str]) -> None:
        """Read these topics from now on, and no others."""
        self._topics = sorted(topics)
        self._asked.append(self._subscribe)

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
            try:
                while not self._stopping:
                    self._step(consumer)
                self._commit_last(consumer)
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
        self._go_on(consumer)
        messages = self._kept or self._poll(consumer, _POLL_S)
        self._kept = []
        if messages and (batches := self._batches(consumer, messages)):
            self._until_room(consumer)
            self._put(batches)
        self._commit(consumer)

    def _subscribe(self, consumer: Consumer) -> None:
        if self._topics != self._subscribed:
            self._subscribed = self._topics
            consumer.subscribe(
                self._subscribed, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )

    def _poll(self, consumer: Consumer, timeout_s: float) -> list[Message]:
        """Wait for a record, and take what else is there: this has both the latency and the batches. All of it was read
        in the terms that its partitions have when this returns."""
        first = consumer.poll(timeout_s)
        if first is None:
            return []
        key = _key(first)
        term = self._partitions.get(key)
        more = consumer.consume(_AT_ONCE - 1, 0)  # in which partitions may go, and come again; of these it drops itself
        return more if self._partitions.get(key) is not term else [first, *more]

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
            while True:
                came = self._poll(consumer, 0)  # in which partitions may go, with what is kept of them
                self._kept += came
                if is_over():
                    break
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
        return [batch for of, group in found for batch in self._read(consumer, of, group)]

    def _read(self, consumer: Consumer, partition: Partition, messages: Sequence[Message]) -> Iterator[Batch]:
        """The records of one partition as batches. Where the schema registry has no answer, it alone waits."""
        key, reading = (partition.topic, partition.number), self._subscription[partition.topic]
        done = 0
        while done < len(messages) and not self._stopping:
            part = messages[done : self._end(messages, done)]
            try:
                values, refused = reading.records.values(part)
            except Unavailable as e:
                self._complaints.say("registry", str(e))
                if self._partitions.get(key) is partition:
                    self._put_aside(consumer, key, messages[done].offset() or 0, str(e))
                return
            offsets: list[int] = [message.offset() for message in part[: len(values)]]  # type: ignore[misc]
            yield Batch(partition, values, offsets, offsets[-1], reading.decoder, refused)
            done += len(values)
            if self._unread.pop(key, None):
                self._complaints.over("registry")
            if len(values) < len(part):  # it takes long
                self._hold(consumer, lambda: True)

    def _end(self, messages: Sequence[Message], start: int) -> int:
        """Up to where messages make one batch: one at least."""
        end = min(start + self._batch_max, len(messages))
        size = 0
        for index in range(start, end):
            size += len(messages[index])
            if size > self._batch_bytes and index > start:
                return index
        return end

    def _put_aside(self, consumer: Consumer, key: Key, offset: int, why: str) -> None:
        """Read a partition that stays ours no more for now, and then from this offset on."""
        self._unread[key] = why
        self._aside[key] = offset, time.monotonic() + _AGAIN_S
        self._kept = [message for message in self._kept if _key(message) != key]
        consumer.incremental_unassign([TopicPartition(*key)])

    def _go_on(self, consumer: Consumer) -> None:
        """With the partitions that were put aside for long enough."""
        now = time.monotonic()
        if due := {key: offset for key, (offset, until) in self._aside.items() if until <= now}:
            for key in due:
                del self._aside[key]
            consumer.incremental_assign([self._mark(key, offset) for key, offset in due.items()])

    def _commit(self, consumer: Consumer, *, at_once: bool = False) -> None:
        """Tell the group how far we are, for lag tools. It may fail: the truth is in the store."""
        now = time.monotonic()
        if not self._dealt or (now - self._committed_at < _COMMIT_S and not at_once):
            return
        dealt, self._dealt = self._dealt, {}
        offsets = [self._mark(key, offset) for key, offset in dealt.items() if key in self._partitions]
        self._committed_at = now
        if offsets:
            try:
                consumer.commit(offsets=offsets, asynchronous=True)
            except KafkaException as e:
                _log.debug("offsets not committed: %s", e)

    def _commit_last(self, consumer: Consumer) -> None:
        """Closing waits for what is committed, however long that takes: so only if the group can be reached."""
        last = [TopicPartition(*key) for key in self._dealt if key in self._partitions]
        try:
            if last:
                consumer.committed(last, timeout=_LAST_S)
                offsets = [self._mark((p.topic, p.partition), self._dealt[p.topic, p.partition]) for p in last]
                consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as e:
            _log.debug("the last offsets are not committed: %s", e)

    def _mark(self, key: Key, offset: int) -> TopicPartition:
        return TopicPartition(*key, offset, self._store_id)

    # partitions come and go

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        self._well()
        for partition in assigned:
            if self._subscription.get(partition.topic) is not None:
                self._granted.add((partition.topic, partition.partition))
            else:
                _log.error("%s: no row of [[topics]] is for this topic: it is not read", partition.topic)
        self._take_up(consumer)

    def _take_up(self, consumer: Consumer) -> None:
        """Take what the group has given us, and read it. What can't be had now is tried again: the rest is read."""
        taken: list[tuple[Partition, int]] = []
        try:
            taken = self._take(consumer, self._granted - self._partitions.keys())
        except KafkaException as e:
            self._complaints.say(e.args[0].name(), explain(e.args[0]))
        except Unavailable as e:
            self._complaints.say("store", str(e))
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
            self._unread.pop(key, None)
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
        known, first = self._ask(self._store.transact(partial(_known, topics=list(wanted))))
        until = time.monotonic() + _ANSWERS_S
        # those that there was trouble with come last, so that they hold nobody up
        topics = sorted(wanted, key=lambda topic: (topic, wanted[topic][0]) in self._unread)
        findings = [
            found
            for topic in topics
            if time.monotonic() < until and (found := self._find(topic, known[topic], wanted[topic], first))
        ]
        return self._ask(self._store.transact(partial(places.take, findings=findings), durable=True))

    def _find(
        self, topic: str, known: Mapping[int, Place], numbers: Sequence[int], first: Mapping[str, Collection[str]]
    ) -> places.Finding | None:
        """What Kafka says of partitions of a topic; None if it doesn't, which concerns this topic alone."""
        start = self._subscription[topic].begins(topic, first)
        doubtful = [number for number in numbers if (topic, number) in self._doubtful]
        try:
            return places.find(self._client, topic, known, numbers, doubtful, start)
        except KafkaException as e:
            error: KafkaError = e.args[0]
            self._complaints.say(f"{error.name()} {topic}", f"{topic}: {explain(error)}")
            self._unread.update({(topic, number): explain(error) for number in numbers})
            return None

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
            self._commit(consumer, at_once=True)
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
        for key in keys:
            self._unread.pop(key, None)
        self._give_up(consumer, keys)

    def _give_up(self, consumer: Consumer, keys: Collection[Key]) -> None:
        """Read these no more; those that the group leaves us are taken up again."""
        ours = {key for key in keys if self._partitions.pop(key, None) is not None}
        for key in ours:
            self._dealt.pop(key, None)
            self._unread.pop(key, None)
        self._kept = [message for message in self._kept if _key(message) not in ours]
        left = [TopicPartition(*key) for key in ours if not self._aside.pop(key, None)]
        if self._paused:
            consumer.resume(left)  # a partition that went while it was paused would still be when it comes back
        consumer.incremental_unassign(left)
        self._taken_at = 0

    # the log under our position is another one

    def _begin_again(self, topic: str, consumer: Consumer) -> None:
        self._give_up(consumer, [key for key in self._partitions if key[0] == topic])

    # what goes wrong

    def _on_message_error(self, consumer: Consumer, message: Message) -> None:
        error, key = message.error(), _key(message)
        assert error is not None
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            if key in self._partitions:
                self._doubtful.add(key)
                self._give_up(consumer, [key])
        elif error.fatal() or error.code() == KafkaError._FATAL:
            raise KafkaException(error)
        elif not is_no_topic(error):  # the audit tells of these
            self._complaints.say(f"{error.name()} {key[0]}", f"{key[0] or 'Kafka'}: {explain(error)}")

    def _on_error(self, error: KafkaError) -> None:
        """What is the matter with the connection; librdkafka goes on trying."""
        if is_no_topic(error):
            return
        text = explain(error)
        is_vague = error.code() == KafkaError._ALL_BROKERS_DOWN  # why that is may have been said before
        if error.code() != KafkaError._TRANSPORT and (not is_vague or self.trouble in ("", _NOT_YET)):
            self.trouble = text
        self._complaints.say(error.name(), text)

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
            self._complaints.over()
        self.trouble = ""

    def _ask(self, work: Coroutine[Any, Any, T]) -> T:
        """Have something done on the event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    @property
    def _client(self) -> AdminClient:
        assert self._admin is not None
        return self._admin


def _key(message: Message) -> Key:
    return message.topic() or "", message.partition() or 0


def _known(tx: Tx, topics: Sequence[str]) -> tuple[dict[str, dict[int, Place]], dict[str, list[str]]]:
    """The topics' partitions, and what rows found at their first look."""
    return {topic: tx.places(topic) for topic in topics}, tx.source_state(FIRST_LOOK) or {}


def _shown(taken: Sequence[tuple[Partition, int]]) -> str:
    most = ", ".join(f"{p.topic}/{p.number} from {position + 1}" for p, position in taken[:8])
    return most + (", …" if len(taken) > 8 else "")
