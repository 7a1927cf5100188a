"""Tests compiled to functions of one value of an event.

Owns what an operator means for a single value. A compiled test may be given anything that stands at a path: it is true
for a scalar that satisfies the operator and false for all else, so a list, an object and `ABSENT` never pass; only
`exists: false` is the other way round. Must never look at a second value. Pure functions; the cache of addresses is
safe on one thread.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from eventmill.rules.globs import glob_test, parse_glob, parse_wildcard, wildcard_test
from eventmill.rules.pattern import (
    AnythingBut,
    Cidr,
    Exact,
    Exists,
    Glob,
    IgnoreCase,
    Numeric,
    Prefix,
    Suffix,
    Test,
    Wildcard,
)

ValueTest = Callable[[Any], bool]


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = _Absent()
"""What stands at a path where the event has nothing."""

SCALARS: Final = frozenset((str, int, float, bool, type(None)))

_EXACT_INT_MAX = 1 << 53
_ADDRESS_LENGTH_MAX = 45


def compile_tests(tests: Sequence[Test]) -> ValueTest:
    """One function that is true if one of the tests is."""
    exact = [test.value for test in tests if isinstance(test, Exact)]
    functions = [_exact(exact)] if exact else []
    functions += [_compile(test) for test in tests if not isinstance(test, Exact)]
    if len(functions) == 1:
        return functions[0]
    return lambda value: any(function(value) for function in functions)


def _compile(test: Test) -> ValueTest:
    match test:
        case Exact(value):
            return _exact([value])
        case IgnoreCase(text):
            folded = fold(text)
            return _on_strings(lambda value: len(value) == len(folded) and fold(value) == folded)
        case Prefix(text, ignore_case):
            return _ignore_case(text, slice(len(text))) if ignore_case else _on_strings(_starts(text))
        case Suffix(text, ignore_case):
            return _ignore_case(text, slice(-len(text), None)) if ignore_case else _on_strings(_ends(text))
        case Wildcard(text):
            return _on_strings(wildcard_test(parse_wildcard(text)))
        case Glob(text):
            return _on_strings(glob_test(parse_glob(text)))
        case AnythingBut(tests):
            excluded = _compile_excluded(tests)
            return lambda value: value.__class__ in SCALARS and not excluded(value)
        case Numeric():
            return _numeric(test)
        case Cidr(text):
            return _cidr(text)
        case Exists(True):
            return lambda value: value.__class__ in SCALARS
        case Exists():
            return lambda value: value is ABSENT or isinstance(value, dict)


# ---------------------------------------------------------------------------------------------------------- strings


def fold(text: str) -> str:
    """The text with case folded character by character (Unicode's simple folding: `ß` is not `ss`)."""
    folded = text.casefold()
    return folded if len(folded) == len(text) else "".join(map(_fold_character, text))


def _fold_character(c: str) -> str:
    folded = c.casefold()
    if len(folded) > 1:
        folded = c.lower()
    return folded if len(folded) == 1 else c


def _on_strings(test: Callable[[str], bool]) -> ValueTest:
    return lambda value: value.__class__ is str and test(value)


def _starts(text: str) -> Callable[[str], bool]:
    return lambda value: value.startswith(text)


def _ends(text: str) -> Callable[[str], bool]:
    return lambda value: value.endswith(text)


def _ignore_case(text: str, part: slice) -> ValueTest:
    """Case is ignored in that part of the value which is as long as the text (folding keeps lengths)."""
    if not text:
        return lambda value: value.__class__ is str
    folded = fold(text)
    return lambda value: value.__class__ is str and fold(value[part]) == folded


# --------------------------------------------------------------------------------------------------- exact, numbers


def _exact(values: Sequence[Any]) -> ValueTest:
    """Equal to one of the values; strings that are IP addresses also to another way to write the same address."""
    plain = _same_values(values)
    addresses = {a for a in map(address, values) if a is not None}
    return (lambda value: plain(value) or address(value) in addresses) if addresses else plain


def _same_values(values: Sequence[Any]) -> ValueTest:
    """Membership by JSON's equality: 1 and 1.0 are the same, 1 and true are not (they are to Python)."""
    booleans = [value for value in values if isinstance(value, bool)]
    others = frozenset(value for value in values if not isinstance(value, bool))

    def test(value: Any) -> bool:
        kind = value.__class__
        return value in booleans if kind is bool else kind in SCALARS and value in others

    return test


def _compile_excluded(tests: Sequence[Test]) -> ValueTest:
    """Like `compile_tests`, but `anything-but` compares strings as they are written, addresses too."""
    values = [test.value for test in tests if isinstance(test, Exact)]
    return _same_values(values) if values else compile_tests(tests)


def _numeric(test: Numeric) -> ValueTest:
    if test.equal is not None:
        return _same_values([test.equal])
    low, low_open, high, high_open = test.low, test.low_open, test.high, test.high_open

    def within(value: Any) -> bool:
        if value.__class__ is int:
            if not (-_EXACT_INT_MAX <= value <= _EXACT_INT_MAX or _is_double(value)):
                return False
        elif value.__class__ is not float:
            return False
        if low is not None and (value <= low if low_open else value < low):
            return False
        return high is None or (value < high if high_open else value <= high)

    return within


def _is_double(value: int) -> bool:
    """Whether this integer is exactly representable in double precision; others satisfy no range."""
    try:
        return float(value) == value
    except OverflowError:
        return False


# -------------------------------------------------------------------------------------------------------- addresses


def address(value: Any) -> bytes | None:
    """The 4 or 16 bytes of an IP address in a string, None for anything else. IPv4 inside IPv6 counts as IPv4."""
    if value.__class__ is not str or not 2 <= len(value) <= _ADDRESS_LENGTH_MAX:
        return None
    return _address(value) if ":" in value or value[0].isdecimal() else None


@lru_cache(maxsize=4096)
def _address(text: str) -> bytes | None:
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    if parsed.version == 6:
        if parsed.scope_id is not None:
            return None
        return (parsed.ipv4_mapped or parsed).packed
    return parsed.packed


def _cidr(text: str) -> ValueTest:
    network = ipaddress.ip_network(text, strict=False)
    size = len(network.network_address.packed)
    low, high = network.network_address.packed, network.broadcast_address.packed

    def test(value: Any) -> bool:
        packed = address(value)
        return packed is not None and len(packed) == size and low <= packed <= high

    return test
