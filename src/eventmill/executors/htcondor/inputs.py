"""What a job reads of its namespace's results: brought into its room before HTCondor is told of it.

HTCondor reads inputs later, with the server's rights, and follows links then. A namespace may change what is in its
results at any time; so what is checked is an open file, and that file gets another name in the room, where nobody but
the server can put something else in its place. On another file system, or where rooms change their owner, it is copied.
Blocking.
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

from eventmill.errors import InvalidDescription
from eventmill.executors.htcondor.description import Sources

DIRECTORY = "inputs"
"""In the room: a directory for each of them, since several may have the same name."""


def take_in(files: Sources, room: Path, results: Path, *, copies: bool) -> Sources:
    """The same files, those below `results` (a full path without links) in the room. Raises InvalidDescription for one
    that has gone, or leads elsewhere, since it was found."""
    within = f"{results}/"
    if not any(path and path.startswith(within) for path in (files.executable, files.input, *files.inputs)):
        return files
    place = room / DIRECTORY
    shutil.rmtree(place, ignore_errors=True)  # of a server that was killed
    taking = _Taking(place, within, copies)
    return replace(
        files, executable=taking.one(files.executable, "executable"),
        input=None if files.input is None else taking.one(files.input, "input"),
        inputs=tuple(taking.one(path, "transfer_input_files") for path in files.inputs),
    )  # fmt: skip


class _Taking:
    def __init__(self, place: Path, results: str, copies: bool) -> None:
        self._place = place
        self._results = results
        self._copies = copies
        self._count = 0

    def one(self, path: str, command: str) -> str:
        """Where the file, or directory, is to be read; a `/` at the end stays."""
        if not path.startswith(self._results):
            return path
        self._count += 1
        target = self._place / str(self._count)
        target.mkdir(parents=True)
        try:
            self._bring(path.rstrip("/"), target / os.path.basename(path.rstrip("/")))
        except OSError as e:
            raise InvalidDescription(f"{command}: can't take {path}: {e.strerror or e}") from e
        return f"{target / os.path.basename(path.rstrip('/'))}{'/' if path.endswith('/') else ''}"

    def _bring(self, path: str, target: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not os.readlink(_open(descriptor)).startswith(self._results):
                raise OSError("it leads elsewhere by now")
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISREG(mode):
                self._file(descriptor, target)
            elif stat.S_ISDIR(mode):
                target.mkdir()
                for name in os.listdir(descriptor):
                    self._bring(f"{path}/{name}", target / name)
            else:
                raise OSError("it is neither a file nor a directory")
        finally:
            os.close(descriptor)

    def _file(self, descriptor: int, target: Path) -> None:
        if not self._copies:
            directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                # with a descriptor for the target it is the open file that is linked, not the link that leads to it
                return os.link(_open(descriptor), target.name, dst_dir_fd=directory, follow_symlinks=True)
            except OSError:  # another file system
                pass
            finally:
                os.close(directory)
        with open(descriptor, "rb", closefd=False) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)
        target.chmod(stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o755)


def _open(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"
