"""Files that a storage system is said to have, made on this machine: what `eventmill generate --create` leaves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from eventmill.config import Settings, Topic
from eventmill.errors import InvalidInput
from eventmill.events import DecodeError, PathTable
from eventmill.events.topics import decoder

WRITTEN = "org.dcache.file.written"


class Appearing:
    """`directory`: what dCache calls the directory of all files. Raises InvalidInput unless `[[paths]]` says where this
    machine has it: nothing must be written anywhere else."""

    def __init__(self, settings: Settings, topic: str | None, directory: str) -> None:
        sources = [(row.source or row.subject).rstrip("/") for row in settings.paths]
        if not any(directory == source or directory.startswith(f"{source}/") for source in sources):
            known = ", ".join(sources) or "none"
            raise InvalidInput(
                f"--create: no row of [[paths]] says where this machine has {directory}: give --config, and a "
                f"--directory below one of its sources ({known})"
            )
        self._paths = PathTable(settings.paths)
        rows = [row for row in settings.topics if row.name == topic and row.decoder == "dcache"]
        self._decoder = decoder(rows[0] if rows else Topic(name="-", decoder="dcache"), self._paths)

    def see_to(self, records: Sequence[bytes]) -> None:
        """Make the files that these records say were written. Raises InvalidInput if one can't be made."""
        for record in records:
            try:
                fields = self._decoder.fields(record)
            except DecodeError:
                continue
            if fields is not None and fields["type"] == WRITTEN and fields.get("subject"):
                _make(Path(self._paths.to_local(fields["subject"])), fields["data"]["size"])


def _make(path: Path, size: int) -> None:
    """A file of zeros that takes no room on the disk; one that is there already stays."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            os.truncate(file.fileno(), size)
    except FileExistsError:
        return
    except OSError as e:
        raise InvalidInput(f"--create: {path} can't be made: {e.strerror}") from e
