"""A watched directory tree as a source: one event for every file that has been written.

A file is *written* when it was closed after writing, or moved to its name: inotify's IN_CLOSE_WRITE and IN_MOVED_TO.
`watchfiles`, the usual library, can't tell: of what the kernel says it passes on only added, modified and deleted, so
that a file looks the same after its first block and after its last; and it keeps quiet about a full queue.

What is kept, and why nothing is missed
    Not a table of files, but (1) the *watermark*, a time before which everything has been announced, and the files
    that were being written then; (2) the *directories*, 8 bytes each. They are put when everything up to them is
    durable: every half minute while something goes on (the directories every five), and at the end. A start watches
    every directory and then looks through it, announcing each file
    - whose ctime (which writing and renaming move on, and nobody can set) is not older than the watermark, less a
      margin of ten seconds for clocks that differ; or
    - that was being written then and is no longer; or
    - in a directory that wasn't at its name then: it was created, moved in, or renamed.
    After a crash this announces again what was announced since the last put. An event's id is a digest of path,
    inode, size and mtime, so these are the same events, and the ledger knows them.
    On the very first start, what is older than that start is left alone (`start="new"`) or announced (`"all"`).
    One thing is not seen: a file that existed, was opened again to be written, rested for longer than the margin after
    its last write, and was closed while nobody watched.

Concurrency: `run` is one task; the file system is touched in a thread only, one piece of work at a time, so that a slow
file server holds up nobody else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

from eventmill.entities.ids import file_event_id
from eventmill.events.paths import PathTable
from eventmill.events.validation import is_clean
from eventmill.sdk.event import Event
from eventmill.sources.base import Emit, SourceState
from eventmill.sources.clock import timestamp
from eventmill.sources.finder import Finder, WrittenFile
from eventmill.sources.progress import Progress
from eventmill.sources.thread import in_thread
from eventmill.sources.tree import FileCounts, Tree, directory_appears

log = logging.getLogger(__name__)

TYPE: Final = "org.eventmill.file.written"


class FileSource:
    """Announces the files written below `root`; `paths` maps their names to subjects.

    The event's `source` is `file://` and the root, without the host: a host's name may change (a container's does with
    every start), and then everything announced again would be taken for new. Two servers that watch one shared
    directory make the same events.

    A root that isn't there, or goes away, is waited for.
    """

    def __init__(
        self,
        root: Path | str,
        emit: Emit,
        state: SourceState,
        paths: PathTable,
        *,
        start: Literal["new", "all"] = "new",
    ) -> None:
        self.root = os.path.abspath(root)
        self.counts = FileCounts()
        self.ready = asyncio.Event()
        """Set while everything is watched and has been looked through once."""
        self._emit = emit
        self._paths = paths
        self._source = "file://" + quote(os.fsencode(self.root), safe="/~!$&'()*+,;=:@")
        self._progress = Progress(state, self.root, start)

    async def run(self) -> None:
        """Watch until cancelled. Raises SourceError if the tree can't be watched (a limit, a permission)."""
        await self._progress.begin()
        while True:
            if not os.path.isdir(self.root):
                log.warning("%s isn't there: waiting for it to appear", self.root)
                await directory_appears(self.root)
            try:
                tree = await in_thread(lambda: Tree(self.root, self.counts))
            except FileNotFoundError:
                continue
            try:
                await self._watch(tree)
            finally:
                tree.close()
            log.warning("%s was removed, moved or unmounted", self.root)

    async def _watch(self, tree: Tree) -> None:
        """Announce what is written until the root goes away."""
        resume = await self._progress.resume()
        finder = Finder(
            tree,
            since_ns=resume.since_ns,
            first_ns=resume.first_ns,
            known=resume.known,
            open_files=resume.open_files,
        )
        settled = False  # whether everything that was found is durable
        try:
            while not finder.root_gone:
                settled = False
                await self._announce(await in_thread(finder.step))
                if finder.idle:
                    settled = True
                    self.ready.set()
                    await self._progress.save(finder)
                    due = min(finder.next_check(), self._progress.due(tree))
                    if not finder.root_gone:
                        await tree.readable(max(0.0, due - time.monotonic()))
        finally:
            self.ready.clear()
            if settled:
                await self._progress.save(finder, last=True)

    async def _announce(self, files: list[WrittenFile]) -> None:
        events = [event for file in files if (event := self._event(file)) is not None]
        if events:
            await self._emit(events)
            self.counts.written += len(events)
            self._progress.unsaved = True

    def _event(self, file: WrittenFile) -> Event | None:
        """The event; None if it can't have the file's name."""
        if not is_clean(file.path):
            if not self.counts.unnameable:
                log.warning("%r is left out: a file's name must be UTF-8 without control characters", file.path)
            self.counts.unnameable += 1
            return None
        event = Event(
            specversion="1.0",
            id=file_event_id(file.path, file.inode, file.size, file.mtime_ns),
            source=self._source,
            type=TYPE,
            subject=self._paths.to_subject(file.path),
            datacontenttype="application/json",
            data={"size": file.size, "mtime_ns": file.mtime_ns, "inode": file.inode},
        )
        if mtime := timestamp(file.mtime_ns):
            event["time"] = mtime
        return event
