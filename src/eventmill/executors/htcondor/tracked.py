"""The jobs of a pool that this server knows: how far each is, and what it is called outside.

Owns the register. Nothing here asks the schedd or reports anything; everything belongs to the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from eventmill.executors import jobs
from eventmill.executors.base import Accepted, Finished
from eventmill.executors.htcondor.records import ACTIVATION
from eventmill.executors.htcondor.rooms import Job

LOCAL_SCHEDD = "local"
"""In handles and subjects: the schedd of this machine, where the configuration names none."""


class Stage(Enum):
    """How far a job is, as this server sees it."""

    HELD = auto()
    """In the queue, held by us; waits for its release."""
    RELEASED = auto()
    ENDING = auto()
    ENDED = auto()
    """Its `Finished` has been reported; its room stays until it is forgotten."""


@dataclass(slots=True, eq=False)
class Tracked:
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

    @property
    def is_over(self) -> bool:
        return self.stage in (Stage.ENDING, Stage.ENDED)

    def owns(self, facts: Mapping[str, Any]) -> bool:
        """Whether an ad or an event is this job's: its number alone may be another's, if the schedd was made anew."""
        return facts.get(ACTIVATION) == self.job.activation


class Register:
    """Jobs by their number and by their attempt. `pool` and `schedd` are the first parts of every handle."""

    def __init__(self, pool: str, schedd: str) -> None:
        self._prefix = f"{pool}:{schedd or LOCAL_SCHEDD}"
        self.jobs: dict[str, Tracked] = {}
        """By cluster.proc."""
        self.attempts: dict[tuple[str, int], Tracked] = {}

    def add(self, tracked: Tracked) -> None:
        """Any other job of the same number is not known any more."""
        if (before := self.jobs.get(tracked.id)) is not None:
            self.attempts.pop((before.job.activation, before.job.attempt), None)
        self.jobs[tracked.id] = tracked
        self.attempts[tracked.job.activation, tracked.job.attempt] = tracked

    def drop(self, tracked: Tracked) -> None:
        del self.jobs[tracked.id]
        self.attempts.pop((tracked.job.activation, tracked.job.attempt), None)

    def handle(self, id: str) -> str:
        return f"{self._prefix}#{id}"

    def id(self, handle: str) -> str | None:
        """cluster.proc of a handle; None if it is another pool's."""
        prefix, _, id = handle.rpartition("#")
        return id if prefix == self._prefix else None

    def by_handle(self, handle: str) -> Tracked | None:
        id = self.id(handle)
        return None if id is None else self.jobs.get(id)

    def accepted(self, tracked: Tracked) -> Accepted:
        job = tracked.job
        return Accepted(activation=job.activation, attempt=job.attempt, handle=self.handle(tracked.id))


def id_of(ad: Mapping[str, Any]) -> str:
    return f"{ad['ClusterId']}.{ad['ProcId']}"
