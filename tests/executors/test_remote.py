"""What all executors share that call somebody else's service: a server's death counts for what was out."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eventmill.executors import Found, Recorded
from tests.executors.driving import driving
from tests.executors.killed import ACTIVATION, WITNESS, make
from tests.executors.test_http import Service, serving

ROOT = Path(__file__).parents[2]


async def interrupted(state_dir: Path, is_out: Callable[[], bool], *where: str, orderly: bool) -> dict[str, Found]:
    """What the next server finds after one that had an attempt out has been killed, or has ended in good order."""
    arguments = ["-m", "tests.executors.killed", str(state_dir), *where]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=subprocess.PIPE, cwd=ROOT)
    try:
        async with asyncio.timeout(30):
            while not is_out():  # noqa: ASYNC110  (seen from outside)
                await asyncio.sleep(0.01)
        if orderly:
            await asyncio.wait_for(process.communicate(b""), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    async with driving(make(state_dir, *where)) as driver:
        return await driver.executor.find([Recorded(activation=ACTIVATION), Recorded(activation="b" * 32)])


COUNTED = {ACTIVATION: Found(activation=ACTIVATION, interrupted=True)}


@pytest.mark.slow
@pytest.mark.parametrize("orderly", [False, True])
def test_a_death_counts_for_a_service_s_calls(tmp_path: Path, orderly: bool) -> None:
    service = Service(delay_s=0.8)

    async def work() -> dict[str, Found]:
        async with serving(service):
            url = f"http://{service.host}"
            return await interrupted(tmp_path, lambda: bool(service.received), url, orderly=orderly)

    assert asyncio.run(work()) == ({} if orderly else COUNTED)


@pytest.mark.slow
def test_a_death_counts_for_what_openwhisk_runs(eventmill: tuple[str, str], tmp_path: Path) -> None:
    is_out = (tmp_path / WITNESS).exists
    assert asyncio.run(interrupted(tmp_path, is_out, *eventmill, orderly=False)) == COUNTED
