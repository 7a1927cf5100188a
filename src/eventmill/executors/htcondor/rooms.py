"""What the queue has on the access point: a room for each job, the codes, and a number of its own.

    server             the number that jobs of this server have
    schedd             what the schedd that has them calls itself
    namespace          the one that has jobs, where there are no tokens
    identities/        the helpers' locks and tokens
    code/<digest>/     an archive, unpacked; read by all jobs of that code
                       (and our wrapper, for jobs that report their own ends)
    log/jobs.log       the jobs' events, where the pool's own log can't be read
    facts/             what has to be known of a job when it has ended, if there is something; and which code is its
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

import errno
import fcntl
import logging
import os
import pwd
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path

import orjson

from eventmill.entities.submit import BoundDescription
from eventmill.errors import InvalidConfig, InvalidInput, Unavailable
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
DEPTH_MAX = 100
"""Directories in each other that a job may leave in a shared room."""

_AWAY = ".away-"
"""How the names of rooms begin that are being removed."""
_PROGRAM = "program-"
"""How the names of directories of ours begin among the codes."""

_log = logging.getLogger(__name__)


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
        """Take the directory; the number that jobs of this server have. Codes go that no job has. Raises
        Unavailable if another server has it, InvalidConfig if the spool can't be one."""
        if self._shared and (problem := spool_problem(self._place, outside=self._root)):
            raise InvalidConfig(problem)
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
        return all(room.name.startswith(_AWAY) for room in self.place.iterdir())

    def has(self, activation: str, attempt: int) -> bool:
        return self._path(activation, attempt).exists()

    def recall(self, name: str) -> str:
        """What `remember` has written; empty if it has not."""
        file = self._root / name
        return file.read_text() if file.exists() else ""

    def remember(self, name: str, text: str) -> None:
        """Keep a line, durably, until it is replaced. Raises Unavailable."""
        with _available():
            self._remember(name, text)

    def _remember(self, name: str, text: str) -> None:
        part = self._root / f"{name}.part"
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._root / name)
        directory = os.open(self._root, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
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
            self._put_away(room)  # it may have been somebody's already
        furnish(room, job.description, params, is_new=self._shared)
        if order is not None:
            _write(f"{room}/{ORDER_FILE}", order, is_new=self._shared)
        self._names_code(job)
        if not job.is_plain:
            self._facts(job.activation, job.attempt).write_bytes(job.to_json())
        return room

    def _put_away(self, room: Path) -> None:
        """Make place for a new room, whatever the owner of the old one does meanwhile."""
        try:
            os.chown(room, os.getuid(), os.getgid(), follow_symlinks=False)
        except FileNotFoundError:
            return
        away = room.with_name(f"{_AWAY}{secrets.token_hex(8)}")
        room.rename(away)
        _remove(away)

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

    def _names_code(self, job: Job) -> None:
        """A link as a note: one call, for thousands of jobs."""
        with suppress(FileExistsError):
            os.symlink(job.code, self._root / "facts" / f"{job.activation}.{job.attempt}.code")

    def was_used(self, job: Job) -> bool:
        """Whether HTCondor has put something there: it always does, before a job ends."""
        return (self.room(job) / "stdout").exists()

    def take_back(self, job: Job) -> None:
        """The job has ended: what it has left is the server's account's from now on. Raises OSError."""
        if self._shared and self.room(job).exists():
            _seize(self.room(job))
            (self.room(job) / "scratch").mkdir(exist_ok=True)

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

    def clear(self, gone: Iterable[tuple[str, int]]) -> None:
        """The ends of these (activation, attempt) are recorded, or there will be none. Raises Unavailable."""
        for key in gone:
            self._clear(self._path(*key))

    def _clear(self, room: Path) -> None:
        _remove(room)
        with _available():
            for kind in ("json", "code"):
                (self._root / "facts" / f"{room.name}.{kind}").unlink(missing_ok=True)

    def clear_left(self, kept: Collection[tuple[str, int]], after_s: float) -> None:
        """Clear rooms of jobs that are none of these (activation, attempt), and older: a server was killed when a
        job's end had been recorded, or before it was submitted. Raises Unavailable."""
        names = {f"{activation}.{attempt}" for activation, attempt in kept}
        before = time.time() - after_s
        with _available():
            entries = list(os.scandir(self.place))
        for entry in entries:
            with _available(), suppress(FileNotFoundError):  # it is being cleared
                if entry.name not in names and entry.stat(follow_symlinks=False).st_mtime < before:
                    self._clear(Path(entry.path))

    def rotate(self, log: Path) -> None:
        """Let our own job log begin anew when it has become long: its reader follows renamed files, and who has one
        open goes on writing there. What is older than the reader looks is what the audit is for. Raises Unavailable."""
        with _available():
            self._rotate(log)

    def _rotate(self, log: Path) -> None:
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
        path = self.code(f"{_PROGRAM}{blake2b(text, digest_size=16).hexdigest()}") / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.parent.chmod(0o755)
            part = path.with_name(f".{threading.get_ident()}")
            part.write_bytes(text)
            part.chmod(0o755)
            part.replace(path)
        return path

    def _drop_codes(self) -> None:
        """Remove the codes that no job has. Programs of ours stay as long as there is any job; so does everything
        while there is a room that an earlier version has made, which has noted no code."""
        codes = {path.stem: os.readlink(path) for path in (self._root / "facts").glob("*.code")}
        rooms = [room.name for room in self.place.iterdir() if not room.name.startswith(_AWAY)]
        if any(room not in codes for room in rooms):
            return
        kept = {codes[room] for room in rooms}
        for entry in (self._place / "code").iterdir():
            if entry.name not in kept and not (rooms and entry.name.startswith(_PROGRAM)):
                _remove(entry)


@contextmanager
def _available() -> Iterator[None]:
    """What can't be done to a file now may be later."""
    try:
        yield
    except OSError as e:
        raise Unavailable(f"{e.strerror}: {e.filename}") from e


def spool_problem(spool: Path, *, outside: Path) -> str | None:
    """Why rooms that change their owner can't be in this directory; None if they can."""
    hint = f"spool_dir: {spool}"
    if os.geteuid() != 0:
        return f"{hint}: only a server of root's can give rooms to their jobs' owners"
    try:
        found = spool.lstat()
    except OSError as e:
        return f"{hint}: {e.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return f"{hint} is no directory"
    if found.st_uid != 0 or found.st_mode & 0o022:
        return f"{hint} must be root's, and nobody else may write there (mode 0711)"
    if spool.resolve().is_relative_to(outside.resolve()):
        return f"{hint} must be outside of {outside}, where jobs' owners can't get in"
    return None


def _account(name: str) -> tuple[int, int]:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise InvalidInput(f"a job's owner would be '{name}', who has no account on this machine") from None
    return found.pw_uid, found.pw_gid


def _give(room: Path, owner: tuple[int, int]) -> None:
    """Everything in a room of ours to an account; the room comes last, so that nobody is in it meanwhile."""
    for _, names, files, descriptor in os.fwalk(room):
        for name in (*names, *files):
            os.chown(name, *owner, dir_fd=descriptor, follow_symlinks=False)
    os.chown(room, *owner, follow_symlinks=False)


def _seize(name: str | Path, above: int | None = None, depth: int = 0) -> None:
    """A directory is the server's account's again, and there are nothing but files and directories in it. Each one is
    closed to its owner before anybody looks at what is in it, also to his processes that are there already. Raises
    OSError."""
    if depth > DEPTH_MAX:
        raise OSError(errno.ELOOP, f"more than {DEPTH_MAX} directories in each other")
    directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        os.fchown(directory, os.getuid(), os.getgid())
        os.fchmod(directory, 0o700)
        for entry in os.listdir(directory):
            mode = os.stat(entry, dir_fd=directory, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                _seize(entry, directory, depth + 1)
            elif stat.S_ISREG(mode):
                os.chown(entry, os.getuid(), os.getgid(), dir_fd=directory, follow_symlinks=False)
            else:  # a link could lead the server anywhere, a pipe stop it
                os.unlink(entry, dir_fd=directory)
    finally:
        os.close(directory)


def _remove(path: Path | str) -> None:
    """A directory and all in it. What can't be removed stays, and is tried again by the audit."""
    try:
        shutil.rmtree(path, ignore_errors=True)
    except RecursionError:
        _log.error("%s has too many directories in each other to be removed", path)


def _write(path: str, data: bytes, *, is_new: bool) -> None:
    flags = os.O_EXCL if is_new else os.O_TRUNC
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600), "wb", 0) as file:
        file.write(data)


def furnish(room: Path, bound: BoundDescription, params: bytes, *, is_new: bool = False) -> None:
    """Make the room of a job that is about to be submitted. Repeating it is harmless as long as the job has not run,
    unless it `is_new`: then there must be none.

    The scratch directory is empty, so that all that arrives in it is output (there is no `inputs.json`). A job that
    names its output files gets an empty result first: HTCondor holds a job that leaves out a file that was named.
    """
    path = str(room)  # thousands are made in a row: paths as text, and no question that need not be asked
    if is_new:
        os.mkdir(path, 0o700)
    else:
        os.makedirs(path, exist_ok=True)
    with suppress(FileExistsError):
        os.mkdir(f"{path}/scratch")
    _write(f"{path}/{PARAMS_FILE}", params, is_new=is_new)
    if bound.outputs is not None:
        _write(f"{path}/{RESULT_FILE}", b"{}", is_new=is_new)
