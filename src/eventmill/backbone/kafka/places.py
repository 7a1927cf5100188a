"""Where reading begins: what the store knows of a topic's partitions against what Kafka says of them.

Positions are those of the store: the offset of the last record that was dealt with. Kafka decides where there is none
(a topic never seen before, a partition that was added), and where ours means nothing any more (a topic that was deleted
and made again has another id; its records are all new). The calls wait for Kafka: for the reader's own thread.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from confluent_kafka import TopicCollection, TopicPartition
from confluent_kafka.admin import OffsetSpec as _OffsetSpec  # type: ignore[attr-defined]

from eventmill.backbone.base import Partition
from eventmill.store import Place, Tx

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

OffsetSpec: Any = _OffsetSpec  # has no types
_log = logging.getLogger(__name__)

ANSWER_S = 20.0
"""How long Kafka may take for an answer; then it is asked again."""


@dataclass(slots=True)
class Topic:
    """A topic as Kafka has it: its id, and its partitions' numbers."""

    name: str
    id: str
    numbers: Sequence[int]


@dataclass(slots=True)
class Finding:
    """What is to be written about a topic's partitions before they are taken (number → position)."""

    topic: Topic
    new: dict[int, int] = field(default_factory=dict)
    moved: dict[int, int] = field(default_factory=dict)


def describe(admin: AdminClient, names: Collection[str]) -> dict[str, Topic]:
    """The topics that are there. Raises KafkaException."""
    found = {}
    for name, future in admin.describe_topics(TopicCollection(list(names)), request_timeout=ANSWER_S).items():
        description = future.result()
        found[name] = Topic(name, str(description.topic_id), [p.id for p in description.partitions])
    return found


def find(admin: AdminClient, topic: Topic, known: Mapping[int, Place], start: str) -> Finding:
    """What is new about a topic. Raises KafkaException."""
    finding = Finding(topic)
    if not known:
        finding.new = _before(admin, topic.name, topic.numbers, start)
        return finding
    if added := [number for number in topic.numbers if number not in known]:
        _log.info("topic %s has %d more partitions: they are read from their beginning", topic.name, len(added))
        finding.new = _before(admin, topic.name, added, "earliest")
    others = [n for n in topic.numbers if n in known and known[n].topic_id not in ("", topic.id)]
    if others:
        _log.warning(
            "topic %s was deleted and made again: it is read from its beginning. What was in it before and had not been"
            " read (behind offsets %s) is gone",
            topic.name,
            ", ".join(f"{n}: {known[n].position}" for n in others[:10]),
        )
        finding.moved = _before(admin, topic.name, others, "earliest")
    return finding


def beginning(admin: AdminClient, topic: str, number: int) -> int:
    """The position before a partition's first record. Raises KafkaException."""
    return _before(admin, topic, [number], "earliest")[number]


def _before(admin: AdminClient, topic: str, numbers: Sequence[int], start: str) -> dict[int, int]:
    """The positions before the first record that is wanted: of all, of those to come, or from a time on."""
    offsets = _offsets(admin, topic, numbers, _spec(start))
    if none := [number for number, offset in offsets.items() if offset < 0]:  # nothing so late
        offsets |= _offsets(admin, topic, none, OffsetSpec.latest())
    return {number: offset - 1 for number, offset in offsets.items()}


def _offsets(admin: AdminClient, topic: str, numbers: Sequence[int], spec: Any) -> dict[int, int]:
    wanted = {TopicPartition(topic, number): spec for number in numbers}
    answers = admin.list_offsets(wanted, request_timeout=ANSWER_S)
    return {partition.partition: future.result().offset for partition, future in answers.items()}


def _spec(start: str) -> Any:
    if start == "earliest":
        return OffsetSpec.earliest()
    if start == "latest":
        return OffsetSpec.latest()
    return OffsetSpec.for_timestamp(int(datetime.fromisoformat(start).timestamp() * 1000))


def take(tx: Tx, findings: Sequence[Finding], wanted: Mapping[str, Sequence[int]]) -> list[tuple[Partition, int]]:
    """Write down what was found, and take these partitions: each with its position."""
    for finding in findings:
        tx.note_partitions(finding.topic.name, finding.topic.id, finding.new)
        for number, position in finding.moved.items():
            tx.move(finding.topic.name, number, position, finding.topic.id)
    return [tx.claim_partition(topic, n, start=-1) for topic, numbers in wanted.items() for n in numbers]
