"""What a PUT makes of an entity, as functions of values; and that no body, whatever it is, is more than refused."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventmill.api import documents
from eventmill.api.errors import Refusal
from eventmill.config import Limits
from eventmill.entities.kinds import PYTHON, PYTHONS, Kinds
from eventmill.errors import InvalidInput
from tests.api.conftest import Caller

LIMITS = Limits()
KINDS = Kinds({"python": PYTHONS, "nodejs": ("nodejs:18", "nodejs:20")})
CODE = {"kind": "python:3", "code": "def main(args): return args"}


def made(body: dict[str, Any], old: dict[str, Any] | None = None) -> dict[str, Any]:
    return documents.action(documents.action_change(body, LIMITS, "ns", KINDS), old, LIMITS)


def pairs(**values: Any) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def test_a_new_action_has_everything() -> None:
    assert made({"exec": CODE}) == {
        "exec": {**CODE, "kind": PYTHON, "binary": False},
        "parameters": [],
        "limits": {"timeout": 60000, "memory": 256, "logs": 10, "concurrency": 1},
        "annotations": [{"key": "provide-api-key", "value": False}, {"key": "exec", "value": PYTHON}],
        "publish": False,
        "version": "0.0.1",
    }


def test_what_the_body_does_not_have_stays() -> None:
    old = made({"exec": CODE, "parameters": pairs(a=1), "limits": {"memory": 512, "instances": 3}, "publish": True})
    new = made({"limits": {"timeout": 1000}}, old)
    assert new == {**old, "limits": {**old["limits"], "timeout": 1000}, "version": "0.0.2"}
    assert made({"parameters": []}, old)["parameters"] == []


def test_an_old_document_is_left_alone() -> None:
    old = made({"exec": CODE, "annotations": pairs(a=1, b=2)})
    before = orjson.dumps(old)
    made({"annotations": pairs(a=3), "delAnnotations": ["b"], "limits": {"logs": 0}, "parameters": pairs(x=1)}, old)
    assert orjson.dumps(old) == before


def test_annotations_of_actions_are_merged_and_those_of_triggers_replaced() -> None:
    old = made({"exec": CODE, "annotations": pairs(a=1, b=2)})
    new = documents.values(made({"annotations": pairs(b=3, c=4), "delAnnotations": ["a", "exec"]}, old)["annotations"])
    assert new == {"b": 3, "provide-api-key": False, "c": 4, "exec": PYTHON}
    trigger = documents.trigger({"annotations": pairs(a=1)}, None)
    assert documents.trigger({"annotations": pairs(b=1)}, trigger)["annotations"] == pairs(b=1)
    assert documents.trigger({}, trigger)["annotations"] == pairs(a=1)


@pytest.mark.parametrize(
    ("given_", "old", "version"),
    [
        (None, None, "0.0.1"),
        (None, "1.2.9", "1.2.10"),
        ("7", None, "7.0.0"),
        ("1.2", "9.9.9", "1.2.0"),
        ("01.02.03", None, "1.2.3"),
        ("1.2.3.4", None, "1.2.3"),
    ],
)
def test_versions(given_: str | None, old: str | None, version: str) -> None:
    before = None if old is None else {**documents.trigger({}, None), "version": old}
    change = documents.trigger_change({"version": given_}, LIMITS, lambda schedule: None)
    assert documents.trigger(change, before)["version"] == version


@pytest.mark.parametrize("version", ["", "0", "0.0.0", "1.", ".1", "-1", "1e3", "１", "1" * 10, "1.2.3\n", 1, [], {}])
def test_versions_that_are_none(version: Any) -> None:
    with pytest.raises(Refusal, match="semantic version malformed"):
        documents.trigger_change({"version": version}, LIMITS, lambda schedule: None)


@pytest.mark.parametrize(
    ("code", "binary"),
    [
        ("abcd", True), ("YWI=", True), ("YQ==", True), ("", False), ("abc", False), ("ab cd", False), ("a===", False),
        ("ab\ncd==", False), ("YW=I", False), ("é" * 4, False), ("def main(a): return a", False), ("ab-_", False),
    ],
)  # fmt: skip
def test_what_is_taken_for_base64(code: str, binary: bool) -> None:
    assert documents.is_base64(code) is binary


def test_of_repeated_keys_the_last_counts() -> None:
    given_ = [*pairs(a=1), *pairs(a=2)]
    assert made({"exec": CODE, "parameters": given_})["parameters"] == pairs(a=2)


def test_sizes_are_counted_as_openwhisk_counts() -> None:
    limits = Limits(payload_bytes=10)
    exact = [{"key": "é", "value": "x" * 6}]
    assert documents.trigger_change({"parameters": exact}, limits, lambda schedule: None)["parameters"] == exact
    with pytest.raises(Refusal, match="parameters larger than allowed: 11 > 10 bytes"):
        documents.trigger_change({"parameters": [{"key": "é", "value": "x" * 7}]}, limits, lambda schedule: None)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
_name = st.sampled_from(["/_/a", "/ns/p/a", "a", "/other/x", "/_/$", ""]) | _json
_pairs = st.lists(
    st.fixed_dictionaries(
        {"key": st.sampled_from(["pattern", "schedule", "feed", "exec", "final", ""]) | _json, "value": _json}
    )
)
_body = st.fixed_dictionaries(
    {},
    optional={
        "exec": _json
        | st.fixed_dictionaries(
            {"kind": st.sampled_from(["python:3", "sequence", "map", "job", "x"]) | _json},
            optional={"code": _json, "main": _json, "components": st.lists(_name, max_size=3) | _json},
        ),
        "parameters": _pairs | _json,
        "annotations": _pairs | _json,
        "limits": st.dictionaries(st.sampled_from(["timeout", "memory", "logs", "concurrency", "instances"]), _json)
        | _json,
        "version": st.sampled_from(["1.2.3", "x"]) | _json,
        "publish": _json,
        "delAnnotations": _json,
        "trigger": _name,
        "action": _name,
        "binding": _json | st.fixed_dictionaries({"namespace": _json, "name": _json}),
        "status": _json,
    },
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(_body, _body)
def test_no_body_is_more_than_refused(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Whatever is accepted can be stored, and changed again."""

    def changed(kind: str, body: dict[str, Any], old: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            match kind:
                case "action":
                    return documents.action(documents.action_change(body, LIMITS, "ns", KINDS), old, LIMITS)
                case "trigger":
                    return documents.trigger(documents.trigger_change(body, LIMITS, lambda schedule: None), old)
                case "rule":
                    return documents.rule(documents.rule_change(body, LIMITS, "ns"), old)
                case _:
                    return documents.package(documents.package_change(body, LIMITS, "ns"), old)
        except (Refusal, InvalidInput):
            return None

    for kind in ("action", "trigger", "rule", "package"):
        document = changed(kind, first, None)
        if document is not None:
            assert orjson.loads(orjson.dumps(document))["version"]
            changed(kind, second, document)


@pytest.mark.parametrize(
    "path",
    [
        "actions/%00", "actions/a%2Fb", "actions/..", "actions/%2e%2e/%2e%2e/limits", "actions/%ff", "actions//x",
        "actions/x?overwrite=true&overwrite=%00", "actions/a%0Ab", "actions/" + "x" * 5000, "packages/a%20/",
        "activations?name=%00", "activations?name=/a/b", "activations?name=%ff&since=9999999999999999999",
        "activations/%C3%A9", "triggers/a;b", "rules/a%3Fb", "actions?limit=１", "actions?limit=%20",
        "actions?skip=1e3",
        "actions?skip=99999999999999999999999", "actions?skip=999999999999999999", "actions?limit=NaN",
    ],
)  # fmt: skip
def test_no_path_is_more_than_refused(caller: Caller, path: str) -> None:
    for method in ("GET", "PUT", "POST", "DELETE"):
        answer = caller.request(method, "/api/v1/namespaces/_/" + path, json={} if method in ("PUT", "POST") else None)
        assert answer.status_code < 500, (method, path, answer.text)
        assert "x-request-id" in answer.headers
