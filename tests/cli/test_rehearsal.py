"""`eventmill test`: which rules match and why not, and what the actions do, all without a server."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

from eventmill.engine.turn import _failed_document
from eventmill.entities import Activation, Category, State
from tests.cli import flows
from tests.cli.conftest import Cli, Ran, event


@pytest.fixture
def flow(cli: Cli) -> str:
    cli.write("helper.py", flows.HELPER)
    cli.write("calibrate.sub", flows.SUBMIT)
    cli.write("work.sh", "#!/bin/sh\n")
    return cli.write("flow.py", flows.BEAMTIME)


def rehearse(cli: Cli, flow: str, subject: str, *options: str) -> Ran:
    return cli("test", flow, "-", *options, stdin=json.dumps(event(subject=subject)))


def steps(ran: Ran) -> dict[str, dict[str, Any]]:
    """The last step of each name."""
    return {step["name"]: step for step in ran.objects}


def test_runs_the_chain_and_what_its_completions_start(cli: Cli, flow: str) -> None:
    ran = rehearse(cli, flow, "/exfel/r1/raw/a.h5", "--json")
    assert ran.code == 0
    named = [(step["name"], step["outcome"]) for step in ran.objects]
    assert named == [
        ("beamtime.raw", "matched"),
        ("beamtime/inspect", "succeeded"),
        ("beamtime/reconstruct", "succeeded"),
        ("beamtime/half", "succeeded"),
        ("beamtime/half", "succeeded"),
        ("beamtime/map-half", "succeeded"),
        ("beamtime/inspect-reconstruct-map-half", "succeeded"),
        ("beamtime.cal", "no match"),
        ("beamtime.after", "no match"),
        ("beamtime.after", "matched"),
        ("beamtime/report", "succeeded"),
    ]


def test_results_go_from_step_to_step(cli: Cli, flow: str) -> None:
    ran = rehearse(cli, flow, "/exfel/r1/raw/a.h5", "--json")
    made = {step["name"]: step.get("result") for step in ran.objects if "event" not in step and step["level"] > 0}
    assert made["beamtime/inspect"]["frames"] == 7
    assert made["beamtime/inspect"]["site"] == "desy"
    assert "SITE" not in os.environ
    assert made["beamtime/inspect"]["threshold"] == 0.5
    assert made["beamtime/reconstruct"]["volume"] == "/exfel/r1/raw/a.h5.vol"
    assert steps(ran)["beamtime/report"]["result"] == {"volume": "/exfel/r1/raw/a.h5.vol"}
    assert made["beamtime/map-half"] == {"items": [{"half": 0.5}, {"half": 1.0}], "failed": []}


def test_says_why_a_rule_does_not_match(cli: Cli, flow: str) -> None:
    ran = rehearse(cli, flow, "/exfel/r1/raw/a.h5")
    assert "rule beamtime.cal: no match\n" in ran.out
    assert '✗ subject: [{"glob":"/exfel/**/cal/*.h5"}] found "/exfel/r1/raw/a.h5"' in ran.out


def test_what_functions_print_goes_to_stderr(cli: Cli, flow: str) -> None:
    ran = rehearse(cli, flow, "/exfel/r1/raw/a.h5")
    assert "looking at /exfel/r1/raw/a.h5\n" in ran.err
    assert "looking at" not in ran.out


def test_nothing_matches(cli: Cli, flow: str) -> None:
    ran = rehearse(cli, flow, "/elsewhere/a.h5")
    assert ran.code == 1
    assert ran.err == "no rule matches: nothing was run\n"


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("broken", "unreadable", "no attempt would help"),
        ("busy", "still busy", "wants another attempt after 5 s"),
        ("typo", "KeyError: 'path'", ""),
    ],
)
def test_failures_end_the_chain_and_reach_on_error(cli: Cli, flow: str, name: str, error: str, text: str) -> None:
    ran = rehearse(cli, flow, f"/exfel/r1/raw/{name}.h5", "--json")
    assert ran.code == 1
    found = steps(ran)
    assert found["beamtime/inspect"]["outcome"] == "failed"
    assert found["beamtime/inspect"]["result"] == {"error": error}
    assert found["beamtime/inspect"].get("text", "") == text
    assert found["beamtime/alarm"]["result"] == {"told": "default/beamtime/inspect"}
    assert found["beamtime/inspect-reconstruct-map-half"]["outcome"] == "failed"
    assert "beamtime/reconstruct" not in found
    assert (name == "typo") == ("Traceback" in ran.err)


def test_a_submit_description_is_not_run_unless_its_result_is_given(cli: Cli, flow: str) -> None:
    ran = rehearse(cli, flow, "/exfel/r1/cal/a.h5")
    assert ran.code == 1
    assert "beamtime/calibrate: not run  a submit description is not run here: give its result" in ran.out
    ran = rehearse(cli, flow, "/exfel/r1/cal/a.h5", "--result", 'calibrate={"path": "/x"}')
    assert ran.code == 0
    assert 'beamtime/calibrate: succeeded  {"path":"/x"}  as given by --result' in ran.out


def test_a_failed_element_fails_the_map(cli: Cli, flow: str) -> None:
    ran = rehearse(cli, flow, "/exfel/r1/raw/a.h5", "--json", "--result", 'reconstruct={"items": [7, 2]}')
    made = steps(ran)["beamtime/map-half"]
    assert made["outcome"] == "failed"
    [failed] = made["result"].pop("failed")
    assert re.fullmatch("[0-9a-f]{32}", failed.pop("activationId"))
    assert failed == {"index": 0, "error": "odd"}
    assert made["result"] == {"items": [{"half": 1.0}], "error": "1 of 2 elements failed"}


def test_on_error_gets_what_it_gets_from_a_server(cli: Cli) -> None:
    code = """
from eventmill import Mill, happened
mill = Mill("m", parameters={"bound": 1})
@mill.function
def alarm(failure):
    return {"got": failure}
@mill.function(on_error=alarm)
def fails(event):
    print("one")
    print("two", end="")
    raise ValueError("wrong")
mill.on(happened("t"), fails, name="rule")
"""
    ran = cli("test", cli.write("m.py", code), "-", "--json", stdin=json.dumps(event(type="t")))
    got = steps(ran)["m/alarm"]["result"]["got"]
    row = Activation(
        id="0" * 32, namespace="n", action="n/a", revision=0, category=Category.FUNCTION, state=State.FAILED,
        partition=0, params=b"{}",
    )  # fmt: skip
    assert set(got) - {"bound"} == set(json.loads(_failed_document(row)))
    assert (got["rule"], got["action"], got["attempt"]) == ("default/m.rule", "default/m/fails", 1)
    assert (got["params"]["type"], got["params"]["bound"], got["error"]) == ("t", 1, "wrong")
    assert got["start"] <= got["end"]
    logs = [line.partition(" ")[2] for line in got["logs"]]
    assert [line for line in logs if line.startswith("stdout")] == ["stdout: one", "stdout: two"]
    assert "stderr: ValueError: wrong" in logs


def test_parameters_and_paths(cli: Cli, flow: str) -> None:
    config = cli.write("mill.toml", '[[paths]]\nsubject = "/exfel"\nlocal = "/data/exfel"\n')
    ran = rehearse(cli, flow, "/exfel/r1/raw/a.h5", "--json", "--config", config, "--param", "threshold=3")
    inspected = next(step["result"] for step in ran.objects if step["name"] == "beamtime/inspect")
    assert inspected["path"] == "/data/exfel/r1/raw/a.h5"
    assert inspected["threshold"] == 3


def test_completions_that_go_in_circles_are_stopped(cli: Cli) -> None:
    circle = """
from eventmill import Mill, completed, happened
mill = Mill("circle")
@mill.function
def turn(event):
    return {}
mill.on(happened("start"), turn, name="start")
mill.on(completed(turn), turn, name="again")
"""
    ran = cli("test", cli.write("circle.py", circle), "-", stdin=json.dumps(event(type="start")))
    assert ran.code == 1
    assert ran.out.count("circle/turn: succeeded") == 17
    assert "the loop guard: more than 16 completions lie behind this event" in ran.out


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{", "stdin is no event: not valid JSON"),
        ("[]", "stdin is no event: an event is a JSON object"),
        ("{}", "stdin is no event: attribute 'specversion': is missing"),
        (json.dumps(event(specversion="0.3")), "stdin is no event: attribute 'specversion'"),
        (json.dumps(event(id="")), "stdin is no event: attribute 'id'"),
        (json.dumps(event(time="yesterday")), "stdin is no event: attribute 'time'"),
        (json.dumps(event(MyField=1)), "stdin is no event: attribute 'MyField'"),
        (json.dumps(event(subject="")), "stdin is no event: attribute 'subject'"),
    ],
)
def test_wrong_events(cli: Cli, flow: str, raw: str, message: str) -> None:
    ran = cli("test", flow, "-", stdin=raw)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"eventmill: {message}")


def test_wrong_options(cli: Cli, flow: str) -> None:
    assert rehearse(cli, flow, "/x", "--result", "nosuch={}").err.startswith(
        "eventmill: --result nosuch=…: the flow has"
    )
    assert (
        rehearse(cli, flow, "/x", "--result", "calibrate").err == "eventmill: --result calibrate: write ACTION=JSON\n"
    )
    broken = rehearse(cli, flow, "/x", "--result", 'calibrate={"path": }')
    assert broken.code == 2
    assert broken.err == "eventmill: --result calibrate: not JSON at line 1, column 10: Expecting value\n"
    assert cli("test", flow, "missing.json").err == "eventmill: can't read missing.json: No such file or directory\n"
