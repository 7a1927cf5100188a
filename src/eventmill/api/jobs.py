"""The check of a job's code when it is uploaded: a small enough archive, with a description that its pool accepts."""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eventmill.api.errors import malformed
from eventmill.config import Limits, Pool
from eventmill.entities.submit import ALLOWED, NEVER
from eventmill.errors import InvalidDescription
from eventmill.executors import jobs
from eventmill.executors.htcondor.description import allowed_commands
from eventmill.executors.htcondor.endings import read_policy


@dataclass(frozen=True, slots=True)
class Place:
    """Where the jobs of an action run: their pool by its name, None if the server has none of this name."""

    name: str
    pool: Pool | None
    namespace: str

    @classmethod
    def of(cls, annotations: Mapping[str, Any], pools: Mapping[str, Pool], namespace: str) -> Place:
        """The pool that an action's annotation chooses, or else the first."""
        chosen = annotations.get("pool")
        name = chosen if isinstance(chosen, str) else next(iter(pools))
        return cls(name, pools.get(name), namespace)

    @property
    def commands(self) -> frozenset[str]:
        """The submit commands that a description may have there."""
        if self.pool is None or self.pool.kind != "htcondor":
            return ALLOWED
        return allowed_commands(self.pool.commands, self.namespace)

    def why(self, command: str) -> str:
        """What else is to be said of a command that is not taken."""
        if command in NEVER:
            return "; what runs, when, as whom and with which files is for Eventmill to say, and no pool can allow it"
        if command and self.pool is not None and self.pool.kind == "htcondor":
            return f"; if HTCondor has it, the server's configuration can allow it (pools.{self.name}.commands)"
        return ""


def check(code: str, annotations: Mapping[str, Any], place: Place, limits: Limits) -> None:
    """Raises Refusal: no base64, no zip, too much in it, no description, or one that is refused (with its line).

    Blocking, and slow for a large archive: call it in a thread.
    """
    try:
        read_policy(annotations.get("on_hold"))
    except InvalidDescription as e:
        raise malformed(f"annotation 'on_hold': {e}") from e
    try:
        jobs.read_archive(code.encode(), files_max=limits.archive_files, allowed=place.commands)
    except InvalidDescription as e:
        raise malformed(f"{jobs.DESCRIPTION_FILE}, {e}{place.why(e.command)}") from e
    except (ValueError, OSError, zlib.error, struct.error, lzma.LZMAError) as e:  # zipfile's, for archives that lie
        raise malformed(f"a job's code is a zip archive in base64: {e}") from e
