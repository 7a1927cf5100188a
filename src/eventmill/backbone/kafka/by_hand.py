"""What commands do with a topic, outside of any server: write records into it, and read it.

Reading joins no group and commits nothing, so that it disturbs nobody. Must never make a topic, or leave without having
said what was not acknowledged. All calls wait for Kafka; each object is for one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from eventmill.backbone.kafka import client, places
from eventmill.config import Backbone
from eventmill.errors import Unavailable

T = TypeVar("T")

PATIENCE_S: Final = 30.0
"""How long Kafka may be away before a command gives up."""
COMPLAIN_S: Final = 60.0
BATCH_MAX: Final = 1000
_STEP_S: Final = 0.5
"""The longest wait without a look at Ctrl-C."""


def _called(call: Callable[[], T]) -> T:
    """The result of a call that serves callbacks. A Ctrl-C that comes while one of ours runs is lost in the library,
    which then raises SystemError; nothing else that they do can fail."""
    try:
        return call()
    except SystemError:
        raise KeyboardInterrupt from None


class _Client:
    """The properties of all clients of one command, and what was last the matter with its connections."""

    def __init__(self, backbone: Backbone, topic: str) -> None:
        client.check_properties(backbone)
        self.topic = topic
        self.trouble: KafkaError | None = None
        self.properties: dict[str, Any] = {
            **client.properties(backbone),
            "log_level": 0,  # what it has to say comes as errors, too
            "error_cb": self._on_error,
        }
        self.admin = AdminClient(self.properties)

    def check_topic(self) -> None:
        """Raises Unavailable if the topic isn't there."""
        self.asked(lambda: places.describe(self.admin, self.topic))

    def offsets(self, start: str) -> dict[int, int]:
        """The offset of each partition's first record from `start` on (as in `[[topics]]`). Raises Unavailable."""
        found = self.asked(lambda: places.find(self.admin, self.topic, {}, (), (), start).new)
        return {number: position + 1 for number, position in found.items()}

    def unavailable(self, error: KafkaError) -> Unavailable:
        """The error for people; that there was no answer in time says less than why."""
        if self.trouble is not None and error.code() in (KafkaError._TIMED_OUT, KafkaError._MSG_TIMED_OUT):
            error = self.trouble
        return Unavailable(f"topic {self.topic}: {client.explain(error, is_tried_again=False)}")

    def asked(self, question: Callable[[], T]) -> T:
        """What Kafka answers. Raises Unavailable."""
        try:
            return question()
        except KafkaException as e:
            self.admin.poll(0)  # what was the matter meanwhile
            raise self.unavailable(e.args[0]) from None

    def _on_error(self, error: KafkaError) -> None:
        self.trouble = error


def topics(backbone: Backbone) -> set[str]:
    """Names of all topics that our account may see. Raises InvalidConfig, and Unavailable if no broker answers."""
    asking = _Client(backbone, "(all)")
    return set(asking.asked(lambda: asking.admin.list_topics(timeout=places.ANSWER_S).topics))


class Sender:
    """Writes records into a topic. As a context manager it ends when all have been acknowledged.

    Raises InvalidConfig, and Unavailable where the topic is not there or a record was not acknowledged.
    """

    def __init__(self, backbone: Backbone, topic: str) -> None:
        self._client = _Client(backbone, topic)
        self._client.check_topic()
        timeout = {"delivery.timeout.ms": int(PATIENCE_S * 1000)}
        given = self._client.properties
        self._producer = Producer({**timeout, **given, "enable.idempotence": True, "acks": "all"})
        self._error: KafkaError | None = None
        self.acknowledged = 0

    def send(self, records: Sequence[tuple[bytes | None, bytes]]) -> None:
        """Hand over (key, value) pairs; what has failed by now is raised."""
        for key, value in records:
            while True:
                try:
                    self._producer.produce(self._client.topic, value, key=key, on_delivery=self._report)
                    break
                except BufferError:  # as much is under way as there may be
                    _called(lambda: self._producer.poll(_STEP_S))
                    self._check()
                except KafkaException as e:
                    raise self._client.unavailable(e.args[0]) from None
        _called(lambda: self._producer.poll(0))
        self._check()

    def finish(self) -> None:
        """Wait until all is acknowledged."""
        while _called(lambda: self._producer.flush(_STEP_S)):
            self._check()
        self._check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        else:
            self._producer.purge()

    def _report(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self._error = self._error or error

    def _check(self) -> None:
        if self._error is not None:
            raise self._client.unavailable(self._error)


class Tail:
    """Reads a topic from `start` (as in `[[topics]]`) to where it ends now, or on and on with `follow`.

    `complain` is told what is the matter with Kafka meanwhile. Raises InvalidConfig, Unavailable.
    """

    def __init__(
        self, backbone: Backbone, topic: str, start: str, *, follow: bool, complain: Callable[[str], None]
    ) -> None:
        self._client = _Client(backbone, topic)
        self._follow = follow
        self._complain = complain
        self._told_at = -COMPLAIN_S
        self._properties = {
            "fetch.wait.max.ms": 100,  # that a partition ends here is told after it
            **self._client.properties,
            "group.id": backbone.group,  # the library asks for one; it is not joined
            "group.protocol": "classic",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "allow.auto.create.topics": False,
        }
        self._places = self._client.offsets(start)
        ends = self._client.offsets("latest")
        self._ends: dict[int, float] = {n: float("inf") if follow else end for n, end in ends.items()}
        """Where the partitions that are not done yet end."""

    def messages(self) -> Iterator[list[Message]]:
        """Records as they come, those of one partition in order."""
        self._finish({n for n, end in self._ends.items() if self._places[n] >= end})
        consumer = Consumer(self._properties)
        try:
            consumer.assign([TopicPartition(self._client.topic, n, self._places[n]) for n in self._ends])
            while self._ends:
                if records := self._records(self._next(consumer)):
                    yield records
        finally:
            consumer.close()

    def _next(self, consumer: Consumer) -> list[Message]:
        """What there is, waiting for it. Raises Unavailable if Kafka is away for too long."""
        given_up_at = time.monotonic() + PATIENCE_S
        while (first := _called(lambda: consumer.poll(_STEP_S))) is None:
            if self._follow:
                self._tell()
            elif time.monotonic() > given_up_at:
                raise self._client.unavailable(self._client.trouble or KafkaError(KafkaError._TIMED_OUT))
        return [first, *_called(lambda: consumer.consume(BATCH_MAX - 1, 0))]

    def _tell(self) -> None:
        """Say what is the matter, now and then."""
        trouble, self._client.trouble = self._client.trouble, None
        if trouble is not None and time.monotonic() - self._told_at >= COMPLAIN_S:
            self._told_at = time.monotonic()
            self._complain(client.explain(trouble))

    def _records(self, messages: Sequence[Message]) -> list[Message]:
        """Those that are wanted; which partitions are done is noted."""
        found = []
        for message in messages:
            number, error = message.partition(), message.error()
            assert number is not None
            if error is None:
                offset = message.offset()
                assert offset is not None
                end = self._ends.get(number, 0)
                if offset < end:
                    found.append(message)
                if offset >= end - 1:
                    self._finish({number})
            elif error.code() != KafkaError._PARTITION_EOF:
                raise self._client.unavailable(error)
            elif not self._follow:
                self._finish({number})
        return found

    def _finish(self, numbers: set[int]) -> None:
        for number in numbers:
            self._ends.pop(number, None)
