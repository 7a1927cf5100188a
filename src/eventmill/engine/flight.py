"""What the engine keeps in memory: a few numbers per queue, so that what waits on disk costs nothing.

A queue is whose turn an activation waits for: an action's (functions) or a batch system's (jobs). Only the next few of
each are handed over; the rest wait on disk in the order in which they came. All of it can be rebuilt from the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator


class Flight:
    """Counts of what is under way. `window(queue)`: how many of a queue may be handed over at once."""

    def __init__(self, window: Callable[[str], int]) -> None:
        self._window = window
        self._queue_of: dict[str, str] = {}
        self._count: Counter[str] = Counter()
        self.backlog: set[str] = set()
        """Queues of which more may wait on disk."""
        self.due: dict[str, int] = {}
        """When the next retry of a queue is due (epoch ms)."""
        self.alive: Counter[str] = Counter()
        """Activations that have not finished, by namespace."""

    def room(self, queue: str) -> int:
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

    def queue(self, id: str) -> str:
        return self._queue_of[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._queue_of)

    def __len__(self) -> int:
        return len(self._queue_of)

    def hungry(self, now_ms: int) -> list[tuple[str, int]]:
        """Queues to be filled from disk, with how many: those that have run half empty (in lists, not one by one)."""
        for queue in [q for q, due in self.due.items() if due <= now_ms]:
            del self.due[queue]
            self.backlog.add(queue)
        rooms = [(queue, self.room(queue)) for queue in self.backlog]
        return [(queue, room) for queue, room in rooms if 2 * room >= self._window(queue)]

    def next_due(self) -> int | None:
        """When the next retry is due (epoch ms)."""
        return min(self.due.values(), default=None)
