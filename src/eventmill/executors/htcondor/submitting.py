"""What is to be submitted, until the schedd has it: gathered into few calls, prepared ahead, refused one by one.

Owns the attempts that no job is known for yet. What it submits is held. A submit of which nobody knows whether it was
done is done again, and the first one's jobs are orphans. Belongs to the event loop; rooms are made in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import orjson

from eventmill.entities import Status
from eventmill.errors import EventmillError, InvalidInput, Unavailable
from eventmill.executors.background import Threads
from eventmill.executors.base import Attempt, Finished
from eventmill.executors.htcondor import description
from eventmill.executors.htcondor.accounts import AGAIN_S, Accounts
from eventmill.executors.htcondor.preparing import Prepared, Preparer
from eventmill.executors.htcondor.tracked import Tracked
from eventmill.points import reached

_log = logging.getLogger(__name__)

Key = tuple[str, int]
"""Activation and number of an attempt."""


class Submitter:
    """`accepted(tracked, cancelled)`: a job is in the queue, held; it may have been cancelled meanwhile.
    `refused(finished)`: there will be none. `unsure()`: nobody knows what the schedd has done."""

    def __init__(
        self,
        name: str,
        accounts: Accounts,
        preparer: Preparer,
        threads: Threads,
        *,
        owners_matter: bool,
        accepted: Callable[[Tracked, bool], None],
        refused: Callable[[Finished], None],
        unsure: Callable[[], None],
    ) -> None:
        self._name = name
        self._accounts = accounts
        self._preparer = preparer
        self._threads = threads
        self._owners_matter = owners_matter
        self._accepted = accepted
        self._refused = refused
        self._unsure = unsure
        self.pending: dict[Key, Attempt] = {}
        """To be submitted; those that are on their way among them."""
        self._queue: list[Key] = []
        """Those of them that have no room yet, in the order in which they came."""
        self._dropped: set[Key] = set()
        """Cancelled before they were submitted."""
        self._work = asyncio.Event()

    def take(self, attempt: Attempt) -> None:
        key = attempt.activation, attempt.number
        if key not in self.pending:
            self.pending[key] = attempt
            self._queue.append(key)
            self._work.set()

    def cancel(self, activation: str) -> None:
        """Don't submit it; if that is under way already, it is said with `accepted`."""
        self._dropped.update(key for key in self.pending if key[0] == activation)

    async def run(self) -> None:
        """One call after the other: what comes while one is on its way goes together in the next, whose rooms are made
        meanwhile."""
        ahead: asyncio.Task[list[Prepared]] | None = None
        try:
            while True:
                group = await (ahead or self._prepare_next())
                ahead = asyncio.ensure_future(self._prepare_next()) if self._queue else None
                while group := await self._submit(group):  # noqa: ASYNC110 (the schedd is away)
                    await asyncio.sleep(AGAIN_S)
        finally:
            if ahead is not None:
                ahead.cancel()

    async def _prepare_next(self) -> list[Prepared]:
        """Wait until something is to be submitted; rooms and commands of the next."""
        while not self._queue:
            self._work.clear()
            await self._work.wait()
        keys, self._queue = (
            self._queue[: description.JOBS_PER_CLUSTER],
            self._queue[description.JOBS_PER_CLUSTER :],
        )
        if self._owners_matter:
            await self._accounts.know_owners(
                {self._accounts.identity(self.pending[key].action.namespace) for key in keys}
            )
        outcomes = await self._threads.run(self._preparer.prepare, [self.pending[key] for key in keys])
        for key, outcome in zip(keys, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._refuse(key, outcome)
        return [outcome for outcome in outcomes if not isinstance(outcome, Exception)]

    async def _submit(self, group: Sequence[Prepared]) -> list[Prepared]:
        """Submit these; what the schedd could not take now."""
        reached("furnished")
        left: list[Prepared] = []
        identities: dict[str, list[Prepared]] = {}
        for each in group:
            if not self._is_dropped(each.attempt):
                identities.setdefault(self._accounts.identity(each.job.namespace), []).append(each)
        for identity, some in identities.items():
            for cluster in description.clusters([each.commands for each in some]):
                members = [some[index] for index in cluster.jobs]
                left += await self._submit_cluster(identity, cluster, members)
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

    async def _submit_cluster(
        self, identity: str, cluster: description.Cluster, members: list[Prepared]
    ) -> list[Prepared]:
        """One call; those that the schedd could not take now."""
        try:
            ids = await self._accounts.condor(identity).submit(cluster.commands, cluster.items)
        except InvalidInput as e:
            if len(members) > 1:  # one of them is refused: which one, the halves tell
                half = len(members) // 2
                return [*await self._submit(members[:half]), *await self._submit(members[half:])]
            self._refuse((members[0].attempt.activation, members[0].attempt.number), e)
            return []
        except Unavailable as e:
            self._unsure()
            _log.error("pool %s: %d jobs wait: %s", self._name, len(self.pending), e)
            return members
        reached("submitted")
        for id, each in zip(ids, members, strict=True):
            key = each.attempt.activation, each.attempt.number
            del self.pending[key]
            cancelled = key in self._dropped
            self._dropped.discard(key)
            self._accepted(Tracked(each.job, id, identity), cancelled)
        return []

    def _refuse(self, key: Key, why: Exception) -> None:
        attempt = self.pending.pop(key)
        self._dropped.discard(key)
        own = isinstance(why, EventmillError)
        text = str(why) if own else f"can't submit the job: {getattr(why, 'strerror', why)}"
        status = Status.DEVELOPER_ERROR if own else Status.INTERNAL_ERROR
        self._refused(_unsubmitted(attempt, text, status, final=own))


def _unsubmitted(attempt: Attempt, error: str, status: Status, *, final: bool) -> Finished:
    now = int(time.time() * 1000)
    return Finished(
        activation=attempt.activation, attempt=attempt.number, status=status, result=orjson.dumps({"error": error}),
        final=final, started_ms=now, ended_ms=now,
    )  # fmt: skip
