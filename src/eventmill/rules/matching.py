"""One pattern against one event, by the book: the meaning of a pattern in its general case.

Owns array consistency: the fields of a pattern must come from the same element of every array that they share. The
index uses it for events with arrays, `explain` for everything; it is slower than what the index compiles for plain
events, and linear in the event. Must never change an event. Functions of values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventmill.rules.conditions import ValueTest, compile_tests
from eventmill.rules.paths import leaves, undotted
from eventmill.rules.pattern import Alternative, Exists, Field, Pattern


def matches(pattern: Pattern, event: Mapping[str, Any]) -> bool:
    """Whether the event satisfies the pattern."""
    return any(AlternativeMatcher(alternative)(event) for alternative in pattern.alternatives)


class _Wanted:
    """What must be found at a path and below it."""

    __slots__ = ("below", "test")

    def __init__(self) -> None:
        self.test: ValueTest | None = None
        self.below: dict[str, _Wanted] = {}


class AlternativeMatcher:
    """All fields of one alternative, in the general case. Compiled when it is first called."""

    __slots__ = ("_absence", "_alternative", "_present")

    def __init__(self, alternative: Alternative) -> None:
        self._alternative = alternative
        self._present: list[tuple[Field, ValueTest]] | None = None
        self._absence: list[tuple[Field, ValueTest]] = []

    def __call__(self, event: Mapping[str, Any]) -> bool:
        if self._present is None:
            self._compile()
        wanted = list(self._present or ())
        for field, test in self._absence:
            # `exists: false` asks the whole event; if it fails, one of the field's other tests may still pass
            if any(True for _ in leaves(event, field.names)):
                wanted.append((field, test))
        return _satisfied(event, _tree(wanted).below)

    def _compile(self) -> None:
        self._present = []
        for field in self._alternative:
            tests = [test for test in field.tests if test != Exists(False)]
            part = self._present if len(tests) == len(field.tests) else self._absence
            part.append((field, compile_tests(tests)))


def _tree(wanted: list[tuple[Field, ValueTest]]) -> _Wanted:
    root = _Wanted()
    for field, test in wanted:
        node = root
        for name in field.names:
            node = node.below.setdefault(name, _Wanted())
        node.test = test
    return root


def _satisfied(node: Mapping[str, Any], below: dict[str, _Wanted]) -> bool:
    """Whether this object has all that is wanted. Recurses as deep as the pattern's paths, whatever the event."""
    node = undotted(node)
    return all(name in node and _found(node[name], wanted) for name, wanted in below.items())


def _found(value: Any, wanted: _Wanted) -> bool:
    if value.__class__ is list:
        return _found_in_array(value, wanted)
    if isinstance(value, dict):
        return wanted.test is None and _satisfied(value, wanted.below)
    return not wanted.below and (wanted.test is None or wanted.test(value))


def _found_in_array(array: list[Any], wanted: _Wanted) -> bool:
    """One element must satisfy all that is wanted below; a scalar beside the objects of an array goes with each."""
    waiting = [(array, wanted.test)]
    while waiting:
        values, test = waiting.pop()
        if test is not None and any(test(value) for value in values):
            test = None
        if test is None and not wanted.below:
            return True
        for value in values:
            if value.__class__ is list:
                waiting.append((value, test))
            elif test is None and isinstance(value, dict) and _satisfied(value, wanted.below):
                return True
    return False
