"""What tests of executors share: making attempts, and driving an executor until they have finished."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from eventmill.entities import Action
from eventmill.executors import Accepted, Attempt, Executor, Finished, Report

TIMEOUT_S = 60.0
"""Of a test's wait for what must come; only a broken executor needs it."""

_numbers = itertools.count(1)


def attempt(action: Action, params: Any = None, *, activation: str | None = None, number: int = 1) -> Attempt:
    """An attempt of a new activation, unless one is given."""
    raw = json.dumps({} if params is None else params).encode()
    return Attempt(activation=activation or f"{next(_numbers):032x}", number=number, action=action, params=raw)


def value(finished: Finished) -> Any:
    return json.loads(finished.result)


class Driver:
    """Reads an executor's reports. A two-phase executor's attempts are released at once, unless `releases` is False."""

    def __init__(self, executor: Executor, *, releases: bool = True) -> None:
        self.executor = executor
        self.reports: list[Report] = []
        self._releases = releases
        self._arrived = asyncio.Event()
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        async for reports in self.executor.reports():
            assert reports, "an empty list was pushed"
            self.reports += reports
            accepted = [report.handle for report in reports if isinstance(report, Accepted)]
            if accepted and self._releases:
                self.executor.release(accepted)
            self._arrived.set()

    async def until(self, *kinds: type, of: Attempt) -> Report:
        """The first report of one of these kinds for the attempt."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                for report in self.reports:
                    if isinstance(report, kinds) and (report.activation, report.attempt) == (of.activation, of.number):
                        return report
                self._arrived.clear()
                await self._arrived.wait()

    async def finished(self, of: Attempt) -> Finished:
        report = await self.until(Finished, of=of)
        assert isinstance(report, Finished)
        return report

    async def run(self, *attempts: Attempt) -> list[Finished]:
        """Submit these and wait for their ends, in the order of `attempts`."""
        self.executor.submit(attempts)
        return [await self.finished(each) for each in attempts]

    def ends(self) -> list[str]:
        """Activations in the order in which they finished."""
        return [report.activation for report in self.reports if isinstance(report, Finished)]

    def handle_of(self, of: Attempt) -> str | None:
        """Its handle, if its executor gives handles."""
        accepted = [r for r in self.reports if isinstance(r, Accepted) and r.activation == of.activation]
        return accepted[-1].handle if accepted else None

    async def stop(self) -> None:
        await self.executor.stop()
        self._reader.cancel()
        await asyncio.wait([self._reader])


@asynccontextmanager
async def driving(executor: Executor, *, releases: bool = True) -> AsyncIterator[Driver]:
    """Start the executor, and stop it in the end."""
    await executor.start()
    driver = Driver(executor, releases=releases)
    try:
        yield driver
    finally:
        await driver.stop()
