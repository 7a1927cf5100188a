"""SQLite's write-ahead log: laid out ahead of what is written to it, written back into the database, started over.

How much of it is in use stands in its index (`-shm`; sqlite.org/walformat.html): at byte 16 how many frames there are,
at byte 96 how many of them are written back. Used after each commit, on the event loop; only what takes long is done
in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_CHECKPOINT_FRAMES = 4096
"""So many pages (of 4 KiB) in the log are written back into the database, beside the transactions."""
_RESTART_FRAMES = 16 * 4096
"""A log of this length starts over: since transactions go on during a checkpoint, it has to be asked for."""
_HEAD_BYTES, _FRAME_BYTES = 32, 24 + 4096
_AHEAD_BYTES, _LOW_BYTES = 1 << 20, 256 << 10
"""So much is laid out when less than the second of it is left: that costs the next sync half a millisecond."""
_LOW_FRAMES = _LOW_BYTES // _FRAME_BYTES
"""Where it could not be, it is tried again after so many frames."""


class Wal:
    """`driver`: the connection that writes. It is between two transactions whenever `consider` is called."""

    def __init__(self, path: Path, driver: sqlite3.Connection) -> None:
        self.file = os.open(f"{path}-wal", os.O_RDWR | os.O_CLOEXEC)
        # closing it would release SQLite's locks on the file: it is closed last
        self._index = os.open(f"{path}-shm", os.O_RDONLY | os.O_CLOEXEC)
        self._counts = mmap.mmap(self._index, 104, prot=mmap.PROT_READ)
        self._driver = driver
        self._checkpointer = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: asyncio.Future[None] | None = None
        self._restart_at = _RESTART_FRAMES
        self._low = max(0, os.fstat(self.file).st_size - _LOW_BYTES) // _FRAME_BYTES
        """With so many frames the end of the file is near."""

    @property
    def is_writing_back(self) -> bool:
        """The disk is at work, and may be for longer than usual."""
        return self._running is not None and not self._running.done()

    def consider(self) -> None:
        """After a commit: see whether it is time for one of these."""
        frames = int.from_bytes(self._counts[16:20], sys.byteorder)
        if frames >= self._low:
            self._lay_out(frames)
        if frames < _CHECKPOINT_FRAMES or self.is_writing_back:
            return
        written_back = int.from_bytes(self._counts[96:100], sys.byteorder)
        if frames - written_back >= _CHECKPOINT_FRAMES:
            loop = asyncio.get_running_loop()
            self._running = loop.run_in_executor(self._thread, self._write_back, "PASSIVE")
        elif frames >= self._restart_at:
            # little is left to be written; a reader may prevent it: then again somewhat later
            self._write_back("RESTART")
            self._restart_at = max(_RESTART_FRAMES, frames + _CHECKPOINT_FRAMES)
        elif frames < _RESTART_FRAMES:
            self._restart_at = _RESTART_FRAMES

    def _lay_out(self, frames: int) -> None:
        """Write zeros behind the end of the file. To sync what lies inside of a file takes the disk half as long as to
        sync what makes it longer (0.16 to 0.32 ms here), and a log that starts over keeps its length."""
        size = _HEAD_BYTES
        with contextlib.suppress(sqlite3.OperationalError, OSError):  # a full disk: then without
            self._driver.execute("BEGIN IMMEDIATE")  # nobody writes to the log meanwhile
            try:
                size = os.fstat(self.file).st_size
                size += os.pwrite(self.file, bytes(_AHEAD_BYTES), size)
            finally:
                self._driver.execute("ROLLBACK")
        self._low = max(frames + _LOW_FRAMES, (size - _LOW_BYTES) // _FRAME_BYTES)

    def _write_back(self, mode: str) -> None:
        with contextlib.suppress(sqlite3.OperationalError):  # locked: there will be another time
            self._checkpointer.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    def stop(self) -> None:
        self._thread.shutdown()
        self._checkpointer.close()

    def close(self) -> None:
        """After all connections."""
        self._counts.close()
        os.close(self._index)
        os.close(self.file)
