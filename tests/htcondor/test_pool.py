"""The tool itself: a real pool runs a job, comes back after a kill, and knows more than one identity."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.htcondor.pool import CondorPool

pytestmark = pytest.mark.slow


def test_a_job_runs_and_is_told_in_the_event_log(condor: CondorPool, tmp_path: Path) -> None:
    description = tmp_path / "job.sub"
    tmp_path.chmod(0o755)
    description.write_text(
        "executable = /bin/true\ntransfer_executable = false\nshould_transfer_files = no\nrequest_memory = 16\n"
        'request_disk = 1\nMy.EventmillActivation = "pool-test"\nqueue\n'
    )
    condor.run("condor_submit", str(description))
    end = time.monotonic() + 30
    while not condor.history('EventmillActivation == "pool-test"'):
        assert time.monotonic() < end, condor.queue()
        time.sleep(0.1)
    [ad] = condor.history('EventmillActivation == "pool-test"')
    assert (ad["Owner"], ad["ExitCode"]) == (condor.owner, 0)
    assert '"TriggerEventTypeName": "ULOG_JOB_TERMINATED"' in condor.event_log.read_text()


def test_the_schedd_comes_back_after_a_kill(condor: CondorPool) -> None:
    condor.kill_schedd()
    condor.until_schedd()


def test_a_token_is_for_its_owner_alone(condor: CondorPool) -> None:
    assert os.stat(condor.token("alice")).st_mode & 0o777 == 0o600
