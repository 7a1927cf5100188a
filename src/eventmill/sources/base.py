"""What every source is given: where its events go, and where its state is kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from eventmill.errors import EventmillError
from eventmill.sdk.event import Event

Emit = Callable[[Sequence[Event]], Awaitable[None]]
"""Takes a list of events and returns when they are durable. One that can't be taken now waits; an exception ends the
source, which has then not moved past those events: when it runs again it makes them again, with the same ids."""


class SourceError(EventmillError):
    """A source can't go on; the message says what to do. Nothing is lost if it runs again later."""


class SourceState(Protocol):
    """A few JSON values by name. An old value is always safe: it makes a source announce again what it announced
    since, with the same ids. So `put` need not be durable against a power cut."""

    async def get(self, name: str) -> Any | None:
        """The value that was put last, or None."""
        ...

    async def put(self, name: str, value: Any) -> None:
        """Keep this value; returns when it would survive the death of the process."""
        ...

    async def get_below(self, prefix: str) -> dict[str, Any]:
        """All values whose names begin with this, by what follows it."""
        ...

    async def put_all(self, values: Mapping[str, Any]) -> None:
        """Keep these values, together; None: forget it. At most a few hundred."""
        ...
