"""What the SDK costs an interpreter: `import eventmill`, and all of its names, above a bare start.

Each round starts a bare interpreter and one per case, in turn, so that a busy machine slows all of them alike. All
have bytecode, as an installed package has; the first round, which writes it, is not counted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

ROUNDS = 21

CASES = {
    "import": "import eventmill",
    "import, all names": "from eventmill import *",
}


def run() -> Iterator[dict[str, Any]]:
    """Rows of the benchmark `sdk`: `value` is what is added to `floor`, the bare interpreter, both in ms."""
    codes = {"bare": "pass", **CASES}
    times: dict[str, list[float]] = {case: [] for case in codes}
    with tempfile.TemporaryDirectory(prefix="eventmill-bench-") as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for round_number in range(1 + ROUNDS):
            for case, code in codes.items():
                elapsed_ms = _start_ms(code, environment)
                if round_number:
                    times[case].append(elapsed_ms)
    floor = statistics.median(times["bare"])
    for case in CASES:
        added = statistics.median(times[case]) - floor
        yield {
            "bench": "sdk",
            "case": case,
            "value": round(added, 2),
            "unit": "ms",
            "floor": round(floor, 2),
            "ratio": None,
        }


def _start_ms(code: str, environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    for row in run():
        print(row)
