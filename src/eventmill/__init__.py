"""Eventmill: event-driven workflows for research data.

The names of a workflow's author, and nothing else. They are loaded when they are first asked for, so that
`import eventmill` costs next to nothing in a function's worker or in a job, and the server's rooms never ride along.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from eventmill.sdk.errors import Fatal, FlowError, Retry
    from eventmill.sdk.event import Event, local_path
    from eventmill.sdk.maps import results
    from eventmill.sdk.mill import Mill
    from eventmill.sdk.patterns import completed, cron, dcache, every, failed, files, happened

__all__ = [
    "Event",
    "Fatal",
    "FlowError",
    "Mill",
    "Retry",
    "completed",
    "cron",
    "dcache",
    "every",
    "failed",
    "files",
    "happened",
    "local_path",
    "results",
]

_HOMES = {
    "errors": ("Fatal", "FlowError", "Retry"),
    "event": ("Event", "local_path"),
    "maps": ("results",),
    "mill": ("Mill",),
    "patterns": ("completed", "cron", "dcache", "every", "failed", "files", "happened"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            from importlib import import_module

            value: object = getattr(import_module("eventmill.sdk." + home), name)
            globals()[name] = value  # the next look-up does not come here
            return value
    raise AttributeError(f"module 'eventmill' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
