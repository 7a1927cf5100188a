"""A job's room on the access point: the directory from which HTCondor takes its parameters and into which it puts what
the job leaves. Its shape is `delivery`'s. Blocking; used in threads, for different jobs at once.
"""

from __future__ import annotations

from pathlib import Path

from eventmill.entities.submit import BoundDescription
from eventmill.executors.delivery import INPUTS_FILE
from eventmill.executors.jobs import PARAMS_FILE, RESULT_FILE


def furnish(room: Path, bound: BoundDescription, params: bytes) -> None:
    """Make the room of a job that is about to be submitted. Repeating it is harmless as long as the job has not run.

    The scratch directory is empty, so that all that arrives in it is output. A job that names its output files gets an
    empty result to begin with: HTCondor holds a job that leaves out a file that was named.
    """
    (room / "scratch").mkdir(parents=True, exist_ok=True)
    (room / PARAMS_FILE).write_bytes(params)
    (room / INPUTS_FILE).write_bytes(b"{}")
    if bound.outputs is not None:
        (room / RESULT_FILE).write_bytes(b"{}")
