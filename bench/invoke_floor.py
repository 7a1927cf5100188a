"""The floor of `invoke`: a bare Starlette route on uvicorn that does one raw warm round trip to a worker.

`python -m bench.invoke_floor` listens on a free port, prints it, and serves until it is ended.
"""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bench.worker import raw_workers
from eventmill.executors.pool import protocol

WORKERS = 8


def app(connections: list[socket.socket]) -> Starlette:
    """Each request takes a worker that is free."""
    free: asyncio.Queue[socket.socket] = asyncio.Queue()
    for connection in connections:
        connection.setblocking(False)
        free.put_nowait(connection)

    async def invoke(request: Request) -> Response:
        frame = protocol.run_frame(protocol.Call(1, 0, "0" * 32, "", "", "guest", "", await request.body()))
        connection = await free.get()
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connection, frame)
        answer = await loop.sock_recv(connection, 1 << 16)
        free.put_nowait(connection)
        return Response(answer[-2:], media_type="application/json")

    return Starlette(routes=[Route("/invoke", invoke, methods=["POST"])])


def main() -> None:
    with raw_workers(WORKERS) as connections, socket.socket(socket.AF_INET, socket.SOCK_STREAM, 6) as sock:
        sock.bind(("127.0.0.1", 0))
        print(sock.getsockname()[1], flush=True)
        config = uvicorn.Config(app(connections), log_config=None, access_log=False, lifespan="off")
        uvicorn.Server(config).run([sock])


if __name__ == "__main__":
    main()
