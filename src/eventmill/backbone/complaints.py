"""What goes on for long is said once, and then now and then: one `Complaints` for each that has something to say."""

from __future__ import annotations

import logging
import time

AGAIN_S = 300.0
"""The same is said again after this."""


class Complaints:
    """For one thread, or where two lines too many do no harm."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said_at: dict[str, float] = {}

    def say(self, kind: str, text: str) -> None:
        """Log an error, unless one of its kind was logged lately."""
        now = time.monotonic()
        if now - self._said_at.get(kind, -AGAIN_S) >= AGAIN_S:
            self._said_at[kind] = now
            self._log.error("%s", text)

    def over(self, kind: str | None = None) -> None:
        """This (or everything) is well again: if it comes back, it is said at once."""
        if kind is None:
            self._said_at.clear()
        else:
            self._said_at.pop(kind, None)
