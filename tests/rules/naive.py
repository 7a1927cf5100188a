"""What patterns mean, a second time: plainly, slowly, and without a line of the package.

An event is flattened to (path, value, membership), where membership says which element of which array the value comes
from. A pattern matches if each of its fields can be given a value such that no two come from different elements of one
array. All combinations are tried.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from itertools import count
from typing import Any

Leaf = tuple[str, Any, dict[int, int]]


def matches(pattern: dict[str, Any], event: dict[str, Any]) -> bool:
    leaves = list(flatten(event, "", {}, count()))
    return any(_consistent(list(fields.items()), leaves, {}) for fields in expand(pattern, "", [{}]))


def expand(node: dict[str, Any], prefix: str, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for key, value in node.items():
        if key == "$or" and all(isinstance(branch, dict) for branch in value):
            rules = [rule for branch in value for rule in expand(branch, prefix, [dict(r) for r in rules])]
        elif isinstance(value, dict):
            rules = expand(value, f"{prefix}{key}.", rules)
        else:
            rules = [{**rule, prefix + key: value} for rule in rules]
    return rules


def flatten(node: Any, path: str, membership: dict[int, int], arrays: Iterator[int]) -> Iterator[Leaf]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from flatten(value, f"{path}.{key}" if path else key, membership, arrays)
    elif isinstance(node, list):
        array = next(arrays)
        for i, value in enumerate(node):
            inside = {**membership, array: i} if isinstance(value, (dict, list)) else membership
            yield from flatten(value, path, inside, arrays)
    else:
        yield path, node, membership


def _consistent(fields: list[tuple[str, list[Any]]], leaves: list[Leaf], chosen: dict[int, int]) -> bool:
    if not fields:
        return True
    (path, tests), *rest = fields
    if {"exists": False} in tests and all(leaf[0] != path for leaf in leaves):
        return _consistent(rest, leaves, chosen)
    return any(
        leaf_path == path
        and all(chosen.get(array, i) == i for array, i in membership.items())
        and any(satisfies(value, test) for test in tests)
        and _consistent(rest, leaves, {**chosen, **membership})
        for leaf_path, value, membership in leaves
    )


def satisfies(value: Any, test: Any) -> bool:
    if not isinstance(test, dict):
        return _same(value, test) or _ip(value) == _ip(test) != None  # noqa: E711
    [(operator, operand)] = test.items()
    if operator == "exists":
        return bool(operand)
    if operator == "exactly":
        return bool(value == operand)
    if operator == "anything-but":
        return not _one_of(value, operand)
    if operator == "numeric":
        return _in_range(value, operand)
    return isinstance(value, str) and _string_satisfies(value, operator, operand)


def _string_satisfies(value: str, operator: str, operand: Any) -> bool:
    if operator in ("prefix", "suffix") and isinstance(operand, dict):
        value, operand = value.lower(), operand["equals-ignore-case"].lower()
    match operator:
        case "prefix":
            return value.startswith(str(operand))
        case "suffix":
            return value.endswith(str(operand))
        case "equals-ignore-case":
            return value.lower() == str(operand).lower()
        case "wildcard":
            pieces = re.findall(r"\\[*\\]|.", operand, re.DOTALL)
            pattern = "".join(".*" if piece == "*" else re.escape(piece[-1]) for piece in pieces)
            return re.fullmatch(pattern, value, re.DOTALL) is not None
        case "glob":
            return re.fullmatch(_glob_regex(operand), value, re.DOTALL) is not None
        case "cidr":
            address = _ip(value)
            return address is not None and address in ipaddress.ip_network(operand)
    raise AssertionError(operator)


def _same(value: Any, other: Any) -> bool:
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def _one_of(value: Any, operand: Any) -> bool:
    operator = None
    if isinstance(operand, dict):
        [(operator, operand)] = operand.items()
    each = operand if isinstance(operand, list) else [operand]
    if operator is None:
        return any(_same(value, one) for one in each)
    return any(satisfies(value, {operator: one}) for one in each)


def _in_range(value: Any, operand: list[Any]) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    compare = {
        "=": lambda a, b: a == b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    }  # fmt: skip
    exact = operand[0] == "=" or float(value) == value
    return exact and all(compare[operand[i]](value, operand[i + 1]) for i in range(0, len(operand), 2))


def _ip(value: Any) -> Any:
    try:
        return ipaddress.ip_address(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _regex(text: str, special: dict[str, str]) -> str:
    return "".join(special.get(c, re.escape(c)) for c in text)


def _glob_regex(text: str) -> str:
    special = {"*": "[^/]*", "?": "[^/]"}
    levels = text.split("/")
    parts = []
    for i, level in enumerate(levels):
        last = i == len(levels) - 1
        if level == "**":
            parts.append(".*" if last else "(?:[^/]*/)*")
        else:
            translated = "".join(
                piece.replace("[!", "[^/") if piece.startswith("[") else _regex(piece, special)
                for piece in re.split(r"(\[!?[^]]+\])", level)
            )
            parts.append(translated if last else translated + "/")
    return "".join(parts)
