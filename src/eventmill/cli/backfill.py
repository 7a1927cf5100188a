"""`emit --from`: the events of files that were there before anybody watched.

Each is the event that the watched directory would have made of the file as it is now: the same source and id, so that
a rule that has dealt with it already does not start again. Reads names and status of files, never their contents.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from eventmill.cli.client import Client, segment
from eventmill.cli.deployment import named
from eventmill.cli.output import Step
from eventmill.config import PathMap
from eventmill.entities.ids import file_event_id
from eventmill.errors import InvalidInput
from eventmill.events import PathTable
from eventmill.events.validation import is_clean
from eventmill.rules import Index, Pattern, parse
from eventmill.sdk.event import Event
from eventmill.sources.clock import timestamp
from eventmill.sources.files import TYPE
from eventmill.sources.leases import look

BATCH = 500
"""Events in one request."""


class Backfill:
    """Files of one pattern. `roots`: the directories that the server watches; `table`: its `[[paths]]`."""

    def __init__(self, pattern: Pattern, table: PathTable, roots: list[str]) -> None:
        self._index: Index[None] = Index()
        self._index.add(None, pattern)
        self._table = table
        self._roots = sorted(roots, key=len, reverse=True)
        self.seen = 0
        self.being_written = 0
        """Files left out because somebody has them open for writing: their closing will be noticed."""
        self.unreadable = 0
        """Files and directories that could not be read, or whose name no event can carry."""

    @classmethod
    def for_rule(cls, client: Client, namespace: str, rule: str) -> Backfill:
        """What the server knows of this rule. Raises NotFound, or InvalidInput if its trigger has no pattern."""
        base = f"/api/v1/namespaces/{segment(namespace)}"
        trigger = client.get(f"{base}/rules/{segment(rule)}")["trigger"]
        document = client.get(f"/api/v1/namespaces/{trigger['path']}/triggers/{segment(trigger['name'])}")
        pattern = named(document["annotations"]).get("pattern")
        if pattern is None:
            raise InvalidInput(f"rule '{rule}' has no pattern: its trigger '{trigger['name']}' is only fired by hand")
        settings = client.get("/eventmill/v1/check")["settings"]
        table = PathTable(PathMap(**row) for row in settings["paths"])
        return cls(parse(pattern), table, [os.path.abspath(source["path"]) for source in settings["files"]])

    def batches(self, folder: Path, step: Step) -> Iterator[list[Event]]:
        """Events of the files below `folder` that match, in lists; `step` is called for every file seen."""
        events: list[Event] = []
        root = os.path.abspath(folder)
        if not os.path.isdir(root):
            raise InvalidInput(f"--from {folder}: there is no such directory")
        for path in self._files(root):
            self.seen += 1
            step()
            event = self._event(path, self._source(path, root))
            if event is not None and self._index.match(event):
                events.append(event)
            if len(events) == BATCH:
                yield events
                events = []
        if events:
            yield events

    def _files(self, root: str) -> Iterator[str]:
        """Regular files, directories in the order of their names; links are not followed."""
        folders = [root]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    found = sorted(entries, key=lambda entry: entry.name)
            except OSError:
                self.unreadable += 1
                continue
            yield from (entry.path for entry in found if entry.is_file(follow_symlinks=False))
            folders += [entry.path for entry in reversed(found) if entry.is_dir(follow_symlinks=False)]

    def _source(self, path: str, root: str) -> str:
        """The source that announces this file: the innermost watched directory, or else the one that was named."""
        watched = next((r for r in self._roots if path.startswith(r.rstrip("/") + "/")), root)
        return "file://" + quote(os.fsencode(watched), safe="/~!$&'()*+,;=:@")

    def _event(self, path: str, source: str) -> Event | None:
        """None for a file that is gone, being written, or of a name that no event can carry."""
        if not is_clean(path):
            self.unreadable += 1
            return None
        try:
            status, writing = look(path)
        except OSError:
            return None
        if writing:
            self.being_written += 1
        if writing or not stat.S_ISREG(status.st_mode):
            return None
        event = Event(
            specversion="1.0",
            id=file_event_id(path, status.st_ino, status.st_size, status.st_mtime_ns),
            source=source,
            type=TYPE,
            subject=self._table.to_subject(path),
            datacontenttype="application/json",
            data={"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino},
        )
        if time := timestamp(status.st_mtime_ns):
            event["time"] = time
        return event
