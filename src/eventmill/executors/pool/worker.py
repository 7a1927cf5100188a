"""The life of a worker: load the code once, then run one attempt after the other until it is killed.

Owns what the function's code sees: environment, standard streams, parameters, and what becomes of its result. All that
is above the function call must survive what a function may do to its process (close descriptors, fork, change `sys`);
where that is impossible the process ends, and the server knows what to make of that. Standard library only, no threads.
"""

from __future__ import annotations

import ctypes
import fcntl
import io
import json
import os
import select
import socket
import sys
import termios
from typing import NoReturn, Protocol

from eventmill.executors.pool import protocol
from eventmill.executors.pool.child import Child
from eventmill.executors.pool.loader import LoadError
from eventmill.executors.pool.outcome import Outcome, bounded
from eventmill.executors.pool.protocol import Call
from eventmill.executors.pool.python import Python

FRAME_BYTES_MAX = 1 << 30
"""The server is trusted: this is only against nonsense."""
_ZERO = b"\0\0\0\0"
_libc = ctypes.CDLL(None)


class Runtime(Protocol):
    """What runs the code: it is loaded when this is made (raises LoadError)."""

    def call(self, call: Call) -> Outcome: ...
    def rest(self, connection: int) -> None:
        """There is nothing to do until the server says something at this descriptor. May return before."""

    def cpu_s(self) -> float:
        """Seconds of CPU used so far."""

    def largest_kib(self) -> int:
        """The most memory that was resident."""

    def left_processes(self) -> bool:
        """Whether something that was started during calls is still there."""


def run(connection: socket.socket, output: int, errors: int) -> NoReturn:
    """Be a worker on `connection`; `output` and `errors` are the pipes for what the function prints."""
    if "numpy.random" in sys.modules:  # else all workers draw the zygote's numbers; `random` sees to that itself
        sys.modules["numpy.random"].seed()
    worker = _Worker(connection, output, errors)
    worker.initialise()
    while True:
        worker.attempt()


class _Worker:
    def __init__(self, connection: socket.socket, output: int, errors: int) -> None:
        self._connection = connection
        self._pipes = (output, errors)
        self._frames = protocol.Frames(FRAME_BYTES_MAX)
        self._pid = os.getpid()
        self._arrival = select.poll()
        self._arrival.register(connection, select.POLLIN)
        self._result_bytes_max = 0
        self._runtime: Runtime | None = None
        sys.stdout = sys.stderr = None  # those of the zygote
        self._restore_streams()

    def initialise(self) -> None:
        """Load the code, and say whether that went well. What can't be loaded is not asked for again."""
        document, source = protocol.parse_init(self._receive())
        self._result_bytes_max = document["result_bytes_max"]
        os.environ.clear()
        os.environ.update(document["environment"])
        try:
            self._runtime = (Child if document["child"] else Python)(document, source)
            answer = protocol.frame(protocol.READY)
        except LoadError as e:
            answer = protocol.frame(protocol.FAILED, json.dumps({"error": str(e), "final": e.final}).encode())
        self._end_if_forked()
        self._flush()
        self._connection.sendall(answer)

    def attempt(self) -> None:
        """Run the next attempt and answer it."""
        runtime = self._runtime
        if runtime is not None:
            runtime.rest(self._connection.fileno())
        call = protocol.parse_run(self._receive())
        assert runtime is not None, "the code could not be loaded"
        self._restore_streams()
        cpu_s = runtime.cpu_s()
        outcome, retry_after_s, text = bounded(runtime.call(call), self._result_bytes_max)
        self._end_if_forked()
        self._flush()
        cpu_s = runtime.cpu_s() - cpu_s
        done = (call.sequence, outcome, retry_after_s, self._flags(runtime), cpu_s, runtime.largest_kib())
        self._connection.sendall(protocol.done_frame(done, text))

    def _end_if_forked(self) -> None:
        """A function that forks and returns twice must not be answered twice."""
        if os.getpid() != self._pid:
            os._exit(0)

    def _restore_streams(self) -> None:
        """Give descriptors 1 and 2 and Python's streams back, whatever the last attempt did to them."""
        os.dup2(self._pipes[0], 1)
        os.dup2(self._pipes[1], 2)
        if sys.stdout is None or sys.stdout.closed:
            sys.stdout = _stream(1)
        if sys.stderr is None or sys.stderr.closed:
            sys.stderr = _stream(2)

    def _flush(self) -> None:
        """Write out what Python and the C library still hold back."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # the function has closed it, or put something else there: nothing of ours to flush
                continue
        _libc.fflush(None)

    def _flags(self, runtime: Runtime) -> int:
        flags = protocol.LEFT_PROCESSES if runtime.left_processes() else 0
        for pipe in self._pipes:
            if fcntl.ioctl(pipe, termios.FIONREAD, _ZERO) != _ZERO:
                flags |= protocol.LEFT_OUTPUT
        return flags

    def _receive(self) -> bytes:
        while True:
            # in `recv` itself the server's reading of the last answer would wake it up, too: a socket's memory is free
            self._arrival.poll()
            data = self._connection.recv(protocol.CHUNK_BYTES)
            if not data:  # the server is gone
                os._exit(0)
            for _, payload in self._frames.feed(data):
                return payload


def _stream(descriptor: int) -> io.TextIOWrapper:
    raw = io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
