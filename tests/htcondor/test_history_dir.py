"""The schedd's PER_JOB_HISTORY_DIR as the outbox of final ads, on a real pool: an end is taken from it alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from eventmill.config import Pool
from eventmill.entities import Action, Limits, Status
from eventmill.executors.htcondor import CondorQueue
from tests.executors.driving import attempt, driving
from tests.executors.local_jobs import script
from tests.htcondor.pool import CondorPool

pytestmark = pytest.mark.slow

CODE = script('echo "{\\"saw\\": $1}" > result.json', 'arguments = "$(n)"\nrequest_memory = 16\nrequest_disk = 100')


def test_ends_are_taken_from_final_ads_which_go_when_they_are_recorded(tmp_path: Path) -> None:
    history = tmp_path / "history"
    history.mkdir()
    silent = tmp_path / "no-such-log"  # no event ever comes from there

    async def work(pool: CondorPool) -> None:
        queue = CondorQueue(
            {"c": CODE}.__getitem__, name="condor", state_dir=tmp_path / "condor", results_dir=tmp_path / "results",
            pool=Pool(kind="htcondor", condor_config=pool.config, event_log=silent, history_dir=history),
            environment={}, result_bytes_max=1 << 20, archive_files_max=100, archive_bytes_max=1 << 20,
        )  # fmt: skip
        action = Action(
            namespace="guest", name="c", version="0.0.1", revision=1, kind="job", code="c",
            limits=Limits(timeout_ms=60_000, memory_mb=100),
        )  # fmt: skip
        async with driving(queue) as driver:
            ends = await driver.run(*(attempt(action, {"n": n}) for n in (1, 2)))
            assert [end.status for end in ends] == [Status.SUCCESS] * 2
            assert all(f'"saw":{n}'.encode() in end.result for n, end in enumerate(ends, 1))
            assert len(list(history.iterdir())) == 2
            queue.forget([end.handle for end in ends if end.handle])
            async with asyncio.timeout(10):
                while list(history.iterdir()):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    with CondorPool(tmp_path / "pool", extra=[f"PER_JOB_HISTORY_DIR = {history}"]) as pool:
        asyncio.run(work(pool))
