"""Why an event matches a pattern, or why not: the conditions one by one, with the values that they met.

Owns the answer for people. Never used to decide a match on the way of an event. Functions of values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson

from eventmill.rules.conditions import compile_tests
from eventmill.rules.matching import matches
from eventmill.rules.paths import leaves
from eventmill.rules.pattern import Exists, Field, Pattern, as_written

VALUES_MAX = 5
"""Values of an array that are shown."""
VALUE_LENGTH_MAX = 200
BRANCHES_MAX = 20
"""Alternatives of a pattern's `$or`s that are printed."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One field of a pattern. `written`: its array as JSON. `found`: the values at its path, as many as are shown;
    empty if there is none (objects and empty arrays are none)."""

    path: str
    written: str
    found: tuple[Any, ...]
    holds: bool

    def __str__(self) -> str:
        values = ", ".join(_short(value) for value in self.found[:VALUES_MAX]) or "absent"
        more = ", …" if len(self.found) > VALUES_MAX else ""
        return f"{'✓' if self.holds else '✗'} {self.path}: {self.written} found {values}{more}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """`conditions` belong to every alternative of the pattern, `branches` are what each of its `$or`s' alternatives
    adds (empty without `$or`). `split`: each condition of some alternative holds, but not in one element of an array.
    """

    matched: bool
    conditions: tuple[Condition, ...]
    branches: tuple[tuple[Condition, ...], ...]
    split: bool

    def __str__(self) -> str:
        lines = ["match" if self.matched else "no match"]
        lines += [f"  {condition}" for condition in self.conditions]
        for i, branch in enumerate(self.branches[:BRANCHES_MAX]):
            lines.append("  or:" if i else "  one of:")
            lines += [f"    {condition}" for condition in branch]
        if len(self.branches) > BRANCHES_MAX:
            lines.append(f"  … and {len(self.branches) - BRANCHES_MAX} more alternatives")
        if self.split:
            lines.append("  each condition holds, but not all of them in the same element of an array")
        return "\n".join(lines)


def explain(pattern: Pattern, event: Mapping[str, Any]) -> Explanation:
    """Say of each condition of the pattern whether it holds for the event, and what was found."""
    # by identity: fields are shared by alternatives, and 1 == true to Python
    explained = {id(field): _condition(field, event) for fields in pattern.alternatives for field in fields}
    common = set.intersection(*({id(field) for field in fields} for fields in pattern.alternatives))
    first, *others = pattern.alternatives
    branches = [tuple(explained[id(f)] for f in fields if id(f) not in common) for fields in pattern.alternatives]
    matched = matches(pattern, event)
    return Explanation(
        matched,
        tuple(explained[id(field)] for field in first if id(field) in common),
        tuple(branches) if others else (),
        not matched and any(all(explained[id(f)].holds for f in fields) for fields in pattern.alternatives),
    )


def _condition(field: Field, event: Mapping[str, Any]) -> Condition:
    test = compile_tests([test for test in field.tests if test != Exists(False)])
    found = list(islice(leaves(event, field.names), VALUES_MAX + 1))
    holds = any(test(value) for value in leaves(event, field.names)) if found else Exists(False) in field.tests
    written = orjson.dumps([as_written(test) for test in field.tests]).decode()
    return Condition(field.path, written, tuple(found), holds)


def _short(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= VALUE_LENGTH_MAX else text[:VALUE_LENGTH_MAX] + "…"
