"""The local queue: jobs on this machine, with slots of cores and memory, that outlive the server.

It owns one directory (`spool`), which no other server uses meanwhile, and what is under way in memory. It never runs a
job that was not released, nor one twice: what a job's life is at is written down before each step (`spool`), and its
one start is decided by its claim (`shim`). It never waits on the event loop: files are written in one thread (`disk`),
jobs are started and ended in a few others; ends arrive as pidfds that become readable.

All methods and all state belong to the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import orjson

from eventmill.entities import Status
from eventmill.errors import EventmillError, InvalidConfig, InvalidDescription, InvalidInput
from eventmill.executors.background import Background
from eventmill.executors.base import Accepted, Attempt, CodeSource, Executor, Finished, Found, Recorded, Report, Started
from eventmill.executors.delivery import Delivery, repeated
from eventmill.executors.jobs import JobArchive, read_archive
from eventmill.executors.local import shim
from eventmill.executors.local.ending import Ender
from eventmill.executors.local.records import Claim, End, Job
from eventmill.executors.local.slots import Slots
from eventmill.executors.local.spool import Remembered, Spool
from eventmill.executors.local.starting import Starter

_log = logging.getLogger(__name__)

ARCHIVES_KEPT = 16
"""Codes whose archive is kept ready for the next job."""
THREADS = 4
"""Jobs that are started or ended at once."""

T = TypeVar("T")


class Stage(Enum):
    """How far a job is, as this server sees it."""

    HELD = auto()
    """Accepted; waits for its release."""
    WAITING = auto()
    """Released; waits for slots."""
    STARTING = auto()
    RUNNING = auto()
    """Claimed by a shim, whose death we will see."""
    ENDING = auto()
    ENDED = auto()
    """Its `Finished` has been reported; kept until it is forgotten."""


@dataclass(slots=True, eq=False)
class _Tracked:
    job: Job
    stage: Stage = Stage.HELD
    inherited: bool = False
    """Accepted by an earlier server; as long as it is held, no record of it is known to exist."""
    cancelled: bool = False
    pidfd: int = -1

    @property
    def orphan(self) -> bool:
        return self.inherited and self.stage is Stage.HELD

    finished: Finished | None = None


class LocalQueue(Executor):
    """Runs jobs on this machine (design, section 9). The rules of its slots: `slots`."""

    two_phase = True

    def __init__(
        self,
        code: CodeSource,
        *,
        name: str,
        state_dir: Path,
        cpus: int,
        memory_mb: int,
        environment: Mapping[str, str],
        result_bytes_max: int,
        archive_files_max: int,
        archive_bytes_max: int,
        roots: Sequence[Path] = (),
        results_dir: Path | None = None,
    ) -> None:
        """`name`: the pool's, first part of every handle. `environment`: of all jobs. `roots`: absolute directories in
        which descriptions may name input files and targets of outputs. `results_dir`: what relative output files are
        below, by namespace (default: `results` in `state_dir`).
        """
        self._code = code
        self._name = name
        self._roots = [str(root.absolute()) for root in roots]
        self._files_max = archive_files_max
        self._spool = Spool(state_dir)
        self._slots = Slots(cpus, memory_mb)
        self._starter = Starter(
            self._spool, environment, self._roots_of, files_max=archive_files_max, bytes_max=archive_bytes_max
        )
        self._results = (results_dir or state_dir / "results").absolute()
        delivery = Delivery(self._results, self._roots, result_bytes_max=result_bytes_max)
        self._ender = Ender(self._spool, delivery)
        self._disk = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-disk")
        self._workers = ThreadPoolExecutor(THREADS, thread_name_prefix=f"{name}-jobs")
        self._jobs: dict[int, _Tracked] = {}
        self._accepting: dict[tuple[str, int], bool] = {}
        """Attempts whose acceptance is under way → whether they have been cancelled meanwhile."""
        self._accept_lock = asyncio.Lock()
        self._archives: dict[str, JobArchive] = {}
        self._background = Background()
        self._stopping = False

    # ---- the contract

    async def start(self) -> None:
        for remembered in await self._on_disk(self._spool.open):
            self._resume(remembered)
        self._start_fitting()

    async def stop(self) -> None:
        self._stopping = True
        while self._background.tasks:
            await asyncio.wait(self._background.tasks)
        for tracked in self._jobs.values():
            self._unwatch(tracked)
        self._background.silence()
        self._disk.shutdown()
        self._workers.shutdown()
        self._spool.close()

    def submit(self, attempts: Sequence[Attempt]) -> None:
        known = {(t.job.activation, t.job.attempt): t for t in self._jobs.values() if not t.orphan}
        new: list[Attempt] = []
        for attempt in attempts:
            key = attempt.activation, attempt.number
            if tracked := known.get(key):
                self._background.report(*self._repeated(tracked))
            elif key not in self._accepting:
                self._accepting[key] = False
                new.append(attempt)
        if new:
            self._background.go(self._accept(new))

    def release(self, handles: Sequence[str]) -> None:
        held = [tracked for tracked in map(self._by_handle, handles) if tracked and tracked.stage is Stage.HELD]
        for tracked in held:
            tracked.stage = Stage.WAITING
        if held:
            self._background.go(self._release(held))

    def cancel(self, activations: Mapping[str, str | None]) -> None:
        for activation, handle in activations.items():
            for key in self._accepting:
                if key[0] == activation and handle is None:
                    self._accepting[key] = True
            for tracked in list(self._jobs.values()):
                if tracked.job.activation == activation and handle in (None, self._handle(tracked.job.cluster)):
                    self._cancel(tracked)

    async def find(self, recorded: Sequence[Recorded]) -> dict[str, Found]:
        for each in recorded:
            if each.handle and each.handle.rpartition("#")[0] != self._name:
                raise InvalidConfig(
                    f"pool '{self._name}': activation {each.activation} waits for job {each.handle}, which is none of"
                    f" this machine's: put pools.{self._name}.kind back to what it was until it has ended"
                )
        wanted = {each.activation for each in recorded}
        found: dict[str, Found] = {}
        # an activation's later attempts have later clusters, and are what counts
        for cluster, tracked in sorted(self._jobs.items()):
            if tracked.job.activation in wanted:
                running = tracked.stage not in (Stage.ENDING, Stage.ENDED)
                found[tracked.job.activation] = Found(
                    activation=tracked.job.activation, handle=self._handle(cluster), running=running
                )
        return found

    def forget(self, handles: Sequence[str]) -> None:
        ended = [tracked for tracked in map(self._by_handle, handles) if tracked and tracked.stage is Stage.ENDED]
        if ended:
            self._remove(ended)

    def reports(self) -> AsyncIterator[list[Report]]:
        return self._background.reports()

    async def held(self) -> dict[str, str]:
        """Orphans: what an earlier server accepted and neither it nor this one has released. They never run, not even
        if their attempt is submitted again (that makes another job); the audit cancels those that are in no record.
        """
        return {t.job.activation: self._handle(cluster) for cluster, t in self._jobs.items() if t.orphan}

    def condition(self) -> tuple[bool, str]:
        if self._background.failure is not None:
            return False, str(self._background.failure)
        stages = [tracked.stage for tracked in self._jobs.values()]
        return True, f"{stages.count(Stage.RUNNING)} jobs run, {stages.count(Stage.WAITING)} wait for slots"

    # ---- accepting and releasing

    async def _accept(self, attempts: Sequence[Attempt]) -> None:
        for code, group in groupby(attempts, lambda attempt: attempt.action.code or ""):
            same = list(group)
            try:
                async with self._accept_lock:
                    archive = await self._archive(code)
                    accepted = await self._on_disk(self._write_down, archive, same)
            except (EventmillError, OSError) as e:
                accepted = [e] * len(same)
            for attempt, outcome in zip(same, accepted, strict=True):
                self._accepted(attempt, outcome)

    async def _archive(self, digest: str) -> JobArchive:
        """The code's archive without its bytes, which are in the spool from now on."""
        if digest not in self._archives:
            archive = await self._in_worker(
                functools.partial(read_archive, self._code(digest), files_max=self._files_max)
            )
            await self._on_disk(self._spool.keep_code, digest, archive.data)
            self._archives[digest] = replace(archive, data=b"")
            for old in list(self._archives)[:-ARCHIVES_KEPT]:
                del self._archives[old]
                await self._on_disk(self._spool.drop_code, old)
        return self._archives[digest]

    def _write_down(self, archive: JobArchive, attempts: Sequence[Attempt]) -> list[Job | Exception]:
        """On disk: bind each attempt's description and write down those that are possible."""
        outcomes: list[Job | Exception] = []
        for cluster, attempt in zip(self._spool.number(len(attempts)), attempts, strict=True):
            try:
                outcomes.append(self._bind(archive, attempt, cluster))
            except InvalidInput as e:
                outcomes.append(e)
        params = [attempt.params for attempt in attempts]
        self._spool.accept([(o, raw) for o, raw in zip(outcomes, params, strict=True) if isinstance(o, Job)])
        return outcomes

    def _bind(self, archive: JobArchive, attempt: Attempt, cluster: int) -> Job:
        """The job of an attempt. Raises InvalidInput if it can't run here."""
        parameters = orjson.loads(attempt.params)
        bound = archive.description.bind(
            parameters if isinstance(parameters, dict) else {},
            roots=self._roots_of(attempt.namespace),
            cluster=cluster,
        )
        archive.check_files(bound)
        if bound.universe != "vanilla":
            raise InvalidDescription(f"universe = {bound.universe}: pool '{self._name}' runs jobs without containers")
        if bound.request_gpus:
            raise InvalidDescription(f"request_gpus = {bound.request_gpus}, but pool '{self._name}' has none")
        action = attempt.action
        limits = [action.limits.timeout_ms / 1000] if action.limits.timeout_ms else []
        limits += [bound.duration_s_max] if bound.duration_s_max else []
        job = Job(
            cluster=cluster,
            activation=attempt.activation,
            attempt=attempt.number,
            namespace=attempt.namespace,
            action=action.qualified,
            code=action.code or "",
            description=bound,
            memory_mb=bound.request_memory_mb or action.limits.memory_mb,
            limit_s=min(limits, default=None),
            logs_bytes=action.limits.logs_mb << 20,
            traceparent=attempt.traceparent,
        )
        if problem := self._slots.never_fits(job.request):
            raise InvalidDescription(f"{problem}: '{job.action}' can never run in pool '{self._name}'")
        return job

    def _roots_of(self, namespace: str) -> list[str]:
        """Where the jobs of a namespace may name files by full paths: results of its own are among them."""
        return [*self._roots, str(self._results / namespace)]

    def _accepted(self, attempt: Attempt, outcome: Job | Exception) -> None:
        cancelled = self._accepting.pop((attempt.activation, attempt.number))
        if isinstance(outcome, Exception):
            self._background.report(_refused(attempt, outcome))
            return
        tracked = self._jobs[outcome.cluster] = _Tracked(outcome)
        self._background.report(self._as_accepted(tracked))
        if cancelled:
            self._cancel(tracked)

    async def _release(self, held: Sequence[_Tracked]) -> None:
        problem = ""
        try:
            await self._on_disk(self._spool.release, [tracked.job.cluster for tracked in held])
        except OSError as e:
            problem = f"can't release the job: {e.strerror}"
        for tracked in held:
            if tracked.stage is not Stage.WAITING:  # cancelled meanwhile
                continue
            if problem:
                tracked.stage = Stage.STARTING
                self._background.go(self._end_unstarted(tracked, End(failed=problem, ended_ms=_now())))
            else:
                self._slots.wait(tracked.job.cluster, tracked.job.request)
        self._start_fitting()

    # ---- running

    def _start_fitting(self) -> None:
        if self._stopping:
            return
        for cluster in self._slots.take():
            tracked = self._jobs[cluster]
            tracked.stage = Stage.STARTING
            self._background.go(self._start(tracked))

    async def _start(self, tracked: _Tracked) -> None:
        try:
            claim = await self._in_worker(self._starter.start, tracked.job)
        except InvalidInput as e:
            end = End(refused=str(e), ended_ms=_now())
        except OSError as e:
            end = End(failed=f"can't start the job: {e.strerror}", ended_ms=_now())
        else:
            self._watch(tracked, claim)
            return
        await self._end_unstarted(tracked, end)

    def _watch(self, tracked: _Tracked, claim: Claim) -> None:
        """A shim has the job: report its start, and wait for the shim's death; it may be dead already."""
        pidfd = _open_identified(claim)
        if pidfd is None:
            self._ending(tracked)
            return
        tracked.stage, tracked.pidfd = Stage.RUNNING, pidfd
        self._background.report(self._as_started(tracked, claim))
        asyncio.get_running_loop().add_reader(pidfd, self._shim_gone, tracked, claim.pid)
        if tracked.cancelled:
            self._cancel(tracked)

    def _shim_gone(self, tracked: _Tracked, pid: int) -> None:
        self._unwatch(tracked)
        with suppress(ChildProcessError):  # it may be an earlier server's
            os.waitpid(pid, os.WNOHANG)
        self._ending(tracked)

    def _ending(self, tracked: _Tracked) -> None:
        tracked.stage = Stage.ENDING
        self._slots.give_back(tracked.job.cluster)
        self._background.go(self._end(tracked))
        self._start_fitting()

    async def _end(self, tracked: _Tracked) -> None:
        handle = self._handle(tracked.job.cluster)
        tracked.finished = await repeated(
            lambda: self._in_worker(self._ender.end, tracked.job, handle),
            lambda why: _log.error("job %s: %s; it is tried again", tracked.job.cluster, why),
        )
        tracked.stage = Stage.ENDED
        self._background.report(tracked.finished)

    async def _end_unstarted(self, tracked: _Tracked, end: End) -> None:
        """End a job that has not been started, or join it if it has been after all."""
        cluster = tracked.job.cluster
        self._slots.withdraw(cluster)
        if await self._on_disk(self._spool.end_unstarted, cluster, end):
            self._ending(tracked)
            return
        claim = await self._on_disk(self._spool.claim, cluster)
        assert claim is not None
        self._watch(tracked, claim)

    def _cancel(self, tracked: _Tracked) -> None:
        """End a job, whatever it is at; a start that is under way is ended when it has got to its claim.

        An orphan just goes: a report of its end could be taken for that of the same attempt's second job.
        """
        if tracked.orphan:
            self._remove([tracked])
        elif tracked.stage is Stage.RUNNING:
            signal.pidfd_send_signal(tracked.pidfd, shim.CANCEL)
        elif tracked.stage in (Stage.HELD, Stage.WAITING):
            tracked.stage = Stage.STARTING
            self._background.go(self._end_unstarted(tracked, End(cancelled=True, ended_ms=_now())))
        tracked.cancelled = True

    def _remove(self, gone: Sequence[_Tracked]) -> None:
        clusters = [tracked.job.cluster for tracked in gone]
        for cluster in clusters:
            del self._jobs[cluster]
        self._background.go(self._on_disk(self._spool.clear, clusters))

    def _unwatch(self, tracked: _Tracked) -> None:
        if tracked.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(tracked.pidfd)
            os.close(tracked.pidfd)
            tracked.pidfd = -1

    def _resume(self, remembered: Remembered) -> None:
        """Take up a job where the dead server left it."""
        job = remembered.job
        tracked = self._jobs[job.cluster] = _Tracked(job, inherited=True)
        if remembered.ended:
            self._ending(tracked)
        elif remembered.claim is not None:
            self._slots.occupy(job.cluster, job.request)
            self._watch(tracked, remembered.claim)
        elif remembered.released:
            tracked.stage = Stage.WAITING
            self._slots.wait(job.cluster, job.request)

    # ---- reports, handles, threads

    def _repeated(self, tracked: _Tracked) -> list[Report]:
        """What to say of an attempt that was submitted again."""
        return [self._as_accepted(tracked), *([tracked.finished] if tracked.finished else [])]

    def _as_accepted(self, tracked: _Tracked) -> Accepted:
        job = tracked.job
        return Accepted(activation=job.activation, attempt=job.attempt, handle=self._handle(job.cluster))

    def _as_started(self, tracked: _Tracked, claim: Claim) -> Started:
        job = tracked.job
        return Started(
            activation=job.activation,
            attempt=job.attempt,
            handle=self._handle(job.cluster),
            time_ms=claim.started_ms,
            detail={"host": claim.host, "pid": claim.job_pid},
        )

    def _handle(self, cluster: int) -> str:
        return f"{self._name}#{cluster}.0"

    def _by_handle(self, handle: str) -> _Tracked | None:
        pool, _, number = handle.rpartition("#")
        cluster = number.removesuffix(".0")
        return self._jobs.get(int(cluster)) if pool == self._name and cluster.isdecimal() else None

    async def _on_disk(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, functools.partial(call, *arguments))

    async def _in_worker(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, functools.partial(call, *arguments))


def _open_identified(claim: Claim) -> int | None:
    """A pidfd of the claim's shim; None if that process is no more, whoever has its pid now."""
    if not claim.pid or claim.boot != shim.boot_id():
        return None
    try:
        pidfd = os.pidfd_open(claim.pid)
    except ProcessLookupError:
        return None
    if shim.start_time(claim.pid) != claim.start:
        os.close(pidfd)
        return None
    return pidfd


def _refused(attempt: Attempt, why: Exception) -> Finished:
    """The report of an attempt that was never accepted: its own fault, or this machine's (a full disk)."""
    own = isinstance(why, EventmillError)
    error = str(why) if own else f"can't accept the job: {getattr(why, 'strerror', why)}"
    now = _now()
    return Finished(
        activation=attempt.activation,
        attempt=attempt.number,
        status=Status.DEVELOPER_ERROR if own else Status.INTERNAL_ERROR,
        result=orjson.dumps({"error": error}),
        final=own,
        started_ms=now,
        ended_ms=now,
    )


def _now() -> int:
    return int(time.time() * 1000)
