"""Which directories a flow waits for: the roots of its `files.written(…)` globs, as this machine has them.

Values in, values out, but for `earlier`, which looks into the directories.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventmill.cli import output
from eventmill.cli.deployment import named
from eventmill.config import FileSource, Settings
from eventmill.events import PathTable
from eventmill.rules import glob_root, parse
from eventmill.rules.pattern import Exact, Glob
from eventmill.sdk.pack import Entity
from eventmill.sources.files import TYPE


@dataclass(frozen=True, slots=True)
class Watch:
    """A directory that the flow's globs name; `problem`: why it can't be watched, or ""."""

    path: Path
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Earlier:
    """Files that were below a directory before anybody watched it; `rules` are those that wait for files there."""

    path: Path
    count: int
    rules: tuple[str, ...]

    @property
    def counted(self) -> str:
        """The count, which is bounded, for people."""
        more = "more than " if self.count > COUNTED_MAX else ""
        return more + output.counted(min(self.count, COUNTED_MAX), "file")


COUNTED_MAX = 10_000
COUNTING_S = 0.5
"""What a count of earlier files may take, in files and in time: it is a hint only."""


def watches(entities: Iterable[Entity], settings: Settings) -> list[Watch]:
    """The directories to watch beyond those of the configuration; none lies inside of another. None at all where
    topics are read: there it is the storage system that tells of its files, and would tell of each a second time."""
    if settings.topics:
        return []
    chosen = [source.path.absolute() for source in settings.files]
    found: list[Watch] = []
    for root in sorted(_rules_by_root(entities, settings)):
        if not any(root.is_relative_to(path) for path in chosen):
            found.append(_looked_at(root))
            chosen.append(root)
    return found


def sources(found: Iterable[Watch], settings: Settings) -> list[FileSource]:
    """The configuration's sources and these."""
    return [*settings.files, *(FileSource(path=watch.path) for watch in found if not watch.problem)]


def earlier(entities: Iterable[Entity], settings: Settings) -> list[Earlier]:
    """What a first start would ignore: files below the flow's roots, where `start = "new"` says so."""
    deadline = time.monotonic() + COUNTING_S
    ignoring = [source.path.absolute() for source in settings.files if source.start == "new"]
    found = []
    for root, rules in sorted(_rules_by_root(entities, settings).items()):
        if any(root.is_relative_to(path) for path in ignoring) and (count := _count(root, deadline)):
            found.append(Earlier(root, count, tuple(rules)))
    return found


def _count(root: Path, deadline: float) -> int:
    """How many files lie below, as far as the bounds allow to count."""
    count, folders = 0, [str(root)]
    while folders and count <= COUNTED_MAX and time.monotonic() < deadline:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                count += entry.is_file(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return COUNTED_MAX + 1 if count > COUNTED_MAX else count


def _looked_at(root: Path) -> Watch:
    if root == Path("/"):
        return Watch(root, "a glob that begins with a star would watch the whole machine: name a directory first")
    if not root.is_absolute():
        return Watch(root, "names of files begin with '/'")
    return Watch(root)


def _rules_by_root(entities: Iterable[Entity], settings: Settings) -> dict[Path, list[str]]:
    """Roots of all globs that our own file source can satisfy, as this machine has them, and the rules they are of."""
    table = PathTable(settings.paths)
    found: dict[Path, list[str]] = {}
    for collection, name, document in entities:
        if collection == "triggers":
            for root in _roots(document):
                rules = found.setdefault(Path(table.to_local(root)), [])
                rules += [rule for rule in [name.removesuffix(".trigger")] if rule not in rules]
    return found


def _roots(trigger: dict[str, Any]) -> Iterator[str]:
    for fields in parse(named(trigger["annotations"])["pattern"]).alternatives:
        tests = {field.path: field.tests for field in fields}
        if Exact(TYPE) in tests.get("type", ()):
            yield from (glob_root(test.text) for test in tests.get("subject", ()) if isinstance(test, Glob))
