"""An executor that has one attempt out, in a process of its own, for a test that kills it.

`python -m tests.executors.killed STATE_DIR URL [KEY]`: with a key an OpenWhisk's, whose function waits; without one an
HTTP service's. Goes on until it is killed, or its stdin ends.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from eventmill.config import HttpFunctions
from eventmill.entities import Action, Limits
from eventmill.executors import Attempt, Executor
from eventmill.executors.http import HttpFunctionsExecutor
from eventmill.executors.openwhisk import Client, OpenWhisk

ACTIVATION = "a" * 32
WITNESS = "witness"
CODE = "import time\ndef main(a):\n    open(a['witness'], 'w').close()\n    time.sleep(1)"


def make(state_dir: Path, url: str, key: str = "") -> Executor:
    if key:
        client = Client(url, key, verify=True, connections_max=2)
        return OpenWhisk(lambda _: CODE.encode(), client, state_dir=state_dir, connections_max=2)
    http = HttpFunctions(hosts=[url.removeprefix("http://")])
    return HttpFunctionsExecutor(http, state_dir=state_dir, result_bytes_max=1000)


async def main(state_dir: Path, url: str, key: str = "") -> None:
    executor = make(state_dir, url, key)
    facts = {"kind": "python:3", "code": "c"} if key else {"kind": "http", "url": url}
    limits = Limits(timeout_ms=4000, memory_mb=128)
    action = Action(namespace="ns", name="out", version="0.0.1", revision=1, limits=limits, **facts)  # type: ignore[arg-type]
    params = b'{"witness":"%b"}' % str(state_dir / WITNESS).encode()
    await executor.start()
    executor.submit([Attempt(activation=ACTIVATION, number=1, action=action, params=params)])
    await asyncio.to_thread(sys.stdin.read)
    await executor.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
