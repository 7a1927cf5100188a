"""HTCondor: jobs in a pool, submitted held, released when they are recorded, ended by what the pool's log pushes.

It owns one directory, with a room for each job, and what it knows of jobs in memory. It never lets a job run that was
not recorded: what it submits is held until `release`. The log wakes it up; what it has missed stands in queue and
history, which are asked after a start, when something has gone wrong, and by a slow audit, but not otherwise. Events
count only for jobs that it has submitted itself, or that are recorded: by their number, which nobody can choose, and by
their activation, since a schedd that is made anew counts from the beginning.

All methods and all state belong to the event loop, but for two memos that `_prepare` fills in its thread. Files are
read and written in threads; the bindings live in helper processes (`client`), one for each identity.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import orjson

from eventmill.config import Pool
from eventmill.entities import Status
from eventmill.errors import EventmillError, InvalidInput, Unavailable
from eventmill.executors import jobs
from eventmill.executors.background import Background
from eventmill.executors.base import (
    Accepted,
    Attempt,
    CodeSource,
    Executor,
    Finished,
    Found,
    Recorded,
    Report,
    Started,
)
from eventmill.executors.delivery import Delivery
from eventmill.executors.htcondor import description, endings
from eventmill.executors.htcondor.client import Condor
from eventmill.executors.htcondor.eventlog import EventLog
from eventmill.executors.htcondor.history import FinalAd, HistoryDir
from eventmill.executors.htcondor.records import ACTIVATION, JobEvent, Kind
from eventmill.executors.htcondor.rooms import Job, Rooms
from eventmill.points import reached

_log = logging.getLogger(__name__)
T = TypeVar("T")

AGAIN_S = 2.0
"""What the schedd could not do is asked for again after this."""
AUDIT_S = 600.0
"""So often the queue is looked at for jobs whose events were missed."""
ROOMS_KEPT_S = 7 * 86_400.0
"""The room of a job that is not known here goes after this: the job's partition may be another server's for a while."""
HISTORY_MAX = 50
"""Jobs that are looked for in the history at one go: it is read from its end, job by job."""
FORGOTTEN_MAX = 10_000
THREADS = 4
LOCAL_SCHEDD = "local"
"""In handles and subjects: the schedd of this machine, where the configuration names none."""
SELF = ""
"""The identity of namespaces without a token: the server's own account."""


class Stage(Enum):
    """How far a job is, as this server sees it."""

    HELD = auto()
    """In the queue, held by us; waits for its release."""
    RELEASED = auto()
    ENDING = auto()
    ENDED = auto()
    """Its `Finished` has been reported; its room stays until it is forgotten."""


@dataclass(slots=True, eq=False)
class _Tracked:
    job: Job
    id: str
    """cluster.proc"""
    identity: str
    stage: Stage = Stage.HELD
    running: bool = False
    started_ms: int = 0
    releases: int = 0
    """How often it was let go again after the pool had held it."""
    lets_go: bool = False
    """It will be let go again: this hold is counted."""
    removed_for: jobs.Ending | None = None
    """Why we have removed it."""
    finished: Finished | None = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An attempt that can be submitted: its room is made."""

    attempt: Attempt
    job: Job
    commands: dict[str, str]


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
    ) -> None:
        """`name`: the pool's, first part of every handle. The rest as for the local queue. Raises InvalidConfig."""
        self._code = code
        self._name = name
        self._pool = pool
        self._state = state_dir.absolute()
        self.event_log = (pool.event_log or self._state / "log" / "jobs.log").absolute()
        """Where the pool's events stand: in a log of its own, or in one of our jobs'."""
        self._roots = [str(root.absolute()) for root in roots]
        self._rooms = Rooms(self._state, files_max=archive_files_max, bytes_max=archive_bytes_max, spool=pool.spool_dir)
        self._owners: dict[str, str] = {}
        """Whose jobs those of an identity are, where that matters."""
        self._results = results_dir.absolute()
        self._delivery = Delivery(results_dir, self._roots, result_bytes_max=result_bytes_max)
        defaults, variables = description.read_defaults(pool.defaults)
        self._terms = description.Terms(
            log=None if pool.event_log else self._state / "log" / "jobs.log",
            keep_claim_idle_s=pool.keep_claim_idle_s, defaults=defaults, environment={**environment, **variables},
        )  # fmt: skip
        self._commands: dict[str, frozenset[str]] = {}
        """What the descriptions of each namespace may say."""
        for namespace in pool.commands:
            self._allowed(namespace)
        self._condors: dict[str, Condor] = {}
        self._server = ""
        self._only_namespace: str | None = None
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=f"{name}-jobs")
        self._jobs: dict[str, _Tracked] = {}
        """By cluster.proc."""
        self._attempts: dict[tuple[str, int], _Tracked] = {}
        self._pending: dict[tuple[str, int], Attempt] = {}
        """To be submitted; those that are on their way among them."""
        self._queue: list[tuple[str, int]] = []
        """Those of them that have no room yet, in the order in which they came."""
        self._dropped: set[tuple[str, int]] = set()
        """Cancelled before they were submitted."""
        self._release: dict[str, None] = {}
        self._remove: dict[str, str] = {}
        """cluster.proc → reason."""
        self._unseen: set[str] = set()
        """Jobs that have to be looked for."""
        self._final_ads = None if pool.history_dir is None else HistoryDir(pool.history_dir)
        self._log_trouble = ""
        self._log_is_informed = False
        """Each event comes with the job's attributes, sooner or later; else they have to be asked for."""
        self._forgotten: deque[str] = deque(maxlen=FORGOTTEN_MAX)
        """Files of final ads that are not wanted any more, if they come late."""
        self._final: dict[str, FinalAd] = {}
        """Of our jobs that have left the queue, by cluster.proc: kept until their ends are recorded."""
        self._suspect = True
        """There may be jobs of ours in the queue that are in no record."""
        self._strays: dict[str, str] = {}
        """Those of them that were seen: cluster.proc → identity."""
        self._audited = time.monotonic()
        self._work = {name: asyncio.Event() for name in ("submit", "release", "remove", "look")}
        self._background = Background()
        self._stopping = False

    # the contract

    async def start(self) -> None:
        self._server = await self._in_thread(self._rooms.open)
        self._terms = replace(self._terms, server=self._server)
        # from here on: what happened before stands in queue and history, where recorded jobs are looked for
        events = EventLog(self.event_log, at_end=True)
        self._background.go(self._follow(events))
        if self._final_ads is not None:
            self._background.go(self._follow_history(self._final_ads))
        for loop in (self._submitter(), self._releaser(), self._remover(), self._looker()):
            self._background.go(loop)
        with suppress(Unavailable):  # it is said in `condition`; jobs wait
            await self._condor(next(iter(self._identities()))).ping()

    async def stop(self) -> None:
        self._stopping = True
        for task in list(self._background.tasks):
            task.cancel()
        await asyncio.gather(*self._background.tasks, return_exceptions=True)
        for condor in self._condors.values():
            await condor.stop()
        self._background.silence()
        await asyncio.to_thread(self._threads.shutdown)
        self._rooms.close()

    def submit(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            key = attempt.activation, attempt.number
            if tracked := self._attempts.get(key):
                self._background.report(self._as_accepted(tracked), *([tracked.finished] if tracked.finished else []))
            elif key not in self._pending:
                self._pending[key] = attempt
                self._queue.append(key)
        self._work["submit"].set()

    def release(self, handles: Sequence[str]) -> None:
        for tracked in map(self._by_handle, handles):
            if tracked is not None and tracked.stage is Stage.HELD:
                self._release[tracked.id] = None
        self._work["release"].set()

    def cancel(self, activations: Mapping[str, str | None]) -> None:
        for activation, handle in activations.items():
            if handle is None:
                self._dropped.update(key for key in self._pending if key[0] == activation)
            for tracked in [t for t in self._jobs.values() if t.job.activation == activation]:
                if handle in (None, self._handle(tracked.id)) and tracked.stage in (Stage.HELD, Stage.RELEASED):
                    self._take_away(tracked, jobs.Ending(cancelled=True), "cancelled")
            if handle is not None and (id := self._id(handle)) is not None and id not in self._jobs:
                self._remove[id] = "never recorded"  # an orphan
        self._work["remove"].set()
        self._work["submit"].set()

    async def find(self, recorded: Sequence[Recorded]) -> dict[str, Found]:
        """Every recorded job is found: what became of it is looked for beside, and reported."""
        found: dict[str, Found] = {}
        for each in recorded:
            id = None if each.handle is None else self._id(each.handle)
            if id is None:
                continue
            if not self._pool.tokens:
                self._only_namespace = self._only_namespace or each.namespace
            if id not in self._jobs:
                job = await self._in_thread(self._rooms.job, each.activation, each.attempt, each.namespace)
                self._track(_Tracked(job, id, self._identity(each.namespace), Stage.HELD))
                self._unseen.add(id)
            found[each.activation] = Found(activation=each.activation, handle=each.handle, running=True)
        self._work["look"].set()
        return found

    def forget(self, handles: Sequence[str]) -> None:
        gone = [t for t in map(self._by_handle, handles) if t is not None and t.stage is Stage.ENDED]
        for tracked in gone:
            del self._jobs[tracked.id]
            self._attempts.pop((tracked.job.activation, tracked.job.attempt), None)
        if gone:
            self._background.go(self._in_thread(self._rooms.clear, [t.job for t in gone]))
        if self._final_ads is not None and (ads := [ad for t in gone if (ad := self._final.pop(t.id, None))]):
            self._background.go(self._final_ads.delete(ads))
        self._forgotten.extend(f"history.{t.id}" for t in gone)

    async def held(self) -> dict[str, str]:
        """Orphans: jobs of ours in the queue that this server does not know. It is asked for them after a start,
        after a submit whose outcome nobody knows, and when one shows itself. Beside that, missed events are looked
        for, and rooms that a killed server has left are cleared."""
        if time.monotonic() >= self._audited + AUDIT_S:
            self._audited = time.monotonic()
            doubtful = [t for t in self._jobs.values() if t.stage is Stage.RELEASED or t.removed_for is not None]
            self._unseen.update(t.id for t in doubtful if t.stage in (Stage.HELD, Stage.RELEASED))
            self._work["look"].set()
            kept = {*self._attempts, *self._pending}
            await self._in_thread(self._rooms.clear_left, kept, ROOMS_KEPT_S)
        if self._pool.event_log is None:
            await self._in_thread(self._rooms.rotate, self.event_log)
        if not self._suspect or self._pending:
            return {}
        found: dict[str, str] = {}
        unheard = False
        for identity in self._identities():
            try:
                found |= await self._orphans(identity)
            except Unavailable:
                unheard = True
        if self._pending:  # one of them may be a job whose number we are about to hear
            return {}
        self._suspect = unheard or bool(found)  # an activation may have several, of which one was found
        return found

    async def _orphans(self, identity: str) -> dict[str, str]:
        """Activation → handle, whatever they are at: somebody may have released them all, and a schedd that was killed
        may have started one again that has ended for us."""
        condor = self._condor(identity)
        owner = (await condor.ping())["identity"].partition("@")[0]  # anybody can set an attribute
        alive = f"JobStatus =!= {endings.REMOVED} && JobStatus =!= {endings.COMPLETED}"
        constraint = f'EventmillServer == "{self._server}" && {alive} && Owner == "{owner}"'
        ads = await condor.query(constraint, ["ClusterId", "ProcId", "EventmillActivation"])
        found = {_id(ad): str(ad["EventmillActivation"]) for ad in ads if _id(ad) not in self._jobs}
        self._strays |= dict.fromkeys(found, identity)
        return {activation: self._handle(id) for id, activation in found.items()}

    def condition(self) -> tuple[bool, str]:
        if self._background.failure is not None:
            return False, str(self._background.failure)
        troubles = {condor.trouble for condor in self._condors.values() if condor.trouble}
        if self._pool.event_log is not None and not self.event_log.exists():
            troubles.add(f"there is no event log {self.event_log}: ends are seen every ten minutes only")
        if self._log_trouble:
            troubles.add(self._log_trouble)
        stages = Counter(t.stage for t in self._jobs.values())
        line = (
            f"{stages[Stage.HELD]} jobs held, {stages[Stage.RELEASED]} released, {len(self._pending)} to be submitted"
        )
        return not troubles, "; ".join(troubles) or line

    def counts(self) -> Mapping[str, int]:
        """How often schedds were asked, by what."""
        total: Counter[str] = Counter()
        for condor in self._condors.values():
            total.update(condor.calls)
        return total

    def reports(self) -> AsyncIterator[list[Report]]:
        return self._background.reports()

    # submitting

    async def _submitter(self) -> None:
        """One call after the other: what comes while one is on its way goes together in the next, whose rooms are made
        meanwhile."""
        ahead: asyncio.Task[list[_Prepared]] | None = None
        try:
            while True:
                group = await (ahead or self._prepare_next())
                ahead = asyncio.ensure_future(self._prepare_next()) if self._queue else None
                while group := await self._submit_group(group):  # noqa: ASYNC110 (the schedd is away)
                    await asyncio.sleep(AGAIN_S)
        finally:
            if ahead is not None:
                ahead.cancel()

    async def _prepare_next(self) -> list[_Prepared]:
        """Wait until something is to be submitted; rooms and commands of the next."""
        while not self._queue:
            self._work["submit"].clear()
            await self._work["submit"].wait()
        keys, self._queue = (
            self._queue[: description.JOBS_PER_CLUSTER],
            self._queue[description.JOBS_PER_CLUSTER :],
        )
        if self._pool.spool_dir is not None:
            await self._know_owners({self._identity(self._pending[key].action.namespace) for key in keys})
        outcomes = await self._in_thread(self._prepare, [self._pending[key] for key in keys])
        for key, outcome in zip(keys, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._refuse(key, outcome)
        return [outcome for outcome in outcomes if not isinstance(outcome, Exception)]

    async def _know_owners(self, identities: Iterable[str]) -> None:
        """Ask whose jobs they will be, until the schedd says it."""
        for identity in identities:
            while identity not in self._owners:
                try:
                    ping = await self._condor(identity).ping()
                    self._owners[identity] = str(ping["identity"]).partition("@")[0]
                except Unavailable as e:
                    _log.error("pool %s: %d jobs wait: %s", self._name, len(self._pending), e)
                    await asyncio.sleep(AGAIN_S)

    async def _submit_group(self, group: Sequence[_Prepared]) -> list[_Prepared]:
        """Submit these; what the schedd could not take now."""
        reached("furnished")
        left: list[_Prepared] = []
        identities: dict[str, list[_Prepared]] = {}
        for each in group:
            if not self._is_dropped(each.attempt):
                identities.setdefault(self._identity(each.job.namespace), []).append(each)
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
        del self._pending[key]
        self._background.report(_unsubmitted(attempt, "cancelled", Status.APPLICATION_ERROR, final=True))
        return True

    async def _submit_cluster(
        self, identity: str, cluster: description.Cluster, members: list[_Prepared]
    ) -> list[_Prepared]:
        """One call; those that the schedd could not take now."""
        try:
            ids = await self._condor(identity).submit(cluster.commands, cluster.items)
        except InvalidInput as e:
            if len(members) > 1:  # one of them is refused: which one, the halves tell
                half = len(members) // 2
                return [*await self._submit_group(members[:half]), *await self._submit_group(members[half:])]
            self._refuse((members[0].attempt.activation, members[0].attempt.number), e)
            return []
        except Unavailable as e:
            self._suspect = True  # it may have been done all the same
            _log.error("pool %s: %d jobs wait: %s", self._name, len(self._pending), e)
            return members
        reached("submitted")
        for id, each in zip(ids, members, strict=True):
            key = each.attempt.activation, each.attempt.number
            del self._pending[key]
            tracked = _Tracked(each.job, id, identity)
            self._track(tracked)
            if key in self._dropped:  # meanwhile
                self._dropped.discard(key)
                self._take_away(tracked, jobs.Ending(cancelled=True), "cancelled")
            self._background.report(self._as_accepted(tracked))
        return []

    def _prepare(self, attempts: Sequence[Attempt]) -> list[_Prepared | Exception]:
        """In a thread: rooms and commands, or why there can be none."""
        outcomes: list[_Prepared | Exception] = []
        found: dict[Any, description.Sources] = {}
        for attempt in attempts:
            try:
                outcomes.append(self._prepare_one(attempt, found))
            except (EventmillError, OSError) as e:
                outcomes.append(e)
        return outcomes

    def _prepare_one(self, attempt: Attempt, found: dict[Any, description.Sources]) -> _Prepared:
        """`found`: where files lie that other jobs have named."""
        action = attempt.action
        if problem := self._refusal(action.namespace):
            raise InvalidInput(problem)
        digest = action.code or ""
        archive = self._rooms.archive(digest, self._code, self._allowed(action.namespace))
        parameters = orjson.loads(attempt.params)
        roots = [*self._roots, str(self._results / action.namespace)]  # results of its own may be named
        bound = archive.description.bind(parameters if isinstance(parameters, dict) else {}, roots=roots)
        archive.check_files(bound)
        job = Job(
            activation=attempt.activation, attempt=attempt.number, namespace=action.namespace, code=digest,
            description=bound, logs_bytes=action.limits.logs_mb << 20,
            on_hold=endings.read_policy(action.annotations.get("on_hold")),
        )  # fmt: skip
        files, code = (digest, bound.executable, bound.input, bound.inputs), self._rooms.code(digest)
        if files not in found:
            found[files] = description.sources(bound, code, roots)
        owner = self._owners.get(self._identity(job.namespace), "")
        facts = description.Facts(
            activation=attempt.activation, attempt=attempt.number, action=action.qualified, batch_name=action.qualified,
            room=self._rooms.furnish(job, attempt.params, owner), code=code, memory_mb=action.limits.memory_mb,
            limit_s=action.limits.timeout_ms // 1000 if action.limits.timeout_ms else None,
            traceparent=attempt.traceparent,
        )  # fmt: skip
        return _Prepared(attempt, job, description.job_commands(bound, facts, self._terms, found[files]))

    def _allowed(self, namespace: str) -> frozenset[str]:
        if namespace not in self._commands:
            self._commands[namespace] = description.allowed_commands(self._pool.commands, namespace)
        return self._commands[namespace]

    def _refusal(self, namespace: str) -> str | None:
        """Why a namespace may have no jobs here; None if it may."""
        if namespace in self._pool.tokens:
            return None
        if self._only_namespace is None:
            self._only_namespace = namespace
        if namespace == self._only_namespace and not self._pool.tokens:
            return None
        return (
            f"jobs of namespace '{namespace}' are refused by pool '{self._name}': they would be the same account's as"
            f" others': give each namespace an IDTOKEN (pools.{self._name}.tokens)"
        )

    def _refuse(self, key: tuple[str, int], why: Exception) -> None:
        attempt = self._pending.pop(key)
        self._dropped.discard(key)
        own = isinstance(why, EventmillError)
        text = str(why) if own else f"can't submit the job: {getattr(why, 'strerror', why)}"
        status = Status.DEVELOPER_ERROR if own else Status.INTERNAL_ERROR
        self._background.report(_unsubmitted(attempt, text, status, final=own))

    # releasing, removing

    async def _releaser(self) -> None:
        while True:
            await self._work["release"].wait()
            self._work["release"].clear()
            # what was found after a restart may be held by the pool, or by hand: that is looked at first
            while batch := [id for id in self._release if id not in self._unseen]:
                await self._each(batch, lambda condor, ids: condor.release(ids), self._released, self._release)
                reached("unheld")

    def _released(self, tracked: _Tracked) -> None:
        tracked.lets_go = False
        if tracked.stage is Stage.HELD:
            tracked.stage = Stage.RELEASED

    async def _remover(self) -> None:
        while True:
            await self._work["remove"].wait()
            self._work["remove"].clear()
            # what was found after a restart may have another's number by now: that is looked at first
            while waiting := {id: why for id, why in self._remove.items() if id not in self._unseen}:
                for reason in set(waiting.values()):
                    batch = [id for id, why in waiting.items() if why == reason]
                    said = f"{endings.BY_US}{reason}"
                    await self._each(batch, partial(_removal, reason=said), lambda _: None, self._remove)

    async def _each(
        self,
        ids: Sequence[str],
        call: Callable[[Condor, Sequence[str]], Coroutine[Any, Any, None]],
        done: Callable[[_Tracked], None],
        waiting: dict[str, Any],
    ) -> None:
        """Do something with jobs, by identity; what can't be done now stays in `waiting`."""
        groups: dict[str, list[str]] = {}
        for id in ids:
            tracked = self._jobs.get(id)
            identity = self._strays.get(id, SELF) if tracked is None else tracked.identity
            groups.setdefault(identity, []).append(id)
        for identity, group in groups.items():
            try:
                await call(self._condor(identity), group)
            except EventmillError as e:
                _log.error("pool %s: %d jobs wait to be released or removed: %s", self._name, len(waiting), e)
                await asyncio.sleep(AGAIN_S)
                continue
            for id in group:
                waiting.pop(id, None)
                self._strays.pop(id, None)
                if (tracked := self._jobs.get(id)) is not None:
                    done(tracked)

    def _take_away(self, tracked: _Tracked, why: jobs.Ending, reason: str) -> None:
        tracked.removed_for = tracked.removed_for or why
        self._release.pop(tracked.id, None)
        self._remove[tracked.id] = reason
        self._work["remove"].set()

    # what the log pushes

    async def _follow(self, log: EventLog) -> None:
        while True:
            try:
                async for events in log:
                    self._log_trouble = ""
                    self._log_is_informed |= any(event.informed for event in events)
                    for event in events:
                        tracked = self._jobs.get(f"{event.cluster}.{event.proc}")
                        if tracked is not None:
                            self._happened(tracked, event)
                        elif event.attributes.get(description.SERVER) == self._server:
                            self._suspect |= _comes_again(event)
            except Unavailable as e:
                self._log_trouble = str(e)
                _log.error("pool %s: %s", self._name, e)
                await asyncio.sleep(AGAIN_S)

    async def _follow_history(self, outbox: HistoryDir) -> None:
        """Final ads of jobs that have left the queue. Each of ours stays there until its end is recorded."""
        while True:
            try:
                async for ads in outbox:
                    ours = {ad.file: ad for ad in ads if ad.attributes.get(description.SERVER) == self._server}
                    late = [ad for ad in ours.values() if ad.file in self._forgotten]
                    await outbox.delete(late)
                    for ad in ours.values():
                        id = f"{ad.cluster}.{ad.proc}"
                        if ad in late:
                            continue
                        self._final[id] = ad
                        if (tracked := self._jobs.get(id)) is not None:
                            self._left(tracked, ad)
                    await outbox.delete(ad for ad in ads if ad.file not in ours)
            except Unavailable as e:
                _log.error("pool %s: %s", self._name, e)
                await asyncio.sleep(AGAIN_S)

    def _left(self, tracked: _Tracked, ad: FinalAd) -> None:
        facts = ad.attributes
        if not _is_of(tracked, facts):
            return
        tracked.started_ms = tracked.started_ms or endings.started_ms(facts)
        self._ended(tracked, endings.ended_ms(facts), facts, endings.of_ad(facts))

    def _happened(self, tracked: _Tracked, event: JobEvent) -> None:
        if not _is_of(tracked, event.attributes):  # of another schedd, or this one has begun to count anew
            tells = event.kind in (Kind.TERMINATED, Kind.ABORTED, Kind.HELD)
            if ACTIVATION not in event.attributes and tells and not self._log_is_informed:
                self._unseen.add(tracked.id)
                self._work["look"].set()
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

    def _runs(self, tracked: _Tracked, time_ms: int, facts: Mapping[str, Any]) -> None:
        if tracked.stage in (Stage.ENDING, Stage.ENDED) or tracked.running:
            return
        tracked.stage, tracked.running, tracked.started_ms = Stage.RELEASED, True, time_ms
        tracked.lets_go = False
        job = tracked.job
        detail = {"job": tracked.id, "host": endings.host(facts)}
        handle = self._handle(tracked.id)
        self._background.report(
            Started(activation=job.activation, attempt=job.attempt, handle=handle, time_ms=time_ms, detail=detail)
        )

    def _held(self, tracked: _Tracked, facts: Mapping[str, Any]) -> None:
        """The pool has put a job on hold. Our own hold is none of its; a time limit is an end."""
        code = facts.get("HoldReasonCode")
        if code == description.SUBMITTED_HELD or tracked.stage in (Stage.ENDING, Stage.ENDED):
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

    def _let_go(self, tracked: _Tracked) -> None:
        if tracked.stage is Stage.RELEASED and not self._stopping:
            self._release[tracked.id] = None
            self._work["release"].set()

    def _ended(self, tracked: _Tracked, time_ms: int, facts: Mapping[str, Any], ending: jobs.Ending) -> None:
        if tracked.stage in (Stage.ENDING, Stage.ENDED):
            return
        tracked.stage = Stage.ENDING
        self._release.pop(tracked.id, None)
        self._remove.pop(tracked.id, None)
        self._unseen.discard(tracked.id)
        if ending.exit_code is None and ending.signal is None and tracked.removed_for is not None:
            ending = tracked.removed_for
        self._background.go(self._end(tracked, time_ms or _now(), facts, ending))

    async def _end(self, tracked: _Tracked, time_ms: int, facts: Mapping[str, Any], ending: jobs.Ending) -> None:
        job = tracked.job
        try:
            tracked.finished = await self._in_thread(self._concluded, tracked, time_ms, facts, ending)
        except Exception as e:
            _log.exception("pool %s: what job %s has left can't be dealt with", self._name, tracked.id)
            error = orjson.dumps({"error": f"what the job has left can't be dealt with: {type(e).__name__}: {e}"})
            tracked.finished = Finished(
                activation=job.activation, attempt=job.attempt, status=Status.INTERNAL_ERROR, result=error, final=False,
                started_ms=tracked.started_ms or time_ms, ended_ms=time_ms, handle=self._handle(tracked.id),
            )  # fmt: skip
        reached("delivered")
        tracked.stage = Stage.ENDED
        self._background.report(tracked.finished)

    def _concluded(self, tracked: _Tracked, time_ms: int, facts: Mapping[str, Any], ending: jobs.Ending) -> Finished:
        """In a thread: what the job has left is delivered. Without its room nobody knows what that was."""
        job = tracked.job
        self._rooms.take_back(job)
        if (ending.exit_code is not None or ending.signal is not None) and not self._rooms.was_used(job):
            ending = jobs.Ending(lost=True)
        usage = {"job": tracked.id, **endings.usage(facts, ending)}
        return self._delivery.report(
            job.numbered(tracked.id), ending, self._rooms.room(job), self._handle(tracked.id), usage=usage,
            started_ms=tracked.started_ms, ended_ms=time_ms,
        )  # fmt: skip

    # what the log has not pushed

    async def _looker(self) -> None:
        """Look in queue and history for jobs of which it is not known what they are at."""
        while True:
            await self._work["look"].wait()
            self._work["look"].clear()
            while self._unseen:
                for identity in {self._jobs[id].identity for id in self._unseen if id in self._jobs}:
                    ids = [id for id in self._unseen if id in self._jobs and self._jobs[id].identity == identity]
                    with suppress(Unavailable):
                        for start in range(0, len(ids), description.JOBS_PER_CLUSTER):
                            await self._look(identity, ids[start : start + description.JOBS_PER_CLUSTER])
                            self._work["release"].set()
                            self._work["remove"].set()
                self._unseen &= self._jobs.keys()
                if self._unseen:
                    await asyncio.sleep(AGAIN_S)

    async def _look(self, identity: str, ids: Sequence[str]) -> None:
        condor = self._condor(identity)
        queued = {_id(ad): ad for ad in await condor.query(_any_of(ids), endings.ATTRIBUTES)}
        found = [tracked for id in ids if (tracked := self._jobs.get(id)) is not None]
        missing = [t for t in found if t.id not in queued or not _is_of(t, queued[t.id])]
        for tracked in found:
            if tracked not in missing:
                self._seen(tracked, queued[tracked.id])
        for start in range(0, len(missing), HISTORY_MAX):
            some = missing[start : start + HISTORY_MAX]
            # one that has left the queue between the two questions is in the history
            ended = {_id(ad): ad for ad in await condor.history([t.id for t in some], endings.ATTRIBUTES)}
            for tracked in some:
                ad = ended.get(tracked.id, {})
                if tracked.id in self._jobs:
                    ad = ad if _is_of(tracked, ad) else {}
                    self._ended(tracked, endings.ended_ms(ad), ad, endings.of_ad(ad))

    def _seen(self, tracked: _Tracked, ad: Mapping[str, Any]) -> None:
        """A job that is in the queue."""
        if tracked.stage in (Stage.ENDING, Stage.ENDED):
            return
        status, code = ad.get("JobStatus"), ad.get("HoldReasonCode")
        if status in (endings.COMPLETED, endings.REMOVED):
            return  # it is on its way into the history: it is looked for again
        id = tracked.id
        self._unseen.discard(id)
        if status == endings.HELD and code == description.SUBMITTED_HELD:
            if tracked.stage is Stage.RELEASED and tracked.removed_for is None:  # the schedd was killed at that moment
                tracked.stage = Stage.HELD
                self._release[id] = None
            return
        tracked.stage = Stage.RELEASED
        self._release.pop(tracked.id, None)
        if status == endings.RUNNING:
            self._runs(tracked, endings.started_ms(ad), ad)
        elif status == endings.HELD:
            self._held(tracked, ad)

    # identities, handles, reports, threads

    def _identity(self, namespace: str) -> str:
        return namespace if namespace in self._pool.tokens else SELF

    def _identities(self) -> Iterable[str]:
        return self._pool.tokens or [SELF]

    def _condor(self, identity: str) -> Condor:
        if identity not in self._condors:
            self._condors[identity] = Condor(
                directory=self._state / "identities" / (identity or "self"),
                condor_config=self._pool.condor_config,
                schedd=self._pool.schedd,
                collector=self._pool.collector,
                token_file=self._pool.tokens.get(identity),
            )
        return self._condors[identity]

    def _track(self, tracked: _Tracked) -> None:
        self._jobs[tracked.id] = tracked
        self._attempts[tracked.job.activation, tracked.job.attempt] = tracked
        if (ad := self._final.get(tracked.id)) is not None:
            self._left(tracked, ad)

    def _handle(self, id: str) -> str:
        return f"{self._name}:{self._pool.schedd or LOCAL_SCHEDD}#{id}"

    def _id(self, handle: str) -> str | None:
        """cluster.proc of a handle; None if it is another pool's."""
        pool, _, id = handle.rpartition("#")
        return id if pool == self._handle("").removesuffix("#") else None

    def _by_handle(self, handle: str) -> _Tracked | None:
        id = self._id(handle)
        return None if id is None else self._jobs.get(id)

    def _as_accepted(self, tracked: _Tracked) -> Accepted:
        job = tracked.job
        return Accepted(activation=job.activation, attempt=job.attempt, handle=self._handle(tracked.id))

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *arguments))


async def _removal(condor: Condor, ids: Sequence[str], reason: str) -> None:
    await condor.remove(ids, reason)


def _is_of(tracked: _Tracked, facts: Mapping[str, Any]) -> bool:
    """Whether an ad or an event is this job's: its number alone may be another's, if the schedd was made anew."""
    return facts.get(ACTIVATION) == tracked.job.activation


def _id(ad: Mapping[str, Any]) -> str:
    return f"{ad['ClusterId']}.{ad['ProcId']}"


def _comes_again(event: JobEvent) -> bool:
    """Whether a job that is not known any more is after all not at its end: the schedd was killed."""
    held = event.kind is Kind.HELD and event.attributes.get("HoldReasonCode") != description.SUBMITTED_HELD
    return held or event.kind is Kind.EXECUTING


def _any_of(ids: Sequence[str]) -> str:
    """A constraint that these jobs alone meet."""
    pairs = (id.split(".") for id in ids)
    return " || ".join(f"(ClusterId == {int(cluster)} && ProcId == {int(proc)})" for cluster, proc in pairs)


def _unsubmitted(attempt: Attempt, error: str, status: Status, *, final: bool) -> Finished:
    now = _now()
    return Finished(
        activation=attempt.activation, attempt=attempt.number, status=status, result=orjson.dumps({"error": error}),
        final=final, started_ms=now, ended_ms=now,
    )  # fmt: skip


def _now() -> int:
    return int(time.time() * 1000)
