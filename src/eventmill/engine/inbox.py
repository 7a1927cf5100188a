"""What has come since the last turn. Lists go in from all sides; one turn takes everything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from eventmill.backbone import Batch
from eventmill.engine.turn import Turn
from eventmill.errors import EventmillError
from eventmill.executors import Report

_PASSES_MAX = 16


class Refused(Exception):
    """A request that a turn has refused, perhaps half-way: the turn has to be done again without it."""

    def __init__(self, request: Request, error: EventmillError) -> None:
        super().__init__(str(error))
        self.request = request
        self.error = error


@dataclass(slots=True, eq=False)
class Request:
    """Something that somebody asks of a turn; the future gets the answer when the turn is committed."""

    ask: Callable[[Turn], Any]
    future: asyncio.Future[Any]
    own: bool = False
    """The engine's own: it is never refused, but waits."""
    needs_store: bool = False
    """It has been tried without a transaction."""
    answer: Any = None
    refused: EventmillError | None = None

    def run(self, turn: Turn) -> None:
        """Raises Refused if the answer is no, but the turn has changed something already."""
        version, self.refused = turn.version, None
        try:
            self.answer = self.ask(turn)
        except EventmillError as e:
            if turn.version != version:
                raise Refused(self, e) from e
            self.refused = e

    def settle(self) -> None:
        if self.refused is not None:
            self.refuse(self.refused)
        elif not self.future.done():
            self.future.set_result(self.answer)

    def refuse(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(slots=True)
class Work:
    """The lists of one turn."""

    batches: list[Batch] = field(default_factory=list)
    reports: list[tuple[str, list[Report]]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def __len__(self) -> int:
        records = sum(len(batch.values) for batch in self.batches)
        return records + sum(len(reports) for _, reports in self.reports) + len(self.requests)

    def singles(self) -> Iterator[Work]:
        """The same, one thing at a time, in an order in which it could have come."""
        for executor, reports in self.reports:
            for report in reports:
                yield Work(reports=[(executor, [report])])
        for request in self.requests:
            yield Work(requests=[request])
        for batch in self.batches:
            for offset, value in zip(batch.offsets, batch.values, strict=True):
                yield Work(batches=[replace(batch, values=[value], offsets=[offset], position=offset)])


class Inbox:
    """One taker. `is_crowded`: whether there are several whose calls or reports may come at the same time."""

    def __init__(self, is_crowded: Callable[[], bool] = lambda: True) -> None:
        self._is_crowded = is_crowded
        self._work = Work()
        self._done: list[asyncio.Future[None]] = []
        self._arrived = asyncio.Event()
        self._arrivals = 0
        self._waits = False
        self._busy: asyncio.Future[None] | None = None
        self._held: list[tuple[str, list[Report]]] = []
        self.closed = False

    async def batch(self, batch: Batch) -> None:
        """Put a batch; returns when it has been taken and dealt with, so that a reader is never more than one ahead."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._work.batches.append(batch)
        self._done.append(done)
        self._arrive()
        await done

    def hold(self, busy: asyncio.Future[None]) -> None:
        """The disk is busy until then: reports that can wait are for one turn after it."""
        if self._busy is None:
            self._busy = busy
            busy.add_done_callback(self._free)

    def reports(self, executor: str, reports: list[Report], *, can_wait: bool = False) -> None:
        self._held.append((executor, reports))
        if self._busy is None or not can_wait or self.closed:
            self._let_go()  # those that have come before, too: nothing ends before it has begun

    def _free(self, busy: asyncio.Future[None]) -> None:
        self._busy = None
        self._let_go()

    def _let_go(self) -> None:
        if self._held:
            self._work.reports += self._held
            self._held = []
            self._arrive()

    @property
    def is_idle(self) -> bool:
        """The taker waits, and nothing has come yet."""
        return self._waits and not self._arrived.is_set()

    def put(self, request: Request) -> None:
        self._work.requests.append(request)
        self._arrive()

    def request(self, ask: Callable[[Turn], Any], *, own: bool = False) -> asyncio.Future[Any]:
        """Ask something of the next turn."""
        request = Request(ask, asyncio.get_running_loop().create_future(), own)
        self.put(request)
        return request.future

    def _arrive(self) -> None:
        self._arrivals += 1
        self._arrived.set()

    def wake(self) -> None:
        """A turn is wanted, though nothing has come (a due time)."""
        self._arrived.set()

    def close(self) -> None:
        """Nothing more is waited for; what has come is still taken, but for records, which stay in the log."""
        self.closed = True
        self._let_go()
        self._arrived.set()

    async def take(self) -> tuple[Work, list[asyncio.Future[None]]] | None:
        """All that has come, as soon as there is something, and who waits for its batches; None when it is closed and
        empty.

        A turn costs about as much as what four calls do in it. So as long as each pass of the loop, which hears all
        sockets and pipes once, brings more, the next pass is waited for, if there is anybody who may bring it.
        """
        if not self.closed:
            is_alone = not (self._arrived.is_set() or self._is_crowded())
            self._waits = True
            try:
                await self._arrived.wait()
            finally:
                self._waits = False
            seen = -1
            for _ in range(0 if is_alone else _PASSES_MAX):
                await asyncio.sleep(0)
                if self._arrivals == seen:
                    break
                seen = self._arrivals
            self._arrived.clear()
        work, self._work = self._work, Work()
        done, self._done = self._done, []
        if self.closed:
            work.batches.clear()
            if not len(work):
                return None
        return work, done
