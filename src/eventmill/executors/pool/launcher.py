"""The server's end of the zygote: starts it, asks it for workers, hears of their ends and of its own.

Owns the zygote's process. On the event loop; nothing here waits for a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import eventmill
from eventmill.errors import InvalidConfig, Unavailable
from eventmill.executors.pool import isolate, protocol

READY_TIMEOUT_S = 120.0
"""For the zygote to have loaded its modules."""
STARTS_MAX = 16
"""Requests that wait in the zygote's connection at once, far from filling it."""
STOP_TIMEOUT_S = 5.0


class Events(Protocol):
    """What the launcher has to tell."""

    def worker_born(self, number: int, pidfd: int) -> None: ...
    def worker_gone(self, number: int, status: int | None, why: str) -> None:
        """`status`: exit code, or minus the signal; None if there never was a process, and `why` not."""

    def zygote_died(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteConfig:
    hidden: Sequence[str]
    environment: Mapping[str, str]
    preload: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """How workers are isolated, or why they are not."""

    mode: str
    reason: str = ""


class CantIsolate(Exception):
    """The message says what the kernel refused."""


async def launch(config: ZygoteConfig, isolation: str, events: Events) -> tuple[Launcher, Isolation]:
    """Start a zygote, as well isolated as this machine allows (`isolation`: auto), or not at all (none).

    Raises InvalidConfig if a module of `preload` can't be imported, Unavailable if there is no zygote to be had.
    """
    modes = [isolate.USER, *([isolate.ROOT] if os.geteuid() == 0 else [])] if isolation == "auto" else []
    reasons = []
    for mode in modes:
        try:
            return await Launcher.start(config, mode, events), Isolation(mode=mode)
        except CantIsolate as e:
            reasons.append(str(e))
    reason = "; ".join(reasons)
    return await Launcher.start(config, isolate.NONE, events), Isolation(mode=isolate.NONE, reason=reason)


class Launcher:
    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, events: Events) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._control = control
        self._events = events
        self._ready: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._waiting: deque[tuple[dict[str, Any], tuple[int, int, int]]] = deque()
        self._asked = 0
        self._stopping = False
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(control, self._hear)
        self._loop.add_reader(self._pidfd, self._end)

    @classmethod
    async def start(cls, config: ZygoteConfig, mode: str, events: Events) -> Launcher:
        process, control = _spawn(config.environment)
        launcher = cls(process, control, events)
        read_only = [sys.prefix, sys.base_prefix, str(Path(eventmill.__file__).parent)]
        read_only = [d for d in read_only if not any(Path(hidden).is_relative_to(d) for hidden in config.hidden)]
        message = {"mode": mode, "hidden": config.hidden, "read_only": read_only, "preload": config.preload}
        protocol.send_message(control, message)
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                answer = await launcher._ready
        except TimeoutError as e:
            await launcher.stop()
            raise Unavailable(f"the function pool's zygote was not ready after {READY_TIMEOUT_S} s") from e
        if "ready" in answer:
            return launcher
        await launcher.stop()
        if answer.get("preload"):
            raise InvalidConfig(f"functions.preload: {answer['unusable']}")
        if mode == isolate.NONE:
            raise Unavailable(f"the function pool's zygote can't start: {answer['unusable']}")
        raise CantIsolate(answer["unusable"])

    def ask(self, request: dict[str, Any], descriptors: tuple[int, int, int]) -> None:
        """Ask for a worker. The descriptors are passed on, and closed here."""
        self._waiting.append((request, descriptors))
        self._ask_next()

    def _ask_next(self) -> None:
        while self._waiting and self._asked < STARTS_MAX:
            request, descriptors = self._waiting.popleft()
            self._asked += 1
            with contextlib.suppress(OSError):  # a dead zygote: `_end` will tell
                protocol.send_message(self._control, request, descriptors)
            _close(descriptors)

    async def stop(self) -> None:
        """End the zygote and all workers; returns when they are gone."""
        self._stopping = True
        if self._ended.done():
            return
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await asyncio.shield(self._ended)
        except TimeoutError:
            self._process.kill()
            await self._ended

    def _hear(self) -> None:
        received = protocol.receive_message(self._control)
        if received is None:
            self._loop.remove_reader(self._control)
            return
        message, descriptors = received
        match message:
            case {"started": number}:
                self._asked -= 1
                self._events.worker_born(number, descriptors[0])
            case {"refused": number, "why": why}:
                self._asked -= 1
                self._events.worker_gone(number, None, why)
            case {"exited": number, "status": status}:
                self._events.worker_gone(number, status, "")
            case _:
                self._ready.set_result(message)
        self._ask_next()

    def _end(self) -> None:
        """The zygote is dead, and so are its workers."""
        for source in (self._control, self._pidfd):
            self._loop.remove_reader(source)
        status = self._process.wait()
        self._control.close()
        os.close(self._pidfd)
        while self._waiting:
            _close(self._waiting.popleft()[1])
        if not self._ready.done():
            self._ready.set_result({"unusable": f"it ended with status {status}"})
        self._ended.set_result(None)
        if not self._stopping:
            self._events.zygote_died()


def _spawn(environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Exec the zygote; the connection to it. It holds a pidfd of ours, to die with us."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = os.pidfd_open(os.getpid())
    script = Path(__file__).with_name("__main__.py")
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", str(script), str(theirs.fileno()), str(server)],
            pass_fds=(theirs.fileno(), server),
            env=dict(environment),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the server, which then stops us in good order
        )
    os.close(server)
    return process, control


def _close(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
