"""Entities: what OpenWhisk has not (jobs, maps, patterns, schedules), and every refusal with its exact words."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Caller, Running, running

MALFORMED = "The request content was malformed:\n"
CODE = "def main(args):\n    return args\n"


def function(**fields: Any) -> dict[str, Any]:
    return {"exec": {"kind": "python:3", "code": CODE}, **fields}


def zipped(files: Mapping[str, str | bytes]) -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return base64.b64encode(buffer.getvalue()).decode()


def job(description: str | bytes, **files: str) -> dict[str, Any]:
    return {"exec": {"kind": "job", "code": zipped({"job.sub": description, **files})}}


def refusal(caller: Caller, path: str, body: Any, *, method: str = "PUT", **query: Any) -> tuple[int, str]:
    answer = caller.api(method, path, body, **query)
    return answer.status_code, answer.json()["error"]


# kinds


@pytest.mark.parametrize("kind", ["python", "python:3", "python:default", " Python:3 ", "python:3.11"])
def test_aliases_become_the_kind_that_runs(caller: Caller, kind: str) -> None:
    document = caller.put("actions/a", {"exec": {"kind": kind, "code": CODE, "main": "start"}})
    assert document["exec"] == {"kind": "python:3.11", "code": CODE, "binary": False, "main": "start"}


def test_code_is_kept_once_and_given_back(server: Running, caller: Caller) -> None:
    code = "x = 1\n" * 1000
    caller.put("actions/one", {"exec": {"kind": "python:3", "code": code}})
    caller.put("actions/two", {"exec": {"kind": "python:3", "code": code}})
    assert caller.api("GET", "actions/one").json()["exec"]["code"] == code
    assert "code" not in caller.api("GET", "actions/one", code="false").json()["exec"]
    stored = server.run(
        lambda: server.services.store.transact(
            lambda tx: [tx.entities.get(caller.namespace, n) for n in ("one", "two")]
        )
    )
    digests = {s.document["exec"]["code"] for s in stored if s is not None}
    assert len(digests) == 1
    assert len(digests.pop()) == 32
    caller.put("actions/one", {"parameters": []}, overwrite="true")
    assert caller.api("GET", "actions/one").json()["exec"]["code"] == code
    assert caller.api("DELETE", "actions/one").json()["exec"]["code"] == code


def test_an_entity_keeps_its_uid_until_it_is_deleted(server: Running, caller: Caller) -> None:
    def uid() -> str:
        read = server.services.store.read
        stored = server.run(lambda: read(lambda tx: tx.entities.get(caller.namespace, "r")))
        assert stored is not None
        return stored.uid

    caller.put("actions/a", function())
    caller.put("triggers/t", {})
    rule = {"trigger": "/_/t", "action": "/_/a"}
    caller.put("rules/r", rule)
    first = uid()
    caller.put("rules/r", {"annotations": []}, overwrite="true")
    caller.api("POST", "rules/r", {"status": "inactive"})
    assert uid() == first
    caller.api("DELETE", "rules/r")
    caller.put("rules/r", rule)
    assert uid() != first


def test_a_job_is_a_submit_description(caller: Caller) -> None:
    body = job("executable = run.sh\narguments = $(path)\nqueue\n", **{"run.sh": "#!/bin/sh\n"})
    document = caller.put("actions/j", body)
    assert document["exec"]["kind"] == "job"
    assert document["exec"]["binary"] is True
    assert document["limits"]["timeout"] == 30 * 86_400_000
    assert {"key": "exec", "value": "job"} in document["annotations"]
    longest = 30 * 86_400_000
    assert caller.put("actions/j", {"limits": {"timeout": 3600_000}}, overwrite="true")["limits"]["timeout"] == 3600_000
    status, text = refusal(caller, "actions/j", {"limits": {"timeout": longest + 1}}, overwrite="true")
    assert (status, text.endswith(f"exceeds allowed threshold of {longest} milliseconds")) == (400, True)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("not base64!", "a job's code is a zip archive in base64: "),
        ("abcd", "a job's code is a zip archive in base64: this is not a zip archive"),
        ("", "a job's code is a zip archive in base64: this is not a zip archive"),
        (zipped({}), "a job's code is a zip archive in base64: the job's archive has no 'job.sub' at its top"),
        (zipped({"sub/job.sub": "executable = a\nqueue\n"}), "a job's code is a zip archive in base64: "),
        (zipped({"job.sub": "arguments = 1\nqueue\n"}), "job.sub, there is no 'executable'"),
        (zipped({"job.sub": "executable = a\nuniverse = local\nqueue\n"}), "job.sub, line 2: "),
        (zipped({"job.sub": "include command : rm -rf /\nqueue\n"}), "job.sub, line 1: 'include' is refused"),
        (zipped({"job.sub": "executable = $ENV(HOME)/a\nqueue\n"}), "job.sub, line 1: "),
        (zipped({"job.sub": "executable = a\nqueue 5\n"}), "job.sub, line 2: 'queue' takes no arguments"),
        (zipped({"job.sub": "executable = ../a\nqueue\n"}), "job.sub, line 1: "),
        (zipped({"job.sub": b"\xff\xfe"}), "a job's code is a zip archive in base64: job.sub is not UTF-8"),
        (zipped({"job.sub": "#" + "x" * 70_000}), "job.sub, a description is at most 65536 bytes long"),
        (zipped({f"f{i}": "" for i in range(10_300)}), "a job's code is a zip archive in base64: "),
    ],
)
def test_a_job_that_is_refused(caller: Caller, code: str, text: str) -> None:
    status, found = refusal(caller, "actions/j", {"exec": {"kind": "job", "code": code}})
    assert status == 400
    assert found.startswith(MALFORMED + text)
    assert caller.api("GET", "actions/j").status_code == 404


POOLS = {
    "local": {"kind": "local"},
    "site": {"kind": "htcondor", "commands": {"*": ["nice_user"], "beamline": ["+Project", "want_graceful_removal"]}},
}


def test_a_description_is_checked_for_its_pool(tmp_path: Path) -> None:
    """What one of the namespace's pools allows, another may refuse; and what is Eventmill's own to say, all do."""

    def asking(line: str, *annotations: dict[str, Any]) -> dict[str, Any]:
        return job(f"executable = run.sh\n{line}\nqueue\n", **{"run.sh": ""}) | {"annotations": list(annotations)}

    site = {"key": "pool", "value": "site"}
    with running(tmp_path, pools=POOLS) as server:
        beamline, other = server.caller(namespace="beamline"), server.caller(namespace="other")
        with beamline, other:
            beamline.put("actions/j", asking("want_graceful_removal = true", site))
            beamline.put("actions/nice", asking("nice_user = true", site))
            for caller, body, text in (
                (other, asking("want_graceful_removal = true", site), "can allow it (pools.site.commands)"),
                (beamline, asking("want_graceful_removal = true"), "a macro of your own must be used somewhere"),
                (beamline, asking("max_materialize = 5", site), "is for Eventmill to say, and no pool can allow it"),
                (beamline, asking("max_retries = 5", site), "'max_retries' is refused: how often a job is tried"),
                (beamline, asking("", {"key": "on_hold", "value": "retry"}), "annotation 'on_hold': on_hold is "),
            ):
                status, found = refusal(caller, "actions/x", body)
                assert (status, text in found) == (400, True), found
            # the same code, to be run elsewhere
            status, found = refusal(
                beamline, "actions/j", {"annotations": [{"key": "pool", "value": "local"}]}, overwrite="true"
            )
            assert (status, "line 2: 'want_graceful_removal'" in found) == (400, True)
            assert beamline.put("actions/j", {"limits": {"timeout": 5000}}, overwrite="true")["version"] == "0.0.2"


@pytest.mark.slow
def test_a_damaged_archive_is_an_answer(caller: Caller) -> None:
    """Whatever byte of it is wrong."""
    good = base64.b64decode(zipped({"job.sub": "executable = a\nqueue\n", "a": "x" * 100}))
    for position in range(0, len(good), 3):
        bad = bytearray(good)
        bad[position] ^= 0xFF
        code = base64.b64encode(bytes(bad)).decode()
        answer = caller.api("PUT", "actions/j", {"exec": {"kind": "job", "code": code}}, overwrite="true")
        assert answer.status_code in (200, 400), (position, answer.text)


def test_a_map_has_one_component(caller: Caller) -> None:
    caller.put("actions/a", function())
    document = caller.put(
        "actions/m",
        {"exec": {"kind": "map", "components": ["/_/a"]}, "parameters": [{"key": "p", "value": 1}]},
    )
    assert document["exec"] == {"kind": "map", "components": [f"/{caller.namespace}/a"]}
    assert document["parameters"] == [{"key": "p", "value": 1}]
    for components in ([], ["/_/a", "/_/a"]):
        status, text = refusal(caller, "actions/n", {"exec": {"kind": "map", "components": components}})
        assert (status, text[:30]) == (400, "A map has exactly one componen")


def test_no_circle_of_sequences_and_maps(caller: Caller) -> None:
    def made_of(kind: str, *components: str) -> dict[str, Any]:
        return {"exec": {"kind": kind, "components": [f"/_/{name}" for name in components]}}

    for name, body in (("a", function()), ("s", made_of("sequence", "a")), ("m", made_of("map", "s"))):
        caller.put(f"actions/{name}", body)
    caller.put("actions/t", made_of("sequence", "a", "m"))
    for name in ("a", "s", "m"):
        kind = "map" if name == "m" else "sequence"
        status, text = refusal(caller, f"actions/{name}", made_of(kind, "t"), overwrite="true")
        assert (status, text) == (400, "Sequence may not refer to itself.")
    caller.api("DELETE", "actions/a")
    assert refusal(caller, "actions/a", made_of("sequence", "s"))[1] == "Sequence may not refer to itself."


def test_nested_sequences_are_counted(caller: Caller) -> None:
    caller.put("actions/a", function())
    caller.put("actions/s", {"exec": {"kind": "sequence", "components": ["/_/a"] * 20}})
    caller.put("actions/t", {"exec": {"kind": "sequence", "components": ["/_/s", "/_/s", *["/_/a"] * 10]}})
    body = {"exec": {"kind": "sequence", "components": ["/_/t", "/_/a"]}}
    assert refusal(caller, "actions/u", body) == (400, "Too many actions in the sequence.")


def test_from_a_sequence_back_to_code(caller: Caller) -> None:
    caller.put("actions/a", function())
    caller.put("actions/s", {"exec": {"kind": "sequence", "components": ["/_/a"]}})
    document = caller.put("actions/s", function(), overwrite="true")
    assert document["parameters"] == []
    assert document["exec"]["kind"] == "python:3.11"


def test_a_packaged_action_shows_what_it_inherits(caller: Caller) -> None:
    caller.put("packages/p", {"parameters": [{"key": "a", "value": 1}, {"key": "b", "value": 1}]})
    own = caller.put("actions/p/x", function(parameters=[{"key": "b", "value": 2}]))
    assert own["parameters"] == [{"key": "b", "value": 2}]
    shown = caller.api("GET", "actions/p/x").json()["parameters"]
    assert {pair["key"]: pair["value"] for pair in shown} == {"a": 1, "b": 2}


# triggers and rules


def trigger(**annotations: Any) -> dict[str, Any]:
    return {"annotations": [{"key": key, "value": value} for key, value in annotations.items()]}


def test_a_trigger_has_a_pattern_and_a_schedule(caller: Caller) -> None:
    pattern = {"type": ["org.example.x"], "subject": [{"glob": "/a/**/b*.h5"}]}
    assert {"key": "pattern", "value": pattern} in caller.put("triggers/t", trigger(pattern=pattern))["annotations"]
    schedule = {"cron": "0 3 * * *", "timezone": "Europe/Berlin"}
    assert {"key": "schedule", "value": schedule} in caller.put("triggers/u", trigger(schedule=schedule))["annotations"]


@pytest.mark.parametrize(
    ("pattern", "where"),
    [
        ({"type": "x"}, "type"),
        ({"type": []}, "type"),
        ({}, ""),
        ({"data": {"size": [{"numeric": [">", "x"]}]}}, "data.size[0].numeric"),
        ({"type": [{"nosuch": "x"}]}, "type[0]"),
        ({"type": [{"prefix": 1}]}, "type[0].prefix"),
        ({"subject": [{"cidr": "x/y"}]}, "subject[0].cidr"),
        ({"type": [{"exists": "yes"}]}, "type[0].exists"),
        ({"type": ["x" * 70_000]}, ""),
    ],
)
def test_a_pattern_that_is_refused(caller: Caller, pattern: Any, where: str) -> None:
    status, text = refusal(caller, "triggers/t", trigger(pattern=pattern))
    assert status == 400
    assert text.startswith(f"{MALFORMED}annotation 'pattern': ")
    assert where in text
    assert caller.api("GET", "triggers/t").status_code == 404


@pytest.mark.parametrize("value", [1, "x", None, [], [{"type": ["x"]}], True])
def test_a_pattern_is_an_object(caller: Caller, value: Any) -> None:
    for name in ("pattern", "schedule"):
        expected = f"{MALFORMED}annotation '{name}' must be a JSON object"
        assert refusal(caller, "triggers/t", trigger(**{name: value})) == (400, expected)


@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"cron": "* * *"},
        {"cron": "99 * * * *"},
        {"cron": "* * * * *", "every_s": 5},
        {"every_s": 0},
        {"every_s": "5"},
        {"every_s": True},
        {"cron": "0 3 * * *", "timezone": "Nowhere/Land"},
        {"every_s": 5, "timezone": "UTC"},
        {"every_s": 5, "at": 1},
    ],
)
def test_a_schedule_that_is_refused(caller: Caller, schedule: Any) -> None:
    status, text = refusal(caller, "triggers/t", trigger(schedule=schedule))
    assert status == 400
    assert text.startswith(f"{MALFORMED}annotation 'schedule': ")


def test_the_engine_takes_an_active_rule_in_or_the_rule_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, limits={"rules": 1}) as server, server.caller() as caller:
        caller.put("actions/a", function())
        caller.put("triggers/t", trigger(pattern={"type": ["x"]}))
        caller.put("triggers/by-hand", {})
        caller.put("rules/r", {"trigger": "/_/t", "action": "/_/a"})
        server.run(lambda: server.services.engine.fire(f"{caller.namespace}/by-hand", {}))  # the engine has caught up
        status, text = refusal(caller, "rules/s", {"trigger": "/_/t", "action": "/_/a"})
        assert (status, "limits.rules" in text) == (400, True)
        caller.put("rules/s", {"trigger": "/_/by-hand", "action": "/_/a"})
        status, text = refusal(caller, "triggers/by-hand", trigger(pattern={"type": ["y"]}), overwrite="true")
        assert (status, "limits.rules" in text) == (400, True)
        caller.api("POST", "rules/s", {"status": "inactive"})
        caller.put("triggers/by-hand", trigger(pattern={"type": ["y"]}), overwrite="true")
        status, text = refusal(caller, "rules/s", {"status": "active"}, method="POST")
        assert (status, "limits.rules" in text) == (400, True)


def test_rules_of_a_deleted_trigger_are_inactive(caller: Caller) -> None:
    caller.put("actions/a", function())
    caller.put("triggers/t", {})
    before = caller.put("rules/r", {"trigger": "/_/t", "action": "/_/a"})
    assert caller.api("DELETE", "triggers/t").json()["rules"][f"{caller.namespace}/r"]["status"] == "active"
    after = caller.api("GET", "rules/r").json()
    assert after == {**before, "status": "inactive"}
    text = "Only rules with existing triggers can be activated"
    assert refusal(caller, "rules/r", {"status": "active"}, method="POST") == (404, text)
    assert "rules" not in caller.put("triggers/t", {})
    assert caller.api("POST", "rules/r", {"status": "active"}).text == "OK"
    assert caller.api("GET", "rules/r").json()["status"] == "active"


def test_a_trigger_without_active_rules_fires_nothing(caller: Caller) -> None:
    caller.put("triggers/t", {})
    assert (caller.api("POST", "triggers/t", {"x": 1}).status_code, caller.api("POST", "triggers/t").content) == (
        204,
        b"",
    )
    caller.put("actions/a", function())
    assert caller.api("POST", "triggers/a").status_code == 409
    assert caller.api("POST", "triggers/nosuch").status_code == 404


# refusals


FUNCTION = function()
OTHER = "zzz"


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("actions/x", {}, 400, "exec undefined"),
        ("actions/x", {"exec": None}, 400, "exec undefined"),
        ("actions/x", {"exec": []}, 400, MALFORMED + "JSON object expected"),
        ("actions/x", {"exec": {"kind": 3, "code": ""}}, 400, MALFORMED + "'kind' must be a string defined in 'exec'"),
        ("actions/x", function(annotations=[{"key": "a"}]), 400, MALFORMED + "annotations malformed!"),
        ("actions/x", function(annotations={"a": 1}), 400, MALFORMED + "annotations malformed!"),
        ("actions/x", function(parameters=[{"key": "", "value": 1}]), 400, MALFORMED + "parameters malformed!"),
        ("actions/x", function(parameters=["a"]), 400, MALFORMED + "parameters malformed!"),
        ("actions/x", function(delAnnotations="a"), 400, MALFORMED + "delAnnotations malformed!"),
        ("actions/x", function(limits=[]), 400, MALFORMED + "JSON object expected"),
        ("actions/x", function(limits={"memory": True}), 400, MALFORMED + "memory limit malformed"),
        ("actions/x", function(limits={"logs": -1}), 400,
         "requirement failed: log size -1 MB below allowed threshold of 0 MB"),
        ("actions/x", function(version="1.a"), 400, MALFORMED + "semantic version malformed"),
        ("actions/x", function(version=1), 400, MALFORMED + "semantic version malformed"),
        ("actions/x", function(publish=1), 400, MALFORMED + "Expected JsBoolean, but got 1"),
        ("actions/x", {"exec": {"kind": "python:3", "code": CODE, "main": 1}}, 400,
         MALFORMED + "if defined, 'main' must be a string in 'exec' for 'python:3.11' actions"),
        ("actions/x", {"exec": {"kind": "sequence", "components": [1]}}, 400,
         MALFORMED + "a fully qualified name is needed"),
        ("actions/x", {"exec": {"kind": "sequence", "components": ["/_/$"]}}, 400,
         MALFORMED + "The name of the entity contains illegal characters."),
        ("actions/x", {"exec": {"kind": "map", "components": ["/_/nosuch"]}}, 400,
         "Sequence component does not exist."),
        ("actions/default/x", FUNCTION, 404, "The requested resource does not exist."),
        ("triggers/x", {"annotations": 1}, 400, MALFORMED + "annotations malformed!"),
        ("triggers/x", {"parameters": {}}, 400, MALFORMED + "parameters malformed!"),
        ("triggers/x", {"publish": "no"}, 400, MALFORMED + 'Expected JsBoolean, but got "no"'),
        ("triggers/x", {"version": "x"}, 400, MALFORMED + "semantic version malformed"),
        ("triggers/x", trigger(feed=1), 400, "Feed name is not valid"),
        ("triggers/x", trigger(feed="/a/b//d"), 400, "Feed name is not valid"),
        ("triggers/x", trigger(feed=""), 400, "Feed name is not valid"),
        ("triggers/-x", {}, 400, "The name of the entity contains illegal characters."),
        ("rules/x", {"trigger": "/_/t"}, 400, "rule requires a valid trigger and a valid action"),
        ("rules/x", {"trigger": 1, "action": "/_/a"}, 400, MALFORMED + "a fully qualified name is needed"),
        ("rules/x", {"trigger": {}, "action": "/_/a"}, 400,
         MALFORMED + "Object is missing required member 'path' or 'name'"),
        ("rules/x", {"trigger": "/_/a/b/c", "action": "/_/a"}, 400,
         MALFORMED + "The name of the entity contains illegal characters."),
        ("rules/x", {"trigger": f"/{OTHER}/t", "action": "/_/a"}, 403,
         f"The supplied authentication is not authorized to access '{OTHER}/t'."),
        ("rules/x", {"trigger": "/_/t", "action": "/_/nopkg/a"}, 400, "trigger /<ns>/t does not exist"),
        ("rules/x", {"trigger": "/_/t", "action": "/_/a", "annotations": {}}, 400,
         MALFORMED + "annotations malformed!"),
        ("rules/x", {"trigger": "/_/t", "action": "/_/a", "version": []}, 400,
         MALFORMED + "semantic version malformed"),
        ("packages/x", {"parameters": 1}, 400, MALFORMED + "parameters malformed!"),
        ("packages/x", {"annotations": "x"}, 400, MALFORMED + "annotations malformed!"),
        ("packages/x", {"publish": []}, 400, MALFORMED + "Expected JsBoolean, but got []"),
        ("packages/x", {"version": "0"}, 400, MALFORMED + "semantic version malformed"),
        ("packages/x", {"binding": "p"}, 400, MALFORMED + "JSON object expected"),
        ("packages/x", {"binding": {"namespace": "_"}}, 400, MALFORMED + "Object is missing required member 'name'"),
        ("packages/x", {"binding": {"namespace": OTHER, "name": "p"}}, 403,
         f"The supplied authentication is not authorized to access '{OTHER}/p'."),
        ("packages/default", {}, 400, "Package name 'default' is reserved."),
    ],
)  # fmt: skip
def test_malformed_documents(caller: Caller, path: str, body: Any, status: int, text: str) -> None:
    assert refusal(caller, path, body) == (status, text.replace("<ns>", caller.namespace))
    collection, name = path.split("/", 1)
    assert caller.api("GET", collection).json() == []
    assert caller.api("GET", f"{collection}/{name}").status_code in (400, 404)


@pytest.mark.parametrize("collection", ["actions", "triggers", "rules", "packages"])
@pytest.mark.parametrize(
    ("raw", "content_type", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"nonsense", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"null", "application/json", 400),
        (b'{"a": NaN}', "application/json", 400),
        (b'{"a": 1e999}', "application/json", 400),
        (b'"\xff"', "application/json", 400),
        (b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}", "application/json", 400),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"{}", "application/x-www-form-urlencoded", 415),
        (b"{}", "application/jsonx", 415),
        (b"{}", None, 415),
    ],
)
def test_bodies_that_are_no_documents(
    caller: Caller, collection: str, raw: bytes, content_type: str | None, status: int
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answer = caller.request("PUT", f"/api/v1/namespaces/_/{collection}/x", content=raw, headers=headers)
    assert answer.status_code == status
    if status == 400:
        assert answer.json()["error"].startswith(MALFORMED)


def test_deep_parameters_are_kept(caller: Caller) -> None:
    value: Any = 1
    for _ in range(120):
        value = [value]
    caller.function("deep", CODE, parameters=[{"key": "p", "value": value}])
    assert caller.api("GET", "actions/deep").json()["parameters"] == [{"key": "p", "value": value}]


@pytest.mark.parametrize(
    "path",
    ["actions", "actions/x", "actions/p/x", "triggers/x", "rules/x", "packages/x", "activations", "limits"],
)
def test_another_namespace_is_closed(caller: Caller, path: str) -> None:
    answer = caller.get(f"/api/v1/namespaces/{OTHER}/{path}")
    assert answer.status_code == 403
    assert answer.json()["error"].startswith(f"The supplied authentication is not authorized to access '{OTHER}")


def test_a_namespace_may_be_called_by_its_name(caller: Caller) -> None:
    caller.function("x", CODE)
    assert caller.get(f"/api/v1/namespaces/{caller.namespace}/actions/x").status_code == 200
    assert caller.get("/api/v1/namespaces").json() == [caller.namespace]


def test_too_large(tmp_path: Path) -> None:
    """Code, and a whole request, beyond their bounds."""
    with running(tmp_path, limits={"code_bytes": 1000, "payload_bytes": 500}) as server, server.caller() as caller:
        caller.function("x", "é" * 500)
        assert refusal(caller, "actions/x", {"exec": {"kind": "python:3", "code": "é" * 501}}, overwrite="true") == (
            413, "exec larger than allowed: 1002 > 1000 bytes.",
        )  # fmt: skip
        status, text = refusal(caller, "actions/x", {"exec": {"kind": "python:3", "code": "a" * 3000}})
        assert (status, text[:27]) == (413, "Request larger than allowed")
        pairs = [{"key": "k", "value": "v" * 498}]
        for field in ("parameters", "annotations"):
            assert refusal(caller, "triggers/t", {field: pairs}) == (
                413,
                f"{field} larger than allowed: 501 > 500 bytes.",
            )


def test_concurrent_updates_lose_nothing(caller: Caller) -> None:
    caller.put("packages/p", {})
    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(lambda _: caller.api("PUT", "packages/p", {}, overwrite="true").status_code, range(24)))
    assert done == [200] * 24
    assert caller.api("GET", "packages/p").json()["version"] == "0.0.25"
