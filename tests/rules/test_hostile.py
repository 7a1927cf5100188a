"""Patterns and events that mean harm: time grows with the size of the input and no faster, and nothing overflows.

What is compared is the time for an input eight times as long: 8 if it is linear, 64 if it is quadratic.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from time import process_time
from typing import Any

import orjson
import pytest

from eventmill.errors import InvalidPattern
from eventmill.rules import Index, explain, glob_matches, matches, parse

FACTOR = 8
GROWTH_MAX = 30


def growth(run: Callable[[int], object], size: int) -> float:
    """How much longer the run takes at `FACTOR` times the size."""

    def best(n: int) -> float:
        times = []
        for _ in range(5):
            start = process_time()
            run(n)
            times.append(process_time() - start)
        return min(times)

    gc.disable()
    try:
        return best(FACTOR * size) / max(best(size), 1e-5)
    finally:
        gc.enable()


def matching(pattern: dict[str, Any], text: Callable[[int], str]) -> Callable[[int], object]:
    """Match a text of a given size in all ways, the texts being made beforehand."""
    parsed = parse(pattern)
    index: Index[int] = Index()
    index.add(1, parsed)
    texts: dict[int, str] = {}

    def run(n: int) -> None:
        event = {"a": texts.setdefault(n, text(n))}
        assert not index.match(event)
        assert not matches(parsed, event)

    return run


STARS = 50
TEXTS: list[tuple[str, dict[str, Any], Callable[[int], str]]] = [
    ("wildcard, nearly", {"wildcard": "*a" * STARS + "b"}, lambda n: "a" * n),
    ("wildcard, last piece missing", {"wildcard": "*".join(["ab"] * STARS) + "*c*b"}, lambda n: "ab" * (n // 2)),
    ("wildcard, long pieces", {"wildcard": "*" + "a" * 99 + "b*" + "a" * 99 + "*"}, lambda n: "a" * n),
    ("glob in a level", {"glob": "/" + "*a" * STARS + "*b"}, lambda n: "/" + "a" * n),
    ("glob with single characters", {"glob": "/" + "*?a" * STARS + "b*"}, lambda n: "/" + "a" * n),
    ("glob with sets", {"glob": "/" + "*[ab]" * STARS + "c*"}, lambda n: "/" + "a" * n),
    ("glob over levels", {"glob": "/**/a" * 25 + "/b"}, lambda n: "/a" * (n // 2)),
    ("glob, long runs", {"glob": "/**" + "/a" * 30 + "/b*/**"}, lambda n: "/a" * (n // 2)),
    ("glob, runs of stars", {"glob": "/**/*/a/*/b/**/*/c"}, lambda n: "/a" * (n // 2)),
    ("anything but", {"anything-but": {"wildcard": ["*a" * STARS, "a*b"]}}, lambda n: "a" * n),
    ("ignore case", {"equals-ignore-case": "ß" * 1000}, lambda n: "ß" * n),
    ("address", {"cidr": "::/0"}, lambda n: "0:" * (n // 2)),
    ("deep path", {"prefix": "/a" * 40 + "/b"}, lambda n: "/a" * (n // 2)),
    ("levels", {"wildcard": "*/b/*"}, lambda n: "/a" * (n // 2)),
]


@pytest.mark.parametrize(("test", "text"), [case[1:] for case in TEXTS], ids=[case[0] for case in TEXTS])
def test_long_texts(test: dict[str, Any], text: Callable[[int], str]) -> None:
    assert growth(matching({"a": [test]}, text), 5_000) < GROWTH_MAX


def test_long_patterns() -> None:
    def run(n: int) -> None:
        assert not matches(parse({"a": [{"wildcard": "*a" * (n // 2) + "b"}]}), {"a": "a" * n})

    assert growth(run, 4000) < GROWTH_MAX


def test_many_tests_and_many_fields() -> None:
    def run(n: int) -> None:
        index: Index[int] = Index()
        index.add(1, parse({"a": [f"/d{i}/x" for i in range(n)], **{f"f{i}": [i] for i in range(n)}}))
        assert not index.match({"a": "/d1/x"})
        index.remove(1)

    assert growth(run, 300) < GROWTH_MAX


def test_large_arrays() -> None:
    parsed = parse({"parts": {"det": ["A"], "state": ["bad"], "n": [{"exists": False}]}})
    index: Index[int] = Index()
    for i in range(10):
        index.add(i, parsed)
    events = {n: {"parts": [{"det": "A"}, {"state": "bad"}] * n} for n in (200, 200 * FACTOR)}

    def run(n: int) -> None:
        assert not index.match(events[n])
        assert not explain(parsed, events[n]).matched

    assert growth(run, 200) < GROWTH_MAX


def test_many_different_elements() -> None:
    index: Index[int] = Index()
    for i in range(3000):
        index.add(i, parse({"tags": [f"t{i}"], "other": [1]}))
    events = {n: {"tags": [f"t{i}" for i in range(n)]} for n in (300, 300 * FACTOR)}
    assert growth(lambda n: index.match(events[n]), 300) < GROWTH_MAX


def test_many_directories_of_one_rule() -> None:
    index: Index[int] = Index()
    for i in range(20):
        index.add(i, parse({"files": {"path": [{"prefix": "/d/"}, {"wildcard": f"*/{i}/*"}], "n": [2]}}))
    events = {n: {"files": [{"path": f"/d/{i}/x", "n": i % 2} for i in range(n)]} for n in (200, 200 * FACTOR)}
    assert growth(lambda n: index.match(events[n]), 200) < GROWTH_MAX


def test_equal_rules_with_very_many_fields() -> None:
    fields = {f"f{i}": [i] for i in range(500)}
    index: Index[int] = Index()
    for i in range(20):
        index.add(i, parse(fields))
    event = {f"f{i}": i for i in range(500)}
    assert index.match(event) == list(range(20))
    assert index.match({**event, "f7": 0}) == []
    index.remove(3)
    assert len(index.match(event)) == 19


def test_ors_within_ors() -> None:
    def nested(depth: int) -> dict[str, Any]:
        inner = {f"x{depth}": [1]} if depth == 0 else nested(depth - 1)
        return {"$or": [{f"a{depth}": [1]}, inner]}

    deep = parse(nested(30))
    assert len(deep.alternatives) == 32
    assert matches(deep, {"x0": 1})
    assert not matches(deep, {"y": 1})
    wide = {"$or": [{f"a{i}": [1]} for i in range(1000)]}
    assert len(parse(wide).alternatives) == 1000
    with pytest.raises(InvalidPattern, match="alternatives"):
        parse({f"f{i}": {"$or": [{"a": [1]}, {"b": [1]}]} for i in range(60)})
    for depth in (40, 500):
        with pytest.raises(InvalidPattern, match=r"nested more than 32|not JSON"):
            parse(nested(depth))
        with pytest.raises(InvalidPattern, match="nested more than 32"):
            parse('{"$or":[{"a":[1]},' * depth + '{"b":[1]}' + "]}" * depth)


def test_deep_events() -> None:
    depth = 1000
    arrays = orjson.loads('{"a":' + "[" * depth + "1" + "]" * depth + "}")
    objects = orjson.loads('{"a":' * depth + "1" + "}" * depth)
    dotted = orjson.loads('{"a.b":{"a":' * (depth // 2) + "1" + "}}" * (depth // 2))
    mixed = orjson.loads('{"a":[' * (depth // 2) + "1" + "]}" * (depth // 2))
    twice = {**dotted, "a": {"b": dotted["a.b"]}}
    parsed = parse({"a": {"b": {"a": {"b": {"c": [1]}}}}, "a.a": [{"exists": False}]})
    index: Index[int] = Index()
    index.add(1, parsed)
    index.add(2, parse({"a": [1]}))
    for event in (arrays, objects, dotted, mixed, twice):
        assert index.match(event) == ([2] if event is arrays else [])
        assert not matches(parsed, event)
        assert not explain(parsed, event).matched


def test_names_of_a_field_never_become_code() -> None:
    name = "x'): __import__('os').abort() #"
    index: Index[int] = Index()
    index.add(1, parse({name: ["' + y"], f"{name}.{name}": [{"exists": False}]}))
    assert index.match({name: "' + y"}) == [1]


def test_memory_of_directories_is_bounded() -> None:
    index: Index[int] = Index()
    index.add(1, parse({"a": [{"prefix": "/d/"}]}))
    index.match({})
    place = index._root._places["a"]
    place._memo_max = 100
    for i in range(1000):
        assert index.match({"a": f"/d/{i}/x"}) == [1]
        assert len(place._memo) <= 100
    index.match({"a": "/d/" + "x" * 100_000 + "/y"})
    assert max(map(len, place._memo)) < 1000


def test_no_star_is_slow_to_refuse() -> None:
    with pytest.raises(InvalidPattern):
        glob_matches("*" * 4000)
