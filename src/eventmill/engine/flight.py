"""What the engine keeps in memory: a few numbers per queue, so that what waits on disk costs nothing.

A queue is whose turn an activation waits for: an action's (functions) or a batch system's (jobs). Only the next few of
each are handed over; the rest wait on disk in the order in which they came. All of it can be rebuilt from the store,
but for calls that have no row yet (`unrecorded`), of which there are no more than the queues let through.

A turn reads it, collects what it changes in `Changes`, and these are applied after its commit: a turn that is rolled
back has changed nothing. It looks only at queues in which something has changed, so that very many that wait cost
nothing either.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from eventmill.entities import Activation


@dataclass(slots=True)
class Changes:
    """What a turn does to the queues."""

    taken: dict[str, str] = field(default_factory=dict)
    """Handed over: activation → queue."""
    landed: dict[str, str] = field(default_factory=dict)
    """Attempts that have ended: activation → queue."""
    waits: set[str] = field(default_factory=set)
    """Queues in which something waits on disk now."""
    looked_at: set[str] = field(default_factory=set)
    emptied: set[str] = field(default_factory=set)
    """Queues in which nothing waits on disk any more, but for retries that are not due yet."""
    due: list[tuple[int, str]] = field(default_factory=list)
    """When retries are due (epoch ms), with their queue."""
    alive: Counter[str] = field(default_factory=Counter)
    """Activations begun, less those that have finished, by namespace."""
    room: Counter[str] = field(default_factory=Counter)
    """What landings less handings have changed of each queue's room."""
    unrecorded: dict[str, Activation] = field(default_factory=dict)
    """Handed over without having been written."""
    recorded: set[str] = field(default_factory=set)
    """Activations that an earlier turn had not written, and this one has."""

    def wait(self, queue: str) -> None:
        """Something waits on disk in this queue."""
        self.waits.add(queue)
        self.emptied.discard(queue)
        self.looked_at.discard(queue)


class Flight:
    """`window(queue)`: how many of a queue may be handed over at once."""

    def __init__(self, window: Callable[[str], int]) -> None:
        self._window = window
        self._queue_of: dict[str, str] = {}
        self._count: Counter[str] = Counter()
        self._backlog: set[str] = set()
        self._changed: set[str] = set()
        """Queues with a backlog in which there may be room since the last look."""
        self._due: list[tuple[int, str]] = []
        self._due_of: dict[str, int] = {}
        """The earliest of each queue: later ones are asked for when that has come."""
        self.alive: Counter[str] = Counter()
        """Activations that have not finished, by namespace."""
        self.unrecorded: dict[str, Activation] = {}
        """What is under way and has no row yet, because somebody waits for its end, with which it is written. Nobody
        else knows of it: if the process dies, it was never called. Turns change copies."""

    def __contains__(self, id: object) -> bool:
        return id in self._queue_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._queue_of)

    def __len__(self) -> int:
        return len(self._queue_of)

    def queue(self, id: str) -> str:
        """The queue of an activation that is under way."""
        return self._queue_of[id]

    def room(self, queue: str, changes: Changes) -> int:
        """How many more of this queue may be handed over, in a turn with these changes so far."""
        return self._window(queue) - self._count[queue] + changes.room[queue]

    def has_backlog(self, queue: str, changes: Changes) -> bool:
        """Whether some of it may wait on disk: then nothing new may overtake it."""
        return queue in changes.waits or (queue in self._backlog and queue not in changes.emptied)

    def next_due(self) -> int | None:
        """When the next retry is due (epoch ms)."""
        return self._due[0][0] if self._due else None

    def hungry(self, now_ms: int, changes: Changes) -> list[tuple[str, int]]:
        """Queues to be filled from disk, with how many: those that have run half empty (in lists, not one by one)."""
        if not (self._backlog or self._changed or changes.waits or self._due):
            return []
        landed = {queue for queue in changes.landed.values() if queue in self._backlog}
        due = {queue for due_ms, queue in self._due_until(now_ms)}
        found = []
        for queue in self._changed | changes.waits | landed | due:
            room = self.room(queue, changes)
            # one that is more than half full will land something, which brings it back here
            changes.looked_at.add(queue)
            if room > 0 and 2 * room >= self._window(queue):
                found.append((queue, room))
        return found

    def _due_until(self, now_ms: int) -> Iterator[tuple[int, str]]:
        """What is due, without taking it off the heap: that is done when the turn is committed."""
        for due in self._due if self._due and self._due[0][0] <= now_ms else ():
            if due[0] <= now_ms:
                yield due

    def apply(self, changes: Changes, now_ms: int) -> None:
        """The turn is committed."""
        for namespace, more in changes.alive.items():
            self.alive[namespace] += more
        while self._due and self._due[0][0] <= now_ms:
            due_ms, queue = heapq.heappop(self._due)
            if self._due_of.get(queue) == due_ms:
                del self._due_of[queue]
            self.wait(queue)
        if changes.waits:
            self.wait(*changes.waits)
        self._changed -= changes.looked_at
        self._backlog -= changes.emptied
        for id in changes.landed:
            self.land(id)
        for id, queue in changes.taken.items():
            self.take(id, queue)
        for id in changes.recorded:
            del self.unrecorded[id]
        self.unrecorded.update(changes.unrecorded)
        for due_ms, queue in changes.due:
            if due_ms < self._due_of.get(queue, due_ms + 1):
                self._due_of[queue] = due_ms
                heapq.heappush(self._due, (due_ms, queue))

    def wait(self, *queues: str) -> None:
        """Something waits on disk in these."""
        self._backlog.update(queues)
        self._changed.update(queues)

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
