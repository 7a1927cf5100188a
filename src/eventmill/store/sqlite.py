"""The store in one SQLite file (WAL).

One connection writes, on the event loop: a batch of rows costs less than handing it to a thread. Commits are
`synchronous=NORMAL`: they are in the WAL, which survives the death of the process. Durability against a power cut is
one `fdatasync` of the WAL in a thread, shared by all who wait at that moment (group commit): it covers every commit
before it, so that a slow disk delays those who asked for it, and nobody else. Checkpoints run on a connection of
their own in a thread. If syncing fails the store refuses everything from then on: what the disk holds is not known.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import NullPool

from eventmill.errors import InvalidConfig, Unavailable
from eventmill.store.base import Store, Tx
from eventmill.store.schema import migrate

_log = logging.getLogger(__name__)
T = TypeVar("T")

_CHECKPOINT_BYTES = 16 << 20
"""A WAL of this size is written back into the database, beside the transactions."""
_WAL_BYTES_MAX = 256 << 20
"""A WAL of this size (readers or an endless load kept it from starting over) is written back while all else waits."""


class SqliteStore(Store):
    """Open with `SqliteStore.open(path)`, inside a running event loop. One process at a time has it open."""

    def __init__(self, path: Path, connection: Connection) -> None:
        self._connection = connection
        self._readers = _engine(path, "DEFERRED")
        self._wal = os.open(f"{path}-wal", os.O_RDONLY)
        self._sync = _Sync(self._wal)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="store")
        self._checkpoint: asyncio.Future[None] | None = None
        self.on_emit: Callable[[], None] = lambda: None
        """Called after each commit that put events into the log."""
        self.on_change: Callable[[], None] = lambda: None
        """Called after each commit that changed an entity."""

    @classmethod
    def open(cls, path: Path) -> SqliteStore:
        """Open or create; bring older tables up to date. Raises InvalidConfig if that can't be done."""
        try:
            # a transaction that will write takes its lock at once: it can't fail half-way because somebody was quicker
            connection = _engine(path, "IMMEDIATE").connect()
            with connection.begin():
                migrate(connection)
        except DatabaseError as e:
            raise InvalidConfig(f"can't open the store {path}: {e.orig}") from e
        directory = os.open(path.parent, os.O_RDONLY)  # the WAL's own name must survive a power cut, too
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return cls(path, connection)

    async def transact(self, work: Callable[[Tx], T], *, durable: bool = False) -> T:
        self._sync.check()
        tx = Tx(self._connection)
        with _full_disk(), self._connection.begin():
            result = work(tx)
        if tx.emitted:
            self.on_emit()
        if tx.entities.changed:
            self.on_change()
        self._maybe_checkpoint()
        if durable:
            await self._sync.wait()
        return result

    async def read(self, query: Callable[[Tx], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, query)

    def _read(self, query: Callable[[Tx], T]) -> T:
        with self._readers.connect() as connection:
            return query(Tx(connection))

    def code(self, digest: str) -> bytes:
        return self._read(lambda tx: tx.entities.code(digest))

    async def durable(self) -> None:
        await self._sync.wait()

    def close(self) -> None:
        self._threads.shutdown()
        self._sync.close()
        self._connection.close()
        self._connection.engine.dispose()
        self._readers.dispose()
        os.close(self._wal)

    # checkpoints

    def _maybe_checkpoint(self) -> None:
        size = os.fstat(self._wal).st_size
        if size < _CHECKPOINT_BYTES:
            return
        if size > _WAL_BYTES_MAX:
            _write_back(self._readers, "TRUNCATE")
        elif self._checkpoint is None or self._checkpoint.done():
            loop = asyncio.get_running_loop()
            self._checkpoint = loop.run_in_executor(self._threads, _write_back, self._readers, "PASSIVE")


def _write_back(engine: Engine, mode: str) -> None:
    """Copy the WAL into the database (outside any transaction, so past SQLAlchemy)."""
    raw = engine.raw_connection()
    try:
        raw.cursor().execute(f"PRAGMA wal_checkpoint({mode})")
    finally:
        raw.close()


class _Sync:
    """Makes commits durable: one fdatasync at a time, for all who have asked before it began."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._waiting: list[asyncio.Future[None]] = []
        self._running = False
        self._broken: OSError | None = None

    def check(self) -> None:
        if self._broken is not None:
            raise Unavailable(f"the store's disk failed ({self._broken}): restart the server when it is mended")

    async def wait(self) -> None:
        self.check()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        if not self._running:
            self._begin(loop)
        await future

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._running = True
        waiting, self._waiting = self._waiting, []
        sync = loop.run_in_executor(self._thread, os.fdatasync, self._fd)
        sync.add_done_callback(lambda done: self._end(done, waiting, loop))

    def _end(
        self, done: asyncio.Future[None], waiting: list[asyncio.Future[None]], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._running = False
        error = done.exception()
        if isinstance(error, OSError):
            self._broken = error
        for future in waiting:
            if not future.done():
                future.set_result(None) if error is None else future.set_exception(Unavailable(f"disk: {error}"))
        if self._waiting:
            self._begin(loop)

    def close(self) -> None:
        self._thread.shutdown()


@contextlib.contextmanager
def _full_disk() -> Iterator[None]:
    """A full disk is a state that passes: the caller may try again."""
    try:
        yield
    except (OperationalError, sqlite3.OperationalError) as e:  # through SQLAlchemy, or from the driver
        cause = e.orig if isinstance(e, OperationalError) else e
        if getattr(cause, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise Unavailable(f"the store can't be written: {cause}") from e
        raise


def _engine(path: Path, begin: str) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=NullPool,
        connect_args={"isolation_level": None, "check_same_thread": False, "timeout": 30},
    )

    @event.listens_for(engine, "connect")
    def _pragmas(connection: sqlite3.Connection, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "wal_autocheckpoint=0",
            "cache_size=-16384",
            "temp_store=MEMORY",
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"BEGIN {begin}")

    return engine
