"""Quoting of `arguments` and `environment` in submit descriptions, both ways.

New syntax: the whole in double quotes, `""` a double quote, blanks separate, single quotes hold together, `''` inside
them is one. Old syntax: no double quotes around; arguments are separated by blanks, variables by semicolons. What we
write is always the new one. Pure functions of values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from eventmill.entities.macros import Data, Text, split, strip
from eventmill.errors import InvalidDescription

_VARIABLE = re.compile(r"[A-Za-z_]\w*\Z")


def split_arguments(text: Text, line: int) -> list[Text]:
    """One text for each argument; a parameter's value never makes two arguments of one."""
    body = _unwrap(text, line)
    return _old_arguments(strip(text), line) if body is None else _words(body, line)


def split_environment(text: Text, line: int) -> dict[str, Text]:
    """One text for each variable, in order."""
    body = _unwrap(text, line)
    words = [part for part in split(text, ";") if part] if body is None else _words(body, line)
    variables: dict[str, Text] = {}
    for word in words:
        if "=" not in word:
            raise InvalidDescription(f"environment: '{_author(word)}' is not name=value", line)
        at = word.index("=")
        name = _author(word[:at])
        if not _VARIABLE.match(name):
            raise InvalidDescription(f"environment: '{name}' can't be the name of a variable", line)
        if name.upper().startswith("EVENTMILL_"):
            raise InvalidDescription(f"environment: '{name}' is Eventmill's own", line)
        variables[name] = word[at + 1 :]
    return variables


def join_arguments(arguments: Iterable[str]) -> str:
    """Arguments in the new syntax, the enclosing double quotes included."""
    return '"' + " ".join(_quote(argument) for argument in arguments).replace('"', '""') + '"'


def join_environment(environment: Mapping[str, str]) -> str:
    """Variables in the new syntax, the enclosing double quotes included."""
    return '"' + " ".join(f"{name}={_quote(value)}" for name, value in environment.items()).replace('"', '""') + '"'


def _quote(word: str) -> str:
    if word and not any(c in " \t'" for c in word):
        return word
    return "'" + word.replace("'", "''") + "'"


def _author(word: Text) -> str:
    """What the author wrote of it; for messages, and for names, which data can't be part of."""
    return "".join(f"$({unit.name})" if isinstance(unit, Data) else unit for unit in word)


def _unwrap(text: Text, line: int) -> Text | None:
    """The inside of new syntax, with `""` as one character still to come; None: old syntax."""
    text = strip(text)
    if not text or text[0] != '"':
        return None
    if len(text) < 2 or text[-1] != '"':
        raise InvalidDescription("the double quote at the beginning is not closed at the end", line)
    body: Text = []
    inside = iter(text[1:-1])
    for unit in inside:
        if unit == '"' and next(inside, None) != '"':
            raise InvalidDescription('a double quote inside double quotes is written ""', line)
        body.append(unit)
    return body


def _words(body: Text, line: int) -> list[Text]:
    """New syntax, unwrapped, as words."""
    words: list[Text] = []
    word: Text | None = None
    quoted = False
    at = 0
    while at < len(body):
        unit = body[at]
        at += 1
        if unit in (" ", "\t") and not quoted:
            words += [] if word is None else [word]
            word = None
            continue
        word = [] if word is None else word
        if unit != "'":
            word.append(unit)
        elif quoted and body[at : at + 1] == ["'"]:
            word.append("'")
            at += 1
        else:
            quoted = not quoted
    if quoted:
        raise InvalidDescription("a single quote is not closed", line)
    return words + ([] if word is None else [word])


def _old_arguments(text: Text, line: int) -> list[Text]:
    words: list[Text] = [[]]
    for at, unit in enumerate(text):
        if unit in (" ", "\t"):
            words.append([])
        elif unit == '"' and text[at - 1 : at] != ["\\"]:
            raise InvalidDescription("a double quote here needs the new syntax: the whole value in double quotes", line)
        elif not (unit == "\\" and text[at + 1 : at + 2] == ['"']):
            words[-1].append(unit)
    return [word for word in words if word]
