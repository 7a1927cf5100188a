"""A small server with a pool, run as a process of its own by tests that kill it.

`python -m tests.executors.pool_server STATE_DIR OPTIONS`: OPTIONS is a JSON object with `isolation`, `mark` (a value in
the environment of all its processes, by which the test finds them) and `runs`, a list of [namespace, source, params].
Prints one JSON line when the pool has started, and one for each attempt that finishes; ends when stdin does.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from eventmill.executors import Finished, Recorded
from tests.executors.driving import Driver, attempt
from tests.executors.functions import Library, pool


async def main(state_dir: Path, options: dict[str, Any]) -> None:
    library = Library()
    environment = {"EVENTMILL_TEST_MARK": options["mark"]}
    executor = pool(state_dir, library, isolation=options["isolation"], environment=environment)
    await executor.start()
    driver = Driver(executor)
    say({"isolated": executor.isolated, "reason": executor.isolation_reason})
    attempts = [
        attempt(library.text(source, namespace=namespace), params, activation=f"{number:032x}")
        for number, (namespace, source, params) in enumerate(options["runs"], 1)
    ]
    found = await executor.find([Recorded(activation=each.activation) for each in attempts])
    say({"interrupted": sorted(found)})
    executor.submit(attempts)
    end = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for each in attempts:
        waiting = asyncio.ensure_future(driver.finished(each))
        await asyncio.wait([waiting, asyncio.ensure_future(end)], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            break
        say(shown(waiting.result()))
    await end
    await driver.stop()


def shown(end: Finished) -> dict[str, Any]:
    return {
        "status": end.status,
        "final": end.final,
        "result": json.loads(end.result),
        "logs": end.logs,
    }


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
