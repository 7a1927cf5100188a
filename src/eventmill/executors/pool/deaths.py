"""How the end of a function's process is told to people. Standard library only: workers load it, too."""

from __future__ import annotations

import signal


def describe(status: int | None) -> str:
    """For the logs. `status`: exit code, or minus the signal, or not known."""
    if status is None:
        return "The function's process is gone."
    if status >= 0:
        return f"The function's process ended with exit code {status}."
    try:
        return f"The function's process was ended by {signal.Signals(-status).name}."
    except ValueError:
        return f"The function's process was ended by signal {-status}."
