"""A source that runs, with a real state file, and a place where its events go."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson

from eventmill.config import PathMap
from eventmill.events import PathTable, validate
from eventmill.sdk.event import Event
from eventmill.sources import FileSource

TIMEOUT_S = 30.0


class SqliteState:
    """A SourceState in an SQLite file."""

    def __init__(self, file: Path) -> None:
        self._db = sqlite3.connect(file, isolation_level=None)
        self._db.execute("CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value BLOB)")

    async def get(self, name: str) -> Any | None:
        row = self._db.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return None if row is None else orjson.loads(row[0])

    async def put(self, name: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, orjson.dumps(value)))

    async def get_below(self, prefix: str) -> dict[str, Any]:
        rows = self._db.execute("SELECT name, value FROM state").fetchall()
        return {name.removeprefix(prefix): orjson.loads(value) for name, value in rows if name.startswith(prefix)}

    async def put_all(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if value is None:
                self._db.execute("DELETE FROM state WHERE name = ?", (name,))
            else:
                await self.put(name, value)

    def close(self) -> None:
        self._db.close()


class Sink:
    """Takes events, checks them, and wakes who waits for them. While `gate` is cleared it takes none."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lists = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._came = asyncio.Condition()

    async def emit(self, events: Sequence[Event]) -> None:
        await self.gate.wait()
        assert events
        assert len({event.id for event in events}) == len(events)
        async with self._came:
            self.events += [validate(event) for event in events]
            self.lists += 1
            self._came.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S), self._came:
            await self._came.wait_for(condition)

    async def until_subjects(self, subjects: Iterable[object]) -> None:
        """Until there were events of all of these."""
        wanted = {str(subject) for subject in subjects}
        try:
            await self.until(lambda: wanted <= self.subjects)
        except TimeoutError:
            missing = sorted(wanted - self.subjects)
            raise AssertionError(f"{len(missing)} never came: {missing[:5]}") from None

    @property
    def subjects(self) -> set[str]:
        return {str(event.subject) for event in self.events}


class Running(Sink):
    """A file source under way."""

    source: FileSource
    root: Path

    async def caught_up(self) -> None:
        """Until everything done in the tree before now has been announced."""
        marker = self.root / f"marker-{len(list(self.root.glob('marker-*')))}"
        marker.write_text("x")
        await self.until_subjects([marker])

    def names(self) -> list[str]:
        """Names below the root of the files that were announced, sorted, without the markers."""
        subjects = {str(event.subject).removeprefix(f"{self.root}/") for event in self.events}
        return sorted(name for name in subjects if not name.startswith("marker-"))


@contextlib.asynccontextmanager
async def running(
    root: Path, state_file: Path, *, start: Literal["new", "all"] = "new", rows: Sequence[PathMap] = ()
) -> AsyncIterator[Running]:
    """A file source that runs; if its root is there, it has looked through it."""
    state = SqliteState(state_file)
    sink = Running()
    sink.root = root
    sink.source = FileSource(root, sink.emit, state, PathTable(rows), start=start)
    task = asyncio.create_task(sink.source.run())
    try:
        if root.is_dir():
            ready = asyncio.create_task(sink.source.ready.wait())
            await asyncio.wait([task, ready], timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
        if not task.done():
            yield sink
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        state.close()
