"""`./dev bench [NAME …] [--json]`: run the named benchmarks, or all, and print their figures beside their floors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from importlib import import_module

import orjson
from rich.console import Console
from rich.table import Table

from bench.result import Result

BENCHMARKS = {
    "match": ["bench.match"],
    "ingest": ["bench.ingest"],
    "activate": ["bench.activate"],
    "invoke": ["bench.invoke"],
    "latency": ["bench.latency"],
    "kafka-route": ["bench.kafka_route"],
    "kafka-latency": ["bench.kafka_latency"],
    "offload": ["bench.offload"],
    "job-end": ["bench.job_end"],
    "waiting": ["bench.waiting"],
    "sdk": ["bench.sdk_import", "bench.worker"],
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"{', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--openwhisk", metavar="URL", help="invoke: measure this OpenWhisk beside ours")
    parser.add_argument("--key", metavar="UUID:KEY", help="of that OpenWhisk")
    arguments = parser.parse_args()
    if (arguments.openwhisk is None) != (arguments.key is None):
        parser.error("--openwhisk and --key belong together")
    names = arguments.name or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    openwhisk = (arguments.openwhisk, arguments.key)
    results = (result for name in names for module in BENCHMARKS[name] for result in _run(module, openwhisk))
    if arguments.json:
        for result in results:
            print(orjson.dumps(result).decode(), flush=True)
    else:
        _table(results)
    return 0


def _run(module: str, openwhisk: tuple[str | None, str | None]) -> Iterator[Result]:
    run: Callable[..., Iterator[Result]] = import_module(module).run
    return run(*openwhisk) if module == "bench.invoke" else run()


def _table(results: Iterator[Result]) -> None:
    table = Table("bench", "case", "value", "unit", "floor", "ratio")
    for result in results:
        numbers = [_number(result[key]) for key in ("value", "floor", "ratio")]
        print(f"{result['bench']} {result['case']}: {numbers[0]} {result['unit']}", file=sys.stderr)
        table.add_row(result["bench"], result["case"], numbers[0], result["unit"], *numbers[1:])
    Console().print(table)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
