"""offload: jobs a second until all are accepted and released, through the whole engine, from the events that cause
them: 10,000 jobs that can match nowhere (`requirements = False`), in a real pool, removed afterwards.

Floor: the same jobs by plain submits of 500 with the bindings, in a process of their own, before and after. The
engine's are caused by events, recorded, have rooms with their parameters, and are released.
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

import orjson
from tests.htcondor.pool import CondorPool

from bench.mill import mill
from bench.result import Result, record, resident_bytes, result, scratch
from eventmill.config import load
from eventmill.engine import Engine
from eventmill.entities.submit import parse
from eventmill.executors.htcondor import description
from eventmill.sdk.event import Event

JOBS = 10_000
DESCRIPTION = (
    'executable = run.sh\nrequirements = False\nrequest_memory = 16\nrequest_disk = 1\narguments = "$(id)"\nqueue\n'
)
FLOOR = """
import htcondor2, json, sys, time
commands, items = json.load(open(sys.argv[2]))
schedd = htcondor2.Schedd()
begun = time.perf_counter()
for first in range(0, int(sys.argv[1]), 500):
    schedd.submit(htcondor2.Submit(commands), itemdata=iter(items))
print(int(sys.argv[1]) / (time.perf_counter() - begun))
schedd.act(htcondor2.JobAction.Remove, "true")
"""


def run() -> Iterator[Result]:
    with scratch() as directory, CondorPool(directory / "pool") as pool:
        floors = [_floor(directory, pool)]
        rate, grown = asyncio.run(_offload(directory, pool))
        floors.append(_floor(directory, pool))
    yield result("offload", f"{JOBS:,} jobs", rate, "jobs/s", sum(floors) / 2)
    yield result("offload", "memory, at the end less after 1,000", grown / (1 << 20), "MiB")


def _floor(directory: Path, pool: CondorPool) -> float:
    """Jobs a second by the bindings alone; the queue is empty again when it returns."""
    jobs = directory / "jobs.json"
    jobs.write_bytes(orjson.dumps(_same_jobs(directory / "floor")))
    environment = {**os.environ, "CONDOR_CONFIG": str(pool.config)}
    command = [sys.executable, "-c", FLOOR, str(JOBS), str(jobs)]
    rate = float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    _until_empty(pool)
    return rate


def _same_jobs(directory: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """What the engine would submit for 500 events: commands and item data."""
    (directory / "code").mkdir(parents=True, exist_ok=True)
    (directory / "code" / "run.sh").touch()
    bound = parse(DESCRIPTION)
    terms, jobs = description.Terms(server="floor", keep_claim_idle_s=300), []
    for n in range(500):
        job = bound.bind({"id": str(n)})
        room = directory / f"{n:032x}.1"
        (room / "scratch").mkdir(parents=True, exist_ok=True)
        (room / "params.json").touch()
        facts = description.Facts(
            activation=f"{n:032x}", attempt=1, action="bench/calibrate", batch_name="bench/calibrate", room=room,
            code=directory / "code", memory_mb=256, limit_s=3600,
        )  # fmt: skip
        sources = description.sources(job, directory / "code", ())
        jobs.append(description.job_commands(job, facts, terms, sources))
    [cluster] = description.clusters(jobs)
    return dict(cluster.commands), [dict(item) for item in cluster.items]


def _until_empty(pool: CondorPool) -> None:
    while pool.queue():
        time.sleep(0.5)


async def _offload(directory: Path, pool: CondorPool) -> tuple[float, int]:
    """Jobs a second; how much larger the process was when the last was released than when the first thousand were."""
    settings = load(
        limits={"disk_free_mb": 0, "jobs_in_queue": 2 * JOBS},
        pools={"condor": {"kind": "htcondor", "condor_config": pool.config, "event_log": pool.event_log}},
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
