"""Attempts that wait until they may go out to somebody else's service: one queue per action, served in turn.

Bounded by a width for all together and by each action's own `instances`; one slow action can't keep all places. A value
on the event loop: no I/O, no clock.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable

from eventmill.executors.base import Attempt


class Lanes:
    """`width`: attempts that are out at once."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._waiting: OrderedDict[str, deque[Attempt]] = OrderedDict()
        self._out: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def out(self) -> int:
        return self._out.total()

    def add(self, attempt: Attempt) -> None:
        self._waiting.setdefault(attempt.action.qualified, deque()).append(attempt)

    def take_back(self, wanted: Callable[[Attempt], bool]) -> list[Attempt]:
        """Those that wait and are meant by `wanted` wait no more."""
        found = [attempt for lane in self._waiting.values() for attempt in lane if wanted(attempt)]
        for attempt in found:
            self._waiting[attempt.action.qualified].remove(attempt)
        return found

    def next(self) -> Attempt | None:
        """The next one goes out, if there is a place for it; `back` gives the place back."""
        if self.out >= self.width:
            return None
        for name, lane in list(self._waiting.items()):
            if not lane:
                del self._waiting[name]
                continue
            instances = lane[0].action.limits.instances
            if instances is None or self._out[name] < instances:
                self._waiting.move_to_end(name)
                self._out[name] += 1
                return lane.popleft()
        return None

    def back(self, attempt: Attempt) -> None:
        """It is out no more."""
        name = attempt.action.qualified
        self._out[name] -= 1
        if not self._out[name]:
            del self._out[name]
