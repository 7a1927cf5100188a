"""Finds the files of a watched tree that have been written: by notifications, and by looking through directories.

Owns what is still to be looked at. Every directory is watched before it is looked through, so that nothing falls
between the two; what is found by both is the same file with the same id. Decides nothing by itself about time: a
file is written when the kernel says that it was closed after writing or moved in, or, when found by looking, if
nobody has it open for writing.

Synchronous; `step` does a bounded piece of work and is called in a thread, never twice at once. Slow where directories
are looked through: about 5 microseconds for an entry, 10 for one that is announced.
"""

from __future__ import annotations

import logging
import math
import os
import stat
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from asyncinotify import Event as Notification
from asyncinotify import Mask

from eventmill.sources.clock import file_clock_ns
from eventmill.sources.leases import look
from eventmill.sources.tree import Arrival, Directory, Tree, digest

log = logging.getLogger(__name__)

NOTIFICATIONS_MAX: Final = 1000
ENTRIES_MAX: Final = 1000
"""What one step reads and looks at, at most: a few milliseconds of work, and the length of a list of events."""
CHECK_AFTER_S: Final = 10.0
"""A file that was created, or found without a way to know whether it is being written, is looked at once more then."""
MARGIN_NS: Final = 10 * 1_000_000_000
"""What is looked for again reaches so far back behind the time up to which all was found: the clocks of file servers
differ, and what was written just before is perhaps not closed yet."""

# plain numbers: asyncinotify's flags cost a microsecond each time they are combined
_CLOSE_WRITE: Final = int(Mask.CLOSE_WRITE)
_CREATE: Final = int(Mask.CREATE)
_DELETE: Final = int(Mask.DELETE)
_IGNORED: Final = int(Mask.IGNORED)
_ISDIR: Final = int(Mask.ISDIR)
_MOVED_FROM: Final = int(Mask.MOVED_FROM)
_MOVED_TO: Final = int(Mask.MOVED_TO)
_OVERFLOW: Final = int(Mask.Q_OVERFLOW)
_ROOT_GONE: Final = int(Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT | Mask.IGNORED)

_Key = tuple[int, str]
"""(watch of the directory, name)."""


class WrittenFile(NamedTuple):
    """A complete file, as it is now."""

    path: str
    inode: int
    size: int
    mtime_ns: int


class Finder:
    """What is going on in one watched tree.

    `since_ns`: files that changed (ctime) before are left alone when directories are looked through, unless their
    directory came into the tree, or to its name, meanwhile. `first_ns`: never look further back than this.
    `known`: whether a directory's digest (see `tree.digest`) was in the tree when all was last found.
    `open_files`: paths that were being written then; they are looked at whatever their age.
    """

    def __init__(
        self, tree: Tree, *, since_ns: int, first_ns: int, known: Callable[[bytes], bool], open_files: frozenset[str]
    ) -> None:
        self.tree = tree
        self.root_gone = False
        self.complete_ns = since_ns
        """Everything that was written before this time has been returned by `step`, except what `being_written`."""
        self.idle = False
        """Whether `complete_ns` was moved on by the last step: there is nothing left to do for now."""
        self._first_ns = first_ns
        self._since_ns = since_ns
        self._known = known
        self._open_before = open_files
        self._found: dict[WrittenFile, None] = {}
        self._to_visit: list[tuple[Directory, int]] = [(tree.root, since_ns)]
        self._visits: Iterator[None] | None = None
        self._changes = 0
        """Of the tree, when files in directories that are gone were last forgotten."""
        self._again = False
        """Whether the tree is being looked through because notifications were lost."""
        self._unsure: dict[_Key, tuple[float, int | None]] = {}
        """To be looked at once more: when (monotonic, in this order), and the mtime that was seen."""
        self._writing: dict[_Key, None] = {}
        """Open for writing: their closing will be notified."""

    def step(self) -> list[WrittenFile]:
        """Do a bounded piece of work and return the files that were found."""
        started_ns = file_clock_ns()
        self._found = {}
        drained = self._read_notifications()
        if drained:
            self._visit_some()
            self._look_again()
        self.idle = drained and self._visits is None
        if self.idle:
            self._complete(started_ns)
        return list(self._found)

    def next_check(self) -> float:
        """When `step` has something to look at again (monotonic seconds; infinity: nothing)."""
        return next(iter(self._unsure.values()))[0] if self._unsure else math.inf

    def being_written(self) -> list[str]:
        """The files that have not been returned because they are (perhaps) being written."""
        paths = []
        for wd, name in [*self._writing, *self._unsure]:
            directory = self.tree.at(wd)
            path = directory and self._path(directory, name)
            if path:
                paths.append(path)
        return paths

    # notifications

    def _read_notifications(self) -> bool:
        """Returns whether all were read."""
        for _ in range(NOTIFICATIONS_MAX):
            notification = self.tree.notification()
            if notification is None:
                return True
            self._handle(notification)
        return False

    def _handle(self, notification: Notification) -> None:
        mask = int(notification.mask)
        if mask & _OVERFLOW:
            self._find_all_again()
            return
        directory = self.tree.directory(notification.watch)
        if directory is None:
            return
        if notification.name is not None:
            name = str(notification.name)
            (self._handle_directory if mask & _ISDIR else self._handle_file)(mask, directory, name)
        elif directory is self.tree.root:
            self.root_gone = self.root_gone or bool(mask & _ROOT_GONE)
        elif mask & _IGNORED:
            self.tree.forget(directory)

    def _handle_directory(self, mask: int, parent: Directory, name: str) -> None:
        if mask & _MOVED_FROM:
            self.tree.detach(parent, name)
        elif mask & (_CREATE | _MOVED_TO):
            # all that is in there has come to its name just now, however old it is
            self._enter(parent, name, since_ns=0)

    def _handle_file(self, mask: int, directory: Directory, name: str) -> None:
        key = (directory.watch.wd, name)
        self._unsure.pop(key, None)
        self._writing.pop(key, None)
        path = self._path(directory, name)
        if path is None or mask & (_MOVED_FROM | _DELETE):
            return
        try:
            if mask & _CLOSE_WRITE:
                self._return(path, os.lstat(path))
            elif mask & _MOVED_TO:
                self._judge(key, path)
            elif mask & _CREATE and stat.S_ISREG((status := os.lstat(path)).st_mode):
                self._look_later(key, status)
        except OSError as e:
            self.tree.cant_read(path, e)

    def _find_all_again(self) -> None:
        """Notifications were lost: go through the whole tree for what they would have told."""
        self.tree.counts.overflows += 1
        log.warning("%s: too much happened at once; looking through the tree instead", self.tree.root.name)
        self._again = True
        self.tree.visit_again()
        self._visits = None
        self._to_visit = [(self.tree.root, self._since_ns)]
        self._unsure = dict.fromkeys([*self._writing, *self._unsure], (0.0, None))
        self._writing = {}

    # looking through directories

    def _enter(self, parent: Directory, name: str, since_ns: int) -> None:
        """Watch a directory, then have it looked through."""
        attached = self.tree.attach(parent, name)
        if attached is None or attached[1] is Arrival.VISITED:
            return
        directory, arrival = attached
        if arrival is Arrival.NEW and not self._known(digest(directory, self.tree.path(directory) or "")):
            since_ns = 0
        self._to_visit.append((directory, since_ns))

    def _visit_some(self) -> None:
        if self._visits is None and self._to_visit:
            self._visits = self._visit_all()
        if self._visits is not None and sum(1 for _ in islice(self._visits, ENTRIES_MAX)) < ENTRIES_MAX:
            self._visits = None

    def _visit_all(self) -> Iterator[None]:
        """Look at every entry of every directory that is to be looked through; yields after each entry."""
        while self._to_visit:
            directory, since_ns = self._to_visit.pop()
            path = self.tree.path(directory)
            if path is None:
                continue  # moved away or deleted
            try:
                with os.scandir(path) as entries:
                    for entry in entries:
                        self._look_at(directory, entry, since_ns)
                        yield
            except OSError as e:
                self.tree.cant_read(path, e)

    def _look_at(self, directory: Directory, entry: os.DirEntry[str], since_ns: int) -> None:
        try:
            if entry.is_dir(follow_symlinks=False):
                self._enter(directory, entry.name, since_ns)
            elif entry.is_file(follow_symlinks=False):
                changed_ns = entry.stat(follow_symlinks=False).st_ctime_ns
                if changed_ns >= since_ns or entry.path in self._open_before:
                    self._judge((directory.watch.wd, entry.name), entry.path)
        except OSError as e:
            self.tree.cant_read(entry.path, e)

    def _complete(self, started_ns: int) -> None:
        """All was found: from now on only what notifications tell is new."""
        if self._again:
            self._again = False
            self.tree.forget_unvisited()
        if self.tree.changes != self._changes:
            self._changes = self.tree.changes
            self._unsure = {key: value for key, value in self._unsure.items() if self.tree.at(key[0])}
            self._writing = {key: None for key in self._writing if self.tree.at(key[0])}
        self.complete_ns = started_ns
        self._since_ns = max(started_ns - MARGIN_NS, self._first_ns)
        self._known = _not_known
        self._open_before = frozenset()

    # single files

    def _judge(self, key: _Key, path: str) -> None:
        """Return a file, unless it is (perhaps) being written."""
        status, writing = look(path)
        if not stat.S_ISREG(status.st_mode):
            return
        if writing:
            self._writing[key] = None
        elif writing is None and time.time_ns() - status.st_mtime_ns < CHECK_AFTER_S * 1e9:
            self._look_later(key, status)
        else:
            self._return(path, status)

    def _look_later(self, key: _Key, status: os.stat_result) -> None:
        self._unsure.pop(key, None)  # to keep their order
        self._unsure[key] = (time.monotonic() + CHECK_AFTER_S, status.st_mtime_ns)

    def _look_again(self) -> None:
        now = time.monotonic()
        while self._unsure and len(self._found) < ENTRIES_MAX:
            key, (due, seen_mtime_ns) = next(iter(self._unsure.items()))
            if due > now:
                break
            del self._unsure[key]
            directory = self.tree.at(key[0])
            path = directory and self._path(directory, key[1])
            if path:
                self._judge_again(key, path, seen_mtime_ns)

    def _judge_again(self, key: _Key, path: str, seen_mtime_ns: int | None) -> None:
        """Once for each: a created file that nobody is writing (a hard link), or one of which that can't be known.

        One that can't be known and has changed meanwhile has a writer, and the watch will see it close the file.
        """
        try:
            status, writing = look(path)
        except OSError as e:
            self.tree.cant_read(path, e)
            return
        changed = seen_mtime_ns is not None and status.st_mtime_ns != seen_mtime_ns
        if writing or (writing is None and changed):
            self._writing[key] = None
        else:
            self._return(path, status)

    def _return(self, path: str, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            file = WrittenFile(path, status.st_ino, status.st_size, status.st_mtime_ns)
            self._found[file] = None

    def _path(self, directory: Directory, name: str) -> str | None:
        base = self.tree.path(directory)
        return None if base is None else f"{base.rstrip('/')}/{name}"


def _not_known(digest: bytes) -> bool:
    return False
