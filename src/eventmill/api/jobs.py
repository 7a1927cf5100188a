"""The check of a job's code when it is uploaded: a small enough archive, with a description that is accepted."""

from __future__ import annotations

import binascii
import struct
import zlib
from base64 import b64decode

from eventmill.api.errors import malformed
from eventmill.config import Limits
from eventmill.errors import InvalidArchive, InvalidDescription
from eventmill.executors import archive, jobs


def check(code: str, limits: Limits) -> None:
    """Raises Refusal: no base64, no zip, too much in it, no description, or one that is refused (with its line).

    Blocking, and slow for a large archive: call it in a thread.
    """
    raw = code.encode()
    try:
        archive.check_directory(b64decode(raw, validate=True), limits.archive_files)
        jobs.read_archive(raw)
    except InvalidDescription as e:
        raise malformed(f"{jobs.DESCRIPTION_FILE}, {e}") from e
    except (InvalidArchive, binascii.Error, zlib.error, struct.error) as e:
        raise malformed(f"a job's code is a zip archive in base64: {e}") from e
