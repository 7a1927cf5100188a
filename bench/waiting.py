"""waiting: what a chain costs that waits for its job: bytes of resident memory for each of 100,000, and the seconds
until an engine that finds them in its store is ready again. One job at a time runs here, and it does not end.
"""

from __future__ import annotations

import base64
import gc
import io
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import uvloop

from bench.mill import Mill, mill
from bench.result import Result, record, resident_bytes, result, scratch
from eventmill import Event

CHAINS = 100_000
WARM_UP = 5_000


def run() -> Iterator[Result]:
    with scratch() as directory:
        per_chain = uvloop.run(_fill(directory))
        yield result("waiting", "memory", per_chain, "bytes/chain")
        yield result("waiting", "restart", uvloop.run(_restart(directory)), "s")


async def _fill(directory: Path) -> float:
    async with mill(directory) as m:
        await m.put_job("wait", _archive())
        await m.put_function("after", "def main(args):\n    return {}\n")
        await m.put_sequence("chain", "wait", "after")
        await m.put_rules({"r": {"type": ["org.dcache.file.written"]}}, "chain")
        await m.engine.start()
        await _send(m, 0, WARM_UP)
        before = resident_bytes()
        await _send(m, WARM_UP, WARM_UP + CHAINS)
        gc.collect()
        return (resident_bytes() - before) / CHAINS


async def _send(m: Mill, first: int, last: int) -> None:
    for start in range(first, last, 1000):
        await m.backbone.append([Event(record(n)) for n in range(start, start + 1000)])
    while m.engine.status()["alive"] < 2 * last:
        await m.store.durable()


async def _restart(directory: Path) -> float:
    begin = time.perf_counter()
    async with mill(directory) as m:
        await m.engine.start()
        await m.engine.invoke("bench/after", {}, wait_s=60)
        took = time.perf_counter() - begin
        assert m.engine.status()["alive"] >= 2 * CHAINS
    return took


def _archive() -> str:
    """A job that outlasts the measurement."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("job.sub", "executable = /bin/sleep\ntransfer_executable = false\narguments = 120\nqueue\n")
    return base64.b64encode(raw.getvalue()).decode()
