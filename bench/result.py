"""What a benchmark yields, and small helpers that several of them need."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Result = dict[str, Any]
"""`bench`, `case`, `value`, `unit`, `floor` (same unit, or None), `ratio` (value to floor, or None)."""


def result(bench: str, case: str, value: float, unit: str, floor: float | None = None) -> Result:
    ratio = None if floor is None else value / floor
    return {"bench": bench, "case": case, "value": value, "unit": unit, "floor": floor, "ratio": ratio}


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def resident_bytes(pid: int | None = None) -> int:
    """Resident size of a process (this one) in bytes."""
    pages = Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="eventmill-bench-") as name:
        yield Path(name)


def record(n: int) -> dict[str, Any]:
    """An event of about 600 bytes, like one that a storage system sends."""
    return {
        "specversion": "1.0",
        "id": f"{n:032x}",
        "source": "//dcache/bench",
        "type": "org.dcache.file.written",
        "subject": f"/pnfs/example.org/data/exfel/run{n % 1000:04d}/raw/frame-{n:09d}.h5",
        "time": "2026-01-01T00:00:00.000Z",
        "datacontenttype": "application/json",
        "data": {
            "msgType": "transfer", "isWrite": "write", "fileSize": 1_000_000 + n, "transferTime": 1067,
            "cellName": "pool-07", "cellType": "pool", "cellDomain": "pool-07Domain", "pnfsid": f"{n:036X}",
            "storageInfo": "exfel:raw@osm", "protocolInfo": {"protocol": "Http", "versionMajor": 1, "versionMinor": 1},
        },
    }  # fmt: skip


@contextlib.contextmanager
def server(data_dir: Path, *, limits: str = "", more: str = "") -> Iterator[tuple[str, str, int]]:
    """A server in a process of its own: its URL, key and process id."""
    config = data_dir / "eventmill.toml"
    config.write_text(f"[server]\nport = 0\n[limits]\n{limits}\n{more}\n")
    command = [
        str(Path(sys.executable).with_name("eventmill")),
        "serve",
        "--config",
        str(config),
        "--data-dir",
        str(data_dir),
    ]
    log = (data_dir / "server.log").open("w")
    with log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            asyncio.run(_ready(data_dir, process))
            url, key = (data_dir / "address").read_text().strip(), (data_dir / "key").read_text().strip()
            yield url, key, process.pid
        finally:
            process.terminate()
            process.wait(60)


async def _ready(data_dir: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if (data_dir / "address").exists():
            return
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {(data_dir / 'server.log').read_text()[-2000:]}")
        await asyncio.sleep(0.05)
    raise RuntimeError("the server did not start")
