"""Puts all its parameters under one name, `$fieldName`."""

from typing import Any


def main(args: dict[str, Any]) -> dict[str, Any]:
    name = args.pop("$fieldName", None)
    if not isinstance(name, str):
        return {"error": "Expected an argument '$fieldName' of type 'string'."}
    return {name: args}
