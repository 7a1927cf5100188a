"""Which attempt runs next, and where: every action's waiting attempts and workers, and who makes room for whom.

Pure: no clock, no process; the pool tells it what has happened and does what it answers. The waiting attempts are in
memory, because the engine hands over only the next few of each action.

Fairness. A worker serves one action. While there is room, every action gets workers as it needs them. When there is
none, idle workers go first; then a worker whose turn is over goes when its attempt ends, provided that another action
has no worker at all, or clearly fewer. A turn is long compared with a start, so that a hundred actions on eight workers
cost one start per turn, not one per attempt.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from eventmill.entities import Action
from eventmill.executors.base import Attempt
from eventmill.executors.pool.code import Code
from eventmill.executors.pool.link import Link

LaneKey = tuple[str, str, str, int, str, str | None]


def lane_key(attempt: Attempt) -> LaneKey:
    """One revision of an action, for one caller's namespace: what a worker has seen stays in that.

    The code is part of it: a deleted and re-created action may count from 1 again.
    """
    action = attempt.action
    return attempt.namespace, action.namespace, action.name, action.revision, action.kind, action.code


class Stage(Enum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    LEAVING = "leaving"
    """Killed, but not gone yet: it still takes its place."""


class Verdict(Enum):
    """Why a worker has to go."""

    HUNG_UP = "hung up"
    """It is ending by itself, or seems to be."""
    RETIRED = "retired"
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"
    BROKEN = "broken"
    """It said something that no worker of ours says."""


@dataclass(slots=True, eq=False)
class Worker:
    """One worker and what it does. Times are the event loop's."""

    number: int
    lane: Lane
    link: Link
    slot: int
    started: float
    deadline: float
    """The code must be loaded, or the attempt have ended, by then; infinite while it is idle."""
    stage: Stage = Stage.STARTING
    attempt: Attempt | None = None
    sequence: int = 0
    """Counts attempts, so that an answer can't be taken for another's."""
    attempt_started_ms: int = 0
    init_ms: int | None = None
    """Reported with the first attempt."""
    turn_ends: float = 0.0
    idle_since: float = 0.0
    verdict: Verdict | None = None
    loading: bool = False
    """It was killed, or died, before it had loaded its code."""
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class Lane:
    """One revision of an action, for one caller's namespace."""

    key: LaneKey
    action: Action
    workers_max: int
    waiting: deque[Attempt] = field(default_factory=deque)
    idle: list[Worker] = field(default_factory=list)
    live: int = 0
    """Workers, whatever their stage."""
    starting: int = 0
    code: Code | None = None
    preparing: bool = False
    """Its code is being fetched."""
    listed: bool = False

    @property
    def namespace(self) -> str:
        """The caller's."""
        return self.key[0]

    def wants_worker(self) -> bool:
        return len(self.waiting) > self.starting and self.live < self.workers_max and not self.preparing


class Roster:
    def __init__(self, workers_max: int) -> None:
        self.workers_max = workers_max
        self.live = 0
        self._leaving = 0
        self._lanes: dict[LaneKey, Lane] = {}
        self._wanting: deque[Lane] = deque()
        """Lanes that may want a worker, the longest-waiting first; those that don't any more are dropped lazily."""
        self._idle: dict[Worker, None] = {}
        """The longest-idle first."""

    def lane(self, attempt: Attempt) -> Lane:
        key, action = lane_key(attempt), attempt.action
        lane = self._lanes.get(key)
        if lane is None:
            workers_max = min(action.limits.instances or self.workers_max, self.workers_max)
            lane = self._lanes[key] = Lane(key, action, workers_max)
        return lane

    def forget(self, lane: Lane) -> bool:
        """Forget the lane if nothing is left of it; whether that was so."""
        if lane.live or lane.waiting or lane.preparing:
            return False
        return self._lanes.pop(lane.key, None) is not None

    def wish(self, lane: Lane) -> None:
        """Note that the lane has attempts waiting for a worker."""
        if not lane.listed and lane.wants_worker():
            lane.listed = True
            self._wanting.append(lane)

    def next_start(self) -> Lane | None:
        """The lane to start a worker for, if there is room: of those that want one, one with the fewest."""
        if not self._wanting or self.live >= self.workers_max:
            return None
        for lane in [lane for lane in self._wanting if not lane.wants_worker()]:
            self._unlist(lane)
        chosen = min(self._wanting, key=lambda lane: lane.live, default=None)
        if chosen is not None:
            self._unlist(chosen)
        return chosen

    def _unlist(self, lane: Lane) -> None:
        self._wanting.remove(lane)
        lane.listed = False

    def begins(self, worker: Worker) -> None:
        """A worker is being started."""
        self.live += 1
        worker.lane.live += 1
        worker.lane.starting += 1

    def ready(self, worker: Worker, turn_ends: float) -> None:
        """It has loaded its code, and waits for `busy` or `rests`."""
        self._settle(worker, Stage.IDLE)
        worker.turn_ends = turn_ends

    def busy(self, worker: Worker, attempt: Attempt) -> None:
        worker.stage = Stage.BUSY
        worker.attempt = attempt
        worker.sequence += 1

    def rests(self, worker: Worker, now: float) -> None:
        worker.stage = Stage.IDLE
        worker.idle_since = now
        worker.lane.idle.append(worker)
        self._idle[worker] = None

    def wake(self, lane: Lane) -> Worker | None:
        """An idle worker of this lane: the last one used, so that those not needed grow old."""
        if not lane.idle:
            return None
        worker = lane.idle.pop()
        del self._idle[worker]
        return worker

    def leaves(self, worker: Worker) -> None:
        """It has been killed."""
        if worker in self._idle:
            del self._idle[worker]
            worker.lane.idle.remove(worker)
        self._leaving += 1
        self._settle(worker, Stage.LEAVING)

    def gone(self, worker: Worker) -> None:
        """Its process has ended; what it left waiting asks for another."""
        if worker.stage is not Stage.LEAVING:
            self.leaves(worker)
        self._leaving -= 1
        self.live -= 1
        worker.lane.live -= 1
        self.wish(worker.lane)

    def _settle(self, worker: Worker, stage: Stage) -> None:
        if worker.stage is Stage.STARTING:
            worker.lane.starting -= 1
        worker.stage = stage

    def oldest_idle(self) -> Worker | None:
        return next(iter(self._idle), None)

    def make_room(self) -> Worker | None:
        """An idle worker that has to go, because another action has none to work with."""
        if not self._idle or not self._crowded():
            return None
        wanting = sum(lane.wants_worker() for lane in self._wanting)
        return self.oldest_idle() if wanting > self._leaving else None

    def must_yield(self, worker: Worker, now: float) -> bool:
        """Whether this worker, between two attempts, has to go for the benefit of another action."""
        if not self._crowded() or now < worker.turn_ends or self._leaving >= len(self._wanting):
            return False
        mine = worker.lane
        return any(
            other is not mine and (other.live == 0 or other.live < mine.live - 1) and other.wants_worker()
            for other in self._wanting
        )

    def _crowded(self) -> bool:
        return bool(self._wanting) and self.live >= self.workers_max
