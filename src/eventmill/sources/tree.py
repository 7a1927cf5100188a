"""The directories of a watched tree, each with its inotify watch, and where they are now.

Owns the inotify descriptor and the mapping from watches to paths. A watch belongs to an inode and goes along when its
directory is renamed; so a directory that moves is given up with all below it, and watched anew where it arrives.

Never reads a file and knows nothing of events. Not thread-safe: used by one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from hashlib import blake2b
from pathlib import Path
from typing import Final

from asyncinotify import Event as Notification
from asyncinotify import Inotify, Mask, Watch

from eventmill.sources.base import SourceError
from eventmill.sources.clock import readable

log = logging.getLogger(__name__)

_MASK: Final = (
    Mask.CLOSE_WRITE
    | Mask.MOVED_TO
    | Mask.MOVED_FROM
    | Mask.CREATE
    | Mask.DELETE
    | Mask.ONLYDIR
    | Mask.DONT_FOLLOW
    | Mask.EXCL_UNLINK
)
_ROOT_MASK: Final = (_MASK | Mask.DELETE_SELF | Mask.MOVE_SELF) & ~Mask.DONT_FOLLOW
_READ_AT_ONCE: Final = 64
"""Notifications with names of full length that one read of the descriptor may bring."""


class Arrival(Enum):
    """How a directory came to its place in the tree."""

    NEW = auto()
    """Wasn't there before: it was created, moved in, or renamed."""
    KNOWN = auto()
    """Has been there and watched all along."""
    VISITED = auto()
    """The same, and it was come by since the last `visit_again`."""


@dataclass(slots=True)
class FileCounts:
    """What a file source has met since it was made, for metrics."""

    written: int = 0
    """Events that are durable."""
    directories: int = 0
    """Directories that are watched now."""
    unnameable: int = 0
    """Files left out because an event can't have their name: not UTF-8, or with control characters."""
    unreadable: int = 0
    """Directories and files that could not be watched or read."""
    overflows: int = 0
    """How often the kernel's queue was full, and the tree was looked through instead."""


class Directory:
    """One watched directory."""

    __slots__ = ("children", "inode", "name", "parent", "visit", "watch")

    def __init__(self, watch: Watch, name: str) -> None:
        self.watch = watch
        self.name = name
        self.inode = 0
        self.parent: Directory | None = None
        self.children: dict[str, Directory] = {}
        self.visit = 0


class Tree:
    """The watched directories below (and with) `root`, an absolute path.

    Raises FileNotFoundError if the root isn't there, and SourceError if it can't be watched.
    """

    def __init__(self, root: str, counts: FileCounts) -> None:
        self.counts = counts
        self._inotify = _inotify()
        self._by_watch: dict[int, Directory] = {}
        self._visit = 1
        self.changes = 0
        """Grows whenever a directory comes or goes."""
        try:
            watch = self._inotify.add_watch(root, _ROOT_MASK)
        except OSError as e:
            self.close()
            if isinstance(e, FileNotFoundError | NotADirectoryError):
                raise FileNotFoundError(root) from None
            raise self._failure(root, e) from e
        self.root = Directory(watch, root.rstrip("/"))
        self.root.visit = self._visit
        self._by_watch[watch.wd] = self.root
        self._changed()

    def close(self) -> None:
        """Give up all watches."""
        self._inotify.close()
        self.counts.directories = 0

    def __len__(self) -> int:
        return len(self._by_watch)

    async def readable(self, timeout_s: float) -> None:
        """Return when there are notifications, or after the timeout."""
        await readable(self._inotify.fd, timeout_s)

    def notification(self) -> Notification | None:
        """The next notification, or None if none is ready."""
        return self._inotify.sync_get()

    def directory(self, watch: Watch | None) -> Directory | None:
        """The directory of a watch, unless it is no longer part of the tree."""
        return None if watch is None else self._by_watch.get(watch.wd)

    def at(self, watch_descriptor: int) -> Directory | None:
        """The same by the number of the watch."""
        return self._by_watch.get(watch_descriptor)

    def path(self, directory: Directory) -> str | None:
        """Where the directory is now; None if it is no longer part of the tree."""
        parts: list[str] = []
        while directory.parent is not None:
            parts.append(directory.name)
            directory = directory.parent
        if directory is not self.root:
            return None
        return "/".join([self.root.name, *reversed(parts)]) or "/"

    def attach(self, parent: Directory, name: str) -> tuple[Directory, Arrival] | None:
        """Watch the directory that has this name now; None if there is none, or none that may be watched.

        What counts is which inode has the name at this moment. Notifications that are still to be read may tell of
        earlier moments: they correct nothing that is right now, and what they can't find they leave alone.
        """
        base = self.path(parent)
        if base is None:
            return None
        path = f"{base.rstrip('/')}/{name}"
        watch = self._add_watch(path)
        if watch is None:
            return None
        directory = self._by_watch.get(watch.wd)
        if directory is not None and directory.parent is parent and directory.name == name:
            arrival = Arrival.VISITED if directory.visit == self._visit else Arrival.KNOWN
            directory.visit = self._visit
            return directory, arrival
        if directory is not None:
            # moved here; its leaving is still to be read, or was lost
            if self._is_above(directory, parent):
                return None  # a bind mount of a directory below itself
            self.forget(directory)
            watch = self._add_watch(path)
        return None if watch is None else (self._put(watch, parent, name, path), Arrival.NEW)

    def detach(self, parent: Directory, name: str) -> None:
        """A directory was moved away from here, or deleted. Where it comes back, it and all below it is new."""
        directory = parent.children.get(name)
        if directory is not None:
            self.forget(directory)

    def forget(self, directory: Directory) -> None:
        """Give up a directory and what is below it, with their watches."""
        if directory.parent is not None and directory.parent.children.get(directory.name) is directory:
            del directory.parent.children[directory.name]
        pending = [directory]
        while pending:
            gone = pending.pop()
            pending += gone.children.values()
            gone.parent = None
            gone.children = {}
            if self._by_watch.get(gone.watch.wd) is gone:
                del self._by_watch[gone.watch.wd]
                with contextlib.suppress(OSError):  # the kernel may have ended it already
                    self._inotify.rm_watch(gone.watch)
                self._changed()

    def visit_again(self) -> None:
        """Begin to go through the whole tree, because notifications were lost."""
        self._visit += 1
        self.root.visit = self._visit

    def forget_unvisited(self) -> None:
        """Give up the directories that weren't come by since `visit_again`: they are no longer there."""
        for directory in [d for d in self._by_watch.values() if d.visit != self._visit]:
            self.forget(directory)

    def digests(self) -> Iterator[bytes]:
        """8 bytes for each directory: its inode at its path."""
        pending = [(self.root, self.root.name)]
        while pending:
            directory, path = pending.pop()
            yield digest(directory, path)
            pending += [(child, f"{path}/{name}") for name, child in directory.children.items()]

    def cant_read(self, path: str, error: OSError) -> None:
        """Count what could not be watched or read; the log tells of the first. What is gone is no error."""
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return  # a further notification tells what is there instead
        log.log(logging.DEBUG if self.counts.unreadable else logging.WARNING, "%r: %s", path, error.strerror)
        self.counts.unreadable += 1

    def _add_watch(self, path: str) -> Watch | None:
        try:
            return self._inotify.add_watch(path, _MASK)
        except OSError as e:
            if e.errno == errno.ENOSPC:
                raise self._failure(path, e) from e
            self.cant_read(path, e)
            return None

    def _failure(self, path: str, error: OSError) -> SourceError:
        if error.errno != errno.ENOSPC:
            return SourceError(f"{path!r} can't be watched: {error.strerror}")
        limit = Path("/proc/sys/fs/inotify/max_user_watches")
        allowed = limit.read_text().strip() if limit.exists() else "unknown"
        return SourceError(
            f"{path!r} can't be watched: this user's limit of inotify watches is reached (fs.inotify.max_user_watches "
            f"= {allowed}; {len(self)} directories of this tree are watched, and each needs one). Raise it: "
            "sysctl -w fs.inotify.max_user_watches=1000000"
        )

    def _put(self, watch: Watch, parent: Directory, name: str, path: str) -> Directory:
        self.detach(parent, name)  # what had the name before has been moved or deleted
        directory = self._by_watch[watch.wd] = parent.children[name] = Directory(watch, name)
        directory.parent, directory.visit = parent, self._visit
        with contextlib.suppress(OSError):
            directory.inode = os.lstat(path).st_ino
        self._changed()
        return directory

    def _changed(self) -> None:
        self.changes += 1
        self.counts.directories = len(self)

    def _is_above(self, directory: Directory, other: Directory | None) -> bool:
        while other is not None:
            if other is directory:
                return True
            other = other.parent
        return False


def digest(directory: Directory, path: str) -> bytes:
    """8 bytes that stand for this inode at this path."""
    return blake2b(b"%d %s" % (directory.inode, os.fsencode(path)), digest_size=8).digest()


async def directory_appears(path: str) -> None:
    """Return when there is a directory at this path: at once, or when inotify tells of it.

    What is watched is the nearest directory above that exists; mounting a file system is no change of a directory.
    Raises SourceError if that may not be watched.
    """
    while not os.path.isdir(path):
        above = _nearest(path)
        with _inotify() as inotify:
            try:
                inotify.add_watch(above, Mask.CREATE | Mask.MOVED_TO | Mask.DELETE_SELF | Mask.MOVE_SELF)
            except FileNotFoundError:
                continue
            except OSError as e:
                raise SourceError(f"{path!r} isn't there, and {above!r} can't be watched: {e.strerror}") from e
            # it may have changed before there was a watch
            if not os.path.isdir(path) and _nearest(path) == above:
                await readable(inotify.fd)


def _nearest(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _inotify() -> Inotify:
    try:
        return Inotify(cache_size=_READ_AT_ONCE, sync_timeout=0)
    except OSError as e:
        raise SourceError(
            f"inotify can't be used: {e.strerror} (limits: fs.inotify.max_user_instances, open files)"
        ) from e
