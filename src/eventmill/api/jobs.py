"""The check of a job's code when it is uploaded: a small enough archive, with a description that is accepted."""

from __future__ import annotations

import lzma
import struct
import zlib

from eventmill.api.errors import malformed
from eventmill.config import Limits
from eventmill.errors import InvalidDescription
from eventmill.executors import jobs


def check(code: str, limits: Limits) -> None:
    """Raises Refusal: no base64, no zip, too much in it, no description, or one that is refused (with its line).

    Blocking, and slow for a large archive: call it in a thread.
    """
    try:
        jobs.read_archive(code.encode(), files_max=limits.archive_files)
    except InvalidDescription as e:
        raise malformed(f"{jobs.DESCRIPTION_FILE}, {e}") from e
    except (ValueError, OSError, zlib.error, struct.error, lzma.LZMAError) as e:  # zipfile's, for archives that lie
        raise malformed(f"a job's code is a zip archive in base64: {e}") from e
