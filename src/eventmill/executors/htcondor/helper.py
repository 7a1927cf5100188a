"""The process that has HTCondor's bindings: one for each identity in a pool. Run as a file, never imported by a server.

The bindings hold the interpreter's lock while they wait, and a process keeps the identity of its first call: so they
live here, behind a pipe. It reads one request at a time, answers it, and ends when the pipe does. It dies with its
server (PR_SET_PDEATHSIG), and holds a lock, so that nobody else asks in this identity's name for the same server.

Frames on both pipes: four bytes, big endian, of length; then JSON. The first frame is the configuration; the answer to
it is `{"ready": …}` or `{"error": …}`. A request is `{"op": …, …}`; an answer `{"result": …}`, or `{"error": …, "kind":
"unavailable" | "refused"}`.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

_PR_SET_PDEATHSIG = 1
_HINT = (
    "the access point is older than our bindings' protection of its file system handshake: set"
    " SEC_FS_ENFORCE_CHANNEL_BINDING = False in the configuration that pools.NAME.condor_config names, or give the"
    " namespace an IDTOKEN (pools.NAME.tokens)"
)
"""HTCONDOR-3883: bindings from the middle of 2026 on refuse servers from before."""
_HINT_FOR = ("Directory name doesn't match server's network address", "FS:1004")


class Bindings:
    """The schedd of one pool, asked in one name."""

    def __init__(self, schedd: str, collector: str) -> None:
        import htcondor2

        self._h: Any = htcondor2
        self._name = schedd
        self._collector = collector
        self._schedd: Any = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What one request leads to. Never raises: whatever goes wrong is an answer."""
        try:
            return {"result": getattr(self, f"do_{request['op']}")(**{k: v for k, v in request.items() if k != "op"})}
        except Exception as e:
            text = _explained(e)
            kind = "refused" if request["op"] == "submit" and self._answers() else "unavailable"
            self._schedd = None  # it may have another address by now
            return {"error": text, "kind": kind}

    def _answers(self) -> bool:
        """Whether the schedd is there: then it is what it was asked that is wrong."""
        try:
            self._located().query("false", ["ClusterId"], limit=1)
        except Exception:
            return False
        return True

    def _located(self) -> Any:
        if self._schedd is None:
            if self._name or self._collector:
                collector = self._h.Collector(self._collector or None)
                self._schedd = self._h.Schedd(collector.locate(self._h.DaemonType.Schedd, self._name or None))
            else:
                self._schedd = self._h.Schedd()
        return self._schedd

    def do_ping(self) -> dict[str, Any]:
        self._located().query("false", ["ClusterId"], limit=1)
        return {"version": self._h.version()}

    def do_submit(self, base: dict[str, str], items: list[dict[str, str]]) -> list[int]:
        """One call is one transaction: all or none. The cluster, its first job's number, and how many."""
        done = self._located().submit(self._h.Submit(base), itemdata=iter(items))
        return [done.cluster(), done.first_proc(), done.num_procs()]

    def do_release(self, ids: list[str]) -> None:
        self._located().act(self._h.JobAction.Release, ids)

    def do_remove(self, ids: list[str], reason: str) -> None:
        self._located().act(self._h.JobAction.Remove, ids, reason=reason)

    def do_query(self, constraint: str, attributes: list[str]) -> list[dict[str, Any]]:
        return [_plain(ad) for ad in self._located().query(constraint, attributes)]

    def do_history(self, ids: list[str], attributes: list[str]) -> list[dict[str, Any]]:
        return [_plain(ad) for ad in self._located().history(_any_of(ids), attributes, match=2 * len(ids))]


def _any_of(ids: Sequence[str]) -> str:
    pairs = (id.split(".") for id in ids)
    return " || ".join(f"(ClusterId == {int(c)} && ProcId == {int(p)})" for c, p in pairs)


def _plain(ad: Any) -> dict[str, Any]:
    return {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in ad.items()}


def _explained(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{_HINT} ({text})" if any(part in text for part in _HINT_FOR) else text


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
    os.environ["_CONDOR_SEC_TOKEN_POOL_SIGNING_KEY_FILE"] = os.path.join(directory, "none")


def _prepare(settings: Mapping[str, Any]) -> int:
    """Tie this process to its server, take the lock, choose the identity. Raises OSError. The lock is returned."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != settings["parent"]:
        raise SystemExit
    lock = os.open(settings["lock"], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if settings.get("condor_config"):
        os.environ["CONDOR_CONFIG"] = settings["condor_config"]
    if settings.get("token_file"):
        _use_token(settings["token_file"], settings["token_directory"])
    return lock


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # its server ends it, by the pipe
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    settings = _read(requests)
    try:
        _prepare(settings)
        bindings = Bindings(settings["schedd"], settings["collector"])
    except BlockingIOError:
        return _write(answers, {"error": f"another server asks this schedd in this name ({settings['lock']})"})
    except ImportError as e:
        return _write(answers, {"error": f"HTCondor's bindings are missing: pip install 'eventmill[htcondor]' ({e})"})
    except Exception as e:
        return _write(answers, {"error": _explained(e)})
    _write(answers, {"ready": True})
    while (request := _read(requests)) is not None:
        _write(answers, bindings.answer(request))


if __name__ == "__main__":
    main()
