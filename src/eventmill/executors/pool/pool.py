"""The embedded executor of functions: warm workers, forked by a zygote, one attempt at a time each.

Owns the waiting attempts, the workers and the reports; who runs next is decided by `roster`. On the event loop and
never blocking: an attempt costs one send, one receive and no coroutine; parameters and results pass through as bytes.
Results come from functions, which may forge anything, so nothing that a worker says is believed unchecked.

After a SIGKILL of the server nothing is left of its workers; `slots` says which activations they were running.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from eventmill.entities import Action, Status
from eventmill.errors import EventmillError, InvalidArchive
from eventmill.executors import endings
from eventmill.executors.base import Attempt, CodeSource, Executor, Found, Recorded, Report
from eventmill.executors.endings import Ending
from eventmill.executors.pool import node, protocol
from eventmill.executors.pool.code import Code, CodeCache
from eventmill.executors.pool.context import BASE_ENVIRONMENT, init_document
from eventmill.executors.pool.deaths import describe
from eventmill.executors.pool.endings import of_death, of_done, of_failed_init
from eventmill.executors.pool.isolate import NONE
from eventmill.executors.pool.launcher import Isolation, Launcher, ZygoteConfig, launch
from eventmill.executors.pool.link import Link
from eventmill.executors.pool.node import Node
from eventmill.executors.pool.protocol import BrokenFrame, Call
from eventmill.executors.pool.rooms import Rooms, remove_tree
from eventmill.executors.pool.roster import Lane, Roster, Stage, Verdict, Worker
from eventmill.executors.slots import Slots

log = logging.getLogger(__name__)

TURN_S = 0.2
"""A worker serves its action at least this long before it makes room for another; a start takes some 5 ms."""
KILL_GRACE_S = 5.0
"""A killed process that hangs in the kernel (a dead file system) keeps its place, but its attempt ends after this."""
HANGUP_GRACE_S = 1.0
"""For a worker that has closed its connection to end by itself, before it is killed."""
RELAUNCH_PAUSE_S = 1.0
"""Before a zygote that died young, or could not be started, is tried again."""
NODE_MB = 96
"""What a process of Node.js takes besides the memory of the action."""
FRAME_SLACK_BYTES = 64 << 10
"""What a worker's frame may have beyond the largest result."""


class Pool(Executor):
    """Runs functions in worker processes on this machine.

    `code` gives an action's code by its digest. `state_dir` is the pool's own, mode 0700; what functions must not see
    besides it is in `hidden`. `isolation`: auto, namespaces where the kernel allows them, else only the first Eventmill
    namespace that comes is served; none, no namespaces. `shared`: a directory with one folder for each Eventmill
    namespace, of which a function sees and may write its own, though all others are hidden. `environment` is in every
    function's environment. `api_host`: the server's URL, as functions reach it. `key_of` makes the key of an activation
    whose action wants one. `preload`: modules that the zygote imports, shared by all workers. `result_bytes_max` bounds
    a result, `archive_files_max` and `archive_bytes_max` an unpacked archive. `idle_retire_s`: a worker without work
    for so long is ended.
    """

    def __init__(
        self,
        code: CodeSource,
        *,
        state_dir: Path,
        workers_max: int,
        idle_retire_s: float = 600.0,
        isolation: Literal["auto", "none"] = "auto",
        hidden: Sequence[Path] = (),
        shared: Path | None = None,
        environment: Mapping[str, str] | None = None,
        api_host: str = "",
        key_of: Callable[[str], str] = lambda activation: "",
        preload: Sequence[str] = (),
        result_bytes_max: int = 1 << 20,
        archive_files_max: int = 10_000,
        archive_bytes_max: int = 512 << 20,
    ) -> None:
        self._state_dir = state_dir.absolute()
        self._hidden = hidden
        self._shared = shared
        self._idle_retire_s = idle_retire_s
        self._isolation_setting = isolation
        self._environment = dict(environment or {})
        self._api_host = api_host
        self._key_of = key_of
        self._node: Node | None = None
        self._preload = preload
        self._result_bytes_max = result_bytes_max
        self._codes = CodeCache(
            code, self._state_dir / "code", files_max=archive_files_max, bytes_max=archive_bytes_max
        )
        self._rooms = Rooms(self._state_dir / "work")
        self._roster = Roster(workers_max)
        self._slots = Slots(self._state_dir / "slots", workers_max)
        self._free_slots = list(range(workers_max))
        self._numbers = itertools.count(1)
        self._workers: dict[int, Worker] = {}
        self._under_way: dict[tuple[str, int], Attempt] = {}
        self._ready: list[Report] = []
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._launcher: Launcher | None = None
        self._launched = -math.inf
        self._retirement: asyncio.TimerHandle | None = None
        self._isolation = Isolation(mode=NONE)
        self._only_namespace: str | None = None
        self._stopped = False

    @property
    def isolated(self) -> bool:
        """Whether functions can't see each other, the server or its files. Known after `start`."""
        return self._isolation.mode != NONE

    @property
    def isolation_reason(self) -> str:
        """Why they are not isolated, if that was asked for."""
        return self._isolation.reason

    def condition(self) -> tuple[bool, str]:
        isolation = "isolated" if self.isolated else f"not isolated ({self.isolation_reason or 'as configured'})"
        workers = f"{len(self._workers)} of {self._roster.workers_max} workers"
        return self._launcher is not None, f"{workers}, {isolation}"

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._node = await asyncio.to_thread(node.find)
        await asyncio.to_thread(self._prepare_directories)
        self._slots.open()
        await self._launch()
        if self.isolation_reason:
            log.warning("functions are not isolated from each other: %s", self.isolation_reason)
        self._make_starts()

    def _prepare_directories(self) -> None:
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("work", "code"):
            remove_tree(self._state_dir / name)
            (self._state_dir / name).mkdir(mode=0o700)

    async def _launch(self) -> None:
        hidden = {Path(os.path.realpath(path, strict=True)) for path in (*self._hidden, self._state_dir)}
        outermost = [str(path) for path in hidden if not any(other in path.parents for other in hidden)]
        environment = {**BASE_ENVIRONMENT, **self._environment}
        config = ZygoteConfig(hidden=outermost, environment=environment, preload=list(self._preload))
        self._launcher, self._isolation = await launch(config, self._isolation_setting, self)
        self._launched = self._loop.time()

    async def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._wake.set()
        for task in self._tasks:
            task.cancel()
        if self._launcher is not None:
            await self._launcher.stop()
        for worker in list(self._workers.values()):
            self._release(worker)
        if self._retirement is not None:
            self._retirement.cancel()
        await self._rooms.settle()
        self._slots.close()

    def submit(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            key = (attempt.activation, attempt.number)
            if key in self._under_way or self._stopped:
                continue
            self._under_way[key] = attempt
            if refusal := self._refusal(attempt.namespace):
                self._finish(attempt, refusal)
                continue
            lane = self._roster.lane(attempt)
            worker = self._roster.wake(lane)
            if worker is not None:
                self._hand(worker, attempt)
            else:
                lane.waiting.append(attempt)
                self._roster.wish(lane)
        self._make_starts()

    def release(self, handles: Sequence[str]) -> None:
        """Functions start when they are submitted."""

    def cancel(self, activations: Mapping[str, str | None]) -> None:
        for attempt in [a for (activation, _), a in self._under_way.items() if activation in activations]:
            lane = self._roster.lane(attempt)
            if attempt in lane.waiting:
                lane.waiting.remove(attempt)
                self._finish(attempt, endings.CANCELLED)
            for worker in self._workers.values():
                if worker.attempt is attempt:
                    self._kill(worker, Verdict.CANCELLED)
            self._forget_if_unused(lane)

    async def find(self, recorded: Sequence[Recorded]) -> dict[str, Found]:
        interrupted = self._slots.interrupted
        return {
            r.activation: Found(activation=r.activation, interrupted=True)
            for r in recorded
            if r.activation in interrupted
        }

    async def reports(self) -> AsyncIterator[list[Report]]:
        while True:
            await self._wake.wait()
            if self._stopped:
                return
            self._wake.clear()
            ready, self._ready = self._ready, []
            yield ready

    def _refusal(self, namespace: str) -> Ending | None:
        if self._isolation.mode != NONE or self._isolation_setting == "none":
            return None
        if self._only_namespace is None:
            self._only_namespace = namespace
        if namespace == self._only_namespace:
            return None
        return endings.internal_error(
            f"functions of namespace '{namespace}' are refused: this machine can't isolate them from those of "
            f"namespace '{self._only_namespace}' ({self.isolation_reason}); functions.isolation = \"none\" runs them "
            "side by side nevertheless",
            final=True,
        )

    def _finish(
        self,
        attempt: Attempt,
        ending: Ending,
        *,
        started_ms: int | None = None,
        logs: tuple[str, ...] = (),
        usage: Mapping[str, Any] | None = None,
    ) -> None:
        if self._under_way.pop((attempt.activation, attempt.number), None) is None:
            return  # it has been reported already: its process took too long to go
        key, now_ms = (attempt.activation, attempt.number), time.time_ns() // 1_000_000
        began_ms = now_ms if started_ms is None else started_ms
        self._ready.append(endings.finished(key, ending, began_ms, now_ms, logs=logs, usage=usage))
        self._wake.set()

    def _hand(self, worker: Worker, attempt: Attempt) -> None:
        timeout_ms = attempt.action.limits.timeout_ms
        now_ms = time.time_ns() // 1_000_000
        self._slots.set(worker.slot, attempt.activation)
        self._roster.busy(worker, attempt)
        worker.attempt_started_ms = now_ms
        worker.deadline = self._loop.time() + timeout_ms / 1000
        worker.link.send(protocol.run_frame(self._call(attempt, worker.sequence, now_ms + timeout_ms)))
        if worker.timer is None:
            self._arm(worker)

    def _call(self, attempt: Attempt, sequence: int, deadline_ms: int) -> Call:
        return Call(
            sequence=sequence,
            deadline_ms=deadline_ms,
            activation=attempt.activation,
            transaction=attempt.transaction,
            traceparent=attempt.traceparent or "",
            namespace=attempt.namespace,
            api_key=self._key_of(attempt.activation) if attempt.action.gets_key else "",
            params=attempt.params,
        )

    def _hear(self, worker: Worker) -> None:
        try:
            frames = worker.link.receive()
            if frames is None:
                worker.link.deafen()
                self._hung_up(worker)
                return
            for kind, payload in frames:
                self._heard(worker, kind, payload)
        except BrokenFrame as e:
            log.warning("a worker of %s broke the protocol: %s", worker.lane.action.qualified, e)
            worker.link.deafen()
            self._kill(worker, Verdict.BROKEN)

    def _heard(self, worker: Worker, kind: int, payload: bytes) -> None:
        if worker.stage is Stage.LEAVING:
            return
        if kind == protocol.DONE and worker.stage is Stage.BUSY:
            self._done(worker, payload)
        elif kind == protocol.READY and worker.stage is Stage.STARTING:
            worker.init_ms = round((self._loop.time() - worker.started) * 1000)
            self._roster.ready(worker, self._loop.time() + TURN_S)
            self._next(worker)
        elif kind == protocol.FAILED and worker.stage is Stage.STARTING:
            ending = of_failed_init(payload)
            self._fail_one(worker.lane, ending, worker.link.log.take())
            self._kill(worker, Verdict.RETIRED)
        else:
            raise BrokenFrame(f"kind {kind} while {worker.stage.value}")

    def _done(self, worker: Worker, payload: bytes) -> None:
        (sequence, outcome, retry_after_s, flags, cpu_s, largest_kib), result = protocol.parse_done(payload)
        attempt = worker.attempt
        if attempt is None or sequence != worker.sequence:
            raise BrokenFrame("an answer to another attempt")
        ending = of_done(outcome, retry_after_s, result)
        usage: dict[str, Any] = {"worker": worker.link.pid, "max_rss_mb": largest_kib >> 10}
        if 0 <= cpu_s < math.inf:
            usage["cpu_s"] = round(cpu_s, 6)
        if worker.init_ms is not None:
            usage["initTime"] = worker.init_ms
            worker.init_ms = None
        output = worker.link.log
        logs = output.take() if flags & protocol.LEFT_OUTPUT or not output.empty else ()
        worker.attempt = None
        self._finish(attempt, ending, started_ms=worker.attempt_started_ms, logs=logs, usage=usage)
        if ending.status is Status.DEVELOPER_ERROR or flags & protocol.LEFT_PROCESSES:
            self._kill(worker, Verdict.RETIRED)  # it, or what it has started, might disturb the next attempt
        else:
            self._next(worker)

    def _next(self, worker: Worker) -> None:
        """Give the worker, which has nothing to do, its next attempt, or rest, or its end."""
        now = self._loop.time()
        if self._roster.must_yield(worker, now):
            self._kill(worker, Verdict.RETIRED)
        elif worker.lane.waiting:
            self._hand(worker, worker.lane.waiting.popleft())
        else:
            self._slots.clear(worker.slot)
            worker.deadline = math.inf
            self._roster.rests(worker, now)
            if self._retirement is None:
                self._retirement = self._loop.call_later(self._idle_retire_s, self._retire)
            self._make_starts()

    def _retire(self) -> None:
        """End the workers that have been idle for too long."""
        self._retirement = None
        now = self._loop.time()
        while oldest := self._roster.oldest_idle():
            due = oldest.idle_since + self._idle_retire_s
            if due > now:
                self._retirement = self._loop.call_at(due, self._retire)
                return
            self._kill(oldest, Verdict.RETIRED)

    def _make_starts(self) -> None:
        """Start workers for the actions that need them, and make room if there is none."""
        if self._launcher is None or self._stopped:
            return
        while (lane := self._roster.next_start()) is not None:
            if lane.code is None:
                lane.preparing = True
                self._spawn(self._prepare(lane))
            else:
                self._start_worker(lane)
        while (worker := self._roster.make_room()) is not None:
            self._kill(worker, Verdict.RETIRED)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        job = self._loop.create_task(work)
        self._tasks.add(job)
        job.add_done_callback(self._tasks.discard)

    async def _prepare(self, lane: Lane) -> None:
        """Get the lane's code, then its first worker."""
        try:
            found = await self._code(lane.action)
        finally:
            lane.preparing = False
        if isinstance(found, Code):
            lane.code = found
        else:
            while lane.waiting:
                self._finish(lane.waiting.popleft(), found)
        self._roster.wish(lane)
        self._forget_if_unused(lane)
        self._make_starts()

    async def _code(self, action: Action) -> Code | Ending:
        """The action's code, or how its attempts end without it."""
        if node.runs(action.kind) and self._node is None:
            return endings.internal_error("Node.js is not installed on this server", final=True)
        if action.code is None:
            return endings.developer_error(endings.NO_CODE, final=True)
        try:
            return await self._codes.get(action)
        except InvalidArchive as e:
            return endings.of_archive(e)
        except Exception as e:  # whatever the code source raises: an attempt must end
            log.exception("the code of %s can't be read", action.qualified)
            return endings.internal_error(f"the action's code can't be read: {e}")

    def _start_worker(self, lane: Lane) -> None:
        number = next(self._numbers)
        try:
            room = str(self._rooms.make(number))
            shared = self._shared_with(lane.namespace)
            link = self._make_link(lane.action)
        except OSError as e:  # no descriptors left, or no disk space
            self._rooms.remove(number)
            self._fail_one(lane, endings.internal_error(f"a worker can't be started: {e.strerror}"), ())
            self._roster.wish(lane)
            self._forget_if_unused(lane)
            return
        now = self._loop.time()
        deadline = now + lane.action.limits.timeout_ms / 1000
        worker = Worker(number, lane, link, self._free_slots.pop(), started=now, deadline=deadline)
        self._workers[number] = worker
        self._roster.begins(worker)
        self._roster.wish(lane)
        self._arm(worker)
        link.listen(partial(self._hear, worker))
        assert self._launcher is not None
        assert lane.code is not None
        document = init_document(
            lane.action,
            lane.code,
            room=room,
            environment=self._environment,
            api_host=self._api_host,
            node=self._node,
            result_bytes_max=self._result_bytes_max,
        )
        request = {
            "start": number,
            "room": room,
            "code": document["directory"],
            "shared": shared,
            "memory_mb": lane.action.limits.memory_mb + (NODE_MB if node.runs(lane.action.kind) else 0),
        }
        self._launcher.ask(request, link.ends)
        link.send(protocol.init_frame(document, lane.code.source))

    def _shared_with(self, namespace: str) -> str | None:
        """The folder that functions of this namespace share with its jobs."""
        if self._shared is None:
            return None
        folder = self._shared.absolute() / namespace
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return str(folder)

    def _make_link(self, action: Action) -> Link:
        return Link(
            self._loop,
            frame_bytes_max=self._result_bytes_max + FRAME_SLACK_BYTES,
            log_bytes_max=action.limits.logs_mb << 20,
        )

    def _fail_one(self, lane: Lane, ending: Ending, logs: tuple[str, ...]) -> None:
        """A worker could not be had: the longest-waiting attempt bears it. (If there is none, nobody misses it.)"""
        if lane.waiting:
            self._finish(lane.waiting.popleft(), ending, logs=logs)

    def _arm(self, worker: Worker) -> None:
        worker.timer = self._loop.call_at(worker.deadline, self._due, worker)

    def _due(self, worker: Worker) -> None:
        """The timer of a worker has run out. It was set for an attempt that may have ended long ago: then go on."""
        worker.timer = None
        if worker.deadline == math.inf:
            return
        if self._loop.time() < worker.deadline:
            self._arm(worker)
        elif worker.verdict is Verdict.HUNG_UP:
            worker.verdict, worker.deadline = Verdict.BROKEN, self._loop.time() + KILL_GRACE_S
            worker.link.kill()
            self._arm(worker)
        elif worker.stage is Stage.LEAVING:
            log.error("a worker of %s has been killed but does not end", worker.lane.action.qualified)
            self._bury(worker, None)
        else:
            self._kill(worker, Verdict.TIMED_OUT)

    def _kill(self, worker: Worker, verdict: Verdict) -> None:
        """End the worker; its attempt, if any, is reported when it is gone."""
        if self._condemn(worker, verdict, KILL_GRACE_S):
            worker.link.kill()

    def _hung_up(self, worker: Worker) -> None:
        """Its connection is closed: its process is ending (how, we will hear), or the function has closed it."""
        self._condemn(worker, Verdict.HUNG_UP, HANGUP_GRACE_S)

    def _condemn(self, worker: Worker, verdict: Verdict, grace_s: float) -> bool:
        if worker.stage is Stage.LEAVING:
            return False
        worker.verdict = verdict
        worker.loading = worker.stage is Stage.STARTING and verdict is not Verdict.RETIRED
        self._roster.leaves(worker)
        worker.deadline = self._loop.time() + grace_s
        if worker.timer is not None:
            worker.timer.cancel()
        self._arm(worker)
        return True

    def worker_born(self, number: int, pidfd: int) -> None:
        worker = self._workers.get(number)
        if worker is None:
            os.close(pidfd)
        else:
            worker.link.born(pidfd)

    def worker_gone(self, number: int, status: int | None, why: str) -> None:
        """The launcher says that a worker has ended, or never was."""
        worker = self._workers.get(number)
        if worker is None or self._stopped:
            return
        self._hung_up(worker)
        if why:
            worker.link.log.note(why)
        self._bury(worker, status)
        self._release(worker)
        self._roster.gone(worker)
        self._forget_if_unused(worker.lane)
        self._make_starts()

    def _bury(self, worker: Worker, status: int | None) -> None:
        """Report what the end of this worker means to the attempt in it, or to the one that waited for it."""
        if worker.attempt is None and not worker.loading:
            return
        ending = self._ending(worker, status)
        if worker.verdict in (Verdict.HUNG_UP, Verdict.BROKEN):
            worker.link.log.note(describe(status))
        logs = worker.link.log.take()
        if worker.attempt is None:
            self._fail_one(worker.lane, ending, logs)
        else:
            usage = {"worker": worker.link.pid, "exit_code": status}
            self._finish(worker.attempt, ending, started_ms=worker.attempt_started_ms, logs=logs, usage=usage)
        worker.attempt, worker.loading = None, False

    def _ending(self, worker: Worker, status: int | None) -> Ending:
        match worker.verdict:
            case Verdict.TIMED_OUT:
                timeout_ms = worker.lane.action.limits.timeout_ms
                return endings.of_timeout(timeout_ms, during_init=worker.loading)
            case Verdict.CANCELLED:
                return endings.CANCELLED
            case Verdict.BROKEN:
                return of_death(None, during_init=worker.loading)
            case _:
                return of_death(status, during_init=worker.loading)

    def _release(self, worker: Worker) -> None:
        """Give back what the server holds for a worker."""
        del self._workers[worker.number]
        worker.link.close()
        if worker.timer is not None:
            worker.timer.cancel()
        self._slots.clear(worker.slot)
        self._free_slots.append(worker.slot)
        self._rooms.remove(worker.number)

    def _forget_if_unused(self, lane: Lane) -> None:
        if self._roster.forget(lane) and lane.code is not None:
            self._codes.release(lane.code)

    def zygote_died(self) -> None:
        """All workers are dead. What they ran has crashed; what waits goes to the next zygote."""
        log.error("the function pool's zygote has died with its %d workers; starting another", len(self._workers))
        self._launcher = None
        for number in list(self._workers):
            self.worker_gone(number, None, "The zygote of the function pool has died.")
        self._spawn(self._relaunch())

    async def _relaunch(self) -> None:
        if self._loop.time() - self._launched < RELAUNCH_PAUSE_S:
            await asyncio.sleep(RELAUNCH_PAUSE_S)
        while self._launcher is None:
            try:
                await self._launch()
            except (EventmillError, OSError):
                log.exception("the function pool's zygote can't be started; trying again")
                await asyncio.sleep(RELAUNCH_PAUSE_S)
        self._make_starts()
