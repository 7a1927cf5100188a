"""The index: which of very many patterns does an event match?

Every alternative of a pattern is filed under the rarest of its required keys (`keys`). An event yields its keys, each
one dictionary look-up; the few alternatives that are found there are checked (`compiled`). A bucket that grows beyond
`BUCKET_MAX` becomes a level of its own, which files its members under their next rarest keys. What depends on a
path's directory alone is remembered per directory.

Costs depend on the event and on how many patterns share their rarest key with it, not on how many there are. Slow are
patterns without any key (`keyless`): each of them is checked for every event.

Must never change an event, nor keep a reference to one. Concurrency: one thread; adding and removing take effect at
the next `match`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from eventmill.errors import Conflict, NotFound
from eventmill.rules.compiled import EventTest, compile_alternative
from eventmill.rules.conditions import address, fold
from eventmill.rules.keys import KINDS, Choice, Key, Kind, choices, directories_of
from eventmill.rules.paths import NamesInUse, elements, undotted
from eventmill.rules.pattern import Alternative, Pattern, path_names

K = TypeVar("K", bound=Hashable)

BUCKET_MAX = 6
"""Alternatives that are checked one after the other; with more, another key pays."""
MEMO_MAX = 32_768
"""Directories that are remembered per path, about 0.3 kB each; beyond it all are forgotten."""
MEMO_LENGTH_MAX = 1024
"""Longer directories are not worth their memory."""


class Index(Generic[K]):
    """Patterns by key, and the keys of those that match an event."""

    def __init__(self) -> None:
        self._filed: dict[K, tuple[_Entry, ...]] = {}
        self._unfiled: dict[K, tuple[_Entry, ...]] = {}
        self._keyless: dict[K, None] = {}
        self._root = _Level(memo_max=MEMO_MAX)
        self._names = NamesInUse()
        self._added = 0

    def __len__(self) -> int:
        return len(self._filed) + len(self._unfiled)

    def add(self, key: K, pattern: Pattern) -> None:
        """Add a pattern. Raises Conflict if there is one under this key."""
        if key in self._filed or key in self._unfiled:
            raise Conflict(f"there is a pattern under {key!r} already")
        self._added += 1
        rule = (self._added, key)
        # filed later, all together: which key is rare shows when all are there
        self._unfiled[key] = tuple(_Entry(rule, alternative) for alternative in pattern.alternatives)
        if not all(map(choices, pattern.alternatives)):
            self._keyless[key] = None
        for names in _nested_paths(pattern.alternatives):
            self._names.add(names)

    def remove(self, key: K) -> None:
        """Remove a pattern. Raises NotFound."""
        entries = self._unfiled.pop(key, None)
        if entries is None:
            entries = self._filed.pop(key, None)
            if entries is None:
                raise NotFound(f"there is no pattern under {key!r}")
            for entry in entries:
                self._root.remove(entry)
        self._keyless.pop(key, None)
        for names in _nested_paths(entry.alternative for entry in entries):
            self._names.remove(names)

    def keyless(self) -> list[K]:
        """Keys of the patterns that have to be checked for every event, in the order in which they were added."""
        return list(self._keyless)

    def match(self, event: Mapping[str, Any]) -> list[K]:
        """Keys of the patterns that the event matches, each once, in the order in which they were added.

        `event`: as decoded from JSON (dict, list, str, int, float, bool, None).
        """
        if self._unfiled:
            self._file()
        hits: list[_Rule] = []
        self._root.match(self._names.plain(event), hits)
        if len(hits) > 1:
            hits = sorted(set(hits))
        return [key for _, key in hits]

    def _file(self) -> None:
        self._root.add([entry for entries in self._unfiled.values() for entry in entries])
        self._filed.update(self._unfiled)
        self._unfiled.clear()


def _nested_paths(alternatives: Iterable[Alternative]) -> set[tuple[str, ...]]:
    return {field.names for alternative in alternatives for field in alternative if "." in field.path}


_Rule = tuple[int, Any]
"""The place in the order of adding, and the key that the caller gave."""


class _Entry:
    """One alternative of a pattern, compiled when it is first a candidate."""

    __slots__ = ("_test", "alternative", "rule")

    def __init__(self, rule: _Rule, alternative: Alternative) -> None:
        self.rule = rule
        self.alternative = alternative
        self._test: EventTest | None = None

    def compiled(self) -> EventTest:
        if self._test is None:
            self._test = compile_alternative(self.alternative)
        return self._test


class _Bucket:
    """Entries that share a key, to be checked in a row; too many for that become a level of their own, if `splits`."""

    __slots__ = ("checks", "entries", "level", "splits", "used")

    def __init__(self, used: frozenset[Key], *, splits: bool = True) -> None:
        self.used = used
        self.splits = splits
        self.entries: list[_Entry] = []
        self.checks: tuple[tuple[EventTest, _Rule], ...] | None = None
        self.level: _Level | None = None

    def __bool__(self) -> bool:
        return bool(self.entries) or bool(self.level)

    def add(self, entry: _Entry) -> None:
        if self.level is not None:
            self.level.add([entry])
            return
        self.entries.append(entry)
        self.checks = None
        if self.splits and len(self.entries) > BUCKET_MAX:
            self.level = _Level(self.used)
            self.level.add(self.entries)
            self.entries = []

    def remove(self, entry: _Entry) -> None:
        if self.level is not None:
            self.level.remove(entry)
        else:
            self.entries.remove(entry)
            self.checks = None

    def compile(self) -> tuple[tuple[EventTest, _Rule], ...]:
        self.checks = tuple((entry.compiled(), entry.rule) for entry in self.entries)
        return self.checks


class _Level:
    """Entries filed under their rarest key that is not in `used`; without one they are in `rest`."""

    def __init__(self, used: frozenset[Key] = frozenset(), memo_max: int = 0) -> None:
        self._used = used
        self._memo_max = memo_max
        self._counts: dict[Key, int] = {}
        self._filed: dict[_Entry, list[Key]] = {}
        self._places: dict[str, _Place] = {}
        self._rest = _Bucket(used, splits=False)

    def __bool__(self) -> bool:
        return bool(self._filed)

    def add(self, entries: Iterable[_Entry]) -> None:
        """File these; all are counted before the first is filed."""
        batch = [(entry, self._choices(entry)) for entry in entries]
        for _, options in batch:
            for key in _all_keys(options):
                self._counts[key] = self._counts.get(key, 0) + 1
        for entry, options in batch:
            keys = self._filed[entry] = self._rarest(options)
            for key in keys:
                self._table(key).bucket(key, self._used).add(entry)
            if not keys:
                self._rest.add(entry)

    def remove(self, entry: _Entry) -> None:
        keys = self._filed.pop(entry)
        for key in keys:
            table = self._table(key)
            table.remove(key, entry)
            if not table:
                _prune(self._places, path_names(key.path))
        if not keys:
            self._rest.remove(entry)
        for key in _all_keys(self._choices(entry)):
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]

    def match(self, event: Mapping[str, Any], hits: list[_Rule]) -> None:
        """Append the rules of all entries that the event satisfies; one may come twice."""
        found: Iterable[_Bucket] = _find(event, self._places, [self._rest])
        for bucket in found:
            checks = bucket.checks
            if checks is None:
                checks = bucket.compile()
            for test, rule in checks:
                if test(event):
                    hits.append(rule)
            if bucket.level is not None:
                bucket.level.match(event, hits)

    def _choices(self, entry: _Entry) -> list[Choice]:
        options = choices(entry.alternative)
        if not self._used:
            return options
        unused = [[[key for key in keys if key not in self._used] for keys in choice] for choice in options]
        return [choice for choice in unused if all(choice)]

    def _rarest(self, options: list[Choice]) -> list[Key]:
        """The keys to file under: of one field, for each of its tests the rarest."""
        picked = [list(dict.fromkeys(min(keys, key=self._rank) for keys in choice)) for choice in options]
        return min(picked, key=lambda keys: (sum(self._counts[k] for k in keys), self._rank(keys[0])), default=[])

    def _rank(self, key: Key) -> tuple[int, int]:
        return self._counts[key], _PREFERENCE[key.kind]

    def _table(self, key: Key) -> _Table:
        *parents, last = path_names(key.path)
        places = self._places
        for name in parents:
            places = places.setdefault(name, _Place()).below
        place = places.setdefault(last, _Place())
        if place.table is None:
            place.table = _Table(self._memo_max)
        return place.table


_PREFERENCE = {kind: place for place, kind in enumerate(KINDS)}


def _all_keys(options: list[Choice]) -> set[Key]:
    return {key for choice in options for keys in choice for key in keys}


class _Place:
    """What is looked up at a path, and below it."""

    __slots__ = ("below", "table")

    def __init__(self) -> None:
        self.table: _Table | None = None
        self.below: dict[str, _Place] = {}


def _prune(places: dict[str, _Place], names: tuple[str, ...]) -> None:
    """Drop the table at this path, and what led only to it."""
    place = places[names[0]]
    if len(names) == 1:
        place.table = None
    else:
        _prune(place.below, names[1:])
    if place.table is None and not place.below:
        del places[names[0]]


def _find(node: Mapping[str, Any], places: dict[str, _Place], found: list[_Bucket]) -> list[_Bucket]:
    """Add the buckets of all keys that this object yields. Recurses as deep as the patterns' paths."""
    for name in places if len(places) <= len(node) else node.keys() & places.keys():
        value: Any = node.get(name)
        kind = value.__class__
        if kind is str:
            table = places[name].table
            if table is not None:
                table.find(value, found)
        elif kind is dict:
            if places[name].below:
                _find(value, places[name].below, found)
        elif kind is list:
            found = _find_in_array(value, places[name], found)
        elif name in node:
            table = places[name].table
            if table is not None:
                table.find_exact(value, found)
    return found


def _find_in_array(array: list[Any], place: _Place, found: list[_Bucket]) -> list[_Bucket]:
    for value in elements(array):
        if isinstance(value, dict):
            _find(undotted(value), place.below, found)
        elif place.table is not None:
            find = place.table.find if value.__class__ is str else place.table.find_exact
            find(value, found)
    return list(dict.fromkeys(found))  # many elements yield the same few keys


class _Table:
    """The buckets of one path, by kind of key and literal."""

    __slots__ = ("_by_directory", "_by_rest", "_kinds", "_memo", "_memo_max")

    def __init__(self, memo_max: int) -> None:
        self._kinds: dict[Kind, dict[Any, _Bucket]] = {kind: {} for kind in KINDS}
        self._memo: dict[str, tuple[_Bucket, ...]] = {}
        self._memo_max = memo_max
        self._by_directory = self._by_rest = False

    def __bool__(self) -> bool:
        return any(self._kinds.values())

    def bucket(self, key: Key, used: frozenset[Key]) -> _Bucket:
        buckets = self._kinds[key.kind]
        bucket = buckets.get(key.literal)
        if bucket is None:
            bucket = buckets[key.literal] = _Bucket(used | {key})
            self._changed()
        return bucket

    def remove(self, key: Key, entry: _Entry) -> None:
        bucket = self._kinds[key.kind][key.literal]
        bucket.remove(entry)
        if not bucket:
            del self._kinds[key.kind][key.literal]
            self._changed()

    def _changed(self) -> None:
        """A bucket has come or gone: what was remembered may be wrong."""
        self._memo.clear()
        kinds = self._kinds
        self._by_directory = bool(kinds["directory"] or kinds["level"])
        self._by_rest = bool(kinds["name"] or kinds["ending"] or kinds["folded"] or kinds["address"])

    def find(self, value: str, found: list[_Bucket]) -> None:
        """Add the buckets of all keys that this string yields."""
        bucket = self._kinds["exact"].get(value)
        if bucket is not None:
            found.append(bucket)
        if self._by_directory:
            head = value[: value.rfind("/") + 1]
            buckets = self._memo.get(head)
            found += self._find_directories(head) if buckets is None else buckets
        if self._by_rest:
            self._find_rest(value, found)

    def find_exact(self, value: Any, found: list[_Bucket]) -> None:
        """The same for a number, true, false or null."""
        bucket = self._kinds["exact"].get(value)
        if bucket is not None:
            found.append(bucket)

    def _find_directories(self, head: str) -> tuple[_Bucket, ...]:
        directories, levels = self._kinds["directory"], self._kinds["level"]
        keys = directories_of(head) if directories else []
        found = [directories[key] for key in keys if key in directories]
        if levels:
            found += [levels[name] for name in set(head.split("/")) if name in levels]
        if self._memo_max and len(head) <= MEMO_LENGTH_MAX:
            if len(self._memo) >= self._memo_max:
                self._memo.clear()
            self._memo[head] = tuple(found)
        return tuple(found)

    def _find_rest(self, value: str, found: list[_Bucket]) -> None:
        kinds = self._kinds
        keys: list[tuple[Kind, Any]] = [("name", value[value.rfind("/") + 1 :])]
        dot = value.rfind(".")
        if dot >= 0:
            keys.append(("ending", value[dot:]))
        if kinds["folded"]:
            keys.append(("folded", fold(value)))
        if kinds["address"]:
            keys.append(("address", address(value)))
        for kind, literal in keys:
            bucket = kinds[kind].get(literal)
            if bucket is not None:
                found.append(bucket)
