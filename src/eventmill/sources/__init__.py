"""Sources: what turns something that happened outside into events. A watched directory tree, schedules, and
the log of an HTCondor pool.

A source hands its events to an `Emit` and keeps a little state of its own. It knows neither the backbone nor the store.
"""

from eventmill.sources.base import Emit, SourceError, SourceState
from eventmill.sources.files import FileSource
from eventmill.sources.htcondor import CondorSource
from eventmill.sources.schedules import Schedule, ScheduleSource, parse_schedule

__all__ = [
    "CondorSource",
    "Emit",
    "FileSource",
    "Schedule",
    "ScheduleSource",
    "SourceError",
    "SourceState",
    "parse_schedule",
]
