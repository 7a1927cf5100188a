"""What the schedd still has to be told of one identity's jobs: whom it lets go, whom it removes.

Owns these orders until they are carried out. What can't be done now is asked for again, later each time; what the
schedd denies for good is given up, and said. Nothing is ordered by a number of which it is not known whose it is.
Belongs to the event loop.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from eventmill.errors import EventmillError
from eventmill.executors.htcondor import endings
from eventmill.executors.htcondor.agenda import AGAIN_MAX_S, Agenda
from eventmill.executors.htcondor.client import Acted, Condor
from eventmill.points import reached

_log = logging.getLogger(__name__)

FAILED_AGAIN_MAX_S = 600.0
"""The longest pause of an order that the schedd answers with an error."""


class Orders:
    """`name`: the pool's. `condor`: None if nothing may be asked in this identity's name. `doubtful(id)`: whether a job
    has to be looked at first. `released(id)`: it is done. `denied(id, why)`: it will never be done."""

    def __init__(
        self,
        name: str,
        condor: Condor | None,
        *,
        doubtful: Callable[[str], bool],
        released: Callable[[str], None],
        denied: Callable[[str, str], None],
    ) -> None:
        self._name = name
        self._condor = condor
        self._doubtful = doubtful
        self._released = released
        self._denied = denied
        self._to_release = Agenda()
        self._to_remove = Agenda()
        self._reasons: dict[str, str] = {}
        """Why jobs are removed, by cluster.proc."""
        self._said = ""

    def release(self, id: str) -> None:
        self._to_release.add([id])

    def remove(self, id: str, reason: str) -> None:
        self._to_release.discard(id)
        self._reasons[id] = reason
        self._to_remove.add([id])

    def withdraw(self, id: str) -> None:
        """It has ended."""
        self._to_release.discard(id)
        self._to_remove.discard(id)
        self._reasons.pop(id, None)

    def withdraw_release(self, id: str) -> None:
        self._to_release.discard(id)

    def wake(self) -> None:
        """Some jobs are not doubtful any more."""
        self._to_release.wake()
        self._to_remove.wake()

    async def run_releases(self) -> None:
        while True:
            # what was found after a restart may be held by the pool, or by hand: that is looked at first
            ids = await self._to_release.next(self._is_sure)
            if self._condor is None:
                self._give_up(self._to_release, ids, "released: its namespace has no token any more")
                continue
            for id in await self._carry_out(self._to_release, ids, self._condor.release(ids), "released"):
                self._released(id)
            reached("unheld")

    async def run_removals(self) -> None:
        while True:
            # what was found after a restart may have another's number by now: that is looked at first
            ids = await self._to_remove.next(self._is_sure)
            if self._condor is None:
                self._give_up(self._to_remove, ids, "removed: its namespace has no token any more")
                continue
            by_reason = defaultdict[str, list[str]](list)
            for id in ids:
                by_reason[self._reasons[id]].append(id)
            for reason, some in by_reason.items():
                call = self._condor.remove(some, f"{endings.BY_US}{reason}")
                await self._carry_out(self._to_remove, some, call, "removed")

    def _is_sure(self, id: str) -> bool:
        return not self._doubtful(id)

    async def _carry_out(
        self, agenda: Agenda, ids: Sequence[str], call: Coroutine[Any, Any, Acted], done: str
    ) -> list[str]:
        """Those it was done to."""
        try:
            acted = await call
        except EventmillError as e:
            agenda.postpone(ids, AGAIN_MAX_S)
            if str(e) != self._said:
                _log.error("pool %s: %d jobs wait to be %s: %s", self._name, len(ids), done, e)
            self._said = str(e)
            return []
        self._said = ""
        for id in acted.failed:
            pause_s = agenda.postpone([id], FAILED_AGAIN_MAX_S)
            _log.error("pool %s: job %s can't be %s, says the schedd; again in %g s", self._name, id, done, pause_s)
        self._give_up(agenda, acted.denied, f"{done}: the schedd says that it is not ours (was a token exchanged?)")
        well = [id for id in ids if id not in acted.failed and id not in acted.denied]
        for id in well:
            agenda.discard(id)
        return well

    def _give_up(self, agenda: Agenda, ids: Sequence[str], why: str) -> None:
        for id in ids:
            agenda.discard(id)
            _log.error("pool %s: job %s can't be %s", self._name, id, why)
            self._denied(id, why)
