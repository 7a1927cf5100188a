"""The contract of the store: one `transact`, in which everything that belongs together is written together.

Nothing else in the system commits. `Tx` is what a transaction's work may do; it is the same for every database.
"""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from sqlalchemy import Connection, delete, insert, select

from eventmill.backbone.base import Partition
from eventmill.errors import LostPartition
from eventmill.store import schema
from eventmill.store.activations import Activations
from eventmill.store.dead_letters import DeadLetters
from eventmill.store.entities import Entities
from eventmill.store.keys import Keys

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """A partition's row: up to where it has been dealt with, in which topic of that name (Kafka's id), and whose."""

    position: int
    topic_id: str
    epoch: int


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

    def last_record(self) -> int:
        """The offset of the newest record; 0 without any."""
        return int(self._driver.execute('SELECT coalesce(max("offset"), 0) FROM log').fetchone()[0])

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

    def id(self) -> int:
        """This store's own number, made with it: by which others recognise it."""
        return int(self._driver.execute("SELECT value FROM meta WHERE key='id'").fetchone()[0])

    def claim_partition(self, topic: str, number: int, *, start: int) -> tuple[Partition, int]:
        """Take a partition: its epoch grows, so that whoever had it before can write nothing more. Returns it with its
        position; a partition never seen before begins at `start`."""
        self.note_partitions(topic, "", {number: start})
        id, epoch, position = self._driver.execute(
            "UPDATE partitions SET epoch=epoch+1 WHERE topic=? AND number=? RETURNING id, epoch, position",
            (topic, number),
        ).fetchone()
        return Partition(id, topic, number, epoch), position

    def note_partitions(self, topic: str, topic_id: str, positions: Mapping[int, int]) -> None:
        """Partitions (number → position) that are to be known from now on; those that are known stay as they are."""
        self._driver.executemany(
            "INSERT OR IGNORE INTO partitions (topic, number, epoch, position, topic_id) VALUES (?, ?, 0, ?, ?)",
            [(topic, number, position, topic_id) for number, position in positions.items()],
        )

    def places(self, topic: str) -> dict[int, Place]:
        """What is known of a topic's partitions, by their number."""
        rows = self._driver.execute("SELECT number, position, topic_id, epoch FROM partitions WHERE topic=?", (topic,))
        return {number: Place(position, topic_id, epoch) for number, position, topic_id, epoch in rows}

    def topics(self) -> dict[str, list[int]]:
        """All topics that have ever been read, with their partitions' numbers."""
        found: dict[str, list[int]] = {}
        for topic, number in self._driver.execute("SELECT topic, number FROM partitions ORDER BY topic, number"):
            found.setdefault(topic, []).append(number)
        return found

    def move(self, topic: str, number: int, position: int, topic_id: str) -> None:
        """Set a partition's position, whatever it was: the log under it is another one. Its owner's term ends."""
        self._driver.execute(
            "UPDATE partitions SET position=?, topic_id=?, epoch=epoch+1 WHERE topic=? AND number=?",
            (position, topic_id, topic, number),
        )

    def position(self, partition: Partition) -> int:
        """Up to which offset its records have been dealt with."""
        row = self._driver.execute("SELECT position FROM partitions WHERE id=?", (partition.id,)).fetchone()
        return int(row[0])

    def hold(self, partitions: Collection[Partition]) -> None:
        """Raise LostPartition unless all of these are still in this owner's term: nothing is written then. What this
        transaction asks for of what is to be done is from now on about these partitions only."""
        epochs = dict(self._driver.execute("SELECT id, epoch FROM partitions").fetchall())
        for partition in partitions:
            if epochs.get(partition.id) != partition.epoch:
                raise LostPartition(partition)
        self.activations.only({partition.id for partition in partitions})

    def advance(self, partition: Partition, position: int) -> None:
        """The log has been dealt with up to here, which is never behind where it was: only `move` does that, and it
        ends the term. Raises LostPartition like `hold`."""
        result = self._driver.execute(
            "UPDATE partitions SET position=? WHERE id=? AND epoch=? AND position<=?",
            (position, partition.id, partition.epoch, position),
        )
        if result.rowcount != 1:
            self.hold([partition])
            raise AssertionError(
                f"{partition.topic}/{partition.number}: records up to {position} come again in one term, though it is"
                f" at {self.position(partition)}"
            )

    # state of sources

    def source_state(self, name: str) -> Any:
        t = schema.source_state
        value = self._connection.execute(select(t.c.value).where(t.c.name == name)).scalar_one_or_none()
        return None if value is None else orjson.loads(value)

    def set_source_state(self, name: str, value: Any) -> None:
        self.set_source_states({name: value})

    def source_states(self, prefix: str) -> dict[str, Any]:
        """All values whose names begin with this, by what follows it."""
        t = schema.source_state
        rows = self._connection.execute(select(t).where(t.c.name.startswith(prefix, autoescape=True)))
        return {row.name[len(prefix) :]: orjson.loads(row.value) for row in rows}

    def set_source_states(self, values: Mapping[str, Any]) -> None:
        """Replace these values; None: there is none any more."""
        t = schema.source_state
        self._connection.execute(delete(t).where(t.c.name.in_(values)))
        rows = [{"name": name, "value": orjson.dumps(value)} for name, value in values.items() if value is not None]
        if rows:
            self._connection.execute(insert(t), rows)


class Store(ABC):
    """Entities, activations, ledger, dead letters and positions."""

    version: int = 0
    """Another number after each change of an entity: what is derived from them may be kept as long as it stays."""

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

    @property
    @abstractmethod
    def writable(self) -> bool:
        """False: nothing will be written any more (closed, or the disk has failed)."""

    @abstractmethod
    def synced(self, *, is_busy: bool = True) -> asyncio.Future[None]:
        """Done when everything committed so far is durable; with Unavailable if that can't be. Not `is_busy`: the loop
        has nothing better to do than to wait for a quick disk."""

    async def durable(self) -> None:
        """Return when everything committed so far is durable. Raises Unavailable."""
        await self.synced()

    @abstractmethod
    def close(self) -> None:
        """Let go of the database."""
