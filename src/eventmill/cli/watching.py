"""Which directories a flow waits for: the roots of its `files.written(…)` globs, as this machine has them.

Values in, values out, but for one look at each directory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

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


def watches(entities: Iterable[Entity], settings: Settings) -> list[Watch]:
    """The directories to watch beyond those of the configuration; none lies inside of another."""
    table = PathTable(settings.paths)
    roots = sorted({Path(table.to_local(root)) for root in _roots(entities)})
    chosen = [source.path.absolute() for source in settings.files]
    found: list[Watch] = []
    for root in roots:
        if not any(root.is_relative_to(path) for path in chosen):
            found.append(_looked_at(root))
            chosen.append(root)
    return found


def sources(found: Iterable[Watch], settings: Settings) -> list[FileSource]:
    """The configuration's sources and these."""
    return [*settings.files, *(FileSource(path=watch.path) for watch in found if not watch.problem)]


def _looked_at(root: Path) -> Watch:
    if root == Path("/"):
        return Watch(root, "a glob that begins with a star would watch the whole machine: name a directory first")
    if not root.is_absolute():
        return Watch(root, "names of files begin with '/'")
    if not root.is_dir():
        return Watch(root, "there is no such directory here: create it, or map it to one by [[paths]]")
    return Watch(root)


def _roots(entities: Iterable[Entity]) -> Iterator[str]:
    """Roots of all globs that our own file source can satisfy."""
    for collection, _, document in entities:
        if collection != "triggers":
            continue
        for fields in parse(named(document["annotations"])["pattern"]).alternatives:
            tests = {field.path: field.tests for field in fields}
            if Exact(TYPE) in tests.get("type", ()):
                yield from (glob_root(test.text) for test in tests.get("subject", ()) if isinstance(test, Glob))
