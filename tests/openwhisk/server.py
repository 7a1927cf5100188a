"""A real Apache OpenWhisk on loopback, as a process that tests start and end.

It is made, once, from a directory that is no part of this repository (`SOURCE`: how to make one, and what it is, says
its README), and kept in a cache directory of the working tree: complete or not there, one process at a time makes it.
A server can't outlive this process, even if this one is killed. Its keys are read from its own files, never written
into ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

ROOT = Path(__file__).parents[2]
SOURCE = Path(os.environ.get("EVENTMILL_OPENWHISK", ROOT.parent / "shared/tools/openwhisk"))
CACHE = ROOT / ".cache" / "openwhisk"
NEEDED = {"java": "default-jre-headless", "mvn": "maven", "node": "nodejs", "npm": "npm"}
SETUP_TIMEOUT_S = 600
START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 30
RAISED = {"OW_INVOKES_PER_MINUTE": "100000", "OW_FIRES_PER_MINUTE": "100000", "OW_CONCURRENT": "1000", "OW_LOG": "WARN"}
"""So that no test waits for the next minute. Upstream's: 60, 60 and 30."""

_NETS = range(220, 255)
"""127.N: where a server's actions listen. Two servers in one net would answer each other's calls; `run.sh` by itself
takes one below these."""

_starter = ThreadPoolExecutor(1, thread_name_prefix="openwhisk")
"""Starts all servers: the kernel takes the end of the *thread* that started a process for its parent's death."""


class OpenWhiskTrouble(RuntimeError):
    """OpenWhisk can't be had, or does not start; the message says what to do."""


def is_there() -> bool:
    """Whether this machine has what an OpenWhisk is made from."""
    return (SOURCE / "setup.sh").exists()


def programs(cache: Path = CACHE) -> Path:
    """The directory with `run.sh`, made if it isn't there. Raises OpenWhiskTrouble."""
    if not is_there():
        raise OpenWhiskTrouble(
            f"there is no OpenWhisk to start in {SOURCE}: EVENTMILL_OPENWHISK has to name a directory with setup.sh "
            "and run.sh (docs/openwhisk.md)"
        )
    directory = cache / _digest()
    if directory.exists():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():  # somebody else may have made it while we waited
            _make(directory)
    return directory


def _digest() -> str:
    """Of what it is made from: names and sizes, and the scripts whole."""
    digest = hashlib.sha256()
    for file in sorted(path for path in SOURCE.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(SOURCE)} {file.stat().st_size}\n".encode())
    for name in ("setup.sh", "run.sh", "pom.xml"):
        digest.update((SOURCE / name).read_bytes())
    return digest.hexdigest()[:16]


def _make(directory: Path) -> None:
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            raise OpenWhiskTrouble(f"`{program}` is missing, which OpenWhisk needs: apt-get install {package}")
    for left in directory.parent.glob("making-*"):  # by a process that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix="making-", dir=directory.parent) as temporary:
        made = Path(temporary) / "openwhisk"
        try:
            ran = subprocess.run(
                ["bash", str(SOURCE / "setup.sh"), str(made)], capture_output=True, text=True, timeout=SETUP_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise OpenWhiskTrouble(f"OpenWhisk's setup.sh has not ended within {SETUP_TIMEOUT_S} s") from None
        if ran.returncode != 0:
            raise OpenWhiskTrouble(f"OpenWhisk's setup.sh failed:\n{(ran.stdout + ran.stderr)[-3000:]}")
        for path in [made, *made.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o200)  # made from what may only be read, it could not be removed
        os.rename(made, directory)


class OpenWhisk:
    """One server with empty namespaces. As a context manager it is started and closed.

    `limits`: what of `RAISED` is to be otherwise.
    """

    def __init__(
        self, directory: Path | None = None, *, port: int = 0, limits: Mapping[str, str] | None = None
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="eventmill-openwhisk-") if directory is None else None
        self.directory = Path(self._temporary.name if self._temporary else os.path.abspath(directory or "")).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.programs = programs()
        self.url = f"http://127.0.0.1:{port or _free_port()}"
        self.process: subprocess.Popen[bytes] | None = None
        self._environment = {**os.environ, **RAISED, **(limits or {})}

    # life

    def start(self) -> None:
        """Returns when it answers. Raises OpenWhiskTrouble."""
        command = ["setpriv", "--pdeathsig", "TERM", "bash", str(self.programs / "run.sh")]
        with self.log.open("wb") as log, claimed() as (net, claim):
            self.process = _starter.submit(
                subprocess.Popen, [*command, str(self.directory / "state"), self.url.rpartition(":")[2]],
                env={**self._environment, "OW_STANDIN_NET": net}, pass_fds=[claim], start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            ).result()  # fmt: skip
        end = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise OpenWhiskTrouble(f"OpenWhisk does not start:\n{self._said()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it and its actions' processes; what it knew is gone."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """SIGKILL, to the server and to what it has started in its session."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def join(self) -> None:
        """Return when it has ended by itself. Raises OpenWhiskTrouble with what it says."""
        assert self.process is not None
        self.process.wait()
        raise OpenWhiskTrouble(f"OpenWhisk has ended:\n{self._said()}")

    def close(self) -> None:
        self.stop()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # what it knows

    @property
    def keys(self) -> dict[str, str]:
        """The key (`uuid:key`) of each namespace, `guest` and `whisk.system`, from a configuration of its own."""
        with zipfile.ZipFile(next(self.programs.glob("lib/*standalone*.jar"))) as archive:
            text = archive.read("standalone.conf").decode()
        found = re.findall(r'([\w-]+)\s*=\s*"([0-9a-f-]{36}:[A-Za-z0-9]{64})"', text)
        return {name.replace("-", "."): key for name, key in found}

    def write_keys(self) -> dict[str, Path]:
        """Each namespace's key in a file beside the log, which only we read."""
        files = {name: self.directory / f"{name}.key" for name in self.keys}
        for name, file in files.items():
            file.unlink(missing_ok=True)
            file.touch(0o600)
            file.write_text(self.keys[name] + "\n")
        return files

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ping", timeout=2, trust_env=False).text == "pong"
        except httpx.HTTPError:
            return False

    def _said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""


@contextlib.contextmanager
def claimed() -> Iterator[tuple[str, int]]:
    """A net for its actions, and the socket whose name keeps all others from it: the server gets it, and has it until
    its end."""
    for number in random.sample(_NETS, len(_NETS)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
            try:
                claim.bind(f"\0eventmill-openwhisk-{number}")
            except OSError:
                continue
            yield f"127.{number}", claim.fileno()
            return
    raise OpenWhiskTrouble(f"{len(_NETS)} OpenWhisks run on this machine already: end one")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
