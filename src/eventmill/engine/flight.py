"""What the engine keeps in memory: a few numbers per queue, so that what waits on disk costs nothing.

A queue is whose turn an activation waits for: an action's (functions) or a batch system's (jobs). Only the next few of
each are handed over; the rest wait on disk in the order in which they came. All of it can be rebuilt from the store.
A turn looks only at queues in which something has changed, so that very many that wait cost nothing either.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator


class Flight:
    """Counts of what is under way. `window(queue)`: how many of a queue may be handed over at once."""

    def __init__(self, window: Callable[[str], int]) -> None:
        self._window = window
        self._queue_of: dict[str, str] = {}
        self._count: Counter[str] = Counter()
        self._backlog: set[str] = set()
        self._changed: set[str] = set()
        """Queues with a backlog in which there may be room since the last look."""
        self._due: list[tuple[int, str]] = []
        self.alive: Counter[str] = Counter()
        """Activations that have not finished, by namespace."""

    def room(self, queue: str) -> int:
        """How many more of this queue may be handed over."""
        return self._window(queue) - self._count[queue]

    def take(self, id: str, queue: str) -> None:
        """This activation is handed over."""
        if id not in self._queue_of:
            self._queue_of[id] = queue
            self._count[queue] += 1

    def land(self, id: str) -> None:
        """Its attempt has ended."""
        queue = self._queue_of.pop(id, None)
        if queue is not None:
            self._count[queue] -= 1
            if not self._count[queue]:
                del self._count[queue]
            if queue in self._backlog:
                self._changed.add(queue)

    def queue(self, id: str) -> str:
        """The queue of an activation that is under way."""
        return self._queue_of[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._queue_of)

    def __len__(self) -> int:
        return len(self._queue_of)

    # what waits on disk

    def waits(self, *queues: str) -> None:
        """Something waits on disk in these."""
        self._backlog.update(queues)
        self._changed.update(queues)

    def has_backlog(self, queue: str) -> bool:
        """Whether more of it may wait on disk: then nothing new may overtake it."""
        return queue in self._backlog

    def emptied(self, queue: str, next_due_ms: int | None) -> None:
        """Nothing waits on disk in this one any more, but for retries that are not due yet."""
        self._backlog.discard(queue)
        if next_due_ms is not None:
            self.wake_at(queue, next_due_ms)

    def wake_at(self, queue: str, due_ms: int) -> None:
        """A retry in this queue is due then."""
        heapq.heappush(self._due, (due_ms, queue))

    def next_due(self) -> int | None:
        """When the next retry is due (epoch ms)."""
        return self._due[0][0] if self._due else None

    def hungry(self, now_ms: int) -> Iterable[tuple[str, int]]:
        """Queues to be filled from disk, with how many: those that have run half empty (in lists, not one by one)."""
        while self._due and self._due[0][0] <= now_ms:
            self.waits(heapq.heappop(self._due)[1])
        found: list[tuple[str, int]] = []
        for queue in self._changed:
            room = self.room(queue)
            if 2 * room >= self._window(queue):
                found.append((queue, room))
        # one that is still more than half full will land something, which brings it back here
        self._changed.clear()
        return found
