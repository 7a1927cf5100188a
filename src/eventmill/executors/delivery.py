"""What becomes of the files of a job that has ended, in whatever batch system: its result is read, its outputs are
delivered, its report is made.

A job's room is a directory with `scratch` (what the job has left), `stdout`, `stderr`, and `inputs.json` (what was in
`scratch` before it ran; none if there was nothing). Everything here can be done again from the start, and is, when the
server is killed in the middle: nothing is taken away from the room. Blocking; used in threads, for different jobs at
once.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import orjson

from eventmill.entities.submit import BoundDescription
from eventmill.executors import jobs
from eventmill.executors.base import Finished

LOG_TAIL_BYTES = 64 << 10
"""Of each of stdout and stderr, at most; an action's `logs` limit may make it less."""
INPUTS_FILE = "inputs.json"


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
        """Deliver what the job has left, and say how it ended."""
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
        try:
            descriptor = os.open(room / "scratch" / jobs.RESULT_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        with open(descriptor, "rb") as file:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            return file.read(self._result_bytes_max + 1) if regular else None

    def _deliver(self, job: Job, end: jobs.Ending, room: Path, usage: dict[str, Any]) -> str | None:
        """Bring stdout, stderr and output files where they belong; what went wrong, if anything."""
        if end.exit_code is None and end.signal is None:
            return None
        base = self._results / job.namespace / (job.description.initialdir or job.activation)
        delivered = False
        try:
            for source, target in self._deliveries(job, end, room):
                _place(source, self._target(base, target), job.activation[:8])
                delivered = True
        except OSError as e:
            if end.exit_code != 0:
                return None  # what the job says of its failure is worth more than what is missing of it
            return f"can't deliver the job's output files: {e.strerror}: {os.path.basename(str(e.filename))}"
        if delivered:
            usage["output_dir"] = str(base)
        return None

    def _deliveries(self, job: Job, end: jobs.Ending, room: Path) -> Iterator[tuple[Path, str]]:
        """(file or directory, where it is to go) of one job."""
        description = job.description
        for name, target in (("stdout", description.output), ("stderr", description.error)):
            if target and target != "/dev/null":
                yield room / name, target
        if description.when_to_transfer_output == "ON_SUCCESS" and end.exit_code != 0:
            return
        names = description.outputs
        if names is None:
            names = tuple({**dict.fromkeys(_new_files(room)), **dict.fromkeys(description.remaps)})
        for name in names:
            base = os.path.basename(name.rstrip("/"))
            yield room / "scratch" / name, description.remaps.get(name, description.remaps.get(base, base))

    def _target(self, base: Path, path: str) -> Path:
        """Where a file goes. Links on the way may not lead out of the allowed directories."""
        target = base / path
        parent = Path(os.path.realpath(target.parent))
        if not any(parent.is_relative_to(root) for root in (os.path.realpath(self._results), *self._roots)):
            raise PermissionError(errno.EPERM, "leads out of the directories that jobs may name", path)
        return parent / target.name


def _place(source: Path, target: Path, mark: str) -> None:
    """Put a file or a directory at its target, durably, and each file all at once."""
    if source.is_symlink():
        raise PermissionError(errno.EPERM, "it is a link", str(source))
    if source.is_dir():
        for entry in sorted(source.iterdir()):
            if not entry.is_symlink():
                _place(entry, target / entry.name, mark)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name[:200]}.{mark}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except FileNotFoundError:
        raise
    except OSError:  # another file system
        shutil.copy2(source, part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    part.unlink(missing_ok=True)  # to replace a file by a link to itself leaves both
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _new_files(room: Path) -> list[str]:
    """Files at the top of the scratch directory that the job has made or changed."""
    try:
        before = orjson.loads((room / INPUTS_FILE).read_bytes())
    except FileNotFoundError:
        before = {}
    return sorted(
        entry.name
        for entry in os.scandir(room / "scratch")
        if entry.is_file(follow_symlinks=False)
        and entry.name not in (jobs.RESULT_FILE, jobs.PARAMS_FILE)
        and before.get(entry.name) != entry.stat(follow_symlinks=False).st_mtime_ns
    )


def _tail(path: Path, size: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size).decode(errors="replace")
    except OSError:
        return ""


def _lines(stream: str, text: str, time_ms: int) -> tuple[str, ...]:
    """OpenWhisk's log lines. The time is the end's: nobody has looked at the clock for each line."""
    stamp = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return tuple(f"{stamp} {stream}: {line}" for line in text.splitlines())
