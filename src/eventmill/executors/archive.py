"""Unpacking of archives that strangers have made, within bounds.

Owns the rules for what a zip may contain: regular files and directories below its own root, stored or deflated, so many
of them, so many bytes. Sizes are counted while unpacking, never believed. It must never write outside `target`.
Blocking: call it in a thread. Two calls for different targets may run at once.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from eventmill.errors import InvalidArchive

CHUNK_BYTES = 1 << 16
DIRECTORY_ENTRY_BYTES_MAX = 46 + 1024
"""Room for one member in a zip's directory: the fixed part, a name and some extra fields."""


def unpack(data: bytes, target: Path, *, files_max: int, bytes_max: int) -> None:
    """Unpack the zip `data` as the directory `target`, which must not exist, or be an empty directory.

    It is unpacked beside it and renamed, so that `target` has all of it or nothing. Executable bits are kept.
    Raises InvalidArchive, which names the offending member, if it is no zip, has more than `files_max` members or
    more than `bytes_max` bytes, or a member that is neither a file nor a directory below the root.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix=".unpack-", dir=target.parent))
    try:
        _unpack_members(data, room, files_max, bytes_max)
        room.chmod(0o755)
        room.rename(target)
    except BaseException:
        shutil.rmtree(room, ignore_errors=True)
        raise


def _unpack_members(data: bytes, room: Path, files_max: int, bytes_max: int) -> None:
    with opened(data, files_max=files_max) as archive:
        bytes_left = bytes_max
        for member in archive.infolist():
            bytes_left -= _unpack_member(archive, member, room, bytes_left)


@contextmanager
def opened(data: bytes, *, files_max: int) -> Iterator[zipfile.ZipFile]:
    """The zip `data`, to be read. Raises InvalidArchive, also for what turns out while it is being read."""
    check_directory(data, files_max)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if (count := len(archive.infolist())) > files_max:
                raise InvalidArchive(f"the archive has {count} members, more than the {files_max} allowed")
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as e:
        raise InvalidArchive(f"the archive can't be read: {e}") from e


def read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, *, bytes_max: int) -> bytes:
    """What a member contains. Raises InvalidArchive as `unpack` does."""
    _check(member)
    content = io.BytesIO()
    _copy(archive, member, content, bytes_max)
    return content.getvalue()


def check_directory(data: bytes, files_max: int) -> None:
    """Refuse a zip whose directory alone would fill the memory, before `zipfile` reads it whole."""
    end = data[-22:]
    if not (end[:4] == b"PK\5\6" and end[20:] == b"\0\0"):  # with a comment it is somewhere in the last 64 KiB
        window = data[-(22 + 0xFFFF) :]
        end = window[window.rfind(b"PK\5\6") :]
    if end[:4] != b"PK\5\6" or len(end) < 22:
        raise InvalidArchive("this is not a zip archive")
    position = len(data) - len(end)
    if data[max(position - 20, 0) : position].startswith(b"PK\6\7"):
        raise InvalidArchive("zip64 archives are not accepted")
    if int.from_bytes(end[12:16], "little") > (files_max + 1) * DIRECTORY_ENTRY_BYTES_MAX:
        raise InvalidArchive(f"the archive's directory is too large for the {files_max} members allowed")


def _unpack_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, room: Path, bytes_max: int) -> int:
    """Write one member; its size in bytes."""
    path = room / _relative(member)
    try:
        if member.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            return 0
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = 0o755 if member.external_attr >> 16 & 0o111 else 0o644
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with open(descriptor, "wb") as file:
            return _copy(archive, member, file, bytes_max)
    except (FileExistsError, NotADirectoryError) as e:
        raise InvalidArchive(f"the archive has two members in one place: '{_shown(member)}'") from e
    except OSError as e:
        if e.errno != errno.ENAMETOOLONG:  # a full disk is not the archive's fault
            raise
        raise InvalidArchive(f"the name of '{_shown(member)}' is too long") from e


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: BinaryIO, bytes_max: int) -> int:
    size = 0
    with archive.open(member) as content:
        while chunk := content.read(CHUNK_BYTES):
            size += len(chunk)
            if size > bytes_max:
                raise InvalidArchive(f"the archive's contents are too large: the limit is passed at '{_shown(member)}'")
            file.write(chunk)
    return size


def _relative(member: zipfile.ZipInfo) -> PurePosixPath:
    """The member's place below the root, if it is allowed to have one."""
    name = member.orig_filename
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        raise InvalidArchive(f"'{_shown(member)}' is not a path below the archive's root")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InvalidArchive(f"'{_shown(member)}' is a link or a device; only files and directories are accepted")
    _check(member)
    return path


def _check(member: zipfile.ZipInfo) -> None:
    """It can be read."""
    if member.flag_bits & 0x1:
        raise InvalidArchive(f"'{_shown(member)}' is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InvalidArchive(f"'{_shown(member)}' is neither stored nor deflated")


def _shown(member: zipfile.ZipInfo) -> str:
    """The member's name, fit for a message."""
    return ascii(member.orig_filename)[1:-1][:200]
