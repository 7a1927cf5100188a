"""The local queue, with real processes: what jobs get, leave and are ended by; servers and shims that are killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventmill.entities import Status
from eventmill.errors import Unavailable
from eventmill.executors import Accepted, Finished, Recorded, Started
from eventmill.executors.local import shim
from eventmill.executors.local.records import Claim
from eventmill.executors.local.slots import OVERTAKES_MAX, Request, Slots
from tests.executors.local_jobs import POINTS, Reader, attempt, job_code, make_queue, script, serving

ROOT = Path(__file__).parents[2]


def run_one(tmp_path: Path, code: bytes, params: dict[str, Any] | None = None, **options: Any) -> Finished:
    """Run one job to its end."""

    async def main() -> Finished:
        async with serving(tmp_path / "state", {"job": code}, **options) as reader:
            reader.queue.submit([attempt(1, "job", params)])
            return (await reader.finished())[0]

    return asyncio.run(main())


def result(finished: Finished) -> dict[str, Any]:
    value = orjson.loads(finished.result)
    assert isinstance(value, dict)
    return value


# ---- what a job gets and leaves


def test_a_script(tmp_path: Path) -> None:
    text = 'echo "$1"; echo oh >&2; cat params.json > result.json; pwd > "$(dirname $EVENTMILL_RESULT)/where.txt"'
    finished = run_one(tmp_path, script(text, 'arguments = "$(x)"'), {"x": "a 'b' $(c); \"d\""})
    value = result(finished)
    assert (finished.status, finished.final, finished.handle) == (Status.SUCCESS, True, "local#1.0")
    assert (value["x"], value["exit_code"]) == ("a 'b' $(c); \"d\"", 0)
    assert value["usage"] == finished.usage
    assert {"host", "pid", "exit_code", "cpu_s", "max_rss_mb", "wall_s", "output_dir"} == value["usage"].keys()
    assert [line.partition("Z ")[2] for line in finished.logs] == ["stdout: a 'b' $(c); \"d\"", "stderr: oh"]
    assert 0 < finished.started_ms <= finished.ended_ms
    assert Path(value["usage"]["output_dir"], "where.txt").read_text().strip().startswith(str(tmp_path))


def test_python_finds_the_servers_libraries(tmp_path: Path) -> None:
    program = (
        "#!/usr/bin/env python3\nimport orjson, os\nopen('result.json', 'wb').write(orjson.dumps({'p': os.__file__}))"
    )
    assert result(run_one(tmp_path, job_code("executable = run.py", {"run.py": program})))["p"] == os.__file__


def test_the_environment_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the server")
    secret = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(secret, True)
    code = script(
        "env -0 > env; readlink /proc/$$/fd/* > fds", 'environment = "MINE=$(x)"\ntransfer_output_files = env, fds'
    )
    finished = run_one(tmp_path, code, {"x": "$HOME `id`"}, environment={"SITE": "1"})
    os.close(secret)
    folder = Path(result(finished)["usage"]["output_dir"])
    variables = dict(item.split("=", 1) for item in (folder / "env").read_text().split("\0") if item)
    assert variables.keys() - {"PWD", "_", "SHLVL", "OLDPWD"} == {
        "PATH", "LANG", "HOME", "TMPDIR", "OMP_NUM_THREADS", "_CONDOR_SCRATCH_DIR", "SITE", "MINE",
        "EVENTMILL_PARAMS", "EVENTMILL_RESULT", "EVENTMILL_ACTIVATION", "EVENTMILL_ATTEMPT",
    }  # fmt: skip
    assert variables["MINE"] == "$HOME `id`"
    assert str(tmp_path) not in (folder / "fds").read_text().split()


def test_files_in_and_out(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "big.txt").write_text("from outside")
    description = f"""
        transfer_input_files = tables/a.txt, tables, more/, {tmp_path}/data/$(name)
        input = in/stdin.txt
        output = logs/out.txt
        transfer_output_files = made, c.txt
        transfer_output_remaps = "c.txt = {tmp_path}/data/out/$(name)"
        initialdir = run7"""
    text = """cat; cat a.txt tables/a.txt b.txt big.txt; echo x >> big.txt
        mkdir -p made/deep; echo 1 > made/deep/f; echo 2 > c.txt"""
    files = {"tables/a.txt": "A", "more/b.txt": "B", "in/stdin.txt": "stdin"}
    code = job_code(f"executable = bin/run.sh\n{description}\n", {"bin/run.sh": "#!/bin/sh\n" + text, **files})
    finished = run_one(tmp_path, code, {"name": "big.txt"}, roots=[tmp_path / "data"], results_dir=tmp_path / "results")
    assert result(finished)["exit_code"] == 0, finished
    place = tmp_path / "results" / "lab" / "run7"
    assert (place / "logs" / "out.txt").read_text() == "stdinAABfrom outside"
    assert (place / "made" / "deep" / "f").read_text() == "1\n"
    assert (tmp_path / "data" / "out" / "big.txt").read_text() == "2\n"
    assert (tmp_path / "data" / "big.txt").read_text() == "from outside"
    assert not (place / "big.txt").exists()


def test_new_and_changed_files_are_delivered(tmp_path: Path) -> None:
    code = script("echo > new; echo more >> in.txt; mkdir d; ln -s new link", "transfer_input_files = in.txt, same.txt",
                  in__txt="1", same__txt="2")  # fmt: skip
    folder = Path(result(run_one(tmp_path, code))["usage"]["output_dir"])
    assert sorted(path.name for path in folder.iterdir()) == ["in.txt", "new"]


def test_an_array_is_a_result_too(tmp_path: Path) -> None:
    assert orjson.loads(run_one(tmp_path, script("echo '[1]' > result.json")).result) == [1]


ENDS: list[tuple[str, str, Status, bool, str]] = [
    ("exit 3", "", Status.APPLICATION_ERROR, False, "the job ended with exit code 3"),
    ("kill -9 $$", "", Status.APPLICATION_ERROR, False, "ended by signal 9 (SIGKILL)"),
    ("""echo '{"error": "bad frame"}' > result.json; exit 1""", "", Status.APPLICATION_ERROR, False,
     "bad frame (the job ended with exit code 1)"),
    ("""echo '{"error": "no", "eventmill_fatal": true}' > result.json; exit 1""", "", Status.APPLICATION_ERROR, True,
     "no (the job"),
    ("""echo '{"error": "no good"}' > result.json""", "", Status.APPLICATION_ERROR, True, "no good"),
    ("echo nonsense > result.json", "", Status.DEVELOPER_ERROR, True, "result.json: not valid JSON"),
    ("echo 3 > result.json", "", Status.DEVELOPER_ERROR, True, "result.json holds a int"),
    ("head -c 2000000 /dev/zero > result.json", "", Status.DEVELOPER_ERROR, True, "larger than the 1048576 bytes"),
    ("true", "transfer_output_files = gone", Status.INTERNAL_ERROR, False, "can't deliver the job's output files"),
    ("true", "transfer_input_files = gone", Status.DEVELOPER_ERROR, True, "there is no 'gone' in the job's archive"),
    ("true", "request_cpus = 3", Status.DEVELOPER_ERROR, True, "request_cpus = 3, but this pool has 2"),
    ("true", "request_memory = 2GB", Status.DEVELOPER_ERROR, True, "2048 MB, but this pool has 1000 MB"),
    ("true", "request_gpus = 1", Status.DEVELOPER_ERROR, True, "pool 'local' has none"),
    ("true", "universe = container", Status.DEVELOPER_ERROR, True, "runs jobs without containers"),
    ("true", "arguments = $(nothing)", Status.DEVELOPER_ERROR, True, "$(nothing) is neither defined here nor"),
    ("true", "transfer_input_files = /etc/passwd", Status.DEVELOPER_ERROR, True, "outside of the directories"),
    ("true", "queue 3", Status.DEVELOPER_ERROR, True, "'queue' takes no arguments"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "description", "status", "final", "error"), ENDS)
def test_ends(tmp_path: Path, text: str, description: str, status: Status, final: bool, error: str) -> None:
    finished = run_one(tmp_path, script(text, description))
    assert (finished.status, finished.final) == (status, final)
    assert error in result(finished)["error"]


def test_a_failed_job_says_what_it_said_last(tmp_path: Path) -> None:
    finished = run_one(tmp_path, script("echo no such detector >&2; exit 3"))
    assert result(finished)["stderr"] == "no such detector\n"
    assert result(finished)["exit_code"] == 3
    assert finished.usage is not None
    assert finished.usage["exit_code"] == 3


def test_a_wish_for_later(tmp_path: Path) -> None:
    text = """echo '{"error": "busy", "eventmill_retry_after": 7}' > result.json; exit 1"""
    assert run_one(tmp_path, script(text)).retry_after_s == 7.0


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("no script", "can't start run: Exec format error"),
        ("#!/no/such\n", "can't start run: No such file or directory"),
    ],
)
def test_what_can_not_be_started(tmp_path: Path, content: str, error: str) -> None:
    finished = run_one(tmp_path, job_code("executable = run", {"run": content}))
    assert (finished.status, finished.final, result(finished)["error"]) == (Status.DEVELOPER_ERROR, True, error)


@pytest.mark.parametrize(
    ("code", "error"), [(b"!", "a zip in base64"), (b"", "not a zip"), (job_code("executable = x"), "no 'x' in")]
)
def test_bad_archives(tmp_path: Path, code: bytes, error: str) -> None:
    finished = run_one(tmp_path, code)
    assert error in result(finished)["error"]
    assert (finished.status, finished.final, finished.handle) == (Status.DEVELOPER_ERROR, True, None)


def test_a_job_may_name_results_of_its_own_namespace_by_their_full_path(tmp_path: Path) -> None:
    results = tmp_path / "results"
    for namespace in ("lab", "other"):
        (results / namespace).mkdir(parents=True)
        (results / namespace / "map.jsonl").write_text(f'"{namespace}"')
    code = script('echo "{\\"saw\\": $(cat map.jsonl)}" > result.json', "transfer_input_files = $(path)")
    own = run_one(tmp_path, code, {"path": f"{results}/lab/map.jsonl"}, results_dir=results)
    assert result(own)["saw"] == "lab"
    others = run_one(tmp_path / "2", code, {"path": f"{results}/other/map.jsonl"}, results_dir=results)
    assert "map.jsonl" in result(others)["error"]
    assert others.status is Status.DEVELOPER_ERROR


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to("/etc/passwd")
    code = script("true", f"transfer_input_files = {tmp_path}/data/link")
    assert "leads out of the directories" in result(run_one(tmp_path, code, roots=[tmp_path / "data"]))["error"]
    (tmp_path / "data" / "etc").symlink_to(tmp_path)
    code = script("echo > x", f'transfer_output_remaps = "x = {tmp_path}/data/etc/x"')
    assert "leads out" in result(run_one(tmp_path / "2", code, roots=[tmp_path / "data"]))["error"]
    assert not (tmp_path / "x").exists()


def test_memory_is_limited(tmp_path: Path) -> None:
    program = "#!/usr/bin/env python3\nx = bytearray(500 << 20)"
    finished = run_one(tmp_path, job_code("executable = run.py\nrequest_memory = 100", {"run.py": program}))
    assert "MemoryError" in result(finished)["stderr"]


# ---- time limits, cancelling, leftovers


def _processes(mark: str) -> list[int]:
    """Processes that have this in their environment."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark.encode() in Path("/proc", name, "environ").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found


def test_a_time_limit_ends_all_of_a_job(tmp_path: Path) -> None:
    code = script("setsid sleep 1000 & sleep 1000 & echo begun; wait", f'environment = "MARK={tmp_path}"')

    async def main() -> Finished:
        async with serving(tmp_path, {"job": code}) as reader:
            reader.queue.submit([attempt(1, "job", timeout_ms=300)])
            return (await reader.finished())[0]

    finished = asyncio.run(main())
    assert (finished.timed_out, finished.final, finished.status) == (True, False, Status.DEVELOPER_ERROR)
    assert "exceeded its time limit" in result(finished)["error"]
    assert finished.logs[0].endswith("stdout: begun")
    assert not _processes(f"MARK={tmp_path}")


def test_what_a_job_leaves_running_is_ended(tmp_path: Path) -> None:
    code = script("(setsid sleep 1000 &); exit 0", f'environment = "MARK={tmp_path}"')
    assert run_one(tmp_path, code).status is Status.SUCCESS
    assert not _processes(f"MARK={tmp_path}")


@pytest.mark.slow
def test_a_job_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = script("trap '' TERM; while :; do sleep 0.1; done", "allowed_job_duration = 1")
    finished = run_one(tmp_path, code)
    assert finished.timed_out
    assert finished.usage is not None
    assert finished.usage["wall_s"] >= 1 + shim.GRACE_S


def test_cancel_at_every_stage(tmp_path: Path) -> None:
    async def main() -> tuple[Reader, list[Finished]]:
        async with serving(tmp_path / "state", release=False) as reader:
            queue, params = reader.queue, _gate(tmp_path)
            queue.submit([attempt(n, "gate", params, memory_mb=600) for n in range(1, 5)])
            queue.cancel({f"{1:032x}": None})  # on its way to being accepted
            await reader.until(lambda: len(reader.of(Accepted)) == 4)
            _, held, running, waiting = (report.handle for report in reader.of(Accepted))
            queue.release([running, waiting])
            await reader.until(lambda: bool(reader.of(Started)))
            queue.cancel({f"{2:032x}": held, f"{3:032x}": running, f"{4:032x}": None, "0" * 32: None})
            ends = await reader.finished(4)
            queue.cancel({f"{2:032x}": held})  # it has ended
            return reader, ends

    reader, ends = asyncio.run(main())
    assert {result(end)["error"] for end in ends} == {"cancelled"}
    assert {(end.status, end.final) for end in ends} == {(Status.APPLICATION_ERROR, True)}
    assert sorted(end.activation for end in ends) == [f"{n:032x}" for n in range(1, 5)]
    assert [start.activation for start in reader.of(Started)] == [f"{3:032x}"]
    assert _witnessed(tmp_path) in ({}, {f"{3:032x}": 1})


# ---- phases and slots


def _gate(tmp_path: Path, number: int = 1) -> dict[str, str]:
    """Parameters of the jobs `witness` and `gate`: each waiting job has a gate of its own."""
    gate = tmp_path / f"gate{number}"
    if not gate.exists():
        os.mkfifo(gate)
    return {"witness": str(tmp_path / "witness"), "gate": str(gate)}


def _open(tmp_path: Path, number: int = 1) -> None:
    """Let the job through its gate, when it comes to it."""
    os.write(os.open(tmp_path / f"gate{number}", os.O_RDWR), b"!")  # left open, or the byte would be gone


def _witnessed(tmp_path: Path) -> dict[str, int]:
    witness = tmp_path / "witness"
    return dict(Counter(witness.read_text().split())) if witness.exists() else {}


def test_nothing_runs_before_its_release(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path / "state", release=False) as reader:
            first, second = (attempt(n, "witness", _gate(tmp_path)) for n in (1, 2))
            reader.queue.submit([first, second, first])
            await reader.until(lambda: len(reader.of(Accepted)) == 2)
            handles = {report.activation: report.handle for report in reader.of(Accepted)}
            reader.queue.submit([first])
            await reader.until(lambda: len(reader.of(Accepted)) == 3)
            assert {report.handle for report in reader.of(Accepted)} == set(handles.values())
            reader.queue.release([handles[second.activation], "other#1.0", "local#99.0", "nonsense"])
            reader.queue.release([handles[second.activation]])
            end = (await reader.finished())[0]
            assert end.activation == second.activation
            assert _witnessed(tmp_path) == {second.activation: 1}
            reader.queue.submit([second])
            assert (await reader.finished(2))[1] == end
            reader.queue.forget([str(end.handle), handles[first.activation]])
            assert await reader.queue.held() == {}

    asyncio.run(main())
    assert os.listdir(tmp_path / "state" / "jobs") == ["1"]
    assert _witnessed(tmp_path) == {f"{2:032x}": 1}


def test_jobs_share_the_machine(tmp_path: Path) -> None:
    """Three jobs of one core on two: the third starts when one of the others has ended."""

    async def main() -> Reader:
        async with serving(tmp_path / "state") as reader:
            reader.queue.submit([attempt(n, "gate", _gate(tmp_path, n)) for n in (1, 2, 3)])
            await reader.until(lambda: len(reader.of(Started)) == 2)
            for number in (2, 1, 3):
                _open(tmp_path, number)
            await reader.finished(3)
            return reader

    reader = asyncio.run(main())
    assert all(end.status is Status.SUCCESS for end in reader.of(Finished))
    assert {int(start.activation, 16) for start in reader.of(Started)[:2]} == {1, 2}
    assert reader.of(Started)[2].time_ms >= min(end.ended_ms for end in reader.of(Finished))


def test_slots_first_come_first_served() -> None:
    slots = Slots(2, 1000)
    for cluster in (1, 2, 3):
        slots.wait(cluster, Request(1, 100))
    assert slots.take() == [1, 2]
    assert slots.take() == []
    slots.give_back(1)
    assert slots.take() == [3]
    slots.give_back(1)  # twice is harmless
    assert slots.take() == []


def test_slots_small_jobs_pass_a_large_one_but_not_forever() -> None:
    slots = Slots(4, 1000)
    slots.wait(0, Request(1, 100))
    assert slots.take() == [0]
    slots.wait(1, Request(4, 100))
    passed = 0
    for cluster in range(2, 100):
        slots.wait(cluster, Request(1, 100))
        started = slots.take()
        passed += len(started)
        for ended in started:
            slots.give_back(ended)
    assert passed == OVERTAKES_MAX
    slots.give_back(0)
    assert slots.take() == [1]
    slots.give_back(1)
    assert len(slots.take()) == 4


def test_slots_memory_counts_and_withdrawn_jobs_do_not() -> None:
    slots = Slots(4, 1000)
    slots.occupy(1, Request(1, 900))
    slots.wait(2, Request(1, 200))
    slots.wait(3, Request(1, 100))
    slots.withdraw(2)
    assert slots.take() == [3]
    assert slots.never_fits(Request(5, 1)) == "request_cpus = 5, but this pool has 4"
    assert slots.never_fits(Request(4, 1000)) is None


# ---- restarts, in one process: a stopped queue leaves its jobs


def test_one_server_at_a_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path):
            second = make_queue(tmp_path)
            with pytest.raises(Unavailable, match="another server uses the job directory"):
                await second.start()
            await second.stop()

    asyncio.run(main())


def test_a_restart_finds_held_waiting_running_and_ended(tmp_path: Path) -> None:
    ids = {name: f"{n:032x}" for n, name in enumerate(("running", "ended", "held", "waiting", "unknown"))}

    async def first() -> dict[str, str]:
        async with serving(tmp_path / "state", release=False) as reader:
            params = _gate(tmp_path)
            codes = {"running": "gate", "ended": "witness", "held": "witness", "waiting": "witness"}
            for name, code in codes.items():
                reader.queue.submit([attempt(ids[name], code, params, memory_mb=900 if name == "waiting" else 100)])
                await reader.until(lambda: ids[name] in {r.activation for r in reader.of(Accepted)})  # noqa: B023
            handles = {name: report.handle for name, report in zip(codes, reader.of(Accepted), strict=True)}
            reader.queue.release([handles["running"], handles["ended"]])
            await reader.finished()
            await reader.until(lambda: len(reader.of(Started)) == 2)
            reader.queue.release([handles["waiting"]])
            return handles

    async def second(handles: dict[str, str]) -> list[Finished]:
        async with serving(tmp_path / "state", release=False) as reader:
            found = await reader.queue.find([Recorded(activation=id) for id in ids.values()])
            known = {name: found[ids[name]] for name in handles}
            assert {name: f.handle for name, f in known.items()} == handles
            assert {name: f.running for name, f in known.items()} == {
                "running": True, "ended": False, "held": True, "waiting": True
            }  # fmt: skip
            assert not any(f.interrupted for f in known.values())
            assert ids["unknown"] not in found
            assert await reader.queue.held() == {ids["held"]: handles["held"]}
            await reader.finished(1)
            assert [start.activation for start in reader.of(Started)] == [ids["running"]]
            reader.queue.cancel({ids["held"]: handles["held"]})
            assert await reader.queue.held() == {}
            _open(tmp_path)
            return await reader.finished(3)

    handles = asyncio.run(first())
    ends = asyncio.run(second(handles))
    assert {end.activation: result(end).get("opened") for end in ends} == {
        ids["running"]: True, ids["ended"]: None, ids["waiting"]: None
    }  # fmt: skip
    assert all(end.status is Status.SUCCESS for end in ends)
    assert _witnessed(tmp_path) == {ids["running"]: 1, ids["ended"]: 1, ids["waiting"]: 1}
    assert sorted(os.listdir(tmp_path / "state" / "jobs")) == ["1", "2", "4"]  # the orphan is gone, without a report


def test_an_orphan_is_not_what_is_submitted_again(tmp_path: Path) -> None:
    async def serve(cancel_first: bool) -> list[str]:
        async with serving(tmp_path / "state", release=not cancel_first) as reader:
            orphans = await reader.queue.held()
            reader.queue.submit([attempt(1, "witness", _gate(tmp_path))])
            reader.queue.cancel(dict(orphans))
            await reader.until(lambda: bool(reader.of(Accepted) if cancel_first else reader.of(Finished)))
            return [report.handle for report in reader.of(Accepted)]

    assert asyncio.run(serve(True)) == ["local#1.0"]
    assert asyncio.run(serve(False)) == ["local#2.0"]
    assert _witnessed(tmp_path) == {f"{1:032x}": 1}


# ---- shims that are killed, machines that reboot


def _claim(state: Path, cluster: int) -> Claim:
    return Claim.from_json((state / "events" / f"{cluster}.claim").read_bytes())


async def _signed(tmp_path: Path) -> None:
    """Wait until a job has signed: another process's doing, which nobody tells us of."""
    async with asyncio.timeout(30):
        while not _witnessed(tmp_path):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _run_gate_and(tmp_path: Path, harm: Callable[[Claim], None], *, restarted: bool) -> Finished:
    """Start a job that waits, do something to it (with the server alive, or between two servers), and see its end."""
    state = tmp_path / "state"
    code = {"job": job_code("executable = run.py\nrequest_memory = 100", {"run.py": _ORPHANING})}

    async def begin() -> Finished | None:
        async with serving(state, code) as reader:
            reader.queue.submit([attempt(1, "job", _gate(tmp_path))])
            await reader.until(lambda: bool(reader.of(Started)))
            await _signed(tmp_path)
            if restarted:
                return None
            harm(_claim(state, 1))
            return (await reader.finished())[0]

    async def again() -> Finished:
        async with serving(state, code) as reader:
            return (await reader.finished())[0]

    finished = asyncio.run(begin())
    if finished is None:
        harm(_claim(state, 1))
        finished = asyncio.run(again())
    return finished


_ORPHANING = """#!/usr/bin/env python3
import json, os, subprocess, time
subprocess.Popen(["sleep", "1000"])
open(json.load(open("params.json"))["witness"], "a").write(os.environ["EVENTMILL_ACTIVATION"] + "\\n")
time.sleep(1000)
"""


@pytest.mark.parametrize("restarted", [False, True])
def test_a_killed_shim_means_an_unknown_outcome(tmp_path: Path, restarted: bool) -> None:
    finished = _run_gate_and(tmp_path, lambda claim: os.kill(claim.pid, signal.SIGKILL), restarted=restarted)
    assert (finished.status, finished.final) == (Status.INTERNAL_ERROR, True)
    assert "outcome unknown" in result(finished)["error"]
    assert _witnessed(tmp_path) == {f"{1:032x}": 1}
    for _ in range(1000):  # what was sent SIGKILL may take a moment to go
        if not _processes(f"TMPDIR={tmp_path}"):
            return
        time.sleep(0.01)
    pytest.fail("what the job has left behind still runs")


def test_a_reboot_means_an_unknown_outcome(tmp_path: Path) -> None:
    def reboot(claim: Claim) -> None:
        os.kill(claim.pid, signal.SIGKILL)
        path = tmp_path / "state" / "events" / "1.claim"
        # after a reboot another process may have the shim's pid, and even its start time
        other = {"pid": os.getpid(), "start": shim.start_time(os.getpid()), "boot": "another"}
        path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **other}))

    assert "outcome unknown" in result(_run_gate_and(tmp_path, reboot, restarted=True))["error"]


def test_another_process_with_the_shims_pid_is_not_the_shim(tmp_path: Path) -> None:
    def reuse(claim: Claim) -> None:
        os.kill(claim.pid, signal.SIGKILL)
        path = tmp_path / "state" / "events" / "1.claim"
        path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "pid": os.getpid()}))

    assert "outcome unknown" in result(_run_gate_and(tmp_path, reuse, restarted=True))["error"]


def test_a_shutdown_ends_jobs_so_that_they_are_tried_again(tmp_path: Path) -> None:
    finished = _run_gate_and(tmp_path, lambda claim: os.kill(claim.pid, signal.SIGTERM), restarted=True)
    assert "ended by signal 15" in result(finished)["error"]
    assert not finished.final


def test_of_two_shims_one_runs_the_job(tmp_path: Path) -> None:
    """The same launch twice at once, ten times: the claim lets one through."""
    for cluster in range(10):
        run = tmp_path / f"{cluster}.run"
        named = {"claim": str(tmp_path / f"{cluster}.claim"), "end": str(tmp_path / f"{cluster}.end")}
        shims = []
        for launch in ("a", "b"):
            values: dict[str, Any] = {
                "program": "/bin/sh", "arguments": ["sh", "-c", f"echo {launch} >> {tmp_path}/{cluster}.ran"],
                "environment": {}, "directory": str(tmp_path), "stdin": "/dev/null", "stdout": "/dev/null",
                "stderr": "/dev/null", "memory_mb": 100, "limit_s": None, "launch": launch, **named,
            }  # fmt: skip
            file = run.with_suffix(f".{launch}")
            file.write_text(json.dumps(values))
            shims.append(
                subprocess.Popen([sys.executable, "-IS", str(shim.__file__), str(file)], stdout=subprocess.PIPE)
            )
        codes = [process.wait() for process in shims]
        said = [process.communicate()[0] for process in shims]
        assert sorted(codes) == [0, shim.LOST_CLAIM]
        assert sorted(said) == [b"", b"claimed\n"]
        winner = "ab"[codes.index(0)]
        assert (tmp_path / f"{cluster}.ran").read_text() == f"{winner}\n"
        assert Claim.from_json((tmp_path / f"{cluster}.claim").read_bytes()).launch == winner


# ---- servers that are killed


class Engine:
    """What an engine would have recorded of the servers it had; and the next server of them."""

    def __init__(self, tmp_path: Path, jobs: int, code: str = "witness") -> None:
        self.state = tmp_path / "state"
        params = {"witness": str(tmp_path / "witness")}
        self.work = {f"{n + 1:032x}": [code, params] for n in range(jobs)}
        self.recorded: dict[str, str] = {}
        self.ended: set[str] = set()
        self.reports: list[str] = []

    def serve(self, *, kill_after_s: float | None = None, **plan: str) -> int:
        """Run a server until it ends or is killed; its exit code."""
        plan_ = {"work": self.work, "recorded": self.recorded, "ended": sorted(self.ended), **plan}
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.executors.local_jobs", str(self.state), json.dumps(plan_)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            output, _ = server.communicate(timeout=kill_after_s or 60)
        except subprocess.TimeoutExpired:
            server.kill()
            output, _ = server.communicate()
        for line in output.splitlines():
            kind, activation, handle = line.split()
            self.reports.append(kind)
            if kind == "Accepted":
                self.recorded[activation] = handle
            elif kind == "Finished":
                self.ended.add(activation)
        return server.returncode


@pytest.mark.slow
@pytest.mark.parametrize("point", sorted(POINTS))
def test_killed_at_a_point(tmp_path: Path, point: str) -> None:
    engine = Engine(tmp_path, jobs=3)
    assert engine.serve(die=point) == -signal.SIGKILL
    assert engine.serve() == 0
    assert _witnessed(tmp_path) == dict.fromkeys(engine.work, 1)


@pytest.mark.slow
@pytest.mark.parametrize("report", ["Accepted", "Started", "Finished"])
def test_killed_when_it_is_told(tmp_path: Path, report: str) -> None:
    engine = Engine(tmp_path, jobs=3)
    assert engine.serve(die_on=report) == -signal.SIGKILL
    assert engine.serve() == 0
    assert _witnessed(tmp_path) == dict.fromkeys(engine.work, 1)


@pytest.mark.slow
def test_killed_at_random(tmp_path: Path) -> None:
    """Twenty jobs, ten servers killed at random moments of a fixed seed; the last one may finish."""
    chance = random.Random(3)
    engine = Engine(tmp_path, jobs=20)
    kills = sum(engine.serve(kill_after_s=0.2 + chance.random() * 0.6) != 0 for _ in range(10))
    assert kills
    assert engine.serve() == 0
    assert _witnessed(tmp_path) == dict.fromkeys(engine.work, 1)
    assert set(engine.recorded) == engine.ended == set(engine.work)
