"""What the queue has on the access point: a room for each job, the codes, and a number of its own.

    server             the number that jobs of this server have
    schedd             what the schedd that has them calls itself
    namespace          the one that has jobs, where there are no tokens
    identities/        the helpers' locks and tokens
    code/<digest>/     an archive, unpacked; read by all jobs of that code
                       (and our wrapper, for jobs that report their own ends)
    log/jobs.log       the jobs' events, where the pool's own log can't be read
    facts/             what has to be known of a job when it has ended, if there is something
    rooms/<activation>.<attempt>/
        params.json    transferred in
        .eventmill-end.json  transferred in: where to report the end, and the right to do so
        inputs/        files of the namespace's results that it reads
        scratch/       what the job leaves arrives here
        stdout, stderr

A room is `delivery`'s: HTCondor takes the parameters from it and puts there what the job leaves. It is made before the
job is submitted and goes when its end is recorded. Blocking; used in threads, for different jobs at once.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path

import orjson

from eventmill.entities.submit import BoundDescription
from eventmill.errors import InvalidInput, Unavailable
from eventmill.executors import archive, jobs
from eventmill.executors.base import CodeSource
from eventmill.executors.delivery import LOG_TAIL_BYTES
from eventmill.executors.htcondor import description, inputs
from eventmill.executors.htcondor.endings import Policy, Release
from eventmill.executors.htcondor.wrapper import ORDER_FILE
from eventmill.executors.jobs import PARAMS_FILE, RESULT_FILE, JobArchive

LOG_BYTES_MAX = 64 << 20
"""Of our own job log: some 8,000 jobs."""
LOGS_KEPT = 2
ARCHIVES_KEPT = 16
"""Descriptions that are kept read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What has to be known of an attempt when it has ended."""

    activation: str
    attempt: int
    namespace: str
    code: str
    """Digest of the archive."""
    description: BoundDescription
    logs_bytes: int
    on_hold: Policy = "fail"

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing special about what becomes of its files."""
        d = self.description
        special = d.output, d.error, d.initialdir, d.remaps, d.when_to_transfer_output != "ON_EXIT"
        return not any(special) and d.outputs is None and self.logs_bytes >= LOG_TAIL_BYTES and self.on_hold == "fail"

    def numbered(self, id: str) -> Job:
        """With the job's own numbers in the names of its files."""
        cluster, proc = id.split(".")
        return replace(self, description=description.numbered(self.description, int(cluster), int(proc)))

    def to_json(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, raw: bytes) -> Job:
        values = orjson.loads(raw)
        bound = values.pop("description")
        for name in ("arguments", "inputs", "outputs"):
            bound[name] = None if bound[name] is None else tuple(bound[name])
        if isinstance(values["on_hold"], dict):
            values["on_hold"] = Release(**values["on_hold"])
        return cls(description=BoundDescription(**bound), **values)


class Rooms:
    """The directory of one queue, which belongs to one server at a time.

    `spool`: where rooms and code are instead, so that the accounts of the jobs' owners can get there: each room is its
    job's owner's until the job has ended.
    """

    def __init__(self, root: Path, *, files_max: int, bytes_max: int, spool: Path | None = None) -> None:
        self._root = root
        self._place = root if spool is None else spool.absolute()
        self._shared = spool is not None
        self._files_max = files_max
        self._bytes_max = bytes_max
        self._lock: int | None = None
        self._unpacking = threading.Lock()
        self._archives: dict[tuple[str, frozenset[str]], JobArchive] = {}

    def open(self) -> str:
        """Take the directory; the number that jobs of this server have. Codes go when there is no job. Raises
        Unavailable if another server has it."""
        for name in ("log", "identities", "facts"):
            (self._root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, mode in (("rooms", 0o711), ("code", 0o711)):
            (self._place / name).mkdir(parents=True, exist_ok=True)
            (self._place / name).chmod(mode if self._shared else 0o700)
        self._lock = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise Unavailable(f"another server uses the job directory {self._root}") from None
        self._drop_codes()
        if not self.recall("server"):
            self.remember("server", secrets.token_hex(8))
        return self.recall("server")

    @property
    def place(self) -> Path:
        """The directory of all rooms."""
        return self._place / "rooms"

    def is_empty(self) -> bool:
        """Whether there is no job, as far as rooms tell."""
        return not any(self.place.iterdir())

    def has(self, activation: str, attempt: int) -> bool:
        return self._path(activation, attempt).exists()

    def recall(self, name: str) -> str:
        """What `remember` has written; empty if it has not."""
        file = self._root / name
        return file.read_text() if file.exists() else ""

    def remember(self, name: str, text: str) -> None:
        """Keep a line, durably, until it is replaced."""
        part = self._root / f"{name}.part"
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._root / name)
        directory = os.open(self._root, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def room(self, job: Job) -> Path:
        return self._path(job.activation, job.attempt)

    def _path(self, activation: str, attempt: int) -> Path:
        return self.place / f"{activation}.{attempt}"

    def furnish(self, job: Job, params: bytes, order: bytes | None = None) -> Path:
        """Make the room of a job that is about to be submitted. `order`: what its wrapper is told."""
        room = self.room(job)
        if self._shared:
            shutil.rmtree(room, ignore_errors=True)  # it may have been somebody's already
        furnish(room, job.description, params)
        if order is not None:
            with open(os.open(room / ORDER_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(order)
        if not job.is_plain:
            self._facts(job.activation, job.attempt).write_bytes(job.to_json())
        return room

    def take_in(self, job: Job, files: description.Sources, results: Path) -> description.Sources:
        """The same files, those below `results` in the furnished room. Raises InvalidDescription."""
        return inputs.take_in(files, self.room(job), Path(os.path.realpath(results)), copies=self._shared)

    def hand_over(self, job: Job, owner: str) -> None:
        """The room is ready, and its job's owner's, where that matters. Raises InvalidInput if there is no account of
        this name."""
        if self._shared:
            _give(self.room(job), _account(owner))

    def _facts(self, activation: str, attempt: int) -> Path:
        """Not in the room, which may be another account's."""
        return self._root / "facts" / f"{activation}.{attempt}.json"

    def was_used(self, job: Job) -> bool:
        """Whether HTCondor has put something there: it always does, before a job ends."""
        return (self.room(job) / "stdout").exists()

    def take_back(self, job: Job) -> None:
        """The job has ended: what it has left is the server's account's from now on."""
        if self._shared and self.room(job).exists():
            _give(self.room(job), (os.getuid(), os.getgid()))
            _without_links(self.room(job))

    def job(self, activation: str, attempt: int, namespace: str) -> Job:
        """A job as its room remembers it; a plain one leaves nothing to be remembered."""
        try:
            return Job.from_json(self._facts(activation, attempt).read_bytes())
        except (OSError, KeyError, TypeError, ValueError):  # none, or another version's
            bare = BoundDescription(executable="")
            return Job(
                activation=activation, attempt=attempt, namespace=namespace, code="", description=bare,
                logs_bytes=LOG_TAIL_BYTES,
            )  # fmt: skip

    def clear(self, gone: Sequence[Job]) -> None:
        """The ends of these are recorded."""
        for job in gone:
            shutil.rmtree(self.room(job), ignore_errors=True)
            self._facts(job.activation, job.attempt).unlink(missing_ok=True)

    def clear_left(self, kept: Collection[tuple[str, int]], after_s: float) -> None:
        """Clear rooms of jobs that are none of these (activation, attempt), and older: a server was killed when a
        job's end had been recorded, or before it was submitted."""
        names = {f"{activation}.{attempt}" for activation, attempt in kept}
        before = time.time() - after_s
        for entry in os.scandir(self.place):
            with suppress(FileNotFoundError):  # it is being cleared
                if entry.name not in names and entry.stat(follow_symlinks=False).st_mtime < before:
                    shutil.rmtree(entry.path, ignore_errors=True)
                    (self._root / "facts" / f"{entry.name}.json").unlink(missing_ok=True)

    def rotate(self, log: Path) -> None:
        """Let our own job log begin anew when it has become long: its reader follows renamed files, and who has one
        open goes on writing there. What is older than the reader looks is what the audit is for."""
        if not log.exists() or log.stat().st_size < LOG_BYTES_MAX:
            return
        names = [log, *(log.with_name(f"{log.name}.{n}") for n in range(1, LOGS_KEPT + 1))]
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            if newer.exists():
                newer.replace(older)

    def archive(self, digest: str, source: CodeSource, allowed: frozenset[str]) -> JobArchive:
        """A code's description, with its archive unpacked (`code`). Raises InvalidInput."""
        key = digest, allowed
        with self._unpacking:
            if key not in self._archives:
                read = jobs.read_archive(source(digest), files_max=self._files_max, allowed=allowed)
                if not self.code(digest).exists():
                    archive.unpack(read.data, self.code(digest), files_max=self._files_max, bytes_max=self._bytes_max)
                self._archives[key] = replace(read, data=b"")
                for old in list(self._archives)[:-ARCHIVES_KEPT]:
                    del self._archives[old]
            return self._archives[key]

    def code(self, digest: str) -> Path:
        """Where an archive is unpacked."""
        return self._place / "code" / digest

    def program(self, name: str, text: bytes) -> Path:
        """A program of ours where HTCondor can read it, whoever it acts for. One of another version stays beside it, as
        long as there are jobs."""
        path = self.code(blake2b(text, digest_size=16).hexdigest()) / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.parent.chmod(0o755)
            part = path.with_name(f".{threading.get_ident()}")
            part.write_bytes(text)
            part.chmod(0o755)
            part.replace(path)
        return path

    def _drop_codes(self) -> None:
        if self.is_empty():
            for entry in (self._place / "code").iterdir():
                shutil.rmtree(entry, ignore_errors=True)


def _account(name: str) -> tuple[int, int]:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise InvalidInput(f"a job's owner would be '{name}', who has no account on this machine") from None
    return found.pw_uid, found.pw_gid


def _give(room: Path, owner: tuple[int, int]) -> None:
    """Everything in a room, never through a link, to an account that nobody else can look over the shoulder of."""
    os.lchown(room, *owner)  # first: from now on nobody else gets in
    room.chmod(0o700)
    for _, names, files, descriptor in os.fwalk(room):  # by descriptors, so that no directory is swapped for a link
        for name in (*names, *files):
            with suppress(FileNotFoundError):
                os.chown(name, *owner, dir_fd=descriptor, follow_symlinks=False)


def _without_links(room: Path) -> None:
    """Links are never delivered; in another account's room they could lead the server anywhere."""
    for _, names, files, descriptor in os.fwalk(room):
        for name in (*names, *files):
            if stat.S_ISLNK(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=descriptor)
    (room / "scratch").mkdir(exist_ok=True)


def furnish(room: Path, bound: BoundDescription, params: bytes) -> None:
    """Make the room of a job that is about to be submitted. Repeating it is harmless as long as the job has not run.

    The scratch directory is empty, so that all that arrives in it is output (there is no `inputs.json`). A job that
    names its output files gets an empty result first: HTCondor holds a job that leaves out a file that was named.
    """
    path = str(room)  # thousands are made in a row: paths as text, and no question that need not be asked
    os.makedirs(path, exist_ok=True)
    with suppress(FileExistsError):
        os.mkdir(f"{path}/scratch")
    with open(f"{path}/{PARAMS_FILE}", "wb", 0) as file:
        file.write(params)
    if bound.outputs is not None:
        (room / RESULT_FILE).write_bytes(b"{}")
