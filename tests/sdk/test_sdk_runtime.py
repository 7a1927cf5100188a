"""What runs inside workers and jobs, in interpreters of their own and without anything of ours installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eventmill import Event, Fatal, Retry
from eventmill.sdk.runtime import call, entry

from .sdk_flows import Documents, documents, flow, unpack, write

FLOW = """\
import json, os, sys
from pathlib import Path
from eventmill import Event, Fatal, Mill, Retry
import sibling

mill = Mill("m", include=["constants.json"])

@mill.function
def inspect(event):
    print("looking at", event.subject)
    return {"path": event.path, "event": isinstance(event, Event), "loaded": sys.modules[__name__].__name__}

@mill.function(name="no-parameters")
def tick(): ...

@mill.function
def fails(params):
    raise Fatal(f"no {params['what']}")

@mill.job
def reduce(params):
    constants = json.loads(Path(__file__).with_name("constants.json").read_text())
    print("reducing", params["path"])
    return {"sum": sum(params["values"]), "gain": constants["gain"], "helped": sibling.HELPED, "event": "id" in params}

@mill.job
def breaks(params):
    raise {"retry": Retry("no beam", after="1m"), "fatal": Fatal("never"), "bug": KeyError("x")}[params["how"]]

@mill.job
def odd(params):
    return eval(params["returns"])
"""


@pytest.fixture
def docs(tmp_path: Path) -> Documents:
    write(tmp_path, "sibling.py", "HELPED = True\n")
    write(tmp_path, "constants.json", '{"gain": 2.5}')
    return documents(flow(tmp_path, FLOW))


def python(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Bare Python: isolated from the environment and from installed packages."""
    env = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def run_job(document: dict[str, Any], folder: Path, params: Any) -> tuple[int, dict[str, Any], str]:
    unpack(document, folder)
    write(folder, "params.json", json.dumps(params))
    done = python(folder, "-S", "-I", "run.py")
    return done.returncode, json.loads((folder / "result.json").read_text()), done.stdout + done.stderr


def test_a_function_gets_an_event_or_its_predecessors_result() -> None:
    def given(params: Any) -> Any:
        return {"type": type(params).__name__}

    assert call(given, Event.new("t", "/s")) == {"type": "Event"}
    assert call(given, dict(Event.new("t", "/s"))) == {"type": "Event"}
    assert call(given, {"frames": 3}) == {"type": "dict"}
    assert call(given, [1, 2]) == {"type": "list"}


def test_what_a_function_may_return() -> None:
    assert call(lambda params: None, {}) == {}
    assert call(lambda: {"a": 1}, {"ignored": True}) == {"a": 1}
    assert call(lambda *params: {"n": len(params)}, {}) == {"n": 1}
    assert call(lambda params=None: {"given": params}, {"x": 1}) == {"given": {"x": 1}}
    assert call(lambda params: [1, 2], {}) == [1, 2]
    with pytest.raises(Fatal, match="returned a str: return a dict"):
        call(lambda params: "text", {})


def test_exceptions_pass_through_to_the_worker() -> None:
    def asks_again(params: Any) -> None:
        raise Retry(after="5m")

    with pytest.raises(Retry) as caught:
        call(asks_again, {})
    assert caught.value.eventmill_retry_after == 300


def test_an_exception_that_says_little_gets_a_better_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "from eventmill import Mill\nmill = Mill('m')\n@mill.function\ndef f(params):\n    raise eval(params['what'])\n"
    )
    write(tmp_path, "telling_flow.py", text)
    monkeypatch.syspath_prepend(str(tmp_path))
    main = entry("telling_flow", "f")
    for what, told in [
        ("KeyError('energy')", "KeyError: 'energy'"),
        ("AssertionError()", "AssertionError"),
        ("ValueError('bad')", None),
    ]:
        with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever it is
            main({"what": what})
        assert getattr(caught.value, "eventmill_error", None) == told
    assert main.eventmill_explain({"a": {1}}) == "what f returned is not JSON: a set at 'a'"  # type: ignore[attr-defined]


def test_main_exposes_each_function_as_openwhisks_runtime_asks_for_it(docs: Documents, tmp_path: Path) -> None:
    """Its launcher renames `__main__.py` to `main__.py`, and says `from main__ import <exec.main> as main`."""
    folder = unpack(docs["actions", "m/inspect"], tmp_path / "action")
    (folder / "__main__.py").rename(folder / "main__.py")
    event = Event.new("org.example.written", "/s", subject="/data/1.h5")
    launcher = f"""
import json, sys
sys.path.insert(0, "")
from main__ import {docs["actions", "m/inspect"]["exec"]["main"]} as main
print(json.dumps(main(json.loads({json.dumps(event)!r}))))
from main__ import {docs["actions", "m/no-parameters"]["exec"]["main"]} as main
print(json.dumps(main({{}})))
import eventmill
print(eventmill.__file__)
"""
    done = python(folder, "-S", "-c", launcher, EVENTMILL_PATHS='[["/data", "/mnt/d"]]')
    lines = done.stdout.splitlines()
    assert lines[0] == "looking at /data/1.h5", done.stderr
    assert json.loads(lines[1]) == {"path": "/mnt/d/1.h5", "event": True, "loaded": "flow"}
    assert lines[2:] == ["{}", str(folder / "eventmill/__init__.py")]


def test_a_job_reads_parameters_and_writes_its_result(docs: Documents, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    code, result, output = run_job(docs["actions", "m/reduce"], folder, {"path": "/raw/1.h5", "values": [1, 2, 3]})
    assert (code, result) == (0, {"sum": 6, "gain": 2.5, "helped": True, "event": False})
    assert output == "reducing /raw/1.h5\n"
    assert sorted(path.name for path in folder.iterdir()) == [
        "flow.zip",
        "job.sub",
        "params.json",
        "result.json",
        "run.py",
    ]


def test_a_job_runs_as_a_program_and_is_told_its_files(docs: Documents, tmp_path: Path) -> None:
    folder = unpack(docs["actions", "m/reduce"], tmp_path / "job")
    params, result = tmp_path / "in.json", tmp_path / "out.json"
    params.write_text('{"path": "x", "values": []}')
    names = {"EVENTMILL_PARAMS": str(params), "EVENTMILL_RESULT": str(result)}
    environment = {"PATH": os.environ["PATH"], **names}
    subprocess.run([folder / "run.py"], cwd=folder, env=environment, check=True, capture_output=True)
    assert json.loads(result.read_text())["sum"] == 0
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("retry", {"error": "no beam", "eventmill_retry_after": 60.0}),
        ("fatal", {"error": "never", "eventmill_fatal": True}),
        ("bug", {"error": "KeyError: 'x'"}),
    ],
)
def test_a_job_that_raises(docs: Documents, tmp_path: Path, how: str, expected: dict[str, Any]) -> None:
    code, result, output = run_job(docs["actions", "m/breaks"], tmp_path / "job", {"how": how})
    assert (code, result) == (1, expected)
    assert "flow.py" in output
    assert "runtime.py" not in output


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        ("{1, 2}", "odd returned a set: return a dict"),
        ("{'path': Path('x')}", "what odd returned is not JSON: a PosixPath at 'path'"),
        ("{'x': float('nan')}", "what odd returned is not JSON: nan at 'x'"),
        ("{'x': [{'y': {1}}]}", "what odd returned is not JSON: a set at 'x[0].y'"),
        ("{'x': {(1, 2): 3}}", "what odd returned is not JSON: a key of type tuple at 'x'"),
    ],
)
def test_a_job_that_returns_no_json(docs: Documents, tmp_path: Path, returns: str, message: str) -> None:
    code, result, _ = run_job(docs["actions", "m/odd"], tmp_path / "job", {"returns": returns})
    assert code == 1
    assert result["error"].startswith(message)
    assert result["eventmill_fatal"] is True


def test_a_returned_error_is_the_jobs_own_answer(docs: Documents, tmp_path: Path) -> None:
    code, result, _ = run_job(docs["actions", "m/odd"], tmp_path / "job", {"returns": "{'error': 'empty run'}"})
    assert (code, result) == (0, {"error": "empty run"})


def test_a_job_without_parameters_says_so(docs: Documents, tmp_path: Path) -> None:
    folder = unpack(docs["actions", "m/reduce"], tmp_path / "job")
    assert python(folder, "-S", "-I", "run.py").returncode == 1
    assert "params.json" in json.loads((folder / "result.json").read_text())["error"]
