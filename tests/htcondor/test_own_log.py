"""Our own job log, on a real pool: it begins anew when it is long, and no end is missed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from eventmill.config import Pool
from eventmill.entities import Action, Limits, Status
from eventmill.executors.htcondor import CondorQueue, rooms
from tests.executors.driving import attempt, driving
from tests.executors.local_jobs import script
from tests.htcondor.pool import CondorPool

pytestmark = pytest.mark.slow

CODE = script("sleep $1", 'arguments = "$(s)"\nrequest_memory = 16\nrequest_disk = 100')


def test_a_long_log_is_renamed_and_followed(
    condor: CondorPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "LOG_BYTES_MAX", 2000)

    async def work() -> None:
        queue = CondorQueue(
            {"c": CODE}.__getitem__, name="condor", state_dir=tmp_path / "condor", results_dir=tmp_path / "results",
            pool=Pool(kind="htcondor", condor_config=condor.config, keep_claim_idle_s=0), environment={},
            result_bytes_max=1 << 20, archive_files_max=100, archive_bytes_max=1 << 20,
        )  # fmt: skip
        action = Action(
            namespace="guest", name="c", version="0.0.1", revision=1, kind="job", code="c",
            limits=Limits(timeout_ms=60_000, memory_mb=100),
        )  # fmt: skip
        async with driving(queue) as driver:
            runs_on, *others = [attempt(action, {"s": s}) for s in (4, 0, 0)]
            queue.submit([runs_on])
            for each in others:
                (end,) = await driver.run(each)
                assert end.status is Status.SUCCESS
                await queue.held()  # the audit
            assert (await driver.finished(runs_on)).status is Status.SUCCESS
            assert queue.event_log is not None
            names = sorted(path.name for path in queue.event_log.parent.iterdir())
            assert names in (["jobs.log", "jobs.log.1", "jobs.log.2"], ["jobs.log.1", "jobs.log.2"])
            assert queue.counts()["history"] == 0

    asyncio.run(work())
