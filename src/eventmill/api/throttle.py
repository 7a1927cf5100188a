"""How often a namespace calls actions and fires triggers, counted by the minute of the clock.

OpenWhisk's way: what is refused counts, too, a sequence counts once, and calls of a web action are its owner's. How
many activations are under way at once is looked at by the engine, which knows it exactly. What events cause is neither
counted nor refused: it waits. In memory, and so begun anew by a restart; a look-up per call. On the event loop only.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from eventmill.config import Limits
from eventmill.errors import Throttled


class Throttle:
    """The counters of one server. `now_s`: the clock (seconds since 1970)."""

    def __init__(self, limits: Limits, now_s: Callable[[], float] = time.time) -> None:
        self._calls = _Minute(limits.invocations_per_minute, now_s)
        self._fires = _Minute(limits.fires_per_minute, now_s)

    def call(self, namespace: str) -> None:
        """An action is about to be called for this namespace. Raises Throttled."""
        self._calls.count(namespace)

    def fire(self, namespace: str) -> None:
        """A trigger of this namespace is about to be fired by hand. Raises Throttled."""
        self._fires.count(namespace)


class _Minute:
    """Counts of this minute, by namespace; those of the last one are forgotten with its end."""

    def __init__(self, most: int, now_s: Callable[[], float]) -> None:
        self._most = most
        self._now_s = now_s
        self._minute = 0
        self._counts: Counter[str] = Counter()

    def count(self, namespace: str) -> None:
        minute = int(self._now_s() // 60)
        if minute != self._minute:
            self._minute = minute
            self._counts.clear()
        self._counts[namespace] += 1
        if self._counts[namespace] > self._most:
            raise Throttled(
                f"Too many requests in the last minute (count: {self._counts[namespace]}, allowed: {self._most})."
            )
