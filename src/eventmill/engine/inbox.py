"""What has come since the last turn. Lists go in from all sides; one turn takes everything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from eventmill.backbone import Batch
from eventmill.engine.turn import Turn
from eventmill.errors import EventmillError
from eventmill.executors import Report


@dataclass(slots=True)
class Request:
    """Something that somebody asks of a turn; the future gets the answer when the turn is committed."""

    ask: Callable[[Turn], Any]
    future: asyncio.Future[Any]
    answer: Any = None
    refused: EventmillError | None = None

    def run(self, turn: Turn) -> None:
        try:
            self.answer = self.ask(turn)
        except EventmillError as e:
            self.refused = e

    def settle(self) -> None:
        if not self.future.done():
            self.future.set_exception(self.refused) if self.refused else self.future.set_result(self.answer)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(slots=True)
class Work:
    """The lists of one turn."""

    batches: list[tuple[Batch, asyncio.Future[None]]] = field(default_factory=list)
    reports: list[tuple[str, list[Report]]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)


class Inbox:
    """One taker."""

    def __init__(self) -> None:
        self._work = Work()
        self._arrived = asyncio.Event()
        self._closed = False

    async def batch(self, batch: Batch) -> None:
        """Put a batch; returns when it has been dealt with, so that a reader is never more than one batch ahead."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._work.batches.append((batch, done))
        self._arrived.set()
        await done

    def reports(self, executor: str, reports: list[Report]) -> None:
        self._work.reports.append((executor, reports))
        self._arrived.set()

    def request(self, ask: Callable[[Turn], Any]) -> asyncio.Future[Any]:
        """Ask something of the next turn."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._work.requests.append(Request(ask, future))
        self._arrived.set()
        return future

    def wake(self) -> None:
        """A turn is wanted, though nothing has come (a due time)."""
        self._arrived.set()

    def close(self) -> None:
        self._closed = True
        self._arrived.set()

    async def take(self) -> Work | None:
        """All that has come, as soon as there is something; None when the inbox is closed."""
        await self._arrived.wait()
        self._arrived.clear()
        work, self._work = self._work, Work()
        return None if self._closed and not (work.reports or work.requests) else work
