"""The server's end of one worker: its connection, its output, and the means to kill it.

Owns the descriptors. All writes and reads are non-blocking, on the event loop. It must never wait for a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable

from eventmill.executors.pool.logs import Log
from eventmill.executors.pool.protocol import CHUNK_BYTES, Frames


class Link:
    """Makes the connection and the pipes; `ends` are the worker's, for the one who passes them on to close."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, frame_bytes_max: int, log_bytes_max: int) -> None:
        self._loop = loop
        self._socket, pipes, self.ends = _open()
        self._socket.setblocking(False)
        self.log = Log(loop, pipes, log_bytes_max)
        self.pid: int | None = None
        self._frames = Frames(frame_bytes_max)
        self._unsent = memoryview(b"")
        self._pidfd: int | None = None
        self._killed = False

    def listen(self, heard: Callable[[], None]) -> None:
        """Have `heard` called whenever `receive` has something to say."""
        self._loop.add_reader(self._socket, heard)

    def born(self, pidfd: int) -> None:
        """The process exists. If it is not wanted any more, it is killed now."""
        self._pidfd = pidfd
        with open(f"/proc/self/fdinfo/{pidfd}") as info:
            self.pid = next(int(line.split()[1]) for line in info if line.startswith("Pid:"))
        if self._killed:
            self.kill()

    def kill(self) -> None:
        """Kill it, and with it (in a PID namespace of its own) all that it started."""
        self._killed = True
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def send(self, data: bytes) -> None:
        """Send now what the socket takes, and the rest as it drains. A worker that is gone is not our news to tell."""
        if self._unsent:
            self._unsent = memoryview(bytes(self._unsent) + data)
            return
        sent = self._send(data)
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._loop.add_writer(self._socket, self._send_rest)

    def _send_rest(self) -> None:
        self._unsent = self._unsent[self._send(self._unsent) :]
        if not self._unsent:
            self._loop.remove_writer(self._socket)

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)  # gone, and all that was meant for it

    def receive(self) -> list[tuple[int, bytes]] | None:
        """The frames that have arrived; None when the worker has hung up. Raises BrokenFrame."""
        try:
            data = self._socket.recv(CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            data = b""
        return self._frames.feed(data) if data else None

    def deafen(self) -> None:
        """Listen no more."""
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)

    def close(self) -> None:
        self.deafen()
        self._socket.close()
        self.log.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def _open() -> tuple[socket.socket, tuple[int, int], tuple[int, int, int]]:
    """Our connection, our reading ends, and the worker's three ends; all, or nothing when descriptors run out."""
    with contextlib.ExitStack() as undo:
        ours, theirs = socket.socketpair()
        undo.callback(ours.close)
        undo.callback(theirs.close)
        output = os.pipe()
        for end in output:
            undo.callback(os.close, end)
        errors = os.pipe()
        undo.pop_all()
    return ours, (output[0], errors[0]), (theirs.detach(), output[1], errors[1])
