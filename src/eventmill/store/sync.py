"""Makes what was written to a file durable: one fdatasync at a time, for all who have asked before it began.

The kernel does it and tells an eventfd (Linux AIO, IOCB_CMD_FDSYNC since Linux 4.18): a thread that comes back from the
disk and wants the interpreter's lock costs the event loop several times what the sync does. No library that is kept
offers this one call, so it is made through ctypes; where the kernel refuses it, or on another kind of processor, a
thread does it. On the event loop only.

Either way is two wake-ups longer than a sync that the loop itself waits for (some 90 µs here, beside 160 for the disk).
So it does where it has nothing better to do, and the last one was quick.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from eventmill.errors import Unavailable

_QUICK_S = 0.001
"""After a sync that took longer than this, the loop does not wait for the next one itself."""
_WRITE = 2
"""SYNC_FILE_RANGE_WRITE (linux/fs.h): begin to write what the disk does not have yet."""
Done = Callable[[OSError | None], None]


class Sync:
    """Of one open file. After an error nothing is durable any more: a second try may succeed without having written
    what the first one lost."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._disk = _disk(fd)
        self._waiting: list[asyncio.Future[None]] = []
        self._running = False
        self._broken: OSError | None = None
        self._closed = False
        self._began = 0.0
        self._took_s = _QUICK_S
        self._write = ctypes.CDLL(None).sync_file_range
        self._write.argtypes = [ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_uint]
        self._itself: asyncio.Handle | None = None
        """The loop is about to sync."""

    @property
    def works(self) -> bool:
        return not self._closed and self._broken is None

    def check(self) -> None:
        """Raises Unavailable if the disk has failed, or the file is closed."""
        if self._closed:
            raise Unavailable("the store is closed")
        if self._broken is not None:
            raise Unavailable(f"the store's disk failed ({self._broken}): restart the server when it is mended")

    def ask(self, *, is_busy: bool = True) -> asyncio.Future[None]:
        """Done when what was written before is durable; with Unavailable if that can't be."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self.check()
        except Unavailable as e:
            future.set_exception(e)
            return future
        self._waiting.append(future)
        if not self._running:
            self._begin(itself=not is_busy and self._took_s < _QUICK_S)
        return future

    def _begin(self, *, itself: bool = False) -> None:
        self._running = True
        self._began = time.perf_counter()
        if itself:
            self._write(self._fd, 0, 0, _WRITE)  # if that can't be, the sync tells
            # while the disk is at it, the loop does what it has at hand
            self._itself = asyncio.get_running_loop().call_soon(self._sync_itself)
            return
        waiting, self._waiting = self._waiting, []
        try:
            self._disk.begin(lambda error: self._end(error, waiting))
        except OSError:  # nothing was tried, and so nothing lost: the kernel does not take such requests
            self._disk.close()
            self._disk = Thread(self._fd)
            self._disk.begin(lambda error: self._end(error, waiting))

    def _sync_itself(self) -> None:
        self._itself = None
        waiting, self._waiting = self._waiting, []
        self._end(_sync(self._fd), waiting)

    def _end(self, error: OSError | None, waiting: list[asyncio.Future[None]]) -> None:
        self._running = False
        self._took_s = time.perf_counter() - self._began
        self._broken = self._broken or error
        why = Unavailable("the store is closed") if self._closed else None
        if self._broken is not None:
            why = Unavailable(f"disk: {self._broken}")
        if why is not None:
            waiting, self._waiting = [*waiting, *self._waiting], []
        for future in waiting:
            if not future.done() and not future.get_loop().is_closed():
                future.set_result(None) if why is None else future.set_exception(why)
        if self._waiting:
            self._begin()

    def close(self) -> None:
        """Returns when nothing is under way."""
        self._closed = True
        if self._itself is not None:
            self._itself.cancel()
            self._sync_itself()
        self._disk.close()


class Disk(ABC):
    """Syncs one file."""

    @abstractmethod
    def begin(self, done: Done) -> None:
        """Begin a sync, while none is under way; `done` is called on the loop. Raises OSError if it can't begin."""

    @abstractmethod
    def close(self) -> None:
        """Wait for the one that is under way."""


class Thread(Disk):
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sync")

    def begin(self, done: Done) -> None:
        sync = asyncio.get_running_loop().run_in_executor(self._thread, _sync, self._fd)
        sync.add_done_callback(lambda ended: done(ended.result()))

    def close(self) -> None:
        self._thread.shutdown()


def _sync(fd: int) -> OSError | None:
    try:
        os.fdatasync(fd)
    except OSError as e:
        return e
    return None


_SETUP, _DESTROY, _GETEVENTS, _SUBMIT = 206, 207, 208, 209
"""Numbers of the system calls on x86-64 (linux/arch/x86/entry/syscalls/syscall_64.tbl)."""
_CONTROL = struct.Struct("<QIIHhIQQqQII")
"""struct iocb (linux/aio_abi.h): data, key, rw_flags, opcode, reqprio, fd, buf, nbytes, offset, reserved2, flags,
resfd."""
_EVENT = struct.Struct("<QQqq")
"""struct io_event: data, obj, res, res2."""
_FDSYNC, _TELLS_EVENTFD = 3, 1


class Kernel(Disk):
    """Raises OSError if the kernel does not offer it."""

    def __init__(self, fd: int) -> None:
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        self._context = ctypes.c_ulong(0)
        self._told = os.eventfd(0)  # blocking: it is read when there is something, or to wait
        try:
            self._checked(_SETUP, ctypes.c_uint(1), ctypes.byref(self._context))
        except OSError:
            os.close(self._told)
            raise
        block = _CONTROL.pack(0, 0, 0, _FDSYNC, 0, fd, 0, 0, 0, 0, _TELLS_EVENTFD, self._told)
        self._block = ctypes.create_string_buffer(block, len(block))
        self._blocks = (ctypes.c_void_p * 1)(ctypes.addressof(self._block))
        self._event = ctypes.create_string_buffer(_EVENT.size)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done: Done | None = None

    def begin(self, done: Done) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._leave()
            loop.add_reader(self._told, self._hear)
            self._loop = loop
        self._checked(_SUBMIT, self._context, ctypes.c_long(1), self._blocks)
        self._done = done

    def _hear(self) -> None:
        error = self._heard()
        done, self._done = self._done, None
        assert done is not None
        done(error)

    def _heard(self) -> OSError | None:
        """How it has ended. What can't be understood is an error: nobody may take it for durable."""
        try:
            os.eventfd_read(self._told)
            self._checked(_GETEVENTS, self._context, ctypes.c_long(1), ctypes.c_long(1), self._event, None)
        except OSError as e:
            return e
        *_, result, _ = _EVENT.unpack(self._event.raw)
        return OSError(-result, os.strerror(-result)) if result < 0 else None

    def _leave(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._told)

    def close(self) -> None:
        self._leave()
        if self._done is not None:
            if self._loop is not None and self._loop.is_closed():
                self._heard()  # those who have asked are gone with it
            else:
                self._hear()
        self._checked(_DESTROY, self._context)
        os.close(self._told)

    def _checked(self, number: int, *arguments: object) -> None:
        """Every one of these calls deals with one request, or with none of them if it fails."""
        if self._call(number, *arguments) < (number in (_SUBMIT, _GETEVENTS)):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))


def _disk(fd: int) -> Disk:
    if platform.machine() == "x86_64":
        try:
            return Kernel(fd)
        except OSError:  # not in this container, or too many contexts on this machine (fs.aio-max-nr)
            pass
    return Thread(fd)
