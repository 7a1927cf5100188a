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

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Set
from typing import Any, Generic, TypeVar

from eventmill.errors import Conflict, NotFound
from eventmill.rules.compiled import Check, compile_alternative
from eventmill.rules.conditions import ABSENT, address, fold
from eventmill.rules.keys import KINDS, Choice, Key, choices, directories_of
from eventmill.rules.paths import NamesInUse, elements, undotted
from eventmill.rules.pattern import Alternative, Exact, Pattern, path_names

K = TypeVar("K", bound=Hashable)

BUCKET_MAX = 6
"""Alternatives that are checked one after the other; with more, another key pays."""
KEYS_MAX = 8
"""Keys of one alternative that are used, one level below the other; bounds the recursion, too."""
FOUND_MAX = 16
"""Findings of an event that need not be looked through for the same ones."""
MEMO_MAX = 32_768
"""Directories that are remembered per path, about 0.3 kB each; beyond it all are forgotten."""
MEMO_LENGTH_MAX = 1024
"""Longer directories are not worth their memory."""


class Index(Generic[K]):
    """Patterns by key, and the keys of those that match an event."""

    def __init__(self) -> None:
        self._filed: dict[K, tuple[_Entry, ...]] = {}
        self._unfiled: dict[K, tuple[_Entry, ...]] = {}
        self._root = _Level(memo_max=MEMO_MAX)
        self._names = NamesInUse()
        self._added = 0
        self._types: Counter[str | None] = Counter()
        """How many alternatives ask for an event's type by this name; None: for none by name."""
        self.types: Set[str] | None = frozenset()
        """All types that an event may have and match; None: any."""

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
        for names in _nested_paths(pattern.alternatives):
            self._names.add(names)
        self._count_types(pattern.alternatives, 1)

    def remove(self, key: K) -> None:
        """Remove a pattern. Raises NotFound."""
        entries = self._unfiled.pop(key, None)
        if entries is None:
            entries = self._filed.pop(key, None)
            if entries is None:
                raise NotFound(f"there is no pattern under {key!r}")
            for entry in entries:
                self._root.remove(entry)
        alternatives = [entry.alternative for entry in entries]
        for names in _nested_paths(alternatives):
            self._names.remove(names)
        self._count_types(alternatives, -1)

    def _count_types(self, alternatives: Iterable[Alternative], step: int) -> None:
        for name in (name for alternative in alternatives for name in _types(alternative)):
            self._types[name] += step
            if not self._types[name]:
                del self._types[name]
        self.types = None if None in self._types else self._types.keys()  # type: ignore[assignment]

    def keyless(self) -> list[K]:
        """Keys of the patterns that have to be checked for every event, in the order in which they were added."""
        self._file()
        return [key for _, key in sorted(self._root.keyless())]

    def match(self, event: Mapping[str, Any]) -> list[K]:
        """Keys of the patterns that the event matches, each once, in the order in which they were added.

        `event`: as decoded from JSON (dict, list, str, int, float, bool, None).
        """
        if self._unfiled:
            self._file()
        if self._names.any:
            event = self._names.plain(event)
        hits: list[_Rule] = []
        self._root.match(event, hits)
        if len(hits) > 1:
            return [key for _, key in sorted(set(hits))]
        return [hits[0][1]] if hits else []

    def _file(self) -> None:
        self._root.add([entry for entries in self._unfiled.values() for entry in entries])
        self._filed.update(self._unfiled)
        self._unfiled.clear()


def _types(alternative: Alternative) -> Iterable[str | None]:
    """The types that an alternative names; None alone if it is not by name that it asks for the type."""
    for field in alternative:
        if field.path == "type":
            names = [test.value for test in field.tests if isinstance(test, Exact) and isinstance(test.value, str)]
            return names if len(names) == len(field.tests) else (None,)
    return (None,)


def _nested_paths(alternatives: Iterable[Alternative]) -> set[tuple[str, ...]]:
    return {field.names for alternative in alternatives for field in alternative if "." in field.path}


_Rule = tuple[int, Any]
"""The place in the order of adding, and the key that the caller gave."""


class _Entry:
    """One alternative of a pattern."""

    __slots__ = ("alternative", "rule")

    def __init__(self, rule: _Rule, alternative: Alternative) -> None:
        self.rule = rule
        self.alternative = alternative


Checks = tuple[Check, ...]


class _Bucket:
    """Entries that share the keys `used`, to be checked in a row; too many for that become a level of their own, if
    the bucket `splits`.

    `content` is what a look-up gives: the level, or the checks, compiled when they are first looked at.
    """

    __slots__ = ("_splits", "_used", "content", "entries")

    def __init__(self, used: frozenset[Key], *, splits: bool) -> None:
        self.content: Checks | _Level | None = None
        self.entries: dict[_Entry, Check | None] = {}
        self._splits = splits
        self._used = used

    def __bool__(self) -> bool:
        return bool(self.content if isinstance(self.content, _Level) else self.entries)

    def add(self, entry: _Entry) -> None:
        if isinstance(self.content, _Level):
            self.content.add([entry])
            return
        self.entries[entry] = None
        self.content = None
        if self._splits and len(self.entries) > BUCKET_MAX:
            self.content = _Level(self._used)
            self.content.add(self.entries)
            self.entries = {}

    def remove(self, entry: _Entry) -> None:
        if isinstance(self.content, _Level):
            self.content.remove(entry)
        else:
            del self.entries[entry]
            self.content = None

    def compile(self) -> Checks | _Level:
        if self.content is None:
            for entry, check in self.entries.items():
                if check is None:
                    self.entries[entry] = compile_alternative(entry.alternative, entry.rule, self._used)
            self.content = tuple(check for check in self.entries.values() if check is not None)
        return self.content


Found = list[Any]
"""What to look at for an event: checks, and levels (`_Level`, whose name does not exist yet)."""


class _Level:
    """Entries filed under their rarest key that is not in `used`; without one they are in `rest`."""

    __slots__ = ("_counts", "_filed", "_memo_max", "_places", "_rest", "_used")

    def __init__(self, used: frozenset[Key] = frozenset(), memo_max: int = 0) -> None:
        self._used = used
        self._memo_max = memo_max
        self._counts: dict[Key, int] = {}
        self._filed: dict[_Entry, list[Key]] = {}
        self._places: dict[str, _Place] = {}
        self._rest: _Bucket | None = None

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
                self._place(key).add(key, entry, self._used)
            if not keys:
                self._rest = self._rest or _Bucket(self._used, splits=False)
                self._rest.add(entry)

    def remove(self, entry: _Entry) -> None:
        keys = self._filed.pop(entry)
        for key in keys:
            self._place(key).remove(key, entry)
            _prune(self._places, path_names(key.path))
        if self._rest and not keys:
            self._rest.remove(entry)
        for key in _all_keys(self._choices(entry)):
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]

    def keyless(self) -> set[_Rule]:
        return set() if self._rest is None else {entry.rule for entry in self._rest.entries}

    def match(self, event: Mapping[str, Any], hits: list[_Rule]) -> None:
        """Append the rules of all entries that the event satisfies; one may come twice."""
        found: Found = [] if self._rest is None else [self._rest.compile()]
        _find(event, self._places, found)
        for content in found if len(found) <= FOUND_MAX else _unique(found):
            if content.__class__ is tuple:
                for check in content:
                    if check[0](event, check):
                        hits.append(check[1])  # noqa: PERF401 (few pass)
            else:
                content.match(event, hits)

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

    def _place(self, key: Key) -> _Place:
        *parents, last = path_names(key.path)
        places = self._places
        for name in parents:
            places = places.setdefault(name, _Place(self._memo_max)).below
        return places.setdefault(last, _Place(self._memo_max))


_PREFERENCE = {kind: place for place, kind in enumerate(KINDS)}


def _all_keys(options: list[Choice]) -> set[Key]:
    return {key for choice in options for keys in choice for key in keys}


def _prune(places: dict[str, _Place], names: tuple[str, ...]) -> None:
    """Drop the place at this path, and those that only led to it, if nothing is there any more."""
    place = places[names[0]]
    if len(names) > 1:
        _prune(place.below, names[1:])
    if not place:
        del places[names[0]]


def _find(node: Mapping[str, Any], places: dict[str, _Place], found: Found) -> None:
    """Add what the keys of this object lead to. Recurses as deep as the patterns' paths."""
    few = len(places) <= len(node)
    for name, place in places.items() if few else [(name, places[name]) for name in node.keys() & places.keys()]:
        value: Any = node.get(name, ABSENT)
        kind = value.__class__
        if kind is str:
            place.find(value, found)
        elif kind is dict:
            _find(value, place.below, found)
        elif kind is list:
            _find_in_array(value, place, found)
        else:
            place.find_exact(value, found)


def _find_in_array(array: list[Any], place: _Place, found: Found) -> None:
    for value in elements(array):
        if value.__class__ is str:
            place.find(value, found)
        elif isinstance(value, dict):
            _find(undotted(value), place.below, found)
        else:
            place.find_exact(value, found)


def _unique(found: Found) -> Found:
    """Each check and each level once: the elements of an array yield many keys, but often the same."""
    levels = [content for content in found if isinstance(content, _Level)]
    checks = {id(check): check for content in found if isinstance(content, tuple) for check in content}
    return [tuple(checks.values()), *dict.fromkeys(levels)]


class _Place:
    """What is looked up at a path: buckets by kind of key and literal; and the places below it."""

    __slots__ = (*KINDS, "_by_directory", "_by_end", "_memo", "_memo_max", "below")

    exact: dict[Any, _Bucket]
    address: dict[bytes, _Bucket]
    name: dict[str, _Bucket]
    directory: dict[str, _Bucket]
    folded: dict[str, _Bucket]
    level: dict[str, _Bucket]
    ending: dict[str, _Bucket]

    def __init__(self, memo_max: int) -> None:
        for kind in KINDS:
            setattr(self, kind, {})
        self.below: dict[str, _Place] = {}
        self._memo: dict[str, tuple[Any, ...]] = {}
        self._memo_max = memo_max
        self._by_directory = self._by_end = False

    def __bool__(self) -> bool:
        return bool(self.below) or any(getattr(self, kind) for kind in KINDS)

    def add(self, key: Key, entry: _Entry, used: frozenset[Key]) -> None:
        buckets: dict[Any, _Bucket] = getattr(self, key.kind)
        bucket = buckets.get(key.literal)
        if bucket is None:
            bucket = buckets[key.literal] = _Bucket(used | {key}, splits=len(used) + 1 < KEYS_MAX)
        bucket.add(entry)
        self._changed()

    def remove(self, key: Key, entry: _Entry) -> None:
        buckets: dict[Any, _Bucket] = getattr(self, key.kind)
        bucket = buckets[key.literal]
        bucket.remove(entry)
        if not bucket:
            del buckets[key.literal]
        self._changed()

    def _changed(self) -> None:
        self._memo.clear()
        self._by_directory = bool(self.directory or self.level)
        self._by_end = bool(self.name or self.ending or self.folded or self.address)

    def find(self, value: str, found: Found) -> None:
        """Add what the keys of this string lead to."""
        bucket = self.exact.get(value)
        if bucket is not None:
            found.append(bucket.compile())
        if self._by_directory:
            head = value[: value.rfind("/") + 1]
            known = self._memo.get(head)
            found += self._find_directories(head) if known is None else known
        if self._by_end:
            self._find_by_end(value, found)

    def find_exact(self, value: Any, found: Found) -> None:
        """The same for a number, true, false, null; and for `ABSENT`, which is nobody's key."""
        bucket = self.exact.get(value)
        if bucket is not None:
            found.append(bucket.compile())

    def _find_directories(self, head: str) -> tuple[Any, ...]:
        buckets = [self.directory.get(key) for key in directories_of(head)] if self.directory else []
        buckets += [self.level.get(name) for name in set(head.split("/"))] if self.level else []
        contents = [bucket.compile() for bucket in buckets if bucket is not None]
        checks = tuple(check for content in contents if isinstance(content, tuple) for check in content)
        found = (checks, *(content for content in contents if isinstance(content, _Level)))
        if self._memo_max and len(head) <= MEMO_LENGTH_MAX:
            if len(self._memo) >= self._memo_max:
                self._memo.clear()
            self._memo[head] = found
        return found

    def _find_by_end(self, value: str, found: Found) -> None:
        keys: list[_Bucket | None] = []
        if self.ending:
            keys.append(self.ending.get(value[value.rfind(".") :]) if "." in value else None)
        if self.name:
            keys.append(self.name.get(value[value.rfind("/") + 1 :]))
        if self.folded:
            keys.append(self.folded.get(fold(value)))
        if self.address:
            packed = address(value)
            keys.append(None if packed is None else self.address.get(packed))
        found += [bucket.compile() for bucket in keys if bucket is not None]
