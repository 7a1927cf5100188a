"""The shim: one small process per job, which outlives the server, waits for the job and writes down how it ended.

Run as a program (`python -I -S shim.py RUN.json`), standard library only; nothing of Eventmill is imported. RUN.json
(see `launch.py`) says what to start and where to write. Its life:

1. It forks the job's process, which waits at a gate, in a session of its own.
2. It *claims* the job: a hard link, so that of any number of shims one wins. The claim names both processes and is on
   the disk before the gate opens. Whoever loses ends without having run anything.
3. It opens the gate, waits, ends the job when its time is over or when it is asked to, and all that the job
   has started when the job has ended.
4. It writes the end by rename, into space that it has set aside at the claim, so that a full disk can't lose it.

Killed before 2: the job has not run. Killed between 2 and 4: the kernel kills the job's process with it, and nobody
can say how far it had come. Single-threaded; all waits are `sigtimedwait`.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

GRACE_S = 5.0
"""Between SIGTERM and SIGKILL."""
END_BYTES = 4096
NICE = 5
LOST_CLAIM = 3
"""Exit code: another shim has the job."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
CANCEL = signal.SIGUSR1
"""Asks a shim to end its job because somebody cancelled it; SIGTERM comes from a machine that shuts down."""
_WAITED = {signal.SIGCHLD, signal.SIGTERM, CANCEL}


def main(run_file: str) -> int:
    """Claim, run, wait, write the end. Returns the exit code."""
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    with open(run_file, encoding="utf-8") as file:
        run = json.load(file)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    gate, opener = os.pipe()
    broken, breaker = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(opener)
        _become(run, gate, breaker)
    os.close(breaker)
    started = time.time()
    if not _claim(run, pid, started):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return LOST_CLAIM
    os.write(opener, b"!")
    error = os.read(broken, 500).decode(errors="replace")
    end = _wait(pid, run["limit_s"])
    _sweep()
    end.update(started_ms=int(started * 1000), host=os.uname().nodename, pid=pid)
    if error:
        end["refused"] = error
    _write_end(run, end)
    return 0


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _become(run: dict[str, Any], gate: int, breaker: int) -> NoReturn:
    """In the child: wait at the gate, then become the job. What goes wrong is written to `breaker`."""
    shim = os.getppid()
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != shim or not os.read(gate, 1):
            os._exit(0)
        os.chdir(run["directory"])
        for descriptor, (path, flags) in enumerate(
            ((run["stdin"], os.O_RDONLY), (run["stdout"], _WRITE), (run["stderr"], _WRITE))
        ):
            os.dup2(os.open(path, flags, 0o644), descriptor)
        _limit(run)
        os.execve(run["program"], run["arguments"], run["environment"])
    except OSError as e:
        os.write(breaker, f"can't start {os.path.basename(run['program'])}: {e.strerror}".encode())
    finally:
        os._exit(127)


_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def _limit(run: dict[str, Any]) -> None:
    memory = run["memory_mb"] << 20
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(NICE)
    os.umask(0o022)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _claim(run: dict[str, Any], pid: int, started: float) -> bool:
    """Take the job for this shim, durably; tell the server if it still listens."""
    claim = {**_identity(os.getpid()), "job_pid": pid, "started_ms": int(started * 1000), "launch": run["launch"]}
    write_durably(_part(run), b" " * END_BYTES)
    if not take_claim(run["claim"], claim, run["launch"]):
        return False
    with suppress(OSError):  # the server may be gone, and the next one finds the claim
        os.write(1, b"claimed\n")
    os.dup2(0, 1)
    return True


def _identity(pid: int) -> dict[str, Any]:
    """What tells this process from any other that ever had or will have its pid."""
    return {"pid": pid, "start": start_time(pid), "boot": boot_id(), "host": os.uname().nodename}


def start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot; None if there is none, or only its remains."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def take_claim(path: str, claim: dict[str, Any], unique: str) -> bool:
    """Put `claim` at `path`, with all its contents or not at all, unless there is one. True: it is ours, durably."""
    part = f"{path}.{unique}.part"
    write_durably(part, json.dumps(claim).encode())
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(part)
    sync_directory(os.path.dirname(path))
    return True


def write_durably(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _part(run: dict[str, Any]) -> str:
    """Where this launch prepares the end; no other shim writes there."""
    return f"{run['end']}.{run['launch']}.part"


def _wait(pid: int, limit_s: float | None) -> dict[str, Any]:
    """Wait for the job; what it used, and how it ended."""
    begun = time.monotonic()
    deadline = None if limit_s is None else begun + limit_s
    why: dict[str, Any] | None = None
    while True:
        got = _next_signal(deadline)
        ended = _reap(pid)
        if ended is not None:
            status, usage = ended
            break
        if got == signal.SIGCHLD:
            continue
        if why is None:
            why = {"timed_out": True} if got is None else {"cancelled": True} if got == CANCEL else {}
            deadline = time.monotonic() + GRACE_S
            _signal_group(pid, signal.SIGTERM)
        elif got is None:
            deadline = None
            _signal_group(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    return {
        **(why or {}),
        **({"exit_code": code} if code >= 0 else {"signal": -code}),
        "ended_ms": int(time.time() * 1000),
        "wall_s": round(time.monotonic() - begun, 3),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        "max_rss_mb": round(usage.ru_maxrss / 1024, 1),
    }


def _next_signal(deadline: float | None) -> int | None:
    """Sleep until one of ours comes; None: the deadline has."""
    if deadline is None:
        return signal.sigwaitinfo(_WAITED).si_signo
    got = signal.sigtimedwait(_WAITED, max(0.0, deadline - time.monotonic()))
    return None if got is None else got.si_signo


def _reap(pid: int) -> tuple[int, resource.struct_rusage] | None:
    """Collect all children that have ended; the job's status if it is among them."""
    found = None
    while True:
        try:
            child, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if not child:
            return found
        if child == pid:
            found = status, usage


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def _sweep() -> None:
    """End what the job has left running: as their subreaper we inherit all of its orphans, generation by generation."""
    while True:
        for child in _children():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    me = os.getpid()
    with open(f"/proc/{me}/task/{me}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def _write_end(run: dict[str, Any], end: dict[str, Any]) -> None:
    part = _part(run)
    descriptor = os.open(part, os.O_WRONLY)
    os.pwrite(descriptor, json.dumps(end).encode(), 0)
    os.fsync(descriptor)
    os.close(descriptor)
    os.rename(part, run["end"])
    sync_directory(os.path.dirname(part))


if __name__ == "__main__":
    os._exit(main(sys.argv[1]))
