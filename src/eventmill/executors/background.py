"""What an executor does by itself, and what it has to say: the same for every one that runs on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from eventmill.executors.base import Report

T = TypeVar("T")


class Background:
    """Work that goes on by itself. If some of it fails, whoever reads the reports is told. On the event loop alone."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self.failure: BaseException | None = None
        self._reports: list[Report] = []
        self._reported = asyncio.Event()

    def go(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let this go on by itself."""
        going = asyncio.get_running_loop().create_task(work)
        self.tasks.add(going)
        going.add_done_callback(self._gone)
        return going

    def _gone(self, done: asyncio.Task[None]) -> None:
        self.tasks.discard(done)
        if not done.cancelled() and (error := done.exception()) is not None:
            self.failure = self.failure or error
            self._reported.set()

    def report(self, *reports: Report) -> None:
        self._reports.extend(reports)
        self._reported.set()

    def silence(self) -> None:
        """What has not been read yet is not said."""
        self._reports.clear()

    async def reports(self) -> AsyncIterator[list[Report]]:
        """Lists of reports as they come. Raises what has failed."""
        while True:
            await self._reported.wait()
            self._reported.clear()
            if self.failure is not None:
                raise self.failure
            batch, self._reports = self._reports, []
            if batch:
                yield batch


class Threads:
    """So many threads, for what would block the event loop."""

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(call, *arguments))

    async def close(self) -> None:
        """Wait for what is being done; nothing is taken on any more."""
        await asyncio.to_thread(self._pool.shutdown)
