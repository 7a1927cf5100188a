"""Every worker's private working directory: made when it starts, removed when it is gone.

Removing is done in threads, because a function may have left a million files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path


class Rooms:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._removing: set[asyncio.Future[None]] = set()

    def make(self, number: int) -> Path:
        room = self._directory / str(number)
        room.mkdir(mode=0o700)
        return room

    def remove(self, number: int) -> None:
        """Remove it now if it is empty, else soon."""
        room = self._directory / str(number)
        try:
            room.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            removing = asyncio.ensure_future(asyncio.to_thread(remove_tree, room))
            self._removing.add(removing)
            removing.add_done_callback(self._removing.discard)

    async def settle(self) -> None:
        """Wait until what is being removed is gone."""
        if self._removing:
            await asyncio.wait(self._removing)


def remove_tree(path: Path) -> None:
    """Remove a directory that strangers have filled, directories without permissions included."""
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        path.chmod(0o700)
        for parent, names, _ in os.walk(path):
            for name in names:
                directory = os.path.join(parent, name)
                if not os.path.islink(directory):
                    with contextlib.suppress(OSError):
                        os.chmod(directory, 0o700)
        shutil.rmtree(path, ignore_errors=True)
