"""The executors that the contract's tests are run against, each with actions that do the same thing in its way.

Another executor joins by another subject in `SUBJECTS`; HTCondor needs a pool, which the test session has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from eventmill.config import Pool as PoolSettings
from eventmill.entities import Action, Limits
from eventmill.executors import Executor
from eventmill.executors.htcondor import CondorQueue
from eventmill.executors.openwhisk import Client, OpenWhisk
from eventmill.executors.pool import Pool
from tests.executors.local_jobs import make_queue, script
from tests.htcondor.pool import CPUS, CondorPool


class Subject(ABC):
    """`make` gives an executor over `state_dir`, which runs `width` attempts at once; the actions are for it."""

    survives: bool
    """Whether what runs goes on when the executor is stopped, or its server dies."""
    in_order = True
    """Whether attempts begin in the order in which they were submitted. A pool of machines promises nothing."""
    ends_in_order = True
    """Whether those that run one after the other are reported so. Logs that are fetched after the end may overtake each
    other."""

    @abstractmethod
    def make(self, state_dir: Path, *, width: int = 2) -> Executor: ...

    @abstractmethod
    def quick(self) -> Action:
        """Appends a line, the parameter `word`, to the file in parameter `witness`; ends at once with success."""

    @abstractmethod
    def slow(self) -> Action:
        """The same, but then goes on for minutes."""

    @abstractmethod
    def failing(self) -> Action:
        """Ends at once without success, leaving a reason in `error`."""


_FUNCTIONS = {
    "quick": "def main(args):\n    print(args['word'], file=open(args['witness'], 'a'))\n    return {}",
    "slow": (
        "import time\n"
        "def main(args):\n"
        "    print(args['word'], file=open(args['witness'], 'a'), flush=True)\n"
        "    time.sleep(600)"
    ),
    "failing": "def main(args):\n    raise ValueError('it fails')",
}


class PoolSubject(Subject):
    survives = False

    def make(self, state_dir: Path, *, width: int = 2) -> Executor:
        return Pool(lambda digest: _FUNCTIONS[digest].encode(), state_dir=state_dir / "pool", workers_max=width)

    def _action(self, name: str) -> Action:
        limits = Limits(timeout_ms=300_000)
        return Action(
            namespace="guest", name=name, version="0.0.1", revision=1, kind="python:3.11", code=name, limits=limits
        )

    def quick(self) -> Action:
        return self._action("quick")

    def slow(self) -> Action:
        return self._action("slow")

    def failing(self) -> Action:
        return self._action("failing")


class OpenWhiskSubject(PoolSubject):
    """The same functions, run by whoever speaks OpenWhisk's API at `url`."""

    ends_in_order = False

    def __init__(self, url: str, key: str) -> None:
        self._url, self._key = url, key

    def make(self, state_dir: Path, *, width: int = 2) -> OpenWhisk:
        client = Client(self._url, self._key, verify=True, connections_max=width)
        state_dir = state_dir / "functions"
        return OpenWhisk(lambda digest: _FUNCTIONS[digest].encode(), client, state_dir=state_dir, connections_max=width)

    def _action(self, name: str) -> Action:
        limits = Limits(timeout_ms=5_000, memory_mb=128)  # it ends what a test leaves behind
        return replace(super()._action(name), limits=limits)


class LocalSubject(Subject):
    survives = True
    _sign = 'echo "$2" >> "$1"'
    _description = 'arguments = "$(witness) $(word)"'
    _codes: Mapping[str, bytes] = {
        "quick": script(_sign, _description),
        "slow": script(f"{_sign}; exec sleep 600", _description),
        "failing": script("exit 3", _description),
    }

    def make(self, state_dir: Path, *, width: int = 2) -> Executor:
        return make_queue(state_dir / "local", self._codes, cpus=width)

    def _action(self, name: str) -> Action:
        limits = Limits(timeout_ms=60_000, memory_mb=100)  # it ends what a test leaves behind
        return Action(namespace="guest", name=name, version="0.0.1", revision=1, kind="job", code=name, limits=limits)

    def quick(self) -> Action:
        return self._action("quick")

    def slow(self) -> Action:
        return self._action("slow")

    def failing(self) -> Action:
        return self._action("failing")


class CondorSubject(LocalSubject):
    """A real pool, that of the test session; each job wants so many of its processors that as many run as should."""

    in_order = False

    def __init__(self, pool: CondorPool) -> None:
        self._pool = pool

    def make(self, state_dir: Path, *, width: int = 2) -> Executor:
        wishes = f"{self._description}\nrequest_cpus = {CPUS // width}\nrequest_memory = 32\nrequest_disk = 100"
        codes = {
            "quick": script(self._sign, wishes),
            "slow": script(f"{self._sign}; exec sleep 600", wishes),
            "failing": script("exit 3", wishes),
        }
        return CondorQueue(
            codes.__getitem__, name="condor",
            pool=PoolSettings(kind="htcondor", condor_config=self._pool.config, keep_claim_idle_s=0),
            state_dir=state_dir / "condor", results_dir=state_dir / "results", environment={},
            result_bytes_max=1 << 20, archive_files_max=1000, archive_bytes_max=1 << 30,
        )  # fmt: skip


SUBJECTS: dict[str, Subject] = {"pool": PoolSubject(), "local": LocalSubject()}
