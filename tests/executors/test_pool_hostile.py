"""Functions that misbehave, each beside one that behaves: it is told off, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import eventmill
from eventmill.entities import Status
from eventmill.executors import Finished
from tests.executors.driving import attempt, driving, value
from tests.executors.functions import Library, pool

pytestmark = pytest.mark.slow

GOOD = "def main(args): return {'good': args['n']}"
EXITED = "command exited"
NO_RESPONSE = "The action did not produce a valid response and exited unexpectedly."
NO_MEMORY = "The action exhausted its memory and was aborted."
NO_TIME = "its time limit"


def beside_a_good_one(tmp_path: Path, source: str, params: Any = None, **facts: Any) -> Finished:
    """How the function ends, while one that behaves, in another namespace, answers before, during and after."""
    ends = []

    async def main() -> None:
        library = Library()
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        (data / "secret").write_text("the key of the server")
        executor = pool(tmp_path, library, hidden=[data], workers_max=3)
        async with driving(executor) as driver:
            assert executor.isolated, executor.isolation_reason
            good = library.text(GOOD, namespace="other", timeout_ms=10_000)
            bad = attempt(library.text(source, **{"timeout_ms": 1500, **facts}), params)
            await driver.run(attempt(good, {"n": 0}))
            driver.executor.submit([bad])
            for n in range(5):
                (end,) = await driver.run(attempt(good, {"n": n}))
                assert value(end) == {"good": n}
                assert end.logs == ()
                await asyncio.sleep(0.02)
            ends.append(await driver.finished(bad))
            (end,) = await driver.run(attempt(good, {"n": 9}))
            assert value(end) == {"good": 9}
            assert "initTime" not in (end.usage or {}), "the good one's worker was lost"
            (end,) = await driver.run(attempt(library.text(GOOD, name=bad.action.name, revision=2), {"n": 3}))
            assert value(end) == {"good": 3}
            assert end.logs == ()

    asyncio.run(main())
    return ends[0]


CRASHES = {
    "exit": ("import os; os._exit(7)", EXITED, "exit code 7"),
    "segfault": ("import ctypes; ctypes.string_at(8)", EXITED, "SIGSEGV"),
    "abort": ("import os; os.abort()", EXITED, "ended by SIG"),
    "deep recursion in C": (
        "import sys; sys.setrecursionlimit(1 << 30)\n    f = lambda: f()\n    return f()",
        None,
        "",
    ),
    "closes all descriptors": ("import os; os.closerange(0, 1000); return {}", EXITED, "exit code 70"),
    "closes the connection": ("import os, time; os.close(3); time.sleep(60)", NO_RESPONSE, ""),
    "writes to the connection": ("import os; os.write(3, b'x' * 100); return {}", NO_RESPONSE, ""),
    "forges a huge frame": ("import os; os.write(3, b'\\xff' * 4 + b'\\x05'); return {}", NO_RESPONSE, ""),
    "forges an answer that is no JSON": (
        "import os, struct, time; p = struct.pack('<IBdBdI', 1, 0, -1, 0, 0, 0) + b'{not json'\n"
        "    os.write(3, struct.pack('<IB', len(p), 5) + p); time.sleep(60)",
        "The action did not produce a valid JSON or JSON Array response.",
        "",
    ),
    "forges another attempt's answer": (
        "import os, struct, time; p = struct.pack('<IBdBdI', 2, 0, -1, 0, 0, 0) + b'{}'\n"
        "    os.write(3, struct.pack('<IB', len(p), 5) + p); time.sleep(60)",
        NO_RESPONSE,
        "",
    ),
    "reads the connection": ("import os; return {'x': os.read(3, 100)}", NO_TIME, ""),
    "memory": ("a = []\n    while True: a.append(bytearray(10_000_000))", NO_MEMORY, ""),
    "memory in C": (
        "import ctypes; libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p\n"
        "    while libc.malloc(10_000_000): pass\n"
        "    return {'refused': True}",
        None,
        "",
    ),
    "a long loop": ("while True: pass", NO_TIME, ""),
    "sleeps with all signals blocked": (
        "import signal, time; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(60)",
        NO_TIME,
        "",
    ),
    "prints without end": ("import os\n    while True: os.write(1, b'y\\n' * 10000)", NO_TIME, "truncated"),
    "prints without end and without lines": ("import os\n    while True: os.write(2, b'y' * 60000)", NO_TIME, "trunc"),
    "stops itself": ("import os, signal, time; os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)", NO_TIME, ""),
    "a bomb of forks": (
        "import os\n    while True:\n        try: os.fork()\n        except OSError: pass",
        NO_TIME,
        "",
    ),
    "a bomb of threads": (
        "import threading, time\n    while True: threading.Thread(target=time.sleep, args=(60,)).start()",
        None,
        "",
    ),
}


@pytest.mark.parametrize("name", CRASHES)
def test_what_breaks_its_own_process_breaks_nothing_else(tmp_path: Path, name: str) -> None:
    body, error, logged = CRASHES[name]
    timeout_ms = 300 if "bomb" in name else 1500  # other tests would like to run, too
    end = beside_a_good_one(tmp_path, f"def main(args):\n    {body}", logs_mb=1, timeout_ms=timeout_ms)
    if error is NO_TIME:
        assert end.timed_out
    elif error is not None:
        assert end.status is Status.DEVELOPER_ERROR
        assert value(end) == {"error": error}
    assert any(logged in line for line in end.logs) or not logged, end.logs
    assert sum(map(len, end.logs)) < (1 << 20) + 200


HARMLESS = {
    "reads standard input": ("import os; return {'x': os.read(0, 5).decode()}", {"x": ""}),
    "closes its streams": (
        "import os, sys; sys.stdout.close(); sys.stderr.close(); os.close(1); return {'x': 1}",
        {"x": 1},
    ),
    "forks and returns twice": ("import os; os.fork(); return {'x': 1}", {"x": 1}),
    "eats descriptors": (
        "import os\n    try:\n        while True: os.dup(1)\n    except OSError as e: return {'x': e.errno}",
        {"x": 24},
    ),
    "writes a file without end": (
        "import os, resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "    try: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, 1 << 40))\n"
        "    except ValueError: return {'x': 'refused'}",
        {"x": "refused"},
    ),
    "asks for a core dump": ("import resource; return {'x': resource.getrlimit(resource.RLIMIT_CORE)}", {"x": [0, 0]}),
    "removes its directory": (
        "import os, shutil; shutil.rmtree(os.getcwd(), ignore_errors=True); return {'x': os.path.isdir(os.getcwd())}",
        {"x": True},
    ),
    "changes its modules": ("import json, sys; sys.modules.clear(); json.loads = None; return {'x': 1}", None),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_odd_but_allowed(tmp_path: Path, name: str) -> None:
    body, result = HARMLESS[name]
    end = beside_a_good_one(tmp_path, f"def main(args):\n    {body}")
    if result is not None:
        assert value(end) == result


PROBES = """
import ctypes, glob, json, os, signal, socket, subprocess, time

def tried(function):
    try:
        return function()
    except BaseException as e:
        return type(e).__name__

def read(path):
    with open(path, "rb") as file:
        return file.read(100).decode(errors="replace")

def write(path, text="x"):
    with open(path, "w") as file:
        file.write(text)
    return "written"

libc = ctypes.CDLL(None, use_errno=True)

def system_call(name, *args):
    result = getattr(libc, name)(*args)
    return result if result >= 0 else -ctypes.get_errno()

def main(args):
    server, data, home = args["server"], args["data"], os.getcwd()
    return {
        "list": tried(lambda: sorted(os.listdir(data))),
        "secret": tried(lambda: read(data + "/secret")),
        "write": tried(lambda: write(data + "/new")),
        "rooms": tried(lambda: os.listdir(data + "/pool/work")),
        "others": [path for path in glob.glob(data + "/pool/*/*/*") if not path.startswith(home)],
        "own": tried(lambda: write("mine")),
        "environ": tried(lambda: read(f"/proc/{server}/environ")),
        "memory": tried(lambda: read(f"/proc/{server}/mem")),
        "root": tried(lambda: os.listdir(f"/proc/{server}/root")),
        "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "kill": tried(lambda: os.kill(server, signal.SIGKILL)),
        "ptrace": system_call("ptrace", 16, server, 0, 0),
        "namespace": system_call("unshare", 0x10000000),
        "umount": system_call("umount2", data.encode(), 2),
        "mount": system_call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
        "chroot": system_call("chroot", b"/tmp"),
        "capabilities": [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")],
        "new_privileges": [line.split()[1] for line in open("/proc/self/status") if line.startswith("NoNewPrivs")],
        "sysctl": tried(lambda: write("/proc/sys/kernel/core_pattern", "|/bin/evil")),
        "sysrq": tried(lambda: write("/proc/sysrq-trigger", "?")),
        "oom": tried(lambda: write("/proc/self/oom_score_adj", "0")),
        "disks": [name for name in os.listdir("/dev") if name.startswith(("sd", "vd", "nvme", "loop", "mem", "kmsg"))],
        "package": tried(lambda: write(args["package"] + "/evil.py")),
        "python": tried(lambda: write(args["prefix"] + "/evil.py")),
        "etc": tried(lambda: write("/etc/evil")),
        "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
        "shared": [os.listdir("/dev/shm"), tried(lambda: write("/dev/shm/mine"))],
        "tty": tried(lambda: read("/dev/tty")),
        "segments": subprocess.run(["ipcs", "-m"], capture_output=True).returncode,
    }
"""


def test_a_function_sees_and_changes_nothing_of_the_server_or_of_others(tmp_path: Path) -> None:
    params: dict[str, Any] = {
        "server": os.getpid(),
        "data": str(tmp_path / "data"),
        "package": str(Path(eventmill.__file__).parent),
        "prefix": sys.prefix,
    }
    seen = value(beside_a_good_one(tmp_path, PROBES, params, timeout_ms=20_000))
    refused = {"PermissionError", "OSError", "FileNotFoundError"}
    assert seen["list"] == ["pool"]
    assert seen["secret"] == "FileNotFoundError"
    assert seen["write"] == "OSError"
    assert len(seen["rooms"]) == 1
    assert seen["others"] == []
    assert seen["own"] == "written"
    assert seen["environ"] == seen["memory"] == seen["root"] == "FileNotFoundError"
    assert seen["processes"] == [1]
    assert seen["kill"] == "ProcessLookupError"
    assert seen["ptrace"] < 0
    assert [seen["namespace"] < 0, seen["umount"] < 0, seen["mount"] < 0, seen["chroot"] < 0] == [True] * 4
    assert set(seen["capabilities"]) == {"0" * 16}
    assert seen["new_privileges"] == ["1"]
    for name in ("sysctl", "sysrq", "oom", "package", "python", "etc", "tty"):
        assert seen[name] in refused, name
    assert seen["disks"] == []
    assert seen["descriptors"] == [0, 1, 2, 3, 4, 5, 6]
    assert seen["shared"] == [[], "written"]
    assert os.getpid() == params["server"]
    assert not list(Path(params["package"]).glob("evil*"))


def test_a_process_left_behind_takes_its_worker_with_it(tmp_path: Path) -> None:
    source = """
    import os, time
    def main(args):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(0.5)
                print("from beyond", flush=True)
                open(args["late"], "w").close()
                os._exit(0)
            os._exit(0)
        os.wait()
        return {}
    """

    async def main() -> None:
        library = Library()
        async with driving(pool(tmp_path, library)) as driver:
            action = library.text(source)
            ends = [(await driver.run(attempt(action, {"late": str(tmp_path / "late")})))[0] for _ in range(3)]
            assert [end.status for end in ends] == [Status.SUCCESS] * 3
            assert all("initTime" in (end.usage or {}) for end in ends)
            await asyncio.sleep(0.8)
            assert not (tmp_path / "late").exists()
            assert not any(line for end in ends for line in end.logs)

    asyncio.run(main())


def test_a_bomb_of_forks_is_bounded(tmp_path: Path) -> None:
    source = """
    import os, signal, time
    def main(args):
        made = 0
        while made < 600:
            try:
                if os.fork() == 0:
                    time.sleep(60)
                made += 1
            except OSError:
                break
        return {"made": made}
    """
    end = beside_a_good_one(tmp_path, source, timeout_ms=20_000)
    assert end.status is Status.SUCCESS
    # `isolate` says why an older kernel has nothing to bound root with
    bounded = os.geteuid() != 0 or tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 14)
    assert (value(end)["made"] < 500) is bounded


def test_other_namespaces_files_are_out_of_reach(tmp_path: Path) -> None:
    keeper = (
        "import os, time\ndef main(args):\n    open('private', 'w').write('x'); time.sleep(1); return [os.getcwd()]"
    )
    seeker = "import os\ndef main(args): return [p for p, _, names in os.walk(args['data']) for n in names]"

    async def main() -> None:
        library = Library()
        async with driving(pool(tmp_path, library)) as driver:
            kept = attempt(library.text(keeper, namespace="a"))
            driver.executor.submit([kept])
            async with asyncio.timeout(10):
                while not list(tmp_path.rglob("private")):  # noqa: ASYNC110  (seen from outside)
                    await asyncio.sleep(0.01)
            (found,) = await driver.run(attempt(library.text(seeker, namespace="b"), {"data": str(tmp_path)}))
            assert value(found) == []
            assert value(await driver.finished(kept))[0].startswith(str(tmp_path))

    asyncio.run(main())


def test_endless_output_costs_the_server_little(tmp_path: Path) -> None:
    async def main() -> None:
        library = Library()
        async with driving(pool(tmp_path, library)) as driver:
            source = "import os\ndef main(args):\n    while True: os.write(1, b'y' * 65536)"
            used = time.process_time()
            (end,) = await driver.run(attempt(library.text(source, logs_mb=1, timeout_ms=2000)))
            assert end.timed_out
            assert time.process_time() - used < 1.0
            assert len(json.dumps(end.logs)) < (1 << 20) + 1000

    asyncio.run(main())


def test_a_namespace_shares_a_folder_with_its_jobs_and_sees_no_other(tmp_path: Path) -> None:
    source = (
        "import os\n"
        "def main(args):\n"
        "    open(args['mine'] + '/new', 'w').write('written')\n"
        "    return {'mine': sorted(os.listdir(args['mine'])), 'other': os.path.exists(args['other'])}"
    )

    async def main() -> None:
        library, data = Library(), tmp_path / "data"
        results = data / "results"
        for namespace in ("ns", "other"):
            (results / namespace).mkdir(parents=True)
            (results / namespace / "file").write_text(namespace)
        async with driving(pool(tmp_path, library, hidden=[data], shared=results)) as driver:
            params = {"mine": str(results / "ns"), "other": str(results / "other")}
            (end,) = await driver.run(attempt(library.text(source, namespace="ns"), params))
            assert value(end) == {"mine": ["file", "new"], "other": False}
        assert (results / "ns" / "new").read_text() == "written"

    asyncio.run(main())
