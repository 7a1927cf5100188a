"""What has to be done about jobs, each at its own time: at once, and after a pause that doubles if it was in vain.

Owns due times, by cluster.proc. Whoever does the work discards what is done and postpones the rest. Belongs to the
event loop; nothing here is durable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

AGAIN_S = 2.0
"""What a schedd could not do is asked for again after this; then after twice as long, and so on."""
AGAIN_MAX_S = 30.0
"""The longest pause of what waits for a schedd that is away."""


@dataclass(slots=True)
class _Entry:
    due: float
    pause_s: float = 0.0


class Agenda:
    """One worker takes what is due from it (`next`)."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._changed = asyncio.Event()

    def __contains__(self, id: str) -> bool:
        return id in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, ids: Iterable[str]) -> None:
        """These are due now, also if they had been postponed."""
        now = time.monotonic()
        self._entries |= {id: _Entry(now) for id in ids}
        self._changed.set()

    def discard(self, id: str) -> None:
        self._entries.pop(id, None)

    def postpone(self, ids: Iterable[str], pause_s_max: float) -> float:
        """Those of these that are still here wait, longer each time; the longest pause."""
        longest = 0.0
        for id in ids:
            if (entry := self._entries.get(id)) is not None:
                entry.pause_s = min(entry.pause_s * 2 or AGAIN_S, pause_s_max)
                entry.due = time.monotonic() + entry.pause_s
                longest = max(longest, entry.pause_s)
        return longest

    def wake(self) -> None:
        """Some may be ready that were not."""
        self._changed.set()

    async def next(self, is_ready: Callable[[str], bool] = lambda _: True) -> list[str]:
        """Wait until some are due and ready: those. They stay here."""
        while True:
            now = time.monotonic()
            if found := [id for id, entry in self._entries.items() if entry.due <= now and is_ready(id)]:
                return found
            later = [entry.due for entry in self._entries.values() if entry.due > now]
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(later) - now if later else None):
                    await self._changed.wait()
