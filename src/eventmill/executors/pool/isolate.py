"""Namespaces, capabilities and limits of a worker: the Linux calls, by ctypes and the standard library.

Two steps, because preparing a view of the machine once and copying it is cheaper than building it for every worker:
`enter` moves the zygote into its own user, mount, IPC and PID namespace, with system directories read-only and a /dev
of its own; `Isolation.confine` takes a worker, forked from it as process 1 of one more PID namespace, into its own
user, mount and IPC namespace, hides what it must not see and drops all privileges for good. Kernel 5.12 or newer.

What bounds a fork bomb: RLIMIT_NPROC counts per user *and* user namespace, so in its own one a worker's limit counts
that worker alone; but the kernel never applies it to the real user 0, whatever its capabilities. `pid_max`, a property
of the PID namespace since Linux 6.14, holds for root, too. On an older kernel root's bomb lasts until its time limit.

A worker keeps the server's user id, so that it can open what the server's owner can. For an ordinary user that is all
there is to say; user 0 without capabilities still owns the system's files, hence the read-only directories and the /dev
without disks. It must never run in a process with threads, and never in the server itself.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import stat
import sys
from collections.abc import Sequence

USER, ROOT, NONE = "user", "root", "none"
"""Ways to isolate: by a user namespace (anybody's where the kernel allows it), by root's privileges, not at all."""

PROCESSES_MAX = 128
"""Processes and threads of one worker."""
RESERVED_PIDS = 300
"""The kernel hands these out only once, so a namespace's pid_max must lie above them."""
FILES_MAX = 1024
FILE_BYTES_MAX = 16 << 30
SYSTEM_DIRECTORIES = ("/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/sbin", "/sys", "/usr")
"""What user 0 owns and must not change, capabilities or not."""

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID = 0x20000, 0x8000000, 0x10000000, 0x20000000
_NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _SLAVE = 2, 4, 8, 0x1000, 0x4000, 0x80000
_AT_FDCWD, _AT_RECURSIVE, _ATTR_RDONLY, _SYS_MOUNT_SETATTR = -100, 0x8000, 1, 442
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 24, 36, 38
_CAPABILITY_VERSION_3 = 0x20080522

_OWN_IDS = (os.geteuid(), os.getegid())  # asked for here, because they are unnamed once in a new user namespace

libc = ctypes.CDLL(None, use_errno=True)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; `parent` is a descriptor (pidfd) of that parent."""
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if select.select([parent], [], [], 0)[0]:  # it had ended before we asked
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent has ended, instead of the system's process 1."""
    _call("prctl", _PR_SET_SUBREAPER, 1, 0, 0, 0)


def limit(memory_bytes: int) -> None:
    """Bound what this process may use; a child process gets the same limits, once more."""
    for what, value in (
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_NOFILE, FILES_MAX),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, FILE_BYTES_MAX),
    ):
        _limit(what, value)


def data_bytes() -> int:
    """What this process already has of the memory that `limit` bounds."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))


def enter(mode: str, read_only: Sequence[str]) -> Isolation | None:
    """Move into own namespaces (None: `mode` is NONE). Raises OSError where the kernel refuses.

    It forks: what returns is process 1 of the new PID namespace, so that whatever it will fork dies with it. The
    original process waits for it and ends as it does.
    """
    if mode == NONE:
        adopt_orphans()
        return None
    proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
    _unshare(_NEWNS | _NEWIPC | _NEWPID | (_NEWUSER if mode == USER else 0))
    if mode == USER:
        _map_own_ids(proc)
    _become_first_process()
    _mount("none", "/", None, _REC | _SLAVE)
    directories = [*read_only, *(SYSTEM_DIRECTORIES if os.getuid() == 0 else ())]
    for directory in dict.fromkeys(os.path.realpath(d) for d in directories if os.path.isdir(d)):
        _mount(directory, directory, None, _BIND | _REC)
        _set_read_only(directory)
    _own_devices()
    return Isolation(mode)


class Isolation:
    """The zygote's namespaces, and how its workers get theirs."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
        self._pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def fork(self) -> int:
        """Like `os.fork`; the child is process 1 of a new PID namespace."""
        _unshare(_NEWPID)
        try:
            pid = os.fork()
        except BaseException:
            self._return_to_own_pids()
            raise
        if pid:
            self._return_to_own_pids()
        return pid

    def _return_to_own_pids(self) -> None:
        _call("setns", self._pids, _NEWPID)

    def confine(self, hidden: Sequence[str], keep: Sequence[tuple[str, bool]], shared_memory_mb: int) -> None:
        """Confine this process, the child of `fork`. Can't be undone.

        `hidden` directories are empty afterwards, but for the directories in `keep` (path, writable) below them.
        """
        _unshare(_NEWNS | _NEWIPC)
        _hide(hidden, keep)
        _mount("tmpfs", "/dev/shm", "tmpfs", _NOSUID | _NODEV, f"mode=1777,size={shared_memory_mb}m")
        self._bound_processes()
        _own_proc()
        if self._mode == USER:
            _unshare(_NEWUSER)
            _map_own_ids(self._proc)
            _try_write(self._proc, "sys/user/max_user_namespaces", "0")
            _limit(resource.RLIMIT_NPROC, PROCESSES_MAX)
        _drop_privileges()

    def _bound_processes(self) -> None:
        _try_write(self._proc, "sys/kernel/pid_max", str(RESERVED_PIDS + PROCESSES_MAX))
        _try_write(self._proc, "self/oom_score_adj", "800")


def _become_first_process() -> None:
    """Fork, so as to be in the PID namespace just made; the parent stays until the child has ended."""
    parent = os.pidfd_open(os.getpid())
    pid = os.fork()
    if pid:
        os._exit(abs(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    die_with(parent)
    os.close(parent)


def _own_devices() -> None:
    """Replace /dev by one that has what every user may open, and no other's terminals, disks or shared memory."""
    nodes = [node for node in os.scandir("/dev") if _for_everybody(node.stat(follow_symlinks=False).st_mode)]
    handles = [(node.path, os.open(node.path, os.O_PATH)) for node in nodes if node.name != "ptmx"]
    _mount("tmpfs", "/dev", "tmpfs", _NOSUID | _NOEXEC, "mode=755,size=64k")
    for path, handle in handles:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        _bind(handle, path)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(f"/proc/self/{target}", f"/dev/{name}")
    os.symlink("pts/ptmx", "/dev/ptmx")
    for directory in ("/dev/pts", "/dev/shm"):
        os.mkdir(directory)
    _mount("devpts", "/dev/pts", "devpts", _NOSUID | _NOEXEC, "newinstance,ptmxmode=0666")
    _set_read_only("/dev", recursive=False)


def _for_everybody(mode: int) -> bool:
    return stat.S_ISCHR(mode) and mode & 0o006 == 0o006


def _hide(hidden: Sequence[str], keep: Sequence[tuple[str, bool]]) -> None:
    # a descriptor still leads to a directory when something has been mounted over it
    handles = [(path, os.open(path, os.O_PATH), writable) for path, writable in keep]
    for directory in hidden:
        _mount("tmpfs", directory, "tmpfs", _NOSUID | _NODEV, "mode=755,size=64k")
    for path, handle, writable in handles:
        os.makedirs(path)
        _bind(handle, path)
        if not writable:
            _set_read_only(path)
    for directory in hidden:
        _set_read_only(directory, recursive=False)


def _own_proc() -> None:
    """Show this PID namespace in /proc, read-only: user 0 could otherwise change the whole machine's switches."""
    try:
        _mount("proc", "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    except PermissionError:  # some containers mask parts of /proc, and the kernel will not show them afresh
        _mount("tmpfs", "/proc", "tmpfs", _NOSUID | _NODEV | _NOEXEC, "mode=755,size=4k")
    _set_read_only("/proc", recursive=False)


def _drop_privileges() -> None:
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    capability = 0
    while libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())


def _map_own_ids(proc: int) -> None:
    """Keep the ids in the user namespace just made. The groups that the user is in stay valid, though unnamed."""
    user, group = _OWN_IDS
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        _write(proc, f"self/{name}", text)


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def _unshare(flags: int) -> None:
    _call("unshare", flags)


def _bind(handle: int, target: str) -> None:
    _mount(f"/proc/self/fd/{handle}", target, None, _BIND)
    os.close(handle)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _call("mount", *encoded[:3], ctypes.c_ulong(flags), encoded[3])


def _set_read_only(path: str, recursive: bool = True) -> None:
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _call("syscall", _SYS_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), flags, attributes, size)


def _write(directory: int, name: str, text: str) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _try_write(directory: int, name: str, text: str) -> None:
    """Where this kernel or container has no such switch, the worker does without."""
    try:
        _write(directory, name, text)
    except OSError:
        return


def _call(name: str, *arguments: object) -> None:
    if getattr(libc, name)(*arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


if sys.platform != "linux":  # pragma: no cover
    raise ImportError("the function pool needs Linux")
