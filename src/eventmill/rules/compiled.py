"""Alternatives compiled to checks, for the events that nearly all events are: no arrays where a pattern looks.

Owns the fast way to check a candidate. The text of a check's function depends only on the alternative's *shape* (how
deep its paths are, which operators stand alone); it is generated once per shape, bound once to the names, and shared by
all patterns that differ only in their constants. These come in a tuple: no text of a user's ever becomes code, and a
check is one small piece of memory, which is what counts when there are 100,000. Where a function meets an array it
leaves the decision to the general matcher. An event that writes a nested path with dots must not be given to it
(`paths.NamesInUse.plain`). Pure functions; the caches are bounded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal

from eventmill.rules.conditions import ABSENT, address, compile_tests
from eventmill.rules.globs import Glob as ParsedGlob
from eventmill.rules.globs import Level, glob_test, parse_glob
from eventmill.rules.keys import Key, field_keys
from eventmill.rules.matching import AlternativeMatcher
from eventmill.rules.pattern import Alternative, Exact, Field, Glob, Prefix, Suffix

Check = tuple[Any, ...]
"""`(function, mark, general, *constants)`: `check[0](event, check)` says whether an event satisfies the alternative;
`mark` is the caller's own."""

CheckFunction = Callable[[Mapping[str, Any], Check], bool]

FIELDS_MAX = 16
"""An alternative with more fields is left to the general matcher: its function would be long, and is seldom wanted."""
SHAPES_MAX = 256
"""Generated functions that are kept; one costs about 0.2 ms to make again."""
NAMES_MAX = 2048
"""Functions bound to names that are kept to be shared; one costs about 2 µs to make again."""

Operator = Literal["equal", "prefix", "suffix", "in known directory", "in directory", "glob", "test"]

_FAILURES: dict[Operator, str] = {
    "equal": "v != {0}",
    "prefix": "v.__class__ is not str or not v.startswith({0}, {1})",
    "suffix": "v.__class__ is not str or not v.endswith({0})",
    "in known directory": "v.__class__ is not str or not v.endswith({0}) or v.rfind('/') >= {1}",
    "in directory": "v.__class__ is not str or not v.endswith({0}) or not v.startswith({1})"
    " or len(v) < {2} or v.rfind('/') >= {3}",
    "glob": "v.__class__ is not str or not v.endswith({0}) or not {1}(v)",
    "test": "not {0}(v)",
}
"""When a value fails, by operator, from cheap to dear: a candidate that fails should fail early."""
_COST = {operator: cost for cost, operator in enumerate(_FAILURES)}

Part = tuple[tuple[str, ...], Operator, tuple[Any, ...]]
"""How a field is checked: names of its path, operator, constants."""


def compile_alternative(alternative: Alternative, mark: object, known: frozenset[Key] = frozenset()) -> Check:
    """The check for an alternative, which carries the caller's `mark`.

    `known`: keys that the event is known to yield, because they led to the check; what they say is not checked again.
    """
    general = AlternativeMatcher(alternative)
    if len(alternative) > FIELDS_MAX:
        return _generally, mark, general
    parts = [part for field in alternative if (part := _part(field, known)) is not None]
    parts.sort(key=lambda part: _COST[part[1]])
    shape = tuple((len(names), operator, len(constants)) for names, operator, constants in parts)
    function = _bound_to_names(shape, tuple(name for names, _, _ in parts for name in names))
    return (function, mark, general, *(constant for _, _, constants in parts for constant in constants))


def _generally(event: Mapping[str, Any], check: Check) -> bool:
    matches: bool = check[2](event)
    return matches


def _part(field: Field, known: frozenset[Key]) -> Part | None:
    """How the field is checked; None if that is not needed.

    A field below the top level is always looked at: it may lie in an array that it shares with others.
    """
    names = field.names
    if len(field.tests) > 1:
        return names, "test", (compile_tests(field.tests),)
    test = field.tests[0]
    certain = [key for key in field_keys(field, test) if key in known]
    match test:
        case Exact(str()) if certain and len(names) == 1:
            return None
        case Exact(None):
            return names, "equal", (None,)
        case Exact(str(text)) if address(text) is None:
            return names, "equal", (text,)
        case Prefix(text, False):
            begin = _known_beginning(certain)
            rest = sys.intern(text[begin:])
            return (names, "prefix", (rest, begin)) if rest or not begin or len(names) > 1 else None
        case Suffix(text, False):
            return names, "suffix", (sys.intern(text),)
        case Glob(text):
            return names, *_glob_part(parse_glob(text), _known_beginning(certain))
    return names, "test", (compile_tests(field.tests),)


def _known_beginning(certain: list[Key]) -> int:
    """How many characters of a literal beginning are certain: those of the directory that was the key."""
    return max((len(key.literal) for key in certain if key.kind == "directory"), default=0)


def _glob_part(glob: ParsedGlob, known: int) -> tuple[Operator, tuple[Any, ...]]:
    """The check of a glob; those like `/a/b/run_*.h5` need not take the path apart.

    The end comes first: it decides most often. Ends are few, so that one string for all stays in the cache.
    """
    end, last = sys.intern(glob.tail), glob.last
    ends = last.literal_ends if isinstance(last, Level) and glob.in_one_directory else None
    if ends is None:
        return "glob", (end, glob_test(glob))
    begin = glob.head + ends[0]
    if known == len(begin):
        return "in known directory", (end, known)
    return "in directory", (end, begin, len(begin) + len(end), len(begin))


Shape = tuple[tuple[int, Operator, int], ...]
"""Of each field: names in its path, operator, number of constants."""


@lru_cache(maxsize=NAMES_MAX)
def _bound_to_names(shape: Shape, names: tuple[str, ...]) -> CheckFunction:
    return _factory(shape)(*names)


@lru_cache(maxsize=SHAPES_MAX)
def _factory(shape: Shape) -> Callable[..., CheckFunction]:
    """A function of the names that gives the check's function."""
    parameters, body, constant = [], [], 3
    for i, (depth, operator, constants) in enumerate(shape):
        names = [f"n{i}_{j}" for j in range(depth)]
        parameters += names
        body.append(f"v = event.get({names[0]}, ABSENT)")
        for name in names[1:]:
            body.append(f"if v.__class__ is dict: v = v.get({name}, ABSENT)")
            body.append("elif v.__class__ is not list: v = ABSENT")
        failure = _FAILURES[operator].format(*(f"check[{constant + j}]" for j in range(constants)))
        body.append(f"if {failure}: return v.__class__ is list and check[2](event)")
        constant += constants
    lines = [f"def bind({', '.join(parameters)}):", "    def function(event, check):"]
    lines += [f"        {line}" for line in (*body, "return True")]
    scope: dict[str, Any] = {"ABSENT": ABSENT}
    exec("\n".join((*lines, "    return function")), scope)
    bind: Callable[..., CheckFunction] = scope["bind"]
    return bind
