"""Who may start: cores and memory of this machine, shared out to waiting jobs.

First come, first served, with one exception: while the oldest job that does not fit waits, smaller ones that do fit may
start before it, at most `OVERTAKES_MAX` of them; then nobody passes it any more, and what ends makes room for it.
So no core is idle for long, and no large job waits forever. A value without I/O; one user at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

OVERTAKES_MAX = 16


@dataclass(frozen=True, slots=True)
class Request:
    """What a job asks for."""

    cpus: int
    memory_mb: int


@dataclass(slots=True)
class _Waiting:
    request: Request
    overtaken: int = 0


class Slots:
    """The shares of one machine; jobs are named by their cluster."""

    def __init__(self, cpus: int, memory_mb: int) -> None:
        self.total = Request(cpus, memory_mb)
        self._cpus_free = cpus
        self._memory_free_mb = memory_mb
        self._waiting: dict[int, _Waiting] = {}
        self._running: dict[int, Request] = {}

    def never_fits(self, request: Request) -> str | None:
        """Why this request can never be met; None if it can."""
        if request.cpus > self.total.cpus:
            return f"request_cpus = {request.cpus}, but this pool has {self.total.cpus}"
        if request.memory_mb > self.total.memory_mb:
            return f"request_memory = {request.memory_mb} MB, but this pool has {self.total.memory_mb} MB"
        return None

    def wait(self, cluster: int, request: Request) -> None:
        """Put a job at the end of the line."""
        self._waiting[cluster] = _Waiting(request)

    def withdraw(self, cluster: int) -> None:
        """Take a job out of the line."""
        self._waiting.pop(cluster, None)

    def occupy(self, cluster: int, request: Request) -> None:
        """Count a job that runs already (after a restart), even if there is no room for it."""
        self._running[cluster] = request
        self._cpus_free -= request.cpus
        self._memory_free_mb -= request.memory_mb

    def give_back(self, cluster: int) -> None:
        """A job has ended."""
        request = self._running.pop(cluster, None)
        if request is not None:
            self._cpus_free += request.cpus
            self._memory_free_mb += request.memory_mb

    def take(self) -> list[int]:
        """Jobs that start now; their shares are taken."""
        started: list[int] = []
        blocked: _Waiting | None = None
        for cluster, waiting in self._waiting.items():
            if self._cpus_free <= 0 or (blocked is not None and blocked.overtaken >= OVERTAKES_MAX):
                break
            if not self._fits(waiting.request):
                blocked = blocked or waiting
                continue
            if blocked is not None:
                blocked.overtaken += 1
            self.occupy(cluster, waiting.request)
            started.append(cluster)
        for cluster in started:
            del self._waiting[cluster]
        return started

    def _fits(self, request: Request) -> bool:
        return request.cpus <= self._cpus_free and request.memory_mb <= self._memory_free_mb
