"""What a pool pushes: the events of its log, and the final ads of jobs that have left the queue.

Owns the two readers, and the final ads of our jobs until their ends are recorded. It tells what has come, and judges
nothing. Belongs to the event loop; files are read and deleted in threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from eventmill.errors import Unavailable
from eventmill.executors.htcondor import description, endings
from eventmill.executors.htcondor.agenda import AGAIN_S
from eventmill.executors.htcondor.eventlog import EventLog
from eventmill.executors.htcondor.history import FinalAd, HistoryDir
from eventmill.executors.htcondor.records import JobEvent

_log = logging.getLogger(__name__)

FORGOTTEN_MAX = 10_000
"""Final ads that are remembered though nobody waits for them."""


class LogFollower:
    """Follows a log from its end on. `happened(event)`: something has, to somebody's job."""

    def __init__(self, path: Path, happened: Callable[[JobEvent], None]) -> None:
        self._events = EventLog(path, at_end=True)
        self._happened = happened
        self.is_informed = False
        """Each event comes with the job's attributes, sooner or later; else they have to be asked for."""
        self.trouble = ""
        """Why it can't be read, if it can't."""
        self._troubles = 0

    async def run(self) -> None:
        while True:
            try:
                async for events in self._events:
                    self.trouble = ""
                    self.is_informed |= any(event.informed for event in events)
                    for event in events:
                        self._happened(event)
            except Unavailable as e:
                self._troubles += 1
                if str(e) != self.trouble:
                    _log.error("%s", e)
                self.trouble = str(e)
                await asyncio.sleep(AGAIN_S)

    def counts(self) -> dict[str, int]:
        """What was wrong with it."""
        read = self._events.counts
        return {"log_troubles": self._troubles, "log_garbage": read.garbage, "log_truncations": read.truncations}


class FinalAds:
    """Final ads in the schedd's PER_JOB_HISTORY_DIR, which is this server's alone. `left(id, ad)`: a job of ours has
    left the queue; whether anybody waits for it. Its file stays until it is forgotten."""

    def __init__(self, directory: Path, left: Callable[[str, FinalAd], bool]) -> None:
        self._outbox = HistoryDir(directory)
        self._left = left
        self._waited: dict[str, FinalAd] = {}
        """By cluster.proc: of jobs that are known."""
        self._others: dict[str, FinalAd] = {}
        """Of jobs that may become known: they were submitted in vain, or their partition is another server's."""
        self._forgotten: dict[str, None] = {}
        """Jobs whose ads are not wanted any more, if they come late; the latest of them."""
        self._unwanted: set[str] = set()
        """Files that have to be removed."""
        self.trouble = ""
        """Why ads can't be read or removed, if they can't."""
        self._said = ""
        self._troubles = 0

    async def run(self, server: str) -> None:
        """`server`: the number that our jobs have."""
        while True:
            try:
                async for ads in self._outbox:
                    self.trouble = ""
                    ours = [ad for ad in ads if ad.attributes.get(description.SERVER) == server]
                    wanted = [ad for ad in ours if _id(ad) not in self._forgotten]
                    for ad in wanted:
                        self._came(ad)
                    names = {ad.file for ad in wanted}
                    await self._remove(ad.file for ad in ads if ad.file not in names)
            except Unavailable as e:
                self._failed(e)
                await asyncio.sleep(AGAIN_S)

    async def _remove(self, files: Iterable[str]) -> None:
        """What can't be removed now is tried again with the next ones, and by the audit."""
        self._unwanted.update(files)
        going = set(self._unwanted)
        try:
            await self._outbox.delete(going)
        except Unavailable as e:
            self._failed(e)
        else:
            self._unwanted -= going

    def _failed(self, why: Unavailable) -> None:
        self._troubles += 1
        if str(why) != self._said:
            _log.error("%s", why)
        self.trouble = self._said = str(why)

    def counts(self) -> dict[str, int]:
        """What was wrong with the directory."""
        return {"log_troubles": self._troubles, "log_garbage": self._outbox.garbage}

    def _came(self, ad: FinalAd) -> None:
        id = _id(ad)
        if self._left(id, ad):
            self._waited[id] = ad
            return
        self._others[id] = ad
        if len(self._others) > FORGOTTEN_MAX:  # the file stays, for the next start
            del self._others[next(iter(self._others))]

    def claim(self, id: str) -> FinalAd | None:
        """A job is waited for from now on: its ad, if that is here already."""
        if (ad := self._others.pop(id, None)) is not None:
            self._waited[id] = ad
        return self._waited.get(id)

    async def forget(self, ids: Sequence[str]) -> None:
        """The ends of these are recorded."""
        self._forgotten |= dict.fromkeys(ids)
        while len(self._forgotten) > FORGOTTEN_MAX:
            del self._forgotten[next(iter(self._forgotten))]
        await self._remove([ad.file for id in ids if (ad := self._waited.pop(id, None)) is not None])

    async def clear_left(self, after_s: float) -> None:
        """Delete what nobody has waited for that long."""
        before_ms = (time.time() - after_s) * 1000
        old = {id: ad for id, ad in self._others.items() if endings.ended_ms(ad.attributes) < before_ms}
        for id in old:
            del self._others[id]
        await self._remove([ad.file for ad in old.values()])


def _id(ad: FinalAd) -> str:
    return f"{ad.cluster}.{ad.proc}"
