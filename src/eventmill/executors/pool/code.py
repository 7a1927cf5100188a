"""The code of actions, ready for a worker: source text, or a zip unpacked once per digest.

Owns the directory of unpacked archives, which is emptied when the pool starts (after a power cut what is in there can't
be trusted). Reading the code happens on the event loop, unpacking in a thread.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from eventmill.entities import Action
from eventmill.errors import InvalidArchive
from eventmill.executors.archive import unpack
from eventmill.executors.base import CodeSource

ARCHIVES_MAX = 100
"""Unpacked archives that are kept; beyond it those that no worker uses are removed, the oldest first."""


@dataclass(frozen=True, slots=True)
class Code:
    """Source text, or the directory of an unpacked archive."""

    source: bytes = b""
    directory: Path | None = None


class CodeCache:
    """Keeps what is in use (between `get` and `release`), and some more."""

    def __init__(self, read: CodeSource, directory: Path, *, files_max: int, bytes_max: int) -> None:
        self._read = read
        self._directory = directory
        self._files_max = files_max
        self._bytes_max = bytes_max
        self._unpacking: dict[str, asyncio.Future[None]] = {}
        self._users: Counter[Path] = Counter()

    async def get(self, action: Action) -> Code:
        """The action's code. Raises InvalidArchive, and what the code source raises."""
        digest = action.code or ""
        if not action.binary:
            return Code(source=self._read(digest))
        directory = self._directory / digest
        self._users[directory] += 1
        try:
            if digest in self._unpacking:
                await asyncio.shield(self._unpacking[digest])
            elif not directory.exists():
                await self._unpack_once(digest, directory)
        except BaseException:
            self._users[directory] -= 1
            raise
        return Code(directory=directory)

    def release(self, code: Code) -> None:
        if code.directory is not None:
            self._users[code.directory] -= 1

    async def _unpack_once(self, digest: str, directory: Path) -> None:
        unpacking = asyncio.ensure_future(asyncio.to_thread(self._unpack, self._read(digest), directory))
        self._unpacking[digest] = unpacking
        try:
            await asyncio.shield(unpacking)
        finally:
            del self._unpacking[digest]
        for spare in self._spare():
            aside = spare.rename(spare.with_name(f".old-{spare.name}"))
            await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)

    def _unpack(self, text: bytes, directory: Path) -> None:
        try:
            data = base64.b64decode(text, validate=True)
        except binascii.Error as e:
            raise InvalidArchive(f"the code is marked as binary but is not base64: {e}") from e
        unpack(data, directory, files_max=self._files_max, bytes_max=self._bytes_max)

    def _spare(self) -> list[Path]:
        self._users = +self._users  # forget those at zero
        kept = sorted(self._directory.glob("[!.]*"), key=lambda path: path.stat().st_mtime)
        return [path for path in kept if path not in self._users][: max(0, len(kept) - ARCHIVES_MAX)]
