"""What becomes of a job that has ended: its end is read, its outputs are delivered, its report is made.

Everything here can be done again from the start, and is, when the server is killed in the middle: nothing is taken away
from the job's directory before the engine has recorded the end (`forget`). Blocking; used in threads, for different
jobs at once.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from eventmill.executors import jobs
from eventmill.executors.base import Finished
from eventmill.executors.delivery import Delivery
from eventmill.executors.local import shim
from eventmill.executors.local.records import Claim, End, Job
from eventmill.executors.local.spool import Spool


class Ender:
    """Makes reports of jobs of one spool."""

    def __init__(self, spool: Spool, delivery: Delivery) -> None:
        self._spool = spool
        self._delivery = delivery

    def end(self, job: Job, handle: str) -> Finished:
        """The report of a job whose shim is dead (or never was)."""
        claim = self._spool.claim(job.cluster)
        end = self._spool.end(job.cluster) or self._lost(job, claim)
        room = self._spool.directory(job.cluster) / (claim.launch if claim else "none")
        ending = jobs.Ending(
            exit_code=end.exit_code, signal=end.signal, cancelled=end.cancelled, timed_out=end.timed_out,
            refused=end.refused, failed=end.failed, lost=end.lost,
        )  # fmt: skip
        return self._delivery.report(
            job, ending, room, handle, usage=end.usage, started_ms=end.started_ms, ended_ms=end.ended_ms
        )

    def _lost(self, job: Job, claim: Claim | None) -> End:
        """No end was written and nobody is left to write one: say so, durably, and end what may still run."""
        if claim is not None and claim.boot == shim.boot_id():
            _end_session(claim.job_pid, job.activation)
        end = End(lost=True, started_ms=claim.started_ms if claim else 0, ended_ms=int(time.time() * 1000))
        self._spool.write_end(job.cluster, end)
        return end


def _end_session(session: int, activation: str) -> None:
    """Kill what a job whose shim was killed has left: processes of its session that have its activation's id in their
    environment (a number alone could be somebody else's by now).
    """
    mark = f"EVENTMILL_ACTIVATION={activation}".encode()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            descriptor = os.pidfd_open(int(name))
        except OSError:
            continue
        try:
            if os.getsid(int(name)) == session and mark in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except OSError:
            continue
        finally:
            os.close(descriptor)
