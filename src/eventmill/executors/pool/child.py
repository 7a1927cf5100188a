"""A function that is a process of its own, below its worker: Node.js, or an executable. Runs in the worker.

The conversation is OpenWhisk's ActionLoop protocol: a JSON line per call on the child's stdin, a JSON line as its
answer on descriptor 3, before the first one `{"ok":true}` if it was asked to by `__OW_WAIT_FOR_ACK`; what it prints
goes where the worker's output goes. Answers of our own launcher begin with a digit, one of the protocol's outcomes.

The worker stays above it as the first process of the namespace, so that orphans are reaped, an end is understood, and
one SIGKILL ends all. Standard library only, no threads.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from eventmill.executors.pool import protocol
from eventmill.executors.pool.deaths import describe
from eventmill.executors.pool.loader import NO_MEMORY, NO_START, LoadError
from eventmill.executors.pool.outcome import NO_OBJECT_TEXT, NULL_TEXT, Outcome, failure, finished
from eventmill.executors.pool.protocol import Call

ANSWER_BYTES_MAX = 64 << 20
"""An answer without end is no answer. (What is merely larger than a result may be is told by its size.)"""
EARLY_DEATH_MS = 5
"""An executable that acknowledges nothing has started if it is still there after this."""
HANGUP_GRACE_MS = 200
"""For one that has closed its answers to end by itself."""

NO_INIT = "The action did not initialize and exited unexpectedly."
NOT_STARTED = "cannot start action: command exited"

_ABORTS = (signal.SIGABRT, signal.SIGTRAP, signal.SIGILL)
"""How V8 ends when there is no memory left."""


class Child:
    """Starts the process that `document["child"]` describes. Raises LoadError.

    `command`; `launcher`: it is ours, which loads the code and tells the outcome; `acknowledges`; `exited`: the
    activation's error if it ends during a call; `pause_after_ms`: without a call for so long it is stopped.
    """

    def __init__(self, document: dict[str, Any], source: bytes) -> None:
        about = document["child"]
        self._document = document
        self._source = source
        self._launcher: bool = about["launcher"]
        self._exited: str = about["exited"]
        self._memory_kib: int = about["memory_mb"] << 10
        self._constant = {
            "action_name": document["environment"]["__OW_ACTION_NAME"],
            "action_version": document["environment"]["__OW_ACTION_VERSION"],
        }
        self._largest_kib = 0
        self._newest_pid: bytes | None = None
        self._behind = False
        self._paused = False
        self._begin()

    def _begin(self) -> None:
        about = self._document["child"]
        environment = dict(self._document["environment"])
        if about["acknowledges"]:
            environment["__OW_WAIT_FOR_ACK"] = "1"
        try:
            self._pid, self._input, self._output = _start(about["command"], environment)
        except OSError as e:
            sys.stderr.write(f"{e.strerror}\n")
            raise LoadError(NOT_STARTED, final=False) from e
        self._pidfd = os.pidfd_open(self._pid)
        if self._launcher:
            self._send(_code(self._document, self._source))
        if about["acknowledges"]:
            self._await_acknowledgement()
        elif _ready(self._pidfd, EARLY_DEATH_MS):
            raise self._dead_at_start(NOT_STARTED)

    def _await_acknowledgement(self) -> None:
        answer = self._exchange(b"")
        if answer is None:
            raise self._dead_at_start(NO_INIT)
        try:
            said = json.loads(answer)
            if said["ok"] is True:
                return
            raise LoadError(str(said.get("error", NO_START)), final=said.get("final") is True)
        except (ValueError, TypeError, KeyError, RecursionError) as e:
            sys.stderr.write('The first line on descriptor 3 must be {"ok":true}.\n')
            raise LoadError(NO_START, final=True) from e

    def _dead_at_start(self, text: str) -> LoadError:
        status = self._bury()
        sys.stderr.write(describe(status) + "\n")
        return LoadError(NO_MEMORY if self._out_of_memory(status) else text, final=False)

    def rest(self, connection: int) -> None:
        """Stop it if there is no call for a while. Only where it is sure to end with the worker nevertheless."""
        if os.getpid() == 1 and not _ready(connection, self._document["child"]["pause_after_ms"]):
            os.kill(self._pid, signal.SIGSTOP)
            self._paused = True

    def call(self, call: Call) -> Outcome:
        if self._paused:
            os.kill(self._pid, signal.SIGCONT)
            self._paused = False
        if _ready(self._pidfd, 0):
            try:
                self._begin_again()
            except LoadError as e:
                return failure(protocol.EXITED, str(e))
        self._drop_unasked()
        answer = self._exchange(_line(call, self._constant))
        if answer is None:
            status = self._bury()
            sys.stderr.write(describe(status) + "\n")
            no_memory = self._out_of_memory(status)
            return failure(protocol.MEMORY if no_memory else protocol.EXITED, NO_MEMORY if no_memory else self._exited)
        if self._launcher:
            return _of_launcher(answer)
        return _of_executable(answer)

    def _begin_again(self) -> None:
        """It has ended since its last answer: that is not this call's doing. Raises LoadError."""
        sys.stderr.write(f"Between two calls: {describe(self._bury())}\n")
        for descriptor in (self._pidfd, self._input, self._output):
            os.close(descriptor)
        self._begin()

    def _drop_unasked(self) -> None:
        """What it has written since its last answer is not the next one. (What it writes later can't be told apart.)"""
        while _ready(self._output, 0) and os.read(self._output, protocol.CHUNK_BYTES):
            continue

    def cpu_s(self) -> float:
        """Seconds of CPU that it has used so far."""
        try:
            return time.clock_gettime(~self._pid << 3 | 2)  # the kernel's name for the CPU clock of a process
        except OSError:
            return 0.0

    def largest_kib(self) -> int:
        try:
            with open(f"/proc/{self._pid}/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        except (OSError, StopIteration):  # it has ended, or there is no /proc to be had
            return self._largest_kib

    def left_processes(self) -> bool:
        """Whether something that it has started is still there, or it has not read all of its call."""
        newest = _newest_pid()
        if newest is not None and newest == self._newest_pid:
            return self._behind  # nothing has been started at all
        self._newest_pid = newest
        for orphan in self._orphans():
            os.waitpid(orphan, os.WNOHANG)
        return self._behind or bool(self._orphans()) or any(_children(self._pid))

    def _orphans(self) -> set[int]:
        return {*_children(os.getpid())} - {self._pid}

    def _exchange(self, line: bytes) -> bytes | None:
        """Write a line, read one; None when there is no more to read. Both at once, so that nobody waits for ever."""
        rest, answer = memoryview(line), bytearray()
        rest = rest[self._write(rest) :]
        while True:
            if rest and not _either(self._output, self._input):
                rest = rest[self._write(rest) :]
                continue
            data = os.read(self._output, protocol.CHUNK_BYTES)
            if not data or len(answer) > ANSWER_BYTES_MAX:
                return None
            answer += data
            if b"\n" in data:
                self._behind = bool(rest)
                return bytes(answer[: answer.index(b"\n")])

    def _send(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            _either(self._pidfd, self._input)
            rest = rest[self._write(rest) :]

    def _write(self, data: memoryview) -> int:
        try:
            return os.write(self._input, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            return len(data)  # it reads no more; whether it answers all the same, we will see

    def _bury(self) -> int | None:
        """Its exit status, or minus the signal; None if it has to be ended."""
        if not _ready(self._pidfd, HANGUP_GRACE_MS):
            os.kill(self._pid, signal.SIGKILL)
            os.wait4(self._pid, 0)
            return None
        _, status, usage = os.wait4(self._pid, 0)
        self._largest_kib = usage.ru_maxrss
        return os.waitstatus_to_exitcode(status)

    def _out_of_memory(self, status: int | None) -> bool:
        """Whether it was the kernel that has killed it, or V8 that has given up with its memory full."""
        if status is None:
            return False
        full = 2 * self._largest_kib >= self._memory_kib
        return status == -signal.SIGKILL or (self._launcher and -status in _ABORTS and full)


def _start(command: list[str], environment: dict[str, str]) -> tuple[int, int, int]:
    """Its pid, and our ends of its input (not blocking) and its answers."""
    theirs, ours = os.pipe()
    answers, answering = os.pipe()
    try:
        pid = os.posix_spawn(
            command[0],
            command,
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs, 0), (os.POSIX_SPAWN_DUP2, answering, 3)],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # which Python ignores
        )
    finally:
        os.close(theirs)
        os.close(answering)
    os.set_blocking(ours, False)
    return pid, ours, answers


def _code(document: dict[str, Any], source: bytes) -> bytes:
    """The launcher's first line."""
    text = source.decode(errors="replace")
    about = {"name": document["name"], "main": document["main"], "directory": document["directory"], "source": text}
    return json.dumps(about).encode() + b"\n"


def _line(call: Call, constant: dict[str, str]) -> bytes:
    """A call as ActionLoop has it."""
    head = {
        "namespace": call.namespace,
        **constant,
        "activation_id": call.activation,
        "transaction_id": call.transaction,
        "deadline": str(call.deadline_ms),
    }
    if call.api_key:
        head["api_key"] = call.api_key
    if call.traceparent:
        head["traceparent"] = call.traceparent
    params = call.params.replace(b"\n", b" ")  # between tokens: inside texts JSON has no bare line ends
    return json.dumps(head).encode()[:-1] + b', "value": ' + params + b"}\n"


def _of_launcher(answer: bytes) -> Outcome:
    outcome, text = answer[:1], answer[1:]
    if outcome == b"0":
        return finished(text, failed=b'"error"' in text and _has_error(text))
    if not outcome.isdigit():
        return failure(protocol.BAD_RESULT, NO_OBJECT_TEXT)
    return int(outcome), protocol.UNSAID, text


def _of_executable(answer: bytes) -> Outcome:
    if answer.strip() == b"null":
        return failure(protocol.BAD_RESULT, NULL_TEXT)
    try:
        result = json.loads(answer)
    except (ValueError, RecursionError):
        result = None
    if not isinstance(result, dict | list):
        return failure(protocol.BAD_RESULT, NO_OBJECT_TEXT)
    return finished(answer.strip(), failed=isinstance(result, dict) and "error" in result)


def _has_error(text: bytes) -> bool:
    try:
        result = json.loads(text)
    except (ValueError, RecursionError):
        return False  # the server looks at it, too
    return isinstance(result, dict) and "error" in result


def _children(pid: int) -> Iterator[int]:
    """The processes that this one's threads have started; none where there is no /proc to be had."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as children:
                yield from map(int, children.read().split())
    except OSError:
        return


def _newest_pid() -> bytes | None:
    """The last process or thread that was started in our own PID namespace; None where that is not to be had."""
    if os.getpid() != 1:
        return None
    try:
        with open("/proc/loadavg", "rb", 0) as loads:
            return loads.read().split()[-1]
    except OSError:
        return None


def _ready(descriptor: int, timeout_ms: int) -> bool:
    """Whether it can be read within this time."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_ms))


def _either(reading: int, writing: int) -> bool:
    """Wait until one can be read or the other written; whether it is the first."""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.register(writing, select.POLLOUT)
    return any(descriptor == reading for descriptor, _ in poll.poll())
