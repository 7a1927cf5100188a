"""Named points at which a test can kill the process, to see that nothing is lost and nothing doubled.

`EVENTMILL_KILL_AT=<point>[:n]` kills the process (SIGKILL) when it reaches the point for the nth time.
"""

from __future__ import annotations

import os
import signal

POINTS = (
    "read",  # a batch has been read, nothing is matched
    "matched",  # matched and written, not committed
    "committed",  # committed, nothing is handed over
    "handed",  # handed over
    "reported",  # an attempt has ended (or was accepted), nothing is recorded
    "recorded",  # recorded, its chain's next step is not handed over
    "accepted",  # a job's handle is durable, the job is not released
    "released",  # released
    "ended",  # a job's end is durable, its executor has not forgotten it
)
"""The engine's."""

MAP_POINTS = (
    "joined",  # the file with a map's results is durable, the map's end is not recorded
)
"""The engine's, for maps whose results go into a file."""

KAFKA_POINTS = (
    "claimed",  # partitions are taken in the store, nothing of them is read
    "relayed",  # Kafka has acknowledged our own events, which is not noted
)
"""The Kafka backbone's."""

CONDOR_POINTS = (
    "furnished",  # the next jobs' rooms are made, none is submitted
    "submitted",  # the schedd has taken jobs, held; nobody knows
    "unheld",  # the schedd has let jobs go
    "delivered",  # a job's files are where they belong, its end is not reported
)
"""HTCondor's executor's."""

_point, _, _count = os.environ.get("EVENTMILL_KILL_AT", "").partition(":")
_left = int(_count or 1)


def reached(point: str) -> None:
    """The process has reached this point."""
    global _left
    if point == _point:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
