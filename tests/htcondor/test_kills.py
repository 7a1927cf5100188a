"""Server and schedd are killed under a map of jobs; each element runs under one job only, and nothing is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.htcondor.mill import FLOW, condor_mill
from tests.htcondor.pool import CondorPool
from tests.soak import CONDOR_KILLED_AT, soak_condor

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("point", CONDOR_KILLED_AT)
def test_killed_at(point: str, condor: CondorPool, tmp_path: Path) -> None:
    with condor_mill(tmp_path, condor, limits="jobs_in_queue = 3\n") as m:
        m.start()
        m.deploy(FLOW)
        m.kill()
        m.start(kill_at=point)
        m.send("map", {"n": 4, "seconds": 0})
        m.until(m.died, 60, f"death at {point}")
        m.start()
        m.until_done()
        m.until_none_is_queued()
        outcome = m.judge_map(4)
        assert m.stop() == 0
        assert (outcome["orphans removed"] > 0) == (point == "submitted")


def test_server_and_schedd_killed_under_a_map(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    suite = pytestconfig.getoption("condor")
    with (
        CondorPool(tmp_path / "condor", suite=suite) as pool,
        condor_mill(tmp_path / "mill", pool, limits="jobs_in_queue = 8\n") as m,
    ):
        outcome = soak_condor(m, seed=20261124, elements=40, kills=5, schedd_kills=1, job_s=0.2)
    assert outcome["elements"] == 40
