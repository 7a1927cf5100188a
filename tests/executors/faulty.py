"""A proxy that does to requests what networks and gateways do: late, cut off, refused, answers that never arrive."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Edit = Callable[[bytes], bytes]

LATE_S = 0.3
CUT_BEFORE, CUT_AFTER, LATE = "cut before it was passed on", "cut after it was done", "late"
CROWDED = (429, b'{"error":"Too many concurrent requests in flight (count: 3, allowed: 3).","code":"x"}')
GATEWAY = (502, b"<html>Bad Gateway</html>")
NO_INVOKER = (503, b'{"error":"no invokers","code":"x"}')
Fault = str | tuple[int, bytes] | tuple[int, bytes, bytes]
"""What happens, or an answer: its status, its body, its headers."""


@dataclass
class Faults:
    """What happens to the next calls of actions, one after the other; what has no fault passes. `putting` happens
    whenever an action is put; `edit` changes the head of every request."""

    waiting: deque[Fault] = field(default_factory=deque)
    putting: Fault | None = None
    edit: Edit = bytes
    calls: int = 0

    def add(self, *faults: Fault) -> None:
        self.waiting.extend(faults)

    def next(self, head: bytes) -> Fault | None:
        if re.match(rb"PUT \S+/actions/", head):
            return self.putting
        if not re.match(rb"POST \S+/actions/", head):
            return None
        self.calls += 1
        return self.waiting.popleft() if self.waiting else None


@asynccontextmanager
async def faulty(target: str, faults: Faults) -> AsyncIterator[str]:
    """The proxy's URL; `target` is what it passes requests on to, as `http://host:port`."""
    host, _, port = target.removeprefix("http://").rpartition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head, body = await _request(reader)
            fault = faults.next(head)
            if fault == CUT_BEFORE:
                _reset(writer)
            elif isinstance(fault, tuple):
                writer.write(_answer(*fault))
            else:
                await asyncio.sleep(LATE_S if fault == LATE else 0)
                answer = await _passed_on(host, int(port), faults.edit(head), body)
                if fault == CUT_AFTER:
                    _reset(writer)
                else:
                    writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def _request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)", head)
    return head, await reader.readexactly(int(length[1]) if length else 0)


async def _passed_on(host: str, port: int, head: bytes, body: bytes) -> bytes:
    """The whole answer. A connection is for one request, so that its end is the answer's."""
    reader, writer = await asyncio.open_connection(host, port)
    alone = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    writer.write(alone + body)
    answer = await reader.read()
    writer.close()
    return answer


def _answer(status: int, body: bytes, headers: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %d Faulty\r\nContent-Length: %d\r\nConnection: close\r\n%b\r\n" % (status, len(body), headers)
    return head + body


def _reset(writer: asyncio.StreamWriter) -> None:
    """End the connection by a RST."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def cycle(faults: Iterable[Fault], count: int) -> list[Fault]:
    """So many of them, in turn."""
    kinds = list(faults)
    return [kinds[number % len(kinds)] for number in range(count)]
