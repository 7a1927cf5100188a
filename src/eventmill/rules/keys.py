"""Required keys: what any event that satisfies a condition must contain, so that rules can be found by it.

Owns both sides: the keys of a test, and how a value yields the same keys. Whatever key a test is given here, every
value that passes the test must yield it; the reverse need not hold, since candidates are checked. Values only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from eventmill.rules.conditions import address, fold
from eventmill.rules.globs import parse_glob, parse_wildcard
from eventmill.rules.pattern import Alternative, Exact, Field, Glob, IgnoreCase, Numeric, Prefix, Suffix, Test, Wildcard

Kind = Literal["exact", "address", "name", "directory", "folded", "level", "ending"]
KINDS: tuple[Kind, ...] = ("exact", "address", "name", "directory", "folded", "level", "ending")
"""exact: the value. address: its bytes. name: what follows the last slash. directory: a beginning that ends in a slash.
folded: the value without case. level: one whole name between slashes. ending: what the last dot begins.
In the order in which they are preferred among equals."""

DIRECTORY_DEPTH = 32
"""Slashes of a directory key; a deeper one is cut, so that a path has no more directories than these to look up."""


class Key(NamedTuple):
    path: str
    kind: Kind
    literal: Any


Choice = list[list[Key]]
"""A condition's keys: for each of its tests the keys to choose from; one of each is needed."""


def choices(alternative: Alternative) -> list[Choice]:
    """The ways to file an alternative: one for each field all of whose tests have keys."""
    found = []
    for field in alternative:
        choice = [field_keys(field, test) for test in field.tests]
        if all(choice):
            found.append(choice)
    return found


def field_keys(field: Field, test: Test) -> list[Key]:
    return [Key(field.path, kind, literal) for kind, literal in _test_keys(test)]


def _test_keys(test: Test) -> list[tuple[Kind, Any]]:
    match test:
        case Exact(value):
            packed = address(value)
            return [("exact", value)] if packed is None else [("address", packed)]
        case Numeric(equal=equal) if equal is not None:
            return [("exact", equal)]
        case IgnoreCase(text):
            return [("folded", fold(text))]
        case Prefix(text, False):
            return _directory(text)
        case Suffix(text, False):
            return _tail(text)
        case Wildcard(text):
            return _wildcard(parse_wildcard(text))
        case Glob(text):
            return _glob(text)
    return []


def _directory(beginning: str) -> list[tuple[Kind, Any]]:
    end = beginning.rfind("/") + 1
    directories = directories_of(beginning[:end])
    return [("directory", directories[-1])] if directories else []


def _tail(end: str) -> list[tuple[Kind, Any]]:
    keys: list[tuple[Kind, Any]] = []
    slash, dot = end.rfind("/"), end.rfind(".")
    if slash >= 0 and end[slash + 1 :]:
        keys.append(("name", end[slash + 1 :]))
    if dot >= 0:
        keys.append(("ending", end[dot:]))
    return keys


def _wildcard(segments: Sequence[str]) -> list[tuple[Kind, Any]]:
    if len(segments) == 1:
        return [("exact", segments[0])]
    levels = [name for segment in segments[1:] for name in segment.split("/")[1:-1] if name]
    return _directory(segments[0]) + _tail(segments[-1]) + [("level", name) for name in levels]


def _glob(text: str) -> list[tuple[Kind, Any]]:
    glob = parse_glob(text)
    if glob.literal is not None:
        return [("exact", glob.literal)]
    keys = _directory(glob.head)
    if isinstance(glob.last, str):
        keys += [("name", glob.last)] if glob.last else []
    keys += _tail(glob.tail)
    levels = [level for run in glob.runs for level in run][glob.head.count("/") :]
    inner = levels[:-1] if glob.last is not None else levels
    return keys + [("level", level) for level in inner if isinstance(level, str) and level]


def directories_of(head: str) -> list[str]:
    """The directories that a value lies in whose part up to the last slash is `head`: `/a/b/` → `/a/`, `/a/b/`.

    `/` alone is none: all paths lie in it.
    """
    found, end = [], 0
    for _ in range(DIRECTORY_DEPTH):
        end = head.find("/", end) + 1
        if not end:
            break
        if end > 1:
            found.append(head[:end])
    return found
