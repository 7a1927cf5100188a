"""HTCondor: jobs in a pool, submitted held, released when they are recorded, ended by what the pool's log pushes.

It owns one directory, with a room for each job, and what becomes of each job in memory. It never lets a job run that
was not recorded: what it submits is held until `release`. The log wakes it up; what it has missed stands in queue and
history (`looking`). Events count only for jobs that it has submitted itself, or that are recorded: by their number,
which nobody can choose, and by their activation, since a schedd that is made anew counts from the beginning.

All methods and all state belong to the event loop. Files are read and written in threads; the bindings live in helper
processes (`client`), one for each identity.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from eventmill.config import Pool
from eventmill.entities import Status
from eventmill.errors import InvalidConfig, Unavailable
from eventmill.executors import jobs
from eventmill.executors.background import Background, Threads
from eventmill.executors.base import Attempt, CodeSource, Executor, Finished, Found, Recorded, Report, Started
from eventmill.executors.delivery import Delivery, repeated
from eventmill.executors.htcondor import description, endings
from eventmill.executors.htcondor.accounts import Accounts
from eventmill.executors.htcondor.following import FinalAds, LogFollower
from eventmill.executors.htcondor.history import FinalAd
from eventmill.executors.htcondor.looking import Looker
from eventmill.executors.htcondor.ordering import Orders
from eventmill.executors.htcondor.preparing import Preparer
from eventmill.executors.htcondor.records import ACTIVATION, JobEvent, Kind
from eventmill.executors.htcondor.reporting import Reporting
from eventmill.executors.htcondor.rooms import Rooms
from eventmill.executors.htcondor.submitting import Submitter
from eventmill.executors.htcondor.tracked import Register, Stage, Tracked
from eventmill.points import reached

_log = logging.getLogger(__name__)

AUDIT_S = 600.0
"""So often the queue is looked at for jobs whose events were missed."""
ROOMS_KEPT_S = 7 * 86_400.0
"""The room of a job that is not known here goes after this: the job's partition may be another server's for a while."""
THREADS = 4


class CondorQueue(Executor):
    """Jobs in an HTCondor pool (design, section 9)."""

    two_phase = True

    def __init__(
        self,
        code: CodeSource,
        *,
        name: str,
        pool: Pool,
        state_dir: Path,
        results_dir: Path,
        environment: Mapping[str, str],
        result_bytes_max: int,
        archive_files_max: int,
        archive_bytes_max: int,
        roots: Sequence[Path] = (),
        reporting: Reporting | None = None,
    ) -> None:
        """`name`: the pool's, first part of every handle. `reporting`: jobs say themselves that they have ended, and no
        log is read. The rest as for the local queue. Raises InvalidConfig."""
        self._name = name
        self._pool = pool
        state = state_dir.resolve()  # HTCondor may be on another machine, which has the same files but not our links
        self._own_log = state / "log" / "jobs.log" if pool.event_log is None and reporting is None else None
        """Our jobs' events, where nothing else tells of them."""
        self.event_log = self._own_log if pool.event_log is None else pool.event_log.absolute()
        """Where the pool's events stand, if they can be read."""
        places = [str(root.absolute()) for root in roots]
        self._rooms = Rooms(state, files_max=archive_files_max, bytes_max=archive_bytes_max, spool=pool.spool_dir)
        self._delivery = Delivery(results_dir, places, result_bytes_max=result_bytes_max)
        self._threads = Threads(THREADS, f"{name}-jobs")
        self._deliverers = Threads(THREADS, f"{name}-ends")
        self._accounts = Accounts(name, pool, state / "identities", self._rooms, self._threads)
        self._register = Register(name, pool.schedd)
        self._preparer = Preparer(
            code, self._rooms, self._accounts, pool, log=self._own_log, roots=places,
            results=results_dir.absolute(), environment=environment, reporting=reporting,
        )  # fmt: skip
        self._background = Background()
        self._submitters: dict[str, Submitter] = {}
        self._orders: dict[str, Orders] = {}
        self._looker = Looker(
            self._accounts, self._register, seen=self._seen, left=self._left, looked=self._may_order
        )  # fmt: skip
        self._rivals: dict[str, list[Tracked]] = {}
        """Recorded jobs whose number another one has, by cluster.proc."""
        self._denials = 0
        self._waiting: dict[str, str] = {}
        """Why what jobs have left could not be delivered yet, by cluster.proc."""
        self._upkeep_failures = 0
        self._upkeep_trouble = ""
        self._server = ""
        self._log = None if self.event_log is None else LogFollower(self.event_log, self._happened)
        self._final_ads = None if pool.history_dir is None else FinalAds(pool.history_dir, self._left_for_good)
        self._audited = time.monotonic()
        self._stopping = False

    # the contract

    async def start(self) -> None:
        self._server = await self._threads.run(self._rooms.open)
        self._preparer.is_of(self._server)
        try:
            await self._accounts.open()
        except InvalidConfig:
            await self.stop()
            raise
        # from here on: what happened before stands in queue and history, where recorded jobs are looked for
        if self._log is not None:
            self._background.go(self._log.run())
        if self._final_ads is not None:
            self._background.go(self._final_ads.run(self._server))
        self._background.go(self._looker.run())
        self._background.go(self._looker.run_expected())

    async def stop(self) -> None:
        self._stopping = True
        for task in list(self._background.tasks):
            task.cancel()
        await asyncio.gather(*self._background.tasks, return_exceptions=True)
        await self._accounts.stop()
        self._background.silence()
        await self._threads.close()
        await self._deliverers.close()
        self._rooms.close()

    def submit(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            if tracked := self._register.attempts.get((attempt.activation, attempt.number)):
                ended = [tracked.finished] if tracked.finished else []
                self._background.report(self._register.accepted(tracked), *ended)
            else:
                self._submitter(self._accounts.identity(attempt.namespace)).take(attempt)

    def release(self, handles: Sequence[str]) -> None:
        for tracked in map(self._register.by_handle, handles):
            if tracked is not None and tracked.stage is Stage.HELD:
                self._orders_of(tracked.identity).release(tracked.id)

    def cancel(self, activations: Mapping[str, str | None]) -> None:
        register = self._register
        for activation, handle in activations.items():
            if handle is None:
                for submitter in self._submitters.values():
                    submitter.cancel(activation)
            for tracked in [t for t in register.jobs.values() if t.job.activation == activation]:
                if handle in (None, register.handle(tracked.id)) and not tracked.is_over:
                    self._take_away(tracked, jobs.Ending(cancelled=True), "cancelled")
            if handle is not None and (id := register.id(handle)) in self._looker.strays and id not in register.jobs:
                self._orders_of(self._looker.strays[id]).remove(id, "never recorded")

    async def find(self, recorded: Sequence[Recorded]) -> dict[str, Found]:
        """Every recorded job is found: what became of it is looked for beside, and reported. Raises InvalidConfig if
        one is another schedd's by its handle."""
        found: dict[str, Found] = {}
        for each in recorded:
            if each.handle is None:
                continue
            id = self._register.id(each.handle)
            if id is None:
                await self._threads.run(self._refuse, each)
                continue
            if each.activation not in self._activations_of(id):
                job = await self._threads.run(self._rooms.job, each.activation, each.attempt, each.namespace)
                self._found(Tracked(job, id, self._accounts.identity(each.namespace)))
            found[each.activation] = Found(activation=each.activation, handle=each.handle, running=True)
        return found

    def _activations_of(self, id: str) -> set[str]:
        known = [*self._rivals.get(id, ()), self._register.jobs.get(id)]
        return {each.job.activation for each in known if each is not None}

    def _found(self, tracked: Tracked) -> None:
        """It is recorded. Of several under one number, which a schedd has given twice since it was made anew, one has a
        job: the others wait until that of the first one is found, or is not."""
        if tracked.id in self._register.jobs:
            self._rivals.setdefault(tracked.id, []).append(tracked)
        else:
            self._track(tracked)
        self._looker.look_for([tracked.id])

    def _settle_rivals(self, id: str, *, lost: bool) -> None:
        """One that this number was recorded for has ended: if that was its job, the others are lost."""
        rivals = self._rivals.pop(id, [])
        if lost and rivals:
            self._track(rivals[0])
            self._looker.look_for([id])
            if rivals[1:]:
                self._rivals[id] = rivals[1:]
            return
        for rival in rivals:
            self._ended(rival, 0, {}, jobs.Ending(lost=True))

    def _refuse(self, foreign: Recorded) -> None:
        """In a thread: a job that we would look for in the wrong place. Raises InvalidConfig, unless its room is gone:
        then it is lost."""
        waits = f"pool '{self._name}': activation {foreign.activation} waits for job {foreign.handle}"
        called = f"{waits}, and jobs are called {self._register.handle('…')} here: put pools.{self._name}"
        if not str(foreign.handle).startswith(f"{self._name}:"):
            raise InvalidConfig(f"{called}.kind back to what it was until it has ended")
        if self._rooms.has(foreign.activation, foreign.attempt):
            raise InvalidConfig(f"{called}.schedd back to what it was until it has ended; {self._accounts.given_up()}")

    def forget(self, handles: Sequence[str]) -> None:
        gone = [t for t in map(self._register.by_handle, handles) if t is not None and t.stage is Stage.ENDED]
        for tracked in gone:
            self._register.drop(tracked)
        if gone:
            self._clear([(t.job.activation, t.job.attempt) for t in gone])
            if self._final_ads is not None:
                self._background.go(self._final_ads.forget([t.id for t in gone]))

    def _clear(self, keys: Sequence[tuple[str, int]]) -> None:
        self._background.go(self._upkeep(self._threads.run(self._rooms.clear, keys)))

    async def _upkeep(self, work: Awaitable[None]) -> None:
        """What no job depends on: if it can't be done now, the audit does it."""
        try:
            await work
            self._upkeep_trouble = ""
        except Unavailable as e:
            self._upkeep_failures += 1
            if str(e) != self._upkeep_trouble:
                _log.error("pool %s: can't clear up: %s", self._name, e)
            self._upkeep_trouble = str(e)

    async def held(self) -> dict[str, str]:
        """Orphans: jobs of ours in the queue that this server does not know. It is asked for them after a start,
        after a submit whose outcome nobody knows, and when one shows itself. Beside that, missed events are looked
        for, and rooms that a killed server has left are cleared."""
        if time.monotonic() >= self._audited + AUDIT_S:
            self._audited = time.monotonic()
            await self._audit()
        if self._own_log is not None:
            await self._upkeep(self._threads.run(self._rooms.rotate, self._own_log))
        if not self._looker.suspects:
            return {}
        found = await self._looker.orphans(self._server, self._sending)
        return {activation: self._register.handle(id) for activation, id in found.items()}

    async def _audit(self) -> None:
        known = self._register.jobs.values()
        doubtful = [t for t in known if t.stage is Stage.RELEASED or t.removed_for is not None]
        self._looker.audit(t.id for t in doubtful if not t.is_over)
        kept = {*self._register.attempts, *self._pending()}
        await self._upkeep(self._threads.run(self._rooms.clear_left, kept, ROOMS_KEPT_S))
        if self._final_ads is not None:
            await self._final_ads.clear_left(ROOMS_KEPT_S)

    def noticed(self, activation: str, attempt: int) -> bool:
        """A job's wrapper says it. What the job leaves is still on its way then: it is looked for until it is gone."""
        tracked = self._register.attempts.get((activation, attempt))
        if tracked is None or tracked.is_over:
            return False
        self._looker.expect(tracked.id)
        return True

    def condition(self) -> tuple[bool, str]:
        if self._background.failure is not None:
            return False, str(self._background.failure)
        troubles = self._accounts.troubles()
        if (log := self._pool.event_log) is not None and not log.exists():
            troubles.add(f"there is no event log {log}: ends are seen every ten minutes only")
        troubles |= {reader.trouble for reader in (self._log, self._final_ads) if reader and reader.trouble}
        if self._waiting:
            troubles.add(f"{len(self._waiting)} jobs have ended; {next(iter(self._waiting.values()))}")
        stages = Counter(t.stage for t in self._register.jobs.values())
        waiting = len(self._pending())
        line = f"{stages[Stage.HELD]} jobs held, {stages[Stage.RELEASED]} released, {waiting} to be submitted"
        return not troubles, "; ".join(troubles) or line

    def counts(self) -> Mapping[str, int]:
        """How often schedds were asked, by what; what the audit has found that nobody had told; what went wrong."""
        counts = self._accounts.calls()
        counts.update({**self._looker.counts, "orders_denied": self._denials, "upkeep_failed": self._upkeep_failures})
        for reader in (self._log, self._final_ads):
            counts.update({} if reader is None else reader.counts())
        return counts

    def reports(self) -> AsyncIterator[list[Report]]:
        return self._background.reports()

    # what the parts say

    def _accepted(self, tracked: Tracked, cancelled: bool) -> None:
        """It is in the queue, held."""
        self._track(tracked)
        if cancelled:
            self._take_away(tracked, jobs.Ending(cancelled=True), "cancelled")
        self._background.report(self._register.accepted(tracked))

    def _refused(self, finished: Finished) -> None:
        """There is no job, and will be none."""
        self._clear([(finished.activation, finished.attempt)])
        self._background.report(finished)

    def _suspect(self) -> None:
        self._looker.suspects = True

    def _may_order(self) -> None:
        for orders in self._orders.values():
            orders.wake()

    def _released(self, id: str) -> None:
        if (tracked := self._register.jobs.get(id)) is not None:
            tracked.lets_go = False
            if tracked.stage is Stage.HELD:
                tracked.stage = Stage.RELEASED

    def _denied(self, id: str, why: str) -> None:
        """It stays in the queue as it is, and is waited for no longer."""
        self._denials += 1
        if (tracked := self._register.jobs.get(id)) is not None:
            self._ended(tracked, _now(), {}, jobs.Ending(refused=f"job {id} can't be {why}"))
        else:
            self._looker.given_up.add(id)

    def _take_away(self, tracked: Tracked, why: jobs.Ending, reason: str) -> None:
        if self.event_log is None and tracked.removed_for is None:  # nobody will say that it is gone
            self._looker.expect(tracked.id)
        tracked.removed_for = tracked.removed_for or why
        self._orders_of(tracked.identity).remove(tracked.id, reason)

    # in each identity's name

    def _submitter(self, identity: str) -> Submitter:
        if identity not in self._submitters:
            submitter = self._submitters[identity] = Submitter(
                self._name, identity, self._accounts, self._preparer, self._threads,
                accepted=self._accepted, refused=self._refused, unsure=self._suspect,
            )  # fmt: skip
            self._background.go(submitter.run())
        return self._submitters[identity]

    def _orders_of(self, identity: str) -> Orders:
        if identity not in self._orders:
            orders = self._orders[identity] = Orders(
                self._name, self._accounts.condor(identity) if self._accounts.may_ask(identity) else None,
                doubtful=self._looker.is_doubtful, released=self._released, denied=self._denied,
            )  # fmt: skip
            self._background.go(orders.run_releases())
            self._background.go(orders.run_removals())
        return self._orders[identity]

    def _pending(self) -> set[tuple[str, int]]:
        return {key for submitter in self._submitters.values() for key in submitter.pending}

    def _sending(self) -> set[str]:
        return {activation for submitter in self._submitters.values() for activation in submitter.sending}

    # what the log pushes

    def _happened(self, event: JobEvent) -> None:
        tracked = self._register.jobs.get(f"{event.cluster}.{event.proc}")
        if tracked is None:
            if event.attributes.get(description.SERVER) == self._server:
                unheard = event.kind is Kind.SUBMITTED and event.activation not in self._sending()
                self._looker.suspects |= unheard or _comes_again(event)
            return
        if not tracked.owns(event.attributes):  # of another schedd, or this one has begun to count anew
            tells = event.kind in (Kind.TERMINATED, Kind.ABORTED, Kind.HELD)
            anothers = event.informed or ACTIVATION in event.attributes  # then nothing is ordered until we know
            if not tracked.is_over and (anothers or (tells and not (self._log and self._log.is_informed))):
                self._looker.look_for([tracked.id])
            return
        match event.kind:
            case Kind.EXECUTING:
                self._runs(tracked, event.time_ms, event.attributes)
            case Kind.EVICTED | Kind.SHADOW_EXCEPTION:
                tracked.running = False
            case Kind.TERMINATED | Kind.ABORTED:
                self._ended(tracked, event.time_ms, event.attributes, endings.of_event(event))
            case Kind.HELD:
                self._held(tracked, event.attributes)

    def _left_for_good(self, id: str, ad: FinalAd) -> bool:
        """A final ad of a job of this server's; whether its job is known."""
        tracked = self._register.jobs.get(id)
        if tracked is not None and tracked.owns(ad.attributes):
            self._left(tracked, ad.attributes)
        return tracked is not None

    def _runs(self, tracked: Tracked, time_ms: int, facts: Mapping[str, Any]) -> None:
        if tracked.is_over or tracked.running:
            return
        tracked.stage, tracked.running, tracked.started_ms = Stage.RELEASED, True, time_ms
        tracked.lets_go = False
        job = tracked.job
        detail = {"job": tracked.id, "host": endings.host(facts)}
        handle = self._register.handle(tracked.id)
        self._background.report(
            Started(activation=job.activation, attempt=job.attempt, handle=handle, time_ms=time_ms, detail=detail)
        )

    def _held(self, tracked: Tracked, facts: Mapping[str, Any]) -> None:
        """The pool has put a job on hold. Our own hold is none of its; a time limit is an end."""
        code = facts.get("HoldReasonCode")
        if code == description.SUBMITTED_HELD or tracked.is_over:
            return
        tracked.running = False
        ending = endings.of_hold(facts)
        policy = tracked.job.on_hold
        if ending.timed_out or policy == "fail":
            self._take_away(tracked, ending, "held")
        elif tracked.lets_go:
            return  # told again, or seen in the queue
        elif isinstance(policy, endings.Release) and tracked.releases < policy.times:
            tracked.releases += 1
            tracked.lets_go = True
            asyncio.get_running_loop().call_later(policy.after_s, self._let_go, tracked)
        elif isinstance(policy, endings.Release):
            self._take_away(tracked, ending, "held")

    def _let_go(self, tracked: Tracked) -> None:
        if tracked.stage is Stage.RELEASED and not self._stopping:
            self._orders_of(tracked.identity).release(tracked.id)

    def _ended(self, tracked: Tracked, time_ms: int, facts: Mapping[str, Any], ending: jobs.Ending) -> None:
        if tracked.is_over:
            return
        tracked.stage = Stage.ENDING
        self._orders_of(tracked.identity).withdraw(tracked.id)
        self._looker.settle(tracked.id)
        was_lost = ending.lost
        if ending.exit_code is None and ending.signal is None and tracked.removed_for is not None:
            ending = tracked.removed_for
        self._background.go(self._end(tracked, time_ms or _now(), facts, ending))
        self._settle_rivals(tracked.id, lost=was_lost)

    async def _end(self, tracked: Tracked, time_ms: int, facts: Mapping[str, Any], ending: jobs.Ending) -> None:
        job = tracked.job
        try:
            tracked.finished = await repeated(
                lambda: self._deliverers.run(self._concluded, tracked, time_ms, facts, ending),
                lambda why: self._undelivered(tracked, why),
            )
        except Exception as e:
            _log.exception("pool %s: what job %s has left can't be dealt with", self._name, tracked.id)
            text = f"what the job has left can't be dealt with: {type(e).__name__}: {e}"
            error = orjson.dumps({"error": text.encode(errors="replace").decode()})
            tracked.finished = Finished(
                activation=job.activation, attempt=job.attempt, status=Status.INTERNAL_ERROR, result=error, final=False,
                started_ms=tracked.started_ms or time_ms, ended_ms=time_ms, handle=self._register.handle(tracked.id),
            )  # fmt: skip
        self._waiting.pop(tracked.id, None)
        reached("delivered")
        tracked.stage = Stage.ENDED
        self._background.report(tracked.finished)

    def _undelivered(self, tracked: Tracked, why: str) -> None:
        self._waiting[tracked.id] = why
        _log.error("pool %s: job %s: %s; it is tried again", self._name, tracked.id, why)

    def _concluded(self, tracked: Tracked, time_ms: int, facts: Mapping[str, Any], ending: jobs.Ending) -> Finished:
        """In a thread: what the job has left is delivered. Without its room nobody knows what that was."""
        job = tracked.job
        self._rooms.take_back(job)
        if (ending.exit_code is not None or ending.signal is not None) and not self._rooms.was_used(job):
            ending = jobs.Ending(lost=True)
        usage = {"job": tracked.id, **endings.usage(facts, ending)}
        return self._delivery.report(
            job.numbered(tracked.id), ending, self._rooms.room(job), self._register.handle(tracked.id), usage=usage,
            started_ms=tracked.started_ms, ended_ms=time_ms,
        )  # fmt: skip

    def _seen(self, tracked: Tracked, ad: Mapping[str, Any]) -> None:
        """A job that is in the queue."""
        status, code = ad.get("JobStatus"), ad.get("HoldReasonCode")
        if status == endings.HELD and code == description.SUBMITTED_HELD:
            if tracked.stage is Stage.RELEASED and tracked.removed_for is None:  # the schedd was killed at that moment
                tracked.stage = Stage.HELD
                self._orders_of(tracked.identity).release(tracked.id)
            return
        tracked.stage = Stage.RELEASED
        self._orders_of(tracked.identity).withdraw_release(tracked.id)
        if status == endings.RUNNING:
            self._runs(tracked, endings.started_ms(ad), ad)
        elif status == endings.HELD:
            self._held(tracked, ad)

    def _left(self, tracked: Tracked, ad: Mapping[str, Any]) -> None:
        """A job that is not in the queue any more; an empty ad: nobody knows it."""
        tracked.started_ms = tracked.started_ms or endings.started_ms(ad)
        self._ended(tracked, endings.ended_ms(ad), ad, endings.of_ad(ad))

    def _track(self, tracked: Tracked) -> None:
        for before in [*self._rivals.pop(tracked.id, []), self._register.jobs.get(tracked.id)]:
            if before is not None:  # its number was given again: it is not in that schedd any more
                self._ended(before, 0, {}, jobs.Ending(lost=True))
        self._register.add(tracked)
        if self._final_ads is not None and (ad := self._final_ads.claim(tracked.id)) is not None:
            self._left_for_good(tracked.id, ad)


def _comes_again(event: JobEvent) -> bool:
    """Whether a job that is not known any more is after all not at its end: the schedd was killed."""
    held = event.kind is Kind.HELD and event.attributes.get("HoldReasonCode") != description.SUBMITTED_HELD
    return held or event.kind is Kind.EXECUTING


def _now() -> int:
    return int(time.time() * 1000)
