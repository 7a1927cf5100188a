"""What is to be submitted in one identity's name, until the schedd has it: gathered into few calls, prepared ahead,
refused one by one.

Owns the attempts that no job is known for yet. What it submits is held. A submit of which nobody knows whether it was
done is done again, and the first one's jobs are orphans. Identities wait for nobody but themselves. Belongs to the
event loop; rooms are made in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import orjson

from eventmill.entities import Status
from eventmill.errors import EventmillError, InvalidInput, Unavailable
from eventmill.executors.background import Threads
from eventmill.executors.base import Attempt, Finished
from eventmill.executors.htcondor import description
from eventmill.executors.htcondor.accounts import Accounts
from eventmill.executors.htcondor.agenda import AGAIN_MAX_S, AGAIN_S
from eventmill.executors.htcondor.client import TooMany
from eventmill.executors.htcondor.preparing import Prepared, Preparer
from eventmill.executors.htcondor.tracked import Tracked
from eventmill.points import reached

_log = logging.getLogger(__name__)

Key = tuple[str, int]
"""Activation and number of an attempt."""


class Submitter:
    """`name`: the pool's. `accepted(tracked, cancelled)`: a job is in the queue, held; it may have been cancelled
    meanwhile. `refused(finished)`: there will be none. `unsure()`: nobody knows what the schedd has done."""

    def __init__(
        self,
        name: str,
        identity: str,
        accounts: Accounts,
        preparer: Preparer,
        threads: Threads,
        *,
        accepted: Callable[[Tracked, bool], None],
        refused: Callable[[Finished], None],
        unsure: Callable[[], None],
    ) -> None:
        self._name = name
        self._identity = identity
        self._accounts = accounts
        self._preparer = preparer
        self._threads = threads
        self._accepted = accepted
        self._refused = refused
        self._unsure = unsure
        self.pending: dict[Key, Attempt] = {}
        """To be submitted; those that are on their way among them."""
        self.sending: frozenset[str] = frozenset()
        """Activations of the call that is on its way: their jobs may be in the queue already."""
        self._queue: list[Key] = []
        """Those that have no room yet, in the order in which they came."""
        self._ready: list[Prepared] = []
        self._dropped: set[Key] = set()
        """Cancelled before they were submitted."""
        self._most = description.JOBS_PER_CLUSTER
        """So many at once, as far as the schedd has ever taken."""
        self._size = self._most
        """So many at once now: less when it is full."""
        self._pause_s = 0.0
        self._stalled = False
        """The schedd takes no more in this round."""
        self._unsettled = False
        """It could not be asked what has to be known before jobs are prepared."""
        self._said = ""
        self._work = asyncio.Event()
        self._hurry = asyncio.Event()

    def take(self, attempt: Attempt) -> None:
        key = attempt.activation, attempt.number
        if key not in self.pending:
            self.pending[key] = attempt
            self._queue.append(key)
            self._work.set()

    def cancel(self, activation: str) -> None:
        """Don't submit it; if that is under way already, it is said with `accepted`."""
        if keys := [key for key in self.pending if key[0] == activation]:
            self._dropped.update(keys)
            self._hurry.set()

    async def run(self) -> None:
        """One call after the other: what comes while one is on its way goes together in the next, whose rooms are made
        meanwhile."""
        while True:
            if not (self._ready or self._queue):
                self._pause_s = 0.0
                self._work.clear()
                await self._work.wait()
            self._hurry.clear()
            await asyncio.gather(self._submit_next(), self._prepare_next())
            if self._pause_s:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause_s):
                        await self._hurry.wait()

    async def _prepare_next(self) -> None:
        """Rooms and commands of the next."""
        if self._dropped:
            self._queue = [key for key in self._queue if not self._is_dropped(self.pending[key])]
        most = description.JOBS_PER_CLUSTER
        if not self._queue or len(self._ready) >= most:
            return
        try:
            await self._accounts.settle(self._identity, [self.pending[key].namespace for key in self._queue[:most]])
        except Unavailable as e:
            self._unsettled = True
            return self._wait(e)
        if self._unsettled:
            self._unsettled, self._pause_s = False, 0.0
        keys, self._queue = self._queue[:most], self._queue[most:]
        outcomes = await self._threads.run(self._preparer.prepare, [self.pending[key] for key in keys])
        for key, outcome in zip(keys, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._refuse(key, outcome)
            else:
                self._ready.append(outcome)

    async def _submit_next(self) -> None:
        """Submit some. What the schedd could not take now comes after the others, which may have less against them."""
        group, self._ready = self._ready[: self._size], self._ready[self._size :]
        if not group:
            return
        size, self._stalled = self._size, False
        left = await self._submit(group)
        self._ready += left
        if len(left) < len(group) or self._size < size:
            self._pause_s = 0.0

    async def _submit(self, group: Sequence[Prepared]) -> list[Prepared]:
        """Submit these; what the schedd could not take now."""
        reached("furnished")
        left: list[Prepared] = []
        some = [each for each in group if not self._is_dropped(each.attempt)]
        for cluster in description.clusters([each.commands for each in some]):
            members = [some[index] for index in cluster.jobs]
            left += members if self._stalled else await self._submit_cluster(cluster, members)
        return left

    def _is_dropped(self, attempt: Attempt) -> bool:
        """Whether it has been cancelled before it was submitted: then that was all."""
        key = attempt.activation, attempt.number
        if key not in self._dropped:
            return False
        self._dropped.discard(key)
        del self.pending[key]
        self._refused(_unsubmitted(attempt, "cancelled", Status.APPLICATION_ERROR, final=True))
        return True

    async def _submit_cluster(self, cluster: description.Cluster, members: list[Prepared]) -> list[Prepared]:
        """One call; those that the schedd could not take now."""
        self.sending = frozenset(each.attempt.activation for each in members)
        try:
            ids = await self._accounts.condor(self._identity).submit(cluster.commands, cluster.items)
        except TooMany as e:
            self._shrink(len(members), e)
            return members
        except Unavailable as e:
            self._unsure()
            self._stalled = True
            self._wait(e)
            return members
        except Exception as e:
            if not isinstance(e, InvalidInput):
                _log.exception("pool %s: %d jobs can't be submitted together", self._name, len(members))
                self._unsure()
            if len(members) > 1:  # one of them is refused: which one, the halves tell
                half = len(members) // 2
                return [*await self._submit(members[:half]), *await self._submit(members[half:])]
            self._refuse((members[0].attempt.activation, members[0].attempt.number), e)
            return []
        finally:
            self.sending = frozenset()
        reached("submitted")
        self._said = ""
        self._size = min(max(self._size, 2 * len(members)), self._most)
        for id, each in zip(ids, members, strict=True):
            self._submitted(id, each)
        return []

    def _submitted(self, id: str, prepared: Prepared) -> None:
        key = prepared.attempt.activation, prepared.attempt.number
        del self.pending[key]
        cancelled = key in self._dropped
        self._dropped.discard(key)
        self._accepted(Tracked(prepared.job, id, self._identity), cancelled)

    def _shrink(self, refused: int, why: TooMany) -> None:
        """The schedd takes fewer than these, ever, or now."""
        self._size = min(self._size, max(1, refused // 2))
        if why.at_once:
            self._most = self._size
        if refused == 1:
            self._stalled = True
            self._pause_s = AGAIN_S
            self._say(why)

    def _wait(self, why: Unavailable) -> None:
        """The schedd can't be asked now."""
        self._pause_s = min(self._pause_s * 2 or AGAIN_S, AGAIN_MAX_S)
        self._say(why)

    def _say(self, why: Unavailable) -> None:
        if str(why) != self._said:
            whose = f" of namespace '{self._identity}'" if self._identity else ""
            _log.error("pool %s: %d jobs%s wait: %s", self._name, len(self.pending), whose, why)
        self._said = str(why)

    def _refuse(self, key: Key, why: Exception) -> None:
        attempt = self.pending.pop(key)
        self._dropped.discard(key)
        own = isinstance(why, EventmillError)
        if not own and not isinstance(why, OSError):
            _log.error("pool %s: activation %s can't be submitted", self._name, attempt.activation, exc_info=why)
        text = str(why) if own else f"can't submit the job: {getattr(why, 'strerror', None) or why}"
        status = Status.DEVELOPER_ERROR if own else Status.INTERNAL_ERROR
        self._refused(_unsubmitted(attempt, text, status, final=own))


def _unsubmitted(attempt: Attempt, error: str, status: Status, *, final: bool) -> Finished:
    now = int(time.time() * 1000)
    error = error.encode(errors="replace").decode()  # a file's name may be in it that is not UTF-8
    return Finished(
        activation=attempt.activation, attempt=attempt.number, status=status, result=orjson.dumps({"error": error}),
        final=final, started_ms=now, ended_ms=now,
    )  # fmt: skip
