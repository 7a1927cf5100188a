"""Room on the disk: with too little of it nothing new is taken in, so that what was taken in can be finished."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

from eventmill.backbone.complaints import Complaints
from eventmill.errors import Unavailable

_KEEP_S = 0.05
"""So long it is believed that there is enough: each call asks."""
_NO_ROOM_S = 5.0
"""A full disk is looked at again after this: nothing tells when there is room."""

_log = logging.getLogger(__name__)


class Room:
    """`disk_free_mb`: to be left free on the file system of this directory."""

    def __init__(self, directory: Path, disk_free_mb: int) -> None:
        self._directory = directory
        self._disk_free = disk_free_mb << 20
        self._complaints = Complaints(_log)
        self._enough_until = 0.0

    def check(self) -> None:
        """Raise Unavailable while there is less."""
        now = time.monotonic()
        if now < self._enough_until:
            return
        disk = os.statvfs(self._directory)
        if disk.f_bavail * disk.f_frsize < self._disk_free:
            raise Unavailable(
                f"less than {self._disk_free >> 20} MB free in {self._directory}: make room, then send it again"
            )
        self._enough_until = now + _KEEP_S

    async def wait(self) -> None:
        """Return when there is enough."""
        while True:
            try:
                self.check()
            except Unavailable as e:
                self._complaints.say("room", f"reading is paused: {e}")
                await asyncio.sleep(_NO_ROOM_S)
            else:
                return self._complaints.over()
