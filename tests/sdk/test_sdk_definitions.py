"""Mills, actions, sequences, patterns, schedules: what their definition makes."""

from __future__ import annotations

from typing import Any

import pytest

from eventmill import Fatal, FlowError, Mill, Retry, completed, cron, dcache, every, failed, files, happened
from eventmill.sdk.actions import Action, Sequence


def steps(sequence: Sequence) -> list[str]:
    return [action.name for action in sequence.components]


@pytest.fixture
def mill() -> Mill:
    return Mill("beamtime")


@pytest.fixture
def abc(mill: Mill) -> list[Any]:
    def step(value: dict[str, Any]) -> dict[str, Any]:
        return value

    return [mill.function(name=name)(step) for name in "abc"]


def test_a_function_is_still_the_function(mill: Mill) -> None:
    @mill.function(timeout="30s", memory="256MB")
    def double(params: dict[str, int]) -> dict[str, int]:
        """Doubles n."""
        return {"n": 2 * params["n"]}

    assert double({"n": 4}) == {"n": 8}
    assert double.__doc__ == "Doubles n."
    assert double.path == "beamtime/double"
    assert double.limits() == {"timeout": 30_000, "memory": 256, "logs": 10}
    assert double.annotations() == {"description": "Doubles n."}
    assert repr(double) == "<function beamtime/double>"
    assert double.where.startswith("test_sdk_definitions.py:")


def test_options_become_limits_annotations_and_parameters(mill: Mill) -> None:
    @mill.function(logs="5MB", instances=4, retries=0, parameters={"b": [2], "a": 1}, init={"TOKEN_FILE": "/run/token"})
    def f() -> None: ...

    assert f.limits() == {"timeout": 60_000, "memory": 256, "logs": 5, "instances": 4}
    assert f.annotations() == {"retries": 0}
    assert f.bound() == [
        {"key": "a", "value": 1},
        {"key": "b", "value": [2]},
        {"key": "TOKEN_FILE", "value": "/run/token", "init": True},
    ]


def test_a_python_job_is_still_the_function(mill: Mill) -> None:
    @mill.job(cpus=8, memory="16GB", timeout="2d", pool="maxwell", retries=1)
    def reduce(params: dict[str, Any]) -> dict[str, Any]:
        return {"seen": params}

    assert reduce({"x": 1}) == {"seen": {"x": 1}}
    assert (reduce.cpus, reduce.memory_mb) == (8, 16_384)
    assert reduce.limits() == {"timeout": 172_800_000}
    assert reduce.annotations() == {"pool": "maxwell", "retries": 1}

    @mill.job(on_hold={"after": "10m", "times": 3})
    def patient() -> None: ...

    assert patient.annotations() == {"on_hold": {"after": 600.0, "times": 3}}
    assert mill.job("calibrate.sub", on_hold="wait", pool="maxwell").annotations() == {
        "pool": "maxwell",
        "on_hold": "wait",
    }

    @mill.job
    def bare() -> None: ...

    assert (bare.cpus, bare.memory_mb) == (1, 1024)


def test_a_submit_job_is_named_after_its_file(mill: Mill) -> None:
    assert mill.job("jobs/calibrate.sub", pool="maxwell").path == "beamtime/calibrate"
    assert mill.job("jobs/calibrate.sub", name="recalibrate").path == "beamtime/recalibrate"


def test_joining_is_associative(abc: list[Any]) -> None:
    a, b, c = abc
    left, right = (a >> b) >> c, a >> (b >> c)
    assert left.components == right.components == (a, b, c)
    assert left.name == right.name == "a-b-c"
    assert steps((a >> b) >> (b >> c)) == ["a", "b", "b", "c"]


def test_a_named_sequence_stays_a_step_of_its_own(mill: Mill, abc: list[Any]) -> None:
    a, b, c = abc
    calibration = mill.sequence("calibration", a >> b, timeout="3d", on_error=c)
    assert calibration.annotations() == {"timeout": 259_200_000}
    assert steps(calibration) == ["a", "b"]
    assert steps(calibration >> c) == ["calibration", "c"]
    assert calibration.on_error is c
    assert set(calibration.needs()) == {a, b, c}


def test_long_names_are_cut_and_stay_distinct(mill: Mill) -> None:
    def step() -> None: ...

    long = [mill.function(name=f"a-rather-long-name-{n}")(step) for n in range(7)]
    one = long[0] >> long[1] >> long[2] >> long[3] >> long[4] >> long[5]
    other = one >> long[6]
    assert len(one.name) == len(other.name) == 100
    assert one.name != other.name


def test_an_anonymous_sequence_is_deployed_when_it_is_used(mill: Mill, abc: list[Any]) -> None:
    a, b, _ = abc
    _ = a >> b
    assert "a-b" not in mill.actions
    mill.on(files.written("/raw/*.h5"), a >> b)
    mill.on(files.written("/again/*.h5"), a >> b, name="again")
    assert mill.rules["a-b"].action is mill.rules["again"].action is mill.actions["a-b"]


def test_maps(mill: Mill, abc: list[Any]) -> None:
    a, b, c = abc
    each = mill.map(a)
    assert (each.path, each.action, each.partial) == ("beamtime/map-a", a, False)
    assert mill.map(a) is each
    tolerant = mill.map(a >> b, partial=True)
    assert tolerant.path == "beamtime/partial-map-a-b"
    assert mill.actions["a-b"] is tolerant.action
    with pytest.raises(FlowError, match="the name 'map-a' is taken by a map"):
        mill.map(a, timeout="1h")
    assert mill.map(a, name="all", on_error=c).needs() == (a, c)


def test_on_error_may_be_a_sequence(mill: Mill, abc: list[Any]) -> None:
    a, b, _ = abc

    @mill.function(on_error=a >> b)
    def fragile() -> None: ...

    assert fragile.on_error is mill.actions["a-b"]


def test_written_stands_for_every_storage_system() -> None:
    pattern = files.written("/exfel/**/raw/*.h5")
    assert pattern["subject"] == [{"glob": "/exfel/**/raw/*.h5"}]
    assert {"org.eventmill.file.written", "org.dcache.file.written"} < set(pattern["type"])
    assert all(kind.startswith(("org.", "com.amazonaws.s3.ObjectCreated:")) for kind in pattern["type"])


def test_patterns_with_conditions() -> None:
    size = {"fileSize": [{"numeric": [">=", 1_000_000]}]}
    assert dcache.written("/a/*", "/b/*", data=size) == {
        "type": ["org.dcache.file.written"],
        "subject": [{"glob": "/a/*"}, {"glob": "/b/*"}],
        "data": size,
    }
    assert happened("org.lab.run.ended") == {"type": ["org.lab.run.ended"]}
    assert happened("a", "b", subject="/run/*", data={"good": [True]}) == {
        "type": ["a", "b"],
        "subject": [{"glob": "/run/*"}],
        "data": {"good": [True]},
    }
    assert happened("a", subject={"suffix": ".h5"})["subject"] == [{"suffix": ".h5"}]


def test_completions(abc: list[Action]) -> None:
    assert completed(abc[0], {"worth": [True]}) == {
        "type": ["org.eventmill.activation.succeeded"],
        "subject": ["beamtime/a"],
        "data": {"result": {"worth": [True]}},
    }
    assert failed(abc[0]) == {"type": ["org.eventmill.activation.failed"], "subject": ["beamtime/a"]}


def test_schedules() -> None:
    assert every("10m") == {"every_s": 600.0}
    assert every(5) == {"every_s": 5.0}
    assert cron(" 0  3 * * *", timezone="Europe/Berlin") == {"cron": "0 3 * * *", "timezone": "Europe/Berlin"}


def test_retry_and_fatal_say_what_they_mean_in_attributes() -> None:
    assert Retry(after="5m").eventmill_retry_after == 300
    assert Retry("the beam is off", after=30).eventmill_retry_after == 30
    assert Retry().eventmill_retry_after is None
    assert Fatal("no such detector").eventmill_fatal is True
    assert str(Retry("the beam is off")) == "the beam is off"
    with pytest.raises(FlowError, match="unknown unit"):
        Retry(after="5 fortnights")
