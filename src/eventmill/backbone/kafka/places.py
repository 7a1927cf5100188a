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

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AclOperation  # type: ignore[attr-defined]
from confluent_kafka.admin import OffsetSpec as _OffsetSpec  # type: ignore[attr-defined]

from eventmill.backbone.base import Partition
from eventmill.store import Place, Tx

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

OffsetSpec: Any = _OffsetSpec  # has no types
_log = logging.getLogger(__name__)

ANSWER_S = 5.0
"""How long Kafka may take for an answer; then it is asked again."""


@dataclass(slots=True)
class Topic:
    """A topic as Kafka has it: its id, its partitions' numbers, and whether our account may read it."""

    name: str
    id: str
    numbers: Sequence[int]
    is_ours_to_read: bool = True


@dataclass(slots=True)
class Finding:
    """What is to be written about a topic's partitions (number → position) before some of them are taken."""

    topic: Topic
    numbers: Sequence[int]
    """Those that are to be taken."""
    new: dict[int, int] = field(default_factory=dict)
    moved: dict[int, int] = field(default_factory=dict)


def looked_at(admin: AdminClient, names: Collection[str]) -> dict[str, Topic | KafkaError]:
    """Topics as they are now, or why nothing can be said of them. Raises KafkaException."""
    answers = admin.describe_topics(
        TopicCollection(list(names)), request_timeout=ANSWER_S, include_authorized_operations=True
    )
    found: dict[str, Topic | KafkaError] = {}
    for name, answer in answers.items():
        try:
            described = answer.result()
        except KafkaException as e:
            found[name] = e.args[0]
            continue
        allowed = described.authorized_operations  # none: not told
        is_ours = allowed is None or AclOperation.READ in allowed
        found[name] = Topic(name, str(described.topic_id), [p.id for p in described.partitions], is_ours)
    return found


def describe(admin: AdminClient, name: str) -> Topic:
    """The topic as it is now. Raises KafkaException, also if it isn't there."""
    topic = looked_at(admin, [name])[name]
    if isinstance(topic, KafkaError):
        raise KafkaException(topic)
    return topic


def find(
    admin: AdminClient,
    name: str,
    known: Mapping[int, Place],
    numbers: Collection[int],
    doubtful: Collection[int],
    start: str,
) -> Finding:
    """What is new about these partitions of a topic, of which the doubtful ones don't have our position any more.
    Raises KafkaException."""
    topic = describe(admin, name)
    finding = Finding(topic, [number for number in numbers if number in topic.numbers])
    if not known:
        finding.new = _before(admin, name, topic.numbers, start)
        return finding
    if added := [number for number in topic.numbers if number not in known]:
        _log.info("topic %s has %d more partitions: they are read from their beginning", name, len(added))
        finding.new = _before(admin, name, added, "earliest")
    others = [n for n in finding.numbers if n in known and known[n].topic_id not in ("", topic.id)]
    if others:
        _log.warning(
            "topic %s was deleted and made again: it is read from its beginning. What was in it before and had not been"
            " read (behind offsets %s) is gone",
            name,
            ", ".join(f"{n}: {known[n].position}" for n in others[:10]),
        )
        finding.moved = _before(admin, name, others, "earliest")
    same = [number for number in doubtful if number in known and number not in others]
    if same:
        _judge(finding, known, _before(admin, name, same, "earliest"), _before(admin, name, same, "latest"))
    return finding


def _judge(finding: Finding, known: Mapping[int, Place], first: Mapping[int, int], last: Mapping[int, int]) -> None:
    """Move the positions of these partitions that are not within the log (between what is before its first record, and
    its last one): that there was an error about one may be of an earlier time."""
    for number, before in first.items():
        position = known[number].position
        if not before <= position <= last[number]:
            _explain_jump(finding.topic.name, number, position, before)
            finding.moved[number] = before


def _explain_jump(topic: str, number: int, position: int, before: int) -> None:
    """Our position is not in the log: its retention was faster than we, or it was cut."""
    if before > position:
        _log.error(
            "%s/%d: records %d to %d were deleted by Kafka before they were read: lengthen the topic's retention"
            " (retention.ms, retention.bytes), or make the server faster. Reading goes on at %d",
            topic, number, position + 1, before, before + 1,
        )  # fmt: skip
    else:
        _log.error(
            "%s/%d: the log ends before our position %d: Kafka has lost records that it had acknowledged (an unclean"
            " leader election, a lost disk?): see unclean.leader.election.enable and min.insync.replicas. It is read"
            " again from its beginning; what was dealt with is recognised",
            topic, number, position,
        )  # fmt: skip


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


def take(tx: Tx, findings: Sequence[Finding]) -> list[tuple[Partition, int]]:
    """Write down what was found, and take these partitions: each with its position."""
    for finding in findings:
        tx.note_partitions(finding.topic.name, finding.topic.id, finding.new)
        for number, position in finding.moved.items():
            tx.move(finding.topic.name, number, position, finding.topic.id)
    return [tx.claim_partition(f.topic.name, n, start=-1) for f in findings for n in f.numbers]
