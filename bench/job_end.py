"""job-end: from a job's last instruction to the first line of the next function, 200 jobs one after the other, in a
real pool whose slots are kept for the next job (keep_claim_idle), through the whole engine.

Floor: when a raw inotify reader, in a process of its own, has read of the same jobs' ends in the same log.
"""

from __future__ import annotations

import asyncio
import base64
import io
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import orjson
from tests.htcondor.pool import CondorPool

from bench.mill import NAMESPACE, mill
from bench.result import Result, percentile, result, scratch
from eventmill.config import load
from eventmill.entities import Activation
from eventmill.store import DeadLetter

JOBS = 200
WARM_UP = 10
SCRIPT = """#!/bin/sh
echo "{\\"ns\\": $(date +%s%N)}" > result.json
"""
FUNCTION = """
import time

def main(args):
    return {"began": time.time_ns(), "ended": args["ns"], "job": args["usage"]["job"]}
"""
READER = """
import ctypes, json, os, sys, time
path = sys.argv[1]
libc = ctypes.CDLL(None)
descriptor = libc.inotify_init1(0)
libc.inotify_add_watch(descriptor, path.encode(), 2)
log = open(path)
log.seek(0, 2)
text, decoder = "", json.JSONDecoder()
print("ready", flush=True)
while True:
    os.read(descriptor, 65536)
    text += log.read()
    while text.strip():
        try:
            event, end = decoder.raw_decode(text.lstrip())
        except ValueError:
            break
        text = text.lstrip()[end:]
        if event.get("TriggerEventTypeNumber") == 5:
            print(json.dumps([f"{event['Cluster']}.{event['Proc']}", time.time_ns()]), flush=True)
"""


def run() -> Iterator[Result]:
    with scratch() as directory, CondorPool(directory / "pool") as pool:
        pool.event_log.touch()
        command = [sys.executable, "-c", READER, str(pool.event_log)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            reader.stdout.readline()
            try:
                ends = asyncio.run(_chains(directory, pool))
            finally:
                reader.terminate()
            seen = dict(orjson.loads(line) for line in reader.stdout)
    ours = [(began - ended) / 1e6 for _, ended, began in ends]
    floors = [(seen[job] - ended) / 1e6 for job, ended, _ in ends]
    for case, share in (("p50", 0.5), ("p99", 0.99)):
        yield result("job-end", case, percentile(ours, share), "ms", percentile(floors, share))


async def _chains(directory: Path, pool: CondorPool) -> list[tuple[str, int, int]]:
    """(cluster.proc, when the job ended, when the next function began) of each chain, but for the first ones."""
    row = {"kind": "htcondor", "condor_config": pool.config, "event_log": pool.event_log}
    ends: list[tuple[str, int, int]] = []
    async with mill(directory, load(limits={"disk_free_mb": 0}, pools={"condor": row})) as m:
        await m.put_job("work", _code())
        await m.put_function("after", FUNCTION)
        await m.put_sequence("chain", "work", "after")
        await m.engine.start()
        finished = m.engine.follow()
        for _ in range(WARM_UP + JOBS):
            chain = await m.engine.invoke(f"{NAMESPACE}/chain", {})
            found = orjson.loads(await _result(finished, chain.id))
            assert "began" in found, found
            ends.append((found["job"], found["ended"], found["began"]))
    return ends[WARM_UP:]


async def _result(finished: AsyncIterator[tuple[list[Activation], list[DeadLetter]]], id: str) -> bytes:
    async for rows, _ in finished:
        for row in rows:
            if row.id == id:
                return row.result or b"{}"
    raise AssertionError("the engine has stopped")


def _code() -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("job.sub", "executable = run.sh\nrequest_memory = 16\nrequest_disk = 100\nqueue\n")
        archive.writestr("run.sh", SCRIPT)
    return base64.b64encode(buffer.getvalue()).decode()
