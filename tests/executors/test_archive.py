"""Archives from strangers: what is unpacked, and what never is."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from eventmill.errors import InvalidArchive
from eventmill.executors.archive import unpack

Members = dict[str, bytes]


def zipped(members: Members, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def with_mode(name: str, mode: int, content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, content)
    return buffer.getvalue()


def test_files_and_directories_with_their_executable_bits(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = b"made by a test"
        archive.writestr("__main__.py", "x = 1")
        archive.writestr("deep/er/data.bin", b"\0" * 100)
        archive.mkdir("empty")
        tool = zipfile.ZipInfo("tool.sh")
        tool.external_attr = (stat.S_IFREG | 0o755) << 16
        archive.writestr(tool, "#!/bin/sh")
    target = tmp_path / "new" / "code"
    unpack(buffer.getvalue(), target, files_max=10, bytes_max=1000)
    assert (target / "__main__.py").read_text() == "x = 1"
    assert (target / "deep/er/data.bin").stat().st_size == 100
    assert (target / "empty").is_dir()
    assert (target / "tool.sh").stat().st_mode & 0o777 == 0o755
    assert not (target / "__main__.py").stat().st_mode & 0o111
    assert [p.name for p in target.parent.iterdir()] == ["code"]


def test_an_empty_directory_may_be_the_target_a_full_one_not(tmp_path: Path) -> None:
    unpack(zipped({"a": b"1"}), tmp_path / "t", files_max=1, bytes_max=1)
    with pytest.raises(OSError, match="not empty"):
        unpack(zipped({"b": b"1"}), tmp_path / "t", files_max=1, bytes_max=1)
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["a"]


def _lying_about_its_size() -> bytes:
    data = bytearray(zipped({"bomb": b"\0" * 50_000}))
    for signature, offset in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        place = data.rfind(signature) + offset
        data[place : place + 4] = struct.pack("<I", 10)
    return bytes(data)


def _directory_of(members: int) -> bytes:
    """Nothing but a directory of nameless members: small as a file, large once it is parsed."""
    entries = (b"PK\1\2" + b"\0" * 42) * members
    return entries + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, members & 0xFFFF, members & 0xFFFF, len(entries), 0, 0)


def _damaged() -> bytes:
    data = bytearray(zipped({"a": bytes(range(256)) * 10}, zipfile.ZIP_STORED))
    data[50] ^= 0xFF
    return bytes(data)


def _zip64() -> bytes:
    data = zipped({"a": b""})
    return data[:-22] + b"PK\6\7" + b"\0" * 16 + data[-22:]


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "traversal": (lambda: zipped({"ok": b"", "../evil": b"x"}), r"'\.\./evil' is not a path below"),
    "hidden traversal": (lambda: zipped({"a/../../evil": b"x"}), "is not a path below"),
    "absolute": (lambda: zipped({"/etc/evil": b"x"}), "'/etc/evil' is not a path below"),
    "backslash": (lambda: zipped({"..\\evil": b"x"}), "is not a path below"),
    "control characters": (lambda: zipped({"a\nb": b"x"}), "is not a path below"),
    "root itself": (lambda: zipped({"./": b""}), "is not a path below"),
    "symlink": (lambda: with_mode("link", stat.S_IFLNK | 0o777, b"/etc/passwd"), "'link' is a link or a device"),
    "fifo": (lambda: with_mode("pipe", stat.S_IFIFO | 0o600), "'pipe' is a link or a device"),
    "too many members": (lambda: zipped({str(i): b"" for i in range(11)}), "11 members, more than the 10"),
    "deflate bomb": (lambda: zipped({"bomb": b"\0" * 10_000_000}), "too large"),
    "many small": (lambda: zipped({str(i): b"x" * 999 for i in range(10)}), "too large"),
    "lying size": (_lying_about_its_size, "can't be read|too large"),
    "huge directory": (lambda: _directory_of(100_000), "directory is too large"),
    "zip64": (_zip64, "zip64"),
    "file and directory": (lambda: zipped({"a": b"", "a/b": b""}), "two members in one place"),
    "long name": (lambda: zipped({"n" * 300: b""}), "is too long"),
    "damaged": (_damaged, "can't be read"),
    "cut off": (lambda: zipped({"a": b"x"})[:-30], "not a zip"),
    "no zip": (lambda: b"hello", "not a zip"),
    "nothing": (lambda: b"", "not a zip"),
    "bzip2": (lambda: zipped({"a": b"x"}, zipfile.ZIP_BZIP2), "neither stored nor deflated"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_change_nothing(tmp_path: Path, name: str) -> None:
    make, message = HOSTILE[name]
    with pytest.raises(InvalidArchive, match=message):
        unpack(make(), tmp_path / "inner" / "target", files_max=10, bytes_max=5000)
    assert [p.name for p in tmp_path.rglob("*")] == ["inner"]


def test_duplicate_members_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", "2")
    with pytest.raises(InvalidArchive, match="two members"):
        unpack(buffer.getvalue(), tmp_path / "target", files_max=10, bytes_max=100)
