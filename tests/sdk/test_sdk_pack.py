"""From a flow file to OpenWhisk's documents."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from eventmill import FlowError
from eventmill.sdk.pack import load

from .sdk_flows import annotated, archive, documents, flow, write, write_ten_lines

CHAIN = "inspect-calibrate-reconstruct-register"


def test_the_ten_lines_make_all_documents_in_the_order_of_their_puts(tmp_path: Path) -> None:
    entities = load(write_ten_lines(tmp_path)).documents(namespace="ns")
    assert [(collection, name) for collection, name, _ in entities] == [
        ("packages", "beamtime"),
        ("actions", "beamtime/inspect"),
        ("actions", "beamtime/calibrate"),
        ("actions", "beamtime/reconstruct"),
        ("actions", "beamtime/register"),
        ("actions", f"beamtime/{CHAIN}"),
        ("triggers", f"beamtime.{CHAIN}.trigger"),
        ("rules", f"beamtime.{CHAIN}"),
    ]
    json.dumps(entities)


def test_the_ten_lines_documents_have_openwhisks_shapes(tmp_path: Path) -> None:
    docs = documents(load(write_ten_lines(tmp_path)))
    inspect = docs["actions", "beamtime/inspect"]
    assert (inspect["exec"]["kind"], inspect["exec"]["main"], inspect["exec"]["binary"]) == (
        "python:3.11",
        "inspect",
        True,
    )
    assert inspect["limits"] == {"timeout": 30_000, "memory": 256, "logs": 10}
    assert inspect["parameters"] == []
    assert annotated(inspect)["provide-api-key"] is False
    assert annotated(inspect)["flow"] == "flow.py"
    assert annotated(inspect)["description"] == "Reads the header of the new file."
    assert docs["actions", "beamtime/calibrate"]["exec"]["kind"] == "job"
    assert docs["actions", f"beamtime/{CHAIN}"]["exec"] == {
        "kind": "sequence",
        "components": [f"/_/beamtime/{step}" for step in CHAIN.split("-")],
    }
    trigger = docs["triggers", f"beamtime.{CHAIN}.trigger"]
    assert annotated(trigger)["pattern"]["subject"] == [{"glob": "/exfel/**/raw/*.h5"}]
    rule = docs["rules", f"beamtime.{CHAIN}"]
    assert (rule["trigger"], rule["action"]) == (f"/_/beamtime.{CHAIN}.trigger", f"/_/beamtime/{CHAIN}")


def test_the_functions_of_a_flow_share_one_archive(tmp_path: Path) -> None:
    docs = documents(load(write_ten_lines(tmp_path)))
    code = docs["actions", "beamtime/inspect"]["exec"]["code"]
    assert docs["actions", "beamtime/register"]["exec"]["code"] == code


def test_the_same_sources_make_the_same_documents(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    one = load(write_ten_lines(first)).documents(namespace="ns")
    two = load(write_ten_lines(second)).documents(namespace="ns")
    assert one == two
    write(second, "agipd.json", '{"changed": true}\n')
    three = load(second / "flow.py").documents(namespace="ns")
    changed = [a[1] for a, b in zip(one, three, strict=True) if annotated(a[2])["digest"] != annotated(b[2])["digest"]]
    assert changed == ["beamtime/calibrate"]


def test_actions_come_after_what_they_need(tmp_path: Path) -> None:
    loaded = flow(
        tmp_path,
        """
        from eventmill import Mill
        late, early = Mill("late"), Mill("early")
        @early.function
        def alert(failed): ...
        @early.function(on_error=alert)
        def split(event): ...
        @late.function
        def work(element): ...
        each = late.map(work >> split, partial=True)
        whole = late.sequence("whole", split, each, on_error=alert)
        late.on({"type": ["x"]}, whole)
        """,
    )
    names = [name for collection, name, _ in loaded.documents(namespace="ns") if collection == "actions"]
    for before, after in [
        ("early/alert", "early/split"),
        ("early/split", "late/work-split"),
        ("late/work-split", "late/partial-map-work-split"),
        ("late/partial-map-work-split", "late/whole"),
    ]:
        assert names.index(before) < names.index(after)
    docs = documents(loaded)
    assert annotated(docs["actions", "late/whole"])["on_error"] == "/ns/early/alert"
    mapped = docs["actions", "late/partial-map-work-split"]
    assert mapped["exec"] == {"kind": "map", "components": ["/_/late/work-split"]}
    assert annotated(mapped)["partial"] is True


def test_annotations_that_are_gone_are_named_for_deletion(tmp_path: Path) -> None:
    """An update merges annotations: without it, an `on_error` could never be taken away again."""
    text = "from eventmill import Mill\nmill = Mill('m')\n@mill.function(retries=2)\ndef f(): ...\n"
    document = documents(flow(tmp_path, text))["actions", "m/f"]
    assert annotated(document)["retries"] == 2
    gone = ["cloudevents", "description", "on_error", "on_hold", "partial", "pool", "timeout"]
    assert document["delAnnotations"] == gone


def test_a_service_is_an_action_without_code(tmp_path: Path) -> None:
    loaded = flow(
        tmp_path,
        """
        from eventmill import FlowError, Mill, files
        mill = Mill("m")
        thumbnail = mill.http("https://fn.example.org/t", name="thumbnail", structured=True, timeout="5s", retries=1)
        @mill.function
        def register(answer): ...
        mill.on(files.written("/x/*"), thumbnail >> register)
        try:
            mill.http("fn.example.org", name="other")
        except FlowError as e:
            assert "https://" in str(e)
        """,
    )
    document = documents(loaded)["actions", "m/thumbnail"]
    assert document["exec"] == {"kind": "http", "url": "https://fn.example.org/t", "method": "POST"}
    assert document["limits"] == {"timeout": 5000}
    assert {"cloudevents": "structured", "retries": 1}.items() <= annotated(document).items()
    assert "code" not in document["exec"]


def test_completions_and_ticks_carry_the_namespace(tmp_path: Path) -> None:
    loaded = flow(
        tmp_path,
        """
        from eventmill import Mill, completed, cron, every
        mill = Mill("m")
        @mill.function
        def f(event): ...
        @mill.function
        def g(event): ...
        mill.on(completed(f, {"worth": [True]}), g)
        mill.on({"$or": [completed(f), {"type": ["x"]}]}, g, name="either")
        mill.on(cron("0 3 * * *", timezone="Europe/Berlin"), f, name="nightly")
        mill.on(every("10m"), f)
        """,
    )
    docs = documents(loaded)
    assert annotated(docs["triggers", "m.g.trigger"])["pattern"]["subject"] == ["ns/m/f"]
    assert annotated(docs["triggers", "m.either.trigger"])["pattern"]["$or"][0]["subject"] == ["ns/m/f"]
    nightly = annotated(docs["triggers", "m.nightly.trigger"])
    assert nightly["schedule"] == {"cron": "0 3 * * *", "timezone": "Europe/Berlin"}
    assert nightly["pattern"] == {
        "source": ["/eventmill/schedules"],
        "type": ["org.eventmill.schedule.tick"],
        "subject": ["ns/m.nightly.trigger"],
    }
    assert annotated(docs["triggers", "m.f.trigger"])["schedule"] == {"every_s": 600.0}


def test_parameters_are_a_packages_and_a_deploy_may_change_them(tmp_path: Path) -> None:
    loaded = flow(
        tmp_path,
        """
        from eventmill import Mill
        mill = Mill("m", parameters={"output": "/results", "threshold": 3})
        @mill.function
        def f(event): ...
        """,
    )
    package = documents(loaded)["packages", "m"]
    assert package["parameters"] == [{"key": "output", "value": "/results"}, {"key": "threshold", "value": 3}]
    package = documents(loaded, parameters={"threshold": 5})["packages", "m"]
    assert package["parameters"][1] == {"key": "threshold", "value": 5}
    with pytest.raises(FlowError, match=r"no parameter 'treshold' \(it has output, threshold\)"):
        documents(loaded, parameters={"treshold": 5})


def test_a_load_leaves_nothing_behind(tmp_path: Path) -> None:
    write(tmp_path, "geometry.py", "PIXELS = 4\n")
    write(tmp_path, "detectors/__init__.py", "from detectors import agipd\n")
    write(tmp_path, "detectors/agipd.py", "NAME = 'agipd'\n")
    text = """
        import detectors, geometry
        from eventmill import Mill
        mill = Mill("m", parameters={"pixels": geometry.PIXELS})
        @mill.function
        def f(event): ...
    """
    path, modules = list(sys.path), set(sys.modules)
    loaded = flow(tmp_path, text)
    assert sys.path == path
    assert set(sys.modules) == modules
    assert not list(tmp_path.rglob("__pycache__"))
    write(tmp_path, "geometry.py", "PIXELS = 8\n")
    assert documents(flow(tmp_path, text))["packages", "m"]["parameters"] == [{"key": "pixels", "value": 8}]
    names = archive(documents(loaded)["actions", "m/f"]).namelist()
    assert {"geometry.py", "detectors/__init__.py", "detectors/agipd.py"} < set(names)


def test_a_function_may_come_from_a_module_beside_the_flow(tmp_path: Path) -> None:
    write(tmp_path, "steps.py", "def double(params): return {'n': 2 * params['n']}\n")
    loaded = flow(
        tmp_path,
        """
        import steps
        from eventmill import Mill
        mill = Mill("m")
        twice = mill.function(steps.double, timeout="5s")
        half = mill.function(lambda params: {"n": params["n"] // 2}, name="halve")
        """,
    )
    docs = documents(loaded)
    assert docs["actions", "m/double"]["exec"]["main"] == "twice"
    assert docs["actions", "m/halve"]["exec"]["main"] == "half"
