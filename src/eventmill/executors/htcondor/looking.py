"""What the pool's log has not pushed: jobs are looked for in queue and history, where the truth is.

Owns the set of jobs of which it is not known what they are at, and the suspicion that there are jobs of ours in the
queue that are in no record. It asks after a start, when something has gone wrong, and for a slow audit, not otherwise.
Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from eventmill.errors import EventmillError
from eventmill.executors.htcondor import description, endings
from eventmill.executors.htcondor.accounts import Accounts
from eventmill.executors.htcondor.agenda import AGAIN_MAX_S, Agenda
from eventmill.executors.htcondor.records import ACTIVATION
from eventmill.executors.htcondor.reporting import Expected
from eventmill.executors.htcondor.tracked import Register, Tracked, id_of

_log = logging.getLogger(__name__)

HISTORY_MAX = 50
"""Jobs that are looked for in the history at one go: it is read from its end, job by job."""
STUCK_AGAIN_MAX_S = 600.0
"""The longest pause between looks for a job that does not leave the queue."""


class Looker:
    """`seen(tracked, ad)`: what a job in the queue is at. `left(tracked, ad)`: it has left the queue; the ad is empty
    if the history does not know it either. `looked()`: there was an answer."""

    def __init__(
        self,
        accounts: Accounts,
        register: Register,
        *,
        seen: Callable[[Tracked, Mapping[str, Any]], None],
        left: Callable[[Tracked, Mapping[str, Any]], None],
        looked: Callable[[], None],
    ) -> None:
        self._accounts = accounts
        self._register = register
        self._when_seen = seen
        self._when_left = left
        self._when_looked = looked
        self._unseen = Agenda()
        """Jobs that have to be looked for."""
        self._audited: set[str] = set()
        """Those of them that nothing but the audit has a doubt of."""
        self.counts: Counter[str] = Counter(missed_ends=0, missed_events=0, looks_repeated=0, looks_failed=0)
        """What the audit has found that nobody had told; and looks that were in vain."""
        self._expected = Expected()
        self._reported = asyncio.Event()
        self._said: dict[str, str] = {}
        """Why jobs can't be looked for, by identity."""
        self.suspects = True
        """There may be jobs of ours in the queue that are in no record."""
        self.strays: dict[str, str] = {}
        """Those of them that were seen: cluster.proc → identity."""
        self.given_up: set[str] = set()
        """Those of them that can't be removed."""

    def look_for(self, ids: Iterable[str]) -> None:
        self._unseen.add(ids)

    def audit(self, ids: Iterable[str]) -> None:
        """Look for these, though nothing has been heard of them."""
        self._audited = {id for id in ids if id not in self._unseen}
        self.look_for(self._audited)

    def expect(self, id: str) -> None:
        """A job says that it has ended: it is about to leave the queue."""
        self._expected.add(id, time.monotonic())
        self._reported.set()

    def is_doubtful(self, id: str) -> bool:
        """Whether it is not known whose the number is, and what its job is at."""
        return id in self._unseen

    def settle(self, id: str) -> None:
        """It is known by other ways what this job is at."""
        self._unseen.discard(id)
        self._audited.discard(id)
        self._expected.discard(id)

    async def run(self) -> None:
        while True:
            ids = await self._unseen.next()
            unheard = await self._look_at(ids)
            self._unseen.postpone(unheard, AGAIN_MAX_S)
            for id in set(ids).difference(unheard):
                if id not in self._register.jobs:
                    self._unseen.discard(id)
                elif (pause_s := self._unseen.postpone([id], STUCK_AGAIN_MAX_S)) > 0:
                    self._stuck(id, pause_s)

    def _stuck(self, id: str, pause_s: float) -> None:
        """It is on its way out of the queue, as it was before."""
        self.counts["looks_repeated"] += 1
        if AGAIN_MAX_S < pause_s <= 2 * AGAIN_MAX_S:
            _log.warning(
                "job %s has ended or was removed, but does not leave the queue; it is looked for less often", id
            )

    async def run_expected(self) -> None:
        """Look for the jobs that say that they have ended, until they have left the queue."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._expected.next_s(time.monotonic())):
                    await self._reported.wait()
            self._reported.clear()
            self.look_for(await self._look_at(self._expected.due(time.monotonic())))

    async def _look_at(self, ids: Iterable[str]) -> list[str]:
        """Ask for these, each in its own name; those of which there was no answer."""
        jobs, groups, unheard = self._register.jobs, defaultdict[str, list[str]](list), list[str]()
        for id in ids:
            if id in jobs:
                groups[jobs[id].identity].append(id)
        for identity, group in groups.items():
            for start in range(0, len(group), description.JOBS_PER_CLUSTER):
                some = group[start : start + description.JOBS_PER_CLUSTER]
                try:
                    await self._look(identity, some)
                    self._when_looked()
                    self._said.pop(identity, None)
                except EventmillError as e:
                    self._failed(identity, len(group), e)
                    unheard += group[start:]
                    break
        return unheard

    def _failed(self, identity: str, count: int, why: EventmillError) -> None:
        """`count`: jobs that were looked for; 0: those that nobody knows."""
        self.counts["looks_failed"] += 1
        if self._said.get(identity) != str(why):
            _log.error("%s jobs can't be looked for: %s", count or "unknown", why)
        self._said[identity] = str(why)

    async def _look(self, identity: str, ids: Sequence[str]) -> None:
        condor = self._accounts.asker(identity)
        queued = {id_of(ad): ad for ad in await condor.query(_any_of(ids), endings.ATTRIBUTES)}
        found = [tracked for id in ids if (tracked := self._register.jobs.get(id)) is not None]
        missing = [t for t in found if t.id not in queued or not t.owns(queued[t.id])]
        for tracked in found:
            if tracked not in missing and not tracked.is_over:
                self._seen(tracked, queued[tracked.id])
        for start in range(0, len(missing), HISTORY_MAX):
            some = missing[start : start + HISTORY_MAX]
            # one that has left the queue between the two questions is in the history
            ended = {id_of(ad): ad for ad in await condor.history([t.id for t in some], endings.ATTRIBUTES)}
            for tracked in some:
                ad = ended.get(tracked.id, {})
                if tracked.id in self._register.jobs:
                    self.counts["missed_ends"] += tracked.id in self._audited and not tracked.is_over
                    self._when_left(tracked, ad if tracked.owns(ad) else {})

    def _seen(self, tracked: Tracked, ad: Mapping[str, Any]) -> None:
        if ad.get("JobStatus") in (endings.COMPLETED, endings.REMOVED):
            return  # it is on its way into the history: it is looked for again
        missed = tracked.running != (ad.get("JobStatus") == endings.RUNNING)
        self.counts["missed_events"] += tracked.id in self._audited and missed
        self._unseen.discard(tracked.id)
        self._audited.discard(tracked.id)
        self._when_seen(tracked, ad)

    async def orphans(self, server: str, sending: Callable[[], Collection[str]]) -> dict[str, str]:
        """Activation → cluster.proc of jobs of this server's that it does not know, whatever they are at: somebody may
        have released them all, and a schedd that was killed may have started one again that has ended for us.

        `sending`: activations whose jobs may be in the queue though their numbers have not been heard yet.
        """
        found: dict[str, str] = {}
        unheard = self.suspects = False  # it may be suspected anew meanwhile
        for identity in self._accounts.identities():
            try:
                found |= await self._orphans(identity, server)
            except EventmillError as e:
                self._failed(identity, 0, e)
                unheard = True
                continue
            for activation in found.keys() & sending():
                del found[activation]
                unheard = True
        self.suspects |= unheard or bool(found)  # an activation may have several, of which one was found
        return found

    async def _orphans(self, identity: str, server: str) -> dict[str, str]:
        condor = self._accounts.condor(identity)
        owner = (await condor.ping())["identity"].partition("@")[0]  # anybody can set an attribute
        alive = f"JobStatus =!= {endings.REMOVED} && JobStatus =!= {endings.COMPLETED}"
        # a job that was made by hand may have one attribute and not the other, or an expression
        ours = f'EventmillServer == "{server}" && isString(EventmillActivation)'
        constraint = f'{ours} && {alive} && Owner == "{owner}"'
        ads = await condor.query(constraint, ["ClusterId", "ProcId", ACTIVATION])
        unknown = [ad for ad in ads if id_of(ad) not in self._register.jobs and id_of(ad) not in self.given_up]
        found = {id_of(ad): activation for ad in unknown if isinstance(activation := ad.get(ACTIVATION), str)}
        others = {id: whose for id, whose in self.strays.items() if whose != identity}
        self.strays = others | dict.fromkeys(found, identity)
        return {activation: id for id, activation in found.items()}


def _any_of(ids: Sequence[str]) -> str:
    """A constraint that these jobs alone meet."""
    pairs = (id.split(".") for id in ids)
    return " || ".join(f"(ClusterId == {int(cluster)} && ProcId == {int(proc)})" for cluster, proc in pairs)
