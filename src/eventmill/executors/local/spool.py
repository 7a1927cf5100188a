"""The queue's memory: one directory, in which every step of a job's life is one atomic, durable change.

    jobs/17/job.json, params.json, code    an accepted job; appears by rename, with all its contents
    jobs/17/<launch>/                      one try to start it: code/, scratch/, tmp/, stdout, stderr
    events/17.released                     it may run
    events/17.claim                        somebody has started it, or made sure that nobody does; appears by link
    events/17.end                          it has ended; appears by rename
    code/<digest>                          archives that are in use, hard-linked into jobs
    clusters, lock, new/, trash/

A crash between any two of them leaves a state that this table names. Blocking; used in threads, for different jobs at
once; `accept` and `clear` in one thread at a time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from eventmill.errors import Unavailable
from eventmill.executors.local import shim
from eventmill.executors.local.records import Claim, End, Job


@dataclass(frozen=True, slots=True)
class Remembered:
    """A job as a restarted server finds it."""

    job: Job
    released: bool
    claim: Claim | None
    ended: bool


class Spool:
    """The directory. `root` belongs to one server at a time (`lock`)."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._events = self.root / "events"
        self._code = self.root / "code"
        self._lock: int | None = None

    def open(self) -> list[Remembered]:
        """Take the directory, tidy up after a dead server, and say which jobs are there. Raises Unavailable if another
        server has it.
        """
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("jobs", "events"):
            (self.root / name).mkdir(exist_ok=True, mode=0o700)
        self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise Unavailable(f"another server uses the job directory {self.root}") from None
        for name in ("new", "trash", "code"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            (self.root / name).mkdir(mode=0o700)
        jobs = sorted(int(entry.name) for entry in os.scandir(self.root / "jobs"))
        self._drop_orphaned_events(set(jobs))
        return [self._remember(cluster) for cluster in jobs]

    def close(self) -> None:
        """Let go of the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def directory(self, cluster: int) -> Path:
        return self.root / "jobs" / str(cluster)

    def event(self, cluster: int, kind: str) -> Path:
        return self._events / f"{cluster}.{kind}"

    def number(self, count: int) -> range:
        """Numbers that were never given before, and never will be again."""
        counter = self.root / "clusters"
        first = int(counter.read_bytes()) if counter.exists() else 1
        part = self.root / "clusters.part"
        shim.write_durably(str(part), str(first + count).encode())
        part.rename(counter)
        shim.sync_directory(str(self.root))
        return range(first, first + count)

    def keep_code(self, digest: str, data: bytes) -> None:
        """Keep an archive for jobs to be linked to."""
        part = self._code / f"{digest}.part"
        shim.write_durably(str(part), data)
        part.rename(self._code / digest)

    def drop_code(self, digest: str) -> None:
        """Keep it no longer; jobs have links of their own."""
        (self._code / digest).unlink(missing_ok=True)

    def accept(self, jobs: Sequence[tuple[Job, bytes]]) -> None:
        """Write down jobs with their parameters; durable when it returns. Whichever fail, fail together."""
        rooms: list[tuple[Path, Path]] = []
        for job, params in jobs:
            room = self.root / "new" / str(job.cluster)
            room.mkdir(mode=0o700)
            os.link(self._code / job.code, room / "code")
            shim.write_durably(str(room / "params.json"), params)
            shim.write_durably(str(room / "job.json"), job.to_json())
            shim.sync_directory(str(room))
            rooms.append((room, self.directory(job.cluster)))
        for room, place in rooms:
            room.rename(place)
        shim.sync_directory(str(self.root / "jobs"))

    def release(self, clusters: Iterable[int]) -> None:
        """Write down that these may run; durable when it returns."""
        for cluster in clusters:
            self.event(cluster, "released").touch(mode=0o600)
        shim.sync_directory(str(self._events))

    def claim(self, cluster: int) -> Claim | None:
        try:
            return Claim.from_json(self.event(cluster, "claim").read_bytes())
        except FileNotFoundError:
            return None

    def end(self, cluster: int) -> End | None:
        """How a job ended; None: it has not, or nobody has seen it."""
        try:
            return End.from_json(self.event(cluster, "end").read_bytes())
        except FileNotFoundError:
            claim = self.claim(cluster)
            return None if claim is None or claim.end is None else End(**claim.end)

    def write_end(self, cluster: int, end: End) -> None:
        """Write down the end of a job whose shim could not."""
        part = self.event(cluster, "end.queue.part")
        shim.write_durably(str(part), orjson.dumps(end.to_dict()))
        part.rename(self.event(cluster, "end"))
        shim.sync_directory(str(self._events))

    def end_unstarted(self, cluster: int, end: End) -> bool:
        """End a job that no shim has claimed, so that none ever will; False: one has."""
        return shim.take_claim(str(self.event(cluster, "claim")), {"end": end.to_dict()}, "queue")

    def clear(self, clusters: Iterable[int]) -> None:
        """Forget jobs. Their directories go first, by rename: events without a directory mean nothing."""
        for cluster in clusters:
            trash = self.root / "trash" / str(cluster)
            try:
                self.directory(cluster).rename(trash)
            except FileNotFoundError:
                continue
            shim.sync_directory(str(self.root / "jobs"))
            for kind in ("released", "claim", "end"):
                self.event(cluster, kind).unlink(missing_ok=True)
            shutil.rmtree(trash, ignore_errors=True)

    def _drop_orphaned_events(self, jobs: set[int]) -> None:
        """Events of jobs that are gone, and what was only prepared by writers that were killed, or came too late.

        Where there is no end yet, a shim may still need what it has prepared.
        """
        names = set(os.listdir(self._events))
        for name in names:
            cluster, _, kind = name.partition(".")
            if int(cluster) not in jobs or (kind.endswith(".part") and f"{cluster}.end" in names):
                (self._events / name).unlink(missing_ok=True)

    def _remember(self, cluster: int) -> Remembered:
        job = Job.from_json((self.directory(cluster) / "job.json").read_bytes())
        released = self.event(cluster, "released").exists()
        return Remembered(job, released, self.claim(cluster), self.end(cluster) is not None)
