"""Starting a job: its directory is furnished, and a shim is sent on its way.

Each try has a directory of its own, so that a shim of a dead server, still on its way to the claim, is never disturbed;
which of them became the job's is what the claim says. Blocking; used in threads, for different jobs at once.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson

from eventmill.errors import InvalidDescription
from eventmill.executors import archive, jobs
from eventmill.executors.delivery import INPUTS_FILE
from eventmill.executors.local import shim
from eventmill.executors.local.records import Claim, Job
from eventmill.executors.local.spool import Spool

_IGNORED_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Whatever a server does with these, a shim starts with the system's own handling."""

SHIM_LOG_CHARS = 300
"""Of what a shim said that could not start a job."""


class Starter:
    """Starts jobs of one spool."""

    def __init__(
        self,
        spool: Spool,
        environment: Mapping[str, str],
        roots_of: Callable[[str], Sequence[str]],
        *,
        files_max: int,
        bytes_max: int,
    ) -> None:
        """`roots_of` a namespace: where full paths may lie."""
        self._spool = spool
        self._environment = environment
        self._roots_of = roots_of
        self._files_max = files_max
        self._bytes_max = bytes_max

    def start(self, job: Job) -> Claim:
        """Start a job, and return its claim: this start's, or that of an earlier server's which was quicker.

        Raises InvalidInput if what it names is not there, OSError if this machine can't start it.
        """
        launch = secrets.token_hex(4)
        room = self._spool.directory(job.cluster) / launch
        scratch = room / "scratch"
        scratch.mkdir(parents=True, mode=0o700)
        (room / "tmp").mkdir()
        code = room / "code"
        source = self._spool.directory(job.cluster)
        archive.unpack((source / "code").read_bytes(), code, files_max=self._files_max, bytes_max=self._bytes_max)
        self._furnish(job, code, scratch)
        shutil.copyfile(source / "params.json", scratch / jobs.PARAMS_FILE)
        _note_inputs(room, scratch)
        run = room / "run.json"
        run.write_bytes(orjson.dumps(self._run(job, launch, room, code, scratch)))
        _spawn(run, room / "shim.log")
        claim = self._spool.claim(job.cluster)
        if claim is None:
            said = (room / "shim.log").read_text(errors="replace")[-SHIM_LOG_CHARS:]
            raise ChildProcessError(errno.ECHILD, f"its shim ended too early: {said}")
        return claim

    def _furnish(self, job: Job, code: Path, scratch: Path) -> None:
        """Put the executable and the input files into the scratch directory, flat, as HTCondor does."""
        description, roots = job.description, self._roots_of(job.namespace)
        if description.transfer_executable:
            program = _source(code, description.executable, "executable", roots)
            program.chmod(0o755)
            _link(program, scratch / program.name)
        for path in description.inputs:
            source = _source(code, path, "transfer_input_files", roots)
            copy = shutil.copy2 if path.startswith("/") else _link
            if not source.is_dir():
                copy(source, scratch / source.name)
                continue
            # links stay links: wherever they lead, the job gets there with its own rights only
            target = scratch if path.endswith("/") else scratch / source.name
            shutil.copytree(source, target, symlinks=True, copy_function=copy, dirs_exist_ok=True)

    def _run(self, job: Job, launch: str, room: Path, code: Path, scratch: Path) -> dict[str, object]:
        """What the shim is to do."""
        description, roots = job.description, self._roots_of(job.namespace)
        program = description.executable
        if description.transfer_executable:
            program = str(scratch / Path(program).name)
        stdin = description.input or "/dev/null"
        return {
            "program": program,
            "arguments": [program, *description.arguments],
            "environment": self._variables(job, room, scratch),
            "directory": str(scratch),
            "stdin": stdin if stdin == "/dev/null" else str(_source(code, stdin, "input", roots)),
            "stdout": str(room / "stdout"),
            "stderr": str(room / "stderr"),
            "memory_mb": job.memory_mb,
            "limit_s": job.limit_s,
            "launch": launch,
            "claim": str(self._spool.event(job.cluster, "claim")),
            "end": str(self._spool.event(job.cluster, "end")),
        }

    def _variables(self, job: Job, room: Path, scratch: Path) -> dict[str, str]:
        """A clean environment: the configured one, HTCondor's usual names, the description's, and ours."""
        interpreter = os.path.dirname(sys.executable)
        variables = {
            "LANG": "C.UTF-8",
            "HOME": str(scratch),
            "TMPDIR": str(room / "tmp"),
            "OMP_NUM_THREADS": str(job.description.request_cpus),
            "_CONDOR_SCRATCH_DIR": str(scratch),
            **self._environment,
            **job.description.environment,
            jobs.PARAMS_ENV: str(scratch / jobs.PARAMS_FILE),
            jobs.RESULT_ENV: str(scratch / jobs.RESULT_FILE),
            "EVENTMILL_ACTIVATION": job.activation,
            "EVENTMILL_ATTEMPT": str(job.attempt),
        }
        if job.traceparent:
            variables["TRACEPARENT"] = job.traceparent
        # `#!/usr/bin/env python3` finds the interpreter that has this server's libraries
        variables["PATH"] = f"{interpreter}:{variables.get('PATH', '/usr/local/bin:/usr/bin:/bin')}"
        return variables


def _source(code: Path, path: str, command: str, roots: Sequence[str]) -> Path:
    """The file that a description names; links in it may not lead out of the allowed directories."""
    if not path.startswith("/"):
        found = code / path
    else:
        found = Path(os.path.realpath(path))
        if not any(found.is_relative_to(os.path.realpath(root)) for root in roots):
            raise InvalidDescription(f"{command}: {path} leads out of the directories that jobs may name")
    if not found.exists():
        raise InvalidDescription(f"{command}: there is no {path}")
    return found


def _note_inputs(room: Path, scratch: Path) -> None:
    """Remember what was there before the job ran: what is new or changed afterwards is its output."""
    there = {entry.name: entry.stat(follow_symlinks=False).st_mtime_ns for entry in os.scandir(scratch)}
    (room / INPUTS_FILE).write_bytes(orjson.dumps(there))


def _link(source: str | Path, target: str | Path) -> None:
    """The archive was unpacked for this job alone, so its files need not be copied."""
    Path(target).unlink(missing_ok=True)
    os.link(source, target)


def _spawn(run: Path, log: Path) -> None:
    """Start a shim in a session of its own, and wait until it has claimed the job or has ended."""
    reader, writer = os.pipe()
    try:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-X", "utf8", shim.__file__, str(run)],
            {},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writer, 1),
                (os.POSIX_SPAWN_OPEN, 2, str(log), os.O_WRONLY | os.O_CREAT, 0o600),
            ],
            setsid=True,
            setsigdef=_IGNORED_SIGNALS,
            setsigmask=(),
        )
        os.close(writer)
        writer = -1
        if not os.read(reader, 1):
            os.waitpid(pid, 0)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
