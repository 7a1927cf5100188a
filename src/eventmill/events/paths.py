"""The three names of a file: what users call it (subject), what the storage system calls it, where this machine has it.

Owns the reading of `[[paths]]`. A name is mapped by the longest row whose prefix is whole components of it; without
one it stays as it is. Mapping is done on the text: it touches no file, and resolves neither links nor `..`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

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
        self._to_subject = _prefixes((local, subject) for subject, _, local in table)
        self._to_local = _prefixes((subject, local) for subject, _, local in table)
        self._from_source = _prefixes((source, subject) for subject, source, _ in table)

    def to_subject(self, local_path: str) -> str:
        """What users call the file that this machine has there."""
        return _map(self._to_subject, local_path)

    def to_local(self, subject: str) -> str:
        """Where this machine has the file."""
        return _map(self._to_local, subject)

    def from_source(self, storage_path: str) -> str:
        """What users call the file that the storage system calls so."""
        return _map(self._from_source, storage_path)

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


def _map(prefixes: _Prefixes, path: str) -> str:
    for old, new in prefixes:
        if path.startswith(old):
            rest = path[len(old) :]
            if not rest or rest[0] == "/":
                return new + rest or "/"
    return path
