"""A pool's event log as a source: every job event becomes a CloudEvent, also of jobs that Eventmill did not submit.

    type       org.htcondor.job.submitted, .executing, .held, .released, .evicted, .terminated, .aborted, … (`Kind`)
    source     //htcondor/<pool>
    subject    <schedd>#<cluster>.<proc>
    time       when HTCondor says it happened
    data       the record's attributes, as they stand in the log

Personal data: `Owner` stays when the pool's configuration puts it into the log. It is the account whose job it is,
which rules need, and which everybody who may run condor_q sees anyway. `HoldReason` and the like may name paths.

An id is a digest of what happened: schedd, job, HTCondor's number of the event, its time, and what else tells events of
one kind apart. So what is read again, or stands in the log twice, is the same event. With times in whole seconds (the
format option SUB_SECOND is missing) a job that is held, released and held again for the same reason within a second is
held once.

The log's position is put after the events are durable; a source that dies in between makes the same events again.
`run` is one task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from eventmill.errors import Unavailable
from eventmill.events.digest import digest
from eventmill.executors.htcondor.eventlog import EventLog
from eventmill.executors.htcondor.records import JobEvent
from eventmill.sdk.event import Event
from eventmill.sources.base import Emit, SourceError, SourceState
from eventmill.sources.clock import timestamp

TYPE_PREFIX: Final = "org.htcondor.job."

_TELLING: Final = ("Type", "Info", "Size", "ResidentSetSize", "Attribute", "Value", "Node", "UUID", "Filename")
"""Attributes in which a job's events of one kind, in one millisecond, may differ: steps of a transfer, notes, …"""


class CondorSource:
    """Announces what happens to the jobs of one schedd: `path` is the EVENT_LOG that it writes, in JSON.

    A log that was never seen before is read from its end: what happened before is no news.
    """

    def __init__(self, path: Path | str, emit: Emit, state: SourceState, *, pool: str, schedd: str) -> None:
        self.path = Path(path)
        self.announced = 0
        """Events that are durable."""
        self.log: EventLog | None = None
        """What is read while `run` runs; its counts are for metrics."""
        self.ready = asyncio.Event()
        """Set once the log is followed, and what was there has been announced."""
        self._emit = emit
        self._state = state
        self._schedd = schedd
        self._source = "//htcondor/" + quote(pool, safe="-._~")
        self._name = f"htcondor:{pool}:{self.path.absolute()}"

    async def run(self) -> None:
        """Follow the log until cancelled. Raises SourceError if it can't be read."""
        self.log = EventLog(self.path, await self._state.get(self._name), at_end=True)
        try:
            async for batch in self.log:
                if batch:
                    await self._announce(batch)
                await self._state.put(self._name, self.log.position)
                if not batch:
                    self.ready.set()
        except Unavailable as e:
            raise SourceError(f"the event log of HTCondor: {e}") from e

    async def _announce(self, batch: Iterable[JobEvent]) -> None:
        events = {made.id: made for made in map(self._event, batch)}
        await self._emit(list(events.values()))
        self.announced += len(events)

    def _event(self, event: JobEvent) -> Event:
        telling = [str(event.attributes.get(name, "")) for name in _TELLING]
        made = Event(
            specversion="1.0",
            id=digest("htcondor", self._schedd, *event.key, *telling),
            source=self._source,
            type=TYPE_PREFIX + event.kind.value,
            subject=f"{self._schedd}#{event.cluster}.{event.proc}",
            datacontenttype="application/json",
            data=dict(event.attributes),
        )
        if event.time_ms and (time := timestamp(event.time_ms * 1_000_000)):
            made["time"] = time
        return made
