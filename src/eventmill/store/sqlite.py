"""The store in one SQLite file (WAL).

One connection writes, on the event loop: a batch of rows costs less than handing it to a thread. Commits are
`synchronous=NORMAL`: they are in the WAL, which survives the death of the process. Durability against a power cut is
one `fdatasync` of the WAL (`sync`), shared by all who wait at that moment (group commit): it covers every commit
before it, so that a slow disk delays those who asked for it, and nobody else (a quick one the loop waits for itself
where it has nothing else to do: `sync`). Checkpoints run on a connection of their own in a thread. If syncing fails the
store refuses everything from then on: what the disk holds is not known.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import NullPool

from eventmill.errors import InvalidConfig, Unavailable
from eventmill.store.base import Store, Tx
from eventmill.store.schema import migrate
from eventmill.store.sync import Sync
from eventmill.store.wal import Wal

_log = logging.getLogger(__name__)
T = TypeVar("T")


class SqliteStore(Store):
    """Open with `SqliteStore.open(path)`, inside a running event loop. One process at a time has it open."""

    def __init__(self, path: Path, connection: Connection) -> None:
        self._connection = connection
        self._driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
        self._transaction = _Transaction(self._driver)
        self._readers = _engine(path)
        self._wal = Wal(path, self._driver)
        self._sync = Sync(self._wal.file)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="store")
        self.on_emit: Callable[[], None] = lambda: None
        """Called after each commit that put events into the log."""
        self.on_change: Callable[[], None] = lambda: None
        """Called after each commit that changed an entity."""

    @classmethod
    def open(cls, path: Path) -> SqliteStore:
        """Open or create; bring older tables up to date. Raises InvalidConfig if that can't be done."""
        path = path.resolve()  # where SQLite has the WAL, too, if it is a link
        for file in (path, Path(f"{path}-wal")):
            _as_on_disk(file)
        try:
            connection = _engine(path).connect()
            with _Transaction(connection.connection.driver_connection):  # type: ignore[arg-type]
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
        try:
            with self._transaction:
                result = work(tx)
        except (OperationalError, sqlite3.OperationalError) as e:
            if (cause := _passing(e)) is None:
                raise
            raise Unavailable(f"the store can't be written: {cause}") from e
        if tx.emitted:
            self.on_emit()
        if tx.entities.changed:
            self.version += 1
            self.on_change()
        self._wal.consider()
        if durable:
            await self.durable()
        return result

    async def read(self, query: Callable[[Tx], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, query)

    def _read(self, query: Callable[[Tx], T]) -> T:
        with self._readers.connect() as connection:
            connection.exec_driver_sql("BEGIN")  # all of its queries see the same commit
            return query(Tx(connection))

    def code(self, digest: str) -> bytes:
        return self._read(lambda tx: tx.entities.code(digest))

    @property
    def writable(self) -> bool:
        return self._sync.works

    def synced(self, *, is_busy: bool = True) -> asyncio.Future[None]:
        return self._sync.ask(is_busy=is_busy or self._wal.is_writing_back)

    def close(self) -> None:
        self._threads.shutdown()
        self._sync.close()
        self._wal.stop()
        self._connection.close()
        self._connection.engine.dispose()
        self._readers.dispose()
        self._wal.close()


def _as_on_disk(file: Path) -> None:
    """See to it that what is read of a file is on the disk. After a write that has failed the page cache shows what the
    disk does not have, and its error is told once only, perhaps to a server that has ended since (Rebello and others,
    "Can Applications Recover from fsync Failures?", ATC 2020). Raises InvalidConfig."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as e:
        raise InvalidConfig(f"can't open the store {file}: {e.strerror}") from e
    try:
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as e:
        raise InvalidConfig(f"the disk of the store {file} fails: {e.strerror}") from e
    finally:
        os.close(fd)


_PASSING = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_NOMEM)


def _passing(error: OperationalError | sqlite3.OperationalError) -> BaseException | None:
    """What is the matter, if it is a state that passes, as a full disk is: the caller may try again."""
    cause = error.orig if isinstance(error, OperationalError) else error  # through SQLAlchemy, or from the driver
    return cause if getattr(cause, "sqlite_errorcode", 0) & 0xFF in _PASSING else None


class _Transaction:
    """At driver level: a tenth of what SQLAlchemy's own bookkeeping costs. It takes its lock at once, so that it can't
    fail half-way because somebody was quicker."""

    def __init__(self, driver: sqlite3.Connection) -> None:
        self._driver = driver

    def __enter__(self) -> None:
        self._driver.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._driver.execute("COMMIT")
        finally:
            if self._driver.in_transaction:
                self._driver.execute("ROLLBACK")


def _engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",  # transactions are begun and ended by `_Transaction`
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

    return engine
