"""The schedd's PER_JOB_HISTORY_DIR as an outbox: the final ad of every job that has left the queue, a file each.

The schedd writes a file under another name and renames it to `history.CLUSTER.PROC`; it never looks at it again. So the
files wait for us, however long we are away, and go when the consumer says so (`delete`), which is when what they say is
durable elsewhere. One server reads one directory. Files are read in a thread; nothing polls.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from asyncinotify import Mask

from eventmill.errors import Unavailable
from eventmill.executors.htcondor.records import ACTIVATION
from eventmill.executors.htcondor.watch import DirectoryWatch

log = logging.getLogger(__name__)

FILES_AT_ONCE: Final = 200
AD_BYTES_MAX: Final = 4 << 20

_NAME: Final = re.compile(r"history\.([0-9]{1,18})\.([0-9]{1,18})\Z")
_LINE: Final = re.compile(r"([A-Za-z_][\w.]*)\s*=\s*(.*)\Z", re.DOTALL)
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,300}\Z")
_REAL: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?\Z")
_WORDS: Final[Mapping[str, Any]] = {"true": True, "false": False, "undefined": None, "error": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalAd:
    """A job's ad when it left the queue: `JobStatus` 4 is completed, 3 removed."""

    cluster: int
    proc: int
    activation: str | None
    """What the job's attribute says, whoever has set it."""
    attributes: Mapping[str, Any]
    """Literals as Python values (None: undefined); any other expression as its text."""

    @property
    def file(self) -> str:
        return f"history.{self.cluster}.{self.proc}"


class HistoryDir:
    """The final ads in a directory: those that wait there, then each as it comes. One reader at a time.

    An ad may come again (after a restart, when the kernel's queue was full, when the schedd crashed in between). Raises
    Unavailable if the directory can't be watched or read.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = os.path.abspath(directory)
        self.garbage = 0
        """Files that are no ads; they are left where they are."""
        self._watch = DirectoryWatch(self.directory, Mask.MOVED_TO)

    async def __aiter__(self) -> AsyncIterator[list[FinalAd]]:
        names: set[str] | None = None
        try:
            while True:
                if not self._watch.intact:
                    self._watch.open()
                    names = None
                waiting = await asyncio.to_thread(self._waiting, names)
                for start in range(0, len(waiting), FILES_AT_ONCE):
                    ads = await asyncio.to_thread(self._read, waiting[start : start + FILES_AT_ONCE])
                    if ads:
                        yield ads
                names = await self._watch.changed()
        finally:
            self._watch.close()

    async def delete(self, names: Iterable[str]) -> None:
        """Remove these files (`FinalAd.file`): what they say is kept elsewhere. Repeating it is harmless. Raises
        Unavailable if one can't be removed."""
        await asyncio.to_thread(self._delete, list(names))

    def _delete(self, names: Sequence[str]) -> None:
        failure: OSError | None = None
        for name in names:
            try:
                os.unlink(os.path.join(self.directory, name))
            except FileNotFoundError:
                pass
            except OSError as e:
                failure = e
        if failure is not None:
            raise Unavailable(f"can't remove files from {self.directory}: {failure.strerror}") from failure

    def _waiting(self, names: set[str] | None) -> list[str]:
        """Those of the names (None: of all in the directory) that are ads, in the order of their numbers."""
        try:
            candidates = os.listdir(self.directory) if names is None else names
        except FileNotFoundError:
            return []
        except OSError as e:
            raise Unavailable(f"can't read {self.directory}: {e.strerror}") from e
        found = [(int(match[1]), int(match[2]), name) for name in candidates if (match := _NAME.match(name))]
        return [name for _, _, name in sorted(found)]

    def _read(self, names: Sequence[str]) -> list[FinalAd]:
        return [ad for name in names if (ad := self._ad(name)) is not None]

    def _ad(self, name: str) -> FinalAd | None:
        path = os.path.join(self.directory, name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:  # deleted meanwhile
            return None
        except OSError as e:
            raise Unavailable(f"can't read {path}: {e.strerror}") from e
        with open(descriptor, "rb") as file:
            try:
                raw = file.read(AD_BYTES_MAX + 1)
            except IsADirectoryError:
                raw = b""
            except OSError as e:
                raise Unavailable(f"can't read {path}: {e.strerror}") from e
        attributes = parse_ad(raw.decode(errors="replace")) if len(raw) <= AD_BYTES_MAX else {}
        cluster, proc = attributes.get("ClusterId"), attributes.get("ProcId")
        if name != f"history.{cluster}.{proc}":
            if not self.garbage:
                log.warning("%s is not a job's ad; further ones are only counted", path)
            self.garbage += 1
            return None
        activation = attributes.get(ACTIVATION)
        return FinalAd(
            cluster=int(name.split(".")[1]),
            proc=int(name.split(".")[2]),
            activation=activation if isinstance(activation, str) else None,
            attributes=attributes,
        )


def parse_ad(text: str) -> dict[str, Any]:
    """The attributes of an ad in HTCondor's long form, `Name = value` lines. What is no such line is left out."""
    lines = (match for line in text.split("\n") if (match := _LINE.match(line.strip())))
    return {match[1]: _value(match[2]) for match in lines}


def _value(text: str) -> Any:
    """In this form only a double quote is escaped in a string, so that a backslash before anything else is itself."""
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return text[1:-1].replace('\\"', '"')
    if _INTEGER.match(text):
        return int(text)
    if _REAL.match(text):
        return float(text)
    return _WORDS.get(text.lower(), text)
