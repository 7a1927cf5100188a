"""Event patterns: the language of Amazon EventBridge plus `glob`, read and checked into plain values.

Owns the syntax: what is a pattern, what it says, and where a wrong one is wrong. A pattern becomes *alternatives* (its
`$or`s multiplied out), each a tuple of fields that must all hold; a field is a path and tests of which one must hold.
Must never look at an event. Values only, safe to share between threads. The normative text is docs/patterns.md.
"""

from __future__ import annotations

import ipaddress
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from eventmill.errors import InvalidPattern
from eventmill.rules.globs import parse_glob, parse_wildcard

Scalar = str | int | float | bool | None

NESTING = 32
"""Names that a path in a pattern may consist of, and `$or`s within each other; an event may be nested deeper."""
CONDITIONS_PER_ALTERNATIVE = 100
"""A pattern's alternatives may have this many conditions on average when they are as many as is allowed."""
INTERN_LENGTH_MAX = 64
"""Values up to this length are often the same in many patterns: they share one string, which stays in the cache."""


@dataclass(frozen=True, slots=True)
class Exact:
    value: Scalar


@dataclass(frozen=True, slots=True)
class IgnoreCase:
    text: str


@dataclass(frozen=True, slots=True)
class Prefix:
    text: str
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class Suffix:
    text: str
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class Wildcard:
    text: str


@dataclass(frozen=True, slots=True)
class Glob:
    text: str


@dataclass(frozen=True, slots=True)
class AnythingBut:
    """None of `tests`, which are all of one kind. `many`: they were written as a list."""

    tests: tuple[Exact | IgnoreCase | Prefix | Suffix | Wildcard, ...]
    many: bool


@dataclass(frozen=True, slots=True)
class Numeric:
    """A range with one or two ends, or (`equal`) one number."""

    low: float | None = None
    low_open: bool = False
    high: float | None = None
    high_open: bool = False
    equal: float | None = None


@dataclass(frozen=True, slots=True)
class Cidr:
    text: str


@dataclass(frozen=True, slots=True)
class Exists:
    wanted: bool


Test = Exact | IgnoreCase | Prefix | Suffix | Wildcard | Glob | AnythingBut | Numeric | Cidr | Exists


@dataclass(frozen=True, slots=True)
class Field:
    """Some value at `path` (names joined by dots) must pass one of `tests`."""

    path: str
    tests: tuple[Test, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return path_names(self.path)


Alternative = tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Pattern:
    """Matches an event if one of the alternatives does: all of its fields, in one element of each array."""

    alternatives: tuple[Alternative, ...]


@lru_cache(maxsize=4096)
def path_names(path: str) -> tuple[str, ...]:
    return tuple(path.split("."))


def parse(
    pattern: Mapping[str, Any] | bytes | str,
    *,
    pattern_bytes: int = 64 << 10,
    or_alternatives: int = 1000,
    nesting: int = NESTING,
) -> Pattern:
    """Read a pattern from JSON text or from what it decodes to.

    Limits: `pattern_bytes` of the JSON text, `or_alternatives` that the `$or`s may stand for together, `nesting` of
    names in a path and of `$or`s. Raises InvalidPattern with the path to the offending part.
    """
    document = _document(pattern, pattern_bytes)
    alternatives = _Parser(or_alternatives, nesting).object(document, (), "", [{}])
    return Pattern(tuple(tuple(fields.values()) for fields in alternatives))


def _document(pattern: Mapping[str, Any] | bytes | str, pattern_bytes: int) -> Mapping[str, Any]:
    """The decoded pattern. What comes decoded is encoded all the same: that bounds its size and finds foreign types."""
    document: Any = pattern
    try:
        if isinstance(pattern, (bytes, str)):
            raw = pattern.encode() if isinstance(pattern, str) else pattern
        else:
            raw = orjson.dumps(pattern, default=_plain)
        if len(raw) > pattern_bytes:
            raise InvalidPattern(f"{len(raw)} bytes, more than the limit of {pattern_bytes}")
        if isinstance(pattern, (bytes, str)):
            document = orjson.loads(raw)
    except (UnicodeEncodeError, orjson.JSONDecodeError, orjson.JSONEncodeError) as e:
        raise InvalidPattern(f"not JSON: {e}") from None
    if not isinstance(document, Mapping):
        raise InvalidPattern("a pattern is a JSON object")
    return document


def _plain(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is no JSON value")


_RESERVED_IN_OR = frozenset(
    ("exactly", "prefix", "suffix", "equals-ignore-case", "wildcard", "anything-but", "numeric", "cidr", "exists",
     "glob", "=", "<", "<=", ">", ">=", "regex", "not-wildcard", "not-equals-ignore-case", "date-after",
     "date-on-or-after", "date-before", "date-on-or-before", "in-date-range", "ip-address-in-range",
     "ip-address-not-in-range")
)  # fmt: skip
"""Names of operators, and those that EventBridge keeps for later. Where one is a key, an array called `$or` is not
a choice between patterns."""


class _Parser:
    """Walks a pattern's objects and multiplies out its `$or`s. Where two conditions have one path, the later counts."""

    def __init__(self, alternatives_max: int, nesting: int) -> None:
        self._alternatives_max = alternatives_max
        self._nesting = nesting

    def object(
        self,
        node: Mapping[str, Any],
        names: tuple[str, ...],
        where: str,
        alternatives: list[dict[str, Field]],
        ors: int = 0,
    ) -> list[dict[str, Field]]:
        """Add the conditions below `names` to every alternative.

        `where` is the place in the text, for errors; `ors` how many `$or`s it lies in.
        """
        if not node:
            raise InvalidPattern("an empty object says nothing: name at least one field", where)
        for key, value in node.items():
            here = f"{where}.{key}" if where else str(key)
            if not isinstance(key, str):
                raise InvalidPattern("a field's name is a string", here)
            if key == "$or" and _is_choice(value):
                alternatives = self._or(value, names, here, alternatives, ors + 1)
            elif ors and key in _RESERVED_IN_OR:
                raise InvalidPattern(f"inside '$or' no field can be called '{key}'", here)
            else:
                alternatives = self._member(key, value, names, here, alternatives, ors)
        return alternatives

    def _member(
        self,
        key: str,
        value: Any,
        names: tuple[str, ...],
        here: str,
        alternatives: list[dict[str, Field]],
        ors: int,
    ) -> list[dict[str, Field]]:
        names = (*names, *key.split("."))
        if len(names) > self._nesting:
            raise InvalidPattern(f"nested more than {self._nesting} deep", here)
        if isinstance(value, Mapping) and key != "$or":
            return self.object(value, names, here, alternatives, ors)
        if not isinstance(value, (list, tuple)):
            raise InvalidPattern("values stand in an array: [value, …]", here)
        field = _field(".".join(names), value, here)
        for fields in alternatives:
            fields[field.path] = field
        return alternatives

    def _or(
        self,
        branches: list[Any],
        names: tuple[str, ...],
        where: str,
        alternatives: list[dict[str, Field]],
        ors: int,
    ) -> list[dict[str, Field]]:
        if ors > self._nesting:
            raise InvalidPattern(f"nested more than {self._nesting} deep", where)
        self._check_size(len(branches), alternatives, where)
        result: list[dict[str, Field]] = []
        for i, branch in enumerate(branches):
            here = f"{where}[{i}]"
            result += self.object(branch, names, here, [dict(fields) for fields in alternatives], ors)
            self._check_size(1, result, where)
        return result

    def _check_size(self, times: int, alternatives: list[dict[str, Field]], where: str) -> None:
        if times * len(alternatives) > self._alternatives_max:
            raise InvalidPattern(f"stands for more than {self._alternatives_max} alternatives", where)
        conditions_max = self._alternatives_max * CONDITIONS_PER_ALTERNATIVE
        if times * sum(map(len, alternatives)) > conditions_max:
            raise InvalidPattern(f"stands for more than {conditions_max} conditions", where)


def _is_choice(value: Any) -> bool:
    """Whether the value of `$or` is a choice between patterns; else `$or` is a field's name like any other."""
    return (
        isinstance(value, (list, tuple))
        and len(value) >= 2
        and all(isinstance(branch, Mapping) and _RESERVED_IN_OR.isdisjoint(branch) for branch in value)
    )


def _field(path: str, values: list[Any] | tuple[Any, ...], where: str) -> Field:
    if not values:
        raise InvalidPattern("an empty array matches nothing: give at least one value", where)
    try:
        return Field(path, tuple(_test(value, f"{where}[{i}]") for i, value in enumerate(values)))
    except InvalidPattern as e:
        if path.rpartition(".")[2] == "$or":
            hint = "'$or' takes two or more objects, none with an operator's name as a key"
            raise InvalidPattern(hint, e.path) from None
        raise


def _test(value: Any, where: str) -> Test:
    if not isinstance(value, Mapping):
        return Exact(_scalar(value, where))
    if len(value) != 1:
        raise InvalidPattern("an operator's object has exactly one key", where)
    [(operator, operand)] = value.items()
    read = _OPERATORS.get(operator)
    if read is None:
        raise InvalidPattern(f"unknown operator '{operator}' (known: {', '.join(_OPERATORS)})", where)
    return read(operand, f"{where}.{operator}")


def _scalar(value: Any, where: str) -> Scalar:
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidPattern("not a JSON number", where)
    if isinstance(value, str) and len(value) <= INTERN_LENGTH_MAX:
        return sys.intern(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise InvalidPattern("a value is a string, a number, true, false, null or an operator's object", where)


def _string(operand: Any, where: str) -> str:
    if not isinstance(operand, str):
        raise InvalidPattern("needs a string", where)
    return operand


def _number(operand: Any, where: str) -> float:
    if isinstance(operand, bool) or not isinstance(operand, (int, float)) or not math.isfinite(operand):
        raise InvalidPattern("needs a number", where)
    return operand


def _exactly(operand: Any, where: str) -> Test:
    return Exact(_string(operand, where))


def _prefix(operand: Any, where: str) -> Test:
    return Prefix(*_affix(operand, where))


def _suffix(operand: Any, where: str) -> Test:
    return Suffix(*_affix(operand, where))


def _affix(operand: Any, where: str) -> tuple[str, bool]:
    """The text of a prefix or suffix, and whether case is ignored."""
    if not isinstance(operand, Mapping):
        return _string(operand, where), False
    if list(operand) != ["equals-ignore-case"]:
        raise InvalidPattern("needs a string, or an object with the one key 'equals-ignore-case'", where)
    return _string(operand["equals-ignore-case"], f"{where}.equals-ignore-case"), True


def _ignore_case(operand: Any, where: str) -> Test:
    return IgnoreCase(_string(operand, where))


def _wildcard(operand: Any, where: str) -> Wildcard:
    text = _string(operand, where)
    try:
        parse_wildcard(text)
    except ValueError as e:
        raise InvalidPattern(str(e), where) from None
    return Wildcard(text)


def _glob(operand: Any, where: str) -> Test:
    text = _string(operand, where)
    try:
        parse_glob(text)
    except ValueError as e:
        raise InvalidPattern(str(e), where) from None
    return Glob(text)


_Butted = Exact | IgnoreCase | Prefix | Suffix | Wildcard


def _anything_but(operand: Any, where: str) -> Test:
    read: Callable[[Any, str], _Butted] = _but_value
    if isinstance(operand, Mapping):
        if len(operand) != 1:
            raise InvalidPattern("an operator's object has exactly one key", where)
        [(operator, operand)] = operand.items()
        if operator not in _BUT_OPERATORS:
            raise InvalidPattern(f"takes no '{operator}' (but: {', '.join(_BUT_OPERATORS)})", where)
        read, where = _BUT_OPERATORS[operator], f"{where}.{operator}"
    if not isinstance(operand, (list, tuple)):
        return AnythingBut((read(operand, where),), many=False)
    if not operand:
        raise InvalidPattern("an empty list excludes nothing", where)
    tests = tuple(read(value, f"{where}[{i}]") for i, value in enumerate(operand))
    if len({isinstance(test, Exact) and isinstance(test.value, str) for test in tests}) > 1:
        raise InvalidPattern("strings and numbers can't be mixed", where)
    return AnythingBut(tests, many=True)


def _but_value(operand: Any, where: str) -> Exact:
    if isinstance(operand, str):
        return Exact(operand)
    if operand is None or isinstance(operand, bool):
        raise InvalidPattern("needs strings or numbers", where)
    return Exact(_number(operand, where))


def _but_affix(operand: Any, where: str) -> str:
    if not _string(operand, where):
        raise InvalidPattern("an empty string would exclude every string", where)
    return str(operand)


_BUT_OPERATORS: dict[str, Callable[[Any, str], _Butted]] = {
    "prefix": lambda operand, where: Prefix(_but_affix(operand, where)),
    "suffix": lambda operand, where: Suffix(_but_affix(operand, where)),
    "equals-ignore-case": lambda operand, where: IgnoreCase(_string(operand, where)),
    "wildcard": _wildcard,
}


def _numeric(operand: Any, where: str) -> Test:
    if not isinstance(operand, (list, tuple)) or len(operand) not in (2, 4):
        raise InvalidPattern('needs [operator, number], or two of both: [">=", 1, "<", 2]', where)
    ends = [(operand[i], _number(operand[i + 1], f"{where}[{i + 1}]")) for i in range(0, len(operand), 2)]
    match ends:
        case [("=", equal)]:
            return Numeric(equal=equal)
        case [(">" | ">=" as lower, low)]:
            return Numeric(low, lower == ">")
        case [("<" | "<=" as upper, high)]:
            return Numeric(high=high, high_open=upper == "<")
        case [(">" | ">=" as lower, low), ("<" | "<=" as upper, high)]:
            if low >= high:
                raise InvalidPattern("the lower end must be below the upper one", where)
            return Numeric(low, lower == ">", high, upper == "<")
    raise InvalidPattern("operators are =, <, <=, > and >=; in a range the lower end comes first", where)


def _cidr(operand: Any, where: str) -> Test:
    text = _string(operand, where)
    try:
        if "/" not in text:
            raise ValueError
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidPattern("needs a network such as 131.169.0.0/16 or 2001:638::/32", where) from None
    return Cidr(text)


def _exists(operand: Any, where: str) -> Test:
    if not isinstance(operand, bool):
        raise InvalidPattern("needs true or false", where)
    return Exists(operand)


_OPERATORS: dict[str, Callable[[Any, str], Test]] = {
    "prefix": _prefix,
    "suffix": _suffix,
    "equals-ignore-case": _ignore_case,
    "wildcard": _wildcard,
    "glob": _glob,
    "anything-but": _anything_but,
    "numeric": _numeric,
    "cidr": _cidr,
    "exists": _exists,
    "exactly": _exactly,
}


def as_written(test: Test) -> Any:
    """The JSON value that a test was read from (`exactly` becomes the plain string)."""
    match test:
        case Exact(value):
            return value
        case IgnoreCase(text):
            return {"equals-ignore-case": text}
        case Prefix(text, ignore_case):
            return {"prefix": {"equals-ignore-case": text} if ignore_case else text}
        case Suffix(text, ignore_case):
            return {"suffix": {"equals-ignore-case": text} if ignore_case else text}
        case Wildcard(text):
            return {"wildcard": text}
        case Glob(text):
            return {"glob": text}
        case AnythingBut():
            return {"anything-but": _but_as_written(test)}
        case Numeric():
            return {"numeric": _numeric_as_written(test)}
        case Cidr(text):
            return {"cidr": text}
        case Exists(wanted):
            return {"exists": wanted}


def _but_as_written(test: AnythingBut) -> Any:
    written = [as_written(one) for one in test.tests]
    if not isinstance(test.tests[0], Exact):
        operator = next(iter(written[0]))
        values = [one[operator] for one in written]
        return {operator: values if test.many else values[0]}
    return written if test.many else written[0]


def _numeric_as_written(test: Numeric) -> list[Any]:
    if test.equal is not None:
        return ["=", test.equal]
    low = [] if test.low is None else [">" if test.low_open else ">=", test.low]
    high = [] if test.high is None else ["<" if test.high_open else "<=", test.high]
    return low + high
