"""What runs activations: one file or folder per kind behind one small protocol."""

from eventmill.executors.base import (
    Accepted,
    Attempt,
    CodeSource,
    Executor,
    Finished,
    Found,
    Recorded,
    Report,
    Started,
)

__all__ = ["Accepted", "Attempt", "CodeSource", "Executor", "Finished", "Found", "Recorded", "Report", "Started"]
