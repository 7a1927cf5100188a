"""Where values stand in an event: paths, arrays on the way, and names with dots.

A path is names joined by dots, and in an event `{"a.b": 1}` is the same as `{"a": {"b": 1}}`. Owns this equivalence
and the walk to the leaves. Must never change an event. No recursion that an event's depth could drive. Values only,
but for `NamesInUse`, which belongs to one index and its thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from eventmill.rules.pattern import NESTING

Json = Any


def undotted(node: Mapping[str, Json]) -> Mapping[str, Json]:
    """This object with the first dot of its names turned into nesting (the rest follows one level further down)."""
    if "." not in "".join(node):
        return node
    result: dict[str, Json] = {}
    for name, value in node.items():
        head, dot, rest = name.partition(".")
        if dot:
            value = {rest: value}
        result[head] = _both(result[head], value, NESTING) if head in result else value
    return result


def _both(one: Json, other: Json, depth: int) -> Json:
    """Two values of one name: objects are united, down to the depth that patterns reach; else both are there, as in
    an array."""
    if depth == 0 or not (isinstance(one, dict) and isinstance(other, dict)):
        return [one, other]
    result = {**one, **other}
    for name in one.keys() & other.keys():
        result[name] = _both(one[name], other[name], depth - 1)
    return result


def elements(value: Json) -> Iterator[Json]:
    """What an array holds, arrays within it taken apart; any other value is its own only element."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if value.__class__ is list:
            waiting.extend(reversed(value))
        else:
            yield value


def leaves(event: Mapping[str, Json], names: Sequence[str]) -> Iterator[Json]:
    """The scalars that stand at a path, through all arrays on the way."""
    nodes: Iterable[Json] = [event]
    for name in names:
        nodes = _step(nodes, name)
    for node in nodes:
        for value in elements(node):
            if not isinstance(value, dict):
                yield value


def _step(nodes: Iterable[Json], name: str) -> Iterator[Json]:
    for node in nodes:
        for value in elements(node):
            if isinstance(value, dict):
                value = undotted(value)
                if name in value:
                    yield value[name]


class _Names:
    __slots__ = ("aliases", "below")

    def __init__(self) -> None:
        self.aliases: dict[str, int] = {}
        self.below: dict[str, _Names] = {}


class NamesInUse:
    """The nested paths that an index looks at, counted, to find out cheaply whether an event writes one with dots."""

    def __init__(self) -> None:
        self._paths: dict[tuple[str, ...], int] = {}
        self._root = _Names()
        self.any = False

    def add(self, names: tuple[str, ...]) -> None:
        count = self._paths[names] = self._paths.get(names, 0) + 1
        if count == 1:
            _count(self._root, names, 1)
            self.any = True

    def remove(self, names: tuple[str, ...]) -> None:
        self._paths[names] -= 1
        if not self._paths[names]:
            del self._paths[names]
            _count(self._root, names, -1)
            self.any = bool(self._paths)

    def plain(self, event: Mapping[str, Json]) -> Mapping[str, Json]:
        """The event with none of these paths written with dots, outside of arrays; nearly always the event itself."""
        return self._plain(event, self._root)

    def _plain(self, node: Mapping[str, Json], names: _Names) -> Mapping[str, Json]:
        if not node.keys().isdisjoint(names.aliases):
            node = undotted(node)
        for name in names.below if len(names.below) <= len(node) else node.keys() & names.below.keys():
            child = node.get(name)
            if child.__class__ is dict and names.below[name].aliases:
                plain = self._plain(child, names.below[name])
                if plain is not child:
                    node = {**node, name: plain}
        return node


def _count(node: _Names, names: tuple[str, ...], by: int) -> None:
    """Count the ways to write `names` with dots; nodes that are no longer needed go."""
    for end in range(2, len(names) + 1):
        alias = ".".join(names[:end])
        node.aliases[alias] = node.aliases.get(alias, 0) + by
        if not node.aliases[alias]:
            del node.aliases[alias]
    if len(names) > 2:
        below = node.below.setdefault(names[0], _Names())
        _count(below, names[1:], by)
        if not below.aliases:
            del node.below[names[0]]
