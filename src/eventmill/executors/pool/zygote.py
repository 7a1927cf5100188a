"""The zygote: a small process with the usual modules loaded, which forks a worker per request.

It lives in namespaces of its own (see `isolate`), has no threads, does one request at a time, and reads nothing but the
control connection. It ends when the server does, and its workers with it. Standard library only.

Messages (JSON, SOCK_SEQPACKET). From the server: first the configuration, then `{"start": n, "room", "code",
"memory_mb"}` with three descriptors (the worker's connection, its stdout, its stderr). To the server: `{"ready": …}` or
`{"unusable": why}`, then `{"started": n}` with the worker's pidfd, `{"refused": n, "why"}`, `{"exited": n, "status"}`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
from typing import Any, NoReturn

import eventmill
from eventmill.executors.pool import isolate, protocol, worker


def main(control: int, server: int) -> None:
    """`control`: descriptor of the control connection; `server`: pidfd of the server."""
    connection = socket.socket(fileno=control)
    received = protocol.receive_message(connection)
    if received is None:
        return
    config, _ = received
    if config["mode"] != isolate.NONE:  # else it has to end its workers before itself, see `_end`
        isolate.die_with(server)
    try:
        zygote = Zygote(connection, server, config)
    except (OSError, ImportError) as e:
        protocol.send_message(connection, {"unusable": f"{e}", "preload": isinstance(e, ImportError)})
        return
    protocol.send_message(connection, {"ready": config["mode"]})
    zygote.serve()


class Zygote:
    """Raises OSError if workers can't be isolated as `config["mode"]` says, ImportError from `config["preload"]`."""

    def __init__(self, control: socket.socket, server: int, config: dict[str, Any]) -> None:
        self._control = control
        self._server = server
        self._hidden = config["hidden"]
        self._isolation = isolate.enter(config["mode"], config["read_only"])
        os.chdir("/")
        for name in eventmill.__all__:
            getattr(eventmill, name)  # loads its module
        for module in config["preload"]:
            importlib.import_module(module)
        self._pidfd = os.pidfd_open(os.getpid())
        self._data_bytes = isolate.data_bytes()
        self._workers: dict[int, int] = {}
        """pid → number"""
        self._wakeup, wakeup = socket.socketpair()
        for end in (self._wakeup, wakeup):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup.detach(), warn_on_full_buffer=False)
        self._rehearse()
        gc.collect()
        gc.freeze()  # what exists now is not looked at, and so not copied, in the workers

    def serve(self) -> None:
        """Until the server hangs up, or ends."""
        poll = select.poll()
        for source in (self._control.fileno(), self._wakeup.fileno(), self._server):
            poll.register(source, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._server in ready:
                return self._end()
            if self._wakeup.fileno() in ready:
                self._reap()
            if self._control.fileno() in ready:
                received = protocol.receive_message(self._control)
                if received is None:
                    return self._end()
                self._start(*received)

    def _start(self, request: dict[str, Any], descriptors: list[int]) -> None:
        number = request["start"]
        try:
            pid = self._fork()
            if pid == 0:
                self._become_worker(request, descriptors)
            self._workers[pid] = number
            pidfd = os.pidfd_open(pid)
        except OSError as e:
            self._send({"refused": number, "why": str(e)})
        else:
            self._send({"started": number}, (pidfd,))
            os.close(pidfd)
        for descriptor in descriptors:
            os.close(descriptor)

    def _fork(self) -> int:
        return self._isolation.fork() if self._isolation else os.fork()

    def _become_worker(self, request: dict[str, Any], descriptors: list[int]) -> NoReturn:
        try:
            os.dup2(descriptors[2], 2)  # from here on errors are the worker's
            self._confine(request)
            connection, output, errors = _keep_only(descriptors)
            os.chdir(request["room"])
            worker.run(socket.socket(fileno=connection), output, errors)
        except BaseException as e:
            with contextlib.suppress(BaseException):
                os.write(2, f"{type(e).__name__}: {e}\n".encode())
        finally:
            os._exit(70)

    def _confine(self, request: dict[str, Any]) -> None:
        memory_mb: int = request["memory_mb"]
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        isolate.die_with(self._pidfd)
        os.setsid()  # no terminal, signals of its own, and where the kernel groups by session a fair share of the cores
        if self._isolation:
            keep = [(request["room"], True), (request["code"], False), (request["shared"], True)]
            self._isolation.confine(self._hidden, [(path, write) for path, write in keep if path], memory_mb)
        else:
            isolate.adopt_orphans()
        isolate.limit((memory_mb << 20) + self._data_bytes)

    def _rehearse(self) -> None:
        """Find out now, rather than with the first attempt, whether workers can be confined."""
        if not self._isolation:
            return
        reader, writer = os.pipe()
        pid = self._fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                try:
                    self._isolation.confine(self._hidden, [], 1)
                except OSError as e:
                    os.write(writer, str(e).encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(pid, 0)
        with open(reader, "rb") as answer:
            if why := answer.read():
                raise OSError(why.decode())

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakeup.recv(4096)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                if (number := self._workers.pop(pid, None)) is not None:
                    self._send({"exited": number, "status": os.waitstatus_to_exitcode(status)})
        if not self._isolation:
            self._kill_strays()

    def _end(self) -> None:
        """In a PID namespace of our own the kernel ends all workers with us; else we do it."""
        if not self._isolation:
            for pid in self._workers:
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.wait()[0]:
                    self._workers.clear()
                    self._kill_strays()

    def _kill_strays(self) -> None:
        """End what an ended worker had left behind: the kernel has made them our children."""
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{os.getpid()}/children") as children:
            for pid in map(int, children.read().split()):
                if pid not in self._workers:
                    os.kill(pid, signal.SIGKILL)

    def _send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        try:
            protocol.send_message(self._control, message, descriptors)
        except BrokenPipeError:
            self._end()
            sys.exit()


def _keep_only(descriptors: list[int]) -> tuple[int, int, int]:
    """Close all descriptors but the standard ones and these three, which are 3, 4 and 5 afterwards."""
    high = [os.dup2(descriptor, 100 + i) for i, descriptor in enumerate(descriptors)]
    for place, source in enumerate([os.open("/dev/null", os.O_RDWR), high[1], high[2]]):
        os.dup2(source, place)
    for place, source in enumerate(high, 3):
        os.dup2(source, place, inheritable=False)
    os.closerange(6, isolate.FILES_MAX)
    return 3, 4, 5
