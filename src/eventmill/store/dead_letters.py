"""What could not be dealt with, kept with all that is needed to replay it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, delete, insert, select

from eventmill.store import schema


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """`kind`: record (no decoder understood it), activation (all attempts failed), throttled, loop, interrupted,
    unknown (a job of which nobody knows how it ended). `record`: the raw bytes from
    the log. `seq` is 0 until it is stored."""

    kind: str
    reason: str
    time: int
    namespace: str | None = None
    activation: str | None = None
    rule: str | None = None
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    record: bytes | None = None
    detail: Mapping[str, Any] | None = None
    seq: int = 0


class DeadLetters:
    """Dead letters, in one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def insert(self, letters: Sequence[DeadLetter]) -> None:
        if letters:
            self._connection.execute(insert(schema.dead_letters), [_values(letter) for letter in letters])

    def get(self, seq: int) -> DeadLetter | None:
        t = schema.dead_letters
        row = self._connection.execute(select(t).where(t.c.seq == seq)).first()
        return None if row is None else _letter(row)

    def newest(
        self, namespace: str | None = None, *, kind: str | None = None, limit: int = 200, skip: int = 0
    ) -> list[DeadLetter]:
        """Newest first. A namespace sees its own; None sees all, records of no namespace among them."""
        t = schema.dead_letters
        query = select(t).order_by(t.c.seq.desc()).limit(limit).offset(skip)
        if namespace is not None:
            query = query.where(t.c.namespace == namespace)
        if kind is not None:
            query = query.where(t.c.kind == kind)
        return [_letter(row) for row in self._connection.execute(query)]

    def drop(self, seq: int) -> bool:
        t = schema.dead_letters
        return self._connection.execute(delete(t).where(t.c.seq == seq)).rowcount > 0

    def drop_of(self, activation: str) -> None:
        """Those of an activation that is tried again, as the elements of a large map are."""
        self._connection.exec_driver_sql(
            "DELETE FROM dead_letters WHERE activation=? AND activation IS NOT NULL", (bytes.fromhex(activation),)
        )

    def forget(self, before_ms: int) -> int:
        t = schema.dead_letters
        return self._connection.execute(delete(t).where(t.c.time < before_ms)).rowcount


def _values(d: DeadLetter) -> dict[str, Any]:
    return {
        "time": d.time, "kind": d.kind, "namespace": d.namespace, "reason": d.reason, "rule": d.rule, "topic": d.topic,
        "activation": None if d.activation is None else bytes.fromhex(d.activation), "partition": d.partition,
        "offset": d.offset, "record": d.record, "detail": None if d.detail is None else orjson.dumps(d.detail),
    }  # fmt: skip


def _letter(row: Any) -> DeadLetter:
    return DeadLetter(
        seq=row.seq, time=row.time, kind=row.kind, namespace=row.namespace, reason=row.reason, rule=row.rule,
        activation=None if row.activation is None else row.activation.hex(), topic=row.topic, partition=row.partition,
        offset=row.offset, record=row.record, detail=None if row.detail is None else orjson.loads(row.detail),
    )  # fmt: skip
