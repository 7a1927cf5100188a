"""Path globs and EventBridge wildcards: parsed once, then matched by searching literal segments from left to right.

Owns the two little languages and their matching in time linear in the string, whatever the pattern: a segment is
looked for once, behind its predecessor, and nothing is ever tried again. Must never hand a pattern with a repetition to
a regular expression. Everything here is a function of values.

glob: `*` stays within one level of the path, `?` is one character and `[a-z]`, `[!a-z]` one of a set, none of them `/`;
`**` stands alone between slashes and covers any number of levels, at least one when it comes last; `\\` makes the next
`* ? [ ] \\` ordinary. A leading dot is not special, nor are braces.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile

from eventmill.errors import InvalidPattern

LEVELS_MAX = 64
"""Levels of a glob. With it the cost of `/**/a/*/b/**/` on a path stays a small multiple of the path's length."""
LENGTH_MAX = 4096
"""Characters of a glob: what Linux allows for a path."""

_SPECIAL = re.compile(r"[*?\[\\]")

StringTest = Callable[[str], bool]


class _Wrong(ValueError):
    """What is wrong with a glob or wildcard; the caller knows where it stands."""


# ------------------------------------------------------------------------------------------------------- wildcards


def parse_wildcard(text: str) -> tuple[str, ...]:
    """The literal segments around the stars. Raises ValueError."""
    segments, now, i = [], "", 0
    while i < len(text):
        c = text[i]
        if c == "*":
            if text[i + 1 : i + 2] == "*":
                raise _Wrong(f"two stars in a row at character {i}")
            segments.append(now)
            now = ""
        elif c == "\\":
            i += 1
            if text[i : i + 1] not in ("*", "\\"):
                raise _Wrong(f"only '\\*' and '\\\\' may follow a backslash (character {i - 1})")
            now += text[i]
        else:
            now += c
        i += 1
    return (*segments, now)


def wildcard_test(segments: Sequence[str]) -> StringTest:
    """A test for these segments with anything between them."""
    first, *middle, last = segments if len(segments) > 1 else (segments[0], "")
    if len(segments) == 1:
        return first.__eq__
    least = sum(map(len, segments))

    def test(text: str) -> bool:
        if len(text) < least or not text.startswith(first) or not text.endswith(last):
            return False
        at, end = len(first), len(text) - len(last)
        for segment in middle:
            at = text.find(segment, at, end)
            if at < 0:
                return False
            at += len(segment)
        return True

    return test


# ------------------------------------------------------------------------------------------------------------ globs


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of characters without a star, of fixed length. `shape`: a regular expression without repetitions, when
    there is a `?` or a set among them; else None, and `text` is literal."""

    text: str
    length: int
    shape: re.Pattern[str] | None = None

    def at(self, name: str, start: int) -> bool:
        if self.shape is None:
            return name.startswith(self.text, start)
        return self.shape.match(name, start) is not None

    def find(self, name: str, start: int, end: int) -> int:
        if self.shape is None:
            return name.find(self.text, start, end)
        found = self.shape.search(name, start, end)
        return -1 if found is None else found.start()


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a path with something special in it: segments with any characters between them."""

    segments: tuple[Segment, ...]

    @property
    def literal_ends(self) -> tuple[str, str] | None:
        """What stands before and after the star, if that is all: one star between literal characters."""
        first, last = self.segments[0], self.segments[-1]
        literal = len(self.segments) == 2 and first.shape is None and last.shape is None
        return (first.text, last.text) if literal else None

    def matches(self, name: str) -> bool:
        first, last = self.segments[0], self.segments[-1]
        at, end = first.length, len(name) - last.length
        if len(self.segments) == 1:
            return end == 0 and first.at(name, 0)
        if end < at or not first.at(name, 0) or not last.at(name, end):
            return False
        for segment in self.segments[1:-1]:
            at = segment.find(name, at, end)
            if at < 0:
                return False
            at += segment.length
        return True


Run = tuple[str | Level, ...]
"""Levels that follow each other; a `str` is literal."""


@dataclass(frozen=True, slots=True)
class Glob:
    """A parsed glob: `runs` are the levels between the `**`s (one run: there is none)."""

    runs: tuple[Run, ...]

    @property
    def head(self) -> str:
        """The literal directory that every match lies in, with its slash; "" if there is none."""
        directories = self.runs[0] if len(self.runs) > 1 else self.runs[0][:-1]
        literal = takewhile(lambda level: isinstance(level, str), directories)
        return "".join(f"{level}/" for level in literal)

    @property
    def tail(self) -> str:
        """The literal end of every match; "" if there is none."""
        if not isinstance(self.last, Level):
            return self.last or ""
        final = self.last.segments[-1]
        return final.text if final.shape is None else ""

    @property
    def literal(self) -> str | None:
        """The one string that matches, if there is nothing special in the glob."""
        last = self.last
        return self.head + last if isinstance(last, str) and self.in_one_directory else None

    @property
    def in_one_directory(self) -> bool:
        """Whether only the last level is not literal."""
        return len(self.runs) == 1 and self.head.count("/") == len(self.runs[0]) - 1

    @property
    def last(self) -> str | Level | None:
        """The level that a path's last name has to match; None when the glob ends in `**`."""
        return self.runs[-1][-1] if self.runs[-1] else None


@lru_cache(maxsize=256)
def parse_glob(text: str) -> Glob:
    """Parse a glob. Raises ValueError."""
    if len(text) > LENGTH_MAX:
        raise _Wrong(f"longer than {LENGTH_MAX} characters")
    runs: list[list[str | Level]] = [[]]
    names = text.split("/")
    if len(names) > LEVELS_MAX:
        raise _Wrong(f"more than {LEVELS_MAX} levels")
    for i, name in enumerate(names):
        if name != "**":
            runs[-1].append(_level(name))
        elif i and names[i - 1] == "**":
            raise _Wrong("'**' twice in a row")
        else:
            runs.append([])
    return Glob(tuple(map(tuple, runs)))


def _level(name: str) -> str | Level:
    if not _SPECIAL.search(name):
        return name
    segments: list[Segment] = []
    pieces: list[tuple[str, bool]] = []  # (text, is it a regular expression?)
    i = 0
    while i < len(name):
        c = name[i]
        if c == "*":
            if name[i + 1 : i + 2] == "*":
                raise _Wrong("'**' must stand alone between slashes")
            segments.append(_segment(pieces))
            pieces = []
        elif c == "?":
            pieces.append((".", True))
        elif c == "[":
            charset, i = _charset(name, i)
            pieces.append((charset, True))
        elif c == "\\":
            i += 1
            if name[i : i + 1] not in ("*", "?", "[", "]", "\\"):
                raise _Wrong("only one of * ? [ ] \\ may follow a backslash")
            pieces.append((name[i], False))
        else:
            pieces.append((c, False))
        i += 1
    segments.append(_segment(pieces))
    only = segments[0]  # with nothing but escapes in it, a level is literal after all
    return only.text if len(segments) == 1 and only.shape is None else Level(tuple(segments))


def _segment(pieces: list[tuple[str, bool]]) -> Segment:
    text = "".join(piece for piece, _ in pieces)
    if not any(special for _, special in pieces):
        return Segment(text, len(text))
    shape = "".join(piece if special else re.escape(piece) for piece, special in pieces)
    return Segment(text, len(pieces), re.compile(shape, re.DOTALL))


def _charset(name: str, start: int) -> tuple[str, int]:
    """The regular expression of the set that opens at `start`, and where it closes."""
    first = start + 1
    negated = name[first : first + 1] in ("!", "^")
    first += negated
    close = name.find("]", first + 1)  # a `]` in first place is one of the set
    if close < 0:
        raise _Wrong("'[' is not closed")
    body, i = "", first
    while i < close:
        low = high = name[i]
        if name[i + 1 : i + 2] == "-" and i + 2 < close:
            high = name[i + 2]
            i += 2
        if low > high:
            raise _Wrong(f"the range '{low}-{high}' is empty")
        body += f"{re.escape(low)}-{re.escape(high)}" if low != high else re.escape(low)
        i += 1
    return f"[{'^' if negated else ''}{body}]", close


def glob_test(glob: Glob) -> StringTest:
    """A test for this glob. A cheap look at its literal beginning and end comes before the path is taken apart."""
    literal = glob.literal
    if literal is not None:
        return literal.__eq__
    head, tail = sys.intern(glob.head), sys.intern(glob.tail)
    first, *middle, last = glob.runs if len(glob.runs) > 1 else (glob.runs[0], ())
    anchored, least = len(glob.runs) == 1, len(last) or 1  # a `**` that comes last covers at least one level

    def test(text: str) -> bool:
        if not text.endswith(tail) or not text.startswith(head):
            return False
        names = text.split("/")
        if anchored:
            return len(names) == len(first) and _run_at(first, names, 0)
        at, end = len(first), len(names) - least
        if end < at or not _run_at(last, names, len(names) - len(last)) or not _run_at(first, names, 0):
            return False
        for run in middle:
            while at + len(run) <= end and not _run_at(run, names, at):
                at += 1
            at += len(run)
            if at > end:
                return False
        return True

    return test


def _run_at(run: Run, names: list[str], at: int) -> bool:
    for level in run:
        name = names[at]
        if name != level and (isinstance(level, str) or not level.matches(name)):
            return False
        at += 1
    return True


# --------------------------------------------------------------------------------------------------- for other rooms


def glob_matches(glob: str) -> StringTest:
    """A test for paths: `glob_matches("/exfel/**/raw/*.h5")("/exfel/p1/raw/r1.h5")`. Raises InvalidPattern."""
    try:
        return glob_test(parse_glob(glob))
    except ValueError as e:
        raise InvalidPattern(str(e), f"glob '{glob[:80]}'") from None


def glob_root(glob: str) -> str:
    """The deepest directory that holds everything the glob can match: `/exfel/**/raw/*.h5` → `/exfel`.

    A glob without a special character gives the directory of the one path; "" is the working directory.
    """
    glob_matches(glob)
    head = parse_glob(glob).head
    return head.rstrip("/") or head[:1]
