"""The example that people copy: its flow on runs that its detector writes."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eventmill import Event
from eventmill.sdk.pack import Flow, load

from .sdk_flows import annotated, documents, unpack

EXAMPLE = Path(__file__).parents[2] / "examples" / "detector"


@pytest.fixture
def flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flow:
    monkeypatch.setenv("EVENTMILL_PATHS", json.dumps([["/detector", str(tmp_path)]]))
    return load(EXAMPLE / "flow.py")


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return expose(tmp_path / "raw", 6)


def expose(folder: Path, runs: int) -> list[Path]:
    script = str(EXAMPLE / "detector.py")
    command = [sys.executable, script, str(folder), "--runs", str(runs), "--rate", "1000", "--seed", "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [Path(line) for line in done.stdout.splitlines()]


def bound(flow: Flow) -> dict[str, Any]:
    package = documents(flow)["packages", "detector"]
    return {item["key"]: item["value"] for item in package["parameters"]}


def written(path: Path, parameters: dict[str, Any]) -> Event:
    event = Event.new("org.eventmill.file.written", "//test", subject=f"/detector/raw/{path.name}")
    event.update(parameters)
    return event


def completion(result: dict[str, Any], parameters: dict[str, Any]) -> Event:
    event = Event.new("org.eventmill.activation.succeeded", "//test", data={"result": json.loads(json.dumps(result))})
    event.update(parameters)
    return event


def test_runs_go_through_the_whole_flow(flow: Flow, runs: list[Path], tmp_path: Path) -> None:
    parameters, inspect = bound(flow), vars(flow.module)["inspect"]
    looked_at = [inspect(written(path, parameters)) for path in runs]
    worth = [result for result in looked_at if result["worth"]]
    assert 0 < len(worth) < len(runs)
    for result in [*worth, worth[0]]:
        reduced = vars(flow.module)["reduce"](completion(result, parameters))
        vars(flow.module)["register"]({**parameters, **reduced})
    with closing(sqlite3.connect(tmp_path / "results" / "catalogue.sqlite")) as database:
        rows = database.execute("SELECT run, frames, image FROM runs ORDER BY run").fetchall()
    assert rows == [(Path(r["path"]).stem, r["frames"], f"{Path(r['path']).stem}.png") for r in worth]
    for _, _, image in rows:
        assert (tmp_path / "results" / image).read_bytes().startswith(b"\x89PNG")


def test_the_second_rule_waits_for_worth_results_of_the_first(flow: Flow) -> None:
    pattern = annotated(documents(flow)["triggers", "detector.reduce-register.trigger"])["pattern"]
    assert pattern["subject"] == ["ns/detector/inspect"]
    assert pattern["data"] == {"result": {"worth": [True]}}


def test_reduce_runs_as_the_job_that_is_packed(flow: Flow, runs: list[Path], tmp_path: Path) -> None:
    parameters = bound(flow)
    folder = unpack(documents(flow)["actions", "detector/reduce"], tmp_path / "job")
    result = vars(flow.module)["inspect"](written(runs[0], parameters))
    (folder / "params.json").write_text(json.dumps(completion(result, parameters)))
    subprocess.run([sys.executable, "run.py"], cwd=folder, env=os.environ, check=True, timeout=60)
    reduced = json.loads((folder / "result.json").read_text())
    assert (reduced["run"], reduced["frames"]) == ("run_0000", result["frames"])
    assert len((tmp_path / "results" / "run_0000.txt").read_text().splitlines()) > 40


def test_the_same_seed_makes_the_same_runs(flow: Flow, runs: list[Path], tmp_path: Path) -> None:
    (again,) = expose(tmp_path / "again", 1)
    inspect, parameters = vars(flow.module)["inspect"], bound(flow)
    first = inspect(written(runs[0], parameters))
    again.replace(runs[0])
    assert inspect(written(runs[0], parameters)) == first
