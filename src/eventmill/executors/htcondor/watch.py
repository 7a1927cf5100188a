"""Waiting for changes in one directory, and in chosen files of it, by inotify on the event loop.

Owns an inotify descriptor while it is open. It tells that something has changed, never what is there now: whoever waits
looks for himself, so that nothing depends on a notification being complete. All methods belong to the event loop; none
blocks, but for looking at directories' names.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import Final

from asyncinotify import Event, Inotify, Mask

from eventmill.errors import Unavailable

_SELF: Final = Mask.DELETE_SELF | Mask.MOVE_SELF
_GONE: Final = _SELF | Mask.IGNORED | Mask.UNMOUNT
_READ_AT_ONCE: Final = 64
"""Notifications with names of full length that one read of the descriptor may bring."""


class DirectoryWatch:
    """Watches for `names` that come or go in `directory`; if it isn't there, for its coming.

    Raises Unavailable from `open` if the system refuses the watch.
    """

    def __init__(self, directory: str, names: Mask) -> None:
        self._directory = directory
        self._names = names
        self._inotify: Inotify | None = None
        self._watch: int | None = None
        self._parent: int | None = None
        self.intact = False
        """Whether the directory itself is watched; if not, `open` again after a change."""

    def open(self) -> None:
        """Watch the directory, or the nearest one above it that exists. Files have to be followed anew."""
        self.close()
        self._inotify = _inotify()
        while True:
            nearest = self._directory
            while not os.path.isdir(nearest):
                nearest = os.path.dirname(nearest)
            self.intact = nearest == self._directory
            mask = self._names if self.intact else Mask.CREATE | Mask.MOVED_TO
            try:
                self._watch = self._inotify.add_watch(nearest, mask | _SELF | Mask.ONLYDIR).wd
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as e:
                raise Unavailable(f"can't watch {nearest}: {e.strerror} (fs.inotify.max_user_watches?)") from e
            if self.intact:
                self._watch_parent()
            # what is missing may have come before there was a watch
            if self.intact or not os.path.isdir(_below(nearest, self._directory)):
                return

    def _watch_parent(self) -> None:
        """A directory tells of its own end only when no file of it is open any more."""
        assert self._inotify is not None
        parent = os.path.dirname(self._directory)
        with suppress(OSError):  # it may be none of our business
            self._parent = self._inotify.add_watch(parent, Mask.DELETE | Mask.MOVED_FROM | Mask.ONLYDIR).wd

    def follow(self, descriptor: int) -> None:
        """Wake up also when this open file changes, whatever its name is or will be."""
        assert self._inotify is not None
        try:
            self._inotify.add_watch(f"/proc/self/fd/{descriptor}", Mask.MODIFY)
        except OSError as e:
            raise Unavailable(f"can't watch a file in {self._directory}: {e.strerror}") from e

    async def changed(self) -> set[str] | None:
        """Return when something has changed: the names that have come or gone, None for "look at everything"."""
        assert self._inotify is not None
        await _readable(self._inotify.fd)
        names: set[str] | None = set()
        while (event := self._inotify.sync_get()) is not None:
            if not self.intact or self._is_end(event):
                self.intact, names = False, None
            elif Mask.Q_OVERFLOW in event.mask:
                names = None
            elif names is not None and event.watch is not None and event.watch.wd == self._watch:
                names.add(str(event.name))
        return names

    def _is_end(self, event: Event) -> bool:
        """Whether the directory is not at its place any more."""
        if event.watch is None or event.watch.wd == self._watch:
            return bool(event.mask & _GONE)
        return event.watch.wd == self._parent and str(event.name) == os.path.basename(self._directory)

    def close(self) -> None:
        """Give up all watches."""
        if self._inotify is not None:
            self._inotify.close()
        self._inotify, self.intact = None, False


def _inotify() -> Inotify:
    try:
        return Inotify(cache_size=_READ_AT_ONCE, sync_timeout=0)
    except OSError as e:
        raise Unavailable(f"inotify can't be used: {e.strerror} (fs.inotify.max_user_instances?)") from e


def _below(above: str, path: str) -> str:
    """The directory directly below `above` on the way to `path`."""
    return os.path.join(above, os.path.relpath(path, above).split(os.sep)[0])


async def _readable(descriptor: int) -> None:
    """Return when there is something to read. Reads nothing, so that cancelling loses nothing."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
