"""Wall-clock time, and waiting for a wall-clock time.

asyncio's own timers count seconds since boot: they know nothing of a clock that is set, or of a machine that sleeps.
Linux has timers on the wall clock that also end when the clock is set (timerfd). So there is one wait per due time, and
no waking up in between to look at the clock.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import time
from datetime import UTC, datetime
from typing import Final, Protocol

_CLOCK_REALTIME_COARSE: Final = 5
_CLOCK_REALTIME: Final = 0
_TFD_CLOEXEC_NONBLOCK: Final = os.O_CLOEXEC | os.O_NONBLOCK
_TFD_TIMER_ABSTIME: Final = 1
_TFD_TIMER_CANCEL_ON_SET: Final = 2


class Clock(Protocol):
    """The time for schedules. Called on the event loop."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        ...

    async def until(self, due_ms: int | None) -> None:
        """Return at this time, or when the clock was set. None: only then."""
        ...


class WallClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def until(self, due_ms: int | None) -> None:
        fd = _timer(due_ms)
        try:
            await readable(fd)
        finally:
            os.close(fd)


async def readable(fd: int, timeout_s: float = math.inf) -> None:
    """Return when the descriptor can be read, or after the timeout. Reads nothing, so that cancelling loses nothing."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        async with asyncio.timeout(timeout_s if timeout_s != math.inf else None):
            await ready
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(fd)


def file_clock_ns() -> int:
    """Now, by the clock that the kernel stamps files with: it may be a few milliseconds behind `time.time_ns()`."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


def timestamp(epoch_ns: int) -> str | None:
    """RFC 3339 in UTC with microseconds; None for a time outside the years 1 to 9999."""
    seconds, ns = divmod(epoch_ns, 1_000_000_000)
    try:
        whole = datetime.fromtimestamp(seconds, UTC).replace(microsecond=ns // 1000)
    except (ValueError, OverflowError, OSError):
        return None
    return whole.isoformat().replace("+00:00", "Z")


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


_libc = ctypes.CDLL(None, use_errno=True)
_FAR_MS: Final = 1 << 45
"""The year 3084: a timer for it ends when the clock is set, or not at all."""


def _timer(due_ms: int | None) -> int:
    """A descriptor that becomes readable at this wall-clock time, or when the clock was set. The caller closes it."""
    fd: int = _libc.timerfd_create(_CLOCK_REALTIME, _TFD_CLOEXEC_NONBLOCK)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    seconds, ms = divmod(max(1, _FAR_MS if due_ms is None else due_ms), 1000)
    spec = _Itimerspec(_Timespec(0, 0), _Timespec(seconds, ms * 1_000_000))
    if _libc.timerfd_settime(fd, _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET, ctypes.byref(spec), None) < 0:
        error = ctypes.get_errno()
        os.close(fd)
        raise OSError(error, "timerfd_settime")
    return fd
