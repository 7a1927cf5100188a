"""Macros of submit descriptions: `$(name)`, `$(name:default)`, and what comes out of them.

Pure functions of values. The result of an expansion is a *text*: the author's characters one by one, and the values
that came from an activation's parameters as whole units (`Data`). Whoever reads a text (quotes, lists, expressions)
gives meaning to characters only, so that data can never be mistaken for syntax.

Expansion is linear: a macro is expanded once, and what comes out is bounded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eventmill.errors import InvalidDescription

VALUE_BYTES_MAX = 32 << 10
"""One parameter's value; the kernel takes at most 128 KiB as one argument, HTCondor's job queue grows with each."""
EXPANDED_BYTES_MAX = 256 << 10
"""One command after expansion: arguments and environment together stay well below the kernel's 2 MiB."""
NESTING_MAX = 50
"""Macros in macros."""

CLUSTER, PROC = "\x01", "\x02"
"""Stand for `$(ClusterId)` and `$(ProcId)` in a text; no value and no description may contain control characters."""

_BUILT_IN = {"dollar": "$", "cluster": CLUSTER, "clusterid": CLUSTER, "process": PROC, "procid": PROC}
_MACRO = re.compile(r"\$(?:(?P<late>\$)|(?P<function>[A-Za-z_]\w*)?\()")
_NAME = re.compile(r"[A-Za-z_][\w.]*\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
EVALUATED_LATER = re.compile(r"\$\$|\$\(\s*DOLLAR", re.IGNORECASE)
"""What HTCondor evaluates when the rest has been: no way of writing it makes it pass as data."""
_WHY_REFUSED = {
    "ENV": "it would read the server's environment; name what the job needs in 'environment'",
    "RANDOM_CHOICE": "a job's description must be the same each time it is read",
    "RANDOM_INTEGER": "a job's description must be the same each time it is read",
}


@dataclass(frozen=True, slots=True)
class Data:
    """A parameter's value: one unit of a text. `number`: it may stand in an expression without quotes."""

    name: str
    text: str
    number: bool = False


Text = list[str | Data]
Lookup = Callable[[str], Data | None]


@dataclass(frozen=True, slots=True)
class Statement:
    """One `key = value` of a description, as written, with the number of its (first) line."""

    line: int
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class _Reference:
    name: str
    default: str | None


def pieces(statement: Statement) -> Iterator[str | _Reference]:
    """A value cut into plain strings and references. Raises InvalidDescription for every macro that is not simple."""
    value, line, at = statement.value, statement.line, 0
    while found := _MACRO.search(value, at):
        yield value[at : found.start()]
        if found["late"]:
            raise InvalidDescription("'$$' is evaluated only when a machine is found and is not taken", line)
        if function := found["function"]:
            why = _WHY_REFUSED.get(function.upper(), "macro functions are not evaluated; compute it in the job")
            raise InvalidDescription(f"'${function}(…)' is refused: {why}", line)
        end = _closing(value, found.end(), line)
        name, colon, default = value[found.end() : end].partition(":")
        if not _NAME.match(name.strip()):
            raise InvalidDescription(f"'$({name})' does not name a macro", line)
        yield _Reference(name.strip(), default if colon else None)
        at = end + 1
    yield value[at:]


def references(statement: Statement) -> set[str]:
    """Names (lower case) that a value refers to, those in defaults included."""
    names: set[str] = set()
    left = [statement]
    while left:
        for piece in pieces(left.pop()):
            if isinstance(piece, _Reference):
                names.add(piece.name.lower())
                left.append(Statement(statement.line, statement.key, piece.default or ""))
    return names


def _closing(value: str, start: int, line: int) -> int:
    """Where the parenthesis that was opened before `start` is closed."""
    depth = 1
    for at in range(start, len(value)):
        depth += (value[at] == "(") - (value[at] == ")")
        if not depth:
            return at
    raise InvalidDescription("'$(' is never closed", line)


class Expander:
    """Expands statements in terms of each other and of parameters; remembers what it has expanded."""

    def __init__(self, statements: Mapping[str, Statement], lookup: Lookup) -> None:
        self._statements = statements
        self._lookup = lookup
        self._done: dict[str, Text] = {}

    def expand(self, statement: Statement, active: tuple[str, ...] = ()) -> Text:
        """The statement's value as a text. Raises InvalidDescription: circle, unknown name, too deep, too long."""
        if len(active) > NESTING_MAX:
            raise InvalidDescription(f"macros are nested deeper than {NESTING_MAX}", statement.line)
        text: Text = []
        size = 0
        for piece in pieces(statement):
            part = piece if isinstance(piece, str) else self._resolve(piece, statement, active)
            size += sum(len((unit if isinstance(unit, str) else unit.text).encode()) for unit in part)
            if size > EXPANDED_BYTES_MAX:
                raise InvalidDescription(
                    f"'{statement.key}' expands to over {EXPANDED_BYTES_MAX} bytes", statement.line
                )
            text.extend(part)
        return text

    def _resolve(self, reference: _Reference, at: Statement, active: tuple[str, ...]) -> Text:
        """Built-in, then defined in the description, then parameter, then default."""
        name = reference.name.lower()
        if name in _BUILT_IN:
            return [_BUILT_IN[name]]
        if name in self._statements:
            return self._defined(name, at, active)
        try:
            data = self._lookup(reference.name)
        except InvalidDescription as e:
            raise InvalidDescription(f"$({reference.name}): {e}", at.line) from None
        if data is not None:
            return [data]
        if reference.default is not None:
            return self.expand(Statement(at.line, at.key, reference.default), (*active, ""))
        raise InvalidDescription(f"$({reference.name}) is neither defined here nor a parameter", at.line)

    def _defined(self, name: str, at: Statement, active: tuple[str, ...]) -> Text:
        if name in active:
            cycle = " → ".join([*filter(None, active[active.index(name) :]), name])
            raise InvalidDescription(f"macros refer to each other in a circle: {cycle}", at.line)
        if name not in self._done:
            self._done[name] = self.expand(self._statements[name], (*active, name))
        return self._done[name]


def parameter_lookup(parameters: Mapping[str, Any]) -> Lookup:
    """Look names up in an activation's parameters: `$(path)`, or `$(data.frames)` into objects."""

    def lookup(name: str) -> Data | None:
        value: Any = parameters
        if name in parameters:
            value = parameters[name]
        else:
            for part in name.split("."):
                if not isinstance(value, Mapping) or part not in value:
                    _hint(name, parameters)
                    return None
                value = value[part]
        return _data(name, value)

    return lookup


def _hint(name: str, parameters: Mapping[str, Any]) -> None:
    """Parameters are case-sensitive, macros of HTCondor are not: say so instead of taking a default silently."""
    near = difflib.get_close_matches(name, [key for key in parameters if key.lower() == name.lower()], n=1)
    if near:
        raise InvalidDescription(f"the parameter is called '{near[0]}'")


def _data(name: str, value: Any) -> Data:
    """A scalar as data. Raises InvalidDescription (without the value, which may be a secret)."""
    if isinstance(value, bool):
        return Data(name, "true" if value else "false", number=True)
    if isinstance(value, int | float):
        return Data(name, str(value), number=True)
    if not isinstance(value, str):
        kind = "null" if value is None else "an object" if isinstance(value, Mapping) else "a list"
        raise InvalidDescription(
            f"the parameter is {kind}; only scalars are put in, the job finds the rest in params.json"
        )
    if len(value) > VALUE_BYTES_MAX or len(value.encode(errors="replace")) > VALUE_BYTES_MAX:
        raise InvalidDescription(f"the value is longer than {VALUE_BYTES_MAX} bytes; the job finds it in params.json")
    if _CONTROL.search(value):
        raise InvalidDescription(
            "the value contains a newline, NUL or other control character; read it from params.json"
        )
    if EVALUATED_LATER.search(value):
        raise InvalidDescription("the value has '$$' or '$(DOLLAR)' in it, which HTCondor evaluates; see params.json")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise InvalidDescription("the value is not valid Unicode")
    return Data(name, value)


def join(text: Text) -> str:
    """A text as one string."""
    return "".join(unit if isinstance(unit, str) else unit.text for unit in text)


def split(text: Text, separator: str) -> list[Text]:
    """Cut at the author's separators and strip the author's blanks around each part; data are never cut."""
    parts: list[Text] = [[]]
    for unit in text:
        if unit == separator:
            parts.append([])
        else:
            parts[-1].append(unit)
    return [strip(part) for part in parts]


def strip(text: Text) -> Text:
    """Without the author's blanks at both ends."""
    start, end = 0, len(text)
    while start < end and text[start] in (" ", "\t"):
        start += 1
    while end > start and text[end - 1] in (" ", "\t"):
        end -= 1
    return text[start:end]
