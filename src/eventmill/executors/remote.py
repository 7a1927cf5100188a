"""What all executors have that call somebody else's service: who is under way, places, cancelling, the one report.

On the event loop alone; each attempt that is out is one coroutine, `_carry`.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eventmill.errors import InvalidConfig
from eventmill.executors.background import Background
from eventmill.executors.base import Attempt, Executor, Finished, Report
from eventmill.executors.endings import CANCELLED, Ending, developer_error
from eventmill.executors.lanes import Lanes

Key = tuple[str, int]
"""An activation and the number of its attempt."""


@dataclass(slots=True)
class UnderWay:
    """`task` is None while it waits for its turn."""

    handle: str | None = None
    task: asyncio.Task[None] | None = None


class RemoteExecutor(Executor):
    """`width`: attempts that are out at once."""

    ignored = ""
    """What is said of a cancelled attempt that was out, if it may still run."""

    def __init__(self, width: int) -> None:
        self._lanes = Lanes(width)
        self._background = Background()
        self._under_way: dict[Key, UnderWay] = {}
        self._stopped = False

    @abstractmethod
    async def _carry(self, attempt: Attempt) -> None:
        """Have it run, and `_finish` it. Cancelled, it does nothing more."""

    async def stop(self) -> None:
        self._stopped = True
        for task in self._background.tasks:
            task.cancel()
        await asyncio.gather(*self._background.tasks, return_exceptions=True)
        self._background.silence()

    def submit(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            key = (attempt.activation, attempt.number)
            if key in self._under_way or self._stopped:
                continue
            self._under_way[key] = UnderWay()
            if (refusal := self.refusal(attempt.action)) is not None:
                self._finish(key, developer_error(refusal, final=True), now_ms())
            else:
                self._lanes.add(attempt)
        self._fill()

    def release(self, handles: Sequence[str]) -> None:
        """Functions start when they are submitted."""

    def cancel(self, activations: Mapping[str, str | None]) -> None:
        self._lanes.take_back(lambda attempt: attempt.activation in activations)
        for key, under_way in list(self._under_way.items()):
            if key[0] in activations:
                usage = {"note": self.ignored} if under_way.task is not None and self.ignored else None
                if under_way.task is not None:
                    under_way.task.cancel()
                self._finish(key, CANCELLED, now_ms(), usage=usage)

    def reports(self) -> AsyncIterator[list[Report]]:
        return self._background.reports()

    def _fill(self) -> None:
        while not self._stopped and (attempt := self._lanes.next()) is not None:
            task = self._background.go(self._carry(attempt))
            task.add_done_callback(partial(self._come_back, attempt))
            self._under_way[attempt.activation, attempt.number].task = task

    def _come_back(self, attempt: Attempt, _: asyncio.Task[None]) -> None:
        self._lanes.back(attempt)
        self._fill()

    def _finish(
        self,
        key: Key,
        ending: Ending,
        started_ms: int,
        *,
        logs: tuple[str, ...] = (),
        usage: Mapping[str, Any] | None = None,
    ) -> None:
        """Report its end, now; only the first one counts."""
        under_way = self._under_way.pop(key, None)
        if under_way is None:
            return
        self._background.report(
            Finished(
                activation=key[0], attempt=key[1], status=ending.status, result=ending.result, final=ending.final,
                started_ms=started_ms, ended_ms=max(started_ms, now_ms()), handle=under_way.handle,
                retry_after_s=ending.retry_after_s, timed_out=ending.timed_out, logs=logs, usage=usage,
            )
        )  # fmt: skip


def trusted(ca_file: Path | None) -> ssl.SSLContext:
    """What certificates are checked with: those of the file, or else of the system. Raises InvalidConfig."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as e:
        raise InvalidConfig(f"can't read the certificates in {ca_file}: {e.strerror or e}") from e


def now_ms() -> int:
    return time.time_ns() // 1_000_000
