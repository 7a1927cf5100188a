"""invoke: warm blocking invocations of an action that returns what it is given, over HTTP, at 1, 8 and 64 connections
(each sends its next call when the last one is answered). The server is a process of its own, its answers are durable.

Floor: a bare Starlette route on uvicorn that does one raw warm round trip to the same kind of worker, same client, same
run. With a real OpenWhisk (`--openwhisk URL --key uuid:key`) the same against that, beside it.
"""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httpx
import uvloop

from bench.result import Result, percentile, result, scratch, server

CONNECTIONS = (1, 8, 64)
SECONDS = 3.0
WARM_S = 1.0
ACTION = "bench-echo"
CODE = "def main(args):\n    return args\n"
BODY = b'{"path":"/exfel/run0001/raw/frame-000000001.h5","bytes":1000001}'


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and the request that it is sent again and again."""

    name: str
    host: str
    port: int
    request: bytes

    @classmethod
    def of(cls, name: str, url: str, path: str, key: str | None = None) -> Target:
        where = urlsplit(url)
        host, port = where.hostname or "", where.port or 80
        auth = "" if key is None else f"Authorization: Basic {base64.b64encode(key.encode()).decode()}\r\n"
        head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{auth}Content-Type: application/json\r\n"
        return cls(name, host, port, f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)


def run(openwhisk: str | None = None, key: str | None = None) -> Iterator[Result]:
    with scratch() as directory, server(directory) as (url, own_key, _), _floor() as floor:
        targets = [floor, deployed("eventmill", url, own_key)]
        if openwhisk is not None and key is not None:
            targets.append(deployed("openwhisk", openwhisk, key))
        for connections in CONNECTIONS:
            yield from _rows(connections, {t.name: uvloop.run(_measure(t, connections)) for t in targets})


def _rows(connections: int, times: dict[str, list[float]]) -> Iterator[Result]:
    floor = times.pop("floor")
    for name, own in times.items():
        case = f"{name}, {connections} connections"
        for word, share in (("p50", 0.5), ("p99", 0.99)):
            yield result("invoke", f"{case}, {word}", percentile(own, share), "ms", percentile(floor, share))
        yield result("invoke", f"{case}, rate", len(own) / SECONDS, "calls/s", len(floor) / SECONDS)


def deployed(name: str, url: str, key: str) -> Target:
    """The server with the action in it."""
    path = f"/api/v1/namespaces/_/actions/{ACTION}"
    uuid, secret = key.split(":")
    with httpx.Client(base_url=url, auth=(uuid, secret), timeout=60, trust_env=False) as client:
        body = {"exec": {"kind": "python:3.11", "code": CODE}}
        client.put(path, params={"overwrite": "true"}, json=body).raise_for_status()
    return Target.of(name, url, f"{path}?blocking=true&result=true", key)


@contextmanager
def _floor() -> Iterator[Target]:
    command = [sys.executable, "-m", "bench.invoke_floor"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield Target.of("floor", f"http://127.0.0.1:{port}", "/invoke")
        finally:
            process.terminate()


async def _measure(target: Target, connections: int) -> list[float]:
    """Milliseconds of each call that ended within the time, after the warm-up."""
    loop = asyncio.get_running_loop()
    begin = time.perf_counter() + WARM_S
    callers = [
        (await loop.create_connection(lambda: _Caller(target.request, begin), target.host, target.port))[1]
        for _ in range(connections)
    ]
    await asyncio.wait([caller.ended for caller in callers])
    return [ms for caller in callers for ms in caller.ended.result()]


class _Caller(asyncio.Protocol):
    """One connection: a call, its answer, the next call. No more of HTTP than that needs: a client has to be cheap."""

    def __init__(self, request: bytes, begin: float) -> None:
        self.ended: asyncio.Future[Sequence[float]] = asyncio.get_running_loop().create_future()
        self._request = request
        self._begin = begin
        self._times: list[float] = []
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._call()

    def _call(self) -> None:
        self._answer, self._sent = b"", time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            return
        now = time.perf_counter()
        if not head.startswith(b"HTTP/1.1 200"):
            self.connection_lost(RuntimeError(self._answer[:500]))
        elif now >= self._begin + SECONDS:
            self.ended.set_result(self._times)
            self._transport.close()
        else:
            if self._sent >= self._begin:
                self._times.append((now - self._sent) * 1000)
            self._call()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(error or ConnectionError("the server has closed the connection"))


def _length(head: bytes) -> int:
    name = b"content-length:"
    return next(int(line[len(name) :]) for line in head.split(b"\r\n") if line.lower().startswith(name))
