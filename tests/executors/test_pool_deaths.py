"""What is left when a server or its zygote dies; what there is where isolation is not to be had."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from eventmill.entities import Status
from tests.executors.driving import attempt, driving, value
from tests.executors.functions import Library, pool

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HELLO = "def main(args): return {'hello': args['n']}"
# a child, a grandchild in a session of its own, and itself: none of them ends by itself
BUSY = """
import os, subprocess, time
def main(args):
    subprocess.Popen(["sleep", "600"])
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        open(args["there"], "w").close()
        while True: time.sleep(600)
    time.sleep(600)
"""
BOMB = """
import os, time
def main(args):
    made = 0
    while True:
        try:
            if os.fork() == 0:
                time.sleep(60)
            made += 1
        except OSError:
            return {"made": made}
"""
AM_ROOT = os.geteuid() == 0
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"] if AM_ROOT else []


class Server:
    """A process with a pool (see `pool_server`); all of its descendants carry `mark`."""

    def __init__(
        self,
        state_dir: Path,
        runs: Sequence[Any],
        *,
        isolation: str = "auto",
        prefix: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self.mark = uuid.uuid4().hex
        arguments = json.dumps({"isolation": isolation, "mark": self.mark, "runs": runs})
        python = options.pop("python", sys.executable)
        command = [*prefix, python, "-m", "tests.executors.pool_server", str(state_dir), arguments]
        options.setdefault("cwd", ROOT)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)

    def said(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the server ended with {self.process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.process.communicate(timeout=30)

    def wait_until_none_is_left(self, timeout_s: float = 10) -> None:
        deadline = time.monotonic() + timeout_s
        while left := descendants(self.mark):
            assert time.monotonic() < deadline, left
            time.sleep(0.02)


def descendants(mark: str) -> list[int]:
    """Processes that were started with this mark, and those forked from them."""
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _marked(pid, mark)]


def _marked(pid: int, mark: str) -> bool:
    try:
        return f"EVENTMILL_TEST_MARK={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


@contextlib.contextmanager
def serving(*args: Any, **options: Any) -> Iterator[Server]:
    server = Server(*args, **options)
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.kill()
        for stream in (server.process.stdin, server.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)


@pytest.mark.parametrize("isolation", ["auto", "none"])
def test_kill_9_of_the_server_leaves_nothing_but_the_names_of_what_ran(tmp_path: Path, isolation: str) -> None:
    runs = [("guest", BUSY, {"there": str(tmp_path / f"there{i}")}) for i in range(3)]
    with serving(tmp_path, runs, isolation=isolation) as server:
        assert server.said()["isolated"] is (isolation == "auto")
        assert server.said() == {"interrupted": []}
        for i in range(2):
            wait_for(tmp_path / f"there{i}")
        assert len(descendants(server.mark)) >= 7  # the zygote, and two workers with their children
        server.kill()
        server.wait_until_none_is_left()
    # two workers: the third attempt had only been waiting
    with serving(tmp_path, runs, isolation=isolation) as server:
        server.said()
        assert server.said() == {"interrupted": [f"{i:032x}" for i in (1, 2)]}
        server.end()
        server.wait_until_none_is_left()
    with serving(tmp_path, runs, isolation=isolation) as server:
        server.said()
        assert server.said() == {"interrupted": []}, "after an orderly stop nothing counts as interrupted"


def test_kill_9_at_any_moment_of_starts_and_attempts(tmp_path: Path) -> None:
    runs = [("guest", f"import os\n{HELLO}  # {i % 5}", {"n": i}) for i in range(400)]
    for delay_s in (0.0, 0.005, 0.02, 0.05):
        with serving(tmp_path, runs) as server:
            server.said()
            server.said()
            time.sleep(delay_s)
            server.kill()
            server.wait_until_none_is_left()


def test_the_zygote_s_death_is_a_crash_for_what_ran_and_nothing_for_what_waited(tmp_path: Path) -> None:
    async def main() -> None:
        library = Library()
        mark = uuid.uuid4().hex
        async with driving(pool(tmp_path, library, environment={"EVENTMILL_TEST_MARK": mark})) as driver:
            there = [tmp_path / f"there{i}" for i in range(2)]
            running = [attempt(library.text(BUSY, name="busy"), {"there": str(path)}) for path in there]
            waiting = [attempt(library.text(HELLO), {"n": i}) for i in range(3)]
            driver.executor.submit([*running, *waiting])
            for path in there:
                await asyncio.to_thread(wait_for, path)
            os.kill(_zygote(mark), signal.SIGKILL)
            for each in running:
                end = await driver.finished(each)
                assert (end.status, end.final, end.timed_out) == (Status.DEVELOPER_ERROR, False, False)
                assert "exited unexpectedly" in value(end)["error"]
            for i, each in enumerate(waiting):
                assert value(await driver.finished(each)) == {"hello": i}

    asyncio.run(main())


def _zygote(mark: str) -> int:
    """The process that forks the workers: the one child of the process that was exec'd."""
    marked = {pid: _parent(pid) for pid in descendants(mark)}
    (outer,) = [pid for pid, parent in marked.items() if parent == os.getpid()]
    (inner,) = [pid for pid, parent in marked.items() if parent == outer]
    return inner


def _parent(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid"))


WITHOUT_NAMESPACES = ["unshare", "--user", "--map-root-user", "sh", "-c"]
FORBID = 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all -- "$@"'


def test_without_isolation_only_one_namespace_is_served(tmp_path: Path) -> None:
    runs = [("a", HELLO, {"n": 1}), ("b", HELLO, {"n": 2}), ("a", HELLO, {"n": 3})]
    prefix = [*WITHOUT_NAMESPACES, FORBID, "sh"]
    with serving(tmp_path, runs, prefix=prefix) as server:
        started = server.said()
        assert started["isolated"] is False
        assert "unshare" in started["reason"]
        server.said()
        ends = [server.said() for _ in runs]
        assert [ends[i]["result"] for i in (0, 2)] == [{"hello": 1}, {"hello": 3}]
        assert (ends[1]["status"], ends[1]["final"]) == (Status.INTERNAL_ERROR, True)
        for word in ("namespace 'b'", "namespace 'a'", 'functions.isolation = "none"'):
            assert word in ends[1]["result"]["error"]
        server.end()
    with serving(tmp_path, runs, prefix=prefix, isolation="none") as server:
        assert server.said() == {"isolated": False, "reason": ""}
        server.said()
        assert [server.said()["result"] for _ in runs] == [{"hello": 1}, {"hello": 2}, {"hello": 3}]
        server.end()
        server.wait_until_none_is_left()


def test_without_isolation_what_a_function_starts_ends_with_its_worker(tmp_path: Path) -> None:
    source = BUSY.replace(
        "time.sleep(600)\n", "while not os.path.exists(args['there']): time.sleep(0.01)\n    return {}\n"
    )
    source = source.replace("while True: while", "while True: time.sleep(600)\n    while")

    async def main() -> None:
        library = Library()
        mark = uuid.uuid4().hex
        executor = pool(tmp_path, library, isolation="none", environment={"EVENTMILL_TEST_MARK": mark})
        async with driving(executor) as driver:
            (end,) = await driver.run(attempt(library.text(source), {"there": str(tmp_path / "there")}))
            assert end.status is Status.SUCCESS
            async with asyncio.timeout(10):
                while len(descendants(mark)) > 1:  # noqa: ASYNC110  (the zygote alone is left)
                    await asyncio.sleep(0.02)

    asyncio.run(main())


def test_an_ordinary_user_has_isolation_too() -> None:
    """Run by root, it becomes user 65534, with an interpreter and a copy of the code that this user may read."""
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is for the eyes of its owner
        _serve_as_nobody(Path(directory) / "home")


def _serve_as_nobody(home: Path) -> None:
    python = next((p for p in (sys.executable, "/usr/bin/python3") if _nobody_can_run(p)), None)
    assert python is not None, "no Python that an ordinary user may run"
    (home / "tests").mkdir(parents=True)
    shutil.copytree(ROOT / "src" / "eventmill", home / "eventmill", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "executors", home / "tests" / "executors")
    for path in [home.parent, home, *home.rglob("*")]:
        path.chmod(0o755)
    state = home / "state"
    state.mkdir()
    if AM_ROOT:
        os.chown(state, 65534, 65534)
    facts = (
        "import os\ndef main(args): return {'uid': os.getuid(), 'pid': os.getpid(), 'data': os.listdir(args['data']),"
        " 'processes': [p for p in os.listdir('/proc') if p.isdigit()]}"
    )
    runs = [("a", facts, {"data": str(state / "data")}), ("b", BOMB, {}), ("c", HELLO, {"n": 1})]
    packages = os.pathsep.join([str(home), *(p for p in sys.path if p.endswith("site-packages"))])
    with serving(
        state,
        runs,
        prefix=AS_NOBODY,
        python=python,
        cwd=home,
        env={"PYTHONPATH": packages, "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
    ) as server:
        assert server.said() == {"isolated": True, "reason": ""}
        server.said()
        first, second, third = [server.said() for _ in runs]
        uid = 65534 if AM_ROOT else os.getuid()
        assert first["result"] == {"uid": uid, "pid": 1, "data": ["pool"], "processes": ["1"]}
        assert second["result"]["made"] < 200
        assert third["result"] == {"hello": 1}
        server.kill()
        server.wait_until_none_is_left()


def _nobody_can_run(python: str) -> bool:
    again = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import asyncio']))"
    return subprocess.run([*AS_NOBODY, python, "-c", again], capture_output=True, cwd="/").returncode == 0
