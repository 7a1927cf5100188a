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
import resource
import socket
import sys
import termios
import time
from typing import Any, NoReturn

from eventmill.executors.pool import protocol
from eventmill.executors.pool.loader import NO_MEMORY, Function, LoadError, load, print_traceback

FRAME_BYTES_MAX = 1 << 30
"""The server is trusted: this is only against nonsense."""
SHOWN_CHARS = 1024
"""What is left of a result that is too large."""

EXITED_TEXT = "command exited"
NO_OBJECT_TEXT = "The action did not return a dictionary or array."
NULL_TEXT = "The action did not produce a valid JSON or JSON Array response: null\n"

UNSAID = -1.0
"""Instead of the seconds after which to retry."""

_ZERO = b"\0\0\0\0"
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_libc = ctypes.CDLL(None)

Outcome = tuple[int, float, str]
"""One of the protocol's outcomes, after how many seconds to retry (or UNSAID), JSON text."""


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
        self._result_bytes_max = 0
        self._function: Function = dict
        sys.stdout = sys.stderr = None  # those of the zygote
        self._restore_streams()

    def initialise(self) -> None:
        """Load the code, and say whether that went well. What can't be loaded is not asked for again."""
        document, source = protocol.parse_init(self._receive())
        self._result_bytes_max = document["result_bytes_max"]
        os.environ.clear()
        os.environ.update(document["environment"])
        try:
            self._function = load(document["name"], source, document["directory"], document["main"])
            answer = protocol.frame(protocol.READY)
        except LoadError as e:
            answer = protocol.frame(protocol.FAILED, json.dumps({"error": str(e), "final": e.final}).encode())
        self._end_if_forked()
        self._flush()
        self._connection.sendall(answer)

    def attempt(self) -> None:
        """Run the next attempt and answer it."""
        sequence, deadline_ms, names, params = protocol.parse_run(self._receive())
        _set_environment(deadline_ms, *names)
        self._restore_streams()
        cpu_s = time.process_time()
        code, retry_after_s, text = self._bounded(call(self._function, params))
        self._end_if_forked()
        self._flush()
        cpu_s = time.process_time() - cpu_s
        largest_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        done = (sequence, code, retry_after_s, self._flags(), cpu_s, largest_kib)
        self._connection.sendall(protocol.done_frame(done, text.encode()))

    def _bounded(self, outcome: Outcome) -> Outcome:
        size = len(outcome[2])  # the encoder writes ASCII
        if size <= self._result_bytes_max:
            return outcome
        message = (
            f"The action produced a response that exceeded the allowed length: {size} > {self._result_bytes_max} bytes."
            f" The truncated response was: {outcome[2][:SHOWN_CHARS]}"
        )
        return protocol.TOO_LARGE, UNSAID, _error(message)

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

    def _flags(self) -> int:
        flags = protocol.LEFT_PROCESSES if _has_children() else 0
        for pipe in self._pipes:
            if fcntl.ioctl(pipe, termios.FIONREAD, _ZERO) != _ZERO:
                flags |= protocol.LEFT_OUTPUT
        return flags

    def _receive(self) -> bytes:
        while True:
            data = self._connection.recv(protocol.CHUNK_BYTES)
            if not data:  # the server is gone
                os._exit(0)
            for _, payload in self._frames.feed(data):
                return payload


def call(function: Function, params: bytes) -> Outcome:
    """Call the function with the decoded parameters; what came of it."""
    try:
        result = function(json.loads(params))
    except SystemExit:
        return protocol.EXITED, UNSAID, _error(EXITED_TEXT)
    except MemoryError:
        return protocol.MEMORY, UNSAID, _error(NO_MEMORY)
    except BaseException as e:  # KeyboardInterrupt and the like are the function's own doing, too
        print_traceback(e, skip=1)
        return _raised(e)
    return _returned(function, result)


def _raised(error: BaseException) -> Outcome:
    """An exception is the activation's error; two attributes, which the SDK's exceptions have, say more."""
    try:
        # the SDK knows a better text for those that say little
        text = getattr(error, "eventmill_error", None) or str(error) or type(error).__name__
    except Exception:
        text = type(error).__name__
    if getattr(error, "eventmill_fatal", False):
        return protocol.FATAL, UNSAID, _error(text)
    if hasattr(error, "eventmill_retry_after"):
        after_s = error.eventmill_retry_after
        said = isinstance(after_s, int | float) and after_s >= 0
        return protocol.RETRY, float(after_s) if said else UNSAID, _error(text)
    return protocol.RAISED, UNSAID, _error(text)


def _returned(function: Function, result: Any) -> Outcome:
    if result is None:
        return protocol.BAD_RESULT, UNSAID, _error(NULL_TEXT)
    if not isinstance(result, dict | list | tuple):
        return protocol.BAD_RESULT, UNSAID, _error(NO_OBJECT_TEXT)
    try:
        text = _encode(result)
    except MemoryError:
        return protocol.MEMORY, UNSAID, _error(NO_MEMORY)
    except ValueError as e:  # NaN, or a structure that contains itself
        print_traceback(e, skip=1)
        return protocol.BAD_RESULT, UNSAID, _error(_explained(function, result) or NO_OBJECT_TEXT)
    except Exception as e:  # something in it has no JSON form
        print_traceback(e, skip=1)
        return protocol.BAD_RESULT, UNSAID, _error(_explained(function, result) or EXITED_TEXT)
    failed = isinstance(result, dict) and "error" in result
    return (protocol.RETURNED_ERROR if failed else protocol.SUCCESS), UNSAID, text


def _explained(function: Function, result: Any) -> str:
    """What the SDK's functions can say about a result that has no JSON form; "" if nothing."""
    explain = getattr(function, "eventmill_explain", None)
    try:
        return str(explain(result)) if explain is not None else ""
    except Exception:  # a value that resists being looked at
        return ""


def _error(text: str) -> str:
    return json.dumps({"error": text})


def _set_environment(deadline_ms: int, activation: str, transaction: str, traceparent: str) -> None:
    environment = os.environ
    environment["__OW_ACTIVATION_ID"] = activation
    environment["__OW_TRANSACTION_ID"] = transaction.replace("\0", "")
    environment["__OW_DEADLINE"] = str(deadline_ms)
    if traceparent:
        environment["TRACEPARENT"] = traceparent.replace("\0", "")
    else:
        environment.pop("TRACEPARENT", None)


def _stream(descriptor: int) -> io.TextIOWrapper:
    raw = io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _has_children() -> bool:
    """Whether processes that the function started, or their orphans, are still there."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return False
    return True
