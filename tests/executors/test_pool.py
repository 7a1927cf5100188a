"""The pool with functions that behave: OpenWhisk's conventions, outcomes, logs, warm workers, limits, order."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import re
import resource
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from eventmill.entities import Action, Status
from eventmill.errors import InvalidConfig
from eventmill.executors import Finished
from tests.executors.driving import Driver, attempt, driving, value
from tests.executors.functions import Library, pool

Work = Callable[[Driver, Library], Awaitable[None]]


def serve(tmp_path: Path, work: Work, **options: Any) -> None:
    """Do `work` with a pool."""

    async def main() -> None:
        library = Library()
        async with driving(pool(tmp_path, library, **options)) as driver:
            await work(driver, library)

    asyncio.run(main())


def outcome(tmp_path: Path, source: str, params: Any = None, *, options: Any = None, **facts: Any) -> Finished:
    """How one attempt of a function ends."""
    ends = []

    async def work(driver: Driver, library: Library) -> None:
        ends.extend(await driver.run(attempt(library.text(source, **facts), params)))

    serve(tmp_path, work, **(options or {}))
    return ends[0]


def texts(end: Finished, stream: str) -> list[str]:
    found = (re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (stdout|stderr): (.*)", line) for line in end.logs)
    return [match[2] for match in found if match and match[1] == stream]


def test_a_function_gets_its_parameters_and_environment(tmp_path: Path) -> None:
    end = outcome(
        tmp_path,
        """
        import os
        def entry(args):
            return {"args": args, "env": dict(os.environ), "cwd": os.getcwd(), "files": os.listdir()}
        """,
        {"text": "ü\\ud800", "n": 1.5, "deep": [None, {"a": True}]},
        main="entry",
        namespace="lab",
        name="package/act",
        version="0.1.7",
        init_parameters={"TOKEN": "t", "TABLE": [1, {"a": 2}]},
        options={"environment": {"EVENTMILL_PATHS": "[]"}},
    )
    assert (end.status, end.final, end.timed_out, end.logs) == (Status.SUCCESS, True, False, ())
    result = value(end)
    assert result["args"] == {"text": "ü\\ud800", "n": 1.5, "deep": [None, {"a": True}]}
    environment = result["env"]
    assert result["cwd"] == environment["HOME"] == environment["TMPDIR"]
    assert result["files"] == []
    expected = {
        "EVENTMILL_PATHS": "[]",
        "TOKEN": "t",
        "TABLE": '[1, {"a": 2}]',
        "__OW_NAMESPACE": "lab",
        "__OW_ACTION_NAME": "/lab/package/act",
        "__OW_ACTION_VERSION": "0.1.7",
        "__OW_ACTIVATION_ID": end.activation,
    }
    assert {name: environment.get(name) for name in expected} == expected
    assert end.started_ms + 60_000 == int(environment["__OW_DEADLINE"])
    assert not set(environment) & (set(os.environ) - {"PATH", "LANG", "HOME"})
    assert end.usage is not None
    assert end.usage["initTime"] >= 0


def test_globals_survive_in_a_warm_worker_and_the_call_s_environment_changes(tmp_path: Path) -> None:
    source = """
    import os
    calls = 0
    def main(args):
        global calls
        calls += 1
        names = ("__OW_ACTIVATION_ID", "__OW_TRANSACTION_ID", "TRACEPARENT")
        return {"calls": calls, "pid": os.getpid(), **{name: os.environ.get(name) for name in names}}
    """

    async def work(driver: Driver, library: Library) -> None:
        action = library.text(source)
        first = attempt(action)
        traced = attempt(action)._replace(traceparent="00-1-2-01", transaction="tid")
        ends = [(await driver.run(each))[0] for each in (first, traced, attempt(action))]
        assert [value(end)["calls"] for end in ends] == [1, 2, 3]
        assert [value(end)["__OW_ACTIVATION_ID"] for end in ends] == [end.activation for end in ends]
        assert [value(end)["TRACEPARENT"] for end in ends] == [None, "00-1-2-01", None]
        assert [value(end)["__OW_TRANSACTION_ID"] for end in ends] == ["", "tid", ""]
        assert ["initTime" in (end.usage or {}) for end in ends] == [True, False, False]
        assert len({(end.usage or {})["worker"] for end in ends}) == 1
        assert library.reads == 1

    serve(tmp_path, work)


@pytest.mark.parametrize(
    ("body", "status", "final", "result"),
    [
        ("return {}", Status.SUCCESS, True, {}),
        ("return [1, 'a']", Status.SUCCESS, True, [1, "a"]),
        ("return ({'a': 1},)", Status.SUCCESS, True, [{"a": 1}]),
        ("return {'a': 'ü\\u2028', 1: 2.5}", Status.SUCCESS, True, {"a": "ü\u2028", "1": 2.5}),
        ("return {'error': None}", Status.APPLICATION_ERROR, True, {"error": None}),
        ("return {'error': {'code': 1}, 'b': 2}", Status.APPLICATION_ERROR, True, {"error": {"code": 1}, "b": 2}),
        ("raise ValueError('no beam')", Status.APPLICATION_ERROR, False, {"error": "no beam"}),
        ("raise ValueError", Status.APPLICATION_ERROR, False, {"error": "ValueError"}),
        ("raise KeyboardInterrupt('x')", Status.APPLICATION_ERROR, False, {"error": "x"}),
        ("from eventmill import Fatal; raise Fatal('never')", Status.APPLICATION_ERROR, True, {"error": "never"}),
        ("return None", 2, True, "The action did not produce a valid JSON or JSON Array response: null\n"),
        ("return 'text'", 2, True, "The action did not return a dictionary or array."),
        ("return 7", 2, True, "The action did not return a dictionary or array."),
        ("return {'a': float('nan')}", 2, True, "The action did not return a dictionary or array."),
        ("a = []; a.append(a); return a", 2, True, "The action did not return a dictionary or array."),
        ("return {'a': object()}", 2, True, "command exited"),
        ("a = {}\n    for _ in range(5000): a = {'a': a}\n    return a", 2, True, "command exited"),
        ("return {'a': '\\ud800'}", 2, True, "The action did not produce a valid JSON or JSON Array response."),
        ("import sys; sys.exit(0)", 2, False, "command exited"),
        ("import os; os._exit(0)", 2, False, "command exited"),
    ],
)
def test_outcomes(tmp_path: Path, body: str, status: int, final: bool, result: Any) -> None:
    end = outcome(tmp_path, f"def main(args):\n    {body}")
    assert (end.status, end.final, end.timed_out, end.retry_after_s) == (status, final, False, None)
    assert value(end) == (result if isinstance(result, dict | list) else {"error": result})


def test_an_exception_leaves_its_traceback_in_the_logs(tmp_path: Path) -> None:
    end = outcome(tmp_path, "def main(args):\n    return inner()\ndef inner():\n    return 1 / 0\n", name="p/divides")
    lines = texts(end, "stderr")
    assert lines[0] == "Traceback (most recent call last):"
    assert '  File "/guest/p/divides", line 2, in main' in lines
    assert "    return 1 / 0" in lines
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert not any("eventmill" in line for line in lines)


def test_retry_says_when(tmp_path: Path) -> None:
    end = outcome(tmp_path, "from eventmill import Retry\ndef main(args):\n    raise Retry('busy', after='2m')")
    assert (end.status, end.final, end.retry_after_s) == (Status.APPLICATION_ERROR, False, 120.0)
    end = outcome(tmp_path, "from eventmill import Retry\ndef main(args):\n    raise Retry('busy')")
    assert (end.final, end.retry_after_s) == (False, None)
    odd = "class Odd(Exception):\n    eventmill_retry_after = float('nan')\ndef main(args):\n    raise Odd"
    assert outcome(tmp_path, odd).retry_after_s is None


NO_CODE = "The action failed to generate or locate a binary. See logs for details."
NO_START = "Cannot start action. Check logs for details."


@pytest.mark.parametrize(
    ("source", "error", "final", "logged"),
    [
        ("def main(args)\n  return {}", f"{NO_CODE} (SyntaxError: expected ':' (act, line 1))", True, "SyntaxError"),
        ("\0", f"{NO_CODE} (SyntaxError: source code string cannot contain null bytes)", True, "null bytes"),
        (
            "x = 1", f"{NO_START} (AttributeError: module 'main__' has no attribute 'main')", True,
            "has no attribute 'main'",
        ),
        ("main = 7", f"{NO_START} ('main' is not a function)", True, "'main' is not a function"),
        (
            "import nothing_of_this_name", f"{NO_START} (ModuleNotFoundError: No module named 'nothing_of_this_name')",
            False, "ModuleNotFoundError",
        ),
        ("import sys; sys.exit('enough')", f"{NO_START} (SystemExit: enough)", False, "SystemExit: enough"),
        ("raise ValueError('a' * 9999)", f"{NO_START} (ValueError: {'a' * 488}…)", False, "ValueError: aaa"),
        ("import os; os._exit(9)", "The action did not initialize and exited unexpectedly.", False, "exit code 9"),
    ],
)  # fmt: skip
def test_code_that_can_t_be_loaded(tmp_path: Path, source: str, error: str, final: bool, logged: str) -> None:
    end = outcome(tmp_path, source, name="act")
    assert (end.status, end.final, value(end)) == (Status.DEVELOPER_ERROR, final, {"error": error})
    assert any(logged in line for line in end.logs), end.logs


def test_loading_has_the_action_s_time_limit_too(tmp_path: Path) -> None:
    end = outcome(tmp_path, "import time; time.sleep(600)", timeout_ms=100)
    text = "The action exceeded its time limits of 100 milliseconds during initialization."
    assert (end.status, end.final, end.timed_out, value(end)) == (Status.DEVELOPER_ERROR, False, True, {"error": text})


def test_a_failed_load_costs_only_the_attempt_that_asked_for_it(tmp_path: Path) -> None:
    async def work(driver: Driver, library: Library) -> None:
        ends = await driver.run(*[attempt(library.text("x = 1")) for _ in range(5)])
        assert {value(end)["error"].partition(" (")[0] for end in ends} == {NO_START}

    serve(tmp_path, work)


def test_a_zip_is_unpacked_once_and_its_modules_can_be_imported(tmp_path: Path) -> None:
    members = {
        "__main__.py": """
            import os, helper
            from package.inner import word
            def main(args):
                here = os.path.dirname(__file__)
                try:
                    open(os.path.join(here, "new"), "w")
                except OSError as e:
                    return {"value": helper.value, "word": word, "data": open(f"{here}/data.txt").read(), "e": e.errno}
            if __name__ == "__main__":
                raise RuntimeError("this is no script")
        """,
        "helper.py": "value = 42",
        "package/__init__.py": "",
        "package/inner.py": "word = 'deep'",
        "data.txt": "d",
        "virtualenv/bin/activate_this.py": "import sys; sys.path.append(__file__)",
    }

    async def work(driver: Driver, library: Library) -> None:
        actions = [library.zip(members, name=name) for name in ("a", "b")]
        ends = await driver.run(*[attempt(action) for action in actions * 2])
        assert [end.status for end in ends] == [Status.SUCCESS] * 4, ends[0].logs
        assert value(ends[0]) == {"value": 42, "word": "deep", "data": "d", "e": 30}
        assert library.reads == 1

    serve(tmp_path, work)


def test_zips_that_can_t_be_loaded(tmp_path: Path) -> None:
    async def work(driver: Driver, library: Library) -> None:
        bomb = library.zip({"__main__.py": "", "bomb": b"\0" * 2_000_000})
        traversal = library.zip({"__main__.py": "", "../evil.py": "x = 1"})
        no_main = library.zip({"main.py": "def main(args): return {}"})
        no_activate = library.zip({"__main__.py": "def main(args): return {}", "virtualenv/lib/x": ""})
        broken = library.raw_zip(b"this is no zip")
        ends = await driver.run(*[attempt(a) for a in (bomb, traversal, no_main, no_activate, broken)])
        assert [(end.status, end.final) for end in ends] == [(Status.DEVELOPER_ERROR, True)] * 5
        errors = [value(end)["error"] for end in ends]
        assert errors[0].startswith("The action failed during initialization: the archive's contents are too large")
        assert "'../evil.py' is not a path below" in errors[1]
        assert errors[2] == f"{NO_CODE} (Zip file does not include __main__)"
        assert texts(ends[2], "stderr") == ["Zip file does not include __main__"]
        assert "Zip file does not include 'activate_this.py'" in texts(ends[3], "stderr")[0]
        assert errors[4] == "The action failed during initialization: this is not a zip archive"

    serve(tmp_path, work, archive_bytes_max=1_000_000)
    assert not list(tmp_path.rglob("evil*"))


def test_code_that_the_store_does_not_have(tmp_path: Path) -> None:
    async def work(driver: Driver, library: Library) -> None:
        good = library.text("def main(args): return {}")
        lost = Action(namespace="guest", name="lost", version="0.0.1", revision=1, kind="python:3.11", code="0" * 32)
        ends = await driver.run(attempt(lost), attempt(good))
        assert [end.status for end in ends] == [Status.INTERNAL_ERROR, Status.SUCCESS]
        assert not ends[0].final

    serve(tmp_path, work)


def test_output_is_captured_from_everywhere_and_never_from_another_attempt(tmp_path: Path) -> None:
    source = """
    import ctypes, os, subprocess, sys
    print("imported")
    def main(args):
        print("python", args["n"])
        print("warn", file=sys.stderr)
        ctypes.CDLL(None).printf(b"from C\\n")
        subprocess.run(["sh", "-c", "echo child"])
        os.write(2, b"bad " + bytes([255, 10]))
        os.write(1, "raw ü\\nno newline".encode())
        return {}
    """

    async def work(driver: Driver, library: Library) -> None:
        action = library.text(source)
        for n in (1, 2, 3):
            (end,) = await driver.run(attempt(action, {"n": n}))
            lines = texts(end, "stdout")
            expected = ["imported"] * (n == 1) + [f"python {n}", "child", "raw ü", "no newlinefrom C"]
            assert lines == expected
            assert texts(end, "stderr") == ["warn", "bad \ufffd"]
            assert len(end.logs) == len(lines) + 2

    serve(tmp_path, work)


@pytest.mark.slow
def test_logs_are_cut_at_their_limit(tmp_path: Path) -> None:
    source = "def main(args):\n    for i in range(args['n']): print('x' * args['width'])\n    return {}"

    async def work(driver: Driver, library: Library) -> None:
        action = library.text(source, logs_mb=1)
        text = "Logs were truncated because the total bytes size exceeds the limit of 1048576 bytes."
        for n, width in ((3000, 1000), (1, 3_000_000), (200_000, 0)):
            (end,) = await driver.run(attempt(action, {"n": n, "width": width}))
            assert end.status is Status.SUCCESS
            assert end.logs[-1].endswith(text)
            assert sum(map(len, end.logs[:-1])) <= 1 << 20
        (end,) = await driver.run(attempt(action, {"n": 2, "width": 1}))
        assert texts(end, "stdout") == ["x", "x"]

    serve(tmp_path, work)


def test_large_parameters_and_results_pass_and_too_large_results_do_not(tmp_path: Path) -> None:
    async def work(driver: Driver, library: Library) -> None:
        action = library.text("def main(args): return {'a': args['a'] * args['n']}")
        text = "z" * 1_000_000
        fits, not_ = await driver.run(attempt(action, {"a": text, "n": 1}), attempt(action, {"a": text, "n": 2}))
        assert value(fits) == {"a": text}
        assert (not_.status, not_.final) == (Status.APPLICATION_ERROR, True)
        start = "The action produced a response that exceeded the allowed length: 2000008 > 1048576 bytes."
        assert value(not_)["error"].startswith(f'{start} The truncated response was: {{"a":"zzz')
        assert len(not_.result) < 2000

    serve(tmp_path, work)


@pytest.mark.slow
def test_a_timeout_kills_the_worker_and_all_that_it_started(tmp_path: Path) -> None:
    source = """
    import subprocess, time
    def main(args):
        print("waiting")
        subprocess.Popen(["sh", "-c", f"sleep 1; echo late > {args['file']}"], start_new_session=True)
        time.sleep(600)
    """

    async def work(driver: Driver, library: Library) -> None:
        action = library.text(source, timeout_ms=300)
        (end,) = await driver.run(attempt(action, {"file": str(tmp_path / "late")}))
        text = "The action exceeded its time limits of 300 milliseconds."
        assert (end.status, end.final, end.timed_out) == (Status.DEVELOPER_ERROR, False, True)
        assert value(end) == {"error": text}
        assert texts(end, "stdout") == ["waiting"]
        assert 300 <= end.ended_ms - end.started_ms < 1000
        await asyncio.sleep(1.2)
        assert not (tmp_path / "late").exists()

    serve(tmp_path, work)


@pytest.mark.slow
def test_the_time_limit_is_each_attempt_s_own(tmp_path: Path) -> None:
    async def work(driver: Driver, library: Library) -> None:
        action = library.text("import time\ndef main(args): time.sleep(args['s']); return {}", timeout_ms=500)
        ends = [(await driver.run(attempt(action, {"s": 0.3})))[0] for _ in range(4)]
        assert [end.status for end in ends] == [Status.SUCCESS] * 4
        assert len({(end.usage or {})["worker"] for end in ends}) == 1
        (end,) = await driver.run(attempt(action, {"s": 5}))
        assert end.timed_out

    serve(tmp_path, work)


def test_idle_workers_are_retired_and_their_rooms_removed(tmp_path: Path) -> None:
    async def work(driver: Driver, library: Library) -> None:
        action = library.text("import os\ndef main(args):\n    open('left', 'w'); os.mkdir('d', 0); return {}")
        (first,) = await driver.run(attempt(action))
        rooms = tmp_path / "data" / "pool" / "work"
        async with asyncio.timeout(10):
            while any(rooms.iterdir()):  # noqa: ASYNC110  (watched from outside)
                await asyncio.sleep(0.05)
        assert not Path(f"/proc/{(first.usage or {})['worker']}").exists()
        (second,) = await driver.run(attempt(action))
        assert "initTime" in (second.usage or {})

    serve(tmp_path, work, idle_retire_s=0.2)


SLEEP = "import time\ndef main(args):\n    time.sleep(args['s'])\n    return {'t': time.time()}"


def test_instances_of_an_action_are_limited(tmp_path: Path) -> None:
    async def work(driver: Driver, library: Library) -> None:
        action = library.text(SLEEP, instances=1)
        ends = await driver.run(*[attempt(action, {"s": 0.05}) for _ in range(4)])
        spans = sorted((end.started_ms, end.ended_ms) for end in ends)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
        assert len({(end.usage or {})["worker"] for end in ends}) == 1

    serve(tmp_path, work, workers_max=3)


def test_no_action_starves_behind_a_busy_one(tmp_path: Path) -> None:
    async def work(driver: Driver, library: Library) -> None:
        busy = [attempt(library.text(SLEEP, name="busy"), {"s": 0.05}) for _ in range(100)]
        others = [attempt(library.text(SLEEP, name=f"other{i}"), {"s": 0}) for i in range(5)]
        driver.executor.submit(busy)
        await driver.finished(busy[0])
        start = time.monotonic()
        await driver.run(*others)
        assert time.monotonic() - start < 3
        assert len(driver.ends()) < 80

    serve(tmp_path, work, workers_max=2)


def test_an_idle_worker_makes_room_for_another_action(tmp_path: Path) -> None:
    async def work(driver: Driver, library: Library) -> None:
        for round_number in range(2):
            for name in "abcd":
                (end,) = await driver.run(attempt(library.text(SLEEP, name=name), {"s": 0}))
                assert end.status is Status.SUCCESS
                assert round_number == 0 or "initTime" in (end.usage or {})

    serve(tmp_path, work, workers_max=2)


def test_a_new_revision_runs_the_new_code(tmp_path: Path) -> None:
    async def work(driver: Driver, library: Library) -> None:
        old, new = [library.text(f"def main(args): return {{'v': {v}}}", name="same", revision=v) for v in (1, 2)]
        recreated = library.text("def main(args): return {'v': 3}", name="same", revision=1)
        ends = await driver.run(*[attempt(action) for action in (old, new, recreated, old)])
        assert [value(end)["v"] for end in ends] == [1, 2, 3, 1]

    serve(tmp_path, work)


def test_preloaded_modules_are_there_and_wrong_ones_are_named(tmp_path: Path) -> None:
    source = "import sys\nloaded = 'colorsys' in sys.modules\ndef main(args): return {'loaded': loaded}"
    assert value(outcome(tmp_path, source, options={"preload": ["colorsys"]})) == {"loaded": True}
    with pytest.raises(InvalidConfig, match=r"functions\.preload: No module named 'nonsense'"):
        outcome(tmp_path, source, options={"preload": ["nonsense"]})


def test_random_numbers_differ_between_workers(tmp_path: Path) -> None:
    async def work(driver: Driver, library: Library) -> None:
        source = (
            "import random, numpy, time\ndef main(args): time.sleep(0.2); return [random.random(), numpy.random.rand()]"
        )
        first, second = await driver.run(*[attempt(library.text(source)) for _ in range(2)])
        assert (first.usage or {})["worker"] != (second.usage or {})["worker"]
        assert not set(value(first)) & set(value(second))

    serve(tmp_path, work, preload=["random", "numpy.random"])


@pytest.mark.slow
def test_more_workers_are_started_at_once_than_the_zygote_is_asked_for_at_once(tmp_path: Path) -> None:
    async def work(driver: Driver, library: Library) -> None:
        ends = await driver.run(*[attempt(library.text(SLEEP), {"s": 1.0}) for _ in range(40)])
        assert len({(end.usage or {})["worker"] for end in ends}) == 40

    serve(tmp_path, work, workers_max=40)


def test_code_that_the_connection_takes_only_in_pieces(tmp_path: Path) -> None:
    source = f"text = '{'x' * 3_000_000}'\ndef main(args): return {{'n': len(text) + len(args['a'])}}"
    assert value(outcome(tmp_path, source, {"a": "y" * 900_000})) == {"n": 3_900_000}


def test_without_descriptors_attempts_fail_and_later_ones_succeed(tmp_path: Path) -> None:
    async def work(driver: Driver, library: Library) -> None:
        action = library.text(SLEEP)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        lowest_free = os.dup(0)
        os.close(lowest_free)
        for spare in range(6):
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + spare, hard))
            try:
                ends = await driver.run(attempt(action, {"s": 0}), attempt(action, {"s": 0}))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert {end.status for end in ends} == {Status.INTERNAL_ERROR}
            assert "Too many open files" in value(ends[0])["error"]
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
        (end,) = await driver.run(attempt(action, {"s": 0}))
        assert end.status is Status.SUCCESS

    serve(tmp_path, work)


def test_what_becomes_ready_together_is_pushed_together(tmp_path: Path) -> None:
    async def main() -> None:
        library = Library()
        executor = pool(tmp_path, library)
        await executor.start()
        lost = Action(namespace="guest", name="lost", version="0.0.1", revision=1, kind="python:3.11", code="0" * 32)
        attempts = [attempt(lost) for _ in range(20)]
        executor.submit(attempts)
        reports = await anext(executor.reports())
        assert [report.activation for report in reports] == [each.activation for each in attempts]
        await executor.stop()

    asyncio.run(main())


def test_nothing_is_left_after_a_stop(tmp_path: Path) -> None:
    workers: list[int] = []

    async def work(driver: Driver, library: Library) -> None:
        before = len(os.listdir("/proc/self/fd"))
        ends = await driver.run(*[attempt(library.text(SLEEP), {"s": 0.1}) for _ in range(2)])
        workers.extend((end.usage or {})["worker"] for end in ends)
        assert len(os.listdir("/proc/self/fd")) > before

    descriptors = len(os.listdir("/proc/self/fd"))
    serve(tmp_path, work)
    assert len(workers) == 2
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert json.dumps(os.listdir(tmp_path / "data" / "pool" / "work")) == "[]"
