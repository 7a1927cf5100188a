"""The contract of the store: one `transact`, in which everything that belongs together is written together.

Nothing else in the system commits. `Tx` is what a transaction's work may do; it is the same for every database.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import orjson
from sqlalchemy import Connection, and_, delete, insert, select, update

from eventmill.backbone.base import Partition
from eventmill.errors import LostPartition
from eventmill.store import schema
from eventmill.store.activations import Activations
from eventmill.store.dead_letters import DeadLetters
from eventmill.store.entities import Entities
from eventmill.store.keys import Keys

T = TypeVar("T")


class Tx:
    """One transaction. Valid only inside the work that it was given to."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
        self.activations = Activations(connection, self._driver)
        self.entities = Entities(connection, self._driver)
        self.dead_letters = DeadLetters(connection)
        self.keys = Keys(connection)
        self.emitted = 0
        """Events put into the log by this transaction."""

    # the log

    def emit(self, values: Sequence[bytes], now_ms: int) -> None:
        """Append events (JSON) to the log, atomically with everything else in this transaction."""
        if values:
            self._driver.executemany("INSERT INTO log (time, value) VALUES (?, ?)", [(now_ms, v) for v in values])
            self.emitted += len(values)

    def records(self, after: int, limit: int, bytes_max: int) -> tuple[list[int], list[bytes]]:
        """Offsets and values of the records behind this offset: at most `limit`, and no more than fit into `bytes_max`,
        but at least one if there is any."""
        offsets: list[int] = []
        values: list[bytes] = []
        size = 0
        for offset, value in self._driver.execute(
            'SELECT "offset", value FROM log WHERE "offset">? ORDER BY "offset" LIMIT ?', (after, limit)
        ):
            size += len(value)
            if values and size > bytes_max:
                break
            offsets.append(offset)
            values.append(value)
        return offsets, values

    def old_records(self, before_ms: int, bytes_max: int, position: int, limit: int) -> int | None:
        """The offset below which records may go: dealt with (up to `position`) and too old, or the oldest ones while
        the log is larger than `bytes_max`; at most `limit` of them, and never the newest. None if none may."""
        low, high, size = self._driver.execute(
            'SELECT min("offset"), max("offset"), sum(length(value)) FROM log'
        ).fetchone()
        if low is None:
            return None
        surplus, end = size - bytes_max, low
        for offset, length, time in self._driver.execute(
            'SELECT "offset", length(value), time FROM log WHERE "offset"<=? AND "offset"<? ORDER BY "offset" LIMIT ?',
            (position, high, limit),
        ):
            if surplus <= 0 and time >= before_ms:
                break
            surplus, end = surplus - length, offset + 1
        return end if end > low else None

    def forget_records(self, end: int) -> int:
        """Delete the records below this offset. Returns how many."""
        return self._driver.execute('DELETE FROM log WHERE "offset"<?', (end,)).rowcount

    # partitions

    def claim_partition(self, topic: str, number: int, start: int) -> tuple[Partition, int]:
        """Take a partition: its epoch grows, so that whoever had it before can write nothing more. Returns it with its
        position; a partition never seen before begins at `start`."""
        t = schema.partitions
        row = self._connection.execute(select(t).where(and_(t.c.topic == topic, t.c.number == number))).first()
        if row is None:
            values = {"topic": topic, "number": number, "epoch": 1, "position": start}
            id = self._connection.execute(insert(t).values(**values).returning(t.c.id)).scalar_one()
            return Partition(id, topic, number, 1), start
        self._connection.execute(update(t).where(t.c.id == row.id).values(epoch=row.epoch + 1))
        return Partition(row.id, topic, number, row.epoch + 1), row.position

    def position(self, partition: Partition) -> int:
        """Up to which offset its records have been dealt with."""
        row = self._driver.execute("SELECT position FROM partitions WHERE id=?", (partition.id,)).fetchone()
        return int(row[0])

    def hold(self, partition: Partition) -> None:
        """Raise LostPartition unless the partition is still in this owner's term: nothing is written then."""
        row = self._driver.execute("SELECT epoch FROM partitions WHERE id=?", (partition.id,)).fetchone()
        if row is None or row[0] != partition.epoch:
            raise LostPartition(f"{partition.topic}/{partition.number} has another owner now")

    def advance(self, partition: Partition, position: int) -> None:
        """The log has been dealt with up to here. Raises LostPartition like `hold`."""
        result = self._driver.execute(
            "UPDATE partitions SET position=? WHERE id=? AND epoch=?", (position, partition.id, partition.epoch)
        )
        if result.rowcount != 1:
            raise LostPartition(f"{partition.topic}/{partition.number} has another owner now")

    # state of sources

    def source_state(self, name: str) -> Any:
        t = schema.source_state
        value = self._connection.execute(select(t.c.value).where(t.c.name == name)).scalar_one_or_none()
        return None if value is None else orjson.loads(value)

    def set_source_state(self, name: str, value: Any) -> None:
        t = schema.source_state
        self._connection.execute(delete(t).where(t.c.name == name))
        self._connection.execute(insert(t).values(name=name, value=orjson.dumps(value)))


class Store(ABC):
    """Entities, activations, ledger, dead letters and positions."""

    @abstractmethod
    async def transact(self, work: Callable[[Tx], T], *, durable: bool = False) -> T:
        """Run `work` in one transaction and commit it; roll back if it raises.

        `durable`: return only when a power cut can't take the commit back (what the outside relies on: an accepted
        event, a job's handle, an answer). Without it a killed process loses nothing, and a power cut only what the log
        brings again. Raises Unavailable if the disk is full.
        """

    @abstractmethod
    async def read(self, query: Callable[[Tx], T]) -> T:
        """Run a query that may take long beside the transactions; it sees what is committed and writes nothing."""

    @abstractmethod
    def code(self, digest: str) -> bytes:
        """A piece of code, at once (executors ask for it once per worker or job). Raises NotFound."""

    @abstractmethod
    async def durable(self) -> None:
        """Return when everything committed so far is durable."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the database."""
