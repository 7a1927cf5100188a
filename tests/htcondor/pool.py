"""A personal HTCondor pool on loopback, as processes that tests start, stop and kill.

As root it runs in a user namespace in which root is the account `daemon`, since HTCondor refuses root's jobs; so its
jobs' Owner is `daemon`, and its files are root's outside. With `accounts` it is a pool as sites have it instead: its
daemons are root's, and every job runs as its owner's account. It can't outlive this process, even if this one is
killed.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from tests.htcondor.programs import CondorTrouble, programs

CPUS = 32
"""That the pool has, whatever the machine has: jobs that sleep cost nothing."""
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60
DIRECTORIES = ("execute", "lock", "log", "run", "spool", "tokens.d", "passwords.d", "cred_dir", "history")

CONFIG = """\
RELEASE_DIR = {usr}
LOCAL_DIR = {directory}
LOCAL_CONFIG_FILE =
LOCAL_CONFIG_DIR =
BIN = {usr}/bin
SBIN = {usr}/sbin
LIB = {usr}/lib/condor
LIBEXEC = {usr}/libexec/condor
SHARE = {usr}/share/condor
LOG = {directory}/log
LOCK = {directory}/lock
RUN = {directory}/run
SPOOL = {directory}/spool
EXECUTE = {directory}/execute
CRED_STORE_DIR = {directory}/cred_dir
use ROLE: Personal
# loopback only, free ports
CONDOR_HOST = 127.0.0.1
COLLECTOR_HOST = 127.0.0.1:0
NETWORK_INTERFACE = 127.0.0.1
NETWORK_HOSTNAME = localhost
FULL_HOSTNAME = localhost
BIND_ALL_INTERFACES = False
ENABLE_IPV6 = False
NO_DNS = True
DEFAULT_DOMAIN_NAME = local
UID_DOMAIN = local
FILESYSTEM_DOMAIN = local
TRUST_DOMAIN = local
DAEMON_SOCKET_DIR = auto
MASTER_ADDRESS_FILE = {directory}/log/.master_address
COLLECTOR_ADDRESS_FILE = {directory}/log/.collector_address
SCHEDD_ADDRESS_FILE = {directory}/log/.schedd_address
NEGOTIATOR_ADDRESS_FILE = {directory}/log/.negotiator_address
SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, IDTOKENS
SEC_PASSWORD_DIRECTORY = {directory}/passwords.d
SEC_TOKEN_SYSTEM_DIRECTORY = {directory}/tokens.d
SEC_TOKEN_DIRECTORY = {directory}/tokens.d
SEC_TOKEN_POOL_SIGNING_KEY_FILE = {directory}/passwords.d/POOL
# the bindings of 2026 otherwise reject the file system handshake of older servers
SEC_FS_ENFORCE_CHANNEL_BINDING = False
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
ALLOW_ADMINISTRATOR = *
NUM_CPUS = {cpus}
MEMORY = 16384
NUM_SLOTS = 1
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
# quick matches, quick returns
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_CYCLE_DELAY = 0
NEGOTIATOR_MIN_INTERVAL = 0
SCHEDD_INTERVAL = {schedd_interval}
SCHEDD_MIN_INTERVAL = 0
UPDATE_INTERVAL = 5
# what a killed schedd had claimed is free again after six of these
ALIVE_INTERVAL = 5
PERIODIC_EXPR_INTERVAL = 5
MASTER_BACKOFF_CONSTANT = 1
MASTER_BACKOFF_CEILING = 2
RUNBENCHMARKS = 0
MAIL = /bin/true
SENDMAIL = /bin/true
SINGULARITY = /bin/false
DOCKER =
JAVA =
ENABLE_SSH_TO_JOB = False
# the pool's own feed of events
EVENT_LOG = {directory}/log/EventLog
EVENT_LOG_MAX_SIZE = 0
EVENT_LOG_FORMAT_OPTIONS = JSON, ISO_DATE, SUB_SECOND, UTC
EVENT_LOG_JOB_AD_INFORMATION_ATTRS = {attributes}
DEFAULT_USERLOG_FORMAT_OPTIONS = ISO_DATE, SUB_SECOND, UTC
MAX_HISTORY_ROTATIONS = 20
"""
ATTRIBUTES = (
    "EventmillActivation, EventmillAttempt, EventmillServer, Owner, JobStatus, NumJobStarts, ExitCode, ExitBySignal,"
    " ExitSignal, HoldReason, HoldReasonCode, HoldReasonSubCode, RemoveReason, RemoteHost, MemoryUsage,"
    " RemoteWallClockTime, RemoteUserCpu, RemoteSysCpu"
)

_starter = ThreadPoolExecutor(1, thread_name_prefix="condor")
"""Starts all pools: the kernel takes the end of the *thread* that started a process for its parent's death."""


class CondorPool:
    """One pool. `start` it as often as you like; as a context manager it is started and closed.

    `extra`: lines of configuration, after ours. `suite`: the Debian whose HTCondor it is (trixie: 23.9, sid: 25.14).
    `accounts`: jobs run as their owners' accounts (as root only).
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        suite: str = "trixie",
        extra: Sequence[str] = (),
        accounts: bool = False,
    ) -> None:
        self._accounts = accounts
        self._temporary = tempfile.TemporaryDirectory(prefix="eventmill-condor-") if directory is None else None
        self.directory = Path(self._temporary.name if self._temporary else os.path.abspath(directory or "")).resolve()
        self.suite = suite
        self.usr = programs(suite) / "usr"
        self.process: subprocess.Popen[bytes] | None = None
        for name in DIRECTORIES:
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        for name in ("tokens.d", "passwords.d"):
            (self.directory / name).chmod(0o700)
        if accounts:
            account = pwd.getpwnam("daemon")
            extra = [f"CONDOR_IDS = {account.pw_uid}.{account.pw_gid}", *extra]
            self.directory.chmod(0o755)
            for name in DIRECTORIES[:6]:
                os.chown(self.directory / name, account.pw_uid, account.pw_gid)
                (self.directory / name).chmod(0o755)
        interval = 2 if suite == "trixie" else 1  # a newer schedd does not wake up by itself for new jobs
        text = CONFIG.format(
            usr=self.usr, directory=self.directory, cpus=CPUS, schedd_interval=interval, attributes=ATTRIBUTES
        )  # fmt: skip
        self.config.write_text(text + "\n".join([*extra, ""]))

    @property
    def config(self) -> Path:
        """The configuration file of the access point, for CONDOR_CONFIG."""
        return self.directory / "condor_config"

    @property
    def event_log(self) -> Path:
        return self.directory / "log" / "EventLog"

    # life

    def start(self) -> None:
        """Start the daemons; returns when jobs can be submitted and there is a slot. Raises CondorTrouble."""
        for address in (self.directory / "log").glob(".*_address"):
            address.unlink()
        command = ["setpriv", "--pdeathsig", "QUIT", *self._as_daemon(), str(self.usr / "sbin/condor_master"), "-f"]
        self.process = _starter.submit(
            subprocess.Popen, command, env=self.environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ).result()  # fmt: skip
        end = time.monotonic() + START_TIMEOUT_S
        while not (self._answers("condor_status", "-af", "Name") and self._answers("condor_q", "-totals")):
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise CondorTrouble(f"the pool does not start:\n{self._said()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the daemons, quickly; the queue stays."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGQUIT)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    def kill_schedd(self) -> None:
        """SIGKILL; the master starts another one a second or two later."""
        for pid in self.pids("condor_schedd"):
            os.kill(pid, signal.SIGKILL)

    def stop_schedd(self) -> None:
        """Take the schedd away until `start_schedd`."""
        self.run("condor_off", "-daemon", "schedd", "-fast")
        end = time.monotonic() + 20
        while self.pids("condor_schedd") and time.monotonic() < end:
            time.sleep(0.05)

    def start_schedd(self) -> None:
        self.run("condor_on", "-daemon", "schedd")
        self.until_schedd()

    def until_schedd(self) -> None:
        """Return when the schedd answers."""
        end = time.monotonic() + 30
        while not self._answers("condor_q", "-totals"):
            if time.monotonic() > end:
                raise CondorTrouble(f"the schedd does not come back:\n{self._said()}")
            time.sleep(0.1)

    def join(self) -> None:
        """Return when the pool has ended by itself. Raises CondorTrouble with what it says."""
        assert self.process is not None
        self.process.wait()
        raise CondorTrouble(f"the pool has ended:\n{self._said()}")

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
    def environment(self) -> dict[str, str]:
        """For its own tools."""
        path = f"{self.usr / 'bin'}:{self.usr / 'sbin'}:{os.environ.get('PATH', '')}"
        return {**os.environ, "CONDOR_CONFIG": str(self.config), "PATH": path}

    def settings(self, name: str) -> str:
        """The lines of Eventmill's configuration for this pool, under a name."""
        return f'[pools.{name}]\nkind = "htcondor"\ncondor_config = "{self.config}"\nevent_log = "{self.event_log}"\n'

    @property
    def owner(self) -> str:
        """Whose jobs are those that this account submits."""
        return "daemon" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name

    def run(self, tool: str, *arguments: str) -> str:
        """Run one of HTCondor's tools, as the pool's own account; what it prints. Raises CondorTrouble if it fails."""
        ran = self._tool(tool, *arguments)
        if ran.returncode != 0:
            raise CondorTrouble(f"{tool} failed: {(ran.stdout + ran.stderr)[-2000:]}")
        return ran.stdout

    def queue(self, constraint: str = "true") -> list[dict[str, Any]]:
        """The ads of jobs in the queue."""
        return _ads(self.run("condor_q", "-allusers", "-json", "-constraint", constraint))

    def history(self, constraint: str = "true") -> list[dict[str, Any]]:
        """The ads of jobs that have left it."""
        return _ads(self.run("condor_history", "-json", "-constraint", constraint))

    def token(self, name: str) -> Path:
        """A file with an IDTOKEN for this account of the pool."""
        text = self.run(
            "condor_token_create", "-identity", f"{name}@local", "-key", "POOL", "-lifetime", "86400",
            "-authz", "READ", "-authz", "WRITE",
        )  # fmt: skip
        file = self.directory / f"{name}.token"
        file.touch(mode=0o600)
        file.write_text(text)
        return file

    def _answers(self, tool: str, *arguments: str) -> bool:
        ran = self._tool(tool, *arguments)
        return ran.returncode == 0 and bool(ran.stdout.strip())

    def _tool(self, tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*self._as_daemon(), tool, *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)

    def _as_daemon(self) -> list[str]:
        if os.getuid() != 0 or self._accounts:
            return []
        account = pwd.getpwnam("daemon")
        return ["unshare", "--user", f"--map-user={account.pw_uid}", f"--map-group={account.pw_gid}"]

    def pids(self, program: str) -> list[int]:
        """Processes of this pool: those with its configuration in their environment."""
        mark, found = f"CONDOR_CONFIG={self.config}".encode(), []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                if program.encode() in Path("/proc", entry, "cmdline").read_bytes().split(b"\0")[0]:
                    found += [int(entry)] if mark in Path("/proc", entry, "environ").read_bytes().split(b"\0") else []
            except OSError:
                continue
        return found

    def _said(self) -> str:
        logs = sorted((self.directory / "log").glob("*Log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-700:]}" for log in logs)


def _ads(text: str) -> list[dict[str, Any]]:
    ads: list[dict[str, Any]] = orjson.loads(text) if text.strip() else []
    return ads
