"""Jobs that report their own end: where the pool's events can't be read, each job runs in a wrapper of ours.

What a report says is that it is time to look, and nothing else: a job is not at its end yet while its wrapper speaks,
and queue and history are the truth. So it is answered, but not believed: whoever forges or repeats one makes the schedd
be asked once more. The token counts for one attempt of one activation, as long as that is under way; it goes to the job
in a file of its room, which is transferred.

`wrapped` is a function of values; `Expected` belongs to the event loop.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import orjson

from eventmill.entities.submit import BoundDescription
from eventmill.errors import InvalidDescription
from eventmill.executors.htcondor import wrapper
from eventmill.executors.htcondor.description import Sources
from eventmill.executors.jobs import END_PATH, JOB_END
from eventmill.signing import Signer

WRAPPER_FILE: Final = "eventmill-job"
"""What condor_q shows as the program of such a job; its first argument is the job's own."""
ORDER_FILE: Final = wrapper.ORDER_FILE
FIRST_LOOK_S: Final = 0.1
"""After a report: the wrapper has to end, what the job has left to be transferred."""
LAST_WAIT_S: Final = 600.0
"""A job that is still in the queue when the next look would be later than this is the audit's."""
ANEW_S: Final = 2.0
"""A report of a job that is waited for begins the waiting anew (it was evicted at its end, and has run again), once the
waits have become as long as this."""


@dataclass(frozen=True, slots=True)
class Reporting:
    """What makes jobs report their ends: to this URL, with a token of this signer's."""

    url: str
    signer: Signer

    def order(self, activation: str, attempt: int) -> bytes:
        """What the wrapper of this attempt is told; a secret."""
        path = END_PATH.format(activation=activation, attempt=attempt)
        token = self.signer.sign(JOB_END, activation, str(attempt))
        return orjson.dumps({"url": self.url.rstrip("/") + path, "token": token})


@cache
def wrapper_text() -> bytes:
    return Path(wrapper.__file__).read_bytes()


def wrapped(
    bound: BoundDescription, files: Sources, *, program: Path, room: Path
) -> tuple[BoundDescription, Sources]:  # fmt: skip
    """The same job in its wrapper: the job's own executable is an input file, or a program of the execute node, and the
    wrapper's first argument. `program`: the wrapper; `room` has the order.

    Raises InvalidDescription if two files would have one place in the job's directory.
    """
    inputs = [*files.inputs, str(room / ORDER_FILE)]
    command = bound.executable
    if bound.transfer_executable:
        name = os.path.basename(files.executable)
        if name in {os.path.basename(path) for path in inputs}:
            raise InvalidDescription(f"transfer_input_files: '{name}' is the name of the job's executable, too")
        inputs.append(files.executable)
        command = f"./{name}"
    described = replace(
        bound, executable=str(program), transfer_executable=True, arguments=(command, *bound.arguments)
    )  # fmt: skip
    return described, replace(files, executable=str(program), inputs=tuple(inputs))


@dataclass(slots=True)
class _Wait:
    due: float
    last_s: float


class Expected:
    """Jobs whose ends have been reported and not yet been seen, by cluster.proc, and when each is to be looked for.

    The waits double, so that an end is seen at most as late again as the transfer of its output took, with a dozen
    looks for an hour. Times are a monotonic clock's, in seconds.
    """

    def __init__(self) -> None:
        self._waits: dict[str, _Wait] = {}

    def add(self, id: str, now: float) -> None:
        wait = self._waits.get(id)
        if wait is None or wait.last_s >= ANEW_S:
            self._waits[id] = _Wait(now + FIRST_LOOK_S, FIRST_LOOK_S)

    def discard(self, id: str) -> None:
        self._waits.pop(id, None)

    def due(self, now: float) -> list[str]:
        """Those that are to be looked for now, all at once. Each is due again later, unless it is discarded."""
        found = [id for id, wait in self._waits.items() if wait.due <= now]
        for id in found:
            last_s = self._waits[id].last_s * 2
            self._waits[id] = _Wait(now + last_s, last_s)
            if last_s > LAST_WAIT_S:
                del self._waits[id]
        return found

    def next_s(self, now: float) -> float | None:
        """Seconds until one is due; None if none is waited for."""
        return max(0.0, min(wait.due for wait in self._waits.values()) - now) if self._waits else None
