"""How an attempt in the pool has ended: from what its worker said, or how it died, to what `Finished` says. Pure."""

from __future__ import annotations

import json
import signal

from eventmill.entities import Status
from eventmill.errors import InvalidEvent
from eventmill.events.codec import parse_json
from eventmill.executors.endings import RETRY_AFTER_S_MAX, Ending, developer_error, of_unusable
from eventmill.executors.pool import protocol
from eventmill.executors.pool.loader import NO_MEMORY
from eventmill.executors.pool.outcome import EXITED_TEXT
from eventmill.executors.pool.protocol import BrokenFrame

NO_INIT = "The action did not initialize and exited unexpectedly."
NO_RESPONSE = "The action did not produce a valid response and exited unexpectedly."

_DONE = {
    protocol.SUCCESS: (Status.SUCCESS, True),
    protocol.RETURNED_ERROR: (Status.APPLICATION_ERROR, True),
    protocol.RAISED: (Status.APPLICATION_ERROR, False),
    protocol.RETRY: (Status.APPLICATION_ERROR, False),
    protocol.FATAL: (Status.APPLICATION_ERROR, True),
    protocol.TOO_LARGE: (Status.APPLICATION_ERROR, True),
    protocol.BAD_RESULT: (Status.DEVELOPER_ERROR, True),
    protocol.EXITED: (Status.DEVELOPER_ERROR, False),
    protocol.MEMORY: (Status.DEVELOPER_ERROR, False),
}


def of_done(outcome: int, retry_after_s: float, result: bytes) -> Ending:
    """The worker answered. Raises BrokenFrame if it can't have been our code that did."""
    if outcome not in _DONE:
        raise BrokenFrame(f"outcome {outcome}")
    status, final = _DONE[outcome]
    try:
        # a function can write to the connection what it likes; and what is too deep could never be written again
        parse_json(result)
    except InvalidEvent as e:
        return of_unusable(e)
    if result[:1] not in (b"{", b"["):
        raise BrokenFrame("a result that is neither an object nor an array")
    retry = retry_after_s if 0 <= retry_after_s <= RETRY_AFTER_S_MAX else None
    return Ending(status, final, result, retry_after_s=retry)


def of_failed_init(payload: bytes) -> Ending:
    """The worker can't load the code. Raises BrokenFrame."""
    try:
        said = json.loads(payload)
        return developer_error(str(said["error"]), final=said["final"] is True)
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise BrokenFrame("FAILED without a reason") from e


def of_death(status: int | None, *, during_init: bool) -> Ending:
    """The worker's process ended by itself; `status` is its exit code, or minus the signal, or not known."""
    if status == -signal.SIGKILL:  # not by us: the kernel ran out of memory
        return developer_error(NO_MEMORY)
    if during_init:
        return developer_error(NO_INIT)
    return developer_error(NO_RESPONSE if status is None else EXITED_TEXT)
