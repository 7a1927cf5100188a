"""offload: jobs a second until all are accepted and released, through the whole engine, from the events that cause
them: 10,000 jobs that can match nowhere (`requirements = False`), in a real pool, removed afterwards.

Floor: as many such jobs by plain submits of 500 with the bindings, in a process of their own, before and after. The
engine's jobs are recorded in between, have rooms with their parameters, and are released.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.htcondor.pool import CondorPool

from bench.mill import mill
from bench.result import Result, record, resident_bytes, result, scratch
from eventmill.config import load
from eventmill.engine import Engine
from eventmill.sdk.event import Event

JOBS = 10_000
DESCRIPTION = (
    'executable = run.sh\nrequirements = False\nrequest_memory = 16\nrequest_disk = 1\narguments = "$(id)"\nqueue\n'
)
FLOOR = """
import htcondor2, sys, time
schedd = htcondor2.Schedd()
submit = htcondor2.Submit({
    "universe": "vanilla", "executable": "/bin/true", "transfer_executable": "false", "requirements": "False",
    "request_memory": "16", "request_disk": "1", "hold": "true", "arguments": "$(id)", "log": sys.argv[2],
    "should_transfer_files": "YES", "when_to_transfer_output": "ON_EXIT", "My.EventmillActivation": '"$(id)"',
})
begun = time.perf_counter()
for first in range(0, int(sys.argv[1]), 500):
    schedd.submit(submit, itemdata=iter([{"id": str(n)} for n in range(first, first + 500)]))
print(int(sys.argv[1]) / (time.perf_counter() - begun))
schedd.act(htcondor2.JobAction.Remove, "true")
"""


def run() -> Iterator[Result]:
    with scratch() as directory, CondorPool(directory / "pool") as pool:
        floors = [_floor(pool)]
        rate, grown = asyncio.run(_offload(directory, pool))
        floors.append(_floor(pool))
    yield result("offload", f"{JOBS:,} jobs", rate, "jobs/s", sum(floors) / 2)
    yield result("offload", "memory, at the end less after 1,000", grown / (1 << 20), "MiB")


def _floor(pool: CondorPool) -> float:
    """Jobs a second by the bindings alone; the queue is empty again when it returns."""
    environment = {**os.environ, "CONDOR_CONFIG": str(pool.config)}
    command = [sys.executable, "-c", FLOOR, str(JOBS), str(pool.directory / "floor.log")]
    rate = float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    _until_empty(pool)
    return rate


def _until_empty(pool: CondorPool) -> None:
    while pool.queue():
        time.sleep(0.5)


async def _offload(directory: Path, pool: CondorPool) -> tuple[float, int]:
    """Jobs a second; how much larger the process was when the last was released than when the first thousand were."""
    settings = load(
        limits={"disk_free_mb": 0, "jobs_in_queue": 2 * JOBS},
        pools={"condor": {"kind": "htcondor", "condor_config": pool.config}},
    )
    async with mill(directory, settings) as m:
        await m.put_job("calibrate", _code())
        await m.put_rules({"all": {"type": ["org.dcache.file.written"]}}, "calibrate")
        await m.engine.start()
        events = [Event({**record(n), "data": {"id": str(n)}, "id": str(n)}) for n in range(JOBS)]
        begun, after_some = time.perf_counter(), 0
        for first in range(0, JOBS, 500):
            await m.backbone.append(events[first : first + 500])
        while (released := _released(m.engine)) < JOBS:
            if m.engine.problem is not None:
                raise m.engine.problem
            after_some = after_some or (resident_bytes() if released >= 1000 else 0)
            await asyncio.sleep(0.05)
        took = time.perf_counter() - begun
        grown = resident_bytes() - after_some
        pool.run("condor_rm", "-all")
        await asyncio.to_thread(_until_empty, pool)
    return JOBS / took, grown


def _released(engine: Engine) -> int:
    """As the queue says: `0 jobs held, 17 released, …`."""
    _, line = engine.conditions()["pool:condor"]
    found = re.search(r"(\d+) released", line)
    return 0 if found is None else int(found[1])


def _code() -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("job.sub", DESCRIPTION)
        archive.writestr("run.sh", "#!/bin/sh\n")
    return base64.b64encode(buffer.getvalue()).decode()
