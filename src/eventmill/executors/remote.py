"""What all executors have that call somebody else's service: who is under way, places, cancelling, the one report.

Each attempt that is out is one coroutine, `_carry`; whatever it raises is the end of that attempt, and of nothing else.
What is out is noted in a file, so that a server's death counts for it. On the event loop alone.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any

from eventmill.errors import InvalidConfig
from eventmill.executors.background import Background
from eventmill.executors.base import Accepted, Attempt, Executor, Found, Recorded, Report
from eventmill.executors.endings import CANCELLED, Ending, developer_error, finished, internal_error
from eventmill.executors.lanes import Lanes
from eventmill.executors.slots import Slots

_log = logging.getLogger(__name__)

Key = tuple[str, int]
"""An activation and the number of its attempt."""


@dataclass(slots=True, eq=False)
class UnderWay:
    """`task` is None while it waits for its turn; `place`: of those that are out at once, the one that it has.
    `ended`: how is known, and a report of it will come: it can't be cancelled any more."""

    handle: str | None = None
    task: asyncio.Task[None] | None = None
    place: int | None = None
    ended: bool = False


class RemoteExecutor(Executor):
    """`width`: attempts that are out at once. `state_dir`: the executor's own."""

    ignored = ""
    """What is said of a cancelled attempt that was out, if it may still run."""

    def __init__(self, width: int, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._lanes = Lanes(width)
        self._slots = Slots(state_dir / "slots", width)
        self._places = list(range(width))
        self._background = Background()
        self._under_way: dict[Key, UnderWay] = {}
        self._stopped = False

    @abstractmethod
    async def _carry(self, attempt: Attempt) -> None:
        """Have it run, and `_finish` it. Cancelled, it does nothing more."""

    async def start(self) -> None:
        """See what was out when the last server died."""
        await asyncio.to_thread(self._state_dir.mkdir, mode=0o700, parents=True, exist_ok=True)
        self._slots.open()

    async def stop(self) -> None:
        self._stopped = True
        for task in self._background.tasks:
            task.cancel()
        await asyncio.gather(*self._background.tasks, return_exceptions=True)
        self._background.silence()
        self._slots.close()

    def submit(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            key = _key(attempt)
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
            if key[0] in activations and not under_way.ended:
                usage = {"note": self.ignored} if under_way.task is not None and self.ignored else None
                if under_way.task is not None:
                    under_way.task.cancel()
                self._finish(key, CANCELLED, now_ms(), usage=usage)

    async def find(self, recorded: Sequence[Recorded]) -> dict[str, Found]:
        """Calls end with their server; its death counts for those that were out."""
        return {
            each.activation: Found(activation=each.activation, interrupted=True)
            for each in recorded
            if each.activation in self._slots.interrupted
        }

    def reports(self) -> AsyncIterator[list[Report]]:
        return self._background.reports()

    def _fill(self) -> None:
        while not self._stopped and (attempt := self._lanes.next()) is not None:
            under_way = self._under_way[_key(attempt)]
            under_way.place = self._places.pop()
            under_way.task = self._go(_key(attempt), partial(self._carry, attempt))
            under_way.task.add_done_callback(partial(self._done, attempt, under_way))

    def _go(self, key: Key, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Let an attempt go its way; what goes wrong on it ends the attempt alone."""

        async def guarded() -> None:
            began_ms = now_ms()
            try:
                await work()
            except Exception as e:
                _log.exception("attempt %d of activation %s has met an error of this server's", key[1], key[0])
                what = f"an error of this server's, which its log has: {type(e).__name__}"
                self._finish(key, internal_error(what), began_ms)

        return self._background.go(guarded())

    def _calls(self, attempt: Attempt, *, out: bool = True) -> None:
        """It goes out now: the death of this server counts for it. Or it does not after all."""
        under_way = self._under_way.get(_key(attempt))
        if under_way is not None and under_way.place is not None:
            if out:
                self._slots.set(under_way.place, attempt.activation)
            else:
                self._slots.clear(under_way.place)

    def _accept(self, key: Key, handle: str) -> None:
        """Report what it is called there, where it is not called that already."""
        under_way = self._under_way.get(key)
        if under_way is not None and under_way.handle != handle:
            before, under_way.handle = under_way.handle, handle
            self._background.report(Accepted(activation=key[0], attempt=key[1], handle=handle, instead_of=before))

    def _done(self, attempt: Attempt, under_way: UnderWay, _: asyncio.Task[None]) -> None:
        self._give_place(attempt, under_way)

    def _give_place(self, attempt: Attempt, under_way: UnderWay) -> None:
        """Its place is for another one; it has given it already: so be it."""
        if under_way.place is None:
            return
        if not self._stopped:
            self._slots.clear(under_way.place)
        self._places.append(under_way.place)
        under_way.place = None
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
        if under_way is not None:
            self._background.report(
                finished(key, ending, started_ms, now_ms(), handle=under_way.handle, logs=logs, usage=usage)
            )


def _key(attempt: Attempt) -> Key:
    return attempt.activation, attempt.number


def trusted(ca_file: Path | None, setting: str) -> ssl.SSLContext:
    """What certificates are checked with: those of the file, or else of the system. Raises InvalidConfig, which names
    the file's `setting`."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as e:
        raise InvalidConfig(f"{setting}: can't read the certificates in {ca_file}: {e.strerror or e}") from e


def no_cookies() -> CookieJar:
    """A jar that takes none: what one answer sets is not for the calls of others."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


def now_ms() -> int:
    return time.time_ns() // 1_000_000
