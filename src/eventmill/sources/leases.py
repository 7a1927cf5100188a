"""Whether somebody has a file open for writing: asked of the kernel, by a read lease.

A read lease on a file is refused while anybody has the file open for writing. It is held for the microseconds that it
takes to look; somebody who opens the file for writing in just these waits for them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from typing import Final

_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def look(path: str) -> tuple[os.stat_result, bool | None]:
    """The file's status, and whether somebody has it open for writing.

    False: nobody had at the moment of the status. None: can't be known, because the file is somebody else's (leases
    are for the owner, or need CAP_LEASE), can't be opened, or its file system has no leases. Raises FileNotFoundError.
    """
    try:
        fd = os.open(path, _OPEN)
    except FileNotFoundError:
        raise
    except OSError:
        return os.lstat(path), None
    try:
        writing = _take_lease(fd)
        return os.fstat(fd), writing
    finally:
        os.close(fd)  # which also gives the lease back


def _take_lease(fd: int) -> bool | None:
    try:
        # who opens the file now makes the kernel send us a signal: one that does nothing, instead of SIGIO, which kills
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as e:
        return True if e.errno == errno.EAGAIN else None
    return False
