"""The code of actions, ready for a worker: source text, or a zip unpacked once per digest.

Owns the directory of unpacked archives, which is emptied when the pool starts (after a power cut what is in there can't
be trusted). Reading the code happens on the event loop, unpacking in a thread.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import io
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eventmill.entities import Action
from eventmill.entities.kinds import BLACKBOX, NATIVE
from eventmill.errors import InvalidArchive
from eventmill.executors.archive import unpack
from eventmill.executors.base import CodeSource

EXECUTABLE = "exec"
"""The file that an executable's archive must have."""
ZIP_MAGIC = b"PK\3\4"
ARCHIVES_MAX = 100
"""Unpacked archives that are kept; beyond it those that no worker uses are removed, the oldest first."""


@dataclass(frozen=True, slots=True)
class Code:
    """Source text, or the directory of an unpacked archive, or of an executable."""

    source: bytes = b""
    directory: Path | None = None

    @property
    def executable(self) -> Path:
        assert self.directory is not None, "an executable is a file"
        return self.directory / EXECUTABLE


class CodeCache:
    """Keeps what is in use (between `get` and `release`), and some more."""

    def __init__(self, read: CodeSource, directory: Path, *, files_max: int, bytes_max: int) -> None:
        self._read = read
        self._directory = directory
        self._files_max = files_max
        self._bytes_max = bytes_max
        self._unpacking: dict[Path, asyncio.Future[None]] = {}
        self._users: Counter[Path] = Counter()

    async def get(self, action: Action) -> Code:
        """The action's code. Raises InvalidArchive, and what the code source raises."""
        digest = action.code or ""
        executable = action.kind in (BLACKBOX, NATIVE)
        if not (action.binary or executable):
            return Code(source=self._read(digest))
        directory = self._directory / (f"{digest}-{EXECUTABLE}" if executable else digest)
        self._users[directory] += 1
        try:
            if directory in self._unpacking:
                await asyncio.shield(self._unpacking[directory])
            elif not directory.exists():
                unpack = partial(self._unpack_executable, binary=action.binary) if executable else self._unpack
                await self._unpack_once(partial(unpack, self._read(digest), directory), directory)
        except BaseException:
            self._users[directory] -= 1
            raise
        return Code(directory=directory)

    def release(self, code: Code) -> None:
        if code.directory is not None:
            self._users[code.directory] -= 1

    async def _unpack_once(self, unpack: Callable[[], None], directory: Path) -> None:
        unpacking = asyncio.ensure_future(asyncio.to_thread(unpack))
        self._unpacking[directory] = unpacking
        try:
            await asyncio.shield(unpacking)
        finally:
            del self._unpacking[directory]
        for spare in self._spare():
            aside = spare.rename(spare.with_name(f".old-{spare.name}"))
            await asyncio.to_thread(shutil.rmtree, aside, ignore_errors=True)

    def _unpack(self, text: bytes, directory: Path) -> None:
        unpack(_decoded(text), directory, files_max=self._files_max, bytes_max=self._bytes_max)

    def _unpack_executable(self, text: bytes, directory: Path, *, binary: bool) -> None:
        """The code is a zip with `exec` in it, or that file itself: a script as text, or a binary as base64."""
        data = _decoded(text) if binary else text
        if not data.startswith(ZIP_MAGIC):
            data = _zip_of(data)
        unpack(data, directory, files_max=self._files_max, bytes_max=self._bytes_max)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (directory / EXECUTABLE).chmod(0o755)

    def _spare(self) -> list[Path]:
        self._users = +self._users  # forget those at zero
        kept = sorted(self._directory.glob("[!.]*"), key=lambda path: path.stat().st_mtime)
        return [path for path in kept if path not in self._users][: max(0, len(kept) - ARCHIVES_MAX)]


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as e:
        raise InvalidArchive(f"the code is marked as binary but is not base64: {e}") from e


def _zip_of(data: bytes) -> bytes:
    """A zip with this as `exec`, so that it gets into its directory by the same way."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(EXECUTABLE, data)
    return buffer.getvalue()
