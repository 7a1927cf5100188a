"""Explanations: which condition failed on which value."""

from __future__ import annotations

from eventmill.rules import explain, parse


def test_each_condition_with_what_it_met() -> None:
    pattern = parse(
        {
            "type": ["org.dcache.file.written"],
            "subject": [{"glob": "/exfel/**/raw/*.h5"}, {"prefix": {"equals-ignore-case": "/tmp"}}],
            "data": {"fileSize": [{"numeric": [">=", 1000000]}], "owner": ["me"]},
        }
    )
    event = {"type": "org.dcache.file.written", "subject": "/exfel/p1/raw/a.h5", "data": {"fileSize": 12}}
    explanation = explain(pattern, event)
    assert not explanation.matched
    assert [(c.path, c.holds, c.found) for c in explanation.conditions] == [
        ("type", True, ("org.dcache.file.written",)),
        ("subject", True, ("/exfel/p1/raw/a.h5",)),
        ("data.fileSize", False, (12,)),
        ("data.owner", False, ()),
    ]
    assert str(explanation).splitlines() == [
        "no match",
        '  ✓ type: ["org.dcache.file.written"] found "org.dcache.file.written"',
        '  ✓ subject: [{"glob":"/exfel/**/raw/*.h5"},{"prefix":{"equals-ignore-case":"/tmp"}}]'
        ' found "/exfel/p1/raw/a.h5"',
        '  ✗ data.fileSize: [{"numeric":[">=",1000000]}] found 12',
        '  ✗ data.owner: ["me"] found absent',
    ]


def test_match() -> None:
    explanation = explain(parse({"a": [{"exists": False}, 1]}), {"b": 1})
    assert explanation.matched
    assert str(explanation) == 'match\n  ✓ a: [{"exists":false},1] found absent'


def test_every_branch_of_an_or() -> None:
    pattern = parse({"s": ["q"], "$or": [{"a": [1]}, {"a": [True], "b": [None]}]})
    explanation = explain(pattern, {"s": "q", "a": True, "b": 0})
    assert not explanation.matched
    assert [c.path for c in explanation.conditions] == ["s"]
    assert [[(c.path, c.holds) for c in branch] for branch in explanation.branches] == [
        [("a", False)],
        [("a", True), ("b", False)],
    ]
    assert str(explanation).splitlines()[2:] == [
        "  one of:",
        "    ✗ a: [1] found true",
        "  or:",
        "    ✓ a: [true] found true",
        "    ✗ b: [null] found 0",
    ]


def test_conditions_that_hold_in_different_elements() -> None:
    pattern = parse({"parts": {"det": ["A"], "state": ["bad"]}})
    explanation = explain(pattern, {"parts": [{"det": "A", "state": "ok"}, {"det": "B", "state": "bad"}]})
    assert not explanation.matched
    assert explanation.split
    assert all(condition.holds for condition in explanation.conditions)
    assert "same element of an array" in str(explanation)


def test_long_values_and_many_branches_are_cut() -> None:
    pattern = parse({"a": ["x"], "$or": [{"b": [i]} for i in range(100)]})
    text = str(explain(pattern, {"a": "y" * 100_000, "b": list(range(200, 300))}))
    assert len(text) < 5000
    assert "200, 201, 202, 203, 204, …" in text
    assert "80 more alternatives" in text
