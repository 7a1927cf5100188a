"""What a worker costs to start, and the fastest that workers can be talked to.

`run`: a cold attempt, from its submission to its report: the zygote's fork, the namespaces, loading the code, one round
trip. The floor is a bare fork of this process, its end awaited. Both alternate, so that a busy machine slows both.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.result import Result, result, scratch
from eventmill.entities import Action
from eventmill.executors import Attempt, Report
from eventmill.executors.pool import Pool, protocol, worker

ROUNDS = 41
NOOP = b"def main(args):\n    return args\n"


def run() -> Iterator[Result]:
    """Rows of the benchmark `sdk`, in ms."""
    with scratch() as directory:
        forks, starts = asyncio.run(_measure(directory))
    yield result("sdk", "worker", statistics.median(starts), "ms", statistics.median(forks))


async def _measure(directory: Path) -> tuple[list[float], list[float]]:
    pool = Pool(lambda digest: NOOP, state_dir=directory / "pool", workers_max=4, hidden=[directory])
    await pool.start()
    reports = pool.reports()
    forks, starts = [], []
    for number in range(ROUNDS):
        forks.append(_fork_ms())
        starts.append(await _cold_ms(pool, reports, number))
    await pool.stop()
    return forks[1:], starts[1:]


def _fork_ms() -> float:
    start = time.perf_counter()
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return (time.perf_counter() - start) * 1000


async def _cold_ms(pool: Pool, reports: AsyncIterator[list[Report]], number: int) -> float:
    """The attempt of an action of which there is no worker yet."""
    action = Action(namespace="bench", name=f"f{number}", version="0.0.1", revision=1, kind="python:3.11", code="c")
    start = time.perf_counter()
    pool.submit([Attempt(activation=f"{number:032x}", number=1, action=action, params=b"{}")])
    await anext(reports)
    elapsed_ms = (time.perf_counter() - start) * 1000
    await asyncio.sleep(0.02)  # let a worker that has made room go in peace
    return elapsed_ms


def seconds_for_round_trips(count: int, workers: int) -> float:
    """The floor of running `count` attempts: raw round trips, pipelined over so many workers, which are warm."""
    with raw_workers(workers) as connections:
        raw_round_trips(connections, 10 * workers)
        return raw_round_trips(connections, count)


class RoundTrip:
    """One warm worker; `go` is one round trip to it. A context manager."""

    def __enter__(self) -> RoundTrip:
        self._stack = ExitStack()
        self._connections = self._stack.enter_context(raw_workers(1))
        self.go(b"{}")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def go(self, params: bytes) -> None:
        raw_round_trips(self._connections, 1, params)


@contextmanager
def raw_workers(count: int) -> Iterator[list[socket.socket]]:
    """Connections to `count` processes that run the pool's own worker with a function that does nothing."""
    document: dict[str, Any] = {
        "name": "/bench/noop",
        "main": "main",
        "directory": None,
        "environment": {},
        "child": None,
    }
    init = protocol.init_frame({**document, "result_bytes_max": 1 << 20}, NOOP)
    output, connections, pids = os.pipe(), [], []
    for _ in range(count):
        ours, theirs = socket.socketpair()
        if (pid := os.fork()) == 0:
            ours.close()
            worker.run(theirs, output[1], output[1])
        theirs.close()
        ours.sendall(init)
        assert protocol.Frames(100).feed(ours.recv(100)) == [(protocol.READY, b"")]
        connections.append(ours)
        pids.append(pid)
    yield connections
    for connection in connections:
        connection.close()
    for pid in pids:
        os.waitpid(pid, 0)
    for end in output:
        os.close(end)


def raw_round_trips(connections: list[socket.socket], count: int, params: bytes = b"{}") -> float:
    """Seconds that `count` attempts take when each worker gets its next one as soon as it has answered."""
    frame = protocol.run_frame(protocol.Call(1, 0, "0" * 32, "", "", "guest", "", params))
    poll, by_descriptor = select.poll(), {connection.fileno(): connection for connection in connections}
    start = time.perf_counter()
    for connection in connections[:count]:
        poll.register(connection, select.POLLIN)
        connection.send(frame)
    sent, answered = min(count, len(connections)), 0
    while answered < count:
        for descriptor, _ in poll.poll():
            assert by_descriptor[descriptor].recv(1 << 16)
            answered += 1
            if sent < count:
                by_descriptor[descriptor].send(frame)
                sent += 1
    return time.perf_counter() - start


if __name__ == "__main__":
    for row in run():
        print(json.dumps(row))
    for workers in (1, 2, 8):
        print(f"{workers} workers: {10_000 / seconds_for_round_trips(10_000, workers):,.0f} raw round trips a second")
