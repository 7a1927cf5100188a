"""The language: what matches, what is rejected and where."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import orjson
import pytest

from eventmill.errors import InvalidPattern
from eventmill.rules import Index, explain, matches, parse
from eventmill.rules.pattern import as_written
from tests.rules import naive


def match(pattern: dict[str, Any], event: dict[str, Any]) -> bool:
    """The answer that the matcher, the index and the interpreter of the tests agree on."""
    parsed = parse(pattern)
    index: Index[int] = Index()
    index.add(1, parsed)
    answers = {matches(parsed, event), index.match(event) == [1], explain(parsed, event).matched}
    assert answers == {naive.matches(pattern, event)}
    return answers.pop()


YES: list[tuple[str, list[Any], Any]] = [
    ("integer equals float", [3], 3.0),
    ("negative zero", [0], -0.0),
    ("large integer", [2**53 + 1], 2**53 + 1),
    ("false", [False], False),
    ("one of several types", ["x", 1, None], None),
    ("escaped backslash", [{"wildcard": "a\\\\b"}], "a\\b"),
    ("star at both ends", [{"wildcard": "*raw*"}], "/a/raw/b"),
    ("stars that touch", [{"wildcard": "a*b*c"}], "abc"),
    ("wildcard without a star", [{"wildcard": "abc"}], "abc"),
    ("exactly", [{"exactly": "abc"}], "abc"),
    ("prefix without case", [{"prefix": {"equals-ignore-case": "/PNFS"}}], "/pnfs/x"),
    ("suffix without case", [{"suffix": {"equals-ignore-case": ".H5"}}], "x.h5"),
    ("empty prefix without case", [{"prefix": {"equals-ignore-case": ""}}], ""),
    ("empty suffix without case", [{"suffix": {"equals-ignore-case": ""}}], "x"),
    ("kelvin sign", [{"equals-ignore-case": "k"}], "K"),
    ("anything but several", [{"anything-but": ["x", "y"]}], "z"),
    ("anything but numbers, given true", [{"anything-but": [1, 2]}], True),
    ("anything but a prefix", [{"anything-but": {"prefix": "tmp"}}], "x"),
    ("anything but a prefix, given a number", [{"anything-but": {"prefix": "tmp"}}], 1),
    ("anything but suffixes", [{"anything-but": {"suffix": [".tmp", ".part"]}}], "x.h5"),
    ("anything but a wildcard", [{"anything-but": {"wildcard": "*/tmp/*"}}], "/a/b"),
    ("anything but without case", [{"anything-but": {"equals-ignore-case": ["a", "b"]}}], "c"),
    ("anything but an address, written otherwise", [{"anything-but": "::1"}], "0:0:0:0:0:0:0:1"),
    ("range", [{"numeric": [">=", 1, "<", 2]}], 1),
    ("range of floats", [{"numeric": [">", 0.1, "<=", 0.3]}], 0.3),
    ("range up to a large power of two", [{"numeric": [">", 1e18]}], 2**62),
    ("number by numeric", [{"numeric": ["=", 300]}], 300.0),
    ("host in a network", [{"cidr": "131.169.3.4/32"}], "131.169.3.4"),
    ("long address in a network", [{"cidr": "2001:638::/32"}], "2001:638:700:0:0:0:0:1"),
    ("short address equals long", ["::1"], "0:0:0:0:0:0:0:1"),
    ("glob in one level", [{"glob": "/a/*.h5"}], "/a/x.h5"),
    ("glob over levels", [{"glob": "/a/**/raw/*.h5"}], "/a/b/c/raw/x.h5"),
    ("glob over no level", [{"glob": "/a/**/raw/*.h5"}], "/a/raw/x.h5"),
    ("glob of the whole tree", [{"glob": "/a/**"}], "/a/b/c"),
    ("glob with one character", [{"glob": "/a/r?.h5"}], "/a/r1.h5"),
    ("glob with a set", [{"glob": "/a/r[0-3x].h5"}], "/a/rx.h5"),
    ("glob with a negated set", [{"glob": "/a/r[!0-3].h5"}], "/a/r9.h5"),
    ("glob with a leading dot", [{"glob": "/a/*"}], "/a/.hidden"),
    ("glob without anything special", [{"glob": "/a/b"}], "/a/b"),
    ("empty nested array beside a value", [3], [[], [[3]]]),
    ("exists beside an object", [{"exists": True}], [{"b": 1}, 1]),
    ("does not exist, is an object", [{"exists": False}], {}),
]

NO: list[tuple[str, list[Any], Any]] = [
    ("true is not 1", [1], True),
    ("1 is not true", [True], 1),
    ("0 is not false", [False], 0),
    ("large integer, off by one", [2**53], 2**53 + 1),
    ("string of a number", [{"numeric": [">", 1]}], "5"),
    ("number with true", [{"numeric": [">=", 0]}], True),
    ("not a double", [{"numeric": [">", 1e18]}], 10**18 + 1),
    ("open end", [{"numeric": [">", 1, "<", 2]}], 2),
    ("both ends on one element", [{"numeric": [">", 1, "<", 2]}], [0, 3]),
    ("wildcard needs room", [{"wildcard": "ab*ba"}], "aba"),
    ("prefix is not the whole", ["ab"], "abc"),
    ("sharp s", [{"equals-ignore-case": "ss"}], "ß"),
    ("anything but, one equal element", [{"anything-but": ["x"]}], ["x"]),
    ("anything but, number", [{"anything-but": [1, 2]}], 2.0),
    ("anything but a prefix", [{"anything-but": {"prefix": ["tmp", "t"]}}], "tx"),
    ("anything but, object", [{"anything-but": "x"}], {"b": 1}),
    ("anything but, array of objects", [{"anything-but": "x"}], [{"b": 1}]),
    ("other network", [{"cidr": "131.169.0.0/16"}], "131.170.0.1"),
    ("other version of IP", [{"cidr": "0.0.0.0/0"}], "::1"),
    ("network of a number", [{"cidr": "0.0.0.0/0"}], 1),
    ("glob stays in its level", [{"glob": "/a/*.h5"}], "/a/b/x.h5"),
    ("glob's set stays in its level", [{"glob": "/a[!x]b"}], "/a/b"),
    ("glob's tree without the root", [{"glob": "/a/**"}], "/a"),
    ("glob needs room", [{"glob": "/a/x*x"}], "/a/x"),
    ("glob on a number", [{"glob": "*"}], 1),
    ("exists, null is one", [{"exists": False}], None),
    ("exists, array of empty arrays", [{"exists": True}], [[], {}]),
    ("empty string", ["x"], ""),
]


@pytest.mark.parametrize(("tests", "value"), [case[1:] for case in YES], ids=[case[0] for case in YES])
def test_value_that_passes(tests: list[Any], value: Any) -> None:
    assert match({"a": tests}, {"a": value})
    assert match({"a": {"b": tests}}, {"a": {"b": value}})
    assert match({"a": {"b": tests}}, {"a": [{"b": value}]})


@pytest.mark.parametrize(("tests", "value"), [case[1:] for case in NO], ids=[case[0] for case in NO])
def test_value_that_fails(tests: list[Any], value: Any) -> None:
    assert not match({"a": tests}, {"a": value})
    assert not match({"a": {"b": tests}}, {"a": {"b": value}})


def test_mapped_addresses_count_as_ipv4() -> None:
    assert matches(parse({"a": [{"cidr": "131.169.0.0/16"}]}), {"a": "::ffff:131.169.3.4"})
    assert matches(parse({"a": ["131.169.3.4"]}), {"a": "::ffff:131.169.3.4"})
    assert not matches(parse({"a": ["fe80::1"]}), {"a": "fe80::1%eth0"})


PARTS = {"parts": {"det": ["AGIPD"], "state": ["bad"]}}


class TestArrays:
    def test_fields_come_from_one_element(self) -> None:
        apart = [{"det": "AGIPD", "state": "ok"}, {"det": "JF", "state": "bad"}]
        together = [*apart, {"det": "AGIPD", "state": "bad"}]
        assert not match(PARTS, {"parts": apart})
        assert match(PARTS, {"parts": together})
        assert match(PARTS, {"parts": [[], [together]]})
        assert not match(PARTS, {"parts": [apart[:1], apart[1:]]})

    def test_inner_arrays_belong_to_their_element(self) -> None:
        pattern = {"runs": {"id": [1], "files": {"name": ["a"], "ok": [True]}}}
        assert match(pattern, {"runs": [{"id": 1, "files": [{"name": "a", "ok": True}]}]})
        assert not match(pattern, {"runs": [{"id": 1, "files": [{"name": "a"}, {"ok": True}]}]})
        assert not match(pattern, {"runs": [{"id": 1}, {"files": [{"name": "a", "ok": True}]}]})

    def test_sibling_arrays_combine(self) -> None:
        pattern = {"a": {"x": [1]}, "b": {"x": [2]}}
        assert match(pattern, {"a": [{"x": 0}, {"x": 1}], "b": [{"x": 2}, {"x": 0}]})

    def test_a_scalar_goes_with_the_objects_beside_it(self) -> None:
        pattern = {"a": [1], "a.b": [2]}
        assert match(pattern, {"a": [1, {"b": 2}]})
        assert not match(pattern, {"a": [[1], {"b": 2}]})

    def test_absence_asks_all_elements(self) -> None:
        pattern = {"d": {"a": [1], "b": [{"exists": False}]}}
        assert match(pattern, {"d": [{"a": 1}, {"c": 1}]})
        assert not match(pattern, {"d": [{"a": 1}, {"b": 1}]})

    def test_absent_or_a_value_of_the_same_element(self) -> None:
        pattern = {"d": {"a": [1], "b": [{"exists": False}, "x"]}}
        assert match(pattern, {"d": [{"a": 1, "b": "x"}]})
        assert match(pattern, {"d": [{"a": 1}]})
        assert not match(pattern, {"d": [{"a": 1}, {"b": "x"}]})


class TestNames:
    def test_dots_are_nesting(self) -> None:
        pattern = {"a": {"b": {"c": [1]}}, "a.b.d": [2]}
        for event in (
            {"a": {"b": {"c": 1, "d": 2}}},
            {"a.b": {"c": 1, "d": 2}},
            {"a": {"b.c": 1, "b.d": 2}},
            {"a.b.c": 1, "a": {"b": {"d": 2}}},
            {"a": [{"b.c": 1, "b": {"d": 2}}]},
        ):
            assert match(pattern, event), event
        assert not match(pattern, {"a.b": {"c": 1}, "a": {"b": {"d": 3}}})

    def test_both_ways_at_once_are_both_seen(self) -> None:
        assert match({"a": {"b": [1]}}, {"a": {"b": 1}, "a.b": 2})
        assert match({"a": {"b": [2]}}, {"a": {"b": 1}, "a.b": 2})

    def test_odd_names(self) -> None:
        assert match({"": [1]}, {"": 1})
        assert match({"a..b": [1]}, {"a": {"": {"b": 1}}})
        assert match({"$or": ["x"]}, {"$or": "x"})
        assert match({"ä/ö [x]": [1]}, {"ä/ö [x]": 1})

    def test_later_condition_on_the_same_path_counts(self) -> None:
        assert match({"a.b": ["x"], "a": {"b": ["y"]}}, {"a": {"b": "y"}})
        assert match({"a": ["x"], "$or": [{"a": ["y"]}, {"b": [1]}]}, {"a": "y"})
        assert not match({"$or": [{"a": ["y"]}, {"b": [1]}], "a": ["x"]}, {"a": "y"})


class TestOr:
    def test_nested_and_multiplied(self) -> None:
        pattern = {
            "s": ["q"],
            "$or": [{"a": [1]}, {"$or": [{"b": [2]}, {"c": [3], "d": {"$or": [{"e": [4]}, {"f": [5]}]}}]}],
        }
        assert match(pattern, {"s": "q", "b": 2})
        assert match(pattern, {"s": "q", "c": 3, "d": {"f": 5}})
        assert not match(pattern, {"s": "q", "c": 3})
        assert not match(pattern, {"b": 2})

    def test_one_element_for_the_branch_and_the_rest(self) -> None:
        pattern = {"p": {"det": ["A"], "$or": [{"state": ["bad"]}, {"n": [1]}]}}
        assert match(pattern, {"p": [{"det": "A", "n": 1}]})
        assert not match(pattern, {"p": [{"det": "A"}, {"n": 1}]})


REJECTED: list[tuple[Any, str, str]] = [
    ({}, "", "empty object"),
    ([], "", "JSON object"),
    ("[]", "", "JSON object"),
    (b'{"a": [1}', "", "not JSON"),
    (b"\xff", "", "not JSON"),
    ('{"a": ["\ud800"]}', "", "not JSON"),
    ({"a": {}}, "a", "empty object"),
    ({"a": []}, "a", "empty array"),
    ({"a": 1}, "a", "array"),
    ({"data": {"fileSize": "x"}}, "data.fileSize", "array"),
    ({"a": [1, [2]]}, "a[1]", "a value is"),
    ({"a": [{}]}, "a[0]", "exactly one key"),
    ({"a": ["x", {"prefix": "x", "suffix": "y"}]}, "a[1]", "exactly one key"),
    ({"a": [{"regex": "x"}]}, "a[0]", "unknown operator 'regex'"),
    ({"a": [{"prefix": 1}]}, "a[0].prefix", "string"),
    ({"a": [{"suffix": {"wildcard": "x"}}]}, "a[0].suffix", "equals-ignore-case"),
    ({"a": [{"suffix": {"equals-ignore-case": 1}}]}, "a[0].suffix.equals-ignore-case", "string"),
    ({"a": [{"wildcard": "a**b"}]}, "a[0].wildcard", "two stars"),
    ({"a": [{"wildcard": "a\\xb"}]}, "a[0].wildcard", "backslash"),
    ({"a": [{"wildcard": "a\\"}]}, "a[0].wildcard", "backslash"),
    ({"a": [{"glob": "/a**/b"}]}, "a[0].glob", "alone"),
    ({"a": [{"glob": "/a/**/**/b"}]}, "a[0].glob", "twice"),
    ({"a": [{"glob": "/a/[b"}]}, "a[0].glob", "not closed"),
    ({"a": [{"glob": "/a/[z-a]"}]}, "a[0].glob", "empty"),
    ({"a": [{"glob": "/a/\\b"}]}, "a[0].glob", "backslash"),
    ({"a": [{"glob": "/" * 64}]}, "a[0].glob", "levels"),
    ({"a": [{"glob": "x" * 5000}]}, "a[0].glob", "characters"),
    ({"a": [{"anything-but": None}]}, "a[0].anything-but", "strings or numbers"),
    ({"a": [{"anything-but": []}]}, "a[0].anything-but", "empty list"),
    ({"a": [{"anything-but": ["x", 1]}]}, "a[0].anything-but", "mixed"),
    ({"a": [{"anything-but": [True]}]}, "a[0].anything-but[0]", "strings or numbers"),
    ({"a": [{"anything-but": {"numeric": ["=", 1]}}]}, "a[0].anything-but", "takes no 'numeric'"),
    ({"a": [{"anything-but": {"prefix": ["x", ""]}}]}, "a[0].anything-but.prefix[1]", "empty string"),
    ({"a": [{"anything-but": {"wildcard": "a**"}}]}, "a[0].anything-but.wildcard", "two stars"),
    ({"a": [{"numeric": []}]}, "a[0].numeric", "needs"),
    ({"a": [{"numeric": [">", "1"]}]}, "a[0].numeric[1]", "number"),
    ({"a": [{"numeric": [">", True]}]}, "a[0].numeric[1]", "number"),
    ({"a": [{"numeric": ["!=", 1]}]}, "a[0].numeric", "operators are"),
    ({"a": [{"numeric": ["<", 4, ">", 2]}]}, "a[0].numeric", "lower end comes first"),
    ({"a": [{"numeric": [">=", 4, "<=", 4]}]}, "a[0].numeric", "below"),
    ({"a": [{"cidr": "host"}]}, "a[0].cidr", "network"),
    ({"a": [{"cidr": "10.0.0.0"}]}, "a[0].cidr", "network"),
    ({"a": [{"exists": "yes"}]}, "a[0].exists", "true or false"),
    ({"$or": [{"a": [1]}]}, "$or[0]", "two or more"),
    ({"$or": {"a": [1]}}, "$or", "array"),
    ({"data": {"$or": [{"prefix": ["x"]}, {"b": [1]}]}}, "data.$or[0].prefix", "operator's name"),
    ({"$or": [{"a": {"exists": [1]}}, {"b": [1]}]}, "$or[0].a.exists", "inside '$or'"),
    ({"$or": [{"a": [1]}, {"b": [{"cidr": "x"}]}]}, "$or[1].b[0].cidr", "network"),
    ({"a": [math.nan]}, "a[0]", "not a JSON number"),
    ({"a": [{"numeric": ["<", math.inf]}]}, "a[0].numeric[1]", "number"),
    ({"a": [2**70]}, "", "not JSON"),
    ({"a": [object()]}, "", "not JSON"),
    ({1: ["x"]}, "", "not JSON"),
    ({".".join("a" * 40): [1]}, ".".join("a" * 40), "nested"),
]


@pytest.mark.parametrize(("pattern", "path", "message"), REJECTED, ids=[f"{i}" for i in range(len(REJECTED))])
def test_rejected(pattern: Any, path: str, message: str) -> None:
    with pytest.raises(InvalidPattern, match=r"^pattern at") as caught:
        parse(pattern)
    assert caught.value.path == path
    assert message in str(caught.value)


class TestLimits:
    def test_bytes(self) -> None:
        with pytest.raises(InvalidPattern, match="limit of 100"):
            parse({"a": ["x" * 100]}, pattern_bytes=100)
        with pytest.raises(InvalidPattern, match="limit of 100"):
            parse('{"a": ["' + "x" * 100 + '"]}', pattern_bytes=100)

    def test_alternatives_multiply(self) -> None:
        pattern = {f"f{i}": {"$or": [{"a": [1]}, {"b": [1]}]} for i in range(4)}
        assert len(parse(pattern, or_alternatives=16).alternatives) == 16
        with pytest.raises(InvalidPattern, match="more than 15 alternatives") as caught:
            parse(pattern, or_alternatives=15)
        assert caught.value.path == "f3.$or"

    def test_conditions_of_all_alternatives(self) -> None:
        pattern = {**{f"f{i}": [1] for i in range(2000)}, "$or": [{f"g{i}": [1]} for i in range(900)]}
        with pytest.raises(InvalidPattern, match="conditions"):
            parse(pattern)

    def test_nesting(self) -> None:
        with pytest.raises(InvalidPattern, match="nested more than 2"):
            parse({"a": {"b.c": [1]}}, nesting=2)
        deep = '{"a":' * 900 + "[1]" + "}" * 900
        with pytest.raises(InvalidPattern, match="nested"):
            parse(deep)


def test_every_source_gives_the_same_pattern() -> None:
    pattern = {"a": ["x", {"numeric": [">", 1]}], "b": {"c": [{"prefix": "/x"}]}}
    raw = orjson.dumps(pattern)
    assert parse(pattern) == parse(raw) == parse(raw.decode()) == parse(MappingProxyType(pattern))
    assert parse(pattern) == parse({"a": ("x", {"numeric": (">", 1)}), "b": {"c": [{"prefix": "/x"}]}})


@pytest.mark.parametrize("tests", [case[1] for case in (*YES, *NO) if case[1] != [{"exactly": "abc"}]], ids=str)
def test_tests_can_be_written_again(tests: list[Any]) -> None:
    [[field]] = parse({"a": tests}).alternatives
    assert [as_written(test) for test in field.tests] == tests
