"""What came of a call, as a worker tells it. Standard library only; pure."""

from __future__ import annotations

import json

from eventmill.executors.pool import protocol

Outcome = tuple[int, float, bytes]
"""One of the protocol's outcomes, after how many seconds to retry (or UNSAID), JSON text."""

EXITED_TEXT = "command exited"
NO_OBJECT_TEXT = "The action did not return a dictionary or array."
NULL_TEXT = "The action did not produce a valid JSON or JSON Array response: null\n"

SHOWN_BYTES = 1024
"""What is left of a result that is too large."""


def finished(text: bytes, *, failed: bool) -> Outcome:
    """The function has returned this; `failed`: an error."""
    return protocol.RETURNED_ERROR if failed else protocol.SUCCESS, protocol.UNSAID, text


def failure(outcome: int, text: str, after_s: float = protocol.UNSAID) -> Outcome:
    return outcome, after_s, json.dumps({"error": text}).encode()


def bounded(outcome: Outcome, bytes_max: int) -> Outcome:
    """The same, or that it is too large."""
    size = len(outcome[2])
    if size <= bytes_max:
        return outcome
    message = (
        f"The action produced a response that exceeded the allowed length: {size} > {bytes_max} bytes."
        f" The truncated response was: {outcome[2][:SHOWN_BYTES].decode(errors='replace')}"
    )
    return failure(protocol.TOO_LARGE, message)
