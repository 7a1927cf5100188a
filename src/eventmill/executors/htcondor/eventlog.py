"""Following one of HTCondor's event logs in JSON: the pool's (EVENT_LOG), or one of our jobs' (`description`).

Owns the open files of one log while it is followed. It never polls and has no thread: inotify wakes it up, and then it
looks at what is there. It never writes.

What is passed on
    Every complete record about a job, in the log's order, as often as it stands there. A record that is torn at the end
    is held back until its rest comes; what is no record is skipped, counted, and mentioned in the server's log once.
    Where the pool writes a record of type 28 after each event, the event comes once, with the job's attributes; a plain
    record waits for its own until the log changes again, and is passed on as it is where none comes. Both come where a
    rotation, or a reader's start, falls between them; they have the same `key`.

What is kept
    The `position`: for the current file and the two before it (somebody may still be writing to them) inode, offset,
    and a checksum of the bytes before the offset, by which a file is known again when its inode has got another use or
    its contents another inode. An old position is always safe: events come again.

Rotation by renaming (`LOG.old`, or `LOG.1`, `LOG.2`, …) loses nothing as long as the last file read is still there or
is open here: all files between it and the current one are read in their order. A log that was truncated, or deleted
and made anew, is read from its beginning. If the position's file is gone, what may be newer is read, and `gaps` grows.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import stat
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from asyncinotify import Mask

from eventmill.errors import Unavailable
from eventmill.executors.htcondor.records import JobEvent, Kind, job_event, overlong, parse, pieces
from eventmill.executors.htcondor.watch import DirectoryWatch

log = logging.getLogger(__name__)

RECORD_BYTES_MAX: Final = 256 << 10
"""Usual are one or two thousand."""
READ_BYTES: Final = 256 << 10
"""Of a log, at once: some 300 records, a millisecond or two."""
OLD_FILES: Final = 2
"""Files before the current one in which late records are looked for."""
TAIL_BYTES: Final = 128
"""Before an offset, by which a file is known again."""

_NAMES: Final = Mask.CREATE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE
_UNPAIRED: Final = frozenset({Kind.GENERIC, Kind.CLUSTER_SUBMITTED, Kind.CLUSTER_REMOVED})
"""Not worth waiting for a record of type 28: these may come without."""

Position = dict[str, Any]
"""A small JSON value: `{"files": [[inode, offset, checksum], …]}`, oldest first."""


@dataclass(slots=True)
class LogCounts:
    """What a log's reader has met since it was made, for metrics."""

    events: int = 0
    garbage: int = 0
    """Pieces skipped because they are no records, or too long ones."""
    truncations: int = 0
    gaps: int = 0
    """How often the file read last was gone after a restart: what came after it in there is lost."""


class EventLog:
    """The events of one log, as they come: `async for events in log`. One reader at a time.

    One of the lists is empty: it says that all that was there has been passed on, and what is coming is new.

    `position`: where an earlier reader was (None: the log was never seen before). `at_end`: a log never seen before is
    followed from its end, not read from its beginning. Raises Unavailable if it can't be watched or read.
    """

    def __init__(
        self,
        path: Path | str,
        position: Position | None = None,
        *,
        at_end: bool = False,
        record_bytes_max: int = RECORD_BYTES_MAX,
    ) -> None:
        self.path = os.path.abspath(path)
        self.counts = LogCounts()
        self._resumed: Position | None = position
        self._at_end = at_end
        self._record_bytes_max = record_bytes_max
        self._watch = DirectoryWatch(os.path.dirname(self.path), _NAMES)
        self._rotated = re.compile(re.escape(os.path.basename(self.path)) + r"\.(old|[0-9]{1,6})\Z")
        self._files: list[_File] = []
        self._informed = False
        """The pool writes records of type 28."""
        self._waited: tuple[int, int] | None = None
        """Inode and offset of the plain record whose record of type 28 has been waited for."""

    @property
    def position(self) -> Position:
        """Up to the end of the last list that was passed on."""
        if not self._files and self._resumed is not None:
            return self._resumed
        return {"files": [[file.inode, file.offset, zlib.crc32(file.tail)] for file in self._files]}

    async def __aiter__(self) -> AsyncIterator[list[JobEvent]]:
        caught_up = False
        try:
            while True:
                if not self._watch.intact:
                    self._open()
                more = True
                while more:
                    events, more = self._read()
                    self.counts.events += len(events)
                    if events:
                        yield events
                    await asyncio.sleep(0)
                if not caught_up:
                    caught_up = True
                    yield []
                names = await self._watch.changed()
                for file in self._files:
                    file.touched = True
                if self._watch.intact and (names is None or any(map(self._is_ours, names))):
                    self._refresh()
        finally:
            self._watch.close()
            self._resumed = self.position
            self._drop(len(self._files))

    def _open(self) -> None:
        self._watch.open()
        for file in self._files:
            self._watch.follow(file.descriptor)
        self._refresh()

    def _is_ours(self, name: str) -> bool:
        return name == os.path.basename(self.path) or self._rotated.match(name) is not None

    # ---- which files there are

    def _refresh(self) -> None:
        """Take in the files that have come since the last look."""
        chain = self._chain()
        fresh = self._since(chain) if self._files else self._first(chain)
        for file in chain:
            if file not in fresh:
                file.close()
        for file in fresh:
            self._watch.follow(file.descriptor)
        self._files += fresh

    def _chain(self) -> list[_File]:
        """The log's files, newest first, opened anew."""
        directory, name = os.path.split(self.path)
        try:
            rotated = [found for found in os.listdir(directory) if self._rotated.match(found)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        rotated.sort(key=lambda found: -1 if found.endswith(".old") else int(found.rpartition(".")[2]))
        opened = (_File.open(os.path.join(directory, each)) for each in [name, *rotated])
        return [file for file in opened if file is not None]

    def _since(self, chain: Sequence[_File]) -> list[_File]:
        """Those of the chain that are newer than the newest known, oldest first.

        It is open, so that no other file can have its inode. If it has no name any more, it was the oldest, or was
        deleted by hand: the times of the last writes tell.
        """
        newest = self._files[-1]
        known = {file.inode for file in self._files}
        fresh: dict[int, _File] = {}  # by inode: while the chain is opened a file may get another name
        for file in chain:
            if file.inode == newest.inode:
                break
            fresh.setdefault(file.inode, file)
        else:
            fresh = {inode: file for inode, file in fresh.items() if file.written_ns >= newest.written_ns}
        return [file for inode, file in reversed(fresh.items()) if inode not in known]

    def _first(self, chain: list[_File]) -> list[_File]:
        """What to read of the files that are there when a reader starts, oldest first."""
        position = self._resumed
        if not chain:
            self._resumed = position or {"files": []}
            return []
        self._resumed = None
        if position is None and self._at_end:
            chain[0].to_end(self._record_bytes_max)
            return chain[:1]
        entries = [tuple(entry) for entry in (position or {"files": []})["files"]]
        if not entries:
            return chain[::-1]
        found = {entry: self._find(chain, entry) for entry in entries}
        if found[entries[-1]] is None:
            self.counts.gaps += 1
            log.warning("%s: the file read last is gone or was truncated; events may be missing", self.path)
        known = list(dict.fromkeys(file for file in found.values() if file is not None))
        for entry, file in found.items():
            if file is not None:
                file.resume(entry[1])
        newer = chain[: chain.index(known[-1])] if known else chain
        return known + [file for file in reversed(newer) if file not in known]

    @staticmethod
    def _find(chain: Sequence[_File], entry: tuple[int, ...]) -> _File | None:
        """The file in which a reader was: the same inode, or a copy, but the same contents in any case."""
        inode, offset, checksum = entry
        same = [file for file in chain if zlib.crc32(file.before(offset)) == checksum and file.size >= offset]
        named = [file for file in same if file.inode == inode]
        return next(iter(named or (same if offset else [])), None)

    def _drop(self, count: int) -> None:
        for file in self._files[:count]:
            file.close()
        del self._files[:count]

    # ---- reading them

    def _read(self) -> tuple[list[JobEvent], bool]:
        """The next events, and whether there may be more at once."""
        for file in self._files:
            if file.changed:
                return self._take(file), True
        if len(self._files) > OLD_FILES + 1:
            self._drop(len(self._files) - OLD_FILES - 1)
        return [], False

    def _take(self, file: _File) -> list[JobEvent]:
        """The complete records behind a file's offset."""
        data = file.read()
        if data is None:
            self.counts.truncations += 1
            return []
        found: list[tuple[int, JobEvent]] = []
        consumed = 0
        for start, end in pieces(data):
            records, damaged = parse(data[start:end], self._record_bytes_max)
            if damaged:
                self._skipped()
            found += [(file.offset + start, event) for event in map(job_event, records) if event is not None]
            consumed = end
        if not file.offset and data.lstrip()[:1] not in (b"", b"{") and not self.counts.garbage:
            self._skipped()  # a log in another format: say so at once, not when it has got too long
        if not consumed and len(data) > self._record_bytes_max:
            self._skipped()
            consumed = overlong(data)
        events, hold = self._pair(file, found)
        file.advance(data, consumed if hold is None else hold - file.offset)
        return events

    def _pair(self, file: _File, found: Sequence[tuple[int, JobEvent]]) -> tuple[list[JobEvent], int | None]:
        """The events without the plain ones of which there is a record of type 28; the offset of the first one whose
        own has not come yet, from where on all is read again when the log has changed.
        """
        informed = {event.key for _, event in found if event.informed}
        self._informed |= bool(informed)
        events: list[JobEvent] = []
        for offset, event in found:
            if event.informed:
                events.append(event)
            elif event.key not in informed:
                if self._worth_waiting(file, offset, event):
                    return events, offset
                events.append(event)
        return events, None

    def _worth_waiting(self, file: _File, offset: int, event: JobEvent) -> bool:
        if not self._informed or file is not self._files[-1] or event.kind in _UNPAIRED:
            return False
        if self._waited == (file.inode, offset):
            self._informed = False
            return False
        self._waited = file.inode, offset
        return True

    def _skipped(self) -> None:
        if not self.counts.garbage:
            log.warning(
                "%s: skipped what is no event in JSON (EVENT_LOG_FORMAT_OPTIONS = JSON is needed); "
                "further ones are only counted",
                self.path,
            )
        self.counts.garbage += 1


class _File:
    """One open file of a log, and how far it has been read."""

    __slots__ = ("_seen", "_want", "descriptor", "inode", "offset", "tail", "touched")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.inode = os.fstat(descriptor).st_ino
        self.offset = 0
        self.tail = b""
        """The last bytes before the offset."""
        self.touched = False
        """It may have changed though size and time are the same: truncated and written again within a tick."""
        self._seen = (0, 0)
        self._want = READ_BYTES

    @classmethod
    def open(cls, path: str) -> _File | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as e:
            raise Unavailable(f"can't read {path}: {e.strerror}") from e
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return None
        return cls(descriptor)

    def close(self) -> None:
        os.close(self.descriptor)

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    @property
    def written_ns(self) -> int:
        return os.fstat(self.descriptor).st_mtime_ns

    @property
    def changed(self) -> bool:
        """Whether there is something in it that has not been looked at."""
        return self.touched or self._state() != self._seen

    def _state(self) -> tuple[int, int]:
        state = os.fstat(self.descriptor)
        return (state.st_size, state.st_mtime_ns) if state.st_size or self.offset else (0, 0)

    def before(self, offset: int) -> bytes:
        start = max(0, offset - TAIL_BYTES)
        return os.pread(self.descriptor, offset - start, start)

    def resume(self, offset: int) -> None:
        self.offset, self.tail = offset, self.before(offset)

    def to_end(self, record_bytes_max: int) -> None:
        """Go behind the last complete record."""
        size = self.size
        start = max(0, size - record_bytes_max)
        ends = [end for _, end in pieces(os.pread(self.descriptor, size - start, start))]
        self.resume(start + ends[-1] if ends else size)

    def read(self) -> bytes | None:
        """What comes after the offset, a part of it if it is much. None: it was truncated, and begins anew."""
        self.touched, state = False, self._state()
        start = self.offset - len(self.tail)
        data = os.pread(self.descriptor, self._want + len(self.tail), start)
        if not data.startswith(self.tail):
            self.offset, self.tail, self._seen, self._want = 0, b"", (0, 0), READ_BYTES
            return None
        if start + len(data) >= state[0]:
            self._seen = state
        return data[len(self.tail) :]

    def advance(self, data: bytes, consumed: int) -> None:
        """These of the bytes read last are dealt with; if it is none of many, more are read next time."""
        if consumed:
            self.tail = (self.tail + data[:consumed])[-TAIL_BYTES:]
            self.offset += consumed
            self._want = READ_BYTES
        elif len(data) >= self._want:
            self._want *= 2
