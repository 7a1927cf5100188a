"""Whose turn an activation waits for, and which executor runs it. Pure.

Each action has a queue of its own, which has its qualified name; each batch system has one for all its jobs; and a
function of a kind that has an executor of its own waits in `<kind>:<action>`. A colon can't stand in an action's name.
"""

from __future__ import annotations

from collections.abc import Container

from eventmill.config import Settings
from eventmill.entities import Action, Category

FUNCTIONS = "functions"
OWN_KINDS = ("http",)
"""Kinds of functions with an executor of their own, which has the kind's name."""


def pool_queue(name: str) -> str:
    """The queue (and the name as an executor) of a batch system."""
    return f"pool:{name}"


class Queues:
    """`executors`: the names of those that there are."""

    def __init__(self, executors: Container[str], settings: Settings) -> None:
        self._executors = executors
        self._settings = settings

    def of(self, action: Action) -> str | None:
        """An action's own queue, or its pool's; None if this server has nothing that serves it."""
        if action.category is Category.JOB:
            pool = action.annotations.get("pool")
            queue = pool_queue(pool if isinstance(pool, str) else next(iter(self._settings.pools)))
        else:
            queue = f"{action.kind}:{action.qualified}" if action.kind in OWN_KINDS else action.qualified
        return queue if self.is_served(queue) else None

    def is_served(self, queue: str) -> bool:
        """False: what waits there has to fail. (Functions of the usual kinds may wait for a server that runs them.)"""
        return ":" not in queue or self.executor(queue) != FUNCTIONS

    def executor(self, queue: str) -> str:
        """The executor of what waits in this queue."""
        if queue in self._executors:
            return queue
        kind, colon, _ = queue.partition(":")
        return kind if colon and kind in self._executors else FUNCTIONS

    def window(self, queue: str) -> int:
        """So many of a queue's activations may be handed over at once."""
        if self.executor(queue) not in self._executors:
            return 0
        limits = self._settings.limits
        return limits.jobs_in_queue if queue.startswith("pool:") else limits.window_per_action
