"""The tool itself: a real pool runs a job, comes back after a kill, and knows more than one identity."""

from __future__ import annotations

import os
import subprocess
import sys
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


def test_the_schedd_comes_back_after_a_kill(pytestconfig: pytest.Config) -> None:
    with CondorPool(suite=pytestconfig.getoption("condor")) as pool:
        killed = pool.pids("condor_schedd")
        pool.kill_schedd()
        pool.until_schedd()
        assert pool.pids("condor_schedd") != killed


PARENT = """
import sys, time
from pathlib import Path
from tests.htcondor.pool import CondorPool
pool = CondorPool(Path(sys.argv[2]), suite=sys.argv[1])
pool.start()
print(*pool.pids("condor"), flush=True)
time.sleep(600)
"""


def test_a_pool_dies_with_whoever_started_it(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, pytestconfig.getoption("condor"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as parent:
        assert parent.stdout is not None
        daemons = list(map(int, parent.stdout.readline().split()))
        parent.kill()
    assert len(daemons) >= 5
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in daemons):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_token_is_for_its_owner_alone(condor: CondorPool) -> None:
    assert os.stat(condor.token("alice")).st_mode & 0o777 == 0o600
