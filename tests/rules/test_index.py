"""The index gives what the naive interpreter gives, whatever comes and goes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from eventmill.errors import Conflict, NotFound
from eventmill.rules import Index, explain, matches, parse
from eventmill.rules.index import BUCKET_MAX
from tests.rules import naive

# ------------------------------------------------------------------------------------------- random rules and events

NAMES = ("raw", "proc", "r1", "r2")
FILES = ("a.h5", "b.h5", "b.tmp", "DONE", "x")
STRINGS = ("x", "X", "y", "", "10.0.0.1", "::1", "0:0:0:0:0:0:0:1", "Äb", "äB")
NUMBERS = (0, 1, 1.0, 2.5, -1, 2**53, 2**53 + 1, 10**18 + 1)
SCALARS = (*STRINGS, *NUMBERS, True, False, None)
PATHS = ("path", "s", "n", "a", "d.x", "d.y", "d.e.z", "items.x", "items.y", "items.in.z", "items")


def directory(rng: random.Random) -> str:
    return "/".join(["", *(rng.choice(NAMES) for _ in range(rng.randint(0, 3)))]) + "/"


def file(rng: random.Random) -> str:
    return directory(rng) + rng.choice(FILES)


def path_test(rng: random.Random) -> Any:
    full = file(rng)
    head, _, name = full.rpartition("/")
    star = rng.choice(("*", "?" + name[1:], "[!b]" + name[1:], "*" + name[-3:], name[0] + "*", "**"))
    tests = (
        full,
        {"prefix": full[: rng.randint(0, len(full))]},
        {"suffix": full[rng.randint(0, len(full)) :]},
        {"glob": f"{head}/{star}"},
        {"glob": f"{head}/**/{rng.choice((star, name)) if star != '**' else name}"},
        {"glob": f"/*/{rng.choice(NAMES)}/**/{rng.choice(NAMES)}/{star}"},
        {"glob": f"**/{name}"},
        {"wildcard": f"{head}/*{name[-3:]}"},
        {"wildcard": f"*/{rng.choice(NAMES)}/*"},
        {"wildcard": rng.choice((full, "*", "/*" + name[-2:]))},
        {"anything-but": {"suffix": [".tmp", name[-1:]]}},
        {"prefix": {"equals-ignore-case": head.upper()}},
    )
    return rng.choice(tests)


def other_test(rng: random.Random) -> Any:
    low = rng.choice((-1, 0, 1, 1.0))
    text = rng.choice([s for s in STRINGS if s])
    tests = (
        *(rng.choice(SCALARS) for _ in range(5)),
        {"numeric": [rng.choice((">", ">=")), low, rng.choice(("<", "<=")), low + rng.choice((1, 2, 1e18))]},
        {"numeric": [rng.choice(("=", "<", ">=", ">")), rng.choice((0, 1, 2.5, 1e17))]},
        {"exists": rng.random() < 0.5},
        {"anything-but": rng.choice((text, [text, "y"], 1, [1, 2.5]))},
        {"equals-ignore-case": text},
        {"anything-but": {"equals-ignore-case": text}},
        {"suffix": {"equals-ignore-case": text[-1:]}},
        {"cidr": rng.choice(("10.0.0.0/8", "::/64"))},
    )
    return rng.choice(tests)


def field(rng: random.Random) -> tuple[str, list[Any]]:
    path = rng.choice(("path", "path", *PATHS))
    test = path_test if path == "path" or rng.random() < 0.1 else other_test
    return path, [test(rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]


def pattern(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for _ in range(rng.choice((1, 2, 2, 3))):
        path, tests = field(rng)
        first, _, rest = path.partition(".")
        if rest and rng.random() < 0.5 and not isinstance(result.get(first, {}), list):
            result.setdefault(first, {})[rest] = tests
        else:
            result[path] = tests
    if depth and rng.random() < 0.2:
        result["$or"] = [pattern(rng, depth - 1) for _ in range(rng.randint(2, 3))]
    return result


def value(rng: random.Random, name: str) -> Any:
    scalar = file(rng) if name == "path" else rng.choice(SCALARS)
    roll = rng.random()
    if roll < 0.08:
        return [value(rng, name) for _ in range(rng.randint(0, 3))]
    return {} if roll < 0.1 else scalar


def members(rng: random.Random, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value(rng, name) for name in names if rng.random() < 0.7}


def event(rng: random.Random) -> dict[str, Any]:
    result = members(rng, ("path", "path", "s", "n", "a"))
    if rng.random() < 0.7:
        d = members(rng, ("x", "y"))
        if rng.random() < 0.5:
            d["e"] = members(rng, ("z",))
        if rng.random() < 0.2:
            result.update({f"d.{name}": inner for name, inner in d.items()})
        else:
            result["d"] = d
            if rng.random() < 0.2 and "e" in d:
                del d["e"]
                d["e.z"] = rng.choice(SCALARS)
    if rng.random() < 0.6:
        result["items"] = [item(rng) for _ in range(rng.randint(0, 3))] if rng.random() < 0.8 else item(rng)
    return result


def item(rng: random.Random) -> Any:
    roll = rng.random()
    if roll < 0.15:
        return rng.choice(SCALARS)
    if roll < 0.25:
        return [item(rng) for _ in range(2)]
    result = members(rng, ("x", "y"))
    if rng.random() < 0.3:
        result["in"] = [members(rng, ("z",)) for _ in range(rng.randint(0, 2))]
    elif rng.random() < 0.2:
        result["in.z"] = rng.choice(SCALARS)
    return result


# --------------------------------------------------------------------------------------------------------- the judge


def check(seed: int, steps: int) -> int:
    """Add, remove and match at random; the number of hits that were compared."""
    rng = random.Random(seed)
    index: Index[int] = Index()
    rules: dict[int, dict[str, Any]] = {}
    hits = 0
    for step in range(steps):
        for _ in range(rng.choice((0, 1, 1, 2, 20))):
            key = len(rules) + step * 1000
            rules[key] = pattern(rng)
            index.add(key, parse(rules[key]))
        for key in rng.sample(sorted(rules), min(len(rules), rng.choice((0, 0, 1, 5)))):
            del rules[key]
            index.remove(key)
        assert len(index) == len(rules)
        for _ in range(3):
            happened = event(rng)
            expected = [key for key, rule in rules.items() if naive.matches(rule, happened)]
            assert index.match(happened) == expected, (seed, happened)
            hits += len(expected)
    for key in list(rules):
        index.remove(key)
    assert index.match(event(rng)) == []
    assert not index._root._places
    assert not index._root._counts
    return hits


@pytest.mark.parametrize("seed", range(6))
def test_index_agrees_with_the_naive_interpreter(seed: int) -> None:
    assert check(seed, 20) > 50


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_index_agrees_for_long(seed: int) -> None:
    assert check(seed, 60) > 200


@pytest.mark.parametrize("seed", range(3))
def test_matcher_and_explanation_agree_too(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(300):
        rule, happened = pattern(rng), event(rng)
        expected = naive.matches(rule, happened)
        assert matches(parse(rule), happened) == expected, (rule, happened)
        assert explain(parse(rule), happened).matched == expected, (rule, happened)


# ------------------------------------------------------------------------------------------------------ its behaviour


def index_of(*patterns: dict[str, Any]) -> Index[int]:
    index: Index[int] = Index()
    for i, one in enumerate(patterns):
        index.add(i, parse(one))
    return index


def test_order_is_that_of_adding_and_each_comes_once() -> None:
    index = index_of({"a": ["x", {"prefix": "/d/"}, {"prefix": "/d/e/"}]}, {"$or": [{"a": ["/d/e/f"]}, {"b": [1]}]})
    assert index.match({"a": "/d/e/f", "b": 1}) == [0, 1]
    index.remove(0)
    index.add(0, parse({"b": [1]}))
    assert index.match({"a": "/d/e/f", "b": 1}) == [1, 0]


def test_types_are_those_that_patterns_name() -> None:
    index: Index[int] = Index()
    assert index.types == set()
    index.add(1, parse({"type": ["a", "b"], "x": [1]}))
    index.add(2, parse({"$or": [{"type": ["b"]}, {"type": ["c"]}]}))
    assert index.types == {"a", "b", "c"}
    any_types: list[dict[str, Any]] = [{"x": [1]}, {"type": [{"prefix": "a"}]}, {"type": ["a", {"suffix": "b"}]}]
    for key, any_type in enumerate(any_types, 3):
        index.add(key, parse(any_type))
        assert index.types is None
        index.remove(key)
        assert index.types == {"a", "b", "c"}
    index.remove(1)
    assert index.types == {"b", "c"}


def test_keys_are_unique() -> None:
    index = index_of({"a": ["x"]})
    with pytest.raises(Conflict):
        index.add(0, parse({"a": ["y"]}))
    index.match({})
    with pytest.raises(Conflict):
        index.add(0, parse({"a": ["y"]}))
    with pytest.raises(NotFound):
        index.remove(1)
    assert index.match({"a": "x"}) == [0]


def test_a_new_rule_is_seen_in_a_directory_that_was_met_before() -> None:
    index = index_of({"path": [{"glob": "/a/b/*.h5"}]})
    happened = {"path": "/a/b/x.h5"}
    assert index.match(happened) == [0]
    index.add(1, parse({"path": [{"prefix": "/a/"}]}))
    index.add(2, parse({"path": [{"wildcard": "*/b/*"}]}))
    index.add(3, parse({"path": [{"glob": "/a/b/x*"}]}))
    assert index.match(happened) == [0, 1, 2, 3]
    for key in (0, 2, 3):
        index.remove(key)
        assert key not in index.match(happened)
    assert index.match(happened) == [1]


def test_a_full_bucket_splits_and_empties() -> None:
    count = 10 * BUCKET_MAX
    index = index_of(*({"type": ["t"], "path": [{"prefix": "/a/"}], "n": [i % 7]} for i in range(count)))
    for happened in ({"type": "t", "path": "/a/b", "n": 3}, {"type": "t", "path": "/a/b", "n": 9}):
        assert index.match(happened) == [i for i in range(count) if i % 7 == happened["n"]]
    for i in range(count):
        index.remove(i)
        assert index.match({"type": "t", "path": "/a/b", "n": 3}) == [j for j in range(i + 1, count) if j % 7 == 3]


def test_two_keys_from_two_elements_are_no_match() -> None:
    count = 3 * BUCKET_MAX
    index = index_of(*({"parts": {"det": ["A"], "state": [f"s{i % 2}"]}} for i in range(count)))
    odd = list(range(1, count, 2))
    assert index.match({"parts": [{"det": "A", "state": "s0"}, {"det": "B", "state": "s1"}]}) == list(
        range(0, count, 2)
    )
    assert index.match({"parts": [{"det": "A", "state": "ok"}, {"det": "B", "state": "s1"}]}) == []
    assert index.match({"parts": [{"det": "A", "state": ["ok", "s1"]}]}) == odd
    assert index.match({"parts": {"det": ["A", "B"], "state": "s1"}}) == odd
    index = index_of(*({"m": {"src": [{"prefix": "/a/"}], "dst": [{"prefix": f"/d{i % 2}/"}]}} for i in range(count)))
    assert index.match({"m": [{"src": "/a/x", "dst": "/e/x"}, {"src": "/b/x", "dst": "/d1/x"}]}) == []
    assert index.match({"m": [{"src": ["/b/x", "/a/x"], "dst": "/d1/x"}]}) == odd


def test_equal_rules_are_all_found() -> None:
    index = index_of(*[{"type": ["t"], "data": {"n": [1]}}] * 50)
    assert index.match({"type": "t", "data": {"n": 1.0}}) == list(range(50))
    assert index.match({"type": "t", "data": {"n": True}}) == []


def test_keyless_rules_are_listed() -> None:
    keyless: list[dict[str, Any]] = [
        {"a": [{"exists": True}]},
        {"a": [{"numeric": [">", 1]}], "b": [{"exists": False}]},
        {"a": [{"wildcard": "*x*"}]},
        {"a": ["x", {"anything-but": "y"}]},
        {"a": [{"prefix": "no slash"}]},
        {"a": [{"glob": "/*"}]},
        {"$or": [{"a": ["x"]}, {"b": [{"cidr": "10.0.0.0/8"}]}]},
        {"a": [{"suffix": "ending without a dot"}]},
        {"a": [{"prefix": {"equals-ignore-case": "/a/b/"}}]},
    ]
    keyed: list[dict[str, Any]] = [
        {"a": ["x"], "b": [{"exists": True}]},
        {"a": [{"prefix": "/a/"}]},
        {"a": [{"suffix": ".h5"}]},
        {"a": [{"suffix": "/DONE"}]},
        {"a": [{"wildcard": "*/raw/*"}]},
        {"a": [{"glob": "**/raw/**"}]},
        {"a": [{"glob": "*.h5"}]},
        {"a": [{"equals-ignore-case": "x"}]},
        {"a": [{"numeric": ["=", 1]}]},
        {"a": [None, True, "::1"]},
    ]
    index = index_of(*keyless, *keyed)
    assert index.keyless() == list(range(len(keyless)))
    for key in range(len(keyless)):
        index.remove(key)
    assert index.keyless() == []


def test_the_event_stays_as_it_is() -> None:
    index = index_of({"d": {"e": {"x": [1]}}}, {"d": {"y": [2]}})
    happened = {"d.e": {"x": 1}, "d": {"y": 2, "e.z": 3}}
    before = repr(happened)
    assert index.match(happened) == [0, 1]
    assert repr(happened) == before


def test_any_hashable_is_a_key() -> None:
    index: Index[tuple[str, int] | str] = Index()
    index.add(("b", 1), parse({"a": [1]}))
    index.add("a", parse({"a": [1]}))
    assert index.match({"a": 1}) == [("b", 1), "a"]
