"""activate: no-op functions a second through the whole engine: read, matched, recorded, run in a worker, result and
completion event recorded. The events are in the log when the clock starts; HTTP is not in it (that is `ingest`).

Floor: the same rows by raw sqlite3 in the same groups, plus pipelined round trips to the same kind of workers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import orjson
import uvloop

from bench.mill import mill
from bench.result import Result, record, result, scratch
from bench.rows import seconds_for_rows
from bench.worker import raw_round_trips, raw_workers
from eventmill import Event

COUNT = 10_000
ROUNDS = 3
WORKERS = 8


def run() -> Iterator[Result]:
    rates: list[float] = []
    floors: list[float] = []
    for _ in range(ROUNDS):
        rate, floor = uvloop.run(_round())
        rates.append(rate)
        floors.append(floor)
    yield result("activate", "no-op", statistics.median(rates), "activations/s", statistics.median(floors))


async def _round() -> tuple[float, float]:
    with scratch() as directory:
        async with mill(directory, workers=WORKERS) as m:
            await m.put_function("noop", "def main(args):\n    return {}\n")
            await m.put_rules({"r": {"type": ["org.dcache.file.written"]}}, "noop")
            for first in range(0, COUNT, 1000):
                await m.backbone.append([Event(record(n)) for n in range(first, first + 1000)])
            news = m.engine.follow()
            done, begin = 0, time.perf_counter()
            await m.engine.start()
            async for finished, _ in news:
                done += len(finished)
                if done >= COUNT:
                    break
            rate = COUNT / (time.perf_counter() - begin)
            group = max(1, COUNT // m.engine.counts["turns"])
        rows = await seconds_for_rows(directory, COUNT, group)
    with raw_workers(WORKERS) as connections:
        raw_round_trips(connections, 500)
        trips = raw_round_trips(connections, COUNT, orjson.dumps(record(0)))
    return rate, COUNT / (rows + trips)
