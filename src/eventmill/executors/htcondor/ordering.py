"""What the schedd still has to be told of jobs: whom it lets go, whom it removes.

Owns these orders until they are carried out; what can't be done now is asked for again. Nothing is ordered by a number
of which it is not known whose it is. Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from eventmill.errors import EventmillError
from eventmill.executors.htcondor import endings
from eventmill.executors.htcondor.accounts import AGAIN_S, SELF, Accounts
from eventmill.executors.htcondor.client import Condor
from eventmill.executors.htcondor.tracked import Register
from eventmill.points import reached

_log = logging.getLogger(__name__)


class Orders:
    """`doubtful(id)`: whether a job has to be looked at first. `strays`: the identities of jobs that are in no record.
    `released(id)`: it is done."""

    def __init__(
        self,
        name: str,
        accounts: Accounts,
        register: Register,
        *,
        doubtful: Callable[[str], bool],
        strays: dict[str, str],
        released: Callable[[str], None],
    ) -> None:
        self._name = name
        self._accounts = accounts
        self._register = register
        self._doubtful = doubtful
        self._strays = strays
        self._when_released = released
        self._release: dict[str, str] = {}
        """cluster.proc → nothing."""
        self._remove: dict[str, str] = {}
        """cluster.proc → reason."""
        self._to_release = asyncio.Event()
        self._to_remove = asyncio.Event()

    def release(self, id: str) -> None:
        self._release[id] = ""
        self._to_release.set()

    def remove(self, id: str, reason: str) -> None:
        self._release.pop(id, None)
        self._remove[id] = reason
        self._to_remove.set()

    def withdraw(self, id: str) -> None:
        """It has ended."""
        self._release.pop(id, None)
        self._remove.pop(id, None)

    def withdraw_release(self, id: str) -> None:
        self._release.pop(id, None)

    def wake(self) -> None:
        """Some jobs are not doubtful any more."""
        self._to_release.set()
        self._to_remove.set()

    async def run_releases(self) -> None:
        while True:
            await self._to_release.wait()
            self._to_release.clear()
            # what was found after a restart may be held by the pool, or by hand: that is looked at first
            while batch := [id for id in self._release if not self._doubtful(id)]:
                await self._each(batch, lambda condor, ids: condor.release(ids), self._when_released, self._release)
                reached("unheld")

    async def run_removals(self) -> None:
        while True:
            await self._to_remove.wait()
            self._to_remove.clear()
            # what was found after a restart may have another's number by now: that is looked at first
            while waiting := {id: why for id, why in self._remove.items() if not self._doubtful(id)}:
                for reason in set(waiting.values()):
                    batch = [id for id, why in waiting.items() if why == reason]
                    said = f"{endings.BY_US}{reason}"
                    await self._each(batch, partial(_removal, reason=said), lambda _: None, self._remove)

    async def _each(
        self,
        ids: Sequence[str],
        call: Callable[[Condor, Sequence[str]], Coroutine[Any, Any, None]],
        done: Callable[[str], None],
        waiting: dict[str, str],
    ) -> None:
        """Do something with jobs, by identity; what can't be done now stays in `waiting`."""
        groups: dict[str, list[str]] = {}
        for id in ids:
            tracked = self._register.jobs.get(id)
            identity = self._strays.get(id, SELF) if tracked is None else tracked.identity
            groups.setdefault(identity, []).append(id)
        for identity, group in groups.items():
            try:
                await call(self._accounts.condor(identity), group)
            except EventmillError as e:
                _log.error("pool %s: %d jobs wait to be released or removed: %s", self._name, len(waiting), e)
                await asyncio.sleep(AGAIN_S)
                continue
            for id in group:
                waiting.pop(id, None)
                self._strays.pop(id, None)
                done(id)


async def _removal(condor: Condor, ids: Sequence[str], reason: str) -> None:
    await condor.remove(ids, reason)
