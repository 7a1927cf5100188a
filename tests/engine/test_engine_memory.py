"""Memory stays flat: 100,000 events against 10,000 rules, through the whole engine with real workers."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import uvloop
from bench.mill import Mill, mill
from bench.result import record, resident_bytes

from eventmill import Event

RULES = 10_000
EVENTS = 100_000


@pytest.mark.slow
def test_a_hundred_thousand_events_with_ten_thousand_rules(tmp_path: Path) -> None:
    before, after = uvloop.run(_run(tmp_path))
    print(f"{before >> 20} MiB at 10,000 events, {after >> 20} MiB at {EVENTS}")
    assert after - before <= 30 << 20, f"{before >> 20} MiB at 10,000 events, {after >> 20} MiB at {EVENTS}"


async def _run(directory: Path) -> tuple[int, int]:
    async with mill(directory) as m:
        await m.put_function("noop", "def main(args):\n    return {}\n")
        patterns = {
            f"r{i}": {
                "type": ["org.dcache.file.written"],
                "subject": [{"glob": f"/pnfs/example.org/data/exfel/run{i % 1000:04d}/raw/*-*{i // 1000}.h5"}],
            }
            for i in range(RULES)
        }
        await m.put_rules(patterns, "noop")
        await m.engine.start()
        await _send(m, 0, 10_000)
        gc.collect()
        before = resident_bytes()
        await _send(m, 10_000, EVENTS)
        gc.collect()
        assert m.engine.counts["function.succeeded"] == EVENTS
        return before, resident_bytes()


async def _send(m: Mill, first: int, last: int) -> None:
    """Append events, each of which one rule matches, and wait until all have had their effect."""
    news = m.engine.follow()
    for start in range(first, last, 1000):
        await m.backbone.append([Event(record(n)) for n in range(start, start + 1000)])
    async for _ in news:
        if m.engine.counts["function.succeeded"] >= last:
            return
