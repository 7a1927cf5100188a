"""Alternatives compiled to one function each, for the events that nearly all events are: no arrays where it looks.

Owns the fast way to check a candidate. The text of such a function depends only on the alternative's *shape* (how deep
its paths are, which operators stand alone), so it is generated once per shape and then bound to names, constants and
tests: no text of a user's ever becomes code. Where a function meets an array it leaves the decision to the general
matcher. An event that writes a nested path with dots must not be given to it (`paths.NamesInUse.plain`). Pure
functions; the cache of shapes is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal

from eventmill.rules.conditions import ABSENT, address, compile_tests
from eventmill.rules.globs import parse_glob
from eventmill.rules.matching import AlternativeMatcher
from eventmill.rules.pattern import Alternative, Exact, Field, Glob, Prefix, Suffix

EventTest = Callable[[Mapping[str, Any]], bool]

FIELDS_MAX = 16
"""An alternative with more fields is left to the general matcher: its function would be long, and is seldom wanted."""
SHAPES_MAX = 512
"""Generated functions that are kept; one costs about 0.2 ms to make again."""

Operator = Literal["equal", "prefix", "suffix", "in directory", "test"]

_FAILURES: dict[Operator, str] = {
    "equal": "v != {c}0",
    "prefix": "v.__class__ is not str or not v.startswith({c}0)",
    "suffix": "v.__class__ is not str or not v.endswith({c}0)",
    "in directory": "v.__class__ is not str or not v.endswith({c}1) or not v.startswith({c}0)"
    " or len(v) < {c}2 or v.rfind('/') >= {c}3",
    "test": "not {c}0(v)",
}
"""When a value fails, by operator, from cheap to dear: a candidate that fails should fail early."""
_COST = {operator: cost for cost, operator in enumerate(_FAILURES)}


def compile_alternative(alternative: Alternative) -> EventTest:
    """A function that says whether an event satisfies the alternative."""
    general = AlternativeMatcher(alternative)
    if len(alternative) > FIELDS_MAX:
        return general
    checks = sorted(((field.names, *_check(field)) for field in alternative), key=lambda check: _COST[check[1]])
    shape = tuple((len(names), operator, len(constants)) for names, operator, constants in checks)
    bound = [value for names, _, constants in checks for value in (*names, *constants)]
    function: EventTest = _factory(shape)(general, *bound)
    return function


def _check(field: Field) -> tuple[Operator, tuple[Any, ...]]:
    """How a field is checked, and what is bound to the check."""
    if len(field.tests) == 1:
        match field.tests[0]:
            case Exact(None):
                return "equal", (None,)
            case Exact(str(text)) if address(text) is None:
                return "equal", (text,)
            case Prefix(text, False):
                return "prefix", (text,)
            case Suffix(text, False):
                return "suffix", (text,)
            case Glob(text):
                ends = _one_star_in_last_level(text)
                if ends is not None:
                    return "in directory", ends
    return "test", (compile_tests(field.tests),)


def _one_star_in_last_level(text: str) -> tuple[str, str, int, int] | None:
    """For globs such as `/a/b/run_*.h5`: beginning, end, length of both, length of the beginning."""
    glob = parse_glob(text)
    last = glob.last
    if len(glob.runs) > 1 or last is None or len(last.segments) != 2 or any(s.shape for s in last.segments):
        return None
    if glob.head.count("/") < len(glob.runs[0]) - 1:
        return None
    begin, end = glob.head + last.segments[0].text, last.segments[1].text
    return begin, end, len(begin) + len(end), len(begin)


@lru_cache(maxsize=SHAPES_MAX)
def _factory(shape: tuple[tuple[int, Operator, int], ...]) -> Callable[..., EventTest]:
    """A function that binds names and constants to the generated check of this shape."""
    parameters, body = ["general"], []
    for i, (depth, operator, constants) in enumerate(shape):
        names = [f"n{i}_{j}" for j in range(depth)]
        parameters += [*names, *(f"c{i}_{j}" for j in range(constants))]
        body.append(f"v = event.get({names[0]}, ABSENT)")
        for name in names[1:]:
            body.append(f"if v.__class__ is dict: v = v.get({name}, ABSENT)")
            body.append("elif v.__class__ is not list: v = ABSENT")
        body.append(f"if {_FAILURES[operator].format(c=f'c{i}_')}: return v.__class__ is list and general(event)")
    lines = [f"def bind({', '.join(parameters)}):", "    def check(event):"]
    lines += [f"        {line}" for line in body]
    lines += ["        return True", "    return check"]
    scope: dict[str, Any] = {"ABSENT": ABSENT}
    exec("\n".join(lines), scope)
    bind: Callable[..., EventTest] = scope["bind"]
    return bind
