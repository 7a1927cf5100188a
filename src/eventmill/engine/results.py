"""The results of maps: joined in memory up to the limit of a payload, above it in a file.

A file has one line of JSON per element, in order: its result, or of an element that has failed `{"index",
"activationId", "error"}`. It lies in the folder of results of the map's namespace, which its functions and jobs can
read and write. So nothing here follows a link in it, and what is read from it is somebody's input.

`ResultFiles` has no state but its directory and may be used by all threads; `Joined` belongs to one at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import orjson

from eventmill.engine import decide
from eventmill.store import Element

_READ_BYTES_MAX = 8 << 20
"""Of a file of elements in one turn: more wait for the next, as those beyond a slice do."""
_SLACK_BYTES = 100
"""What a joined result has besides its elements, generously."""


class UnusableItems(Exception):
    """A file of elements that a map can't run over; the message says why."""


class ResultFiles:
    """`root`: the directory with a folder for each namespace."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, namespace: str, map: str, attempt: int) -> Path:
        """Of the file with the results of this attempt of a map: it never has other contents."""
        return self._root / namespace / f"{map}.{attempt}.jsonl"

    def new(self, path: Path) -> BinaryIO:
        """Begin to write this file, under another name: `keep` gives it its own. Raises OSError."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = _part(path)
        part.unlink(missing_ok=True)  # of a server that was killed
        return open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")

    def keep(self, path: Path, file: BinaryIO) -> None:
        """The file is written: make it durable, all at once. Raises OSError."""
        file.flush()
        os.fsync(file.fileno())
        file.close()
        os.replace(_part(path), path)
        for directory in (path.parent, self._root):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def drop(self, path: Path, file: BinaryIO) -> None:
        """No more is written to this file; unless it was kept, nothing remains of it."""
        with contextlib.suppress(OSError):  # what is not written yet finds no room
            file.close()
        with contextlib.suppress(OSError):
            _part(path).unlink()

    def remove(self, namespace: str, map: str, attempts: Iterable[int]) -> None:
        """The files of these attempts of a map, if there are any."""
        for attempt in attempts:
            path = self.path(namespace, map, attempt)
            for name in (path, _part(path)):
                with contextlib.suppress(OSError):
                    name.unlink()

    def elements(
        self, namespace: str, href: str, offset: int, limit: int, bytes_max: int
    ) -> tuple[list[bytes], int | None]:
        """The next elements of a file, as parameters, and where those behind them begin (None: there are none).

        At most `limit`, none longer than `bytes_max`. Elements that have failed are left out, as they are in the
        `items` of a joined result. Raises UnusableItems.
        """
        found: list[bytes] = []
        end = offset + _READ_BYTES_MAX
        try:
            with self._open(namespace, href) as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(offset)
                while offset < min(size, end) and limit > 0:
                    line = file.readline(bytes_max + 1)
                    if len(line) > bytes_max:
                        raise UnusableItems(f"{href} has a line of more than {bytes_max} bytes")
                    params = _params(line)
                    if params is not None:
                        found.append(params)
                    offset, limit = offset + len(line), limit - 1
                    if not line:  # it has become shorter
                        return found, None
        except ValueError as e:
            raise UnusableItems(f"{href} is not JSON lines: {e} (in the line at byte {offset})") from e
        except OSError as e:
            raise UnusableItems(f"{href} can't be read: {e.strerror}") from e
        return found, offset if offset < size else None

    def _open(self, namespace: str, href: str) -> BinaryIO:
        """A plain file below the namespace's folder; links are not followed. Raises OSError, UnusableItems."""
        folder = self._root / namespace
        url = urlsplit(href)
        path = Path(unquote(url.path))
        if url.scheme != "file" or url.netloc not in ("", "localhost") or ".." in path.parts:
            raise UnusableItems(f"{href} is not the URL of a file here (file:///…)")
        if folder not in path.parents:
            raise UnusableItems(f"{href} is not below {folder}")
        *folders, name = path.relative_to(folder).parts
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for inner in folders:
                within = os.open(inner, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
                os.close(at)
                at = within
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
        finally:
            os.close(at)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError(errno.EINVAL, "it is no plain file")
        return open(file, "rb")


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _params(line: bytes) -> bytes | None:
    """An element's line as parameters; None for an empty line, and for an element that has failed."""
    if not line.strip():
        return None
    value = orjson.loads(line)
    if not isinstance(value, dict):
        return decide.element_params(value)
    return None if "error" in value and "activationId" in value else line.strip()


def _line(element: Element) -> bytes:
    """What a file has of an element; of one that has failed, it is what a joined result has in `failed`."""
    if not element.succeeded:
        error = decide.error_of(element.result)
        return orjson.dumps({"index": element.index, "activationId": element.id, **error})
    result = element.result or b"{}"
    if b"\n" in result or b"\r" in result:  # white space between tokens: in strings it is escaped
        result = result.replace(b"\n", b" ").replace(b"\r", b" ")
    return result


class Joined:
    """The results of a map's elements, added in order. They are in memory until they are too large for a payload of
    `bytes_max`, and in `file`, if there is one, from the first on."""

    def __init__(self, bytes_max: int, file: BinaryIO | None = None) -> None:
        self.count = 0
        self.failed = 0
        self.path: Path | None = None
        """Where the file is kept, if they are in a file alone."""
        self._bytes_max = bytes_max
        self._bytes = _SLACK_BYTES
        self._lines: list[tuple[bool, bytes]] = []
        self._file = file

    @property
    def too_large(self) -> bool:
        return self._bytes > self._bytes_max

    def add(self, element: Element) -> None:
        """Raises OSError if the file can't be written."""
        line = _line(element)
        self.count += 1
        self.failed += not element.succeeded
        self._bytes += len(line) + 1
        if self._file is not None:
            self._file.write(line + b"\n")
        if self.too_large:
            self._lines.clear()
        else:
            self._lines.append((element.succeeded, line))

    def document(self, error: str | None) -> bytes:
        """The map's result."""
        result: dict[str, Any]
        if self.path is not None:
            result = {"href": self.path.as_uri(), "path": str(self.path), "count": self.count, "failed": self.failed}
        else:
            items = [orjson.Fragment(line) for succeeded, line in self._lines if succeeded]
            result = {"items": items, "failed": [orjson.Fragment(line) for ok, line in self._lines if not ok]}
        return orjson.dumps(result if error is None else {**result, "error": error})
