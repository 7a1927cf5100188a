"""The three names of a file: what users call it (subject), what the storage system calls it, where this machine has it.

Owns the reading of `[[paths]]`. A name is mapped by the longest row whose prefix is whole components of it; without
one it stays as it is. Mapping is done on the text: it touches no file, and resolves neither links nor `..`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from eventmill.config import PathMap
from eventmill.errors import InvalidConfig

_Prefixes = list[tuple[str, str]]
"""(from, to) without trailing slashes, longest `from` first."""


class PathTable:
    """The rows of `[[paths]]`, ready to use. A row without `source` or `local`: there the name is the subject.

    Raises InvalidConfig if a prefix isn't absolute or stands for two different names.
    """

    def __init__(self, rows: Iterable[PathMap] = ()) -> None:
        table = [(_prefix(r.subject), _prefix(r.source or r.subject), _prefix(r.local or r.subject)) for r in rows]
        self._to_local = _prefixes((subject, local) for subject, _, local in table)
        self.to_subject = _mapper(_prefixes((local, subject) for subject, _, local in table))
        """What users call the file that this machine has there."""
        self.to_local = _mapper(self._to_local)
        """Where this machine has the file that users call so."""
        self.from_source = _mapper(_prefixes((source, subject) for subject, source, _ in table))
        """What users call the file that the storage system calls so."""

    def environment(self) -> str:
        """The value of EVENTMILL_PATHS, by which `Event.path` does what `to_local` does."""
        return json.dumps([[subject or "/", local or "/"] for subject, local in self._to_local])


def _prefix(path: str) -> str:
    if not path.startswith("/"):
        raise InvalidConfig(f"paths: '{path}' must be absolute (begin with '/')")
    return path.rstrip("/")


def _prefixes(pairs: Iterable[tuple[str, str]]) -> _Prefixes:
    table: dict[str, str] = {}
    for old, new in pairs:
        if table.setdefault(old, new) != new:
            raise InvalidConfig(f"paths: '{old or '/'}' stands for both '{table[old] or '/'}' and '{new or '/'}'")
    return sorted(table.items(), key=lambda pair: -len(pair[0]))


def _mapper(prefixes: _Prefixes) -> Callable[[str], str]:
    """The mapping as a function; a decoder calls it for every record."""
    rows = [(old, f"{old}/", len(old), new) for old, new in prefixes]

    def mapped(path: str) -> str:
        for old, below, length, new in rows:
            if path.startswith(below) or path == old:
                return new + path[length:] or "/"
        return path

    return mapped
