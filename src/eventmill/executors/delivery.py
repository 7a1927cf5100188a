"""What becomes of the files of a job that has ended, in whatever batch system: its result is read, its outputs are
delivered, its report is made.

A job's room is a directory with `scratch` (what the job has left), `stdout`, `stderr`, and `inputs.json` (what was in
`scratch` before it ran; none if there was nothing). Everything here can be done again from the start, and is, when the
server is killed in the middle: nothing is taken away from the room. Blocking; used in threads, for different jobs at
once.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Protocol

import orjson

from eventmill.entities.submit import BoundDescription
from eventmill.executors import jobs
from eventmill.executors.base import Finished

LOG_TAIL_BYTES = 64 << 10
"""Of each of stdout and stderr, at most; an action's `logs` limit may make it less."""
INPUTS_FILE = "inputs.json"
AGAIN_S, AGAIN_MAX_S = 2.0, 60.0
"""The first pause, and the longest, before a delivery is done again; each is twice as long as the one before."""

_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE})
"""What goes by, or is somebody's to repair: a full disk, a file server that is away."""
_UNLINKED = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Job(Protocol):
    """What has to be known of a job here."""

    @property
    def activation(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def namespace(self) -> str: ...
    @property
    def description(self) -> BoundDescription: ...
    @property
    def logs_bytes(self) -> int: ...


async def repeated(deliver: Callable[[], Awaitable[Finished]], waits: Callable[[str], None]) -> Finished:
    """The report that `deliver` makes, tried until what is in its way has passed: a job that has run is not run again
    for a full disk. `waits(why)`: it has to be tried again, which is said once for each reason. Raises what does not
    pass."""
    pause_s, said = AGAIN_S, 0
    while True:
        try:
            return await deliver()
        except OSError as e:
            if e.errno not in _PASSING:
                raise
            if e.errno != said:
                waits(f"what it has left can't be delivered: {e.strerror}")
            said = e.errno
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, AGAIN_MAX_S)


class Delivery:
    """`results`: what relative output files are below, by namespace. `roots`: where absolute ones may lie."""

    def __init__(self, results: Path, roots: Sequence[str], *, result_bytes_max: int) -> None:
        self._results = results.absolute()
        self._roots = [os.path.realpath(root) for root in roots]
        self._result_bytes_max = result_bytes_max

    def report(
        self, job: Job, ending: jobs.Ending, room: Path, handle: str, *, usage: dict[str, Any], started_ms: int,
        ended_ms: int,
    ) -> Finished:  # fmt: skip
        """Deliver what the job has left, and say how it ended. Raises OSError if what is in the way of it may pass: it
        is to be `repeated`."""
        problem = self._deliver(job, ending, room, usage)
        ending = replace(ending, failed=ending.failed or problem)
        tail = min(LOG_TAIL_BYTES, job.logs_bytes)
        stdout, stderr = _tail(room / "stdout", tail), _tail(room / "stderr", tail)
        outcome = jobs.conclude(
            ending, self._left(room), usage, stderr=stderr, result_bytes_max=self._result_bytes_max
        )  # fmt: skip
        return Finished(
            activation=job.activation, attempt=job.attempt, status=outcome.status, result=outcome.result,
            final=outcome.final, retry_after_s=outcome.retry_after_s, started_ms=started_ms or ended_ms,
            ended_ms=ended_ms, handle=handle, timed_out=ending.timed_out,
            logs=(*_lines("stdout", stdout, ended_ms), *_lines("stderr", stderr, ended_ms)), usage=usage,
        )  # fmt: skip

    def _left(self, room: Path) -> bytes | None:
        """The result file, at most a byte more than is allowed; what is no plain file is none."""
        with _regular(room / "scratch" / jobs.RESULT_FILE) as file:
            return None if file is None else file.read(self._result_bytes_max + 1)

    def _deliver(self, job: Job, end: jobs.Ending, room: Path, usage: dict[str, Any]) -> str | None:
        """Bring stdout, stderr and output files where they belong; what went wrong, if anything."""
        if end.exit_code is None and end.signal is None:
            return None
        base = self._results / job.namespace / (job.description.initialdir or job.activation)
        delivered = False
        try:
            for source, target in self._deliveries(job, end, room):
                self._bring(room, source, self._target(base, target), job.activation[-8:])
                delivered = True
        except OSError as e:
            if end.exit_code != 0:
                return None  # what the job says of its failure is worth more than what is missing of it
            if e.errno in _PASSING:
                raise
            name = os.path.basename(os.fsencode(str(e.filename))).decode(errors="replace")
            return f"can't deliver the job's output files: {e.strerror}: {name}"
        if delivered:
            usage["output_dir"] = str(base)
        return None

    def _bring(self, room: Path, source: str, target: Path, mark: str) -> None:
        directory = os.open(room, os.O_RDONLY | os.O_DIRECTORY)
        try:
            opened = _opened(source, directory)
        finally:
            os.close(directory)
        try:
            _place(opened, target, mark)
        finally:
            os.close(opened)

    def _deliveries(self, job: Job, end: jobs.Ending, room: Path) -> Iterator[tuple[str, str]]:
        """(file or directory in the room, where it is to go) of one job."""
        description = job.description
        for name, target in (("stdout", description.output), ("stderr", description.error)):
            if target and target != "/dev/null":
                yield name, target
        if description.when_to_transfer_output == "ON_SUCCESS" and end.exit_code != 0:
            return
        names = description.outputs
        if names is None:
            names = tuple({**dict.fromkeys(_new_files(room)), **dict.fromkeys(description.remaps)})
        for name in names:
            base = os.path.basename(name.rstrip("/"))
            yield f"scratch/{name}", description.remaps.get(name, description.remaps.get(base, base))

    def _target(self, base: Path, path: str) -> Path:
        """Where a file goes. Links on the way may not lead out of the allowed directories."""
        target = base / path
        parent = Path(os.path.realpath(target.parent))
        if not any(parent.is_relative_to(root) for root in (os.path.realpath(self._results), *self._roots)):
            raise PermissionError(errno.EPERM, "leads out of the directories that jobs may name", path)
        return parent / target.name


def _opened(name: str, directory: int) -> int:
    """A file or directory below an open directory, through no link. Raises OSError."""
    descriptor = os.dup(directory)
    for part in PurePath(name).parts:
        try:
            inner = os.open(part, _UNLINKED, dir_fd=descriptor)
        except OSError as e:
            if e.errno == errno.ELOOP:
                raise PermissionError(errno.EPERM, "it is a link", name) from e
            raise
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


def _place(source: int, target: Path, mark: str) -> None:
    """Put an open file or directory at its target, durably, and each file all at once. Whatever is neither, below it,
    is left out."""
    mode = os.fstat(source).st_mode
    if stat.S_ISREG(mode):
        return _place_file(source, target, mark)
    if not stat.S_ISDIR(mode):
        raise PermissionError(errno.EPERM, "it is neither a file nor a directory", target.name)
    for name in sorted(os.listdir(source)):
        if stat.S_IFMT(os.stat(name, dir_fd=source, follow_symlinks=False).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            continue
        inner = _opened(name, source)
        try:
            _place(inner, target / name, mark)
        finally:
            os.close(inner)


def _place_file(source: int, target: Path, mark: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name[:200]}.{mark}.part")
    part.unlink(missing_ok=True)
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            # with a descriptor for the target it is the open file that is linked, not the link that leads to it
            os.link(f"/proc/self/fd/{source}", part.name, dst_dir_fd=directory, follow_symlinks=True)
            os.fsync(source)
        except OSError:  # another file system
            _copy(source, part)
        os.replace(part, target)
        part.unlink(missing_ok=True)  # to replace a file by a link to itself leaves both
        os.fsync(directory)
    finally:
        os.close(directory)


def _copy(source: int, part: Path) -> None:
    part.unlink(missing_ok=True)
    was = os.fstat(source)
    with open(source, "rb", closefd=False) as file, part.open("xb") as copy:
        file.seek(0)
        shutil.copyfileobj(file, copy)
        copy.flush()
        os.fchmod(copy.fileno(), stat.S_IMODE(was.st_mode) & 0o777)
        os.utime(copy.fileno(), ns=(was.st_atime_ns, was.st_mtime_ns))
        os.fsync(copy.fileno())


def _new_files(room: Path) -> list[str]:
    """Files at the top of the scratch directory that the job has made or changed."""
    with _regular(room / INPUTS_FILE) as file:
        before = {} if file is None else orjson.loads(file.read())
    return sorted(
        entry.name
        for entry in os.scandir(room / "scratch")
        if entry.is_file(follow_symlinks=False)
        and entry.name not in (jobs.RESULT_FILE, jobs.PARAMS_FILE)
        and before.get(entry.name) != entry.stat(follow_symlinks=False).st_mtime_ns
    )


def _tail(path: Path, size: int) -> str:
    with _regular(path) as file:
        if file is None:
            return ""
        file.seek(max(0, os.fstat(file.fileno()).st_size - size))
        return file.read(size).decode(errors="replace")


@contextmanager
def _regular(path: Path) -> Iterator[BinaryIO | None]:
    """A file, open; None if there is none, or something else. A pipe would never come to its end."""
    try:
        descriptor = os.open(path, _UNLINKED)
    except OSError:
        yield None
        return
    with open(descriptor, "rb") as file:
        yield file if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def _lines(stream: str, text: str, time_ms: int) -> tuple[str, ...]:
    """OpenWhisk's log lines. The time is the end's: nobody has looked at the clock for each line."""
    stamp = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return tuple(f"{stamp} {stream}: {line}" for line in text.splitlines())
