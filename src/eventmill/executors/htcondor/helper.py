"""The process that has HTCondor's bindings: one for each identity in a pool. Run as a file, never imported by a server.

The bindings hold the interpreter's lock while they wait, and a process keeps the identity of its first call: so they
live here, behind a pipe. It reads one request at a time, answers it, and ends when the pipe does. It dies with its
server (PR_SET_PDEATHSIG), in the middle of a call if need be, and holds a lock, so that nobody else asks in this
identity's name for the same server. It imports nothing of ours.

Frames on both pipes: four bytes, big endian, of length; then JSON. The first frame is the configuration; the answer to
it is `{"ready": true}` or `{"error": …}`. A request is `{"number": n, "op": …, …}`; its answer has the same number and
`result`, or `error` and `kind`: `refused` (what was asked is wrong), `auth` (who asks may not), `full` or `large` (too
many jobs for now, or for one call), `elsewhere` (another schedd answers), or `unavailable`.

What is data and what is not: the bindings write commands and items down as lines and read them again. Whatever would
not come through this as it is, or would be taken for something else, is refused here, whoever has checked it before.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

JOBS_MAX = 500
"""In one submit call: the schedd does nothing else meanwhile."""
LOCK_TIMEOUT_S = 5
"""The helper of a server that has just been killed may still be on its way out."""

_PR_SET_PDEATHSIG = 1
_SILENT = "Error when performing action", "Failed to start command"
"""What the bindings say when they have forgotten why."""
_AUTH = (
    "Failed to authenticate", "DENIED", "Cannot allocate a cluster id", "Schedd says -5", "Schedd says -6",
    "does not have sufficient permission",
)  # fmt: skip
_REFUSED = "Failed to create job ad", "Unable to commit transaction, SCHEDD:"
_KNOWN = {
    "Schedd says -2": ("full", "the queue is full (MAX_JOBS_SUBMITTED)"),
    "Schedd says -3": ("full", "this owner may have no more jobs in the queue (MAX_JOBS_PER_OWNER)"),
    "Schedd says -4": ("large", "the schedd takes fewer jobs at once (MAX_JOBS_PER_SUBMISSION)"),
    "Schedd says -1": ("unavailable", "the schedd went away in the middle of a submit; nothing was submitted"),
    # HTCONDOR-3883: bindings from the middle of 2026 on refuse servers from before
    "Directory name doesn't match server's network address": (
        "auth",
        "the access point is older than our bindings' protection of its file system handshake: set"
        " SEC_FS_ENFORCE_CHANNEL_BINDING = False in the configuration that pools.NAME.condor_config names, or give the"
        " namespace an IDTOKEN (pools.NAME.tokens)",
    ),
}
"""Kind and meaning of what is found in an error's text."""

_COMMAND = re.compile(r"(?!(?:if|elif|else|endif|queue)\Z)[A-Za-z_+][\w.]*\Z", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_]\w*\Z")
_ENDS_LINE = re.compile(r"[\0\n\r]|\\\s*\Z")
_ENDS_FIELD = re.compile(r"[\0\n\r\x1f]|^[ \t]|[ \t]\Z")
_EVALUATED = re.compile(r"\$(?!\(DOLLAR\))|\$\(DOLLAR\)(?:\$|\(\s*(?i:DOLLAR))")
_FIRST, _LAST = "Eventmill_first", "Eventmill_last"
"""Around the fields of an item: its first and its last character might mean something (`#`, `)`, a backslash)."""


class OtherSchedd(Exception):
    """Another schedd answers than the one that has the jobs."""


class Bindings:
    """The schedd of one pool, asked in one name. `schedd`: its name, without it this machine's, or the only one that
    `collector` knows; `collector`: `host[:port]`, without it the configuration's. `pinned`: what it calls itself, if
    that is known; else the first one that is met counts. No other one is asked anything."""

    def __init__(self, schedd: str, collector: str, pinned: str = "") -> None:
        import htcondor2

        self._h: Any = htcondor2
        self._c: Any = htcondor2.classad
        self._name = schedd
        self._collector = collector
        self._location: Any = None
        self._pinned = pinned
        self._own_ad: tuple[int, str] = (0, "")
        """When this machine's schedd has last written its ad, and its name there."""

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What one request leads to. Never raises: whatever goes wrong is an answer."""
        number, op = request.pop("number"), request.pop("op")
        call: Callable[..., Any] = getattr(self, f"do_{op}")
        try:
            try:
                return {"number": number, "result": call(**request)}
            except Exception:
                if self._location is None or op == "submit":
                    raise
                self._location = None  # it may have another address by now
                return {"number": number, "result": call(**request)}
        except Exception as e:
            kind, text = self._explain(e)
            self._location = None
            return {"number": number, "error": text, "kind": kind}

    def do_meet(self) -> str:
        """What the schedd calls itself, if it answers; "" if it does not say it."""
        self._look()
        return self._own_name(self._locate())

    def do_ping(self) -> dict[str, Any]:
        """Who answers, and whom it takes us for."""
        self._look()
        location = self._locate()
        session = self._h.ping(location, "WRITE")
        return {
            "version": self._h.version(),
            "schedd": self._own_name(location) or location["Name"],
            "schedd_version": session.get("RemoteVersion", ""),
            "address": location["MyAddress"],
            "identity": session.get("MyRemoteUserName", ""),
        }

    def do_submit(self, base: dict[str, str], items: list[dict[str, str]]) -> list[int]:
        """One call is one transaction: all or none. The cluster, its first job's number, and how many."""
        _check_commands(base)
        fields = _fields(items)
        done = self._schedd().submit(self._h.Submit(base), itemdata=iter(fields))
        return [done.cluster(), done.first_proc(), done.num_procs()]

    def do_release(self, ids: list[str]) -> dict[str, list[str]]:
        return self._act("Release", ids, "released by Eventmill")

    def do_remove(self, ids: list[str], reason: str) -> dict[str, list[str]]:
        return self._act("Remove", ids, reason)

    def do_query(self, constraint: str, attributes: list[str], limit: int = -1) -> list[dict[str, Any]]:
        self._c.ExprTree(constraint)  # a wrong one would get an error without a text
        return [self._plain_ad(ad) for ad in self._schedd().query(constraint, attributes, limit=limit)]

    def do_history(self, ids: list[str], attributes: list[str]) -> list[dict[str, Any]]:
        """A job may be in it twice (the schedd was killed at the wrong moment): hence the limit."""
        return [self._plain_ad(ad) for ad in self._schedd().history(_any_of(ids), attributes, match=2 * len(ids))]

    def _act(self, action: str, ids: list[str], reason: str) -> dict[str, list[str]]:
        """Those it is denied for, and those the schedd failed to change. It says how many, not which: halves tell; to
        do it twice is harmless. Jobs that are gone, or not in a state for it, are none of these."""
        # the bindings lose a reason that is not one of a pair, and put its text between double quotes as it is
        text = " ".join(reason.replace("\\", "/").replace('"', "'").split())
        said = self._schedd().act(self._h.JobAction[action], ids, reason=(text, 0))
        denied, failed = said["TotalPermissionDenied"], said["TotalError"]
        if not (denied or failed) or len(ids) == 1:
            return {"denied": ids if denied else [], "failed": ids if failed else []}
        halves = [self._act(action, half, reason) for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :])]
        return {name: [id for half in halves for id in half[name]] for name in ("denied", "failed")}

    def _schedd(self) -> Any:
        return self._h.Schedd(self._locate())

    def _look(self) -> None:
        """The cheapest question. Its error says more than others' do."""
        self._schedd().query("false", ["ClusterId"], limit=1)

    def _locate(self) -> Any:
        """Where the schedd is. This machine's own is looked up each time: it costs nothing. Raises OtherSchedd."""
        if self._is_local():
            location = self._h.Collector().locate(self._h.DaemonType.Schedd)
        else:
            location = self._location or self._found()
        name = self._own_name(location)
        self._pinned = self._pinned or name
        if name and name.lower() != self._pinned.lower():
            raise OtherSchedd(f"the schedd that answers is '{name}', and not '{self._pinned}', where the jobs are")
        self._location = None if self._is_local() else location
        return location

    def _is_local(self) -> bool:
        return not self._name and not self._collector

    def _found(self) -> Any:
        collector = self._h.Collector(self._collector) if self._collector else self._h.Collector()
        there = {str(ad["Name"]): ad for ad in collector.locateAll(self._h.DaemonType.Schedd)}
        fitting = [ad for name, ad in there.items() if name.lower() == (self._name or name).lower()]
        if len(fitting) != 1:
            known = ", ".join(sorted(there)[:10]) or "none"
            wanted = f"schedd {self._name}" if self._name else "one schedd (pools.NAME.schedd says which)"
            raise LookupError(f"the collector does not know {wanted}; it knows {known}")
        return fitting[0]

    def _own_name(self, location: Any) -> str:
        """What the schedd calls itself in the pool; "" if this machine's does not say it."""
        if not self._is_local():
            return str(location["Name"])
        with contextlib.suppress(OSError, KeyError, ValueError, self._c.ClassAdException):
            path = self._h.param["SCHEDD_DAEMON_AD_FILE"]
            written = os.stat(path).st_mtime_ns
            if written != self._own_ad[0]:
                with open(path) as file:
                    self._own_ad = written, str(self._c.parseOne(file.read())["Name"])
        return self._own_ad[1]

    def _explain(self, error: Exception) -> tuple[str, str]:
        """Kind and text of an answer."""
        text = _one_line(error)
        if any(part in text for part in _SILENT):
            try:
                self._look()
                return "auth", f"this identity may read the queue, but not change it ({text})"
            except Exception as e:
                error, text = e, _one_line(e)
        for part, (kind, why) in _KNOWN.items():
            if part in text:
                return kind, f"{why} ({text})"
        if isinstance(error, OtherSchedd):
            return "elsewhere", text
        if isinstance(error, PermissionError) or any(part in text for part in _AUTH):
            return "auth", text
        wrong = ValueError, TypeError, KeyError, self._c.ClassAdException
        if any(part in text for part in _REFUSED) or (isinstance(error, wrong) and not self._is_condors(error)):
            return "refused", text
        return "unavailable", text

    def _is_condors(self, error: Exception) -> bool:
        return isinstance(error, self._h.HTCondorException)

    def _plain_ad(self, ad: Any) -> dict[str, Any]:
        return {name: self._attribute(ad, name) for name in ad}

    def _attribute(self, ad: Any, name: str) -> Any:
        """None for what is not UTF-8 (in a list the bindings make an error of their own of it)."""
        try:
            return self._plain(ad[name])
        except (UnicodeDecodeError, SystemError):
            return None

    def _plain(self, value: Any) -> Any:
        """As JSON has it: undefined and error are null, expressions their text."""
        if isinstance(value, self._c.Value):
            return None
        if isinstance(value, str):
            return value if value.isascii() else value.encode("utf-8", "replace").decode()
        if isinstance(value, float):
            return value if abs(value) < float("inf") else None
        if isinstance(value, bool | int):
            return value
        if isinstance(value, list):
            return [self._plain(part) for part in value]
        return self._plain_ad(value) if isinstance(value, self._c.ClassAd) else str(value)


def _check_commands(commands: Mapping[str, str]) -> None:
    """Raises ValueError for a command that would be more than one line, or no command."""
    for name, value in commands.items():
        if not _COMMAND.match(name):
            raise ValueError(f"{name!r} can't be a command")
        if _ENDS_LINE.search(value):
            raise ValueError(f"{name}: a value is one line, without NUL, and without a backslash at its end")


def _fields(items: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Items as lines of fields that come through as they are. Raises ValueError for those that would not."""
    if not 0 < len(items) <= JOBS_MAX:
        raise ValueError(f"{len(items)} jobs in one call: at least 1, at most {JOBS_MAX}")
    names = items[0].keys()
    if wrong := [name for name in names if not _VARIABLE.match(name)]:
        raise ValueError(f"{wrong[0]!r} can't be a variable")
    for item in items:
        if item.keys() != names:
            raise ValueError("the items of one call have the same variables")
        for name, value in item.items():
            if _ENDS_FIELD.search(value):
                raise ValueError(f"{name}: a value is one line, without NUL, and without blanks around it")
            if _EVALUATED.search(value):
                raise ValueError(
                    f"{name}: '$' in a value is written $(DOLLAR), and '$$' and '$(DOLLAR)' themselves can't be had"
                )
    return [{_FIRST: "0", **item, _LAST: "."} for item in items]


def _any_of(ids: Sequence[str]) -> str:
    pairs = (id.split(".") for id in ids)
    return " || ".join(f"(ClusterId == {int(c)} && ProcId == {int(p)})" for c, p in pairs)


def _one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())


def _read(stream: BinaryIO) -> Any:
    """The next frame; None at the end."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    return json.loads(stream.read(struct.unpack(">I", head)[0]))


def _write(stream: BinaryIO, value: Any) -> None:
    raw = json.dumps(value).encode()
    stream.write(struct.pack(">I", len(raw)) + raw)
    stream.flush()


def _tie(parent: int) -> None:
    """Die with the server. It may have died before this was said."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit


def _lock(path: str) -> int:
    """Take the lock, for life: what is returned stays open. Raises TimeoutError."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def give_up(number: int, frame: Any) -> None:
        holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
        raise TimeoutError(f"another server asks this schedd in this name (its process {holder} has locked {path})")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LOCK_TIMEOUT_S)
    fcntl.flock(lock, fcntl.LOCK_EX)
    signal.alarm(0)
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    return lock


def _use_token(file: str, directory: str) -> None:
    """Be who this IDTOKEN says, and nobody else: it alone lies where the bindings look."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    with open(file, "rb") as source:
        token = source.read()
    for name in os.listdir(directory):
        os.unlink(os.path.join(directory, name))
    with os.fdopen(os.open(os.path.join(directory, "token"), os.O_WRONLY | os.O_CREAT, 0o600), "wb") as copy:
        copy.write(token)
    for name in ("SEC_TOKEN_DIRECTORY", "SEC_TOKEN_SYSTEM_DIRECTORY"):
        os.environ[f"_CONDOR_{name}"] = directory
    os.environ["_CONDOR_SEC_CLIENT_AUTHENTICATION_METHODS"] = "IDTOKENS"


def _prepare(settings: Mapping[str, Any]) -> int:
    """Take the lock, which is returned, and choose the identity. Raises OSError."""
    lock = _lock(settings["lock"])
    if settings.get("condor_config"):
        os.environ["CONDOR_CONFIG"] = settings["condor_config"]
    if settings.get("token_file"):
        _use_token(settings["token_file"], settings["token_directory"])
    # who can read the pool's keys would be the pool itself whenever another way of authentication fails
    for name in ("SEC_TOKEN_POOL_SIGNING_KEY_FILE", "SEC_PASSWORD_DIRECTORY"):
        os.environ[f"_CONDOR_{name}"] = os.path.join(os.path.dirname(settings["lock"]), "no-keys")
    return lock


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # its server ends it, by the pipe
    warnings.simplefilter("ignore")  # of commands that are "unused": a pool's defaults may have some for others
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    settings = _read(requests)
    if settings is None:
        return
    _tie(settings["parent"])
    try:
        _prepare(settings)
        bindings = Bindings(settings["schedd"], settings["collector"], settings["pinned"])
    except ImportError as e:
        return _write(answers, {"error": f"HTCondor's bindings are missing: pip install 'eventmill[htcondor]' ({e})"})
    except Exception as e:
        return _write(answers, {"error": _one_line(e)})
    _write(answers, {"ready": True})
    while (request := _read(requests)) is not None:
        _write(answers, bindings.answer(request))


if __name__ == "__main__":
    main()
