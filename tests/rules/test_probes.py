"""The probes of EventBridge's semantics, with the answers of a reference engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from eventmill.errors import InvalidPattern
from eventmill.rules import Index, explain, matches, parse

PROBES = [orjson.loads(line) for line in Path(__file__).with_name("pattern-probes.jsonl").read_bytes().splitlines()]

EXCEPTIONS = {
    "num 1e400": "the decoder refuses numbers beyond double precision, and we don't keep their text",
    "numeric = 0.1+": "0.10000000000000001 is 0.1 once it is a double; the reference compares the text",
    "dup keys in event": "the reference sees both values of a repeated key; a decoded object keeps the last",
}
"""Cases that need the text of the event. No fast JSON decoder keeps it."""


def _answers(probe: dict[str, Any]) -> set[str]:
    """The answers of everything that can answer."""
    try:
        pattern = parse(probe["rule"])
    except InvalidPattern:
        return {"EXC"}
    event = orjson.loads(probe["event"])
    index: Index[str] = Index()
    index.add("it", pattern)
    answers = (matches(pattern, event), index.match(event) == ["it"], explain(pattern, event).matched)
    return {"MATCH" if answer else "NEG" for answer in answers}


@pytest.mark.parametrize("probe", [p for p in PROBES if p["name"] not in EXCEPTIONS], ids=lambda p: p["name"])
def test_probe(probe: dict[str, Any]) -> None:
    assert _answers(probe) == {probe["expected"]}


@pytest.mark.parametrize("probe", [p for p in PROBES if p["name"] in EXCEPTIONS], ids=lambda p: p["name"])
def test_exceptions_are_still_needed(probe: dict[str, Any]) -> None:
    assert _answers(probe) != {probe["expected"]}


def test_all_probes_are_here() -> None:
    assert len(PROBES) == 68
    assert set(EXCEPTIONS) <= {probe["name"] for probe in PROBES}
